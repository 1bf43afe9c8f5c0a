"""Cancelled at any point where they wait, client and server leave nothing behind."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest

from rpc25519_tools.errors import Rpc25519Error
from rpc25519_tools.rpc.calls import CallKind, RsyncStep
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.connection import Connection
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream
from tests.helpers import until
from tests.rpc.netrpc_services import Args, Arith, Sum
from tests.rpc.nets import Net

MIB = 1 << 20


class CancelledAt:
    """Awaits something, and cancels the running task the nth time that it waits."""

    def __init__(self, inner: Awaitable[Any], nth: int) -> None:
        self.inner = inner
        self.left = nth
        self.struck = False

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self.inner.__await__()
        result: Any = None
        error: BaseException | None = None
        while True:
            try:
                waits_for = steps.send(result) if error is None else steps.throw(error)
            except StopIteration as stop:
                return stop.value
            if self.left == 0:
                self.struck = True
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            self.left -= 1
            result, error = None, None
            try:
                result = yield waits_for
            except BaseException as exc:  # noqa: BLE001  # passed on as it is
                error = exc


def services() -> Registry:
    registry = Registry()
    registry.register(Arith())

    @registry.call("echo")
    async def echo(context: CallContext) -> bytes:
        await asyncio.sleep(0)
        return bytes(context.payload)

    @registry.call("plain")
    def plain(context: CallContext) -> bytes:
        return bytes(context.payload)

    @registry.upload("sum")
    async def total(context: CallContext, parts: IncomingStream) -> bytes:
        return str(sum([len(part.payload) async for part in parts])).encode()

    @registry.download("count")
    async def count(context: CallContext, out: OutgoingStream) -> None:
        for number in range(4):
            await asyncio.sleep(0)
            await out.send(bytes(MIB), last=number == 3)

    @registry.bistream("relay")
    async def relay(
        context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> None:
        async for part in parts:
            await asyncio.sleep(0)
            await out.send(part.payload, last=part.last)

    @registry.rsync(CallKind.RSYNC_SEND, "sync")
    async def sync(
        context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> None:
        async for part in parts:
            await asyncio.sleep(0)
            await out.send(part.payload, step=RsyncStep.HASHES)
            if part.step is RsyncStep.DELTAS:
                return

    @registry.call("push")
    async def push(context: CallContext) -> None:
        await asyncio.sleep(0)

    return registry


async def call(client: Client) -> None:
    await client.call("echo", b"x" * MIB)


async def plain(client: Client) -> None:
    await client.call("plain", b"x")


async def netrpc(client: Client) -> None:
    assert await client.netrpc.call("Arith.Add", Args(1, 2), Sum) == Sum(3)


async def upload(client: Client) -> None:
    async with client.upload("sum", b"x" * MIB, timeout_s=10) as stream:
        for number in range(3):
            await stream.send(b"x" * MIB, last=number == 2)
        assert (await stream.reply()).payload == str(4 * MIB).encode()


async def download(client: Client) -> None:
    async with client.download("count") as stream:
        assert len([part async for part in stream]) == 4
        await stream.reply()


async def bistream(client: Client) -> None:
    async with client.bistream("relay", b"x") as stream:
        await stream.send(b"y", last=True)
        assert len([part async for part in stream]) == 2
        await stream.reply()


async def rsync(client: Client) -> None:
    async with client.rsync(CallKind.RSYNC_SEND, "sync", b"x") as stream:
        await stream.send(b"x" * MIB, step=RsyncStep.OVERVIEW)
        await stream.send(b"y", step=RsyncStep.DELTAS)
        assert len([part async for part in stream]) == 3
        await stream.reply()


async def one_way(client: Client) -> None:
    await client.send_one_way("nobody", b"x" * MIB)


SCENARIOS = [call, plain, netrpc, upload, download, bistream, rsync, one_way]


async def check_rest(server: Server, client: Client) -> None:
    """Make sure that nothing is left, and that both ends go on."""
    assert client.core.open_calls == 0
    assert not client._pending
    assert not client._deadlines._in_order
    assert not client._deadlines._apart
    assert not client._driver._outbox.waiting_count
    assert (await client.call("echo", b"still there")).payload == b"still there"
    for connection in server._connections:
        await until(lambda one=connection: not one._running)  # type: ignore[misc]  # bound now
        assert connection._core.open_calls == 0
        assert connection._held_len == 0
        assert not connection._deadlines._in_order
        assert not connection.driver._holds


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_client_cancelled_anywhere(
    memory: Net, scenario: Callable[[Client], Awaitable[None]]
) -> None:
    async with memory.pair(services(), compression="none") as (server, client):
        for nth in range(200):
            attempt = CancelledAt(scenario(client), nth)

            async def run(one: CancelledAt = attempt) -> None:
                await one

            task = asyncio.create_task(run())
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await check_rest(server, client)
            if not attempt.struck:
                assert nth > 0 or scenario is one_way
                return
        raise AssertionError("it never ended by itself")


@pytest.mark.parametrize("scenario", SCENARIOS[:-1])
async def test_a_server_cancelled_anywhere(
    net: Net,
    scenario: Callable[[Client], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    genuine = Connection._run
    attempts: list[CancelledAt] = []
    armed = False

    async def run(self: Connection, *args: Any) -> None:
        if not armed:
            await genuine(self, *args)
            return
        attempts.append(CancelledAt(genuine(self, *args), len(attempts)))
        await attempts[-1]

    monkeypatch.setattr(Connection, "_run", run)
    async with net.pair(services(), compression="none") as (server, client):
        for _ in range(200):
            armed = True
            client.call_timeout_s = 5
            with contextlib.suppress(Rpc25519Error, AssertionError):
                await asyncio.wait_for(scenario(client), 5)
            armed = False
            await check_rest(server, client)
            if not attempts[-1].struck:
                assert len(attempts) > 1
                return
        raise AssertionError("it never ended by itself")


async def test_connecting_cancelled_anywhere(net: Net) -> None:
    async with net.server(services()) as server:
        for nth in range(50):
            attempt = CancelledAt(net.client(server), nth)

            async def run(one: CancelledAt = attempt) -> Any:
                return await one

            try:
                client = await asyncio.create_task(run())
            except asyncio.CancelledError:
                continue
            assert not attempt.struck
            await check_rest(server, client)
            await client.aclose()
            await until(lambda: not server.clients)
            return
        raise AssertionError("it never connected")


async def test_closing_cancelled_anywhere(net: Net) -> None:
    for nth in range(50):
        async with net.server(services()) as server:
            client = await net.client(server)
            await client.call("echo")
            attempt = CancelledAt(client.aclose(), nth)

            async def run(one: CancelledAt = attempt) -> None:
                await one

            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.create_task(run())
            await until(lambda one=server: not one.clients)  # type: ignore[misc]  # bound now
            if not attempt.struck:
                return
    raise AssertionError("it never closed")


async def test_stopping_a_server_cancelled_anywhere(net: Net) -> None:
    for nth in range(50):
        server = Server(net.config("127.0.0.1:0", "node"), services())
        await server.start()
        client = await net.client(server)
        waiting = asyncio.create_task(client.call("echo", b"x"))
        attempt = CancelledAt(server.stop(0.01), nth)

        async def run(one: CancelledAt = attempt) -> None:
            await one

        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.create_task(run())
        await server.aclose()
        with contextlib.suppress(Rpc25519Error):
            await waiting
        await client.aclose()
        if not attempt.struck:
            return
    raise AssertionError("it never stopped")
