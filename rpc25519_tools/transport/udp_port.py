"""One UDP port of this process: any number of QUIC clients, and a server, share it.

Datagrams find their connection by its id. The socket is closed with its last user.
Source: SECURITY-WIRE.md section 6.5.
"""

import asyncio
import socket
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol, TypeAlias

from rpc25519_tools.transport.gaps import Gaps
from rpc25519_tools.transport.udp_socket import UdpSocket

Endpoint: TypeAlias = tuple[Any, ...]
Datagram: TypeAlias = tuple[bytes, Endpoint]
#: Called with a datagram that is for nobody.
Stranger: TypeAlias = Callable[[bytes, Endpoint], None]

#: Strangers' datagrams that wait while the connections have their turn; all beyond
#: these get lost, as they may at any time.
_MOST_STRANGERS: Final = 256


class Link(Protocol):
    """A connection, as its port sees it."""

    def take(self, datagrams: Sequence[Datagram]) -> None:
        """Take datagrams that came for it."""

    def go_on(self) -> None:
        """Learn that there is room again for datagrams that go out."""

    def unreachable(self, endpoint: Endpoint) -> None:
        """Learn that nobody listens at an address, as the network says."""

    def end_for_gap(self) -> None:
        """End, since its peer has left a gap open for too long."""


class UdpPort:
    """A bound socket and the connections on it.

    Args:
        sock: owned by the port from now on.
        destination_of: finds the id that a datagram is for.
    """

    def __init__(
        self, sock: UdpSocket, destination_of: Callable[[bytes], bytes | None]
    ) -> None:
        self._sock = sock
        self._destination_of = destination_of
        self._loop = asyncio.get_running_loop()
        self._links: dict[bytes, Link] = {}
        self._callers: dict[Link, None] = {}
        self.gaps: Gaps[Link] = Gaps()
        self._stranger: Stranger | None = None
        #: Whether new connections are taken, and not only refused.
        self._has_listener = False
        self._users = 0
        self._unsent: deque[Datagram] = deque()
        self._waiting: dict[Link, None] = {}
        #: Called when the socket has been closed.
        self.closed: Callable[[], None] | None = None
        self._loop.add_reader(sock.fileno(), self._readable)
        _open.setdefault(self._loop, weakref.WeakSet()).add(sock)

    @property
    def address(self) -> Endpoint:
        """What the socket is bound to."""
        return self._sock.address

    @property
    def is_full(self) -> bool:
        """Whether nothing may be sent until ``Link.go_on``."""
        return bool(self._unsent)

    @property
    def has_listener(self) -> bool:
        """Whether somebody takes new connections here."""
        return self._has_listener

    @property
    def family(self) -> int:
        """``socket.AF_INET`` or ``socket.AF_INET6``."""
        return self._sock.family

    def fileno(self) -> int:
        """Return the socket's descriptor, -1 once it is closed."""
        return self._sock.fileno()

    # Users.

    def use(self) -> "UdpPort":
        """Count one more user, who has to ``release`` it."""
        self._users += 1
        return self

    def release(self) -> None:
        """Count one user less; the socket is closed with the last one."""
        self._users -= 1
        if self._users == 0:
            if self._sock.fileno() >= 0:
                self._loop.remove_reader(self._sock.fileno())
                self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
            if self.closed is not None:
                self.closed()

    def listen(self, stranger: Stranger) -> None:
        """Have somebody told of datagrams that are for nobody."""
        self._stranger = stranger
        self._has_listener = True

    def listen_no_more(self, refuse: Stranger) -> None:
        """Have others refused from now on, until somebody else listens."""
        self._stranger = refuse
        self._has_listener = False

    def bind(self, ids: Iterable[bytes], link: Link) -> None:
        """Give a link the datagrams for these ids."""
        for one in ids:
            self._links[one] = link

    def unbind(self, ids: Iterable[bytes]) -> None:
        """Give nobody the datagrams for these ids any more."""
        for one in ids:
            self._links.pop(one, None)

    def call(self, link: Link) -> None:
        """Have a link told of addresses at which nobody listens, until ``forget``."""
        self._callers[link] = None

    def forget(self, link: Link) -> None:
        """Take back ``call``."""
        self._callers.pop(link, None)

    # Datagrams.

    def send(self, link: Link, datagrams: Sequence[Datagram]) -> tuple[int, ...]:
        """Send datagrams, or keep them until there is room for them.

        Returns:
            The sizes that the system refused as too long.
        """
        if self._sock.fileno() < 0:
            return ()
        if self._unsent:
            self._unsent.extend(datagrams)
            self._waiting[link] = None
            return ()
        sent = self._sock.send(datagrams)
        if sent.count < len(datagrams):
            self._unsent.extend(datagrams[sent.count :])
            self._waiting[link] = None
            self._loop.add_writer(self._sock.fileno(), self._writable)
        return sent.too_long

    def send_alone(self, data: bytes, endpoint: Endpoint) -> None:
        """Send what belongs to no connection, unless others wait for room."""
        if not self._unsent and self._sock.fileno() >= 0:
            self._sock.send([(data, endpoint)])

    def wait(self, link: Link) -> None:
        """Have ``link`` told when there is room again."""
        self._waiting[link] = None

    def _writable(self) -> None:
        sent = self._sock.send(list(self._unsent))
        for _ in range(sent.count):
            self._unsent.popleft()
        if self._unsent:
            return
        self._loop.remove_writer(self._sock.fileno())
        waiting, self._waiting = self._waiting, {}
        for link in waiting:
            link.go_on()

    def _readable(self) -> None:
        datagrams, deaf = self._sock.receive()
        known: dict[Link, list[Datagram]] = {}
        strange: list[Datagram] = []
        for datagram in datagrams:
            found = self._destination_of(datagram[0])
            link = None if found is None else self._links.get(found)
            if link is not None:
                known.setdefault(link, []).append(datagram)
            elif found is not None and len(strange) < _MOST_STRANGERS:
                strange.append(datagram)
        for link, its_own in known.items():
            link.take(its_own)
        for data, endpoint in strange:
            self._take_strange(data, endpoint)
        # Servers do not mind; whoever sends them false addresses makes these many.
        for endpoint in set(deaf) if self._callers else ():
            for link in list(self._callers):
                link.unreachable(endpoint)

    def _take_strange(self, data: bytes, endpoint: Endpoint) -> None:
        found = self._destination_of(data)
        link = None if found is None else self._links.get(found)
        if link is not None:  # it was made for the one before
            link.take([(data, endpoint)])
        elif self._stranger is not None:
            self._stranger(data, endpoint)


_Loop: TypeAlias = asyncio.AbstractEventLoop

_open: "weakref.WeakKeyDictionary[_Loop, weakref.WeakSet[UdpSocket]]"
_open = weakref.WeakKeyDictionary()


def leave_ports_to_parent(loop: _Loop) -> None:
    """Close our copies of a loop's UDP sockets, in a forked child.

    The loop must not run any more.
    """
    for sock in list(_open.get(loop, ())):
        sock.close()


_ports: "weakref.WeakKeyDictionary[_Loop, dict[Endpoint, UdpPort]]"
_ports = weakref.WeakKeyDictionary()


def open_port(
    family: int,
    address: Endpoint,
    destination_of: Callable[[bytes], bytes | None],
    *,
    share: bool,
) -> UdpPort:
    """Return the port at ``address``: one that is open already, or a new one.

    The caller has to ``use`` it at once.

    Args:
        family: ``socket.AF_INET`` or ``socket.AF_INET6``.
        address: host and port; port 0 always makes a new one.
        destination_of: see UdpPort.
        share: whether this process may have it open already, and others may join.

    Raises:
        OSError: it cannot be had.
    """
    loop = asyncio.get_running_loop()
    ours = _ports.setdefault(loop, {})
    known = ours.get(address[:2])
    if known is not None and share:
        return known
    port = UdpPort(UdpSocket(family, address), destination_of)
    if share:
        key = port.address[:2]
        ours[key] = port

        def forget() -> None:
            if ours.get(key) is port:
                del ours[key]

        port.closed = forget
    return port


def source_for(family: int, target: Endpoint, port: UdpPort) -> Endpoint:
    """Return the address that datagrams to ``target`` come from.

    A socket that is bound to all addresses does not say.
    """
    bound = port.address
    if bound[0] not in ("0.0.0.0", "::"):  # noqa: S104  # compared, not bound
        return bound
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(target)
        except OSError:
            return bound
        host: str = probe.getsockname()[0]
    return (host, *bound[1:])
