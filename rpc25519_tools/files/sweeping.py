"""Remove what nobody needs any more from the area for unfinished files (``area.py``).

A file or directory in it is in use while somebody has it locked. All of this blocks.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Final

from rpc25519_tools.files.partial import names_inode

#: What a sweep leaves of the partials that nobody has locked.
MAX_AGE_S: Final = 7 * 24 * 3600
MAX_PARTIALS: Final = 64
#: Of the file system's size; an unfinished file must not be what fills a disk for good.
MAX_SHARE: Final = 4

#: How long a sweep may take, in seconds, and how many names it looks at.
SWEEP_S: Final = 0.25
MAX_LISTED: Final = 4096
#: Sessions of killed processes whose files are taken over.
MAX_TAKEN_OVER: Final = 4

DIR_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NO_LOCKS = frozenset(
    {
        errno.EBADF,  # NFS locks only what is open for writing; a directory never is
        errno.ENOLCK,
        errno.ENOSYS,
        errno.ENOTSUP,
        errno.EOPNOTSUPP,
        errno.EINVAL,
    }
)


def try_lock(fd: int) -> bool | None:
    """Lock a file or directory without waiting; False: another has, None: no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        if exc.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _listed(dir_fd: int, most: int | None) -> Iterator[bytes]:
    """Return names in a directory; on a descriptor of its own, so offsets are ours."""
    fd = os.open(b".", DIR_FLAGS, dir_fd=dir_fd)
    try:
        with os.scandir(fd) as entries:
            for entry in itertools.islice(entries, most):
                yield os.fsencode(entry.name)
    finally:
        os.close(fd)


def empty(dir_fd: int, give_up: Callable[[], bool] | None) -> None:
    """Remove the files of a session directory, as far as the time goes.

    Names are taken in batches: removing while listing may skip some.
    """
    while names := list(_listed(dir_fd, MAX_LISTED)):
        removed = 0
        for name in names:
            if give_up is not None and give_up():
                return
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=dir_fd)
                removed += 1
        if not removed:
            return


def sweep(area_fd: int, now_s: float) -> None:
    """Remove what is dead, old or too much, unless it is locked, in a bounded time.

    Args:
        area_fd: the area.
        now_s: the time, Unix seconds.

    Raises:
        OSError: the area cannot be listed.
    """
    end_s = time.monotonic() + SWEEP_S
    disk = os.fstatvfs(area_fd)
    room = disk.f_blocks * disk.f_frsize // MAX_SHARE
    oldest_ns = int((now_s - MAX_AGE_S) * 1e9)
    files: list[tuple[int, int, bytes]] = []
    for name in list(_listed(area_fd, MAX_LISTED)):
        if time.monotonic() > end_s:
            return
        with contextlib.suppress(OSError):
            status = os.stat(name, dir_fd=area_fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                _remove_session(area_fd, name, end_s, oldest_ns)
            else:
                # The time of the inode's change: that of the contents may be set.
                used = status.st_blocks * 512
                files.append((status.st_ctime_ns, used, name))
    files.sort(reverse=True)
    total = 0
    for count, (changed_ns, used, name) in enumerate(files, 1):
        if time.monotonic() > end_s:
            return
        total += used
        too_much = count > MAX_PARTIALS or (0 < room < total)
        is_old = changed_ns < oldest_ns
        if too_much or is_old:
            with contextlib.suppress(OSError):
                _remove_partial(area_fd, name, changed_ns, is_old=is_old)


def take_over(area_fd: int) -> list[tuple[int, bytes]]:
    """Lock the session directories that killed processes have left.

    Returns:
        Descriptor and name of each, the newest first, at most MAX_TAKEN_OVER.
    """
    found: list[tuple[int, int, bytes]] = []
    for name in list(_listed(area_fd, MAX_LISTED)):
        with contextlib.suppress(OSError):
            fd = os.open(name, DIR_FLAGS, dir_fd=area_fd)
            try:
                status = os.fstat(fd)
                mine = bool(try_lock(fd)) and names_inode(area_fd, name, status)
            except BaseException:
                os.close(fd)
                raise
            if mine:
                found.append((status.st_ctime_ns, fd, name))
            else:
                os.close(fd)
    found.sort(reverse=True)
    for _, fd, _ in found[MAX_TAKEN_OVER:]:
        os.close(fd)
    return [(fd, name) for _, fd, name in found[:MAX_TAKEN_OVER]]


def _remove_session(area_fd: int, name: bytes, end_s: float, oldest_ns: int) -> None:
    """Remove a session directory unless its owner lives."""
    fd = os.open(name, DIR_FLAGS, dir_fd=area_fd)
    try:
        status = os.fstat(fd)
        locked = try_lock(fd)
        if locked is None:
            locked = status.st_ctime_ns < oldest_ns
        if locked and names_inode(area_fd, name, status):
            empty(fd, lambda: time.monotonic() > end_s)
            os.rmdir(name, dir_fd=area_fd)
    finally:
        os.close(fd)


def _remove_partial(
    area_fd: int, name: bytes, changed_ns: int, *, is_old: bool
) -> None:
    """Remove a file unless it is locked, or was used after it was looked at.

    One that cannot be locked, as it has its final mode already, goes by its age.
    """
    fd = _open_any(area_fd, name)
    try:
        locked = None if fd < 0 else try_lock(fd)
        if locked is None:
            locked = is_old
        status = os.stat(name, dir_fd=area_fd, follow_symlinks=False)
        if fd >= 0 and not os.path.samestat(status, os.fstat(fd)):
            return
        if locked and status.st_ctime_ns == changed_ns:
            os.unlink(name, dir_fd=area_fd)
    finally:
        if fd >= 0:
            os.close(fd)


def _open_any(area_fd: int, name: bytes) -> int:
    """Open a file in some way that a lock can be had by; -1 if its mode forbids all."""
    for access in (os.O_RDWR, os.O_RDONLY):
        with contextlib.suppress(PermissionError):
            return os.open(name, access | _LOOK_FLAGS, dir_fd=area_fd)
    return -1
