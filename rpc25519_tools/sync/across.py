"""Bring things to another file system, where no rename and no link leads. It blocks.

What is made is made beside its final name, under a name that is reserved for unfinished
files (see ``files/jail.py``), and renamed when it is complete.
"""

import contextlib
import errno
import os
import stat
import time
from typing import Final

from rpc25519_tools.sync.attributes import set_mode, set_time
from rpc25519_tools.sync.copying import copy_range
from rpc25519_tools.sync.holes import stretches

_BESIDE: Final = b".rpc25519-part-sync-"
#: What was last changed before so many seconds is of no running sync: one that copies
#: changes it all the time, and then renames it.
_LEFT_S: Final = 24 * 3600
_NEW_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: Should a FIFO come into the way after the look, its open returns at once.
_READ_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def name_beside() -> bytes:
    """Return a name that nobody else takes, for what is not complete."""
    return _BESIDE + os.urandom(8).hex().encode()


def drop_left(dir_fd: int, name: bytes) -> None:
    """Remove what a killed sync has left under a name of its own; never raises.

    Args:
        dir_fd: the directory; it keeps its time of change.
        name: any reserved one.
    """
    if not name.startswith(_BESIDE):
        return
    with contextlib.suppress(OSError):
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if time.time() - status.st_ctime > _LEFT_S:
            mtime_ns = os.stat(".", dir_fd=dir_fd).st_mtime_ns
            os.unlink(name, dir_fd=dir_fd)
            set_time(dir_fd, b".", mtime_ns)


def link(from_fd: int, name: bytes, to_fd: int, to_name: bytes) -> None:
    """Give something a further name; its own file system has to be there, too."""
    os.link(name, to_name, src_dir_fd=from_fd, dst_dir_fd=to_fd, follow_symlinks=False)


def move_across(
    from_fd: int, name: bytes, to_fd: int, to_name: bytes, *, fsync: bool
) -> None:
    """Copy something as :func:`copy_across` does, and remove the original."""
    copy_across(from_fd, name, to_fd, to_name, fsync=fsync)
    os.unlink(name, dir_fd=from_fd)


def copy_across(
    from_fd: int, name: bytes, to_fd: int, to_name: bytes, *, fsync: bool
) -> None:
    """Copy anything but a directory, with all that it is.

    Args:
        from_fd: the directory that it is in.
        name: its name there.
        to_fd: the directory that it goes to.
        to_name: its name there; what has it is replaced, in one step.
        fsync: whether a file's contents are synced before it gets its name.

    Raises:
        OSError, FileChangedError: it could not be done; all is as it was.
    """
    status = os.stat(name, dir_fd=from_fd, follow_symlinks=False)
    beside = name_beside()
    fd = -1
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFREG:
        fd = os.open(beside, _NEW_FLAGS, 0o600, dir_fd=to_fd)
    elif kind == stat.S_IFLNK:
        os.symlink(os.readlink(name, dir_fd=from_fd), beside, dir_fd=to_fd)
    elif kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    else:
        os.mknod(beside, kind | 0o600, status.st_rdev, dir_fd=to_fd)
    try:
        if fd >= 0:
            _copy_contents(from_fd, name, status, fd)
        _copy_attributes(status, to_fd, beside)
        if fd >= 0 and fsync:
            os.fsync(fd)
        os.rename(beside, to_name, src_dir_fd=to_fd, dst_dir_fd=to_fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside, dir_fd=to_fd)
        raise
    finally:
        if fd >= 0:
            os.close(fd)


def _copy_contents(
    from_fd: int, name: bytes, status: os.stat_result, target: int
) -> None:
    """Copy what is in a file, without its holes."""
    source = os.open(name, _READ_FLAGS, dir_fd=from_fd)
    try:
        if not os.path.samestat(os.fstat(source), status):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        os.ftruncate(target, status.st_size)
        for at, length, is_data in stretches(source, 0, status.st_size):
            if is_data:
                copy_range(source, target, at, length, at)
    finally:
        os.close(source)


def _copy_attributes(status: os.stat_result, to_fd: int, name: bytes) -> None:
    """Give a new thing the owners, times and mode of another one."""
    mode = stat.S_IMODE(status.st_mode)
    ids = (status.st_uid, status.st_gid)
    made = os.stat(name, dir_fd=to_fd, follow_symlinks=False)
    if ids != (made.st_uid, made.st_gid):
        try:
            os.chown(name, *ids, dir_fd=to_fd, follow_symlinks=False)
        except PermissionError:
            if os.geteuid() == 0:
                raise
            # Only root may give away what is not its own: nobody is to run it as us.
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=to_fd, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        set_mode(to_fd, name, mode)
