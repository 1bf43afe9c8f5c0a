"""Order, codecs, faults of the network, and how connections end."""

import asyncio
import contextlib
import itertools
import random
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pytest

from rpc25519_tools.errors import (
    CallCancelledError,
    ConnectionLostError,
    DeadlineError,
    RemoteCallError,
    RemoteProtocolError,
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
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import until
from tests.rpc.memory import MemoryTransport, Plan, RawPeer
from tests.rpc.nets import Net, Seen, raw_client, raw_server
from tests.rpc.test_calls import Waiting, parts_of, services

REAL_CODECS = [codec for codec in Codec if codec is not Codec.NONE_ONCE]
call_ids = itertools.count().__next__


def request(name: str = "echo", payload: bytes = b"", **fields: object) -> Message:
    header = Header(
        call_type=CallType.RPC,
        call_id=f"call {call_ids()}",
        service_name=name,
        **fields,  # type: ignore[arg-type]  # names of Header's fields
    )
    return Message(header=header, payload=payload)


# Order.


async def test_messages_of_mixed_codecs_and_lengths_keep_their_order(
    memory: Net,
) -> None:
    registry, order = Registry(), []

    async def note(context: CallContext) -> Reply:
        order.append(context.header.seqno)
        return Reply()

    registry.add_one_way("note", note)
    rng = random.Random(1)
    async with memory.server(registry), raw_client(memory) as peer:
        for number in range(120):
            header = Header(
                call_type=CallType.ONE_WAY, service_name="note", seqno=number
            )
            payload = rng.randbytes(rng.choice((0, 10, 5_000, 200_000)))
            if rng.random() < 0.3:
                payload = bytes(100_000)  # packs to little
            peer.send(Message(header=header, payload=payload), codec=Codec(number % 8))
        await until(lambda: len(order) == 120, what="all messages")
        assert order == list(range(120))


@pytest.mark.parametrize("compression", ["none", "s2", "lz4", "zstd:01"])
async def test_parts_of_mixed_lengths_arrive_in_order_both_ways(
    net: Net, compression: str
) -> None:
    rng = random.Random(2)
    payloads = [rng.randbytes(rng.choice((0, 10, 5_000, 300_000))) for _ in range(40)]
    async with (
        net.pair(services(), compression=compression) as (_, client),
        await client.stream(CallKind.BISTREAM, "mirror", payloads[0]) as stream,
    ):
        reading = asyncio.create_task(parts_of(stream))
        for payload in payloads[1:]:
            await stream.send(payload)
        await stream.send(b"", last=True)
        assert await reading == [*payloads, b""]


@pytest.mark.parametrize("name", ["echo", "nobody's"])
async def test_answers_to_what_comes_together_leave_together(
    memory: Net, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = []
    original = MemoryTransport.write

    def write(self: MemoryTransport, buffers: Sequence[Buffer]) -> None:
        writes.append(self)
        original(self, buffers)

    async with memory.server(services()), raw_client(memory) as peer:
        assert memory.memory is not None
        monkeypatch.setattr(MemoryTransport, "write", write)
        peer.send(*(request(name) for _ in range(8)))
        await until(lambda: len(peer.messages) == 8)
        assert writes == [peer.transport, memory.memory.server_ends[0]]
        peer.send(request(name))
        await until(lambda: len(peer.messages) == 9)
        assert len(writes) == 4


@pytest.mark.parametrize("network", ["tcp", "tls"])
async def test_what_is_sent_before_a_client_is_cut_off_leaves(
    certs: Path, network: Literal["tcp", "tls"]
) -> None:
    registry = services()

    @registry.call("go away")
    async def go_away(context: CallContext) -> None:
        await server.push(context.remote_address, "the last word")
        server.disconnect(context.remote_address)

    async with Net(network, certs).pair(registry) as (server, client):
        with client.listen() as listener:
            calls = [client.call(name) for name in ("echo", "go away", "echo")]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(results[0], Message)
            assert isinstance(results[1], ConnectionLostError)
            message = await anext(listener)
            assert message.header.service_name == "the last word"


async def test_calls_that_never_left_are_not_cancelled_at_the_server(
    memory: Net,
) -> None:
    """Or their cancels would pile up without bound, where the server reads nothing."""
    async with raw_server(memory, compression="none") as (peer, client):
        peer.transport.pause_reading()
        before = 0
        while client.transport.unsent_len <= 2 * WRITE_HIGH_WATER_LEN:
            await client.send_one_way("note", bytes(16_000))
            before += 1
        unsent_len = client.transport.unsent_len
        calls = [client.call("echo", timeout_s=0.05) for _ in range(20)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(one) for one in results} == {DeadlineError}
        waiting = asyncio.create_task(client.call("echo", timeout_s=10))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        stream = client.upload("collect", b"part 0")
        opening = asyncio.create_task(stream.begin())
        await asyncio.sleep(0.01)
        stream.cancel()
        with pytest.raises(CallCancelledError):
            await opening
        assert client.transport.unsent_len == unsent_len
        peer.transport.resume_reading()
        call = asyncio.create_task(client.call("echo", timeout_s=10))
        await until(lambda: len(peer.messages) == before + 1)
        assert peer.messages[before].header.call_type == CallType.RPC
        call.cancel()
        await until(lambda: len(peer.messages) == before + 2)
        assert peer.messages[-1].header.call_type == CallType.CANCEL_PREVIOUS


# Codecs.


async def codecs_of_replies(
    net: Net, *requests: tuple[Message, Codec], server: str
) -> list[Codec]:
    """Send requests one after another; return what packed each reply."""
    async with net.server(services(), compression=server), raw_client(net) as peer:
        for count, (message, codec) in enumerate(requests, 1):
            peer.send(message, codec=codec)
            await until(lambda count=count: len(peer.received) == count)  # type: ignore[misc]
        return [codec for _, codec in peer.received]


@pytest.mark.parametrize("codec", REAL_CODECS, ids=codec_name)
@pytest.mark.parametrize("payload_len", [10, 100_000])
async def test_a_reply_is_packed_like_its_request(
    memory: Net, codec: Codec, payload_len: int
) -> None:
    used = await codecs_of_replies(
        memory, (request(payload=bytes(payload_len)), codec), server="s2"
    )
    assert used == [codec]


async def test_each_reply_follows_the_last_request(memory: Net) -> None:
    codecs = [Codec.LZ4, Codec.NONE, Codec.ZSTD_03, Codec.S2]
    used = await codecs_of_replies(
        memory, *((request(), codec) for codec in codecs), server="zstd:11"
    )
    assert used == codecs


async def test_the_codec_of_one_message_is_forgotten(memory: Net) -> None:
    once = request(no_system_compression=True)
    used = await codecs_of_replies(
        memory,
        (once, Codec.LZ4),
        (request(), Codec.LZ4),
        (request(no_system_compression=True), Codec.S2),
        server="s2",
    )
    assert used == [Codec.S2, Codec.LZ4, Codec.LZ4]


@pytest.mark.parametrize("codec", REAL_CODECS, ids=codec_name)
async def test_a_server_without_compression_answers_without(
    memory: Net, codec: Codec
) -> None:
    assert await codecs_of_replies(memory, (request(), codec), server="none") == [
        Codec.NONE
    ]


async def test_a_refusal_of_an_unpacked_request_goes_back_unpacked(
    memory: Net,
) -> None:
    refused = request("nobody", no_system_compression=True)
    used = await codecs_of_replies(memory, (refused, Codec.LZ4), server="s2")
    assert used == [Codec.NONE_ONCE]


@pytest.mark.parametrize("compression", ["none", "s2", "lz4", "zstd:07"])
async def test_a_client_sends_with_its_own_codec_and_reads_every_other(
    memory: Net, compression: str
) -> None:
    async with raw_server(memory, compression=compression) as (peer, client):
        for count, codec in enumerate(Codec, 1):
            call = asyncio.create_task(client.call("echo", b"x" * 100))
            await until(lambda count=count: len(peer.received) == count)  # type: ignore[misc]
            message, used = peer.received[-1]
            assert codec_name(used) == compression
            reply = Header(
                call_type=CallType.RPC_REPLY,
                call_id=message.header.call_id,
                seqno=message.header.seqno,
            )
            peer.send(Message(header=reply, payload=bytes(70_000)), codec=codec)
            assert (await call).payload == bytes(70_000)


# Hostile bytes.


async def bytes_that_end_a_connection(net: Net, data: bytes) -> Exception:
    """Send ``data`` to a server; return why it ended the connection."""
    seen = Seen()
    async with net.server(services(), seen), raw_client(net) as peer:
        peer.send_bytes(data)
        await until(lambda: peer.lost, what="the connection's end")
        assert not seen.open
        return seen.closed[0]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
        pytest.param(MAGIC + b"\x08" + bytes(8), id="no such codec"),
        pytest.param(MAGIC + b"\x00" + b"\xff" * 8, id="too long"),
        pytest.param(MAGIC + b"\x00" + bytes(8), id="empty body"),
        pytest.param(MAGIC + b"\x00" + bytes(7) + b"\x01\xc1", id="no greenpack"),
        pytest.param(MAGIC + b"\x01" + bytes(7) + b"\x01x", id="no S2"),
        pytest.param(MAGIC + b"\x02" + bytes(8), id="no LZ4"),
        pytest.param(
            MAGIC + b"\x03" + (9000).to_bytes(8, "big") + bytes(9000),
            id="no zstd, in a worker",
        ),
    ],
)
async def test_what_breaks_the_protocol_ends_the_connection(
    memory: Net, data: bytes
) -> None:
    reason = await bytes_that_end_a_connection(memory, data)
    assert isinstance(reason, RemoteProtocolError)


async def test_a_client_drops_a_server_that_breaks_the_protocol(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        call = asyncio.create_task(client.call("echo", b""))
        await until(lambda: peer.received)
        peer.send_bytes(b"HTTP/1.0 200 OK\r\n\r\n")
        with pytest.raises(RemoteProtocolError, match="does not speak this protocol"):
            await call
        await until(lambda: peer.lost)


async def test_frames_behind_a_bad_one_are_not_served(memory: Net) -> None:
    registry, waiting = services(), Waiting()
    registry.add_call("wait", waiting)
    bad = Message(header=Header(call_type=CallType.RPC), payload=b"x" * 20_000)
    async with memory.server(registry), raw_client(memory) as peer:
        peer.send(bad, codec=Codec.LZ4)
        peer.send_bytes(MAGIC + b"\x04" + (9000).to_bytes(8, "big") + bytes(9000))
        peer.send(request("wait"))
        await until(lambda: peer.lost)
        assert waiting.started == 0


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
