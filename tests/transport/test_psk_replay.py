"""Tunnels over plain TCP and clients that repeat a handshake that they have seen."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from rpc25519_tools.errors import (
    ConnectionLostError,
    DecryptionError,
    HandshakeError,
)
from rpc25519_tools.limits import Limits, Startups
from rpc25519_tools.transport import repeats
from tests.helpers import until
from tests.transport.peers import Listening
from tests.transport.tunnels import (
    CLIENT,
    SERVER,
    Pair,
    frame,
    settings,
    sniffed_hello,
    tunnel_dial,
    tunnel_listener,
    tunnel_of,
)

#: Of the length of a short envelope that nobody has sealed.
RUBBISH = (64).to_bytes(8, "big") + b"x" * 64


class Repeater:
    """Connections that begin with somebody else's handshake."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.readers: list[asyncio.StreamReader] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, more: bytes = b"", *, hello: bytes = b"") -> None:
        host, port = self._address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write((hello or sniffed_hello()) + more)
        self.readers.append(reader)
        self._writers.append(writer)

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.close()


@contextlib.asynccontextmanager
async def repeating(found: Listening) -> AsyncIterator[Repeater]:
    repeater = Repeater(found.address)
    try:
        yield repeater
    finally:
        repeater.hang_up()


async def accepted(found: Listening, count: int) -> None:
    await until(lambda: len(found.accepted) == count)


async def test_a_repeated_hello_proves_nothing_and_makes_room() -> None:
    limits = Limits(max_startups=Startups(start=3, rate=100, full=3))
    async with (
        tunnel_listener(tls=None, tunnel=settings(SERVER), limits=limits) as found,
        repeating(found) as repeater,
    ):
        for count in range(1, 4):
            await repeater.connect()
            await accepted(found, count)
        good = await tunnel_dial(found.address, tls=None, tunnel=settings(CLIENT))
        await repeater.readers[0].read()  # to its end: the oldest one made room
        good.transport.write([frame(b"who we are")])
        await until(lambda: found.accepted[-1].data)
        proven = [tunnel_of(one.transport).is_proven for one in found.accepted]
        assert proven == [False, False, False, True]
        # Now the others go, whoever else comes; not who has shown its key.
        for count in range(5, 9):
            await repeater.connect()
            await accepted(found, count)
        await until(lambda: sum(one.lost for one in found.accepted) >= 4)
        assert not found.accepted[3].lost
        first = found.accepted[0].error
        assert isinstance(first, ConnectionLostError)
        assert "not sent anything yet" in str(first)
        good.transport.close()


async def test_a_hello_that_the_server_knows_is_a_failure() -> None:
    limits = Limits(max_failures_per_minute=2)
    hello = sniffed_hello()
    async with (
        tunnel_listener(tls=None, tunnel=settings(SERVER), limits=limits) as found,
        repeating(found) as repeater,
    ):
        await repeater.connect(hello=hello)
        await accepted(found, 1)
        for count in range(1, 3):
            await repeater.connect(hello=hello)
            await until(lambda count=count: len(found.failures) == count)  # type: ignore[misc]
            assert isinstance(found.failures[-1], HandshakeError)
            assert "repeats a handshake" in str(found.failures[-1])
        await repeater.connect()
        await until(lambda: len(found.failures) == 3)
        assert "too many failed handshakes" in str(found.failures[2])
        assert len(found.accepted) == 1


def test_the_oldest_handshakes_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_MOST", 2)
    seen = repeats.SeenHandshakes()
    for one in (b"a", b"b", b"c"):
        seen.add(one)
    assert [one in seen for one in (b"a", b"b", b"c")] == [False, True, True]


async def test_rubbish_after_a_repeated_hello_is_a_failure() -> None:
    limits = Limits(max_failures_per_minute=1)
    async with (
        tunnel_listener(tls=None, tunnel=settings(SERVER), limits=limits) as found,
        repeating(found) as repeater,
    ):
        await repeater.connect(RUBBISH)
        await until(lambda: found.failures)
        assert isinstance(found.failures[0], DecryptionError)
        (one,) = found.accepted
        assert not tunnel_of(one.transport).is_proven
        assert not one.data
        await repeater.connect()
        await until(lambda: len(found.failures) > 1)
        assert "too many failed handshakes" in str(found.failures[1])


async def test_who_hangs_up_after_a_repeated_hello_is_told_of_once() -> None:
    async with (
        tunnel_listener(tls=None, tunnel=settings(SERVER)) as found,
        repeating(found) as repeater,
    ):
        for count in range(1, 6):
            await repeater.connect()
            await accepted(found, count)
        repeater.hang_up()
        await until(lambda: all(one.lost for one in found.accepted))
        assert "before it had shown its pre-shared key" in str(found.failures[0])
        assert len(found.failures) == 1


@pytest.mark.parametrize("tls", [False, True])
async def test_silence_after_the_handshake_is_no_failure(tls: bool) -> None:
    limits = Limits(handshake_timeout_s=0.05)
    identity = SERVER if tls else None
    async with tunnel_listener(
        tls=identity, tunnel=settings(SERVER), limits=limits
    ) as found:
        silent = await tunnel_dial(
            found.address, tls=CLIENT if tls else None, tunnel=settings(CLIENT)
        )
        await until(lambda: found.accepted)
        # One that comes later and begins no handshake has its time, and no longer.
        host, port = found.address.rsplit(":", 1)
        _, later = await asyncio.open_connection(host, int(port))
        await until(lambda: found.failures)
        later.close()
        assert not silent.lost
        found.close()
        silent.transport.write([frame(b"after all")])
        await until(lambda: found.accepted[0].data)
        assert tunnel_of(found.accepted[0].transport).is_proven
        assert len(found.failures) == len(found.accepted) == 1
        silent.transport.close()


async def test_a_tunnel_tells_who_waits_for_it_that_its_client_is_proven() -> None:
    pair = await Pair.make().opened()
    tunnel = tunnel_of(pair.server.one.transport)
    told: list[int] = []
    tunnel.when_proven(lambda: told.append(len(pair.server.data)))
    assert tunnel_of(pair.client.one.transport).is_proven  # by the confirmation
    before = tunnel.is_proven
    for _ in range(2):
        pair.client.one.transport.write([frame(b"here")])
    await until(lambda: len(pair.server.data) == 2 * len(frame(b"here")))
    assert (before, tunnel.is_proven) == (False, True)
    assert told == [0]


async def test_what_we_close_ourselves_is_nobodys_failure() -> None:
    pair = await Pair.make().opened()
    pair.server.one.transport.abort()
    await pair.ended()
    assert not pair.server.failures
