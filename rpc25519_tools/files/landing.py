"""Where a received file is put together, with what an earlier attempt has left of it.

A file of at least ``CARRY_MIN_LEN`` bytes is written as a partial of the area for
unfinished files (see ``area.py``), where there can be one; a smaller one, and any other
where there cannot, as a partial file that nobody carries on with (see ``atomic.py``).

What is found is only bytes. Whether they are the beginning of the file that is wanted,
the two ends find out by their sum (see :class:`Prefix`).

What blocks is to be called from a worker thread.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from rpc25519_tools.errors import (
    IncompleteTransferError,
    LocalFileError,
)
from rpc25519_tools.files.area import Partial, PartialArea
from rpc25519_tools.files.atomic import AtomicFile, local_target
from rpc25519_tools.files.jail import (
    Root,
    WriteTarget,
    file_error,
    split_remote_name,
)
from rpc25519_tools.files.workers import in_worker
from rpc25519_tools.wire.constants import PART_LEN
from rpc25519_tools.wire.digest import RunningDigest

#: What is shorter is sent again as quickly as it is looked for.
CARRY_MIN_LEN: Final = PART_LEN

#: The slowest reading and hashing that a peer waits for, in bytes per second.
_HASHING_RATE: Final = 50_000_000

_KEY_PREFIX: Final = b"transfer\0"
#: How much is hashed between two looks whether anybody still wants it.
_STEP_LEN: Final = 16 << 20
_BUFFER_LEN: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """The beginning of a file, which is not sent again.

    Attributes:
        size_bytes: its length.
        digest: the sum of its bytes; whoever reads on adds to it.
    """

    size_bytes: int
    digest: RunningDigest

    @property
    def sum(self) -> str:
        """The sum in its text form, before anything was added."""
        return self.digest.text()


def hashing_limit_s(size_bytes: int) -> float:
    """Return how long a peer may take to compare so many bytes, in seconds."""
    return size_bytes / _HASHING_RATE


async def read_prefix(
    read_into: Callable[[memoryview], int], size_bytes: int
) -> Prefix:
    """Read and hash the beginning of a file; cancelling it is not slow.

    Args:
        read_into: reads the next bytes into a buffer and returns how many; blocks.
        size_bytes: how many bytes to read.

    Raises:
        IncompleteTransferError: there are not so many.
        LocalFileError: they cannot be read.
    """
    digest = RunningDigest()
    buffer = bytearray(_BUFFER_LEN)

    def step(wanted: int) -> int:
        done = 0
        while done < wanted:
            with memoryview(buffer)[: min(wanted - done, _BUFFER_LEN)] as view:
                got = read_into(view)
                if not got:
                    raise IncompleteTransferError("the file is shorter than it was")
                with view[:got] as read:
                    digest.update(read)
            done += got
        return done

    left = size_bytes
    while left:
        left -= await in_worker(step, min(left, _STEP_LEN))
    return Prefix(size_bytes=size_bytes, digest=digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a file goes.

    Attributes:
        target: its directory and final name.
        open_area_dir: opens the directory that the area lies in.
        key: what its partial is found by.
    """

    target: WriteTarget
    open_area_dir: Callable[[], int]
    key: bytes


class Landing:
    """Where one attempt receives a file. Close it after the sink is done with.

    Use it in one thread at a time.

    Args:
        find_place: returns the place, or raises what is wrong with it.
        clobber: whether an existing file may be replaced.
        fsync: whether the file shall survive a power failure once it is committed.
    """

    def __init__(
        self, find_place: Callable[[], _Place], *, clobber: bool, fsync: bool = True
    ) -> None:
        self._find_place = find_place
        self._clobber = clobber
        self._fsync = fsync
        self._found: _Place | None = None
        self._area: PartialArea | None = None
        self._partial: Partial | None = None

    def close(self) -> None:
        """Close all, and leave what was found and not used; never raises."""
        self._let_go()
        area, self._area = self._area, None
        if area is not None:
            area.close()
        place, self._found = self._found, None
        if place is not None:
            place.target.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await in_worker(self.close)

    def look(self) -> int:
        """Return what ``take_kept`` would, and lock nothing for longer than that."""
        found_bytes = self.take_kept()
        self._let_go()
        return found_bytes

    def _let_go(self) -> None:
        partial, self._partial = self._partial, None
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.keep()

    def take_kept(self) -> int:
        """Lock what an earlier attempt has left; return its length, 0 for nothing.

        Also what another transfer is writing is nothing. Faults are left to ``open``.
        """
        with contextlib.suppress(OSError, LocalFileError):
            if self._partial is None:
                key = self._place().key
                self._partial = self._open_area().acquire(key, make=False)
            if self._partial is not None:
                os.lseek(self._partial.fd, 0, os.SEEK_SET)
                return os.fstat(self._partial.fd).st_size
        return 0

    async def prefix(self) -> Prefix | None:
        """Return what an earlier attempt has left, if it is worth while."""
        size_bytes = await in_worker(self.take_kept)
        if size_bytes < CARRY_MIN_LEN:
            return None
        with contextlib.suppress(IncompleteTransferError, LocalFileError):
            return await read_prefix(self.read_kept_into, size_bytes)
        return None

    def read_kept_into(self, view: memoryview) -> int:
        """Read on in what ``take_kept`` has found.

        Raises:
            LocalFileError: it cannot be read.
        """
        assert self._partial is not None
        try:
            return os.readv(self._partial.fd, [view])
        except OSError as exc:
            name = self._place().target.remote_name
            raise file_error(exc, "read", name) from exc

    def kept_status(self) -> os.stat_result | None:
        """Return the status of what ``take_kept`` has found."""
        return None if self._partial is None else os.fstat(self._partial.fd)

    def open(self, size_bytes: int | None, start_bytes: int = 0) -> AtomicFile:
        """Begin the file, or go on behind what was found.

        Args:
            size_bytes: its length, if that is known.
            start_bytes: how much of what was found is right; the rest is dropped.

        Raises:
            UnsafePathError, LocalFileError: as :class:`AtomicFile`.
        """
        place = self._place()
        partial = self._partial
        if size_bytes is None or size_bytes < CARRY_MIN_LEN:
            assert not start_bytes
            self._partial = None
            if partial is not None:
                partial.discard()
            partial = None
        elif partial is None:
            with contextlib.suppress(OSError, LocalFileError):
                partial = self._partial = self._open_area().acquire(place.key)
        file = AtomicFile(
            place.target.dir_fd,
            place.target.name,
            clobber=self._clobber,
            fsync=self._fsync,
            shown=place.target.remote_name,
            partial=partial,
            start_bytes=start_bytes,
        )
        self._partial = None
        self._found = None
        place.target.close()  # the file has its own descriptor of it
        return file

    def _place(self) -> _Place:
        if self._found is None:
            self._found = self._find_place()
        return self._found

    def _open_area(self) -> PartialArea:
        if self._area is None:
            dir_fd = self._place().open_area_dir()
            try:
                self._area = PartialArea.open(dir_fd)
            finally:
                os.close(dir_fd)
        return self._area


def local_landing(path: str, *, clobber: bool, fsync: bool = True) -> Landing:
    """Return where a file at any path that the local user has chosen is received.

    The area lies beside the file; a link is kept, as by ``open_local_target``.
    """

    def find_place() -> _Place:
        target = local_target(path)
        return _Place(
            target=target,
            open_area_dir=lambda: os.dup(target.dir_fd),
            key=_KEY_PREFIX + target.name,
        )

    return Landing(find_place, clobber=clobber, fsync=fsync)


def remote_landing(
    root: Root, remote_name: str, *, clobber: bool, fsync: bool = True
) -> Landing:
    """Return where a file beneath a served directory is received, with its area."""

    def find_place() -> _Place:
        return _Place(
            target=root.resolve_for_writing(remote_name),
            open_area_dir=root.duplicate,
            key=_KEY_PREFIX + b"/".join(split_remote_name(remote_name)),
        )

    return Landing(find_place, clobber=clobber, fsync=fsync)
