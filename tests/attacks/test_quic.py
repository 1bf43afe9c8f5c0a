"""Hostile QUIC clients and datagrams from nowhere, against a real ``srv -q``."""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from aioquic import tls
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.tls import Epoch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import ConnectionLostError, NotConnectedError, Rpc25519Error
from rpc25519_tools.files.echo import ECHO_CALL_SERVICE
from rpc25519_tools.identity.store import LoadedIdentity, load_identity
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.transport.quic_connection import FIRST_WINDOW_LEN
from tests.attacks.floods import MIB, SERVED_S, memory_of
from tests.attacks.quic_client import (
    Bent,
    crypto_frame,
    initial,
    show,
    stream_frame,
)
from tests.attacks.strangers import STRANGERS, Minter, Stranger
from tests.attacks.target_server import ECHO, UPLOAD, TargetServer
from tests.helpers import SrvProcess, run_program, until, wait_until

#: Handshakes of the attacked server may take so long.
TIMEOUT_S: Final = 1.0


async def connected(address: str, who: LoadedIdentity, **more: object) -> Client:
    config = Config(
        address=parse_address(address),
        network="quic",
        **{"connect_timeout_s": 10, "call_timeout_s": 10, **more},  # type: ignore[arg-type]  # any of them
    )
    return await Client.connect(config, who)


async def serve_one(address: str, who: LoadedIdentity) -> float:
    """Connect and make a call, as good clients do; return how long it took."""
    began = time.monotonic()
    async with await connected(address, who) as client:
        reply = await client.call(ECHO_CALL_SERVICE, b"good")
        assert bytes(reply.payload).startswith(b"good")
        return time.monotonic() - began


class QuicTarget(TargetServer):
    """The server for attacks, over QUIC."""

    def __init__(self, certs: Path, served: Path, minter: Minter) -> None:
        limit = ("--handshake-timeout", f"{TIMEOUT_S:g}")
        super().__init__(certs, served, minter, "-q", *limit)
        self._who = load_identity(certs, "client", None)

    def check_it_serves(self) -> None:
        asyncio.run(serve_one(self.address, self._who))


@pytest.fixture(scope="module")
def running(
    certs: Path, minter: Minter, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[QuicTarget]:
    with QuicTarget(certs, tmp_path_factory.mktemp("attacked"), minter) as server:
        yield server
        assert server.srv.process.poll() is None
        assert "Traceback" not in server.srv.stderr()
        assert "Warning" not in server.srv.stderr()


@pytest.fixture
def bent(target: QuicTarget, client_identity: LoadedIdentity) -> Iterator[Bent]:
    with Bent(target.address, client_identity) as client:
        yield client


# Certificates.

#: What is said otherwise than over TLS, where OpenSSL looks as well. An aioquic client
#: shows no certificate for whose key there is no common kind of signature.
SAID_HERE: Final = {
    "another authority": "it was not signed by our certificate authority",
    "rsa key": "alert 116",
    "p-256 key": "alert 116",
}


def knock(client: Bent, stranger: Stranger | None) -> None:
    """Show certificates and ask for something with the last flight."""
    show(client.engine, stranger)
    client.early = ECHO + UPLOAD
    client.connect()
    client.run(lambda: client.engine.is_closed, 5)


@pytest.mark.parametrize("kind", STRANGERS)
def test_srv_refuses_a_client(
    kind: str, target: QuicTarget, bent: Bent, minter: Minter
) -> None:
    mint, reason = STRANGERS[kind]
    knock(bent, mint(minter))
    assert bent.early == b""  # it was sent
    assert bent.answer == b""
    assert bent.engine.error is not None
    assert SAID_HERE.get(kind, reason) in target.refusal(bent.local)


def test_srv_answers_the_same_client_with_a_good_certificate(
    target: QuicTarget, bent: Bent, minter: Minter
) -> None:
    show(bent.engine, minter.genuine())
    bent.early = ECHO
    bent.connect()
    bent.run(lambda: b"hello" in bent.answer)
    assert b"hello" in bent.answer
    assert "connected" in " ".join(target.lines_about(bent.local))


def test_srv_refuses_a_client_without_a_certificate(
    target: QuicTarget, bent: Bent
) -> None:
    knock(bent, None)
    assert bent.answer == b""
    assert "alert 116" in target.refusal(bent.local)  # certificate_required


def test_srv_refuses_a_stolen_certificate(
    target: QuicTarget, bent: Bent, minter: Minter
) -> None:
    knock(bent, Stranger([minter.known], Ed25519PrivateKey.generate()))
    assert bent.answer == b""
    assert "alert 51" in target.refusal(bent.local)  # decrypt_error


def test_a_ticket_opens_no_door(
    target: QuicTarget, bent: Bent, client_identity: LoadedIdentity
) -> None:
    """Neither resumption nor early data: who offers them has to show a certificate."""
    quic = bent.engine._quic
    now = tls.utcnow()
    quic._configuration.session_ticket = tls.SessionTicket(
        age_add=1,
        cipher_suite=tls.CipherSuite.CHACHA20_POLY1305_SHA256,
        not_valid_after=now.replace(year=now.year + 1),
        not_valid_before=now.replace(year=now.year - 1),
        resumption_secret=bytes(32),
        server_name="localhost",
        ticket=bytes(64),
        max_early_data_size=0xFFFFFFFF,
        other_extensions=[],
    )
    quic._remote_max_data = quic._remote_max_stream_data_bidi_remote = 1 << 20
    quic._remote_max_streams_bidi = 1
    bent.engine.send(memoryview(ECHO + UPLOAD))
    show(bent.engine, None)
    bent.connect()
    bent.run(lambda: bent.engine.is_closed, 5)
    assert not quic.tls.session_resumed
    assert not quic.tls.early_data_accepted
    assert bent.answer == b""
    assert "116" in target.refusal(bent.local)


@pytest.mark.parametrize("suite", ["AES_128_GCM_SHA256", "AES_256_GCM_SHA384"])
def test_other_suites_are_refused(target: QuicTarget, bent: Bent, suite: str) -> None:
    bent.engine._quic._configuration.cipher_suites = [tls.CipherSuite[suite]]
    bent.early = ECHO
    bent.connect()
    assert "alert 40" in str(bent.engine.error)  # handshake_failure
    assert bent.early == ECHO
    assert "connected" not in " ".join(target.lines_about(bent.local))


def test_an_empty_hello_is_refused(target: QuicTarget, bent: Bent) -> None:
    bent.send_raw(initial(crypto_frame(0, b"\x01\0\0\0"), destination_id=b"12345678"))
    answer = bent.take(5)
    assert answer is not None
    assert len(answer) < 200
    assert bent.take(0.2) is None
    assert "connected" not in " ".join(target.lines_about(bent.local))


def test_other_versions_are_told_of_ours_in_few_words(
    target: QuicTarget, bent: Bent
) -> None:
    data = bytearray(initial(b"\x01", destination_id=b"versions"))
    for version in (QuicProtocolVersion.VERSION_2, 0x1A2A3A4A):
        data[1:5] = version.to_bytes(4, "big")
        bent.send_raw(bytes(data))
        answer = bent.take(5)
        assert answer is not None
        assert answer[1:5] == bytes(4)  # version negotiation
        assert len(answer) < 60
    bent.send_raw(bytes(data[:1199]))  # too short to be answered
    assert bent.take(0.2) is None


# Handshakes that are none.


def test_first_packets_that_cannot_be_read_leave_nothing(
    target: QuicTarget, bent: Bent
) -> None:
    dice = random.Random(5)
    for _ in range(300):
        data = bytearray(initial(b"\x01", destination_id=dice.randbytes(8)))
        data[30:] = dice.randbytes(len(data) - 30)
        bent.send_raw(bytes(data))
    time_over = time.monotonic() + TIMEOUT_S + 0.2
    while time.monotonic() < time_over:
        target.check_it_serves()
    assert bent.take(0.1) is None or bent.got_len < bent.sent_len


def test_what_belongs_to_nobody_is_not_answered(target: QuicTarget, bent: Bent) -> None:
    dice = random.Random(6)
    for length in (0, 1, 19, 20, 21, 100, 1199, 1200, 1500, 9000, 65_000):
        for first in (0x00, 0x40, 0x7F):
            bent.send_raw(
                bytes([first]) * bool(length) + dice.randbytes(max(0, length - 1))
            )
        # 0-RTT, handshake and retry packets of no connection
        for first in (0xD0, 0xE0, 0xF0):
            bent.send_raw(
                bytes([first]) + b"\0\0\0\1\x08" + dice.randbytes(max(0, length))
                if length < 60_000
                else b""
            )
    assert bent.take(0.3) is None


def test_a_silent_half_handshake_gets_three_times_its_bytes_at_most(
    target: QuicTarget, bent: Bent
) -> None:
    """Counted at the socket, until long after the server has given up."""
    bent.engine.connect(bent.server, time.monotonic())
    bent.flush()
    hello_len = bent.sent_len
    end = time.monotonic() + TIMEOUT_S + 0.5
    while time.monotonic() < end:
        bent.take(0.05)
        # Few bytes that go to the same connection, and are worth nothing.
        bent.send_raw(b"\xc3\0\0\0\1\x14" + bent.engine._quic._peer_cid.cid + bytes(3))
    assert bent.got_len <= 3 * bent.sent_len
    assert bent.got_len <= 3 * hello_len + 3 * 29 * 60
    assert len(bent.sizes) >= 3  # a whole flight, some of it again, and a farewell


def test_the_rest_of_a_handshake_cannot_come_from_elsewhere(
    target: QuicTarget, bent: Bent
) -> None:
    """Who begins in the name of another address does not end in it."""
    with Bent(target.address, bent.engine._settings.identity, host="127.0.0.3") as spy:
        bent.engine.connect(bent.server, time.monotonic())
        bent.flush()
        while not bent.engine._quic.handshake_done:
            data = bent.take(5)
            assert data is not None
            bent.engine.receive(data, bent.server, time.monotonic())
        bent.engine.send(memoryview(ECHO))
        for data, _ in bent.engine.outgoing(time.monotonic()):
            spy.send_raw(data)
        assert spy.take(0.3) is None
    assert "connected" not in " ".join(target.lines_about(bent.local))
    assert target.lines_about(spy.local) == []


def test_a_retry_token_is_good_for_its_own_address(
    target: QuicTarget, bent: Bent, client_identity: LoadedIdentity
) -> None:
    """A server that is busy makes clients show that they receive."""
    dice = random.Random(7)
    with Bent(target.address, client_identity, host="127.0.0.4") as crowd:
        hello = _hello_of(client_identity)
        for _ in range(150):  # more than it takes unchecked
            crowd.send_raw(initial(hello, destination_id=dice.randbytes(8)))
        bent.engine.connect(bent.server, time.monotonic())
        bent.flush()
        retry = bent.take(5)
        assert retry is not None
        assert retry[0] & 0xF0 == 0xF0
        assert len(retry) < 300
        bent.engine.receive(retry, bent.server, time.monotonic())
        ((again, _),) = bent.engine.outgoing(time.monotonic())
        with Bent(target.address, client_identity, host="127.0.0.5") as thief:
            thief.send_raw(again)
            assert thief.take(0.2) is None
        # Garbage behind a good token is a failure of its address, unlike other garbage.
        bent.send_raw(again[:250] + bytes(len(again) - 250))
        said = target.refusal(bent.local)
        assert said == "its first packet cannot be read"
        bent.send_raw(again)
        bent.run(lambda: bent.engine.is_open)
        assert bent.engine.is_open


def _hello_of(who: LoadedIdentity) -> bytes:
    """Return the CRYPTO frame of a client's hello."""
    with Bent("127.0.0.1:9", who) as client:
        client.engine.connect(client.server, 0.0)
        sender = client.engine._quic._crypto_streams[Epoch.INITIAL].sender
        return crypto_frame(0, bytes(sender._buffer))


@pytest.mark.parametrize("kind", ["hellos", "garbage", "nothing in it", "replayed"])
def test_two_thousand_initials_from_nowhere(
    kind: str, target: QuicTarget, client_identity: LoadedIdentity
) -> None:
    """From 250 addresses, at ports where nobody listens any more."""
    dice = random.Random(kind)
    hello = _hello_of(client_identity)
    same = initial(hello, destination_id=dice.randbytes(20))
    before = memory_of(target.srv)
    where = parse_address(target.address)
    for number in range(2000):
        if kind == "replayed":
            data = same
        else:
            frames = b"\x01" if kind == "nothing in it" else hello
            data = initial(frames, destination_id=dice.randbytes(20))
        if kind == "garbage":
            data = data[:60] + dice.randbytes(len(data) - 60)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((f"127.0.1.{number % 250 + 1}", 0))
            sock.sendto(data, (where.host, where.port))
        if number == 1000:
            assert asyncio.run(serve_one(target.address, client_identity)) < SERVED_S
    took_s = [asyncio.run(serve_one(target.address, client_identity)) for _ in range(5)]
    assert max(took_s) < SERVED_S, took_s
    assert memory_of(target.srv) - before < 64 * MIB
    lines = [one for one in target._log()[target._seen :] if " 127.0.1." in one]
    assert len(lines) < 300


def test_a_connection_cannot_be_taken_over_by_its_ids(
    target: QuicTarget, bent: Bent, client_identity: LoadedIdentity
) -> None:
    bent.connect()
    assert bent.engine.is_open
    hello = _hello_of(client_identity)
    # The id by which the server knows the connection, and the one it began with.
    begun_with = bent.engine._quic.original_destination_connection_id
    for one in (bent.engine._quic._peer_cid.cid, begun_with):
        with Bent(target.address, client_identity, host="127.0.0.6") as other:
            other.send_raw(initial(hello, destination_id=one))
            assert other.take(0.2) is None
    bent.engine.send(memoryview(ECHO))
    bent.run(lambda: b"hello" in bent.answer)
    assert b"hello" in bent.answer


def test_forged_farewells_end_nothing(target: QuicTarget, bent: Bent) -> None:
    bent.connect()
    quic = bent.engine._quic
    dice = random.Random(8)
    with Bent(target.address, bent.engine._settings.identity) as other:
        for _ in range(50):
            other.send_raw(b"\x40" + quic._peer_cid.cid + dice.randbytes(40))
            reset = quic._host_cids[0].stateless_reset_token or dice.randbytes(16)
            other.send_raw(b"\x40" + quic._peer_cid.cid + dice.randbytes(20) + reset)
        close = b"\x1c" + bytes(4)
        begun_with = quic.original_destination_connection_id
        other.send_raw(initial(close, destination_id=begun_with, number=1000))
    bent.engine.send(memoryview(ECHO))
    bent.run(lambda: b"hello" in bent.answer)
    assert b"hello" in bent.answer


def test_failures_shut_out_their_own_address_alone(
    certs: Path, client_identity: LoadedIdentity
) -> None:
    """Only who has shown that it receives there can fail in the name of an address."""
    options = ("-q", "--max-failures", "3", "--handshake-timeout", "0.2")
    broken = crypto_frame(0, b"\x01\0\0\0")
    dice = random.Random(9)
    with SrvProcess(*options, certs=certs) as srv:
        with Bent(srv.address, client_identity) as spoofer:
            for _ in range(50):
                spoofer.send_raw(initial(broken, destination_id=dice.randbytes(8)))
            wait_until(lambda: "TLS handshake failed" in srv.stderr())
        assert asyncio.run(serve_one(srv.address, client_identity)) < SERVED_S
        for _ in range(4):
            with Bent(srv.address, client_identity, host="127.0.0.7") as stranger:
                show(stranger.engine, None)
                stranger.connect(2)
        srv.wait_for("too many failed handshakes from its address")
        with Bent(srv.address, client_identity, host="127.0.0.9") as other:
            other.connect()
            assert other.engine.is_open


# Who may come in, and for how long.


def test_denied_keys_are_cut_within_a_second(
    certs: Path, client_identity: LoadedIdentity, tmp_path: Path
) -> None:
    (tmp_path / "known").touch()
    options = ("-q", "--known-keys", tmp_path / "known")
    with (
        SrvProcess(*options, certs=certs) as srv,
        Bent(srv.address, client_identity) as client,
    ):
        client.connect()
        client.engine.send(memoryview(ECHO))
        client.run(lambda: client.answer)
        words = ("known", "deny", certs / "client.crt")
        run = run_program("rpc25519", *words, "--file", tmp_path / "known")
        assert run.returncode == 0, run.stderr
        began = time.monotonic()
        client.run(lambda: client.engine.is_closed, 5)
        assert client.engine.is_closed
        assert time.monotonic() - began < 1.5


def test_limits_hold(certs: Path, client_identity: LoadedIdentity) -> None:
    options = ("-q", "--max-connections-per-address", "2", "--max-failures", "2")

    async def scenario(address: str) -> None:
        first = await connected(address, client_identity)
        second = await connected(address, client_identity)
        with pytest.raises(Rpc25519Error):
            await connected(address, client_identity, connect_timeout_s=1)
        await first.aclose()
        await second.aclose()

    with SrvProcess(*options, certs=certs) as srv:
        began = time.monotonic()
        asyncio.run(scenario(srv.address))
        srv.wait_for("too many connections from its address")
        assert time.monotonic() - began < 15


def test_without_verification_anybody_comes_in_and_srv_says_so(
    certs: Path, client_identity: LoadedIdentity
) -> None:
    with (
        SrvProcess("-q", "-skip-verify", certs=certs) as srv,
        Bent(srv.address, client_identity) as nobody,
    ):
        show(nobody.engine, None)
        nobody.early = ECHO
        nobody.connect()
        nobody.run(lambda: b"hello" in nobody.answer)
        assert b"hello" in nobody.answer
        assert "-skip-verify" in srv.stderr()


def test_a_tunnel_needs_its_key(
    certs: Path, client_identity: LoadedIdentity, psk_path: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_bytes(bytes(range(32)))

    async def served(address: str, key: Path | None) -> bool:
        path = None if key is None else str(key)
        try:
            client = await connected(
                address, client_identity, pre_shared_key_path=path, call_timeout_s=2
            )
            async with client:
                reply = await client.call(ECHO_CALL_SERVICE, b"good")
        except Rpc25519Error:
            return False
        return bytes(reply.payload).startswith(b"good")

    with SrvProcess("-q", "-psk", psk_path, certs=certs) as srv:
        assert asyncio.run(served(srv.address, psk_path))
        assert not asyncio.run(served(srv.address, wrong))
        assert not asyncio.run(served(srv.address, None))
        assert asyncio.run(served(srv.address, psk_path))


def test_gaps_of_many_clients_do_not_fill_the_memory(
    certs: Path, client_identity: LoadedIdentity
) -> None:
    """Each sends the last byte of its window, and no other."""
    with SrvProcess("-q", certs=certs) as srv, contextlib.ExitStack() as stack:
        before = memory_of(srv)
        clients = []
        for _ in range(250):
            client = stack.enter_context(Bent(srv.address, client_identity))
            client.connect().send(stream_frame(FIRST_WINDOW_LEN - 1, b"x"))
            clients.append(client)
        oldest, newest = clients[0], clients[-1]
        oldest.run(lambda: oldest.engine.is_closed)
        assert oldest.engine.is_closed
        newest.run(lambda: False, 0.1)
        assert not newest.engine.is_closed
        assert asyncio.run(serve_one(srv.address, client_identity)) < SERVED_S
        assert memory_of(srv) - before < 120 * MIB  # of 155 that they ask for


# Pushes.


async def test_a_push_reaches_nobody_else_on_the_same_port(
    certs: Path, client_identity: LoadedIdentity
) -> None:
    """Clients of one process share a UDP port, and so have the same address."""
    seen: dict[str, CallContext] = {}

    async def hello(context: CallContext) -> bytes:
        seen[bytes(context.payload).decode()] = context
        return b""

    registry = Registry()
    registry.add_call("hello", hello)
    config = Config(
        address=parse_address("127.0.0.1:0"),
        network="quic",
        certs_dir=str(certs),
        key_name="node",
    )
    async with Server(config, registry) as server:
        local = parse_address(server.address)
        clients = {
            name: await connected(server.address, client_identity, local_address=local)
            for name in ("one", "two")
        }
        async with clients["one"], clients["two"]:
            listeners = [client.listen() for client in clients.values()]
            for name, client in clients.items():
                await client.call("hello", name.encode())
            address = seen["one"].remote_address
            assert seen["two"].remote_address == address
            with pytest.raises(NotConnectedError, match="2 clients are connected"):
                await server.push(address, "news")
            with pytest.raises(NotConnectedError, match="2 clients are connected"):
                server.disconnect(address)
            ours = seen["two"].client
            assert ours is not None
            server.disconnect(ours)
            await until(lambda: len(server.clients) == 1)
            await server.push(address, "news", b"for one")
            with pytest.raises(NotConnectedError):
                await server.push(ours, "news", b"for two")
            async with asyncio.timeout(5):
                assert bytes((await anext(listeners[0])).payload) == b"for one"
                with pytest.raises(ConnectionLostError):
                    await anext(listeners[1])
