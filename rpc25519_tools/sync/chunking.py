"""Cut files where their content says so, so that an insertion moves no other cut.

Both peers cut the same bytes at the same places, with no more agreed on than the size
of the sender's file: `chunk_sizes` decides the rest. **What is decided here is part of
the wire**: other sizes or another way of cutting lose every match with older peers, so
a test fixes the cut points. pyfastcdc does the cutting (FastCDC of 2020; the default
gear table), blake3 the hashing; both let other threads run meanwhile.

How the sizes were chosen: for a file of 1 GiB, with 100 edits of 1 KiB, one insertion
and one deletion, what a peer has to move is the table (8 bytes for each chunk then, 10
now) and the bytes of the chunks that changed. Smallest chunk, FastCDC's average and
level:

====== ===== ===== =========== ============ ========= ======= ======= ==============
min    avg   level mean length cutting MB/s table     literal total   remarks
====== ===== ===== =========== ============ ========= ======= ======= ==============
4096   16384 1     19954       3850         0.43 MB   2.61 MB 3.04 MB library default
8192   16384 2     19514       4810         0.44 MB   2.56 MB 3.00 MB
16384  16384 1     24511       6560         0.35 MB   2.96 MB 3.31 MB
16384  16384 2     20478       9300         0.42 MB   2.81 MB 3.23 MB
12288  12288 1     20471       5810         0.42 MB   2.56 MB 2.98 MB
12288  12288 2     16391       9830         0.52 MB   2.15 MB 2.68 MB taken
8192   8192  1     12293       5800         0.70 MB   1.64 MB 2.34 MB more chunks
8192   8192  2     10243       7690         0.84 MB   1.59 MB 2.42 MB more chunks
8192   8192  3     9208        10170        0.93 MB   1.64 MB 2.58 MB more chunks
4096   4096  1     6136        4930         1.40 MB   0.95 MB 2.35 MB more chunks
====== ===== ===== =========== ============ ========= ======= ======= ==============

So it is up to half a GiB, where the shape of the row that is marked is kept and the
mean length follows the size of the file. Above that, chunks of 64 KiB cost both sides
half the time, in hashing as in the interpreter: a push of such a file took 0.9 s
instead of 1.3. What they lose in precision `refining.py` makes good for one round trip
more: 0.47 MB went over the wire.

Literal bytes are means of 1000 edits and 20 insertions and deletions; with just 100 and
2, three files came to 2.77 to 2.87 MB in all. The bytes below the smallest length are
never looked at, which is what makes cutting fast. With three quarters of the mean
skipped, an edit still spoils 1.24 chunks only.
Every chunk costs the interpreter 1.5 microseconds or so, and blake3 is at its best from
16 KiB on; that, and not only the bytes, speaks for the row that was taken.

All reading here blocks; call it from a worker thread.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from blake3 import blake3
from pyfastcdc import FastCDC

from rpc25519_tools.wire.greenpack import Buffer

#: How the cutting is called where peers tell each other.
CHUNKER_NAME: Final = "fastcdc-2020-nc2"
#: FastCDC's level of normalized chunking: past the average, cuts are 4 times as likely.
NORMALIZATION: Final = 2
#: How much is read at once: it stays in a core's second cache until it is hashed,
#: which was 10 to 20 % faster than 8 MiB.
BLOCK_LEN: Final = 512 * 1024

#: Limits of pyfastcdc.
_MOST_MIN_LEN: Final = 1024 * 1024
_MOST_MEAN_LEN: Final = 4 * 1024 * 1024
#: From the size above which tables have 2**19 entries, chunks grow with the file.
_LARGE_FILE_LEN: Final = 32 << 30
#: Files that are longer have long chunks, and those that do not match are compared once
#: more, block by block: see refining.py.
REFINED_ABOVE: Final = 512 << 20
#: Bytes of a local file that are cut for a file of so many bytes, and for any file: see
#: basis.py.
_BASIS_FACTOR: Final = 2
_BASIS_AT_LEAST: Final = 64 << 20
#: Size of a file, and the mean length of its chunks up to there. Below 16 KiB the mean
#: grows with about the square root of the size, which is best for a table and a given
#: number of edits together.
_MEAN_LENS: Final = (
    (1 << 20, 1024),
    (16 << 20, 2048),
    (128 << 20, 4096),
    (REFINED_ABOVE, 8192),
    (_LARGE_FILE_LEN, 65536),
)


@dataclass(frozen=True, slots=True)
class ChunkSizes:
    """How long chunks are, in bytes.

    Attributes:
        min_len: no chunk is shorter but the last one; 64 bytes to 1 MiB.
        avg_len: from there on cuts are more likely; 256 bytes to 4 MiB. Only the
            rounded binary logarithm of it and where it lies matter.
        max_len: no chunk is longer; 1 KiB to 16 MiB.
    """

    min_len: int
    avg_len: int
    max_len: int

    def cutter(self) -> FastCDC:
        """Return the library's chunker for these sizes.

        Raises:
            ValueError: the sizes are out of range, or in a wrong order.
        """
        return FastCDC(
            self.avg_len,
            min_size=self.min_len,
            max_size=self.max_len,
            normalized_chunking=NORMALIZATION,
        )


def chunk_sizes(file_len: int) -> ChunkSizes:
    """Return the sizes by which both peers cut the sender's file, and its basis.

    Mean lengths are 1 KiB up to files of 1 MiB, 2 KiB up to 16 MiB, 4 KiB up to
    128 MiB, 8 KiB up to 512 MiB, 64 KiB up to 32 GiB, then twice that for each doubling
    up to 4 MiB (files of 2 TiB). A table has about 2**19 entries at most up to there,
    and a third more if every chunk is as short as can be.

    Args:
        file_len: of the sender's file, in bytes.
    """
    mean = _mean_len(file_len)
    avg = mean // 4 * 3
    return ChunkSizes(min(avg, _MOST_MIN_LEN), avg, mean * 4)


def basis_len(file_len: int) -> int:
    """Return how many bytes of a local file are cut at most for a sender's file.

    Args:
        file_len: of the sender's file, in bytes.
    """
    return max(_BASIS_FACTOR * file_len, _BASIS_AT_LEAST)


def _mean_len(file_len: int) -> int:
    for most, mean in _MEAN_LENS:
        if file_len <= most:
            return mean
    most, mean = _MEAN_LENS[-1]
    while file_len > most and mean < _MOST_MEAN_LEN:
        most *= 2
        mean *= 2
    return mean


class Chunker:
    """Cuts bytes that arrive in order, in a buffer of its own.

    Fill `room`, tell by `advance` how much there is, and go on so; `finish` returns
    what is left. Where the cuts are does not depend on how much came at a time. The
    buffer is the block and the longest chunk together; nothing grows.

    Chunks are views of the buffer: they hold until `room` is called next.
    """

    def __init__(self, sizes: ChunkSizes, block_len: int = BLOCK_LEN) -> None:
        """Make the buffer.

        Args:
            sizes: how to cut.
            block_len: the least that `room` returns, in bytes. It is taken as long as
                the longest chunk if it is shorter, as the rest of each block, which is
                moved and cut again, would be most of it.

        Raises:
            ValueError: the sizes are out of range, or in a wrong order.
        """
        self._cutter = sizes.cutter()
        self._max_len = sizes.max_len
        self._buffer = memoryview(
            bytearray(max(block_len, sizes.max_len) + sizes.max_len)
        )
        self._start = 0  # of what has no certain end yet
        self._end = 0  # of what has come

    def room(self) -> memoryview:
        """Return where the next bytes go: writable, and never empty."""
        buffer = self._buffer
        if self._start:
            rest_len = self._end - self._start
            buffer[:rest_len] = buffer[self._start : self._end]
            self._start, self._end = 0, rest_len
        return buffer[self._end :]

    def advance(self, filled_len: int) -> list[memoryview]:
        """Return the chunks whose end is certain now.

        Args:
            filled_len: how many bytes were written to the front of `room`.
        """
        self._end += filled_len
        assert self._end <= len(self._buffer)
        chunks = self._cut()
        # A cut that was found lies before the end of the buffer: only the last chunk
        # can be one that more bytes would make longer.
        if chunks and len(chunks[-1]) < self._max_len:
            self._start = self._end - len(chunks.pop())
        else:
            self._start = self._end
        return chunks

    def finish(self) -> list[memoryview]:
        """Return what is left, after the last byte: one chunk or none."""
        chunks = self._cut()
        self._start = self._end
        return chunks

    def _cut(self) -> list[memoryview]:
        view = self._buffer[self._start : self._end]
        return [chunk.data for chunk in self._cutter.cut_buf(view)]


def cut_bytes(data: Buffer, sizes: ChunkSizes | None = None) -> list[memoryview]:
    """Cut what is in memory; the chunks are views of it.

    Args:
        data: the bytes.
        sizes: how to cut; `chunk_sizes` of the length where it is None.
    """
    view = memoryview(data).cast("B")
    cutter = (sizes or chunk_sizes(len(view))).cutter()
    return [chunk.data for chunk in cutter.cut_buf(view)]


def cut_blocks(
    fd: int,
    file_len: int,
    sizes: ChunkSizes | None = None,
    *,
    block_len: int = BLOCK_LEN,
) -> Iterator[list[memoryview]]:
    """Cut a file block by block; the descriptor's own position is left alone.

    Args:
        fd: of a regular file that is open for reading.
        file_len: how many bytes to cut. A file that is shorter, or becomes so, ends
            earlier; one that is longer is cut as if it ended there.
        sizes: how to cut; `chunk_sizes` of ``file_len`` where it is None.
        block_len: how much to read at once, in bytes; the cuts do not depend on it.

    Yields:
        The chunks that follow each other, in lists that are never empty. They are
        views of a buffer that is used again, so **they hold until the next list**.

    Raises:
        OSError: reading failed.
    """
    chunker = Chunker(sizes or chunk_sizes(file_len), min(block_len, file_len))
    offset = 0
    while offset < file_len:
        with chunker.room()[: file_len - offset] as room:
            got = os.preadv(fd, [room], offset)
        if not got:
            break
        offset += got
        chunks = chunker.advance(got)
        if chunks:
            yield chunks
    chunks = chunker.finish()
    if chunks:
        yield chunks


def chunk_digests(
    fd: int,
    file_len: int,
    key: bytes | None = None,
    sizes: ChunkSizes | None = None,
    *,
    block_len: int = BLOCK_LEN,
) -> Iterator[tuple[list[int], list[bytes]]]:
    """Cut a file and hash its chunks: the table by which peers compare.

    1.9 GB/s on one core for a file of 1 GiB in memory, keyed or not (8 MiB at a time:
    1.55 GB/s); 0.5 GB/s where chunks have 1 KiB, 2.9 where they have 64 KiB.

    Args:
        fd: see `cut_blocks`, as for the others.
        file_len: see there.
        key: 32 bytes for keyed hashes, so that nobody can prepare chunks that collide.
        sizes: see there.
        block_len: see there.

    Yields:
        Lengths, and 32 bytes of BLAKE3, of the chunks that follow each other.

    Raises:
        OSError: reading failed.
    """
    digest = ChunkDigest(key)
    for chunks in cut_blocks(fd, file_len, sizes, block_len=block_len):
        yield [len(chunk) for chunk in chunks], digest.of(chunks)


class ChunkDigest:
    """Hashes chunks one by one. Not locked: it belongs to one thread at a time."""

    __slots__ = ("_hasher",)

    def __init__(self, key: bytes | None = None) -> None:
        """Take the key.

        Raises:
            ValueError: the key has not 32 bytes.
        """
        self._hasher = blake3() if key is None else blake3(key=key)

    def of_one(self, chunk: Buffer) -> bytes:
        """Return the 32 bytes of BLAKE3 of one chunk."""
        self._hasher.reset()
        return self._hasher.update(chunk).digest()

    def of(self, chunks: Iterable[Buffer]) -> list[bytes]:
        """Return the 32 bytes of BLAKE3 of each chunk."""
        # One hasher for all: making one for each takes 0.2 microseconds more.
        reset, update = self._hasher.reset, self._hasher.update
        digests = []
        for chunk in chunks:
            reset()
            digests.append(update(chunk).digest())
        return digests
