"""Rsync calls that end early: what has come before is kept, on both sides."""

import asyncio
import contextlib

import pytest

from rpc25519_tools.errors import (
    CallCancelledError,
    ConnectionLostError,
    DeadlineError,
    RemoteCallError,
    Rpc25519Error,
)
from rpc25519_tools.rpc import streams
from rpc25519_tools.rpc.calls import CallKind, RsyncStep
from rpc25519_tools.rpc.client_stream import ClientStream
from rpc25519_tools.rpc.connection import Connection
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream, Part
from rpc25519_tools.wire.constants import MIB
from rpc25519_tools.wire.message import CallType
from tests.helpers import until
from tests.rpc.nets import Net, raw_client
from tests.rpc.offers import services
from tests.rpc.rsync_calls import (
    DOWN,
    FIRST,
    KINDS,
    UP,
    Draining,
    Seen,
    held_by,
    later,
    opening,
    seen,
)

#: A part that comes first when it has come whole, and fills what a stream may hold.
TOO_MUCH = bytes(streams._HIGH_WATER_LEN + MIB)


# What has come is kept when the call ends early: on the server.


async def send_three(stream: ClientStream, kind: CallKind) -> Seen:
    """Send three parts; return what the server has to find then."""
    for number in (1, 2, 3):
        await stream.send(b"%d" % number, step=UP[kind][number % 2])
    return [
        (0, FIRST[kind], b"0"),
        *((n, UP[kind][n % 2], b"%d" % n) for n in (1, 2, 3)),
    ]


@pytest.mark.parametrize("error", [ConnectionLostError, CallCancelledError])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_finds_what_came_before_a_cut_or_cancel(
    net: Net, kind: CallKind, error: type[Rpc25519Error]
) -> None:
    registry, draining = services(), Draining()
    registry.add_rsync(kind, "sync", draining)
    async with net.pair(registry) as (server, client):
        async with client.rsync(kind, "sync", b"0") as stream:
            sent = await send_three(stream, kind)
            await until(lambda: draining.unread == 4)
            (connection,) = server._connections
            if error is ConnectionLostError:
                client.transport.abort()
            else:
                stream.cancel()
            with pytest.raises(error):
                await stream.reply()
            with pytest.raises(error):
                await stream.send(b"", step=UP[kind][0])
        await until(lambda: draining.found is not None)
        assert draining.found == sent
        assert isinstance(draining.error, error)
        await until(lambda: not connection._running)
        assert (connection._held_len, connection.driver._held_len) == (0, 0)
        if error is CallCancelledError:
            await client.call("echo")


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
