"""Find local files that a wanted one may be made of, and cut them into chunks.

A name may be that of moved or copied contents, and a changed file may be the one that
had another name before. So the files beneath the destination are listed, once, and one
of the same length and time of change is tried, then the file of that name. For a new
name, also those of the same length or the same name are tried, or one of a similar
length. What a guess is worth, the chunks tell; guesses by length alone stop after some
have been of no use.

All of this blocks.
"""

import contextlib
import functools
import itertools
import os
import stat
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from rpc25519_tools.errors import FileChangedError, Rpc25519Error
from rpc25519_tools.files.jail import READ_FLAGS, is_partial_name
from rpc25519_tools.sync.chunking import basis_len, chunk_digests, chunk_sizes
from rpc25519_tools.sync.destination import Destination
from rpc25519_tools.sync.noted import NotedFiles, join, split
from rpc25519_tools.sync.records import SHORT_SUM_LEN, SUM_LEN, Table, pack_lengths
from rpc25519_tools.sync.tree import Parts, Tree

#: New files from this length on are looked for among others.
SEARCHED_FROM: Final = 64 * 1024
#: Entries beneath the destination that are looked at; it takes about a second.
_MAX_LOOKED: Final = 1 << 18
#: Bytes of the paths of directories that wait for it.
_MAX_WAITING_LEN: Final = 4 << 20
#: Guesses for one file.
_MAX_GUESSES: Final = 3
#: Guesses in a row that were of no use, after which there are no more.
_PATIENCE: Final = 8
#: Chunks in one message.
_TABLE_LEN: Final = 1024


@dataclass(slots=True, eq=False)
class Basis:
    """A file that chunks are taken from.

    Attributes:
        fd: to cut it by; -1 when that is done.
        copy_fd: to copy from, by the thread that stores files; -1 while it is closed.
        status: its ``fstat`` when it was opened.
        in_place: whether it is the unfinished file itself.
        lengths, offsets: of its chunks.
        sums: their full sums, 32 bytes each.
        path: where it lies in the transfer; empty for the unfinished file.
        guessed: whether only its length or name spoke for it.
        used: whether a chunk of it was.
        reopen: opens it once more, where it is not found by its path.
    """

    fd: int
    status: os.stat_result
    in_place: bool
    path: Parts = ()
    lengths: "array[int]" = field(default_factory=lambda: array("I"))
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    sums: bytearray = field(default_factory=bytearray)
    guessed: bool = False
    used: bool = False
    copy_fd: int = -1
    reopen: "Callable[[], Basis | None] | None" = None

    def end_cutting(self) -> None:
        """Close what it was cut by."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def end_copying(self) -> None:
        """Close what was copied from."""
        fd, self.copy_fd = self.copy_fd, -1
        if fd >= 0:
            os.close(fd)

    def begin_copying(self, tree: Tree) -> None:
        """Open it to copy from, if it is not.

        Raises:
            FileChangedError: there is another file now, or none.
        """
        if self.copy_fd >= 0:
            return
        if self.reopen is not None:
            found = self.reopen()
        else:
            found = open_basis(tree, self.path, guessed=self.guessed)
        if found is None:
            raise FileChangedError("a file here has gone since it was looked at")
        if not os.path.samestat(found.status, self.status):
            found.end_cutting()
            raise FileChangedError("a file here was replaced since it was looked at")
        self.copy_fd = found.fd

    def tables(
        self, index: int, number: int, key: bytes, file_len: int
    ) -> Iterator[Table]:
        """Cut the file, note its chunks, and yield them for the sender.

        Where it cannot be read, it ends.

        Args:
            index: of the entry that it is for.
            number: of this file among those for that entry.
            key: of the sums.
            file_len: length of the sender's file, which decides how to cut.
        """
        at = 0
        lengths: list[int] = []
        sums: list[bytes] = []
        # What is past the end of an unfinished file is of no use; and a short file is
        # not worth the cutting of an endless one.
        most = file_len if self.in_place else basis_len(file_len)
        size = min(os.fstat(self.fd).st_size, most)
        for some_lengths, some_sums in self._digests(size, key, file_len):
            self.lengths.extend(some_lengths)
            self.offsets.extend(itertools.accumulate(some_lengths[:-1], initial=at))
            at += sum(some_lengths)
            self.sums += b"".join(some_sums)
            lengths += some_lengths
            sums += some_sums
            if len(lengths) >= _TABLE_LEN:
                yield self._table(index, number, lengths, sums)
                lengths, sums = [], []
        if lengths or not self.lengths:
            yield self._table(index, number, lengths, sums)

    def _digests(
        self, size: int, key: bytes, file_len: int
    ) -> Iterator[tuple[list[int], list[bytes]]]:
        with contextlib.suppress(OSError):
            yield from chunk_digests(self.fd, size, key, chunk_sizes(file_len))

    def _table(
        self, index: int, number: int, lengths: list[int], sums: list[bytes]
    ) -> Table:
        short = b"".join(one[:SHORT_SUM_LEN] for one in sums)
        packed = pack_lengths(lengths)
        return Table(index, number, self.in_place, packed, short, last=False)

    @property
    def cut_len(self) -> int:
        """How many bytes of it have been cut."""
        count = len(self.sums) // SUM_LEN
        return self.offsets[count - 1] + self.lengths[count - 1] if count else 0

    @property
    def table_len(self) -> int:
        """Bytes of what the sender has been told of it, about."""
        return len(self.sums) // SUM_LEN * (SHORT_SUM_LEN + 4)

    def is_unchanged(self) -> bool:
        """Tell whether it is still what its sums were taken of, if it was used."""
        if self.in_place or not self.used:
            return True
        now, was = os.fstat(self.copy_fd), self.status
        return (now.st_size, now.st_mtime_ns, now.st_ctime_ns) == (
            was.st_size,
            was.st_mtime_ns,
            was.st_ctime_ns,
        )


class Candidates:
    """Local files that new ones may be made of.

    Args:
        tree: the destination.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._noted: NotedFiles | None = None
        self._useless = 0
        self._similar_left = _PATIENCE

    def add(self, path: Parts, size: int, mtime_ns: int) -> None:
        """Take a file that has just come into place: another may be a copy of it."""
        if size >= SEARCHED_FROM and self._noted is not None:
            self._noted.note(path, size, mtime_ns)

    def learn(self, *, useful: bool) -> None:
        """Learn whether a guess was worth anything."""
        self._useless = 0 if useful else self._useless + 1
        if useful:
            self._similar_left = _PATIENCE

    @property
    def patience(self) -> int:
        """How many more guesses may be of no use."""
        return max(_PATIENCE - self._useless, 0)

    def has_length(self, size: int) -> bool:
        """Tell whether a file of a length is there, among those that are listed."""
        return self._noted is not None and any(self._noted.of_length(size))

    def sure(self, path: Parts, size: int, mtime_ns: int) -> list[Parts]:
        """Return another file of the same length and time, at most one."""
        if size < SEARCHED_FROM:
            return []
        same = self._listed().of_time(size, mtime_ns)
        return list(itertools.islice((one for one in same if one != path), 1))

    def guesses(self, path: Parts, size: int, mtime_ns: int) -> list[Parts]:
        """Return files that may have the contents of a new one, the best first."""
        if self._useless >= _PATIENCE or size < SEARCHED_FROM:
            return self.sure(path, size, mtime_ns)
        noted = self._listed()
        found: list[Parts] = []
        for one in itertools.chain(
            noted.of_time(size, mtime_ns),
            noted.of_length(size),
            noted.of_name(path[-1], size // 4),
        ):
            if one != path and one not in found:
                found.append(one)
                if len(found) == _MAX_GUESSES:
                    return found
        if not found and self._similar_left:
            # Many files may be judged before it is known what the first guess is worth.
            found = self._similar(noted, path, size)
            self._similar_left -= len(found)
        return found

    def _similar(self, noted: NotedFiles, path: Parts, size: int) -> list[Parts]:
        """Return the file of the most similar length that is not far from it."""
        best = noted.nearest_length(size)
        if best is None or not size // 2 <= best <= 2 * size:
            return []
        similar = (one for one in noted.of_length(best) if one != path)
        return list(itertools.islice(similar, 1))

    def _listed(self) -> NotedFiles:
        """List what is there, once; the directories at the top come first."""
        if self._noted is not None:
            return self._noted
        self._noted = NotedFiles()
        waiting = deque([b""])
        waiting_len = 0
        left = _MAX_LOOKED
        while waiting and left and not self._noted.is_full:
            joined = waiting.popleft()
            waiting_len -= len(joined)
            path = split(joined)
            with contextlib.suppress(OSError, Rpc25519Error):
                for entry in itertools.islice(self._entries(path), left):
                    left -= 1
                    here = (*path, os.fsencode(entry.name))
                    if is_partial_name(here[-1]):
                        continue
                    if entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        self.add(here, status.st_size, status.st_mtime_ns)
                    elif entry.is_dir(follow_symlinks=False):
                        joined = join(here)
                        if waiting_len + len(joined) <= _MAX_WAITING_LEN:
                            waiting.append(joined)
                            waiting_len += len(joined)
        return self._noted

    def _entries(self, path: Parts) -> "Iterator[os.DirEntry[str]]":
        directory = self._tree.directory(path)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        fd = os.open(".", flags, dir_fd=directory.fd)
        try:
            with os.scandir(fd) as entries:
                yield from entries
        finally:
            os.close(fd)


def open_basis(tree: Tree, path: Parts, *, guessed: bool) -> Basis | None:
    """Open a local file to take chunks from; None if it cannot be.

    What the sender may not write, it is not told of either: a file that is kept back is
    no basis.
    """
    try:
        if not tree.may("write", path) or not tree.may("read", path):
            return None  # sums tell something of the contents
        tree.check(path)
        directory = tree.directory(path[:-1])
        fd = os.open(path[-1], READ_FLAGS, dir_fd=directory.fd)
    except (OSError, Rpc25519Error):
        return None
    try:
        status = os.fstat(fd)
        tree.check_found(status, path)
    except (OSError, Rpc25519Error):
        os.close(fd)
        return None
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        os.close(fd)
        return None
    return Basis(fd, status, in_place=False, path=path, guessed=guessed)


def open_left(destination: Destination, path: Parts) -> Basis | None:
    """Open what a killed sync has left of a file; None if there is nothing.

    Its sums tell something of the contents, which the sender must be allowed to read.
    """
    if not destination.tree.may("read", path):
        return None
    fd = destination.area.open_left(destination.key(path))
    if fd < 0:
        return None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        os.close(fd)
        return None
    reopen = functools.partial(open_left, destination, path)
    return Basis(fd, status, in_place=False, reopen=reopen)
