"""Make what was written survive a power cut, many files at a time.

All of this blocks.
"""

import contextlib
import os
from typing import Final

from rpc25519_tools.errors import LocalFileError, Rpc25519Error
from rpc25519_tools.sync.copying import sync_file_system
from rpc25519_tools.sync.tree import Parts, Tree, why

#: Up to so many things are synced one by one, more by syncing their file system.
FEW: Final = 4
#: Of a file only its attributes are synced, so opening it must do nothing else.
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIR_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Changes:
    """What was changed and need not have reached the disk.

    Names belong to their directory, and attributes to the file: syncing a file's
    contents makes neither its name nor its directory survive.

    Args:
        tree: where it lies.
        sync_fd: its root, open for reading.
    """

    def __init__(self, tree: Tree, sync_fd: int) -> None:
        self._tree = tree
        self._sync_fd = sync_fd
        self._top_device = os.fstat(sync_fd).st_dev
        self._directories: set[Parts] = set()
        self._files: set[Parts] = set()
        # Of each other file system the directory that was changed last: should it have
        # gone since, the one above it would have been changed later.
        self._mounted: dict[int, Parts] = {}

    def note_directory(self, path: Parts) -> None:
        """Note that names in a directory, or its attributes, were changed."""
        self._directories.add(path)
        self._note_device(path)

    def note_file(self, path: Parts) -> None:
        """Note that attributes of anything but a directory were changed."""
        if len(self._files) <= FEW:
            self._files.add(path)
        self._note_device(path[:-1])

    def _note_device(self, path: Parts) -> None:
        with contextlib.suppress(OSError, Rpc25519Error):  # it went
            device = os.fstat(self._tree.directory(path).fd).st_dev
            if device != self._top_device:
                self._mounted[device] = path

    def sync_names(self) -> None:
        """Make all names survive that were changed so far.

        Raises:
            LocalFileError: writing something back has failed.
        """
        changed, self._directories = self._directories, set()
        if len(changed) > FEW and self._sync_all():
            return
        for path in changed:
            try:
                directory = self._tree.directory(path)
            except Rpc25519Error:
                continue  # it went
            try:
                _sync_one(b".", _DIR_FLAGS, directory.fd)
            except (FileNotFoundError, PermissionError):
                continue  # it went, or we may write into it and not read it
            except OSError as exc:
                raise LocalFileError(why(exc, "write", path)) from exc

    def sync(self) -> None:
        """Make everything survive that was changed so far.

        Raises:
            LocalFileError: writing something back has failed.
        """
        if len(self._files) > FEW and self._sync_all():
            return
        self.sync_names()
        changed, self._files = self._files, set()
        for path in changed:
            # What cannot be opened, such as a socket, is left to the system.
            with contextlib.suppress(OSError, Rpc25519Error):
                directory = self._tree.directory(path[:-1])
                _sync_one(path[-1], _FILE_FLAGS, directory.fd)

    def _sync_all(self) -> bool:
        """Sync all file systems that were changed; False where that cannot be."""
        path: Parts = ()
        try:
            if not sync_file_system(self._sync_fd):
                return False
            for path in self._mounted.values():
                self._sync_mounted(path)
        except OSError as exc:
            raise LocalFileError(why(exc, "write", path)) from exc
        self._files, self._directories, self._mounted = set(), set(), {}
        return True

    def _sync_mounted(self, path: Parts) -> None:
        """Sync the file system that a directory is on."""
        try:
            directory = self._tree.directory(path)
            fd = os.open(".", _DIR_FLAGS, dir_fd=directory.fd)
        except (OSError, Rpc25519Error):
            os.sync()  # it went, or we may write into it and not read it
            return
        try:
            sync_file_system(fd)
        finally:
            os.close(fd)


def _sync_one(name: bytes, flags: int, dir_fd: int) -> None:
    fd = os.open(name, flags, dir_fd=dir_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
