"""Decrypt straight into memory of ours, and take what was encrypted from OpenSSL's.

pyOpenSSL's ``recv_into`` and ``bio_read`` go through a fresh temporary buffer each
time; its own comment calls that annoying. With the names that ``FastRecords`` uses,
which pyOpenSSL does not promise to keep, a transfer takes an eighth less processor
time. Where they are gone, the public methods are used; a test tells when that happens.
"""

import struct
from enum import Enum, auto
from typing import Final, Protocol

from OpenSSL import SSL

from rpc25519_tools.wire.greenpack import Buffer

#: Type, version and length in front of each record (RFC 8446, 5.1).
_RECORD_HEADER: Final = struct.Struct(">BHH")
#: One record never holds more, and pyOpenSSL allocates as much as it is asked for.
RECORD_LEN: Final = 16 * 1024


class ReadEnd(Enum):
    """Why no more was decrypted."""

    FULL = auto()
    #: No whole record is left.
    DRAINED = auto()
    #: The peer has said that nothing more comes.
    CLOSED = auto()
    #: TLS declares the connection broken; ``failure`` says why.
    FAILED = auto()


class Records(Protocol):
    """The plain side and the encrypted output of one SSL object."""

    #: OpenSSL's reason, once something FAILED.
    failure: str

    def read_into(self, memory: memoryview) -> tuple[int, ReadEnd]:
        """Decrypt into the front of ``memory``.

        Returns:
            How many bytes were decrypted, also where it failed after them, and why it
            stopped.
        """

    def write(self, data: Buffer) -> None:
        """Encrypt ``data``; the result waits to be taken."""

    def feed(self, encrypted: memoryview) -> None:
        """Take bytes that came from the peer."""

    def take_encrypted(self, memory: memoryview) -> int:
        """Move encrypted bytes to the front of ``memory``; return how many, or 0."""


def alert_text(error: SSL.Error) -> str:
    """Return OpenSSL's reason, such as ``tlsv1 alert unknown ca``."""
    reasons = [str(item[2]) for item in error.args[0]] if error.args else []
    return ", ".join(filter(None, reasons)) or "unspecified TLS error"


def records_of(connection: SSL.Connection) -> Records:
    """Return the fastest way to the records of ``connection``."""
    try:
        return FastRecords(connection)
    except AttributeError:
        return PublicRecords(connection)


class FastRecords:
    """Records by way of names that pyOpenSSL keeps to itself.

    Raises:
        AttributeError: one of the names is gone.
    """

    def __init__(self, connection: SSL.Connection) -> None:
        library = SSL._lib  # type: ignore[attr-defined]  # see above
        self._ssl_read = library.SSL_read
        self._ssl_write = library.SSL_write
        self._bio_write = library.BIO_write
        self._bio_read = library.BIO_read
        self._from_buffer = SSL._ffi.from_buffer  # type: ignore[attr-defined]
        self._ssl = connection._ssl
        self._input, self._output = connection._into_ssl, connection._from_ssl
        self._raise_error = connection._raise_ssl_error
        self.failure = ""
        #: Whether OpenSSL has nothing left to read.
        self._drained = True
        #: Whether what was fed is one whole record, as short messages are.
        self._one_record = False

    def read_into(self, memory: memoryview) -> tuple[int, ReadEnd]:
        """Decrypt into the front of ``memory``."""
        # One call for each record is the inner loop of every transfer.
        start = self._from_buffer(memory)
        filled, room = 0, len(memory)
        while filled < room:
            count: int = self._ssl_read(self._ssl, start + filled, room - filled)
            if count <= 0:
                return filled, self._end(count)
            filled += count
            if self._one_record and filled < room:
                # Asking again would cost as much as decrypting it has.
                self._one_record, self._drained = False, True
                return filled, ReadEnd.DRAINED
        return filled, ReadEnd.FULL

    def _end(self, result: int) -> ReadEnd:
        try:
            self._raise_error(self._ssl, result)
        except SSL.WantReadError:
            self._one_record, self._drained = False, True
            return ReadEnd.DRAINED
        except SSL.ZeroReturnError:
            return ReadEnd.CLOSED
        except SSL.Error as exc:
            self.failure = alert_text(exc)
            return ReadEnd.FAILED
        raise AssertionError("OpenSSL failed without a reason")

    def write(self, data: Buffer) -> None:
        """Encrypt ``data``."""
        if len(data):
            count = self._ssl_write(self._ssl, self._from_buffer(data), len(data))
            if count != len(data):
                self._raise_error(self._ssl, count)
                raise AssertionError("OpenSSL took a part of what it was to encrypt")

    def feed(self, encrypted: memoryview) -> None:
        """Take bytes that came from the peer."""
        count = self._bio_write(
            self._input, self._from_buffer(encrypted), len(encrypted)
        )
        if count != len(encrypted):
            raise MemoryError("OpenSSL has no room for what came")
        self._one_record = False
        if self._drained and _RECORD_HEADER.size < count <= RECORD_LEN:
            _, _, body_len = _RECORD_HEADER.unpack_from(encrypted)
            self._one_record = body_len == count - _RECORD_HEADER.size
        self._drained = False

    def take_encrypted(self, memory: memoryview) -> int:
        """Move encrypted bytes to the front of ``memory``."""
        count: int = self._bio_read(
            self._output, self._from_buffer(memory), len(memory)
        )
        return max(count, 0)


class PublicRecords:
    """Records by way of what pyOpenSSL documents."""

    def __init__(self, connection: SSL.Connection) -> None:
        self._connection = connection
        self.failure = ""

    def read_into(self, memory: memoryview) -> tuple[int, ReadEnd]:
        """Decrypt into the front of ``memory``."""
        filled = 0
        try:
            while filled < len(memory):
                filled += self._connection.recv_into(memory[filled:], RECORD_LEN)
        except SSL.WantReadError:
            return filled, ReadEnd.DRAINED
        except SSL.ZeroReturnError:
            return filled, ReadEnd.CLOSED
        except SSL.Error as exc:
            self.failure = alert_text(exc)
            return filled, ReadEnd.FAILED
        return filled, ReadEnd.FULL

    def write(self, data: Buffer) -> None:
        """Encrypt ``data``."""
        self._connection.sendall(data)

    def feed(self, encrypted: memoryview) -> None:
        """Take bytes that came from the peer."""
        while encrypted:
            encrypted = encrypted[self._connection.bio_write(encrypted) :]

    def take_encrypted(self, memory: memoryview) -> int:
        """Move encrypted bytes to the front of ``memory``."""
        try:
            taken = self._connection.bio_read(len(memory))
        except SSL.WantReadError:
            return 0
        memory[: len(taken)] = taken
        return len(taken)
