"""The one pump between a transport and the calls of a connection.

Inwards it cuts bytes into frames, unpacks them and hands each message on, in order.
Outwards it packs messages and writes each frame in one go, so that frames never mix.
What takes long (packing and unpacking of more than a few kilobytes) runs in worker
threads; the order of messages is kept all the same.

Nothing here grows without bound: reading pauses while unpacked messages or frames wait,
and ``send`` waits while the transport has more than its high-water mark to send.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeAlias

from rpc25519_tools.errors import (
    ConnectionLostError,
    FrameTooLargeError,
    ProtocolError,
    SecurityError,
)
from rpc25519_tools.limits import LONGEST_MESSAGE_LEN
from rpc25519_tools.rpc.memory import SMALL_LEN, MemoryBudget
from rpc25519_tools.rpc.outbox import Outbox
from rpc25519_tools.transport.base import (
    WRITE_HIGH_WATER_LEN,
    Transport,
    body_pool,
    scratch_buffer,
)
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.constants import MAX_PLAIN_LEN
from rpc25519_tools.wire.framing import (
    Frame,
    FrameDecoder,
    decode_frame,
    encode_frame,
)
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import Message
from rpc25519_tools.wire.outgoing import payload_len

#: Packing or unpacking more than this is left to a worker thread.
_INLINE_LEN: Final = 4 * 1024
#: What a short packed frame may unpack to on the loop's thread; beyond, a worker.
_INLINE_PLAIN_LEN: Final = 64 * 1024
#: Reading pauses while this much packed data waits for a worker.
_INBOX_HIGH_LEN: Final = 1 << 20
#: Bytes received at a time that the account of memory does not mind.
_MINOR_LEN: Final = 4 * 1024
#: What a frame takes beside its body.
_FRAME_COST: Final = 256
#: How long a closing connection may take to send what is queued, in seconds.
CLOSE_TIMEOUT_S: Final = 10.0

#: Unpacking has threads of its own: what a peer packed can be made to take long, and
#: files and answers of others must not wait behind it.
UNPACKERS: Final = 2
_UNPACKERS: Final = ThreadPoolExecutor(UNPACKERS, thread_name_prefix="unpack")

OnMessage: TypeAlias = Callable[[Message, Codec], None]
OnClosed: TypeAlias = Callable[[Exception], None]

_log = logging.getLogger(__name__)


#: The wall clock, nanoseconds since 1970 UTC.
now_ns: Final = time.time_ns


def _words(error: Exception) -> str:
    """Return a system error's own words, without its number."""
    text = error.strerror if isinstance(error, OSError) else None
    return (text or str(error) or type(error).__name__).lower()


def _packs_at_once(length: int, codec: Codec) -> bool:
    """Tell whether packing takes so little that no worker thread is worth it."""
    return length <= _INLINE_LEN or codec in (Codec.NONE, Codec.NONE_ONCE)


def _cost(frame: Frame) -> int:
    """Return about how much memory a packed frame takes."""
    return len(frame.body) + _FRAME_COST


class Driver:
    """A Receiver that turns a transport's bytes into messages, and back.

    Args:
        transport: an open connection; the driver is its receiver from now on.
        on_message: called with each message and the codec that packed it. What it
            raises of the ProtocolError family ends the connection.
        on_closed: called once when the connection is over, with the reason.
        max_message_len: longest message to be taken, packed as well as unpacked.
        memory: where the connection's memory is counted together with that of others.
        turns: lets some connections unpack at a time: each may get a long message.
    """

    def __init__(
        self,
        transport: Transport,
        on_message: OnMessage,
        on_closed: OnClosed,
        *,
        max_message_len: int = LONGEST_MESSAGE_LEN,
        memory: MemoryBudget | None = None,
        turns: asyncio.Semaphore | None = None,
    ) -> None:
        self.transport = transport
        self._on_message = on_message
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder(
            scratch_buffer(), body_pool(), max_body_len=max_message_len
        )
        #: Go peers may send messages that unpack to a little more than 64 MiB.
        self._max_plain_len = (
            max_message_len if max_message_len < LONGEST_MESSAGE_LEN else MAX_PLAIN_LEN
        )
        self._turns = asyncio.Semaphore(1) if turns is None else turns
        self._received_len = 0
        #: What has come of a message that the transport cannot hand on yet.
        self._arrived_len = 0
        #: What the transport holds for it.
        self._arriving_len = 0
        self._held_len = 0
        #: Bytes that readers of streams have taken, and calls have done with, so far.
        self.taken_len = 0
        #: Called whenever a reader makes the connection wait.
        self.on_held: Callable[[], None] | None = None
        self._inbox: deque[Frame] = deque()
        self._inbox_len = 0
        self._unpacking: asyncio.Task[None] | None = None
        #: How many readers of streams have fallen behind.
        self._holds = 0
        self._inbox_full = False
        self._output_full = False
        self._reading = True
        self._released: asyncio.Future[None] | None = None
        self._outbox = Outbox(transport)
        #: Who waits until there is memory to make something that is to be sent.
        self._makers: list[asyncio.Future[None]] = []
        self._close_error: Exception | None = None
        self._lost_error: Exception | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._close_timer: asyncio.TimerHandle | None = None
        #: When bytes last came from the peer, on the loop's clock.
        self.last_received_s = self._loop.time()
        #: When a message other than a keep-alive was last queued, on the same clock.
        self.last_sent_s = self.last_received_s
        #: What had left the process when somebody last asked when anything moved, and
        #: when the peer was seen to take some of it.
        self._seen_sent_len = 0
        self._taken_s = self.last_received_s
        #: Whether anything has come from the peer.
        self.has_received = False
        self._account = None if memory is None else memory.open(self)

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._close_error is not None or self._lost_error is not None

    @property
    def is_reading(self) -> bool:
        """Whether bytes are taken from the network as they come."""
        return self._reading

    @property
    def sent_len(self) -> int:
        """All bytes that have left the process so far."""
        return self._outbox.sent_len

    @property
    def received_len(self) -> int:
        """All bytes that have come from the peer so far."""
        return self._received_len + self._arrived_len

    @property
    def unsent_len(self) -> int:
        """Bytes queued that have not left the process."""
        return self._outbox.unsent_len

    # Called by the account of memory.

    @property
    def memory_len(self) -> int:
        """Bytes held: in messages that come, wait, are worked on, or go."""
        return (
            self._arriving_len
            + self._decoder.partial_len
            + self._inbox_len
            + self._held_len
            + self.unsent_len
        )

    @property
    def moved_len(self) -> int:
        """All bytes received and sent so far."""
        return self.received_len + self.sent_len

    def moved_s(self) -> float:
        """Return when anything last moved, as far as is known, on the loop's clock.

        That a peer takes what waits for it is noticed by asking.
        """
        sent_len = self.sent_len
        if self.unsent_len and sent_len > self._seen_sent_len:
            self._taken_s = self._loop.time()
        self._seen_sent_len = sent_len
        return max(self.last_received_s, self.last_sent_s, self._taken_s)

    @property
    def is_mid_message(self) -> bool:
        """Whether a part of a message has come."""
        return self._arriving_len > 0 or self._decoder.partial_len > 0

    @property
    def waits_for_peer(self) -> bool:
        """Whether the peer has to go on with a message, or to take one."""
        return self.unsent_len > 0 or (self._reading and self.is_mid_message)

    # Called by the transport.

    def get_buffer(self) -> memoryview:
        """Return the decoder's memory."""
        return self._decoder.get_buffer()

    def buffer_updated(self, count: int) -> None:
        """Take bytes; a peer that breaks the protocol loses the connection."""
        self.last_received_s = self._loop.time()
        self.has_received = True
        self._received_len += count
        self._arriving_len = self._arrived_len = 0
        if self._close_error is not None:
            return
        try:
            self._take_all(self._decoder.buffer_updated(count))
        except ProtocolError as exc:
            self.abort(exc)
        if count > _MINOR_LEN:
            self._recount()

    def arriving(self, count: int, held_len: int) -> None:
        """Count what the transport holds; the connection is not idle."""
        self.last_received_s = self._loop.time()
        self._arrived_len += count
        if held_len != self._arriving_len:
            self._arriving_len = held_len
            self._recount()

    def writable(self) -> None:
        """Let waiting senders go on."""
        self._recount()
        self._output_full = False
        self._pause_or_resume()
        self._outbox.wake_next()

    def connection_lost(self, error: Exception | None) -> None:
        """Learn that the stream has ended."""
        if self._close_timer is not None:
            self._close_timer.cancel()
        if error is None:
            text = "the peer closed the connection"
            if not self._decoder.at_frame_boundary:
                text += " in the middle of a message"
            reason: Exception = ConnectionLostError(text)
        elif isinstance(error, SecurityError | ProtocolError | ConnectionLostError):
            reason = error
        else:
            reason = ConnectionLostError(f"the connection broke: {_words(error)}")
            reason.__cause__ = error
        if self._unpacking is None or self._close_error is not None:
            self._finish(reason)
        else:
            # What came before the end still counts: _unpack_inbox goes first.
            self._lost_error = reason
            self._outbox.wake_all()
            self._wake_makers()
        if not self._closed.done():
            self._closed.set_result(None)

    # Called from above.

    async def send(
        self, message: Message, codec: Codec, *, at_once: bool = True
    ) -> None:
        """Pack ``message``, wait while too much is unsent, and queue it.

        Messages of one caller that awaits each ``send`` go out in that order.

        Args:
            message: what to send.
            codec: what packs it.
            at_once: False lets a short message wait for others of this turn of the
                event loop, which then share the cost of encryption and system call.

        Raises:
            ConnectionLostError, SecurityError: the connection is over; says why.
            LocalProtocolError: the message is over the peer's limit, or holds what
                cannot be sent; the connection goes on.
        """
        if self.try_send(message, codec, at_once=at_once):
            return
        length = payload_len(message.payload)
        if _packs_at_once(length, codec):
            buffers = encode_frame(message, codec)
        else:
            buffers = await self._loop.run_in_executor(
                None, encode_frame, message, codec
            )
        self._require_open()
        if not self._outbox.has_room(length):
            self._recount()
            await self._outbox.wait_for_turn(length)
            self._require_open()
        self.last_sent_s = self._loop.time()
        self._write(buffers, at_once=at_once)
        self._outbox.wake_next()

    def try_send(self, message: Message, codec: Codec, *, at_once: bool = True) -> bool:
        """Do what ``send`` does if that needs no waiting; return whether it was done.

        The errors are those of ``send``.
        """
        self._require_open()
        length = payload_len(message.payload)
        if not _packs_at_once(length, codec) or not self._outbox.has_room(length):
            return False
        buffers = encode_frame(message, codec)
        self.last_sent_s = self._loop.time()
        self._write(buffers, at_once=at_once)
        return True

    def send_now(
        self, message: Message, codec: Codec, *, hold_peer: bool = True
    ) -> None:
        """Queue a short message without waiting; dropped when the connection is over.

        For cancels and refusals. With ``hold_peer``, a peer that causes refusals
        without reading them is not read from either.
        """
        if self.is_closed:
            return
        self._write(encode_frame(message, codec), at_once=True)
        if hold_peer and self.transport.unsent_len > WRITE_HIGH_WATER_LEN:
            self._output_full = True
            self._pause_or_resume()

    def _write(self, buffers: list[Buffer], *, at_once: bool) -> None:
        length = sum([len(buffer) for buffer in buffers])
        self._outbox.put(buffers, length, at_once=at_once)
        if length > _MINOR_LEN:
            self._recount()

    def change_held(self, difference: int) -> None:
        """Count what is held above for messages that have been handed on."""
        self._held_len += difference
        if difference < 0:
            self.taken_len -= difference
        if self._held_len >= SMALL_LEN or difference < -_MINOR_LEN:
            self._recount()

    def _recount(self) -> None:
        if self._account is not None and self._close_error is None:
            self._account.update()

    @property
    def is_short_of_memory(self) -> bool:
        """Whether this connection may not take more now."""
        return self._account is not None and self._account.is_held

    async def wait_for_memory(self) -> None:
        """Wait until the connection may take more.

        Raises:
            ConnectionLostError, SecurityError: the connection is over; says why.
        """
        self._require_open()
        while self._account is not None and not self._account.may_take():
            maker: asyncio.Future[None] = self._loop.create_future()
            self._makers.append(maker)
            await maker
            self._require_open()

    def _wake_makers(self) -> None:
        makers, self._makers = self._makers, []
        for maker in makers:
            if not maker.done():
                maker.set_result(None)

    @property
    def is_held(self) -> bool:
        """Whether nothing is read because a reader is behind."""
        if self.is_closed:
            return False
        for_memory = self._account is not None and self._account.is_held
        return self._holds > for_memory

    def has_hung_up(self) -> bool:
        """Tell whether the peer has closed its end, also behind unread bytes."""
        return self.transport.has_hung_up()

    def hold_reading(self) -> None:
        """Deliver nothing until ``release_reading`` is called as often as this."""
        self._holds += 1
        self._pause_or_resume()
        if self.on_held is not None:
            self.on_held()

    def release_reading(self) -> None:
        """Take back one ``hold_reading``."""
        assert self._holds > 0
        self._holds -= 1
        self._pause_or_resume()
        if not self.is_short_of_memory:
            self._wake_makers()
        if self._holds == 0 and self._released is not None:
            self._released.set_result(None)
            self._released = None

    def _pause_or_resume(self) -> None:
        wanted = not (self._holds or self._inbox_full or self._output_full)
        if wanted == self._reading or self.is_closed:
            return
        self._reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def abort(self, error: Exception) -> None:
        """End the connection at once, for the reason given.

        What was sent before goes out still, as far as the network takes it at once.
        """
        self._outbox.flush()
        self._finish(error)
        self.transport.abort()

    async def aclose(self, *, stall_s: float = CLOSE_TIMEOUT_S) -> None:
        """Send what is queued, close, and wait until the connection is gone.

        Args:
            stall_s: the connection ends early when the peer has taken nothing of what
                is queued for so many seconds.
        """
        self._finish(ConnectionLostError("this side closed the connection"))
        if not self._closed.done():
            self._outbox.flush()
            self.transport.close()
            end_s = self._loop.time() + CLOSE_TIMEOUT_S
            self._watch_closing(min(stall_s, CLOSE_TIMEOUT_S), end_s, self.unsent_len)
            await asyncio.shield(self._closed)

    def _watch_closing(self, stall_s: float, end_s: float, unsent_len: int) -> None:
        """End the connection when its time is over, or the peer takes nothing more."""

        def look() -> None:
            left_len = self.unsent_len
            is_stalled = 0 < left_len == unsent_len
            if is_stalled or self._loop.time() + stall_s / 2 > end_s:
                self.transport.abort()
            else:
                self._watch_closing(stall_s, end_s, left_len)

        if self._close_timer is not None:
            self._close_timer.cancel()
        self._close_timer = self._loop.call_later(stall_s, look)

    # Inside.

    def _require_open(self) -> None:
        error = self._close_error or self._lost_error
        if error is not None:
            # Or it would keep the frames, and so the payloads, of all whom it met.
            raise error.with_traceback(None)

    def _finish(self, reason: Exception) -> None:
        """Note the end, once; wake everybody who waits."""
        if self._close_error is not None:
            return
        self._close_error = reason
        self._inbox.clear()
        self._inbox_len = 0
        if self._released is not None:
            self._released.set_result(None)
            self._released = None
        self._outbox.wake_all()
        self._wake_makers()
        self._on_closed(reason)
        if self._account is not None:
            self._account.close()

    def _take_all(self, frames: list[Frame]) -> None:
        """Hand frames on; what answers several at once leaves together."""
        if len(frames) == 1:
            self._take(frames[0])
            return
        self._outbox.begin_gathering()
        try:
            for frame in frames:
                if self._close_error is not None:
                    return
                self._take(frame)
        finally:
            self._outbox.end_gathering()

    def _take(self, frame: Frame) -> None:
        if self._unpacking is None:
            # While a reader is behind, what has come stays packed: a few packed bytes
            # can be a mebibyte.
            message = None if self._holds else self._unpack_inline(frame)
            if message is not None:
                self._on_message(message, frame.codec)
                return
        self._inbox.append(frame)
        self._change_inbox(_cost(frame))
        if self._unpacking is None:  # after that: where tasks begin at once, it looks
            self._unpacking = self._loop.create_task(self._unpack_inbox())

    def _change_inbox(self, difference: int) -> None:
        self._inbox_len += difference
        self._inbox_full = self._inbox_len > _INBOX_HIGH_LEN
        self._pause_or_resume()

    def _unpack_inline(self, frame: Frame) -> Message | None:
        """Unpack what takes no time; None for what a worker thread has to do."""
        if frame.codec in (Codec.NONE, Codec.NONE_ONCE):
            return decode_frame(frame)
        if len(frame.body) > _INLINE_LEN:
            return None
        try:
            most = min(_INLINE_PLAIN_LEN, self._max_plain_len)
            return decode_frame(frame, max_plain_len=most)
        except FrameTooLargeError:
            return None  # a worker has the right limit

    async def _unpack_inbox(self) -> None:
        """Unpack waiting frames in worker threads, in order, until none is left."""
        try:
            while self._inbox:
                if self._holds:
                    self._released = self._loop.create_future()
                    await self._released
                    continue
                await self._unpack_next()
                if self._close_error is not None:
                    return
        except ProtocolError as exc:
            self.abort(exc)
        finally:
            self._unpacking = None
            if self._lost_error is not None:
                self._finish(self._lost_error)

    async def _unpack_next(self) -> None:
        """Unpack one waiting frame, unless memory is short."""
        async with self._turns:
            if self._account is not None and not self._account.may_take():
                return
            if self._holds or not self._inbox:
                return
            frame = self._inbox[0]
            message = await self._loop.run_in_executor(
                _UNPACKERS, decode_frame, frame, self._max_plain_len
            )
            if self._close_error is not None:
                return
            self._inbox.popleft()
            self._change_inbox(-_cost(frame))
            self._on_message(message, frame.codec)
            self._recount()
