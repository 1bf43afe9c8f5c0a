"""Connections that have said nothing yet: what they cost, and what becomes of them."""

import asyncio
import contextlib
import errno
import logging
import select
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from rpc25519_tools.config import parse_address
from rpc25519_tools.limits import Limits, Startups
from rpc25519_tools.transport import door as door_module
from rpc25519_tools.transport import listening as listening_module
from rpc25519_tools.transport import porch as porch_module
from rpc25519_tools.transport.base import TlsSettings
from rpc25519_tools.transport.endpoint import Listener, listen
from rpc25519_tools.transport.listening import Acceptor, open_listening
from rpc25519_tools.transport.porch import EpollWatch, LoopWatch, Watch
from tests.helpers import until
from tests.transport.peers import Listening, dialled
from tests.transport.tunnels import (
    CLIENT,
    SERVER,
    frame,
    settings,
    tunnel_dial,
    tunnel_listener,
)

needs_epoll = pytest.mark.skipif(not hasattr(select, "epoll"), reason="only Linux")


@pytest.fixture(
    params=[pytest.param(EpollWatch, marks=needs_epoll), LoopWatch], autouse=True
)
def watch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch over descriptors in each way that there is."""
    make: Callable[[Callable[[int], None]], Watch] = request.param
    monkeypatch.setattr(porch_module, "make_watch", make)


@pytest.fixture(autouse=True)
def _no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody make room before that is certain."""
    monkeypatch.setattr("secrets.randbelow", lambda below: below - 1)


class Served:
    """A listener, and what came of it."""

    def __init__(self, found: Listening, listener: Listener) -> None:
        self.found = found
        self.listener = listener
        self.door = listener._door

    @property
    def waiting(self) -> int:
        return len(self.listener.filenos()) - 1

    @contextlib.asynccontextmanager
    async def silent(self, count: int) -> AsyncIterator[list[asyncio.StreamReader]]:
        """Be so many that say nothing."""
        host, port = self.listener.address.rsplit(":", 1)
        ends = [await asyncio.open_connection(host, int(port)) for _ in range(count)]
        try:
            yield [reader for reader, _ in ends]
        finally:
            for _, writer in ends:
                writer.close()


@contextlib.asynccontextmanager
async def serving(*, tls: bool, limits: Limits | None = None) -> AsyncIterator[Served]:
    found = Listening()
    listener = await listen(
        parse_address("127.0.0.1:0"),
        tls=TlsSettings(identity=SERVER) if tls else None,
        accept=found.accept,
        failed=found.fail,
        limits=limits,
    )
    found.address = listener.address
    try:
        assert isinstance(listener, Listener)
        yield Served(found, listener)
    finally:
        listener.close()
        for recorder in found.accepted:
            recorder.transport.abort()


async def test_a_silent_client_costs_a_socket_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[object] = []
    make = door_module.Door._start

    def counted(*args: object) -> object:
        made.append(args)
        return make(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(door_module.Door, "_start", counted)
    async with serving(tls=True) as served:
        async with served.silent(20):
            await until(lambda: served.waiting == 20)
            assert not made
            async with dialled(served.found.address, CLIENT):
                await until(lambda: served.found.accepted)
            assert len(made) == 1
        await until(lambda: served.door._gate.total == 0)
        assert served.waiting == 0
        assert len(made) == 1
    # One line at once, and a count later.
    (reason,) = map(str, served.found.failures)
    assert reason == "the client hung up without TLS handshake"


async def test_who_says_nothing_for_too_long_is_ended() -> None:
    limits = Limits(handshake_timeout_s=0.2)
    async with (
        serving(tls=True, limits=limits) as served,
        served.silent(3) as readers,
    ):
        for reader in readers:
            assert await reader.read() == b""
        await until(lambda: served.door._gate.total == 0)
        (reason,) = map(str, served.found.failures)
        assert reason == "no TLS handshake within 0.2 s"


async def test_waiting_counts_as_a_part_of_the_handshake() -> None:
    limits = Limits(handshake_timeout_s=0.6)
    async with serving(tls=True, limits=limits) as served:
        host, port = served.found.address.rsplit(":", 1)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        reader, writer = await asyncio.open_connection(host, int(port))
        await until(lambda: served.waiting == 1)
        await until(lambda: loop.time() - began_s > 0.4)
        writer.write(b"\x16\x03\x01")
        assert await reader.read() == b""
        assert loop.time() - began_s < 0.9
        writer.close()


async def test_a_tunnel_over_plain_tcp_begins_with_the_first_bytes() -> None:
    tunnel = settings(SERVER)
    limits = Limits(handshake_timeout_s=0.3)
    async with tunnel_listener(tls=None, tunnel=tunnel, limits=limits) as found:
        host, port = found.address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        good = await tunnel_dial(found.address, tls=None, tunnel=settings(CLIENT))
        good.transport.write([frame(b"hello")])
        await until(lambda: found.accepted and found.accepted[0].data)
        assert await reader.read() == b""
        (reason,) = map(str, found.failures)
        assert reason == "no pre-shared-key handshake within 0.3 s"
        writer.close()


async def test_plain_tcp_is_open_without_a_word_also_in_a_crowd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server may have something to say to who only listens."""
    monkeypatch.setattr(door_module, "_SILENT_S", 0.5)
    limits = Limits(max_startups=Startups(2, 1, 1000))
    async with serving(tls=False, limits=limits) as served, served.silent(10):
        await until(lambda: len(served.found.accepted) == 2)
        assert served.waiting
        await until(lambda: len(served.found.accepted) == 10)
        assert not served.waiting
        served.found.accepted[-1].transport.write([b"news"])


async def test_in_a_crowd_who_speaks_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(door_module, "_SILENT_S", 1000.0)
    limits = Limits(max_startups=Startups(2, 1, 1000))
    async with serving(tls=False, limits=limits) as served, served.silent(10):
        await until(lambda: served.waiting == 8)
        async with dialled(served.found.address, None) as ours:
            ours.transport.write([b"hello"])
            await until(lambda: served.found.accepted[-1].data)
            assert served.waiting == 8


@pytest.mark.parametrize("tls", [True, False])
async def test_those_that_make_room_are_closed_and_counted(tls: bool) -> None:
    limits = Limits(max_startups=Startups(4, 100, 4))
    async with serving(tls=tls, limits=limits) as served:
        async with served.silent(40) as readers:
            for reader in readers[8:36]:
                assert await reader.read() == b""
            assert served.door._gate.unproven <= 4
        said = [str(one) for one in served.found.failures]
        assert sum("too many clients" in one for one in said) == 1
        await until(lambda: served.door._gate.total == 0)


async def test_who_is_dropped_while_its_transport_is_made_is_closed() -> None:
    limits = Limits(max_startups=Startups(1, 100, 1))
    async with serving(tls=True, limits=limits) as served:
        loop = asyncio.get_running_loop()
        first, second = socket.socketpair(), socket.socketpair()
        first[1].send(b"\x16")
        for ours, _ in (first, second):
            # As if they came in the same turn of the loop.
            served.door.arrive(ours, ("127.0.0.1", 1))
        for _, theirs in (first, second):
            theirs.setblocking(False)
        with pytest.raises(ConnectionResetError):  # with what it has sent unread
            await loop.sock_recv(first[1], 1)
        assert served.door._gate.unproven == 1
        for _, theirs in (first, second):
            theirs.close()


async def test_a_client_that_is_gone_when_it_is_let_in_leaves_nothing() -> None:
    async with serving(tls=False) as served:
        ours, theirs = socket.socketpair()
        theirs.close()
        served.door.arrive(ours, ("127.0.0.1", 1))
        await until(lambda: served.door._gate.total == 0)
        assert ours.fileno() == -1


async def test_who_cannot_be_watched_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with serving(tls=True) as served:
        monkeypatch.setattr(served.door._porch._watch, "add", fail)
        async with served.silent(1) as (reader,):
            assert await reader.read() == b""
        (reason,) = map(str, served.found.failures)
        assert reason == "it could not be watched: No space left on device"
        assert served.door._gate.total == 0


@pytest.mark.parametrize("tls", [True, False])
async def test_nobody_waits_when_the_listener_has_closed(
    tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "_SILENT_S", 1000.0)
    limits = Limits(max_startups=Startups(1, 1, 100))
    async with serving(tls=tls, limits=limits) as served, served.silent(10) as readers:
        await until(lambda: served.waiting >= 9)
        served.listener.close()
        served.listener.close()
        assert served.waiting < 1
        for reader in readers[1:]:
            assert await reader.read() == b""


async def test_accepting_rests_where_there_are_no_descriptors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listening_module, "_RECOVER_S", 0.05)
    sockets = await open_listening("127.0.0.1", 0)
    arrived: list[socket.socket] = []
    fails = [OSError(errno.EMFILE, "Too many open files")] * 2

    class Short:
        """A listening socket of a process that has no descriptors left."""

        fileno = sockets[0].fileno
        close = sockets[0].close

        def accept(self) -> tuple[socket.socket, tuple[str, int]]:
            if fails:
                raise fails.pop()
            return sockets[0].accept()

    with caplog.at_level(logging.WARNING):
        acceptor = Acceptor([Short()], lambda sock, _: arrived.append(sock), 10)  # type: ignore[list-item]
        reader, writer = await asyncio.open_connection(*sockets[0].getsockname())
        await until(lambda: arrived)
    assert [one.getMessage() for one in caplog.records] == [
        "no connection can be taken for now: Too many open files"
    ] * 2
    acceptor.close()
    arrived[0].close()
    assert await reader.read() == b""
    writer.close()
