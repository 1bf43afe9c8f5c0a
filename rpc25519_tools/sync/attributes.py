"""Set modes, owners and times of what may be a link, beneath an open directory.

All of this blocks.
"""

import grp
import os
import pwd
import stat
import sys
from typing import Final

from rpc25519_tools.errors import RemoteProtocolError
from rpc25519_tools.files.atomic import process_umask
from rpc25519_tools.sync.judge import MODE_BITS, Entry
from rpc25519_tools.sync.options import SyncOptions

_O_PATH: Final[int] = getattr(os, "O_PATH", 0)
#: Set-uid and set-gid: only where the receiver lets the sender have them.
_PRIVILEGED_BITS: Final = stat.S_ISUID | stat.S_ISGID
#: Users, and groups, that a sender may have.
_MAX_OWNERS: Final = 1 << 16


def final_mode(entry: Entry, old: os.stat_result | None, options: SyncOptions) -> int:
    """Return the permission bits that an entry shall have in the end."""
    if options.perms:
        return entry.mode & MODE_BITS
    same_kind = old is not None and stat.S_IFMT(old.st_mode) == stat.S_IFMT(entry.mode)
    if old is not None and same_kind:
        return stat.S_IMODE(old.st_mode)
    return entry.mode & 0o777 & ~process_umask()


def allowed_mode(mode: int, *, privileged: bool) -> int:
    """Return a mode without the bits that only a trusted sender may set."""
    if privileged or stat.S_ISDIR(mode):
        return mode
    return mode & ~_PRIVILEGED_BITS


def set_mode(dir_fd: int, name: bytes, mode: int) -> None:
    """Set the permission bits of anything but a link, never through one."""
    if sys.platform != "linux":
        os.chmod(name, mode, dir_fd=dir_fd, follow_symlinks=False)
        return
    # Linux has no way to change a mode without following links but by what is open.
    fd = os.open(name, _O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            _change_mode(fd, mode)
    finally:
        os.close(fd)


def _change_mode(fd: int, mode: int) -> None:
    """Set the permission bits of what is open, on Linux also by ``O_PATH``."""
    if sys.platform == "linux":
        os.chmod(f"/proc/self/fd/{fd}", mode)
    else:
        os.fchmod(fd, mode)


def set_owner(dir_fd: int, name: bytes, entry: Entry) -> None:
    """Set owner and group as far as they are to be set, never through a link."""
    uid = -1 if entry.uid is None else entry.uid
    gid = -1 if entry.gid is None else entry.gid
    if (uid, gid) != (-1, -1):
        os.chown(name, uid, gid, dir_fd=dir_fd, follow_symlinks=False)


def set_time(dir_fd: int, name: bytes, mtime_ns: int) -> None:
    """Set the time of change, to the nanosecond, never through a link."""
    os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=dir_fd, follow_symlinks=False)


def make_usable(dir_fd: int, status: os.stat_result) -> bool:
    """Let ourselves into a directory that is ours and closed to us.

    Returns:
        Whether its mode was changed.
    """
    if os.geteuid() == 0 or status.st_mode & 0o700 == 0o700:
        return False
    if status.st_uid != os.geteuid():
        return False
    _change_mode(dir_fd, (status.st_mode & 0o7777) | 0o700)
    return True


class Owners:
    """Translates the sender's owners into those of this machine.

    By name where both sides know it, by number otherwise. Nobody but root may give
    files away; others may set the groups that they are in.

    Args:
        options: of the sync.
        privileged: whether owners may be set at all.
    """

    def __init__(self, options: SyncOptions, *, privileged: bool) -> None:
        is_root = os.geteuid() == 0
        self._numeric = options.numeric_ids
        self._sets_users = options.owner and privileged and is_root
        self._sets_groups = options.group and privileged
        self._groups_of_mine = None if is_root else {os.getegid(), *os.getgroups()}
        self._users: dict[int, int] = {}
        self._groups: dict[int, int] = {}

    def learn(self, users: dict[int, str], groups: dict[int, str]) -> None:
        """Take names of the sender's numbers, as far as they will be needed.

        Raises:
            RemoteProtocolError: there are too many.
        """
        if self._numeric:
            return
        if self._sets_users:
            for uid, name in users.items():
                self._users[uid] = _local_uid(name, uid)
        if self._sets_groups:
            for gid, name in groups.items():
                self._groups[gid] = _local_gid(name, gid)
        if max(len(self._users), len(self._groups)) > _MAX_OWNERS:
            raise RemoteProtocolError(f"over {_MAX_OWNERS} owners came")

    def user(self, uid: int) -> int | None:
        """Return the owner to be set; None: leave it."""
        return self._users.get(uid, uid) if self._sets_users else None

    def group(self, gid: int) -> int | None:
        """Return the group to be set; None: leave it."""
        if not self._sets_groups:
            return None
        mine = self._groups.get(gid, gid)
        if self._groups_of_mine is not None and mine not in self._groups_of_mine:
            return None
        return mine


def _local_uid(name: str, uid: int) -> int:
    try:
        return pwd.getpwnam(name).pw_uid if name else uid
    except (KeyError, ValueError):  # unknown, or no possible name
        return uid


def _local_gid(name: str, gid: int) -> int:
    try:
        return grp.getgrnam(name).gr_gid if name else gid
    except (KeyError, ValueError):
        return gid
