"""What all connections of a port hold behind gaps in their streams (sans-IO).

Not reading from a peer does not end that: it may send as much as the window has, and
leave out the first byte. An honest peer fills a gap within some round trips; so the one
whose gap has stood for longest has to go where all together hold too much.
"""

from dataclasses import dataclass
from typing import Final, Generic, TypeVar

#: Most bytes that all connections hold behind gaps.
MOST_LEN: Final = 64 << 20

H = TypeVar("H")


@dataclass(slots=True)
class _Gap:
    start: int
    length: int


class Gaps(Generic[H]):
    """Counts what is behind gaps; of each holder, one gap.

    Args:
        most_len: the bytes that all may hold.
    """

    def __init__(self, most_len: int = MOST_LEN) -> None:
        self._most_len = most_len
        #: The one that has stood for longest first.
        self._held: dict[H, _Gap] = {}
        self.total_len = 0

    def note(self, holder: H, length: int, start: int) -> list[H]:
        """Count a gap anew.

        Args:
            holder: whose gap it is.
            length: so many bytes are held for it; 0 where there is none.
            start: where it begins; another one means that this is another gap.

        Returns:
            The holders that have to end; they are counted no more.
        """
        gap = self._held.get(holder)
        if gap is not None and (not length or gap.start != start):
            self._forget(holder)
            gap = None
        if not length:
            return []
        if gap is None:
            gap = self._held[holder] = _Gap(start, 0)
        self.total_len += length - gap.length
        gap.length = length
        ended: list[H] = []
        while self.total_len > self._most_len:
            ended.append(next(iter(self._held)))
            self._forget(ended[-1])
        return ended

    def _forget(self, holder: H) -> None:
        self.total_len -= self._held.pop(holder).length
