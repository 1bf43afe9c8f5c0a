"""Looks whether the files of an identity have changed, and loads what they hold now.

Nothing here waits or runs by itself: `IdentityFiles.look` is called again and again, in
a worker thread, since it reads files and may have to open a key.

The private key is kept in memory, so that a protected key is not opened again when only
its certificate is renewed. Where another protected key has taken its place, its pass
phrase is asked for once for each change of the files.
"""

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final, TypeAlias

from rpc25519_tools.errors import PassphraseError, Rpc25519Error
from rpc25519_tools.identity.keyfile import raw_public_key_of
from rpc25519_tools.identity.store import CA_NAME, LoadedIdentity, load_identity

#: What tells one state of a file from another; None if it is not there.
_Stamp: TypeAlias = tuple[int, int, int, int, int] | None

#: Looks after which a set of files that does not fit is told about. Whoever replaces
#: files one by one must not be told that they do not fit in between.
_PATIENCE: Final = 2


class IdentityFiles:
    """The files behind the identity that a program uses.

    Args:
        certs_dir: the directory.
        identity: what is in use, as loaded from there.
        passphrase: gets the pass phrase of another protected key, without asking
            anybody; None if it cannot be had.

    Attributes:
        current: the identity in use.
    """

    def __init__(
        self,
        certs_dir: str | os.PathLike[str],
        identity: LoadedIdentity,
        passphrase: Callable[[], bytes] | None,
    ) -> None:
        self.current = identity
        directory = Path(certs_dir)
        self._certs_dir = directory
        self._paths = [
            directory / file
            for file in (
                f"{CA_NAME}.crt",
                f"{identity.name}.crt",
                f"{identity.name}.key",
            )
        ]
        self._passphrase = passphrase
        self._seen: list[_Stamp] | None = None
        self._error: Rpc25519Error | None = None
        self._error_looks = 0
        self._may_open = True
        self._skipped = False

    def look(self, now: datetime, *, asked: bool = False) -> LoadedIdentity | None:
        """Load the files if they have changed, or were not usable the last time.

        Args:
            now: an aware time.
            asked: somebody has asked for it: load in any case, and say at once what is
                wrong.

        Returns:
            The new identity, which is `current` from now on; None if it is the old one.

        Raises:
            Rpc25519Error: the files are not usable; `current` stays. Raised once for
                each thing that is wrong, not at each look.
        """
        self._skipped = False
        seen = [_stamp(path) for path in self._paths]
        if seen != self._seen or asked:
            self._may_open = True
        elif self._error is None:
            return None
        self._seen = seen
        try:
            identity = load_identity(
                self._certs_dir,
                self.current.name,
                self._open_once,
                now=now,
                known_key=self.current.private_key,
            )
        except Rpc25519Error as exc:
            before = self._error
            self._note(before if self._skipped and before else exc, at_once=asked)
            return None
        self._error = None
        if _same(identity, self.current):
            return None
        self.current = identity
        return identity

    def _open_once(self) -> bytes:
        """Return the pass phrase, but only once for each state of the files.

        Trying it costs seconds, and 256 MiB of memory.
        """
        if not self._may_open:
            self._skipped = True
            raise PassphraseError("tried before")
        self._may_open = False
        if self._passphrase is None:
            raise PassphraseError(
                "this is another key than before, and nobody can be asked for its pass "
                "phrase while the program runs: start it again"
            )
        return self._passphrase()

    def _note(self, error: Rpc25519Error, *, at_once: bool) -> None:
        """Raise an error that is new; keep it to ourselves otherwise."""
        if self._error is None or str(self._error) != str(error):
            self._error, self._error_looks = error, 0
        self._error_looks += 1
        if at_once:
            self._error_looks = max(self._error_looks, _PATIENCE)
            raise error
        if self._error_looks == _PATIENCE:
            raise error


def _stamp(path: Path) -> _Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (
        found.st_dev,
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )


def _same(one: LoadedIdentity, other: LoadedIdentity) -> bool:
    return (
        one.certificate == other.certificate
        and one.authorities == other.authorities
        and raw_public_key_of(one.private_key) == raw_public_key_of(other.private_key)
    )
