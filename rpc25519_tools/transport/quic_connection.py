"""aioquic's connection with what it lacks; no other module uses its private names.

A server asks for the client's certificate, and both sides judge the other's inside the
handshake; flow control follows what has really been consumed; the handshake and what
lies behind gaps are bounded; larger datagrams are tried; acknowledgements come soon.
The version of aioquic is pinned to those that have the names for that, and
``tests/transport/test_quic_engine.py`` fails where another one changes them.

Source: RFC 9000, 9001, 9002; SECURITY-WIRE.md section 6.
"""

import logging
import math
from collections.abc import Callable, Sequence
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
    QuicConnection,
    QuicConnectionError,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicPacketType,
    QuicProtocolVersion,
    pull_quic_transport_parameters,
    push_quic_transport_parameters,
)
from aioquic.quic.packet_builder import (
    QuicDeliveryState,
    QuicPacketBuilder,
    QuicSentPacket,
)
from aioquic.quic.stream import QuicStream
from cryptography import x509

from rpc25519_tools.errors import (
    PeerNotTrustedError,
)
from rpc25519_tools.identity.certificate import MALFORMED
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
SERVER_NAME: Final = "localhost"
#: The one stream of a connection.
STREAM: Final = 0
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


def configuration_of(settings: TlsSettings, side: Side) -> QuicConfiguration:
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
        server_name=SERVER_NAME,
        supported_versions=[QuicProtocolVersion.VERSION_1],
        certificate=settings.identity.certificate,
        private_key=settings.identity.private_key,
        verify_mode=0,  # ssl.CERT_NONE: we judge by ourselves
    )


class GuardedConnection(QuicConnection):
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
        self.now = 0.0
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
            frame.push_uint_var(STREAM)
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
            frame.push_uint_var(STREAM)
            frame.push_uint_var(stream.max_stream_data_local)
            stream.max_stream_data_local_sent = stream.max_stream_data_local

    # What the engine calls.

    @property
    def handshake_done(self) -> bool:
        """Whether both sides have done their part of the handshake."""
        return self._handshake_complete

    @property
    def is_closing(self) -> bool:
        """Whether nothing more is taken from the peer."""
        return self._close_event is not None

    @property
    def has_begun(self) -> bool:
        """Whether a packet of the peer could be read."""
        return self._peer_cid.sequence_number is not None

    @property
    def knows_address(self) -> bool:
        """Whether the peer has shown that it receives where it says it is."""
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
        """Whether it was the peer that ended the connection."""
        return self._state is QuicConnectionState.DRAINING

    @property
    def stream(self) -> QuicStream | None:
        """The one stream, once it is there."""
        return self._streams.get(STREAM)

    @property
    def unsent_len(self) -> int:
        """Bytes queued that have never been sent."""
        stream = self.stream
        if stream is None:
            return 0
        return stream.sender._buffer_stop - stream.sender.highest_offset

    @property
    def unacked_len(self) -> int:
        """Bytes queued that the peer has not acknowledged."""
        stream = self.stream
        if stream is None:
            return 0
        return stream.sender._buffer_stop - stream.sender._buffer_start

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
        self.send_stream_data(STREAM, b"")
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
            self.mtu.probe_acked(size, self.now)
            self.use_mtu()
        else:
            self.mtu.probe_lost(size, self.now)
