"""A network inside the process, with faults that a plan asks for."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from rpc25519_tools.config import Address
from rpc25519_tools.identity.certificate import PeerIdentity
from rpc25519_tools.limits import Limits
from rpc25519_tools.transport.base import (
    CHUNK_LEN,
    WRITE_HIGH_WATER_LEN,
    Accept,
    Receiver,
    Transport,
)
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.framing import FrameDecoder, decode_frame, encode_frame
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import Message


@dataclass
class Plan:
    """What happens to the bytes of one direction; byte numbers count from 0.

    Attributes:
        segments: lengths in which bytes arrive, repeated; empty takes what there is.
        corrupt_at: these bytes arrive inverted.
        cut_at: the connection breaks before this byte arrives.
        stall_at: from this byte on nothing arrives, until it is set to None.
    """

    segments: Sequence[int] = ()
    corrupt_at: frozenset[int] = frozenset()
    cut_at: int | None = None
    stall_at: int | None = None


@dataclass(eq=False)
class MemoryTransport:
    """One end of a connection; a Transport."""

    plan: Plan
    local_address: str
    remote_address: str
    network: str = "tcp"
    security: str = "nothing at all"
    peer: PeerIdentity | None = None
    #: Bytes that have arrived at the other end.
    delivered: int = 0
    paused: bool = False
    _receiver: Receiver | None = None
    _other: "MemoryTransport | None" = None
    _unsent: deque[memoryview] = field(default_factory=deque)
    _unsent_len: int = 0
    _segment_index: int = 0
    _closing: bool = False
    _gone: bool = False

    @property
    def unsent_len(self) -> int:
        return self._unsent_len

    def fileno(self) -> int:
        return -1

    def has_hung_up(self) -> bool:
        return False

    def write(self, buffers: Sequence[Buffer]) -> None:
        if self._closing:
            return
        for buffer in buffers:
            if len(buffer):
                self._unsent.append(memoryview(buffer))
                self._unsent_len += len(buffer)
        self.push()

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
        if self._other is not None:
            self._other.push()

    def close(self) -> None:
        self._closing = True
        self.push()

    def abort(self) -> None:
        self._break(None, ConnectionResetError("reset by the peer"))

    def push(self) -> None:
        """Go on delivering, soon."""
        asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        other = self._other
        if self._gone or other is None:
            return
        was_over = self._unsent_len > WRITE_HIGH_WATER_LEN
        if self._unsent and not other.paused and not self._stalled():
            if self.delivered == self.plan.cut_at:
                self._break(None, ConnectionResetError("cut"))
                return
            self._deliver_segment(other)
            if self._unsent:
                self.push()
        if was_over and self._unsent_len <= WRITE_HIGH_WATER_LEN and self._receiver:
            self._receiver.writable()
        if self._closing and not self._unsent:
            self._break(None, None)

    def _stalled(self) -> bool:
        return self.plan.stall_at is not None and self.delivered >= self.plan.stall_at

    def _deliver_segment(self, other: "MemoryTransport") -> None:
        assert other._receiver is not None
        memory = other._receiver.get_buffer()
        assert len(memory) > 0
        room = min(len(memory), CHUNK_LEN)
        if self.plan.segments:
            room = min(room, self.plan.segments[self._segment_index])
            self._segment_index = (self._segment_index + 1) % len(self.plan.segments)
        for stop in (self.plan.cut_at, self.plan.stall_at):
            if stop is not None and stop > self.delivered:
                room = min(room, stop - self.delivered)
        count = 0
        while self._unsent and count < room:
            piece = self._unsent.popleft()
            if len(piece) > room - count:
                self._unsent.appendleft(piece[room - count :])
                piece = piece[: room - count]
            memory[count : count + len(piece)] = piece
            count += len(piece)
        for at in self.plan.corrupt_at:
            if 0 <= at - self.delivered < count:
                memory[at - self.delivered] ^= 0xFF
        self.delivered += count
        self._unsent_len -= count
        other._receiver.buffer_updated(count)

    def _break(self, ours: Exception | None, theirs: Exception | None) -> None:
        """End the connection for both."""
        for end, error in ((self, ours), (self._other, theirs)):
            if end is None or end._gone:
                continue
            end._gone = end._closing = True
            end._unsent.clear()
            end._unsent_len = 0
            receiver, end._receiver = end._receiver, None
            if receiver is not None:
                asyncio.get_running_loop().call_soon(receiver.connection_lost, error)


def memory_pair(
    up: Plan, down: Plan, accept_client: Accept, accept_server: Accept
) -> tuple[MemoryTransport, MemoryTransport]:
    """Return the client's and the server's end of a new connection."""
    client = MemoryTransport(up, "127.0.0.1:50000", "127.0.0.1:8443")
    server = MemoryTransport(down, "127.0.0.1:8443", "127.0.0.1:50000")
    client._other, server._other = server, client
    server._receiver = accept_server(server)
    client._receiver = accept_client(client)
    for end in (client, server):
        end.push()
    return client, server


class MemoryNetwork:
    """Stands in for ``connect`` and ``listen`` of clients and servers.

    Attributes:
        up, down: what happens to what clients and servers send, on connections made
            from now on.
        client_ends, server_ends: of all connections made.
    """

    def __init__(self) -> None:
        self.up = Plan()
        self.down = Plan()
        self.client_ends: list[MemoryTransport] = []
        self.server_ends: list[MemoryTransport] = []
        self.accept: Accept | None = None
        self.address = "127.0.0.1:8443"

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr("rpc25519_tools.rpc.client.connect", self.connect)
        patch.setattr("rpc25519_tools.rpc.server.listen", self.listen)

    async def connect(
        self,
        address: Address,
        *,
        tls: object,
        accept: Accept,
        timeout_s: float,
        local: Address | None = None,
        http_connect: bool = False,
        tunnel: object = None,
        quic: bool = False,
        share_port: bool = True,
    ) -> Transport:
        return self.dial(accept)

    def dial(self, accept: Accept) -> MemoryTransport:
        assert self.accept is not None, "nobody listens"
        client, server = memory_pair(self.up, self.down, accept, self.accept)
        self.client_ends.append(client)
        self.server_ends.append(server)
        return client

    async def listen(
        self,
        address: Address,
        *,
        tls: object,
        accept: Accept,
        failed: Callable[[Exception, str], None],
        limits: Limits,
        http_connect: bool = False,
        tunnel: object = None,
        quic: bool = False,
        share_port: bool = True,
    ) -> "MemoryNetwork":
        self.accept = accept
        return self

    def heard(self, transport: Transport, idle_since: Callable[[], float]) -> None:
        pass

    def close(self) -> None:
        self.accept = None


class RawPeer:
    """A Receiver that speaks frames and knows nothing of calls.

    Attributes:
        received: each message with its codec, in order.
        lost: whether the connection is over; ``error`` says why.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.received: list[tuple[Message, Codec]] = []
        self.lost = False
        self.error: Exception | None = None
        self._decoder = FrameDecoder(bytearray(CHUNK_LEN))

    @property
    def messages(self) -> list[Message]:
        return [message for message, _ in self.received]

    def send(self, *messages: Message, codec: Codec = Codec.NONE) -> None:
        """Send messages so that they arrive together, as far as they fit."""
        self.send_bytes(
            b"".join(
                bytes(buffer)
                for message in messages
                for buffer in encode_frame(message, codec)
            )
        )

    def send_bytes(self, data: bytes) -> None:
        self.transport.write([data])

    def get_buffer(self) -> memoryview:
        return self._decoder.get_buffer()

    def buffer_updated(self, count: int) -> None:
        for frame in self._decoder.buffer_updated(count):
            self.received.append((decode_frame(frame), frame.codec))

    def arriving(self, count: int, held_len: int) -> None:
        pass

    def writable(self) -> None:
        pass

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self.error = error
