"""Copy within this machine as cheaply as it can, and sync what was written.

All of this blocks.
"""

import ctypes
import ctypes.util
import errno
import fcntl
import functools
import os
import sys
from typing import Final

from rpc25519_tools.errors import FileChangedError

_COPY_LEN: Final = 1 << 20
#: Linux's FICLONE: let two files share their blocks.
_FICLONE: Final = 0x40049409
_CANNOT_CLONE: Final = frozenset(
    {
        errno.EXDEV,
        errno.EOPNOTSUPP,
        errno.ENOTSUP,
        errno.ENOSYS,
        errno.EINVAL,
        errno.ENOTTY,
        errno.EBADF,
        errno.EPERM,
    }
)


def clone(source_fd: int, target_fd: int) -> bool:
    """Let a file share all blocks of another one; False where that cannot be."""
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError as exc:
        if exc.errno not in _CANNOT_CLONE:
            raise
        return False
    return True


def copy_range(
    source_fd: int, target_fd: int, start: int, length: int, at: int
) -> None:
    """Copy within this machine.

    Raises:
        FileChangedError: the source has become shorter.
    """
    done = 0
    while done < length:
        count = _copy_some(source_fd, target_fd, start + done, length - done, at + done)
        if not count:
            raise FileChangedError("a file here became shorter while it was read")
        done += count


def _copy_some(source_fd: int, target_fd: int, start: int, length: int, at: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source_fd, target_fd, length, start, at)
        except OSError as exc:
            if exc.errno not in _CANNOT_CLONE:
                raise
    data = os.pread(source_fd, min(length, _COPY_LEN), start)
    return os.pwrite(target_fd, data, at) if data else 0


@functools.cache
def _syncfs() -> "ctypes._NamedFuncPointer | None":
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None


def sync_file_system(fd: int) -> bool:
    """Sync the whole file system that a descriptor is on; False if that is not so.

    One call for a thousand files takes about as long as one for a single file.

    Raises:
        OSError: writing something back has failed.
    """
    syncfs = _syncfs()
    if syncfs is None:
        return False
    if syncfs(fd):
        code = ctypes.get_errno()
        if code in {errno.ENOSYS, errno.EBADF}:
            return False
        raise OSError(code, os.strerror(code))
    return True
