"""A Transport over QUIC: pumps one QuicEngine, on a UDP port that others may share."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from rpc25519_tools.errors import (
    ConnectFailedError,
    ConnectionLostError,
    DeadlineError,
    HandshakeCutError,
    HandshakeError,
)
from rpc25519_tools.identity.certificate import PeerIdentity
from rpc25519_tools.transport.base import (
    WRITE_HIGH_WATER_LEN,
    Accept,
    Receiver,
    format_address,
)
from rpc25519_tools.transport.quic_connection import Endpoint
from rpc25519_tools.transport.quic_engine import QuicEngine
from rpc25519_tools.transport.udp_port import Datagram, UdpPort

#: So much is given to the engine ahead of what the path takes.
_AHEAD_LEN: Final = 256 * 1024
#: Most bytes given to the engine at a time.
_PIECE_LEN: Final = 64 * 1024
#: Rounds of datagrams before other connections have their turn.
_ROUNDS: Final = 4
#: When nothing came for so long, the peer is asked whether it is there. Routers forget
#: a UDP path after half a minute or more (RFC 4787 section 4.3).
_PING_S: Final = 10.0
#: A peer from which nothing comes for so long while we close is not waited for. TCP's
#: kernel would go on alone; here it is we who send again what got lost.
_LINGER_S: Final = 3.0
#: So often is a peer that goes on sending told again that the connection is over.
_MOST_GOODBYES: Final = 8
#: Held bytes below this are not worth counting.
_MINOR_LEN: Final = 64 * 1024


class QuicTransport:
    """One connection.

    Args:
        engine: its state machine.
        port: where its datagrams go and come from; used until the connection is over.
        endpoint: where the peer is.
        local: our end's address, as text.
        accept: called when the handshake is done and the peer is trusted.
        failed: called with the reason and the peer's address when it never comes to
            that.
    """

    network = "udp"
    #: It has a handshake.
    shakes_hands = True

    def __init__(
        self,
        engine: QuicEngine,
        port: UdpPort,
        endpoint: Endpoint,
        *,
        local: str,
        accept: Accept,
        failed: Callable[[Exception, str], None],
    ) -> None:
        self._engine = engine
        self._port = port.use()
        self._accept = accept
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self.local_address = local
        self.remote_address = format_address(endpoint)
        self._endpoint = endpoint
        self._receiver: Receiver | None = None
        self._opened = False
        self._closing = False
        self._finished = False
        self._over = False
        self._paused = False
        #: Whether something was handed on just now.
        self._delivered = False
        self._unsent: deque[memoryview] = deque()
        self._queued_len = 0
        self._was_over = False
        self._pump_handle: asyncio.Handle | None = None
        #: What has been delivered may be under way until this has its turn.
        self._settling: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._heard_at = self._loop.time()
        #: When we began to close.
        self._linger_from: float | None = None
        self._pinged_at = 0.0
        self._goodbye: list[Datagram] = []
        self._goodbyes_left = _MOST_GOODBYES
        self._ids: set[bytes] = set()
        self._released = False
        self._counted_len = 0
        self.handshake_timer: asyncio.TimerHandle | None = None
        #: Called once, when a server has answered a client's first message.
        self.answered: Callable[[], None] | None = None
        #: Called when the connection is over.
        self.gone: Callable[[], None] | None = None

    # What others ask.

    @property
    def peer(self) -> PeerIdentity | None:
        """The identity in the peer's verified certificate."""
        return self._engine.peer

    @property
    def security(self) -> str:
        """Version, suite and key exchange group."""
        return self._engine.security

    @property
    def has_received(self) -> bool:
        """Whether the peer has sent something from where it says it is."""
        return self._engine.knows_address

    @property
    def has_heard(self) -> bool:
        """Whether the peer has sent anything that could be read."""
        return self._engine.has_received

    @property
    def unsent_len(self) -> int:
        """Bytes accepted by ``write`` that have never been sent."""
        return self._queued_len + self._engine.unsent_len

    def fileno(self) -> int:
        """Return -1: the socket is not this connection's own."""
        return -1

    def has_hung_up(self) -> bool:
        """Tell whether the peer sends nothing more, also while nothing is read."""
        return self._engine.peer_ended or self._engine.is_closed

    # Opening.

    def connect(self) -> None:
        """Begin the handshake of a client."""
        self._engine.connect(self._endpoint, self._loop.time())
        self._port.call(self)
        self._bind()
        self._pump()

    def answer(self, data: bytes, destination_id: bytes) -> None:
        """Take a client's first datagram; nothing is left of one that is none."""
        self._engine.receive(data, self._endpoint, self._loop.time())
        if not self._engine.has_received:
            self._drop_silently()
            return
        self._engine.ids.add(destination_id)  # it uses that until it knows ours
        self._bind()
        self._after()

    # Called by the port.

    def take(self, datagrams: Sequence[Datagram]) -> None:
        """Take datagrams that came for us."""
        if self._over:
            self._say_goodbye_again()
            return
        self._heard_at = now = self._loop.time()
        for data, endpoint in datagrams:
            self._engine.receive(data, endpoint, now)
        self._after()

    def go_on(self) -> None:
        """Send what had to wait for room."""
        self._pump()

    def unreachable(self, endpoint: Endpoint) -> None:
        """Give up a connection of which nothing was ever heard."""
        if endpoint[:2] == self._endpoint[:2] and not self._engine.has_received:
            self._end_early(
                ConnectFailedError(
                    f"cannot connect to {self.remote_address}: "
                    "nobody listens there (connection refused)"
                )
            )

    # Called from above.

    def write(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Queue ``buffers`` in order."""
        if self._closing or self._over:
            return
        for buffer in buffers:
            self._unsent.append(memoryview(buffer).cast("B"))
            self._queued_len += len(buffer)
        self._was_over = self._was_over or self.unsent_len > WRITE_HIGH_WATER_LEN
        self._pump_soon()

    def pause_reading(self) -> None:
        """Take nothing more; the peer may send no more than the window."""
        self._paused = True

    def resume_reading(self) -> None:
        """Take what has come meanwhile, and more."""
        if self._paused:
            self._paused = False
            self._pump_soon()

    def close(self) -> None:
        """Send what is queued, wait until the peer has it, and close in order."""
        if not self._closing and not self._over:
            self._closing = True
            self._linger_from = self._loop.time()
            self._pump_soon()

    def abort(self) -> None:
        """Close at once; what the network takes at once goes out still."""
        if not self._over:
            self._send_at_once()
            self._closing = True
            self._engine.close()
            self._after()

    give_up = abort

    def fail_handshake(self, error: Exception) -> None:
        """Give up on a handshake that takes too long."""
        if not self._opened and not self._over:
            self._end_early(error)

    def end_with(self, error: Exception) -> None:
        """Close at once, and tell the receiver why."""
        receiver, self._receiver = self._receiver, None
        self.abort()
        if receiver is not None:
            receiver.connection_lost(error)

    def end_for_gap(self) -> None:
        """End, since too much is held behind its gaps."""
        self.end_with(DeadlineError("too much waits for what the peer has left out"))

    # Inside.

    def _bind(self) -> None:
        ids = self._engine.ids
        self._port.unbind(self._ids - ids)
        self._port.bind(ids - self._ids, self)
        self._ids = set(ids)

    def _after(self) -> None:
        """Do what the engine's new state asks for."""
        engine = self._engine
        if engine.take_ids():
            self._bind()
        if self.answered is not None and engine.knows_address:
            answered, self.answered = self.answered, None
            answered()
        if engine.is_open and not self._opened and not engine.is_closed:
            self._opened = True
            self._port.forget(self)
            if self.handshake_timer is not None:
                self.handshake_timer.cancel()
            self._receiver = self._accept(self)
        self._deliver()
        if engine.is_closed:
            self._finish()
        else:
            self._pump()

    def _deliver(self) -> None:
        """Hand on what has come, as far as it is wanted."""
        engine, arrived = self._engine, self._engine.arrived
        owes = self._delivered = False
        while arrived and self._receiver is not None and not self._paused:
            if self._closing:
                break
            memory = self._receiver.get_buffer()
            room, filled = len(memory), 0
            taken = 0
            for chunk in arrived:
                length = len(chunk)
                if length > room - filled:
                    count = room - filled
                    memory[filled:] = memoryview(chunk)[:count]
                    arrived[taken] = chunk[count:]
                    filled = room
                    break
                memory[filled : filled + length] = chunk
                filled += length
                taken += 1
                if filled == room:
                    break
            del arrived[:taken]
            owes = engine.consume(filled)
            self._counted_len = 0
            self._receiver.buffer_updated(filled)
            self._delivered = True
        if self._closing and arrived:
            owes = engine.consume(sum(map(len, arrived)))
            arrived.clear()
        self._count_held()
        if owes:
            self._pump_soon()
        done = engine.peer_ended and not arrived and not self._paused
        if done and not engine.is_closed:
            self._engine.close()

    def _count_held(self) -> None:
        """Tell how much is held for the receiver, and for want of what comes before."""
        if self._receiver is None:
            return
        gap_len = self._engine.gap_len
        counted_len = gap_len if gap_len > _MINOR_LEN else 0
        for one in self._port.gaps.note(self, counted_len, self._engine.gap_start):
            self._loop.call_soon(one.end_for_gap)
        held_len = gap_len + sum(map(len, self._engine.arrived))
        if held_len <= _MINOR_LEN:
            held_len = 0
        if held_len != self._counted_len:
            self._counted_len = held_len
            self._receiver.arriving(0, held_len)

    def _pump_soon(self) -> None:
        if self._pump_handle is None and not self._over:
            self._pump_handle = self._loop.call_soon(self._pump_now)

    def _pump_now(self) -> None:
        self._pump_handle = None
        if not self._over:
            self._after()

    def _pump(self) -> None:
        """Send what may be sent now; come back when more may."""
        engine, now = self._engine, self._loop.time()
        for _ in range(_ROUNDS):
            if self._port.is_full:
                self._port.wait(self)
                break
            self._feed()
            datagrams = engine.outgoing(now)
            if not datagrams:
                break
            for size in self._port.send(self, datagrams):
                engine.too_long(size, now)
            if not self._unsent:
                break  # that was all that may go now
        else:
            self._pump_soon()
        if engine.take_ids():
            self._bind()
        if engine.is_closed:
            self._finish()
            return
        if self._was_over and self.unsent_len <= WRITE_HIGH_WATER_LEN:
            self._was_over = False
            if self._receiver is not None:
                self._receiver.writable()
        if self._closing and self._finished and engine.is_finished:
            engine.close()
            self._after()
            return
        self._arm()

    def _send_at_once(self) -> None:
        if self._opened and not self._engine.is_closed and not self._port.is_full:
            self._feed()
            self._port.send(self, self._engine.outgoing(self._loop.time()))

    def _feed(self) -> None:
        """Give the engine what it can use soon."""
        engine = self._engine
        if not engine.can_send:
            if self._closing and not self._finished:
                self._finished = True
                engine.close()
            return
        while self._unsent and engine.unsent_len < _AHEAD_LEN:
            head = self._unsent[0]
            piece = head[:_PIECE_LEN]
            engine.send(piece)
            self._queued_len -= len(piece)
            if len(piece) == len(head):
                self._unsent.popleft()
            else:
                self._unsent[0] = head[len(piece) :]
        if self._closing and not self._unsent and not self._finished:
            self._finished = True
            engine.finish()

    def _arm(self) -> None:
        at = self._engine.timer()
        if self._opened:
            own_at = self._ping_at()
            if self._linger_from is not None:
                own_at = min(own_at, self._linger_until(self._linger_from))
            at = own_at if at is None else min(at, own_at)
        if self._timer is not None:
            if at is not None and self._timer_at <= at:
                return  # it looks again when it goes off
            self._timer.cancel()
            self._timer = None
        if at is not None:
            self._timer_at = at
            self._timer = self._loop.call_at(at, self._timed)

    def _timed(self) -> None:
        self._timer = None
        now = self._loop.time()
        lingers = self._linger_from is not None
        if lingers and now >= self._linger_until(self._linger_from or 0.0):
            self._engine.close()
        elif self._opened and now >= self._ping_at():
            self._pinged_at = now
            self._engine.ping()
        self._engine.handle_timer(now)
        self._after()

    def _ping_at(self) -> float:
        """Return when to ask the peer whether it is there.

        Soon, where it has to take the rest: it may have no room for long.
        """
        wait_s = _PING_S if self._linger_from is None else _LINGER_S / 3
        return max(self._heard_at, self._pinged_at) + wait_s

    def _linger_until(self, since: float) -> float:
        return max(since, self._heard_at) + _LINGER_S

    # The end.

    def _end_early(self, error: Exception) -> None:
        self._engine.close()
        self._finish(error)

    def _finish(self, error: Exception | None = None) -> None:
        """Send the farewell, tell everybody, once; stay for a while to repeat it."""
        if self._over:
            return
        engine = self._engine
        error = error or engine.error
        if error is None and self._is_being_read():
            return
        self._over = True
        pending = (self._timer, self._pump_handle, self._settling, self.handshake_timer)
        for handle in pending:
            if handle is not None:
                handle.cancel()
        self._unsent.clear()
        self._queued_len = 0
        if engine.has_received:  # else there is nobody to say it to
            self._goodbye = engine.outgoing(self._loop.time())
            self._port.send(self, self._goodbye)
        if not engine.knows_address:
            self._goodbyes_left = 0  # it could be larger than what it answers
        engine.forget()
        self._port.gaps.note(self, 0, 0)
        at = engine.timer()
        if at is None or not self._goodbye:
            self._release()
        else:
            self._loop.call_at(at, self._release)
        receiver, self._receiver = self._receiver, None
        if not self._opened:
            if error is None and not self._closing:
                error = HandshakeCutError(
                    "the peer closed the connection during the handshake"
                )
            self._failed(
                error or ConnectionLostError("this side closed the connection"),
                self.remote_address,
            )
        elif receiver is not None:
            receiver.connection_lost(error)
        if self.gone is not None:
            self.gone()

    def _is_being_read(self) -> bool:
        """Tell whether what came before the end in order has yet to be taken.

        It still counts: whoever is told of the end drops what it is doing.
        """
        if self._closing or self._receiver is None:
            return False
        if self._delivered and self._settling is None:
            # Behind what the delivery has set off, such as the start of a handler.
            self._settling = self._loop.call_soon(self._settle)
        return self._settling is not None or self._paused

    def _settle(self) -> None:
        self._settling = None
        if not self._over:
            self._after()

    def _drop_silently(self) -> None:
        """End what has never been a connection."""
        self._over = True
        if self.handshake_timer is not None:
            self.handshake_timer.cancel()
        self._release()
        if self._engine.knows_address:  # by a token of ours: no accident, and its own
            self._failed(
                HandshakeError("its first packet cannot be read"), self.remote_address
            )
        if self.gone is not None:
            self.gone()

    def _say_goodbye_again(self) -> None:
        if self._goodbye and self._goodbyes_left:
            self._goodbyes_left -= 1
            self._port.send(self, self._goodbye)

    def _release(self) -> None:
        if self._released:
            return
        self._released = True
        self._port.unbind(self._ids | self._engine.ids)
        self._port.gaps.note(self, 0, 0)
        self._port.forget(self)
        self._port.release()
