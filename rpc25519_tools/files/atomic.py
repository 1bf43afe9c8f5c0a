"""Write a file that appears under its final name only when it is whole.

:class:`AtomicFile` writes to a partial file in the same directory, and holds a lock on
it for as long as it lives (see ``partial.py``), so

- a partial file that a killed process left is unlocked: the next transfer of that name
  takes it over (emptied), and nothing piles up;
- two transfers of one name at a time use two partial files; the last commit wins.

It can also be given a partial file of the area that later attempts carry on with (see
``area.py``), and :meth:`AtomicFile.keep` then leaves it there.

:meth:`AtomicFile.commit` sets the mode, syncs the file, renames it over the old one (or
links it, where nothing may be replaced) and syncs the directory. Until the rename, and
after every failure, the old file is untouched.

No space is reserved ahead: a lying peer could fill the disk by one announcement.
:meth:`AtomicFile.check_space` only compares an announced length with what is free, so
that a hopeless transfer fails at once.

All of this blocks; call it from a worker thread. Use an object in one thread at a time.
"""

import contextlib
import errno
import fcntl
import functools
import os
import resource
import stat
from types import TracebackType
from typing import Self

from rpc25519_tools.errors import LocalFileError
from rpc25519_tools.files.area import Partial
from rpc25519_tools.files.jail import (
    DIR_FLAGS,
    Root,
    WriteTarget,
    check_replaceable,
    describe_kind,
    display_name,
    file_error,
    is_partial_name,
    unsafe,
)
from rpc25519_tools.files.partial import CREATE_FLAGS, acquire_partial, names_inode
from rpc25519_tools.files.sink import FdSink, PlainSink, Sink
from rpc25519_tools.identity.outputs import copy_ownership

_NO_LINKS = frozenset(
    {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
)
_NO_DIR_SYNC = frozenset(
    {errno.EBADF, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
)  # EBADF: the directory is not readable, so it is only held by O_PATH


_COPY_LEN = 1 << 20


class AtomicFile(FdSink):
    """A new or replacing file that appears whole, by :meth:`commit`, or not at all.

    A replaced file hands on its permission bits, and its owner and group as far as
    we may set them; a new file gets 0666 less the umask. While it is being written
    the file has mode 0600.

    Attributes:
        name: what messages call the file.
        written_bytes: how many bytes were written so far.
    """

    def __init__(
        self,
        dir_fd: int,
        final_name: bytes,
        *,
        clobber: bool,
        fsync: bool = True,
        shown: str | None = None,
        partial: Partial | None = None,
        start_bytes: int = 0,
    ) -> None:
        """Make or take over the partial file.

        Args:
            dir_fd: the directory; only borrowed, the object holds its own.
            final_name: one plain component.
            clobber: whether an existing regular file may be replaced.
            fsync: whether the bytes and the name shall survive a power failure.
            shown: what to call the file in messages; default the final name.
            partial: a keyed one of an area that stays open longer than this object,
                which takes it over, except where it raises; None: one of its own.
            start_bytes: how much of what is in ``partial`` stays.

        Raises:
            UnsafePathError: the name belongs to anything but a regular file.
            LocalFileError: it exists and ``clobber`` is false; the directory is
                not writable, or the like. Nothing is left behind.
        """
        assert final_name not in {b"", b".", b".."}
        assert b"/" not in final_name
        super().__init__(-1, os.fsdecode(final_name) if shown is None else shown)
        if is_partial_name(final_name):
            raise unsafe(self.name, "the name is reserved for unfinished files")
        self._final = final_name
        self._clobber = clobber
        self._fsync = fsync
        try:
            self._dir_fd = _reopen_directory(dir_fd)
        except OSError as exc:
            raise file_error(exc, "write", self.name) from exc
        try:
            self._check_final()
            if partial is None:
                fd, name = acquire_partial(self._dir_fd, final_name, self.name)
                partial = Partial(fd, name, self._dir_fd, keyed=True)
            else:
                os.ftruncate(partial.fd, start_bytes)
                os.lseek(partial.fd, start_bytes, os.SEEK_SET)
            self._partial = partial
            self._fd = partial.fd
            self.written_bytes = start_bytes
        except OSError as exc:
            self._close_dir()
            raise file_error(exc, "write", self.name) from exc
        except BaseException:
            self._close_dir()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()

    def check_space(self, size_bytes: int) -> None:
        """Check that so many more bytes could fit; reserves nothing.

        Raises:
            LocalFileError: the disk has less room (superuser: less with the part
                kept for it), or the process may not write a file so large.
        """
        self._check_usable()
        shown = display_name(self.name)
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if limit != resource.RLIM_INFINITY and self.written_bytes + size_bytes > limit:
            raise LocalFileError(
                f"cannot write {shown}: file too large "
                f"({size_bytes} bytes, the limit of the process is {limit})"
            )
        try:
            disk = os.fstatvfs(self._fd)
        except OSError as exc:
            raise file_error(exc, "write", self.name) from exc
        if not disk.f_blocks:
            return  # this file system does not count its blocks
        blocks = disk.f_bfree if os.geteuid() == 0 else disk.f_bavail
        if size_bytes > (free := blocks * disk.f_frsize):
            raise LocalFileError(
                f"cannot write {shown}: disk full "
                f"({size_bytes} bytes needed, {free} free)"
            )

    def commit(self) -> None:
        """Give the file its final name; everything in it must be verified by now.

        Raises:
            UnsafePathError: the final name has become anything but a regular file.
            LocalFileError: an earlier write failed; the file exists and may not be
                replaced; or the system refused a step. The transfer is aborted
                then, and an old file is as it was, except where the text says
                that the new one is in place but not synced.
        """
        self._check_usable()
        try:
            self._prepare()
            if self._publish():
                self._sync_directory()
            else:
                self._copy_over()
        except OSError as exc:
            raise file_error(exc, "write", self.name) from exc
        finally:
            self.abort()  # after success there is no partial file: this only closes

    def abort(self) -> None:
        """Remove the partial file; does nothing after a commit, never raises."""
        if self._fd < 0:
            return
        self._fd = -1
        self._partial.discard()
        self._close_dir()

    def keep(self) -> None:
        """Leave a partial file of an area to a later attempt; abort any other."""
        if self._fd < 0 or self._partial.dir_fd == self._dir_fd:
            self.abort()
            return
        self._fd = -1
        with contextlib.suppress(OSError):
            self._partial.keep()
        self._close_dir()

    def _close_dir(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._dir_fd)

    def _check_final(self) -> os.stat_result | None:
        """Look at what has the final name now; None: nothing."""
        old = check_replaceable(self._dir_fd, self._final, self.name)
        if old is not None and not self._clobber:
            raise self._exists_error()
        return old

    def _exists_error(self) -> LocalFileError:
        shown = display_name(self.name)
        return LocalFileError(f"{shown} exists and --no-clobber was given")

    def _prepare(self) -> None:
        """Set the mode and sync, so that the rename publishes a finished file."""
        old = self._check_final()
        if old is None:
            os.fchmod(self._fd, 0o666 & ~process_umask())
        else:
            copy_ownership(self._fd, old)
        if self._fsync:
            _sync_file(self._fd)

    def _publish(self) -> bool:
        """Give it its final name; False: that lies on another file system."""
        self._check_final()  # again: the sync may have taken a while
        mine = os.fstat(self._fd)
        if mine.st_size != self.written_bytes or not names_inode(
            self._partial.dir_fd, self._partial.name, mine
        ):
            raise LocalFileError(
                f"cannot write {display_name(self.name)}: "
                "another program touched its partial file"
            )
        try:
            if self._clobber:
                self._rename()
            else:
                self._link()
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            return False
        return True

    def _link(self) -> None:
        """Take the final name if it is free.

        The finally of commit unlinks the partial name. Killed before that, the next
        transfer sees two links and removes the name without touching the file.
        """
        try:
            os.link(
                self._partial.name,
                self._final,
                src_dir_fd=self._partial.dir_fd,
                dst_dir_fd=self._dir_fd,
                follow_symlinks=False,
            )
        except FileExistsError as exc:
            raise self._exists_error() from exc
        except OSError as exc:
            if exc.errno not in _NO_LINKS:
                raise
            self._rename_onto_claim()

    def _rename(self) -> None:
        os.rename(
            self._partial.name,
            self._final,
            src_dir_fd=self._partial.dir_fd,
            dst_dir_fd=self._dir_fd,
        )

    def _copy_over(self) -> None:
        """Copy what is whole and verified to where it can get its final name."""
        with AtomicFile(
            self._dir_fd,
            self._final,
            clobber=self._clobber,
            fsync=self._fsync,
            shown=self.name,
        ) as copy:
            os.lseek(self._fd, 0, os.SEEK_SET)
            while data := os.read(self._fd, _COPY_LEN):
                copy.write(data)
            copy.commit()

    def _rename_onto_claim(self) -> None:
        """Claim the name with an empty file where the file system has no links."""
        try:
            fd = os.open(self._final, CREATE_FLAGS, 0o600, dir_fd=self._dir_fd)
        except FileExistsError as exc:
            raise self._exists_error() from exc
        os.close(fd)
        try:
            self._rename()
        except BaseException:
            os.unlink(self._final, dir_fd=self._dir_fd)
            raise

    def _sync_directory(self) -> None:
        if not self._fsync:
            return
        try:
            os.fsync(self._dir_fd)
        except OSError as exc:
            if exc.errno in _NO_DIR_SYNC:
                return
            raise LocalFileError(
                f"{display_name(self.name)} is in place, but its directory could not "
                f"be synced: {os.strerror(exc.errno or 0)}"
            ) from exc


def _reopen_directory(dir_fd: int) -> int:
    """Open a directory again, readable if possible: syncing needs that."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(".", flags, dir_fd=dir_fd)
    except PermissionError:
        return os.dup(dir_fd)


def _sync_file(fd: int) -> None:
    """Flush a file to the disk itself; on macOS fsync stops at the disk's cache."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


@functools.cache
def process_umask() -> int:
    """Return the umask that the process has at the first call.

    Linux tells it. Elsewhere it can only be read by setting it, which for a moment
    narrows the mode of files that other threads create.
    """
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def open_remote_target(
    root: Root, remote_name: str, *, clobber: bool, fsync: bool = True
) -> AtomicFile:
    """Begin the file beneath ``root`` that a peer wants to write.

    Raises:
        UnsafePathError, LocalFileError: as :meth:`Root.resolve_for_writing` and
            :class:`AtomicFile`; the text is safe to send to the peer.
    """
    with root.resolve_for_writing(remote_name) as target:
        return AtomicFile(
            target.dir_fd,
            target.name,
            clobber=clobber,
            fsync=fsync,
            shown=remote_name,
        )


def open_local_target(path: str, *, clobber: bool, fsync: bool = True) -> AtomicFile:
    """Begin a file at any path that the local user has chosen.

    A link is kept: the file that it points to is the one that is replaced.

    Raises:
        LocalFileError: the parent directory is missing or not permitted; the path
            is of anything but a regular file, or exists and ``clobber`` is false.
    """
    with local_target(path) as target:
        return AtomicFile(
            target.dir_fd, target.name, clobber=clobber, fsync=fsync, shown=path
        )


def local_target(path: str) -> WriteTarget:
    """Hold the directory in which a file at any path of the local user shall appear.

    Raises:
        LocalFileError: the parent directory is missing or not permitted, or the path
            is of a directory.
    """
    shown = display_name(path)
    if not path:
        raise LocalFileError("cannot write a file with an empty name")
    if os.path.isdir(path):
        raise LocalFileError(f"cannot write {shown}: it is a directory")
    if path.endswith("/"):
        raise LocalFileError(f"cannot write {shown}: no such directory")
    try:
        parent, final = os.path.split(os.path.realpath(path))
        dir_fd = os.open(parent, DIR_FLAGS)
    except OSError as exc:
        raise file_error(exc, "write", path) from exc
    except ValueError as exc:  # a NUL, or a character that has no bytes
        raise LocalFileError(f"cannot write {shown}: not a possible name") from exc
    return WriteTarget(dir_fd=dir_fd, name=os.fsencode(final), remote_name=path)


def open_local_sink(path: str, *, clobber: bool, fsync: bool = True) -> Sink:
    """Begin what the local user gave as output: a file, FIFO or character device.

    A FIFO or device such as ``/dev/null`` is written into, never replaced; opening a
    FIFO waits until it has a reader.

    Raises:
        LocalFileError: as :func:`open_local_target`; or a block device or socket.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return open_local_target(path, clobber=clobber, fsync=fsync)
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return open_local_target(path, clobber=clobber, fsync=fsync)
    if not stat.S_ISFIFO(mode) and not stat.S_ISCHR(mode):
        raise LocalFileError(
            f"cannot write {display_name(path)}: it is {describe_kind(mode)}"
        )
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as exc:
        raise file_error(exc, "write", path) from exc
    if stat.S_ISFIFO(now := os.fstat(fd).st_mode) or stat.S_ISCHR(now):
        return PlainSink(fd, path)
    os.close(fd)
    raise LocalFileError(f"cannot write {display_name(path)}: it was replaced just now")
