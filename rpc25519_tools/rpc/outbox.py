"""What a connection sends: short messages go together, and long ones take turns.

Encryption and a system call cost more than a short message does. So messages may wait
for others of the same turn of the event loop, or for those that answer what has come
together.
"""

import asyncio
from collections import deque
from typing import Final

from rpc25519_tools.transport.base import WRITE_HIGH_WATER_LEN, Transport
from rpc25519_tools.wire.greenpack import Buffer

#: Short messages are gathered up to this length before they are encrypted.
_GATHERED_LEN: Final = 64 * 1024
#: And up to so many: the peer should work on the first ones while we make the others.
_GATHERED_COUNT: Final = 8
#: A message with no more payload than this may overtake longer ones.
_SHORT_LEN: Final = 16 * 1024


class Outbox:
    """The packed messages of one connection that go out, and who waits to add some.

    Args:
        transport: where they go.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._buffers: list[Buffer] = []
        self._buffers_len = 0
        self._queued_len = 0
        self._flush_handle: asyncio.Handle | None = None
        self._gathering = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting_count(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    @property
    def sent_len(self) -> int:
        """All bytes that have left the process so far."""
        return self._queued_len - self.unsent_len

    @property
    def unsent_len(self) -> int:
        """Bytes queued that have not left the process."""
        return self._buffers_len + self._transport.unsent_len

    def has_room(self, payload_len: int) -> bool:
        """Tell whether a message may be put in now; senders take turns.

        A short message does not wait behind long ones: a stream of parts must not hold
        up the small calls beside it.
        """
        unsent_len = self._transport.unsent_len
        if payload_len <= _SHORT_LEN:
            return unsent_len <= 2 * WRITE_HIGH_WATER_LEN
        return not self._waiting and unsent_len <= WRITE_HIGH_WATER_LEN

    def put(self, buffers: list[Buffer], length: int, *, at_once: bool) -> None:
        """Send the buffers of one message, in order.

        Args:
            buffers: not to be changed any more.
            length: their bytes.
            at_once: False lets them wait for others of this turn of the event loop.
        """
        self._queued_len += length
        if at_once and not self._buffers and not self._gathering:
            self._transport.write(buffers)
            return
        self._buffers += buffers
        self._buffers_len += length
        if (
            (at_once and not self._gathering)
            or self._buffers_len > _GATHERED_LEN
            or len(self._buffers) >= _GATHERED_COUNT
        ):
            self.flush()
        elif self._flush_handle is None and not self._gathering:
            self._flush_handle = self._loop.call_soon(self.flush)

    def begin_gathering(self) -> None:
        """Let messages wait for each other until ``end_gathering``."""
        self._gathering = True

    def end_gathering(self) -> None:
        """Send what has gathered."""
        self._gathering = False
        if self._buffers:
            self.flush()

    def flush(self) -> None:
        """Hand the transport what has gathered, short messages in one piece."""
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        buffers, self._buffers = self._buffers, []
        joinable = self._buffers_len <= 2 * _GATHERED_LEN
        self._buffers_len = 0
        if buffers:
            self._transport.write([b"".join(buffers)] if joinable else buffers)

    async def wait_for_turn(self, payload_len: int) -> None:
        """Wait for the turn to put a message in; short ones go first."""
        turn: asyncio.Future[None] = self._loop.create_future()
        if payload_len <= _SHORT_LEN:
            self._waiting.appendleft(turn)
        else:
            self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            self.wake_next()  # it may have been our turn
            raise

    def wake_next(self) -> None:
        """Let the sender that has waited longest go on, if there is room."""
        while self._waiting and self._transport.unsent_len <= WRITE_HIGH_WATER_LEN:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def wake_all(self) -> None:
        """Let everybody learn that the connection is over."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
