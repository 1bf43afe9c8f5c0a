"""Look at what is in a directory beneath a served root, without following links.

Between two looks no directory is kept open: a walk may be as deep as it likes without
using up descriptors. Each look goes through the jail again, and notices when another
directory has the name meanwhile.

All of this blocks; call it from a worker thread.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rpc25519_tools.files.jail import Root, file_error, unsafe
from rpc25519_tools.files.sorted_names import NameSpool, SortedNames

_READ_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An entry of a directory.

    Attributes:
        name: one component.
        status: its ``lstat``.
        link_target: where it leads to, if it is a symbolic link.
    """

    name: bytes
    status: os.stat_result
    link_target: bytes | None


def find(root: Root, parts: Sequence[bytes], shown: str) -> Found:
    """Look at one file or directory beneath the root; not at the root itself.

    Args:
        root: the served directory.
        parts: at least one component.
        shown: what to call it in messages.

    Raises:
        UnsafePathError: the name is not plain, kept back, or leads through a link.
        LocalFileError: there is no such file or directory, or no permission.
    """
    *parents, name = parts
    dir_fd = root.hold_directory(parents, shown)
    try:
        found = _look_at(dir_fd, name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        root.check_shown(parts, found.status, shown)
        return found
    except OSError as exc:
        raise file_error(exc, "list", shown) from exc
    finally:
        os.close(dir_fd)


class Directory:
    """The entries of one directory, in the order of the bytes of their names.

    Making it reads all names; their statuses are looked up batch by batch.

    Args:
        root: the served directory.
        parts: components of the directory; none for the root itself.
        shown: what to call it in messages.
        spool: where the names are kept.

    Raises:
        UnsafePathError: the name is not plain, kept back, or leads through a link, or
            it is no directory.
        LocalFileError: there is no such directory, or no permission.
    """

    def __init__(
        self, root: Root, parts: tuple[bytes, ...], shown: str, spool: NameSpool
    ) -> None:
        self.parts = parts
        self._root = root
        self._shown = shown
        with self._held() as dir_fd:
            status = os.fstat(dir_fd)
            self._identity = (status.st_dev, status.st_ino)
            reading_fd = os.open(".", _READ_FLAGS, dir_fd=dir_fd)
            try:
                self._names: SortedNames = spool.sort(_names_in(reading_fd))
            finally:
                os.close(reading_fd)

    def next_batch(self, limit: int) -> list[Found]:
        """Return up to ``limit`` entries; none at the end.

        Those that are kept back, unfinished or gone meanwhile are left out.

        Raises:
            LocalFileError: the directory is gone, or no more what it was.
        """
        batch: list[Found] = []
        with self._held() as dir_fd:
            status = os.fstat(dir_fd)
            if (status.st_dev, status.st_ino) != self._identity:
                raise unsafe(self._shown, "it was replaced while it was listed")
            is_hidden = self._root.hidden_in(self.parts)
            for name in self._names:
                found = _look_at(dir_fd, name)
                if found is not None and not is_hidden(name, found.status):
                    batch.append(found)
                    if len(batch) == limit:
                        break
        return batch

    def close(self) -> None:
        """Forget the names. Directories are closed in the reverse order of opening."""
        self._names.close()

    @contextlib.contextmanager
    def _held(self) -> Iterator[int]:
        dir_fd = self._root.hold_directory(self.parts, self._shown)
        try:
            yield dir_fd
        except OSError as exc:
            raise file_error(exc, "list", self._shown) from exc
        finally:
            os.close(dir_fd)


def _names_in(dir_fd: int) -> Iterator[bytes]:
    with os.scandir(dir_fd) as entries:
        for entry in entries:
            yield os.fsencode(entry.name)


def _look_at(dir_fd: int, name: bytes) -> Found | None:
    """Return an entry as it is now; None if it is gone."""
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    target = None
    if stat.S_ISLNK(status.st_mode):
        # Something else may have the name by now: then there is no target to show.
        with contextlib.suppress(OSError):
            target = os.readlink(name, dir_fd=dir_fd)
    return Found(name=name, status=status, link_target=target)
