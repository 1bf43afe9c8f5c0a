"""QUIC connections without a network: handshakes, bytes, flow control, bad paths.

What aioquic does not promise to keep is used here for real: a version that changes it
fails these tests.
"""

import importlib.metadata
from pathlib import Path as FilePath
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import (
    ConnectionLostError,
    DeadlineError,
    HandshakeError,
    PeerNotTrustedError,
)
from rpc25519_tools.identity.certificate import PeerIdentity
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.transport.base import TlsSettings
from rpc25519_tools.transport.quic_connection import (
    FIRST_WINDOW_LEN,
    ID_LEN,
    WINDOW_LEN,
)
from rpc25519_tools.transport.quic_engine import QuicEngine
from rpc25519_tools.transport.quic_first import Doorman, first_packet
from tests.attacks.strangers import NAMED, STRANGERS, Minter
from tests.transport.peers import Authority
from tests.transport.quic_net import CLIENT, SERVER, Net, Path, engines, moved, opened


def test_aioquic_is_one_that_was_looked_at() -> None:
    assert importlib.metadata.version("aioquic").startswith("1.7.")


# Friends.


def test_both_ends_prove_who_they_are(
    client: LoadedIdentity, node: LoadedIdentity
) -> None:
    net = engines(client, node)
    ours, theirs = opened(net)
    assert ours.peer is not None
    assert ours.peer.emails == ("node@example.org",)
    assert theirs.peer is not None
    assert theirs.peer.emails == ("client@example.org",)


def test_the_parameters_are_those_that_a_go_peer_expects(
    client: LoadedIdentity, node: LoadedIdentity
) -> None:
    net = engines(client, node)
    for end in opened(net):
        quic = end._quic
        assert {len(one) for one in end.ids} == {ID_LEN}
        assert quic.tls.alpn_negotiated is None
        assert quic.tls.key_schedule is not None
        assert quic.tls.key_schedule.cipher_suite.name == "CHACHA20_POLY1305_SHA256"
        assert quic._version == 1
        assert end.security.split()[-1] == "x25519"
        assert quic._loss.max_ack_delay == 0.005  # as the other end says
    assert first_of(net.client) == [1200]


def first_of(client: QuicEngine) -> list[int]:
    fresh = QuicEngine("client", client._settings, peer_host="x")
    fresh.connect(SERVER, 0.0)
    return [len(data) for data, _ in fresh.outgoing(0.0)]


def test_bytes_arrive_whole_both_ways(
    client: LoadedIdentity, node: LoadedIdentity
) -> None:
    net = engines(client, node)
    ours, theirs = opened(net)
    up, down = bytes(range(256)) * 40_000, b"answer" * 1000
    assert moved(net, ours, theirs, up) == up
    assert moved(net, theirs, ours, down) == down
    net.run_until(lambda: not ours.unacked_len and not theirs.unacked_len)
    assert ours.unsent_len == theirs.unsent_len == 0


def test_a_server_that_does_not_verify_asks_for_nothing(
    client: LoadedIdentity, node: LoadedIdentity
) -> None:
    net = engines(client, node, verify=False)
    ours, theirs = opened(net)
    assert ours.peer is None
    assert theirs.peer is None
    assert theirs._quic.tls._peer_certificate is None


# Strangers.


def refused(net: Net) -> tuple[Exception | None, Exception | None]:
    """Do a handshake that must fail; return how it ends for client and server."""
    net.connect()
    net.run_until(
        lambda: net.server is not None and net.server.is_closed and net.client.is_closed
    )
    assert net.server is not None
    assert not net.server.is_open or not net.client.is_open
    assert net.server.arrived == []
    return net.client.error, net.server.error


def with_stranger(engine: QuicEngine, stranger: Any) -> None:
    """Let an engine show a stranger's certificates, as a program of its own would."""
    configuration = engine._quic._configuration
    configuration.certificate = stranger.chain[0]
    configuration.certificate_chain = list(stranger.chain[1:])
    configuration.private_key = stranger.key


@pytest.fixture(scope="module")
def genuine(certs: FilePath) -> tuple[LoadedIdentity, LoadedIdentity]:
    """Client and server of the authority that the minters use."""
    from rpc25519_tools.identity.store import load_identity

    return load_identity(certs, "client", None), load_identity(certs, "node", None)


def impatient(engine: QuicEngine) -> None:
    """Let a client send a request before it knows what the server says."""
    plain = engine._quic._handle_crypto_frame

    def handle(*args: Any) -> None:
        plain(*args)
        if engine._quic.handshake_done and engine._quic.stream is None:
            engine._quic.send_stream_data(0, b"request")

    engine._quic._QuicConnection__frame_handlers[0x06] = (  # type: ignore[attr-defined]
        handle,
        engine._quic._QuicConnection__frame_handlers[0x06][1],  # type: ignore[attr-defined]
    )


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_server_refuses_a_client(
    kind: str, certs: FilePath, genuine: tuple[LoadedIdentity, LoadedIdentity]
) -> None:
    mint, _ = STRANGERS[kind]
    client, node = genuine
    net = engines(client, node, careless=True)
    with_stranger(net.client, mint(Minter(certs, "client")))
    impatient(net.client)
    error, why = refused(net)
    assert isinstance(error, HandshakeError)
    assert net.server is not None
    assert not net.server.is_open
    assert net.server.peer is None
    assert isinstance(why, HandshakeError)
    assert str(why).startswith(("certificate refused: ", "TLS handshake failed ("))


@pytest.mark.parametrize("kind", [*STRANGERS, *NAMED])
def test_a_client_refuses_a_server(
    kind: str, certs: FilePath, genuine: tuple[LoadedIdentity, LoadedIdentity]
) -> None:
    mint, _ = {**STRANGERS, **NAMED}[kind]
    stranger = mint(Minter(certs, "server"))
    client, node = genuine
    net = engines(client, node)
    make = net._make_server

    def make_stranger(original: bytes) -> QuicEngine:
        engine = make(original)
        with_stranger(engine, stranger)
        return engine

    net._make_server = make_stranger
    net.connect()
    net.run_until(lambda: net.client.is_closed)
    assert isinstance(net.client.error, HandshakeError)
    assert not net.client.is_open
    assert net.server is not None
    assert net.server._quic.tls._peer_certificate is None  # it was not shown ours


def test_a_client_without_a_certificate_is_refused(
    client: LoadedIdentity, node: LoadedIdentity
) -> None:
    net = engines(client, node)
    configuration = net.client._quic._configuration
    configuration.certificate = configuration.private_key = None
    impatient(net.client)
    error, why = refused(net)
    assert isinstance(error, PeerNotTrustedError)
    assert "certificate required" in str(error)
    assert isinstance(why, HandshakeError)


class Refusing:
    """A check that finds fault with everybody, before or after the proof."""

    def __init__(self, *, when: str) -> None:
        self.when = when
        self.asked: list[str] = []

    def check(self, peer: PeerIdentity, host: str) -> None:
        self.asked.append(f"check {host}")
        if self.when == "check":
            raise PeerNotTrustedError("unknown key")

    def proven(self, peer: PeerIdentity, host: str) -> None:
        self.asked.append(f"proven {host}")
        if self.when == "proven":
            raise PeerNotTrustedError("unknown key, now")


@pytest.mark.parametrize("when", ["check", "proven"])
@pytest.mark.parametrize("side", ["client", "server"])
def test_known_keys_are_asked_inside_the_handshake(
    side: str, when: str, client: LoadedIdentity, node: LoadedIdentity
) -> None:
    check = Refusing(when=when)
    net = engines(client, node, **{f"{side}_check": check})  # type: ignore[arg-type]
    net.connect()
    net.run_until(lambda: any(end.is_closed for end in net.ends))
    ours = net.client if side == "client" else net.server
    assert ours is not None
    assert str(ours.error).startswith("unknown key")
    assert not ours.is_open
    host = "192.0.2.2" if side == "client" else "192.0.2.1"
    assert check.asked[0] == f"check {host}"
    assert (f"proven {host}" in check.asked) == (when == "proven")


def test_another_suite_is_refused(client: LoadedIdentity, node: LoadedIdentity) -> None:
    from aioquic.tls import CipherSuite

    net = engines(client, node)
    net.client._quic._configuration.cipher_suites = [CipherSuite.AES_128_GCM_SHA256]
    error, why = refused(net)
    assert "40" in str(error)
    assert "No supported cipher suite" in str(why)


def test_alpn_is_not_spoken(client: LoadedIdentity, node: LoadedIdentity) -> None:
    net = engines(client, node)
    net.client._quic._configuration.alpn_protocols = ["h3"]
    net.connect()
    net.run_until(lambda: net.client.is_closed)
    assert isinstance(net.client.error, HandshakeError)


def test_an_endless_hello_is_cut_off(
    client: LoadedIdentity, node: LoadedIdentity
) -> None:
    net = engines(client, node)
    net.connect()
    sender = net.client._quic._crypto_streams
    from aioquic.tls import Epoch

    # A ClientHello that says it has 16 MB, and goes on and on.
    sender[Epoch.INITIAL].sender._buffer[:4] = b"\x01\xff\xff\xff"
    sender[Epoch.INITIAL].sender.write(bytes(100_000))
    net.run_until(lambda: net.server is not None and net.server.is_closed)
    assert net.server is not None
    assert "too long a handshake" in str(net.server.error)
    assert len(net.server._quic.tls._receive_buffer) <= 32 * 1024


# Flow control.


def test_a_peer_sends_no_more_than_the_window_while_nothing_is_consumed(
    client: LoadedIdentity, node: LoadedIdentity
) -> None:
    net = engines(client, node)
    ours, theirs = opened(net)
    ours.send(memoryview(bytes(3 * WINDOW_LEN)))
    windows = []
    for _ in range(6):
        net.run_for(5.0)
        windows.append(sum(map(len, theirs.arrived)))
        theirs.arrived.clear()
        assert theirs.consume(windows[-1])
    first = FIRST_WINDOW_LEN
    assert windows == [first, first, 2 * first, 4 * first, WINDOW_LEN, WINDOW_LEN]
    assert ours.unsent_len == 3 * WINDOW_LEN - sum(windows)


def test_a_peer_that_ignores_the_window_is_cut_off(
    client: LoadedIdentity, node: LoadedIdentity
) -> None:
    net = engines(client, node)
    ours, theirs = opened(net)
    ours.send(memoryview(b"x"))
    stream = ours._quic.stream
    assert stream is not None
    ours._quic._remote_max_data = stream.max_stream_data_remote = 1 << 40
    ours.send(memoryview(bytes(2 * WINDOW_LEN)))
    net.run_until(lambda: theirs.is_closed)
    assert isinstance(theirs.error, ConnectionLostError)
    assert "broke the QUIC protocol" in str(theirs.error)
    assert sum(map(len, theirs.arrived)) <= WINDOW_LEN


def test_a_second_stream_is_a_fault(
    client: LoadedIdentity, node: LoadedIdentity
) -> None:
    net = engines(client, node)
    ours, theirs = opened(net)
    ours._quic._remote_max_streams_bidi = 100
    ours._quic.send_stream_data(4, b"one more")
    net.run_until(lambda: theirs.is_closed)
    assert isinstance(theirs.error, ConnectionLostError)
    assert theirs.arrived == []


@pytest.mark.parametrize("seed", range(8))
def test_the_server_may_speak_first(
    client: LoadedIdentity, node: LoadedIdentity, seed: int
) -> None:
    """The client opens the stream as soon as it is let in, whatever gets lost."""
    net = engines(client, node, Path(loss=0.3, seed=seed))
    ours, theirs = opened(net)
    net.run_until(lambda: theirs.can_send)
    assert theirs.arrived == []
    assert moved(net, theirs, ours, b"news") == b"news"
    assert moved(net, ours, theirs, b"answer") == b"answer"


def test_a_client_that_is_not_let_in_learns_it(client: LoadedIdentity) -> None:
    settings = TlsSettings(identity=client, verify=True)
    engine = QuicEngine("client", settings, peer_host="192.0.2.2")
    engine.connect(SERVER, 0.0)
    ((data, _), *_) = engine.outgoing(0.0)
    first = first_packet(data)
    assert first is not None
    answer = Doorman().refuse(first)
    assert len(answer) < 100  # whoever it really was that asked is not flooded
    engine.receive(answer, SERVER, 0.0)
    assert engine.is_closed
    assert "takes no connections for now" in str(engine.error)


# Bad paths.


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.floats(0, 0.2),
    st.floats(0, 0.2),
    st.floats(0, 0.05),
    st.sampled_from([1200, 1300, 1452, 9000, 65535]),
    st.integers(0, 1000),
)
def test_bytes_arrive_whole_whatever_the_path_does(
    client: LoadedIdentity,
    node: LoadedIdentity,
    loss: float,
    duplication: float,
    jitter_s: float,
    mtu: int,
    seed: int,
) -> None:
    path = Path(loss, duplication, 0.005, jitter_s, mtu, seed)
    net = engines(client, node, path)
    ours, theirs = opened(net)
    data = bytes(range(251)) * 800
    assert moved(net, ours, theirs, data) == data
    assert moved(net, theirs, ours, data[:5000]) == data[:5000]


@pytest.mark.parametrize(("width", "size"), [(65535, 16384), (1500, 1452)])
def test_datagrams_grow_to_what_the_path_takes(
    width: int, size: int, client: LoadedIdentity, node: LoadedIdentity
) -> None:
    net = engines(client, node, Path(mtu=width))
    ours, theirs = opened(net)
    net.run_until(lambda: ours._quic._max_datagram_size == size)
    data = bytes(500_000)
    net.sent.clear()
    assert moved(net, ours, theirs, data) == data
    assert max(length for source, length in net.sent if source == CLIENT) == size


def test_a_probe_holds_up_nothing(client: LoadedIdentity, node: LoadedIdentity) -> None:
    """It can be longer than what may be on its way at first."""
    net = engines(client, node, Path(delay_s=0.05))
    ours, theirs = opened(net)
    net.flush()
    assert (CLIENT, 16384) in net.sent
    assert ours._quic._max_datagram_size == 1200  # it is on its way still
    ours.send(memoryview(b"last words"))
    net.run_for(0.06)
    assert b"".join(theirs.arrived) == b"last words"


def test_no_datagram_is_longer_than_a_go_peer_takes(
    client: LoadedIdentity, node: LoadedIdentity
) -> None:
    """quic-go reads 1452 bytes of a datagram, and loses what is longer."""
    net = engines(client, node)
    ours, theirs = opened_with_limit(net, 1452)
    data = bytes(300_000)
    assert moved(net, ours, theirs, data) == data
    assert max(length for source, length in net.sent if source == CLIENT) == 1452


def opened_with_limit(net: Net, most: int) -> tuple[QuicEngine, QuicEngine]:
    """Do the handshake with a server that announces max_udp_payload_size."""
    make = net._make_server

    def make_limited(original: bytes) -> QuicEngine:
        engine = make(original)
        quic = engine._quic
        plain = quic._serialize_transport_parameters
        # Parameter 3, RFC 9000 section 18.2, with two bytes of value.
        extra = b"\x03\x02" + (0x4000 | most).to_bytes(2)
        quic._serialize_transport_parameters = (  # type: ignore[method-assign]
            lambda: plain() + extra
        )
        return engine

    net._make_server = make_limited
    return opened(net)


def test_a_path_that_becomes_narrow_is_a_black_hole_for_moments_only(
    client: LoadedIdentity, node: LoadedIdentity
) -> None:
    net = engines(client, node, Path(mtu=1500, delay_s=0.02))
    ours, theirs = opened(net)
    net.run_until(lambda: ours._quic._max_datagram_size == 1452)
    net.path.mtu = 1280
    start, data = net.now, bytes(200_000)
    assert moved(net, ours, theirs, data) == data
    assert net.now - start < 15
    assert ours._quic._max_datagram_size < 1280
    net.path.mtu = 1500
    net.run_until(lambda: ours._quic._max_datagram_size == 1452, limit_s=120)


def test_a_client_whose_address_changes_goes_on(
    client: LoadedIdentity, node: LoadedIdentity
) -> None:
    net = engines(client, node)
    ours, theirs = opened(net)
    assert moved(net, ours, theirs, b"from here") == b"from here"
    net.client_endpoint = ("203.0.113.9", 61000)
    assert moved(net, ours, theirs, b"and from there") == b"and from there"
    assert moved(net, theirs, ours, b"back" * 5000) == b"back" * 5000
    assert theirs.peer_endpoint == net.client_endpoint


def test_every_second_packet_is_acknowledged_at_once(
    client: LoadedIdentity, node: LoadedIdentity
) -> None:
    """After a loss few packets are on their way, and wait for no timer."""
    net = engines(client, node, Path(delay_s=0.0001))
    ours, _ = opened(net)
    net.run_for(1.0)
    before = net.now
    ours.send(memoryview(bytes(20_000)))
    net.run_until(lambda: ours.unacked_len == 0)
    assert net.now - before < 0.0005
    # One alone has to wait for a moment: there may be something to send with it.
    net.run_for(1.0)
    before = net.now
    ours.send(memoryview(b"one"))
    net.run_until(lambda: ours.unacked_len == 0)
    assert 0.001 <= net.now - before < 0.002


def test_a_lossy_path_is_used(client: LoadedIdentity, node: LoadedIdentity) -> None:
    net = engines(client, node, Path(loss=0.05, delay_s=0.0002, mtu=1500))
    ours, theirs = opened(net)
    start, data = net.now, bytes(1_000_000)
    assert moved(net, ours, theirs, data) == data
    assert net.now - start < 0.25  # seconds: 4 MB/s at least


@pytest.mark.parametrize("for_s", [5.0, 15.0])
def test_all_goes_on_soon_after_a_black_out(
    client: LoadedIdentity, node: LoadedIdentity, for_s: float
) -> None:
    net = engines(client, node, Path(delay_s=0.02))
    ours, theirs = opened(net)
    ours.send(memoryview(bytes(500_000)))
    net.run_for(0.1)
    net.path.loss = 1.0
    net.run_for(for_s)
    net.path.loss = 0.0
    back = net.now
    net.run_until(lambda: sum(map(len, theirs.arrived)) == 500_000)
    assert net.now - back < 4


def test_a_handshake_survives_a_black_out(
    client: LoadedIdentity, node: LoadedIdentity
) -> None:
    net = engines(client, node, Path(loss=1.0))
    net.connect()
    net.run_for(6.0)
    net.path.loss = 0.0
    back = net.now
    net.run_until(lambda: len(net.ends) == 2 and all(end.is_open for end in net.ends))
    assert net.now - back < 3


# Ends.


def test_the_end_in_order(client: LoadedIdentity, node: LoadedIdentity) -> None:
    net = engines(client, node)
    ours, theirs = opened(net)
    ours.send(memoryview(b"last words"))
    ours.finish()
    net.run_until(lambda: ours.is_finished)
    assert theirs.peer_ended
    assert b"".join(theirs.arrived) == b"last words"
    ours.close()
    net.run_until(lambda: theirs.is_closed)
    assert ours.is_closed
    assert ours.error is theirs.error is None


def test_a_peers_reason_is_short_and_printable(
    client: LoadedIdentity, node: LoadedIdentity
) -> None:
    net = engines(client, node)
    ours, theirs = opened(net)
    theirs._quic.close(error_code=7, reason_phrase="\x1b\u202e" * 200)
    net.run_until(lambda: ours.is_closed)
    assert str(ours.error).isprintable()
    assert "code 7" in str(ours.error)
    assert len(str(ours.error)) < 300


def test_a_peer_of_which_nothing_comes_is_given_up(
    client: LoadedIdentity, node: LoadedIdentity
) -> None:
    net = engines(client, node)
    ours, _ = opened(net)
    net.path.loss = 1.0
    start = net.now
    net.run_until(lambda: ours.is_closed)
    assert isinstance(ours.error, DeadlineError)
    assert 25 < net.now - start < 40


def test_pings_keep_an_idle_connection(
    client: LoadedIdentity, node: LoadedIdentity
) -> None:
    net = engines(client, node)
    ours, theirs = opened(net)
    for _ in range(20):
        ours.ping()
        net.run_for(10.0)
    assert not ours.is_closed
    assert not theirs.is_closed


def test_garbage_changes_nothing(client: LoadedIdentity, node: LoadedIdentity) -> None:
    net = engines(client, node)
    ours, theirs = opened(net)
    for data in (b"", b"\x00", bytes(1200), b"\x40" + bytes(40), b"\xc0" * 1500):
        ours.receive(data, SERVER, net.now)
        theirs.receive(data, CLIENT, net.now)
    assert moved(net, ours, theirs, b"all is well") == b"all is well"


def test_a_server_of_another_authority_is_not_trusted(
    authority: Authority, client: LoadedIdentity
) -> None:
    other = Authority.make()
    net = engines(client, other.identity("node", trusts=authority))
    error, _ = refused(net)
    assert isinstance(error, PeerNotTrustedError)
