"""The pre-shared-key tunnel: keys, nonces and sealed messages.

After the handshake (``wire.handshake``) each message travels in an envelope: a
big-endian 64-bit length, a nonce of 12 bytes, the ciphertext, and a tag of 16 bytes.
The plaintext is the seven magic bytes, the codec byte and the packed message; there is
no second length in it. The cipher is ChaCha20-Poly1305 (RFC 8439), with the eight
bytes of the length as associated data.

ChaCha20-Poly1305 does not commit to its key, so the tag is then encrypted with a key
made of session key, length and nonce (PACT).

Both directions share one key. What keeps them apart are the nonces: each writer counts
up from a random start, whose highest byte is 7f for a server and below 40 for a client.
``NonceCheck`` holds the peer to that, which a Go reader does not: nothing repeated,
reflected, left out or swapped within one writer's messages is taken. A Go server has
two writers; how the messages of one lie between those of the other cannot be known, nor
that the very first messages of a writer are missing.

Source: SECURITY-WIRE.md 7.1 and 7.3 to 7.6; vectors ``kdf.json``, ``pact.json``.
"""

import hmac
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from rpc25519_tools.errors import (
    DecryptionError,
    FrameTooLargeError,
    HandshakeError,
    RemoteProtocolError,
)
from rpc25519_tools.wire.buffers import BufferPool
from rpc25519_tools.wire.constants import MAGIC, MAX_BODY_LEN
from rpc25519_tools.wire.greenpack import Buffer

Side = Literal["client", "server"]

NONCE_LEN: Final = 12
TAG_LEN: Final = 16
KEY_LEN: Final = 32
#: Bytes of plaintext in front of the packed message: magic and codec.
INNER_HEADER_LEN: Final = len(MAGIC) + 1
LENGTH_LEN: Final = 8
#: What an envelope's length counts beside the packed message.
OVERHEAD_LEN: Final = NONCE_LEN + INNER_HEADER_LEN + TAG_LEN
#: The largest length that a Go peer takes.
MAX_SEALED_LEN: Final = MAX_BODY_LEN

_LENGTH: Final = struct.Struct(">Q")
_NONCES: Final = 1 << (8 * NONCE_LEN)
_CLIENT_BELOW: Final = 0x40  # the highest byte of a client's nonce
_SERVER_BYTE: Final = 0x7F  # and of a server's
#: Starts are random in at least 88 bits; two writers never come as near as this.
_NEAR: Final = 1 << 40
#: A client has one writer; a Go server has one for answers and one for pushes.
_WRITERS: Final = {"client": 1, "server": 2}

_KEY_FILE_SALT: Final = bytes([43]) + bytes(31)
_CONFIRMATION_INFO: Final = b"rpc25519-tools: the server has the pre-shared key"

#: Envelopes up to this length are joined into one piece.
_JOIN_UP_TO_LEN: Final = 16 * 1024
#: Rests of an envelope from this length on are received in place.
_DIRECT_FROM_LEN: Final = 16 * 1024

_NOT_OPENED: Final = (
    "a sealed message did not open: the pre-shared keys differ, or it was changed or "
    "repeated on the way"
)


def _hkdf(secret: bytes, salt: bytes, info: bytes = b"") -> bytes:
    kdf = HKDF(algorithm=hashes.SHA256(), length=KEY_LEN, salt=salt, info=info)
    return kdf.derive(secret)


def derive_psk(file_content: bytes) -> bytes:
    """Return the 32-byte pre-shared key that all of a key file's bytes stand for."""
    return _hkdf(file_content, _KEY_FILE_SALT)


def shared_secret(own: X25519PrivateKey, other_public: bytes) -> bytes:
    """Return X25519 of our private key and the peer's 32-byte public one.

    Raises:
        HandshakeError: the peer's key is of small order, so that the result is zero.
    """
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(other_public))
    except ValueError as exc:
        raise HandshakeError("the peer's X25519 key is not usable") from exc


def session_key(shared: bytes, psk: bytes) -> bytes:
    """Return the 32-byte key of one connection, for both directions."""
    return _hkdf(shared, psk)


def confirmation(
    shared: bytes, psk: bytes, client_public: bytes, server_public: bytes
) -> bytes:
    """Return a server's proof that it has ``psk``: 32 bytes.

    It comes out of the same derivation as the session key, with another label, and
    tells nothing about that key.
    """
    return _hkdf(shared, psk, _CONFIRMATION_INFO + client_public + server_public)


def first_nonce(side: Side, random_bytes: bytes) -> bytes:
    """Return a writer's first nonce, made of 12 random bytes."""
    last = random_bytes[-1] & (_CLIENT_BELOW - 1) if side == "client" else _SERVER_BYTE
    return random_bytes[: NONCE_LEN - 1] + bytes([last])


def next_nonce(nonce: bytes) -> bytes:
    """Return the nonce after this one: a little-endian counter that wraps."""
    number = (int.from_bytes(nonce, "little") + 1) % _NONCES
    return number.to_bytes(NONCE_LEN, "little")


def _pact_cipher(key: bytes, associated: bytes, nonce: bytes) -> Cipher[modes.ECB]:
    subkey = hmac.digest(key, associated + nonce, "sha256")
    # One block under a key of its own: what ECB is bad at does not arise.
    return Cipher(algorithms.AES(subkey), modes.ECB())  # noqa: S305  # see above


def commit_tag(key: bytes, associated: bytes, nonce: bytes, tag: bytes) -> bytes:
    """Return the tag as it travels."""
    return _pact_cipher(key, associated, nonce).encryptor().update(tag)


def uncommit_tag(key: bytes, associated: bytes, nonce: bytes, tag: bytes) -> bytes:
    """Return the Poly1305 tag that ``commit_tag`` made ``tag`` of."""
    return _pact_cipher(key, associated, nonce).decryptor().update(tag)


class Sealer:
    """Seals the messages of one writer; never repeats a nonce.

    Args:
        key: the session key, 32 bytes.
        nonce: from ``first_nonce``, fresh for each connection.
    """

    def __init__(self, key: bytes, nonce: bytes) -> None:
        self._key = key
        self._aead = ChaCha20Poly1305(key)
        self._nonce = nonce

    def seal(self, plain: Sequence[Buffer]) -> list[Buffer]:
        """Return one envelope, as buffers to be written in order.

        Args:
            plain: magic, codec byte and packed message, in pieces.
        """
        content = plain[0] if len(plain) == 1 else b"".join(plain)
        length = _LENGTH.pack(NONCE_LEN + len(content) + TAG_LEN)
        nonce, self._nonce = self._nonce, next_nonce(self._nonce)
        sealed = self._aead.encrypt(nonce, content, length)
        tag = commit_tag(self._key, length, nonce, sealed[-TAG_LEN:])
        if len(sealed) <= _JOIN_UP_TO_LEN:
            return [b"".join((length, nonce, sealed[:-TAG_LEN], tag))]
        return [length + nonce, memoryview(sealed)[:-TAG_LEN], tag]


class NonceCheck:
    """Holds the peer to the nonces that its writers must use.

    Args:
        writer: which side the peer is.
    """

    def __init__(self, writer: Side) -> None:
        self._writer: Side = writer
        self._next: list[int] = []

    def accept(self, nonce: bytes) -> bool:
        """Note the nonce of an authentic message; False where it must not be used."""
        last = nonce[-1]
        right = last < _CLIENT_BELOW if self._writer == "client" else last == 0x7F
        number = int.from_bytes(nonce, "little")
        for index, expected in enumerate(self._next):
            if number == expected:
                self._next[index] = number + 1
                return right
            if abs(number - expected) < _NEAR:
                return False
        if not right or len(self._next) == _WRITERS[self._writer]:
            return False
        self._next.append(number + 1)
        return True


class Opener:
    """Cuts the byte stream into envelopes and opens them.

    Used like ``framing.FrameDecoder``: fill the memory that ``get_buffer`` returns and
    tell ``buffer_updated`` how much came. Memory for an envelope grows with what has
    arrived. After an error everything is refused, and nothing is held any more.

    Args:
        key: the session key, 32 bytes.
        writer: which side the peer is.
        scratch: memory for bytes that are not the inside of a long envelope; used
            until what ``buffer_updated`` returned has been used up.
        pool: where memory for envelopes comes from.
        max_sealed_len: most bytes of one envelope; never above the wire's own limit.
        on_held: called with ``held_len`` before it becomes that. What it raises goes
            through, and the tunnel has to be given up.
    """

    def __init__(
        self,
        key: bytes,
        writer: Side,
        scratch: bytearray,
        pool: BufferPool | None = None,
        *,
        max_sealed_len: int = MAX_SEALED_LEN,
        on_held: Callable[[int], None] | None = None,
    ) -> None:
        self._key = key
        self._aead = ChaCha20Poly1305(key)
        self._nonces = NonceCheck(writer)
        self._scratch = memoryview(scratch)
        self._max_sealed_len = min(max_sealed_len, MAX_SEALED_LEN)
        self._on_held = on_held
        #: Where memory for the envelopes to come is from.
        self.pool = BufferPool() if pool is None else pool
        self._length = b""
        self._body: bytearray | None = None
        self._body_len = 0
        self._filled = 0
        self._direct = False
        self._failed = False
        #: How many messages have opened.
        self.opened = 0

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far end exactly with an envelope."""
        return self._body is None and not self._length

    @property
    def held_len(self) -> int:
        """Bytes of memory for an envelope that has not come to its end yet."""
        return 0 if self._body is None else len(self._body)

    @property
    def partial_len(self) -> int:
        """Bytes that have come of an envelope that is not whole yet."""
        return len(self._length) + (0 if self._body is None else self._filled)

    def give_up(self) -> None:
        """Hold nothing any more, and refuse what still comes."""
        self._failed = True
        self._body = None
        self._direct = False

    def get_buffer(self) -> memoryview:
        """Return memory (never empty) in which to place the next bytes."""
        body = self._body
        self._direct = (
            body is not None and self._body_len - self._filled >= _DIRECT_FROM_LEN
        )
        if body is None or not self._direct:
            return self._scratch
        return memoryview(body)[self._filled : self._body_len]

    def buffer_updated(self, count: int) -> Iterator[bytes]:
        """Take the first ``count`` bytes of what ``get_buffer`` returned last.

        The iterator has to be used up, or the connection given up, before anything
        else is called.

        Yields:
            The plaintexts of the envelopes that are complete now, one at a time.

        Raises:
            DecryptionError: an envelope does not open, or its nonce was used before.
            FrameTooLargeError, RemoteProtocolError: its length is out of bounds, or
                what it holds is no message.
        """
        if not self._direct:
            yield from self.receive_data(self._scratch[:count])
            return
        if self._is_whole(count):
            yield self._open_body()

    def receive_data(self, data: Buffer) -> Iterator[bytes]:
        """Take the next bytes of the stream; the rest as for ``buffer_updated``."""
        if self._failed:
            raise RemoteProtocolError("the tunnel has already been given up")
        view = memoryview(data)
        position = 0
        while position < len(view):
            if self._body is None:
                missing = LENGTH_LEN - len(self._length)
                self._length += bytes(view[position : position + missing])
                position += missing
                if len(self._length) == LENGTH_LEN:
                    self._begin_body()
                continue
            room = min(len(self._body), self._body_len) - self._filled
            piece = view[position : position + room]
            self._body[self._filled : self._filled + len(piece)] = piece
            position += len(piece)
            if self._is_whole(len(piece)):
                yield self._open_body()

    def _begin_body(self) -> None:
        (length,) = _LENGTH.unpack(self._length)
        if length > self._max_sealed_len:
            self._failed = True
            raise FrameTooLargeError(
                f"the peer announces a sealed message of {length} bytes; "
                f"the limit is {self._max_sealed_len}",
                limit=self._max_sealed_len,
                got=length,
            )
        if length < OVERHEAD_LEN:
            self._failed = True
            raise RemoteProtocolError(
                f"the peer announces a sealed message of {length} bytes; "
                f"none is shorter than {OVERHEAD_LEN}"
            )
        self._body_len = length
        self._filled = 0
        body = self.pool.allocate_start(length)
        self._hold(len(body))
        self._body = body

    def _is_whole(self, count: int) -> bool:
        """Note that ``count`` more bytes lie in the body; tell whether it is whole.

        A body that has filled its memory gets twice as much, up to its length.
        """
        assert self._body is not None
        self._filled += count
        if self._filled == self._body_len:
            return True
        if self._filled == len(self._body):
            grown_len = min(2 * self._filled, self._body_len)
            self._hold(grown_len)
            grown = bytearray(grown_len)
            grown[: self._filled] = self._body
            self._body = grown
        return False

    def _hold(self, held_len: int) -> None:
        if self._on_held is not None:
            self._on_held(held_len)

    def _open_body(self) -> bytes:
        plain = self._take_body()
        self._hold(0)
        if plain is None:
            self._failed = True
            raise DecryptionError(_NOT_OPENED)
        if not plain.startswith(MAGIC):
            self._failed = True
            raise RemoteProtocolError("a sealed message does not begin with the magic")
        self.opened += 1
        return plain

    def _take_body(self) -> bytes | None:
        """Return what is in the envelope; None where it is not to be believed.

        No error is raised in here, and none is the cause of another: its traceback
        would hold the envelope's memory for as long as somebody keeps the error.
        """
        assert self._body is not None
        sealed = memoryview(self._body)[: self._body_len]
        length, self._length, self._body = self._length, b"", None
        nonce = bytes(sealed[:NONCE_LEN])
        tag = bytes(sealed[-TAG_LEN:])
        sealed[-TAG_LEN:] = uncommit_tag(self._key, length, nonce, tag)
        try:
            plain = self._aead.decrypt(nonce, sealed[NONCE_LEN:], length)
        except InvalidTag:
            return None
        return plain if self._nonces.accept(nonce) else None
