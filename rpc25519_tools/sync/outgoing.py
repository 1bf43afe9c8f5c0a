"""What a sender reads from its files: whole small ones, pieces of large ones, deltas.

All of this blocks; the sender calls it from worker threads.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3

from rpc25519_tools.errors import FileChangedError, Rpc25519Error
from rpc25519_tools.sync.chunking import chunk_sizes
from rpc25519_tools.sync.holes import stretches
from rpc25519_tools.sync.matching import Matcher, Tables
from rpc25519_tools.sync.pieces import Pieces
from rpc25519_tools.sync.records import Copies, Data, Deltas, End, Table, Whole, Zeros
from rpc25519_tools.sync.source import open_source
from rpc25519_tools.sync.tree import why
from rpc25519_tools.sync.walk import Item
from rpc25519_tools.wire.buffers import BufferPool
from rpc25519_tools.wire.greenpack import Buffer

#: Files up to this length travel with others in one message.
SMALL_LEN: Final = 64 * 1024
#: Bytes of small files in one message, of which the last one may be beyond; what a cut
#: takes is lost.
BUNDLE_LEN: Final = 128 * 1024
#: The sum of a piece that is a hole.
HOLE_SUM: Final = bytes(32)

_CHANGED: Final = "it changed while it was read"


@dataclass(slots=True, eq=False)
class Wanted:
    """One file that the receiver wants.

    Attributes:
        index: of its entry.
        item: the entry.
        is_small: whether it can be sent at once, with others.
        tables: what the receiver has; None where it wants the whole file.
        arrived: tables that have come and are not in ``tables`` yet.
        tabled_len: what all tables that have come cost.
        is_over: whether it was sent; tables may still come.
    """

    index: int
    item: Item
    is_small: bool
    tables: Tables | None
    arrived: deque[Table] = field(default_factory=deque)
    tabled_len: int = 0
    is_over: bool = False

    def take_tables(self) -> None:
        """Add what has arrived to the tables."""
        assert self.tables is not None
        while self.arrived:
            self.tables.add(self.arrived.popleft())


class OpenSource:
    """One file that is being sent, open.

    Args:
        wanted: which.

    Raises:
        OSError, Rpc25519Error: it cannot be opened.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.fd, self.status = open_source(wanted.item.place, wanted.item.path)
        #: What is sent: no more than there was when it was opened.
        self.size = self.status.st_size

    def close(self) -> None:
        """Close it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def read_all(self) -> bytes:
        """Return all of a small file."""
        data = os.pread(self.fd, self.size, 0) if self.size else b""
        if len(data) != self.size:
            raise FileChangedError(_CHANGED)
        return data

    def read_into(self, memory: memoryview, at: int) -> None:
        """Fill memory with what is at a place of the file."""
        done = 0
        while done < len(memory):
            count = os.preadv(self.fd, [memory[done:]], at + done)
            if not count:
                raise FileChangedError(_CHANGED)
            done += count

    def has_changed(self) -> bool:
        """Tell whether it is another file than the one that was announced."""
        now = os.fstat(self.fd)
        return (now.st_size, now.st_mtime_ns) != (
            self.wanted.item.size,
            self.wanted.item.mtime_ns,
        )

    def stretches(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Yield offset, length and whether it is data, from one place to another."""
        if self.wanted.item.holes:
            yield from stretches(self.fd, start, end)
        elif start < end:
            yield start, end - start, True


class SmallFiles:
    """Makes records of small files, each at once.

    Args:
        key: of the sums.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        #: Files whose contents changed while they were read.
        self.changed: list[Item] = []
        #: How many files are dealt with, and their bytes.
        self.done = 0
        self._read_len = 0

    def records(self, files: Sequence[Wanted]) -> list[Deltas]:
        """Return what to send of some files, or why it cannot be.

        Files that have grown are too much for one message: the last ones are left then.
        """
        records: list[Deltas] = []
        for wanted in files:
            if self._read_len >= BUNDLE_LEN:
                break
            try:
                self._add(wanted, records)
            except (OSError, Rpc25519Error) as exc:
                records.append(failed_end(wanted, exc))
            self.done += 1
        return records

    def _add(self, wanted: Wanted, records: list[Deltas]) -> None:
        source = OpenSource(wanted)
        try:
            if source.size > 2 * SMALL_LEN:
                raise FileChangedError(_CHANGED)
            if wanted.tables is not None:
                wanted.take_tables()
            self._read_len += source.size
            if wanted.tables is None:
                data = source.read_all()
                total = blake3(data, key=self._key).digest()
                records.append(Whole(wanted.index, data, total))
            else:
                records += self._delta(source)
            if source.has_changed():
                self.changed.append(wanted.item)
        finally:
            source.close()
            wanted.tables = None  # of a bundle's files those of one are there at a time

    def _delta(self, source: OpenSource) -> list[Deltas]:
        wanted = source.wanted
        assert wanted.tables is not None
        sizes = chunk_sizes(wanted.item.size)
        matcher = Matcher(source.fd, source.size, self._key, sizes, wanted.tables)
        records: list[Deltas] = []
        while not matcher.is_through:
            if runs := matcher.step():
                records.append(Copies(wanted.index, runs))
        runs, missing = matcher.settle()
        if runs:
            records.append(Copies(wanted.index, runs))
        for at, length in missing:
            data = os.pread(source.fd, length, at)
            if len(data) != length:
                raise FileChangedError(_CHANGED)
            matcher.pieces.add(at, length, blake3(data, key=self._key).digest())
            records.append(Data(wanted.index, at, data))
        records.append(End(wanted.index, source.size, matcher.pieces.root()))
        return records


def failed_end(wanted: Wanted, exc: Exception) -> End:
    """Return the record that gives a file up."""
    return End(wanted.index, 0, b"", why(exc, "read", wanted.item.path)[:1000])


class PieceReader:
    """Reads pieces of one large file, into memory that is used again and again.

    Args:
        source: the file.
        key: of the sums.
        pieces: learns of each piece.
    """

    def __init__(self, source: OpenSource, key: bytes, pieces: Pieces) -> None:
        self._source = source
        self._key = key
        self._pieces = pieces
        self._memory = BufferPool()

    def read(self, at: int, length: int) -> Buffer:
        """Return one piece of at most PIECE_LEN bytes.

        Its memory is used again when nothing refers to it any more.
        """
        view = memoryview(self._memory.allocate(length))[:length]
        self._source.read_into(view, at)
        self._pieces.add(at, length, blake3(view, key=self._key).digest())
        return view


def hole_record(index: int, at: int, length: int, pieces: Pieces) -> Zeros:
    """Note a hole, and return the record that tells of it."""
    pieces.add(at, length, HOLE_SUM)
    return Zeros(index, at, length)
