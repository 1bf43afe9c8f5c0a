"""One QUIC connection as a state machine: datagrams and time in, datagrams out.

The only module that knows aioquic. It adds to it what it lacks: a server that asks for
the client's certificate, our own judgement of certificates inside the handshake, flow
control that follows what has really been consumed, bounds on the handshake, and probes
for larger datagrams. Some of that needs names that aioquic keeps to itself; the version
is pinned to those that have them, and ``tests/transport/test_quic_engine.py`` fails
where another one changes them.

A connection carries one stream, which the client opens, as that of a Go peer does.

Source: RFC 9000, 9001, 9002; SECURITY-WIRE.md section 6.
"""

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from aioquic import tls
from aioquic.buffer import Buffer as QuicBuffer  # type: ignore[attr-defined]
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.base import (
    K_INITIAL_WINDOW,
    register_congestion_control,
)
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    PING_FRAME_CAPACITY,
    TRANSPORT_CLOSE_FRAME_CAPACITY,
    QuicConnection,
    QuicConnectionError,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
    pull_quic_transport_parameters,
    push_quic_transport_parameters,
)
from aioquic.quic.packet_builder import (
    QuicDeliveryState,
    QuicPacketBuilder,
    QuicSentPacket,
)
from aioquic.quic.retry import QuicRetryTokenHandler
from aioquic.quic.stream import QuicStream
from cryptography import x509

from rpc25519_tools.errors import (
    ConnectionLostError,
    DeadlineError,
    HandshakeError,
    PeerNotTrustedError,
    RemoteProtocolError,
)
from rpc25519_tools.identity.certificate import MALFORMED, PeerIdentity, verify_peer
from rpc25519_tools.identity.printable import printable
from rpc25519_tools.transport.base import TlsSettings
from rpc25519_tools.transport.quic_mtu import BASE_LEN, PathMtu
from rpc25519_tools.transport.quic_ranges import SortedRanges

#: A socket's address: host and port, and two more numbers for IPv6.
Endpoint = tuple[Any, ...]
#: A datagram and where it goes.
Outgoing = tuple[bytes, Endpoint]
Side = Literal["client", "server"]

#: All our connection ids, and those of Go peers, have so many bytes.
ID_LEN: Final = 20
#: The name in every certificate, whatever the address dialled.
_SERVER_NAME: Final = "localhost"
#: The one stream of a connection.
_STREAM: Final = 0
#: What a peer may send beyond what has been consumed, at most.
WINDOW_LEN: Final = 4 << 20
#: The same at first; it grows with what is consumed. One packet with a gap before it
#: can make us hold as much.
FIRST_WINDOW_LEN: Final = 512 * 1024
#: Most bytes of TLS messages from a peer; certificates take a kilobyte or two.
_MOST_HANDSHAKE_LEN: Final = 32 * 1024
#: Most pieces of a handshake, and of a stream, that lie apart from each other. A window
#: of small datagrams of which each second one got lost has 1750.
_MOST_CRYPTO_GAPS: Final = 64
_MOST_GAPS: Final = 4096
#: Shorter pieces are put together, since each object takes some 50 bytes by itself.
_SHORT_LEN: Final = 1024
_PIECE_LEN: Final = 16 * 1024
#: A connection on which nothing arrives for so long is over, as with Go peers.
IDLE_TIMEOUT_S: Final = 30.0
#: Nothing in flight needs a larger window than the streams have.
_MOST_WINDOW_LEN: Final = 2 * WINDOW_LEN
#: The round trip that is assumed before one was measured (RFC 9002 section 6.2.2 has
#: 333 ms): a lost first datagram is sent again after twice this.
_INITIAL_RTT_S: Final = 0.1

#: A silent peer is asked again at least so often; on a path with long round trips after
#: twice as long, and twice as long again.
_LONGEST_WAIT_S: Final = 2.0
_DOUBLINGS: Final = 2

#: What we tell peers of how long our acknowledgements may take. It is a millisecond,
#: unless the loop is busy; they wait so much longer before they send anew what may be
#: lost. aioquic says 25 ms, and does not mean it.
_MOST_ACK_DELAY_MS: Final = 5
#: So many packets are acknowledged at once, fewer soon.
_ACK_EVERY: Final = 2

#: RFC 8446 section 6.2: alerts about a certificate.
_CERTIFICATE_ALERTS: Final = {
    42: "bad certificate",
    43: "unsupported certificate",
    44: "certificate revoked",
    45: "certificate expired",
    46: "certificate unknown",
    48: "unknown authority",
    49: "access denied",
    116: "certificate required",
}
_CRYPTO_ERROR: Final = 0x100
_NO_APPLICATION_PROTOCOL: Final = 120
#: What aioquic says of a connection on which nothing came.
_IDLE: Final = "Idle timeout"
#: Characters of a peer's reason that are passed on.
_REASON_LEN: Final = 200
#: Bytes of the id that a client makes up for the server, at least (RFC 9000, 7.2).
_SHORTEST_ID_LEN: Final = 8

#: aioquic logs what strangers do as warnings; our callers are told of it anyway.
_SILENT: Final = logging.getLogger("rpc25519_tools.quic.silent")
_SILENT.disabled = True


class _RefusedAlert(tls.Alert):
    description = tls.AlertDescription.bad_certificate


class _NoCertificateAlert(tls.Alert):
    description = tls.AlertDescription.certificate_required


class _WatchedReno(RenoCongestionControl):
    """New Reno that tells which sizes arrive."""

    mtu: PathMtu | None = None
    #: Called when usual datagrams have to become smaller.
    narrowed: Callable[[], None] | None = None

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        super().on_packet_acked(now=now, packet=packet)
        self.congestion_window = min(self.congestion_window, _MOST_WINDOW_LEN)
        if self.mtu is not None and packet.sent_bytes <= self.mtu.size:
            self.mtu.packet_acked(packet.sent_bytes, packet.packet_number)

    def on_packets_expired(self, *, packets: Any) -> None:
        packets = list(packets)
        super().on_packets_expired(packets=packets)
        # Also what is sent again before it is known to be lost: in a black hole
        # nothing else tells.
        self._look_at(packets, packets[-1].sent_time if packets else 0.0)

    def on_packets_lost(self, *, now: float, packets: Any) -> None:
        packets = list(packets)
        usual = packets
        if self.mtu is not None:
            # What was sent before the path became narrow says nothing of its load.
            usual = [one for one in packets if one.sent_bytes <= self.mtu.size]
            longer = [one for one in packets if one.sent_bytes > self.mtu.size]
            super().on_packets_expired(packets=longer)
        if usual:
            super().on_packets_lost(now=now, packets=usual)
        self._look_at(usual, now)

    def use_size(self, size: int) -> None:
        """Count in datagrams of this size from now on (RFC 9002 section 7.2)."""
        self._max_datagram_size = size
        if self.ssthresh is None:
            initial_len = K_INITIAL_WINDOW * size
            self.congestion_window = max(self.congestion_window, initial_len)

    def _look_at(self, packets: Sequence[QuicSentPacket], now: float) -> None:
        mtu = self.mtu
        if mtu is None:
            return
        narrowed = [
            mtu.packet_lost(one.sent_bytes, one.packet_number, now) for one in packets
        ]
        if any(narrowed) and self.narrowed is not None:
            self.narrowed()


register_congestion_control("rpc25519-reno", _WatchedReno)


def _configuration(settings: TlsSettings, side: Side) -> QuicConfiguration:
    """Return what aioquic is told; no ALPN, since a Go peer refuses any."""
    return QuicConfiguration(
        is_client=side == "client",
        cipher_suites=[tls.CipherSuite.CHACHA20_POLY1305_SHA256],
        congestion_control_algorithm="rpc25519-reno",
        connection_id_length=ID_LEN,
        idle_timeout=IDLE_TIMEOUT_S,
        initial_rtt=_INITIAL_RTT_S,
        max_data=FIRST_WINDOW_LEN,
        max_stream_data=FIRST_WINDOW_LEN,
        max_datagram_size=BASE_LEN,
        server_name=_SERVER_NAME,
        supported_versions=[QuicProtocolVersion.VERSION_1],
        certificate=settings.identity.certificate,
        private_key=settings.identity.private_key,
        verify_mode=0,  # ssl.CERT_NONE: we judge by ourselves
    )


class _Connection(QuicConnection):
    """aioquic's connection with our additions.

    Args:
        side: which end we are.
        configuration: for aioquic.
        judge: called with the peer's certificate, before it has proved the key; raises
            PeerNotTrustedError. None lets anybody in, and asks for no certificate.
        kwargs: for aioquic.
    """

    def __init__(
        self,
        side: Side,
        configuration: QuicConfiguration,
        *,
        judge: Callable[[x509.Certificate], None] | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(configuration=configuration, **kwargs)
        self._judge = judge
        self._judged = False
        self._handshake_len = 0
        self._logger = self._loss._logger = _SILENT  # type: ignore[assignment]
        #: Bytes that the application has taken.
        self.consumed = 0
        self.mtu: PathMtu | None = None
        self._now = 0.0
        self._unacked = 0
        self._must_open = False
        # The peer opens one stream at a server, and none at a client.
        for limit, value in (
            (self._local_max_streams_bidi, 1 if side == "server" else 0),
            (self._local_max_streams_uni, 0),
        ):
            limit.value = limit.sent = value

    # What aioquic calls.

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        context = self.tls
        context._supported_groups = [tls.Group.X25519]
        context._signature_algorithms = [tls.SignatureAlgorithm.ED25519]
        if not self._is_client:
            context._request_client_certificate = self._judge is not None
        plain = context.handle_message

        def handle_message(
            input_data: bytes, output_buf: dict[tls.Epoch, QuicBuffer]
        ) -> None:
            self._handshake_len += len(input_data)
            if self._handshake_len > _MOST_HANDSHAKE_LEN:
                raise tls.AlertDecodeError("too long a handshake")
            try:
                plain(input_data, output_buf)
            except MALFORMED:  # from the certificate's library
                raise tls.AlertDecodeError("a message that cannot be read") from None
            self._check_peer()

        context.handle_message = handle_message  # type: ignore[method-assign]

    def _check_peer(self) -> None:
        """Judge the peer as soon as its certificate is known.

        Nothing of what aioquic makes of the same messages leaves before this: an error
        here keeps it from being sent.
        """
        if self._judged or self._judge is None:
            return
        certificate = self.tls._peer_certificate
        done = self.tls.state in (
            tls.State.CLIENT_POST_HANDSHAKE,
            tls.State.SERVER_POST_HANDSHAKE,
        )
        try:
            if certificate is not None:
                self._judged = True
                self._judge(certificate)
            elif done:
                self._judged = True
                raise _NoCertificateAlert
        except PeerNotTrustedError:
            raise _RefusedAlert from None

    def _payload_received(
        self,
        context: QuicReceiveContext,
        plain: bytes,
        crypto_frame_required: bool = False,  # noqa: FBT001, FBT002  # aioquic's
    ) -> tuple[bool, bool]:
        if context.epoch is tls.Epoch.HANDSHAKE:
            # Only who has got our answer has these keys (RFC 9000 section 8.1). aioquic
            # says so too, but not of a client whose very first such packet ends it all.
            context.network_path.is_validated = True
        found: tuple[bool, bool] = super()._payload_received(
            context, plain, crypto_frame_required=crypto_frame_required
        )
        return found

    def _handle_crypto_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: QuicBuffer
    ) -> None:
        """Bound what strangers can make us hold, and look through."""
        begin = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(begin)
        gaps = len(self._crypto_streams[context.epoch].receiver._ranges)
        too_long = end > _MOST_HANDSHAKE_LEN
        if too_long or gaps > _MOST_CRYPTO_GAPS:
            raise QuicConnectionError(
                error_code=QuicErrorCode.CRYPTO_BUFFER_EXCEEDED,
                frame_type=frame_type,
                reason_phrase=f"too {'long' if too_long else 'scattered'} a handshake",
            )
        super()._handle_crypto_frame(context, frame_type, buf)

    def _get_or_create_stream(self, frame_type: int, stream_id: int) -> QuicStream:
        stream = super()._get_or_create_stream(frame_type, stream_id)
        self._watch_gaps(stream)
        return stream

    def _get_or_create_stream_for_send(self, stream_id: int) -> QuicStream:
        stream = super()._get_or_create_stream_for_send(stream_id)
        self._watch_gaps(stream)
        return stream

    def _watch_gaps(self, stream: QuicStream) -> None:
        """Let a stream find its pieces fast, and have a bounded number of them."""
        ranges = stream.receiver._ranges
        if not isinstance(ranges, SortedRanges):
            assert not len(ranges)
            stream.receiver._ranges = SortedRanges()
        elif len(ranges) > _MOST_GAPS:
            raise QuicConnectionError(
                error_code=QuicErrorCode.INTERNAL_ERROR,
                frame_type=QuicFrameType.STREAM_BASE,
                reason_phrase="too scattered a stream",
            )

    def _parse_transport_parameters(
        self,
        data: bytes,
        from_session_ticket: bool = False,  # noqa: FBT001, FBT002  # aioquic's signature
    ) -> None:
        super()._parse_transport_parameters(
            data, from_session_ticket=from_session_ticket
        )
        parameters = pull_quic_transport_parameters(QuicBuffer(data=data))
        self.mtu = PathMtu(parameters.max_udp_payload_size or 65527)
        control = self._loss._cc
        assert isinstance(control, _WatchedReno)
        control.mtu, control.narrowed = self.mtu, self.use_mtu

    def _serialize_transport_parameters(self) -> bytes:
        plain = super()._serialize_transport_parameters()
        parameters = pull_quic_transport_parameters(QuicBuffer(data=plain))
        parameters.max_ack_delay = _MOST_ACK_DELAY_MS
        buffer = QuicBuffer(capacity=len(plain) + 8)
        push_quic_transport_parameters(buffer, parameters)
        return buffer.data

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: Any) -> None:
        if self._must_open:
            frame = builder.start_frame(
                QuicFrameType.STREAM_BASE | 2,  # with a length
                capacity=3,
                handler=self._on_open_delivery,
            )
            frame.push_uint_var(_STREAM)
            frame.push_uint_var(0)
            self._must_open = False
        limit = self._local_max_data
        if self.owes_window:
            limit.value = self.consumed + self._window_len
        if limit.value != limit.sent:
            frame = builder.start_frame(
                QuicFrameType.MAX_DATA,
                capacity=CONNECTION_LIMIT_FRAME_CAPACITY,
                handler=self._on_connection_limit_delivery,
                handler_args=(limit,),
            )
            frame.push_uint_var(limit.value)
            limit.sent = limit.value

    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: Any, stream: QuicStream
    ) -> None:
        most = self.consumed + self._window_len
        if most - stream.max_stream_data_local >= self._window_len // 4:
            stream.max_stream_data_local = most
        if stream.max_stream_data_local_sent != stream.max_stream_data_local:
            frame = builder.start_frame(
                QuicFrameType.MAX_STREAM_DATA,
                capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
                handler=self._on_max_stream_data_delivery,
                handler_args=(stream,),
            )
            frame.push_uint_var(_STREAM)
            frame.push_uint_var(stream.max_stream_data_local)
            stream.max_stream_data_local_sent = stream.max_stream_data_local

    # What the engine calls.

    @property
    def handshake_done(self) -> bool:
        return self._handshake_complete

    @property
    def is_closing(self) -> bool:
        return self._close_event is not None

    @property
    def has_begun(self) -> bool:
        return self._peer_cid.sequence_number is not None

    @property
    def knows_address(self) -> bool:
        # Who has shown a certificate, or that there is none, has read our hello; where
        # that ends the handshake, aioquic does not look at the path any more.
        return self._judged or (
            bool(self._network_paths) and self._network_paths[0].is_validated
        )

    @property
    def end(self) -> events.ConnectionTerminated | None:
        """How the connection ends, known before aioquic tells of it."""
        return self._close_event

    @property
    def ends_by_peer(self) -> bool:
        return self._state is QuicConnectionState.DRAINING

    @property
    def stream(self) -> QuicStream | None:
        return self._streams.get(_STREAM)

    @property
    def owes_window(self) -> bool:
        """Whether the peer should be told that it may send more."""
        more = self.consumed + self._window_len - self._local_max_data.value
        return more >= self._window_len // 4

    @property
    def _window_len(self) -> int:
        return min(WINDOW_LEN, max(FIRST_WINDOW_LEN, self.consumed))

    @property
    def gap_len(self) -> int:
        """Bytes held for what came before its turn, with the gaps."""
        stream = self.stream
        return 0 if stream is None else len(stream.receiver._buffer)

    def without_excess(self, datagrams: list[Outgoing]) -> list[Outgoing]:
        """Keep to three times what an unproven address has sent (RFC 9000, 8.1).

        aioquic does so itself, except with farewells.
        """
        path = self._network_paths[0]
        if path.is_validated:
            return datagrams
        while datagrams and path.bytes_sent > 3 * path.bytes_received:
            if datagrams[-1][1] != path.addr:
                break
            path.bytes_sent -= len(datagrams.pop()[0])
        return datagrams

    def limit_backoff(self) -> None:
        """Ask a silent peer again in time, however long it has been silent.

        Each time that nothing comes aioquic waits twice as long; when the path works
        again nothing moves for as long as it did not. A packet every two seconds is
        no burden to any path.
        """
        loss = self._loss
        doublings = math.log2(_LONGEST_WAIT_S / loss.get_probe_timeout())
        loss._pto_count = min(loss._pto_count, max(_DOUBLINGS, int(doublings)))

    def count_received(self) -> None:
        """Count a datagram that has come."""
        self._unacked += 1

    def ack_often(self, now: float) -> None:
        """Acknowledge every second packet at once (RFC 9000 section 13.2.2).

        aioquic waits for a millisecond, which is a round trip or more on many paths:
        after a loss, when few packets are on their way, everything waits for that.
        """
        space = self._spaces[tls.Epoch.ONE_RTT]
        if space.ack_at is None:
            self._unacked = 0
        elif self._unacked >= _ACK_EVERY:
            space.ack_at = min(space.ack_at, now)
            self._unacked = 0

    def open_stream(self) -> None:
        """Let the server know the stream, though there is nothing in it yet.

        It could say nothing before: a push, say. aioquic sends no empty frames.
        """
        self.send_stream_data(_STREAM, b"")
        self._must_open = True

    def _on_open_delivery(self, delivery: QuicDeliveryState) -> None:
        stream = self.stream
        if delivery is not QuicDeliveryState.ACKED and stream is not None:
            self._must_open = stream.sender.highest_offset == 0

    def use_mtu(self) -> None:
        """Make datagrams of the size that the path is known to take."""
        assert self.mtu is not None
        loss, control = self._loss, self._loss._cc
        assert isinstance(control, _WatchedReno)
        self._max_datagram_size = self.mtu.size
        control.use_size(self.mtu.size)
        loss._pacer._max_datagram_size = self.mtu.size
        loss._pacer.update_rate(control.congestion_window, loss._rtt_smoothed)

    def probe(self, size: int, now: float) -> list[Outgoing]:
        """Return a packet of ``size`` bytes that says nothing, if it may go now."""
        path = self._network_paths[0]
        if not path.is_validated:
            return []
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=self._is_client,
            max_datagram_size=size,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            spin_bit=self._spin_bit,
            version=self._version or QuicProtocolVersion.VERSION_1,
        )
        builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[tls.Epoch.ONE_RTT])
        frame = builder.start_frame(
            QuicFrameType.PING,
            capacity=PING_FRAME_CAPACITY,
            handler=self._on_probe_delivery,
            handler_args=(size,),
        )
        frame.push_bytes(bytes(builder.remaining_buffer_space))
        # Or a probe, which can be longer than the first window, would hold up all else
        # for a round trip, and its loss would count (RFC 8899 section 3, point 7).
        assert builder._packet is not None
        builder._packet.in_flight = False
        self._loss._time_of_last_sent_ack_eliciting_packet = now
        return self._flush_builder(
            builder=builder, network_path=path, peer_cid=self._peer_cid.cid, now=now
        )

    def _on_probe_delivery(self, delivery: QuicDeliveryState, size: int) -> None:
        assert self.mtu is not None
        if delivery is QuicDeliveryState.ACKED:
            self.mtu.probe_acked(size, self._now)
            self.use_mtu()
        else:
            self.mtu.probe_lost(size, self._now)


class QuicEngine:
    """One end of one connection.

    Args:
        side: which end we are.
        settings: who we are and whether we check the peer.
        peer_host: where the peer is, without its port, for the check of its key.
        original_id: for a server, the id that the client's first packet was for.
        retry_id: for a server that made the client try again, the id that it gave it.
    """

    def __init__(
        self,
        side: Side,
        settings: TlsSettings,
        *,
        peer_host: str,
        original_id: bytes | None = None,
        retry_id: bytes | None = None,
    ) -> None:
        self.side: Side = side
        self._settings = settings
        self._peer_host = peer_host
        self._peer: PeerIdentity | None = None
        self._refusal: PeerNotTrustedError | None = None
        self._quic = _Connection(
            side,
            _configuration(settings, side),
            judge=self._judge if settings.verify else None,
            original_destination_connection_id=original_id,
            retry_source_connection_id=retry_id,
        )
        #: Ids by which packets for us are known; ``take_ids`` tells of changes.
        self.ids = {self._quic.host_cid}
        self._ids_changed = False
        self._fault: Exception | None = None
        #: Where a client comes from, until its handshake is done.
        self._first_endpoint: Endpoint | None = None
        #: Whether the client has sent back a token of ours.
        self._has_token = retry_id is not None
        #: Whether the handshake is done and the peer is trusted.
        self.is_open = False
        #: What has come and was not taken yet, in order.
        self.arrived: list[bytes | bytearray] = []
        #: Whether nothing comes after it.
        self.peer_ended = False
        #: Whether the connection is over.
        self.is_closed = False
        #: Why; None where the peer closed it in order.
        self.error: Exception | None = None

    @property
    def peer(self) -> PeerIdentity | None:
        """The identity in the peer's verified certificate."""
        return self._peer if self.is_open else None

    @property
    def security(self) -> str:
        """Version, suite and key exchange group."""
        return "QUICv1 TLSv1.3 TLS_CHACHA20_POLY1305_SHA256 x25519"

    @property
    def has_received(self) -> bool:
        """Whether the peer has sent a packet that could be read."""
        return self._quic.has_begun

    @property
    def knows_address(self) -> bool:
        """Whether the peer has shown that it can receive where it says it is."""
        return self._has_token or self._quic.knows_address

    @property
    def peer_endpoint(self) -> Endpoint | None:
        """Where datagrams go now."""
        return self._quic.get_peer_address()

    # Certificates.

    def _judge(self, certificate: x509.Certificate) -> None:
        """Decide about the peer's certificate, inside the handshake."""
        settings, is_server = self._settings, self.side == "server"
        try:
            self._peer = verify_peer(
                certificate,
                settings.identity.authorities,
                usage="client" if is_server else "server",
                now=datetime.now(UTC),
                host_name=None if is_server else _SERVER_NAME,
            )
            if settings.peer_check is not None:
                settings.peer_check.check(self._peer, self._peer_host)
        except PeerNotTrustedError as exc:
            self._refusal = exc
            raise

    def _prove(self) -> None:
        """Learn that the handshake is done: the peer has the key that it showed."""
        settings = self._settings
        if settings.verify and self._peer is None:
            # Cannot be: _Connection refuses such a handshake. Nobody gets in twice.
            self._refuse(PeerNotTrustedError("the peer showed no certificate"))
            return
        if settings.peer_check is not None and self._peer is not None:
            try:
                settings.peer_check.proven(self._peer, self._peer_host)
            except PeerNotTrustedError as exc:
                self._refuse(exc)
                return
        self.is_open = True
        if self.side == "client":
            self._quic.open_stream()

    def _refuse(self, reason: PeerNotTrustedError) -> None:
        self._refusal = reason
        self._quic.close(
            error_code=_CRYPTO_ERROR + tls.AlertDescription.bad_certificate,
            frame_type=QuicFrameType.CRYPTO,
        )

    # Datagrams and time.

    def connect(self, endpoint: Endpoint, now: float) -> None:
        """Begin the handshake of a client."""
        self._quic.connect(endpoint, now)

    def receive(self, data: bytes, endpoint: Endpoint, now: float) -> None:
        """Take a datagram that came for us."""
        quic = self._quic
        if quic.is_closing:
            return
        if self.side == "server" and not quic.handshake_done:
            # Nobody moves before the handshake is done (RFC 9000 section 9). aioquic
            # would follow, and take a new address for proven by the old one's packets:
            # a stranger could act in the name of another address.
            if self._first_endpoint is None:
                self._first_endpoint = endpoint
            elif endpoint != self._first_endpoint:
                return
        quic._now = now
        quic.count_received()
        try:
            quic.receive_datagram(data, endpoint, now)
        except Exception as exc:  # noqa: BLE001  # whatever a stranger's bytes set off
            self._break_off(exc)
        self._take_events()

    def _break_off(self, exc: Exception) -> None:
        """End this connection for what its peer's bytes have set off in aioquic."""
        self._fault = RemoteProtocolError(f"QUIC: {type(exc).__name__}")
        self._quic.close(error_code=QuicErrorCode.PROTOCOL_VIOLATION)

    def handle_timer(self, now: float) -> None:
        """Do what is due, if anything is."""
        at = self._quic.get_timer()
        if at is not None and now >= at:
            self._quic._now = now
            self._quic.handle_timer(now)
            self._quic.limit_backoff()
            self._take_events()

    def timer(self) -> float | None:
        """Return when ``handle_timer`` and ``outgoing`` want to be called next."""
        at, mtu = self._quic.get_timer(), self._quic.mtu
        if mtu is not None and mtu.next_at is not None and self.is_open:
            at = mtu.next_at if at is None else min(at, mtu.next_at)
        return at

    def outgoing(self, now: float) -> list[Outgoing]:
        """Return the datagrams that are to be sent now."""
        quic = self._quic
        quic._now = now
        quic.ack_often(now)
        try:
            datagrams: list[Outgoing] = quic.datagrams_to_send(now)
        except Exception as exc:  # noqa: BLE001  # as in receive
            self._break_off(exc)
            datagrams = quic.datagrams_to_send(now)  # the farewell
        datagrams = quic.without_excess(datagrams)
        if self.is_open and not quic.is_closing and quic.mtu is not None:
            size = quic.mtu.next_probe(now)
            if size is not None:
                probe = quic.probe(size, now)
                if probe:
                    datagrams += probe
                else:
                    quic.mtu.probe_lost(size, now)
        self._take_events()
        return datagrams

    def too_long(self, size: int, now: float) -> None:
        """Learn that the system does not send datagrams of that size."""
        mtu = self._quic.mtu
        if mtu is not None and mtu.refused(size, now):
            self._quic.use_mtu()

    def ping(self) -> None:
        """Have a packet sent that the peer has to acknowledge."""
        self._quic.send_ping(0)

    def take_ids(self) -> bool:
        """Return whether ``ids`` have changed since this was last asked."""
        changed, self._ids_changed = self._ids_changed, False
        return changed

    # The stream.

    def send(self, data: memoryview) -> None:
        """Queue a copy of bytes."""
        # What it does with them is to add them to a bytearray.
        self._quic.send_stream_data(_STREAM, data)  # type: ignore[arg-type]

    def finish(self) -> None:
        """Say that nothing comes after what is queued."""
        self._quic.send_stream_data(_STREAM, b"", end_stream=True)

    @property
    def can_send(self) -> bool:
        """Whether there is a stream; the server's comes with the client's."""
        return self._quic.stream is not None

    @property
    def unsent_len(self) -> int:
        """Bytes queued that have never been sent."""
        stream = self._quic.stream
        if stream is None:
            return 0
        return stream.sender._buffer_stop - stream.sender.highest_offset

    @property
    def unacked_len(self) -> int:
        """Bytes queued that the peer has not acknowledged."""
        stream = self._quic.stream
        if stream is None:
            return 0
        return stream.sender._buffer_stop - stream.sender._buffer_start

    @property
    def is_finished(self) -> bool:
        """Whether the peer has got all that was queued, and that it is all."""
        stream = self._quic.stream
        return stream is None or stream.sender.is_finished

    @property
    def gap_len(self) -> int:
        """Bytes held for what came before its turn, with the gaps between."""
        return self._quic.gap_len

    def forget(self) -> None:
        """Let go of what has come; to be called when the connection is over."""
        self.arrived.clear()
        stream = self._quic.stream
        if stream is not None:
            stream.receiver._buffer = bytearray()

    @property
    def gap_start(self) -> int:
        """How many bytes have arrived in order."""
        stream = self._quic.stream
        return 0 if stream is None else stream.receiver.starting_offset()

    def consume(self, count: int) -> bool:
        """Let the peer send so much more; return whether it should be told soon."""
        self._quic.consumed += count
        return self._quic.owes_window

    def close(self, *, refused: bool = False) -> None:
        """End the connection; what the peer has not acknowledged is lost.

        Args:
            refused: whether the peer did something wrong.
        """
        if refused:
            self._quic.close(error_code=QuicErrorCode.CONNECTION_REFUSED)
        else:
            self._quic.close()  # as an application, code 0: the end in order

    # Inside.

    def _take_events(self) -> None:
        while (event := self._quic.next_event()) is not None:
            match event:
                case events.StreamDataReceived():
                    if event.data:
                        self._keep(event.data)
                    self.peer_ended = self.peer_ended or event.end_stream
                case events.HandshakeCompleted():
                    self._prove()
                case events.ConnectionIdIssued():
                    self.ids.add(event.connection_id)
                    self._ids_changed = True
                case events.ConnectionIdRetired():
                    self.ids.discard(event.connection_id)
                    self._ids_changed = True
                case events.StreamReset() | events.StopSendingReceived():
                    self._fault = ConnectionLostError("the peer broke the stream off")
                    self._quic.close()
                case _:
                    pass
        end = self._quic.end
        if end is not None and not self.is_closed:
            self.is_closed = True
            self.error = self._refusal or self._fault or self._error_of(end)

    def _keep(self, data: bytes) -> None:
        """Add to what has arrived."""
        last = self.arrived[-1] if self.arrived else b""
        if len(data) >= _SHORT_LEN:
            self.arrived.append(data)
        elif isinstance(last, bytearray) and len(last) < _PIECE_LEN:
            last += data
        else:
            self.arrived.append(bytearray(data))

    def _other(self) -> str:
        return "server" if self.side == "client" else "client"

    def _error_of(self, end: events.ConnectionTerminated) -> Exception | None:
        """Return what a connection's end means; None for one in order."""
        alert = end.error_code - _CRYPTO_ERROR
        reason = printable(end.reason_phrase[:_REASON_LEN])[:_REASON_LEN]
        if end.reason_phrase == _IDLE:
            return DeadlineError("nothing was received for too long")
        if self._quic.ends_by_peer:
            if end.error_code == QuicErrorCode.NO_ERROR:
                return None
            if end.error_code == QuicErrorCode.CONNECTION_REFUSED:
                return ConnectionLostError(
                    f"the {self._other()} takes no connections for now"
                )
            if alert in _CERTIFICATE_ALERTS:
                return PeerNotTrustedError(
                    f"the {self._other()} refused our certificate "
                    f"({_CERTIFICATE_ALERTS[alert]})"
                )
            if alert == _NO_APPLICATION_PROTOCOL:
                return HandshakeError(
                    f"the {self._other()} speaks another protocol (ALPN)"
                )
            what = f"the {self._other()} ended the connection"
        elif end.error_code == QuicErrorCode.NO_ERROR:
            return None
        else:
            what = f"the {self._other()} broke the QUIC protocol"
        if 0 <= alert < _CRYPTO_ERROR:
            text = f"alert {alert}" + (f": {reason}" if reason else "")
            return HandshakeError(f"TLS handshake failed ({text})")
        text = f"code {end.error_code}" + (f": {reason}" if reason else "")
        return ConnectionLostError(f"{what} ({text})")


class Doorman:
    """Answers to datagrams that belong to no connection; keeps nothing of them.

    A client that is told to try again shows that it can receive at its address.
    """

    def __init__(self) -> None:
        self._tokens = QuicRetryTokenHandler()

    def refuse_version(self, first: "FirstPacket") -> bytes:
        """Return what tells a client which version there is."""
        return encode_quic_version_negotiation(
            source_cid=first.destination_id,
            destination_cid=first.source_id,
            supported_versions=[QuicProtocolVersion.VERSION_1],
        )

    def retry(self, first: "FirstPacket", endpoint: Endpoint, now: float) -> bytes:
        """Return what tells a client to begin again, with proof of its address."""
        retry_id = os.urandom(ID_LEN)
        token = self._tokens.create_token(
            address=endpoint,
            original_destination_connection_id=first.destination_id,
            retry_source_connection_id=retry_id,
            now=now,
        )
        return encode_quic_retry(
            version=QuicProtocolVersion.VERSION_1,
            source_cid=retry_id,
            destination_cid=first.source_id,
            original_destination_cid=first.destination_id,
            retry_token=token,
        )

    def refuse(self, first: "FirstPacket") -> bytes:
        """Return what tells a client that nobody is let in (RFC 9000 section 5.2.2).

        It is far shorter than what it answers.
        """
        keys = CryptoPair()
        keys.setup_initial(
            cid=first.destination_id,
            is_client=False,
            version=QuicProtocolVersion.VERSION_1,
        )
        builder = QuicPacketBuilder(
            host_cid=first.destination_id,
            peer_cid=first.source_id,
            version=QuicProtocolVersion.VERSION_1,
            is_client=False,
            max_datagram_size=BASE_LEN,
        )
        builder.start_packet(QuicPacketType.INITIAL, keys)
        frame = builder.start_frame(
            QuicFrameType.TRANSPORT_CLOSE, capacity=TRANSPORT_CLOSE_FRAME_CAPACITY
        )
        frame.push_uint_var(QuicErrorCode.CONNECTION_REFUSED)
        frame.push_uint_var(QuicFrameType.PADDING)
        frame.push_uint_var(0)  # no words
        (datagram,), _ = builder.flush()
        return datagram

    def original_id(
        self, first: "FirstPacket", endpoint: Endpoint, now: float
    ) -> bytes | None:
        """Return the id that the client began with; None for a token not of ours."""
        try:
            return self._tokens.validate_token(
                address=endpoint,
                destination_cid=first.destination_id,
                token=first.token,
                now=now,
            )
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class FirstPacket:
    """A client's packet that may begin a connection.

    Attributes:
        is_ours: whether it has the version that we speak.
        destination_id: made up by the client.
        source_id: by which the client wants to be known.
        token: proof of its address, if we gave it one.
    """

    is_ours: bool
    destination_id: bytes
    source_id: bytes
    token: bytes


def destination_of(data: bytes) -> bytes | None:
    """Return the id that a datagram is for; None where it is no QUIC (RFC 8999)."""
    if len(data) <= ID_LEN:
        return None
    if not data[0] & 0x80:
        return data[1 : 1 + ID_LEN]
    length = data[5]
    if length > ID_LEN or len(data) < 7 + length:
        return None
    return data[6 : 6 + length]


def first_packet(data: bytes) -> FirstPacket | None:
    """Read a datagram that is for no connection we know; None where it begins none."""
    if len(data) < BASE_LEN or not data[0] & 0x80:
        return None
    try:
        header = pull_quic_header(QuicBuffer(data=data), host_cid_length=ID_LEN)
    except ValueError:
        return None
    if header.packet_type is QuicPacketType.VERSION_NEGOTIATION:
        return None
    is_ours = header.version == QuicProtocolVersion.VERSION_1
    if is_ours and (
        header.packet_type is not QuicPacketType.INITIAL
        or len(header.destination_cid) < _SHORTEST_ID_LEN
    ):
        return None
    return FirstPacket(is_ours, header.destination_cid, header.source_cid, header.token)
