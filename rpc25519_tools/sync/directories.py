"""The directories that a receiver is at work in, and when each of them is done.

A directory gets its attributes when all beneath it is in place: whatever is made in it
changes its time, and it has to be writable until then.
"""

import errno
from collections.abc import Iterator
from typing import Final

from rpc25519_tools.errors import RemoteProtocolError, Rpc25519Error
from rpc25519_tools.sync.destination import Destination
from rpc25519_tools.sync.judge import Entry, Old
from rpc25519_tools.sync.tree import Parts
from rpc25519_tools.sync.walk import MAX_WAITING_DIRS, MAX_WAITING_PARTS

#: How deep directories may lie in each other: an entry takes eight bytes for each.
MAX_DEPTH: Final = 1024
#: Failures that are kept to the end.
_MAX_FAILURES: Final = 1000
_NEVER: Final = b"\xff" * 256


class LocalNames:
    """The names in a local directory, in order, beside those of the sender."""

    def __init__(self, names: Iterator[bytes]) -> None:
        self._names = names
        self._next = next(names, _NEVER)

    def before(self, name: bytes) -> Iterator[bytes]:
        """Yield the local names that come before one of the sender's."""
        while self._next < name:
            yield self._next
            self._next = next(self._names, _NEVER)

    def has(self, name: bytes) -> bool:
        """Tell whether a name is there; what comes before it has been asked for."""
        if self._next != name:
            return False
        self._next = next(self._names, _NEVER)
        return True

    def rest(self) -> Iterator[bytes]:
        """Yield the local names that are left."""
        return self.before(_NEVER)


class DirState:
    """One directory.

    Attributes:
        path: below the transfer's root.
        above: the directory that it lies in; None for the root.
        entry: what it shall be; None where nothing is known of it.
        old: what was there.
        is_there: whether it exists; in a dry run it may not.
        refused: whether nothing beneath it is taken.
        trouble: why, if it is not for the options.
        adjust: whether its attributes differ.
        touched: whether something in it was changed.
        open: what is not done: its listing, directories and files in it.
        local: the local names, while it is listed.
        last_name: the sender's last name in it.
    """

    __slots__ = (
        "above",
        "adjust",
        "entry",
        "is_there",
        "last_name",
        "local",
        "old",
        "open",
        "path",
        "refused",
        "touched",
        "trouble",
    )

    def __init__(self, path: Parts, above: "DirState | None") -> None:
        self.path = path
        self.above = above
        self.entry: Entry | None = None
        self.old: Old | None = None
        self.is_there = True
        self.refused = False
        self.trouble = ""
        self.adjust = False
        self.touched = False
        self.open = 1
        self.local: LocalNames | None = None
        self.last_name = b""


class Directories:
    """All directories that are not done.

    Args:
        destination: where they lie.
        sets: whether attributes are set; not in a dry run.
        times: whether the times of directories are set, too.
    """

    def __init__(self, destination: Destination, *, sets: bool, times: bool) -> None:
        self._destination = destination
        self._sets = sets
        self._times = times
        self._waiting: dict[int, DirState] = {0: DirState((), None)}
        self._next = 1
        self._listed = -1
        self._waiting_parts = 0
        #: What could not be given its attributes, and why: the first ones.
        self.failures: list[tuple[Parts, OSError | Rpc25519Error]] = []

    def listed(self, number: int) -> DirState:
        """Return the directory whose entries come now.

        Raises:
            RemoteProtocolError: it is none, or its entries have all come, or not all
                of the one before.
        """
        state = self._waiting.get(number)
        if state is None:
            raise RemoteProtocolError("entries came of a directory that there is not")
        if self._listed not in (-1, number):
            raise RemoteProtocolError("entries came of two directories at a time")
        self._listed = number
        return state

    def add(self, state: DirState) -> None:
        """Give a directory its number; its entries come later."""
        if len(self._waiting) >= MAX_WAITING_DIRS:
            raise RemoteProtocolError(
                f"over {MAX_WAITING_DIRS} directories lie side by side"
            )
        if len(state.path) > MAX_DEPTH:
            raise RemoteProtocolError(f"over {MAX_DEPTH} directories lie in each other")
        self._waiting_parts += len(state.path)
        if self._waiting_parts > MAX_WAITING_PARTS:
            raise RemoteProtocolError(
                "too many directories lie side by side, and too deep"
            )
        self._waiting[self._next] = state
        self._next += 1
        assert state.above is not None
        state.above.open += 1

    def end_listing(self, number: int) -> None:
        """Note that all entries of a directory have come."""
        state = self._waiting.pop(number)
        self._listed = -1
        self._waiting_parts -= len(state.path)
        state.local = None
        self.close(state)

    def close(self, state: DirState | None) -> None:
        """Note that one thing of a directory is done; finish what is done by that."""
        while state is not None:
            state.open -= 1
            if state.open:
                return
            self._finish(state)
            state = state.above

    def _finish(self, state: DirState) -> None:
        entry = state.entry
        if entry is None or not self._sets or state.refused:
            return
        if state.above is None and self._destination.area.was_used:
            state.touched = True
        if not state.adjust and not (state.touched and self._times):
            return
        if state.above is None:
            self._destination.root_entry = (entry, state.old)
        try:
            self._destination.adjust_directory(state.path, entry, state.old)
        except (OSError, Rpc25519Error) as exc:
            is_gone = isinstance(exc, OSError) and exc.errno == errno.ENOENT
            if not is_gone:
                self.fail(state.path, exc)

    def fail(self, path: Parts, exc: OSError | Rpc25519Error) -> None:
        """Note a failure that is told of at the end."""
        if len(self.failures) < _MAX_FAILURES:
            self.failures.append((path, exc))
