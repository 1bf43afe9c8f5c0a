"""Dialling and listening: where transports come from.

``connect`` returns one open, authenticated transport or raises; ``listen`` hands each
one that a client opens to a callback. Clients whose handshake (TLS, or HTTP CONNECT on
plain TCP) is not done cost one socket each for at most HANDSHAKE_TIMEOUT_S; so do those
that still have to open a pre-shared-key tunnel inside, for TUNNEL_TIMEOUT_S more.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from rpc25519_tools.config import Address
from rpc25519_tools.errors import (
    ConfigError,
    ConnectFailedError,
    DeadlineError,
    HandshakeError,
)
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.transport.base import (
    Accept,
    Receiver,
    Transport,
    format_address,
)
from rpc25519_tools.transport.http_connect import HttpConnectTransport
from rpc25519_tools.transport.psk import (
    TUNNEL_TIMEOUT_S,
    PskTransport,
    TunnelGate,
    TunnelSettings,
)
from rpc25519_tools.transport.tcp import TcpTransport
from rpc25519_tools.transport.tls import TlsTransport, tls_context

#: How long a client may take to prove who it is; the Go server's own limit.
HANDSHAKE_TIMEOUT_S: Final = 20.0
#: Connections that the kernel keeps while the loop is busy.
_BACKLOG: Final = 128
#: Clients that may be in their handshake at a time; one more ends the oldest one.
MAX_UNPROVEN: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """Who we are and whether we check the peer; no settings at all mean plain TCP."""

    identity: LoadedIdentity
    verify: bool = True


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
    tunnels: list[PskTransport] = []
    protocol = _client_protocol(
        tls,
        accept,
        opened,
        http_connect=http_connect,
        tunnel=tunnel,
        tunnels=tunnels,
    )
    try:
        async with asyncio.timeout(timeout_s):
            await loop.create_connection(
                lambda: protocol,
                address.host or "127.0.0.1",
                address.port,
                local_addr=(local.host, local.port) if local else None,
            )
            return await opened
    except TimeoutError as exc:
        protocol.give_up()
        text = f"no answer from {address} within {timeout_s:g} s"
        if tunnels:
            text += (
                " to the pre-shared-key handshake: perhaps it does not use -psk, or "
                "does not let our key in"
            )
        raise DeadlineError(text) from exc
    except (OSError, UnicodeError) as exc:
        if isinstance(exc, ConnectFailedError):
            raise
        raise ConnectFailedError(
            f"cannot connect to {address}: {_reason(exc)}"
        ) from exc
    except BaseException:
        protocol.give_up()
        raise


def _client_protocol(
    tls: TlsSettings | None,
    accept: Accept,
    opened: "asyncio.Future[Transport]",
    *,
    http_connect: bool,
    tunnel: TunnelSettings | None,
    tunnels: list[PskTransport],
) -> TcpTransport:
    def finish(transport: Transport) -> Receiver:
        receiver = accept(transport)
        if not opened.done():
            opened.set_result(transport)
        return receiver

    def announce(transport: Transport) -> Receiver:
        if tunnel is None:
            return finish(transport)
        inner = PskTransport(
            transport, tunnel, side="client", accept=finish, failed=fail
        )
        tunnels.append(inner)
        return inner

    def fail(error: Exception, _: str) -> None:
        if not opened.done():
            opened.set_exception(error)

    if http_connect:
        return HttpConnectTransport(side="client", accept=announce, failed=fail)
    if tls is None:
        return TcpTransport(announce)
    context = tls_context(tls.identity, side="client", verify=tls.verify)
    return TlsTransport(
        context,
        authorities=tls.identity.authorities if tls.verify else None,
        side="client",
        accept=announce,
        failed=fail,
    )


#: What opens only when the client has gone through a handshake.
_Shaking: TypeAlias = TlsTransport | HttpConnectTransport
_Failed: TypeAlias = Callable[[Exception, str], None]


class _Handshakes:
    """Makes the transports of a listener, and watches them until they are open.

    Args:
        make: makes a transport of what it shall call when open and when failed.
        name: of the handshake, for errors.
        timeout_s: how long a handshake may take.
        accept: called for each open connection.
        failed: called for each handshake that fails.
    """

    def __init__(
        self,
        make: Callable[[Accept, _Failed], _Shaking],
        *,
        name: str,
        timeout_s: float,
        accept: Accept,
        failed: _Failed,
    ) -> None:
        self._make = make
        self._name = name
        self._timeout_s = timeout_s
        self._accept = accept
        self._failed = failed
        self._unproven: dict[_Shaking, None] = {}  # the oldest one first

    def start(self) -> _Shaking:
        """Make the transport of a new connection."""

        def proven(transport: Transport) -> Receiver:
            self._unproven.pop(made, None)
            return self._accept(transport)

        def not_proven(error: Exception, address: str) -> None:
            self._unproven.pop(made, None)
            self._failed(error, address)

        made = self._make(proven, not_proven)
        if len(self._unproven) >= MAX_UNPROVEN:
            oldest = next(iter(self._unproven))
            del self._unproven[oldest]
            oldest.fail_handshake(HandshakeError("too many clients in their handshake"))
        self._unproven[made] = None
        reason = HandshakeError(f"no {self._name} within {self._timeout_s:g} s")
        made.handshake_timer = asyncio.get_running_loop().call_later(
            self._timeout_s, made.fail_handshake, reason
        )
        return made

    def give_up(self) -> None:
        """End all that run."""
        for transport in list(self._unproven):
            transport.give_up()


class Listener:
    """A listening socket; made by ``listen``."""

    def __init__(
        self,
        server: asyncio.Server,
        handshakes: _Handshakes | None,
        gate: TunnelGate | None,
    ) -> None:
        self._server = server
        self._handshakes = handshakes
        self._gate = gate
        names = [format_address(sock.getsockname()) for sock in server.sockets]
        self.address = names[0]

    def filenos(self) -> list[int]:
        """Return the descriptors of the listening sockets."""
        return [sock.fileno() for sock in self._server.sockets]

    def close(self) -> None:
        """Take no more connections and end running handshakes; open ones go on."""
        self._server.close()
        if self._handshakes is not None:
            self._handshakes.give_up()
        if self._gate is not None:
            self._gate.give_up()


async def listen(
    address: Address,
    *,
    tls: TlsSettings | None,
    accept: Accept,
    failed: _Failed,
    handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    http_connect: bool = False,
    tunnel: TunnelSettings | None = None,
) -> Listener:
    """Listen, and hand each open, authenticated connection to ``accept``.

    Args:
        address: where; port 0 picks a free one, an empty host means all interfaces.
        tls: None for plain TCP.
        accept: called for each connection; returns its receiver.
        failed: called with the reason and the client's address when a handshake fails.
        handshake_timeout_s: how long a client may take to prove who it is, or for its
            HTTP head.
        http_connect: require HTTP CONNECT of each client, on plain TCP.
        tunnel: require a pre-shared-key tunnel inside all that.

    Raises:
        ConfigError: both TLS and HTTP CONNECT are asked for.
        ConnectFailedError: the address cannot be listened on.
    """
    _require_plain(tls, http_connect=http_connect)
    handshakes: _Handshakes | None = None
    gate: TunnelGate | None = None
    if tunnel is not None:
        accept = gate = TunnelGate(
            tunnel,
            accept=accept,
            failed=failed,
            timeout_s=min(TUNNEL_TIMEOUT_S, handshake_timeout_s),
        )
    if tls is not None or http_connect:
        handshakes = _Handshakes(
            _maker(tls),
            name="TLS handshake" if tls is not None else "HTTP CONNECT",
            timeout_s=handshake_timeout_s,
            accept=accept,
            failed=failed,
        )

    def factory() -> TcpTransport:
        return TcpTransport(accept) if handshakes is None else handshakes.start()

    try:
        server = await asyncio.get_running_loop().create_server(
            factory, address.host or None, address.port, backlog=_BACKLOG
        )
    except (OSError, UnicodeError) as exc:
        raise ConnectFailedError(f"cannot listen on {address}: {_reason(exc)}") from exc
    return Listener(server, handshakes, gate)


def _maker(tls: TlsSettings | None) -> Callable[[Accept, _Failed], _Shaking]:
    """Return what makes a server's transports; without TLS, those of HTTP CONNECT."""
    if tls is None:
        return lambda accept, failed: HttpConnectTransport(
            side="server", accept=accept, failed=failed
        )
    context = tls_context(tls.identity, side="server", verify=tls.verify)
    authorities = tls.identity.authorities if tls.verify else None
    return lambda accept, failed: TlsTransport(
        context, authorities=authorities, side="server", accept=accept, failed=failed
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
    if "could not bind on any address" in str(exc):  # asyncio since Python 3.12
        return known[errno.EADDRNOTAVAIL]
    return (exc.args[1] if len(exc.args) > 1 else str(exc)) or type(exc).__name__
