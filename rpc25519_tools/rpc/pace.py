"""Streams to peers that take more from the network than they can hold.

Our own clients read no faster than their readers do. A Go client takes whatever comes
and queues it; when a call has 100 messages that its program has not read, the client
hangs for good (WIRE.md 5.9). Nothing on the wire tells how far it has come, so a stream
to it goes no faster than such a program can be expected to read.
"""

from collections import deque
from typing import Final

#: How many parts may be ahead of the reader. The rest of Go's 100 is for one that is
#: held up, as Go's client is at the beginning, while its new file is synced.
_AHEAD_COUNT: Final = 8
#: What a reader that checks and stores its parts takes, in bytes a second. Go's own
#: client takes some 700 million on two idle cores, far less on busy ones or a disk.
_READER_RATE: Final = 150_000_000
#: What it takes for a part however short, in seconds.
_PART_S: Final = 100e-6


class Pace:
    """Counts the parts of one stream that its reader cannot have read yet."""

    def __init__(self) -> None:
        #: When the reader will have read each of the latest parts, on the loop's clock.
        self._read_s: deque[float] = deque(maxlen=_AHEAD_COUNT)

    def delay_s(self, now_s: float) -> float:
        """Return how long to wait before the next part may be sent, in seconds."""
        if len(self._read_s) < _AHEAD_COUNT:
            return 0.0
        return max(0.0, self._read_s[0] - now_s)

    def sent(self, payload_len: int, now_s: float) -> None:
        """Count a part that is sent."""
        begin_s = max(now_s, self._read_s[-1]) if self._read_s else now_s
        self._read_s.append(begin_s + max(_PART_S, payload_len / _READER_RATE))
