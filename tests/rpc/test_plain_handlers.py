"""Plain handlers, which run in threads, and the end of their calls."""

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
    IncompleteTransferError,
    LocalProtocolError,
    RemoteCallError,
)
from rpc25519_tools.rpc import handlers
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext, time_left_s
from rpc25519_tools.rpc.handlers import (
    MAX_THREADS,
    PlainIncoming,
    PlainOutgoing,
    Reply,
)
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.wire.constants import MIB
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import until, wait_until
from tests.rpc.memory import Plan
from tests.rpc.nets import Net, raw_client
from tests.rpc.offers import parts_of, services

pytestmark = pytest.mark.usefixtures("no_thread_stays_busy")
STREAMS = [CallKind.UPLOAD, CallKind.DOWNLOAD, CallKind.BISTREAM]
PART = bytes(1000)


def in_worker() -> bool:
    return threading.current_thread().name.startswith("handler")


def plain_services() -> Registry:
    registry = Registry()

    @registry.call("echo")
    def plain_echo(context: CallContext) -> Reply:
        assert in_worker()
        return Reply(payload=context.payload, args=context.header.args)

    @registry.upload("collect")
    def collect(context: CallContext, parts: PlainIncoming) -> bytes:
        assert in_worker()
        seen = [(part.number, bytes(part.payload), part.last) for part in parts]
        return repr(seen).encode()

    @registry.download("count")
    def count(context: CallContext, out: PlainOutgoing) -> bytes:
        assert in_worker()
        for number in range(int(bytes(context.payload))):
            out.send(b"part %d" % number, args={"n": str(number)})
        out.send(b"", last=True)
        return b"that was all"

    @registry.bistream("mirror")
    def mirror(context: CallContext, parts: PlainIncoming, out: PlainOutgoing) -> None:
        assert in_worker()
        for part in parts:
            out.send(part.payload, args=part.args, last=part.last)

    return registry


async def test_a_plain_handler_answers_calls(net: Net) -> None:
    async with net.pair(plain_services()) as (_, client):
        reply = await client.call("echo", b"hello", args={"k": "v"})
        assert bytes(reply.payload) == b"hello"
        assert reply.header.args == {"k": "v"}


async def test_a_plain_handler_takes_one_way_messages(memory: Net) -> None:
    registry, arrived = services(), threading.Event()

    @registry.one_way("note")
    def note(context: CallContext) -> None:
        assert in_worker()
        assert context.payload == b"by the way"
        arrived.set()

    async with memory.pair(registry) as (_, client):
        await client.send_one_way("note", b"by the way")
        await until(arrived.is_set)
        await client.call("echo", b"")


async def test_a_plain_handler_reads_an_upload(net: Net) -> None:
    async with net.pair(plain_services()) as (_, client):
        async with client.upload("collect", b"a") as stream:
            await stream.send(b"b")
            await stream.send(b"", last=True)
            reply = await stream.reply()
        assert bytes(reply.payload) == (
            b"[(0, b'a', False), (1, b'b', False), (2, b'', True)]"
        )


async def test_a_plain_handler_sends_a_download(net: Net) -> None:
    async with (
        net.pair(plain_services()) as (_, client),
        client.download("count", b"4") as stream,
    ):
        parts = [part async for part in stream]
        assert [bytes(part.payload) for part in parts] == [
            *(b"part %d" % n for n in range(4)),
            b"",
        ]
        assert parts[2].args == {"n": "2"}
        assert [part.last for part in parts] == [False] * 4 + [True]
        assert (await stream.reply()).payload == b"that was all"


async def test_a_plain_handler_reads_and_sends_at_once(net: Net) -> None:
    async with (
        net.pair(plain_services()) as (_, client),
        client.bistream("mirror", b"0") as stream,
    ):
        back = aiter(stream)
        assert (await anext(back)).payload == b"0"
        for n in range(1, 4):
            await stream.send(b"%d" % n, last=n == 3)
            assert (await anext(back)).payload == b"%d" % n
        with pytest.raises(StopAsyncIteration):
            await anext(back)
        await stream.reply()


async def test_large_streams_through_plain_handlers_arrive_whole(net: Net) -> None:
    payloads = [bytes([n]) * (MIB // 3 + n) for n in range(40)]
    async with (
        net.pair(plain_services(), compression="none") as (_, client),
        client.bistream("mirror", payloads[0]) as stream,
    ):
        reading = asyncio.create_task(parts_of(stream))
        for payload in payloads[1:]:
            await stream.send(payload)
        await stream.send(b"", last=True)
        assert await reading == [*payloads, b""]


async def test_a_plain_upload_that_breaks_raises_in_its_handler(memory: Net) -> None:
    registry, raised = services(), []

    @registry.upload("read")
    def read(context: CallContext, parts: PlainIncoming) -> None:
        try:
            for _ in parts:
                pass
        except IncompleteTransferError as exc:
            raised.append(str(exc))
            raise

    def part(call_type: CallType, number: int) -> Message:
        return Message(
            header=Header(
                call_type=call_type,
                call_id="c",
                service_name="read",
                stream_part=number,
            )
        )

    async with memory.server(registry), raw_client(memory) as peer:
        peer.send(part(CallType.UPLOAD_BEGIN, 0), part(CallType.UPLOAD_MORE, 2))
        await until(lambda: peer.messages)
        assert peer.messages[0].error == raised[0]
        assert "part 1 was due" in raised[0]


async def test_a_plain_handler_that_sends_after_its_last_part_is_told(
    memory: Net,
) -> None:
    registry = Registry()

    @registry.download("more")
    def more(context: CallContext, out: PlainOutgoing) -> None:
        out.send(b"first")
        out.send(b"", last=True)
        with pytest.raises(LocalProtocolError, match="no more parts"):
            out.send(b"again")

    async with (
        memory.pair(registry) as (_, client),
        client.download("more") as stream,
    ):
        assert await parts_of(stream) == [b"first", b""]
        assert (await stream.reply()).error == ""


# Many at once.


async def test_plain_handlers_hold_up_neither_the_loop_nor_each_other(net: Net) -> None:
    registry = services()
    together = threading.Barrier(3)
    go = threading.Event()

    @registry.call("block")
    def block(context: CallContext) -> bytes:
        together.wait(10)
        assert go.wait(10)
        return b"done"

    async with net.pair(registry) as (_, client):
        blocked = [asyncio.create_task(client.call("block", b"")) for _ in range(3)]
        for _ in range(10):
            await client.call("echo", b"")
        assert not any(call.done() for call in blocked)
        go.set()
        assert [(await call).payload for call in blocked] == [b"done"] * 3


async def test_so_many_plain_handlers_run_at_a_time_and_the_others_wait(
    memory: Net,
) -> None:
    registry, lock, go = services(), threading.Lock(), threading.Event()
    running = most = 0

    @registry.call("block")
    def block(context: CallContext) -> bytes:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        assert go.wait(10)
        with lock:
            running -= 1
        return bytes(context.payload)

    count = 2 * MAX_THREADS + 5
    async with memory.pair(registry) as (_, client):
        calls = [
            asyncio.create_task(client.call("block", b"%d" % number))
            for number in range(count)
        ]
        await until(lambda: running == MAX_THREADS)
        # What is packed and unpacked in threads does not wait behind them.
        large = bytes(range(256)) * 1000
        assert (await client.call("echo", large)).payload == large
        go.set()
        replies = [(await call).payload for call in calls]
        assert replies == [b"%d" % number for number in range(count)]
    assert most == MAX_THREADS


async def test_who_waits_for_a_thread_in_vain_never_runs(memory: Net) -> None:
    registry, go, ran = services(), threading.Event(), []

    @registry.call("block")
    def block(context: CallContext) -> None:
        ran.append(bytes(context.payload))
        assert go.wait(10)

    async with memory.pair(registry) as (server, client):
        calls = [
            asyncio.create_task(client.call("block", b"")) for _ in range(MAX_THREADS)
        ]
        await until(lambda: len(ran) == MAX_THREADS)
        with pytest.raises(DeadlineError):
            await client.call("block", b"late", timeout_s=0.05)
        cancelled = asyncio.create_task(client.call("block", b"cancelled"))
        await until(lambda: len(calls_of(server)) == MAX_THREADS + 1)
        cancelled.cancel()
        await until(lambda: len(calls_of(server)) == MAX_THREADS)
        go.set()
        await asyncio.gather(*calls)
        await client.call("block", b"after")
    assert ran == [b""] * MAX_THREADS + [b"after"]


def calls_of(server: Server) -> list[asyncio.Task[None]]:
    return [task for one in server._connections for task in one.tasks()]


# The end of a call reaches its thread.


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
