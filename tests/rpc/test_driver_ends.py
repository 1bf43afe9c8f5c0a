"""Faults of the network, and how connections end."""

import asyncio
import contextlib
import random
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import pytest

from rpc25519_tools.errors import (
    ConnectionLostError,
    DeadlineError,
    RemoteCallError,
    Rpc25519Error,
)
from rpc25519_tools.rpc import driver
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.streams import OutgoingStream
from rpc25519_tools.transport.base import WRITE_HIGH_WATER_LEN
from rpc25519_tools.wire.codecs import Codec, codec_name
from rpc25519_tools.wire.constants import MAGIC, MAX_PLAIN_LEN, MIB
from rpc25519_tools.wire.framing import Frame, decode_frame
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import until
from tests.rpc.memory import Plan, RawPeer
from tests.rpc.nets import Net, Seen, raw_client, raw_server
from tests.rpc.offers import Waiting, parts_of, services
from tests.rpc.requests import (
    REAL_CODECS,
)

# Faults on the way.


@pytest.mark.parametrize("segments", [(1,), (15, 16, 17), (7, 1000, 3)])
async def test_calls_work_however_the_bytes_are_cut(
    memory: Net, segments: tuple[int, ...]
) -> None:
    assert memory.memory is not None
    memory.memory.up = memory.memory.down = Plan(segments=segments)
    async with memory.pair(services()) as (_, client):
        payload = random.Random(3).randbytes(20_000)
        assert (await client.call("echo", payload)).payload == payload
        async with await client.stream(CallKind.DOWNLOAD, "count", b"5") as stream:
            assert len(await parts_of(stream)) == 6


async def try_call(net: Net, up: Plan, down: Plan, timeout_s: float) -> str:
    """Make a call through faults; return how it ended, by name."""
    assert net.memory is not None
    net.memory.up, net.memory.down = up, down
    config = net.config("127.0.0.1:8443", "client", compression="none")
    client = await Client.connect(config)
    try:
        reply = await client.call("echo", b"payload", timeout_s=timeout_s)
        return "the right reply" if reply.payload == b"payload" else "another reply"
    except Rpc25519Error as exc:
        return type(exc).__name__
    finally:
        await client.aclose()


#: A little more than a request or a reply is long.
FRAME_LEN = 400


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_connection_cut_anywhere_fails_the_call(memory: Net, way: str) -> None:
    seen = Seen()
    async with memory.server(services(), seen):
        outcomes = await asyncio.gather(
            *(
                try_call(
                    memory,
                    Plan(cut_at=at if way == "up" else None),
                    Plan(cut_at=at if way == "down" else None),
                    timeout_s=10,
                )
                for at in range(FRAME_LEN)
            )
        )
        whole = outcomes.index("the right reply")
        assert whole > 100
        assert set(outcomes[:whole]) == {"ConnectionLostError"}
        assert set(outcomes[whole:]) <= {"the right reply", "ConnectionLostError"}
        await until(lambda: not seen.open, what="all connections to end")


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_changed_byte_anywhere_gives_an_error_or_is_in_the_data(
    memory: Net, way: str
) -> None:
    seen = Seen()
    places = [*range(16), *range(16, FRAME_LEN, 3)]
    async with memory.server(services(), seen):
        outcomes = await asyncio.gather(
            *(
                try_call(
                    memory,
                    Plan(corrupt_at=frozenset([at] if way == "up" else [])),
                    Plan(corrupt_at=frozenset([at] if way == "down" else [])),
                    timeout_s=2,
                )
                for at in places
            )
        )
        # The first 16 bytes are the frame's header, where no change goes unnoticed.
        assert "the right reply" not in outcomes[:16]
        assert "another reply" in outcomes
        await until(lambda: not seen.open, what="all connections to end")


async def test_a_peer_that_falls_silent_is_given_up_at_the_deadline(
    memory: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "CLOSE_TIMEOUT_S", 0.05)
    async with memory.server(services()):
        for at in (0, 5, 16, 100):
            outcome = await try_call(memory, Plan(stall_at=at), Plan(), timeout_s=0.05)
            assert outcome == "DeadlineError"


async def test_a_connection_that_ends_inside_a_message_says_so(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        call = asyncio.create_task(client.call("echo", b""))
        await until(lambda: peer.received)
        peer.send_bytes(MAGIC)
        peer.transport.close()
        with pytest.raises(ConnectionLostError, match="in the middle of a message"):
            await call


async def test_a_connection_that_ends_between_messages_says_that(net: Net) -> None:
    registry, waiting, seen = Registry(), Waiting(), Seen()
    registry.add_call("wait", waiting)
    async with net.server(registry, seen) as server, await net.client(server) as client:
        call = asyncio.create_task(client.call("wait", b""))
        await until(lambda: waiting.started)
        seen.open[0].close()
        with pytest.raises(ConnectionLostError, match="the peer closed the connection"):
            await call


def slow_unpacking(patch: pytest.MonkeyPatch) -> threading.Event:
    """Let worker threads unpack nothing until the returned event is set."""
    go = threading.Event()

    def wait_and_decode(frame: Frame, max_plain_len: int = MAX_PLAIN_LEN) -> Message:
        if threading.current_thread() is not threading.main_thread():
            assert go.wait(10)
        return decode_frame(frame, max_plain_len)

    patch.setattr(driver, "decode_frame", wait_and_decode)
    return go


@pytest.mark.parametrize("codec", REAL_CODECS, ids=codec_name)
async def test_what_came_before_the_end_of_the_connection_counts(
    memory: Net, monkeypatch: pytest.MonkeyPatch, codec: Codec
) -> None:
    go = slow_unpacking(monkeypatch)
    payload = random.Random(4).randbytes(100_000)
    async with raw_server(memory) as (peer, client):
        stream = await client.stream(CallKind.DOWNLOAD, "d")
        await until(lambda: peer.received)
        opening = peer.messages[0].header
        for part, call_type in enumerate(
            (
                CallType.DOWNLOAD_BEGIN,
                CallType.DOWNLOAD_MORE,
                CallType.DOWNLOAD_END,
                CallType.RPC_REPLY,
            )
        ):
            header = Header(
                call_type=call_type,
                call_id=opening.call_id,
                seqno=opening.seqno,
                stream_part=part % 3,
            )
            peer.send(Message(header=header, payload=payload), codec=codec)
        peer.transport.close()
        await until(lambda: peer.lost, what="the end of the connection")
        with pytest.raises(ConnectionLostError):
            await client.send_one_way("note", b"")
        go.set()
        assert await parts_of(stream) == [payload] * 3
        assert (await stream.reply()).payload == payload


async def test_what_waits_behind_the_last_message_fails(
    memory: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = slow_unpacking(monkeypatch)
    async with raw_server(memory) as (peer, client):
        calls = [asyncio.create_task(client.call("echo", b"")) for _ in range(2)]
        await until(lambda: len(peer.received) == 2)
        first = peer.messages[0].header
        reply = Header(
            call_type=CallType.RPC_REPLY, call_id=first.call_id, seqno=first.seqno
        )
        peer.send(Message(header=reply, payload=bytes(100_000)), codec=Codec.S2)
        peer.transport.close()
        await until(lambda: peer.lost)
        go.set()
        assert len((await calls[0]).payload) == 100_000
        with pytest.raises(ConnectionLostError, match="the peer closed"):
            await calls[1]


async def test_an_error_keeps_nothing_of_the_calls_that_it_ended(memory: Net) -> None:
    async with memory.pair(services()) as (server, client):
        listener = client.listen()
        server.disconnect(server.clients[0].remote_address)
        await until(lambda: client.is_down)
        lengths = set()
        for _ in range(20):
            for failing in (client.call("echo", bytes(100)), anext(listener)):
                with pytest.raises(ConnectionLostError) as caught:
                    await failing
                lengths.add(len(list(traceback.walk_tb(caught.tb))))
        assert max(lengths) < 10


@pytest.mark.skipif(sys.version_info < (3, 12), reason="no task begins at once there")
async def test_a_loop_may_begin_all_its_tasks_at_once(net: Net) -> None:
    registry = services()

    @registry.call("stop")
    async def stop(context: CallContext) -> bytes:
        await server.stop()
        return b"stopped"

    loop = asyncio.get_running_loop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009
    async with net.pair(registry) as (server, client):
        for length in (0, 100_000, 3_000_000):
            payload = random.Random(length).randbytes(length)
            assert (await client.call("echo", payload)).payload == payload
        assert (await client.call("stop")).payload == b"stopped"
        await until(lambda: client.is_down)


# Closing.


async def test_closing_sends_what_is_queued(net: Net) -> None:
    registry, received = Registry(), []

    async def note(context: CallContext) -> Reply:
        received.append(len(context.payload))
        return Reply()

    registry.add_one_way("note", note)
    async with net.server(registry) as server:
        client = await net.client(server, compression="none")
        for _ in range(8):
            await client.send_one_way("note", bytes(MIB - 1000))
        await client.aclose()
        await until(lambda: len(received) == 8, what="all that was queued")


async def test_closing_fails_what_waits(net: Net) -> None:
    registry, waiting = Registry(), Waiting()
    registry.add_call("wait", waiting)
    async with net.server(registry) as server:
        client = await net.client(server)
        call = asyncio.create_task(client.call("wait", b""))
        await until(lambda: waiting.started)
        await client.aclose()
        with pytest.raises(ConnectionLostError, match="this side closed"):
            await call
        await until(lambda: waiting.cancelled)


async def test_closing_twice_is_the_same_as_once(net: Net) -> None:
    async with net.server(services()) as server:
        client = await net.client(server)
        await asyncio.gather(client.aclose(), client.aclose())
        await client.aclose()


@contextlib.contextmanager
def quick_close(patch: pytest.MonkeyPatch) -> Iterator[None]:
    patch.setattr(driver, "CLOSE_TIMEOUT_S", 0.1)
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 5


async def test_a_peer_that_never_reads_cannot_hold_up_closing(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, seen = services(), Seen()
    async with net.server(registry, seen) as server:
        client = await net.client(server, compression="none")
        await until(lambda: seen.open)
        seen.open[0].pause_reading()
        sends = [
            asyncio.create_task(client.call("echo", bytes(4 * MIB))) for _ in range(8)
        ]
        await until(lambda: client.transport.unsent_len > WRITE_HIGH_WATER_LEN)
        with quick_close(monkeypatch):
            await client.aclose()
        results = await asyncio.gather(*sends, return_exceptions=True)
        assert all(isinstance(one, ConnectionLostError) for one in results)


async def test_a_client_that_never_reads_cannot_hold_up_the_servers_end(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, seen = services(), Seen()

    async def flood(context: CallContext, out: OutgoingStream) -> Reply:
        while True:
            await out.send(bytes(MIB))

    registry.add_download("flood", flood)
    async with net.server(registry, seen, compression="none") as server:
        client = await net.client(server)
        stream = await client.stream(CallKind.DOWNLOAD, "flood")
        client.transport.pause_reading()
        await until(
            lambda: seen.open and seen.open[0].unsent_len > WRITE_HIGH_WATER_LEN
        )
        monkeypatch.setattr("rpc25519_tools.rpc.connection._CLEANUP_TIMEOUT_S", 0.1)
        with quick_close(monkeypatch):
            await server.aclose()
        client.transport.resume_reading()
        with pytest.raises((ConnectionLostError, RemoteCallError)):
            await parts_of(stream)
        await client.aclose()


async def test_a_closing_server_tells_its_callers(net: Net) -> None:
    registry, waiting = Registry(), Waiting()
    registry.add_call("wait", waiting)
    async with net.server(registry) as server, await net.client(server) as client:
        call = asyncio.create_task(client.call("wait", b""))
        await until(lambda: waiting.started)
        await server.aclose()
        with pytest.raises(RemoteCallError, match="shutting down"):
            await call


async def test_a_server_that_stops_finishes_running_calls_and_starts_no_more(
    net: Net,
) -> None:
    registry, waiting = services(), Waiting()
    registry.add_call("wait", waiting)
    async with net.server(registry) as server, await net.client(server) as client:
        call = asyncio.create_task(client.call("wait", b""))
        await until(lambda: waiting.started)
        server.stop_accepting()
        with pytest.raises(RemoteCallError, match="shutting down"):
            await client.call("echo", b"")
        idle = asyncio.create_task(server.wait_until_idle())
        assert not idle.done()
        waiting.go.set()
        assert (await call).payload == b"done"
        await idle


async def test_a_handler_that_does_not_stop_cannot_hold_up_the_servers_end(
    memory: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpc25519_tools.rpc.connection._CLEANUP_TIMEOUT_S", 0.05)
    registry, go, started = Registry(), asyncio.Event(), asyncio.Event()

    async def stubborn(context: CallContext) -> Reply:
        started.set()
        while not go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go.wait()
        return Reply()

    registry.add_call("stubborn", stubborn)
    async with memory.server(registry) as server:
        client = await memory.client(server)
        call = asyncio.create_task(client.call("stubborn", b""))
        await started.wait()
        await asyncio.wait_for(server.aclose(), 5)
        with pytest.raises(ConnectionLostError):
            await call
        await client.aclose()
        go.set()


# Idle connections.


async def test_an_idle_connection_is_closed(net: Net) -> None:
    seen = Seen()
    async with net.server(services(), seen, idle_timeout_s=0.1) as server:
        client = await net.client(server)
        await client.call("echo", b"")
        await until(lambda: seen.closed, what="the idle connection's end")
        assert isinstance(seen.closed[0], DeadlineError)
        assert str(seen.closed[0]) == "nothing moved for 0.1 s"
        with pytest.raises(ConnectionLostError):
            await client.call("echo", b"")
        await client.aclose()


async def test_a_stalled_upload_counts_as_idle(memory: Net) -> None:
    seen = Seen()
    async with memory.server(services(), seen, idle_timeout_s=0.1) as server:
        client = await memory.client(server)
        stream = await client.stream(CallKind.UPLOAD, "collect", b"and then nothing")
        with pytest.raises(ConnectionLostError):
            await stream.reply()
        assert isinstance(seen.closed[0], DeadlineError)
        await client.aclose()


async def test_a_connection_that_waits_for_a_call_is_not_idle(memory: Net) -> None:
    registry, waiting, seen = Registry(), Waiting(), Seen()
    registry.add_call("wait", waiting)
    async with (
        memory.server(registry, seen, idle_timeout_s=0.05) as server,
        await memory.client(server) as client,
    ):
        call = asyncio.create_task(client.call("wait", b""))
        give_up = time.monotonic() + 0.3
        await until(lambda: seen.closed or time.monotonic() > give_up)
        assert not seen.closed
        waiting.go.set()
        assert (await call).payload == b"done"
        await until(lambda: seen.closed, what="the idle connection's end")


async def test_traffic_keeps_a_connection_open(memory: Net) -> None:
    seen = Seen()
    async with (
        memory.server(services(), seen, idle_timeout_s=0.2) as server,
        await memory.client(server) as client,
    ):
        give_up = time.monotonic() + 0.6
        while time.monotonic() < give_up:
            await client.call("echo", b"")
            await asyncio.sleep(0.01)
        assert not seen.closed


async def test_a_raw_peer_is_told_of_the_end(memory: Net) -> None:
    async with memory.server(services()) as server, raw_client(memory) as peer:
        assert isinstance(peer, RawPeer)
        await server.aclose()
        await until(lambda: peer.lost)
        assert peer.error is None
