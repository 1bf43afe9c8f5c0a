"""Open our own keys, before anything is connected."""

import os
from typing import TYPE_CHECKING

from ._output import Talk
from ._psk import check_psk

if TYPE_CHECKING:
    from rpc25519_tools.config import Config
    from rpc25519_tools.identity.store import LoadedIdentity


def open_identity(config: "Config", talk: Talk) -> "LoadedIdentity | None":
    """Load the key pair that ``config`` names; None where the network needs none.

    Asks for the pass phrase of a protected key, which then takes some seconds to open,
    and warns when others can read the key, and when the certificate ends soon.

    Raises:
        KeyFileError: a file is missing or malformed, or does not fit the others.
    """
    check_psk(config.pre_shared_key_path, talk)
    if not config.needs_identity:
        return None
    from datetime import UTC, datetime

    from rpc25519_tools.identity.status import end_warning
    from rpc25519_tools.identity.store import load_identity, loose_permissions

    identity = load_identity(config.certs_dir, config.key_name, config.passphrase)
    key_path = os.path.join(config.certs_dir, f"{config.key_name}.key")
    for path in (config.certs_dir, key_path):
        problem = loose_permissions(path)
        if problem is not None:
            talk.warn(problem)
    ending = end_warning(identity, datetime.now(UTC))
    if ending is not None:
        talk.warn(ending)
    return identity
