"""Decide which local files a wanted one is made of, and open them when it is time.

A file that seems to have the contents of another one that is still on its way waits for
that one: of two equal new files, the second costs nothing. And a file that is about to
be replaced is opened before, if another one shall be made of it: ``log`` becomes
``log.1``, and a new ``log`` comes into its place.

All of this blocks. Opening may go on beside the thread that stores files.
"""

import contextlib
import os
import threading
import time
from typing import Final

from rpc25519_tools.errors import FileChangedError, Rpc25519Error
from rpc25519_tools.files.area import Partial
from rpc25519_tools.sync.basis import (
    SEARCHED_FROM,
    Basis,
    Candidates,
    open_basis,
    open_left,
)
from rpc25519_tools.sync.destination import Destination
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.pending import PARTIAL_FROM, Pending
from rpc25519_tools.sync.tree import Parts

#: Files below this length are not worth a table.
_TABLE_FROM: Final = 512
#: For so long another sync may be leaving an unfinished file, in seconds.
_LEAVING_S: Final = 3.0
_LOOK_AGAIN_S: Final = 0.02
#: Files that stay open since they are about to be replaced.
_MAX_RESCUED: Final = 16
#: Unfinished files that are carried on with at a time: they stay open.
_MAX_CARRIED_ON: Final = 4
_NS: Final = 10**9


class Seeking:
    """Finds bases for wanted files.

    Args:
        destination: where they are looked for.
        options: of the sync.
        candidates: the files there.
    """

    def __init__(
        self, destination: Destination, options: SyncOptions, candidates: Candidates
    ) -> None:
        self._destination = destination
        self._options = options
        self._candidates = candidates
        self._coming: dict[int, Pending] = {}
        self._waiting: dict[int, list[Pending]] = {}
        self._awaited: dict[Parts, list[Pending]] = {}
        self._rescued = 0
        self._carried_on: set[int] = set()
        self._lock = threading.Lock()
        #: How many files wait for others that are on their way.
        self.waiting = 0

    def choose(self, pending: Pending) -> bool:
        """Choose what a wanted file may be made of; tell whether there is anything."""
        entry, old, path = pending.entry, pending.old, pending.path
        if self._options.whole_file or entry.size < _TABLE_FROM:
            return False
        found: list[tuple[Parts, bool]] = []
        if old is not None and Pending.is_regular(old):
            sure = self._candidates.sure(path, entry.size, entry.mtime_ns)
            found += [(one, True) for one in sure]
            if old.status.st_size >= _TABLE_FROM // 2:
                found.append((path, False))
        else:
            guesses = self._candidates.guesses(path, entry.size, entry.mtime_ns)
            found += [(one, True) for one in guesses]
        pending.candidates = found
        with self._lock:
            for one, _ in found:
                if one != path:
                    self._awaited.setdefault(one, []).append(pending)
        if old is None and self._may_wait(pending):
            return True
        if found:
            return True
        key, area = self._destination.key(path), self._destination.area
        return area.has_left(key) or (
            entry.size >= PARTIAL_FROM and area.holds(key) > 0
        )

    def _may_wait(self, pending: Pending) -> bool:
        """Let a file wait for one of the same length, if nothing here has it."""
        entry = pending.entry
        if entry.size < SEARCHED_FROM or self._candidates.has_length(entry.size):
            return False
        with self._lock:
            first = self._coming.setdefault(entry.size, pending)
            if first is pending:
                return False
            # A time with nanoseconds is hardly that of two files by chance.
            same = first.entry.mtime_ns == entry.mtime_ns and entry.mtime_ns % _NS
            if not same and self.waiting >= self._candidates.patience:
                return False
            self._waiting.setdefault(first.entry.index, []).append(pending)
            self.waiting += 1
            pending.waits = True
            return True

    def end(self, pending: Pending, *, placed: bool) -> list[Pending]:
        """Learn that a file is in place or has failed; return those that waited."""
        with self._lock:
            if self._coming.get(pending.entry.size) is pending:
                del self._coming[pending.entry.size]
            self._rescued -= pending.rescued
            self._carried_on.discard(pending.entry.index)
            released = self._waiting.pop(pending.entry.index, [])
            self.waiting -= len(released)
            for one in released:
                one.waits = False
                if placed:
                    one.candidates.insert(0, (pending.path, True))
            for path, _ in pending.candidates:
                others = self._awaited.get(path, [])
                if pending in others:
                    others.remove(pending)
                    if not others:
                        del self._awaited[path]
        return released

    def rescue(self, path: Parts) -> None:
        """Open a file that is about to be replaced, if others need its contents."""
        with self._lock:
            others = list(self._awaited.get(path, ()))
        for pending in others:
            with pending.lock:
                if not pending.is_over and self._rescued < _MAX_RESCUED:
                    self._keep_open(pending, path)

    def _keep_open(self, pending: Pending, path: Parts) -> None:
        for basis in pending.bases:
            if basis.path == path and basis.copy_fd < 0:
                with contextlib.suppress(FileChangedError):
                    basis.begin_copying(self._destination.tree)
                    self._count(pending)
                return
        if not pending.is_chosen:
            found = open_basis(self._destination.tree, path, guessed=True)
            if found is not None:
                found.copy_fd = os.dup(found.fd)
                pending.bases.append(found)
                self._count(pending)

    def _count(self, pending: Pending) -> None:
        with self._lock:
            pending.rescued += 1
            self._rescued += 1

    def open(self, pending: Pending) -> None:
        """Open what a wanted file may be made of."""
        with pending.lock:
            if pending.is_over:
                return  # it has failed already
            pending.is_chosen = True
            rescued = {basis.path: basis for basis in pending.bases}
            pending.bases[:] = self._partial(pending)
            left = open_left(self._destination, pending.path)
            if left is not None:
                pending.bases.append(left)
            for path, guessed in pending.candidates:
                found = rescued.pop(path, None) or open_basis(
                    self._destination.tree, path, guessed=guessed
                )
                if found is not None:
                    pending.bases.append(found)

    def _partial(self, pending: Pending) -> list[Basis]:
        """Take up what an earlier attempt has left of a file."""
        key = self._destination.key(pending.path)
        area = self._destination.area
        if pending.entry.size < PARTIAL_FROM or not area.holds(key):
            return []
        if pending.partial is not None or pending.is_finished:
            return []  # contents have come already
        if len(self._carried_on) >= _MAX_CARRIED_ON:
            return []
        try:
            partial = self._acquire(key)
        except (OSError, Rpc25519Error):
            return []  # writing will fail, and tell why
        if partial is None:
            return []
        pending.partial = partial
        self._carried_on.add(pending.entry.index)
        status = os.fstat(partial.fd)
        if not status.st_size:
            return []
        return [Basis(os.dup(partial.fd), status, in_place=True)]

    def _acquire(self, key: bytes) -> Partial | None:
        """Take an unfinished file over; wait if another sync is about to leave it.

        That is so where a client was killed and started again: what it had sent is
        being stored still.
        """
        area = self._destination.area
        end_s = time.monotonic() + _LEAVING_S
        while (partial := area.acquire(key)) is None:
            if not area.holds(key) or time.monotonic() > end_s:
                return None
            time.sleep(_LOOK_AGAIN_S)
        return partial
