"""Sets of numbers that lie in few ranges, for streams that arrive in pieces (sans-IO).

aioquic's own look through all ranges, one after the other, for each piece. A peer that
sends every second byte makes them many.
"""

from bisect import bisect_left, bisect_right

from aioquic.quic.rangeset import RangeSet


class SortedRanges(RangeSet):
    """As RangeSet, as far as the receiving part of a stream needs it."""

    def __init__(self) -> None:
        super().__init__()
        # Neither do they touch nor overlap each other.
        self._starts: list[int] = []
        self._stops: list[int] = []

    def add(self, start: int, stop: int | None = None) -> None:
        """Add the numbers from ``start`` up to, but not including, ``stop``."""
        if stop is None:
            stop = start + 1
        assert stop > start
        first = bisect_left(self._stops, start)
        beyond = bisect_right(self._starts, stop)
        if first < beyond:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[beyond - 1])
        self._starts[first:beyond] = [start]
        self._stops[first:beyond] = [stop]

    def shift(self) -> range:
        """Take the first range out.

        Raises:
            IndexError: there is none.
        """
        return range(self._starts.pop(0), self._stops.pop(0))

    def __getitem__(self, key: int) -> range:  # type: ignore[override]  # no slices
        return range(self._starts[key], self._stops[key])

    def __len__(self) -> int:
        return len(self._starts)
