"""The client of HTTP CONNECT on sockets."""

import asyncio

import pytest

from rpc25519_tools.errors import (
    ConnectFailedError,
    DeadlineError,
    HandshakeError,
)
from rpc25519_tools.transport.base import Receiver, Transport
from rpc25519_tools.transport.http_connect import (
    ANSWER,
    REQUEST,
)
from tests.helpers import until
from tests.transport.http_peers import (
    ANSWERS,
    FRAMES,
    NO_ANSWER,
    TLS_ALERT,
    calling,
    leakless,
    raw_server,
    saying,
)
from tests.transport.peers import Recorder


@leakless
@pytest.mark.parametrize("answer", ANSWERS[:3])
async def test_the_client_opens_with_the_answer(answer: bytes) -> None:
    async with (
        raw_server(saying(answer + FRAMES)) as address,
        calling(address) as ours,
    ):
        await until(lambda: ours.data == FRAMES)


@leakless
async def test_the_client_sends_nothing_before_the_whole_answer() -> None:
    made: list[Transport] = []

    def accept(transport: Transport) -> Receiver:
        made.append(transport)
        transport.write([b"frames"])
        return Recorder(transport)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(REQUEST)) == REQUEST
        for position in range(len(ANSWER)):
            assert not made
            writer.write(ANSWER[position : position + 1])
            await writer.drain()
        assert await reader.readexactly(6) == b"frames"
        writer.write(b"all is well")

    async with raw_server(talk) as address, calling(address, accept=accept) as ours:
        await until(lambda: ours.data == b"all is well")


@leakless
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\n\r\n405\n",
            "the server does not speak HTTP CONNECT (status 405 Method Not Allowed)",
        ),
        (
            b"HTTP/1.1 200 OK\r\n\r\n",
            "the server does not speak HTTP CONNECT (status 200 OK)",
        ),
        (
            TLS_ALERT,
            "the server speaks TLS, and this side HTTP CONNECT on plain TCP",
        ),
        (
            FRAMES,
            "the server sent frames right away: it does not use HTTP CONNECT",
        ),
        (
            b"SSH-2.0-OpenSSH_9.6p1\r\n",
            "the server does not speak HTTP CONNECT (it sent 'SSH-2.0-OpenSSH_9.6p1')",
        ),
        (
            b"\x1b[31mred\n",
            "the server does not speak HTTP CONNECT",
        ),
        (
            ANSWER[:-1] + b"x" * 10_000,
            "the server sent an HTTP head of more than 8192 bytes",
        ),
    ],
)
async def test_other_servers_are_refused(answer: bytes, reason: str) -> None:
    async with raw_server(saying(answer)) as address:
        with pytest.raises(HandshakeError) as caught:
            async with calling(address):
                pass
        assert str(caught.value) == reason


@leakless
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", NO_ANSWER),
        (b"HTTP/1.0 200 Conn", "the server hung up in the middle of HTTP CONNECT"),
    ],
)
async def test_a_server_that_hangs_up_is_told(answer: bytes, reason: str) -> None:
    async with raw_server(saying(answer, hang_up=True)) as address:
        with pytest.raises(HandshakeError) as caught:
            async with calling(address):
                pass
        assert str(caught.value) == reason


@leakless
@pytest.mark.parametrize("answer", [b"", ANSWER[:-1]])
async def test_a_slow_answer_runs_into_the_limit_for_connecting(
    answer: bytes,
) -> None:
    async with raw_server(saying(answer)) as address:
        with pytest.raises(DeadlineError, match=r"no answer from .* within 0\.05 s"):
            async with calling(address, timeout_s=0.05):
                pass


@leakless
async def test_waiting_for_the_answer_can_be_cancelled() -> None:
    asked = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(REQUEST))
        asked.set()

    async def call(address: str) -> None:
        async with calling(address):
            pass

    async with raw_server(talk) as address:
        task = asyncio.create_task(call(address))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@leakless
async def test_a_port_where_nobody_listens_is_told() -> None:
    async with raw_server(saying(b"")) as address:
        pass
    with pytest.raises(ConnectFailedError, match="nobody listens there"):
        async with calling(address):
            pass
