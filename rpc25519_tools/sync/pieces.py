"""The sum of a whole file from the sums of its pieces, in whatever order they come.

Sender and receiver note every piece of a file that they send, copy or write: where it
begins, and its BLAKE3 sum. The sum of these sums, in the order of the file, together
with where each begins, stands for the whole: it takes no second look at the contents.
"""

import itertools
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from blake3 import blake3

from rpc25519_tools.sync.records import SUM_LEN

_LENGTH: Final = struct.Struct("<Q")


class Pieces:
    """The pieces of one file, some 50 bytes each."""

    __slots__ = ("_is_sorted", "_last", "_lengths", "_offsets", "_sums", "covered")

    def __init__(self) -> None:
        self._offsets = array("Q")
        self._lengths = array("Q")
        self._sums = bytearray()
        self._is_sorted = True
        self._last = -1
        #: Bytes that the pieces have together.
        self.covered = 0

    def add(self, offset: int, length: int, piece_sum: bytes) -> None:
        """Note one piece that is not empty.

        Args:
            offset: where it begins, in bytes.
            length: how many bytes it has.
            piece_sum: its keyed BLAKE3 sum, 32 bytes.
        """
        if offset <= self._last:
            self._is_sorted = False
        self._last = offset
        self._offsets.append(offset)
        self._lengths.append(length)
        self._sums += piece_sum
        self.covered += length

    def extend(
        self, offset: int, lengths: Sequence[int], piece_sums: Iterable[bytes]
    ) -> None:
        """Note pieces that follow each other.

        Args:
            offset: where the first one begins, in bytes.
            lengths: how many bytes each has; at least one of them.
            piece_sums: their keyed BLAKE3 sums, 32 bytes each.
        """
        if offset <= self._last:
            self._is_sorted = False
        self._offsets.extend(itertools.accumulate(lengths[:-1], initial=offset))
        self._lengths.extend(iter(lengths))  # of another array, as it were a list
        self._last = self._offsets[-1]
        self._sums += b"".join(piece_sums)
        self.covered += sum(lengths)

    def __len__(self) -> int:
        return len(self._offsets)

    def are_whole(self, size: int) -> bool:
        """Tell whether they are a file of so many bytes: each of them once."""
        if self.covered != size:
            return False
        self._sort()
        ends = array("Q", itertools.accumulate(self._lengths, initial=0))
        return ends[:-1] == self._offsets

    def _sort(self) -> None:
        if self._is_sorted:
            return
        order = sorted(range(len(self._offsets)), key=self._offsets.__getitem__)
        self._offsets = array("Q", (self._offsets[at] for at in order))
        self._lengths = array("Q", (self._lengths[at] for at in order))
        view = memoryview(bytes(self._sums))
        self._sums = bytearray(
            b"".join(view[at * SUM_LEN : (at + 1) * SUM_LEN] for at in order)
        )
        self._is_sorted = True
        self._last = self._offsets[-1]

    def all(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield offset, length and sum of each piece; they have to make up a file."""
        self._sort()
        both = zip(self._offsets, self._lengths, strict=True)
        for at, (offset, length) in enumerate(both):
            begin = at * SUM_LEN
            yield offset, length, bytes(self._sums[begin : begin + SUM_LEN])

    def root(self) -> bytes:
        """Return the sum of the whole file, 32 bytes."""
        self._sort()
        digest = blake3(self._sums)
        digest.update(b"".join(_LENGTH.pack(offset) for offset in self._offsets))
        digest.update(_LENGTH.pack(self.covered))
        return digest.digest()
