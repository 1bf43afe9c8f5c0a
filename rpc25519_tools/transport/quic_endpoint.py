"""Dialling and listening over QUIC."""

import asyncio
import socket
from collections.abc import Callable
from typing import Final, TypeAlias

from rpc25519_tools.config import Address
from rpc25519_tools.transport.base import Accept, TlsSettings, format_address
from rpc25519_tools.transport.quic import QuicTransport
from rpc25519_tools.transport.quic_engine import (
    Doorman,
    Endpoint,
    FirstPacket,
    QuicEngine,
    destination_of,
    first_packet,
)
from rpc25519_tools.transport.udp_port import UdpPort, open_port, source_for

Failed: TypeAlias = Callable[[Exception, str], None]
#: Makes the transport of a client that may come in.
MakeQuic: TypeAlias = Callable[[Accept, Failed], QuicTransport]

#: Handshakes from addresses that are not known to be true. Beyond these, a client first
#: has to show that it can receive what is sent to its address: a round trip more.
_MOST_UNCHECKED: Final = 32


async def resolve(address: Address, *, passive: bool) -> tuple[int, Endpoint]:
    """Return the family and the socket address of a host and port.

    Raises:
        OSError: the name does not resolve.
    """
    host = address.host or ("" if passive else "127.0.0.1")
    found = await asyncio.get_running_loop().getaddrinfo(
        host or None,
        address.port,
        type=socket.SOCK_DGRAM,
        flags=socket.AI_PASSIVE if passive else 0,
    )
    family, _, _, _, endpoint = found[0]
    return family, endpoint


async def dial(
    address: Address,
    settings: TlsSettings,
    *,
    accept: Accept,
    failed: Failed,
    local: Address | None,
    share: bool,
) -> QuicTransport:
    """Begin a connection; its handshake goes on by itself.

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
    family, endpoint = await resolve(address, passive=False)
    if local is None:
        own: Endpoint = ("::" if family == socket.AF_INET6 else "0.0.0.0", 0)  # noqa: S104
    else:
        _, own = await resolve(local, passive=True)
    port = open_port(family, own, destination_of, share=share)
    engine = QuicEngine("client", settings, peer_host=address.host or "127.0.0.1")
    made = QuicTransport(
        engine,
        port,
        endpoint,
        local=format_address(source_for(family, endpoint, port)),
        accept=accept,
        failed=failed,
    )
    made.connect()
    return made


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
            self._port.listen(None)
            self._port.release()

    def _stranger(self, data: bytes, endpoint: Endpoint) -> None:
        first = first_packet(data)
        if first is None:
            return
        if not first.is_ours:
            self._port.send_alone(self._doorman.refuse_version(first), endpoint)
            return
        now = self._loop.time()
        if first.token:
            original_id = self._doorman.original_id(first, endpoint, now)
            if original_id is not None:  # else from before we started, say
                self._begin(data, endpoint, first, original_id)
        elif self._unproven() >= _MOST_UNCHECKED:
            self._port.send_alone(self._doorman.retry(first, endpoint, now), endpoint)
        else:
            self._begin(data, endpoint, first, first.destination_id)

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
        if made is not None:
            made.answer(data, first.destination_id)
