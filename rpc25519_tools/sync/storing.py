"""Make wanted files out of what arrives and what is there, and put them in place.

A large file is written into a partial of the area, which survives whatever happens and
serves the next attempt; small ones into files of the session. A file gets its name only
when all its bytes are there and the sum over its pieces is the sender's.

All of this blocks; one thread at a time.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Final

from blake3 import blake3

from rpc25519_tools.errors import (
    ChecksumError,
    FileChangedError,
    RemoteProtocolError,
    Rpc25519Error,
)
from rpc25519_tools.sync.basis import Basis, Candidates
from rpc25519_tools.sync.copying import clone, copy_range, sync_file_system
from rpc25519_tools.sync.destination import Destination
from rpc25519_tools.sync.durable import FEW
from rpc25519_tools.sync.holes import has_holes, stretches
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.outgoing import HOLE_SUM
from rpc25519_tools.sync.pending import PARTIAL_FROM, Outcome, Pending
from rpc25519_tools.sync.pieces import Pieces
from rpc25519_tools.sync.records import (
    SUM_LEN,
    Blocks,
    Copies,
    Data,
    Deltas,
    End,
    Patches,
    Refine,
    Whole,
    Zeros,
)
from rpc25519_tools.sync.refining import (
    MAX_RANGE,
    MAX_REFINED,
    MAX_STRETCH,
    block_sums,
)
from rpc25519_tools.sync.tree import Parts, why
from rpc25519_tools.wire.greenpack import Buffer

#: Files, and bytes of them, that are synced together.
_SYNC_COUNT: Final = 1024
_SYNC_LEN: Final = 64 << 20
#: Large files among them: each is open.
_SYNC_OPEN: Final = 8
#: Files that may be half written at a time; a sender of ours has one.
_MAX_BEGUN: Final = 4
#: Files that were given up while their contents still come.
_MAX_GIVEN_UP: Final = 4096
#: Pieces of unfinished files together, some 50 bytes each.
_MAX_PIECES: Final = 1 << 21
#: Where no file system has a file.
_MAX_OFFSET: Final = (1 << 63) - 1
#: Bytes that are copied before a look at whether that is still wanted.
_COPY_STEP: Final = 64 << 20
#: To close replaced files from this length on may take a while: the receiver does that
#: when nobody waits.
_LONG_TO_FREE: Final = 16 << 20
#: Zeros that are left out as a hole, if they are wanted to be.
_HOLE_LEN: Final = 32 * 1024
_ZEROS: Final = bytes(_HOLE_LEN)


class StoppedError(Exception):
    """The sync has ended while something was copied for it."""


class Store:
    """Takes the records of step 3.

    Args:
        destination: where files go.
        options: of the sync.
        key: of the sums.
        pending: the wanted files, by index; shared with the receiver.
        candidates: learn of files that come into place.
        rescue: is told of files that are about to be replaced.
    """

    def __init__(
        self,
        destination: Destination,
        options: SyncOptions,
        key: bytes,
        pending: dict[int, Pending],
        candidates: Candidates,
        rescue: Callable[[Parts], None],
    ) -> None:
        self._rescue = rescue
        self._destination = destination
        self._options = options
        self._key = key
        self._pending = pending
        self._candidates = candidates
        self._given_up: set[int] = set()
        self._begun: set[int] = set()
        self._pieces = 0
        self._stopped = False
        self._unsynced: list[Pending] = []
        self._unsynced_len = 0
        self._unsynced_open = 0
        self.literal = 0
        self.matched = 0

    # What arrives.

    def take(self, records: list[Deltas], outcome: Outcome) -> None:
        """Deal with records in their order."""
        for record in records:
            pending = self._find(record.index)
            is_end = isinstance(record, Whole | End)
            if pending is None:
                if is_end:
                    self._given_up.discard(record.index)
                continue
            if self._stopped and isinstance(record, Copies | Refine | Patches):
                continue
            try:
                self._take(pending, record, outcome)
            except (OSError, Rpc25519Error) as exc:
                if isinstance(exc, RemoteProtocolError):
                    raise
                note = why(exc, "write", pending.path)
                self._fail(pending, note, outcome, more_comes=not is_end)

    def take_piece(self, index: int, at: int, data: Buffer, outcome: Outcome) -> None:
        """Deal with a message that is nothing but bytes of a file."""
        pending = self._find(index)
        if pending is None:
            return
        try:
            self._write(pending, at, data)
            outcome.moved += len(data)
        except (OSError, Rpc25519Error) as exc:
            if isinstance(exc, RemoteProtocolError):
                raise
            note = why(exc, "write", pending.path)
            self._fail(pending, note, outcome, more_comes=True)

    def stop(self) -> None:
        """Let a step that takes long end early; to be called from any thread."""
        self._stopped = True

    def _find(self, index: int) -> Pending | None:
        """Return a wanted file; None for one that was given up meanwhile.

        Raises:
            RemoteProtocolError: it never was wanted.
        """
        if index in self._given_up:
            return None  # what else has come of it counts no more
        pending = self._pending.get(index)
        if pending is None or pending.is_finished:
            raise RemoteProtocolError("contents came for a file that nobody wants")
        return pending

    def _expect(self, pending: Pending, at: int, length: int, count: int = 1) -> None:
        """See that pieces may belong to a file: each byte comes once.

        Raises:
            RemoteProtocolError: they may not.
        """
        pending.reach = max(pending.reach, at + length)
        if pending.reach > _MAX_OFFSET:
            raise RemoteProtocolError("contents came for no possible place of a file")
        if pending.pieces.covered + length > pending.reach:
            raise RemoteProtocolError("the pieces of a file overlap")
        self._pieces += count
        if self._pieces > _MAX_PIECES:
            raise RemoteProtocolError("the sender cuts files into too many pieces")

    def _take(self, pending: Pending, record: Deltas, outcome: Outcome) -> None:
        match record:
            case Whole():
                self._take_whole(pending, record, outcome)
            case Data():
                self._write(pending, record.at, record.data)
                outcome.moved += len(record.data)
            case Copies():
                for run in record.runs:
                    outcome.moved += self._copy(pending, *run)
            case Zeros():
                self._take_hole(pending, record, outcome)
            case Refine():
                outcome.blocks.append(self._refine(pending, record))
            case Patches():
                for patch in record.patches:
                    outcome.moved += self._patch(pending, *patch)
            case End():
                self._end(pending, record, outcome)

    def _take_whole(self, pending: Pending, record: Whole, outcome: Outcome) -> None:
        if blake3(record.data, key=self._key).digest() != record.sum:
            raise ChecksumError("it does not match its blake3 sum")
        if pending.in_place or pending.reach:
            raise RemoteProtocolError("a whole file came for half of one")
        self._open(pending)
        self._write_all(pending, 0, record.data)
        pending.literal += len(record.data)
        outcome.moved += len(record.data)
        self._finish(pending, len(record.data), outcome)

    def _take_hole(self, pending: Pending, record: Zeros, outcome: Outcome) -> None:
        if not record.length:
            return
        self._expect(pending, record.at, record.length)
        self._open(pending)
        self._leave_out(pending, record.at, record.length)
        pending.pieces.add(record.at, record.length, HOLE_SUM)
        outcome.moved += record.length

    def _open(self, pending: Pending) -> None:
        """Have an unfinished file to write to."""
        self._begun.add(pending.entry.index)
        if len(self._begun) > _MAX_BEGUN:
            raise RemoteProtocolError("too many files came at the same time")
        if pending.partial is None:
            area = self._destination.area
            if pending.entry.size >= PARTIAL_FROM:
                pending.partial = area.acquire(self._destination.key(pending.path))
                if pending.partial is not None:
                    os.ftruncate(pending.partial.fd, 0)
            if pending.partial is None:
                pending.partial = area.scratch(self._destination.key(pending.path))

    def _write(self, pending: Pending, at: int, data: Buffer) -> None:
        if data:
            self._expect(pending, at, len(data))
        self._open(pending)
        if not data:
            return
        pending.pieces.add(at, len(data), blake3(data, key=self._key).digest())
        pending.literal += len(data)
        if self._options.sparse:
            self._write_sparse(pending, at, data)
        else:
            self._write_all(pending, at, data)

    def _write_all(self, pending: Pending, at: int, data: Buffer) -> None:
        assert pending.partial is not None
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += os.pwrite(pending.partial.fd, view[done:], at + done)

    def _write_sparse(self, pending: Pending, at: int, data: Buffer) -> None:
        view = memoryview(data)
        for begin in range(0, len(view), _HOLE_LEN):
            block = view[begin : begin + _HOLE_LEN]
            if block == _ZEROS[: len(block)]:
                self._leave_out(pending, at + begin, len(block))
            else:
                self._write_all(pending, at + begin, block)

    def _leave_out(self, pending: Pending, at: int, length: int) -> None:
        """Have zeros somewhere, as a hole where nothing was written before."""
        assert pending.partial is not None
        size = os.fstat(pending.partial.fd).st_size
        for begin in range(at, min(at + length, size), _HOLE_LEN):
            count = min(_HOLE_LEN, at + length - begin, size - begin)
            self._write_all(pending, begin, _ZEROS[:count])
        if at + length > size:
            os.ftruncate(pending.partial.fd, at + length)

    # Chunks that are here.

    def _copy(
        self, pending: Pending, number: int, first: int, count: int, at: int
    ) -> int:
        """Put a run of chunks where they belong; return how many bytes they have."""
        basis, start, end = _extent(pending, number, first, count)
        if basis.in_place and start != at:
            raise RemoteProtocolError("the sender moves what is in place")
        self._expect(pending, at, end - start, count)
        self._open(pending)
        last = first + count
        sums = bytes(basis.sums[first * SUM_LEN : last * SUM_LEN])
        pending.pieces.extend(at, basis.lengths[first:last], (sums,))
        basis.used = True
        pending.matched += end - start
        if not basis.in_place:
            try:
                basis.begin_copying(self._destination.tree)
                self._copy_from(basis, pending, start, end, at)
            except FileChangedError:
                pending.spoiled = True  # what else comes of it has to be let pass
        return end - start

    def _refine(self, pending: Pending, record: Refine) -> Blocks:
        """Return the sums of the blocks of some chunks that are here."""
        if pending.refined:
            raise RemoteProtocolError("the sender asks for blocks of a file twice")
        sums = []
        for number, first, count in record.ranges:
            basis, start, end = _extent(pending, number, first, count)
            pending.refined += end - start
            if end - start > MAX_RANGE or pending.refined > MAX_REFINED:
                raise RemoteProtocolError("the sender asks for too many blocks")
            data = self._read_here(pending, basis, start, end - start)
            sums.append(block_sums(data, self._key))
        return Blocks(record.index, b"".join(sums))

    def _patch(
        self, pending: Pending, number: int, offset: int, length: int, at: int
    ) -> int:
        """Put a stretch that is here where it belongs; return its length."""
        if not 0 < length <= MAX_STRETCH:
            raise RemoteProtocolError("the sender refers to a stretch of no length")
        if not 0 <= number < len(pending.bases):
            raise RemoteProtocolError("the sender refers to a file that we have not")
        basis = pending.bases[number]
        if offset + length > basis.cut_len:
            raise RemoteProtocolError("the sender refers to what we have not")
        if basis.in_place and offset != at:
            raise RemoteProtocolError("the sender moves what is in place")
        self._expect(pending, at, length)
        self._open(pending)
        data = self._read_here(pending, basis, offset, length)
        pending.pieces.add(at, length, blake3(data, key=self._key).digest())
        basis.used = True
        pending.matched += length
        if basis.in_place:
            return length
        if self._options.sparse or has_holes(basis.status):
            self._write_sparse(pending, at, data)
        else:
            self._write_all(pending, at, data)
        return length

    def _read_here(
        self, pending: Pending, basis: Basis, start: int, length: int
    ) -> bytes:
        """Return bytes of a local file; where it has changed, other ones."""
        try:
            if not basis.in_place:
                basis.begin_copying(self._destination.tree)
                fd = basis.copy_fd
            else:
                assert pending.partial is not None
                fd = pending.partial.fd
            data = os.pread(fd, length, start)
        except FileChangedError:
            data = b""
        pending.spoiled |= len(data) != length
        return data + bytes(length - len(data))

    def _copy_from(
        self, basis: Basis, pending: Pending, start: int, end: int, at: int
    ) -> None:
        """Copy within this machine; share blocks where the file system can."""
        assert pending.partial is not None
        fd = pending.partial.fd
        source_fd = basis.copy_fd
        if start == at == 0 and end == basis.status.st_size and clone(source_fd, fd):
            return
        if not has_holes(basis.status):
            self._copy_range(source_fd, fd, start, end - start, at)
            return
        for begin, length, is_data in stretches(source_fd, start, end):
            target = at + begin - start
            if is_data:
                self._copy_range(source_fd, fd, begin, length, target)
            else:
                self._leave_out(pending, target, length)

    def _copy_range(
        self, source_fd: int, target_fd: int, start: int, length: int, at: int
    ) -> None:
        """Copy in steps, between which it may be stopped."""
        for done in range(0, length, _COPY_STEP):
            if self._stopped:
                raise StoppedError
            count = min(length - done, _COPY_STEP)
            copy_range(source_fd, target_fd, start + done, count, at + done)

    # The end of a file.

    def _end(self, pending: Pending, record: End, outcome: Outcome) -> None:
        if record.failure:
            self._fail(pending, record.failure, outcome, more_comes=False)
            return
        self._open(pending)
        assert pending.partial is not None
        right = (
            not pending.spoiled
            and pending.pieces.are_whole(record.size)
            and pending.pieces.root() == record.root
            and self._is_as_noted(pending)
        )
        if not right:
            if self._stopped:
                return  # copies were left out; what is there serves the next attempt
            if pending.retried:
                raise ChecksumError("its contents do not match their blake3 sum")
            self._want_again(pending, outcome)
            return
        if os.fstat(pending.partial.fd).st_size != record.size:
            os.ftruncate(pending.partial.fd, record.size)
        self._finish(pending, record.size, outcome)

    def _is_as_noted(self, pending: Pending) -> bool:
        """Tell whether a file holds what its pieces say.

        Chunks of local files were summed up when those were cut. Where one of them was
        touched since, if only for another name of it, what was copied is read again.
        """
        if all(basis.is_unchanged() for basis in pending.bases):
            return True
        assert pending.partial is not None
        for at, length, piece_sum in pending.pieces.all():
            data = os.pread(pending.partial.fd, length, at)
            is_hole = piece_sum == HOLE_SUM
            if len(data) != length and not is_hole:
                return False
            if not is_hole and blake3(data, key=self._key).digest() != piece_sum:
                return False
        return True

    def _want_again(self, pending: Pending, outcome: Outcome) -> None:
        """Ask for a file once more, from nothing."""
        self._forget_pieces(pending)
        pending.close_bases()
        if pending.partial is not None:
            pending.partial.discard()
        pending.partial = None
        pending.spoiled = False
        pending.retried = True
        outcome.again.append(pending)

    def _forget_pieces(self, pending: Pending) -> None:
        self._begun.discard(pending.entry.index)
        self._pieces -= len(pending.pieces)
        pending.pieces = Pieces()
        pending.reach = 0

    def _finish(self, pending: Pending, size: int, outcome: Outcome) -> None:
        """Give the file its attributes, and its name as soon as it is safe."""
        partial = pending.partial
        assert partial is not None
        self._destination.finish_file(partial.fd, pending.entry, pending.old)
        guesses = [basis.used for basis in pending.bases if basis.guessed]
        if guesses:
            self._candidates.learn(useful=any(guesses))
        if size < _LONG_TO_FREE:
            pending.close_bases()
        self._forget_pieces(pending)
        pending.is_finished = True
        self.literal += pending.literal
        self.matched += pending.matched
        if not partial.keyed:
            partial.close_fd()
        self._unsynced_open += partial.keyed
        self._unsynced.append(pending)
        self._unsynced_len += size
        if (
            not self._options.fsync
            or len(self._unsynced) >= _SYNC_COUNT
            or self._unsynced_len >= _SYNC_LEN
            or self._unsynced_open >= _SYNC_OPEN
        ):
            self.flush(outcome)

    @property
    def unsynced(self) -> int:
        """How many finished files wait for their names."""
        return len(self._unsynced)

    def flush(self, outcome: Outcome) -> None:
        """Sync what is finished and give it its names."""
        unsynced, self._unsynced = self._unsynced, []
        self._unsynced_len = self._unsynced_open = 0
        if not unsynced:
            return
        if self._options.fsync:
            try:
                self._sync(unsynced)
            except OSError as exc:
                for pending in unsynced:
                    note = why(exc, "write", pending.path)
                    self._fail(pending, note, outcome, more_comes=False)
                return
        for pending in unsynced:
            try:
                self._publish(pending)
            except (OSError, Rpc25519Error) as exc:
                note = why(exc, "write", pending.path)
                self._fail(pending, note, outcome, more_comes=False)
            else:
                outcome.done.append(pending)
        if self._options.fsync:
            self._destination.changes.sync_names()

    def _sync(self, unsynced: list[Pending]) -> None:
        if len(unsynced) > FEW and sync_file_system(self._destination.sync_fd):
            return
        for pending in unsynced:
            assert pending.partial is not None
            partial = pending.partial
            fd = partial.fd
            if fd < 0:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(partial.name, flags, dir_fd=partial.dir_fd)
            try:
                os.fsync(fd)
            finally:
                if fd != partial.fd:
                    os.close(fd)

    def _publish(self, pending: Pending) -> None:
        partial, entry = pending.partial, pending.entry
        assert partial is not None
        path = pending.directory.path
        directory = self._destination.tree.directory(path)
        self._rescue(pending.path)
        self._destination.place(
            partial.dir_fd, partial.name, path, directory, entry.name, pending.old
        )
        partial.close()
        pending.partial = None
        pending.directory.touched = True
        self._candidates.add(pending.path, entry.size, entry.mtime_ns)

    def _fail(
        self, pending: Pending, note: str, outcome: Outcome, *, more_comes: bool
    ) -> None:
        if more_comes:
            self._given_up.add(pending.entry.index)
            if len(self._given_up) > _MAX_GIVEN_UP:
                raise RemoteProtocolError("too many files came at the same time")
        self._forget_pieces(pending)
        pending.close_bases()
        if pending.partial is not None:
            pending.partial.discard()
            pending.partial = None
        outcome.failed[pending.entry.index] = (pending, note[:1000])

    def abandon(self) -> None:
        """Keep of unfinished files what a later attempt can use; never raises."""
        with contextlib.suppress(OSError, Rpc25519Error):
            self.flush(Outcome())
        for pending in self._pending.values():
            pending.close_bases()
            partial, pending.partial = pending.partial, None
            if partial is None:
                continue
            with contextlib.suppress(OSError):
                if partial.keyed:
                    partial.keep()
                else:
                    partial.discard()


def _extent(
    pending: Pending, number: int, first: int, count: int
) -> tuple[Basis, int, int]:
    """Return the file that the sender's chunks lie in, and from where to where.

    Raises:
        RemoteProtocolError: there are none.
    """
    if not 0 <= number < len(pending.bases) or not count:
        raise RemoteProtocolError("the sender refers to a file that we have not")
    basis = pending.bases[number]
    # Another thread may be cutting it; the sums are what it notes last.
    if first + count > len(basis.sums) // SUM_LEN:
        raise RemoteProtocolError("the sender refers to a chunk that we have not")
    last = first + count - 1
    return basis, basis.offsets[first], basis.offsets[last] + basis.lengths[last]
