"""Reads the file with the pre-shared key.

The file's bytes, all of them, are turned into the key by HKDF; they are never used as
they are. A path that leads nowhere stops the program: Go programs go on without any
encryption then.
"""

import os
from dataclasses import dataclass, field
from typing import Final

from rpc25519_tools.errors import KeyFileError
from rpc25519_tools.identity.printable import printable
from rpc25519_tools.identity.store import loose_permissions, read_bounded
from rpc25519_tools.wire.tunnel import derive_psk

#: Shorter files stop a Go program too.
MIN_FILE_LEN: Final = 32
#: A key of any sense has some tens of bytes; this keeps a wrong path from being read.
MAX_FILE_LEN: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PreSharedKey:
    """A pre-shared key.

    Attributes:
        secret: the 32 bytes derived from the file; shown by no ``repr``.
        problem: what is too open about the file, in one line; None where nothing is.
    """

    secret: bytes = field(repr=False)
    problem: str | None = None


def load_pre_shared_key(path: str | os.PathLike[str]) -> PreSharedKey:
    """Read a key file.

    Raises:
        KeyFileError: it is missing, no regular file, or too short or too long.
    """
    content = read_bounded(path, MAX_FILE_LEN)
    if len(content) < MIN_FILE_LEN:
        raise KeyFileError(
            f"{printable(os.fspath(path))} is too short for a pre-shared key: "
            f"{len(content)} bytes, at least {MIN_FILE_LEN} are needed "
            "(`selfy -gensym FILE` makes one)"
        )
    return PreSharedKey(secret=derive_psk(content), problem=loose_permissions(path))
