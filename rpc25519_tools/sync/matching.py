"""Find in a file what the receiver already has, while its tables still arrive.

The receiver cuts the files that it has into chunks by their content and sends each
chunk's length and the beginning of its sum. The sender goes through its own file and
expects, after a chunk that the receiver has, the next one of the receiver's: one sum
tells whether it is there, and most of a changed file never has to be cut. Where the
expectation fails, the file is cut by content from there, with the same parameters, so
that both sides' cuts fall together again soon.

What is not found at once may be found in a later part of the tables: it is put off
until they are complete. Everything else is told at once, in any order; the receiver
writes it where it belongs.

All of this blocks, and uses one thread.
"""

import bisect
import itertools
import os
from array import array
from dataclasses import dataclass, field
from typing import Final

from rpc25519_tools.errors import FileChangedError, RemoteProtocolError
from rpc25519_tools.sync.chunking import (
    ChunkDigest,
    ChunkSizes,
    basis_len,
    chunk_sizes,
)
from rpc25519_tools.sync.pieces import Pieces
from rpc25519_tools.sync.records import SHORT_SUM_LEN, Table, unpack_table

#: Bytes of a file that are looked at in one step, and read at once: what is read has
#: to stay in the processor's cache until its sums are taken.
STEP_LEN: Final = 8 << 20
_READ_LEN: Final = 1 << 20
#: Chunks in the tables for one file; bounds what a receiver can make a sender hold.
_CHUNK_BITS: Final = 20
MAX_CHUNKS: Final = 1 << _CHUNK_BITS
#: Bases that a file may have; and how many a receiver finds at most that are cut as far
#: as can be: what was left of it, the one of its name, and a few guesses.
MAX_BASES: Final = 16
_LONG_BASES: Final = 8
#: Bytes of a piece that is sent.
PIECE_LEN: Final = 1 << 20

#: Basis, first chunk, how many, where to.
Run = tuple[int, int, int, int]


@dataclass(slots=True)
class _Basis:
    in_place: bool
    lengths: "array[int]" = field(default_factory=lambda: array("I"))
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    sums: bytearray = field(default_factory=bytearray)
    end: int = 0
    is_short: bool = False  # its last chunk is shorter than one in the middle can be


def most_chunks(file_len: int) -> int:
    """Return how many chunks a receiver can have for a file of so many bytes."""
    shortest = chunk_sizes(file_len).min_len
    return min(_LONG_BASES * basis_len(file_len) // shortest, MAX_CHUNKS)


class Tables:
    """The chunks that the receiver has for one file, as far as they have come.

    Args:
        sizes: how both sides cut it; nothing else is taken.
        most: how many chunks are taken.
    """

    def __init__(self, sizes: ChunkSizes, most: int = MAX_CHUNKS) -> None:
        self._sizes = sizes
        self._most = most
        self._bases: list[_Basis] = []
        #: Basis and chunk of each sum, as one number: half the memory of a pair.
        self._known: dict[bytes, int] = {}
        self._count = 0
        #: Whether nothing more will come.
        self.complete = False

    def add(self, table: Table) -> None:
        """Take some more chunks.

        Raises:
            RemoteProtocolError: they do not fit to what came before.
        """
        if self.complete:
            raise RemoteProtocolError("chunks came after the last ones of a file")
        if table.basis == len(self._bases) < MAX_BASES:
            self._bases.append(_Basis(table.in_place))
        elif table.basis != len(self._bases) - 1:
            raise RemoteProtocolError("the chunks of a file came out of order")
        lengths = unpack_table(table)
        self._count += len(lengths)
        if self._count > self._most:
            raise RemoteProtocolError(f"over {self._most} chunks came for one file")
        basis = self._bases[-1]
        self._check(basis, lengths)
        first = len(basis.lengths)
        basis.lengths.extend(lengths)
        basis.offsets.extend(
            itertools.accumulate(lengths[:-1], initial=basis.end) if lengths else ()
        )
        basis.end += sum(lengths)
        basis.sums += table.sums
        known, sums, number = self._known, table.sums, table.basis << _CHUNK_BITS
        for at in range(len(lengths)):
            begin = at * SHORT_SUM_LEN
            known.setdefault(sums[begin : begin + SHORT_SUM_LEN], number + first + at)
        self.complete = table.last

    def _check(self, basis: _Basis, lengths: "array[int]") -> None:
        """See that chunks are of our sizes: others would cost more than they save."""
        if not lengths:
            return
        least = min(lengths[:-1], default=self._sizes.min_len)
        fits = self._sizes.min_len <= least and max(lengths) <= self._sizes.max_len
        if basis.is_short or not fits:
            raise RemoteProtocolError("the receiver has cut a file in a way of its own")
        basis.is_short = lengths[-1] < self._sizes.min_len

    def follow(
        self,
        found: tuple[int, int],
        view: memoryview,
        at: int,
        sums: ChunkDigest,
    ) -> tuple[list[int], list[bytes]]:
        """Compare what follows in the new file with what follows in a basis.

        Args:
            found: basis and chunk to begin with.
            view: of the new file, from the place on.
            at: that place.
            sums: takes the sums.

        Returns:
            Lengths and full sums of the chunks that are there, one after the other.
        """
        number, chunk = found
        basis = self._bases[number]
        lengths, short, in_place = basis.lengths, basis.sums, basis.in_place
        count, room = len(short) // SHORT_SUM_LEN, len(view)
        same: list[int] = []
        full: list[bytes] = []
        begin = 0
        while chunk < count:
            length = lengths[chunk]
            end = begin + length
            if end > room or (in_place and basis.offsets[chunk] != at + begin):
                break
            digest = sums.of_one(view[begin:end])
            mark = chunk * SHORT_SUM_LEN
            if not digest.startswith(short[mark : mark + SHORT_SUM_LEN]):
                break
            same.append(length)
            full.append(digest)
            begin = end
            chunk += 1
        return same, full

    def between(
        self, first: tuple[int, int], after: tuple[int, int] | None, length: int
    ) -> tuple[int, int, int] | None:
        """Return the chunks of a basis between two of them.

        Args:
            first: basis and chunk that they begin with.
            after: the one behind the last one; None where nothing is known of it.
            length: how many bytes they stand for, about.

        Returns:
            Basis, first chunk and count; None where they are none, or far too many.
        """
        number, chunk = first
        basis = self._bases[number]
        end = len(basis.lengths)
        if after is not None:
            if after[0] != number:
                return None
            end = after[1]
        if end <= chunk:
            return None
        most = basis.offsets[chunk] + 2 * length
        near = bisect.bisect_left(basis.offsets, most, chunk, end)
        if after is not None and near < end:
            return None
        return number, chunk, near - chunk

    def extent(self, chunks: tuple[int, int, int]) -> tuple[int, int]:
        """Return where some chunks begin in their basis, and how long they are."""
        number, first, count = chunks
        basis, last = self._bases[number], first + count - 1
        begin = basis.offsets[first]
        return begin, basis.offsets[last] + basis.lengths[last] - begin

    def is_in_place(self, number: int) -> bool:
        """Tell whether a basis is the unfinished file itself."""
        return self._bases[number].in_place

    def has_chunk(self, found: tuple[int, int]) -> bool:
        """Tell whether a chunk has come."""
        return found[1] < len(self._bases[found[0]].lengths)

    def has_more(self, basis: int) -> bool:
        """Tell whether more chunks of a basis may come."""
        return not self.complete and basis == len(self._bases) - 1

    def find(self, short_sum: bytes, length: int, at: int) -> tuple[int, int] | None:
        """Return where a chunk is that may stand at a place of the new file."""
        known = self._known.get(short_sum)
        if known is None:
            return None
        found = known >> _CHUNK_BITS, known & (1 << _CHUNK_BITS) - 1
        return found if self.fits(found, length, at) else None

    def fits(self, found: tuple[int, int], length: int, at: int) -> bool:
        """Tell whether a chunk may be used at a place of the new file."""
        basis, chunk = found
        one = self._bases[basis]
        if one.lengths[chunk] != length:
            return False
        return not one.in_place or one.offsets[chunk] == at

    @property
    def begun(self) -> bool:
        """Whether any has come."""
        return bool(self._bases)


class Matcher:
    """Goes through one file.

    Args:
        fd: the file; only borrowed.
        size: its length; what grows beyond it is not looked at.
        key: of the sums.
        sizes: how both sides cut it.
        tables: what the receiver has; may grow between steps.
    """

    def __init__(
        self, fd: int, size: int, key: bytes, sizes: ChunkSizes, tables: Tables
    ) -> None:
        self._fd = fd
        self._size = size
        self._sums = ChunkDigest(key)
        self._sizes = sizes
        self._chunker = sizes.cutter()
        self._tables = tables
        self._memory = bytearray(min(size, max(_READ_LEN, 2 * sizes.max_len)) or 1)
        self._start = 0  # where in the file the memory's contents begin
        self._filled = 0
        self._at = 0  # how far the file has been looked at
        self._expect: tuple[int, int] | None = (0, 0)
        self._later: list[tuple[int, int, bytes]] = []
        # Where something is put off: what was expected there, and what came after it;
        # and the same of what was decided last.
        self._failed: dict[int, tuple[int, int]] = {}
        self._resumed: dict[int, tuple[int, int]] = {}
        self._missed: dict[int, tuple[int, int]] = {}
        self._behind: dict[int, tuple[int, int]] = {}
        #: Bytes that were put off.
        self.later_len = 0
        self.pieces = Pieces()
        #: Bytes that the receiver has.
        self.matched = 0

    @property
    def at(self) -> int:
        """How far the file has been looked at, in bytes."""
        return self._at

    @property
    def is_through(self) -> bool:
        """Whether all of the file has been looked at."""
        return self._at >= self._size

    def step(self) -> list[Run]:
        """Look at the next bytes; return what of them the receiver has.

        It comes back early, also with nothing, where the next part of a table is
        needed: call it again when there is one.

        Raises:
            FileChangedError: the file has become shorter.
            OSError: it cannot be read.
        """
        runs = Runs()
        begin, before = self._at, -1
        while before < self._at < min(begin + STEP_LEN, self._size):
            before = self._at
            self._fill()
            with memoryview(self._memory) as view:
                self._match(view, runs)
        return runs.runs

    def _fill(self) -> None:
        """Move what is left to the front and read on."""
        rest = self._start + self._filled - self._at
        if rest < self._sizes.max_len and self._start + self._filled < self._size:
            begin = self._at - self._start
            self._memory[:rest] = self._memory[begin : begin + rest]
            self._start, self._filled = self._at, rest
            wanted = min(len(self._memory), self._size - self._start)
            with memoryview(self._memory) as view:
                while self._filled < wanted:
                    into = view[self._filled : wanted]
                    count = os.preadv(self._fd, [into], self._start + self._filled)
                    if not count:
                        raise FileChangedError("it became shorter while it was read")
                    self._filled += count

    def _match(self, view: memoryview, runs: "Runs") -> None:
        tables = self._tables
        end = self._start + self._filled
        at_end = end == self._size
        longest = self._sizes.max_len
        while self._at < end:
            if end - self._at < longest and not at_end:
                return
            begin = self._at - self._start
            failed: tuple[int, int] | None = None
            if self._expect is not None:
                if not tables.begun or not tables.has_chunk(self._expect):
                    if not tables.complete and (
                        not tables.begun or tables.has_more(self._expect[0])
                    ):
                        return  # wait for it
                    self._expect = None
                    continue
                if self._follow(view[begin : self._filled], runs):
                    continue
                failed, self._expect = self._expect, None
            stop = min(begin + longest, self._filled)
            length = next(iter(self._chunker.cut_buf(view[begin:stop]))).length
            digest = self._sums.of_one(view[begin : begin + length])
            found = tables.find(digest[:SHORT_SUM_LEN], length, self._at)
            if found is not None:
                self._found(found, length, digest, runs)
            else:
                if failed is not None:
                    self._failed[self._at] = failed
                self._later.append((self._at, length, digest))
                self._at += length
                self.later_len += length

    def _follow(self, view: memoryview, runs: "Runs") -> bool:
        """Take the chunks that are there as expected; tell whether there were any."""
        assert self._expect is not None
        lengths, sums = self._tables.follow(self._expect, view, self._at, self._sums)
        if not lengths:
            return False
        basis, first = self._expect
        total = sum(lengths)
        runs.add((basis, first), self._at, total, len(lengths))
        self.pieces.extend(self._at, lengths, sums)
        self.matched += total
        self._at += total
        self._expect = (basis, first + len(lengths))
        return True

    def _found(
        self, found: tuple[int, int], length: int, digest: bytes, runs: "Runs"
    ) -> None:
        if self._later and sum(self._later[-1][:2]) == self._at:
            self._resumed[self._at] = found
        runs.add(found, self._at, length)
        self.pieces.add(self._at, length, digest)
        self.matched += length
        self._expect = (found[0], found[1] + 1)
        self._at += length

    @property
    def can_settle(self) -> bool:
        """Whether what was put off can be decided now."""
        return self._tables.complete and bool(self._later)

    def settle(self) -> tuple[list[Run], list[tuple[int, int]]]:
        """Decide what was put off, when the tables are complete.

        Returns:
            What the receiver has after all, and the stretches that it has not: offset
            and length, each at most PIECE_LEN long unless one chunk is longer.
        """
        runs = Runs()
        missing: list[tuple[int, int]] = []
        later, self._later = self._later, []
        self._missed, self._failed = self._failed, {}
        self._behind, self._resumed = self._resumed, {}
        self.later_len = 0
        for at, length, digest in later:
            found = self._tables.find(digest[:SHORT_SUM_LEN], length, at)
            if found is not None:
                runs.add(found, at, length)
                self.pieces.add(at, length, digest)
                self.matched += length
                continue
            if missing:
                begin, so_far = missing[-1]
                if begin + so_far == at and so_far + length <= PIECE_LEN:
                    missing[-1] = (begin, so_far + length)
                    continue
            missing.append((at, length))
        return runs.runs, missing

    def chunks_for(self, at: int, length: int) -> tuple[int, int, int] | None:
        """Return the chunks of a basis that stand where something is missing.

        Args:
            at: where a stretch begins that has just been settled to be missing.
            length: of it.

        Returns:
            Basis, first chunk and count; None where nothing speaks for any.
        """
        first = self._missed.get(at)
        if first is None:
            return None
        return self._tables.between(first, self._behind.get(at + length), length)


class Runs:
    """Chunks that follow each other, on both sides, joined to runs."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self._end = -1

    def add(self, found: tuple[int, int], at: int, length: int, count: int = 1) -> None:
        """Append chunks that follow each other, from a place of the new file on."""
        if self.runs and at == self._end:
            basis, first, so_far, begin = self.runs[-1]
            if found == (basis, first + so_far):
                self.runs[-1] = (basis, first, so_far + count, begin)
                self._end += length
                return
        self.runs.append((*found, count, at))
        self._end = at + length
