"""What a sync makes is what there was: kinds, modes, times, names, hard links."""

import os
import random
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from rpc25519_tools.sync import attributes
from tests.sync.local import sync
from tests.sync.trees import ALL, Trees, needs_root, push, with_options

pytestmark = pytest.mark.usefixtures("no_leaked_fds")
#: Times of change, in nanoseconds, that are kept as they are.
TIMES = (0, -1, -1_500_000_000_123_456_789, 999_999_999, 1_700_000_000_123_456_789)


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
