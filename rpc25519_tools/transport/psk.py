"""The pre-shared-key tunnel as a transport inside another one.

To the transport below (TCP, TLS, whatever comes) it is a Receiver, to what is above it
is a Transport: frames that are written to it leave as envelopes, envelopes that open
arrive above as frames. What is above cannot tell the difference.

Before that comes the handshake, which is in ``psk_handshake``. Anybody who has seen a
peer's part of it can send it again. What proves the peer, and that its pre-shared key
is right, is the first sealed message that opens, or before it the confirmation of a
server that is one of ours.

What seals and opens is in ``wire.tunnel``.
"""

import asyncio
import hmac
import os
from collections.abc import Callable, Sequence
from typing import Final

from rpc25519_tools.errors import (
    ConnectionLostError,
    DecryptionError,
    HandshakeCutError,
    HandshakeError,
    LocalProtocolError,
    ProtocolError,
    SecurityError,
)
from rpc25519_tools.identity.certificate import (
    PeerIdentity,
)
from rpc25519_tools.transport.base import (
    Accept,
    Receiver,
    Transport,
    body_pool,
    scratch_buffer,
)
from rpc25519_tools.transport.psk_handshake import TunnelHandshake, TunnelSettings
from rpc25519_tools.transport.repeats import SeenHandshakes
from rpc25519_tools.transport.tcp import NOTHING_PROTECTED
from rpc25519_tools.transport.unproven import Share
from rpc25519_tools.wire import handshake
from rpc25519_tools.wire.buffers import BufferPool
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.constants import FRAME_HEADER_LEN, MAGIC
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.handshake import Handshake
from rpc25519_tools.wire.tunnel import (
    INNER_HEADER_LEN,
    MAX_SEALED_LEN,
    NONCE_LEN,
    OVERHEAD_LEN,
    Opener,
    Sealer,
    Side,
    first_nonce,
)

#: How long a client may take for its part of the handshake; a Go peer's own limit.
TUNNEL_TIMEOUT_S: Final = 10.0

#: What a server sends to a client that begins without a handshake: an impossible one.
_NO_HANDSHAKE: Final = bytes(handshake.PREFIX_LEN)
#: Of a client that was there and went, and may have repeated what others have said.
_NOTHING_SHOWN: Final = (
    "the client ended the connection before it had shown its pre-shared key"
)
#: A body from this length on is handed up without the frame's header in front, so that
#: it can go straight into its place.
_BODY_APART_FROM_LEN: Final = 16 * 1024
#: Most bytes taken at a time from a client that nobody has proved: a thousand that send
#: as fast as they can must not make the others wait for their turn.
_UNPROVEN_CHUNK_LEN: Final = 32 * 1024

Failed = Callable[[Exception, str], None]


class PskTransport:
    """A Receiver for the transport below, and the Transport for what is above.

    Args:
        below: an open connection; we are its receiver from now on.
        settings: who we are, and the key.
        side: which end of the connection we are.
        accept: called when the handshake is done and the peer is trusted, if it is who
            it says; for a server that is not proved yet (see ``is_proven``).
        failed: called with the reason and the peer's address when it never comes to
            that; the connection is closed by then. For a server also when what was
            accepted is never proved.
        peer_host: for the check what a client has dialled; None takes the address.
        max_message_len: longest message to be taken.
        share: what counts the memory of messages until the peer is proven; None leaves
            that to what is above, as afterwards.
        seen: the handshakes that a server has taken before, and takes no more.
    """

    def __init__(
        self,
        below: Transport,
        settings: TunnelSettings,
        *,
        side: Side,
        accept: Accept,
        failed: Failed,
        peer_host: str | None = None,
        max_message_len: int = MAX_SEALED_LEN,
        share: Share | None = None,
        seen: SeenHandshakes | None = None,
    ) -> None:
        self._below = below
        self._settings = settings
        self._side: Side = side
        self._accept = accept
        self._failed = failed
        self._receiver: Receiver | None = None
        self._peer_host = peer_host
        self._max_sealed_len = max_message_len + OVERHEAD_LEN
        self._share = share
        self._shaking = True
        self._proven = False
        self._when_proven: list[Callable[[], None]] = []
        self._closing = False
        self._over = False
        self._handshake = TunnelHandshake(
            settings, side, SeenHandshakes() if seen is None else seen
        )
        self._peer: PeerIdentity | None = None
        self._confirmed = False
        self._sealer: Sealer | None = None
        self._opener: Opener | None = None
        self._header = b""
        self._body_left = 0
        self._pieces: list[Buffer] = []
        self.handshake_timer: asyncio.TimerHandle | None = None
        if side == "client":
            below.write([self._handshake.hello()])

    # What is above sees this.

    @property
    def network(self) -> str:
        """The transport below's."""
        return self._below.network

    @property
    def local_address(self) -> str:
        """Our end."""
        return self._below.local_address

    @property
    def remote_address(self) -> str:
        """The peer's end."""
        return self._below.remote_address

    @property
    def peer(self) -> PeerIdentity | None:
        """The identity that the peer proved inside the tunnel."""
        return self._peer

    @property
    def security(self) -> str:
        """Both layers."""
        outer = self._below.security
        if outer == NOTHING_PROTECTED:
            outer = "plain TCP"
        return f"{outer}, inside it a pre-shared key with X25519 and ChaCha20-Poly1305"

    @property
    def unsent_len(self) -> int:
        """Sealed bytes that have not left the process."""
        return self._below.unsent_len

    @property
    def has_received(self) -> bool:
        """Whether the peer has sent anything."""
        return self._handshake.has_received

    @property
    def is_open(self) -> bool:
        """Whether the handshake is done and the connection goes on."""
        return not self._shaking and not self._over

    @property
    def is_proven(self) -> bool:
        """Whether the peer has shown that it has its key and the pre-shared one."""
        return self._proven

    def when_proven(self, call: Callable[[], None]) -> None:
        """Have ``call`` called as soon as the peer is proven, before its message."""
        self._when_proven.append(call)

    @property
    def confirms(self) -> bool:
        """Whether the server has confirmed its key, as those of Go do not."""
        return self._confirmed

    @property
    def peer_follows_codecs(self) -> bool:
        """Whether the peer bears several codecs on one connection (see `safe_codec`).

        A client knows it of our own servers, which confirm the key. The clients of Go
        bear it too: only their servers choose a codec by what they were sent.
        """
        return self._side == "server" or self._confirmed

    def fileno(self) -> int:
        """Return the socket's descriptor, -1 where there is none."""
        return self._below.fileno()

    def has_hung_up(self) -> bool:
        """Tell whether the peer sends nothing more."""
        return self._below.has_hung_up()

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Seal the frames in ``buffers``, however they are cut, and queue them."""
        if self._over:
            return
        sealed: list[Buffer] = []
        try:
            for buffer in buffers:
                self._seal_from(memoryview(buffer), sealed)
        except LocalProtocolError as exc:
            self._end_with(exc)
            return
        if len(sealed) > 1 and sum(map(len, sealed)) <= _BODY_APART_FROM_LEN:
            sealed = [b"".join(sealed)]
        if sealed:
            self._below.write(sealed)

    def pause_reading(self) -> None:
        """Stop taking bytes from the network; what has come is still delivered."""
        self._below.pause_reading()

    def resume_reading(self) -> None:
        """Take bytes from the network again."""
        self._below.resume_reading()

    def close(self) -> None:
        """Send what is queued, then close in order."""
        self._closing = True
        self._below.close()

    def abort(self) -> None:
        """Close at once and drop what is queued."""
        self._closing = True
        self._below.abort()

    # The transport below calls this.

    def get_buffer(self) -> memoryview:
        """Return memory for the next bytes; in the handshake for no more than those."""
        if self._over:
            return memoryview(scratch_buffer("tunnel"))
        if self._opener is not None:
            memory = self._opener.get_buffer()
            return memory if self._share is None else memory[:_UNPROVEN_CHUNK_LEN]
        return self._handshake.get_buffer()

    def buffer_updated(self, count: int) -> None:
        """Go on with the handshake, or open what has come."""
        if self._over:
            return
        if self._opener is None:
            data = self._handshake.buffer_updated(count)
            if data is not None:
                self._take_handshake(data)
            return
        opened = self._opener.buffer_updated(count)
        while not self._over:
            try:
                plain = next(opened, None)
                if plain is not None and not self._proven:
                    self._prove()
            except (ProtocolError, SecurityError, ConnectionLostError) as exc:
                self._end_with(exc)
                return
            if plain is None:
                self._tell_arriving(count)
                return
            self._deliver(plain)

    def arriving(self, count: int, held_len: int) -> None:
        """Pass it on."""
        if self._receiver is not None:
            self._receiver.arriving(count, held_len)

    def writable(self) -> None:
        """Pass it on."""
        if self._receiver is not None:
            self._receiver.writable()

    def connection_lost(self, error: Exception | None) -> None:
        """Pass the end on; say what it means when nothing was opened yet."""
        was_shaking, was_over, self._over = self._shaking, self._over, True
        if was_shaking:
            self._stop_shaking()
            self._failed(self._lost_in_handshake(error), self.remote_address)
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        assert self._opener is not None
        was_whole = self._opener.at_boundary
        self._free()
        if not was_whole and error is None:
            error = ConnectionLostError(
                "the peer closed the connection in the middle of a sealed message"
            )
        if self._side == "client" and not self._opener.opened and not self._confirmed:
            unproven = HandshakeError(
                "the server ended the connection before it had sent anything that "
                "opens: perhaps its pre-shared key is another one"
            )
            unproven.__cause__ = error
            error = unproven
        receiver.connection_lost(error)
        if not (was_over or self._closing):
            self._report_unproven(ConnectionLostError(_NOTHING_SHOWN))

    # Called by who made us.

    def fail_handshake(self, error: Exception) -> None:
        """Give up on a peer that takes too long, or a client that is not proven."""
        if self._shaking:
            self._over = True
            self._stop_shaking()
            self._below.abort()
            self._failed(error, self.remote_address)
        elif self.is_open and not self._proven:
            self._end_with(error)

    # Inside.

    def _other(self) -> str:
        return "server" if self._side == "client" else "client"

    def _stop_shaking(self) -> None:
        self._shaking = False
        if self.handshake_timer is not None:
            self.handshake_timer.cancel()

    def _take_handshake(self, data: bytes) -> None:
        """Take the first eight bytes of the peer's message, and then its rest."""
        try:
            theirs = self._handshake.take(data)
            if theirs is not None:
                self._open_tunnel(theirs)
        except (HandshakeError, DecryptionError) as exc:
            self._over = True
            self._stop_shaking()
            if self._side == "server" and data.startswith(MAGIC):
                self._below.write([_NO_HANDSHAKE])
            self._below.close()
            self._failed(exc, self.remote_address)

    def _open_tunnel(self, theirs: Handshake) -> None:
        """Check what the peer said, answer if that is due, and open the tunnel.

        Raises:
            HandshakeError, DecryptionError: the peer is refused.
        """
        peer = self._handshake.judge(theirs, outer=self._below.peer, host=self._host())
        agreed = self._handshake.agree(theirs)
        key = agreed.session_key
        self._sealer = Sealer(key, first_nonce(self._side, os.urandom(NONCE_LEN)))
        if self._side == "server":
            self._below.write([self._handshake.hello(agreed.proof)])
        elif theirs.confirmation:
            if not hmac.compare_digest(agreed.proof, theirs.confirmation):
                # The server learns it from this, which does not open there.
                self._below.write(self._sealer.seal([MAGIC + bytes([Codec.NONE])]))
                raise DecryptionError(
                    "the server has another pre-shared key than we have"
                )
            self._confirmed = True
        self._peer = peer
        writer: Side = "client" if self._side == "server" else "server"
        # Of the pool nobody gets anything whom we do not know.
        self._opener = Opener(
            key,
            writer,
            scratch_buffer("tunnel"),
            body_pool() if self._share is None else BufferPool(kept=0),
            max_sealed_len=self._max_sealed_len,
            on_held=None if self._share is None else self._hold,
        )
        if self._confirmed:
            self._prove()
        self._stop_shaking()
        self._receiver = self._accept(self)

    def _prove(self) -> None:
        """Learn that the peer has both keys.

        Raises:
            PeerNotTrustedError: it is to be let in no more.
        """
        check = self._settings.peer_check
        if check is not None and self._peer is not None:
            check.proven(self._peer, self._host())
        self._proven = True
        if self._share is not None:
            assert self._opener is not None
            self._opener.pool = body_pool()
            self._share.close()
            self._share = None
        calls, self._when_proven = self._when_proven, []
        for call in calls:
            call()

    def _hold(self, held_len: int) -> None:
        """Make room for the message that comes.

        Raises:
            ConnectionLostError: there is none.
        """
        if self._share is not None:
            self._share.hold(held_len, asyncio.get_running_loop().time())

    def _tell_arriving(self, count: int) -> None:
        """Tell of a message of which a part has come."""
        assert self._opener is not None
        held_len = self._opener.held_len
        if held_len and self._receiver is not None:
            # What came in front of it has been delivered, and counted there.
            count = min(count, self._opener.partial_len)
            self._receiver.arriving(count, 0 if self._share is not None else held_len)

    def _free(self) -> None:
        """Let go of a message that will not come to its end."""
        if self._opener is not None:
            self._opener.give_up()
        if self._share is not None:
            self._share.close()

    def _host(self) -> str:
        """Return where the peer is, without its port."""
        if self._peer_host is not None:
            return self._peer_host
        return self.remote_address.rpartition(":")[0].strip("[]")

    def _report_unproven(self, error: Exception) -> None:
        """Tell of a client that was accepted and has come to nothing."""
        if self._side == "server" and not self._proven:
            self._failed(error, self.remote_address)

    def _lost_in_handshake(self, error: Exception | None) -> Exception:
        if isinstance(error, SecurityError):
            return error
        lost = HandshakeCutError(
            f"the {self._other()} closed the connection during the pre-shared-key "
            "handshake: perhaps it does not use -psk, refuses our certificate, or "
            "refuses connections for now"
        )
        lost.__cause__ = error
        return lost

    def _seal_from(self, view: memoryview, sealed: list[Buffer]) -> None:
        """Take the next piece of the frames that are written.

        Raises:
            LocalProtocolError: a message fits a frame, but not an envelope.
        """
        assert self._sealer is not None
        while len(view):
            if not self._body_left:
                missing = FRAME_HEADER_LEN - len(self._header)
                self._header += bytes(view[:missing])
                view = view[missing:]
                if len(self._header) < FRAME_HEADER_LEN:
                    return
                self._body_left = int.from_bytes(self._header[INNER_HEADER_LEN:], "big")
                if self._body_left > MAX_SEALED_LEN - OVERHEAD_LEN:
                    raise LocalProtocolError(
                        f"a message of {self._body_left} bytes does not fit the tunnel;"
                        f" the limit is {MAX_SEALED_LEN - OVERHEAD_LEN}"
                    )
                self._pieces = [self._header[:INNER_HEADER_LEN]]
                self._header = b""
            piece = view[: self._body_left]
            view = view[len(piece) :]
            self._body_left -= len(piece)
            self._pieces.append(piece)
            if not self._body_left:
                sealed += self._sealer.seal(self._pieces)
                self._pieces = []

    def _deliver(self, plain: bytes) -> None:
        """Hand one message up as a frame."""
        body = memoryview(plain)[INNER_HEADER_LEN:]
        header = plain[:INNER_HEADER_LEN] + len(body).to_bytes(8, "big")
        if len(body) < _BODY_APART_FROM_LEN:
            self._feed(memoryview(b"".join((header, body))))
        else:
            self._feed(memoryview(header))
            self._feed(body)

    def _feed(self, data: memoryview) -> None:
        while len(data) and self._receiver is not None and not self._over:
            memory = self._receiver.get_buffer()
            count = min(len(memory), len(data))
            memory[:count] = data[:count]
            self._receiver.buffer_updated(count)
            data = data[count:]

    def _end_with(self, error: Exception) -> None:
        """End an open tunnel at once, for the reason given."""
        self._over = True
        self._free()
        receiver, self._receiver = self._receiver, None
        self._below.abort()
        if receiver is not None:
            receiver.connection_lost(error)
            self._report_unproven(error)


def is_proven(transport: Transport) -> bool:
    """Tell whether a peer is who it says, as far as its transport shows that at all.

    Only a tunnel is handed on before.
    """
    return not isinstance(transport, PskTransport) or transport.is_proven


def safe_codec(transport: Transport, codec: Codec) -> Codec:
    """Return what a client can pack with without harm to the server.

    A Go server in the tunnel dies of its second answer when a client packs with another
    codec than the server's own, which is s2 where nobody asked for another. Messages
    marked with codec 7, not packed, it takes from everybody.
    """
    if not isinstance(transport, PskTransport) or transport.peer_follows_codecs:
        return codec
    return codec if codec is Codec.S2 else Codec.NONE_ONCE


def open_tunnel(
    below: Transport,
    settings: TunnelSettings,
    *,
    accept: Accept,
    failed: Failed,
    timeout_s: float = TUNNEL_TIMEOUT_S,
    waited_s: float = 0.0,
    max_message_len: int = MAX_SEALED_LEN,
    share: Share | None = None,
    seen: SeenHandshakes | None = None,
) -> PskTransport:
    """Begin a handshake with the client of a new connection, and watch over its time.

    Args:
        below: the connection; the tunnel has to be its receiver.
        settings: who we are, and the key.
        accept: called when the tunnel is open.
        failed: called when it never comes so far.
        timeout_s: how long the client may take.
        waited_s: how much of that it has taken already.
        max_message_len: see PskTransport.
        share: see PskTransport.
        seen: see PskTransport.
    """
    made = PskTransport(
        below,
        settings,
        side="server",
        accept=accept,
        failed=failed,
        max_message_len=max_message_len,
        share=share,
        seen=seen,
    )
    reason = HandshakeError(f"no pre-shared-key handshake within {timeout_s:g} s")
    made.handshake_timer = asyncio.get_running_loop().call_later(
        max(0.0, timeout_s - waited_s), made.fail_handshake, reason
    )
    return made
