"""Notices that a peer has gone while nothing is read from it.

While the reader of a stream is behind, its connection is not read from, and what is not
read includes the end: a peer that hangs up, or whose program dies, would stay for as
long as nobody reads. So while nothing moves, the socket is asked every second whether
its peer has closed it. The end can be behind bytes for which there is no room here;
then a keep-alive now and then makes the host of a peer that has gone object.

What cannot be noticed is a message behind unread parts, such as one that cancels. A
stream that nobody reads for very long is therefore given up.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from rpc25519_tools.errors import ConnectionLostError

#: How often to look, in seconds.
LOOK_S: Final = 1.0
#: How often to send a keep-alive meanwhile, in seconds.
PROBE_S: Final = 3.0
#: How long a server's stream may hold its connection back unread, in seconds.
UNREAD_LIMIT_S: Final = 600.0

_GONE: Final = "the peer closed the connection before all that it had sent was read"


class HeldConnection(Protocol):
    """A connection that may not be read from, as the watch sees it: a driver."""

    #: Bytes that readers have taken so far.
    taken_len: int

    @property
    def is_held(self) -> bool:
        """Whether nothing is read because a reader is behind."""

    @property
    def unsent_len(self) -> int:
        """Bytes queued that have not left the process."""

    def has_hung_up(self) -> bool:
        """Tell whether the peer has closed its end, also behind unread bytes."""

    def abort(self, error: Exception) -> None:
        """End the connection."""


class HeldWatch:
    """Watches one connection while it is held; costs nothing at other times.

    Args:
        connection: the connection.
        send_keepalive: sends a keep-alive with the codec that is due.
        unread: called when readers have taken nothing for UNREAD_LIMIT_S seconds, and
            again after as long; None for readers that may take their time.
    """

    def __init__(
        self,
        connection: HeldConnection,
        *,
        send_keepalive: Callable[[], None],
        unread: Callable[[], None] | None = None,
    ) -> None:
        self._connection = connection
        self._send_keepalive = send_keepalive
        self._unread = unread
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._taken_len = 0
        #: When a reader has last taken something, and when we have last sent anything.
        self._moved_s = self._probed_s = 0.0

    def begin(self) -> None:
        """Watch from now on, if that is not done already."""
        if self._timer is None:
            self._note_progress()
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _note_progress(self) -> None:
        self._taken_len = self._connection.taken_len
        self._moved_s = self._probed_s = self._loop.time()

    def _look(self) -> None:
        self._timer = None
        connection = self._connection
        if not connection.is_held:
            return
        self._timer = self._loop.call_later(LOOK_S, self._look)
        if connection.taken_len != self._taken_len:
            # What came before the end still counts, for a reader that gets there.
            self._note_progress()
        elif connection.has_hung_up():
            connection.abort(ConnectionLostError(_GONE))
        else:
            self._wait_on(self._loop.time())

    def _wait_on(self, now_s: float) -> None:
        if now_s - self._probed_s >= PROBE_S and not self._connection.unsent_len:
            self._probed_s = now_s
            self._send_keepalive()
        if self._unread is not None and now_s - self._moved_s >= UNREAD_LIMIT_S:
            self._note_progress()
            self._unread()
