"""Rsync calls: parts that carry a step, which services there are, wrong steps."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rpc25519_tools.errors import (
    IncompleteTransferError,
    LocalProtocolError,
    NoSuchServiceError,
)
from rpc25519_tools.rpc.calls import CallKind, RsyncStep
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import PlainIncoming, PlainOutgoing, Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream, Part
from rpc25519_tools.wire.constants import MIB
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import until
from tests.rpc.nets import Net, raw_client, raw_server
from tests.rpc.offers import services
from tests.rpc.rsync_calls import (
    DOWN,
    FIRST,
    KINDS,
    UP,
    Draining,
    held_by,
    later,
    opening,
    seen,
    type_of,
)

# Steps that go both ways.


async def answer_each(
    context: CallContext, parts: IncomingStream, out: OutgoingStream
) -> Reply:
    """Answer each part with two of our own; end after an empty one."""
    got: list[Part] = []
    async for part in parts:
        got.append(part)
        if not part.payload:
            break
        for step in DOWN[context.kind]:
            await out.send(bytes(part.payload) + b"!", step=step, args={"a": "b"})
    return Reply(payload=repr(seen(got)).encode())


def plain_answer_each(
    context: CallContext, parts: PlainIncoming, out: PlainOutgoing
) -> Reply:
    got: list[Part] = []
    for part in parts:
        got.append(part)
        if not part.payload:
            break
        for step in DOWN[context.kind]:
            out.send(bytes(part.payload) + b"!", step=step, args={"a": "b"})
    return Reply(payload=repr(seen(got)).encode())


@pytest.mark.parametrize("handler", [answer_each, plain_answer_each])
@pytest.mark.parametrize("kind", KINDS)
async def test_steps_go_both_ways(
    net: Net, kind: CallKind, handler: Callable[..., Any]
) -> None:
    registry = services()
    registry.add_rsync(kind, "sync", handler)
    async with net.pair(registry) as (_, client):
        async with client.rsync(kind, "sync", b"0", timeout_s=10) as stream:
            down: list[Part] = []
            parts = aiter(stream)
            for number, step in enumerate((*UP[kind], UP[kind][0]), 1):
                down += [await anext(parts), await anext(parts)]
                await stream.send(b"%d" % number, step=step)
            down += [await anext(parts), await anext(parts)]
            await stream.send(b"", step=UP[kind][1])
            reply = await stream.reply()
            down += [part async for part in parts]
        first, second = UP[kind]
        assert (
            reply.payload
            == repr(
                [
                    (0, FIRST[kind], b"0"),
                    (1, first, b"1"),
                    (2, second, b"2"),
                    (3, first, b"3"),
                    (4, second, b""),
                ]
            ).encode()
        )
        assert seen(down) == [
            (2 * n + which, DOWN[kind][which], b"%d!" % n)
            for n in range(4)
            for which in (0, 1)
        ]
        assert all(part.args == {"a": "b"} and not part.last for part in down)
        await client.call("echo")


@pytest.mark.parametrize("kind", KINDS)
async def test_much_flows_both_ways_at_the_same_time(net: Net, kind: CallKind) -> None:
    registry, count, payload = services(), 24, bytes(MIB)

    async def send_all(send: Callable[..., Awaitable[None]], step: RsyncStep) -> None:
        for _ in range(count):
            await send(payload, step=step)

    async def read_all(parts: IncomingStream, expected: int) -> list[int]:
        return [(await anext(parts)).number for _ in range(expected)]

    @registry.rsync(kind, "sync")
    async def sync(
        context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> bytes:
        sending = asyncio.create_task(send_all(out.send, DOWN[kind][1]))
        numbers = await read_all(parts, count + 1)
        await sending
        return b"%d" % (numbers == list(range(count + 1)))

    async with (
        net.pair(registry, compression="none") as (_, client),
        client.rsync(kind, "sync", payload) as stream,
    ):
        sending = asyncio.create_task(send_all(stream.send, UP[kind][1]))
        assert await read_all(aiter(stream), count) == list(range(count))
        await sending
        assert (await stream.reply()).payload == b"1"
        assert await anext(aiter(stream), None) is None


async def test_parts_of_other_streams_have_no_step(memory: Net) -> None:
    async with (
        memory.pair(services()) as (_, client),
        client.bistream("mirror", b"0") as stream,
    ):
        await stream.send(b"1", last=True)
        assert [part.step async for part in stream] == [None, None]


# Which services there are.


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unknown_service_is_refused(net: Net, kind: CallKind) -> None:
    (other,) = set(KINDS) - {kind}
    registry = services()
    registry.add_rsync(other, "sync", answer_each)
    registry.add_bistream("sync", answer_each)
    async with net.pair(registry) as (_, client):
        for name in ("nobody", "sync"):
            async with client.rsync(kind, name) as stream:
                with pytest.raises(NoSuchServiceError, match=f"'{name}'"):
                    await stream.reply()
                with pytest.raises(NoSuchServiceError):
                    await anext(aiter(stream))
        await client.call("echo")


async def test_both_kinds_may_have_the_same_name(memory: Net) -> None:
    registry = Registry()
    for kind in KINDS:
        registry.add_rsync(kind, "sync", answer_each)
    async with memory.pair(registry) as (_, client):
        for kind in KINDS:
            async with client.rsync(kind, "sync") as stream:
                reply = await stream.reply()
            assert reply.payload == repr([(0, FIRST[kind], b"")]).encode()


async def test_only_two_kinds_are_rsync_calls(memory: Net) -> None:
    async with memory.pair(services()) as (_, client):
        for kind in set(CallKind) - set(KINDS):
            with pytest.raises(LocalProtocolError, match="no kind of rsync call"):
                client.rsync(kind, "mirror")
        assert not client._pending


# Steps that are wrong.


@pytest.mark.parametrize("kind", KINDS)
async def test_a_wrong_step_of_our_own_sends_nothing(
    memory: Net, kind: CallKind
) -> None:
    registry = services()
    problems: list[str] = []

    @registry.rsync(kind, "sync")
    async def sync(
        context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> bytes:
        assert [part async for part in parts if part.number == 2] == []
        return b""

    @registry.rsync(kind, "wrong")
    async def wrong(
        context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> None:
        for bad in (
            {},
            {"last": True},
            {"step": UP[kind][0]},
            {"step": DOWN[kind][0], "last": True},
        ):
            try:
                await out.send(b"bad", **bad)
            except LocalProtocolError as exc:
                problems.append(str(exc))
        await out.send(b"good", step=DOWN[kind][0])

    async with memory.pair(registry) as (_, client):
        async with client.rsync(kind, "sync") as stream:
            with pytest.raises(LocalProtocolError, match="needs its step"):
                await stream.send(b"")
            for step in (*DOWN[kind], RsyncStep.REQUEST):
                with pytest.raises(LocalProtocolError, match="client sends no step"):
                    await stream.send(b"", step=step)
            with pytest.raises(LocalProtocolError, match="end with its reply"):
                await stream.send(b"", step=UP[kind][0], last=True)
        async with client.rsync(kind, "wrong") as stream:
            await stream.reply()
            assert seen([part async for part in stream]) == [
                (0, DOWN[kind][0], b"good")
            ]
        assert [problem.split()[:3] for problem in problems] == [
            ["each", "part", "of"],
            ["each", "part", "of"],
            ["the", "server", "sends"],
            ["the", "parts", "of"],
        ]
        async with client.bistream("mirror", b"0") as stream:
            with pytest.raises(LocalProtocolError, match="only the parts of rsync"):
                await stream.send(b"", step=RsyncStep.ACK)
            await stream.send(b"1", last=True)
            assert len([part async for part in stream]) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 3, 7])
async def test_a_wrong_number_breaks_the_stream_behind_what_was_right(
    memory: Net, kind: CallKind, number: int
) -> None:
    registry, draining = services(), Draining()
    registry.add_rsync(kind, "sync", draining)
    call_type = type_of(UP[kind][0])
    async with memory.server(registry) as server, raw_client(memory) as peer:
        peer.send(opening(kind), later(call_type, 1), later(call_type, number))
        await until(lambda: draining.unread == 2)
        draining.go.set()
        await until(lambda: peer.messages)
        assert draining.found == [(0, FIRST[kind], b"0"), (1, UP[kind][0], b"1")]
        assert isinstance(draining.error, IncompleteTransferError)
        assert str(draining.error) == f"part {number} came where part 2 was due"
        peer.send(Message(header=Header(call_type=1, service_name="echo", call_id="e")))
        await until(lambda: len(peer.messages) == 2)
        assert peer.messages[1].error == ""
        await until(lambda: held_by(server) == [(0, 0)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "call_type",
    [CallType.UPLOAD_MORE, CallType.UPLOAD_END, CallType.RSYNC_STEP0, "own", "other"],
)
async def test_a_step_that_the_client_may_not_send_breaks_the_stream(
    memory: Net, kind: CallKind, call_type: CallType | str
) -> None:
    if call_type == "own":
        call_type = type_of(DOWN[kind][0])
    elif call_type == "other":
        call_type = type_of(DOWN[kind][1])
    assert isinstance(call_type, CallType)
    registry = services()
    registry.add_rsync(kind, "sync", answer_each)
    async with memory.server(registry), raw_client(memory) as peer:
        peer.send(opening(kind), later(type_of(UP[kind][1]), 1), later(call_type, 2))
        await until(
            lambda: any(
                one.header.call_type == CallType.RPC_REPLY for one in peer.messages
            )
        )
        *parts, reply = peer.messages
        # Both parts before it were answered.
        assert [part.header.stream_part for part in parts] == [0, 1, 2, 3]
        assert [part.payload for part in parts] == [b"0!", b"0!", b"1!", b"1!"]
        assert reply.error == (
            f"a part of type {call_type:d} does not belong into this kind of call"
        )


async def test_a_step_breaks_a_stream_of_another_kind(memory: Net) -> None:
    async with memory.server(services()), raw_client(memory) as peer:
        header = Header(
            call_type=CallType.UPLOAD_BEGIN, call_id="rs", service_name="collect"
        )
        peer.send(Message(header=header), later(CallType.RSYNC_STEP3, 1))
        await until(lambda: peer.messages)
        assert peer.messages[0].error.startswith("a part of type 23 does not belong")


@pytest.mark.parametrize("kind", KINDS)
async def test_late_parts_of_a_call_that_is_over_are_ignored(
    memory: Net, kind: CallKind
) -> None:
    registry = services()

    @registry.rsync(kind, "sync")
    async def sync(
        context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> None:
        return None

    async with memory.server(registry), raw_client(memory) as peer:
        peer.send(opening(kind))
        await until(lambda: peer.messages)
        peer.send(*(later(type_of(step), 1) for step in RsyncStep))
        peer.send(Message(header=Header(call_type=1, service_name="echo", call_id="e")))
        await until(lambda: len(peer.messages) > 1)
        assert [one.header.call_id for one in peer.messages] == ["rs", "e"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["number", "step", "download"])
async def test_what_a_server_may_not_send_breaks_the_stream(
    memory: Net, kind: CallKind, case: str
) -> None:
    right = type_of(DOWN[kind][0])
    call_type, number, text = {
        "number": (right, 2, "part 2 came where part 1 was due"),
        "step": (type_of(UP[kind][0]), 1, "does not belong into this kind of call"),
        "download": (CallType.DOWNLOAD_MORE, 1, "a part of type 20 does not belong"),
    }[case]
    async with (
        raw_server(memory) as (peer, client),
        client.rsync(kind, "sync", b"0") as stream,
    ):
        await until(lambda: peer.messages)
        call_id = peer.messages[0].header.call_id
        for one_type, one_number in ((right, 0), (call_type, number)):
            header = Header(call_type=one_type, call_id=call_id, stream_part=one_number)
            peer.send(Message(header=header, payload=b"p"))
        with pytest.raises(IncompleteTransferError, match=text):
            await stream.reply()
        assert (await anext(aiter(stream))).payload == b"p"
        with pytest.raises(IncompleteTransferError, match=text):
            await anext(aiter(stream))
