"""The end of a call reaches the thread of its plain handler."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from rpc25519_tools.errors import (
    CallCancelledError,
    ConnectionLostError,
    DeadlineError,
    RemoteCallError,
)
from rpc25519_tools.rpc import handlers
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext, time_left_s
from rpc25519_tools.rpc.handlers import PlainIncoming, PlainOutgoing
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.wire.constants import MIB
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import until, wait_until
from tests.rpc.memory import Plan
from tests.rpc.nets import Net, calls_of, raw_client
from tests.rpc.offers import services

pytestmark = pytest.mark.usefixtures("no_thread_stays_busy")
PART = bytes(1000)


class Ending:
    """A way in which a running call ends before its handler does."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.timeout_s: float | None = 0.1 if way == "deadline" else None

    @contextlib.asynccontextmanager
    async def running(
        self, net: Net, registry: Registry, kind: CallKind, started: Callable[[], Any]
    ) -> AsyncIterator[None]:
        """Open one call and end it; what is inside runs when it has been ended."""
        async with net.server(registry, compression="none") as server:
            client = await net.client(server, compression="none")
            async with client:
                call = await self._begin(client, kind, started)
                match self.way:
                    case "caller":
                        call.cancel()
                    case "client":
                        client.transport.abort()
                    case "server":
                        await server.aclose()
                    case _:
                        assert self.timeout_s
                await asyncio.wait([call])
                if not call.cancelled():
                    assert isinstance(
                        call.exception(),
                        ConnectionLostError | DeadlineError | RemoteCallError,
                    )
                yield

    async def _begin(
        self, client: Client, kind: CallKind, started: Callable[[], Any]
    ) -> asyncio.Task[None]:
        """Open a call; anew, with more time, if its handler did not start in time."""
        while True:
            call = asyncio.create_task(self._call(client, kind))
            await until(
                lambda call=call: started() or call.done(),  # type: ignore[misc]
                what="the handler's start",
            )
            if started():
                return call
            assert isinstance(call.exception(), DeadlineError)
            assert self.timeout_s is not None
            self.timeout_s *= 2

    async def _call(self, client: Client, kind: CallKind) -> None:
        if kind is CallKind.RPC:
            await client.call("service", b"", timeout_s=self.timeout_s or 10)
            return
        opened = {
            CallKind.UPLOAD: client.upload,
            CallKind.DOWNLOAD: client.download,
            CallKind.BISTREAM: client.bistream,
        }[kind]("service", timeout_s=self.timeout_s)
        async with opened:
            if kind.receives_parts:
                async for _ in opened:
                    pass
            await opened.reply()


@pytest.mark.parametrize("way", ["caller", "deadline", "client", "server"])
async def test_a_plain_handler_sees_that_nobody_waits(net: Net, way: str) -> None:
    registry, started, ended = Registry(), threading.Event(), []

    @registry.call("service")
    def block(context: CallContext) -> None:
        assert not context.cancellation.is_set
        started.set()
        ended.append(context.cancellation.wait(10))
        assert context.cancellation.is_set

    async with Ending(way).running(net, registry, CallKind.RPC, started.is_set):
        await until(lambda: ended, what="the handler's end")
        assert ended == [True]


@pytest.mark.parametrize("way", ["caller", "deadline", "client", "server"])
async def test_a_plain_handler_that_waits_for_a_part_is_woken(
    net: Net, way: str
) -> None:
    registry, started, raised = Registry(), threading.Event(), []

    @registry.upload("service")
    def read(context: CallContext, parts: PlainIncoming) -> None:
        try:
            for _ in parts:
                started.set()
        except Exception as exc:
            raised.append(exc)
            raise

    async with Ending(way).running(net, registry, CallKind.UPLOAD, started.is_set):
        await until(lambda: raised, timeout_s=3, what="the handler's end")
        assert isinstance(
            raised[0], CallCancelledError | DeadlineError | ConnectionLostError
        )


@pytest.mark.parametrize("way", ["caller", "deadline", "client", "server"])
async def test_reading_after_the_end_of_the_call_raises(memory: Net, way: str) -> None:
    registry, started, raised = Registry(), threading.Event(), []

    @registry.bistream("service")
    def read(context: CallContext, parts: PlainIncoming, out: PlainOutgoing) -> None:
        started.set()
        assert context.cancellation.wait(10)
        for use in (lambda: next(iter(parts)), lambda: out.send(b"late")):
            try:
                use()
            except Exception as exc:  # noqa: BLE001  # whatever it is
                raised.append(exc)

    async with Ending(way).running(memory, registry, CallKind.BISTREAM, started.is_set):
        await until(lambda: len(raised) == 2, timeout_s=3, what="the handler's end")
        for exc in raised:
            assert isinstance(exc, CallCancelledError | ConnectionLostError)


@pytest.mark.parametrize("way", ["caller", "deadline", "client", "server"])
async def test_a_plain_handler_that_sends_without_end_is_stopped(
    net: Net, way: str
) -> None:
    registry, started, raised = Registry(), threading.Event(), []
    give_up = threading.Event()

    @registry.download("service")
    def flood(context: CallContext, out: PlainOutgoing) -> None:
        try:
            while not give_up.is_set():
                out.send(PART)
                started.set()
        except Exception as exc:
            raised.append(exc)
            raise

    try:
        async with Ending(way).running(
            net, registry, CallKind.DOWNLOAD, started.is_set
        ):
            await until(lambda: raised, timeout_s=3, what="the handler's end")
            assert isinstance(raised[0], CallCancelledError | ConnectionLostError)
    finally:
        give_up.set()


async def test_a_plain_handler_whose_peer_reads_nothing_is_freed_at_its_deadline(
    memory: Net,
) -> None:
    registry, raised = Registry(), []

    @registry.download("flood")
    def flood(context: CallContext, out: PlainOutgoing) -> None:
        try:
            while True:
                out.send(bytes(MIB))
        except CallCancelledError as exc:
            raised.append(exc)

    assert memory.memory is not None
    memory.memory.down = Plan(stall_at=0)
    async with memory.server(registry), raw_client(memory) as peer:
        header = Header(
            call_type=CallType.REQUEST_DOWNLOAD,
            call_id="c",
            service_name="flood",
            created_ns=1,
            deadline_ns=100_000_001,
        )
        peer.send(Message(header=header))
        await until(lambda: raised)


async def test_nothing_follows_the_answer_to_a_cancelled_download(memory: Net) -> None:
    registry, sent, give_up = Registry(), [], threading.Event()

    @registry.download("flood")
    def flood(context: CallContext, out: PlainOutgoing) -> None:
        while not give_up.is_set():
            out.send(PART)
            sent.append(1)

    def header(call_type: CallType) -> Message:
        return Message(
            header=Header(call_type=call_type, call_id="c", service_name="flood")
        )

    async with memory.server(registry) as server, raw_client(memory) as peer:
        peer.send(header(CallType.REQUEST_DOWNLOAD))
        await until(lambda: len(peer.messages) > 20)
        peer.send(header(CallType.CANCEL_PREVIOUS))

        def types() -> list[int]:
            return [one.header.call_type for one in peer.messages]

        await until(lambda: CallType.RPC_REPLY in types())
        before = len(sent)
        await until(lambda: not calls_of(server))
        # Longer than it would take a thread to send many more.
        later = time.monotonic() + 0.1
        await until(lambda: time.monotonic() > later)
        give_up.set()
        assert types()[-1] == CallType.RPC_REPLY
        assert len(sent) <= before + 2


async def test_an_async_handler_of_an_ended_call_can_see_it_too(memory: Net) -> None:
    registry, contexts, go = services(), [], asyncio.Event()

    @registry.call("wait")
    async def wait(context: CallContext) -> None:
        contexts.append(context)
        await go.wait()

    async with memory.pair(registry) as (server, client):
        call = asyncio.create_task(client.call("wait", b""))
        await until(lambda: contexts)
        assert not contexts[0].cancellation.is_set
        call.cancel()
        await until(lambda: contexts[0].cancellation.is_set)
        await server.wait_until_idle()


async def test_what_a_thread_returns_too_late_is_dropped(memory: Net) -> None:
    registry, go, returned = services(), threading.Event(), threading.Event()

    @registry.call("late")
    def late(context: CallContext) -> bytes:
        assert go.wait(10)
        returned.set()
        return b"too late"

    async with memory.server(registry) as server, raw_client(memory) as peer:
        header = Header(call_type=CallType.RPC, call_id="c", service_name="late")
        peer.send(Message(header=header))
        await until(lambda: calls_of(server))
        cancel = Header(call_type=CallType.CANCEL_PREVIOUS, call_id="c")
        peer.send(Message(header=cancel))
        await until(lambda: peer.messages)
        assert peer.messages[0].error == "context canceled"
        go.set()
        await until(returned.is_set)
        header = Header(call_type=CallType.RPC, call_id="d", service_name="echo")
        peer.send(Message(header=header))
        await until(lambda: len(peer.messages) == 2)
        assert peer.messages[1].header.call_id == "d"


def test_a_step_that_the_stopped_loop_never_takes_ends_with_the_call() -> None:
    loop = asyncio.new_event_loop()
    steps, outcome = handlers._Steps(loop), []

    async def step() -> None:
        outcome.append("taken")

    def take() -> None:
        try:
            steps.take(step)
        except CallCancelledError as exc:
            outcome.append(str(exc))

    thread = threading.Thread(target=take, name="handler of a test", daemon=True)
    thread.start()
    wait_until(lambda: steps._waited_for, what="the thread to wait")
    steps.end()
    thread.join(5)
    assert not thread.is_alive()
    loop.close()
    take()
    assert outcome == ["the call is over"] * 2


def test_no_plain_handler_outlives_its_event_loop(certs: Path) -> None:
    registry, began, ended = Registry(), threading.Event(), threading.Event()

    @registry.upload("late")
    def late(context: CallContext, parts: PlainIncoming) -> None:
        began.set()
        try:
            next(iter(parts))
            context.cancellation.wait()
            for _ in parts:  # whatever the loop is doing by then
                pass
        finally:
            ended.set()

    async def leave_it_running() -> None:
        async with (
            Net("tcp", certs).pair(registry) as (_, client),
            client.upload("late"),
        ):
            await until(began.is_set)

    for _ in range(20):
        began.clear()
        ended.clear()
        asyncio.run(leave_it_running())
        assert ended.wait(5)


async def test_a_plain_handler_knows_its_deadline(memory: Net) -> None:
    registry = Registry()
    seen: list[float | None] = []

    @registry.call("note")
    def note(context: CallContext) -> None:
        seen.extend((time_left_s(), context.time_left_s))

    async with memory.pair(registry) as (_, client):
        await client.call("note", b"", timeout_s=7)
    assert len(seen) == 2
    assert all(left_s is not None and 0 < left_s <= 7 for left_s in seen)
