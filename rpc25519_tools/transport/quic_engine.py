"""One QUIC connection as a state machine: datagrams and time in, datagrams out.

It carries one stream, which the client opens, as that of a Go peer does. What aioquic
lacks for it is in ``quic_connection``.

Source: RFC 9000, 9001, 9002; SECURITY-WIRE.md section 6.
"""

from datetime import UTC, datetime
from typing import Final

from aioquic import tls
from aioquic.quic import events
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
)
from cryptography import x509

from rpc25519_tools.errors import (
    ConnectionLostError,
    DeadlineError,
    HandshakeError,
    PeerNotTrustedError,
    RemoteProtocolError,
)
from rpc25519_tools.identity.certificate import PeerIdentity, verify_peer
from rpc25519_tools.identity.printable import printable
from rpc25519_tools.transport.base import TlsSettings
from rpc25519_tools.transport.quic_connection import (
    SERVER_NAME,
    STREAM,
    Endpoint,
    GuardedConnection,
    Outgoing,
    Side,
    configuration_of,
)

#: Shorter pieces are put together, since each object takes some 50 bytes by itself.
_SHORT_LEN: Final = 1024
_PIECE_LEN: Final = 16 * 1024

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
        self._quic = GuardedConnection(
            side,
            configuration_of(settings, side),
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
                host_name=None if is_server else SERVER_NAME,
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
            # Cannot be: such a handshake is refused. Nobody gets in all the same.
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
        quic.now = now
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
            self._quic.now = now
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
        quic.now = now
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
        self._quic.send_stream_data(STREAM, data)  # type: ignore[arg-type]

    def finish(self) -> None:
        """Say that nothing comes after what is queued."""
        self._quic.send_stream_data(STREAM, b"", end_stream=True)

    @property
    def can_send(self) -> bool:
        """Whether there is a stream; the server's comes with the client's."""
        return self._quic.stream is not None

    @property
    def unsent_len(self) -> int:
        """Bytes queued that have never been sent."""
        return self._quic.unsent_len

    @property
    def unacked_len(self) -> int:
        """Bytes queued that the peer has not acknowledged."""
        return self._quic.unacked_len

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
