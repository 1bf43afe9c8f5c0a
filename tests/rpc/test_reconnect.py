"""A client that connects again when its connection is lost."""

import asyncio
import contextlib
import itertools
import math
import socket
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rpc25519_tools.config import Config
from rpc25519_tools.errors import (
    ConnectFailedError,
    ConnectionLostError,
    DeadlineError,
    HandshakeCutError,
    HandshakeError,
    KeyFileError,
    LocalProtocolError,
    NoSuchServiceError,
    RemoteCallError,
    Rpc25519Error,
)
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import handling_until
from rpc25519_tools.rpc.reconnect import Backoff
from rpc25519_tools.rpc.registry import Registry
from tests.helpers import until
from tests.rpc.nets import Net, Seen
from tests.rpc.offers import Waiting
from tests.rpc.returning import (
    QUICK,
    Asked,
    Counting,
    crash,
    free_address,
    persistent,
    silent_address,
    start,
)


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the times at which connections were tried."""
    times: list[float] = []
    connect = Client.connect

    async def counting(*args: Any, **kwargs: Any) -> Client:
        times.append(time.monotonic())
        return await connect(*args, **kwargs)

    monkeypatch.setattr(Client, "connect", counting)
    return times


# Connections that are lost.


async def test_it_connects_when_there_is_something_to_do(sockets: Net) -> None:
    counting = Counting()
    async with sockets.server(counting.registry()) as server:
        client = persistent(sockets, server.address)
        assert [client.is_down, client.connections] == [True, 0]
        async with client:
            assert (await client.call("double", b"a")).payload == b"aa"
            assert await client.netrpc_call("Math.Half", 8, int) == 4
            assert [client.is_down, client.connections] == [False, 1]
            assert len(server.clients) == 1
        await until(lambda: not server.clients)


async def test_a_server_that_restarts_in_mid_use_loses_no_call(sockets: Net) -> None:
    counting = Counting()
    server = await start(sockets, counting.registry(), "127.0.0.1:0")
    address, stop = server.address, False
    done = [0] * 4

    async def work(worker: int) -> None:
        while not stop:
            text = b"%d" % done[worker]
            reply = await client.call("double", text, timeout_s=10)
            assert reply.payload == text * 2
            done[worker] += 1

    async with persistent(sockets, address) as client:
        working = [asyncio.create_task(work(worker)) for worker in range(4)]
        for _ in range(3):
            before = min(done)
            await until(lambda before=before: min(done) > before + 5)  # type: ignore[misc]
            await crash(server)
            server = await start(sockets, counting.registry(), address)
        before = min(done)
        await until(lambda: min(done) > before + 5)
        stop = True
        await asyncio.gather(*working)
        assert client.connections == 4
    assert counting.runs >= sum(done)
    await server.aclose()


async def test_a_call_that_was_running_is_made_again(sockets: Net) -> None:
    registry, waiting = Registry(), Waiting()
    registry.add_call("wait", waiting)
    async with (
        sockets.server(registry) as server,
        persistent(sockets, server.address) as client,
    ):
        call = asyncio.create_task(client.call("wait", b""))
        for count in range(1, 4):
            await until(lambda count=count: waiting.started == count)  # type: ignore[misc]
            (transport,) = server.clients
            server.disconnect(transport.remote_address)
        await until(lambda: waiting.started == 4)
        waiting.go.set()
        assert (await call).payload == b"done"
        assert client.connections == 4


async def test_calls_at_the_same_time_share_one_connection(sockets: Net) -> None:
    counting = Counting()
    async with (
        sockets.server(counting.registry()) as server,
        persistent(sockets, server.address) as client,
    ):
        await asyncio.gather(*(client.call("double", b"x") for _ in range(20)))
        assert client.connections == 1
        server.disconnect(server.clients[0].remote_address)
        await until(lambda: client.is_down)
        await asyncio.gather(*(client.call("double", b"x") for _ in range(20)))
        assert client.connections == 2
        assert len(server.clients) == 1


async def test_a_server_that_comes_late_is_found(
    tcp: Net, attempts: list[float]
) -> None:
    address = await free_address()
    async with persistent(tcp, address) as client:
        call = asyncio.create_task(client.call("double", b"a"))
        await until(lambda: len(attempts) >= 3)
        server = await start(tcp, Counting().registry(), address)
        assert (await call).payload == b"aa"
        assert client.connections == 1
    await server.aclose()


async def test_a_connection_that_liveness_ended_is_made_again(tcp: Net) -> None:
    """The end of a peer that fell silent is no deadline of the call's own."""
    registry, waiting = Registry(), Waiting()
    registry.add_call("wait", waiting)
    async with (
        tcp.server(registry) as server,
        persistent(tcp, server.address, read_timeout_s=0.1) as client,
    ):
        call = asyncio.create_task(client.call("wait", b"", timeout_s=10))
        await until(lambda: waiting.started == 2)
        waiting.go.set()
        assert (await call).payload == b"done"
        assert client.connections == 2


async def test_a_handshake_that_takes_too_long_is_tried_again(
    certs: Path, attempts: list[float]
) -> None:
    net = Net("tls", certs)
    async with silent_address() as address:
        client = persistent(net, address, connect_timeout_s=0.03)
        async with client:
            with pytest.raises(DeadlineError):
                await client.call("double", b"", timeout_s=0.3)
    assert len(attempts) >= 3


# Giving up.


async def test_it_gives_up_at_its_time_limit(tcp: Net, attempts: list[float]) -> None:
    async with persistent(tcp, await free_address()) as client:
        begin_s = time.monotonic()
        with pytest.raises((ConnectFailedError, DeadlineError)):
            await client.call("double", b"", timeout_s=0.15)
        assert time.monotonic() - begin_s < 3
    assert len(attempts) >= 4
    assert attempts[-1] - begin_s < 0.15 + 0.05  # a busy machine notes it later
    waits = [after - before for before, after in itertools.pairwise(attempts)]
    assert all(wait_s >= QUICK.first_s * (1 - QUICK.jitter) for wait_s in waits)


async def test_the_configured_time_limit_holds_where_the_caller_names_none(
    tcp: Net,
) -> None:
    async with persistent(tcp, await free_address(), call_timeout_s=0.05) as client:
        with pytest.raises((ConnectFailedError, DeadlineError)):
            await client.call("double", b"")
        with pytest.raises((ConnectFailedError, DeadlineError)):
            await client.netrpc_call("Math.Half", 8, int)


async def test_a_connection_attempt_ends_with_the_time_limit(certs: Path) -> None:
    net = Net("tls", certs)
    async with silent_address() as address, persistent(net, address) as client:
        begin_s = time.monotonic()
        with pytest.raises(DeadlineError, match=f"no connection to {address}"):
            await client.call("double", b"", timeout_s=0.05)
        assert time.monotonic() - begin_s < 3


async def test_a_running_call_ends_with_the_time_limit(tcp: Net) -> None:
    registry, waiting = Registry(), Waiting()
    registry.add_call("wait", waiting)
    async with (
        tcp.server(registry) as server,
        persistent(tcp, server.address) as client,
    ):
        with pytest.raises(DeadlineError):
            await client.call("wait", b"", timeout_s=0.05)
        await until(lambda: waiting.cancelled == 1)
        assert waiting.started == 1
        assert client.connections == 1


async def test_in_a_handler_its_deadline_is_the_limit(
    tcp: Net, attempts: list[float]
) -> None:
    async with persistent(tcp, await free_address()) as client:
        begin_s = time.monotonic()
        with (
            handling_until(begin_s + 0.1),
            pytest.raises((ConnectFailedError, DeadlineError)),
        ):
            await asyncio.wait_for(client.call("double", b"", timeout_s=10), 3)
        with (
            handling_until(begin_s - 1),
            pytest.raises((ConnectFailedError, DeadlineError)),
        ):
            await asyncio.wait_for(client.call("double", b"", timeout_s=10), 3)
    assert attempts[-1] - begin_s < 0.5


@pytest.mark.parametrize("refuses", ["client", "server"])
async def test_a_peer_that_is_not_trusted_is_asked_once(
    certs: Path, other_certs: Path, attempts: list[float], refuses: str
) -> None:
    seen, net = Seen(), Net("tls", other_certs)
    verify = refuses == "client"
    async with Net("tls", certs).server(Counting().registry(), seen) as server:
        async with persistent(net, server.address, verify_peer=verify) as client:
            with pytest.raises(HandshakeError):
                await client.call("double", b"", timeout_s=5)
        await until(lambda: seen.refusals)
    assert len(attempts) == len(seen.refusals) == 1


async def test_missing_keys_are_looked_for_once(
    certs: Path, attempts: list[float], tmp_path: Path
) -> None:
    asked = Asked()
    async with persistent(
        Net("tls", tmp_path), "127.0.0.1:1", passphrase=asked
    ) as client:
        with pytest.raises(KeyFileError):
            await client.call("double", b"", timeout_s=5)
    assert not attempts
    assert not asked.times


# Handshakes that are cut, as by a balancer whose server is just restarting.


@contextlib.asynccontextmanager
async def flapping(address: str, how: str, times: int) -> AsyncIterator[str]:
    """Yield an address that leads to another, but not the first so many times."""
    host, port = address.rsplit(":", 1)
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal times
        times -= 1
        if times >= 0:
            if how != "at once":
                await reader.read(100)
            if how == "reset":
                linger = struct.pack("ii", 1, 0)
                connection = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            writer.close()
            return
        there, back = await asyncio.open_connection(host, int(port))
        for ends in ((reader, back), (there, writer)):
            task = asyncio.create_task(pump(*ends))
            pumps.add(task)
            task.add_done_callback(pumps.discard)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield "{}:{}".format(*server.sockets[0].getsockname())
    finally:
        server.close()
        await until(lambda: not pumps)


@pytest.mark.parametrize("how", ["at once", "after a while", "reset"])
@pytest.mark.parametrize("kind", ["tls", "HTTP CONNECT"])
async def test_a_handshake_that_is_cut_is_tried_again(
    certs: Path, attempts: list[float], kind: str, how: str
) -> None:
    net = Net("tls" if kind == "tls" else "tcp", certs)
    settings: dict[str, Any] = {"http_connect": True} if kind != "tls" else {}
    counting = Counting()
    async with (
        net.server(counting.registry(), **settings) as server,
        flapping(server.address, how, 2) as address,
        persistent(net, address, **settings) as client,
    ):
        assert (await client.call("double", b"a", timeout_s=5)).payload == b"aa"
        assert client.connections == 1
    assert len(attempts) == 3


async def test_handshakes_that_are_always_cut_end_with_the_time_limit(
    certs: Path, attempts: list[float]
) -> None:
    async with (
        flapping("127.0.0.1:1", "at once", 1_000_000) as address,
        persistent(Net("tls", certs), address) as client,
    ):
        with pytest.raises((HandshakeCutError, DeadlineError)):
            await client.call("double", b"a", timeout_s=0.2)
    assert len(attempts) > 1


@pytest.mark.parametrize("limit", [math.inf, math.nan, "5"], ids=repr)
async def test_what_is_no_time_limit_is_refused(
    tcp: Net, attempts: list[float], limit: Any
) -> None:
    async with persistent(tcp, "127.0.0.1:1") as client:
        with pytest.raises(LocalProtocolError, match="must be a number of seconds"):
            await client.call("double", b"a", timeout_s=limit)
    assert not attempts


# What is not tried again.


@pytest.mark.parametrize(
    ("name", "payload", "error"),
    [
        ("refuse", b"", RemoteCallError),
        ("missing", b"", NoSuchServiceError),
        ("double", memoryview(bytes(1 << 26)), LocalProtocolError),
    ],
)
async def test_what_no_connection_can_cure_is_not_tried_again(
    tcp: Net, name: str, payload: bytes, error: type[Rpc25519Error]
) -> None:
    counting = Counting()
    async with (
        tcp.server(counting.registry()) as server,
        persistent(tcp, server.address, compression="none") as client,
    ):
        with pytest.raises(error):
            await client.call(name, payload)
        assert counting.runs == (name == "refuse")
        assert client.connections == 1
        assert (await client.call("double", b"a")).payload == b"aa"


async def test_a_cancelled_call_is_not_made_again(tcp: Net) -> None:
    registry, waiting = Registry(), Waiting()
    registry.add_call("wait", waiting)
    async with (
        tcp.server(registry) as server,
        persistent(tcp, server.address) as client,
    ):
        call = asyncio.create_task(client.call("wait", b""))
        await until(lambda: waiting.started)
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        await until(lambda: waiting.cancelled)
        assert waiting.started == 1


async def test_a_caller_that_gives_up_connecting_harms_no_other(certs: Path) -> None:
    net = Net("tls", certs)
    counting = Counting()
    async with (
        net.server(counting.registry()) as server,
        persistent(net, server.address) as client,
    ):
        calls = [asyncio.create_task(client.call("double", b"x")) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        calls[0].cancel()  # it is the one that connects
        await asyncio.wait(calls)
        assert [call.cancelled() for call in calls] == [True, False, False]
        assert all(call.result().payload == b"xx" for call in calls[1:])


# Closing.


async def test_closing_ends_a_running_call(sockets: Net) -> None:
    registry, waiting = Registry(), Waiting()
    registry.add_call("wait", waiting)
    async with sockets.server(registry) as server:
        client = persistent(sockets, server.address)
        call = asyncio.create_task(client.call("wait", b""))
        await until(lambda: waiting.started)
        await client.aclose()
        with pytest.raises(ConnectionLostError):
            await call
        await until(lambda: not server.clients)
        with pytest.raises(ConnectionLostError, match="closed"):
            await client.call("wait", b"")
        assert client.connections == 1
        await client.aclose()


async def test_closing_ends_a_wait_between_attempts(
    tcp: Net, attempts: list[float]
) -> None:
    slow = Backoff(first_s=30, longest_s=30)
    client = persistent(tcp, await free_address(), backoff=slow)
    call = asyncio.create_task(client.call("double", b"", timeout_s=100))
    await until(lambda: attempts)
    for _ in range(10):
        await asyncio.sleep(0.001)
    await client.aclose()
    with pytest.raises(ConnectionLostError, match="closed"):
        await asyncio.wait_for(call, 2)
    assert len(attempts) == 1


async def test_closing_ends_an_attempt(certs: Path) -> None:
    async with silent_address() as address:
        client = persistent(Net("tls", certs), address)
        call = asyncio.create_task(client.call("double", b"", timeout_s=100))
        for _ in range(10):
            await asyncio.sleep(0.001)
        await client.aclose()
        with pytest.raises(ConnectionLostError, match="closed"):
            await asyncio.wait_for(call, 2)


async def test_a_connection_that_opens_after_closing_is_closed(
    tcp: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, go = asyncio.Event(), asyncio.Event()
    connect = Client.connect

    async def slow_connect(config: Config, *args: Any) -> Client:
        client = await connect(config, *args)
        opened.set()
        with contextlib.suppress(asyncio.CancelledError):
            await go.wait()
        return client

    monkeypatch.setattr(Client, "connect", slow_connect)
    async with tcp.server(Counting().registry()) as server:
        client = persistent(tcp, server.address)
        call = asyncio.create_task(client.call("double", b"a"))
        await opened.wait()
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0)
        go.set()
        await closing
        with pytest.raises(ConnectionLostError):
            await call
        await until(lambda: not server.clients, timeout_s=2, what="the end of it")
        assert client.is_down
