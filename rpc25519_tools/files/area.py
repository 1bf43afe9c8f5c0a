"""Keep unfinished files where a later attempt finds them: in a hidden directory.

``.rpc25519-part-area`` lies in the directory that files are received into. It is ours
alone (mode 0700), is made when the first file in it is, and goes when it is empty. In a
directory of many users, the others' names end in their numbers. Its
name begins like those of all unfinished files, so it is never served nor written to by
name (see ``jail.py``). In it are

- *partials*, named by the BLAKE3 sum of a key. Whoever holds the ``flock`` of one owns
  it. One that nobody has locked was left behind, and the next transfer with that key
  carries on with it. A lock counts only after the name was seen to be still that
  file's: its last owner may have published or removed it in between;
- *session directories*, each locked by the one :class:`PartialArea` that made it. Files
  in them are cheap, since they need no lock of their own, and die with the session.
  Where the session's process was killed they are left: the next area that is opened
  to take them over finds them by their keys, until it closes.

:meth:`PartialArea.sweep` removes what is dead, old or too much, and nothing that is
locked, so it may run at any time beside any number of other processes.

What others may have put in the way is refused: the area has to be a directory, not a
link to one, of our own user, and writable for nobody else. A partial has to be a
regular file of ours with one name. Callers then do without an area.

All of this blocks. Errors of the system are plain ``OSError``, since only callers know
what to call the file; they translate them with ``jail.file_error``.
"""

import contextlib
import errno
import itertools
import os
import stat
import threading
import time
from types import TracebackType
from typing import Final, Self

from blake3 import blake3

from rpc25519_tools.errors import UnsafePathError
from rpc25519_tools.files.jail import describe_kind, unsafe
from rpc25519_tools.files.partial import names_inode
from rpc25519_tools.files.sweeping import DIR_FLAGS, empty, sweep, take_over, try_lock

AREA_NAME: Final = b".rpc25519-part-area"

_MAX_RACES: Final = 100  # how often others may take away what we are about to use
_SESSION_PREFIX: Final = b"session-"
_KEYED_FLAGS = (
    os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
)  # whatever has the name, opening it must not block
_SCRATCH_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LEFT_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NOT_PLAIN = frozenset({errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO})


class Partial:
    """An unfinished file in the area; end it with one of three methods.

    Use it in one thread at a time, and before its area is closed.

    Attributes:
        fd: open for reading and writing, at offset 0; -1 once it is closed.
        name: in ``dir_fd``.
        dir_fd: the area or the session directory; borrowed from the area.
        keyed: whether a later attempt can carry on with it.
    """

    __slots__ = ("dir_fd", "fd", "keyed", "name")

    def __init__(self, fd: int, name: bytes, dir_fd: int, *, keyed: bool) -> None:
        self.fd = fd
        self.name = name
        self.dir_fd = dir_fd
        self.keyed = keyed

    def close_fd(self) -> None:
        """Close only the descriptor of a file from ``scratch``; its name stays good.

        For callers that have many files waiting to be published.
        """
        assert not self.keyed, "closing gives up the lock"
        self.close()

    def close(self) -> None:
        """Let go of a file that has its final name, or that is left as it is."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def keep(self) -> None:
        """Close the file and leave it to a later attempt; drop it if it is empty."""
        assert self.keyed, "nobody would find it again"
        if os.fstat(self.fd).st_size:
            self.close()
        else:
            self.discard()

    def discard(self) -> None:
        """Remove the file and close it; never raises. Does nothing if all is done."""
        if self.keyed and self.fd < 0:
            return
        with contextlib.suppress(OSError):
            if not self.keyed or names_inode(self.dir_fd, self.name, os.fstat(self.fd)):
                os.unlink(self.name, dir_fd=self.dir_fd)
        with contextlib.suppress(OSError):
            self.close()  # only now: this gives up the lock


class PartialArea:
    """The hidden directory for unfinished files beneath one directory.

    Its methods may run in several threads at once; :meth:`close` only when no other
    runs. Makes nothing on the disk before a file is asked for.
    """

    def __init__(self, dir_fd: int) -> None:
        """Take over ``dir_fd``; use :meth:`open`."""
        self._dir_fd = dir_fd
        self._name = AREA_NAME
        self._area_fd = -1
        self._session_fd = -1
        self._session_name = b""
        self._gone_fds: list[int] = []
        self._left: list[tuple[int, bytes]] = []
        self._keeps_left = False
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, dir_fd: int, *, takes_over: bool = False) -> Self:
        """Look for the area of a directory, and sweep it.

        Args:
            dir_fd: the directory; only borrowed, the object holds its own.
            takes_over: whether files that killed sessions have left are of use.

        Raises:
            UnsafePathError: something else has the name, or others could have put
                something into it.
            OSError: the directory cannot be used.
        """
        area = cls(os.dup(dir_fd))
        try:
            if area._find_area(make=False) >= 0 and takes_over:
                with contextlib.suppress(OSError):
                    area._left = take_over(area._area_fd)
            area.sweep()
        except BaseException:
            area.close()
            raise
        return area

    @property
    def was_used(self) -> bool:
        """Whether the area is there: its directory changes when it goes."""
        return self._area_fd >= 0

    def close(self) -> None:
        """Remove the files from ``scratch``, and the area if it is empty.

        Later calls do nothing. Never raises.
        """
        with contextlib.suppress(OSError):
            if self._session_fd >= 0:
                empty(self._session_fd, None)
                os.rmdir(self._session_name, dir_fd=self._area_fd)
        for fd, name in self._left:
            with contextlib.suppress(OSError):
                if not self._keeps_left:
                    empty(fd, None)
                    os.rmdir(name, dir_fd=self._area_fd)
        self.sweep()  # what there was no time for at the beginning
        with contextlib.suppress(OSError):
            if self._area_fd >= 0:
                status = os.fstat(self._area_fd)
                if names_inode(self._dir_fd, self._name, status):
                    os.rmdir(self._name, dir_fd=self._dir_fd)  # fails unless empty
        left = [fd for fd, _ in self._left]
        fds = (self._session_fd, self._area_fd, *self._gone_fds, *left, self._dir_fd)
        self._session_fd = self._area_fd = self._dir_fd = -1
        self._gone_fds, self._left = [], []
        for fd in fds:
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

    def acquire(self, key: bytes, *, make: bool = True) -> Partial | None:
        """Open and lock the partial of a key, with whatever it holds already.

        Args:
            key: what tells this file from all others; any bytes.
            make: whether to make it where there is none.

        Returns:
            None if another transfer has it or may have it; or this file system has
            no locks; or there is none and ``make`` is false.

        Raises:
            UnsafePathError, OSError: as :meth:`open`; or the file cannot be made.
        """
        name = _name_of(key)
        for _ in range(_MAX_RACES):
            dir_fd = self._find_area(make=make)
            if dir_fd < 0:
                return None
            try:
                fd, writable = _open_keyed(dir_fd, name, make=make)
            except FileNotFoundError:
                if not make:
                    return None
                self._forget_area(dir_fd)  # it was empty, and another process left
                continue
            if fd < 0:
                return None
            verdict: bool | None = None
            try:
                if writable or try_lock(fd) is not None:
                    verdict = _claim(dir_fd, name, fd)
            finally:
                if not (writable and verdict):
                    os.close(fd)
            if verdict is None:
                return None
            if writable and verdict:
                return Partial(fd, name, dir_fd, keyed=True)
        return None

    def scratch(self, key: bytes = b"") -> Partial:
        """Make a new empty file that lives no longer than this area is open.

        Costs one system call.

        Args:
            key: by which it is found if this process is killed; each only once at a
                time. Empty: it is not.

        Raises:
            UnsafePathError, OSError: as :meth:`acquire`.
        """
        name = _left_name(key) if key else b"%d" % next(self._numbers)
        session_fd = self._session_fd
        if session_fd < 0:
            session_fd = self._begin_session()
        fd = os.open(name, _SCRATCH_FLAGS, 0o600, dir_fd=session_fd)
        return Partial(fd, name, session_fd, keyed=False)

    def open_left(self, key: bytes) -> int:
        """Open what a killed session has left of a file, for reading; -1 for nothing.

        It may be unfinished, or have lost contents when the power went.
        """
        for fd, _ in self._left:
            with contextlib.suppress(OSError):
                return os.open(_left_name(key), _LEFT_FLAGS, dir_fd=fd)
        return -1

    def has_left(self, key: bytes) -> bool:
        """Tell whether a killed session has left something of a file."""
        for fd, _ in self._left:
            with contextlib.suppress(OSError):
                os.stat(_left_name(key), dir_fd=fd, follow_symlinks=False)
                return True
        return False

    def keep_left(self) -> None:
        """Leave what was taken over to a later attempt, too."""
        self._keeps_left = True

    def new_name(self) -> tuple[int, bytes]:
        """Return a free name for something that is no regular file, and its directory.

        Raises:
            UnsafePathError, OSError: as :meth:`acquire`.
        """
        session_fd = self._session_fd
        if session_fd < 0:
            session_fd = self._begin_session()
        return session_fd, b"%d" % next(self._numbers)

    def holds(self, key: bytes) -> int:
        """Return how many bytes can be read of the partial of a key; 0 for none."""
        try:
            area_fd = self._find_area(make=False)
            if area_fd < 0:
                return 0
            name = _name_of(key)
            status = os.stat(name, dir_fd=area_fd, follow_symlinks=False)
        except (OSError, UnsafePathError):
            return 0
        if not stat.S_ISREG(status.st_mode) or not status.st_mode & stat.S_IRUSR:
            return 0
        return status.st_size

    def sweep(self, now_s: float | None = None) -> None:
        """Remove what is dead, old or too much; best effort, in a bounded time.

        Goes, unless it is locked: session directories; partials that were last changed
        over a week ago; of the others all beyond the newest 64, and beyond a quarter
        of the file system's size.

        Args:
            now_s: the time, Unix seconds; default now.
        """
        if self._area_fd < 0:
            return
        with contextlib.suppress(OSError):
            sweep(self._area_fd, time.time() if now_s is None else now_s)

    def _find_area(self, *, make: bool) -> int:
        """Return the area's descriptor; -1 if there is none and none is to be made."""
        with self._lock:
            for _ in range(_MAX_RACES):
                if self._area_fd >= 0:
                    return self._area_fd
                self._name = _area_name(self._dir_fd)
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(self._name, 0o700, dir_fd=self._dir_fd)
                try:
                    self._area_fd = _open_area(self._dir_fd, self._name)
                except FileNotFoundError:
                    if not make:
                        return -1
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _forget_area(self, area_fd: int) -> None:
        """Let go of an area that is no more; another thread may have done so.

        It stays open to the end: such a thread may still be using the descriptor.
        """
        with self._lock:
            if self._area_fd == area_fd and self._session_fd < 0:
                self._area_fd = -1
                self._gone_fds.append(area_fd)

    def _begin_session(self) -> int:
        """Make and lock this object's session directory."""
        for _ in range(_MAX_RACES):
            area_fd = self._find_area(make=True)
            with self._lock:
                if self._session_fd >= 0:
                    return self._session_fd
                name = _SESSION_PREFIX + os.urandom(8).hex().encode()
                try:
                    fd = _make_session(area_fd, name)
                except FileNotFoundError:
                    fd = -1
                if fd >= 0:
                    self._session_name = name
                    self._session_fd = fd
                    return fd
            if not names_inode(self._dir_fd, self._name, os.fstat(area_fd)):
                self._forget_area(area_fd)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _name_of(key: bytes) -> bytes:
    return blake3(key).hexdigest().encode()


def _left_name(key: bytes) -> bytes:
    return b"k" + blake3(key).hexdigest(16).encode()


def _area_name(dir_fd: int) -> bytes:
    """Return what our area is called: each user has one, as in ``/tmp``."""
    user = os.geteuid()
    with contextlib.suppress(OSError):
        status = os.stat(AREA_NAME, dir_fd=dir_fd, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode) and status.st_uid != user:
            return b"%s-%d" % (AREA_NAME, user)
    return AREA_NAME


def _open_area(dir_fd: int, name: bytes) -> int:
    """Open the area, and see that nobody but us could have put anything into it.

    An owner of the parent directory can always put another directory of ours in its
    place, but not one that others may write to.
    """
    try:
        fd = os.open(name, DIR_FLAGS, dir_fd=dir_fd)
    except OSError as exc:
        if exc.errno in {errno.ELOOP, errno.EMLINK, errno.ENOTDIR}:
            raise unsafe(name, "it is a link, or no directory") from exc
        if exc.errno == errno.EACCES:
            raise unsafe(name, "it is not ours") from exc
        raise
    try:
        _check_area(os.fstat(fd), fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_area(status: os.stat_result, fd: int) -> None:
    if status.st_uid != os.geteuid():
        raise unsafe(AREA_NAME, "it belongs to another user")
    if status.st_mode & 0o022:
        # Whatever is in it, others could have put there, and could exchange it.
        raise unsafe(AREA_NAME, "others may write to it")
    if status.st_mode & 0o077:
        with contextlib.suppress(OSError):  # a file system without modes
            os.fchmod(fd, 0o700)


def _open_keyed(dir_fd: int, name: bytes, *, make: bool) -> tuple[int, bool]:
    """Open a partial; tell whether it is open for writing, too.

    One that has got its final mode may forbid that: its owner was killed before the
    rename, or lives and is about to rename it. Only the lock tells, so the mode may
    not change before :func:`_claim` has it.

    Returns:
        -1 as the descriptor: it cannot be opened at all, so nobody can tell.

    Raises:
        UnsafePathError: it is no file.
        OSError: there is none, and it cannot be made.
    """
    flags = _KEYED_FLAGS | os.O_CREAT if make else _KEYED_FLAGS
    try:
        return os.open(name, flags, 0o600, dir_fd=dir_fd), True
    except PermissionError as exc:
        try:
            return os.open(name, _LEFT_FLAGS, dir_fd=dir_fd), False
        except FileNotFoundError:
            raise exc from None
        except PermissionError:
            return -1, False
    except OSError as exc:
        if exc.errno in _NOT_PLAIN:
            raise unsafe(AREA_NAME, "what is in it is not ours") from exc
        raise


def _claim(dir_fd: int, name: bytes, fd: int) -> bool | None:
    """Try to own an open partial: True yes, None never, False open it anew."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise unsafe(AREA_NAME, f"there is {describe_kind(status.st_mode)} in it")
    locked = try_lock(fd)
    if locked is None:
        os.unlink(name, dir_fd=dir_fd)  # nobody can carry on with it
    if not locked:
        return None
    status = os.fstat(fd)
    if not names_inode(dir_fd, name, status):
        return False
    if status.st_uid != os.geteuid() or status.st_nlink != 1:
        # It is also another file, perhaps a finished one. This name of it is ours.
        os.unlink(name, dir_fd=dir_fd)
        return False
    if stat.S_IMODE(status.st_mode) != 0o600:
        os.fchmod(fd, 0o600)
    return True


def _make_session(area_fd: int, name: bytes) -> int:
    """Make and lock a session directory; -1: a sweep was quicker, take another name.

    Without locks it is used all the same: a sweep then goes by the age.
    """
    os.mkdir(name, 0o700, dir_fd=area_fd)
    fd = os.open(name, DIR_FLAGS, dir_fd=area_fd)
    good = False
    try:
        good = try_lock(fd) is not False and names_inode(area_fd, name, os.fstat(fd))
    finally:
        if not good:
            os.close(fd)
    return fd if good else -1
