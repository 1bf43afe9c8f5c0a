"""Where connections wait until something has come of them.

asyncio makes a transport, a task and some callbacks for each connection that it
accepts, and TLS an object of several kilobytes: a tenth of a millisecond. Whoever only
opens connections could keep a server busy with that. Here a connection is its socket
and an entry in a table until its first bytes have come; closing it costs as little.
"""

import asyncio
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, Protocol, TypeAlias, cast

from rpc25519_tools.errors import HandshakeCutError, HandshakeError
from rpc25519_tools.transport.crowds import Ticket

#: What a socket calls an address: host, port, and more for IPv6.
SocketAddress: TypeAlias = tuple[Any, ...]

#: Connections that get in for their patience at a time, before the loop goes on.
_AT_A_TIME: Final = 64
#: Descriptors that are looked at in a turn of the loop: more than are accepted in one.
_LOOKED_AT: Final = 256
#: Those that wait too long are looked for no more often than this, in seconds.
_LOOK_S: Final = 0.05


class Sent(Enum):
    """What has come of a connection."""

    NOTHING = auto()
    SOMETHING = auto()
    #: It has ended without a byte.
    ITS_END = auto()


#: Of Linux and most others; elsewhere the socket itself has to be made not to wait.
_DONT_WAIT: Final[int] = getattr(socket, "MSG_DONTWAIT", 0)
_PEEK: Final = int(socket.MSG_PEEK) | _DONT_WAIT


def what_came(sock: socket.socket) -> Sent:
    """Look at what has come of a connection, and leave it there."""
    try:
        if not _DONT_WAIT:
            sock.setblocking(False)
        data = sock.recv(1, _PEEK)
    except (BlockingIOError, InterruptedError):
        return Sent.NOTHING
    except OSError:
        return Sent.ITS_END
    return Sent.SOMETHING if data else Sent.ITS_END


class Watch(Protocol):
    """Tells which of many descriptors have something to read."""

    def add(self, fileno: int) -> None:
        """Watch over a descriptor."""

    def remove(self, fileno: int) -> None:
        """Do so no more."""

    def close(self) -> None:
        """Watch over none any more."""

    def leave_to_parent(self) -> None:
        """Let go of it in a forked child; what the parent watches stays as it is."""


class EpollWatch:
    """A Watch in the kernel, which is one descriptor for the event loop.

    Args:
        ready: called with each descriptor that has something to read.
    """

    def __init__(self, ready: Callable[[int], None]) -> None:
        self._ready = ready
        self._epoll = select.epoll()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._look)

    def add(self, fileno: int) -> None:
        """Watch over a descriptor."""
        self._epoll.register(fileno, select.EPOLLIN)

    def remove(self, fileno: int) -> None:
        """Do so no more."""
        self._epoll.unregister(fileno)

    def _look(self) -> None:
        for fileno, _ in self._epoll.poll(0, _LOOKED_AT):
            self._ready(fileno)

    def close(self) -> None:
        """Watch over none any more; doing so again changes nothing."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def leave_to_parent(self) -> None:
        """Close our copy of the descriptor, which is shared."""
        self._epoll.close()


class LoopWatch:
    """A Watch made of what every event loop has.

    Args:
        ready: called with each descriptor that has something to read.
    """

    def __init__(self, ready: Callable[[int], None]) -> None:
        self._ready = ready
        self._loop = asyncio.get_running_loop()
        self._filenos: set[int] = set()

    def add(self, fileno: int) -> None:
        """Watch over a descriptor."""
        self._filenos.add(fileno)
        self._loop.add_reader(fileno, self._ready, fileno)

    def remove(self, fileno: int) -> None:
        """Do so no more."""
        self._filenos.remove(fileno)
        self._loop.remove_reader(fileno)

    def close(self) -> None:
        """Watch over none any more."""
        for fileno in list(self._filenos):
            self.remove(fileno)

    def leave_to_parent(self) -> None:
        """Do nothing: the loop lets go of its own."""


def make_watch(ready: Callable[[int], None]) -> Watch:
    """Return the best Watch that the system has."""
    return EpollWatch(ready) if hasattr(select, "epoll") else LoopWatch(ready)


@dataclass(slots=True, eq=False)
class _Caller:
    """A connection that waits, or is getting its transport.

    Attributes:
        fileno: its descriptor.
        since: when it came, on the loop's clock.
        entering: what makes its transport.
    """

    ticket: Ticket
    sock: socket.socket
    fileno: int
    address: SocketAddress
    since: float
    entering: "asyncio.Task[Any] | None" = None


class _Entering(asyncio.Protocol):
    """Takes the transport of a connection, and hands it on."""

    def __init__(self, porch: "Porch", caller: _Caller) -> None:
        self._porch = porch
        self._caller = caller

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Other event loops, such as uvloop, have transports that are no subclasses.
        self._porch.entered(self._caller, cast("asyncio.Transport", transport))


class Host(Protocol):
    """Whom the porch belongs to: the door."""

    def let_in(
        self, ticket: Ticket, connection: asyncio.Transport, since: float
    ) -> None:
        """Take a connection that has a transport now, and came at that time."""

    def turned_away(
        self, ticket: Ticket, address: SocketAddress, reason: Exception
    ) -> None:
        """Learn that a connection has ended by itself, or waited for too long."""


class Porch:
    """The connections of a listener of which nothing has come yet.

    Args:
        host: takes them from here.
        patience_s: how long they may say nothing, in seconds.
        awaited: what is waited for, such as "TLS handshake"; empty where a client need
            not begin: it gets in when it has waited.
    """

    def __init__(self, host: Host, *, patience_s: float, awaited: str) -> None:
        self._host = host
        self._patience_s = patience_s
        self._awaited = awaited
        #: Of clients that come and go.
        self.hung_up = HandshakeCutError(
            f"the client hung up without {awaited or 'a word'}"
        )
        self._loop = asyncio.get_running_loop()
        self._watch = make_watch(self._ready)
        #: By descriptor, in the order in which they came.
        self._waiting: dict[int, _Caller] = {}
        #: All of them, also those that are getting their transport.
        self._callers: dict[Ticket, _Caller] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def filenos(self) -> list[int]:
        """The descriptors of those that are here."""
        return [caller.fileno for caller in self._callers.values()]

    def add(
        self, ticket: Ticket, sock: socket.socket, address: SocketAddress, *, sent: bool
    ) -> None:
        """Let a new connection wait, or in at once where it has sent something."""
        now, fileno = self._loop.time(), sock.fileno()
        caller = _Caller(ticket, sock, fileno, address, now)
        self._callers[ticket] = caller
        if sent:
            self._enter(caller)
            return
        try:
            self._watch.add(fileno)
        except OSError as exc:  # the system lets nobody watch over so many
            del self._callers[ticket]
            sock.close()
            reason = HandshakeError(f"it could not be watched: {exc.strerror}")
            self._host.turned_away(ticket, address, reason)
            return
        self._waiting[fileno] = caller
        if self._timer is None:
            self._timer = self._loop.call_later(self._patience_s, self._look)

    def drop(self, ticket: Ticket) -> SocketAddress | None:
        """End a connection, if it is here; return where it came from."""
        caller = self._callers.pop(ticket, None)
        if caller is None:
            return None
        self._end(caller)
        return caller.address

    def close(self) -> None:
        """End all connections; nobody is told."""
        if self._timer is not None:
            self._timer.cancel()
        for ticket in list(self._callers):
            self.drop(ticket)
        self._watch.close()

    def leave_to_parent(self) -> None:
        """Close all sockets, and touch neither the loop nor what the parent watches."""
        for caller in self._waiting.values():
            caller.sock.close()
        self._watch.leave_to_parent()

    # Inside.

    def _end(self, caller: _Caller) -> None:
        """Close the socket of a connection that is not among the callers any more."""
        if caller.entering is None:
            self._forget_wait(caller)
            caller.sock.close()
        # Else the socket is asyncio's until its transport is there.

    def _forget_wait(self, caller: _Caller) -> None:
        self._watch.remove(caller.fileno)
        del self._waiting[caller.fileno]

    def _ready(self, fileno: int) -> None:
        caller = self._waiting.get(fileno)
        if caller is None:
            return  # it has just been dropped
        if what_came(caller.sock) is Sent.ITS_END:
            self._turn_away(caller, self.hung_up)
            return
        self._forget_wait(caller)
        self._enter(caller)

    def _turn_away(self, caller: _Caller, reason: Exception) -> None:
        del self._callers[caller.ticket]
        self._end(caller)
        self._host.turned_away(caller.ticket, caller.address, reason)

    def _enter(self, caller: _Caller) -> None:
        """Have a transport made of a connection."""
        caller.sock.setblocking(False)
        making = self._loop.connect_accepted_socket(
            lambda: _Entering(self, caller), caller.sock
        )
        caller.entering = self._loop.create_task(making)
        caller.entering.add_done_callback(lambda task: self._made(caller, task))

    def entered(self, caller: _Caller, connection: asyncio.Transport) -> None:
        """Take the transport of a connection; called by its protocol."""
        is_here = self._callers.pop(caller.ticket, None) is not None
        address = connection.get_extra_info("peername")
        if is_here and isinstance(address, tuple):
            self._host.let_in(caller.ticket, connection, caller.since)
            return
        connection.abort()
        if is_here:
            self._host.turned_away(caller.ticket, caller.address, self.hung_up)

    def _made(self, caller: _Caller, task: "asyncio.Task[Any]") -> None:
        """Look at what became of making a transport."""
        error = None if task.cancelled() else task.exception()
        if error is None and not task.cancelled():
            return
        caller.sock.close()
        if self._callers.pop(caller.ticket, None) is not None:
            reason = HandshakeError(f"it could not be let in: {error or 'cancelled'}")
            self._host.turned_away(caller.ticket, caller.address, reason)

    def _look(self) -> None:
        """Find those that have waited for too long."""
        self._timer = None
        before = self._loop.time() - self._patience_s
        for number, caller in enumerate(list(self._waiting.values())):
            if caller.since > before or number == _AT_A_TIME:
                wait_s = max(caller.since - before, _LOOK_S)
                self._timer = self._loop.call_later(wait_s, self._look)
                return
            if self._awaited:
                reason = f"no {self._awaited} within {self._patience_s:g} s"
                self._turn_away(caller, HandshakeError(reason))
            else:
                self._forget_wait(caller)
                self._enter(caller)
