"""Dialling and listening: where transports come from.

``connect`` returns one open, authenticated transport or raises; ``listen`` hands each
one that a client opens to a callback. Unauthenticated clients cost one socket each for
at most HANDSHAKE_TIMEOUT_S.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from rpc25519_tools.config import Address
from rpc25519_tools.errors import ConnectFailedError, DeadlineError, HandshakeError
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.transport.base import (
    Accept,
    Receiver,
    Transport,
    format_address,
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


async def connect(
    address: Address,
    *,
    tls: TlsSettings | None,
    accept: Accept,
    timeout_s: float,
    local: Address | None = None,
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

    Raises:
        ConnectFailedError: nobody answers, or the name does not resolve.
        HandshakeError: TLS failed, or the server is not trusted.
        DeadlineError: it took longer than ``timeout_s``.
    """
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[Transport] = loop.create_future()
    protocol = _client_protocol(tls, accept, opened)
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
        raise DeadlineError(f"no answer from {address} within {timeout_s:g} s") from exc
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
    tls: TlsSettings | None, accept: Accept, opened: "asyncio.Future[Transport]"
) -> TcpTransport:
    def announce(transport: Transport) -> Receiver:
        receiver = accept(transport)
        if not opened.done():
            opened.set_result(transport)
        return receiver

    def fail(error: Exception, _: str) -> None:
        if not opened.done():
            opened.set_exception(error)

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


class Listener:
    """A listening socket; made by ``listen``."""

    def __init__(
        self, server: asyncio.Server, unproven: "dict[TlsTransport, None]"
    ) -> None:
        self._server = server
        self._unproven = unproven
        names = [format_address(sock.getsockname()) for sock in server.sockets]
        self.address = names[0]

    def close(self) -> None:
        """Take no more connections and end running handshakes; open ones go on."""
        self._server.close()
        for transport in list(self._unproven):
            transport.give_up()


async def listen(
    address: Address,
    *,
    tls: TlsSettings | None,
    accept: Accept,
    failed: Callable[[Exception, str], None],
    handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
) -> Listener:
    """Listen, and hand each open, authenticated connection to ``accept``.

    Args:
        address: where; port 0 picks a free one, an empty host means all interfaces.
        tls: None for plain TCP.
        accept: called for each connection; returns its receiver.
        failed: called with the reason and the client's address when a handshake fails.
        handshake_timeout_s: how long a client may take to prove who it is.

    Raises:
        ConnectFailedError: the address cannot be listened on.
    """
    loop = asyncio.get_running_loop()
    unproven: dict[TlsTransport, None] = {}  # the oldest one first

    def plain() -> TcpTransport:
        return TcpTransport(accept)

    factory: Callable[[], TcpTransport] = plain
    if tls is not None:
        context = tls_context(tls.identity, side="server", verify=tls.verify)
        authorities = tls.identity.authorities if tls.verify else None

        def secure() -> TlsTransport:
            def proven(transport: Transport) -> Receiver:
                unproven.pop(made, None)
                return accept(transport)

            def not_proven(error: Exception, address: str) -> None:
                unproven.pop(made, None)
                failed(error, address)

            made = TlsTransport(
                context,
                authorities=authorities,
                side="server",
                accept=proven,
                failed=not_proven,
            )
            if len(unproven) >= MAX_UNPROVEN:
                next(iter(unproven)).fail_handshake(
                    HandshakeError("too many clients in their handshake")
                )
            unproven[made] = None
            reason = HandshakeError(
                f"no TLS handshake within {handshake_timeout_s:g} s"
            )
            made.handshake_timer = loop.call_later(
                handshake_timeout_s, made.fail_handshake, reason
            )
            return made

        factory = secure
    try:
        server = await loop.create_server(
            factory, address.host or None, address.port, backlog=_BACKLOG
        )
    except (OSError, UnicodeError) as exc:
        raise ConnectFailedError(f"cannot listen on {address}: {_reason(exc)}") from exc
    return Listener(server, unproven)


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
