"""Make wanted files out of what arrives and what is there, and put them in place.

A large file is written into a partial of the area, which survives whatever happens and
serves the next attempt; small ones into files of the session. A file gets its name only
when all its bytes are there and the sum over its pieces is the sender's.

All of this blocks; one thread at a time.
"""

import contextlib
import os
import stat
from collections.abc import Callable
from typing import Final

from blake3 import blake3

from rpc25519_tools.errors import (
    ChecksumError,
    RemoteProtocolError,
    Rpc25519Error,
)
from rpc25519_tools.sync.basis import Candidates
from rpc25519_tools.sync.copying import sync_file_system
from rpc25519_tools.sync.destination import Destination
from rpc25519_tools.sync.durable import FEW
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.outgoing import HOLE_SUM
from rpc25519_tools.sync.pending import Outcome, Pending
from rpc25519_tools.sync.records import (
    Copies,
    Data,
    Deltas,
    End,
    Patches,
    Refine,
    Whole,
    Zeros,
)
from rpc25519_tools.sync.reusing import Reusing
from rpc25519_tools.sync.tree import Parts, why
from rpc25519_tools.sync.writing import Writing
from rpc25519_tools.wire.greenpack import Buffer

#: Files, and bytes of them, that are synced together.
_SYNC_COUNT: Final = 1024
_SYNC_LEN: Final = 64 << 20
#: Large files among them: each is open.
_SYNC_OPEN: Final = 8
#: Files that were given up while their contents still come.
_MAX_GIVEN_UP: Final = 4096
#: To close replaced files from this length on may take a while: the receiver does that
#: when nobody waits.
_LONG_TO_FREE: Final = 16 << 20


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
        self._writing = Writing(destination, key, sparse=options.sparse)
        self._reusing = Reusing(destination.tree, self._writing, key)
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
            if self._reusing.stopped and isinstance(record, Copies | Refine | Patches):
                continue
            try:
                self._take(pending, record, outcome)
            except (OSError, Rpc25519Error) as exc:
                self._give_up(pending, exc, outcome, more_comes=not is_end)

    def take_piece(self, index: int, at: int, data: Buffer, outcome: Outcome) -> None:
        """Deal with a message that is nothing but bytes of a file."""
        pending = self._find(index)
        if pending is None:
            return
        try:
            self._writing.take(pending, at, data)
            outcome.moved += len(data)
        except (OSError, Rpc25519Error) as exc:
            self._give_up(pending, exc, outcome, more_comes=True)

    def stop(self) -> None:
        """Let a step that takes long end early; to be called from any thread."""
        self._reusing.stopped = True

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

    def _take(self, pending: Pending, record: Deltas, outcome: Outcome) -> None:
        match record:
            case Whole():
                self._take_whole(pending, record, outcome)
            case Data():
                self._writing.take(pending, record.at, record.data)
                outcome.moved += len(record.data)
            case Copies():
                for run in record.runs:
                    outcome.moved += self._reusing.copy(pending, *run)
            case Zeros():
                self._writing.take_hole(pending, record.at, record.length)
                outcome.moved += record.length
            case Refine():
                outcome.blocks.append(self._reusing.refine(pending, record))
            case Patches():
                for patch in record.patches:
                    outcome.moved += self._reusing.patch(pending, *patch)
            case End():
                self._end(pending, record, outcome)

    def _take_whole(self, pending: Pending, record: Whole, outcome: Outcome) -> None:
        if blake3(record.data, key=self._key).digest() != record.sum:
            raise ChecksumError("it does not match its blake3 sum")
        if pending.in_place or pending.reach:
            raise RemoteProtocolError("a whole file came for half of one")
        self._writing.open(pending)
        self._writing.write_all(pending, 0, record.data)
        pending.literal += len(record.data)
        outcome.moved += len(record.data)
        self._finish(pending, len(record.data), outcome)

    # The end of a file.

    def _end(self, pending: Pending, record: End, outcome: Outcome) -> None:
        if record.failure:
            self._fail(pending, record.failure, outcome, more_comes=False)
            return
        self._writing.open(pending)
        assert pending.partial is not None
        right = (
            not pending.spoiled
            and pending.pieces.are_whole(record.size)
            and pending.pieces.root() == record.root
            and self._is_as_noted(pending)
        )
        if not right:
            if self._reusing.stopped:
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
            if piece_sum == HOLE_SUM:
                continue  # which can be longer than memory
            data = os.pread(pending.partial.fd, length, at)
            if blake3(data, key=self._key).digest() != piece_sum:
                return False
        return True

    def _want_again(self, pending: Pending, outcome: Outcome) -> None:
        """Ask for a file once more, from nothing."""
        self._writing.forget(pending)
        pending.close_bases()
        if pending.partial is not None:
            pending.partial.discard()
        pending.partial = None
        pending.spoiled = False
        pending.retried = True
        outcome.again.append(pending)

    def _finish(self, pending: Pending, size: int, outcome: Outcome) -> None:
        """Give the file its attributes, and its name as soon as it is safe."""
        partial = pending.partial
        assert partial is not None
        mode = self._destination.finish_file(partial.fd, pending.entry, pending.old)
        guesses = [basis.used for basis in pending.bases if basis.guessed]
        if guesses:
            self._candidates.learn(useful=any(guesses))
        if size < _LONG_TO_FREE:
            pending.close_bases()
        self._writing.forget(pending)
        pending.is_finished = True
        self.literal += pending.literal
        self.matched += pending.matched
        if not partial.keyed and mode & stat.S_IRUSR:
            partial.close_fd()  # it can be opened again
        self._unsynced_open += partial.fd >= 0
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
    def is_owed_more(self) -> bool:
        """Whether the rest of a file that was given up is still to come."""
        return bool(self._given_up)

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
        placed = []
        for pending in unsynced:
            try:
                self._publish(pending)
            except (OSError, Rpc25519Error) as exc:
                self._give_up(pending, exc, outcome, more_comes=False)
            else:
                placed.append(pending)
        if self._options.fsync:
            try:
                self._destination.changes.sync_names()
            except Rpc25519Error as exc:
                for pending in placed:
                    self._give_up(pending, exc, outcome, more_comes=False)
                return
        outcome.done += placed

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

    def _give_up(
        self, pending: Pending, exc: Exception, outcome: Outcome, *, more_comes: bool
    ) -> None:
        """Give a file up, unless the sender itself is to blame: then raise that."""
        if isinstance(exc, RemoteProtocolError):
            raise exc
        note = why(exc, "write", pending.path)
        self._fail(pending, note, outcome, more_comes=more_comes)

    def _fail(
        self, pending: Pending, note: str, outcome: Outcome, *, more_comes: bool
    ) -> None:
        if more_comes:
            self._given_up.add(pending.entry.index)
            if len(self._given_up) > _MAX_GIVEN_UP:
                raise RemoteProtocolError("too many files came at the same time")
        self._writing.forget(pending)
        pending.is_finished = True
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
