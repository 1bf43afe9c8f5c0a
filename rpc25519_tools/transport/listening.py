"""Listening sockets, and the connections that come out of them.

asyncio's own servers make a transport of each connection before anybody can say
whether it is wanted. Here whoever listens gets the bare socket.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Final

from rpc25519_tools.transport.porch import SocketAddress

#: Connections that the kernel keeps while the loop is busy, if its own limit is not
#: lower (Linux: net.core.somaxconn, 4096). Where it has no room for one, its client
#: tries again a second later: a crowd that comes at once must not cost others that.
_BACKLOG: Final = 4096
#: Attempts to find one free port for both IPv4 and IPv6; each takes two.
_PORT_ATTEMPTS: Final = 20
#: Nothing is accepted for so many seconds when the system cannot hand it over.
_RECOVER_S: Final = 0.2

_log = logging.getLogger(__name__)


async def open_listening(host: str | None, port: int) -> list[socket.socket]:
    """Open listening sockets, which all have one port.

    A name, or every interface, can mean IPv4 and IPv6, and the system picks a free port
    for each of them. The others then have to get that of the first.

    Args:
        host: where; None means all interfaces.
        port: 0 picks a free one.

    Raises:
        OSError, UnicodeError: there is no such host, or none of its addresses can be
            listened on.
    """
    wanted = port
    for attempts_left in reversed(range(_PORT_ATTEMPTS)):
        try:
            sockets = await _open(host, port)
        except OSError:
            if port == wanted or not attempts_left:
                raise
            port = wanted  # somebody else has taken it meanwhile
            continue
        ports = [sock.getsockname()[1] for sock in sockets]
        if len(set(ports)) == 1:
            return sockets
        for sock in sockets:
            sock.close()
        port = ports[0]
    raise OSError(errno.EADDRINUSE, "no port is free for both IPv4 and IPv6")


async def _open(host: str | None, port: int) -> list[socket.socket]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                sockets.append(_listen_on(family, address))
            except OSError as exc:
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = exc  # IPv6 is switched off, say
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    if not sockets:
        raise missing or OSError(errno.EADDRNOTAVAIL, "no address")
    return sockets


def _listen_on(family: int, address: SocketAddress) -> socket.socket:
    # With the protocol's number: asyncio switches Nagle's algorithm off by it.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


class Acceptor:
    """Takes connections as they come, and hands them over.

    Args:
        sockets: listen; they are closed with this.
        arrived: called with each new connection, which blocks still, and its address.
        at_a_time: how many are taken before the loop looks at what others have sent.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        arrived: Callable[[socket.socket, SocketAddress], None],
        at_a_time: int,
    ) -> None:
        self.sockets = sockets
        self._arrived = arrived
        self._at_a_time = at_a_time
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._listen()

    def close(self) -> None:
        """Take no more."""
        if self._timer is not None:
            self._timer.cancel()
        for sock in self.sockets:
            if sock.fileno() >= 0:
                self._loop.remove_reader(sock.fileno())
                sock.close()

    def _listen(self) -> None:
        self._timer = None
        for sock in self.sockets:
            self._loop.add_reader(sock.fileno(), self._take, sock)

    def _take(self, listening: socket.socket) -> None:
        for _ in range(self._at_a_time):
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return  # no more for now
            except OSError as exc:
                self._rest(exc)
                return
            self._arrived(sock, address)

    def _rest(self, error: OSError) -> None:
        """Take nothing for a while: the system is short of something, such as files."""
        _log.warning("no connection can be taken for now: %s", error.strerror)
        for sock in self.sockets:
            self._loop.remove_reader(sock.fileno())
        self._timer = self._loop.call_later(_RECOVER_S, self._listen)
