"""What a sender offers: directories, which may lie in several places, and single files.

Some sources can make one tree: ``a/ b/ c`` has what is in ``a``, what is in ``b``, and
``c``. Where two have the same name, directories are merged, and of other things the
first one counts, as rsync has it. So a :class:`SourceDir` is one or more directories.

All of this blocks.
"""

import heapq
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rpc25519_tools.errors import LocalFileError, Rpc25519Error
from rpc25519_tools.files.jail import READ_FLAGS, file_error, is_partial_name
from rpc25519_tools.sync.names import sorted_names
from rpc25519_tools.sync.tree import Parts, Tree, shown, split_path, why

#: The paths of ``--files-from``, taken apart; a leaf is None.
Selection = Mapping[bytes, "Selection | None"]

#: Names of a directory that are looked up one after the other without a list.
_FEW: Final = 256


@dataclass(slots=True, eq=False)
class Place:
    """A directory, or one thing in it, of a tree on this machine."""

    tree: Tree
    parts: Parts


@dataclass(slots=True)
class Found:
    """One entry of a source directory.

    Attributes:
        name: in the transfer.
        place: where it is.
        status: its ``lstat``.
    """

    name: bytes
    place: Place
    status: os.stat_result


@dataclass(slots=True, eq=False)
class SourceDir:
    """One directory of the transfer.

    Attributes:
        path: where it lies in the transfer.
        places: the directories that it is made of; the first one gives its status.
        extra: single things that lie in it too, by name.
        only: which names count; None: all of them.
        failed: what could not be read.
    """

    path: Parts
    places: list[Place]
    extra: dict[bytes, Place] = field(default_factory=dict)
    only: Selection | None = None
    failed: list[tuple[Parts, str]] = field(default_factory=list)

    def entries(self) -> Iterator[list[Found]]:
        """Yield for each name, in the order of bytes, what has it: mostly one thing."""
        streams = [self._in_place(place) for place in self.places]
        if self.extra:
            streams.append(self._extra())
        merged = (
            streams[0]
            if len(streams) == 1
            else heapq.merge(*streams, key=lambda found: found.name)
        )
        group: list[Found] = []
        for found in merged:
            if group and group[0].name != found.name:
                yield group
                group = []
            group.append(found)
        if group:
            yield group

    def _in_place(self, place: Place) -> Iterator[Found]:
        if not place.tree.may("list", place.parts):
            self.failed.append((self.path, "listing it is not allowed"))
            return
        try:
            directory = place.tree.directory(place.parts)
            names: Iterator[bytes] | list[bytes]
            if self.only is not None and len(self.only) <= _FEW:
                names = sorted(self.only)
            else:
                names = sorted_names(directory)
            for name in names:
                if self.only is not None and name not in self.only:
                    continue
                found = self._look(place, directory.fd, name)
                if found is not None:
                    yield found
        except (OSError, Rpc25519Error) as exc:
            self.failed.append((self.path, why(exc, "list", self.path)))

    def _look(self, place: Place, dir_fd: int, name: bytes) -> Found | None:
        if is_partial_name(name):
            return None
        parts = (*place.parts, name)
        try:
            place.tree.check(parts)
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            place.tree.check_found(status, parts)
        except FileNotFoundError:
            if self.only is not None:
                self.failed.append(((*self.path, name), "no such file or directory"))
            return None  # it has vanished since it was listed
        except OSError as exc:
            text = why(exc, "read", (*self.path, name))
            self.failed.append(((*self.path, name), text))
            return None
        except Rpc25519Error:
            return None  # it is kept back: nobody is told that it is there
        return Found(name, Place(place.tree, parts), status)

    def _extra(self) -> Iterator[Found]:
        for name, place in sorted(self.extra.items()):
            *parents, real = place.parts
            try:
                directory = place.tree.directory(tuple(parents))
            except Rpc25519Error as exc:
                self.failed.append(((*self.path, name), str(exc)))
                continue
            found = self._look(Place(place.tree, tuple(parents)), directory.fd, real)
            if found is None:
                self.failed.append(((*self.path, name), "no such file or directory"))
                continue
            found.name = name
            yield found

    def below(self, group: Sequence[Found]) -> "SourceDir":
        """Return the directory that entries of the same name make together."""
        name = group[0].name
        only = None if self.only is None else self.only.get(name)
        return SourceDir(
            path=(*self.path, name),
            places=[one.place for one in group if stat.S_ISDIR(one.status.st_mode)],
            only=only,
        )


def open_source(place: Place, path: Parts) -> tuple[int, os.stat_result]:
    """Open a regular file of a source; never blocks on what it opens.

    Raises:
        LocalFileError: it is missing, not permitted, or no regular file any more.
    """
    *parents, name = place.parts
    directory = place.tree.directory(tuple(parents))
    try:
        fd = os.open(name, READ_FLAGS, dir_fd=directory.fd)
    except OSError as exc:
        raise file_error(exc, "read", shown(path)) from exc
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise LocalFileError(f"{shown(path)!r} is no regular file any more")
        place.tree.check_found(status, place.parts)
    except BaseException:
        os.close(fd)
        raise
    return fd, status


@dataclass(slots=True, kw_only=True)
class Source:
    """All that a transfer is made of.

    Attributes:
        top: its root.
        root: status of the root itself, where that takes part; else None.
        single: whether it is one thing that is no directory.
    """

    top: SourceDir
    root: os.stat_result | None
    single: bool


def selection(paths: Sequence[bytes]) -> Selection:
    """Return the paths of ``--files-from`` as a tree.

    Raises:
        UnsafePathError: a path leads up, or has an impossible component.
    """
    top: dict[bytes, Selection | None] = {}
    for path in paths:
        here = top
        parts = split_path(path.lstrip(b"/"))
        for depth, part in enumerate(parts, 1):
            below = here.setdefault(part, {} if depth < len(parts) else None)
            if below is None and depth < len(parts):
                break  # all of it is taken already
            if depth < len(parts):
                here = below  # type: ignore[assignment]  # made by us, as dicts
            else:
                here[part] = None
    return top


def local_source(paths: Sequence[bytes], only: Sequence[bytes] | None = None) -> Source:
    """Return the source that paths on this machine make.

    A slash at the end means what is in a directory, and so do ``.`` and ``..``.

    Raises:
        LocalFileError: one of them is not there, or cannot be read.
    """
    top = SourceDir(path=(), places=[])
    if only is not None:
        top.only = selection(only)
    root = None
    single = len(paths) == 1 and only is None
    for path in paths:
        if not path:
            raise LocalFileError("the name of a source is empty")
        parent, name = os.path.split(path)
        if name in (b"", b".", b"..") or only is not None:
            single = False
            tree = Tree.local(path)
            top.places.append(Place(tree, ()))
            root = os.stat(path) if root is None else root
            continue
        try:
            status = os.lstat(path)
        except OSError as exc:
            raise file_error(exc, "read", path) from exc
        except ValueError as exc:
            raise LocalFileError(f"{shown((path,))!r} is not a possible name") from exc
        if stat.S_ISDIR(status.st_mode):
            single = False
        top.extra.setdefault(name, Place(Tree.local(parent), (name,)))
    return Source(top=top, root=root, single=single)


def served_source(
    tree: Tree, paths: Sequence[bytes], only: Sequence[bytes] | None = None
) -> Source:
    """Return the source that paths beneath a served directory make.

    Raises:
        UnsafePathError, LocalFileError: one of them is not there, or not given out.
    """
    top = SourceDir(path=(), places=[])
    if only is not None:
        top.only = selection(only)
    root = None
    single = len(paths) == 1 and only is None
    for path in paths:
        parts = split_path(path)
        *parents, name = parts or (b"",)
        if only is not None or not parts or path.endswith((b"/", b"/.")):
            single = False
            tree.check(parts)
            directory = tree.directory(parts)
            top.places.append(Place(tree, parts))
            root = os.stat(directory.fd) if root is None else root
            continue
        tree.check(parts)
        above = tree.directory(tuple(parents))
        try:
            status = os.stat(name, dir_fd=above.fd, follow_symlinks=False)
        except OSError as exc:
            raise file_error(exc, "read", shown(parts)) from exc
        if stat.S_ISDIR(status.st_mode):
            single = False
        top.extra.setdefault(name, Place(tree, parts))
    return Source(top=top, root=root, single=single)
