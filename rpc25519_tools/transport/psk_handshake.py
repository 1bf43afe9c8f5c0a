"""The handshake of the pre-shared-key tunnel, without the transports around it.

Both sides show a certificate of the authority and a signed fresh key: over plain TCP as
well as inside TLS, where it must be that of the same peer. Anybody who has seen such a
message can send it again; what it proves, and what not, is told in ``psk``.

What computes is in ``wire.handshake`` and ``wire.tunnel``.
"""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from rpc25519_tools.errors import HandshakeError, KeyFileError, PeerNotTrustedError
from rpc25519_tools.identity.certificate import (
    PeerIdentity,
    parse_certificate,
    verify_peer,
)
from rpc25519_tools.identity.pre_shared_key import PreSharedKey
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.transport.base import PeerCheck
from rpc25519_tools.transport.repeats import SeenHandshakes
from rpc25519_tools.wire import handshake
from rpc25519_tools.wire.handshake import Handshake
from rpc25519_tools.wire.tunnel import (
    Side,
    confirmation,
    session_key,
    shared_secret,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelSettings:
    """Who we are inside the tunnel, and its key.

    Attributes:
        identity: our keys.
        key: the pre-shared key.
        peer_check: asked about each peer whose certificate and signature are good.

    Raises:
        KeyFileError: our certificate is too long for the handshake.
    """

    identity: LoadedIdentity
    key: PreSharedKey = field(repr=False)
    peer_check: PeerCheck | None = None

    def __post_init__(self) -> None:
        handshake.check_certificate_fits(self.certificate_der)

    @property
    def certificate_der(self) -> bytes:
        """Our own certificate."""
        return self.identity.certificate.public_bytes(Encoding.DER)


@dataclass(frozen=True, slots=True)
class Agreed:
    """What both sides have agreed on.

    Attributes:
        session_key: 32 bytes, for both directions.
        proof: 32 bytes that show that a server has the pre-shared key: what ours has to
            send, or what the peer's should have sent.
    """

    session_key: bytes = field(repr=False)
    proof: bytes = field(repr=False)


class TunnelHandshake:
    """One side of the handshake of one connection.

    Args:
        settings: who we are, and the key.
        side: which end of the connection we are.
        seen: the handshakes that a server has taken before, and takes no more.
    """

    def __init__(
        self, settings: TunnelSettings, side: Side, seen: SeenHandshakes
    ) -> None:
        self._settings = settings
        self._side: Side = side
        self._seen = seen
        self._prefix = b""
        self._memory = bytearray(handshake.PREFIX_LEN)
        self._filled = 0
        self._ephemeral = X25519PrivateKey.generate()

    @property
    def has_received(self) -> bool:
        """Whether the peer has sent anything."""
        return bool(self._prefix or self._filled)

    def hello(self, proof: bytes = b"") -> bytes:
        """Return our message, with a server's proof in it."""
        ephemeral = self._ephemeral.public_key().public_bytes_raw()
        return handshake.encode_handshake(
            Handshake(
                ephemeral=ephemeral,
                signature=self._settings.identity.private_key.sign(ephemeral),
                certificate_der=self._settings.certificate_der,
                sent_at_ns=time.time_ns(),
                confirmation=proof,
            )
        )

    def get_buffer(self) -> memoryview:
        """Return memory for the next bytes of the peer's message, and no more."""
        return memoryview(self._memory)[self._filled :]

    def buffer_updated(self, count: int) -> bytes | None:
        """Take bytes; return the part of the peer's message that is whole now, if any.

        That are its first eight bytes, and then its rest, both for ``take``.
        """
        self._filled += count
        return bytes(self._memory) if self._filled == len(self._memory) else None

    def take(self, data: bytes) -> Handshake | None:
        """Take the first eight bytes of the peer's message, or its rest.

        Returns:
            The message, when this was the rest.

        Raises:
            HandshakeError: it is none.
        """
        if self._prefix:
            return handshake.decode_handshake(self._prefix, data)
        rest_len = handshake.rest_len(data)
        self._prefix = data
        self._memory = bytearray(rest_len)
        self._filled = 0
        return None

    def judge(
        self, theirs: Handshake, *, outer: PeerIdentity | None, host: str
    ) -> PeerIdentity:
        """Check certificate and signature, and that nobody repeats a handshake.

        Args:
            theirs: what the peer has sent.
            outer: who it has shown to be below the tunnel, if it has.
            host: where it is, for the settings' check.

        Raises:
            HandshakeError: the peer is refused.
        """
        if self._side == "server" and theirs.ephemeral in self._seen:
            raise HandshakeError("the client repeats a handshake that was used before")
        try:
            certificate = parse_certificate(theirs.certificate_der)
        except KeyFileError as exc:
            raise PeerNotTrustedError(
                "the peer's handshake holds no certificate"
            ) from exc
        peer = verify_peer(
            certificate,
            self._settings.identity.authorities,
            usage="client" if self._side == "server" else "server",
            now=datetime.now(UTC),
            host_name=None,
        )
        handshake.check_signature(theirs, peer.public_key)
        if self._side == "server":
            self._seen.add(theirs.ephemeral)
        if outer is not None and outer.public_key != peer.public_key:
            other = "server" if self._side == "client" else "client"
            raise PeerNotTrustedError(
                f"the {other} has one key for TLS ({outer.key_id}) and another "
                f"one inside the tunnel ({peer.key_id})"
            )
        if self._settings.peer_check is not None:
            # Not only in TLS: that may have been a while ago.
            self._settings.peer_check.check(peer, host)
        return peer

    def agree(self, theirs: Handshake) -> Agreed:
        """Compute what comes of both messages.

        Raises:
            HandshakeError: the peer's fresh key is not usable.
        """
        shared = shared_secret(self._ephemeral, theirs.ephemeral)
        psk = self._settings.key.secret
        ours = self._ephemeral.public_key().public_bytes_raw()
        pair = (theirs.ephemeral, ours)
        client, server = pair if self._side == "server" else reversed(pair)
        return Agreed(
            session_key(shared, psk), confirmation(shared, psk, client, server)
        )
