"""Streams to peers that show no backpressure: never more ahead than they can queue."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from rpc25519_tools.rpc import pace
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.pace import Pace
from rpc25519_tools.rpc.streams import OutgoingStream
from rpc25519_tools.wire.constants import MIB
from rpc25519_tools.wire.message import CallType, Message
from tests.helpers import until
from tests.rpc.memory import RawPeer
from tests.rpc.nets import Net, raw_client
from tests.rpc.offers import services
from tests.rpc.timing import request

#: What a Go client queues for one call.
GO_QUEUE_LEN = 100
PART_COUNT = 200


def queue_lens(parts: list[tuple[float, int]], rate: float) -> list[int]:
    """Send parts as Pace allows; return how long the queue of their reader gets.

    Args:
        parts: for each one how long the sender takes to make it, and its length.
        rate: what the reader takes, in bytes a second.
    """
    one, now_s, read_s = Pace(), 0.0, [0.0]
    lens = []
    for making_s, length in parts:
        now_s += making_s
        now_s += one.delay_s(now_s)
        one.sent(length, now_s)
        lens.append(sum(end_s > now_s for end_s in read_s))
        read_s.append(max(now_s, read_s[-1]) + max(pace._PART_S, length / rate))
    return lens


@given(
    st.lists(
        st.tuples(st.floats(0, 0.01), st.integers(0, MIB)),
        min_size=1,
        max_size=3 * GO_QUEUE_LEN,
    )
)
def test_a_reader_that_keeps_the_pace_never_has_too_much(
    parts: list[tuple[float, int]],
) -> None:
    lens = queue_lens(parts, pace._READER_RATE)
    assert max(lens) <= pace._AHEAD_COUNT < GO_QUEUE_LEN


def test_as_many_as_the_reader_can_queue_go_out_at_once() -> None:
    lens = queue_lens([(0.0, MIB)] * 1000, pace._READER_RATE)
    assert lens[: pace._AHEAD_COUNT] == list(range(pace._AHEAD_COUNT))
    assert set(lens[pace._AHEAD_COUNT :]) <= {
        pace._AHEAD_COUNT - 1,
        pace._AHEAD_COUNT,
    }


def test_a_sender_that_is_slower_never_waits() -> None:
    one, now_s = Pace(), 0.0
    for _ in range(1000):
        now_s += 1.01 * MIB / pace._READER_RATE
        assert one.delay_s(now_s) == 0
        one.sent(MIB, now_s)


def parts_of(peer: RawPeer) -> list[Message]:
    kinds = (CallType.DOWNLOAD_BEGIN, CallType.DOWNLOAD_MORE, CallType.DOWNLOAD_END)
    return [one for one in peer.messages if one.header.call_type in kinds]


@pytest.mark.parametrize("kind", [CallKind.DOWNLOAD, CallKind.BISTREAM])
@pytest.mark.parametrize("backpressure", [False, True])
async def test_a_burst_is_kept_from_a_peer_that_would_queue_it(
    memory: Net,
    monkeypatch: pytest.MonkeyPatch,
    kind: CallKind,
    backpressure: bool,
) -> None:
    monkeypatch.setattr(pace, "_PART_S", 3600.0)
    registry = services()

    async def burst(context: CallContext, *streams: object) -> None:
        out = streams[-1]
        assert isinstance(out, OutgoingStream)
        for number in range(PART_COUNT):
            await out.send(b"%d" % number, last=number == PART_COUNT - 1)

    registry.add_download("burst", burst)
    registry.add_bistream("burst", burst)
    async with memory.server(registry), raw_client(memory) as peer:
        opening = request(kind, "burst", created_ns=None, deadline_ns=None)
        header = replace(opening.header, backpressure=backpressure)
        peer.send(replace(opening, header=header))
        count = PART_COUNT if backpressure else pace._AHEAD_COUNT
        await until(lambda: len(parts_of(peer)) == count, what="the first parts")
        for _ in range(100):
            await asyncio.sleep(0)
        assert [bytes(one.payload) for one in parts_of(peer)] == [
            b"%d" % number for number in range(count)
        ]


@pytest.mark.parametrize("kind", ["download", "bistream"])
async def test_our_own_client_gets_a_burst_at_once(
    memory: Net, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(pace, "_PART_S", 3600.0)
    registry = services()

    async def burst(context: CallContext, *streams: object) -> None:
        out = streams[-1]
        assert isinstance(out, OutgoingStream)
        for number in range(PART_COUNT):
            await out.send(b"x", last=number == PART_COUNT - 1)

    registry.add_download("burst", burst)
    registry.add_bistream("burst", burst)
    async with memory.pair(registry) as (_, client):
        opening = (
            client.download("burst") if kind == "download" else client.bistream("burst")
        )
        async with opening as stream:
            parts = [part async for part in stream]
            assert len(parts) == PART_COUNT
            await stream.reply()


async def test_a_stream_that_waits_for_its_pace_can_be_cancelled(
    memory: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_PART_S", 3600.0)
    registry, over = services(), asyncio.Event()

    async def burst(context: CallContext, out: OutgoingStream) -> None:
        try:
            while True:
                await out.send(b"x")
        finally:
            over.set()

    registry.add_download("burst", burst)
    async with memory.server(registry), raw_client(memory) as peer:
        opening = request(CallKind.DOWNLOAD, "burst", created_ns=None, deadline_ns=None)
        peer.send(opening)
        await until(lambda: len(parts_of(peer)) == pace._AHEAD_COUNT)
        cancel = replace(opening.header, call_type=CallType.CANCEL_PREVIOUS)
        peer.send(Message(header=cancel))
        await asyncio.wait_for(over.wait(), 10)


async def test_parts_that_wait_together_go_one_by_one_and_in_order(
    memory: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_PART_S", 0.001)
    registry = services()

    async def burst(context: CallContext, out: OutgoingStream) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(PART_COUNT):
                group.create_task(out.send(b"%d" % number))

    registry.add_download("burst", burst)
    async with memory.server(registry), raw_client(memory) as peer:
        opening = request(CallKind.DOWNLOAD, "burst", created_ns=None, deadline_ns=None)
        begin_s = asyncio.get_running_loop().time()
        peer.send(opening)
        await until(lambda: len(parts_of(peer)) == PART_COUNT)
        took_s = asyncio.get_running_loop().time() - begin_s
        assert [bytes(one.payload) for one in parts_of(peer)] == [
            b"%d" % number for number in range(PART_COUNT)
        ]
        assert took_s >= (PART_COUNT - pace._AHEAD_COUNT) * 0.001
