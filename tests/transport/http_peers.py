"""What tests of HTTP CONNECT on sockets share: both ends, and peers made by hand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from rpc25519_tools.config import parse_address
from rpc25519_tools.limits import Limits
from rpc25519_tools.transport.base import Receiver, Transport
from rpc25519_tools.transport.endpoint import connect, listen
from rpc25519_tools.transport.http_connect import (
    ANSWER,
    REQUEST,
)
from tests.helpers import open_fds, until
from tests.transport.peers import Listening, Recorder

FLOWS = Path(__file__).parent.parent / "data" / "wire" / "flows"
DELAY = "rpc25519_tools.transport.http_connect.OPEN_DELAY_S"
NEVER_S = 1000.0
CLIENT_HELLO = bytes.fromhex("16030100c2010000be0303")
TLS_ALERT = bytes.fromhex("15030300020246")
NO_ANSWER = (
    "the server hung up instead of answering HTTP CONNECT "
    "(does it use TLS, or plain TCP without HTTP CONNECT?)"
)

leakless = pytest.mark.usefixtures("no_leaked_fds")
REQUESTS = [
    REQUEST,
    b"CONNECT /_goRPC_ HTTP/1.0\r\n\r\n",
    b"CONNECT /_goRPC_ HTTP/1.1\r\nHost: example.org\r\nX-Empty:\r\n\r\n",
    b"CONNECT /_goRPC_ HTTP/1.1\nA: 1\r\nB: \xe4\tb\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
]
ANSWERS = [
    ANSWER,
    b"HTTP/1.1 200 Connected to Go RPC\r\n\r\n",
    b"HTTP/1.0 200 Connected to Go RPC\r\nServer: x\r\n\r\n",
    b"HTTP/1.1 405 Method Not Allowed\r\nAllow: CONNECT\r\n\r\n",
    b"HTTP/1.1 200\n\n",
]
FRAMES = (FLOWS / "echo-none.c2s.bin").read_bytes()


@contextlib.asynccontextmanager
async def serving(
    *,
    accept: Callable[[Transport], Receiver] | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[Listening]:
    """Listen for HTTP CONNECT on a free port; every socket is closed afterwards."""
    found, before = Listening(), len(open_fds())
    listener = await listen(
        parse_address("127.0.0.1:0"),
        tls=None,
        accept=accept or found.accept,
        failed=found.fail,
        limits=limits,
        http_connect=True,
    )
    found.address, found.close = listener.address, listener.close
    try:
        yield found
    finally:
        listener.close()
        for recorder in found.accepted:
            recorder.transport.abort()
        await until(lambda: len(open_fds()) <= before, what="the sockets to be closed")


@contextlib.asynccontextmanager
async def calling(
    address: str,
    *,
    accept: Callable[[Transport], Receiver] = Recorder,
    timeout_s: float = 10.0,
) -> AsyncIterator[Recorder]:
    """Connect with HTTP CONNECT."""
    made: list[Receiver] = []

    def keep(transport: Transport) -> Receiver:
        made.append(accept(transport))
        return made[0]

    await connect(
        parse_address(address),
        tls=None,
        accept=keep,
        timeout_s=timeout_s,
        http_connect=True,
    )
    (recorder,) = made
    assert isinstance(recorder, Recorder)
    try:
        yield recorder
    finally:
        recorder.transport.abort()


class RawClient:
    """A client that sends what a test says."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, address: str, data: bytes = b"") -> AsyncIterator["RawClient"]:
        host, port = address.split(":")
        client = cls(*await asyncio.open_connection(host, int(port)))
        client.writer.write(data)
        try:
            yield client
        finally:
            client.writer.transport.abort()

    async def read_all(self) -> bytes:
        """Read until the server hangs up."""
        return await asyncio.wait_for(self.reader.read(), 10)

    async def expect_end(self) -> None:
        """Wait until the server has gone, in whatever way."""
        with contextlib.suppress(ConnectionError):
            await self.read_all()


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def raw_server(talk: Talk) -> AsyncIterator[str]:
    """Serve one client as a test says, and then until it hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await talk(reader, writer)
            await reader.read()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def saying(data: bytes, *, hang_up: bool = False) -> Talk:
    """Answer the exact request with ``data``."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(REQUEST)) == REQUEST
        writer.write(data)
        if hang_up:
            writer.write_eof()

    return talk
