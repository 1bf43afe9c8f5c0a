"""What a sender offers: directories, which may lie in several places, and single files.

Some sources can make one tree: ``a/ b/ c`` has what is in ``a``, what is in ``b``, and
``c``. Where two have the same name, directories are merged, and of other things the
first one counts, as rsync has it. So a :class:`SourceDir` is one or more directories.

All of this blocks.
"""

import errno
import heapq
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from rpc25519_tools.errors import LocalFileError, Rpc25519Error
from rpc25519_tools.files.jail import (
    READ_FLAGS,
    file_error,
    is_partial_name,
    unsafe,
)
from rpc25519_tools.sync.names import sorted_names
from rpc25519_tools.sync.tree import Parts, Tree, shown, split_path, why


class Selection(dict[bytes, "Selection | None"]):
    """The paths of ``--files-from``, taken apart; of a None all is taken.

    Attributes:
        flat: what lies in the directory itself is taken, and nothing deeper.
    """

    flat = False


#: Directories that chosen paths may lie in, and how deep.
_MAX_CHOSEN: Final = 1 << 18
_MAX_CHOSEN_DEPTH: Final = 512
_MISSING: Final = "no such file or directory"
_NO_FILE: Final = "is no regular file any more"
#: What is said of a file that the peer may not read.
NOT_ALLOWED: Final = "reading it is not allowed"
#: Directories of a server that are merged at a time: the names of all are in memory.
_MAX_MERGED: Final = 64


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
        is_chosen: whether it was named, so that it counts without recursion, too.
        failed: what could not be read.
        missing: names that count and are not there.
    """

    path: Parts
    places: list[Place]
    extra: dict[bytes, Place] = field(default_factory=dict)
    only: Selection | None = None
    is_chosen: bool = False
    failed: list[tuple[Parts, str]] = field(default_factory=list)
    missing: list[bytes] = field(default_factory=list)

    @property
    def failures(self) -> int:
        """How many things could not be read, and were not taken."""
        return len(self.failed) + len(self.missing)

    def take_failures(self, most: int) -> list[tuple[Parts, str]]:
        """Return some of what could not be read, and forget it."""
        taken = self.failed[:most]
        del self.failed[:most]
        names = self.missing[: most - len(taken)]
        del self.missing[: len(names)]
        return taken + [((*self.path, name), _MISSING) for name in names]

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
            # Chosen names are looked up, however many: those that are missing are told.
            chosen = self.only
            names = sorted_names(directory) if chosen is None else sorted(chosen)
            for name in names:
                asked = None if chosen is None else name
                found = self._look(place, directory.fd, name, asked)
                if found is not None:
                    yield found
        except (OSError, Rpc25519Error) as exc:
            self.failed.append((self.path, why(exc, "list", self.path)))

    def _look(
        self, place: Place, dir_fd: int, name: bytes, asked: bytes | None
    ) -> Found | None:
        """Look at one thing; None if it is not there, or not to be seen.

        Args:
            place: the directory that it is in.
            dir_fd: the same, open.
            name: its name there.
            asked: the name that it was asked for by; None: it was found.
        """
        parts = (*place.parts, name)
        may = place.tree.may
        if not may("list", parts) and (asked is None or not may("read", parts)):
            # As in listings, it is not there. Who asks is told the same if it is not.
            if asked is not None:
                self.failed.append(((*self.path, asked), NOT_ALLOWED))
            return None
        if is_partial_name(name):
            self._not_there(asked)
            return None
        try:
            place.tree.check(parts)
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            place.tree.check_found(status, parts)
        except (FileNotFoundError, Rpc25519Error):
            # It has vanished since it was listed; or it is kept back, and nobody is
            # told that it is there.
            self._not_there(asked)
            return None
        except OSError as exc:
            text = why(exc, "read", (*self.path, name))
            self.failed.append(((*self.path, name), text))
            return None
        return Found(name, Place(place.tree, parts), status)

    def _not_there(self, asked: bytes | None) -> None:
        if asked is not None:
            self.missing.append(asked)

    def _extra(self) -> Iterator[Found]:
        for name, place in sorted(self.extra.items()):
            *parents, real = place.parts
            try:
                directory = place.tree.directory(tuple(parents))
            except Rpc25519Error as exc:
                self.failed.append(((*self.path, name), str(exc)))
                continue
            above = Place(place.tree, tuple(parents))
            found = self._look(above, directory.fd, real, name)
            if found is not None:
                found.name = name
                yield found

    def below(self, group: Sequence[Found]) -> "SourceDir":
        """Return the directory that entries of the same name make together."""
        name = group[0].name
        only = None if self.only is None else self.only.get(name)
        is_chosen = only is not None
        if only is not None and only.flat:
            only = None
        return SourceDir(
            path=(*self.path, name),
            places=[one.place for one in group if stat.S_ISDIR(one.status.st_mode)],
            only=only,
            is_chosen=is_chosen,
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
        if exc.errno in {errno.ELOOP, errno.EMLINK}:
            raise LocalFileError(f"{shown(path)!r} {_NO_FILE}") from exc
        raise file_error(exc, "read", shown(path)) from exc
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise LocalFileError(f"{shown(path)!r} {_NO_FILE}")
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

    As with rsync, ``..`` leads up within the path and no further, and a slash at the
    end means what lies in the directory.

    Raises:
        UnsafePathError: a path has an impossible component, or too many of them.
        LocalFileError: there are too many of them.
    """
    top = Selection()
    room = _MAX_CHOSEN
    for path in paths:
        parts = _without_dots(path)
        if len(parts) > _MAX_CHOSEN_DEPTH:
            raise unsafe(path, f"the path has over {_MAX_CHOSEN_DEPTH} components")
        here = top
        for depth, part in enumerate(parts, 1):
            is_leaf = depth == len(parts)
            known = part in here
            below = here.get(part)
            if known and below is None:
                break  # all of it is taken already
            if is_leaf and not path.endswith(b"/"):
                here[part] = None
                break
            if below is None:
                room -= 1
                if not room:
                    raise LocalFileError("the chosen paths have too many directories")
                below = here[part] = Selection()
            below.flat |= is_leaf
            here = below
    return top


def _without_dots(path: bytes) -> Parts:
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return split_path(b"/".join(parts), path)


def local_source(
    paths: Sequence[bytes],
    only: Sequence[bytes] | None = None,
    *,
    follow: bool = False,
) -> Source:
    """Return the source that paths on this machine make.

    A slash at the end means what is in a directory, and so do ``.`` and ``..``.

    Args:
        paths: of files and directories.
        only: nothing but these paths, relative to the one of ``paths``.
        follow: a symbolic link among ``paths`` stands for what it leads to.

    Raises:
        LocalFileError: one of them is not there, or cannot be read.
    """
    top = SourceDir(path=(), places=[])
    if only is not None:
        top.only, top.is_chosen = selection(only), True
    root = None
    single = len(paths) == 1 and only is None
    missing: list[tuple[bytes, LocalFileError]] = []
    parents: dict[bytes, Tree] = {}  # each has a descriptor
    for path in paths:
        if not path:
            raise LocalFileError("the name of a source is empty")
        parent, name = os.path.split(path)
        if name in (b"", b".", b"..") or only is not None:
            single = False
            try:
                tree = Tree.local(path)
            except LocalFileError as exc:
                missing.append((path, exc))
                continue
            top.places.append(Place(tree, ()))
            if root is None and only is None:
                root = os.stat(path)
            continue
        try:
            status = os.lstat(path)
            if follow and stat.S_ISLNK(status.st_mode):
                status = os.stat(path)
                parent, real = os.path.split(os.path.realpath(path))
            else:
                real = name
        except OSError as exc:
            missing.append((path, file_error(exc, "read", path)))
            continue
        except ValueError as exc:
            raise LocalFileError(f"{shown((path,))!r} is not a possible name") from exc
        if stat.S_ISDIR(status.st_mode):
            single = False
        if parent not in parents:
            parents[parent] = Tree.local(parent)
        top.extra.setdefault(name, Place(parents[parent], (real,)))
    _settle_missing(top, missing)
    return Source(top=top, root=root, single=single)


def _settle_missing(
    top: SourceDir, missing: list[tuple[bytes, LocalFileError]]
) -> None:
    """Let the rest go through where some sources are missing.

    Raises:
        LocalFileError: all of them are.
    """
    if missing and not top.places and not top.extra:
        raise missing[0][1]
    top.failed += [((path,), str(exc)) for path, exc in missing]


def served_source(
    tree: Tree, paths: Sequence[bytes], only: Sequence[bytes] | None = None
) -> Source:
    """Return the source that paths beneath a served directory make.

    Raises:
        UnsafePathError, LocalFileError: one of them is not there, or not given out.
    """
    top = SourceDir(path=(), places=[])
    if only is not None:
        top.only, top.is_chosen = selection(only), True
    root = None
    single = len(paths) == 1 and only is None
    missing: list[tuple[bytes, LocalFileError]] = []
    seen: set[Parts] = set()
    for path in paths:
        parts = split_path(path)
        tree.check(parts)
        *parents, name = parts or (b"",)
        merges = only is not None or not parts or path.endswith((b"/", b"/."))
        if merges and len(seen) == _MAX_MERGED and parts not in seen:
            raise LocalFileError(f"over {_MAX_MERGED} directories cannot be merged")
        try:
            if merges:
                single = False
                directory = tree.directory(parts)
                if parts in seen:
                    continue
                seen.add(parts)
                top.places.append(Place(tree, parts))
                if root is None and only is None:
                    root = os.stat(".", dir_fd=directory.fd)
                continue
            above = tree.directory(tuple(parents))
            status = os.stat(name, dir_fd=above.fd, follow_symlinks=False)
        except LocalFileError as exc:
            missing.append((path, exc))
            continue
        except OSError as exc:
            missing.append((path, file_error(exc, "read", shown(parts))))
            continue
        if stat.S_ISDIR(status.st_mode):
            single = False
        top.extra.setdefault(name, Place(tree, parts))
    _settle_missing(top, missing)
    return Source(top=top, root=root, single=single)
