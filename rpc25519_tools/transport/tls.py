"""TLS 1.3 with mutual ed25519 certificates, on pyOpenSSL in memory-BIO mode.

One suite is offered and accepted, TLS_CHACHA20_POLY1305_SHA256 (RFC 8446, B.4). Key
exchange is what OpenSSL prefers: X25519MLKEM768 where both sides know it, else X25519.
Session resumption is off, so that each connection is authenticated afresh.

The peer's certificate is judged inside the handshake, by OpenSSL and then by our own
checks. OpenSSL's refusal of a Go-made authority, whose extended key usage is "any"
alone (error 26 at depth 1), is forgiven; every other verdict stands.

An SSL object is touched by the event loop's thread only.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Literal
from weakref import WeakValueDictionary

from cryptography import x509
from OpenSSL import SSL, crypto

from rpc25519_tools.errors import (
    ConnectionLostError,
    HandshakeCutError,
    HandshakeError,
    PeerNotTrustedError,
    SecurityError,
)
from rpc25519_tools.identity.certificate import MALFORMED, PeerIdentity, verify_peer
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.transport.base import (
    ENCRYPTED_LEN,
    WRITE_HIGH_WATER_LEN,
    Accept,
    PeerCheck,
    encrypted_pool,
    scratch_buffer,
    short_buffer,
)
from rpc25519_tools.transport.tcp import TcpTransport
from rpc25519_tools.transport.tls_records import (
    ReadEnd,
    alert_text,
    records_of,
)
from rpc25519_tools.wire.greenpack import Buffer

#: The name in every certificate, and the server name that every client asks for,
#: whatever the address dialled.
SERVER_NAME: Final = "localhost"

_SUITE: Final = b"TLS_CHACHA20_POLY1305_SHA256"
#: SSL_MODE_NO_AUTO_CHAIN of OpenSSL's ssl.h: send our own certificate alone. OpenSSL
#: would add the authority's, and a Go peer takes each certificate sent for an identity:
#: the authority's key would come into its file of known keys and let everybody in.
_NO_AUTO_CHAIN: Final = 8
#: SSL_MODE_RELEASE_BUFFERS of OpenSSL's ssl.h: an idle connection keeps no buffers.
_RELEASE_BUFFERS: Final = 0x10
#: SSL_MODE_ENABLE_PARTIAL_WRITE of OpenSSL's ssl.h, which pyOpenSSL switches on.
_ENABLE_PARTIAL_WRITE: Final = 1
#: X509_V_ERR_INVALID_PURPOSE of OpenSSL's x509_vfy.h.
_INVALID_PURPOSE: Final = 26

#: A fatal alert, protocol_version (RFC 8446, 6.2). OpenSSL answers nothing to what is
#: no TLS; with this a client on plain TCP can tell its user what is wrong.
_PLAIN_ALERT: Final = bytes.fromhex("15 0303 0002 02 46")

#: The verdicts of OpenSSL's x509_vfy.h that users meet.
_VERDICTS: Final = {
    2: "its authority is not ours (ca.crt)",
    7: "its signature was not made by our authority (ca.crt)",
    9: "it is not valid yet",
    10: "it has expired",
    18: "it is self-signed, not signed by our authority (ca.crt)",
    19: "its authority is not ours (ca.crt)",
    20: "its authority is not ours (ca.crt)",
    21: "its authority is not ours (ca.crt)",
    26: "its extended key usage does not allow this role",
}

#: Type, version and length (RFC 8446, 5.1).
_RECORD_HEADER_LEN: Final = 5
#: What is encrypted without further ado, in one record.
_SHORT_LEN: Final = 16 * 1024
#: Shorter output is copied, lest a slow peer hold a whole chunk for a few bytes.
_HOLD_FROM_LEN: Final = 64 * 1024

#: Most encrypted bytes given to OpenSSL at a time; four records.
_FEED_LEN: Final = 64 * 1024
#: The same until the handshake is done: a hostile peer must not make it keep more.
_HANDSHAKE_FEED_LEN: Final = 16 * 1024
#: Most bytes encrypted before the kernel gets them.
_SEAL_LEN: Final = 128 * 1024
#: Most bytes of a handshake, from the first to the last. Certificates take a kilobyte
#: or two; OpenSSL alone would keep a first message of 128 KiB until it is whole.
_MOST_HANDSHAKE_LEN: Final = 32 * 1024

Side = Literal["client", "server"]


def tls_context(identity: LoadedIdentity, *, side: Side, verify: bool) -> SSL.Context:
    """Make the settings that all connections of one side share.

    Args:
        identity: our certificate, its key, and the authority that peers must have.
        side: which end of the connection we are.
        verify: False checks nothing about the peer; a server then asks for no
            certificate at all.
    """
    method = SSL.TLS_CLIENT_METHOD if side == "client" else SSL.TLS_SERVER_METHOD
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_tls13_ciphersuites(_SUITE)
    context.set_options(SSL.OP_NO_TICKET)
    context.set_mode(_NO_AUTO_CHAIN | _RELEASE_BUFFERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # A write into memory never has to stop half-way; this saves a call per record.
    context.clear_mode(_ENABLE_PARTIAL_WRITE)
    context.use_certificate(identity.certificate)
    context.use_privatekey(identity.private_key)
    if verify:
        store = context.get_cert_store()
        assert store is not None
        for authority in identity.authorities:
            store.add_cert(crypto.X509.from_cryptography(authority))
        context.set_verify(
            SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _verify_callback
        )
    else:
        context.set_verify(SSL.VERIFY_NONE)
    return context


_client_contexts: "WeakValueDictionary[object, SSL.Context]" = WeakValueDictionary()


def client_context(identity: LoadedIdentity, *, verify: bool) -> SSL.Context:
    """Return what all open connections of one client share; see ``tls_context``.

    Each would take 25 KiB and a fifth of a millisecond.
    """
    key = (identity.certificate, identity.authorities, verify)
    context = _client_contexts.get(key)
    if context is None:
        context = tls_context(identity, side="client", verify=verify)
        _client_contexts[key] = context
    return context


def _verify_callback(
    connection: SSL.Connection,
    certificate: crypto.X509,
    error: int,
    depth: int,
    ok: int,
) -> bool:
    transport: TlsTransport = connection.get_app_data()
    if depth == 0:
        try:
            leaf = certificate.to_cryptography()
        except MALFORMED:  # of what OpenSSL reads, and the other library does not
            transport.refuse("the certificate cannot be read")
            return False
        return transport.judge(leaf, error if not ok else None)
    if ok or (error == _INVALID_PURPOSE and depth == 1):
        return True
    transport.refuse(f"the authority's certificate was refused: {_verdict(error)}")
    return False


def _verdict(error: int) -> str:
    return _VERDICTS.get(error, f"OpenSSL verify error {error}")


def _speaks_no_tls(error: Exception) -> bool:
    """Tell whether the peer's first bytes were no TLS record."""
    texts = (
        "wrong version number",
        "packet length",
        "http request",
        "proxy request",
    )
    return isinstance(error, SSL.Error) and any(
        text in alert_text(error) for text in texts
    )


class TlsTransport(TcpTransport):
    """A Transport over TLS.

    Args:
        context: from ``tls_context`` for the same side.
        authorities: whose certificates are accepted; None accepts anyone.
        side: which end of the connection we are.
        accept: called when the handshake is done and the peer is trusted.
        failed: called with the reason and the peer's address when it never comes to
            that; the connection is closed by then.
        peer_check: asked about each peer whose certificate is good.
        peer_host: what it is told of where the peer is; None tells the address that
            the connection comes from.
    """

    shakes_hands = True

    def __init__(
        self,
        context: SSL.Context,
        *,
        authorities: Sequence[x509.Certificate] | None,
        side: Side,
        accept: Accept,
        failed: Callable[[Exception, str], None],
        peer_check: PeerCheck | None = None,
        peer_host: str | None = None,
    ) -> None:
        super().__init__(accept)
        self._ssl = SSL.Connection(context, None)
        self._ssl.set_app_data(self)
        self._records = records_of(self._ssl)
        self._authorities = authorities
        self._side: Side = side
        self._failed = failed
        self._peer_check = peer_check
        self._peer_host = peer_host
        self._peer: PeerIdentity | None = None
        self._refusal: PeerNotTrustedError | None = None
        self._handshaking = True
        self._has_received = False
        #: Bytes that have come until the handshake was done.
        self._received_len = 0
        self._scratch = memoryview(scratch_buffer("tls"))
        self._unsent: deque[memoryview] = deque()
        self._unsent_len = 0
        self._was_over = False  # the high water mark, so that somebody may wait
        if side == "client":
            self._ssl.set_tlsext_host_name(SERVER_NAME.encode())
            self._ssl.set_connect_state()
        else:
            self._ssl.set_accept_state()

    @property
    def peer(self) -> PeerIdentity | None:
        """The identity in the peer's verified certificate."""
        return self._peer

    @property
    def has_received(self) -> bool:
        """Whether the peer has sent anything."""
        return self._has_received

    @property
    def security(self) -> str:
        """Version, suite and key exchange group."""
        return (
            f"{self._ssl.get_protocol_version_name()} {self._ssl.get_cipher_name()} "
            f"{self._ssl.get_group_name()}"
        )

    def judge(self, certificate: x509.Certificate, openssl_error: int | None) -> bool:
        """Decide about the peer's own certificate, inside the handshake."""
        assert self._authorities is not None
        try:
            self._peer = verify_peer(
                certificate,
                self._authorities,
                usage="client" if self._side == "server" else "server",
                now=datetime.now(UTC),
                host_name=SERVER_NAME if self._side == "client" else None,
            )
            if openssl_error is not None:
                raise PeerNotTrustedError(
                    f"the certificate was refused: {_verdict(openssl_error)}"
                )
            if self._peer_check is not None:
                self._peer_check.check(self._peer, self._host())
        except PeerNotTrustedError as exc:
            self._refusal, self._peer = exc, None
            return False
        return True

    def refuse(self, reason: str) -> None:
        """Remember why the peer is refused."""
        self._refusal = PeerNotTrustedError(reason)
        self._peer = None

    # Called by asyncio.

    def _opened(self) -> None:
        # With no high-water mark asyncio holds one encrypted chunk at most, and all
        # else waits here as plain bytes that nobody had to copy.
        assert self._socket_transport is not None
        self._socket_transport.set_write_buffer_limits(high=0)
        self._shake_hands()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Pass scratch memory to the kernel for encrypted bytes."""
        return self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        """Decrypt what came, straight into the receiver's memory."""
        self._has_received = True
        # OpenSSL keeps as much memory for each connection as it was ever fed at a time.
        start = 0
        while start < nbytes and not self._closing:
            room_len = _HANDSHAKE_FEED_LEN if self._handshaking else _FEED_LEN
            end = min(start + room_len, nbytes)
            self._records.feed(self._scratch[start:end])
            if self._handshaking:
                self._received_len += end - start
                self._shake_hands()
            if not self._handshaking:
                self._decrypt()
            elif self._received_len > _MOST_HANDSHAKE_LEN:
                self.fail_handshake(
                    HandshakeError(
                        f"the {self._other()}'s handshake has more than "
                        f"{_MOST_HANDSHAKE_LEN} bytes"
                    )
                )
            start = end

    def resume_writing(self) -> None:
        """Encrypt and send more."""
        self._over_high_water = False
        self._was_over |= self._unsent_len > WRITE_HIGH_WATER_LEN
        # Not from here: asyncio reports the end twice if writing fails meanwhile.
        asyncio.get_running_loop().call_soon(self._send_more)

    def _send_more(self) -> None:
        transport = self._socket_transport
        if transport is None or transport.is_closing():
            return
        self._flush()
        if self._was_over and self._unsent_len <= WRITE_HIGH_WATER_LEN:
            self._was_over = False
            if self._receiver is not None:
                self._receiver.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass the end on, or report that the handshake never finished."""
        self._unsent.clear()
        self._unsent_len = 0
        if not self._closing and not self._handshaking:
            self._take_rest()
        self._ssl.set_app_data(None)  # we and it held each other
        self._closing = True
        if self._handshaking:
            self._end_handshake()
            self._failed(self._cut_error(), self.remote_address)
        super().connection_lost(exc)

    # Called from above.

    @property
    def unsent_len(self) -> int:
        """Bytes accepted by ``write`` that the kernel has not taken."""
        return self._unsent_len

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Queue ``buffers`` in order."""
        if self._closing:
            return
        if len(buffers) == 1 and not self._unsent and not self._over_high_water:
            data = buffers[0]
            if len(data) <= _SHORT_LEN:
                self._records.write(data)
                self._send_encrypted(short=True)
                return
        for buffer in buffers:
            self._unsent.append(memoryview(buffer))
            self._unsent_len += len(buffer)
        if not self._over_high_water:
            self._flush()

    def close(self) -> None:
        """Send what is queued and the closing alert, then close."""
        if self._closing:
            return
        self._closing = True
        assert self._socket_transport is not None
        self._socket_transport.resume_reading()  # to learn when the peer is gone
        if not self._unsent:
            self._say_goodbye()

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        self._unsent.clear()
        self._unsent_len = 0
        super().abort()

    def fail_handshake(self, error: Exception) -> None:
        """Give up on a handshake that takes too long."""
        if self._handshaking:
            self._end_handshake()
            self.abort()
            self._failed(error, self.remote_address)

    # Inside.

    def _other(self) -> str:
        return "server" if self._side == "client" else "client"

    def _host(self) -> str:
        """Return where the peer is, without its port."""
        if self._peer_host is not None:
            return self._peer_host
        return self.remote_address.rpartition(":")[0].strip("[]")

    def _shake_hands(self) -> None:
        try:
            self._ssl.do_handshake()
            self._require_judged()
            if self._peer_check is not None and self._peer is not None:
                self._peer_check.proven(self._peer, self._host())
        except SSL.WantReadError:
            self._send_encrypted()
            self._tell_answered()
            return
        except (SSL.Error, ValueError, PeerNotTrustedError) as exc:
            self._end_handshake()
            self._send_encrypted()
            if self._side == "server" and _speaks_no_tls(exc):
                assert self._socket_transport is not None
                self._socket_transport.write(_PLAIN_ALERT)
            self._close_after_alert()
            self._failed(self._handshake_error(exc), self.remote_address)
            return
        self._end_handshake()
        self._send_encrypted()
        self._receiver = self._accept(self)

    def _tell_answered(self) -> None:
        """Tell, once, that the first message was in order: there is a suite by then."""
        if self.answered is not None and self._ssl.get_cipher_name() is not None:
            answered, self.answered = self.answered, None
            answered()

    def _require_judged(self) -> None:
        """Insist that somebody's certificate was judged, where we check at all.

        OpenSSL sees to that by itself. If ever it did not, by a setting of its own or a
        defect, everybody would be let in as nobody.

        Raises:
            PeerNotTrustedError: there was none.
        """
        if self._authorities is not None and self._peer is None:
            raise PeerNotTrustedError(
                f"TLS has let the {self._other()} in without a certificate"
            )

    def _end_handshake(self) -> None:
        self._handshaking = False
        if self.handshake_timer is not None:
            self.handshake_timer.cancel()

    def _close_after_alert(self) -> None:
        """Send the alert that tells the peer why, and give it time to arrive."""
        self._send_encrypted()
        self._closing = True
        self._hang_up()

    def _handshake_error(self, exc: Exception) -> SecurityError:
        if self._refusal is not None:
            return self._refusal
        if isinstance(exc, PeerNotTrustedError):
            return exc
        if not isinstance(exc, SSL.Error):
            return HandshakeError(f"unusable certificate: {exc}")
        if _speaks_no_tls(exc):
            return HandshakeError(
                f"the {self._other()} does not speak TLS (give -tcp for plain TCP)"
            )
        text = alert_text(exc)
        if "did not return a certificate" in text:
            return PeerNotTrustedError("the client sent no certificate")
        return HandshakeError(f"TLS handshake failed: {text}")

    def _cut_error(self) -> Exception:
        """Tell a peer that knows no TLS from a line that broke."""
        text = f"the {self._other()} closed the connection during the TLS handshake"
        # What is no TLS has been refused as soon as there was a record's header.
        if self._received_len >= _RECORD_HEADER_LEN:
            return ConnectionLostError(text)
        return HandshakeCutError(f"{text} (does it use plain TCP? then give -tcp)")

    def _decrypt(self) -> None:
        end = ReadEnd.FULL
        while self._receiver is not None and not self._closing and end is ReadEnd.FULL:
            filled, end = self._records.read_into(self._receiver.get_buffer())
            if filled:
                self._receiver.buffer_updated(filled)
        if end is ReadEnd.FAILED:
            self._fail(self._records.failure)
        elif end is ReadEnd.CLOSED:
            self.close()
        # What OpenSSL has to say on receiving, such as an answer to a key update, it
        # says in front of what we write next.

    def _fail(self, text: str) -> None:
        """End an open connection that TLS declares broken or refused."""
        error: Exception = ConnectionLostError(f"TLS error: {text}")
        if "alert" in text:
            error = PeerNotTrustedError(
                f"the {self._other()} refused our certificate ({text})"
            )
        self.end_with(error)

    def _flush(self) -> None:
        """Encrypt queued bytes as long as the kernel takes them at once."""
        while self._unsent and not self._over_high_water:
            room = _SEAL_LEN
            while self._unsent and room:
                head = self._unsent[0]
                piece = head[:room]
                self._records.write(piece)
                room -= len(piece)
                self._unsent_len -= len(piece)
                if len(piece) == len(head):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = head[len(piece) :]
            self._send_encrypted()
        if self._closing and not self._unsent:
            # Not from here: asyncio's transport, when closed while it tells us that it
            # can write again, reports its end twice.
            asyncio.get_running_loop().call_soon(self._say_goodbye)

    def _send_encrypted(self, *, short: bool = False) -> None:
        assert self._socket_transport is not None
        if self._socket_transport.is_closing():
            return  # asyncio would complain of each write to a socket that is gone
        if short:
            memory = short_buffer()
            while count := self._records.take_encrypted(memory):
                self._socket_transport.write(bytes(memory[:count]))
                if count < len(memory):
                    return
            return
        # asyncio may keep what the kernel does not take at once, so that the memory
        # cannot simply be used again: the pool sees who still holds it.
        while True:
            encrypted = memoryview(encrypted_pool().allocate(ENCRYPTED_LEN))
            count = self._records.take_encrypted(encrypted)
            if count > _HOLD_FROM_LEN:
                self._socket_transport.write(encrypted[:count])
            elif count:
                self._socket_transport.write(bytes(encrypted[:count]))
            if count < ENCRYPTED_LEN:
                return

    def _say_goodbye(self) -> None:
        with contextlib.suppress(SSL.Error):  # no handshake, nobody to tell
            self._ssl.shutdown()
        self._send_encrypted()
        self._hang_up()
