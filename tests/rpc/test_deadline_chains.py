"""Handlers pass on what is left of their deadlines to the calls that they make."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from rpc25519_tools.errors import DeadlineError, RemoteCallError
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext, handling_until, time_left_s
from rpc25519_tools.rpc.handlers import PlainIncoming, Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.streams import _HIGH_WATER_LEN, IncomingStream
from rpc25519_tools.wire.constants import MIB
from rpc25519_tools.wire.message import CallType
from tests.helpers import until, wait_until
from tests.rpc.nets import Net, raw_server
from tests.rpc.offers import Waiting


class Relay:
    """Services whose handlers call another server, each in a way of its own."""

    def __init__(self, client: Client, *, timeout_s: float | None = None) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()

    async def _ask(self) -> Reply:
        reply = await self._client.call("inner", b"", timeout_s=self._timeout_s)
        return Reply(payload=reply.payload)

    async def by_call(self, context: CallContext) -> Reply:
        return await self._ask()

    async def by_task(self, context: CallContext) -> Reply:
        return await asyncio.create_task(self._ask())

    def by_thread(self, context: CallContext) -> Reply:
        return asyncio.run_coroutine_threadsafe(self._ask(), self._loop).result()

    async def by_download(self, context: CallContext) -> Reply:
        async with self._client.download("inner", timeout_s=self._timeout_s) as stream:
            return Reply(payload=(await stream.reply()).payload)

    def registry(self) -> Registry:
        registry = Registry()
        registry.add_call("call", self.by_call)
        registry.add_call("task", self.by_task)
        registry.add_call("thread", self.by_thread)
        registry.add_call("download", self.by_download)
        return registry


class Inner(Waiting):
    """The handler at the end of the chain."""

    def __init__(self) -> None:
        super().__init__()
        self.left_s: list[float | None] = []

    async def __call__(self, context: CallContext, *streams: object) -> Reply:
        self.left_s.append(context.time_left_s)
        return await super().__call__(context)

    def registry(self) -> Registry:
        registry = Registry()
        registry.add_call("inner", self)
        registry.add_download("inner", self)
        return registry


@pytest.mark.parametrize("way", ["call", "task", "thread", "download"])
async def test_a_handlers_calls_get_what_is_left(net: Net, way: str) -> None:
    inner = Inner()
    async with (
        net.server(inner.registry()) as far,
        await net.client(far) as relaying,
        net.pair(Relay(relaying).registry()) as (_, client),
    ):
        call = asyncio.create_task(client.call(way, b"", timeout_s=3))
        await until(lambda: inner.left_s)
        left_s = inner.left_s[0]
        assert left_s is not None
        assert 0 < left_s <= 3
        inner.go.set()
        assert (await call).payload == b"done"


@pytest.mark.parametrize("way", ["call", "task", "thread", "download"])
async def test_a_deadline_ends_the_whole_chain(net: Net, way: str) -> None:
    inner = Inner()
    async with (
        net.server(inner.registry()) as far,
        await net.client(far) as relaying,
        net.pair(Relay(relaying).registry()) as (_, client),
    ):
        timeout_s = 0.1
        while not inner.left_s:  # a busy machine may not come to it in time
            with pytest.raises(DeadlineError):
                await client.call(way, b"", timeout_s=timeout_s)
            timeout_s *= 2
        await until(
            lambda: inner.cancelled == len(inner.left_s), what="the far handler's end"
        )
        await far.wait_until_idle()


async def test_a_shorter_limit_of_the_handlers_own_holds(memory: Net) -> None:
    inner = Inner()
    async with (
        memory.server(inner.registry()) as far,
        await memory.client(far) as relaying,
        memory.pair(Relay(relaying, timeout_s=0.05).registry()) as (_, client),
    ):
        with pytest.raises(
            RemoteCallError, match=r"no reply from 'inner' within 0\.05"
        ):
            await client.call("call", b"", timeout_s=5)
        assert inner.left_s[0] is not None
        assert inner.left_s[0] <= 0.05


async def test_no_call_is_made_when_no_time_is_left(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        with handling_until(time.monotonic() - 1):
            with pytest.raises(DeadlineError, match="no time is left"):
                await client.call("any", b"")
            with pytest.raises(DeadlineError, match="no time is left"):
                await client.download("any").begin()
        assert not client.core.open_calls
        assert time_left_s() is None
        await client.send_one_way("any")
        await until(lambda: peer.messages)
        assert len(peer.messages) == 1
        assert peer.messages[0].header.call_type == CallType.ONE_WAY


async def test_calls_at_the_same_time_have_deadlines_of_their_own(memory: Net) -> None:
    registry, everybody = Registry(), asyncio.Event()
    seen: dict[str, float | None] = {}

    async def note(context: CallContext) -> None:
        name = bytes(context.payload).decode()
        before = time_left_s()
        if len(seen) == 2:
            everybody.set()
        seen[name] = before
        await everybody.wait()
        after = time_left_s()
        assert (before is None) == (after is None)
        assert before is None or (after is not None and before - 1 < after <= before)

    registry.add_call("note", note)
    registry.add_upload("note", lambda_upload(note))
    async with memory.pair(registry) as (_, client):
        unlimited = client.upload("note", b"none")
        async with unlimited:
            await asyncio.gather(
                client.call("note", b"short", timeout_s=5),
                client.call("note", b"long", timeout_s=500),
                unlimited.reply(),
            )
    assert seen["none"] is None
    assert 0 < (seen["short"] or 0) <= 5
    assert 400 < (seen["long"] or 0) <= 500


def lambda_upload(handler: Callable[[CallContext], Any]) -> Callable[..., Any]:
    async def run(context: CallContext, parts: IncomingStream) -> None:
        await handler(context)

    return run


@pytest.mark.parametrize("plain", [False, True])
async def test_a_call_without_a_deadline_has_none_whatever_came_before(
    net: Net, plain: bool
) -> None:
    """A handler that lets reading go on must not leave its deadline behind."""
    registry = Registry()
    left: list[float | None] = []

    async def slow(context: CallContext, parts: IncomingStream) -> None:
        await until(lambda: parts._holding)
        async for _ in parts:
            pass

    def slow_plain(context: CallContext, parts: PlainIncoming) -> None:
        wait_until(lambda: parts._stream._holding)
        for _ in parts:
            pass

    async def note(context: CallContext, parts: IncomingStream) -> None:
        left.append(time_left_s())

    registry.add_upload("slow", slow_plain if plain else slow)
    registry.add_upload("note", note)
    async with net.pair(registry, compression="none") as (_, client):
        async with client.upload("slow", timeout_s=8) as stream:
            # More than the reader holds, so that the connection stops being read.
            for _ in range(2 * _HIGH_WATER_LEN // MIB):
                await stream.send(bytes(MIB))
            await stream.send(b"", last=True)
            await stream.reply()
        async with client.upload("note") as stream:
            await stream.reply()
    assert left == [None]
