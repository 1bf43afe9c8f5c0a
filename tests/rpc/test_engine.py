"""Deadlines, handlers and pushes, as users see them."""

import asyncio
import threading
import time
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import (
    ConfigError,
    ConnectionLostError,
    DeadlineError,
    HandlerError,
    NotConnectedError,
    RemoteCallError,
)
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext, allowance_s, time_left_s
from rpc25519_tools.rpc.deadlines import Deadlines
from rpc25519_tools.rpc.handlers import PlainIncoming, PlainOutgoing, Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.rpc.streams import IncomingStream
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import until
from tests.rpc.nets import Net, Seen, raw_client, raw_server

# Deadlines.


class Slow:
    """A service that never answers, and notes how it ended."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.ends: list[str] = []
        self.begun = threading.Event()
        self.left_s: list[float | None] = []
        self.registry.add_call("slow", self.slow)
        self.registry.add_call("plain", self.plain)

    async def slow(self, context: CallContext) -> None:
        self.begun.set()
        self.left_s.append(context.time_left_s)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise

    def plain(self, context: CallContext) -> None:
        self.begun.set()
        assert context.cancellation.wait(10)
        assert context.cancellation.is_set
        self.ends.append("told")


@pytest.mark.parametrize("name", ["slow", "plain"])
async def test_both_sides_keep_a_deadline(net: Net, name: str) -> None:
    slow = Slow()
    async with net.pair(slow.registry) as (_, client):
        timeout_s = 0.05
        while not slow.begun.is_set():  # a busy machine may not come to it in time
            with pytest.raises(DeadlineError):
                await client.call(name, timeout_s=timeout_s)
            timeout_s *= 2
        await until(lambda: slow.ends, what="the end of the handler")


@pytest.mark.parametrize("created_ns", [10**18, None])
async def test_a_server_keeps_a_deadline_by_itself(
    memory: Net, created_ns: int | None
) -> None:
    """Whatever the client's clock says, if it has said when it made the request."""
    slow = Slow()
    made_ns = time.time_ns() if created_ns is None else created_ns
    header = Header(
        created_ns=created_ns,
        deadline_ns=made_ns + 50_000_000,
        call_type=CallType.RPC,
        call_id="id",
        seqno=2,
        service_name="slow",
    )
    async with memory.server(slow.registry), raw_client(memory) as peer:
        peer.send(Message(header=header))
        await until(lambda: peer.messages)
        (answer,) = peer.messages
    assert answer.error == "context deadline exceeded"
    assert answer.header.call_id == "id"
    assert slow.ends == ["cancelled"]


async def test_a_deadline_that_has_passed_runs_nothing(memory: Net) -> None:
    slow = Slow()
    header = Header(
        created_ns=2_000,
        deadline_ns=1_000,
        call_type=CallType.RPC,
        call_id="id",
        seqno=2,
        service_name="slow",
    )
    async with memory.server(slow.registry), raw_client(memory) as peer:
        peer.send(Message(header=header))
        await until(lambda: peer.messages)
        assert peer.messages[0].error == "context deadline exceeded"
    assert not slow.begun.is_set()


@given(created=st.integers(0, 1 << 62), allowed=st.integers(-(10**12), 10**12))
def test_only_the_distance_of_the_stamps_counts(created: int, allowed: int) -> None:
    header = Header(created_ns=created, deadline_ns=created + allowed)
    left_s = allowance_s(header, created + allowed, lambda: 0)
    assert left_s == pytest.approx(allowed / 1e9)


async def test_calls_of_a_handler_get_what_is_left_of_its_own(memory: Net) -> None:
    inner, outer = Slow(), Registry()
    async with (
        Server(memory_config("inner"), inner.registry) as inner_server,
        await Client.connect(
            memory_config(inner_server.address, "client")
        ) as inner_client,
    ):
        seen: list[float | None] = []

        @outer.call("outer")
        async def pass_on(context: CallContext) -> Reply:
            seen.append(time_left_s())
            return Reply(
                payload=(await inner_client.call("slow", timeout_s=60)).payload
            )

        @outer.call("in-thread")
        def plain(context: CallContext) -> None:
            seen.append(time_left_s())

        async with memory.pair(outer) as (_, client):
            with pytest.raises(DeadlineError):
                await client.call("outer", timeout_s=0.2)
            await until(lambda: inner.ends == ["cancelled"])
            await client.call("in-thread", timeout_s=5)
        assert inner.left_s[0] is not None
        assert 0 < inner.left_s[0] <= 0.2
        assert seen[0] is not None
        assert 0 < seen[0] <= 0.2
        assert seen[1] is not None
        assert 0.2 < seen[1] <= 5
    assert time_left_s() is None


def memory_config(address: str, key_name: str = "node") -> Any:
    from rpc25519_tools.config import Config, parse_address

    where = "127.0.0.1:0" if address == "inner" else address
    return Config(address=parse_address(where), network="tcp", key_name=key_name)


async def test_a_stream_may_have_a_deadline(net: Net) -> None:
    registry, ended = Registry(), asyncio.Event()

    @registry.upload("never")
    async def never(context: CallContext, parts: IncomingStream) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with net.pair(registry) as (_, client):
        async with client.upload("never", timeout_s=0.05) as stream:
            with pytest.raises(DeadlineError):
                await stream.reply()
            with pytest.raises(DeadlineError):
                await stream.send(b"too late")
        await asyncio.wait_for(ended.wait(), 5)


@settings(deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 5), st.floats(0.001, 0.02), st.booleans()), max_size=20
    )
)
def test_many_deadlines_pass_as_single_ones_would(
    steps: list[tuple[int, float, bool]],
) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        expired: list[int] = []
        deadlines: Deadlines[int] = Deadlines(expired.append)
        watched: dict[int, float] = {}
        for number, (back, after_s, keep) in enumerate(steps):
            until_s = loop.time() + after_s
            deadlines.add(number, until_s)
            watched[number] = until_s
            if not keep:
                gone = max(number - back, 0)
                deadlines.discard(gone)
                if gone not in expired:
                    watched.pop(gone, None)
        await until(lambda: len(expired) >= len(watched))
        assert sorted(expired) == sorted(watched)
        assert all(loop.time() >= watched[key] for key in expired)
        deadlines.stop()

    asyncio.run(run())


# Handlers.


async def test_plain_handlers_run_in_threads(net: Net) -> None:
    registry, loop_thread = Registry(), threading.get_ident()

    @registry.call("thread")
    def thread(context: CallContext) -> bytes:
        assert threading.get_ident() != loop_thread
        return b"echo " + bytes(context.payload)

    @registry.upload("sum")
    def total(context: CallContext, parts: PlainIncoming) -> bytes:
        return str(sum(len(part.payload) for part in parts)).encode()

    @registry.download("count")
    def count(context: CallContext, out: PlainOutgoing) -> Reply:
        for number in range(3):
            out.send(bytes([number]), last=number == 2)
        return Reply(payload=b"done", args={"parts": "3"})

    @registry.bistream("relay")
    def relay(context: CallContext, parts: PlainIncoming, out: PlainOutgoing) -> None:
        for part in parts:
            out.send(bytes(part.payload).upper(), last=part.last)

    async with net.pair(registry) as (_, client):
        replies = await asyncio.gather(
            *(client.call("thread", str(n).encode()) for n in range(100))
        )
        assert [one.payload for one in replies] == [b"echo %d" % n for n in range(100)]
        async with client.upload("sum", b"abc") as up:
            await up.send(b"de", last=True)
            assert (await up.reply()).payload == b"5"
        async with client.download("count") as down:
            assert [bytes(part.payload) async for part in down] == [b"\0", b"\1", b"\2"]
            assert (await down.reply()).header.args == {"parts": "3"}
        async with client.bistream("relay", b"a") as both:
            await both.send(b"b", last=True)
            assert [bytes(part.payload) async for part in both] == [b"A", b"B"]


async def test_a_handlers_error_for_its_caller_is_not_logged(
    memory: Net, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry()

    @registry.call("refuse")
    async def refuse(context: CallContext) -> None:
        raise HandlerError("not on Sundays")

    @registry.call("strange")
    async def strange(context: CallContext) -> Any:
        return 5

    async with memory.pair(registry) as (_, client):
        with pytest.raises(RemoteCallError, match=r"^not on Sundays$"):
            await client.call("refuse")
        assert not caplog.records
        with pytest.raises(RemoteCallError, match="returned int"):
            await client.call("strange")


@pytest.mark.parametrize("kind", ["call", "upload", "download", "bistream"])
def test_a_handler_that_cannot_be_called_is_refused_at_once(kind: str) -> None:
    def no_arguments() -> None:
        pass

    with pytest.raises(ConfigError, match="the handler of 'x' must take"):
        getattr(Registry(), kind)("x")(no_arguments)


async def test_a_handler_learns_who_calls(certs: Any) -> None:
    registry, seen = Registry(), []

    @registry.call("who")
    async def who(context: CallContext) -> None:
        seen.append(context)

    async with Net("tls", certs).pair(registry) as (_, client):
        await client.call("who", args={"a": "b"}, subject="s")
        (context,) = seen
        assert context.peer is not None
        assert context.peer.emails == ("client@example.org",) or context.peer.emails
        assert context.remote_address == client.local_address
        assert context.header.args == {"a": "b"}
        assert context.header.subject == "s"
        assert client.peer is not None


async def test_one_message_goes_without_compression(memory: Net) -> None:
    async with raw_server(memory, compression="s2") as (peer, client):
        await client.send_one_way("x", b"a" * 100)
        await client.send_one_way("x", b"a" * 100, compress=False)
        await client.send_one_way("x", b"a" * 100)
        await until(lambda: len(peer.messages) == 3)
        marks = [one.header.no_system_compression for one in peer.messages]
        assert marks == [False, True, False]


@pytest.mark.parametrize("compress", [True, False])
async def test_a_stream_may_begin_without_compression(
    memory: Net, compress: bool
) -> None:
    async with raw_server(memory, compression="s2") as (peer, client):
        for make in (client.upload, client.download, client.bistream):
            await make("x", b"a" * 100, compress=compress).begin()
        await client.stream(CallKind.UPLOAD, "x", b"a" * 100, compress=compress)
        await until(lambda: len(peer.messages) == 4)
        marks = [one.header.no_system_compression for one in peer.messages]
        assert marks == [not compress] * 4


# Pushes.


@pytest.mark.parametrize("network", ["tcp", "tls", "quic"])
async def test_the_server_pushes_to_one_of_its_clients(
    certs: Any, network: Literal["tcp", "tls", "quic"]
) -> None:
    seen, net = Seen(), Net(network, certs)
    async with net.server(Registry(), seen) as server:
        first, second = await net.client(server), await net.client(server)
        await until(lambda: len(server.clients) == 2)
        with first.listen() as all_first, second.listen() as all_second:
            with second.listen("talk") as talk:
                await server.push(second.local_address, "news", b"1", call_id="talk")
                await server.push(second.local_address, "news", b"2", args={"k": "v"})
                assert (await anext(talk)).payload == b"1"
                got = [await anext(all_second), await anext(all_second)]
            assert [one.payload for one in got] == [b"1", b"2"]
            assert got[1].header.args == {"k": "v"}
            assert got[0].header.service_name == "news"
            await server.push(first.local_address, "end", b"")
            assert (await anext(all_first)).header.service_name == "end"
            with pytest.raises(NotConnectedError):
                await server.push("127.0.0.1:1", "news", b"")
            gone = first.local_address
            await first.aclose()
            await until(lambda: len(server.clients) == 1)
            with pytest.raises(ConnectionLostError):
                await anext(all_first)
            with pytest.raises(NotConnectedError):
                await server.push(gone, "news", b"")
            server.disconnect(second.local_address)
            await until(lambda: second.is_down)
        await second.aclose()


async def test_a_listener_that_falls_behind_holds_the_server_back(net: Net) -> None:
    async with net.pair(Registry(), compression="none") as (server, client):
        await until(lambda: server.clients)
        sent = 0

        async def push_all() -> None:
            nonlocal sent
            for _ in range(100):
                await server.push(client.local_address, "bulk", bytes(1 << 20))
                sent += 1

        with client.listen() as pushes:
            pushing = asyncio.create_task(push_all())
            await until(lambda: client._driver._holds)
            held = len(pushes._waiting)
            assert held <= 4
            for _ in range(100):
                assert len((await anext(pushes)).payload) == 1 << 20
            await pushing


async def test_a_closed_listener_ends_and_lets_go(memory: Net) -> None:
    async with memory.pair(Registry()) as (server, client):
        await until(lambda: server.clients)
        pushes = client.listen()
        for _ in range(3):
            await server.push(client.local_address, "bulk", bytes(1 << 20))
        await until(lambda: client._driver._holds)
        pushes.close()
        assert [one async for one in pushes] == []
        assert not client._driver._holds


async def test_a_caller_can_listen_for_its_own_call(net: Net) -> None:
    registry = Registry()

    @registry.call("work")
    async def work(context: CallContext) -> bytes:
        for number in (b"1", b"2"):
            await server.push(
                context.remote_address,
                "progress",
                number,
                call_id=context.header.call_id,
            )
        return b"done"

    async with net.pair(registry) as (server, client):
        call_id = client.new_call_id()
        with client.listen(call_id) as pushes:
            reply = await client.call("work", call_id=call_id)
            got = [(await anext(pushes)).payload for _ in range(2)]
        assert (reply.payload, got) == (b"done", [b"1", b"2"])


async def test_what_comes_beside_an_error_is_kept(memory: Net) -> None:
    registry = Registry()

    @registry.call("partly")
    async def partly(context: CallContext) -> Reply:
        return Reply(payload=b"half", args={"done": "1"}, error="no more")

    async with memory.pair(registry) as (_, client):
        with pytest.raises(RemoteCallError, match="no more") as caught:
            await client.call("partly")
        assert caught.value.reply_payload == b"half"
        assert caught.value.reply_args == {"done": "1"}
