"""Plain TCP: bytes straight from the socket into the receiver's memory.

Nothing is protected and nobody is authenticated. This class is also the socket side of
the TLS transport, which overrides how bytes pass through.
"""

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Callable, Sequence
from typing import Final, cast

from rpc25519_tools.identity.certificate import PeerIdentity
from rpc25519_tools.transport.base import (
    WRITE_HIGH_WATER_LEN,
    Accept,
    Receiver,
    format_address,
    scratch_buffer,
)
from rpc25519_tools.wire.greenpack import Buffer

#: A vanished peer is noticed after about IDLE + COUNT * INTERVAL seconds of silence.
_KEEPALIVE_IDLE_S = 30
_KEEPALIVE_INTERVAL_S = 10
_KEEPALIVE_COUNT = 4


#: What the security of a connection says where there is none.
NOTHING_PROTECTED: Final = "plain TCP, nothing is protected"

#: How long a peer may take to hang up in its turn, in seconds.
LINGER_S = 2.0

#: What is taken at most of what had come when a line broke; kernels keep less.
_MOST_REST_LEN: Final = 16 << 20


def enable_keepalive(sock: socket.socket) -> None:
    """Let the kernel probe a silent peer, so that a pulled cable ends the connection.

    Covers both silence while idle (keep-alive probes) and unacknowledged data
    (TCP_USER_TIMEOUT, RFC 5482).
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    seconds = _KEEPALIVE_IDLE_S + _KEEPALIVE_COUNT * _KEEPALIVE_INTERVAL_S
    for name, value in (
        ("TCP_KEEPIDLE", _KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", _KEEPALIVE_COUNT),
        ("TCP_USER_TIMEOUT", seconds * 1000),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


#: What a socket reports besides errors when its peer sends nothing more (Linux).
_PEER_DONE: Final = getattr(select, "POLLRDHUP", 0)


def socket_has_hung_up(fileno: int) -> bool:
    """Tell whether a socket's peer has closed it, also behind bytes that are unread.

    Where the system cannot tell that, a connection that was reset is noticed all the
    same.

    Args:
        fileno: the socket's descriptor; of -1 nothing is known.
    """
    if fileno < 0 or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(fileno, _PEER_DONE)
    return bool(poll.poll(0))


class TcpTransport(asyncio.BufferedProtocol):
    """A Transport over a plain TCP socket.

    Args:
        accept: called once the connection is open; returns the receiver.
    """

    network = "tcp"
    #: Whether there is a handshake; else it is open at once.
    shakes_hands = False

    def __init__(self, accept: Accept) -> None:
        self._accept = accept
        self._receiver: Receiver | None = None
        self._socket_transport: asyncio.Transport | None = None
        self._over_high_water = False
        self._closing = False
        self._gone = False
        self._linger_timer: asyncio.TimerHandle | None = None
        #: Called when the socket is closed.
        self.gone: Callable[[], None] | None = None
        self.handshake_timer: asyncio.TimerHandle | None = None
        #: Called once, when a server has answered a client's first message.
        self.answered: Callable[[], None] | None = None
        self.local_address = ""
        self.remote_address = ""

    @property
    def peer(self) -> PeerIdentity | None:
        """None: a plain connection proves nothing."""
        return None

    @property
    def security(self) -> str:
        """Say that nothing is protected."""
        return NOTHING_PROTECTED

    def fileno(self) -> int:
        """Return the socket's descriptor, -1 where it is closed."""
        assert self._socket_transport is not None
        number: int = self._socket_transport.get_extra_info("socket").fileno()
        return number

    @property
    def has_received(self) -> bool:
        """False: what comes is handed on at once."""
        return False

    def has_hung_up(self) -> bool:
        """Ask the socket whether its peer sends nothing more."""
        return self._gone or socket_has_hung_up(self.fileno())

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Learn the addresses and open at once."""
        # Other event loops, such as uvloop, have transports that are no subclasses.
        self._socket_transport = transport = cast("asyncio.Transport", transport)
        self.local_address = format_address(transport.get_extra_info("sockname"))
        self.remote_address = format_address(transport.get_extra_info("peername"))
        enable_keepalive(transport.get_extra_info("socket"))
        self._opened()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Pass the receiver's own memory to the kernel."""
        if self._closing or self._receiver is None:
            return memoryview(scratch_buffer())
        return self._receiver.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Tell the receiver what came, unless we are closing."""
        if not self._closing and self._receiver is not None:
            self._receiver.buffer_updated(nbytes)

    def eof_received(self) -> bool:
        """Treat a half-closed connection as closed: every stream has its own end."""
        return False

    def pause_writing(self) -> None:
        """Note that the kernel takes no more for now."""
        self._over_high_water = True

    def resume_writing(self) -> None:
        """Wake whoever waits to write."""
        self._over_high_water = False
        # Not from here: asyncio reports the end twice if writing fails meanwhile.
        asyncio.get_running_loop().call_soon(self._wake_writers)

    def _wake_writers(self) -> None:
        if not self._gone and self._receiver is not None:
            self._receiver.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass the end on."""
        if not self._closing:
            self._take_rest()
        self._closing = True
        self._gone = True
        self._over_high_water = False
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.connection_lost(exc)
        if self.gone is not None:
            self.gone()

    def _take_rest(self) -> None:
        """Take what had come before the line broke.

        A reset is mostly noticed by writing, while what the peer has sent before still
        lies in the kernel's memory.
        """
        fileno = self.fileno()
        left = _MOST_REST_LEN
        with contextlib.suppress(OSError):
            while fileno >= 0 and left > 0 and not self._closing:
                memory = self.get_buffer(-1)
                count = os.readv(fileno, [memory])
                if not count:
                    return
                left -= count
                self.buffer_updated(count)

    # Called from above.

    @property
    def unsent_len(self) -> int:
        """Bytes accepted by ``write`` that the kernel has not taken."""
        assert self._socket_transport is not None
        return self._socket_transport.get_write_buffer_size()

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Queue ``buffers`` in order."""
        assert self._socket_transport is not None
        if self._closing or self._socket_transport.is_closing():
            return
        for buffer in buffers:
            self._socket_transport.write(buffer)

    def pause_reading(self) -> None:
        """Stop taking bytes from the network."""
        assert self._socket_transport is not None
        self._socket_transport.pause_reading()

    def resume_reading(self) -> None:
        """Take bytes from the network again."""
        assert self._socket_transport is not None
        self._socket_transport.resume_reading()

    def close(self) -> None:
        """Send what is queued, then close."""
        if not self._closing:
            self._closing = True
            self._hang_up()

    def abort(self) -> None:
        """Close at once."""
        assert self._socket_transport is not None
        self._closing = True
        if not self._gone:  # asyncio's own transport stumbles then
            self._socket_transport.abort()

    def _hang_up(self) -> None:
        """Say that nothing more comes, and drop what still comes until the peer ends.

        Closing a socket with unread bytes resets the connection, which can destroy
        what is still on its way to the peer.
        """
        assert self._socket_transport is not None
        if self._socket_transport.is_closing():
            return
        self._socket_transport.resume_reading()
        try:
            self._socket_transport.write_eof()
        except OSError:  # the peer is gone already, and we have not been told yet
            self._socket_transport.abort()
        else:
            self._linger()

    def _linger(self) -> None:
        loop = asyncio.get_running_loop()
        self._linger_timer = loop.call_later(LINGER_S, self._end_linger)

    def _end_linger(self) -> None:
        assert self._socket_transport is not None
        if self._socket_transport.get_write_buffer_size():
            self._linger()
        else:
            self._socket_transport.abort()

    def give_up(self) -> None:
        """Close at once, whether or not there is a socket yet."""
        if self._socket_transport is not None:
            self.abort()

    def fail_handshake(self, error: Exception) -> None:
        """There is no handshake."""

    def end_with(self, error: Exception) -> None:
        """Close at once, and tell the receiver why."""
        receiver, self._receiver = self._receiver, None
        self.give_up()
        if receiver is not None:
            receiver.connection_lost(error)

    def _opened(self) -> None:
        """Hand the open connection to whoever takes its bytes."""
        assert self._socket_transport is not None
        self._socket_transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_LEN)
        self._receiver = self._accept(self)
