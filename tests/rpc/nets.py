"""Clients and servers over four networks: memory; TCP, TLS and QUIC on loopback."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.identity.access import AccessPolicy
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server, ServerObserver
from rpc25519_tools.transport.base import WRITE_HIGH_WATER_LEN, Transport
from tests.rpc.memory import MemoryNetwork, RawPeer


def is_backed_up(transport: Transport) -> bool:
    """Tell whether so much is unsent that a sender may have to wait.

    One that waits does so until asyncio's low-water mark, a quarter of the high one:
    anything above that can last.
    """
    return transport.unsent_len > WRITE_HIGH_WATER_LEN // 4


@dataclass
class Seen(ServerObserver):
    """What a server has told about its connections."""

    open: list[Transport] = field(default_factory=list)
    closed: list[Exception] = field(default_factory=list)
    refusals: list[Exception] = field(default_factory=list)

    def connected(self, transport: Transport) -> None:
        self.open.append(transport)

    def disconnected(self, transport: Transport, reason: Exception) -> None:
        self.open.remove(transport)
        self.closed.append(reason)

    def refused(self, address: str, reason: Exception) -> None:
        self.refusals.append(reason)


@dataclass
class Net:
    """One kind of network, to serve and to connect on."""

    network: Literal["tcp", "tls", "quic"]
    certs: Path
    memory: MemoryNetwork | None = None

    @property
    def scheme(self) -> str:
        """What the addresses in messages begin with."""
        return "udp" if self.network == "quic" else "tcp"

    def config(self, address: str, key_name: str, **settings: Any) -> Config:
        return Config(
            address=parse_address(address),
            network=self.network,
            key_name=key_name,
            certs_dir=str(self.certs),
            **settings,
        )

    @contextlib.asynccontextmanager
    async def server(
        self,
        registry: Registry,
        observer: Seen | None = None,
        *,
        reveal_errors: bool = True,
        access: AccessPolicy | None = None,
        **settings: Any,
    ) -> AsyncIterator[Server]:
        """Run a server; ``settings`` are fields of its Config."""
        server = Server(
            self.config("127.0.0.1:0", "node", **settings),
            registry,
            observer,
            reveal_errors=reveal_errors,
            access=access,
        )
        await server.start()
        try:
            yield server
        finally:
            await server.aclose()

    async def client(self, server: Server, **settings: Any) -> Client:
        return await Client.connect(self.config(server.address, "client", **settings))

    @contextlib.asynccontextmanager
    async def pair(
        self, registry: Registry, **settings: Any
    ) -> AsyncIterator[tuple[Server, Client]]:
        """Run a server with one client; both get the same ``settings``."""
        async with self.server(registry, **settings) as server:
            client = await self.client(server, **settings)
            async with client:
                yield server, client


@contextlib.asynccontextmanager
async def raw_client(net: Net) -> AsyncIterator[RawPeer]:
    """Connect to the server of a memory network without any Client."""
    assert net.memory is not None
    peers: list[RawPeer] = []

    def accept(transport: Transport) -> RawPeer:
        peers.append(RawPeer(transport))
        return peers[0]

    transport = net.memory.dial(accept)
    try:
        yield peers[0]
    finally:
        transport.abort()


@contextlib.asynccontextmanager
async def raw_server(
    net: Net, **settings: Any
) -> AsyncIterator[tuple[RawPeer, Client]]:
    """Connect a Client to a peer that only speaks frames."""
    assert net.memory is not None
    peers: list[RawPeer] = []

    def accept(transport: Transport) -> RawPeer:
        peers.append(RawPeer(transport))
        return peers[0]

    net.memory.accept = accept
    config = net.config("127.0.0.1:8443", "client", **settings)
    async with await Client.connect(config) as client:
        yield peers[0], client


def calls_of(server: Server) -> list[asyncio.Task[None]]:
    """Return the tasks of the calls that a server has."""
    return [task for one in server._connections for task in one.tasks()]
