"""What attempts of a sync leave to those after them, at the client (sans-IO).

An attempt has got somewhere when the next one has less to do: when more of the source
lies before the place where it may begin, when something was removed, or when more of
the contents is stored. Bytes that only went into a buffer count for nothing. And who
stores again and again without getting further has not got anywhere: all that there is
need not be stored more than once, or twice with what is said around it.
"""

from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.records import Totals
from rpc25519_tools.sync.tree import Parts

#: Stored bytes that count as progress.
LEAST_STORED: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the order of the walk.

    Attributes:
        path: of the first entry that another attempt has to look at.
        files: regular files before it, as far as that is known.
        total_bytes: of these.
    """

    path: Parts
    files: int = 0
    total_bytes: int = 0

    def is_after(self, other: "Mark | None") -> bool:
        """Tell whether it comes later; None is before everything."""
        return other is None or _order(self.path) > _order(other.path)


def _order(path: Parts) -> tuple[tuple[bool, bytes], ...]:
    """Return what sorts as the walk goes: all of a directory before what is deeper."""
    last = len(path) - 1
    return tuple((depth < last, part) for depth, part in enumerate(path))


@dataclass(frozen=True, slots=True)
class Placed:
    """What contents were made of.

    Attributes:
        literal: bytes that went over the network, in the attempt that finished a file.
        matched: bytes that the receiver had itself, from earlier attempts, too.
    """

    literal: int = 0
    matched: int = 0


class Side(Protocol):
    """The sender or the receiver of one attempt, when that is over."""

    @property
    def frontier(self) -> Mark | None:
        """Where another attempt may begin: all before it is in place."""

    @property
    def total_bytes(self) -> int:
        """Bytes of the regular files of the source, as far as they are known."""

    @property
    def stored(self) -> int:
        """Bytes of messages with contents that the receiver has dealt with."""

    @property
    def placed(self) -> Placed:
        """What the contents of the files that are in place were made of."""

    @property
    def removed(self) -> int:
        """How many things are known to have been removed."""


class Attempts:
    """What one attempt leaves to the next.

    Args:
        options: of the sync.

    Attributes:
        start: where the next attempt begins; None: at the beginning.
    """

    def __init__(self, options: SyncOptions) -> None:
        self._options = options
        self._furthest: Mark | None = None
        self._stored = 0
        self._removed = 0
        self._literal = self._matched = 0

    @property
    def start(self) -> Mark | None:
        """Where the next attempt may begin; None: at the beginning.

        To delete, and to make hard links, the receiver has to hear of everything.
        """
        options = self._options
        if options.delete or options.hard_links or options.dry_run:
            return None
        return self._furthest

    @property
    def options(self) -> SyncOptions:
        """The options of the next attempt: what was removed counts for all of them.

        That is only what we know of. What the other side has removed just before a cut
        and could not tell of is removed beyond ``max_delete``.
        """
        most = self._options.max_delete
        if most is None:
            return self._options
        left = max(most - self._removed, 0)
        return msgspec.structs.replace(self._options, max_delete=left)

    def note(self, side: Side) -> bool:
        """Take over what a failed attempt has done; tell whether that is anything."""
        self._literal += side.placed.literal
        self._matched += side.placed.matched
        removed = 0 if self._options.dry_run else side.removed
        self._removed += removed
        frontier = side.frontier
        if frontier is not None and frontier.is_after(self._furthest):
            self._furthest = frontier
            self._stored = 0
            return True
        self._stored += side.stored
        is_more = self._stored <= 2 * side.total_bytes + LEAST_STORED
        return removed > 0 or (side.stored >= LEAST_STORED and is_more)

    def whole(self, totals: Totals) -> Totals:
        """Return the numbers of all attempts.

        Args:
            totals: of the last one, whose ``undeleted`` stays.
        """
        return msgspec.structs.replace(
            totals,
            deleted=totals.deleted + self._removed,
            literal_bytes=totals.literal_bytes + self._literal,
            matched_bytes=totals.matched_bytes + self._matched,
        )
