"""The sender's walk: a source becomes batches of entries, in a fixed order.

A directory's entries come together, sorted by the bytes of their names; its
subdirectories follow one after the other, each with all that is beneath it. Both sides
number entries, and the directories among them, as they pass.

An attempt that carries on where another stopped leaves out what lies before that place:
directories that the way to the rest leads through are named again, nothing else.

All of this blocks; one thread walks.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from rpc25519_tools.errors import LocalFileError, Rpc25519Error
from rpc25519_tools.files.jail import MAX_NAME_BYTES
from rpc25519_tools.files.workers import StoppedError
from rpc25519_tools.sync.carrying import Mark
from rpc25519_tools.sync.filters import FilterRules
from rpc25519_tools.sync.holes import has_holes
from rpc25519_tools.sync.options import MAX_PATH_LEN, SyncOptions
from rpc25519_tools.sync.owners import group_name, user_name
from rpc25519_tools.sync.records import (
    MAX_NOTE_LEN,
    ROOT_NAME,
    Overview,
    Segment,
    pack_nanos,
    told,
)
from rpc25519_tools.sync.source import (
    NOT_ALLOWED,
    Found,
    Place,
    Selection,
    Source,
    SourceDir,
    open_source,
)
from rpc25519_tools.sync.tree import Parts, why

#: Entries of a batch; and bytes of names.
BATCH_LEN: Final = 2048
_NAMES_LEN: Final = 256 * 1024
#: Directories that may wait for their turn; each takes some 250 bytes on both sides,
#: and more the deeper it lies: their paths have so many components together at most.
MAX_WAITING_PARTS: Final = 1 << 22
MAX_WAITING_DIRS: Final = 1 << 18
#: Hard links that are remembered until their last name has passed.
_MAX_LINKS: Final = 1 << 18
_BLOCK_LEN: Final = 1 << 20
#: No name comes after it.
_LAST_NAME: Final = b"\xff" * MAX_NAME_BYTES
#: Things left out that the receiver is told of.
MAX_SKIPPED: Final = 1000


@dataclass(slots=True, eq=False)
class Item:
    """One entry, as the sender remembers it until the receiver is done with it.

    Attributes:
        files_before: regular files that come before it.
        bytes_before: of these.
        tries: how often its contents were wanted.
        literal: bytes of its contents that went out.
    """

    place: Place
    directory: SourceDir
    name: bytes
    mode: int
    size: int
    mtime_ns: int
    holes: bool
    files_before: int = 0
    bytes_before: int = 0
    target: bytes = b""
    tries: int = 0
    literal: int = 0

    @property
    def path(self) -> Parts:
        """Where it lies in the transfer."""
        if self.name == ROOT_NAME:
            return self.directory.path
        return (*self.directory.path, self.name)

    @property
    def mark(self) -> Mark:
        """Where an attempt has to begin that shall see it."""
        return Mark(self.path, self.files_before, self.bytes_before)


@dataclass(slots=True, eq=False)
class Batch:
    """Some entries: as they travel, and as they are remembered.

    Attributes:
        base: index of the first one.
        start: where an attempt has to begin that shall see all of it, the end of a
            directory that began before it included; None: nothing is in it.
    """

    base: int
    overview: Overview
    items: list[Item]
    start: Mark | None = None


@dataclass(slots=True, eq=False)
class _Leader:
    """The first name of a file that has several."""

    index: int
    path: Parts
    left: int


class _Links:
    """Which entries are names of the same file."""

    def __init__(self) -> None:
        self._leaders: dict[tuple[int, int], _Leader] = {}

    def leader(self, status: os.stat_result, index: int, path: Parts) -> _Leader | None:
        """Return the entry that has the file already; None if this is the first."""
        key = (status.st_dev, status.st_ino)
        known = self._leaders.get(key)
        if known is None:
            if len(self._leaders) < _MAX_LINKS:
                self._leaders[key] = _Leader(index, path, status.st_nlink - 1)
            return None
        known.left -= 1
        if not known.left:
            del self._leaders[key]
        return known


class Walk:
    """Walks over a source once.

    Args:
        source: what is sent.
        options: of the sync.
        start: where an earlier attempt stopped; None: begin at the beginning.
        skipped: learns what is left out since it is of an unwanted kind; called in the
            thread that walks.
    """

    def __init__(
        self,
        source: Source,
        options: SyncOptions,
        *,
        start: Mark | None = None,
        skipped: Callable[[Parts], None] = lambda _: None,
    ) -> None:
        self._source = source
        self._options = options
        self._rules = FilterRules(options.rules)
        if source.top.only is not None and options.rules:
            self._prune(source.top.only, ())
        self._start_at = None if start is None else start.path
        self._skipped = skipped
        self._skipped_told = 0
        self._is_stopped = False
        skips_top = False
        if source.top.places and not options.recursive and not source.top.is_chosen:
            # What is in a directory is not taken without recursion.
            source.top.places, source.root = [], None
            skips_top = True
        self._next_index = 0
        self._next_dir = 1
        self._waiting_dirs = 1
        self._waiting_parts = 0
        self._links = _Links()
        self._users: set[int] = set()
        self._groups: set[int] = set()
        self._batch = self._new_batch()
        if skips_top:
            self._skip(())
        self._names: list[bytes] = []
        self._names_len = 0
        self._nanos: list[int] = []
        self._sums: list[bytes] = []
        #: How many regular files there are so far, and their bytes; those that an
        #: earlier attempt has passed included.
        self.files = 0 if start is None else start.files
        self.total_bytes = 0 if start is None else start.total_bytes
        #: Whether nothing is to be deleted, since not all that is there is known.
        self.stops_deleting = False

    def stop(self) -> None:
        """Let whoever waits for the next batch get a StoppedError; from any thread."""
        self._is_stopped = True

    def _check_stopped(self) -> None:
        if self._is_stopped:
            raise StoppedError

    def _prune(self, chosen: Selection, path: Parts) -> None:
        """Drop chosen paths that the rules exclude, and what only leads to them."""
        for name, below in list(chosen.items()):
            here = (*path, name)
            wanted = self._rules.decide(b"/".join(here), is_dir=below is not None)
            if wanted and below:
                self._prune(below, here)
                wanted = bool(below) or below.flat
            if not wanted:
                del chosen[name]

    def batches(self) -> Iterator[Batch]:
        """Yield all entries; the last batch says that it is the last."""
        waiting = [(0, self._source.top)]
        while waiting:
            number, directory = waiting.pop()
            self._waiting_dirs -= 1
            self._waiting_parts -= len(directory.path)
            subdirs: list[tuple[int, SourceDir]] = []
            yield from self._list(number, directory, subdirs)
            waiting.extend(reversed(subdirs))
        self._batch.overview.final = True
        yield self._finish_batch()

    def _list(
        self, number: int, directory: SourceDir, subdirs: list[tuple[int, SourceDir]]
    ) -> Iterator[Batch]:
        count = 0
        whole = True
        if number == 0 and self._source.root is not None:
            self._add_root(directory, self._source.root)
            count += 1
        for group in directory.entries():
            self._check_stopped()
            if self._takes_part(directory, group[0]):
                count += self._take(directory, group, subdirs)
            if self._is_full(count, directory):
                whole &= self._take_failures(directory)
                self._segment(number, directory, count, ends=False)
                count = 0
                yield self._finish_batch()
        whole &= self._take_failures(directory)
        while directory.failures:
            self._segment(number, directory, count, ends=False)
            count = 0
            yield self._finish_batch()
            whole &= self._take_failures(directory)
        self.stops_deleting |= self._options.delete and not whole
        self._segment(number, directory, count, ends=True, whole=whole)
        overview = self._batch.overview
        size = max(len(self._batch.items), len(overview.failed))
        if size >= BATCH_LEN // 2 or len(overview.segments) >= BATCH_LEN:
            yield self._finish_batch()

    def _take(
        self,
        directory: SourceDir,
        group: Sequence[Found],
        subdirs: list[tuple[int, SourceDir]],
    ) -> int:
        """Note one entry; return how many that are: none if it vanished."""
        found = group[0]
        mode = found.status.st_mode
        target = b""
        if stat.S_ISLNK(mode):
            target = self._target_of(found, directory)
            if not target:
                return 0
        self._add(directory, found, target)
        if stat.S_ISDIR(mode):
            below = directory.below(group)
            if self._options.recursive or below.is_chosen:
                subdirs.append((self._next_dir, below))
                self._wait_for(below)
            self._next_dir += 1
        return 1

    def _wait_for(self, directory: SourceDir) -> None:
        """Count a directory whose turn comes later.

        Raises:
            LocalFileError: too many wait.
        """
        self._waiting_dirs += 1
        self._waiting_parts += len(directory.path)
        if self._waiting_dirs > MAX_WAITING_DIRS:
            raise LocalFileError(
                f"over {MAX_WAITING_DIRS} directories lie side by side"
            )
        if self._waiting_parts > MAX_WAITING_PARTS:
            raise LocalFileError("too many directories lie side by side, and too deep")

    def _is_full(self, count: int, directory: SourceDir) -> bool:
        many = max(count, directory.failures) >= BATCH_LEN
        return many or self._names_len > _NAMES_LEN

    def _take_failures(self, directory: SourceDir) -> bool:
        """Tell the receiver what could not be read; return whether there is nothing."""
        failed = directory.take_failures(BATCH_LEN)
        for path, text in failed:
            note = text[:MAX_NOTE_LEN]
            self._batch.overview.failed.append((told(b"/".join(path)), note))
        return not failed

    def _takes_part(self, directory: SourceDir, found: Found) -> bool:
        mode, options = found.status.st_mode, self._options
        is_dir = stat.S_ISDIR(mode)
        path = (*directory.path, found.name)
        if options.rules:
            joined = b"/".join(path)
            if len(joined) > MAX_PATH_LEN:  # what rules cost grows with it
                directory.failed.append((path, "its path is too long for rules"))
                return False
            if not self._rules.decide(joined, is_dir=is_dir):
                return False
        if not options.takes(mode):
            # Its name goes out all the same: nothing that has it may be deleted.
            self._skip(path)
        if is_dir and not (options.recursive or directory.is_chosen):
            self._skip(path)
            return False
        if self._is_done(path, is_dir=is_dir):
            return False
        if stat.S_ISREG(mode) and not found.place.tree.may("read", found.place.parts):
            directory.failed.append((path, NOT_ALLOWED))
            return False
        return True

    def _skip(self, path: Parts) -> None:
        """Tell both sides that something is left out since it is not wanted."""
        self._skipped(path)
        joined = b"/".join(path)
        if self._skipped_told < MAX_SKIPPED and len(joined) <= MAX_PATH_LEN:
            self._skipped_told += 1
            self._batch.overview.skipped.append(joined)

    def _is_done(self, path: Parts, *, is_dir: bool) -> bool:
        """Tell whether an earlier attempt is through with an entry, and all below."""
        start = self._start_at
        if start is None:
            return False
        depth = len(path) - 1
        if path[:depth] != start[:depth]:
            return False  # beside the way: what is before it was left out above
        if depth >= len(start):
            return False
        if is_dir:
            # On the way, or after it; of the last directory all are named again.
            return depth < len(start) - 1 and path[depth] < start[depth]
        # Files of a directory come before all that is below it.
        return depth < len(start) - 1 or path[depth] < start[depth]

    def _add_root(self, directory: SourceDir, status: os.stat_result) -> None:
        self._add(directory, Found(ROOT_NAME, directory.places[0], status))

    def _add(self, directory: SourceDir, found: Found, target: bytes = b"") -> None:
        overview, status = self._batch.overview, found.status
        mode = status.st_mode
        is_regular = stat.S_ISREG(mode)
        seconds, nanos = divmod(status.st_mtime_ns, 10**9)
        size = status.st_size if is_regular else 0
        item = Item(
            found.place,
            directory,
            found.name,
            mode,
            size,
            status.st_mtime_ns,
            is_regular and has_holes(status),
            self.files,
            self.total_bytes,
        )
        if is_regular:
            self.files += 1
            self.total_bytes += size
            if self._options.checksum:
                self._sums.append(self._sum_of(item))
        elif stat.S_ISLNK(mode):
            item.target = target
            overview.targets.append(item.target)
        elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            overview.devices.append(status.st_rdev)
        if self._options.hard_links and status.st_nlink > 1 and not stat.S_ISDIR(mode):
            leader = self._links.leader(status, self._next_index, item.path)
            if leader is not None:
                item.target = b"/".join(leader.path)
                overview.leaders[len(self._batch.items)] = leader.index
        overview.modes.append(mode)
        overview.sizes.append(size)
        overview.seconds.append(seconds)
        self._nanos.append(nanos)
        if self._options.owner:
            overview.uids.append(status.st_uid)
            if status.st_uid not in self._users:
                self._users.add(status.st_uid)
                overview.users[status.st_uid] = user_name(status.st_uid)
        if self._options.group:
            overview.gids.append(status.st_gid)
            if status.st_gid not in self._groups:
                self._groups.add(status.st_gid)
                overview.groups[status.st_gid] = group_name(status.st_gid)
        self._names.append(found.name)
        self._names_len += len(found.name) + len(item.target)
        self._batch.items.append(item)
        self._next_index += 1

    def _target_of(self, found: Found, directory: SourceDir) -> bytes:
        """Return where a symbolic link leads; nothing if it cannot be read."""
        *parents, name = found.place.parts
        try:
            above = found.place.tree.directory(tuple(parents))
            return os.readlink(name, dir_fd=above.fd)
        except (OSError, Rpc25519Error) as exc:
            path = (*directory.path, found.name)
            directory.failed.append((path, why(exc, "read", path)))
            return b""

    def _sum_of(self, item: Item) -> bytes:
        """Return the sum of a file; of one that cannot be read, one of nothing."""
        try:
            fd, _ = open_source(item.place, item.path)
        except (OSError, Rpc25519Error):
            return bytes(32)  # sending it will fail, and tell why
        try:
            return file_sum(fd, self._check_stopped)
        except OSError:
            return bytes(32)  # likewise
        finally:
            os.close(fd)

    def _segment(
        self,
        number: int,
        directory: SourceDir,
        count: int,
        *,
        ends: bool,
        whole: bool = True,
    ) -> None:
        batch = self._batch
        if not batch.overview.segments:
            # Without entries it is only their end, or a list of failures.
            first = self._names[0] if count else (_LAST_NAME if ends else b"")
            path = directory.path
            if first != ROOT_NAME:
                path = (*directory.path, first)
            files, total_bytes = self.files, self.total_bytes
            if batch.items:
                files, total_bytes = (
                    batch.items[0].files_before,
                    batch.items[0].bytes_before,
                )
            batch.start = Mark(path, files, total_bytes)
        batch.overview.segments.append(Segment(number, count, ends, whole))

    def _new_batch(self) -> Batch:
        overview = Overview(
            segments=[],
            modes=[],
            sizes=[],
            seconds=[],
            targets=[],
            uids=[],
            gids=[],
            users={},
            groups={},
            leaders={},
            devices=[],
            failed=[],
            skipped=[],
        )
        return Batch(self._next_index, overview, [])

    def _finish_batch(self) -> Batch:
        batch = self._batch
        batch.overview.names = b"\0".join(self._names)
        batch.overview.nanos = pack_nanos(self._nanos)
        batch.overview.sums = b"".join(self._sums)
        self._batch = self._new_batch()
        self._names, self._nanos, self._sums = [], [], []
        self._names_len = 0
        return batch


def file_sum(fd: int, go_on: Callable[[], None] = lambda: None) -> bytes:
    """Return the BLAKE3 sum of what a descriptor has, from its beginning.

    Args:
        fd: of a regular file.
        go_on: called for each block; raises when the sum is not wanted any more.

    Raises:
        OSError: it cannot be read.
    """
    digest = blake3()
    at = 0
    memory = bytearray(_BLOCK_LEN)
    view = memoryview(memory)
    while count := os.preadv(fd, [memory], at):
        go_on()
        digest.update(view[:count])
        at += count
    return digest.digest()
