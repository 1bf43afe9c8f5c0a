"""Frames and datagrams that no honest QUIC peer sends, against one engine at a time."""

import random
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from aioquic.tls import Epoch

from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.transport.quic_connection import FIRST_WINDOW_LEN
from rpc25519_tools.transport.quic_engine import QuicEngine
from rpc25519_tools.transport.quic_first import Doorman, first_packet
from tests.attacks.quic_client import crypto_frame, packet, stream_frame, varints
from tests.transport.quic_net import CLIENT, SERVER, Net, engines, moved, opened

ELSEWHERE = ("192.0.2.99", 1234)


@pytest.fixture(scope="module")
def server_identity(certs: "object") -> LoadedIdentity:
    from rpc25519_tools.identity.store import load_identity

    return load_identity(certs, "node", None)  # type: ignore[arg-type]  # it is a path


@pytest.fixture
def net(client_identity: LoadedIdentity, server_identity: LoadedIdentity) -> Net:
    return engines(client_identity, server_identity)


@pytest.fixture
def both(net: Net) -> tuple[QuicEngine, QuicEngine]:
    return opened(net)


def sent(net: Net, frames: bytes, epoch: Epoch = Epoch.ONE_RTT) -> QuicEngine:
    """Let the server have a packet of the client."""
    assert net.server is not None
    net.server.receive(packet(net.client, frames, epoch), CLIENT, net.now)
    net.flush()
    return net.server


def answered(net: Net) -> QuicEngine:
    """Let a client begin; return a server that has answered it."""
    net.connect()
    net.flush()
    net.step()
    assert net.server is not None
    return net.server


# Before the handshake is done.


@pytest.mark.parametrize("epoch", [Epoch.INITIAL, Epoch.HANDSHAKE])
def test_a_gap_in_the_handshake_does_not_cost_memory(net: Net, epoch: Epoch) -> None:
    server = answered(net)
    if epoch is Epoch.HANDSHAKE:
        net.server = server = _server_before_the_end(net)
    stream = server._quic._crypto_streams[epoch]
    sent(net, crypto_frame(500_000, b"x"), epoch)
    assert server.is_closed
    assert len(stream.receiver._buffer) < 33_000


def _server_before_the_end(net: Net) -> QuicEngine:
    """Return a server whose client has the keys of the handshake, but not ended it."""
    fresh = engines(
        net.client._settings.identity, net._make_server(b"x" * 8)._settings.identity
    )
    server = answered(fresh)
    while not fresh.client._quic.handshake_done:
        for data, _ in server.outgoing(fresh.now):
            fresh.client.receive(data, SERVER, fresh.now)
        fresh.now += 0.001
    net.client, net.now = fresh.client, fresh.now
    return server


def test_a_handshake_of_many_pieces_is_cut_off(net: Net) -> None:
    server = answered(net)
    began = time.process_time()
    for start in range(2000, 30_000, 600):
        if not server.is_closed:
            frames = [crypto_frame(start + 2 * one, b"x") for one in range(300)]
            sent(net, b"".join(frames), Epoch.INITIAL)
    assert server.is_closed
    assert time.process_time() - began < 1


def test_nobody_moves_during_the_handshake(net: Net) -> None:
    """Else a stranger could answer for the address that it began with."""
    server = _server_before_the_end(net)
    client = net.client
    for data, _ in client.outgoing(net.now):
        server.receive(data, ELSEWHERE, net.now)
    server.receive(packet(client, b"\x01", Epoch.HANDSHAKE), ELSEWHERE, net.now)
    assert not server.is_open
    assert not server.knows_address
    assert server.peer_endpoint == CLIENT
    now = net.now
    while (at := server.timer()) is not None and at < now + 9:
        net.now = max(net.now, at) + 1e-6
        server.handle_timer(net.now)
        assert all(to == CLIENT for _, to in server.outgoing(net.now))


def test_farewells_keep_to_three_times_what_came(net: Net) -> None:
    server = answered(net)
    path = server._quic._network_paths[0]
    now = net.now
    path.bytes_sent = 3 * path.bytes_received - 10  # all but used up
    server.close()
    assert server.outgoing(now) == []
    assert server.is_closed
    assert path.bytes_sent <= 3 * path.bytes_received


# Whoever has a certificate.


def test_a_stream_of_single_bytes_costs_little_memory(
    net: Net, both: tuple[QuicEngine, QuicEngine]
) -> None:
    server, count = both[1], 60_000
    tracemalloc.start()
    try:
        for start in range(0, count, 2000):
            frames = [
                stream_frame(2 * one, b"ab") for one in range(start, start + 2000)
            ]
            sent(net, b"".join(frames))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert b"".join(server.arrived) == b"ab" * count
    assert len(server.arrived) < 20
    assert held < 10 * count  # each alone takes 50 bytes


def test_a_stream_of_every_second_byte_is_cut_off(
    net: Net, both: tuple[QuicEngine, QuicEngine]
) -> None:
    server = both[1]
    began = time.process_time()
    frames = [stream_frame(2 * one + 1, b"x") for one in range(20_000)]
    for start in range(0, len(frames), 1000):
        sent(net, b"".join(frames[start : start + 1000]))
    assert server.is_closed
    assert "too scattered a stream" in str(server.error)
    assert time.process_time() - began < 3


def test_what_waits_behind_a_gap_is_counted(
    net: Net, both: tuple[QuicEngine, QuicEngine]
) -> None:
    server = sent(net, stream_frame(FIRST_WINDOW_LEN - 1, b"x"))
    assert server.gap_len == FIRST_WINDOW_LEN
    sent(net, stream_frame(0, bytes(FIRST_WINDOW_LEN - 1)))
    assert server.gap_len == 0


def test_ids_that_are_given_back_are_forgotten(
    net: Net, both: tuple[QuicEngine, QuicEngine]
) -> None:
    client, server = both
    for number in range(1, 500):
        seen = server._quic._packet_number - 1
        everything = b"\x02" + varints(seen, 0, 0, seen)
        frames = everything + b"\x19" + varints(number)
        server.receive(packet(client, frames), CLIENT, net.now)
        assert server.outgoing(net.now)
        net.now += 0.05
    assert not server.is_closed
    assert server._quic._host_cid_seq > 500
    assert len(server.ids) <= 9


FLOODS: dict[str, Callable[[int], bytes]] = {
    "new ids": lambda n: b"\x18" + varints(n + 1, n) + b"\x14" + bytes(36),
    "ids beyond all": lambda n: (
        b"\x18" + varints(1 << 40, 1 << 40) + b"\x14" + bytes(36)
    ),
    "challenges": lambda n: b"\x1a" + n.to_bytes(8, "big"),
    "answers": lambda n: b"\x1b" + n.to_bytes(8, "big"),
    "pings": lambda n: b"\x01",
    "data limits": lambda n: b"\x10" + varints(n),
    "stream limits": lambda n: b"\x11" + varints(0, n),
    "streams": lambda n: b"\x12" + varints(n),
    "blocked": lambda n: b"\x14" + varints(n),
    "resets": lambda n: b"\x04" + varints(0, n, n),
    "stops": lambda n: b"\x05" + varints(0, n),
    "tokens": lambda n: b"\x07" + varints(3) + b"abc",
    "acknowledgements": lambda n: b"\x02" + varints(n + 1, 0, 0, 0),
    "done": lambda n: b"\x1e",
    "datagrams": lambda n: b"\x31" + varints(1) + b"x",
    "unknown": lambda n: b"\x3f",
    "closes": lambda n: b"\x1d" + varints(n, 4) + b"\xff\x1b[2",
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_frames_costs_one_connection_at_most(
    kind: str, net: Net, both: tuple[QuicEngine, QuicEngine]
) -> None:
    server = both[1]
    quic = server._quic
    began = time.process_time()
    for start in range(0, 20_000, 200):
        frames = [FLOODS[kind](start + one) for one in range(200)]
        sent(net, b"".join(frames))
        net.now += 0.002
    assert time.process_time() - began < 5
    assert len(quic._retire_connection_ids) < 200
    assert len(quic._events) < 10
    assert sum(len(one.remote_challenges) for one in quic._network_paths) <= 64
    assert len(server.ids) <= 9
    assert not server.arrived
    if server.is_closed and server.error is not None:
        assert str(server.error).isprintable()
        assert len(str(server.error)) < 500


def test_a_flood_of_addresses_is_followed_with_little(
    net: Net, both: tuple[QuicEngine, QuicEngine]
) -> None:
    """A client that has a certificate says that it is everywhere."""
    client, server = both
    assert moved(net, client, server, b"hello") == b"hello"
    server.send(memoryview(bytes(1 << 20)))
    dice = random.Random(1)
    came: dict[Any, int] = {}
    went: dict[Any, int] = {}
    for number in range(3000):
        place = (f"198.51.100.{number % 250}", dice.randrange(1024, 65_536))
        data = packet(client, b"\x01")
        came[place] = came.get(place, 0) + len(data)
        server.receive(data, place, net.now)
        for out, to in server.outgoing(net.now):
            went[to] = went.get(to, 0) + len(out)
        net.now += 0.001
    assert len(server._quic._network_paths) <= 8
    went.pop(CLIENT, None)
    assert went
    for place, count in went.items():
        assert count <= 3 * came[place], place


# Tokens.


def test_tokens_are_good_for_one_address_one_id_and_a_while(
    client_identity: LoadedIdentity, server_identity: LoadedIdentity
) -> None:
    doorman = Doorman()
    net = engines(client_identity, server_identity)
    net.connect()
    ((hello, _), *_) = net.client.outgoing(net.now)
    first = first_packet(hello)
    assert first is not None
    retry = doorman.retry(first, CLIENT, 100.0)
    assert len(retry) < len(hello)
    net.client.receive(retry, SERVER, net.now)
    ((again, _), *_) = net.client.outgoing(net.now)
    second = first_packet(again)
    assert second is not None
    assert second.token
    good = doorman.original_id(second, CLIENT, 101.0)
    assert good == first.destination_id
    assert doorman.original_id(second, ELSEWHERE, 101.0) is None
    assert doorman.original_id(second, (CLIENT[0], 1), 101.0) is None
    assert doorman.original_id(second, CLIENT, 131.0) is None
    assert Doorman().original_id(second, CLIENT, 101.0) is None
    for index in range(len(second.token)):
        token = bytearray(second.token)
        token[index] ^= 1
        altered = type(second)(
            True, second.destination_id, second.source_id, bytes(token)
        )
        assert doorman.original_id(altered, CLIENT, 101.0) is None
    other = type(second)(True, b"another-id-of-20-bs!", second.source_id, second.token)
    assert doorman.original_id(other, CLIENT, 101.0) is None
