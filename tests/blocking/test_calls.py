"""The library for programs without asyncio, from one thread and from many."""

import asyncio
import gc
import logging
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from rpc25519_tools import (
    CallContext,
    Client,
    IncomingStream,
    Registry,
    Server,
)
from rpc25519_tools.blocking import BlockingClient, BlockingServer
from rpc25519_tools.blocking.client import _Link
from rpc25519_tools.blocking.loop import current_loop, run
from rpc25519_tools.config import Network
from rpc25519_tools.errors import (
    ConnectFailedError,
    ConnectionLostError,
    DeadlineError,
    KeyFileError,
    LocalProtocolError,
    NotConnectedError,
    RemoteCallError,
)
from rpc25519_tools.identity.store import load_identity
from tests.blocking.services import Pair, Served, config_of, serving
from tests.helpers import issue_certs, wait_until


@pytest.fixture
def served(certs: Path) -> Iterator[Served]:
    with serving(certs) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[BlockingClient]:
    with served.client() as client:
        yield client


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as pool:
        yield pool


@pytest.mark.parametrize("network", ["tls", "tcp"])
def test_all_kinds_of_calls(certs: Path, network: Network) -> None:
    with serving(certs, network) as served, served.client() as client:
        assert not client.is_down
        assert (client.peer is not None) == (network == "tls")
        reply = client.call("echo", b"hello", args={"a": "b"})
        assert (reply.payload, reply.header.args["a"]) == (b"hello", "b")
        client.send_one_way("take", b"four")
        wait_until(lambda: served.services.taken_len == 4)
        with client.upload("collect", b"a") as up:
            up.send(b"b")
            up.send(b"c", last=True)
            assert up.reply().payload == b"a b c"
        with client.download("count", b"3") as down:
            assert [bytes(part.payload) for part in down] == [b"0", b"1", b"2"]
            assert down.reply().payload == b"counted"
        with client.bistream("upper", b"a") as both:
            assert next(both).payload == b"A"
            both.send(b"b", last=True)
            assert [bytes(part.payload) for part in both] == [b"B"]
        assert client.netrpc_call("Maths.Add", Pair(1, 2), Pair) == Pair(3)
        clients = [one.remote_address for one in served.server.clients]
        assert clients == [client.local_address]
    client.close()
    wait_until(lambda: client.is_down)
    for use in (lambda: client.call("echo"), lambda: client.peer, client.listen):
        with pytest.raises(ConnectionLostError, match="is closed"):
            use()


def test_what_cannot_connect_says_why(certs: Path, tmp_path: Path) -> None:
    with serving(certs, "tcp") as served:
        gone = served.server.address
    with pytest.raises(ConnectFailedError):
        BlockingClient(config_of(certs, gone))
    with pytest.raises(KeyFileError):
        BlockingClient(config_of(tmp_path, gone))
    with pytest.raises(KeyFileError):
        BlockingServer(config_of(tmp_path), Registry()).start()


def test_many_threads_share_one_client(
    served: Served, client: BlockingClient, pool: ThreadPoolExecutor
) -> None:
    # Long ones are packed and unpacked by threads of the library.
    payloads = [b"%d " % number * (number % 7 * 2000 + 1) for number in range(400)]
    replies = pool.map(lambda one: bytes(client.call("echo", one).payload), payloads)
    assert list(replies) == payloads
    assert served.services.addresses == [client.local_address]


def test_closing_wakes_all_that_wait(
    served: Served, client: BlockingClient, pool: ThreadPoolExecutor
) -> None:
    stream, listener = client.download("drip"), client.listen()
    assert next(stream).payload == b"drop"
    waits: list[Callable[[], object]] = [
        *[lambda: client.call("wait", timeout_s=20)] * 5,
        lambda: client.netrpc_call("Maths.wait", Pair(), Pair),
        lambda: next(stream),
        stream.reply,
        listener.next,
    ]
    futures = [pool.submit(wait) for wait in waits]
    wait_until(lambda: served.services.waiting == 7)
    client.close()
    for future in futures:
        with pytest.raises(ConnectionLostError):
            future.result(5)
    wait_until(lambda: served.services.cancelled == 7)


def test_the_servers_end_wakes_all_that_wait(certs: Path) -> None:
    with ThreadPoolExecutor() as pool, serving(certs) as served:
        client = served.client()
        futures = [pool.submit(client.call, "wait plainly") for _ in range(3)]
        wait_until(lambda: served.services.waiting == 3)
        served.server.disconnect(client.local_address)
        for future in futures:
            with pytest.raises(ConnectionLostError):
                future.result(5)
        wait_until(lambda: not served.services.waiting)
        assert client.is_down
        with pytest.raises(NotConnectedError):
            served.server.disconnect(client.local_address)
        client.close()


def test_closing_ends_an_attempt_to_connect(certs: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = config_of(certs, f"127.0.0.1:{silent.getsockname()[1]}")

        async def close_while_connecting() -> None:
            loop = current_loop()
            assert loop is not None
            link = _Link(loop)
            waiting = [
                loop.create_task(link.connect(config, None, "")) for _ in range(2)
            ]
            peer, _ = await loop.run_in_executor(None, silent.accept)
            with peer:
                await link.aclose()
                for task in waiting:
                    with pytest.raises(ConnectionLostError):
                        await task

        run(close_while_connecting)


def test_deadlines_pass_on_both_sides(served: Served, client: BlockingClient) -> None:
    with pytest.raises(DeadlineError):
        client.call("wait", timeout_s=0.05)
    with client.download("drip", timeout_s=0.05) as stream:
        assert next(stream).payload == b"drop"
        with pytest.raises(DeadlineError):
            next(stream)
        with pytest.raises(DeadlineError):
            stream.reply()
    with pytest.raises(DeadlineError):
        client.netrpc_call("Maths.wait", Pair(), Pair, timeout_s=0.05)
    wait_until(lambda: served.services.cancelled == 3)
    assert client.call("echo", b"usable").payload == b"usable"


def test_a_plain_handler_calls_another_server(served: Served, certs: Path) -> None:
    front = Registry()

    @front.call("ask")
    def ask(context: CallContext) -> bytes:
        with served.client() as client:
            client.call("left")
            client.call("left", timeout_s=0.5)
            with client.upload("collect", b"x") as up:
                up.send(b"y", last=True)
                up.reply()
            client.call("wait")
        raise AssertionError("it waits for ever")

    with (
        BlockingServer(config_of(certs), front, grace_s=0) as server,
        BlockingClient(config_of(certs, server.address)) as client,
        pytest.raises(DeadlineError),
    ):
        client.call("ask", timeout_s=1)
    first, second = served.services.left_s
    assert first is not None
    assert second is not None
    assert second <= 0.5 < first <= 1
    wait_until(lambda: served.services.cancelled == 1)
    wait_until(lambda: not served.services.open)


def test_a_blocking_call_in_an_async_handler_is_refused(certs: Path) -> None:
    registry = Registry()

    @registry.call("block")
    async def block(context: CallContext) -> bytes:
        what = bytes(context.payload).decode()
        if what == "call":
            caller.call("block")
        elif what == "go":
            caller.netrpc_go("A.B", Pair(), Pair)
        elif what == "new":
            BlockingClient(caller._config, caller._identity)
        else:
            caller.close()
        raise AssertionError("it blocks for ever")

    with (
        BlockingServer(config_of(certs), registry) as server,
        BlockingClient(config_of(certs, server.address)) as caller,
    ):
        for what in (b"call", b"go", b"new", b"close"):
            with pytest.raises(RemoteCallError, match="inside an async handler"):
                caller.call("block", what)


def test_other_coroutines_may_block_if_they_like(client: BlockingClient) -> None:
    async def block() -> bytes:
        return bytes(client.call("echo", b"from a notebook").payload)

    assert asyncio.run(block()) == b"from a notebook"


async def test_a_handler_on_another_loop_is_refused_too(certs: Path) -> None:
    registry = Registry()

    @registry.call("block")
    async def block(context: CallContext) -> bytes:
        return bytes(beside.call("block").payload)

    async with Server(config_of(certs), registry) as server:
        config = config_of(certs, server.address)
        beside = await asyncio.to_thread(BlockingClient, config)
        async with await Client.connect(config) as client:
            with pytest.raises(RemoteCallError, match="inside an async handler"):
                await client.call("block")
        await asyncio.to_thread(beside.close)


async def test_a_handler_without_a_deadline_is_refused_as_well(certs: Path) -> None:
    registry = Registry()

    @registry.upload("block")
    async def block(context: CallContext, parts: IncomingStream) -> bytes:
        assert context.until_s is None
        return bytes(beside.call("echo", timeout_s=0.1).payload)

    async with Server(config_of(certs), registry) as server:
        config = config_of(certs, server.address)
        beside = await asyncio.to_thread(BlockingClient, config)
        async with (
            await Client.connect(config) as client,
            client.upload("block") as upload,
        ):
            with pytest.raises(RemoteCallError, match="inside an async handler"):
                await upload.reply()
        await asyncio.to_thread(beside.close)


def test_a_handler_that_calls_exit_ends_nothing_else(
    certs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry()

    @registry.call("exit")
    async def leave(context: CallContext) -> None:
        raise SystemExit(3)

    @registry.call("exit later")
    async def leave_later(context: CallContext) -> None:
        asyncio.get_running_loop().call_soon(sys.exit, 3)

    with (
        BlockingServer(config_of(certs), registry, grace_s=0) as server,
        BlockingClient(config_of(certs, server.address)) as client,
        caplog.at_level(logging.CRITICAL),
    ):
        with pytest.raises(RemoteCallError, match="SystemExit: 3"):
            client.call("exit", timeout_s=5)
        client.call("exit later")
        assert len(server.clients) == 1


# Streams.


def test_a_stream_is_sent_by_one_thread_and_received_by_another(
    client: BlockingClient, pool: ThreadPoolExecutor
) -> None:
    with client.bistream("upper", b"begin") as both:
        received = pool.submit(lambda: [bytes(part.payload) for part in both])
        for number in range(500):
            both.send(b"part %d" % number)
        both.send(b"end", last=True)
        parts = [b"PART %d" % number for number in range(500)]
        assert received.result(10) == [b"BEGIN", *parts, b"END"]


def test_parts_of_several_threads_keep_their_order(
    client: BlockingClient, pool: ThreadPoolExecutor
) -> None:
    # Some are so long that a worker compresses them, the others would overtake them.
    with client.upload("collect", b"first") as up:
        payloads = [b"%d " % n + b"." * (n % 2 * 100_000) for n in range(40)]
        list(pool.map(up.send, payloads))
        up.send(b"last", last=True)
        got = bytes(up.reply().payload)
    assert got.startswith(b"first ")
    assert got.endswith(b" last")
    numbers = re.findall(rb"\d+", got)
    assert sorted(map(int, numbers)) == list(range(40))


def test_a_download_of_many_parts_can_be_left_and_taken_up_again(
    client: BlockingClient,
) -> None:
    with client.download("count", b"3000") as down:
        numbers = []
        for part in down:
            numbers.append(int(bytes(part.payload)))
            if len(numbers) % 100 == 0:
                break
        numbers += [int(bytes(part.payload)) for part in down]
        assert numbers == list(range(3000))
        assert next(down, None) is None


def test_misused_streams_say_so(client: BlockingClient) -> None:
    with client.upload("collect") as up:
        with pytest.raises(LocalProtocolError, match="receives no parts"):
            next(up)
        up.send(b"x", last=True)
        with pytest.raises(LocalProtocolError):
            up.send(b"y")
    with client.download("count", b"no number") as down:
        with pytest.raises(RemoteCallError):
            next(down)
        with pytest.raises(RemoteCallError):
            down.reply()
        down.cancel()


def test_leaving_a_stream_cancels_its_call(
    served: Served, client: BlockingClient
) -> None:
    with client.download("drip") as stream:
        wait_until(lambda: served.services.waiting)
        assert stream.call_id
    wait_until(lambda: served.services.cancelled == 1)


def test_what_nobody_refers_to_ends(served: Served) -> None:
    """A forgotten stream would hold up its connection as soon as it is full."""
    parts = served.client().download("drip")  # which keeps its client alive
    gc.collect()
    assert next(parts).payload == b"drop"
    assert len(served.services.open) == 1
    del parts
    gc.collect()
    wait_until(lambda: not served.services.open)
    client = served.client()
    parts = client.download("drip")
    listener = client.listen()
    wait_until(lambda: served.services.waiting == 1)
    del parts
    gc.collect()
    wait_until(lambda: served.services.cancelled == 2)
    del listener
    gc.collect()
    run(lambda: asyncio.sleep(0))
    link = client._link
    assert link is not None
    assert link.client is not None
    assert not link.client._pushes._listeners
    client.close()


# Pushed messages.


def test_pushes_come_in_order_and_in_time(
    served: Served, client: BlockingClient
) -> None:
    with client.listen("talk") as talk, client.listen() as everything:
        for number, call_id in enumerate(["other", "talk", "talk"]):
            served.server.push(
                client.local_address, "news", b"%d" % number, call_id=call_id
            )
        assert [bytes(next(everything).payload) for _ in range(3)] == [b"0", b"1", b"2"]
        first = talk.next(5)
        assert first is not None
        assert (first.payload, next(talk).payload) == (b"1", b"2")
        with pytest.raises(DeadlineError, match=r"within 0\.02 s"):
            talk.next(0.02)
        served.server.push(client.local_address, "news", b"late", call_id="talk")
        late = talk.next(5)
        assert late is not None
        assert late.payload == b"late"
    assert talk.next() is None
    with pytest.raises(NotConnectedError):
        served.server.push("127.0.0.1:1", "news")


def test_a_call_can_listen_to_what_is_pushed_about_it(certs: Path) -> None:
    registry = Registry()

    @registry.call("work")
    def work(context: CallContext) -> bytes:
        for call_id in ("another", context.header.call_id):
            server.push(context.remote_address, "news", b"half", call_id=call_id)
        return b"done"

    with (
        BlockingServer(config_of(certs), registry) as server,
        BlockingClient(config_of(certs, server.address)) as client,
    ):
        call_id = client.new_call_id()
        assert call_id != client.new_call_id()
        with client.listen(call_id) as news:
            reply = client.call("work", call_id=call_id)
            assert (reply.payload, reply.header.call_id) == (b"done", call_id)
            message = news.next(5)
            assert message is not None
            assert message.payload == b"half"


def test_streams_may_begin_without_compression(client: BlockingClient) -> None:
    with client.upload("collect", b"a", compress=False) as up:
        up.send(b"b", last=True)
        assert up.reply().payload == b"a b"
    with client.download("count", b"2", compress=False) as down:
        assert [bytes(part.payload) for part in down] == [b"0", b"1"]
    with client.bistream("upper", b"a", compress=False) as both:
        assert next(both).payload == b"A"


def test_threads_share_a_listener_until_it_is_closed(
    served: Served, client: BlockingClient, pool: ThreadPoolExecutor
) -> None:
    listener = client.listen()
    workers = [pool.submit(lambda: [m.payload for m in listener]) for _ in range(4)]
    for number in range(100):
        served.server.push(client.local_address, "job", b"%d" % number)
    done = client.listen()
    served.server.push(client.local_address, "end")
    assert done.next(5) is not None
    wait_until(lambda: not listener._listener._waiting)
    listener.close()
    payloads = [bytes(one) for worker in workers for one in worker.result(5)]
    assert sorted(payloads) == sorted([*(b"%d" % n for n in range(100)), b""])


# Calls in the net/rpc style.


def test_netrpc_calls_started_together(served: Served, client: BlockingClient) -> None:
    futures: list[Future[Pair]] = [
        client.netrpc_go("Maths.add", Pair(number, 1), Pair) for number in range(20)
    ]
    assert [one.result(5).a for one in futures] == list(range(1, 21))
    failed = client.netrpc_go("Maths.nothing", Pair(), Pair)
    assert isinstance(failed.exception(5), RemoteCallError)
    waiting = client.netrpc_go("Maths.wait", Pair(), Pair)
    wait_until(lambda: served.services.waiting)
    with pytest.raises(TimeoutError):
        waiting.result(0.01)
    assert waiting.cancel()
    wait_until(lambda: served.services.cancelled == 1)
    assert client.netrpc_call("Maths.add", Pair(), Pair) == Pair()


# Servers.


def test_a_server_starts_stops_and_starts_again(certs: Path) -> None:
    server = BlockingServer(config_of(certs), Registry())
    server.stop()
    for use in (lambda: server.address, lambda: server.clients):
        with pytest.raises(LocalProtocolError, match="does not run"):
            use()
    with server:
        with pytest.raises(LocalProtocolError, match="runs already"):
            server.start()
        again = BlockingServer(config_of(certs, server.address), Registry())
        with pytest.raises(ConnectFailedError):
            again.start()
        address = server.address
    again.start()
    assert again.address == address
    again.stop()
    with server:
        assert not server.clients


def test_stopping_lets_running_calls_end(certs: Path) -> None:
    registry, started, go = Registry(), threading.Event(), threading.Event()

    @registry.call("finish")
    def finish(context: CallContext) -> bytes:
        started.set()
        assert go.wait(10)
        return b"finished"

    with ThreadPoolExecutor() as pool:
        server = BlockingServer(config_of(certs), registry)
        with server, BlockingClient(config_of(certs, server.address)) as client:
            reply = pool.submit(client.call, "finish")
            assert started.wait(5)
            stopping = pool.submit(server.stop, 10)
            with pytest.raises(TimeoutError):
                stopping.result(0.05)
            go.set()
            assert reply.result(5).payload == b"finished"
            stopping.result(5)


def test_the_identity_of_a_running_server_is_replaced(tmp_path: Path) -> None:
    certs = issue_certs(tmp_path, "node", "client", "other")
    with serving(certs) as served:
        for name in ("node", "other"):
            served.server.reload_identity(load_identity(certs, name, None))
            with served.client() as client:
                assert client.peer is not None
                assert client.peer.emails == (f"{name}@example.org",)
