"""How much may be on its way to a receiver that has not stored it yet (sans-IO).

What waits in buffers when a receiver is killed has to come again. So only little may
wait there, but enough that a long line is never empty: that is seen from how long it
takes until something is stored, and how much is stored in that time.
"""

from collections import deque
from typing import Final

#: Bytes that may always be on their way, and at most.
FIRST_LEN: Final = 768 * 1024
LAST_LEN: Final = 64 << 20
#: Messages that may be on their way, each of which is remembered. A receiver of ours
#: tells of every 64 KiB, which fewer messages have.
MOST_MESSAGES: Final = 1 << 16
#: The window shrinks by so much of what is too much, each time something is stored.
_SHRINK: Final = 1 / 8


class StoreWindow:
    """Tells whether more contents may be sent.

    The window is twice what the line and the receiver take in the shortest time that
    storing has taken: when the line is full, half of it waits at the other end.

    Attributes:
        length: bytes that may be on their way; two messages always may.
    """

    def __init__(self) -> None:
        self.length = FIRST_LEN
        self._sent = 0
        self._stored = 0
        self._shortest_s = float("inf")
        #: Messages that are not stored: what was sent with each, what had been stored
        #: then, and when that was.
        self._messages: deque[tuple[int, int, float]] = deque()

    @property
    def has_room(self) -> bool:
        """Whether another message may go."""
        count = len(self._messages)
        has_bytes = count < 2 or self._sent - self._stored < self.length
        return has_bytes and count < MOST_MESSAGES

    def note_sent(self, count: int, now_s: float) -> None:
        """Note that a message of so many bytes goes out now."""
        self._sent += count
        self._messages.append((self._sent, self._stored, now_s))

    def note_stored(self, total: int, now_s: float) -> None:
        """Note how many bytes of all that was sent are stored; less than known is none.

        A receiver that claims too much only harms itself.
        """
        last = None
        while self._messages and self._messages[0][0] <= total:
            last = self._messages.popleft()
        if last is None:
            return
        self._stored, before, at_s = last
        taken_s = max(now_s - at_s, 1e-6)
        self._shortest_s = min(self._shortest_s, taken_s)
        wanted = 2 * (self._stored - before) * self._shortest_s / taken_s
        if wanted < self.length:
            wanted = self.length + (wanted - self.length) * _SHRINK
        self.length = int(min(max(wanted, FIRST_LEN), LAST_LEN))
