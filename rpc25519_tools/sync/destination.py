"""Change what is beneath the destination: every step leaves each name whole.

New things are made under a name in the hidden area (``files/area.py``), get their
attributes there, and are renamed: a final name is what it was, or it is complete. No
step follows a symbolic link beneath the root.

All of this blocks; one thread at a time.
"""

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterator
from typing import Final

from rpc25519_tools.errors import LocalFileError, UnsafePathError
from rpc25519_tools.files.area import PartialArea
from rpc25519_tools.files.jail import is_partial_name
from rpc25519_tools.sync.across import drop_left, link, move_across, name_beside
from rpc25519_tools.sync.attributes import (
    allowed_mode,
    final_mode,
    make_usable,
    set_mode,
    set_owner,
    set_time,
)
from rpc25519_tools.sync.backups import Backups
from rpc25519_tools.sync.durable import Changes
from rpc25519_tools.sync.judge import Entry, Old
from rpc25519_tools.sync.names import sorted_names, unsorted_names
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.tree import Directory, Parts, Tree, shown, split_path

#: Names of a directory that are searched for one that has just come into being.
_MAX_SPELLINGS: Final = 1 << 16


class Destination:
    """Where a sync puts things.

    Args:
        tree: the destination.
        area: for what is unfinished, on the same file system if possible.
        options: of the sync.
        privileged: whether owners and devices may be made as the sender wants them.
        below_area: where the destination lies in the directory that has the area.
        owner: who unfinished files belong to; they are not carried on with for others.
    """

    def __init__(
        self,
        tree: Tree,
        area: PartialArea | None,
        options: SyncOptions,
        *,
        privileged: bool,
        below_area: Parts = (),
        owner: bytes = b"",
    ) -> None:
        self.tree = tree
        self._area = area
        self._below_area = below_area
        self._options = options
        self._privileged = privileged
        self._owner = owner
        backup = None
        if options.backup_dir is not None:
            backup = split_path(options.backup_dir)
            if not backup:
                raise LocalFileError("the directory for backups is the root itself")
        self._spellings: dict[Parts, frozenset[bytes]] = {}
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        #: To sync the file system by.
        self.sync_fd = os.open(".", flags, dir_fd=tree.top.fd)
        #: What has to be synced.
        self.changes = Changes(tree, self.sync_fd)
        self._backups = None
        if backup is not None:
            self._backups = Backups(tree, self.changes, backup, fsync=options.fsync)
        #: What the root itself shall be, once it is done, and what it was.
        self.root_entry: tuple[Entry, Old | None] | None = None

    def close(self) -> None:
        """Close what it has open, when the area is closed; call it once."""
        if self.root_entry is not None:
            # The area lay in the root, and its going has changed the root's time.
            with contextlib.suppress(OSError):
                self.adjust_directory((), *self.root_entry)
        os.close(self.sync_fd)

    @property
    def area(self) -> PartialArea:
        """The area for what is unfinished; there is none in a dry run."""
        assert self._area is not None, "a dry run writes nothing"
        return self._area

    def keep_left(self) -> None:
        """Leave what killed syncs have left to a later attempt."""
        if self._area is not None:
            self._area.keep_left()

    def key(self, path: Parts) -> bytes:
        """Return what the partial of a path is called in the area.

        Where there are access rules, each peer has its own: the sums of one tell
        something of what is in it.
        """
        return self._owner + b"/".join(self._below_area + path)

    # Looking.

    def names(self, parts: Parts) -> Iterator[bytes]:
        """Yield the names in a directory, sorted, without those of unfinished files.

        Of these it removes what killed syncs have left, as far as it is told by names.
        """
        directory = self.tree.directory(parts)
        for name in sorted_names(directory):
            if not is_partial_name(name):
                yield name
            elif not self._options.dry_run:
                drop_left(directory.fd, name)

    def look(self, parent: Parts, name: bytes) -> Old | None:
        """Return what has a name now; None if nothing has."""
        directory = self.tree.directory(parent)
        try:
            status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        old = Old(status)
        if stat.S_ISLNK(status.st_mode):
            with contextlib.suppress(OSError):
                old.target = os.readlink(name, dir_fd=directory.fd)
        self.tree.check_found(status, (*parent, name))
        return old

    # Making what has no contents.

    def make_directory(self, parent: Parts, entry: Entry, old: Old | None) -> None:
        """Make a directory that we may write into, in the place of what is there."""
        directory = self.tree.directory(parent)
        if old is not None:
            self.clear(parent, entry.name)
        self.changes.note_directory(parent)
        try:
            os.mkdir(entry.name, 0o700, dir_fd=directory.fd)
        except FileExistsError:
            # Another sync may have been quicker, or it is another name's directory.
            there = self.look(parent, entry.name)
            if there is None or not stat.S_ISDIR(there.status.st_mode):
                raise
            self.check_spelling(parent, entry.name)

    def make_special(self, parent: Parts, entry: Entry, old: Old | None) -> None:
        """Make a symbolic link, FIFO, socket or device, in the place of what is there.

        Raises:
            UnsafePathError: only a trusted sender may make devices.
            OSError: it cannot be made.
        """
        directory = self.tree.directory(parent)
        session, temporary = self.area.new_name()
        if stat.S_ISLNK(entry.mode):
            os.symlink(entry.target, temporary, dir_fd=session)
        elif stat.S_ISFIFO(entry.mode):
            os.mkfifo(temporary, 0o600, dir_fd=session)
        elif stat.S_ISSOCK(entry.mode):
            os.mknod(temporary, stat.S_IFSOCK | 0o600, dir_fd=session)
        else:
            if not self._privileged:
                raise UnsafePathError("device files are not made for this sender")
            mode = stat.S_IFMT(entry.mode) | 0o600
            os.mknod(temporary, mode, entry.device, dir_fd=session)
        try:
            self._adjust(session, temporary, entry, None if old is None else old.status)
            self.place(session, temporary, parent, directory, entry.name, old)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=session)
            raise

    def make_link(
        self, parent: Parts, name: bytes, leader: Parts, old: Old | None
    ) -> None:
        """Make a further name of a file that is in place."""
        directory = self.tree.directory(parent)
        source = self.tree.directory(leader[:-1])
        at, temporary = self.area.new_name()
        try:
            link(source.fd, leader[-1], at, temporary)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            # The area is on another file system; both names need not be.
            at, temporary = directory.fd, name_beside()
            link(source.fd, leader[-1], at, temporary)
        try:
            status = os.stat(temporary, dir_fd=at, follow_symlinks=False)
            self.tree.check_found(status, leader)
            self.place(at, temporary, parent, directory, name, old)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=at)

    # Attributes.

    def adjust(self, parent: Parts, entry: Entry, old: Old) -> None:
        """Set attributes of what is in place and stays."""
        directory = self.tree.directory(parent)
        self._adjust(directory.fd, entry.name, entry, old.status)
        self.changes.note_file((*parent, entry.name))

    def adjust_directory(self, path: Parts, entry: Entry, old: Old | None) -> None:
        """Set attributes of a directory when all beneath it is done."""
        status = None if old is None else old.status
        self._adjust(self.tree.directory(path).fd, b".", entry, status)
        self.changes.note_directory(path)

    def _adjust(
        self, dir_fd: int, name: bytes, entry: Entry, old: os.stat_result | None
    ) -> None:
        set_owner(dir_fd, name, entry)
        if self._options.times:
            set_time(dir_fd, name, entry.mtime_ns)
        if not stat.S_ISLNK(entry.mode):
            # The last step: it may close a directory to ourselves.
            set_mode(dir_fd, name, final_mode(entry, old, self._options))

    def finish_file(self, fd: int, entry: Entry, old: Old | None) -> int:
        """Give an unfinished file, which is open, its attributes; return its mode."""
        same_kind = old is not None and stat.S_ISREG(old.status.st_mode)
        if entry.uid is not None or entry.gid is not None:
            uid = -1 if entry.uid is None else entry.uid
            gid = -1 if entry.gid is None else entry.gid
            os.fchown(fd, uid, gid)
        elif old is not None and same_kind and os.geteuid() == 0:
            os.fchown(fd, old.status.st_uid, old.status.st_gid)
        status = old.status if old is not None and same_kind else None
        mode = final_mode(entry, status, self._options)
        # Other contents must not run with the rights that the old ones had.
        mode = allowed_mode(mode, privileged=self._privileged)
        os.fchmod(fd, mode)
        if self._options.times:
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        return mode

    # Replacing and removing.

    def place(
        self,
        from_fd: int,
        temporary: bytes,
        parent: Parts,
        directory: Directory,
        name: bytes,
        old: Old | None,
    ) -> None:
        """Give something that is complete its final name, in one step."""
        self.changes.note_directory(parent)
        if old is None:
            self._check_free(directory, parent, name)
        else:
            if stat.S_ISDIR(old.status.st_mode):
                self.clear(parent, name)
            elif self._backups is not None:
                self._backups.keep(parent, name, self._drop_tree, stays=True)
        try:
            os.rename(temporary, name, src_dir_fd=from_fd, dst_dir_fd=directory.fd)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            where = (directory.fd, name)
            move_across(from_fd, temporary, *where, fsync=self._options.fsync)

    def _check_free(self, directory: Directory, parent: Parts, name: bytes) -> None:
        """See that a new name does not stand for another one.

        Raises:
            LocalFileError: to this file system, it is the same name as another one.
        """
        try:
            os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        self.check_spelling(parent, name)

    def check_spelling(self, parent: Parts, name: bytes) -> None:
        """See that something is there under this very name, to the byte.

        Raises:
            LocalFileError: it has another one, which means the same here.
        """
        if name in self._spellings.get(parent, ()):
            return
        # Another sync may make names as fast as we do, so all of them are looked at.
        names = unsorted_names(self.tree.directory(parent))
        found = frozenset(itertools.islice(names, _MAX_SPELLINGS))
        self._spellings = {parent: found}
        if name not in found:
            raise LocalFileError(
                f"{shown((*parent, name))!r} is the same name as another one to this "
                "file system"
            )

    def clear(self, parent: Parts, name: bytes) -> None:
        """Take away what stands where something of another kind belongs.

        Raises:
            LocalFileError: it is a directory with something in it, and nothing may be
                deleted.
        """
        directory = self.tree.directory(parent)
        self.changes.note_directory(parent)
        status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        is_dir = stat.S_ISDIR(status.st_mode)
        self.tree.forget((*parent, name))
        if not is_dir:
            self.remove(parent, name, is_dir=False)
        elif self._options.delete:
            self.remove_tree(parent, name)
        else:
            try:
                os.rmdir(name, dir_fd=directory.fd)
            except OSError as exc:
                if exc.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                raise LocalFileError(
                    f"{shown((*parent, name))!r} is a directory with something in it "
                    "(--delete would replace it)"
                ) from exc

    def open_up(self, path: Parts) -> None:
        """Let ourselves into a directory that is ours, to remove what is in it."""
        directory = self.tree.directory(path)
        make_usable(directory.fd, os.fstat(directory.fd))

    def remove_tree(self, parent: Parts, name: bytes) -> None:
        """Remove a directory and all beneath it, or move it to the backups.

        Raises:
            UnsafePathError: something in it is kept back; it stays, with what is above.
        """
        self._remove_tree(parent, name, self._backups)

    def _drop_tree(self, parent: Parts, name: bytes) -> None:
        """Remove a directory of the backups: what was one is a file now."""
        self._remove_tree(parent, name, None)

    def _remove_tree(self, parent: Parts, name: bytes, backups: Backups | None) -> None:
        top = (*parent, name)
        self.open_up(top)
        walks = [(top, self.names(top))]
        while walks:
            path, names = walks[-1]
            below = next(names, None)
            if below is None:
                walks.pop()
                self._remove(path[:-1], path[-1], backups, is_dir=True)
                continue
            directory = self.tree.directory(path)
            status = os.stat(below, dir_fd=directory.fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                self.open_up((*path, below))
                walks.append(((*path, below), self.names((*path, below))))
            else:
                self._remove(path, below, backups, is_dir=False)

    def check_removing(self, parent: Parts, name: bytes) -> None:
        """See that a thing may be removed, whatever name it has here.

        Raises:
            UnsafePathError: it is kept back, or the peer may not write to it.
            OSError: it is not there.
        """
        self.tree.check_writing((*parent, name))
        directory = self.tree.directory(parent)
        status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        self.tree.check_found(status, (*parent, name))

    def remove(self, parent: Parts, name: bytes, *, is_dir: bool) -> None:
        """Remove a thing that the source does not have; a directory if it is empty."""
        self._remove(parent, name, self._backups, is_dir=is_dir)

    def _remove(
        self, parent: Parts, name: bytes, backups: Backups | None, *, is_dir: bool
    ) -> None:
        directory = self.tree.directory(parent)
        self.check_removing(parent, name)
        self.changes.note_directory(parent)
        if backups is not None and not is_dir:
            backups.keep(parent, name, self._drop_tree)
        elif is_dir:
            self.tree.forget((*parent, name))
            os.rmdir(name, dir_fd=directory.fd)
        else:
            os.unlink(name, dir_fd=directory.fd)

    def is_backup(self, path: Parts) -> bool:
        """Tell whether a path is that of the backups, which are never deleted."""
        return self._backups is not None and self._backups.has(path)
