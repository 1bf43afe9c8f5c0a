"""Keep-alives, and the end of connections on which nothing moves any more."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from rpc25519_tools.errors import ConnectionLostError, DeadlineError
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.driver import Driver
from rpc25519_tools.rpc.handlers import PlainIncoming, Reply
from rpc25519_tools.rpc.liveness import KEEP_ALIVE
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream
from rpc25519_tools.transport.base import WRITE_HIGH_WATER_LEN
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.constants import MIB
from rpc25519_tools.wire.framing import encode_frame
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import PATIENCE_S, until
from tests.rpc.flows import recorded
from tests.rpc.memory import Plan, RawPeer
from tests.rpc.nets import Net, Seen, raw_client, raw_server
from tests.rpc.offers import Waiting, echo, parts_of, services

KEEP_ALIVE_PLAIN = recorded("keepalive", "c2s")[0].plain


def types_of(peer: RawPeer) -> list[int]:
    return [one.header.call_type for one in peer.messages]


def request(name: str, payload: bytes = b"", call_id: str = "c") -> Message:
    header = Header(call_type=CallType.RPC, call_id=call_id, service_name=name)
    return Message(header=header, payload=payload)


async def pass_s(seconds: float, *, unless: Callable[[], object]) -> None:
    """Let time pass, for what must not happen meanwhile."""
    end_s = time.monotonic() + seconds
    await until(lambda: unless() or time.monotonic() > end_s)


# Keep-alives.


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_silent_side_says_that_it_is_there(memory: Net, side: str) -> None:
    async with keeping_alive(memory, side, keepalive_s=0.05) as peer:
        begin_s = time.monotonic()
        await until(lambda: len(peer.messages) == 4)
        # Each may come up to a quarter of the interval early.
        assert time.monotonic() - begin_s > 3 * 0.75 * 0.05
        assert peer.messages == [KEEP_ALIVE] * 4


@contextlib.asynccontextmanager
async def keeping_alive(
    memory: Net, side: str, **settings: Any
) -> AsyncIterator[RawPeer]:
    """Connect a raw peer to the client or the server that sends keep-alives."""
    if side == "client":
        async with raw_server(memory, **settings) as (peer, _):
            yield peer
    else:
        async with memory.server(services(), **settings), raw_client(memory) as peer:
            yield peer


def test_a_keep_alive_is_the_recorded_one() -> None:
    head, *body = encode_frame(KEEP_ALIVE, Codec.NONE)
    assert b"".join(map(bytes, (head, *body)))[16:] == KEEP_ALIVE_PLAIN
    assert len(KEEP_ALIVE_PLAIN) == 31


@pytest.mark.parametrize("codec", [Codec.NONE, Codec.S2, Codec.LZ4])
async def test_a_servers_keep_alives_follow_the_codec_of_its_client(
    memory: Net, codec: Codec
) -> None:
    async with keeping_alive(memory, "server", keepalive_s=0.05) as peer:
        peer.send(request("echo"), codec=codec)
        await until(lambda: len(peer.received) >= 3)
        assert types_of(peer)[0] == CallType.RPC_REPLY
        assert {used for _, used in peer.received} == {codec}


@pytest.mark.parametrize("side", ["client", "server"])
async def test_keep_alives_are_not_answered(memory: Net, side: str) -> None:
    async with keeping_alive(memory, side) as peer:
        peer.send(*[KEEP_ALIVE] * 50)
        if side == "server":
            peer.send(request("echo", b"after"))
            await until(lambda: peer.messages)
            assert peer.messages[0].payload == b"after"
        await pass_s(0.05, unless=lambda: types_of(peer).count(CallType.KEEP_ALIVE))
        assert CallType.KEEP_ALIVE not in types_of(peer)


async def test_none_are_sent_unless_asked_for(memory: Net) -> None:
    async with keeping_alive(memory, "client", read_timeout_s=0.3) as peer:
        await pass_s(0.2, unless=lambda: peer.messages)
        assert not peer.messages


async def test_none_are_sent_while_other_messages_are(memory: Net) -> None:
    async with keeping_alive(memory, "server", keepalive_s=0.3) as peer:
        end_s = time.monotonic() + 0.45
        while time.monotonic() < end_s:
            count = len(peer.messages)
            peer.send(request("echo"))
            await until(lambda count=count: len(peer.messages) > count)  # type: ignore[misc]
        assert set(types_of(peer)) == {CallType.RPC_REPLY}


async def test_none_are_sent_after_closing(memory: Net) -> None:
    config = memory.config("127.0.0.1:8443", "client", keepalive_s=0.01)
    async with memory.server(services()), await Client.connect(config) as client:
        liveness = client._liveness
        assert liveness._timer is not None
        await client.aclose()
        assert liveness._timer is None


async def test_keep_alives_do_not_pile_up_before_a_peer_that_takes_nothing(
    memory: Net,
) -> None:
    assert memory.memory is not None
    memory.memory.up = Plan(stall_at=0)
    async with raw_server(memory, keepalive_s=0.01, compression="none") as (_, client):
        await until(lambda: client.transport.unsent_len)
        await pass_s(0.2, unless=lambda: client.transport.unsent_len > 100)
        assert client.transport.unsent_len < 100
        client.transport.abort()


async def test_keep_alives_do_not_stop_streams_that_wait_both_ways(
    memory: Net,
) -> None:
    """Neither side may stop reading only because its own keep-alive has to wait."""
    async with (
        memory.pair(services(), keepalive_s=0.02, compression="none") as (
            server,
            client,
        ),
        client.bistream("mirror") as stream,
    ):

        async def send_all() -> None:
            for _ in range(40):
                await stream.send(bytes(MIB))
            await stream.send(b"", last=True)

        sending = asyncio.create_task(send_all())
        ends = [client.transport, server.clients[0]]
        await until(
            lambda: all(end.unsent_len > WRITE_HIGH_WATER_LEN for end in ends),
            what="both directions to be full",
        )
        await pass_s(0.1, unless=lambda: False)  # long enough for keep-alives
        try:
            parts = await asyncio.wait_for(parts_of(stream), 5)
            assert sum(map(len, parts)) == 40 * MIB
        finally:
            sending.cancel()
            await asyncio.wait([sending])


# The time limit for reading.


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_silent_peer_is_given_up(memory: Net, side: str) -> None:
    begin_s = time.monotonic()
    async with keeping_alive(memory, side, read_timeout_s=0.1) as peer:
        await until(lambda: peer.lost)
        assert time.monotonic() - begin_s >= 0.1


async def test_waiting_calls_learn_of_a_peer_that_fell_silent(net: Net) -> None:
    registry, waiting = Registry(), Waiting()
    registry.add_call("wait", waiting)
    async with net.server(registry) as server:
        client = await net.client(server, read_timeout_s=0.1)
        call = asyncio.create_task(client.call("wait", b""))
        with pytest.raises(DeadlineError, match=r"nothing was received for 0\.1 s"):
            await call
        await client.aclose()
        await until(lambda: waiting.cancelled)


async def test_a_server_gives_up_clients_that_fell_silent_alone(memory: Net) -> None:
    seen = Seen()
    async with memory.server(services(), seen, read_timeout_s=0.3) as server:
        silent = await memory.client(server)
        async with await memory.client(server, keepalive_s=0.02) as alive:
            await until(lambda: seen.closed)
            assert isinstance(seen.closed[0], DeadlineError)
            await pass_s(0.25, unless=lambda: len(seen.closed) > 1)
            assert len(seen.closed) == 1
            await alive.call("echo", b"")
        await until(lambda: silent.is_down)
        await silent.aclose()


async def test_both_sides_keep_each_other_alive(net: Net) -> None:
    settings = {"keepalive_s": 0.02, "read_timeout_s": 0.3}
    async with net.pair(services(), **settings) as (_, client):
        await pass_s(0.4, unless=lambda: client.is_down)
        await client.call("echo", b"")


async def test_bytes_of_a_long_message_count_as_they_come(memory: Net) -> None:
    frame = b"".join(map(bytes, encode_frame(request("echo", bytes(100)), Codec.NONE)))
    async with keeping_alive(memory, "server", read_timeout_s=0.2) as peer:
        begin_s = time.monotonic()
        for start in range(0, len(frame), 16):
            peer.send_bytes(frame[start : start + 16])
            next_s = begin_s + 0.5 * start / len(frame)
            await until(lambda next_s=next_s: time.monotonic() > next_s)  # type: ignore[misc]
        await until(lambda: peer.messages or peer.lost)
        assert not peer.lost
        assert time.monotonic() - begin_s > 0.4


async def test_time_in_which_we_do_not_read_does_not_count(memory: Net) -> None:
    registry, seen, go = Registry(), Seen(), asyncio.Event()

    async def slow(context: CallContext, parts: IncomingStream) -> Reply:
        await go.wait()
        return Reply(payload=b"%d" % len([part async for part in parts]))

    registry.add_upload("slow", slow)
    async with (
        memory.server(registry, seen, read_timeout_s=0.1) as server,
        await memory.client(server, compression="none") as client,
        client.upload("slow") as stream,
    ):

        async def send_all() -> None:
            for _ in range(9):
                await stream.send(bytes(MIB))
            await stream.send(b"", last=True)

        sending = asyncio.create_task(send_all())
        await until(lambda: not drivers_of(server)[0].is_reading)
        await pass_s(0.2, unless=lambda: seen.closed)
        assert not seen.closed
        go.set()
        await sending
        assert (await stream.reply()).payload == b"11"


def drivers_of(server: Any) -> list[Driver]:
    return [one.driver for one in server._connections]


# The time limit for writing.


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_peer_that_takes_nothing_is_given_up(memory: Net, side: str) -> None:
    assert memory.memory is not None
    if side == "client":
        memory.memory.up = Plan(stall_at=0)
        settings = {"write_timeout_s": 0.1, "compression": "none"}
        async with raw_server(memory, **settings) as (_, client):
            with pytest.raises(
                DeadlineError, match=r"the peer took nothing for 0\.1 s"
            ):
                await client.call("echo", b"")
            assert client.is_down
        return
    memory.memory.down = Plan(stall_at=0)
    seen = Seen()
    async with (
        memory.server(services(), seen, write_timeout_s=0.1),
        raw_client(memory) as peer,
    ):
        peer.send(request("echo", bytes(10)))
        await until(lambda: seen.closed)
        assert isinstance(seen.closed[0], DeadlineError)
        assert "took nothing" in str(seen.closed[0])


async def test_a_socket_that_is_never_read_is_given_up(certs: Any) -> None:
    """The kernels on both sides take a good deal first."""
    net, seen = Net("tcp", certs), Seen()
    registry = Registry()
    registry.add_call("echo", echo)
    async with net.server(
        registry, seen, write_timeout_s=0.2, compression="none"
    ) as server:
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port))) as deaf:
            deaf.setblocking(False)
            frame = encode_frame(request("echo", bytes(16 * MIB)), Codec.NONE)
            loop = asyncio.get_running_loop()
            for buffer in frame:
                await loop.sock_sendall(deaf, buffer)
            await until(lambda: seen.closed)
        assert str(seen.closed[0]) == "the peer took nothing for 0.2 s"


async def test_a_connection_with_nothing_to_send_is_no_stuck_one(memory: Net) -> None:
    async with memory.pair(services(), write_timeout_s=0.03) as (_, client):
        await pass_s(0.1, unless=lambda: client.is_down)
        await client.call("echo", b"")


async def test_a_slow_peer_that_takes_little_by_little_is_not_given_up(
    memory: Net,
) -> None:
    """A sender that fills up what was taken keeps as much unsent as ever."""
    assert memory.memory is not None
    memory.memory.up = up = Plan(stall_at=0)
    settings = {"write_timeout_s": 0.1, "compression": "none"}
    async with raw_server(memory, **settings) as (_, client):
        upload = client.upload("any")
        await upload.begin()

        async def send_for_ever() -> None:
            while True:
                await upload.send(bytes(64 * 1024))

        sending = asyncio.create_task(send_for_ever())
        end = memory.memory.client_ends[0]
        end_s = time.monotonic() + 0.4
        while time.monotonic() < end_s and not client.is_down:
            assert up.stall_at is not None
            up.stall_at += 64 * 1024
            end.push()
            taken = end.delivered
            await until(lambda taken=taken: end.delivered > taken or client.is_down)  # type: ignore[misc]
        assert not client.is_down
        sending.cancel()
        await asyncio.wait([sending])
        end.abort()


# The time limit for idling.


async def test_our_own_keep_alives_do_not_make_a_connection_look_busy(
    net: Net,
) -> None:
    seen = Seen()
    async with net.server(
        services(), seen, keepalive_s=0.02, idle_timeout_s=0.15
    ) as server:
        client = await net.client(server)
        await client.call("echo", b"")
        begin_s = time.monotonic()
        await until(lambda: seen.closed)
        assert str(seen.closed[0]) == "nothing moved for 0.15 s"
        assert time.monotonic() - begin_s < 2
        with pytest.raises(ConnectionLostError):
            await client.call("echo", b"")
        await client.aclose()


@pytest.mark.parametrize("kind", ["download", "upload", "one-way", "plain upload"])
async def test_a_handler_at_work_keeps_its_connection(memory: Net, kind: str) -> None:
    """Whatever the call is like: its handler may think for longer than the limit.

    It thinks until two others that came after it have been ended for doing nothing.
    """
    registry, seen = services(), Seen()
    begun, may_end, done = (threading.Event() for _ in range(3))

    async def think(context: CallContext, *streams: object) -> None:
        if kind == "upload":
            (parts,) = streams
            assert isinstance(parts, IncomingStream)
            async for _ in parts:
                pass
        begun.set()
        await until(may_end.is_set)
        done.set()

    def think_hard(context: CallContext, parts: PlainIncoming) -> None:
        for _ in parts:
            pass
        begun.set()
        assert may_end.wait(PATIENCE_S)
        done.set()

    registry.add_download("think", think)
    registry.add_one_way("think", think)
    registry.add_upload("think", think if kind == "upload" else think_hard)

    async def call(client: Client) -> None:
        if kind == "one-way":
            await client.send_one_way("think")
        elif kind == "download":
            async with client.download("think") as down:
                await down.reply()
        else:
            async with client.upload("think") as up:
                await up.send(b"", last=True)
                await up.reply()

    async with (
        memory.server(registry, seen, idle_timeout_s=0.1) as server,
        await memory.client(server, idle_timeout_s=0.1) as client,
    ):
        calling = asyncio.create_task(call(client))
        await until(begun.is_set)
        for number in (1, 2):
            async with raw_client(memory):
                await until(lambda number=number: len(seen.closed) == number)  # type: ignore[misc]
        assert not client.is_down
        may_end.set()
        await calling
        await until(done.is_set)
    assert [str(one) for one in seen.closed[:2]] == ["nothing moved for 0.1 s"] * 2


@pytest.mark.parametrize("way", ["silent", "deaf", "waiting"])
async def test_a_handler_that_waits_for_its_client_does_not(
    memory: Net, way: str
) -> None:
    registry, seen = services(), Seen()

    async def flood(context: CallContext, out: OutgoingStream) -> None:
        while True:
            await out.send(bytes(MIB))

    async def make(context: CallContext, out: OutgoingStream) -> None:
        while True:
            await out.turn.next()
            await out.send(bytes(MIB))

    registry.add_download("flood", flood)
    registry.add_download("make", make)
    async with memory.server(
        registry, seen, idle_timeout_s=0.1, compression="none"
    ) as server:
        client = await memory.client(server)
        for _ in range(10 if way == "waiting" else 1):
            match way:
                case "silent":
                    stream = client.upload("collect")
                case "deaf":
                    stream = client.download("flood")
                case _:
                    stream = client.download("make")
            await stream.begin()
        await until(lambda: seen.closed)
        assert str(seen.closed[0]) == "nothing moved for 0.1 s"
        await client.aclose()


async def test_a_client_closes_no_connection_for_being_idle(memory: Net) -> None:
    async with (
        memory.server(services()) as server,
        await memory.client(server, idle_timeout_s=0.02) as client,
    ):
        await pass_s(0.1, unless=lambda: client.is_down)
        await client.call("echo", b"")
