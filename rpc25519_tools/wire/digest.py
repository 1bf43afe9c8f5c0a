"""The text form of a BLAKE3 sum, as it travels in the Args of file transfers.

The peer takes 64 bytes of extendable output and keeps the first 32, which is plain
BLAKE3 (WIRE.md 5.8; vector ``upload-text-s2``).  Hashing releases the GIL, so these
calls may run in worker threads; one `RunningDigest` belongs to one thread at a time.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode

from blake3 import blake3

DIGEST_PREFIX = "blake3.32B-"
"""The peer's name for 32 bytes of BLAKE3; 44 base64 characters follow it."""


def format_digest(raw: bytes) -> str:
    """Write a 32-byte BLAKE3 sum as the 55 characters that the peer compares."""
    assert len(raw) == 32
    return DIGEST_PREFIX + urlsafe_b64encode(raw).decode("ascii")


def digest_text(data: bytes | bytearray | memoryview) -> str:
    """Hash ``data`` and return the sum as text (prefix, URL alphabet, padded)."""
    return format_digest(blake3(data).digest())


def digest_hex(text: str) -> str:
    """Return the sum that ``format_digest`` has written, in hex."""
    return urlsafe_b64decode(text.removeprefix(DIGEST_PREFIX)).hex()


class RunningDigest:
    """A BLAKE3 sum over bytes that arrive piece by piece.

    Not locked: the caller sees to it that only one thread uses it at a time.
    """

    __slots__ = ("_hasher",)

    def __init__(self) -> None:
        self._hasher = blake3()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Append ``data`` to what is summed."""
        self._hasher.update(data)

    def text(self) -> str:
        """Return the sum of all bytes so far; more may follow."""
        return format_digest(self._hasher.digest())
