"""Loads what a pre-shared-key tunnel needs, for clients and servers."""

import asyncio

from rpc25519_tools.identity.pre_shared_key import load_pre_shared_key
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.transport.base import PeerCheck
from rpc25519_tools.transport.psk_handshake import TunnelSettings


async def load_tunnel(
    path: str | None, identity: LoadedIdentity, peer_check: PeerCheck | None = None
) -> TunnelSettings | None:
    """Read the key file at ``path``, in a thread; None where there is no path.

    Args:
        path: the key file.
        identity: our keys.
        peer_check: see TunnelSettings.

    Raises:
        KeyFileError: it is missing or too short, or our certificate is too long.
    """
    if path is None:
        return None
    key = await asyncio.to_thread(load_pre_shared_key, path)
    return TunnelSettings(identity=identity, key=key, peer_check=peer_check)
