"""Compare long chunks that differ once more, block by block.

Files above half a GiB are cut into long chunks: their tables are short, and their sums
are taken fast. What is missing of such a file is compared with the chunks that stand in
its place at the receiver: the sender asks for the sums of their blocks, of 1 KiB each,
and sends only those that differ. A change within a chunk mostly moves nothing, so that
blocks are looked for where they were; if the lengths differ, from the beginning on and
from the end.

That takes one round trip more, for such files alone, and only where little is missing.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from rpc25519_tools.errors import RemoteProtocolError
from rpc25519_tools.sync.chunking import ChunkDigest
from rpc25519_tools.sync.matching import Matcher, Tables
from rpc25519_tools.sync.outgoing import OpenSource
from rpc25519_tools.sync.records import MAX_RANGES, SHORT_SUM_LEN
from rpc25519_tools.wire.greenpack import Buffer

#: Bytes of a block.
BLOCK_LEN: Final = 1024
#: Bytes that are missing of one file, beyond which they are just sent.
MAX_MISSING: Final = 64 << 20
#: Bytes of chunks that a receiver takes such sums of, for one file.
MAX_REFINED: Final = 4 * MAX_MISSING
#: Bytes of a stretch that is compared, and of what stands there at the receiver.
MAX_STRETCH: Final = 4 << 20
MAX_RANGE: Final = 16 << 20

#: Basis, offset there, length, where to.
Patch = tuple[int, int, int, int]


def block_sums(data: Buffer, key: bytes) -> bytes:
    """Return the short sums of blocks, joined; the last block may be shorter."""
    digest = ChunkDigest(key)
    view = memoryview(data)
    return b"".join(
        digest.of_one(view[at : at + BLOCK_LEN])[:SHORT_SUM_LEN]
        for at in range(0, len(view), BLOCK_LEN)
    )


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Something that is missing, and what stands there at the receiver."""

    at: int
    length: int
    chunks: tuple[int, int, int]
    begin: int
    old_length: int

    @property
    def blocks(self) -> int:
        """How many blocks stand there."""
        return -(-self.old_length // BLOCK_LEN)


class Refining:
    """What is missing of one file, and may be found in part.

    Args:
        missing: offsets and lengths.
        matcher: knows what stands there at the receiver.
        tables: the receiver's.
        key: of the sums.
    """

    def __init__(
        self,
        missing: Sequence[tuple[int, int]],
        matcher: Matcher,
        tables: Tables,
        key: bytes,
    ) -> None:
        self._key = key
        self._tables = tables
        self._pieces = matcher.pieces
        self._stretches: list[_Stretch] = []
        #: What is to be sent as it is: offsets and lengths.
        self.missing: list[tuple[int, int]] = []
        asked = 0
        for at, length in _joined(missing):
            chunks = matcher.chunks_for(at, length)
            too_much = length > MAX_STRETCH or len(self._stretches) >= MAX_RANGES
            if chunks is None or too_much:
                self.missing.append((at, length))
                continue
            stretch = _Stretch(at, length, chunks, *tables.extent(chunks))
            room = min(MAX_RANGE, MAX_REFINED - asked)
            if stretch.old_length > room:
                self.missing.append((at, length))
                continue
            asked += stretch.old_length
            self._stretches.append(stretch)
        #: Bytes that were found.
        self.matched = 0

    @property
    def ranges(self) -> list[tuple[int, int, int]]:
        """What to ask for: basis, first chunk and count, each."""
        return [stretch.chunks for stretch in self._stretches]

    def take(self, sums: bytes, source: OpenSource) -> list[Patch]:
        """Compare, and return what the receiver has after all.

        Args:
            sums: the receiver's answer.
            source: the file.

        Raises:
            RemoteProtocolError: it is not one to what was asked.
            OSError, FileChangedError: the file cannot be read.
        """
        count = sum(stretch.blocks for stretch in self._stretches)
        if len(sums) != count * SHORT_SUM_LEN:
            raise RemoteProtocolError("the sums of blocks are not those asked for")
        patches: list[Patch] = []
        first = 0
        for stretch in self._stretches:
            end = first + stretch.blocks * SHORT_SUM_LEN
            self._compare(stretch, sums[first:end], source, patches)
            first = end
        return patches

    def _compare(
        self,
        stretch: _Stretch,
        sums: bytes,
        source: OpenSource,
        patches: list[Patch],
    ) -> None:
        data = bytearray(stretch.length)
        source.read_into(memoryview(data), stretch.at)
        number = stretch.chunks[0]
        # What is in place cannot be moved.
        only = stretch.begin - stretch.at if self._tables.is_in_place(number) else None
        found = _matching_blocks(stretch, sums, memoryview(data), self._key, only)
        done = 0
        for old, new, count in found:
            if new > done:
                self.missing.append((stretch.at + done, new - done))
            piece = memoryview(data)[new : new + count]
            at = stretch.at + new
            self._pieces.add(at, count, blake3(piece, key=self._key).digest())
            patches.append((number, stretch.begin + old, count, at))
            self.matched += count
            done = new + count
        if done < stretch.length:
            self.missing.append((stretch.at + done, stretch.length - done))


def _joined(missing: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return stretches of which none follows another at once."""
    joined: list[tuple[int, int]] = []
    for at, length in sorted(missing):
        if joined and sum(joined[-1]) == at:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((at, length))
    return joined


def _matching_blocks(
    stretch: _Stretch, sums: bytes, data: memoryview, key: bytes, only: int | None
) -> list[tuple[int, int, int]]:
    """Return old place, new place and length of what both have, in order.

    Args:
        stretch: what is missing, and what stands there.
        sums: of the blocks that stand there.
        data: what is missing.
        key: of the sums.
        only: how far all blocks have moved; None: that is not known.
    """
    digest = ChunkDigest(key)
    shift = stretch.length - stretch.old_length

    def is_same(block: int, by: int) -> bool:
        old = block * BLOCK_LEN
        length = min(BLOCK_LEN, stretch.old_length - old)
        new = old + by
        if new < 0 or new + length > len(data):
            return False
        mark = block * SHORT_SUM_LEN
        wanted = sums[mark : mark + SHORT_SUM_LEN]
        return digest.of_one(data[new : new + length]).startswith(wanted)

    count = stretch.blocks
    if only is not None or not shift:
        by = only or 0
        return _runs([(at, by) for at in range(count) if is_same(at, by)], stretch)
    front = list(itertools.takewhile(lambda at: is_same(at, 0), range(count)))
    limit = min(len(front) * BLOCK_LEN, stretch.old_length)
    back = itertools.takewhile(
        lambda at: at * BLOCK_LEN + shift >= limit and is_same(at, shift),
        range(count - 1, len(front) - 1, -1),
    )
    both = [(at, 0) for at in front] + [(at, shift) for at in reversed(list(back))]
    return _runs(both, stretch)


def _runs(
    blocks: Sequence[tuple[int, int]], stretch: _Stretch
) -> list[tuple[int, int, int]]:
    """Join blocks that follow each other and have moved alike."""
    runs: list[tuple[int, int, int]] = []
    for block, by in blocks:
        old = block * BLOCK_LEN
        length = min(BLOCK_LEN, stretch.old_length - old)
        if runs:
            last_old, last_new, so_far = runs[-1]
            if last_old + so_far == old and last_new + so_far == old + by:
                runs[-1] = (last_old, last_new, so_far + length)
                continue
        runs.append((old, old + by, length))
    return runs
