"""Further names of files: hard links, made at once or when the file is in place.

All of this blocks; one thread at a time.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Final

from rpc25519_tools.errors import Rpc25519Error
from rpc25519_tools.sync.destination import Destination
from rpc25519_tools.sync.directories import Directories, DirState
from rpc25519_tools.sync.itemize import Change
from rpc25519_tools.sync.judge import Entry, Old, attributes
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.pending import Pending
from rpc25519_tools.sync.records import Verdict
from rpc25519_tools.sync.tree import Parts, why

#: Files with further names that may be remembered.
_MAX_LEADERS: Final = 1 << 18
#: Further names that may wait for their files to be in place.
_MAX_FOLLOWERS: Final = 1 << 16


class HardLinks:
    """Makes further names of files; the first name is the leader, others follow.

    Args:
        destination: where they lie.
        options: of the sync.
        directories: learn of names that are made later, or not at all.
        pending: the wanted files, by index; shared with the receiver.
    """

    def __init__(
        self,
        destination: Destination,
        options: SyncOptions,
        directories: Directories,
        pending: dict[int, Pending],
    ) -> None:
        self._destination = destination
        self._options = options
        self._directories = directories
        self._pending = pending
        self._leaders: dict[int, Parts] = {}
        self._followers = 0

    def remember(self, entry: Entry, path: Parts) -> None:
        """Note where a file lies that may have further names."""
        if len(self._leaders) < _MAX_LEADERS:
            self._leaders[entry.index] = path

    def decide(
        self,
        state: DirState,
        entry: Entry,
        old: Old | None,
        make_way: Callable[[], None],
    ) -> tuple[Verdict, int] | None:
        """Make a further name of a file, at once or when the file is in place.

        Args:
            state: the directory that the name is in.
            entry: what it shall be.
            old: what has the name now.
            make_way: called once it is sure that the name will be a link; raises if
                what has the name has to stay.

        Returns:
            the verdict and what changes; None where it has to be a file of its own.
        """
        assert entry.leader is not None
        leader = self._leaders.get(entry.leader)
        if leader is None or self._is_elsewhere(state.path, leader[:-1]):
            return None  # it was not taken, or no link leads there
        entry.target = b"/".join(leader)
        if old is None and self._options.existing:
            return Verdict.SKIPPED, Change.NONE
        if old is not None and self._options.ignore_existing:
            return Verdict.SKIPPED, Change.NONE
        change = Change.LINKED
        if old is None or (old.status.st_mode ^ entry.mode) & 0o170000:
            change |= Change.NEW
        else:
            change |= attributes(entry, old.status, self._options)
        pending = self._pending.get(entry.leader)
        if pending is not None:
            if self._followers >= _MAX_FOLLOWERS:
                return None
            make_way()
            self._followers += 1
            state.open += 1
            pending.followers.append((state, entry, old))
            return Verdict.DONE, change
        if not self._destination.tree.may("read", leader):
            return None  # another name of it might be one that the peer may read
        there = self._destination.look(leader[:-1], leader[-1])
        if (
            there is not None
            and old is not None
            and os.path.samestat(there.status, old.status)
        ):
            return Verdict.EQUAL, Change.NONE
        make_way()
        if self._options.dry_run:
            return Verdict.DONE, change
        self._destination.make_link(state.path, entry.name, leader, old)
        state.touched = True
        return Verdict.DONE, change

    def _is_elsewhere(self, path: Parts, other: Parts) -> bool:
        """Tell whether two directories are known to lie on different file systems."""
        if path == other:
            return False
        tree = self._destination.tree
        with contextlib.suppress(OSError, Rpc25519Error):  # a dry run makes neither
            here, there = (os.fstat(tree.directory(one).fd) for one in (path, other))
            return here.st_dev != there.st_dev
        return False

    def drop_followers(self, pending: Pending) -> list[tuple[Parts, str]]:
        """Give up the further names of a file that failed; return what failed."""
        # What is there under its name is not what later names of it shall be.
        self._leaders.pop(pending.entry.index, None)
        failed = []
        self._followers -= len(pending.followers)
        for state, entry, _ in pending.followers:
            path = (*state.path, entry.name)
            failed.append((path, "the file that it is a link of failed"))
            self._directories.close(state)
        pending.followers = []
        return failed

    def make_followers(self, pending: Pending) -> list[tuple[Parts, str]]:
        """Make the further names of a file that is in place; return what failed."""
        failed = []
        self._followers -= len(pending.followers)
        for state, entry, old in pending.followers:
            path = (*state.path, entry.name)
            try:
                self._destination.make_link(state.path, entry.name, pending.path, old)
                state.touched = True
            except (OSError, Rpc25519Error) as exc:
                failed.append((path, why(exc, "link", path)))
            self._directories.close(state)
        pending.followers = []
        return failed
