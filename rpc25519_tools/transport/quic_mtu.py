"""How large the datagrams of one path may be (sans-IO): RFC 8899, RFC 9000 section 14.

Every path takes 1200 bytes. Larger sizes are tried with packets of their own, whose
loss costs nothing, the largest one first: what does not even leave this machine is
known at once. When several large packets get lost, and none that came after them
arrives, the path has become narrower without telling, and 1200 bytes it is again, until
a later probe succeeds.
"""

import math
from collections.abc import Sequence
from typing import Final

#: What every QUIC path takes (RFC 9000 section 14).
BASE_LEN: Final = 1200
#: What aioquic can build: its length field of a stream's data has 14 bits.
LARGEST_LEN: Final = 16384
#: Payloads of UDP that are worth a probe: loopback; Ethernet's jumbo frames of 9000
#: bytes and usual frames of 1500, over IPv6; usual tunnels; IPv6's least, 1280.
_SIZES: Final = (LARGEST_LEN, 8952, 1452, 1372, 1232)
#: So many probes of a size may get lost before it counts as too large.
_MOST_PROBES: Final = 2
#: So many large packets lost, and none that was sent after them arrived: a black hole.
_MOST_LOST: Final = 4
#: When larger sizes are tried again, after they have failed; each time twice as late.
_FIRST_RETRY_S: Final = 1.0
_LAST_RETRY_S: Final = 600.0
#: A black hole after so long without one is a new one.
_CALM_S: Final = 60.0


class PathMtu:
    """The size of datagrams on one path, in bytes of UDP payload.

    Args:
        most: the peer's ``max_udp_payload_size``; no datagram is larger.
        sizes: what is tried, in falling order.
    """

    def __init__(self, most: int, sizes: Sequence[int] = _SIZES) -> None:
        #: Datagrams may have so many bytes for now.
        self.size = BASE_LEN
        self._all = tuple(size for size in sizes if BASE_LEN < size <= most)
        self._untried = list(self._all)
        self._probing = 0
        self._probes_lost = 0
        self._lost_in_row = 0
        self._last_acked = -1
        self._retry_s = _FIRST_RETRY_S
        self._retry_at: float | None = None
        self._fell_back_at = -math.inf

    @property
    def next_at(self) -> float | None:
        """When ``next_probe`` has something again, where nothing else happens."""
        return None if self._probing or self._untried else self._retry_at

    def next_probe(self, now: float) -> int | None:
        """Return the size of the probe that is to be sent now, if any.

        It has to be followed by ``acked``, ``lost`` or ``refused`` for that size.
        """
        if self._probing:
            return None
        if not self._untried and self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
            self._untried = [size for size in self._all if size > self.size]
        if not self._untried:
            return None
        self._probing = self._untried[0]
        return self._probing

    def probe_acked(self, size: int, now: float) -> None:
        """Learn that a probe has arrived."""
        if size != self._probing:
            return
        self._end_probing()
        self._untried.clear()
        self.size = max(self.size, size)
        self._lost_in_row = 0
        if any(other > self.size for other in self._all):
            if now - self._fell_back_at <= _CALM_S:
                self._retry_later(now)  # it has been wider a moment ago
            else:
                self._retry_at = now + _LAST_RETRY_S

    def probe_lost(self, size: int, now: float) -> None:
        """Learn that a probe has got lost, or was not sent for want of room."""
        if size != self._probing:
            return
        self._probing = 0
        self._probes_lost += 1
        if self._probes_lost >= _MOST_PROBES:
            self._give_up(size, now)

    def refused(self, size: int, now: float) -> bool:
        """Learn that the system does not send datagrams of that size.

        Returns:
            Whether usual ones have to be smaller from now on.
        """
        if size == self._probing:
            self._give_up(size, now)
        if size > self.size or self.size == BASE_LEN:
            return False
        self._fall_back(now)
        return True

    def packet_acked(self, size: int, number: int) -> None:
        """Learn that a usual packet has arrived; numbers count what is sent."""
        if size > BASE_LEN and number > self._last_acked:
            self._last_acked = number
            self._lost_in_row = 0

    def packet_lost(self, size: int, number: int, now: float) -> bool:
        """Learn that a usual packet got lost, or may have; see ``refused``."""
        if size <= BASE_LEN or self.size == BASE_LEN or number < self._last_acked:
            return False
        self._lost_in_row += 1
        if self._lost_in_row < _MOST_LOST:
            return False
        self._fall_back(now)
        return True

    def _fall_back(self, now: float) -> None:
        self.size = BASE_LEN
        self._lost_in_row = 0
        self._end_probing()
        self._untried.clear()
        if now - self._fell_back_at > _CALM_S:
            self._retry_s = _FIRST_RETRY_S
        self._fell_back_at = now
        self._retry_later(now)

    def _give_up(self, size: int, now: float) -> None:
        """Count a size as too large; go on with the next one."""
        self._end_probing()
        self._untried = [other for other in self._untried if self.size < other < size]
        if not self._untried:
            self._retry_later(now)

    def _end_probing(self) -> None:
        self._probing = 0
        self._probes_lost = 0

    def _retry_later(self, now: float) -> None:
        self._retry_at = now + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)
