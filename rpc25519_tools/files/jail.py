"""Open the file that a remote name means, never anything outside of the root.

This is the only code that turns a name from the wire into a file. Its rules:

- A name is a relative path of plain components. Absolute names, ``.``, ``..``, empty
  components, NUL, over-long names and the names of our own partial files are refused.
  A backslash is an ordinary character.
- A name is bytes on the wire and bytes on the disk: the ``str`` between is UTF-8 with
  ``surrogateescape`` whatever the locale is.
- Each component is opened relative to the descriptor of the one before it, with
  ``O_NOFOLLOW``. **Symbolic links beneath the root are refused altogether**, also those
  that stay inside: telling the two apart safely needs ``openat2``, which Python lacks,
  and a link that is refused cannot be swapped for another one. The root itself may be
  reached through links; the operator chose it.
- Only regular files are read or replaced. Directories, devices, FIFOs and sockets are
  refused, before and again after opening, and no open of them can block.

The callers keep descriptors, not paths: a directory that is swapped for a link after
it was opened changes nothing. Every refusal is an :class:`UnsafePathError` whose one
line names what the peer asked for and never where the root is, so it may be sent to
the peer. What is merely missing or not permitted is a plain :class:`LocalFileError`.

All of this blocks; call it from a worker thread.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rpc25519_tools.errors import LocalFileError, UnsafePathError
from rpc25519_tools.files.kept_back import KeptBack
from rpc25519_tools.identity.printable import quoted

PARTIAL_PREFIX = b".rpc25519-part-"
"""How the names of unfinished files begin (see ``atomic.py``)."""

MAX_NAME_BYTES = 255  # NAME_MAX of Linux and of macOS
MAX_PATH_BYTES = 4096  # PATH_MAX of Linux

DIR_FLAGS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
"""To hold a directory: ``O_PATH`` needs no read permission; macOS lacks it."""

READ_FLAGS = (
    os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
)  # O_NONBLOCK: should a FIFO win the race after the check, its open returns at once

_NOT_PLAIN = frozenset(
    {
        errno.ELOOP,  # O_NOFOLLOW met a symbolic link
        errno.EMLINK,  # the same on FreeBSD
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENXIO,  # a socket, or a FIFO or device without another end
        errno.ENAMETOOLONG,  # the file system's own limit is lower than ours
        errno.EILSEQ,  # the file system wants UTF-8
    }
)

_REASONS = {
    errno.ENOENT: "no such file or directory",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "disk quota used up",
    errno.EFBIG: "file too large (limit of the process or of the file system)",
    errno.EROFS: "read-only file system",
    errno.EIO: "the disk reports an input/output error",
    errno.EMFILE: "too many open files",
    errno.ENFILE: "too many open files",
    errno.EISDIR: "it is a directory",
    errno.ENOTDIR: "a part of the path is not a directory",
    errno.ELOOP: "too many symbolic links",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EPIPE: "its reader has gone",
    errno.EAGAIN: "another program has it locked",
}


def display_name(name: str | bytes) -> str:
    """Quote a name for one line of text: escaped, and shortened in the middle."""
    text = name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")
    return quoted(text)


def file_error(exc: OSError, action: str, name: str | bytes) -> LocalFileError:
    """Translate an ``OSError`` into one line: ``cannot ACTION 'NAME': why``.

    The caller raises the result ``from exc``. The text holds no other path than
    ``name``.
    """
    if exc.errno == errno.ENOENT and action == "read":
        return LocalFileError(f"no such file: {display_name(name)}")
    code = exc.errno or 0
    reason = _REASONS.get(code) or os.strerror(code)
    return LocalFileError(f"cannot {action} {display_name(name)}: {reason}")


def unsafe(name: str | bytes, reason: str) -> UnsafePathError:
    """Make the one kind of error that refuses a name."""
    return UnsafePathError(f"refused {display_name(name)}: {reason}")


def is_partial_name(name: bytes) -> bool:
    """Tell whether a name is, on any file system, one of an unfinished file.

    macOS ignores case, so case is ignored here.
    """
    if not name.startswith(b"."):
        return False
    text = name[: 2 * len(PARTIAL_PREFIX)].decode("utf-8", "surrogateescape")
    return text.casefold().startswith(PARTIAL_PREFIX.decode())


def split_remote_name(remote_name: str) -> tuple[bytes, ...]:
    """Split a name from the wire into components that are safe to open one by one.

    Returns:
        At least one component; each has 1 to 255 bytes, is neither ``.`` nor ``..``
        and contains neither ``/`` nor NUL.

    Raises:
        UnsafePathError: the name is not a relative path of plain components.
    """
    try:
        raw = remote_name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as exc:
        raise unsafe(remote_name, "the name has no form in bytes") from exc
    if not raw:
        raise unsafe(remote_name, "the name is empty")
    if b"\0" in raw:
        raise unsafe(remote_name, "the name contains a NUL byte")
    if len(raw) > MAX_PATH_BYTES:
        raise unsafe(remote_name, f"the path has over {MAX_PATH_BYTES} bytes")
    if raw.startswith(b"/"):
        raise unsafe(remote_name, "the path is absolute")
    parts = tuple(raw.split(b"/"))
    for part in parts:
        _check_component(part, remote_name)
    return parts


def _check_component(part: bytes, remote_name: str) -> None:
    """Refuse what is no plain component, or is ours; NUL and ``/`` are looked for."""
    if part in {b"", b".", b".."}:
        raise unsafe(remote_name, "the path has an empty, '.' or '..' component")
    if len(part) > MAX_NAME_BYTES:
        raise unsafe(remote_name, f"a component has over {MAX_NAME_BYTES} bytes")
    if is_partial_name(part):
        raise unsafe(remote_name, "the name is reserved for unfinished files")


def split_listed_name(remote_name: str) -> tuple[bytes, ...]:
    """Split a name that may also mean the root: empty, ``.`` and ``/``.

    Slashes at the end do not count.

    Raises:
        UnsafePathError: it is neither the root nor a relative path of plain components.
    """
    plain = remote_name.rstrip("/")
    return () if plain in {"", "."} else split_remote_name(plain)


def access_target(remote_name: str) -> str:
    """Return what rights to a name from the wire are looked up by: ``/a/b``.

    It is the only spelling of that file; see ``identity/access.py``.

    Raises:
        UnsafePathError: the name is not a relative path of plain components.
    """
    return target_of(split_remote_name(remote_name))


def target_of(parts: Sequence[bytes]) -> str:
    """Return what rights are looked up by, for components; ``/`` for none."""
    return "/" + b"/".join(parts).decode("utf-8", "surrogateescape")


def describe_kind(mode: int) -> str:
    """Name the kind of a file that is not regular, from its ``st_mode``."""
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    for test, text in kinds:
        if test(mode):
            return text
    return "not a regular file"


def check_replaceable(
    dir_fd: int, name: bytes, shown: str | bytes
) -> os.stat_result | None:
    """Check that ``name`` is free, or a regular file that a rename may replace.

    Returns:
        The status of the regular file, or None where nothing has the name.

    Raises:
        UnsafePathError: the name belongs to anything but a regular file.
        LocalFileError: the directory does not let us look.
    """
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise _jail_error(exc, "write", shown) from exc
    if not stat.S_ISREG(status.st_mode):
        raise unsafe(shown, f"it is {describe_kind(status.st_mode)}")
    return status


def _jail_error(exc: OSError, action: str, name: str | bytes) -> LocalFileError:
    """Translate an ``OSError`` met on the way to a remote name."""
    if exc.errno == errno.ENAMETOOLONG:
        return unsafe(name, "the name is too long for this file system")
    if exc.errno == errno.EILSEQ:
        return unsafe(name, "the name is not one for this file system")
    if exc.errno in _NOT_PLAIN:
        return unsafe(name, "it is not a regular file")
    return file_error(exc, action, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedFile:
    """A regular file beneath the root, open for reading.

    Attributes:
        fd: the caller owns and closes it.
        status: its ``fstat`` when it was opened.
    """

    fd: int
    status: os.stat_result


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteTarget:
    """Where a new file shall appear: a held directory and a plain name in it.

    Close it after the writer is made, best by ``with``; the writer keeps its own
    descriptor of the directory.

    Attributes:
        dir_fd: the directory beneath the root; good for ``dir_fd=`` only.
        name: the final name, one plain component.
        remote_name: what the peer asked for, for messages.
    """

    dir_fd: int
    name: bytes
    remote_name: str

    def close(self) -> None:
        """Close the directory. Call it once."""
        os.close(self.dir_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Root:
    """A served directory, held open from start to end.

    Its methods may run in several threads at once. Close it only when none runs.
    Renaming or replacing the directory's path later does not redirect it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keep_back: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        """Open the directory; links on the way to it are followed.

        Args:
            path: the directory.
            keep_back: what in it nobody may read or write; see ``files/kept_back.py``.

        Raises:
            LocalFileError: it is missing, not a directory, not permitted, or kept back.
        """
        try:
            self._fd = os.open(path, DIR_FLAGS)
        except OSError as exc:
            raise file_error(exc, "open directory", os.fspath(path)) from exc
        except ValueError as exc:
            raise unsafe(os.fspath(path), "not a possible name") from exc
        try:
            self._kept_back = KeptBack(path, keep_back)
        except BaseException:
            self.close()
            raise

    @property
    def kept_back(self) -> KeptBack:
        """What beneath it nobody may read or write."""
        return self._kept_back

    def duplicate(self) -> int:
        """Return another descriptor of the directory; the caller closes it.

        Raises:
            LocalFileError: it is closed.
        """
        if self._fd < 0:
            raise LocalFileError("the served directory is closed")
        return os.dup(self._fd)

    def close(self) -> None:
        """Close the directory; later calls do nothing."""
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

    def open_for_reading(self, remote_name: str) -> OpenedFile:
        """Open a regular file beneath the root; never blocks on what it opens.

        Raises:
            UnsafePathError: the name is not plain, leads through a symbolic link,
                or belongs to anything but a regular file.
            LocalFileError: there is no such file, or no permission.
        """
        *parents, name = self._parts(remote_name)
        dir_fd = self._open_parent(parents, remote_name, "read")
        try:
            opened = _open_regular(dir_fd, name, remote_name)
        except OSError as exc:
            raise _jail_error(exc, "read", remote_name) from exc
        finally:
            os.close(dir_fd)
        try:
            self._kept_back.check_found(opened.status, remote_name)
        except BaseException:
            os.close(opened.fd)
            raise
        return opened

    def resolve_for_writing(self, remote_name: str) -> WriteTarget:
        """Hold the directory in which ``remote_name`` shall appear; it must exist.

        Raises:
            UnsafePathError: the name is not plain, leads through a symbolic link,
                or belongs to anything but a regular file.
            LocalFileError: a parent directory is missing, or no permission.
        """
        *parents, name = self._parts(remote_name)
        dir_fd = self._open_parent(parents, remote_name, "write")
        try:
            old = check_replaceable(dir_fd, name, remote_name)
            if old is not None:
                self._kept_back.check_found(old, remote_name)
        except BaseException:
            os.close(dir_fd)
            raise
        return WriteTarget(dir_fd=dir_fd, name=name, remote_name=remote_name)

    def hold_directory(self, parts: Sequence[bytes], remote_name: str) -> int:
        """Open a directory beneath the root, to look at what is in it.

        Args:
            parts: its components, of a name from the wire or from the disk; none for
                the root itself.
            remote_name: for messages.

        Returns:
            A descriptor that is good for ``dir_fd=``; the caller closes it.

        Raises:
            UnsafePathError: a component is not plain or kept back, or is a symbolic
                link, or anything but a directory.
            LocalFileError: there is no such directory, or no permission.
        """
        for part in parts:
            _check_component(part, remote_name)
        self._kept_back.check(parts, remote_name)
        return self._open_parent(parts, remote_name, "list")

    def check_shown(
        self, parts: Sequence[bytes], found: os.stat_result, remote_name: str
    ) -> None:
        """Refuse what is not to be shown: what is kept back, or a partial file.

        Args:
            parts: its components.
            found: its status; of a link, its own.
            remote_name: for messages.

        Raises:
            UnsafePathError: it is not to be shown.
        """
        for part in parts:
            _check_component(part, remote_name)
        self._kept_back.check(parts, remote_name)
        self._kept_back.check_found(found, remote_name)

    def hidden_in(
        self, parts: Sequence[bytes]
    ) -> Callable[[bytes, os.stat_result], bool]:
        """Return a check that tells which entries of a directory are not to be shown.

        Those are kept back, or partial files of ours. The check is good for a moment:
        what the kept back names lead to is looked up now.

        Args:
            parts: the directory's components.
        """
        is_kept_back = self._kept_back.entries_of(parts)
        return lambda name, found: is_partial_name(name) or is_kept_back(name, found)

    def _parts(self, remote_name: str) -> tuple[bytes, ...]:
        parts = split_remote_name(remote_name)
        self._kept_back.check(parts, remote_name)
        return parts

    def _open_parent(
        self, parents: Sequence[bytes], remote_name: str, action: str
    ) -> int:
        """Walk to the directory of the last component; the caller closes it."""
        if self._fd < 0:
            raise LocalFileError("the served directory is closed")
        try:
            fd = os.dup(self._fd)
        except OSError as exc:
            raise file_error(exc, action, remote_name) from exc
        part = b""
        try:
            for part in parents:
                # A symbolic link here fails: ENOTDIR on Linux, ELOOP elsewhere.
                child = os.open(part, DIR_FLAGS | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = child
                self._kept_back.check_found(os.fstat(fd), remote_name)
        except UnsafePathError:
            os.close(fd)
            raise
        except OSError as exc:
            os.close(fd)
            if exc.errno in {errno.ENOTDIR, errno.ELOOP, errno.EMLINK}:
                reason = f"{display_name(part)} is a symbolic link or no directory"
                raise unsafe(remote_name, reason) from exc
            raise _jail_error(exc, action, remote_name) from exc
        return fd


def _open_regular(dir_fd: int, name: bytes, remote_name: str) -> OpenedFile:
    """Open one name in a held directory.

    Opening a device can have side effects, so its kind is looked up first. What is
    opened is looked at again: another file may have taken the name in between. If
    that is a regular file, it is as good as the first (an upload just replaced it).
    """
    mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
    if not stat.S_ISREG(mode):
        raise unsafe(remote_name, f"it is {describe_kind(mode)}")
    fd = os.open(name, READ_FLAGS, dir_fd=dir_fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise unsafe(remote_name, f"it is {describe_kind(status.st_mode)}")
    except BaseException:
        os.close(fd)
        raise
    return OpenedFile(fd=fd, status=status)
