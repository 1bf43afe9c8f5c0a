"""One list of keys as a file: looked at each time, read when it has changed.

A stat tells whether it has. As files' times are coarse, a file that changed a moment
ago is read again.
"""

import os
import stat
import time
from dataclasses import dataclass
from typing import Final

from rpc25519_tools.errors import KeyFileError
from rpc25519_tools.identity.known_peers import (
    MAX_LIST_BYTES,
    KeyList,
    parse_list,
)
from rpc25519_tools.identity.outputs import reason_of

#: Where a list has none of these, it is locked, for root too.
WRITE_BITS: Final = 0o222
#: The times of files have the resolution of the kernel's clock, or of the file system
#: (2 s on FAT). A file changed this recently may change again with no sign of it.
_UNSETTLED_NS: Final = 2_000_000_000


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What tells one state of a file from another."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    mode: int

    @classmethod
    def of(cls, found: os.stat_result) -> "_Stamp":
        return cls(
            found.st_dev,
            found.st_ino,
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
            found.st_mode,
        )


def open_at_once(path: str, flags: int) -> int:
    """Open without waiting: a FIFO in the file's place must not hang the program."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


class ListFile:
    """One file, read when it has changed; it may be missing."""

    def __init__(self, path: str, shown: str, *, strict: bool) -> None:
        self.path = path
        self.shown = shown
        self._strict = strict
        self._stamp: _Stamp | None = None
        self._settled = False
        self._content: bytes | None = None
        self._keys: KeyList | None = None
        self._error = ""

    def has_changed(self) -> bool:
        """Whether reading might bring something new."""
        try:
            stamp = self._look()
        except KeyFileError:
            return not self._error
        return stamp != self._stamp or not self._settled

    def read(self) -> tuple[KeyList | None, bool]:
        """Return the list, None if it is missing, and whether it is read-only.

        The same object is returned as long as the content is the same.
        """
        if self.has_changed():
            try:
                self._read()
                self._error = ""
            except KeyFileError as exc:
                self._error = str(exc)
        if self._error:
            raise KeyFileError(self._error)
        locked = self._stamp is not None and not self._stamp.mode & WRITE_BITS
        return self._keys, locked

    def _look(self) -> _Stamp | None:
        try:
            return _Stamp.of(os.stat(self.path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            raise KeyFileError(f"cannot read {self.shown}: {reason_of(exc)}") from exc

    def _read(self) -> None:
        self._settled = False
        try:
            with open(self.path, "rb", opener=open_at_once) as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise KeyFileError(f"{self.shown} is not a regular file")
                content = file.read(MAX_LIST_BYTES + 1)
        except FileNotFoundError:
            self._stamp, self._content, self._keys = None, None, None
            self._settled = True
            return
        except (OSError, ValueError) as exc:
            raise KeyFileError(f"cannot read {self.shown}: {reason_of(exc)}") from exc
        self._stamp = _Stamp.of(found)
        age_ns = time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns)
        self._settled = age_ns > _UNSETTLED_NS
        if content == self._content and not self._error:
            return
        self._content = None
        self._keys = parse_list(content, self.shown, strict=self._strict)
        self._content = content
