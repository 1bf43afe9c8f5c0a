"""Dialling and listening over QUIC."""

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from rpc25519_tools.config import Address
from rpc25519_tools.transport.base import (
    Accept,
    TlsSettings,
    Transport,
    format_address,
)
from rpc25519_tools.transport.door import Door
from rpc25519_tools.transport.psk_handshake import TunnelSettings
from rpc25519_tools.transport.quic import QuicTransport
from rpc25519_tools.transport.quic_connection import Endpoint
from rpc25519_tools.transport.quic_engine import QuicEngine
from rpc25519_tools.transport.quic_first import (
    Doorman,
    FirstPacket,
    destination_of,
    first_packet,
)
from rpc25519_tools.transport.udp_port import UdpPort, open_port, source_for

Failed: TypeAlias = Callable[[Exception, str], None]
#: Family, address of the server, and what our socket is bound to.
Route: TypeAlias = tuple[int, Endpoint, Endpoint]
#: Makes the transport of a client that may come in.
MakeQuic: TypeAlias = Callable[[Accept, Failed], QuicTransport]

#: Handshakes from addresses that are not known to be true. Beyond these, a client first
#: has to show that it can receive what is sent to its address: a round trip more.
_MOST_UNCHECKED: Final = 32
#: So many of those begin at a time, and so many more each second: what costs nothing to
#: send must not keep us busy.
_UNCHECKED_BURST: Final = 64
_UNCHECKED_PER_S: Final = 100.0
#: How long an address may be silent before the next one of the same host is tried.
_PATIENCE_S: Final = 1.0
#: All addresses of this machine.
_EVERYWHERE: Final = ("", "0.0.0.0", "::")  # noqa: S104  # compared, not bound
#: Clients that are told, in a second, that they may not come in; others find out by
#: hearing nothing. Each costs a tenth of a millisecond or two.
_MOST_REFUSALS: Final = 50
#: Attempts to find one free port for both IPv4 and IPv6.
_PORT_ATTEMPTS: Final = 20


async def _places(
    address: Address, *, family: int = 0, passive: bool = False
) -> list[tuple[int, Endpoint]]:
    """Return families and socket addresses of a host and port, the best first."""
    nobody = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    found = await asyncio.get_running_loop().getaddrinfo(
        address.host or (None if passive else nobody),
        address.port,
        family=family,
        type=socket.SOCK_DGRAM,
        flags=socket.AI_PASSIVE if passive else 0,
    )
    return list(
        dict.fromkeys((family, endpoint) for family, _, _, _, endpoint in found)
    )


async def dial(
    address: Address,
    settings: TlsSettings,
    *,
    accept: Accept,
    failed: Failed,
    local: Address | None,
    share: bool,
) -> "Dialling":
    """Begin a connection; its handshake goes on by itself.

    A host can have several addresses: where nobody answers at one, the next is tried.

    Args:
        address: where to.
        settings: who we are.
        accept: called when the connection is open.
        failed: called when it never comes to that.
        local: where to dial from; a port that this process has open already is shared.
        share: False never shares.

    Raises:
        OSError: the name does not resolve, or the local address cannot be had.
    """
    host = address.host or "127.0.0.1"
    routes: list[Route] = []
    missing: OSError | None = None
    for family, endpoint in await _places(address):
        try:
            routes.append((family, endpoint, await _own(local, family)))
        except OSError as exc:  # the local address is of the other family
            missing = exc
    if not routes:
        raise missing or OSError(errno.EADDRNOTAVAIL, "no address")

    def begin(route: Route, refused: Failed) -> QuicTransport:
        family, endpoint, own = route
        port = open_port(family, own, destination_of, share=share)
        made = QuicTransport(
            QuicEngine("client", settings, peer_host=host),
            port,
            endpoint,
            local=format_address(source_for(family, endpoint, port)),
            accept=accept,
            failed=refused,
        )
        made.connect()
        return made

    dialling = Dialling(routes, begin, failed)
    dialling.go_on()
    return dialling


async def _own(local: Address | None, family: int) -> Endpoint:
    """Return what a client's socket is bound to."""
    # A server of ours may have the one for IPv4 and the one for IPv6, by one number.
    if local is None or local.host in _EVERYWHERE:
        everywhere = "::" if family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104
        return (everywhere, 0 if local is None else local.port)
    return (await _places(local, family=family))[0][1]


class Dialling:
    """A client's attempts, one after another.

    Args:
        routes: where to, and from where.
        begin: begins one attempt; it is told what to call when that fails.
        failed: called when the last one has failed.
    """

    def __init__(
        self,
        routes: list[Route],
        begin: Callable[[Route, Failed], QuicTransport],
        failed: Failed,
    ) -> None:
        self._routes = deque(routes)
        self._begin = begin
        self._failed = failed
        self._made: QuicTransport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def go_on(self) -> None:
        """Try the next one.

        Raises:
            OSError: its local address cannot be had.
        """
        self._made = self._begin(self._routes.popleft(), self._refused)
        if self._routes:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_PATIENCE_S, self._lose_patience)

    def give_up(self) -> None:
        """End it at once."""
        self._routes.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._made is not None:
            self._made.give_up()

    def _lose_patience(self) -> None:
        if self._made is not None and not self._made.has_heard:
            self._made.give_up()

    def _refused(self, error: Exception, where: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        is_silent = self._made is not None and not self._made.has_heard
        if not (self._routes and is_silent):
            self._failed(error, where)
            return
        try:
            self.go_on()
        except OSError:
            self._failed(error, where)


class QuicListening:
    """A server's sockets and its door; made by ``listen``."""

    def __init__(self, ports: list[UdpPort], tls: TlsSettings, door: Door) -> None:
        self._door = door
        self._listeners = [
            QuicListener(port, tls, let_in=door.welcome, unproven=lambda: door.unproven)
            for port in ports
        ]
        self.address = self._listeners[0].address

    def use(self, tls: TlsSettings | None, tunnel: TunnelSettings | None) -> None:
        """Begin handshakes with these settings from now on.

        Open connections, and handshakes that run, keep theirs.
        """
        assert tls is not None
        for one in self._listeners:
            one.use(tls)
        self._door.use_tunnel(tunnel)

    def filenos(self) -> list[int]:
        """Return the descriptors of the sockets, which connections use as well."""
        return [one.fileno() for one in self._listeners]

    def leave_to_parent(self) -> None:
        """Let go of what is not the ports' own; see ``leave_ports_to_parent``."""
        self._door.leave_to_parent()

    def heard(self, transport: Transport, idle_since: Callable[[], float]) -> None:
        """Learn that a client has sent a whole message; see ``Door.heard``."""
        self._door.heard(transport, idle_since)

    def close(self) -> None:
        """Take no more connections and end running handshakes; open ones go on."""
        for one in self._listeners:
            one.close()
        self._door.close()


async def listen(
    make_door: Callable[[], Door], address: Address, tls: TlsSettings, *, share: bool
) -> QuicListening:
    """Listen at an address: at several sockets where it means IPv4 and IPv6.

    Args:
        make_door: makes what lets clients in.
        address: where.
        tls: who we are.
        share: see ``open_port``.

    Raises:
        OSError: the name does not resolve, or the address cannot be had.
    """
    ports = await _open_ports(address, share=share)
    try:
        if any(port.has_listener for port in ports):
            raise OSError(errno.EADDRINUSE, "another server listens there")
        return QuicListening(ports, tls, make_door())
    finally:
        for port in ports:
            port.release()


async def _open_ports(address: Address, *, share: bool) -> list[UdpPort]:
    """Open all ports that an address means, with one number; each is in use once."""
    places = await _places(address, passive=True)
    for attempts_left in reversed(range(_PORT_ATTEMPTS)):
        try:
            return _open_all(places, share=share)
        except OSError:
            if address.port or not attempts_left or len(places) == 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def _open_all(places: list[tuple[int, Endpoint]], *, share: bool) -> list[UdpPort]:
    opened: list[UdpPort] = []
    missing: OSError | None = None
    try:
        for family, endpoint in places:
            number = endpoint[1] or (opened[0].address[1] if opened else 0)
            own = (endpoint[0], number, *endpoint[2:])
            try:
                port = open_port(family, own, destination_of, share=share)
            except OSError as exc:
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = exc  # IPv6 is switched off, say
            else:
                opened.append(port.use())
    except BaseException:
        for port in opened:
            port.release()
        raise
    if not opened:
        raise missing or OSError(errno.EADDRNOTAVAIL, "no address")
    return opened


class QuicListener:
    """Takes new connections at a port.

    Args:
        port: used until ``close``.
        settings: who we are.
        let_in: called for each client that may come in, with its address and what makes
            its transport; returns the transport, or None where it may not.
        unproven: how many clients have their handshake to do.
    """

    def __init__(
        self,
        port: UdpPort,
        settings: TlsSettings,
        *,
        let_in: Callable[[Endpoint, MakeQuic], QuicTransport | None],
        unproven: Callable[[], int],
    ) -> None:
        self._port = port.use()
        self._settings = settings
        self._let_in = let_in
        self._unproven = unproven
        self._doorman = Doorman()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._unchecked_left = float(_UNCHECKED_BURST)
        self._unchecked_at = self._loop.time()
        self._refusals_left = 0
        self._refusals_until = self._loop.time()
        self.address = format_address(port.address)
        port.listen(self._stranger)

    def use(self, settings: TlsSettings) -> None:
        """Begin handshakes with these settings from now on."""
        self._settings = settings

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._port.fileno()

    def close(self) -> None:
        """Take no more connections; open ones go on."""
        if not self._closed:
            self._closed = True
            self._port.listen_no_more(self._stranger)
            self._port.release()

    def _stranger(self, data: bytes, endpoint: Endpoint) -> None:
        first = first_packet(data)
        if first is None:
            return
        if not first.is_ours:
            self._port.send_alone(self._doorman.refuse_version(first), endpoint)
            return
        now = self._loop.time()
        if self._closed:
            self._refuse(first, endpoint, now)
        elif first.token:
            original_id = self._doorman.original_id(first, endpoint, now)
            if original_id is not None:  # else from before we started, say
                self._begin(data, endpoint, first, original_id)
        elif not self._may_begin_unchecked(now):
            self._port.send_alone(self._doorman.retry(first, endpoint, now), endpoint)
        else:
            self._begin(data, endpoint, first, first.destination_id)

    def _may_begin_unchecked(self, now: float) -> bool:
        """Return whether a client need not show first that its address is true."""
        self._unchecked_left = min(
            float(_UNCHECKED_BURST),
            self._unchecked_left + (now - self._unchecked_at) * _UNCHECKED_PER_S,
        )
        self._unchecked_at = now
        if self._unchecked_left < 1 or self._unproven() >= _MOST_UNCHECKED:
            return False
        self._unchecked_left -= 1
        return True

    def _begin(
        self,
        data: bytes,
        endpoint: Endpoint,
        first: FirstPacket,
        original_id: bytes,
    ) -> None:
        def make(accept: Accept, failed: Failed) -> QuicTransport:
            engine = QuicEngine(
                "server",
                self._settings,
                peer_host=str(endpoint[0]),
                original_id=original_id,
                retry_id=first.destination_id if first.token else None,
            )
            source = source_for(self._port.family, endpoint, self._port)
            return QuicTransport(
                engine,
                self._port,
                endpoint,
                local=format_address(source),
                accept=accept,
                failed=failed,
            )

        made = self._let_in(endpoint, make)
        if made is None:
            self._refuse(first, endpoint, self._loop.time())
        else:
            made.answer(data, first.destination_id)

    def _refuse(self, first: FirstPacket, endpoint: Endpoint, now: float) -> None:
        """Tell a client that it may not come in, unless too many were told of late."""
        if now >= self._refusals_until:
            self._refusals_until = now + 1.0
            self._refusals_left = _MOST_REFUSALS
        if self._refusals_left:
            self._refusals_left -= 1
            self._port.send_alone(self._doorman.refuse(first), endpoint)
