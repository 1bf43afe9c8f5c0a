"""The handshake of the tunnel: recorded bytes both ways, and every kind of damage."""

import hmac
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.errors import HandshakeError, KeyFileError
from rpc25519_tools.identity.certificate import raw_public_key
from rpc25519_tools.wire import greenpack
from rpc25519_tools.wire.constants import MAGIC
from rpc25519_tools.wire.handshake import (
    CONFIRMATION_LEN,
    MAX_CERTIFICATE_LEN,
    MAX_MESSAGE_LEN,
    PREFIX_LEN,
    TAG_LEN,
    Handshake,
    check_certificate_fits,
    check_signature,
    decode_handshake,
    encode_handshake,
    rest_len,
)
from tests.identity.samples import golden_certificate, golden_key
from tests.wire.psk_vectors import EXCHANGES, exchange, sample_handshake, vectors

ENCODINGS = vectors("handshake-encodings")
CASES = list(zip(ENCODINGS["cases"], ENCODINGS["nanoseconds"], strict=True))


def decode(wire: bytes) -> Handshake:
    prefix, rest = wire[:PREFIX_LEN], wire[PREFIX_LEN:]
    assert rest_len(prefix) == len(rest)
    return decode_handshake(prefix, rest)


def framed(body: bytes) -> bytes:
    """Put a right length and a right tag round a body."""
    prefix = len(body).to_bytes(PREFIX_LEN, "big")
    return prefix + body + hmac.digest(prefix, body, "sha256")


@pytest.mark.parametrize("number", range(len(CASES)))
def test_recorded_bodies_both_ways(number: int) -> None:
    case, nanoseconds = CASES[number]
    ns = case["unix_seconds"] * 10**9 + nanoseconds
    expected = Handshake(
        ephemeral=bytes.fromhex(ENCODINGS["ephemeral_hex"]),
        signature=bytes.fromhex(ENCODINGS["signature_hex"]),
        certificate_der=bytes.fromhex(ENCODINGS["cert_hex"]),
        sent_at_ns=None if case["go_zero_time"] else ns,
    )
    body = bytes.fromhex(case["body_hex"])
    assert encode_handshake(expected) == framed(body)
    assert decode(framed(body)) == expected


@pytest.mark.parametrize("sizes", ENCODINGS["sizes"])
def test_lengths_as_recorded(sizes: dict[str, int]) -> None:
    handshake = sample_handshake(cert_len=sizes["cert_len"])
    if sizes["total_len"] > MAX_MESSAGE_LEN:
        with pytest.raises(KeyFileError, match="at most 641"):
            encode_handshake(handshake)
    else:
        wire = encode_handshake(handshake)
        assert len(wire) == sizes["total_len"]
        assert rest_len(wire[:8]) == sizes["body_len"] + TAG_LEN


def test_the_longest_certificate_fits_exactly() -> None:
    check_certificate_fits(bytes(MAX_CERTIFICATE_LEN))
    wire = encode_handshake(sample_handshake(cert_len=MAX_CERTIFICATE_LEN))
    assert len(wire) == MAX_MESSAGE_LEN
    with pytest.raises(KeyFileError, match="642 bytes"):
        check_certificate_fits(bytes(MAX_CERTIFICATE_LEN + 1))


@pytest.mark.parametrize("codec", EXCHANGES)
@pytest.mark.parametrize(("role", "name"), [("client", "client"), ("server", "node")])
def test_recorded_messages_both_ways(codec: str, role: str, name: str) -> None:
    recorded = exchange(codec)
    wire = bytes.fromhex(recorded[f"{role}_handshake"]["wire_hex"])
    decoded = decode(wire)
    certificate = golden_certificate(name)
    public_hex = recorded[f"{role}_ephemeral_public_hex"]
    assert decoded.ephemeral.hex() == public_hex
    check_signature(decoded, raw_public_key(certificate))
    ours = replace(decoded, signature=golden_key(name).sign(decoded.ephemeral))
    assert encode_handshake(ours) == wire


@given(
    st.builds(
        Handshake,
        ephemeral=st.binary(min_size=32, max_size=32).filter(any),
        signature=st.binary(min_size=64, max_size=64),
        certificate_der=st.binary(min_size=1, max_size=500),
        sent_at_ns=st.none() | st.integers(-(10**18), 10**19),
        confirmation=st.just(b"") | st.binary(min_size=32, max_size=32),
    )
)
def test_what_is_encoded_decodes_to_the_same(handshake: Handshake) -> None:
    assert decode(encode_handshake(handshake)) == handshake


def test_a_proof_that_does_not_fit_is_left_out() -> None:
    proof = b"p" * CONFIRMATION_LEN
    lengths = {}
    for cert_len in range(570, MAX_CERTIFICATE_LEN + 1):
        handshake = sample_handshake(cert_len=cert_len, confirmation=proof)
        wire = encode_handshake(handshake)
        assert len(wire) <= MAX_MESSAGE_LEN
        lengths[decode(wire).confirmation] = len(wire)
    assert set(lengths) == {proof, b""}
    assert lengths[proof] == MAX_MESSAGE_LEN  # the last one with a proof filled it


def test_keys_come_in_any_order_and_unknown_ones_are_skipped() -> None:
    expected = sample_handshake()
    pairs = [
        ("Later_zid77_str", greenpack.pack_str("x")),
        ("SigningCert_zid02_bin", b"\xc5\x01\xf4" + expected.certificate_der),
        ("SignatureOfEphem_zid01_bin", b"\xc4\x40" + expected.signature),
        ("EphemPubKey_zid00_bin", b"\xc4\x20" + expected.ephemeral),
    ]
    body = b"\x84" + b"".join(greenpack.pack_str(key) + value for key, value in pairs)
    assert decode(framed(body)) == replace(expected, sent_at_ns=None)


@given(st.data())
def test_every_changed_bit_is_noticed(data: st.DataObject) -> None:
    wire = bytearray(encode_handshake(sample_handshake()))
    bit = data.draw(st.integers(0, 8 * len(wire) - 1))
    wire[bit // 8] ^= 1 << bit % 8
    prefix, rest = bytes(wire[:PREFIX_LEN]), bytes(wire[PREFIX_LEN:])
    try:
        announced = rest_len(prefix)
    except HandshakeError:
        assert bit // 8 < PREFIX_LEN
        return
    with pytest.raises(HandshakeError):
        decode_handshake(prefix, rest.ljust(announced, b"\0")[:announced])


@pytest.mark.parametrize("length", [915, 1 << 32, (1 << 64) - 1])
def test_long_claims_are_refused(length: int) -> None:
    with pytest.raises(HandshakeError, match="no pre-shared-key handshake"):
        rest_len(length.to_bytes(8, "big"))


def test_a_peer_without_tunnel_is_recognised() -> None:
    with pytest.raises(HandshakeError, match="does not use a pre-shared key"):
        rest_len(MAGIC + b"\x01")
    with pytest.raises(HandshakeError, match="refused our"):
        rest_len(bytes(8))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ephemeral": bytes(32)}, "all zero"),
        ({"ephemeral": b"short"}, "EphemPubKey_zid00_bin .* not 32 bytes"),
        ({"ephemeral": b""}, "EphemPubKey_zid00_bin .* not 32 bytes"),
        ({"signature": b"s" * 63}, "SignatureOfEphem_zid01_bin .* not 64 bytes"),
        ({"certificate_der": b""}, "no certificate"),
    ],
)
def test_wrong_fields_are_refused(change: dict[str, bytes], reason: str) -> None:
    wire = encode_handshake(replace(sample_handshake(), **change))  # type: ignore[arg-type]  # all are bytes
    with pytest.raises(HandshakeError, match=reason):
        decode(wire)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x91\x01",
        b"\x80",
        b"\xdf\xff\xff\xff\xff",
        b"\x81",
        b"\x81\x93\x01\x02\x03\x01",
        b"\x81" + greenpack.pack_str("SenderSentAt_zid03_tim") + b"\x01",
    ],
)
def test_bodies_that_are_no_handshake_are_refused(body: bytes) -> None:
    with pytest.raises(HandshakeError):
        decode(framed(body))


def test_a_proof_must_be_binary() -> None:
    whole = encode_handshake(sample_handshake())[PREFIX_LEN:-TAG_LEN]
    body = b"\x86" + whole[1:] + greenpack.pack_str("KeyProof_zid04_bin") + b"\x01"
    with pytest.raises(HandshakeError, match="not binary"):
        decode(framed(body))


def test_a_signature_by_another_key_is_refused() -> None:
    wire = bytes.fromhex(exchange("s2")["client_handshake"]["wire_hex"])
    decoded = decode(wire)
    with pytest.raises(HandshakeError, match="signature"):
        check_signature(decoded, raw_public_key(golden_certificate("node")))
    with pytest.raises(HandshakeError, match="signature"):
        check_signature(
            replace(decoded, ephemeral=decoded.ephemeral[::-1]),
            raw_public_key(golden_certificate("client")),
        )
