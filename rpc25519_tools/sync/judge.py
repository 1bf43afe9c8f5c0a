"""What has to happen to one entry, from what is there and what shall be (sans-IO).

Source: rsync's manual; the order of its tests is the one of its options there.
"""

import os
import stat
from dataclasses import dataclass
from enum import Enum
from typing import Final

from rpc25519_tools.sync.itemize import DIFFERENCES, Change
from rpc25519_tools.sync.options import SyncOptions

_NS: Final = 10**9
#: Permission bits, set-uid, set-gid and sticky bits included.
MODE_BITS: Final = 0o7777


@dataclass(slots=True, eq=False)
class Entry:
    """One entry of the source, as the receiver sees it.

    Attributes:
        index: its number.
        name: a single component; ``.`` for the root itself.
        mode: ``st_mode``.
        size: length in bytes of a regular file, else 0.
        mtime_ns: time of change.
        target: where a symbolic link leads.
        uid, gid: owners on this machine; None: not to be set.
        leader: entry that it is a hard link of.
        sum: BLAKE3 of the contents; empty where it was not asked for.
        device: number of a device file.
    """

    index: int
    name: bytes
    mode: int
    size: int
    mtime_ns: int
    target: bytes = b""
    uid: int | None = None
    gid: int | None = None
    leader: int | None = None
    sum: bytes = b""
    device: int = 0


class Action(Enum):
    """What to do."""

    NOTHING = "nothing"
    ADJUST = "set times, permissions or owners"
    MAKE = "make what has no contents"
    FETCH = "get the contents"
    SKIP = "leave it alone, as the options say"


@dataclass(slots=True)
class Old:
    """What is there now.

    Attributes:
        status: its ``lstat``.
        target: where it leads if it is a symbolic link.
        same_contents: whether its contents are those of the source; None: not known.
    """

    status: os.stat_result
    target: bytes = b""
    same_contents: bool | None = None


def same_time(entry_ns: int, old_ns: int) -> bool:
    """Tell whether two times of change are the same.

    A file system that keeps whole seconds only is forgiven.
    """
    if entry_ns == old_ns:
        return True
    coarse = not old_ns % _NS or not entry_ns % _NS
    return coarse and entry_ns // _NS == old_ns // _NS


def attributes(entry: Entry, status: os.stat_result, options: SyncOptions) -> int:
    """Return what differs about times, permissions and owners, as far as it counts."""
    change = Change.NONE
    if options.times and not same_time(entry.mtime_ns, status.st_mtime_ns):
        change |= Change.TIME
    is_link = stat.S_ISLNK(entry.mode)
    if options.perms and not is_link and (entry.mode ^ status.st_mode) & MODE_BITS:
        change |= Change.PERMS
    if entry.uid is not None and entry.uid != status.st_uid:
        change |= Change.OWNER
    if entry.gid is not None and entry.gid != status.st_gid:
        change |= Change.GROUP
    return change


def judge(entry: Entry, old: Old | None, options: SyncOptions) -> tuple[Action, int]:
    """Decide about one entry that is no further name of another one."""
    if not options.takes(entry.mode):
        return Action.SKIP, Change.NONE
    if old is None:
        if options.existing:
            return Action.SKIP, Change.NONE
        return _new(entry)
    is_dir = stat.S_ISDIR(entry.mode)
    is_other = stat.S_IFMT(entry.mode) != stat.S_IFMT(old.status.st_mode)
    if options.ignore_existing and (is_other or not is_dir):
        return Action.SKIP, Change.NONE
    if is_other:
        return _new(entry)
    if is_dir:
        change = attributes(entry, old.status, options)
        return (Action.ADJUST if change else Action.NOTHING), change
    if stat.S_ISREG(entry.mode):
        return _judge_file(entry, old, options)
    return _judge_special(entry, old, options)


def _new(entry: Entry) -> tuple[Action, int]:
    if stat.S_ISREG(entry.mode):
        return Action.FETCH, Change.CONTENT | Change.NEW
    return Action.MAKE, Change.LOCAL | Change.NEW


def _judge_file(entry: Entry, old: Old, options: SyncOptions) -> tuple[Action, int]:
    status = old.status
    if options.update and status.st_mtime_ns // _NS > entry.mtime_ns // _NS:
        return Action.SKIP, Change.NONE
    change = attributes(entry, status, options)
    if entry.size != status.st_size:
        change |= Change.SIZE
    if not needs_contents(entry, old, options):
        action = Action.ADJUST if change & DIFFERENCES else Action.NOTHING
        return action, change
    if options.checksum:
        change |= Change.SUM
    if not options.times:
        change |= Change.TIME | Change.TIME_NOW
    return Action.FETCH, change | Change.CONTENT


def needs_contents(entry: Entry, old: Old, options: SyncOptions) -> bool:
    """Tell whether a regular file's contents have to come, since they may differ."""
    if entry.size != old.status.st_size:
        return True
    if options.checksum:
        return old.same_contents is not True
    if options.size_only:
        return False
    if options.ignore_times:
        return True
    return not same_time(entry.mtime_ns, old.status.st_mtime_ns)


def _judge_special(entry: Entry, old: Old, options: SyncOptions) -> tuple[Action, int]:
    """Decide about a link, FIFO, socket or device where one of its kind is."""
    change = attributes(entry, old.status, options)
    is_link = stat.S_ISLNK(entry.mode)
    differs = is_link and entry.target != old.target
    is_device = stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode)
    differs |= is_device and entry.device != old.status.st_rdev
    if differs:
        change |= Change.SUM | Change.LOCAL
        if not options.times:
            change |= Change.TIME | Change.TIME_NOW
        return Action.MAKE, change
    return (Action.ADJUST if change else Action.NOTHING), change
