"""Rsync calls: parts that carry a step, and what is kept of them at an early end."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rpc25519_tools.errors import (
    CallCancelledError,
    ConnectionLostError,
    DeadlineError,
    IncompleteTransferError,
    LocalProtocolError,
    NoSuchServiceError,
    RemoteCallError,
    Rpc25519Error,
)
from rpc25519_tools.rpc import streams
from rpc25519_tools.rpc.calls import CallKind, RsyncStep
from rpc25519_tools.rpc.client_stream import ClientStream
from rpc25519_tools.rpc.connection import Connection
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import PlainIncoming, PlainOutgoing, Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream, Part
from rpc25519_tools.wire.constants import MIB
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import until
from tests.rpc.nets import Net, raw_client, raw_server
from tests.rpc.offers import services

KINDS = [CallKind.RSYNC_READ, CallKind.RSYNC_SEND]
FIRST = {
    CallKind.RSYNC_READ: RsyncStep.REQUEST,
    CallKind.RSYNC_SEND: RsyncStep.OVERVIEW,
}
SENDER = (RsyncStep.OVERVIEW, RsyncStep.DELTAS)
RECEIVER = (RsyncStep.HASHES, RsyncStep.ACK)
UP = {CallKind.RSYNC_READ: RECEIVER, CallKind.RSYNC_SEND: SENDER}
DOWN = {CallKind.RSYNC_READ: SENDER, CallKind.RSYNC_SEND: RECEIVER}
#: A part that comes first when it has come whole, and fills what a stream may hold.
TOO_MUCH = bytes(streams._HIGH_WATER_LEN + MIB)

Seen = list[tuple[int, RsyncStep | None, bytes]]


def seen(parts: list[Part]) -> Seen:
    return [(part.number, part.step, bytes(part.payload)) for part in parts]


def opening(kind: CallKind, name: str = "sync", **more: Any) -> Message:
    header = Header(call_type=kind.value, call_id="rs", service_name=name, **more)
    return Message(header=header, payload=b"0")


def later(call_type: int, number: int) -> Message:
    header = Header(call_type=call_type, call_id="rs", stream_part=number)
    return Message(header=header, payload=b"%d" % number)


def type_of(step: RsyncStep) -> CallType:
    return CallType[f"RSYNC_STEP{int(step)}"]


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


class Draining:
    """A handler that waits; what it finds when that ends: parts, and an error."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.parts: IncomingStream | None = None
        self.found: Seen | None = None
        self.error: Exception | None = None

    @property
    def unread(self) -> int:
        return 0 if self.parts is None else len(self.parts._parts)

    async def __call__(
        self, context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> bytes:
        self.parts = parts
        try:
            await self.go.wait()
            return b"done"
        finally:
            found = seen(parts.take_ready())
            try:
                await anext(parts)
            except Rpc25519Error as exc:
                self.error = exc
            self.found = found


def held_by(server: Server) -> list[tuple[int, int]]:
    """Return what each connection counts as held."""
    return [(one._held_len, one.driver._held_len) for one in server._connections]


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


# What has come is kept when the call ends early: on the server.


async def send_three(stream: ClientStream, kind: CallKind) -> Seen:
    """Send three parts; return what the server has to find then."""
    for number in (1, 2, 3):
        await stream.send(b"%d" % number, step=UP[kind][number % 2])
    return [
        (0, FIRST[kind], b"0"),
        *((n, UP[kind][n % 2], b"%d" % n) for n in (1, 2, 3)),
    ]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_finds_what_came_before_the_cut(
    net: Net, kind: CallKind
) -> None:
    registry, draining = services(), Draining()
    registry.add_rsync(kind, "sync", draining)
    async with net.pair(registry) as (server, client):
        async with client.rsync(kind, "sync", b"0") as stream:
            sent = await send_three(stream, kind)
            await until(lambda: draining.unread == 4)
            (connection,) = server._connections
            client.transport.abort()
            await until(lambda: draining.found is not None)
        assert draining.found == sent
        assert isinstance(draining.error, ConnectionLostError)
        await until(lambda: not connection._running)
        assert (connection._held_len, connection.driver._held_len) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_reader_beside_the_handler_gets_all_before_the_cut(
    net: Net, kind: CallKind
) -> None:
    registry = services()
    read: list[Part] = []
    ends: list[Exception] = []
    taken, go_on = asyncio.Event(), asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def read_slowly(parts: IncomingStream) -> None:
        try:
            async for part in parts:
                read.append(part)
                taken.set()
                await go_on.wait()
        except Rpc25519Error as exc:
            ends.append(exc)

    @registry.rsync(kind, "sync")
    async def sync(
        context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> None:
        tasks.append(asyncio.create_task(read_slowly(parts)))
        try:
            await asyncio.Event().wait()
        finally:
            go_on.set()
            await tasks[0]

    async with net.pair(registry) as (_, client):
        async with client.rsync(kind, "sync", b"0") as stream:
            sent = await send_three(stream, kind)
            await taken.wait()
            await client.call("echo")  # went behind the parts
            client.transport.abort()
            await until(lambda: ends)
        assert seen(read) == sent
        assert isinstance(ends[0], ConnectionLostError)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_finds_what_came_before_the_cancel(
    net: Net, kind: CallKind
) -> None:
    registry, draining = services(), Draining()
    registry.add_rsync(kind, "sync", draining)
    async with net.pair(registry) as (server, client):
        async with client.rsync(kind, "sync", b"0") as stream:
            sent = await send_three(stream, kind)
            await until(lambda: draining.unread == 4)
            stream.cancel()
            with pytest.raises(CallCancelledError):
                await stream.reply()
            with pytest.raises(CallCancelledError):
                await stream.send(b"", step=UP[kind][0])
        await until(lambda: draining.found is not None)
        assert draining.found == sent
        assert isinstance(draining.error, CallCancelledError)
        await client.call("echo")
        await until(lambda: held_by(server) == [(0, 0)])


async def test_the_server_learns_of_a_cancel_while_a_part_waits_to_go(
    memory: Net,
) -> None:
    registry, go = services(), asyncio.Event()
    numbers: list[int] = []
    ends: list[BaseException] = []

    @registry.rsync(CallKind.RSYNC_SEND, "sync")
    async def sync(
        context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> None:
        await go.wait()
        try:
            numbers.extend([part.number async for part in parts])
        except BaseException as exc:
            ends.append(exc)
            raise

    async with memory.pair(registry, compression="none") as (_, client):
        async with client.rsync(CallKind.RSYNC_SEND, "sync") as stream:

            async def send_for_ever() -> None:
                while True:
                    await stream.send(bytes(MIB), step=RsyncStep.OVERVIEW)

            sending = asyncio.create_task(send_for_ever())
            await until(lambda: client._driver._outbox.waiting_count)
        with pytest.raises(CallCancelledError):
            await sending
        go.set()
        await until(lambda: ends)
        await client.call("echo")


async def test_a_handler_finds_what_came_before_its_deadline(memory: Net) -> None:
    registry, draining = services(), Draining()
    kind = CallKind.RSYNC_SEND
    registry.add_rsync(kind, "sync", draining)
    async with memory.server(registry) as server, raw_client(memory) as peer:
        peer.send(
            opening(kind, created_ns=10**9, deadline_ns=10**9 + 50 * 10**6),
            later(CallType.RSYNC_STEP3, 1),
        )
        await until(lambda: peer.messages)
        assert draining.found == [
            (0, RsyncStep.OVERVIEW, b"0"),
            (1, RsyncStep.DELTAS, b"1"),
        ]
        assert isinstance(draining.error, DeadlineError)
        assert peer.messages[0].error == "context deadline exceeded"
        await until(lambda: held_by(server) == [(0, 0)])


async def test_a_server_that_stops_leaves_the_handler_what_has_come(net: Net) -> None:
    registry = Registry()
    found: list[Seen] = []
    waiting = asyncio.Event()

    @registry.rsync(CallKind.RSYNC_SEND, "sync")
    async def sync(
        context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> None:
        try:
            waiting.set()
            await asyncio.Event().wait()
        finally:
            found.append(seen(parts.take_ready()))

    async with (
        net.pair(registry) as (server, client),
        client.rsync(CallKind.RSYNC_SEND, "sync", b"0") as stream,
    ):
        await waiting.wait()
        await server.aclose()
        with pytest.raises((RemoteCallError, ConnectionLostError)):
            await stream.reply()
    assert found == [[(0, RsyncStep.OVERVIEW, b"0")]]


async def test_streams_of_other_kinds_drop_what_has_come_as_ever(memory: Net) -> None:
    registry, draining = services(), Draining()
    registry.add_bistream("wait", draining)
    async with (
        memory.pair(registry) as (_, client),
        client.bistream("wait", b"0") as stream,
    ):
        await stream.send(b"1")
        await until(lambda: draining.unread == 2)
        client.transport.abort()
        await until(lambda: draining.found is not None)
    assert draining.found == []
    assert isinstance(draining.error, ConnectionLostError)


async def test_a_stream_that_nobody_reads_is_dropped_whole(memory: Net) -> None:
    registry, draining = services(), Draining()
    registry.add_rsync(CallKind.RSYNC_SEND, "sync", draining)
    async with memory.pair(registry, compression="none") as (server, client):
        stream = client.rsync(CallKind.RSYNC_SEND, "sync", b"0")
        await stream.begin()
        await stream.send(TOO_MUCH, step=RsyncStep.DELTAS)
        connection: Connection
        (connection,) = server._connections
        await until(lambda: connection.driver.is_held)
        connection._give_up()
        assert not connection.driver.is_held
        await client.call("echo")
        draining.go.set()
        assert (await stream.reply()).payload == b"done"
        assert draining.found == []
        assert isinstance(draining.error, DeadlineError)
        await until(lambda: held_by(server) == [(0, 0)])


# What has come is kept when the call ends early: at the client.


class Sending:
    """A handler that sends three parts and waits."""

    def __init__(self, payload: bytes = b"") -> None:
        self.payload = payload
        self.cancelled = False

    async def __call__(
        self, context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> None:
        for number in range(3):
            step = DOWN[context.kind][number % 2]
            await out.send(b"%d" % number + self.payload, step=step)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


def unread(stream: ClientStream) -> int:
    assert stream._incoming is not None
    return len(stream._incoming._parts)


def sent_down(kind: CallKind) -> Seen:
    return [(n, DOWN[kind][n % 2], b"%d" % n) for n in range(3)]


async def rest_of(stream: ClientStream) -> tuple[Seen, Exception]:
    read: list[Part] = []
    parts = aiter(stream)
    try:
        while True:
            read.append(await anext(parts))
    except Rpc25519Error as exc:
        return seen(read), exc


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_reads_what_came_before_the_cut(
    net: Net, kind: CallKind
) -> None:
    registry = services()
    registry.add_rsync(kind, "sync", Sending())
    async with (
        net.pair(registry) as (server, client),
        client.rsync(kind, "sync", b"0") as stream,
    ):
        await until(lambda: unread(stream) == 3)
        for transport in server.clients:
            transport.abort()
        with pytest.raises(ConnectionLostError):
            await stream.reply()
        read, error = await rest_of(stream)
    assert read == sent_down(kind)
    assert isinstance(error, ConnectionLostError)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_reads_what_came_before_it_cancelled(
    net: Net, kind: CallKind
) -> None:
    registry, sending = services(), Sending()
    registry.add_rsync(kind, "sync", sending)
    async with net.pair(registry) as (server, client):
        stream = client.rsync(kind, "sync", b"0")
        await stream.begin()
        await until(lambda: unread(stream) == 3)
        parts = aiter(stream)
        stream.cancel()
        read = [await anext(parts) for _ in range(3)]
        assert seen(read) == sent_down(kind)
        with pytest.raises(CallCancelledError):
            await anext(parts)
        await until(lambda: sending.cancelled)
        await client.call("echo")
        await until(lambda: held_by(server) == [(0, 0)])
        assert client._driver._held_len == 0


async def test_a_client_reads_what_came_before_its_time_was_over(memory: Net) -> None:
    registry, kind = services(), CallKind.RSYNC_READ
    registry.add_rsync(kind, "sync", Sending())
    async with (
        memory.pair(registry) as (_, client),
        client.rsync(kind, "sync", b"0", timeout_s=60) as stream,
    ):
        await until(lambda: unread(stream) == 3)
        client._expire(stream.call_id)
        with pytest.raises(DeadlineError):
            await stream.reply()
        read, error = await rest_of(stream)
    assert read == sent_down(kind)
    assert isinstance(error, DeadlineError)


async def test_a_reader_that_waits_learns_of_the_end_at_once(net: Net) -> None:
    registry, kind = services(), CallKind.RSYNC_READ
    registry.add_rsync(kind, "sync", Sending())
    async with net.pair(registry) as (_, client):
        stream = client.rsync(kind, "sync", b"0")
        await stream.begin()
        reading = asyncio.create_task(rest_of(stream))
        incoming = stream._incoming
        assert incoming is not None
        await until(lambda: incoming.is_waited_for)
        stream.cancel()
        read, error = await reading
    assert read == sent_down(kind)[: len(read)]
    assert isinstance(error, CallCancelledError)


async def test_kept_parts_do_not_hold_the_connection_back(memory: Net) -> None:
    registry, kind = services(), CallKind.RSYNC_READ
    registry.add_rsync(kind, "sync", Sending(TOO_MUCH))
    async with memory.pair(registry, compression="none") as (_, client):
        async with client.rsync(kind, "sync", b"0") as stream:
            await until(lambda: client._driver.is_held)
            parts = aiter(stream)
        assert not client._driver.is_held
        assert (await client.call("echo", b"goes on")).payload == b"goes on"
        # What lies there still is bounded, and can be read.
        assert 1 <= unread(stream) <= 2
        first = await anext(parts)
        assert (first.number, len(first.payload)) == (0, len(TOO_MUCH) + 1)
        with contextlib.suppress(CallCancelledError):
            await anext(parts)
        with pytest.raises(CallCancelledError):
            await anext(parts)
        assert client._driver._holds == 0
