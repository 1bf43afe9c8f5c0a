"""Move what is complete to another file system, where no rename leads. It blocks."""

import contextlib
import os
import stat
from typing import Final

_COPY_LEN: Final = 1 << 20


def move_across(
    from_fd: int,
    temporary: bytes,
    to_fd: int,
    beside: bytes,
    name: bytes,
    *,
    fsync: bool,
) -> None:
    """Copy something beside its final name, rename it, and remove the original.

    Args:
        from_fd: the directory that it is in.
        temporary: its name there.
        to_fd: the directory that it goes to.
        beside: a free name there.
        name: its final name there; what has it is replaced.
        fsync: whether a file's contents are synced before it gets its name.

    Raises:
        OSError: it could not be done; the original is as it was.
    """
    status = os.stat(temporary, dir_fd=from_fd, follow_symlinks=False)
    try:
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(temporary, dir_fd=from_fd), beside, dir_fd=to_fd)
        elif stat.S_ISREG(status.st_mode):
            _copy_file(from_fd, temporary, to_fd, beside, status, fsync=fsync)
        else:
            os.mknod(beside, status.st_mode, status.st_rdev, dir_fd=to_fd)
        times = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(beside, ns=times, dir_fd=to_fd, follow_symlinks=False)
        os.rename(beside, name, src_dir_fd=to_fd, dst_dir_fd=to_fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside, dir_fd=to_fd)
        raise
    os.unlink(temporary, dir_fd=from_fd)


def _copy_file(
    from_fd: int,
    name: bytes,
    to_fd: int,
    to_name: bytes,
    status: os.stat_result,
    *,
    fsync: bool,
) -> None:
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=from_fd)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(to_name, flags, 0o600, dir_fd=to_fd)
        try:
            while block := os.read(source, _COPY_LEN):
                with memoryview(block) as view:
                    done = 0
                    while done < len(view):
                        done += os.write(target, view[done:])
            if os.geteuid() == 0:
                os.fchown(target, status.st_uid, status.st_gid)
            os.fchmod(target, stat.S_IMODE(status.st_mode))
            if fsync:
                os.fsync(target)
        finally:
            os.close(target)
    finally:
        os.close(source)
