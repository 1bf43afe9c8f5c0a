"""What tests of clients that connect again share: services and addresses."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from rpc25519_tools.errors import (
    ConnectFailedError,
    HandlerError,
)
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.reconnect import Backoff, PersistentClient
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from tests.rpc.nets import Net

QUICK = Backoff(first_s=0.005, longest_s=0.02)


class Math:
    def half(self, number: int) -> int:
        return number // 2


class Counting:
    """Counts runs of an idempotent service."""

    def __init__(self) -> None:
        self.runs = 0

    def registry(self) -> Registry:
        registry = Registry()

        @registry.call("double")
        async def double(context: CallContext) -> bytes:
            self.runs += 1
            await asyncio.sleep(0)
            return bytes(context.payload) * 2

        @registry.call("refuse")
        async def refuse(context: CallContext) -> None:
            self.runs += 1
            raise HandlerError("never")

        registry.register(Math())
        return registry


def persistent(net: Net, address: str, **settings: Any) -> PersistentClient:
    backoff = settings.pop("backoff", QUICK)
    return PersistentClient(net.config(address, "client", **settings), backoff=backoff)


async def start(net: Net, registry: Registry, address: str) -> Server:
    """Start a server, also where one has just been."""
    server = Server(net.config(address, "node"), registry)
    for _ in range(200):
        with contextlib.suppress(ConnectFailedError):
            await server.start()
            return server
        await asyncio.sleep(0.01)
    raise AssertionError("the port stays in use")


async def crash(server: Server) -> None:
    """End a server in the manner of one that is killed."""
    for transport in server.clients:
        transport.abort()
    await server.aclose()


@contextlib.asynccontextmanager
async def silent_address() -> AsyncIterator[str]:
    """Yield an address where connections open and nothing ever comes."""

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(1 << 16):
                pass
        writer.close()

    server = await asyncio.start_server(wait, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"
    finally:
        server.close()
        await server.wait_closed()


async def free_address() -> str:
    """Return an address where nobody listens."""
    async with silent_address() as address:
        return address


class Asked:
    """Answers with a pass phrase, and counts how often."""

    def __init__(self, phrase: bytes = b"correct horse") -> None:
        self.times = 0
        self._phrase = phrase

    def __call__(self) -> bytes:
        self.times += 1
        return self._phrase
