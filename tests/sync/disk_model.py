"""A recorder of file-system operations, and a model that they are played back into.

The recorder stands between the ``os`` module and the code under test. Whatever changes
a file system is noted, with files and directories named by their inodes; the model
keeps two states of each: what a running system sees, and what a power cut leaves.

After a power cut a file has what was written before its last ``fsync``, and a directory
the names that it had at its last one: everything else may be lost. But names may also
survive without having been synced, up to any of the operations: journals are written
whenever the system likes. Both are checked, see ``Model.names``.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rpc25519_tools.sync import durable, storing

#: What an inode is called here: a number that is used once, unlike the system's.
Node = int


@dataclass(frozen=True)
class Step:
    """One operation."""

    name: str
    args: tuple[Any, ...]


class Recorder:
    """Notes what is done beneath one directory while it is entered."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._nodes: dict[tuple[int, int], Node] = {}
        self._count = 0
        self.steps: list[Step] = []
        self.start = Model()
        self._undo = contextlib.ExitStack()

    # What is where.

    def _node(self, status: os.stat_result) -> Node | None:
        return self._nodes.get((status.st_dev, status.st_ino))

    def _new(self, status: os.stat_result) -> Node:
        self._count += 1
        self._nodes[status.st_dev, status.st_ino] = self._count
        return self._count

    def _of_fd(self, fd: int) -> Node | None:
        return self._node(real.fstat(fd))

    def _of_dir(self, dir_fd: int | None) -> Node | None:
        return None if dir_fd is None else self._of_fd(dir_fd)

    def _of_name(self, name: Any, dir_fd: int | None) -> Node | None:
        with contextlib.suppress(OSError):
            status = real.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            return self._node(status)
        return None

    def note(self, name: str, *args: Any) -> None:
        """Note something that is no operation, such as an acknowledgement."""
        self.steps.append(Step(name, args))

    # Begin and end.

    def __enter__(self) -> "Recorder":
        self._scan(self._top, None, b"")
        for name in sorted(vars(Recorder)):
            if name.startswith("on_"):
                self._patch(os, name.removeprefix("on_"), getattr(self, name))
        self._patch(fcntl, "ioctl", self._no_clones)
        for module in (storing, durable):
            self._patch(module, "sync_file_system", self._sync_all)
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def _patch(self, module: Any, name: str, function: Callable[..., Any]) -> None:
        self._undo.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, function)

    def _scan(self, path: Path, parent: Node | None, name: bytes) -> None:
        status = path.lstat()
        node = self._node(status)
        if node is None:
            node = self._new(status)
            what: Any = None
            if path.is_symlink():
                what = os.fsencode(os.readlink(path))
            elif path.is_file():
                what = path.read_bytes()
            self.start.make(node, stat.S_IFMT(status.st_mode), what)
            self.start.inodes[node].mode = stat.S_IMODE(status.st_mode)
        if parent is not None:
            self.start.enter(parent, name, node)
        if stat.S_ISDIR(status.st_mode):
            for below in sorted(path.iterdir()):
                self._scan(below, node, os.fsencode(below.name))
        self.start.sync_all()

    # The operations.

    def on_open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        dir_fd = more.get("dir_fd")
        parent = self._of_dir(dir_fd)
        before = self._of_name(path, dir_fd)
        fd: int = real.open(path, flags, mode, **more)
        status = real.fstat(fd)
        if parent is not None and before is None and flags & os.O_CREAT:
            node = self._new(status)
            self.note("make", node, stat.S_IFREG, b"")
            self.note("enter", parent, os.fsencode(path), node)
        return fd

    def on_write(self, fd: int, data: Any) -> int:
        at = os.lseek(fd, 0, os.SEEK_CUR) if self._of_fd(fd) else 0
        count: int = real.write(fd, data)
        self._written(fd, bytes(data)[:count], at)
        return count

    def on_pwrite(self, fd: int, data: Any, at: int) -> int:
        count: int = real.pwrite(fd, data, at)
        self._written(fd, bytes(data)[:count], at)
        return count

    def on_copy_file_range(
        self, source: int, target: int, count: int, start: int, at: int
    ) -> int:
        done: int = real.copy_file_range(source, target, count, start, at)
        self._written(target, real.pread(source, done, start), at)
        return done

    def _written(self, fd: int, data: bytes, at: int) -> None:
        node = self._of_fd(fd)
        if node is not None:
            self.note("write", node, data, at)

    def on_ftruncate(self, fd: int, length: int) -> None:
        real.ftruncate(fd, length)
        node = self._of_fd(fd)
        if node is not None:
            self.note("truncate", node, length)

    def on_fchmod(self, fd: int, mode: int) -> None:
        real.fchmod(fd, mode)
        node = self._of_fd(fd)
        if node is not None:
            self.note("chmod", node, mode)

    def on_chmod(self, path: Any, mode: int, **more: Any) -> None:
        real.chmod(path, mode, **more)
        node = self._node(real.stat(path))
        if node is not None:
            self.note("chmod", node, mode)

    def on_rename(
        self, old: Any, new: Any, *, src_dir_fd: int, dst_dir_fd: int
    ) -> None:
        node = self._of_name(old, src_dir_fd)
        over = self._of_name(new, dst_dir_fd)
        real.rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        source, target = self._of_dir(src_dir_fd), self._of_dir(dst_dir_fd)
        if node is not None and node != over:
            self.note("rename", source, os.fsencode(old), target, os.fsencode(new))

    def on_link(self, old: Any, new: Any, **more: Any) -> None:
        node = self._of_name(old, more["src_dir_fd"])
        real.link(old, new, **more)
        self.note("enter", self._of_dir(more["dst_dir_fd"]), os.fsencode(new), node)

    def on_unlink(self, path: Any, *, dir_fd: int) -> None:
        real.unlink(path, dir_fd=dir_fd)
        self.note("leave", self._of_dir(dir_fd), os.fsencode(path))

    def on_rmdir(self, path: Any, *, dir_fd: int) -> None:
        real.rmdir(path, dir_fd=dir_fd)
        self.note("leave", self._of_dir(dir_fd), os.fsencode(path))

    def on_mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int) -> None:
        real.mkdir(path, mode, dir_fd=dir_fd)
        self._made(path, dir_fd, None)

    def on_symlink(self, target: Any, path: Any, *, dir_fd: int) -> None:
        real.symlink(target, path, dir_fd=dir_fd)
        self._made(path, dir_fd, os.fsencode(target))

    def on_mkfifo(self, path: Any, mode: int = 0o666, *, dir_fd: int) -> None:
        real.mkfifo(path, mode, dir_fd=dir_fd)
        self._made(path, dir_fd, None)

    def on_mknod(
        self, path: Any, mode: int = 0o600, device: int = 0, *, dir_fd: int
    ) -> None:
        real.mknod(path, mode, device, dir_fd=dir_fd)
        self._made(path, dir_fd, None)

    def _made(self, path: Any, dir_fd: int, what: Any) -> None:
        status = real.stat(path, dir_fd=dir_fd, follow_symlinks=False)
        node = self._new(status)
        self.note("make", node, stat.S_IFMT(status.st_mode), what)
        self.note("enter", self._of_dir(dir_fd), os.fsencode(path), node)

    def on_fsync(self, fd: int) -> None:
        real.fsync(fd)
        node = self._of_fd(fd)
        if node is not None:
            self.note("sync", node)

    def _sync_all(self, fd: int) -> bool:
        self.note("sync_all")
        return True

    def _no_clones(self, *args: Any) -> int:
        raise OSError(95, "not here")


class _Real:
    """The operations as they are without a recorder."""

    def __init__(self) -> None:
        for name in vars(Recorder):
            if name.startswith("on_"):
                setattr(self, name[3:], getattr(os, name[3:]))
        for name in ("fstat", "stat", "pread"):
            setattr(self, name, getattr(os, name))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


real = _Real()


@dataclass
class Inode:
    """One file, directory or other thing.

    Attributes:
        kind: file type bits.
        data: contents, or where a link leads.
        synced: contents that survive a power cut.
        names: of a directory.
        synced_names: those that survive for certain.
    """

    kind: int
    data: bytes | None
    mode: int = 0
    synced: bytes | None = None
    names: dict[bytes, Node] = field(default_factory=dict)
    synced_names: dict[bytes, Node] = field(default_factory=dict)

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.kind)


#: What a name shows: kind, and contents of what has some.
Shown = tuple[int, bytes | None]


class Model:
    """A directory tree that operations change."""

    def __init__(self) -> None:
        self.inodes: dict[Node, Inode] = {}

    def apply(self, step: Step) -> None:
        """Do one operation."""
        getattr(self, step.name)(*step.args)

    def make(self, node: Node, kind: int, what: bytes | None) -> None:
        # Whatever has no contents is made by its name alone.
        survives = None if stat.S_ISREG(kind) else what
        self.inodes[node] = Inode(kind, what, synced=survives)
        if stat.S_ISREG(kind):
            self.inodes[node].synced = b""

    def enter(self, parent: Node, name: bytes, node: Node) -> None:
        self.inodes[parent].names[name] = node

    def leave(self, parent: Node, name: bytes) -> None:
        del self.inodes[parent].names[name]

    def rename(self, source: Node, old: bytes, target: Node, new: bytes) -> None:
        self.inodes[target].names[new] = self.inodes[source].names.pop(old)

    def write(self, node: Node, data: bytes, at: int) -> None:
        inode = self.inodes[node]
        assert inode.data is not None
        old = inode.data.ljust(at, b"\0")
        inode.data = old[:at] + data + old[at + len(data) :]

    def truncate(self, node: Node, length: int) -> None:
        inode = self.inodes[node]
        assert inode.data is not None
        inode.data = inode.data[:length].ljust(length, b"\0")

    def chmod(self, node: Node, mode: int) -> None:
        self.inodes[node].mode = mode

    def sync(self, node: Node) -> None:
        inode = self.inodes[node]
        inode.synced = inode.data
        inode.synced_names = dict(inode.names)

    def sync_all(self) -> None:
        for node in self.inodes:
            self.sync(node)

    def acknowledge(self, *args: object) -> None:
        """Nothing happens to the disk."""

    def names(self, *, cut: bool = False, forgetful: bool = False) -> dict[str, Shown]:
        """Return what every final name shows.

        Args:
            cut: whether the power was cut, so that unsynced contents are lost.
            forgetful: whether unsynced names are, too.
        """
        found: dict[str, Shown] = {}
        for path, inode in self._walk(1, "", forgetful=forgetful):
            data = inode.synced if cut else inode.data
            found[path] = (inode.kind, data)
        return found

    def _walk(
        self, node: Node, path: str, *, forgetful: bool
    ) -> Iterator[tuple[str, Inode]]:
        inode = self.inodes[node]
        names = inode.synced_names if forgetful else inode.names
        for name, below in sorted(names.items()):
            if name.startswith(b".rpc25519-part"):
                continue
            here = f"{path}/{os.fsdecode(name)}" if path else os.fsdecode(name)
            yield here, self.inodes[below]
            if self.inodes[below].is_dir:
                yield from self._walk(below, here, forgetful=forgetful)
