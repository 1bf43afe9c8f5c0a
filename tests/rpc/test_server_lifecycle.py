"""How servers start and stop, and what becomes of their calls then."""

import asyncio
import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest

from rpc25519_tools.errors import (
    ConnectFailedError,
    ConnectionLostError,
    HandshakeError,
    KeyFileError,
    LocalProtocolError,
    RemoteCallError,
)
from rpc25519_tools.rpc import connection
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.rpc.streams import IncomingStream
from tests.helpers import until
from tests.rpc.memory import Plan
from tests.rpc.nets import Net, raw_client
from tests.rpc.offers import services
from tests.rpc.waiting import waiting_call, waiting_services


def server_of(net: Net, registry: Registry, *, grace_s: float = 1.0) -> Server:
    return Server(net.config("127.0.0.1:0", "node"), registry, grace_s=grace_s)


# Starting and leaving.


async def test_the_context_manager_serves_inside_and_stops_outside(net: Net) -> None:
    registry, _ = waiting_services()
    async with server_of(net, registry) as server:
        client = await net.client(server)
        assert (await client.call("echo", b"x")).payload == b"x"
    await until(lambda: client.is_down)
    with pytest.raises(ConnectionLostError):
        await client.call("echo", b"")
    await client.aclose()
    assert server.clients == []


async def test_leaving_gives_running_calls_their_grace(net: Net) -> None:
    registry, waiting = waiting_services()
    async with contextlib.AsyncExitStack() as stack:
        server = server_of(net, registry, grace_s=10)
        leaving = asyncio.Event()

        async def serve() -> None:
            async with server:
                await leaving.wait()

        serving = asyncio.create_task(serve())
        await until(lambda: server._listener)
        client = await stack.enter_async_context(await net.client(server))
        call = await stack.enter_async_context(waiting_call(client, waiting))
        leaving.set()
        await until(lambda: server.stopping)
        assert not serving.done()
        waiting.go.set()
        await serving
        assert getattr(await call, "payload", None) == b"done"
        assert waiting.cancelled == 0


async def test_leaving_ends_calls_that_take_longer_than_their_grace(net: Net) -> None:
    registry, waiting = waiting_services()
    async with server_of(net, registry, grace_s=0.05) as server:
        client = await net.client(server)
        call = asyncio.create_task(client.call("wait", b""))
        await until(lambda: waiting.started)
        begin_s = time.monotonic()
    assert 0.05 <= time.monotonic() - begin_s < 5
    with pytest.raises(RemoteCallError, match="the server is shutting down"):
        await call
    assert waiting.cancelled == 1
    await client.aclose()


async def test_an_error_inside_leaves_nothing_open(tcp: Net) -> None:
    registry, _ = waiting_services()
    server, clients = server_of(tcp, registry), []

    async def serve_and_fail() -> None:
        async with server:
            clients.append(await tcp.client(server))
            raise KeyError

    with pytest.raises(KeyError):
        await serve_and_fail()
    await until(lambda: clients[0].is_down)
    await clients[0].aclose()
    assert server.clients == []


async def test_a_server_that_cannot_start_says_why(certs: Path, tmp_path: Path) -> None:
    net = Net("tcp", certs)
    async with net.server(Registry()) as first:
        second = Server(net.config(first.address, "node"), Registry())
        with pytest.raises(ConnectFailedError, match="the port is in use"):
            await second.start()
        with pytest.raises(ConnectFailedError, match="the port is in use"):
            async with second:
                pass
        await second.aclose()
    keyless = Server(Net("tls", tmp_path).config("127.0.0.1:0", "node"), Registry())
    with pytest.raises(KeyFileError):
        await keyless.start()
    await keyless.aclose()


async def test_an_address_is_free_again_when_the_server_has_stopped(
    sockets: Net,
) -> None:
    registry, _ = waiting_services()
    async with sockets.server(registry) as server:
        address = server.address
        client = await sockets.client(server)
        await client.call("echo", b"")
        await client.aclose()
    again = Server(sockets.config(address, "node"), registry)
    async with again:
        assert again.address == address
        async with await sockets.client(again) as client:
            await client.call("echo", b"")


async def test_two_servers_may_share_their_services(tcp: Net) -> None:
    registry, _ = waiting_services()
    async with tcp.server(registry) as one, tcp.server(registry) as other:
        for server in (one, other):
            async with await tcp.client(server) as client:
                await client.call("echo", b"")
        assert one.address != other.address


# Stopping.


async def test_a_server_that_does_nothing_stops_at_once(net: Net) -> None:
    registry, _ = waiting_services()
    async with net.server(registry) as server, await net.client(server) as client:
        await client.call("echo", b"")
        begin_s = time.monotonic()
        await server.stop(grace_s=30)
        assert time.monotonic() - begin_s < 5
        assert server.clients == []
        await until(lambda: client.is_down)


async def test_stopping_takes_no_longer_than_its_calls(net: Net) -> None:
    registry, waiting = waiting_services()
    async with (
        net.server(registry) as server,
        await net.client(server) as client,
        waiting_call(client, waiting) as call,
    ):
        begin_s = time.monotonic()
        stopping = asyncio.create_task(server.stop(grace_s=30))
        await until(lambda: server.stopping)
        with pytest.raises(RemoteCallError, match="the server is shutting down"):
            await client.call("echo", b"")
        assert not stopping.done()
        waiting.go.set()
        await stopping
        assert time.monotonic() - begin_s < 5
        assert getattr(await call, "payload", None) == b"done"


async def test_during_the_grace_streams_go_on_and_nobody_new_is_served(
    sockets: Net,
) -> None:
    registry, _ = waiting_services()
    async with (
        sockets.server(registry) as server,
        await sockets.client(server) as client,
        client.upload("collect", b"a") as stream,
    ):
        await until(lambda: any(one.tasks() for one in server._connections))
        stopping = asyncio.create_task(server.stop(grace_s=30))
        await until(lambda: server.stopping)
        with pytest.raises((ConnectFailedError, HandshakeError)):
            await sockets.client(server)
        await stream.send(b"b")
        await stream.send(b"", last=True)
        assert b"(1, b'b', False)" in bytes((await stream.reply()).payload)
        await stopping


async def test_stopping_without_grace_cancels_at_once(net: Net) -> None:
    registry, waiting = waiting_services()
    async with (
        net.server(registry) as server,
        await net.client(server) as client,
        waiting_call(client, waiting) as call,
        client.upload("wait") as up,
    ):
        await until(lambda: waiting.started == 2)
        begin_s = time.monotonic()
        await server.stop()
        assert time.monotonic() - begin_s < 5
        assert waiting.cancelled == 2
        for ended in (call, up.reply()):
            with pytest.raises(RemoteCallError, match="shutting down"):
                await ended


async def test_handlers_may_clean_up_when_the_server_stops(net: Net) -> None:
    registry, started, cleaned = services(), asyncio.Event(), []

    @registry.upload("careful")
    async def careful(context: CallContext, parts: IncomingStream) -> None:
        try:
            started.set()
            async for _ in parts:
                pass
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(1)

    async with (
        net.server(registry) as server,
        await net.client(server) as client,
        client.upload("careful"),
    ):
        await started.wait()
        await server.aclose()
        assert cleaned == [1]


async def test_a_plain_handler_is_told_that_the_server_stops(net: Net) -> None:
    registry, started, told = services(), threading.Event(), []

    @registry.call("block")
    def block(context: CallContext) -> None:
        started.set()
        told.append(context.cancellation.wait(10))

    async with net.server(registry) as server, await net.client(server) as client:
        call = asyncio.create_task(client.call("block", b""))
        await until(started.is_set)
        await server.stop(0.02)
        with pytest.raises(RemoteCallError, match="shutting down"):
            await call
        await until(lambda: told == [True])


async def test_stopping_again_and_all_at_once_is_the_same_as_once(net: Net) -> None:
    registry, waiting = waiting_services()
    async with net.server(registry) as server, await net.client(server) as client:
        async with waiting_call(client, waiting):
            await asyncio.gather(
                server.stop(0.05), server.stop(0.05), server.aclose(), server.aclose()
            )
            assert waiting.cancelled == 1
        await server.stop(1)
        await server.aclose()
        server.stop_accepting()
        await server.wait_until_idle()


async def test_a_server_that_never_started_can_be_stopped(tcp: Net) -> None:
    server = server_of(tcp, Registry())
    await server.stop(1)
    await server.aclose()


async def test_a_cancelled_stop_can_be_made_up_for(net: Net) -> None:
    registry, waiting = waiting_services()
    async with (
        net.server(registry) as server,
        await net.client(server) as client,
        waiting_call(client, waiting) as call,
    ):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await server.stop(grace_s=30)
        assert not call.done()
        assert waiting.cancelled == 0
        await server.stop()
        assert waiting.cancelled == 1


async def test_idle_means_that_calls_begun_meanwhile_are_over_too(memory: Net) -> None:
    registry, waiting = waiting_services()
    async with memory.pair(registry) as (server, client):
        first = asyncio.create_task(client.call("wait", b""))
        await until(lambda: waiting.started == 1)
        idle = asyncio.create_task(server.wait_until_idle())
        second = asyncio.create_task(client.call("wait", b""))
        await until(lambda: waiting.started == 2)
        first.cancel()
        await until(lambda: waiting.cancelled == 1)
        await client.call("echo", b"")
        assert not idle.done()
        waiting.go.set()
        await second
        await idle


@pytest.mark.usefixtures("no_leaked_fds")
async def test_nothing_stays_open(sockets: Net) -> None:
    registry, waiting = waiting_services()
    async with server_of(sockets, registry, grace_s=0) as server:
        clients = [await sockets.client(server) for _ in range(3)]
        calls = [asyncio.create_task(one.call("wait", b"")) for one in clients]
        await until(lambda: waiting.started == 3)
        clients[0].transport.abort()
        host, port = server.address.split(":")
        over_udp = sockets.network == "quic"
        silent = socket.socket(
            type=socket.SOCK_DGRAM if over_udp else socket.SOCK_STREAM
        )
        silent.connect((host, int(port)))
    await asyncio.wait(calls)
    for call in calls:
        assert isinstance(call.exception(), RemoteCallError | ConnectionLostError)
    for client in clients:
        await client.aclose()
    silent.close()


async def test_a_server_starts_once(tcp: Net) -> None:
    server = server_of(tcp, Registry())
    with pytest.raises(LocalProtocolError, match="has not been started"):
        _ = server.address
    async with server:
        address = server.address
        with pytest.raises(LocalProtocolError, match="started already"):
            await server.start()
        assert server.address == address
    with pytest.raises(LocalProtocolError, match="make another"):
        await server.start()
    with pytest.raises(ConnectFailedError):
        await Client.connect(tcp.config(address, "client"))


@pytest.mark.parametrize("how", ["stop", "aclose", "wait_until_idle"])
async def test_a_handler_may_stop_its_own_server(net: Net, how: str) -> None:
    registry, waiting = waiting_services()
    servers: list[Server] = []

    @registry.call("stop")
    async def stop(context: CallContext) -> bytes:
        if how == "stop":
            await servers[0].stop(0.05)
        elif how == "aclose":
            await servers[0].aclose()
        else:
            await servers[0].wait_until_idle()
        return b"done"

    async with (
        net.server(registry) as server,
        await net.client(server) as client,
        await net.client(server) as other,
    ):
        servers.append(server)
        if how == "wait_until_idle":
            assert (await client.call("stop", b"")).payload == b"done"
            return
        async with (
            waiting_call(other, waiting) as call,
            waiting_call(client, waiting) as beside,
        ):
            assert (await client.call("stop", b"")).payload == b"done"
            await until(lambda: not server.clients)
            for ended in (call, beside):
                with pytest.raises(RemoteCallError, match="shutting down"):
                    await ended
        await until(lambda: client.is_down and other.is_down)


async def test_stopping_closes_what_a_handler_that_stopped_it_has_left(
    memory: Net,
) -> None:
    registry, waiting = waiting_services()

    @registry.call("stop")
    async def stop(context: CallContext) -> None:
        await server.aclose()
        await waiting(context)

    async with memory.pair(registry) as (server, client):
        call = asyncio.create_task(client.call("stop", b""))
        await until(lambda: waiting.started)
        await server.aclose()
        assert not server.clients
        with pytest.raises((RemoteCallError, ConnectionLostError)):
            await call


async def test_leaving_that_is_cancelled_during_the_grace_ends_all_at_once(
    net: Net,
) -> None:
    registry, waiting = waiting_services()
    server, entered = server_of(net, registry, grace_s=30), asyncio.Event()

    async def serve() -> None:
        async with server:
            entered.set()
            await asyncio.Event().wait()

    serving = asyncio.create_task(serve())
    await entered.wait()
    async with await net.client(server) as client, waiting_call(client, waiting) as one:
        serving.cancel()
        await until(lambda: server.stopping)
        assert not serving.done()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert not server.clients
        with pytest.raises((ConnectionLostError, RemoteCallError)):
            await one
        await until(lambda: waiting.cancelled)


async def test_a_client_that_takes_nothing_does_not_hold_up_stopping(
    tcp: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_CLEANUP_TIMEOUT_S", 0.1)
    async with tcp.server(services()) as server:
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port))) as deaf:
            await until(lambda: server.clients)
            (one,) = server.clients
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    while True:
                        await server.push(one.remote_address, "news", bytes(1 << 20))
            assert one.unsent_len
            begin_s = time.monotonic()
            await server.stop()
            assert time.monotonic() - begin_s < 3
            assert deaf.fileno() >= 0
        assert not server.clients


async def test_a_client_that_takes_slowly_gets_all_before_the_end(
    memory: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_CLEANUP_TIMEOUT_S", 0.25)
    assert memory.memory is not None
    memory.memory.down = down = Plan(stall_at=0)
    async with (
        memory.server(services(), compression="none") as server,
        raw_client(memory) as peer,
    ):
        (one,) = server.clients
        await server.push(one.remote_address, "news", bytes(2000))
        closing = asyncio.create_task(server.aclose())
        end = memory.memory.server_ends[0]
        begin_s = time.monotonic()
        while not peer.messages and time.monotonic() - begin_s < 5:
            assert down.stall_at is not None
            down.stall_at += 100
            end.push()
            await asyncio.sleep(0.03)  # slow, but not for long enough to be given up
        await closing
        assert len(peer.messages[0].payload) == 2000
        assert time.monotonic() - begin_s > 0.25


async def test_abort_waits_for_nobody(net: Net) -> None:
    registry, waiting = waiting_services()
    async with net.server(registry) as server, await net.client(server) as client:
        async with waiting_call(client, waiting) as call:
            server.abort()
            assert not server.clients
            with pytest.raises(ConnectionLostError):
                await call
        await until(lambda: waiting.cancelled)
