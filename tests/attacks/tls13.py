"""A TLS 1.3 client made by hand (RFC 8446), which does what no library would do.

It can claim a certificate whose key it has not, offer early data or a session that
never was, change its keys a thousand times, and cut its messages as it likes. It knows
one suite, TLS_CHACHA20_POLY1305_SHA256, and one group, X25519; it believes whatever the
server says about itself.
"""

import hashlib
import hmac
import os
import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from rpc25519_tools.config import parse_address

ALERT, HANDSHAKE, DATA = 21, 22, 23
_CHANGE_CIPHER_SPEC = 20
TIMEOUT_S = 10.0
CHACHA20, AES_128, AES_256 = 0x1303, 0x1301, 0x1302
X25519, P_256 = 0x001D, 0x0017
_HELLO_RETRY = hashlib.sha256(b"HelloRetryRequest").digest()


class AlertError(Exception):
    """The server sent an alert; ``number`` is that of RFC 8446, 6."""

    def __init__(self, number: int) -> None:
        super().__init__(f"alert {number}")
        self.number = number


def vector(width: int, data: bytes) -> bytes:
    """Put the length in front of data, in ``width`` bytes."""
    return len(data).to_bytes(width, "big") + data


def record(kind: int, data: bytes) -> bytes:
    return struct.pack(">BHH", kind, 0x0303, len(data)) + data


def message(kind: int, body: bytes) -> bytes:
    """Return a handshake message."""
    return bytes((kind,)) + vector(3, body)


def extension(kind: int, body: bytes) -> bytes:
    return struct.pack(">H", kind) + vector(2, body)


def numbers(values: Sequence[int]) -> bytes:
    return b"".join(struct.pack(">H", value) for value in values)


def client_hello(
    *,
    share: bytes | None,
    suites: Sequence[int] = (CHACHA20,),
    groups: Sequence[int] = (X25519,),
    versions: Sequence[int] = (0x0304,),
    more: bytes = b"",
    session_id: bytes = b"",
    compression: bytes = b"\0",
) -> bytes:
    """Return a ClientHello; ``more`` are extensions that stand last."""
    key_shares = struct.pack(">H", X25519) + vector(2, share) if share else b""
    extensions = (
        extension(0, vector(2, b"\0" + vector(2, b"localhost")))
        + extension(10, vector(2, numbers(groups)))
        + extension(13, vector(2, numbers((0x0807, 0x0403, 0x0804))))
        + extension(51, vector(2, key_shares))
    )
    if versions:
        extensions += extension(43, vector(1, numbers(versions)))
    return message(
        1,
        struct.pack(">H", 0x0303)
        + os.urandom(32)
        + vector(1, session_id)
        + vector(2, numbers(suites))
        + vector(1, compression)
        + vector(2, extensions + more),
    )


def extract(salt: bytes, secret: bytes) -> bytes:
    return hmac.digest(salt, secret, "sha256")


def expand(secret: bytes, label: str, context: bytes, length: int = 32) -> bytes:
    """HKDF-Expand-Label (RFC 8446, 7.1), of one block."""
    info = struct.pack(">H", length) + vector(1, b"tls13 " + label.encode())
    return hmac.digest(secret, info + vector(1, context) + b"\x01", "sha256")[:length]


class _Traffic:
    """One direction of encrypted records."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self._aead = ChaCha20Poly1305(expand(secret, "key", b""))
        self._iv = int.from_bytes(expand(secret, "iv", b"", 12), "big")
        self._count = 0

    def next(self) -> "_Traffic":
        """Return the traffic after a key update."""
        return _Traffic(expand(self.secret, "traffic upd", b""))

    def _nonce(self) -> bytes:
        self._count += 1
        return (self._iv ^ self._count - 1).to_bytes(12, "big")

    def seal(self, kind: int, data: bytes) -> bytes:
        header = struct.pack(">BHH", DATA, 0x0303, len(data) + 17)
        plain = data + bytes((kind,))
        return header + self._aead.encrypt(self._nonce(), plain, header)

    def open(self, header: bytes, body: bytes) -> tuple[int, bytes]:
        plain = self._aead.decrypt(self._nonce(), body, header).rstrip(b"\0")
        return plain[-1], plain[:-1]


class Handmade:
    """One connection to a server.

    Attributes:
        local: our own address.
        cut_len: how many bytes of a message go into one record.
        tickets: NewSessionTicket messages that came after the handshake.
    """

    def __init__(self, address: str, *, cut_len: int = 16_384) -> None:
        where = parse_address(address)
        self._socket = socket.create_connection((where.host, where.port), TIMEOUT_S)
        host, port = self._socket.getsockname()[:2]
        self.local = f"{host}:{port}"
        self.cut_len = cut_len
        self._key = X25519PrivateKey.generate()
        self.share = self._key.public_key().public_bytes_raw()
        self._transcript = b""
        self._reading: _Traffic | None = None
        self._writing: _Traffic | None = None
        self._messages = b""
        self.tickets: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    # Records.

    def send_raw(self, data: bytes) -> None:
        self._socket.sendall(data)

    def end(self) -> None:
        """Send no more; the server may go on."""
        self._socket.shutdown(socket.SHUT_WR)

    def send(self, kind: int, data: bytes) -> None:
        """Send data in records, encrypted as soon as there are keys."""
        records = b""
        for start in range(0, len(data), self.cut_len):
            piece = data[start : start + self.cut_len]
            sealed = self._writing.seal(kind, piece) if self._writing else None
            records += sealed or record(kind, piece)
        self.send_raw(records)

    def receive(self) -> tuple[int, bytes]:
        """Return the next record.

        Raises:
            AlertError: it is an alert.
            EOFError: the server has closed the connection.
        """
        while True:
            header = self._exactly(5)
            kind, _, length = struct.unpack(">BHH", header)
            body = self._exactly(length)
            if kind == _CHANGE_CIPHER_SPEC:
                continue
            if kind == DATA and self._reading is not None:
                kind, body = self._reading.open(header, body)
            if kind == ALERT:
                raise AlertError(body[1])
            if kind == HANDSHAKE and body[0] == 4:
                self.tickets.append(body)
            return kind, body

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                piece = self._socket.recv(count - len(data))
            except ConnectionError as exc:
                raise EOFError from exc
            if not piece:
                raise EOFError
            data += piece
        return data

    def fate(self) -> "int | str":
        """Read to the end: the number of the alert, or ``closed``.

        Raises:
            AssertionError: the server answered with data.
        """
        try:
            while True:
                kind, body = self.receive()
                assert kind != DATA, f"the server answers: {body!r}"
        except AlertError as exc:
            return exc.number
        except EOFError:
            return "closed"

    # The handshake.

    def send_message(self, data: bytes) -> None:
        self._transcript += data
        self.send(HANDSHAKE, data)

    def receive_message(self) -> bytes:
        """Return the next handshake message, with its header."""
        while True:
            length = 4 + int.from_bytes(self._messages[1:4], "big")
            if len(self._messages) >= max(length, 4):
                found = self._messages[:length]
                self._messages = self._messages[length:]
                self._transcript += found
                return found
            kind, body = self.receive()
            assert kind == HANDSHAKE, kind
            self._messages += body

    def say_hello(self, hello: bytes | None = None) -> bytes:
        """Send a ClientHello and take the server's; return the latter."""
        self.send_message(hello or client_hello(share=self.share))
        return self.receive_message()

    def agree(self, server_hello: bytes) -> None:
        """Derive the keys of the handshake (RFC 8446, 7.1)."""
        assert server_hello[6:38] != _HELLO_RETRY
        theirs = server_share(server_hello)
        shared = self._key.exchange(X25519PublicKey.from_public_bytes(theirs))
        nothing = hashlib.sha256(b"").digest()
        early = extract(bytes(32), bytes(32))
        secret = extract(expand(early, "derived", nothing), shared)
        self._master = extract(expand(secret, "derived", nothing), bytes(32))
        self._reading = _Traffic(expand(secret, "s hs traffic", self._hash()))
        self._hand_secret = expand(secret, "c hs traffic", self._hash())

    def take_flight(self) -> list[bytes]:
        """Take what the server says up to its Finished."""
        flight = [self.receive_message()]
        while flight[-1][0] != 20:
            flight.append(self.receive_message())
        # From here on the server writes with its keys for data.
        self._through = self._hash()
        self._reading = _Traffic(expand(self._master, "s ap traffic", self._through))
        return flight

    def prove(self, certificates: Sequence[bytes], key: Ed25519PrivateKey) -> None:
        """Send certificates, a signature with ``key``, whosever it is, and the end."""
        self._writing = _Traffic(self._hand_secret)
        entries = b"".join(vector(3, one) + vector(2, b"") for one in certificates)
        self.send_message(message(11, vector(1, b"") + vector(3, entries)))
        if certificates:
            text = b" " * 64 + b"TLS 1.3, client CertificateVerify\0" + self._hash()
            signature = struct.pack(">H", 0x0807) + vector(2, key.sign(text))
            self.send_message(message(15, signature))
        finished = expand(self._hand_secret, "finished", b"")
        self.send_message(message(20, hmac.digest(finished, self._hash(), "sha256")))
        self._resumption = expand(self._master, "res master", self._hash())
        self._writing = _Traffic(expand(self._master, "c ap traffic", self._through))

    def shake_hands(
        self, certificates: Sequence[bytes], key: Ed25519PrivateKey
    ) -> list[bytes]:
        """Do the whole handshake; return the server's flight."""
        self.agree(self.say_hello())
        flight = self.take_flight()
        self.prove(certificates, key)
        return flight

    def update_keys(self, *, ask: bool) -> None:
        """Change our keys, and ask the server to change its own."""
        assert self._writing is not None
        self.send(HANDSHAKE, message(24, bytes((ask,))))
        self._writing = self._writing.next()

    def follow_update(self) -> None:
        """Go over to the server's next keys."""
        assert self._reading is not None
        self._reading = self._reading.next()

    def resuming_hello(self, share: bytes) -> bytes:
        """Return a ClientHello that resumes this session by its first ticket.

        It proves that it knows the session (RFC 8446, 4.2.11.2) and offers early data.
        """
        body = self.tickets[0]
        nonce = body[13 : 13 + body[12]]
        at = 13 + len(nonce)
        ticket = body[at + 2 : at + 2 + int.from_bytes(body[at : at + 2], "big")]
        early = extract(bytes(32), expand(self._resumption, "resumption", nonce))
        binder_key = expand(early, "res binder", hashlib.sha256(b"").digest())
        identities = vector(2, vector(2, ticket) + body[8:12])
        more = (
            extension(45, vector(1, b"\1"))  # psk_dhe_ke
            + extension(42, b"")  # early_data
            + extension(41, identities + vector(2, vector(1, bytes(32))))
        )
        start = client_hello(share=share, more=more)[:-35]
        finished = expand(binder_key, "finished", b"")
        binder = hmac.digest(finished, hashlib.sha256(start).digest(), "sha256")
        return start + vector(2, vector(1, binder))

    def _hash(self) -> bytes:
        return hashlib.sha256(self._transcript).digest()


def extensions_of(server_hello: bytes) -> dict[int, bytes]:
    """Return the extensions of a ServerHello or HelloRetryRequest."""
    at = 38 + 1 + server_hello[38] + 3 + 2
    found = {}
    while at < len(server_hello):
        kind, length = struct.unpack(">HH", server_hello[at : at + 4])
        found[kind] = server_hello[at + 4 : at + 4 + length]
        at += 4 + length
    return found


def server_share(server_hello: bytes) -> bytes:
    share = extensions_of(server_hello)[51]
    assert share[:2] == struct.pack(">H", X25519)
    return share[4:]


def is_retry(server_hello: bytes) -> bool:
    """Tell whether the server asks for a share of another group."""
    return server_hello[6:38] == _HELLO_RETRY
