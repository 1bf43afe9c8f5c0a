"""Syncs to a destination in which another file system begins.

In each case it is ``mnt`` in the destination. ``python -m tests.sync.mounts FOLDER``
puts real ones there, so it needs mounts of its own: run it by ``unshare``.
"""

import os
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from rpc25519_tools.sync import copying, durable
from rpc25519_tools.sync.options import SyncOptions
from tests.sync.local import LocalSync, sync
from tests.sync.trees import ALL, snapshot, with_options

Case = Callable[[Path, Path], None]
#: Those that can do without a real mount, and those that cannot.
CASES: list[Case] = []
REAL_CASES: list[Case] = []
#: Nobody has this number.
USER = 54_321
#: How many bytes of a file are a hole, of three times as many.
HOLE_LEN = 1 << 20


def case(function: Case) -> Case:
    CASES.append(function)
    return function


def real_case(function: Case) -> Case:
    REAL_CASES.append(function)
    return function


def run(source: Path, destination: Path, options: SyncOptions = ALL) -> LocalSync:
    one = sync([f"{source}/"], destination, options)
    assert one.at_receiver.failures == [], one.at_receiver.failures
    return one


def assert_same(source: Path, destination: Path) -> None:
    """See that all is there, and that another sync does nothing."""
    assert snapshot(source / "mnt") == snapshot(destination / "mnt")
    again = run(source, destination)
    lines = [line for line in again.at_receiver.lines if line[1] != b"./"]
    assert lines == [], lines


def fill(source: Path) -> None:
    """Make one thing of each kind in the source's ``mnt``."""
    top = source / "mnt"
    (top / "file").write_bytes(b"x" * 5000)
    (top / "large").write_bytes(os.urandom(2_000_000))
    (top / "link").symlink_to("nowhere")
    os.mkfifo(top / "fifo")
    (top / "set").write_bytes(b"y")
    with (top / "holes").open("wb") as file:
        file.write(os.urandom(HOLE_LEN))
        file.seek(HOLE_LEN, os.SEEK_CUR)
        file.write(os.urandom(HOLE_LEN))
    (top / "hole").touch()
    os.truncate(top / "hole", HOLE_LEN)
    try:
        for name in ("link", "fifo", "set"):
            os.chown(top / name, USER, USER, follow_symlinks=False)
    except OSError:
        pass  # only root may do this, and not in every namespace
    (top / "fifo").chmod(0o622)
    (top / "set").chmod(0o6755)
    for name in os.listdir(top):
        os.utime(top / name, ns=(1, 10**18 + 7), follow_symlinks=False)


@case
def all_kinds_are_as_they_were(source: Path, destination: Path) -> None:
    fill(source)
    run(source, destination)
    assert_same(source, destination)
    for name in ("hole", "holes"):
        found = (destination / "mnt" / name).stat()
        assert found.st_blocks * 512 <= found.st_size - HOLE_LEN // 2, name
    run(source, destination, with_options(fsync=True, ignore_times=True))
    assert_same(source, destination)
    assert not [name for name in os.listdir(destination / "mnt") if name[0] == "."]


@case
def links_are_made(source: Path, destination: Path) -> None:
    top = source / "mnt"
    (top / "sub").mkdir()
    for size in (10, 2_000_000):
        (top / f"a{size}").write_bytes(b"x" * size)
        os.link(top / f"a{size}", top / f"b{size}")
        os.link(top / f"a{size}", top / f"sub/c{size}")
    (destination / "mnt/b10").write_bytes(b"old")
    run(source, destination)
    assert_same(source, destination)
    (top / "b10").unlink()
    (top / "b10").write_bytes(b"other")
    os.link(top / "a10", top / "d10")
    run(source, destination)
    assert_same(source, destination)


def change_all(source: Path, destination: Path) -> dict[bytes, tuple[object, ...]]:
    """Replace and remove one thing of each kind; return what there was."""
    top = source / "mnt"
    run(source, destination)
    before = snapshot(destination / "mnt")
    for name in ("file", "large", "set"):
        (top / name).write_bytes(os.urandom(100))
    (top / "link").unlink()
    (top / "link").symlink_to("elsewhere")
    (top / "fifo").unlink()
    (top / "hole").unlink()
    return before


@case
def backups_leave_it(source: Path, destination: Path) -> None:
    fill(source)
    before = change_all(source, destination)
    run(source, destination, with_options(delete=True, backup_dir=b"old"))
    kept = snapshot(destination / "old/mnt")
    names = {b"file", b"large", b"set", b"link", b"fifo", b"hole"}
    assert kept.keys() - {b""} == names
    assert all(kept[name] == before[name] for name in names)
    assert_same(source, destination)


@case
def backups_go_there(source: Path, destination: Path) -> None:
    (source / "a").write_bytes(b"old a")
    (source / "b").write_bytes(b"old b")
    (source / "c").symlink_to("old c")
    (source / "mnt").rmdir()
    run(source, destination)
    before = snapshot(destination)
    (source / "a").write_bytes(b"new a")
    (source / "b").unlink()
    (source / "c").unlink()
    (source / "c").symlink_to("new c")
    options = with_options(delete=True, backup_dir=b"mnt", fsync=True)
    run(source, destination, options)
    kept = snapshot(destination / "mnt")
    assert {name: kept[name] for name in kept if name} == {
        name: before[name] for name in (b"a", b"b", b"c")
    }
    assert (destination / "a").read_bytes() == b"new a"
    assert not (destination / "b").exists()


@real_case
def names_on_both_sides_are_files_of_their_own(source: Path, destination: Path) -> None:
    (source / "mnt/sub").mkdir()
    (source / "other").mkdir()
    pairs = (("a", "mnt/a"), ("mnt/b", "other/b"), ("mnt/sub/c", "mnt/c"))
    for first, second in pairs:
        (source / first).write_bytes(first.encode() * 100_000)
        os.link(source / first, source / second)
    one = run(source, destination)
    made = {path: code for code, path, _ in one.at_receiver.lines}
    assert made[b"mnt/a"] == made[b"other/b"] == ">f+++++++++", made
    assert made[b"mnt/sub/c"] == "hf+++++++++", made
    for pair in pairs:
        for name in pair:
            found, wanted = (destination / name).stat(), (source / name).stat()
            assert found.st_mtime_ns == wanted.st_mtime_ns
            assert (destination / name).read_bytes() == (source / name).read_bytes()
    assert (destination / "mnt/c").stat().st_nlink == 2
    assert run(source, destination).at_receiver.lines == []


@real_case
def both_are_synced(source: Path, destination: Path) -> None:
    for top in (source, source / "mnt"):
        for number in range(2 * durable.FEW):
            (top / f"{number}").mkdir()
            (top / f"{number}/a").write_bytes(b"x")
    synced = set()

    def noted(fd: int) -> bool:
        synced.add(os.fstat(fd).st_dev)
        return copying.sync_file_system(fd)

    tops = {destination.stat().st_dev, (destination / "mnt").stat().st_dev}
    assert len(tops) == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "sync_file_system", noted)
        run(source, destination, with_options(fsync=True))
        assert synced == tops, (synced, tops)
        synced.clear()
        for path in (source / "mnt").glob("*/a"):
            path.chmod(0o604)  # only attributes of files
        run(source, destination, with_options(fsync=True))
        assert synced == tops, (synced, tops)


def main(folder: Path) -> int:
    wrong = 0
    for one in CASES + REAL_CASES:
        source, destination = prepare(folder, one)
        mount = ["mount", "-t", "tmpfs", "none", str(destination / "mnt")]
        if subprocess.run(mount, check=False).returncode:
            sys.stdout.write("no mounts here\n")
            return 0
        (destination / "mnt").chmod(stat.S_IMODE((source / "mnt").stat().st_mode))
        try:
            one(source, destination)
        except Exception:  # noqa: BLE001  # whatever it is, it is told of
            wrong += 1
            sys.stdout.write(f"{one.__name__}:\n{traceback.format_exc()}\n")
    sys.stdout.write(f"{len(CASES + REAL_CASES)} cases\n")
    return 1 if wrong else 0


def prepare(folder: Path, one: Case) -> tuple[Path, Path]:
    """Make a source and a destination, each with a directory ``mnt``."""
    source, destination = folder / one.__name__ / "src", folder / one.__name__ / "dst"
    for top in (source, destination):
        (top / "mnt").mkdir(parents=True)
    return source, destination


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
