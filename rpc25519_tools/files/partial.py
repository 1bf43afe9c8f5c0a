"""Take and lock the partial file that a transfer writes into.

The names are ``.rpc25519-part-HASH-N``: HASH is 16 hex digits of the BLAKE3 sum of the
final name, N counts from 0. Whoever holds the ``flock`` of the file that a name is of
owns it; a file that nobody has locked was left by a process that is gone. A lock
counts only after the name was seen to be still that file's, since its last owner may
have renamed it in between. All of this blocks.
"""

import contextlib
import errno
import fcntl
import os
import stat

from blake3 import blake3

from rpc25519_tools.errors import LocalFileError
from rpc25519_tools.files.jail import PARTIAL_PREFIX, display_name

MAX_PARTIALS = 64  # transfers of one name into one directory at the same time
REAP_GAP = 8  # leftovers are searched for until so many numbers in a row are free
MAX_RACES = 100  # how often the name of a partial file may vanish while we lock it

CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TAKE_FLAGS = (
    os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
)  # what is in the way may be anything; opening it must not block

_IN_THE_WAY = frozenset(
    {errno.EACCES, errno.EPERM, errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR}
)
_NO_LOCKS = frozenset(
    {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
)


def names_inode(dir_fd: int, name: bytes, status: os.stat_result) -> bool:
    """Tell whether a name is, right now, that of the given file."""
    try:
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, status)


def acquire_partial(dir_fd: int, final_name: bytes, shown: str) -> tuple[int, bytes]:
    """Lock an empty partial file for a name; returns its descriptor and name."""
    stem = PARTIAL_PREFIX + blake3(final_name).hexdigest(length=8).encode()
    for number in range(MAX_PARTIALS):
        partial = b"%s-%d" % (stem, number)
        fd = _lock_partial(dir_fd, partial)
        if fd is not None:
            if number == 0:
                _reap_leftovers(dir_fd, stem)
            return fd, partial
    raise LocalFileError(
        f"cannot write {display_name(shown)}: too many transfers of it are under way"
    )


def _lock_partial(dir_fd: int, partial: bytes) -> int | None:
    """Make or take over one partial file; None if it is another transfer's."""
    for _ in range(MAX_RACES):
        try:
            fd = os.open(partial, CREATE_FLAGS, 0o600, dir_fd=dir_fd)
            created = True
        except FileExistsError:
            try:
                fd = os.open(partial, _TAKE_FLAGS, dir_fd=dir_fd)
                created = False
            except FileNotFoundError:
                continue  # it was committed or removed just now
            except OSError as exc:
                if exc.errno not in _IN_THE_WAY:
                    raise
                return None
        keep = False
        try:
            verdict = _claim(dir_fd, partial, fd, created=created)
            keep = verdict is True
        finally:
            if not keep:
                os.close(fd)
        if keep:
            return fd
        if verdict is None:
            return None
    return None


def _claim(dir_fd: int, partial: bytes, fd: int, *, created: bool) -> bool | None:
    """Try to own an open partial file: True yes, None never, False open it anew."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        # Without locks only a file that is certainly fresh is certainly ours.
        return True if created and exc.errno in _NO_LOCKS else None
    status = os.fstat(fd)
    if not names_inode(dir_fd, partial, status):
        return False
    foreign = not created and status.st_uid != os.geteuid()
    if foreign or status.st_nlink != 1:
        # Not ours to write into: someone could keep it open, or it is also another
        # file (perhaps a finished one, see _publish). The name is ours to remove.
        try:
            os.unlink(partial, dir_fd=dir_fd)
        except OSError:
            return None
        return False
    if stat.S_IMODE(status.st_mode) != 0o600:
        os.fchmod(fd, 0o600)
    os.ftruncate(fd, 0)
    return True


def _reap_leftovers(dir_fd: int, stem: bytes) -> None:
    """Remove unlocked partial files with higher numbers, best effort."""
    free = 0
    for number in range(1, MAX_PARTIALS):
        if free == REAP_GAP:
            return
        partial = b"%s-%d" % (stem, number)
        try:
            fd = os.open(partial, _TAKE_FLAGS, dir_fd=dir_fd)
        except FileNotFoundError:
            free += 1
            continue
        except OSError:
            continue
        free = 0
        with contextlib.suppress(OSError):
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if names_inode(dir_fd, partial, status):
                    os.unlink(partial, dir_fd=dir_fd)
        os.close(fd)
