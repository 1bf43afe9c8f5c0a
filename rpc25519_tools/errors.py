"""Every exception that the engine raises, in one tree.

The rules: one root; what *we* misuse and what the *peer* does wrong are different
classes; foreign exceptions are translated once, at the seam, with ``raise X from exc``.
Messages are single lines, hold no secrets, and are safe to show to a user.
"""

from collections.abc import Mapping


class Rpc25519Error(Exception):
    """The root of all errors of this package."""


class ConfigError(Rpc25519Error):
    """A setting is missing, contradictory or out of range."""


class AccessFileError(ConfigError):
    """An access file is malformed, or others could have written it.

    Attributes:
        line: the number of the line at fault, from 1; None where it is none.
    """

    def __init__(self, message: str, *, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


class ProtocolError(Rpc25519Error):
    """Something on the wire is not what the protocol allows (abstract)."""


class LocalProtocolError(ProtocolError):
    """Our own side asked for something that the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol forbids; close the connection."""


class BadMagicError(RemoteProtocolError):
    """A frame does not begin with the seven magic bytes or names no known codec."""


class FrameTooLargeError(RemoteProtocolError):
    """A frame announces, or its body unpacks to, more bytes than the limit.

    Attributes:
        limit: the largest number of bytes that is allowed.
        got: the number announced, or None where only "more than limit" is known.
    """

    def __init__(self, message: str, *, limit: int, got: int | None = None) -> None:
        super().__init__(message)
        self.limit = limit
        self.got = got


class DecodeError(RemoteProtocolError):
    """A body does not unpack, or is not a well-formed message."""


class SecurityError(Rpc25519Error):
    """A key, a certificate or a proof was refused (abstract)."""


class HandshakeError(SecurityError):
    """The secure handshake with the peer failed."""


class HandshakeCutError(HandshakeError):
    """The connection ended during the handshake; another attempt may succeed."""


class PeerNotTrustedError(HandshakeError):
    """The peer's certificate was refused; the text says which check failed."""


class DecryptionError(SecurityError):
    """Sealed bytes did not open: wrong key, or changed on the way."""


class KeyFileError(SecurityError):
    """A key or certificate file is missing, malformed or does not fit its partner."""


class PassphraseError(KeyFileError):
    """A pass phrase is wrong, or is needed and there is no way to ask for it."""


class TransportError(Rpc25519Error, OSError):
    """The network failed (abstract)."""


class ConnectFailedError(TransportError):
    """No connection could be made, or no address could be listened on."""


class ConnectionLostError(TransportError):
    """The connection ended while something was still waiting for it."""


class CrowdedOutError(ConnectionLostError):
    """A server ended the connection to make room for others.

    Its client had not shown who it is, and had not said anything, or nothing of late.
    """


class DeadlineError(TransportError, TimeoutError):
    """A deadline or time limit passed."""


class CallError(Rpc25519Error):
    """A call reached the peer and did not succeed (abstract)."""


class RemoteCallError(CallError):
    """The peer's handler returned an error; the text is the peer's own.

    Attributes:
        reply_payload: what the handler sent beside the error; mostly nothing.
        reply_args: the small named strings that it sent.
    """

    def __init__(
        self,
        message: str,
        *,
        reply_payload: bytes | bytearray | memoryview = b"",
        reply_args: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reply_payload = reply_payload
        self.reply_args: Mapping[str, str] = {} if reply_args is None else reply_args


class HandlerError(CallError):
    """Raised by a handler for its caller: the text travels, nothing is logged."""


class AccessDeniedError(CallError):
    """Raised for a caller who may not do what it asks for; the text travels."""


class NotConnectedError(CallError):
    """No client is connected at the address that was to be reached."""


class CallCancelledError(CallError):
    """The call was cancelled before its reply came."""


class NoSuchServiceError(CallError):
    """The peer does not offer the service that was called."""


class TransferError(Rpc25519Error):
    """A file transfer did not succeed; no final name holds wrong bytes."""


class ChecksumError(TransferError):
    """A part or a whole file does not match its BLAKE3 sum."""


class IncompleteTransferError(TransferError):
    """A transfer ended early, or its parts are missing or out of order."""


class FileChangedError(TransferError):
    """The source file changed while it was being sent."""


class LocalFileError(Rpc25519Error):
    """A file on this machine cannot be read, written, created or replaced."""


class UnsafePathError(LocalFileError):
    """A name would leave its directory, or is not a plain file name."""


class KeyNameError(UnsafePathError):
    """The name of a key or secret is no plain file name, or is reserved."""
