"""Clients that offer, or send, anything but what the server speaks.

Each is refused with one line in the log, and the server goes on; the fixture makes a
call as a good client after every test.
"""

import contextlib
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from rpc25519_tools.config import parse_address
from tests.attacks.strangers import Minter
from tests.attacks.target_server import ECHO, UPLOAD, TargetServer, echoed
from tests.attacks.tls13 import (
    AES_128,
    AES_256,
    ALERT,
    CHACHA20,
    DATA,
    HANDSHAKE,
    P_256,
    TIMEOUT_S,
    X25519,
    AlertError,
    Handmade,
    client_hello,
    extension,
    extensions_of,
    is_retry,
    message,
    numbers,
    record,
    vector,
)
from tests.helpers import wait_until

HANDSHAKE_FAILURE, PROTOCOL_VERSION, UNEXPECTED_MESSAGE = 40, 70, 10
CHACHA20_TLS_1_2 = 0xCCA9
SSLV2_HELLO = bytes.fromhex("802e 01 0002 0015 0000 0010") + bytes(21) + b"c" * 16


def offered(target: TargetServer, hello: Callable[[bytes], bytes]) -> tuple[int, str]:
    """Send one ClientHello; return the alert that it meets and what the log says."""
    with Handmade(target.address) as client:
        client.send_message(hello(client.share))
        alert = client.fate()
        assert isinstance(alert, int)
        return alert, target.refusal(client.local)


@pytest.mark.parametrize(
    "suites", [(AES_128,), (AES_256,), (AES_128, AES_256, 0x1304, 0x1305), (0x1A1A,)]
)
def test_other_suites_only(target: TargetServer, suites: Sequence[int]) -> None:
    alert, line = offered(
        target, lambda share: client_hello(share=share, suites=suites)
    )
    assert alert == HANDSHAKE_FAILURE
    assert line == "TLS handshake failed: no shared cipher"


@pytest.mark.parametrize(
    "versions",
    [(), (0x0303,), (0x0302,), (0x0301, 0x0300), (0x7F1C,), (0x0305,)],
    ids=["none", "1.2", "1.1", "1.0 and SSL 3", "draft", "from the future"],
)
def test_other_versions_only(target: TargetServer, versions: Sequence[int]) -> None:
    suites = (CHACHA20, CHACHA20_TLS_1_2)
    alert, line = offered(
        target,
        lambda share: client_hello(share=share, versions=versions, suites=suites),
    )
    assert alert == PROTOCOL_VERSION
    assert line == "TLS handshake failed: unsupported protocol"


def test_an_older_version_beside_ours_is_not_chosen(
    target: TargetServer, minter: Minter
) -> None:
    good = minter.genuine()
    assert isinstance(good.key, Ed25519PrivateKey)
    with Handmade(target.address) as client:
        hello = client_hello(
            share=client.share,
            versions=(0x0303, 0x0302, 0x0304),
            suites=(AES_128, CHACHA20_TLS_1_2, AES_256, CHACHA20),
        )
        answer = client.say_hello(hello)
        assert extensions_of(answer)[43] == b"\x03\x04"
        assert answer[39 + answer[38] :][:2] == struct.pack(">H", CHACHA20)
        client.agree(answer)
        client.take_flight()
        client.prove(good.ders, good.key)
        assert b"hello" in echoed(client)


#: What OpenSSL 3.5 and later accept by themselves, older ones in part.
GROUPS = {
    0x11EC: "X25519MLKEM768",
    X25519: "X25519",
    P_256: "P-256",
    0x1E: "X448",
    0x18: "P-384",
    0x19: "P-521",
    0x100: "ffdhe2048",
    0x101: "ffdhe3072",
    0x11EB: "SecP256r1MLKEM768",
    0x29: "curveSM2",
    0x11EE: "curveSM2MLKEM768",
}
#: Go's draft of Kyber, GREASE (RFC 8701), private use; and all numbers around ours.
OTHER_GROUPS = (0x6399, 0x0A0A, 0xFE00, 0xFF01, *range(1, 0x30), *range(0x11E8, 0x11F2))


def asked_for(target: TargetServer, group: int) -> int | None:
    """Offer one group without a share; return which one the server asks for."""
    with Handmade(target.address) as client:
        client.send_message(client_hello(share=None, groups=(group,)))
        try:
            answer = client.receive_message()
        except AlertError:
            target.refusal(client.local)
            return None
        assert is_retry(answer)
        return int.from_bytes(extensions_of(answer)[51], "big")


def test_groups_are_the_documented_ones(target: TargetServer) -> None:
    found = {group: asked_for(target, group) for group in (*GROUPS, *OTHER_GROUPS)}
    accepted = {group for group, answer in found.items() if answer is not None}
    assert X25519 in accepted
    assert accepted <= set(GROUPS)
    assert all(answer in (None, group) for group, answer in found.items())
    table = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    assert all(name in table for name in GROUPS.values())


def test_other_groups_only(target: TargetServer) -> None:
    alert, line = offered(target, lambda _: client_hello(share=None, groups=(0x6399,)))
    assert alert == HANDSHAKE_FAILURE
    assert line.startswith("TLS handshake failed: no suitable")


# Sessions, early data.


def test_a_session_is_not_resumed_and_early_data_not_read(
    target: TargetServer, minter: Minter
) -> None:
    """Whoever resumes a session that was has to prove again who it is."""
    good = minter.genuine()
    assert isinstance(good.key, Ed25519PrivateKey)
    with Handmade(target.address) as first, Handmade(target.address) as client:
        first.shake_hands(good.ders, good.key)
        assert b"hello" in echoed(first)
        # OpenSSL gives tickets out, for sessions that it does not keep.
        assert first.tickets
        client.send_message(first.resuming_hello(client.share))
        client.send_raw(record(DATA, UPLOAD + bytes(16)))
        answer = client.receive_message()
        assert 41 not in extensions_of(answer)
        client.agree(answer)
        flight = client.take_flight()
        assert extensions_of_encrypted(flight[0]).isdisjoint({41, 42})
        assert [one[0] for one in flight] == FULL_FLIGHT
        assert target.lines_about(client.local) == []
        client.prove([], good.key)
        assert client.fate() == 116  # certificate_required
        assert target.refusal(client.local) == "the client sent no certificate"


#: EncryptedExtensions, CertificateRequest, Certificate, CertificateVerify, Finished.
FULL_FLIGHT = [8, 13, 11, 15, 20]


def extensions_of_encrypted(encrypted_extensions: bytes) -> set[int]:
    """Return the kinds of extensions in an EncryptedExtensions message."""
    at, kinds = 6, set()
    while at < len(encrypted_extensions):
        kind, length = struct.unpack(">HH", encrypted_extensions[at : at + 4])
        kinds.add(kind)
        at += 4 + length
    return kinds


def test_a_certificate_is_asked_for(target: TargetServer, minter: Minter) -> None:
    good = minter.genuine()
    assert isinstance(good.key, Ed25519PrivateKey)
    with Handmade(target.address) as client:
        flight = client.shake_hands(good.ders, good.key)
        assert [one[0] for one in flight] == FULL_FLIGHT
        assert b"hello" in echoed(client)


# After the handshake.


@pytest.fixture
def inside(target: TargetServer, minter: Minter) -> "Callable[[], Handmade]":
    """Opens connections as a good client."""

    def connect() -> Handmade:
        good = minter.genuine()
        assert isinstance(good.key, Ed25519PrivateKey)
        client = Handmade(target.address)
        client.shake_hands(good.ders, good.key)
        assert b"hello" in echoed(client)
        return client

    return connect


def ends(target: TargetServer, client: Handmade) -> str:
    """Wait until the log tells of the end of a connection; return why."""

    def last() -> str:
        return ([*target.lines_about(client.local), ""])[-2]

    wait_until(lambda: "disconnected" in last(), what=lambda: f"an end after {last()}")
    return last().partition("disconnected: ")[2]


@pytest.mark.parametrize("kind", [1, 0, 2, 11, 20, 99], ids=lambda kind: f"type {kind}")
def test_handshake_messages_after_the_handshake(
    target: TargetServer, inside: "Callable[[], Handmade]", kind: int
) -> None:
    """TLS 1.3 knows no renegotiation: a second ClientHello ends the connection."""
    with inside() as client:
        hello = client_hello(share=client.share)
        client.send(HANDSHAKE, hello if kind == 1 else message(kind, bytes(8)))
        assert client.fate() in ("closed", UNEXPECTED_MESSAGE)
        assert "TLS error" in ends(target, client)


def test_a_storm_of_key_updates_is_followed(
    inside: "Callable[[], Handmade]",
) -> None:
    with inside() as client:
        for number in range(2000):
            client.update_keys(ask=False)
            if number % 500 == 0:
                assert b"hello" in echoed(client)
        assert b"hello" in echoed(client)


def test_a_storm_of_key_updates_that_want_an_answer(
    inside: "Callable[[], Handmade]",
) -> None:
    """Nothing is read meanwhile; the server need not answer each of them."""
    with inside() as client:
        for _ in range(2000):
            client.update_keys(ask=True)
        assert b"hello" in echoed(client)


def test_a_malformed_key_update(
    target: TargetServer, inside: "Callable[[], Handmade]"
) -> None:
    with inside() as client:
        client.send(HANDSHAKE, message(24, b"\7"))
        assert client.fate() in ("closed", 47)  # illegal_parameter
        assert "TLS error" in ends(target, client)


def test_records_that_cannot_be_decrypted(
    target: TargetServer, inside: "Callable[[], Handmade]"
) -> None:
    with inside() as client:
        client.send_raw(record(DATA, bytes(100)))
        assert client.fate() in ("closed", 20)  # bad_record_mac
        assert "TLS error" in ends(target, client)


def test_a_flood_of_empty_records(
    target: TargetServer, inside: "Callable[[], Handmade]"
) -> None:
    with inside() as client:
        assert client._writing is not None
        client.send_raw(b"".join(client._writing.seal(DATA, b"") for _ in range(1000)))
        assert client.fate() in ("closed", UNEXPECTED_MESSAGE)
        assert "TLS error: record too small" in ends(target, client)


# What is no handshake.


def first_bytes(target: TargetServer, data: bytes) -> tuple[str, bytes]:
    """Send bytes to the server and hang up; return its line and what it answered."""
    where = parse_address(target.address)
    with socket.create_connection((where.host, where.port), TIMEOUT_S) as plain:
        host, port = plain.getsockname()
        answer = b""
        try:
            plain.sendall(data)
            with contextlib.suppress(OSError):  # it has been reset already
                plain.shutdown(socket.SHUT_WR)
            while piece := plain.recv(65_536):
                answer += piece
        except ConnectionError:
            pass  # what it had not read of ours is lost, and the answer with it
    return target.refusal(f"{host}:{port}"), answer


NO_TLS = "the client does not speak TLS (give -tcp for plain TCP)"
CLOSED = "the client closed the connection during the TLS handshake"
GONE = "the client hung up without TLS handshake"
FAILED = "TLS handshake failed: "
HELLO = client_hello(share=bytes(range(1, 33)))

FIRST_BYTES = {
    "http": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", NO_TLS),
    "http post": (b"POST / HTTP/1.1\r\n\r\n", NO_TLS),
    "proxy": (b"CONNECT a:443 HTTP/1.1\r\n\r\n", NO_TLS),
    "ssh": (b"SSH-2.0-OpenSSH_9.2\r\n", NO_TLS),
    "our frames": (ECHO, NO_TLS),
    "zeros": (bytes(5000), NO_TLS),
    "noise": (bytes(range(255, 0, -1)) * 40, NO_TLS),
    "ssl 2": (SSLV2_HELLO, ""),
    "nothing": (b"", GONE),
    "half a header": (b"\x16\x03\x01", CLOSED),
    "half a hello": (record(HANDSHAKE, HELLO)[:100], CLOSED),
    "an alert first": (record(ALERT, b"\2\x28"), ""),
    "a warning flood": (record(ALERT, b"\1\x5a") * 500, ""),
    "data first": (record(DATA, bytes(50)), ""),
    "ccs flood": (record(20, b"\1") * 1000 + record(HANDSHAKE, HELLO), ""),
    "empty records": (record(HANDSHAKE, b"") * 1000, ""),
    "unknown record": (record(99, bytes(50)), ""),
    "heartbeat": (record(24, b"\1\x40\0" + bytes(16)), ""),
    "a server's hello": (record(HANDSHAKE, message(2, bytes(60))), FAILED),
    "finished first": (record(HANDSHAKE, message(20, bytes(32))), FAILED),
    "oversized record": (b"\x16\x03\x01\xff\xff" + bytes(65_535), ""),
    "oversized hello": (record(HANDSHAKE, b"\1\xff\xff\xff" + bytes(16_000)), FAILED),
    "endless hello": (
        record(HANDSHAKE, b"\1\x01\x00\x00" + bytes(16_000))
        + record(HANDSHAKE, bytes(16_000)) * 8,
        "",
    ),
    "broken lengths": (
        record(HANDSHAKE, message(1, HELLO[4:60] + b"\xff" * 90)),
        FAILED,
    ),
    "no extensions": (
        record(HANDSHAKE, message(1, b"\3\3" + bytes(33) + b"\0\2\x13\3\1\0")),
        FAILED,
    ),
    "a share of zeros": (record(HANDSHAKE, client_hello(share=bytes(32))), FAILED),
    "a short share": (record(HANDSHAKE, client_hello(share=b"short")), FAILED),
    "compression": (
        record(HANDSHAKE, client_hello(share=bytes(range(32)), compression=b"\1\0")),
        FAILED,
    ),
    "twice the same extension": (
        record(
            HANDSHAKE,
            client_hello(
                share=bytes(range(1, 33)),
                more=extension(10, vector(2, numbers((X25519,)))),
            ),
        ),
        FAILED,
    ),
}


@pytest.mark.parametrize("kind", FIRST_BYTES)
def test_what_is_no_handshake(target: TargetServer, kind: str) -> None:
    data, text = FIRST_BYTES[kind]
    line, answer = first_bytes(target, data)
    assert text in line
    # At most an alert, or the start of a handshake that leads nowhere.
    assert len(answer) < 2500
    assert not answer or answer[0] in (ALERT, HANDSHAKE), answer


@pytest.mark.parametrize("cut_len", [1, 7, 100])
def test_a_hello_in_pieces_is_put_together(
    target: TargetServer, minter: Minter, cut_len: int
) -> None:
    good = minter.genuine()
    assert isinstance(good.key, Ed25519PrivateKey)
    with Handmade(target.address, cut_len=cut_len) as client:
        client.shake_hands(good.ders, good.key)
        assert b"hello" in echoed(client)


def test_a_second_hello_in_the_handshake(target: TargetServer) -> None:
    with Handmade(target.address) as client:
        client.say_hello()
        client.send(HANDSHAKE, client_hello(share=client.share))
        client.end()
        assert target.refusal(client.local).startswith(FAILED)


def test_a_long_hello_that_is_never_whole_takes_no_memory(
    target: TargetServer,
) -> None:
    """OpenSSL alone would wait for the rest of 64 KiB."""
    with Handmade(target.address) as client:
        client.send_raw(record(HANDSHAKE, b"\1\1\0\0" + bytes(16_000)))
        with contextlib.suppress(ConnectionError):
            client.send_raw(record(HANDSHAKE, bytes(16_000)) * 2)
        line = target.refusal(client.local)
        assert line == "the client's handshake has more than 32768 bytes"


@pytest.mark.parametrize("version", [1, 8])
def test_a_certificate_of_another_version(
    target: TargetServer, minter: Minter, version: int
) -> None:
    """OpenSSL takes it, and the other library that looks at it does not."""
    good = minter.genuine()
    assert isinstance(good.key, Ed25519PrivateKey)
    (der,) = good.ders
    odd = der.replace(b"\xa0\3\2\1\2", bytes((0xA0, 3, 2, 1, version)), 1)
    with Handmade(target.address) as client:
        client.shake_hands([odd], good.key)
        assert isinstance(client.fate(), int)
        assert target.refusal(client.local) == "the certificate cannot be read"
    assert "call failed" not in target.srv.stderr()


def test_long_certificates_are_refused(target: TargetServer, minter: Minter) -> None:
    """A chain of 200 kB, in a handshake that is in order otherwise."""
    good = minter.genuine()
    assert isinstance(good.key, Ed25519PrivateKey)
    with Handmade(target.address) as client:
        client.shake_hands(
            good.ders + [minter.ca.public_bytes(Encoding.DER)] * 400, good.key
        )
        assert isinstance(client.fate(), int)
        assert target.refusal(client.local).startswith(FAILED)
