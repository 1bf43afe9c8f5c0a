"""Fuzz targets of the pre-shared-key tunnel: each takes bytes, and nothing but this
package's own errors may come out of it.
"""

import hmac
from typing import Final

from rpc25519_tools.errors import (
    HandshakeError,
    KeyFileError,
    ProtocolError,
    Rpc25519Error,
    SecurityError,
)
from rpc25519_tools.identity.certificate import parse_certificate, peer_identity
from rpc25519_tools.wire.constants import MAGIC
from rpc25519_tools.wire.handshake import (
    PREFIX_LEN,
    TAG_LEN,
    check_signature,
    decode_handshake,
    encode_handshake,
    rest_len,
)
from rpc25519_tools.wire.tunnel import Opener, Sealer
from tests.wire.psk_vectors import exchange, sample_handshake

KEY: Final = bytes(range(32))
_CLIENT_NONCE: Final = bytes(12)
_SCRATCH: Final = bytearray(64 * 1024)


def handshake_message(data: bytes) -> None:
    """Read a whole handshake as it came, prefix and tag included."""
    if len(data) < PREFIX_LEN:
        return
    try:
        needed = rest_len(data[:PREFIX_LEN])
        assert 32 < needed <= 914 + 32
        decode_handshake(data[:PREFIX_LEN], data[PREFIX_LEN : PREFIX_LEN + needed])
    except HandshakeError:
        pass


def handshake_body(data: bytes) -> None:
    """Read a body whose prefix and tag are right, and judge what it holds."""
    prefix = len(data).to_bytes(PREFIX_LEN, "big")
    tag = hmac.digest(prefix, data, "sha256")
    try:
        theirs = decode_handshake(prefix, data + tag)
        peer = peer_identity(parse_certificate(theirs.certificate_der))
        check_signature(theirs, peer.public_key)
    except (HandshakeError, KeyFileError):
        pass


def envelopes(data: bytes) -> None:
    """Feed a byte stream, cut by its own first byte; nothing of it can open."""
    opener = Opener(KEY, "client", _SCRATCH)
    step = 1 + (data[0] if data else 0)
    try:
        for start in range(0, len(data), step):
            for _ in opener.receive_data(data[start : start + step]):
                raise AssertionError("bytes without the key have opened")
    except (ProtocolError, SecurityError):
        pass


def sealed_plaintext(data: bytes) -> None:
    """Open an authentic envelope with any plaintext, as a peer with the key sends."""
    stream = b"".join(map(bytes, Sealer(KEY, _CLIENT_NONCE).seal([data])))
    try:
        found = list(Opener(KEY, "client", _SCRATCH).receive_data(stream))
    except Rpc25519Error:
        pass
    else:
        assert found == [data]


def altered_envelopes(data: bytes) -> None:
    """Change two authentic envelopes: 3 bytes each say where and how."""
    sealer = Sealer(KEY, _CLIENT_NONCE)
    plain = bytes.fromhex("b35d1839ac8e1d00") + b"body" * 20
    stream = bytearray(
        b"".join(map(bytes, sealer.seal([plain]) + sealer.seal([plain])))
    )
    for start in range(0, len(data) - 2, 3):
        at = int.from_bytes(data[start : start + 2], "big") % len(stream)
        stream[at] ^= data[start + 2]
    try:
        for found in Opener(KEY, "client", _SCRATCH).receive_data(bytes(stream)):
            assert found == plain
    except (ProtocolError, SecurityError):
        pass


#: Recorded and made handshakes, whole and their bodies alone, and a frame's beginning.
_RECORDED = bytes.fromhex(exchange("s2")["client_handshake"]["wire_hex"])
SEEDS: Final = (
    b"",
    MAGIC + b"\x01",
    _RECORDED,
    _RECORDED[PREFIX_LEN:-TAG_LEN],
    encode_handshake(sample_handshake()),
)
