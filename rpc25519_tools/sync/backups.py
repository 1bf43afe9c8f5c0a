"""Keep what a sync replaces or removes, in a directory beneath the destination.

All of this blocks.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from rpc25519_tools.errors import Rpc25519Error, UnsafePathError
from rpc25519_tools.sync.across import copy_across, link, move_across
from rpc25519_tools.sync.durable import Changes
from rpc25519_tools.sync.names import unsorted_names
from rpc25519_tools.sync.tree import Directory, Parts, Tree, shown

#: Where a file system has no hard links, or not of this thing.
_NO_LINKS: Final = frozenset(
    {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
)


class Backups:
    """The directory of ``--backup-dir``.

    Args:
        tree: the destination.
        changes: learns of directories that change.
        path: where backups go in it.
        fsync: whether files that have to be copied there are synced.
    """

    def __init__(
        self, tree: Tree, changes: Changes, path: Parts, *, fsync: bool
    ) -> None:
        self._tree = tree
        self._changes = changes
        self._path = path
        self._fsync = fsync

    def has(self, path: Parts) -> bool:
        """Tell whether a path is that of the backups, or lies above them."""
        return path == self._path[: len(path)]

    def keep(
        self,
        parent: Parts,
        name: bytes,
        drop_tree: Callable[[Parts, bytes], None],
        *,
        stays: bool = False,
    ) -> None:
        """Move what is there to the backups; a file that stays for now gets a link.

        Args:
            parent: the directory that it is in.
            name: its name there.
            drop_tree: removes a directory with all beneath it, likewise.
            stays: whether it is replaced later, so that its name must not go.

        Raises:
            UnsafePathError: the sender may not have that done.
            OSError: it cannot be moved.
        """
        directory = self._tree.directory(parent)
        path, kept = (*parent, name), (*self._path, *parent, name)
        self._check_keeping(path, kept)
        status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        self._tree.check_found(status, path)
        if stat.S_ISDIR(status.st_mode):
            self._check_keeping_all(path, kept)
        above_path = kept[:-1]
        above = self._ensure(above_path)
        self._changes.note_directory(above_path)
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(name, dir_fd=above.fd, follow_symlinks=False)
            self._tree.check_found(there, kept)
            if stat.S_ISDIR(there.st_mode):
                drop_tree(above_path, name)
        if stays and self._link(name, directory, above):
            return
        try:
            os.rename(name, name, src_dir_fd=directory.fd, dst_dir_fd=above.fd)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            move_across(directory.fd, name, above.fd, name, fsync=self._fsync)

    def _link(self, name: bytes, directory: Directory, above: Directory) -> bool:
        """Give what is there a second name, or copy it to another file system.

        Returns:
            False where there are no second names.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=above.fd)
        try:
            link(directory.fd, name, above.fd, name)
        except OSError as exc:
            if exc.errno == errno.EXDEV:
                copy_across(directory.fd, name, above.fd, name, fsync=self._fsync)
                return True
            if exc.errno not in _NO_LINKS:
                raise
            return False
        return True

    def _check_keeping(self, path: Parts, kept: Parts) -> None:
        """See that something may be moved to the backups.

        Raises:
            UnsafePathError: it is kept back, or the peer may not write one of both, or
                could read there what it cannot here.
        """
        self._tree.check_writing(path)
        self._tree.check_writing(kept)
        for right in ("read", "list"):
            if self._tree.may(right, kept) and not self._tree.may(right, path):
                text = f"keeping {shown(path)!r} at {shown(kept)!r} is not allowed"
                raise UnsafePathError(text)

    def _check_keeping_all(self, path: Parts, kept: Parts) -> None:
        """See likewise about all that is in a directory."""
        waiting = [(path, kept)]
        while waiting:
            here, above = waiting.pop()
            directory = self._tree.directory(here)
            for name in unsorted_names(directory):
                below, there = (*here, name), (*above, name)
                self._check_keeping(below, there)
                try:
                    status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # it went meanwhile
                self._tree.check_found(status, below)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append((below, there))

    def _ensure(self, path: Parts) -> Directory:
        """Return a directory of the backups, made with those above it if missing."""
        for depth in range(1, len(path) + 1):
            try:
                self._tree.directory(path[:depth])
            except Rpc25519Error:
                self._tree.check_writing(path[:depth])
                above, name = self._tree.directory(path[: depth - 1]), path[depth - 1]
                if depth > len(self._path):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=above.fd)  # no directory before
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o777, dir_fd=above.fd)
                self._changes.note_directory(path[: depth - 1])
        return self._tree.directory(path)
