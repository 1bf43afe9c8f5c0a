"""Two trees on this disk: all that they are, and syncs after which they are alike."""

import os
import stat
from pathlib import Path

import pytest

from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.walk import file_sum
from tests.sync.local import LocalSync, sync

ALL = SyncOptions(
    recursive=True,
    links=True,
    perms=True,
    times=True,
    owner=True,
    group=True,
    specials=True,
    devices=True,
    hard_links=True,
    fsync=False,
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do this")
Trees = tuple[Path, Path]


def with_options(**changes: object) -> SyncOptions:
    names = SyncOptions.__struct_fields__
    return SyncOptions(**{name: getattr(ALL, name) for name in names} | changes)


def snapshot(top: Path, *, with_ctime: bool = False) -> dict[bytes, tuple[object, ...]]:
    """Return all that a tree is, by path; of hard links also their first name."""
    found: dict[bytes, tuple[object, ...]] = {}
    first: dict[tuple[int, int], bytes] = {}
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        full = os.fsencode(top) + b"/" + path
        status = os.lstat(full)
        more: object = status.st_rdev
        if stat.S_ISREG(status.st_mode):
            fd = os.open(full, os.O_RDONLY)
            more = file_sum(fd), status.st_size
            os.close(fd)
        elif stat.S_ISLNK(status.st_mode):
            more = os.readlink(full)
        elif stat.S_ISDIR(status.st_mode):
            below = sorted(os.listdir(full), reverse=True)
            waiting += [path + b"/" + name if path else name for name in below]
        leader = b""
        if not stat.S_ISDIR(status.st_mode):
            leader = first.setdefault((status.st_dev, status.st_ino), path)
        ids = (status.st_uid, status.st_gid)
        times = (status.st_mtime_ns, status.st_ctime_ns if with_ctime else 0)
        found[path] = (status.st_mode, ids, times, leader, more)
    return found


def push(trees: Trees, options: SyncOptions = ALL) -> LocalSync:
    """Sync twice; both sides are alike, and the second time nothing happens."""
    source, destination = trees
    one = sync([f"{source}/"], destination, options)
    assert one.at_receiver.failures == one.at_sender.failures == []
    assert snapshot(destination) == snapshot(source)
    before = snapshot(destination, with_ctime=True)
    again = sync([f"{source}/"], destination, options)
    assert again.at_receiver.lines == []
    assert again.at_receiver.failures == []
    assert again.totals.literal_bytes == again.totals.matched_bytes == 0
    after = snapshot(destination, with_ctime=True)
    # The hidden area may have come and gone in the root.
    assert after | {b"": ()} == before | {b"": ()}
    return one


def seen(top: Path) -> dict[str, tuple[object, ...]]:
    """Return what can be seen of a tree: kinds, modes, times and contents."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [top, *top.rglob("*")]:
        status = path.lstat()
        what: object = None
        if path.is_symlink():
            what = os.readlink(path)
        elif path.is_file():
            what = path.read_bytes()
        name = str(path.relative_to(top))
        found[name] = (oct(status.st_mode), status.st_mtime_ns, what)
    return found
