"""QUIC clients that can be bent: any frames, certificates and raw datagrams."""

import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.tls import Epoch

from rpc25519_tools.config import parse_address
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.transport.base import TlsSettings
from rpc25519_tools.transport.quic_engine import QuicEngine
from tests.attacks.strangers import Stranger

VERSION: Final = 1
_TYPES: Final = {
    Epoch.INITIAL: QuicPacketType.INITIAL,
    Epoch.HANDSHAKE: QuicPacketType.HANDSHAKE,
    Epoch.ONE_RTT: QuicPacketType.ONE_RTT,
}


def varints(*numbers: int) -> bytes:
    """Write numbers as QUIC does."""
    buffer = Buffer(capacity=8 * len(numbers))
    for number in numbers:
        buffer.push_uint_var(number)
    return buffer.data


def crypto_frame(offset: int, data: bytes) -> bytes:
    return b"\x06" + varints(offset, len(data)) + data


def stream_frame(offset: int, data: bytes, stream_id: int = 0) -> bytes:
    return b"\x0e" + varints(stream_id, offset, len(data)) + data


def packet(engine: QuicEngine, frames: bytes, epoch: Epoch = Epoch.ONE_RTT) -> bytes:
    """Return a datagram with these frames, as the peer of a connection expects it.

    Args:
        engine: an end of the connection; it counts the packet as its own.
        frames: whole frames, the first of a type below 64.
        epoch: which keys to use.
    """
    quic = engine._quic
    builder = QuicPacketBuilder(
        host_cid=quic.host_cid,
        peer_cid=quic._peer_cid.cid,
        version=VERSION,
        is_client=engine.side == "client",
        max_datagram_size=max(1200, len(frames) + 100),
        packet_number=quic._packet_number,
        peer_token=quic._peer_token,
    )
    builder.start_packet(_TYPES[epoch], quic._cryptos[epoch])
    builder.start_frame(frames[0], capacity=len(frames)).push_bytes(frames[1:])
    (datagram,), _ = builder.flush()
    quic._packet_number = builder.packet_number
    return datagram


def initial(
    frames: bytes,
    *,
    destination_id: bytes,
    source_id: bytes = b"attacker",
    token: bytes = b"",
    number: int = 0,
) -> bytes:
    """Return a client's first packet, of nobody in particular, padded."""
    keys = CryptoPair()
    keys.setup_initial(cid=destination_id, is_client=True, version=VERSION)
    builder = QuicPacketBuilder(
        host_cid=source_id,
        peer_cid=destination_id,
        version=VERSION,
        is_client=True,
        max_datagram_size=1200,
        packet_number=number,
        peer_token=token,
    )
    builder.start_packet(QuicPacketType.INITIAL, keys)
    frames += bytes(1100 - len(token) - len(frames))  # padding is frames of 0
    builder.start_frame(frames[0], capacity=len(frames)).push_bytes(frames[1:])
    (datagram,), _ = builder.flush()
    return datagram


def show(engine: QuicEngine, stranger: Stranger | None) -> None:
    """Have a client show other certificates than its own, or none."""
    configuration = engine._quic._configuration
    if stranger is None:
        configuration.certificate = configuration.private_key = None
    else:
        configuration.certificate = stranger.chain[0]
        configuration.certificate_chain = list(stranger.chain[1:])
        configuration.private_key = stranger.key


class Bent:
    """A client on a socket of its own, which trusts every server.

    Args:
        address: the server.
        identity: of the client; ``show`` can change it before ``connect``.
        host: where it comes from.
        early: what it sends with the last message of its handshake.

    Attributes:
        engine: its connection.
        got_len, sent_len: bytes of datagrams.
        sizes: of each datagram that came.
    """

    def __init__(
        self,
        address: str,
        identity: LoadedIdentity,
        *,
        host: str = "127.0.0.1",
        early: bytes = b"",
    ) -> None:
        where = parse_address(address)
        self.server = (where.host, where.port)
        self.engine = QuicEngine(
            "client", TlsSettings(identity=identity, verify=False), peer_host="x"
        )
        self.early = early
        self.got_len = self.sent_len = 0
        self.sizes: list[int] = []
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((host, 0))
        self.local = f"{host}:{self.sock.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.engine.is_open and not self.engine.is_closed:
            self.engine.close()
            self.flush()
        self.sock.close()

    def send_raw(self, data: bytes) -> None:
        self.sent_len += len(data)
        self.sock.sendto(data, self.server)

    def send(self, frames: bytes, epoch: Epoch = Epoch.ONE_RTT) -> None:
        """Send a packet of these frames."""
        self.send_raw(packet(self.engine, frames, epoch))

    def flush(self) -> None:
        """Send what the engine wants to send."""
        for data, _ in self.engine.outgoing(time.monotonic()):
            self.send_raw(data)

    def take(self, patience_s: float) -> bytes | None:
        """Return a datagram without looking at it; None if none comes."""
        self.sock.settimeout(max(patience_s, 0.001))
        try:
            data = self.sock.recv(65_535)
        except TimeoutError:
            return None
        self.got_len += len(data)
        self.sizes.append(len(data))
        return data

    def run(self, done: Callable[[], Any], limit_s: float = 10.0) -> None:
        """Go on until something is so, or the time is over."""
        end = time.monotonic() + limit_s
        while not done() and time.monotonic() < end:
            self.flush()
            data = self.take(0.02)
            now = time.monotonic()
            if data is not None:
                self.engine.receive(data, self.server, now)
            quic = self.engine._quic
            if self.early and quic.handshake_done and not self.engine.is_closed:
                self.engine.send(memoryview(self.early))
                self.early = b""
            self.engine.handle_timer(now)

    def connect(self, limit_s: float = 10.0) -> Self:
        """Do a handshake."""
        self.engine.connect(self.server, time.monotonic())
        self.run(lambda: self.engine.is_open or self.engine.is_closed, limit_s)
        self.flush()
        return self

    @property
    def answer(self) -> bytes:
        """What the server has sent on the stream."""
        return b"".join(bytes(one) for one in self.engine.arrived)
