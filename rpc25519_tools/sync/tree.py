"""Reach the directories beneath one root, again and again, never through a link.

A directory is named by its components below the root. Each is opened relative to the
one before it with ``O_NOFOLLOW``; what was opened lately is kept open, so that a walk
costs one step for each directory. A kept descriptor stays good for whoever holds its
:class:`Directory`, also when it is no longer kept.

All of this blocks. A tree may be used by several threads at once.
"""

import errno
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeAlias

from rpc25519_tools.errors import LocalFileError, UnsafePathError
from rpc25519_tools.files.jail import (
    DIR_FLAGS,
    MAX_NAME_BYTES,
    Root,
    file_error,
    is_partial_name,
    unsafe,
)
from rpc25519_tools.identity.access import Right

#: Components of a path below the root, or below a tree's.
Parts: TypeAlias = tuple[bytes, ...]

#: Directories that are kept open.
KEPT_DIRS: Final = 24
#: For so long it is trusted that the kept-back files are the same ones, in seconds:
#: looking at them for each of 100,000 entries would take most of the time.
_TRUSTED_S: Final = 0.5
#: Components that a path may have; PATH_MAX has room for half as many.
MAX_DEPTH: Final = 2048

#: Asks whether the peer has a right to a path; None: it has all.
Permit: TypeAlias = Callable[[Right, Parts], bool]


class Directory:
    """An open directory; it closes when nobody holds it any more."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


def split_path(path: bytes, shown: bytes | None = None) -> Parts:
    """Split a path relative to a root into its components; ``.`` ones are dropped.

    ``/`` alone is the root, as in listings.

    Raises:
        UnsafePathError: it is absolute, leads up, or has an impossible component.
    """
    shown = path if shown is None else shown
    if path.startswith(b"/") and path.strip(b"/"):
        raise unsafe(shown, "the path is absolute")
    if b"\0" in path:
        raise unsafe(shown, "the name contains a NUL byte")
    parts = tuple(part for part in path.split(b"/") if part not in (b"", b"."))
    for part in parts:
        check_component(part, shown)
    if len(parts) > MAX_DEPTH:
        raise unsafe(shown, f"the path has over {MAX_DEPTH} components")
    return parts


def check_component(part: bytes, shown: bytes) -> None:
    """Raise UnsafePathError if a name is no plain one that may be used."""
    if part in (b"", b".", b".."):
        raise unsafe(shown, "the path has a '..' component")
    if len(part) > MAX_NAME_BYTES:
        raise unsafe(shown, f"a component has over {MAX_NAME_BYTES} bytes")
    if is_partial_name(part):
        raise unsafe(shown, "the name is reserved for unfinished files")


class Tree:
    """A directory and all that is beneath it.

    Args:
        fd: the root; it is taken over.
        root: the served directory that it is or lies beneath, whose rules then hold.
        at: where it lies there.
        permit: asks for the peer's rights.
    """

    def __init__(
        self,
        fd: int,
        *,
        root: Root | None = None,
        at: Parts = (),
        permit: Permit | None = None,
    ) -> None:
        self._top = Directory(fd)
        self._root = root
        self._at = at
        self._permit = permit
        self._deepest = 0
        if root is not None:
            self._deepest = root.kept_back.deepest - len(at)
        self._kept_inodes: frozenset[tuple[int, int]] = frozenset()
        self._look_again_s = 0.0
        self._kept: OrderedDict[Parts, Directory] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def local(cls, path: bytes) -> "Tree":
        """Open a directory that the local user has named; links to it are followed.

        Raises:
            LocalFileError: it is missing, no directory, or not permitted.
        """
        try:
            return cls(os.open(path or b".", DIR_FLAGS))
        except OSError as exc:
            raise file_error(exc, "open directory", path) from exc
        except ValueError as exc:
            raise unsafe(path, "not a possible name") from exc

    @classmethod
    def served(cls, root: Root, permit: Permit | None) -> "Tree":
        """Return the tree of a served directory."""
        return cls(root.duplicate(), root=root, permit=permit)

    @property
    def top(self) -> Directory:
        """The root itself."""
        return self._top

    @property
    def at(self) -> Parts:
        """Where it lies in the served directory; empty for any other tree."""
        return self._at

    def check(self, parts: Parts) -> None:
        """Check that a name is not one of those that are kept back.

        The directories above it were checked when they were opened.

        Raises:
            UnsafePathError: it is.
        """
        if self._root is not None and len(parts) <= self._deepest:
            full = self._at + parts
            self._root.kept_back.check(full, shown(full))

    def check_found(self, status: os.stat_result, parts: Parts) -> None:
        """Check likewise what a name has led to."""
        if self._root is None:
            return
        now_s = time.monotonic()
        if now_s >= self._look_again_s:
            self._kept_inodes = self._root.kept_back.inodes()
            self._look_again_s = now_s + _TRUSTED_S
        if (status.st_dev, status.st_ino) in self._kept_inodes:
            full = self._at + parts
            self._root.kept_back.check_found(status, shown(full))

    def may(self, right: Right, parts: Parts) -> bool:
        """Tell whether the peer has a right to a path."""
        return self._permit is None or self._permit(right, self._at + parts)

    def check_writing(self, parts: Parts) -> None:
        """Check that the peer may write to a path.

        Raises:
            UnsafePathError: the path is kept back, or not allowed to the peer.
        """
        self.check(parts)
        if not self.may("write", parts):
            raise UnsafePathError(f"writing {shown(parts)!r} is not allowed")

    def directory(self, parts: Parts) -> Directory:
        """Return the directory of a path, open.

        Raises:
            UnsafePathError: a component is a symbolic link or no directory.
            LocalFileError: it is missing, or not permitted.
        """
        with self._lock:
            depth, found = self._nearest(parts)
            while depth < len(parts):
                depth += 1
                here = parts[:depth]
                found = self._open(found, here)
                self._kept[here] = found
                if len(self._kept) > KEPT_DIRS:
                    self._kept.popitem(last=False)
            return found

    def is_directory(self, parts: Parts) -> bool:
        """Tell whether a path is that of a directory which may be used."""
        try:
            self.directory(parts)
        except LocalFileError:
            return False
        return True

    def _nearest(self, parts: Parts) -> tuple[int, Directory]:
        """Return how much of a path is open already, and that directory."""
        if not parts:
            return 0, self._top
        for depth in range(len(parts), 0, -1):
            found = self._kept.get(parts[:depth])
            if found is not None:
                self._kept.move_to_end(parts[:depth])
                return depth, found
            if depth < len(parts) - 4:
                break  # far from everything that is kept
        return 0, self._top

    def _open(self, parent: Directory, here: Parts) -> Directory:
        self.check(here)
        try:
            fd = os.open(here[-1], DIR_FLAGS | os.O_NOFOLLOW, dir_fd=parent.fd)
        except OSError as exc:
            name = shown(self._at + here)
            if exc.errno in {errno.ENOTDIR, errno.ELOOP, errno.EMLINK}:
                reason = "it is a symbolic link or no directory"
                raise unsafe(name, reason) from exc
            raise file_error(exc, "open directory", name) from exc
        opened = Directory(fd)
        if self._root is not None:
            self.check_found(os.fstat(fd), here)
        return opened

    def forget(self, parts: Parts) -> None:
        """Close what is kept of a directory that is being removed or replaced."""
        with self._lock:
            for path in [key for key in self._kept if key[: len(parts)] == parts]:
                del self._kept[path]

    def beneath(self, parts: Parts) -> "Tree":
        """Return the tree of a directory beneath this one, with the same rules."""
        fd = os.dup(self.directory(parts).fd)
        return Tree(fd, root=self._root, at=self._at + parts, permit=self._permit)


def shown(parts: Parts) -> str:
    """Return a path for a message; not printable yet."""
    return b"/".join(parts).decode("utf-8", "surrogateescape") or "."


def why(exc: Exception, action: str, parts: Parts) -> str:
    """Return one line for people about what went wrong with a path."""
    if isinstance(exc, OSError):
        return str(file_error(exc, action, shown(parts)))
    return str(exc)
