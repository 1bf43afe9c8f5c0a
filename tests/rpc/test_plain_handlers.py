"""Plain handlers, which run in threads, many at once."""

import asyncio
import threading

import pytest

from rpc25519_tools.errors import (
    DeadlineError,
    IncompleteTransferError,
    LocalProtocolError,
)
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import MAX_THREADS, PlainIncoming, PlainOutgoing, Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.wire.constants import MIB
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import until
from tests.rpc.nets import Net, calls_of, raw_client
from tests.rpc.offers import parts_of, services

pytestmark = pytest.mark.usefixtures("no_thread_stays_busy")


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
