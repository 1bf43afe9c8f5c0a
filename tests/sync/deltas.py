"""Deltas without a sync: a receiver that says what it has, and data with edits."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3
from hypothesis import strategies as st

from rpc25519_tools.sync.chunking import ChunkSizes, chunk_digests
from rpc25519_tools.sync.matching import Run
from rpc25519_tools.sync.pieces import Pieces
from rpc25519_tools.sync.records import SHORT_SUM_LEN, Table, pack_lengths

KEY = bytes(range(32))
#: The smallest that the library allows.
SIZES = ChunkSizes(64, 256, 1024)
#: Blocks that contents are made of; some long ones, and some that hardly change.
BLOCKS = [random.Random(seed).randbytes(50 + 37 * seed) for seed in range(30)]
BLOCKS += [bytes(3000), b"ab" * 700, random.Random(99).randbytes(9000)]
block_lists = st.lists(st.integers(0, len(BLOCKS) - 1), max_size=60)


def joined(numbers: list[int]) -> bytes:
    return b"".join(BLOCKS[number] for number in numbers)


@st.composite
def edited(draw: st.DrawFn) -> tuple[list[bytes], bytes]:
    """Draw old contents and new ones that were made of them."""
    olds = [draw(block_lists) for _ in range(draw(st.integers(1, 3)))]
    new = list(draw(st.sampled_from(olds)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(new)))
        to = draw(st.integers(at, len(new)))
        match draw(st.sampled_from(["insert", "delete", "repeat", "move", "swap"])):
            case "insert":
                new[at:at] = draw(block_lists)[:5]
            case "delete":
                del new[at:to]
            case "repeat":
                new[at:at] = new[at:to]
            case "move":
                moved = new[at:to]
                del new[at:to]
                place = draw(st.integers(0, len(new)))
                new[place:place] = moved
            case _:
                new[at:to] = draw(st.permutations(new[at:to]))
    data = joined(new[:200])
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=40)) + data[at:]
    return [joined(old) for old in olds], data


class Receiver:
    """The other side: cuts what it has, and puts files together."""

    def __init__(self, folder: Path, bases: list[tuple[bytes, bool]]) -> None:
        self.bases: list[tuple[bytes, list[int], list[bytes], bool]] = []
        for data, in_place in bases:
            path = folder / "basis"
            path.write_bytes(data)
            fd = os.open(path, os.O_RDONLY)
            lengths: list[int] = []
            sums: list[bytes] = []
            for some_lengths, some_sums in chunk_digests(fd, len(data), KEY, SIZES):
                lengths += some_lengths
                sums += some_sums
            os.close(fd)
            self.bases.append((data, lengths, sums, in_place))
        self.pieces = Pieces()
        self.memory = bytearray()
        self.literal = 0
        for data, in_place in bases:
            if in_place:
                self.memory[:] = data

    def tables(self, part_len: int) -> Iterator[Table]:
        number = 0
        for number, (_, lengths, sums, in_place) in enumerate(self.bases):
            for at in range(0, len(lengths), part_len):
                short = (one[:SHORT_SUM_LEN] for one in sums[at : at + part_len])
                packed = pack_lengths(lengths[at : at + part_len])
                yield Table(0, number, in_place, packed, b"".join(short), last=False)
            if not lengths:
                yield Table(0, number, in_place, b"", b"", last=False)
        last_in_place = bool(self.bases) and self.bases[-1][3]
        yield Table(0, number, last_in_place, b"", b"", last=True)

    def put(self, at: int, data: bytes) -> None:
        if len(self.memory) < at + len(data):
            self.memory += bytes(at + len(data) - len(self.memory))
        self.memory[at : at + len(data)] = data

    def copy(self, runs: list[Run]) -> None:
        for number, first, count, to in runs:
            target = to
            data, lengths, sums, in_place = self.bases[number]
            begin = sum(lengths[:first])
            assert not in_place or begin == to
            for length, one in zip(
                lengths[first : first + count], sums[first : first + count], strict=True
            ):
                self.put(target, data[begin : begin + length])
                self.pieces.add(target, length, one)
                begin, target = begin + length, target + length

    def write(self, at: int, data: bytes) -> None:
        assert data
        self.put(at, data)
        self.pieces.add(at, len(data), blake3(data, key=KEY).digest())
        self.literal += len(data)
