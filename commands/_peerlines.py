"""Lines about what peers do wrong: so many for each peer, and then a count."""

import math
import threading
import time
from collections.abc import Callable

from rpc25519_tools.transport.gate import site_of
from rpc25519_tools.transport.refusal_log import REPORT_INTERVAL_S, RefusalLog

#: Lines of one peer in REPORT_INTERVAL_S, before its others are counted only.
LINES_AT_ONCE = 10


def peer_name(address: str, identity: str) -> str:
    """Return what counts as one peer.

    Args:
        address: the peer's end of its connection, with the port.
        identity: who it proved to be, with its key; empty for who proved nothing, and
            is told by its address.
    """
    if identity:
        return identity
    return site_of(address.rpartition(":")[0].strip("[]"))


class PeerLines:
    """Says lines about peers, however often they give cause to; from any thread.

    Args:
        say: writes a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._lock = threading.Lock()
        self._noted = RefusalLog(at_once=LINES_AT_ONCE)
        self._timer: threading.Timer | None = None

    def tell(self, peer: str, line: str, what: str) -> None:
        """Say a line, or count it.

        Args:
            peer: whom it is about, from ``peer_name``.
            line: the whole line.
            what: the part of it that is told about the last one of those counted.
        """
        with self._lock:
            if self._noted.note(peer, what, time.monotonic()):
                self._say(line)
            elif self._timer is None:
                self._start_timer()

    def flush(self) -> None:
        """Say what was only counted so far."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._report(math.inf)

    def _start_timer(self) -> None:
        self._timer = threading.Timer(REPORT_INTERVAL_S, self._on_timer)
        self._timer.daemon = True
        self._timer.start()

    def _on_timer(self) -> None:
        with self._lock:
            if self._timer is not threading.current_thread():
                return  # flushed meanwhile
            self._timer = None
            self._report(time.monotonic())
            if not self._noted.is_empty:
                self._start_timer()

    def _report(self, now: float) -> None:
        for peer, text in self._noted.due(now):
            self._say(f"{peer} {text}")
