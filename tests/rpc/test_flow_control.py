"""Nothing grows without bound: who falls behind makes the other side wait."""

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rpc25519_tools.errors import LocalProtocolError, RemoteCallError
from rpc25519_tools.limits import Limits
from rpc25519_tools.rpc import driver, streams
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client_stream import ClientStream
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream, Part
from rpc25519_tools.transport.base import CHUNK_LEN, WRITE_HIGH_WATER_LEN
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.constants import MIB
from rpc25519_tools.wire.framing import Frame, decode_frame
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import until
from tests.rpc.memory import Plan
from tests.rpc.nets import Net, Seen, is_backed_up, raw_client
from tests.rpc.offers import parts_of, released_view, services

PART_LEN = MIB // 4
#: More than any kernel keeps for a connection.
TOTAL_LEN = 32 * MIB
#: What a stream may hold: its mark, the part that went over it, and what was on the
#: way up from the network by then.
HELD_LEN = streams._HIGH_WATER_LEN + PART_LEN + 4 * CHUNK_LEN


@pytest.fixture
def most_held(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return the most bytes that any stream has held for its reader."""
    most = 0
    feed = IncomingStream.feed

    def counting(self: IncomingStream, part: Part) -> None:
        nonlocal most
        feed(self, part)
        most = max(most, self._len)

    monkeypatch.setattr(IncomingStream, "feed", counting)
    return lambda: most


async def send_all(stream: ClientStream, sent: list[int]) -> None:
    payload = bytes(PART_LEN)
    while sum(sent) < TOTAL_LEN:
        await stream.send(payload)
        sent.append(PART_LEN)
    await stream.send(b"", last=True)


class SlowUpload:
    """A handler that reads nothing until it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.give_up = False

    async def __call__(self, context: CallContext, parts: IncomingStream) -> Reply:
        await self.go.wait()
        if self.give_up:
            return Reply(error="too much")
        received = 0
        async for part in parts:
            received += len(part.payload)
        return Reply(payload=str(received).encode())


async def test_a_slow_upload_handler_makes_the_sender_wait(
    net: Net, most_held: Callable[[], int]
) -> None:
    registry, slow, sent = services(), SlowUpload(), [0]
    registry.add_upload("slow", slow)
    async with net.pair(registry, compression="none") as (_, client):
        async with await client.stream(CallKind.UPLOAD, "slow") as stream:
            sending = asyncio.create_task(send_all(stream, sent))
            await until(
                lambda: (
                    most_held() > streams._HIGH_WATER_LEN
                    and is_backed_up(client.transport)
                )
            )
            assert not sending.done()
            assert most_held() <= HELD_LEN
            slow.go.set()
            await sending
            reply = await stream.reply()
        assert int(bytes(reply.payload)) == sum(sent) == TOTAL_LEN
        assert streams._HIGH_WATER_LEN < most_held() <= HELD_LEN


async def test_a_stalled_upload_holds_no_more_than_its_mark(
    memory: Net, most_held: Callable[[], int]
) -> None:
    registry, slow, sent = services(), SlowUpload(), [0]
    registry.add_upload("slow", slow)
    assert memory.memory is not None
    async with memory.pair(registry, compression="none") as (_, client):
        async with await client.stream(CallKind.UPLOAD, "slow") as stream:
            sending = asyncio.create_task(send_all(stream, sent))
            server_end = memory.memory.server_ends[0]
            await until(
                lambda: (
                    server_end.paused
                    and client.transport.unsent_len > WRITE_HIGH_WATER_LEN
                )
            )
            # Everything that is sent is in one of two bounded places.
            assert memory.memory.client_ends[0].delivered <= HELD_LEN
            assert client.transport.unsent_len <= WRITE_HIGH_WATER_LEN + PART_LEN + 300
            assert most_held() <= HELD_LEN
            sending.cancel()
            await asyncio.wait([sending])
            slow.go.set()  # until then not even a cancel gets through
        await client.call("echo", b"the connection goes on")


async def test_a_handler_that_gives_up_lets_the_connection_go_on(net: Net) -> None:
    registry, slow, sent = services(), SlowUpload(), [0]
    slow.give_up = True
    registry.add_upload("slow", slow)
    async with net.pair(registry, compression="none") as (_, client):
        async with await client.stream(CallKind.UPLOAD, "slow") as stream:
            sending = asyncio.create_task(send_all(stream, sent))
            await until(lambda: is_backed_up(client.transport))
            slow.go.set()
            with pytest.raises(Exception, match="too much"):
                await sending
        await client.call("echo", b"")


def fast_download(sent: list[int]) -> Registry:
    registry = services()

    async def flood(context: CallContext, out: OutgoingStream) -> Reply:
        payload = bytes(PART_LEN)
        while sum(sent) < TOTAL_LEN:
            await out.send(payload)
            sent.append(PART_LEN)
        await out.send(b"", last=True)
        return Reply()

    registry.add_download("flood", flood)
    return registry


async def test_a_slow_reader_makes_the_server_wait(
    net: Net, most_held: Callable[[], int]
) -> None:
    sent, seen = [0], Seen()
    async with (
        net.server(fast_download(sent), seen, compression="none") as server,
        await net.client(server) as client,
    ):
        stream = await client.stream(CallKind.DOWNLOAD, "flood")
        await until(
            lambda: most_held() > streams._HIGH_WATER_LEN and is_backed_up(seen.open[0])
        )
        assert sum(sent) < TOTAL_LEN
        assert most_held() <= HELD_LEN
        parts = await parts_of(stream)
        assert sum(map(len, parts)) == sum(sent) == TOTAL_LEN
        assert most_held() <= HELD_LEN


async def test_leaving_an_unread_download_lets_the_connection_go_on(net: Net) -> None:
    sent, seen = [0], Seen()
    async with (
        net.server(fast_download(sent), seen, compression="none") as server,
        await net.client(server) as client,
    ):
        async with await client.stream(CallKind.DOWNLOAD, "flood"):
            await until(lambda: seen.open and is_backed_up(seen.open[0]))
        await client.call("echo", b"")
        assert sum(sent) < TOTAL_LEN


async def test_packed_frames_wait_in_bounded_memory(
    memory: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, order = threading.Event(), []

    def slow_decode(frame: Frame, max_plain_len: int = 1 << 40) -> Message:
        go.wait(10)
        return decode_frame(frame, max_plain_len)

    async def note(context: CallContext) -> Reply:
        order.append(context.header.seqno)
        return Reply()

    monkeypatch.setattr(driver, "decode_frame", slow_decode)
    registry = Registry()
    registry.add_one_way("note", note)
    assert memory.memory is not None
    async with memory.server(registry), raw_client(memory) as peer:
        payload = random.Random(1).randbytes(MIB)
        for number in range(10):
            header = Header(
                call_type=CallType.ONE_WAY, service_name="note", seqno=number
            )
            peer.send(Message(header=header, payload=payload), codec=Codec.S2)
        server_end = memory.memory.server_ends[0]
        await until(lambda: server_end.paused, what="reading to pause")
        limit = driver._INBOX_HIGH_LEN + 2 * MIB + CHUNK_LEN
        assert memory.memory.client_ends[0].delivered <= limit
        go.set()
        await until(lambda: len(order) == 10, what="all messages")
        assert order == list(range(10))
        assert not server_end.paused


async def test_many_senders_wait_together_and_all_go_on(memory: Net) -> None:
    arrived = []

    async def note(context: CallContext) -> Reply:
        arrived.append(len(context.payload))
        return Reply()

    registry = Registry()
    registry.add_one_way("note", note)
    assert memory.memory is not None
    memory.memory.up = up = Plan(stall_at=0)
    async with memory.pair(registry, compression="none") as (_, client):
        payload = bytes(MIB // 2)
        sends = [
            asyncio.create_task(client.send_one_way("note", payload)) for _ in range(20)
        ]
        await until(lambda: client.transport.unsent_len > WRITE_HIGH_WATER_LEN)
        for _ in range(10):
            await asyncio.sleep(0)
        assert client.transport.unsent_len < WRITE_HIGH_WATER_LEN + 2 * len(payload)
        assert sum(send.done() for send in sends) <= 3
        up.stall_at = None
        memory.memory.client_ends[0].push()
        await asyncio.gather(*sends)
        await until(lambda: len(arrived) == 20)


@pytest.mark.parametrize("compression", ["none", "lz4"])
async def test_a_part_whose_sending_was_cancelled_leaves_no_gap(
    net: Net, compression: str
) -> None:
    registry, slow, sent = services(), SlowUpload(), 0
    registry.add_upload("slow", slow)
    payload = random.Random(1).randbytes(MIB)
    async with net.pair(registry, compression=compression) as (_, client):
        async with client.upload("slow") as stream:
            with contextlib.suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(0.1):
                        await stream.send(payload)
                    sent += len(payload)
            # Nor does one that is refused.
            with pytest.raises(LocalProtocolError):
                await stream.send(bytes(65 * MIB))
            slow.go.set()
            await stream.send(b"more", last=True)
            reply = await stream.reply()
        assert int(bytes(reply.payload)) == sent + len(b"more")


async def test_a_download_goes_on_after_a_part_that_did_not_go(net: Net) -> None:
    registry, raised = services(), []

    async def send(context: CallContext, out: OutgoingStream) -> None:
        wrong: Any = "text"
        for number, unfit in enumerate((wrong, bytes(65 * MIB), released_view())):
            try:
                await out.send(unfit)
            except (LocalProtocolError, TypeError, ValueError) as exc:
                raised.append(exc)
            await out.send(b"%d" % number)
        payload = bytes(MIB)
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(0.1):
                    await out.send(payload)
        stalled.set()
        await out.send(b"end", last=True)

    stalled = asyncio.Event()
    registry.add_download("send", send)
    async with net.pair(registry, compression="none") as (_, client):
        async with client.download("send") as stream:
            await stalled.wait()
            parts = await parts_of(stream)
            await stream.reply()
        assert parts[:3] == [b"0", b"1", b"2"]
        assert parts[-1] == b"end"
        assert len(raised) == 3


# What begins a stream.


class Collector:
    """Takes uploads; each waits until it may read on."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = asyncio.Event()

    async def __call__(self, context: CallContext, parts: IncomingStream) -> Reply:
        self.begun += 1
        await self.go.wait()
        length = sum([len(part.payload) async for part in parts])
        return Reply(payload=str(length).encode())


async def test_an_upload_may_begin_with_more_than_a_connection_may_hold(
    net: Net,
) -> None:
    registry, collector = Registry(), Collector()
    registry.add_upload("collect", collector)
    collector.go.set()
    limits = Limits(max_connection_memory_len=MIB)
    async with net.pair(registry, limits=limits) as (_, client):
        first = bytes(3 * MIB)
        async with client.upload("collect", first) as stream:
            for number in range(8):
                await stream.send(bytes(MIB // 2), last=number == 7)
            assert bytes((await stream.reply()).payload) == b"%d" % (7 * MIB)


async def test_uploads_that_begin_with_too_much_together_are_refused(
    net: Net,
) -> None:
    registry, collector = Registry(), Collector()
    registry.add_upload("collect", collector)
    limits = Limits(max_connection_memory_len=MIB)
    async with (
        net.pair(registry, limits=limits) as (_, client),
        client.upload("collect", bytes(MIB // 2)) as one,
    ):
        await until(lambda: collector.begun == 1)
        async with client.upload("collect", bytes(MIB)) as two:
            collector.go.set()  # or the connection would not be read any further
            with pytest.raises(RemoteCallError, match="too much memory together"):
                await two.reply()
        await one.send(b"", last=True)
        assert bytes((await one.reply()).payload) == b"%d" % (MIB // 2)
        async with client.upload("collect", bytes(MIB)) as three:
            await three.send(b"", last=True)
            assert bytes((await three.reply()).payload) == b"%d" % MIB


async def test_a_download_may_have_one_part_that_is_the_last(net: Net) -> None:
    registry = Registry()

    async def single(context: CallContext, out: OutgoingStream) -> None:
        await out.send(b"all of it", args={"k": "v"}, last=True)

    registry.add_download("single", single)
    async with (
        net.pair(registry) as (_, client),
        client.download("single") as stream,
    ):
        parts = [part async for part in stream]
        assert [bytes(part.payload) for part in parts] == [b"all of it", b""]
        assert parts[0].args == {"k": "v"}
        assert parts[1].last
