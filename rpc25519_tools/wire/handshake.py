"""The handshake that opens a pre-shared-key tunnel: one message each way.

The client speaks first, the server answers. A message is a big-endian 64-bit length, a
greenpack map of that length, and an HMAC-SHA256 of the map whose key is the eight bytes
of the length. That key is public: the code detects damage and proves nothing.

What proves the sender is the signature of the fresh X25519 key by the Ed25519 key of
its certificate. Whether that certificate is to be believed is decided elsewhere
(``identity.certificate``). The time in the message is not compared with anything.

Our servers add one field, which Go peers skip: a proof that the server has the same
pre-shared key (``tunnel.confirmation``). A client that finds it right knows the key to
be right before it sends anything, and that the server is one of ours; one that finds
it wrong can say so at once. It is left out where it would not fit.

Source: SECURITY-WIRE.md 7.2; vector ``handshake-encodings.json``.
"""

import hmac
import struct
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from rpc25519_tools.errors import DecodeError, HandshakeError, KeyFileError
from rpc25519_tools.wire.constants import MAGIC
from rpc25519_tools.wire.greenpack import (
    pack_bin_header,
    pack_map_header,
    pack_str,
    pack_time,
    unpack_object,
    unpack_time,
)

#: A Go sender's limit for a whole message, and a Go reader's limit for its body.
MAX_MESSAGE_LEN: Final = 914
PREFIX_LEN: Final = 8
TAG_LEN: Final = 32
KEY_LEN: Final = 32
SIGNATURE_LEN: Final = 64
CONFIRMATION_LEN: Final = 32
#: All of a message but its certificate, whose own header has three bytes then.
_BESIDE_CERTIFICATE_LEN: Final = 273
#: The longest certificate that a message has room for.
MAX_CERTIFICATE_LEN: Final = MAX_MESSAGE_LEN - _BESIDE_CERTIFICATE_LEN

_LENGTH: Final = struct.Struct(">Q")
_TYPE_KEY: Final = "@"
_TYPE: Final = "verifiedHandshake"
_EPHEMERAL: Final = "EphemPubKey_zid00_bin"
_SIGNATURE: Final = "SignatureOfEphem_zid01_bin"
_CERTIFICATE: Final = "SigningCert_zid02_bin"
_SENT_AT: Final = "SenderSentAt_zid03_tim"
_CONFIRMATION: Final = "KeyProof_zid04_bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshake:
    """What one side says about itself.

    Attributes:
        ephemeral: its fresh X25519 public key, 32 bytes.
        signature: Ed25519 over ``ephemeral``, 64 bytes.
        certificate_der: of the signer, in DER; not judged here.
        sent_at_ns: its clock, nanoseconds since 1970 UTC; None where it says nothing.
        confirmation: a server's proof that it has our pre-shared key, 32 bytes; empty
            where there is none.
    """

    ephemeral: bytes
    signature: bytes
    certificate_der: bytes
    sent_at_ns: int | None
    confirmation: bytes = b""


def check_certificate_fits(certificate_der: bytes) -> None:
    """Check that a handshake has room for our certificate.

    Raises:
        KeyFileError: it is longer than MAX_CERTIFICATE_LEN.
    """
    if len(certificate_der) > MAX_CERTIFICATE_LEN:
        raise KeyFileError(
            f"our certificate has {len(certificate_der)} bytes; with a pre-shared key "
            f"it can have at most {MAX_CERTIFICATE_LEN}: make one with a shorter e-mail"
        )


def encode_handshake(handshake: Handshake) -> bytes:
    """Encode a whole message, as a Go peer would; without the proof if too long.

    Raises:
        KeyFileError: the certificate does not fit.
    """
    check_certificate_fits(handshake.certificate_der)
    fields = [
        pack_str(_TYPE_KEY) + pack_str(_TYPE),
        _pack_bin(_EPHEMERAL, handshake.ephemeral),
        _pack_bin(_SIGNATURE, handshake.signature),
        _pack_bin(_CERTIFICATE, handshake.certificate_der),
    ]
    if handshake.sent_at_ns is not None:
        fields.append(pack_str(_SENT_AT) + pack_time(handshake.sent_at_ns))
    if handshake.confirmation:
        proof = _pack_bin(_CONFIRMATION, handshake.confirmation)
        room = MAX_MESSAGE_LEN - PREFIX_LEN - 1 - TAG_LEN
        if sum(map(len, fields)) + len(proof) <= room:
            fields.append(proof)
    body = pack_map_header(len(fields)) + b"".join(fields)
    prefix = _LENGTH.pack(len(body))
    return prefix + body + hmac.digest(prefix, body, "sha256")


def _pack_bin(key: str, value: bytes) -> bytes:
    return pack_str(key) + pack_bin_header(len(value)) + value


def rest_len(prefix: bytes) -> int:
    """Return how many bytes follow the first PREFIX_LEN of a message.

    Raises:
        HandshakeError: this is no handshake, or it is too long.
    """
    if prefix[:PREFIX_LEN].startswith(MAGIC):
        raise HandshakeError("the peer does not use a pre-shared key (-psk), and we do")
    (body_len,) = _LENGTH.unpack(prefix)
    if body_len == 0:
        raise HandshakeError("the peer refused our pre-shared-key handshake")
    if body_len > MAX_MESSAGE_LEN:
        raise HandshakeError(
            "the peer's first bytes are no pre-shared-key handshake "
            f"(a length above {MAX_MESSAGE_LEN})"
        )
    return int(body_len) + TAG_LEN


def decode_handshake(prefix: bytes, rest: bytes) -> Handshake:
    """Decode a whole message and check all of it but the certificate and signature.

    Args:
        prefix: its first PREFIX_LEN bytes.
        rest: the ``rest_len(prefix)`` bytes after them.

    Raises:
        HandshakeError: it is damaged, malformed or lacks something, or the X25519 key
            is all zero.
    """
    body, tag = rest[:-TAG_LEN], rest[-TAG_LEN:]
    if not hmac.compare_digest(hmac.digest(prefix, body, "sha256"), tag):
        raise HandshakeError("the peer's pre-shared-key handshake is damaged")
    try:
        fields = unpack_object(body)
        if not isinstance(fields, dict):
            raise HandshakeError("the peer's pre-shared-key handshake is no map")
        sent_at_ns = unpack_time(fields.get(_SENT_AT), _SENT_AT)
    except DecodeError as exc:
        raise HandshakeError(f"the peer's pre-shared-key handshake: {exc}") from exc
    ephemeral = _bytes_of(fields, _EPHEMERAL, KEY_LEN)
    if not any(ephemeral):
        raise HandshakeError("the peer's X25519 key is all zero")
    certificate = fields.get(_CERTIFICATE)
    if not isinstance(certificate, bytes) or not certificate:
        raise HandshakeError("the peer sent no certificate for the pre-shared key")
    confirmation = fields.get(_CONFIRMATION, b"")
    if not isinstance(confirmation, bytes):
        raise HandshakeError(f"{_CONFIRMATION} of the peer's handshake is not binary")
    return Handshake(
        ephemeral=ephemeral,
        signature=_bytes_of(fields, _SIGNATURE, SIGNATURE_LEN),
        certificate_der=certificate,
        sent_at_ns=sent_at_ns,
        confirmation=confirmation,
    )


def _bytes_of(fields: dict[object, object], key: str, length: int) -> bytes:
    value = fields.get(key)
    if not isinstance(value, bytes) or len(value) != length:
        raise HandshakeError(f"{key} of the peer's handshake is not {length} bytes")
    return value


def check_signature(handshake: Handshake, public_key: bytes) -> None:
    """Check that the holder of a key signed the handshake's X25519 key.

    Args:
        handshake: from ``decode_handshake``.
        public_key: the 32 raw Ed25519 bytes of its (verified) certificate.

    Raises:
        HandshakeError: somebody else signed it.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            handshake.signature, handshake.ephemeral
        )
    except (InvalidSignature, ValueError) as exc:
        raise HandshakeError(
            "the signature in the peer's handshake is not by its certificate's key"
        ) from exc
