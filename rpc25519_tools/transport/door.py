"""The door of a listener: asks the gate about each connection, and does what it says.

A connection that is refused is closed as soon as the kernel has handed it over. One
that may come in waits in the porch until something has come of it: before that there is
nothing of it but a socket.
"""

import asyncio
import secrets
import socket
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias, TypeVar

from rpc25519_tools.errors import (
    ConnectionLostError,
    CrowdedOutError,
    HandshakeError,
    LocalProtocolError,
)
from rpc25519_tools.limits import Limits
from rpc25519_tools.transport.base import (
    Accept,
    Arriving,
    Receiver,
    TlsSettings,
    Transport,
    format_address,
)
from rpc25519_tools.transport.crowds import Ticket
from rpc25519_tools.transport.gate import Gate, Refusal, site_of
from rpc25519_tools.transport.porch import (
    Porch,
    Sent,
    SocketAddress,
    what_came,
)
from rpc25519_tools.transport.psk import (
    TUNNEL_TIMEOUT_S,
    PskTransport,
    open_tunnel,
)
from rpc25519_tools.transport.psk_handshake import TunnelSettings
from rpc25519_tools.transport.refusal_log import REPORT_INTERVAL_S, RefusalLog
from rpc25519_tools.transport.repeats import SeenHandshakes
from rpc25519_tools.transport.tcp import TcpTransport
from rpc25519_tools.transport.unproven import UnprovenMemory

#: Called with the reason and the client's address.
Failed: TypeAlias = Callable[[Exception, str], None]
#: Makes a transport of what it shall call when it is open and when that has failed.
Make: TypeAlias = Callable[[Accept, Failed], TcpTransport]
#: The same, of a connection that is none of asyncio's.
A = TypeVar("A", bound=Arriving)

#: Connections whose handshake has failed, and that wait until their clients hang up, so
#: that they can read why. They make room for nobody: beyond this many, or a quarter of
#: all, the oldest ends at once.
_MOST_FAILED: Final = 256
#: Failed handshakes of one address that are told one by one, before others are counted
#: only (see RefusalLog).
_FAILURES_AT_ONCE: Final = 10

#: How long a client that need not begin may say nothing in a crowd, before it is open
#: all the same: a server may have something to say to it. In seconds.
_SILENT_S: Final = 0.1

_TOO_MANY_HANDSHAKES: Final = "too many clients in their handshake"
_FULL: Final = "the server is full, and this client was idle"
_TOO_MANY_SILENT: Final = "too many clients that have not sent anything yet"


class Listening(Protocol):
    """Listening sockets with their door."""

    #: Where clients can dial to, such as ``127.0.0.1:8443``.
    address: str

    def use(self, tls: TlsSettings | None, tunnel: TunnelSettings | None) -> None:
        """Begin handshakes with these settings from now on.

        Open connections, and handshakes that run, keep theirs. There must be TLS, and a
        tunnel, where there was one before, and nowhere else.
        """

    def filenos(self) -> list[int]:
        """Return the descriptors of the listening sockets."""

    def leave_to_parent(self) -> None:
        """Close all sockets that no transport has yet, and touch the loop no more."""

    def heard(self, transport: Transport, idle_since: Callable[[], float]) -> None:
        """Learn that a client has sent a whole message; see ``Door.heard``."""

    def close(self) -> None:
        """Take no more connections and end running handshakes; open ones go on."""


class Door:
    """Makes the transports of a listener, and watches them until they are open.

    Args:
        make: makes a transport of one new connection.
        handshake: its name, for errors; empty where connections are open at once.
        limits: how many connections there may be.
        accept: called for each open connection.
        failed: called for each handshake that fails, and for refusals.
        tunnel: puts a pre-shared-key tunnel into each connection, whose handshake
            comes after that of the transport.
    """

    def __init__(
        self,
        make: Make,
        *,
        handshake: str,
        limits: Limits,
        accept: Accept,
        failed: Failed,
        tunnel: TunnelSettings | None = None,
    ) -> None:
        self._make = make
        self._tunnel = tunnel
        self._handshake = handshake
        self._timeout_s = limits.handshake_timeout_s
        self._max_message_len = limits.max_message_len
        self._unproven_memory = UnprovenMemory(limits.unproven_memory_len)
        self._accept = accept
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._gate = Gate(limits, secrets.randbelow)
        self._refusals = RefusalLog()
        self._failures = RefusalLog(_FAILURES_AT_ONCE)
        self._report_timer: asyncio.TimerHandle | None = None
        self._transports: dict[Ticket, Arriving] = {}
        self._tickets: dict[Transport, Ticket] = {}
        self._seen = SeenHandshakes()
        #: Tunnels whose client has not shown yet that it has its keys.
        self._tunnels: dict[Ticket, PskTransport] = {}
        #: Connections that have failed and are about to end, the oldest first.
        self._ending: dict[Ticket, Arriving] = {}
        self._most_ending = min(_MOST_FAILED, max(1, limits.max_connections // 4))
        self._closed = False
        #: What a client has to begin with, if anything.
        self._awaited, patience_s = handshake, self._timeout_s
        if not handshake and tunnel is not None:
            self._awaited = "pre-shared-key handshake"
            patience_s = min(patience_s, TUNNEL_TIMEOUT_S)
        elif not handshake:
            patience_s = _SILENT_S
        self._porch = Porch(self, patience_s=patience_s, awaited=self._awaited)

    @property
    def filenos(self) -> list[int]:
        """The descriptors of connections that are not open yet."""
        return self._porch.filenos

    def leave_to_parent(self) -> None:
        """Close the sockets of those connections, and touch the loop no more."""
        self._porch.leave_to_parent()

    def arrive(self, sock: socket.socket, address: SocketAddress) -> None:
        """Take a new connection, or close it."""
        sent = what_came(sock)
        if not (self._awaited or self._gate.is_crowded):
            sent = Sent.SOMETHING  # it need not
        if sent is Sent.ITS_END:
            sock.close()
            self._refuse(site_of(address[0]), address, self._porch.hung_up)
            return
        ticket = self._admit(address)
        if ticket is None:
            sock.close()
            return
        self._porch.add(ticket, sock, address, sent=sent is Sent.SOMETHING)

    def welcome(
        self, address: SocketAddress, make: Callable[[Accept, Failed], A]
    ) -> A | None:
        """Return the transport of a connection that has no socket of its own.

        Args:
            address: where it comes from.
            make: makes its transport.

        Returns:
            None where it must not come in.
        """
        ticket = None if self._closed else self._admit(address)
        return None if ticket is None else self._start(ticket, make, 0.0)

    @property
    def unproven(self) -> int:
        """How many clients have not shown who they are."""
        return self._gate.unproven

    def let_in(
        self, ticket: Ticket, connection: asyncio.Transport, since: float
    ) -> None:
        """Make what a connection is from now on; called by the porch."""
        made = self._start(ticket, self._make, self._loop.time() - since)
        connection.set_protocol(made)
        made.connection_made(connection)

    def turned_away(
        self, ticket: Ticket, address: SocketAddress, reason: Exception
    ) -> None:
        """Learn that a connection came to nothing; called by the porch."""
        self._gate.leave(ticket)
        self._refuse(ticket.site, address, reason)

    def heard(self, transport: Transport, idle_since: Callable[[], float]) -> None:
        """Learn that a peer speaks the protocol.

        Args:
            transport: its connection.
            idle_since: returns when the peer last did something, on the loop's clock.
        """
        ticket = self._tickets.get(transport)
        if ticket is not None:
            self._gate.seat(ticket, idle_since, self._loop.time())

    def use_tunnel(self, tunnel: TunnelSettings | None) -> None:
        """Open the tunnels of connections to come with these settings, if any."""
        self._tunnel = tunnel

    def close(self) -> None:
        """End all handshakes; let nobody in any more."""
        self._closed = True
        if self._report_timer is not None:
            self._report_timer.cancel()
        self._porch.close()
        if self._handshake or self._tunnel is not None:
            for ticket, transport in list(self._transports.items()):
                tunnel = self._tunnels.get(ticket)
                if ticket.unproven and not (tunnel is not None and tunnel.is_open):
                    transport.give_up()

    # Inside.

    def _admit(self, address: SocketAddress) -> Ticket | None:
        """Ask the gate, and drop whoever has to make room."""
        admission = self._gate.admit(address[0], self._loop.time())
        if isinstance(admission, Refusal):
            self._refuse(admission.site, address, HandshakeError(admission.reason))
            return None
        for ticket in admission.dropped:
            self._drop(ticket)
        return admission.ticket

    def _start(
        self, ticket: Ticket, make: Callable[[Accept, Failed], A], waited_s: float
    ) -> A:
        """Make the transport of a connection that has come in, and how long ago."""

        def opened(transport: Transport) -> Receiver:
            if self._tunnel is not None:
                waited = 0.0 if self._handshake else waited_s
                return self._dig(ticket, transport, self._tunnel, waited)
            if transport.peer is not None:
                self._gate.prove(ticket)
            elif self._handshake:
                now = self._loop.time()
                self._gate.seat(ticket, lambda: now, now)
            return self._accept(transport)

        def failed(error: Exception, address: str) -> None:
            tried = made.shakes_hands and made.has_received
            self._note_failure(ticket, error, address, tried=tried)

        def gone() -> None:
            del self._tickets[made]
            self._tunnels.pop(ticket, None)
            self._ending.pop(ticket, None)
            if self._transports.pop(ticket, None) is not None:
                self._gate.leave(ticket)

        made = make(opened, failed)
        made.gone = gone
        self._transports[ticket] = made
        self._tickets[made] = ticket
        if made.shakes_hands:
            made.handshake_timer = self._loop.call_later(
                max(0.0, self._timeout_s - waited_s), self._expire, ticket, made
            )
            made.answered = lambda: self._gate.begin(ticket)
        return made

    def _dig(
        self,
        ticket: Ticket,
        below: Transport,
        settings: TunnelSettings,
        waited_s: float,
    ) -> PskTransport:
        """Open a tunnel in a connection, whose client has taken so long to begin.

        A client that TLS has not proved can have sent the handshake of another one: it
        is counted with those that have not sent anything, until a message of it opens.
        It may be silent until then for as long as it likes, as on plain TCP. What it
        begins to send shares some memory with the others, and may be dropped.
        """

        def opened(transport: Transport) -> Receiver:
            made.when_proven(proven)
            if below.peer is not None:
                self._gate.prove(ticket)
            else:
                self._gate.begin(ticket)
            return self._accept(transport)

        def proven() -> None:
            self._tunnels.pop(ticket, None)
            self._gate.prove(ticket)

        def failed(error: Exception, address: str) -> None:
            self._tunnels.pop(ticket, None)
            silent = isinstance(error, ConnectionLostError | LocalProtocolError)
            tried = made.has_received and not silent
            self._note_failure(ticket, error, address, tried=tried)

        def give_way(error: ConnectionLostError) -> None:
            made.fail_handshake(error)

        known = below.peer is not None
        made = open_tunnel(
            below,
            settings,
            accept=opened,
            failed=failed,
            timeout_s=min(self._timeout_s, TUNNEL_TIMEOUT_S),
            waited_s=waited_s,
            max_message_len=self._max_message_len,
            share=None if known else self._unproven_memory.share(ticket.site, give_way),
            seen=self._seen,
        )
        self._tunnels[ticket] = made
        return made

    def _note_failure(
        self, ticket: Ticket, error: Exception, address: str, *, tried: bool
    ) -> None:
        """Count a handshake that came to nothing, and tell of it.

        Silence is no attempt, and costs us nothing: who only looks whether we listen,
        or loses a connection to others, is not refused for it later.
        """
        if tried and ticket in self._transports:
            self._end_soon(ticket)
            self._gate.fail(ticket, self._loop.time())
            self._tell(self._failures, ticket.site, error, address)
        else:
            self._tell(self._refusals, ticket.site, error, address)

    def _end_soon(self, ticket: Ticket) -> None:
        """Let a connection that has failed end in order, unless too many do."""
        self._ending[ticket] = self._transports[ticket]
        if len(self._ending) > self._most_ending:
            oldest = next(iter(self._ending))
            self._ending.pop(oldest).give_up()

    def _expire(self, ticket: Ticket, made: Arriving) -> None:
        reason = f"no {self._handshake} within {self._timeout_s:g} s"
        if self._transports.pop(ticket, None) is not None:
            self._gate.leave(ticket)
        made.fail_handshake(HandshakeError(reason))

    def _drop(self, ticket: Ticket) -> None:
        """End a connection that has to make room; the gate counts it no more."""
        address = self._porch.drop(ticket)
        if address is not None:
            reason = _TOO_MANY_HANDSHAKES if self._awaited else _TOO_MANY_SILENT
            self._refuse(ticket.site, address, HandshakeError(reason))
            return
        made = self._transports.pop(ticket)
        tunnel = self._tunnels.pop(ticket, None)
        if tunnel is not None:
            tunnel.fail_handshake(
                CrowdedOutError(_TOO_MANY_SILENT)
                if tunnel.is_open
                else HandshakeError(_TOO_MANY_HANDSHAKES)
            )
        elif ticket.idle_since is not None:
            made.end_with(CrowdedOutError(_FULL))
        elif made.shakes_hands:
            made.fail_handshake(HandshakeError(_TOO_MANY_HANDSHAKES))
        else:
            made.end_with(CrowdedOutError(_TOO_MANY_SILENT))

    def _refuse(self, site: str, address: SocketAddress, error: Exception) -> None:
        """Tell of a client of which nothing has come, unless there were many of late.

        There can be tens of thousands a second.
        """
        if self._refusals.note(site, str(error), self._loop.time()):
            self._failed(error, format_address(address))
        elif self._report_timer is None:
            self._report_later()

    def _tell(self, log: RefusalLog, site: str, error: Exception, address: str) -> None:
        """Tell of a client that is not let in, unless there were too many of late."""
        if log.note(site, str(error), self._loop.time()):
            self._failed(error, address)
        if self._report_timer is None:
            self._report_later()

    def _report_later(self) -> None:
        if not self._closed:
            self._report_timer = self._loop.call_later(REPORT_INTERVAL_S, self._report)

    def _report(self) -> None:
        self._report_timer = None
        logs = (self._failures, self._refusals)
        for log in logs:
            for site, text in log.due(self._loop.time()):
                self._failed(HandshakeError(text), site)
        if not all(log.is_empty for log in logs):
            self._report_later()
