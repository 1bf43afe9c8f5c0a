"""Say where received bytes can go, and write them into a descriptor.

:class:`Sink` is the interface, :class:`PlainSink` the one for streams; for files see
``atomic.py``. All of this blocks; call it from a worker thread.
"""

import contextlib
import os
import select
from types import TracebackType
from typing import Protocol, Self

from rpc25519_tools.errors import LocalFileError
from rpc25519_tools.files.jail import display_name, file_error


class Sink(Protocol):
    """Where received bytes go; leaving its ``with`` without a commit aborts."""

    name: str
    written_bytes: int

    def check_space(self, size_bytes: int) -> None:
        """Raise LocalFileError if ``size_bytes`` more bytes cannot fit."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data``, or raise LocalFileError."""

    def commit(self) -> None:
        """Finish: all bytes are there and verified."""

    def abort(self) -> None:
        """Give up; does nothing after a commit, never raises."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class FdSink:
    """What all sinks share: the descriptor and the writing."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._failure: LocalFileError | None = None
        self.name: str = name
        self.written_bytes: int = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data``.

        Raises:
            LocalFileError: the disk is full, a limit is reached, the reader of a
                FIFO has gone, or the like. Every later call raises it again.
        """
        self._check_usable()
        with memoryview(data) as given, given.cast("B") as view:
            rest = view
            while rest:
                try:
                    count = os.write(self._fd, rest)
                except BlockingIOError:
                    self._wait_writable()
                except OSError as exc:
                    self._failure = file_error(exc, "write", self.name)
                    raise self._failure from exc
                else:
                    self.written_bytes += count
                    rest = rest[count:]

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._fd < 0:
            raise LocalFileError(f"{display_name(self.name)} is closed already")

    def _wait_writable(self) -> None:
        """Wait on a terminal or pipe that some program has made non-blocking."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.poll()

    def _close_fd(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class PlainSink(FdSink):
    """A stream that bytes go straight into: a FIFO, a terminal, ``/dev/null``."""

    def check_space(self, size_bytes: int) -> None:
        """Do nothing: a stream has room for any length."""

    def commit(self) -> None:
        """Close the stream.

        Raises:
            LocalFileError: an earlier write failed, or closing did.
        """
        self._check_usable()
        try:
            self._close_fd()
        except OSError as exc:
            raise file_error(exc, "write", self.name) from exc

    def abort(self) -> None:
        """Close the stream; what was written cannot be taken back."""
        with contextlib.suppress(OSError):
            self._close_fd()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()
