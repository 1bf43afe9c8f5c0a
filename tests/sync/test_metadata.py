"""What a sync makes is what there was: kinds, modes, times, owners, links, names."""

import asyncio
import errno
import gc
import grp
import os
import pwd
import random
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from rpc25519_tools.errors import LocalFileError
from rpc25519_tools.sync import attributes, durable, storing, walk
from rpc25519_tools.sync.filters import Rule
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.outgoing import OpenSource
from rpc25519_tools.sync.receiver import Receiver
from rpc25519_tools.sync.walk import file_sum

from . import local
from .local import LocalSync, sync

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

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
needs_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may do anything")
#: Times of change, in nanoseconds, that are kept as they are.
TIMES = (0, -1, -1_500_000_000_123_456_789, 999_999_999, 1_700_000_000_123_456_789)

Trees = tuple[Path, Path]


def with_options(**changes: object) -> SyncOptions:
    names = SyncOptions.__struct_fields__
    return SyncOptions(**{name: getattr(ALL, name) for name in names} | changes)


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    source, destination = tmp_path / "src", tmp_path / "dst"
    source.mkdir()
    destination.mkdir()
    return source, destination


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


# Kinds, modes and times.


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755, 0o444, 0o000, 0o4755, 0o2711])
def test_modes_are_kept(trees: Trees, mode: int) -> None:
    path = trees[0] / "a"
    path.write_bytes(b"x")
    path.chmod(mode)
    if os.geteuid() != 0 and not mode & 0o400:
        return
    push(trees)
    path.chmod(0o640)
    push(trees)


@pytest.mark.parametrize("mode", [0o700, 0o555, 0o500, 0o1777, 0o2755])
def test_modes_of_directories_are_kept(trees: Trees, mode: int) -> None:
    top = trees[0] / "top"
    (top / "below").mkdir(parents=True)
    (top / "below/a").write_bytes(b"x")
    (top / "below").chmod(mode)
    top.chmod(mode)
    push(trees)
    (top / "below").chmod(0o700)
    (top / "below/b").write_bytes(b"y")
    (top / "below").chmod(mode)
    push(trees)
    for path in (top, top / "below", trees[1] / "top", trees[1] / "top/below"):
        path.chmod(0o700)


def test_times_are_kept_to_the_nanosecond(trees: Trees) -> None:
    source, _ = trees
    for number, time_ns in enumerate(TIMES):
        (source / f"d{number}/sub").mkdir(parents=True)
        (source / f"d{number}/sub/a").write_bytes(b"x" * number)
        (source / f"d{number}/link").symlink_to("nowhere")
        for name in ("sub/a", "link", "sub", ""):
            path = source / f"d{number}" / name
            os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)
    os.utime(source, ns=(TIMES[2], TIMES[2]))
    push(trees)


def test_times_that_are_far_away_are_kept_or_told_of(trees: Trees) -> None:
    source, destination = trees
    (source / "a").write_bytes(b"x")
    os.utime(source / "a", (2**40, 2**40))
    kept = (source / "a").stat().st_mtime_ns
    sync([f"{source}/"], destination, ALL)
    assert (destination / "a").stat().st_mtime_ns == kept


def test_symbolic_links_are_made_as_they_are(trees: Trees) -> None:
    source, _ = trees
    (source / "dir").mkdir()
    targets = [
        b"nowhere",
        b"dir",
        b"../dst",
        b"/etc/passwd",
        b"x" * 4000,
        b"\xff\n",
        b"/",
    ]
    for number, target in enumerate(targets):
        os.symlink(target, os.fsencode(source) + b"/%d" % number)
    push(trees)
    (source / "0").unlink()
    (source / "0").symlink_to("elsewhere")
    push(trees)


def test_fifos_and_sockets_are_made(trees: Trees) -> None:
    source, _ = trees
    os.mkfifo(source / "fifo", 0o640)
    here = os.getcwd()
    os.chdir(source)  # a socket's path has to be short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("socket")
    finally:
        os.chdir(here)
    push(trees)


@needs_root
def test_devices_are_made(trees: Trees) -> None:
    source, _ = trees
    try:
        os.mknod(source / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(source / "disk", 0o660 | stat.S_IFBLK, os.makedev(7, 99))
    except PermissionError:
        pytest.skip("no devices may be made here")
    push(trees)
    (source / "null").unlink()
    os.mknod(source / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    push(trees)


def test_any_name_is_possible(trees: Trees) -> None:
    source = os.fsencode(trees[0])
    names = [bytes([one]) for one in range(1, 256) if one not in b"/."]
    names += [
        b"-rf",
        b"--delete",
        b" lead",
        b"new\nline",
        b"\xff\xfe",
        b"...",
        b"..a",
        b"\xc3\xa9",
        b"e\xcc\x81",
        b"A" * 255,
        b"\xff" * 255,
        b"~",
        b"*",
        b"a\\b",
    ]
    for name in names:
        fd = os.open(source + b"/" + name, os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(fd, name)
        os.close(fd)
    for name in (b"\n", b"\xff" * 200, b"-d"):
        os.mkdir(source + b"/dir" + name)
        os.symlink(name, source + b"/dir" + name + b"/l" + name)
    push(trees)


@pytest.mark.parametrize("name", [b"d", b"d" * 100])
def test_deep_trees_are_taken_and_removed(trees: Trees, name: bytes) -> None:
    source, destination = trees
    fd = os.open(source, os.O_RDONLY)
    for _ in range(300):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    leaf = os.open("leaf", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd)
    os.close(leaf)
    os.close(fd)
    one = sync([f"{source}/"], destination, ALL)
    assert one.at_receiver.failures == []
    made = [line for line in one.at_receiver.lines if line[1] != b"./"]
    assert len(made) == 301
    again = sync([f"{source}/"], destination, ALL)
    assert again.at_receiver.lines == []
    assert again.at_receiver.failures == []
    empty = source.parent / "empty"
    empty.mkdir()
    gone = sync([f"{empty}/"], destination, with_options(delete=True))
    assert gone.totals.deleted == 301
    assert gone.at_receiver.failures == gone.at_sender.failures == []
    assert os.listdir(destination) == []
    sync([f"{empty}/"], source, with_options(delete=True))


def test_what_becomes_of_another_kind_is_replaced(trees: Trees) -> None:
    source, destination = trees
    kinds: list[Callable[[Path], object]] = [
        lambda path: path.write_bytes(b"file"),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/nowhere"),
        os.mkfifo,
        lambda path: (path / "full").mkdir(parents=True),
    ]
    for one, make_old in enumerate(kinds):
        for two, make_new in enumerate(kinds):
            make_new(source / f"{one}{two}")
            make_old(destination / f"{one}{two}")
    push(trees, with_options(delete=True))


def test_directory_with_something_in_it_stays_without_delete(trees: Trees) -> None:
    source, destination = trees
    (source / "a").write_bytes(b"x")
    (source / "b").write_bytes(b"x")
    (destination / "a").mkdir()
    (destination / "a/stays").write_bytes(b"y")
    one = sync([f"{source}/"], destination, ALL)
    ((path, note),) = one.at_receiver.failures
    assert path == (b"a",)
    assert "cannot be replaced" in note
    assert one.at_sender.failures == one.at_receiver.failures
    assert (destination / "a/stays").exists()
    assert (destination / "b").exists()


# Hard links.


def test_hard_links_are_kept(trees: Trees) -> None:
    source, destination = trees
    (source / "x/y").mkdir(parents=True)
    (source / "a").write_bytes(random.Random(0).randbytes(100_000))
    (source / "small").write_bytes(b"small")
    os.mkfifo(source / "fifo")
    (source / "link").symlink_to("nowhere")
    for name in ("a", "small", "fifo", "link"):
        for other in (f"b-{name}", f"x/{name}", f"x/y/{name}"):
            os.link(source / name, source / other, follow_symlinks=False)
    one = push(trees)
    assert one.totals.literal_bytes == 100_005
    (source / "a").write_bytes(random.Random(1).randbytes(90_000))
    push(trees)
    os.link(source / "a", source / "new")
    (source / "x/a").unlink()
    (source / "x/a").write_bytes(b"now another one")
    push(trees)
    assert (destination / "a").stat().st_nlink == 4


def test_further_names_of_files_that_are_there_are_linked(trees: Trees) -> None:
    source, destination = trees
    for top in trees:
        (top / "a").write_bytes(b"same")
        os.utime(top / "a", ns=(5, 5))
    (destination / "b").write_bytes(b"same")
    os.utime(destination / "b", ns=(5, 5))
    os.link(source / "a", source / "b")
    os.link(source / "a", source / "c")
    one = push(trees)
    assert one.totals.literal_bytes == 0


def test_names_that_are_no_hard_links_any_more_are_parted(trees: Trees) -> None:
    source, destination = trees
    for name in ("a", "b"):
        (source / name).write_bytes(b"x" + name.encode())
    (destination / "a").write_bytes(b"old")
    os.link(destination / "a", destination / "b")
    push(trees)


# Owners.


@needs_root
def test_owners_are_kept(trees: Trees) -> None:
    source, _ = trees
    (source / "dir").mkdir()
    (source / "dir/a").write_bytes(b"x")
    (source / "link").symlink_to("nowhere")
    for number, name in enumerate(("dir/a", "dir", "link")):
        os.chown(source / name, 40_000 + number, 50_000 + number, follow_symlinks=False)
    (source / "setuid").write_bytes(b"y")
    os.chown(source / "setuid", 40_000, 50_000)
    (source / "setuid").chmod(0o6755)
    push(trees)
    os.chown(source / "dir/a", 1, 2)
    push(trees)


@needs_root
@pytest.mark.parametrize("numeric", [False, True])
def test_owners_are_mapped_by_name(
    trees: Trees, monkeypatch: pytest.MonkeyPatch, numeric: bool
) -> None:
    source, destination = trees
    (source / "a").write_bytes(b"x")
    os.chown(source / "a", 40_000, 50_000)
    user, group = pwd.getpwuid(1), grp.getgrgid(2)
    monkeypatch.setattr(walk, "user_name", lambda uid: user.pw_name if uid else "root")
    monkeypatch.setattr(
        walk, "group_name", lambda gid: group.gr_name if gid else "root"
    )
    sync([f"{source}/"], destination, with_options(numeric_ids=numeric))
    status = (destination / "a").stat()
    expected = (40_000, 50_000) if numeric else (user.pw_uid, group.gr_gid)
    assert (status.st_uid, status.st_gid) == expected


@needs_root
def test_replaced_file_keeps_its_owner_where_owners_are_not_taken(
    trees: Trees,
) -> None:
    source, destination = trees
    (source / "a").write_bytes(b"new")
    (destination / "a").write_bytes(b"old one")
    os.chown(destination / "a", 40_000, 50_000)
    sync([f"{source}/"], destination, with_options(owner=False, group=False))
    status = (destination / "a").stat()
    assert (status.st_uid, status.st_gid) == (40_000, 50_000)


def test_modes_follow_the_umask_without_perms(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = trees
    monkeypatch.setattr(attributes, "process_umask", lambda: 0o027)
    for name in ("new", "old"):
        (source / name).write_bytes(b"x")
        (source / name).chmod(0o4777)
    (source / "dir").mkdir()
    (source / "dir").chmod(0o777)
    (destination / "old").write_bytes(b"yy")
    (destination / "old").chmod(0o604)
    sync([f"{source}/"], destination, with_options(perms=False))
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in destination.iterdir()
    }
    assert modes == {"new": 0o750, "old": 0o604, "dir": 0o750}


# What changes meanwhile, or cannot be read.


def meddle(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[], object]
) -> None:
    """Change something right after a file has been opened to be sent."""
    init = OpenSource.__init__

    def opened(self: OpenSource, wanted: object) -> None:
        init(self, wanted)  # type: ignore[arg-type]
        if self.wanted.item.name == name.encode():
            change()

    monkeypatch.setattr(OpenSource, "__init__", opened)


@pytest.mark.parametrize("size", [1000, 3_000_000])
@pytest.mark.parametrize("has_old", [False, True])
def test_file_that_grows_while_it_is_read(
    trees: Trees, monkeypatch: pytest.MonkeyPatch, size: int, has_old: bool
) -> None:
    source, destination = trees
    data = random.Random(0).randbytes(size)
    (source / "log").write_bytes(data)
    if has_old:
        (destination / "log").write_bytes(data[: size // 2])

    def grow() -> None:
        with (source / "log").open("ab") as file:
            file.write(b"more")

    meddle(monkeypatch, "log", grow)
    one = sync([f"{source}/"], destination, ALL)
    assert one.at_sender.warnings == [((b"log",), "it changed while it was read")]
    assert one.at_receiver.failures == []
    assert (destination / "log").read_bytes() == data
    monkeypatch.undo()
    push(trees)


@pytest.mark.parametrize("size", [1000, 3_000_000])
@pytest.mark.parametrize("has_old", [False, True])
def test_file_that_shrinks_while_it_is_read(
    trees: Trees, monkeypatch: pytest.MonkeyPatch, size: int, has_old: bool
) -> None:
    source, destination = trees
    data = random.Random(0).randbytes(size)
    (source / "log").write_bytes(data)
    (source / "other").write_bytes(b"other")
    if has_old:
        (destination / "log").write_bytes(data[: size // 2])
    meddle(monkeypatch, "log", lambda: os.truncate(source / "log", 500))
    one = sync([f"{source}/"], destination, ALL)
    ((path, note),) = one.at_receiver.failures
    assert path == (b"log",)
    assert one.at_sender.failures == one.at_receiver.failures
    assert "while it was read" in note
    assert (destination / "log").exists() is has_old
    assert (destination / "other").exists()
    assert not [name for name in os.listdir(destination) if name.startswith(".")]
    gc.collect()  # tracebacks of what failed hold what was open


@pytest.mark.parametrize("what", ["file", "small", "dir", "link"])
def test_what_vanishes_is_told_of_and_the_rest_goes_on(
    trees: Trees, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    source, destination = trees
    (source / "file").write_bytes(bytes(100_000))
    (source / "small").write_bytes(b"x")
    (source / "dir").mkdir()
    (source / "link").symlink_to("nowhere")
    (source / "rest").write_bytes(b"rest")

    if what == "link":

        def readlink(*_: object, **__: object) -> bytes:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

        monkeypatch.setattr(os, "readlink", readlink)
    one = LocalSync([f"{source}/"], destination, ALL)
    finish = walk.Walk._list

    def listing(self: walk.Walk, number: int, *rest: object) -> object:
        yield from finish(self, number, *rest)  # type: ignore[arg-type]
        if number == 0 and what != "link":
            path = source / what
            path.rmdir() if what == "dir" else path.unlink()

    monkeypatch.setattr(walk.Walk, "_list", listing)
    asyncio.run(one.run())
    failed = {path for path, _ in one.at_receiver.failures}
    assert failed == {(what.encode(),)}
    assert {path for path, _ in one.at_sender.failures} == failed
    there = set(os.listdir(destination))
    assert there >= {"rest"}
    assert (what in there) is (what == "dir")
    gc.collect()  # tracebacks of what failed hold what was open


# Options that keep things.


def test_update_keeps_what_is_newer(trees: Trees) -> None:
    source, destination = trees
    for name, time_s in (("older", 1000), ("newer", 3000), ("same", 2000)):
        (source / name).write_bytes(b"from here")
        os.utime(source / name, (2000, 2000))
        (destination / name).write_bytes(b"there")
        os.utime(destination / name, (time_s, time_s))
    sync([f"{source}/"], destination, with_options(update=True))
    contents = {path.name: path.read_bytes() for path in destination.iterdir()}
    assert contents == {
        "older": b"from here",
        "newer": b"there",
        "same": b"from here",
    }


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("existing", {"old": b"new contents"}),
        ("ignore_existing", {"old": b"there", "new": b"new", "dir/new": b"new"}),
        ("size_only", {"old": b"new contents", "new": b"new", "dir/new": b"new"}),
    ],
)
def test_options_decide_what_is_taken(
    trees: Trees, option: str, expected: dict[str, bytes]
) -> None:
    source, destination = trees
    (source / "dir").mkdir()
    (source / "old").write_bytes(b"new contents")
    for name in ("new", "dir/new"):
        (source / name).write_bytes(b"new")
    (destination / "old").write_bytes(b"there")
    sync([f"{source}/"], destination, with_options(**{option: True}))
    assert {
        str(path.relative_to(destination)): path.read_bytes()
        for path in destination.rglob("*")
        if path.is_file()
    } == expected


def test_backups_hold_what_was_replaced_or_removed(trees: Trees) -> None:
    source, destination = trees
    (destination / "dir").mkdir()
    for name in ("changed", "gone", "dir/gone", "dir/changed"):
        (destination / name).write_bytes(b"old " + name.encode())
    (destination / "link").symlink_to("old")
    os.link(destination / "changed", destination / "kept")
    (source / "dir").mkdir()
    for name in ("changed", "dir/changed"):
        (source / name).write_bytes(b"new")
    (source / "link").symlink_to("new")
    (source / "kept").write_bytes(b"old changed")
    os.utime(source / "kept", (5, 5))
    os.utime(destination / "kept", (5, 5))
    options = with_options(delete=True, backup_dir=b"old/er")
    for _ in range(2):
        one = sync([f"{source}/"], destination, options)
        assert one.at_receiver.failures == []
    backup = destination / "old/er"
    assert {
        str(path.relative_to(backup)): path.read_bytes()
        for path in backup.rglob("*")
        if path.is_file()
    } == {
        "changed": b"old changed",
        "gone": b"old gone",
        "dir/gone": b"old dir/gone",
        "dir/changed": b"old dir/changed",
    }
    assert os.readlink(backup / "link") == "old"
    assert (destination / "changed").read_bytes() == b"new"
    assert not (destination / "gone").exists()
    inode = (destination / "changed").stat().st_ino
    assert (backup / "changed").stat().st_ino != inode
    (source / "changed").write_bytes(b"newest")
    sync([f"{source}/"], destination, options)
    assert (backup / "changed").read_bytes() == b"new"


def test_backups_of_directories_and_what_replaces_them(trees: Trees) -> None:
    source, destination = trees
    options = with_options(delete=True, backup_dir=b"old")
    for content in (b"first", b"second"):
        (destination / "a").mkdir()
        (destination / "a/in").write_bytes(content)
        (source / "a").write_bytes(content)
        one = sync([f"{source}/"], destination, options)
        assert one.at_receiver.failures == []
        assert (destination / "a").read_bytes() == content
        assert (destination / "old/a/in").read_bytes() == content
        (destination / "a").unlink()


def test_backups_that_were_of_another_kind_make_way(trees: Trees) -> None:
    source, destination = trees
    options = with_options(delete=True, backup_dir=b"old")
    (destination / "a").write_bytes(b"file")
    sync([f"{source}/"], destination, options)
    assert (destination / "old/a").read_bytes() == b"file"
    (destination / "a").mkdir()
    (destination / "a/in").write_bytes(b"in")
    one = sync([f"{source}/"], destination, options)
    assert one.at_receiver.failures == []
    assert (destination / "old/a/in").read_bytes() == b"in"
    (destination / "a").write_bytes(b"file again")
    one = sync([f"{source}/"], destination, options)
    assert one.at_receiver.failures == []
    assert (destination / "old/a").read_bytes() == b"file again"


def test_dry_run_changes_nothing_at_all(trees: Trees) -> None:
    source, destination = trees
    (source / "dir").mkdir()
    (source / "dir/new").write_bytes(b"x")
    (source / "changed").write_bytes(b"y")
    (source / "swap").mkdir()
    (source / "link").symlink_to("dir")
    os.link(source / "changed", source / "linked")
    (destination / "changed").write_bytes(b"old")
    (destination / "changed").chmod(0o600)
    (destination / "gone").mkdir()
    (destination / "gone/a").write_bytes(b"z")
    (destination / "swap").write_bytes(b"file")
    (destination / "closed").mkdir(mode=0o500)
    (source / "closed").mkdir(mode=0o500)
    for top in trees:
        os.utime(top / "closed", (1, 1))
    before = [snapshot(one, with_ctime=True) for one in trees]
    options = with_options(dry_run=True, delete=True, backup_dir=b"old")
    one = sync([f"{source}/"], destination, options)
    changes = {path for _, path, _ in one.at_receiver.lines} - {b"./"}
    assert changes == {
        b"dir/",
        b"dir/new",
        b"changed",
        b"swap/",
        b"link",
        b"linked",
        b"gone/",
        b"gone/a",
    }
    assert [snapshot(one, with_ctime=True) for one in trees] == before
    missing = destination / "x/y"
    one = sync([f"{source}/"], missing, options)
    assert one.at_receiver.failures == []
    assert [snapshot(one, with_ctime=True) for one in trees] == before


def test_source_is_only_read(trees: Trees) -> None:
    source, _ = trees
    (source / "dir").mkdir(mode=0o500)
    (source / "a").write_bytes(b"x")
    before = snapshot(source, with_ctime=True)
    push(trees)
    assert snapshot(source, with_ctime=True) == before


# What is removed.


def test_protected_files_stay(trees: Trees) -> None:
    source, destination = trees
    (destination / "gone/deep").mkdir(parents=True)
    for name in ("keep.log", "gone/keep.log", "gone/deep/a", "b"):
        (destination / name).write_bytes(b"x")
    rules = (Rule(include=False, pattern=b"*.log"),)
    one = sync([f"{source}/"], destination, with_options(delete=True, rules=rules))
    assert one.at_receiver.failures == []
    assert sorted(path.name for path in destination.rglob("*")) == [
        "gone",
        "keep.log",
        "keep.log",
    ]


def test_no_more_than_max_delete_are_removed(trees: Trees) -> None:
    source, destination = trees
    for number in range(10):
        (destination / f"{number}").touch()
    one = sync([f"{source}/"], destination, with_options(delete=True, max_delete=3))
    assert (one.totals.deleted, one.totals.undeleted) == (3, 7)
    assert len(os.listdir(destination)) == 7


def test_nothing_is_deleted_when_the_source_had_errors(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = trees
    (source / "dir").mkdir()
    (source / "dir/a").write_bytes(b"x")
    (source / "b").write_bytes(b"y")
    (destination / "extra").write_bytes(b"z")
    stat_ = os.stat

    def fails(path: object, *args: object, **kwargs: object) -> object:
        if path == b"b" and kwargs.get("dir_fd") is not None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat_(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", fails)
    one = sync([f"{source}/"], destination, with_options(delete=True))
    assert [path for path, _ in one.at_receiver.failures] == [(b"b",)]
    assert [note for _, note in one.at_receiver.warnings] == [
        "something of the source could not be read, so nothing is deleted"
    ]
    monkeypatch.undo()
    assert (destination / "extra").exists()
    assert (destination / "dir/a").exists()


# Syncing to the disk.


class Syncs:
    """Counts what is synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = 0
        self.file_systems = 0

        def fsync(fd: int) -> None:
            self.files += 1

        def sync_file_system(fd: int) -> bool:
            self.file_systems += 1
            return True

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(storing, "sync_file_system", sync_file_system)
        monkeypatch.setattr(durable, "sync_file_system", sync_file_system)


@pytest.mark.parametrize(
    ("count", "fsync", "files", "file_systems"),
    # The directory is synced for its names, and in the end for its time.
    [(3, True, 5, 0), (3, False, 0, 0), (50, True, 2, 1), (50, False, 0, 0)],
)
def test_files_are_synced_together(
    trees: Trees,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    fsync: bool,
    files: int,
    file_systems: int,
) -> None:
    for number in range(count):
        (trees[0] / f"{number}").write_bytes(b"x")
    syncs = Syncs(monkeypatch)
    sync([f"{trees[0]}/"], trees[1], with_options(fsync=fsync))
    assert (syncs.files, syncs.file_systems) == (files, file_systems)


@needs_root
def test_syncs_by_somebody_who_is_not_root() -> None:
    from . import as_user

    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        as_user.prepare(Path(folder))
        done = subprocess.run(
            [sys.executable, "-m", "tests.sync.as_user", folder],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@needs_root
def test_sender_without_privilege_sets_no_owners_and_makes_no_devices(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = trees
    (source / "a").write_bytes(b"x")
    os.chown(source / "a", 40_000, 50_000)
    (source / "a").chmod(0o6755)
    (source / "dir").mkdir()
    os.chown(source / "dir", 40_000, 50_000)
    (source / "dir").chmod(0o2755)

    def unprivileged(*args: Any, **kwargs: Any) -> Receiver:
        return Receiver(*args, **kwargs | {"privileged": False})

    monkeypatch.setattr(local, "Receiver", unprivileged)
    assert sync([f"{source}/"], destination, ALL).at_receiver.failures == []
    assert sync([f"{source}/"], destination, ALL).at_receiver.lines == []
    status = (destination / "a").stat()
    assert stat.S_IMODE(status.st_mode) == 0o755
    assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
    assert (destination / "dir").stat().st_uid == os.getuid()
    assert attributes.allowed_mode(0o106755, privileged=False) == 0o100755
    assert attributes.allowed_mode(0o106755, privileged=True) == 0o106755


def test_special_file_that_is_named_as_the_destination_is_not_replaced(
    tmp_path: Path,
) -> None:
    """Who writes to /dev/null as root wants to keep it."""
    (tmp_path / "file").write_bytes(b"contents")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(LocalFileError, match="it is a FIFO"):
        sync([tmp_path / "file"], tmp_path / "fifo", ALL)
    with pytest.raises(LocalFileError, match="it is a device"):
        sync([tmp_path / "file"], "/dev/null", structs.replace(ALL, dry_run=True))
    assert stat.S_ISFIFO((tmp_path / "fifo").lstat().st_mode)
    assert stat.S_ISCHR(os.lstat("/dev/null").st_mode)
    gc.collect()  # the errors hold what was open
