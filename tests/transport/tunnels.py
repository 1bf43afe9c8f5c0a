"""Tunnels for tests: both ends in memory, over sockets, and a client made by hand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from rpc25519_tools.config import parse_address
from rpc25519_tools.identity.pre_shared_key import PreSharedKey
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.limits import Limits
from rpc25519_tools.transport.base import Receiver, TlsSettings, Transport
from rpc25519_tools.transport.endpoint import connect, listen
from rpc25519_tools.transport.psk import PskTransport, open_tunnel
from rpc25519_tools.transport.psk_handshake import TunnelSettings
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.framing import encode_frame
from rpc25519_tools.wire.handshake import (
    PREFIX_LEN,
    Handshake,
    decode_handshake,
    encode_handshake,
    rest_len,
)
from rpc25519_tools.wire.message import Header, Message
from rpc25519_tools.wire.tunnel import (
    Opener,
    Sealer,
    Side,
    first_nonce,
    session_key,
    shared_secret,
)
from tests.helpers import until
from tests.rpc.memory import MemoryTransport, Plan, memory_pair
from tests.transport.peers import Authority, Listening, Recorder

RIGHT_KEY = PreSharedKey(secret=b"r" * 32)
WRONG_KEY = PreSharedKey(secret=b"w" * 32)
AUTHORITY = Authority.make()
CLIENT = AUTHORITY.identity("client")
SERVER = AUTHORITY.identity("server")


def settings(identity: LoadedIdentity, key: PreSharedKey = RIGHT_KEY) -> TunnelSettings:
    return TunnelSettings(identity=identity, key=key)


def frame(text: bytes, codec: Codec = Codec.NONE) -> bytes:
    """Return one whole frame with a message of that payload."""
    message = Message(payload=text, header=Header(call_id="x"))
    return b"".join(map(bytes, encode_frame(message, codec)))


@dataclass
class Ends:
    """What came of one end of a tunnel."""

    opened: list[Recorder] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    def accept(self, transport: Transport) -> Receiver:
        self.opened.append(Recorder(transport))
        return self.opened[-1]

    def fail(self, error: Exception, address: str) -> None:
        assert address.startswith("127.0.0.1:")
        self.failures.append(error)

    @property
    def one(self) -> Recorder:
        (recorder,) = self.opened
        assert not self.failures
        return recorder

    @property
    def data(self) -> bytes:
        return bytes(self.opened[0].data) if self.opened else b""

    @property
    def error(self) -> Exception | None:
        """Why it never opened, or how it ended; None while neither is known."""
        if self.failures:
            return self.failures[0]
        return self.opened[0].error if self.opened else None

    @property
    def is_over(self) -> bool:
        return bool(self.failures) or any(one.lost for one in self.opened)


@dataclass
class Pair:
    """Both ends of a tunnel in memory."""

    client: Ends
    server: Ends
    client_end: MemoryTransport
    server_end: MemoryTransport

    @classmethod
    def make(
        cls,
        *,
        up: Plan | None = None,
        down: Plan | None = None,
        client: TunnelSettings | None = None,
        server: TunnelSettings | None = None,
        timeout_s: float = 10.0,
    ) -> Self:
        ours, theirs = Ends(), Ends()

        def answer(below: Transport) -> Receiver:
            return open_tunnel(
                below,
                server or settings(SERVER),
                accept=theirs.accept,
                failed=theirs.fail,
                timeout_s=timeout_s,
            )

        def begin(below: Transport) -> Receiver:
            return PskTransport(
                below,
                client or settings(CLIENT),
                side="client",
                accept=ours.accept,
                failed=ours.fail,
            )

        ends = memory_pair(up or Plan(), down or Plan(), begin, answer)
        return cls(ours, theirs, *ends)

    async def opened(self) -> Self:
        await until(lambda: self.client.opened and self.server.opened)
        return self

    async def ended(self) -> Self:
        await until(lambda: self.client.is_over and self.server.is_over)
        return self


class HandMade:
    """One side of the handshake and tunnel, driven by a test; a Receiver.

    Args:
        below: what it is the receiver of.
        side: which side it plays.
        identity: who it says it is; its certificate need not be right.
        key: its pre-shared key.
        changes: fields of its handshake that are not as they should be.
    """

    def __init__(
        self,
        below: Transport,
        *,
        side: Side,
        identity: LoadedIdentity,
        key: PreSharedKey = RIGHT_KEY,
        changes: dict[str, bytes] | None = None,
    ) -> None:
        self._below = below
        self._side: Side = side
        self._identity = identity
        self._key = key
        self._changes = changes or {}
        self._ephemeral = X25519PrivateKey.generate()
        self._memory = bytearray(64 * 1024)
        self._received = b""
        self.sealer: Sealer | None = None
        self.opener: Opener | None = None
        self.messages: list[bytes] = []
        self.lost = False
        if side == "client":
            below.write([self.hello()])

    def hello(self) -> bytes:
        public = self._ephemeral.public_key().public_bytes_raw()
        handshake = Handshake(
            ephemeral=public,
            signature=self._identity.private_key.sign(public),
            certificate_der=self._identity.certificate.public_bytes(Encoding.DER),
            sent_at_ns=None,
        )
        return encode_handshake(replace(handshake, **self._changes))  # type: ignore[arg-type]  # all are bytes

    def send(self, data: bytes) -> None:
        self._below.write([data])

    def sealed(self, frame_bytes: bytes) -> bytes:
        assert self.sealer is not None
        plain = frame_bytes[:8] + frame_bytes[16:]
        return b"".join(map(bytes, self.sealer.seal([plain])))

    def get_buffer(self) -> memoryview:
        return memoryview(self._memory)

    def buffer_updated(self, count: int) -> None:
        data = bytes(self._memory[:count])
        if self.opener is not None:
            self.messages += self.opener.receive_data(data)
            return
        self._received += data
        if len(self._received) < PREFIX_LEN:
            return
        prefix, rest = self._received[:PREFIX_LEN], self._received[PREFIX_LEN:]
        needed = rest_len(prefix)
        if len(rest) < needed:
            return
        theirs = decode_handshake(prefix, rest[:needed])
        if self._side == "server":
            self._below.write([self.hello()])
        shared = shared_secret(self._ephemeral, theirs.ephemeral)
        key = session_key(shared, self._key.secret)
        self.sealer = Sealer(key, first_nonce(self._side, b"n" * 12))
        other: Side = "server" if self._side == "client" else "client"
        self.opener = Opener(key, other, bytearray(64 * 1024))
        self.messages += self.opener.receive_data(rest[needed:])

    def arriving(self, count: int, held_len: int) -> None:
        pass

    def writable(self) -> None:
        pass

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True


@contextlib.asynccontextmanager
async def tunnel_listener(
    *,
    tls: LoadedIdentity | None,
    tunnel: TunnelSettings | None,
    limits: Limits | None = None,
) -> AsyncIterator[Listening]:
    """Listen on a free port."""
    found = Listening()
    listener = await listen(
        parse_address("127.0.0.1:0"),
        tls=TlsSettings(identity=tls) if tls else None,
        accept=found.accept,
        failed=found.fail,
        limits=limits,
        tunnel=tunnel,
    )
    found.address, found.close = listener.address, listener.close
    try:
        yield found
    finally:
        listener.close()
        for recorder in found.accepted:
            recorder.transport.abort()
        await asyncio.sleep(0)


async def tunnel_dial(
    address: str,
    *,
    tls: LoadedIdentity | None,
    tunnel: TunnelSettings | None,
    timeout_s: float = 10.0,
) -> Recorder:
    """Connect; raises as ``connect`` does."""
    made: list[Recorder] = []

    def accept(transport: Transport) -> Receiver:
        made.append(Recorder(transport))
        return made[0]

    await connect(
        parse_address(address),
        tls=TlsSettings(identity=tls) if tls else None,
        accept=accept,
        timeout_s=timeout_s,
        tunnel=tunnel,
    )
    return made[0]


def sniffed_hello() -> bytes:
    """Return what a good client says first, as anybody on the way can see it."""
    return HandMade(
        MemoryTransport(Plan(), "", ""), side="server", identity=CLIENT
    ).hello()


def tunnel_of(transport: Transport) -> PskTransport:
    """Return a transport that has to be a tunnel."""
    assert isinstance(transport, PskTransport)
    return transport
