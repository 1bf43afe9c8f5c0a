"""The seam between byte streams and everything above them.

A transport moves bytes and knows who is at the other end. It pushes what it receives
into a Receiver, whose memory it fills directly, and it takes buffers to write without
copying them. Nothing above this module asks which transport it is on.

All methods are called on the event loop's thread.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from rpc25519_tools.identity.certificate import PeerIdentity
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.wire.buffers import BufferPool
from rpc25519_tools.wire.greenpack import Buffer

#: Most bytes taken from the network at a time; also the largest piece encrypted at
#: once. Large enough to make system calls cheap, small enough to stay in a core's
#: cache on the way through decryption.
CHUNK_LEN: Final = 512 * 1024

#: Room for CHUNK_LEN bytes in TLS records of 16 KiB, each with its header and tag.
ENCRYPTED_LEN: Final = CHUNK_LEN + CHUNK_LEN // (16 * 1024) * 64

#: A writer is asked to wait while more than this is still unsent.
WRITE_HIGH_WATER_LEN: Final = 1 << 20

#: Bytes as they are for us, in TLS records, or in the envelopes of a tunnel.
Layer = Literal["plain", "tls", "tunnel"]

_per_thread = threading.local()


def scratch_buffer(layer: Layer = "plain") -> bytearray:
    """Return this thread's CHUNK_LEN bytes of passing-through memory.

    Its content is dead as soon as the callback that filled it returns.

    Args:
        layer: what is in it. Each layer has its own: while one still holds something to
            be opened, the next one is filled with what was opened so far.
    """
    held: dict[Layer, bytearray] | None = getattr(_per_thread, "scratch", None)
    if held is None:
        held = _per_thread.scratch = {}
    if layer not in held:
        held[layer] = bytearray(CHUNK_LEN)
    return held[layer]


def body_pool() -> BufferPool:
    """Return this thread's memory for frame bodies."""
    try:
        return _per_thread.pool  # type: ignore[no-any-return]  # set just below
    except AttributeError:
        _per_thread.pool = BufferPool()
        return _per_thread.pool  # type: ignore[no-any-return]  # set just above


def short_buffer() -> memoryview:
    """Return 64 KiB of this thread's memory for encrypted output that is copied."""
    try:
        return _per_thread.short  # type: ignore[no-any-return]  # set just below
    except AttributeError:
        _per_thread.short = memoryview(bytearray(64 * 1024))
        return _per_thread.short  # type: ignore[no-any-return]  # set just below


def encrypted_pool() -> BufferPool:
    """Return this thread's memory for encrypted chunks, ENCRYPTED_LEN bytes each."""
    try:
        return _per_thread.encrypted  # type: ignore[no-any-return]  # set just below
    except AttributeError:
        _per_thread.encrypted = BufferPool(ENCRYPTED_LEN, kept=2)
        return _per_thread.encrypted  # type: ignore[no-any-return]  # set just below


class Receiver(Protocol):
    """What a transport feeds. None of these methods raises."""

    def get_buffer(self) -> memoryview:
        """Return memory, never empty, for the next bytes."""

    def buffer_updated(self, count: int) -> None:
        """Take ``count`` bytes at the start of what ``get_buffer`` returned last."""

    def arriving(self, count: int, held_len: int) -> None:
        """Learn that bytes came that are of no use before others have come, too.

        Args:
            count: how many; ``buffer_updated`` will tell of them again, when they are
                of use.
            held_len: bytes of memory that are taken until then, all in all; the next
                ``buffer_updated`` means that they are free again.
        """

    def writable(self) -> None:
        """Learn that less than the high-water mark is unsent again."""

    def connection_lost(self, error: Exception | None) -> None:
        """Learn that the stream has ended; None means that it was closed in order."""


class Transport(Protocol):
    """One open connection."""

    @property
    def network(self) -> str:
        """``tcp`` or ``udp``: the first part of addresses on the wire."""

    @property
    def local_address(self) -> str:
        """Our end, such as ``127.0.0.1:8443`` or ``[::1]:8443``."""

    @property
    def remote_address(self) -> str:
        """The peer's end, in the same form."""

    @property
    def peer(self) -> PeerIdentity | None:
        """Who the peer proved to be; None when nothing was proved."""

    @property
    def security(self) -> str:
        """What protects the connection, for people to read."""

    @property
    def unsent_len(self) -> int:
        """Bytes accepted by ``write`` that have not left the process."""

    def fileno(self) -> int:
        """Return the socket's descriptor, -1 where there is none."""

    def has_hung_up(self) -> bool:
        """Tell whether the peer has closed its end, also behind bytes that are unread.

        Where that cannot be told, a connection that broke is noticed all the same.
        """

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Queue ``buffers`` in order; they must not change until they are sent."""

    def pause_reading(self) -> None:
        """Stop taking bytes from the network, within CHUNK_LEN bytes."""

    def resume_reading(self) -> None:
        """Take bytes from the network again."""

    def close(self) -> None:
        """Send what is queued, then close in order."""

    def abort(self) -> None:
        """Close at once and drop what is queued."""


class Arriving(Transport, Protocol):
    """A server's transport, as its door sees it until it is open."""

    #: Whether there is a handshake; else it is open at once.
    shakes_hands: bool
    #: Ends a handshake that takes too long.
    handshake_timer: asyncio.TimerHandle | None
    #: Called when the peer's first message was in order.
    answered: Callable[[], None] | None
    #: Called when the connection is over.
    gone: Callable[[], None] | None

    @property
    def has_received(self) -> bool:
        """Whether the peer has sent anything, from where it says it is."""

    def fail_handshake(self, error: Exception) -> None:
        """Give up on a handshake, if it is not done."""

    def end_with(self, error: Exception) -> None:
        """Close at once, and tell the receiver why."""

    def give_up(self) -> None:
        """Close at once, whether or not there is a connection yet."""


class PeerCheck(Protocol):
    """Decides, beyond the certificate, whether a peer is let in.

    Neither method may block, and both may raise PeerNotTrustedError, which ends the
    handshake.
    """

    def check(self, peer: PeerIdentity, host: str) -> None:
        """Judge a peer whose certificate is good.

        It has not proved yet that it has the key: remember nothing.

        Args:
            peer: who it says it is.
            host: where it is, without a port: for a client what it has dialled, for a
                server the address that the connection comes from.
        """

    def proven(self, peer: PeerIdentity, host: str) -> None:
        """Judge again, now that the handshake is done and the peer has the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """Who we are and whether we check the peer; plain TCP has none.

    Attributes:
        identity: our keys.
        verify: False checks nothing about the peer.
        peer_check: asked about each peer whose certificate is good; never without
            ``verify``.
    """

    identity: LoadedIdentity
    verify: bool = True
    peer_check: PeerCheck | None = None


#: Called when a connection is fully open; returns who takes its bytes.
Accept: TypeAlias = Callable[[Transport], Receiver]


def format_address(address: object) -> str:
    """Write a socket address as ``host:port``, with brackets round IPv6 hosts."""
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[0], address[1]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return str(address)
