"""Writes files safely, all of them or none.

Every file is created with mode 0600 under a temporary name in its own directory and
synced; only when all are there do they get their names, by `os.link` (which cannot
overwrite) or, where replacing was asked for, `os.replace`. A failure on the way takes
back what was done.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rpc25519_tools.errors import (
    LocalFileError,
)
from rpc25519_tools.identity.printable import printable

_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A file to write.

    Attributes:
        path: where; its directory is created (0700) if it is missing.
        content: what.
        replace: whether an existing file may be replaced.
        like: another file's; the new one gets its mode and, where permitted, its owner.
            None means mode 0600.
    """

    path: Path
    content: bytes
    replace: bool = False
    like: os.stat_result | None = None


def check_outputs(outputs: Sequence[Output]) -> None:
    """Refuse what `write_outputs` would refuse, before any work is done.

    Raises:
        LocalFileError: a file exists and may not be replaced, is a directory, or its
            directory cannot be written.
    """
    for output in outputs:
        shown = printable(str(output.path))
        if os.path.lexists(output.path):
            if output.path.is_dir():
                raise LocalFileError(f"{shown} is a directory")
            if not output.replace:
                raise LocalFileError(
                    f"{shown} exists; nothing was changed (--force replaces it)"
                )
        _check_directory(output.path.parent)


def write_outputs(outputs: Sequence[Output]) -> None:
    """Write all files, or none.

    Afterwards every file and every directory entry is on the disk (fsync). On any
    failure files that did not exist are gone again, files that were replaced are back,
    and directories that were created are removed.

    Raises:
        LocalFileError: see `check_outputs`, or the disk failed; nothing has changed.
    """
    check_outputs(outputs)
    with contextlib.ExitStack() as undo:
        try:
            staged = [(output, _stage(output, undo)) for output in outputs]
            backups = [_publish(output, name, undo) for output, name in staged]
            for directory in {output.path.parent for output in outputs}:
                _sync_directory(directory)
        except OSError as exc:
            shown = printable(str(exc.filename or outputs[0].path))
            raise LocalFileError(f"cannot write {shown}: {reason_of(exc)}") from exc
        undo.pop_all()
    for backup in backups:
        if backup is not None:
            _unlink(backup)


def _stage(output: Output, undo: contextlib.ExitStack) -> Path:
    """Write the content under a temporary name; `undo` learns how to remove it."""
    _make_directory(output.path.parent, undo)
    temporary = output.path.with_name(f".{output.path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, _FILE_MODE)
    undo.callback(_unlink, temporary)
    with open(descriptor, "wb") as file:
        file.write(output.content)
        file.flush()
        if output.like is not None:
            copy_ownership(descriptor, output.like)
        os.fsync(descriptor)
    return temporary


def copy_ownership(fd: int, old: os.stat_result) -> None:
    """Give the new file the old one's mode and, where permitted, owner and group."""
    mode = old.st_mode & 0o777
    mine = os.fstat(fd)
    if (mine.st_uid, mine.st_gid) != (old.st_uid, old.st_gid):
        owner = old.st_uid if os.geteuid() == 0 else -1
        try:
            os.fchown(fd, owner, old.st_gid)
        except OSError:
            if mine.st_gid != old.st_gid:
                mode &= ~0o070  # those bits were meant for another group
    os.fchmod(fd, mode)


def _publish(
    output: Output, temporary: Path, undo: contextlib.ExitStack
) -> Path | None:
    """Give the file its name; return the old file's temporary name, if there is one."""
    if not output.replace:
        # Unlike a rename, a link fails if the name was taken since we looked.
        if not _link(temporary, output.path):
            os.replace(temporary, output.path)
        undo.callback(_unlink, output.path)
        _unlink(temporary)
        return None
    backup = output.path.with_name(f".{output.path.name}.{secrets.token_hex(8)}")
    try:
        backed_up = _link(output.path, backup)
    except FileNotFoundError:
        undo.callback(_unlink, output.path)
        os.replace(temporary, output.path)
        return None
    if backed_up:
        undo.callback(_restore, backup, output.path)
    os.replace(temporary, output.path)
    return backup


def _link(old: Path, new: Path) -> bool:
    """Make a hard link; return False on file systems without them (FAT)."""
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP}:
            raise
        return False
    return True


def _check_directory(directory: Path) -> None:
    """Check that files can be made in `directory`, or it in its nearest ancestor."""
    nearest = directory
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    shown = printable(str(nearest))
    if not nearest.is_dir():
        raise LocalFileError(f"{shown} is not a directory")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise LocalFileError(f"cannot write in {shown}: permission denied")


def _make_directory(directory: Path, undo: contextlib.ExitStack) -> None:
    """Create `directory` and its missing parents with mode 0700.

    Existing directories keep their mode. The reference takes the group and other bits
    away from them, which with ``-o .`` locks others out of an unrelated directory.
    """
    if directory.is_dir():
        return
    _make_directory(directory.parent, undo)
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, _DIRECTORY_MODE)
        undo.callback(_rmdir, directory)
        _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        # Some network and FUSE file systems cannot sync a directory.
        if exc.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _restore(backup: Path, path: Path) -> None:
    with contextlib.suppress(OSError):
        os.replace(backup, path)
    # rename(2) does nothing if both names are still links to the one old file.
    _unlink(backup)


def _rmdir(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(path)


def reason_of(exc: Exception) -> str:
    """Return the operating system's text for an error, in lower case."""
    text = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    return text[:1].lower() + text[1:]
