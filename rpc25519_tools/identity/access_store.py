"""Reads an access file whenever it has changed, and denies everything while it cannot.

The file is looked at (one ``stat``) each time somebody asks, so a change counts for
the next call. A file that is broken, unreadable, gone, or that others could have
written, allows nothing to anybody until it is mended; the log says why, once for each
reason. The rules of the last good file are not kept: who takes a right away by a file
with a slip in it means to take it away.
"""

import logging
import os
import stat
import threading
import time
from dataclasses import dataclass
from typing import Final, TypeAlias

from rpc25519_tools.errors import AccessFileError, LocalFileError
from rpc25519_tools.identity.access import AccessRules, Right
from rpc25519_tools.identity.access_text import MAX_FILE_LEN, parse_access_file
from rpc25519_tools.identity.certificate import PeerIdentity
from rpc25519_tools.identity.printable import printable

_log = logging.getLogger(__name__)

#: A file whose last change is younger than this is read again each time: another one
#: may follow within the same tick of its file system's clock (2 s on FAT).
_SETTLED_NS: Final = 2_000_000_000
#: How often a file that is of no use is tried again though it looks the same, in
#: seconds: its directory may have been mended, or the disk.
_RETRY_S: Final = 1.0
#: How often a file is read that changes while it is read.
_ATTEMPTS: Final = 3

#: What tells one state of a file from another: device, inode, size, both times, mode
#: and owner. None for a file that cannot be looked at.
_Signature: TypeAlias = tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What was found when the file was read last.

    Attributes:
        signature: of the file then.
        content: the bytes of a file that is in force.
        rules: what it says; None where it is of no use.
        problem: why it is of no use; empty where it is in force.
        good_until_s: as long as the signature stays the same, the file need not be
            read before this time on the monotonic clock.
    """

    signature: _Signature
    content: bytes
    rules: AccessRules | None
    problem: str
    good_until_s: float


class AccessFile:
    """The access file of a running server; an ``AccessPolicy``. Safe from any thread.

    Args:
        path: the file. It and its directory must belong to us or to root, and nobody
            else may be able to write them.

    Raises:
        AccessFileError: it is broken, or others could have written it.
        LocalFileError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._lock = threading.Lock()
        content, signature, changed_ns = _read(self.path)
        self._state = _in_force(self.path, content, signature, changed_ns)

    @property
    def rules(self) -> AccessRules | None:
        """What the file says now; None while it is of no use."""
        # The signature first: what changes after it is noticed the next time.
        signature = _signature(self.path)
        state = self._state
        if signature == state.signature and time.monotonic() < state.good_until_s:
            return state.rules
        with self._lock:
            self._state = self._next(self._state)
            return self._state.rules

    def may(self, peer: PeerIdentity | None, right: Right, target: str) -> bool:
        """Tell whether a peer may do something now; see ``AccessPolicy.may``."""
        rules = self.rules
        return rules is not None and rules.may(peer, right, target)

    def _next(self, old: _State) -> _State:
        """Read the file again, and log what has changed about it."""
        try:
            content, signature, changed_ns = _read(self.path)
            if old.rules is not None and content == old.content:
                return _State(
                    signature=signature,
                    content=content,
                    rules=old.rules,
                    problem="",
                    good_until_s=_good_until_s(changed_ns),
                )
            new = _in_force(self.path, content, signature, changed_ns)
        except (AccessFileError, LocalFileError) as exc:
            if str(exc) != old.problem:
                _log.warning("%s; nothing is allowed until it is mended", exc)
            return _State(
                signature=_signature(self.path),
                content=b"",
                rules=None,
                problem=str(exc),
                good_until_s=time.monotonic() + _RETRY_S,
            )
        if old.problem:
            _log.warning("access file %s is in force again", printable(self.path))
        else:
            _log.info("access file %s has changed", printable(self.path))
        return new


def _in_force(
    path: str, content: bytes, signature: _Signature, changed_ns: int
) -> _State:
    try:
        rules = parse_access_file(content)
    except AccessFileError as exc:
        text = f"access file {printable(path)}: {exc}"
        raise AccessFileError(text, line=exc.line) from exc
    return _State(
        signature=signature,
        content=content,
        rules=rules,
        problem="",
        good_until_s=_good_until_s(changed_ns),
    )


def _good_until_s(changed_ns: int) -> float:
    """Return until when an unchanged signature means an unchanged file."""
    settled = time.time_ns() - changed_ns > _SETTLED_NS
    return float("inf") if settled else 0.0


def _signature(path: str) -> _Signature:
    try:
        return _signature_of(os.stat(path))
    except (OSError, ValueError):
        return None


def _signature_of(found: os.stat_result) -> tuple[int, ...]:
    return (
        found.st_dev,
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_mode,
        found.st_uid,
    )


def _read(path: str) -> tuple[bytes, _Signature, int]:
    """Read the whole file, as it is at one moment.

    Returns:
        Its bytes, its signature, and when its inode was changed (Unix nanoseconds).

    Raises:
        AccessFileError: others could have written it, it is not a regular file, it is
            too long, or it does not keep still.
        LocalFileError: it cannot be read.
    """
    shown = f"access file {printable(path)}"
    try:
        _require_safe_directories(path, shown)
        # O_NONBLOCK: a FIFO in the file's place must not hang the program.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return _read_open(descriptor, shown)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as exc:
        text = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise LocalFileError(f"cannot read {shown}: {text.lower()}") from exc


def _read_open(descriptor: int, shown: str) -> tuple[bytes, _Signature, int]:
    before = os.fstat(descriptor)
    for _ in range(_ATTEMPTS):
        _require_safe_file(before, shown)
        os.lseek(descriptor, 0, os.SEEK_SET)
        content = _read_all(descriptor)
        after = os.fstat(descriptor)
        if _signature_of(before) == _signature_of(after):
            return content, _signature_of(after), after.st_ctime_ns
        before = after
    raise AccessFileError(f"{shown} is being changed all the time")


def _read_all(descriptor: int) -> bytes:
    """Read up to one byte more than an access file may have."""
    pieces, left = [], MAX_FILE_LEN + 1
    while left and (piece := os.read(descriptor, left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _require_safe_file(found: os.stat_result, shown: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise AccessFileError(f"{shown} is not a regular file")
    if found.st_uid not in (0, os.geteuid()):
        raise AccessFileError(f"{shown} belongs to another user; chown it to root")
    if found.st_mode & 0o022:
        raise AccessFileError(
            f"others can write {shown} (mode {stat.S_IMODE(found.st_mode):04o}): "
            "take that away with chmod go-w"
        )


def _require_safe_directories(path: str, shown: str) -> None:
    """Check the directories in which another file could take this one's place."""
    folders = {os.path.dirname(os.path.abspath(path))}
    folders.add(os.path.dirname(os.path.realpath(path)))
    for folder in sorted(folders):
        found = os.stat(folder)
        if found.st_uid not in (0, os.geteuid()):
            raise AccessFileError(f"the directory of {shown} belongs to another user")
        # In a sticky directory, such as /tmp, nobody else can replace our files.
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            raise AccessFileError(
                f"others can replace {shown}, since they can write in its directory "
                f"{printable(folder)} (chmod go-w)"
            )
