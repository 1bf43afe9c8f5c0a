"""Go through the sender's entries: do at once what needs no contents, want the rest.

All of this blocks; one thread at a time, the one that stores files, too.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from rpc25519_tools.errors import (
    LocalFileError,
    RemoteProtocolError,
    Rpc25519Error,
    UnsafePathError,
)
from rpc25519_tools.files.workers import StoppedError
from rpc25519_tools.sync.attributes import Owners, allowed_mode, make_usable
from rpc25519_tools.sync.destination import Destination
from rpc25519_tools.sync.directories import (
    Directories,
    DirState,
    LocalNames,
)
from rpc25519_tools.sync.extraneous import UNLISTED, Extraneous
from rpc25519_tools.sync.itemize import Change
from rpc25519_tools.sync.judge import Action, Entry, Old, attributes, judge
from rpc25519_tools.sync.linking import HardLinks
from rpc25519_tools.sync.observer import Subject
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.pending import Pending
from rpc25519_tools.sync.records import (
    ROOT_NAME,
    SUM_LEN,
    Overview,
    Verdict,
    unpack_nanos,
)
from rpc25519_tools.sync.source import Place, open_source
from rpc25519_tools.sync.tree import Parts, shown, why
from rpc25519_tools.sync.walk import file_sum


@dataclass(slots=True)
class Judged:
    """What became of some entries, one each, in their order."""

    verdicts: bytearray = field(default_factory=bytearray)
    changes: list[int] = field(default_factory=list)
    notes: dict[int, str] = field(default_factory=dict)
    wanted: list[Pending] = field(default_factory=list)
    told: list[tuple[Subject, Verdict, int, str]] = field(default_factory=list)
    removed: list[bytes] = field(default_factory=list)
    troubles: list[tuple[Parts, str]] = field(default_factory=list)
    files: int = 0
    total_bytes: int = 0


class Judging:
    """Judges all entries of one sync.

    Args:
        destination: what they are held against.
        options: of the sync.
        pending: gets the wanted files, by index.
        rename: the only entry gets this name.
        privileged: whether the sender may set owners and the like.
        is_new: whether the destination had to be made, or in a dry run would have.
        asked: names that may come into the destination; None: any, and its own.
    """

    def __init__(
        self,
        destination: Destination,
        options: SyncOptions,
        pending: dict[int, Pending],
        *,
        rename: bytes | None,
        privileged: bool,
        is_new: bool = False,
        asked: frozenset[bytes] | None = None,
    ) -> None:
        self._destination = destination
        self._options = options
        self._pending = pending
        self._rename = rename
        self._original = b""
        self._privileged = privileged
        self._owners = Owners(options, privileged=privileged)
        self.directories = Directories(
            destination, sets=not options.dry_run, times=options.times
        )
        self._root_is_new = is_new
        self._asked = asked
        self.directories.listed(0).is_there = not (is_new and options.dry_run)
        self._index = 0
        self._is_stopped = False
        self.links = HardLinks(destination, options, self.directories, pending)
        self.extraneous = Extraneous(destination, options, self.directories)
        #: Whether something of the source is not known, so that nothing is deleted.
        self.incomplete = False
        self.final = False

    @property
    def count(self) -> int:
        """How many entries there were so far."""
        return self._index

    def judge_all(self, overview: Overview, names: list[bytes]) -> Judged:
        """Judge the entries of one message.

        Raises:
            RemoteProtocolError: they cannot be what a source has.
        """
        if self.final:
            raise RemoteProtocolError("entries came after the last ones")
        judged = Judged()
        self._owners.learn(overview.users, overview.groups)
        self.incomplete |= bool(overview.failed)
        entries = iter(self._entries(overview, names))
        for segment in overview.segments:
            state = self.directories.listed(segment.directory)
            if state.local is None and state.is_there and not state.refused:
                self._begin_listing(state, judged)
            for _ in range(segment.count):
                self._judge(state, next(entries), judged)
            if segment.ends:
                self.incomplete |= not segment.whole
                self._end_listing(segment.directory, state)
        self.final = overview.final
        return judged

    def _entries(self, overview: Overview, names: list[bytes]) -> Iterator[Entry]:
        nanos = unpack_nanos(overview.nanos)
        targets, devices = iter(overview.targets), iter(overview.devices)
        sums = overview.sums
        at_sum = 0
        owners = self._owners
        for at, name in enumerate(names):
            mode = allowed_mode(overview.modes[at], privileged=self._privileged)
            entry = Entry(
                self._index,
                name,
                mode,
                overview.sizes[at],
                overview.seconds[at] * 10**9 + nanos[at],
            )
            self._index += 1
            if self._rename is not None:
                self._original, entry.name = name, self._rename
            if stat.S_ISREG(mode):
                if sums:
                    entry.sum = sums[at_sum : at_sum + SUM_LEN]
                    at_sum += SUM_LEN
            elif stat.S_ISLNK(mode):
                entry.target = next(targets)
            elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                entry.device = next(devices, 0)
            if overview.leaders and not stat.S_ISDIR(mode):
                entry.leader = overview.leaders.get(at)
            if overview.uids:
                entry.uid = owners.user(overview.uids[at])
            if overview.gids:
                entry.gid = owners.group(overview.gids[at])
            yield entry

    def _begin_listing(self, state: DirState, judged: Judged) -> None:
        """Look at what a directory has; take nothing of one that we may not read."""
        # The root's mode is set again only where it takes part.
        is_ours = state.above is not None or state.entry is not None
        try:
            directory = self._destination.tree.directory(state.path)
            if is_ours and not self._options.dry_run:
                state.adjust |= make_usable(directory.fd, os.fstat(directory.fd))
            state.local = LocalNames(self._destination.names(state.path))
        except (OSError, Rpc25519Error) as exc:
            state.refused = True
            state.trouble = why(exc, "list", state.path)[:1000]
            judged.troubles.append((state.path, state.trouble))

    def _end_listing(self, number: int, state: DirState) -> None:
        if self._options.delete and state.local is not None:
            self.extraneous.note(state, state.local.rest())
        self.directories.end_listing(number)

    # One entry.

    def _judge(self, state: DirState, entry: Entry, judged: Judged) -> None:
        is_top = entry.name == ROOT_NAME or state.above is None
        if self._asked is not None and is_top and entry.name not in self._asked:
            raise RemoteProtocolError("the sender sent what it was not asked for")
        if entry.name == ROOT_NAME:
            path = state.path
        else:
            if entry.name <= state.last_name:
                raise RemoteProtocolError("the names of a directory are not in order")
            state.last_name = entry.name
            path = (*state.path, entry.name)
        if stat.S_ISREG(entry.mode):
            judged.files += 1
            judged.total_bytes += entry.size
        if state.refused:
            self._swallow(state, entry, path)
            verdict = Verdict.FAILED if state.trouble else Verdict.SKIPPED
            self._tell(judged, entry, path, verdict, Change.NONE, state.trouble)
            return
        try:
            verdict, change = self._decide(state, entry, path, judged)
        except (OSError, Rpc25519Error) as exc:
            if isinstance(exc, RemoteProtocolError):
                raise
            self._swallow(state, entry, path)
            note = why(exc, "write", path)[:1000]
            self._tell(judged, entry, path, Verdict.FAILED, Change.NONE, note)
            return
        self._tell(judged, entry, path, verdict, change)

    def _swallow(self, state: DirState, entry: Entry, path: Parts) -> None:
        """Take no notice of what lies beneath a directory that is not taken."""
        if stat.S_ISDIR(entry.mode) and entry.name != ROOT_NAME:
            below = DirState(path, state)
            below.refused = True
            below.trouble = state.trouble
            self.directories.add(below)

    def _tell(
        self,
        judged: Judged,
        entry: Entry,
        path: Parts,
        verdict: Verdict,
        change: int,
        note: str = "",
    ) -> None:
        path = self.told_path(path)
        judged.verdicts.append(verdict)
        judged.changes.append(change)
        if note:
            judged.notes[entry.index] = note
        if verdict is not Verdict.EQUAL or change:
            subject = Subject(path, entry.mode, entry.size, entry.target)
            judged.told.append((subject, verdict, change, note))

    def told_path(self, path: Parts) -> Parts:
        """Return a path as the sender knows it, where the only entry has a new name."""
        return (self._original, *path[1:]) if self._original and path else path

    def _decide(
        self, state: DirState, entry: Entry, path: Parts, judged: Judged
    ) -> tuple[Verdict, int]:
        is_dir = stat.S_ISDIR(entry.mode)
        if entry.name == ROOT_NAME:
            return self._decide_root(state, entry)
        old = self._look(state, entry)
        self._destination.tree.check_writing(path)
        if stat.S_ISREG(entry.mode) and self._options.checksum:
            self._compare(entry, old, path)
        if entry.leader is not None:
            linked = self.links.decide(
                state, entry, old, lambda: self._make_way(path, old, judged)
            )
            if linked is not None:
                return linked
        action, change = judge(entry, old, self._options)
        if is_dir:
            return self._take_directory(state, entry, path, old, action, change)
        if action is Action.SKIP:
            return Verdict.SKIPPED, change
        if action in (Action.FETCH, Action.MAKE):
            self._make_way(path, old, judged)
        taken = self._take(state, entry, old, (action, change), judged)
        if self._options.hard_links:
            self.links.remember(entry, path)
        return taken

    def _take(
        self,
        state: DirState,
        entry: Entry,
        old: Old | None,
        decided: tuple[Action, int],
        judged: Judged,
    ) -> tuple[Verdict, int]:
        """Do what was decided about anything but a directory."""
        action, change = decided
        if action is Action.NOTHING:
            return Verdict.EQUAL, change
        if self._options.dry_run:
            return Verdict.DONE, change
        if action is Action.FETCH:
            pending = Pending(entry, state, old, change)
            self._pending[entry.index] = pending
            state.open += 1
            judged.wanted.append(pending)
            return Verdict.WANT, change
        if action is Action.ADJUST:
            assert old is not None
            self._destination.adjust(state.path, entry, old)
        else:
            self._destination.make_special(state.path, entry, old)
            state.touched = True
        return Verdict.DONE, change

    def _look(self, state: DirState, entry: Entry) -> Old | None:
        """Return what has the name of an entry now; note what is beside the source."""
        local = state.local
        if local is None:
            return None
        if self._options.delete:
            self.extraneous.note(state, local.before(entry.name))
        else:
            for _ in local.before(entry.name):
                pass
        is_listed = local.has(entry.name)
        old = self._destination.look(state.path, entry.name)
        if old is not None and not is_listed and not self._options.dry_run:
            self._destination.check_spelling(state.path, entry.name)
        return old

    def stop(self) -> None:
        """Let the comparing of contents end in a StoppedError; from any thread."""
        self._is_stopped = True

    def _check_stopped(self) -> None:
        if self._is_stopped:
            raise StoppedError

    def _compare(self, entry: Entry, old: Old | None, path: Parts) -> None:
        """Compare contents, where that is wanted and lengths are equal."""
        if old is None or not stat.S_ISREG(old.status.st_mode):
            return
        if old.status.st_size != entry.size:
            return
        if not self._destination.tree.may("read", path):
            return  # whether they are equal tells something of them
        try:
            fd, _ = open_source(Place(self._destination.tree, path), path)
        except LocalFileError:
            return  # it cannot be read, but perhaps be replaced
        try:
            old.same_contents = file_sum(fd, self._check_stopped) == entry.sum
        finally:
            os.close(fd)

    def _decide_root(self, state: DirState, entry: Entry) -> tuple[Verdict, int]:
        if not state.is_there:
            return Verdict.DONE, Change.LOCAL | Change.NEW
        if not self._destination.tree.may("write", ()):
            return Verdict.SKIPPED, Change.NONE
        state.entry = entry
        if self._root_is_new:
            state.adjust = True
            return Verdict.DONE, Change.LOCAL | Change.NEW
        status = os.fstat(self._destination.sync_fd)
        state.old = Old(status)
        change = attributes(entry, status, self._options)
        state.adjust |= bool(change)
        return (Verdict.DONE if change else Verdict.EQUAL), change

    def _take_directory(
        self,
        state: DirState,
        entry: Entry,
        path: Parts,
        old: Old | None,
        action: Action,
        change: int,
    ) -> tuple[Verdict, int]:
        below = DirState(path, state)
        below.entry, below.old = entry, old
        if action is Action.SKIP:
            below.refused = True
            self.directories.add(below)
            return Verdict.SKIPPED, change
        if action is Action.MAKE:
            below.old = None
            below.adjust = True
            if self._options.dry_run:
                below.is_there = False
            else:
                self._destination.make_directory(state.path, entry, old)
                state.touched = True
        below.adjust |= action is Action.ADJUST
        self.directories.add(below)
        return (Verdict.DONE if change else Verdict.EQUAL), change

    def _make_way(self, path: Parts, old: Old | None, judged: Judged) -> None:
        """See that a directory may go for something else; tell what goes with it.

        It goes when what replaces it is complete.

        Raises:
            LocalFileError: something in it has to stay.
        """
        if old is None or not stat.S_ISDIR(old.status.st_mode):
            return
        if not self._destination.tree.may("list", path):
            raise UnsafePathError(UNLISTED)
        going: list[bytes] = []
        walks = [(path, self._destination.names(path))]
        while walks:
            here, names = walks[-1]
            name = next(names, None)
            if name is None:
                walks.pop()
                if walks:
                    going.append(b"/".join(here) + b"/")
                continue
            below = (*here, name)
            found = self._destination.look(here, name)
            is_dir = found is not None and stat.S_ISDIR(found.status.st_mode)
            stays = not self._options.delete or self.extraneous.is_protected(
                below, is_dir=is_dir
            )
            if stays or self.extraneous.may_not_remove(len(going) + 1):
                raise LocalFileError(
                    f"{shown(path)!r} is a directory with something in it that has to "
                    "stay, and cannot be replaced"
                )
            if is_dir:
                walks.append((below, self._destination.names(below)))
            else:
                going.append(b"/".join(below))
        self.extraneous.removed += len(going)
        judged.removed += going
