"""Connections as users see them: kept alive, fair, made anew, brought to an end."""

import asyncio
import contextlib
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.errors import (
    ConfigError,
    ConnectFailedError,
    ConnectionLostError,
    DeadlineError,
    HandshakeError,
)
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.reconnect import Backoff, PersistentClient
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.rpc.streams import OutgoingStream
from rpc25519_tools.wire.message import CallType
from tests.helpers import until
from tests.rpc.nets import Net, Seen, raw_client, raw_server

# Keep-alives and time limits of connections.


async def test_keep_alives_are_sent_when_nothing_else_is(memory: Net) -> None:
    async with raw_server(memory, keepalive_s=0.05) as (peer, _):
        await until(lambda: len(peer.messages) >= 3, what="keep-alives")
        assert {one.header.call_type for one in peer.messages} == {CallType.KEEP_ALIVE}
        assert all(one.header.created_ns is None for one in peer.messages)
    async with (
        memory.server(Registry(), keepalive_s=0.05),
        raw_client(memory) as other,
    ):
        await until(lambda: len(other.messages) >= 3, what="keep-alives")


async def test_silence_ends_a_connection_and_keep_alives_prevent_it(net: Net) -> None:
    async with net.server(Registry()) as server:
        client = await net.client(server, read_timeout_s=0.1)
        await until(lambda: client.is_down)
        with pytest.raises((ConnectionLostError, DeadlineError), match="nothing was"):
            await client.call("x")
        await client.aclose()
    async with net.server(Registry(), keepalive_s=0.02) as server:
        client = await net.client(server, read_timeout_s=0.3)
        silent_until = time.monotonic() + 0.6
        await until(lambda: client.is_down or time.monotonic() > silent_until)
        assert not client.is_down
        await client.aclose()


async def test_a_peer_that_takes_nothing_is_given_up(net: Net) -> None:
    seen = Seen()
    async with net.server(Registry(), seen) as server:
        client = await net.client(server, write_timeout_s=0.2, compression="none")
        await until(lambda: seen.open)
        seen.open[0].pause_reading()

        async def send_for_ever() -> None:
            while True:
                await client.send_one_way("x", bytes(1 << 20))

        with pytest.raises((ConnectionLostError, DeadlineError), match="took nothing"):
            await send_for_ever()
        await client.aclose()


# Fairness.


async def test_small_calls_pass_a_bulk_stream(net: Net) -> None:
    registry = Registry()

    @registry.call("echo")
    async def echo(context: CallContext) -> bytes:
        return bytes(context.payload)

    @registry.download("bulk")
    async def bulk(context: CallContext, out: OutgoingStream) -> None:
        for number in range(300):
            await out.send(bytes(1 << 20), last=number == 299)

    async with net.pair(registry, compression="none") as (_, client):
        done = 0

        async def read() -> None:
            async with client.download("bulk") as stream:
                async for _ in stream:
                    pass

        reading = asyncio.create_task(read())
        while not reading.done():
            await client.call("echo", b"small")
            done += 1
        await reading
    assert done >= 15


# Reconnecting.


@given(
    first=st.floats(0.001, 1),
    longest=st.floats(1, 100),
    factor=st.floats(1, 10),
    failures=st.integers(1, 10_000),
)
def test_waits_stay_in_their_bounds(
    first: float, longest: float, factor: float, failures: int
) -> None:
    backoff = Backoff(first_s=first, longest_s=longest, factor=factor, jitter=0.5)
    assert first / 2 <= backoff.wait_s(failures) + 1e-9
    assert backoff.wait_s(failures) <= longest


@pytest.mark.parametrize(
    "wrong", [{"first_s": 0}, {"factor": 0.5}, {"jitter": 2}, {"longest_s": 0.01}]
)
def test_a_backoff_is_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Backoff(**wrong)


def echoing() -> Registry:
    registry = Registry()

    @registry.call("echo")
    async def echo(context: CallContext) -> bytes:
        return bytes(context.payload)

    return registry


async def test_a_persistent_client_outlives_its_server(certs: Any) -> None:
    net = Net("tls", certs)
    server = Server(net.config("127.0.0.1:0", "node"), echoing())
    await server.start()
    address = server.address
    async with PersistentClient(
        net.config(address, "client"), backoff=Backoff(first_s=0.01)
    ) as client:
        assert client.is_down
        assert (await client.call("echo", b"1")).payload == b"1"
        await server.aclose()
        call = asyncio.create_task(client.call("echo", b"2", timeout_s=10))
        await until(lambda: client.is_down)
        server = Server(net.config(address, "node"), echoing())
        await start_again(server)
        assert (await call).payload == b"2"
        assert client.connections == 2
        await server.aclose()
        # What it fails with depends on whether the end was noticed already.
        gone = (ConnectFailedError, ConnectionLostError, DeadlineError)
        with pytest.raises(gone):
            await client.call("echo", b"3", timeout_s=0.2)


async def start_again(server: Server) -> None:
    for _ in range(100):
        with contextlib.suppress(ConnectFailedError):
            await server.start()
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the port stays in use")


async def test_a_server_that_is_not_trusted_is_asked_once(
    certs: Any, other_certs: Any
) -> None:
    seen = Seen()
    async with Net("tls", certs).server(echoing(), seen) as server:
        config = Net("tls", other_certs).config(server.address, "client")
        async with PersistentClient(config) as client:
            with pytest.raises(HandshakeError):
                await client.call("echo", b"", timeout_s=5)
        await until(lambda: seen.refusals)
        assert len(seen.refusals) == 1


# Servers come and go.


async def test_a_server_stops_within_its_grace(net: Net) -> None:
    registry, go = Registry(), asyncio.Event()

    @registry.call("wait")
    async def wait(context: CallContext) -> bytes:
        await go.wait()
        return b"done"

    server = Server(net.config("127.0.0.1:0", "node"), registry, grace_s=5)
    async with server:
        client = await net.client(server)
        call = asyncio.create_task(client.call("wait"))
        await until(lambda: any(one.tasks() for one in server._connections))
        go.set()
    assert (await call).payload == b"done"
    await client.aclose()
