"""Dialling and listening: where transports come from.

``connect`` returns one open, authenticated transport or raises; ``listen`` hands each
one that a client opens to a callback. Clients whose handshake (TLS, HTTP CONNECT on
plain TCP, a pre-shared-key tunnel's) is not done cost one socket each, and a few
kilobytes, for the time that the limits allow; ``transport.door`` lets them in.
"""

import asyncio
import errno
import functools
import socket
from collections.abc import Callable
from typing import Final, Protocol

from rpc25519_tools.config import Address
from rpc25519_tools.errors import (
    ConfigError,
    ConnectFailedError,
    DeadlineError,
)
from rpc25519_tools.limits import Limits
from rpc25519_tools.transport.base import (
    Accept,
    Receiver,
    TlsSettings,
    Transport,
    format_address,
)
from rpc25519_tools.transport.door import Door, Failed, Listening
from rpc25519_tools.transport.http_connect import HttpConnectTransport
from rpc25519_tools.transport.listening import Acceptor, open_listening
from rpc25519_tools.transport.psk import PskTransport
from rpc25519_tools.transport.psk_handshake import TunnelSettings
from rpc25519_tools.transport.tcp import TcpTransport
from rpc25519_tools.transport.tls import TlsTransport, client_context, tls_context

#: Connections that are accepted before the loop looks at what the others have sent. Far
#: fewer than may be unproven, or a flood would push out whoever came in with it.
_BATCH: Final = 128
#: Of those that may be unproven, the part that may come in at a time.
_BATCH_SHARE: Final = 4


def _require_plain(tls: TlsSettings | None, *, http_connect: bool) -> None:
    if http_connect and tls is not None:
        raise ConfigError("HTTP CONNECT works over plain TCP only, not over TLS")


async def connect(
    address: Address,
    *,
    tls: TlsSettings | None,
    accept: Accept,
    timeout_s: float,
    local: Address | None = None,
    http_connect: bool = False,
    tunnel: TunnelSettings | None = None,
    quic: bool = False,
    share_port: bool = True,
) -> Transport:
    """Open a connection and, with ``tls``, authenticate both ends.

    A TLS 1.3 client is done before the server has looked at its certificate; a refusal
    arrives later, as PeerNotTrustedError through the receiver's ``connection_lost``.

    Args:
        address: where to.
        tls: None for plain TCP.
        accept: called with the open transport before anything is received.
        timeout_s: limit for the whole of it, in seconds.
        local: the address to dial from; None leaves it to the system.
        http_connect: begin with HTTP CONNECT, on plain TCP.
        tunnel: put a pre-shared-key tunnel inside all that.
        quic: use QUIC instead of TLS over TCP; ``tls`` must be given.
        share_port: whether QUIC may use the UDP port of ``local`` that this process
            has open already.

    Raises:
        ConfigError: both TLS and HTTP CONNECT are asked for.
        ConnectFailedError: nobody answers, or the name does not resolve.
        HandshakeError: TLS, HTTP CONNECT or the tunnel's handshake failed, or the
            server is not trusted.
        DecryptionError: the server has another pre-shared key.
        DeadlineError: it took longer than ``timeout_s``.
    """
    _require_plain(tls, http_connect=http_connect)
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[Transport] = loop.create_future()
    # The caller may be cancelled just when the handshake fails.
    opened.add_done_callback(lambda done: done.cancelled() or done.exception())
    host = address.host or "127.0.0.1"
    attempt = _Attempt(accept, opened, host, tunnel)
    try:
        async with asyncio.timeout(timeout_s):
            if quic:
                assert tls is not None
                await attempt.over_quic(address, tls, local, share_port=share_port)
            else:
                protocol = attempt.over_tcp(tls, http_connect=http_connect)
                await loop.create_connection(
                    lambda: protocol,
                    host,
                    address.port,
                    local_addr=(local.host, local.port) if local else None,
                )
            return await opened
    except TimeoutError as exc:
        attempt.give_up()
        text = f"no answer from {address} within {timeout_s:g} s"
        if quic and not attempt.tunnels:
            text += " over UDP: perhaps no server listens there with -q"
        if attempt.tunnels:
            text += (
                " to the pre-shared-key handshake: perhaps it does not use -psk, "
                "does not let our key in, or refuses connections for now"
            )
        raise DeadlineError(text) from exc
    except (OSError, UnicodeError) as exc:
        if isinstance(exc, ConnectFailedError):
            raise
        raise ConnectFailedError(
            f"cannot connect to {address}: {_reason(exc)}"
        ) from exc
    except BaseException:
        attempt.give_up()
        raise


class _Begun(Protocol):
    """A transport whose connection may not be there yet."""

    def give_up(self) -> None:
        """Close it at once."""


class _Attempt:
    """A connection that a client has begun.

    Args:
        accept: called with the open transport.
        opened: gets it as well, or the reason why there is none.
        host: where to, without a port.
        tunnel: put a pre-shared-key tunnel inside.
    """

    def __init__(
        self,
        accept: Accept,
        opened: "asyncio.Future[Transport]",
        host: str,
        tunnel: TunnelSettings | None,
    ) -> None:
        self._accept = accept
        self._opened = opened
        self._host = host
        self._tunnel = tunnel
        self._below: _Begun | None = None
        #: The tunnel, if its handshake has begun.
        self.tunnels: list[PskTransport] = []

    def over_tcp(self, tls: TlsSettings | None, *, http_connect: bool) -> TcpTransport:
        """Return what asyncio connects."""
        self._below = made = self._stream_transport(tls, http_connect=http_connect)
        return made

    def _stream_transport(
        self, tls: TlsSettings | None, *, http_connect: bool
    ) -> TcpTransport:
        if http_connect:
            return HttpConnectTransport(
                side="client", accept=self._announce, failed=self._fail
            )
        if tls is None:
            return TcpTransport(self._announce)
        context = client_context(tls.identity, verify=tls.verify)
        return TlsTransport(
            context,
            authorities=tls.identity.authorities if tls.verify else None,
            side="client",
            accept=self._announce,
            failed=self._fail,
            peer_check=tls.peer_check if tls.verify else None,
            peer_host=self._host,
        )

    async def over_quic(
        self,
        address: Address,
        tls: TlsSettings,
        local: Address | None,
        *,
        share_port: bool,
    ) -> None:
        """Begin the handshake."""
        # Only who speaks QUIC pays for its modules: a tenth of a second.
        from rpc25519_tools.transport import quic_endpoint  # noqa: PLC0415

        self._below = await quic_endpoint.dial(
            address,
            tls,
            accept=self._announce,
            failed=self._fail,
            local=local,
            share=share_port,
        )

    def give_up(self) -> None:
        """Drop it."""
        if self._below is not None:
            self._below.give_up()

    def _announce(self, transport: Transport) -> Receiver:
        if self._tunnel is None:
            return self._finish(transport)
        inner = PskTransport(
            transport,
            self._tunnel,
            side="client",
            accept=self._finish,
            failed=self._fail,
            peer_host=self._host,
        )
        self.tunnels.append(inner)
        return inner

    def _finish(self, transport: Transport) -> Receiver:
        receiver = self._accept(transport)
        if not self._opened.done():
            self._opened.set_result(transport)
        return receiver

    def _fail(self, error: Exception, _: str) -> None:
        if not self._opened.done():
            self._opened.set_exception(error)


class Listener:
    """A listening socket; made by ``listen``."""

    def __init__(
        self, acceptor: Acceptor, door: Door, maker: "_TlsMaker | None" = None
    ) -> None:
        self._acceptor = acceptor
        self._door = door
        self._maker = maker
        self.address = format_address(acceptor.sockets[0].getsockname())

    def use(self, tls: TlsSettings | None, tunnel: TunnelSettings | None) -> None:
        """Begin handshakes with these settings from now on.

        Open connections, and handshakes that run, keep theirs. There must be TLS, and a
        tunnel, where the listener had it before, and nowhere else.
        """
        assert (tls is not None) == (self._maker is not None)
        if self._maker is not None and tls is not None:
            self._maker.use(tls)
        self._door.use_tunnel(tunnel)

    def filenos(self) -> list[int]:
        """Return the descriptors of all sockets that no transport has yet."""
        listening = [sock.fileno() for sock in self._acceptor.sockets]
        return listening + self._door.filenos

    def leave_to_parent(self) -> None:
        """Close all sockets that no transport has yet, and touch the loop no more."""
        for sock in self._acceptor.sockets:
            sock.close()
        self._door.leave_to_parent()

    def heard(self, transport: Transport, idle_since: Callable[[], float]) -> None:
        """Learn that a client has sent a whole message.

        Args:
            transport: its connection.
            idle_since: returns when it last did something, on the loop's clock; asked
                where it has not shown who it is, and others want its place.
        """
        self._door.heard(transport, idle_since)

    def close(self) -> None:
        """Take no more connections and end running handshakes; open ones go on."""
        self._acceptor.close()
        self._door.close()


async def listen(
    address: Address,
    *,
    tls: TlsSettings | None,
    accept: Accept,
    failed: Failed,
    limits: Limits | None = None,
    http_connect: bool = False,
    tunnel: TunnelSettings | None = None,
    quic: bool = False,
    share_port: bool = True,
) -> Listening:
    """Listen, and hand each open, authenticated connection to ``accept``.

    Args:
        address: where; port 0 picks a free one, the same for IPv4 and IPv6; an empty
            host means all interfaces.
        tls: None for plain TCP.
        accept: called for each connection; returns its receiver.
        failed: called with the reason and the client's address when a handshake fails
            or a connection is refused; for refusals not each time, but with a count.
        limits: how many connections there may be, and how long a client may take to
            prove who it is, or for its HTTP head; None means the usual ones.
        http_connect: require HTTP CONNECT of each client, on plain TCP.
        tunnel: require a pre-shared-key tunnel inside all that.
        quic: QUIC instead of TLS over TCP; ``tls`` must be given.
        share_port: whether QUIC may use a UDP port that clients of this process have
            open already, and they ours.

    Raises:
        ConfigError: both TLS and HTTP CONNECT are asked for.
        ConnectFailedError: the address cannot be listened on.
    """
    _require_plain(tls, http_connect=http_connect)
    handshake = "HTTP CONNECT" if http_connect else "TLS handshake" if tls else ""
    maker = _TlsMaker(tls) if tls is not None and not quic else None
    limits = Limits() if limits is None else limits
    make_door = functools.partial(
        Door,
        maker or (_make_http_connect if http_connect else _make_plain),
        handshake=handshake,
        limits=limits,
        accept=accept,
        failed=failed,
        tunnel=tunnel,
    )
    try:
        if quic:
            assert tls is not None
            # See _Attempt.over_quic.
            from rpc25519_tools.transport import quic_endpoint  # noqa: PLC0415

            return await quic_endpoint.listen(make_door, address, tls, share=share_port)
        sockets = await open_listening(address.host or None, address.port)
    except (OSError, UnicodeError) as exc:
        raise ConnectFailedError(f"cannot listen on {address}: {_reason(exc)}") from exc
    at_a_time = max(1, min(_BATCH, limits.max_startups.full // _BATCH_SHARE))
    door = make_door()
    return Listener(Acceptor(sockets, door.arrive, at_a_time), door, maker)


def _make_http_connect(accept: Accept, failed: Failed) -> HttpConnectTransport:
    """Make a server's transport on plain TCP that begins with HTTP CONNECT."""
    return HttpConnectTransport(side="server", accept=accept, failed=failed)


def _make_plain(accept: Accept, _: Failed) -> TcpTransport:
    """Make a server's transport on plain TCP, which is open at once."""
    return TcpTransport(accept)


class _TlsMaker:
    """Makes a server's TLS transports, each with the settings of its time."""

    def __init__(self, tls: TlsSettings) -> None:
        self.use(tls)

    def use(self, tls: TlsSettings) -> None:
        """Make transports with these settings from now on."""
        self._context = tls_context(tls.identity, side="server", verify=tls.verify)
        self._authorities = tls.identity.authorities if tls.verify else None
        self._peer_check = tls.peer_check if tls.verify else None

    def __call__(self, accept: Accept, failed: Failed) -> TlsTransport:
        return TlsTransport(
            self._context,
            authorities=self._authorities,
            side="server",
            accept=accept,
            failed=failed,
            peer_check=self._peer_check,
        )


def _reason(exc: Exception) -> str:
    """Say in a few words why a socket could not be had."""
    if isinstance(exc, socket.gaierror | UnicodeError):
        return "the host name does not resolve"
    number = getattr(exc, "errno", None)
    known = {
        errno.EADDRINUSE: "the port is in use",
        errno.EADDRNOTAVAIL: "no such address on this machine",
        errno.EACCES: "no permission for this port",
        errno.ECONNREFUSED: "nobody listens there (connection refused)",
        errno.EHOSTUNREACH: "no route to the host",
        errno.ENETUNREACH: "the network is unreachable",
        errno.ETIMEDOUT: "no answer",
        errno.ECONNRESET: "the connection was reset",
    }
    if number in known:
        return known[number]
    return (exc.args[1] if len(exc.args) > 1 else str(exc)) or type(exc).__name__
