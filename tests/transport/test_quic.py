"""QUIC over real sockets: what any transport does, and paths that change."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Sequence

import pytest

from rpc25519_tools.errors import DeadlineError
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.transport import quic as quic_module
from rpc25519_tools.transport import quic_connection
from rpc25519_tools.transport.base import (
    WRITE_HIGH_WATER_LEN,
)
from rpc25519_tools.transport.quic import QuicTransport
from rpc25519_tools.transport.quic_connection import FIRST_WINDOW_LEN, WINDOW_LEN
from rpc25519_tools.transport.udp_port import UdpPort
from rpc25519_tools.transport.udp_socket import Sent, UdpSocket
from rpc25519_tools.wire.constants import MIB
from tests.helpers import until
from tests.transport.peers import Recorder, accepted, dialled, listening
from tests.transport.udp_proxy import Faults, UdpProxy

Pair = tuple[Recorder, Recorder]


def inner(recorder: Recorder) -> QuicTransport:
    assert isinstance(recorder.transport, QuicTransport)
    return recorder.transport


@contextlib.asynccontextmanager
async def pair(node: LoadedIdentity, client: LoadedIdentity) -> AsyncIterator[Pair]:
    """A client's and a server's end."""
    async with (
        listening(node, quic=True) as found,
        dialled(found.address, client, quic=True) as ours,
    ):
        yield ours, await accepted(found)


# Bytes.


async def test_both_ends_prove_who_they_are(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    async with pair(node, client) as (ours, theirs):
        assert ours.transport.peer is not None
        assert ours.transport.peer.emails == ("node@example.org",)
        assert theirs.transport.peer is not None
        assert theirs.transport.peer.emails == ("client@example.org",)
        assert ours.transport.local_address == theirs.transport.remote_address
        assert ours.transport.remote_address == theirs.transport.local_address
        for end in (ours, theirs):
            assert end.transport.network == "udp"
            assert "TLS_CHACHA20_POLY1305_SHA256" in end.transport.security


async def test_bytes_arrive_whole_both_ways(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    up, down = random.Random(1).randbytes(3 * MIB + 1), random.Random(2).randbytes(MIB)
    async with pair(node, client) as (ours, theirs):
        ours.transport.write([up[:1], b"", memoryview(up)[1:]])
        theirs.transport.write([bytearray(down)])
        await until(lambda: len(theirs.data) >= len(up))
        await until(lambda: len(ours.data) >= len(down))
        assert theirs.data == up
        assert ours.data == down
        assert ours.transport.unsent_len == theirs.transport.unsent_len == 0


async def test_datagrams_are_as_long_as_loopback_takes_them(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    async with pair(node, client) as (ours, theirs):
        engines = [inner(end)._engine._quic for end in (ours, theirs)]
        await until(lambda: {one._max_datagram_size for one in engines} == {16384})


async def test_the_server_may_be_the_first_to_speak(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    async with pair(node, client) as (ours, theirs):
        theirs.transport.write([b"welcome"])
        await until(lambda: ours.data == b"welcome")


async def test_closing_sends_what_is_queued_and_ends_in_order(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    async with pair(node, client) as (ours, theirs):
        ours.transport.write([bytes(8 * MIB)])
        assert ours.transport.unsent_len > 0
        ours.transport.close()
        ours.transport.close()
        ours.transport.write([b"too late"])
        await until(lambda: theirs.lost and ours.lost)
        assert len(theirs.data) == 8 * MIB
        assert theirs.error is None
        assert ours.error is None


async def test_the_server_may_close_before_a_word_was_said(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    async with pair(node, client) as (ours, theirs):
        theirs.transport.close()
        await until(lambda: theirs.lost and ours.lost)
        assert ours.error is theirs.error is None


async def test_who_is_paused_gets_all_before_the_end(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    async with pair(node, client) as (ours, theirs):
        theirs.transport.pause_reading()
        ours.transport.write([bytes(MIB // 2)])
        ours.transport.close()
        await until(lambda: ours.lost, what="the sender's end")
        assert not theirs.lost
        theirs.transport.resume_reading()
        await until(lambda: theirs.lost)
        assert len(theirs.data) == MIB // 2
        assert theirs.error is None


async def test_who_has_no_room_for_long_gets_all_before_the_end(
    node: LoadedIdentity, client: LoadedIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quic_module, "_LINGER_S", 0.3)
    async with pair(node, client) as (ours, theirs):
        theirs.transport.pause_reading()
        ours.transport.write([bytes(8 * MIB)])
        ours.transport.close()
        begin = asyncio.get_running_loop().time()
        heard = inner(ours)._heard_at
        # Three times as long as a dead peer gets.
        await until(lambda: inner(ours)._heard_at > max(heard, begin) + 0.9)
        assert not ours.lost
        theirs.transport.resume_reading()
        await until(lambda: theirs.lost)
        assert len(theirs.data) == 8 * MIB
        assert theirs.error is None


async def test_aborting_drops_what_is_queued(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    async with pair(node, client) as (ours, theirs):
        theirs.transport.pause_reading()
        ours.transport.write([bytes(32 * MIB)])
        assert ours.transport.unsent_len > 0
        ours.transport.abort()
        assert ours.transport.unsent_len <= WINDOW_LEN
        theirs.transport.resume_reading()
        await until(lambda: theirs.lost and ours.lost)
        assert len(theirs.data) < 32 * MIB


async def test_the_last_words_before_aborting_go_out(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    async with pair(node, client) as (ours, theirs):
        ours.transport.write([b"this is why"])
        ours.transport.abort()
        await until(lambda: theirs.lost)
        assert theirs.data == b"this is why"


async def test_a_paused_reader_makes_the_writer_wait(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    async with pair(node, client) as (ours, theirs):
        theirs.transport.pause_reading()
        ours.transport.write([bytes(16 * MIB)])
        await until(lambda: ours.transport.unsent_len <= 16 * MIB - FIRST_WINDOW_LEN)
        for _ in range(50):
            await asyncio.sleep(0)
        # No more comes than the window has, and all of that is counted.
        held_len = sum(map(len, inner(theirs)._engine.arrived))
        assert 0 < held_len <= WINDOW_LEN
        assert ours.transport.unsent_len >= 16 * MIB - WINDOW_LEN
        assert ours.transport.unsent_len > WRITE_HIGH_WATER_LEN
        assert ours.writable_calls == 0
        theirs.transport.resume_reading()
        await until(lambda: len(theirs.data) == 16 * MIB)
        assert ours.writable_calls == 1
        assert ours.transport.unsent_len == 0
        assert not inner(theirs)._engine.arrived


@pytest.mark.parametrize("ending", ["abort", "close"])
async def test_ending_a_connection_that_is_over_does_nothing(
    ending: str, node: LoadedIdentity, client: LoadedIdentity
) -> None:
    async with pair(node, client) as (ours, theirs):
        theirs.transport.write([bytes(MIB)])
        ours.transport.abort()
        await until(lambda: theirs.lost)
        for _ in range(2):
            getattr(theirs.transport, ending)()
            getattr(ours.transport, ending)()


@pytest.mark.usefixtures("no_leaked_fds")
async def test_nothing_stays_open(node: LoadedIdentity, client: LoadedIdentity) -> None:
    async with pair(node, client) as (ours, theirs):
        ours.transport.write([b"x"])
        await until(lambda: theirs.data == b"x")


def cut_off(recorder: Recorder) -> None:
    """Let nothing more come from this end, as if its machine had gone."""
    port = inner(recorder)._port
    asyncio.get_running_loop().remove_reader(port.fileno())
    port._sock.send = lost  # type: ignore[method-assign]


def lost(datagrams: Sequence[object]) -> Sent:
    return Sent(len(datagrams))


async def test_a_dead_peer_is_not_waited_for_when_closing(
    node: LoadedIdentity, client: LoadedIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quic_module, "_LINGER_S", 0.1)
    async with pair(node, client) as (ours, theirs):
        cut_off(theirs)
        ours.transport.write([b"anybody?"])
        ours.transport.close()
        await until(lambda: ours.lost, timeout_s=2)
        assert not theirs.lost


# Silence, and paths that change.


async def test_pings_keep_an_idle_connection_open(
    node: LoadedIdentity, client: LoadedIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quic_connection, "IDLE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(quic_module, "_PING_S", 0.05)
    async with pair(node, client) as (ours, theirs):
        loop = asyncio.get_running_loop()
        end = loop.time() + 1.0
        await until(lambda: loop.time() > end)
        assert not ours.lost
        assert not theirs.lost
        ours.transport.write([b"still here"])
        await until(lambda: theirs.data == b"still here")


async def test_a_peer_of_which_nothing_comes_is_given_up(
    node: LoadedIdentity, client: LoadedIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quic_connection, "IDLE_TIMEOUT_S", 0.3)
    async with pair(node, client) as (ours, theirs):
        cut_off(theirs)
        await until(lambda: ours.lost, timeout_s=3)
        assert isinstance(ours.error, DeadlineError)


async def test_a_router_that_forgets_an_idle_path_is_told_anew(
    node: LoadedIdentity, client: LoadedIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's ping brings the new path; then the server reaches it again."""
    monkeypatch.setattr(quic_module, "_PING_S", 0.1)
    async with listening(node, quic=True) as found:
        host, port = found.address.split(":")
        with UdpProxy((host, int(port)), Faults()) as proxy:
            async with dialled(proxy.address, client, quic=True) as ours:
                theirs = await accepted(found)
                engine = inner(theirs)._engine
                seen = [engine.peer_endpoint]

                def has_moved() -> bool:
                    return engine.peer_endpoint not in seen

                for _ in range(3):
                    ours.data.clear()
                    proxy.rebind()
                    await until(has_moved)
                    seen.append(engine.peer_endpoint)
                    theirs.transport.write([b"news"])
                    await until(lambda: ours.data == b"news")


async def test_a_client_may_move_to_another_network(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    """Its socket gets another address in the middle of a transfer, both ways."""
    async with pair(node, client) as (ours, theirs):
        ours.transport.write([bytes(4 * MIB)])
        theirs.transport.write([bytes(4 * MIB)])
        await until(lambda: len(theirs.data) > MIB)
        moved = move(inner(ours)._port, "127.0.0.3")
        await until(lambda: len(ours.data) == len(theirs.data) == 4 * MIB)
        assert inner(theirs)._engine.peer_endpoint == moved
        assert not ours.lost


def move(port: UdpPort, host: str) -> tuple[str, int]:
    """Put another socket in the place of a port's one."""
    loop = asyncio.get_running_loop()
    loop.remove_reader(port.fileno())
    loop.remove_writer(port.fileno())
    port._sock.close()
    port._sock = UdpSocket(socket.AF_INET, (host, 0))
    loop.add_reader(port.fileno(), port._readable)
    if port._unsent:
        port._writable()
    return (host, port._sock.address[1])
