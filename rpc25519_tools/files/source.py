"""Read a file that is being sent, and notice when it changes meanwhile.

A regular file is read up to the size it had when it was opened, so one that grows
for ever still ends, and :meth:`SourceFile.check_unchanged` tells afterwards. Pipes,
terminals and other streams have no size and nothing to compare.

All of this blocks; call it from a worker thread.
"""

import errno
import os
import select
import stat
from types import TracebackType
from typing import Self

from rpc25519_tools.errors import FileChangedError, LocalFileError
from rpc25519_tools.files.jail import Root, describe_kind, display_name, file_error

_OPEN_FLAGS = os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC


class SourceFile:
    """An open file or stream to be sent once, from its present position to its end.

    Use it from one thread at a time.

    Attributes:
        name: as the user or the peer gave it, for messages.
        size_bytes: how many bytes there are to read, or None for a stream. Known
            sizes are exact, or :meth:`check_unchanged` raises at the end.
        modified_ns: time of the last change, Unix nanoseconds; None for a stream.
        read_bytes: how many bytes were read so far.
    """

    def __init__(self, fd: int, name: str) -> None:
        """Take over ``fd``; it is closed with this object, and on failure.

        Raises:
            LocalFileError: the descriptor is of a directory, a block device or a
                socket, or cannot be looked at.
        """
        self._fd = fd
        self.name = name
        self.size_bytes: int | None = None
        self.modified_ns: int | None = None
        self.read_bytes = 0
        self._start = 0  # of a regular file: the position that it was given with
        self._end = 0  # of a regular file: its st_size when it was opened
        try:
            self._look()
        except OSError as exc:
            self.close()
            raise file_error(exc, "read", name) from exc
        except BaseException:
            self.close()
            raise

    def _look(self) -> None:
        status = os.fstat(self._fd)
        _check_readable_kind(status.st_mode, self.name)
        if not stat.S_ISREG(status.st_mode):
            return
        start = os.lseek(self._fd, 0, os.SEEK_CUR)
        if status.st_size == 0 and os.pread(self._fd, 1, start):
            return  # files of /proc and the like do not know their size: streams
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self.size_bytes = max(0, status.st_size - start)
        self.modified_ns = status.st_mtime_ns
        self._start = start
        self._end = status.st_size

    def close(self) -> None:
        """Close the file; later calls do nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def read_into(self, buffer: bytearray | memoryview) -> int:
        """Fill a buffer with the next bytes; short only at the end.

        One system call for a regular file.

        Args:
            buffer: writable, of bytes, contiguous; it is never resized.

        Returns:
            How many bytes at the front of ``buffer`` were filled; 0 at the end.

        Raises:
            LocalFileError: reading failed.
        """
        filled = 0
        with memoryview(buffer) as view:
            while wanted := self.clip(len(view) - filled):
                with view[filled : filled + wanted] as rest:
                    got = self._read(rest)
                if not got:
                    break
                filled += got
        return filled

    def rewind(self) -> None:
        """Begin again, with the file as it was when it was opened.

        Raises:
            LocalFileError: it is a stream.
        """
        try:
            if self.size_bytes is None:
                raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))
            os.lseek(self._fd, self._start, os.SEEK_SET)
        except OSError as exc:
            raise file_error(exc, "read", self.name) from exc
        self.read_bytes = 0

    def check_unchanged(self) -> None:
        """Check, after the last part, that the file is the one that was opened.

        Compares what was read, the size and the time of the last modification. The
        time of the inode's change is left out: replacing the name by a newer file,
        or linking it, changes that but not one byte of what was sent. Two writes
        within one tick of the file system's clock (some milliseconds) can pass.

        Raises:
            FileChangedError: the file shrank, grew or was written to.
            LocalFileError: the file cannot be looked at any more.
        """
        if self.size_bytes is None:
            return
        try:
            status = os.fstat(self._fd)
        except OSError as exc:
            raise file_error(exc, "read", self.name) from exc
        shown = display_name(self.name)
        if status.st_size != self._end or self.read_bytes != self.size_bytes:
            verb = "shrank" if self._shorter_than_announced(status) else "grew"
            raise FileChangedError(f"{shown} {verb} while it was being sent")
        if status.st_mtime_ns != self.modified_ns:
            raise FileChangedError(f"{shown} was changed while it was being sent")

    def _shorter_than_announced(self, status: os.stat_result) -> bool:
        assert self.size_bytes is not None
        return status.st_size < self._end or self.read_bytes < self.size_bytes

    def clip(self, wanted: int) -> int:
        """Return how much of ``wanted`` bytes there can still be to read."""
        if self.size_bytes is None:
            return wanted
        return min(wanted, self.size_bytes - self.read_bytes)

    def _read(self, view: memoryview) -> int:
        while True:
            try:
                got = os.readv(self._fd, [view])
            except BlockingIOError:
                self._wait_readable()
            except OSError as exc:
                raise file_error(exc, "read", self.name) from exc
            else:
                self.read_bytes += got
                return got

    def _wait_readable(self) -> None:
        """Wait on a stdin that some other program has made non-blocking."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll()


def _check_readable_kind(mode: int, name: str) -> None:
    """Refuse what cannot be sent as one stream of bytes."""
    if stat.S_ISDIR(mode) or stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
        reason = f"it is {describe_kind(mode)}"
        raise LocalFileError(f"cannot read {display_name(name)}: {reason}")


def open_remote_source(root: Root, remote_name: str) -> SourceFile:
    """Open a regular file beneath ``root`` to send it to the peer that named it.

    Raises:
        UnsafePathError, LocalFileError: as :meth:`Root.open_for_reading`.
    """
    return SourceFile(root.open_for_reading(remote_name).fd, remote_name)


def open_local_source(path: str) -> SourceFile:
    """Open what the local user wants to send: a file, a FIFO, ``-`` for stdin.

    Opening a FIFO waits until it has a writer. Links are followed.

    Raises:
        LocalFileError: missing, not permitted, a directory, a block device or a
            socket, or stdin is closed.
    """
    if path == "-":
        try:
            return SourceFile(os.dup(0), "standard input")
        except OSError as exc:
            raise LocalFileError("cannot read standard input: it is closed") from exc
    try:
        _check_readable_kind(os.stat(path).st_mode, path)
        fd = os.open(path, _OPEN_FLAGS)
    except OSError as exc:
        raise file_error(exc, "read", path) from exc
    except ValueError as exc:  # a NUL, or a character that has no bytes
        raise LocalFileError(
            f"cannot read {display_name(path)}: not a possible name"
        ) from exc
    return SourceFile(fd, path)
