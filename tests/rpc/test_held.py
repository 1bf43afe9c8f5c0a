"""Peers that go while their connection is not read from, and streams left unread."""

import asyncio
import contextlib
import inspect
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from rpc25519_tools.errors import ConnectionLostError, DeadlineError
from rpc25519_tools.rpc import held
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.held import LOOK_S, PROBE_S, UNREAD_LIMIT_S, HeldWatch
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream
from rpc25519_tools.transport.tcp import socket_has_hung_up
from rpc25519_tools.wire.constants import MIB
from tests.helpers import until
from tests.rpc.nets import Net, Seen, is_backed_up
from tests.rpc.offers import services
from tests.rpc.timing import FakeLoop


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, where the clock is a real one."""
    if inspect.iscoroutinefunction(request.function):
        monkeypatch.setattr(held, "LOOK_S", 0.03)
        monkeypatch.setattr(held, "PROBE_S", 0.1)


@dataclass
class Stuck:
    """A handler that reads nothing until it is told to."""

    go: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False
    error: Exception | None = None

    async def upload(self, context: CallContext, parts: IncomingStream) -> Reply:
        try:
            await self.go.wait()
            total = sum([len(part.payload) async for part in parts])
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        except DeadlineError as exc:
            self.error = exc
            raise
        return Reply(payload=b"%d" % total)


@contextlib.asynccontextmanager
async def stuck_upload(
    net: Net, stuck: Stuck, *, full: bool
) -> AsyncIterator[tuple[Server, Client, Seen]]:
    """Send to a handler that does not read.

    Args:
        net: the network.
        stuck: the handler.
        full: whether so much is sent that the end has no room on the way either.
    """
    registry, seen = services(), Seen()
    registry.add_upload("stuck", stuck.upload)
    async with net.server(registry, seen, compression="none") as server:
        client = await net.client(server, compression="none")
        stream = client.upload("stuck")
        await stream.begin()

        async def send() -> None:
            for _ in range(64 if full else 7):
                await stream.send(bytes(MIB))

        sending = asyncio.create_task(send())
        try:
            await until(lambda: server._connections)
            (connection,) = server._connections
            await until(lambda: connection.driver.is_held, what="reading to be held")
            if full:
                await until(
                    lambda: is_backed_up(client.transport), what="the way to be full"
                )
            else:
                await sending
                await until(lambda: not client.transport.unsent_len)
            yield server, client, seen
        finally:
            sending.cancel()
            await asyncio.wait([sending])
            await client.aclose()


@pytest.mark.parametrize("full", [False, True])
async def test_a_client_that_goes_behind_unread_parts_is_noticed(
    sockets: Net, full: bool
) -> None:
    stuck = Stuck()
    async with stuck_upload(sockets, stuck, full=full) as (server, client, seen):
        client.transport.abort()
        await until(lambda: stuck.cancelled, what="the handler to be cancelled")
        await until(lambda: not server.clients)
        assert isinstance(seen.closed[0], ConnectionLostError)


async def test_a_client_that_stays_is_left_alone_and_goes_on(sockets: Net) -> None:
    stuck = Stuck()
    async with stuck_upload(sockets, stuck, full=True) as (server, client, _):
        await until(lambda: client.has_heard, what="a keep-alive")
        assert len(server.clients) == 1
        stuck.go.set()
        await until(lambda: not client.transport.unsent_len)
        await client.call("echo", b"")
        assert not stuck.cancelled


async def test_a_stream_that_nobody_reads_is_given_up_in_the_end(
    sockets: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "UNREAD_LIMIT_S", 0.2)
    stuck = Stuck()
    async with stuck_upload(sockets, stuck, full=True) as (_, client, _):
        await client.call("echo", b"the connection goes on")
        stuck.go.set()
        await until(lambda: stuck.error)
        assert str(stuck.error) == "nobody has read this stream for 600 s"
        await client.call("echo", b"")


async def test_a_server_that_goes_behind_an_unread_download_is_noticed(
    sockets: Net,
) -> None:
    registry = services()

    async def flood(context: CallContext, out: OutgoingStream) -> None:
        while True:
            await out.send(bytes(MIB))

    registry.add_download("flood", flood)
    async with sockets.server(registry, compression="none") as server:
        client = await sockets.client(server)
        async with client.download("flood"):
            await until(lambda: client._driver.is_held, what="reading to be held")
            server.disconnect(client.local_address)
            await until(lambda: client.is_down)
        await client.aclose()


async def test_a_slow_reader_gets_what_came_before_the_end(tcp: Net) -> None:
    """A stream that is being read is not cut off when its sender has gone."""
    registry, sizes = services(), []

    async def slow(context: CallContext, parts: IncomingStream) -> None:
        async for part in parts:
            sizes.append(len(part.payload))
            await asyncio.sleep(0.02)

    registry.add_upload("slow", slow)
    async with tcp.server(registry, compression="none") as server:
        client = await tcp.client(server, compression="none")
        stream = client.upload("slow")
        await stream.begin()
        for _ in range(8):
            await stream.send(bytes(MIB))
        await until(lambda: not client.transport.unsent_len)
        client.transport.abort()
        await until(lambda: not server.clients)
    assert len(sizes) >= 5  # the mark is at six, half of which has to be read
    await client.aclose()


# The socket.


def test_an_end_is_seen_behind_unread_bytes() -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        theirs = stack.enter_context(socket.create_connection(listener.getsockname()))
        ours = stack.enter_context(listener.accept()[0])
        theirs.sendall(b"unread")
        assert not socket_has_hung_up(ours.fileno())
        theirs.shutdown(socket.SHUT_WR)
        assert socket_has_hung_up(ours.fileno())
        assert ours.recv(100) == b"unread"


def test_nothing_is_known_of_what_has_no_socket() -> None:
    assert not socket_has_hung_up(-1)


# The watch by itself, with a clock of its own.


@dataclass
class FakeConnection:
    taken_len: int = 0
    is_held: bool = True
    unsent_len: int = 0
    aborted: list[Exception] = field(default_factory=list)

    def has_hung_up(self) -> bool:
        return False

    def abort(self, error: Exception) -> None:
        self.aborted.append(error)


@dataclass
class Watched:
    connection: FakeConnection = field(default_factory=FakeConnection)
    loop: FakeLoop = field(default_factory=FakeLoop)
    probes: list[float] = field(default_factory=list)
    given_up: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        with self.loop.patched("held"):
            self.watch = HeldWatch(
                self.connection,
                send_keepalive=lambda: self.probes.append(self.loop.now_s),
                unread=lambda: self.given_up.append(self.loop.now_s),
            )
        self.began_s = self.loop.now_s
        self.watch.begin()

    def pass_s(self, seconds: float) -> None:
        self.loop.advance(self.loop.now_s + seconds)


def test_a_connection_is_watched_only_while_it_is_held() -> None:
    watched = Watched()
    watched.watch.begin()
    assert len(watched.loop.live_timers()) == 1
    watched.pass_s(5 * LOOK_S)
    assert len(watched.loop.live_timers()) == 1
    watched.connection.is_held = False
    watched.pass_s(2 * LOOK_S)
    assert not watched.loop.live_timers()
    watched.watch.begin()
    assert len(watched.loop.live_timers()) == 1
    watched.watch.stop()
    assert not watched.loop.live_timers()


def test_probes_are_few_and_none_waits_behind_another() -> None:
    watched = Watched()
    watched.pass_s(10 * PROBE_S + LOOK_S)
    assert len(watched.probes) in range(8, 11)
    watched.connection.unsent_len = 1
    count = len(watched.probes)
    watched.pass_s(5 * PROBE_S)
    assert len(watched.probes) == count


def test_a_stream_is_given_up_only_when_nobody_reads_it() -> None:
    watched = Watched()
    for _ in range(20):
        watched.pass_s(UNREAD_LIMIT_S / 10)
        watched.connection.taken_len += 1
    assert not watched.given_up
    watched.pass_s(UNREAD_LIMIT_S + 3 * LOOK_S)
    assert len(watched.given_up) == 1
    watched.pass_s(UNREAD_LIMIT_S + 3 * LOOK_S)
    assert len(watched.given_up) == 2
