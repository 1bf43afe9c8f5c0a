"""What stays, is set aside or is removed, as the options say."""

import gc
import os
import shutil
import stat
from pathlib import Path

import pytest
from msgspec import structs

from rpc25519_tools.errors import LocalFileError
from rpc25519_tools.sync.deleting import Deleting
from rpc25519_tools.sync.filters import Rule
from rpc25519_tools.sync.tree import Parts
from tests.helpers import NOBODY, as_nobody
from tests.sync.attackers import Served
from tests.sync.local import sync
from tests.sync.trees import ALL, Trees, push, snapshot, with_options

pytestmark = pytest.mark.usefixtures("no_leaked_fds")


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


def test_what_others_have_removed_meanwhile_is_no_failure(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = trees
    for name in ("a/b/c", "d", "e"):
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        (destination / name).touch()
    step = Deleting.step

    def race(self: Deleting) -> bool:
        remove = self._destination.remove

        def remove_late(parent: Parts, name: bytes, *, is_dir: bool) -> None:
            if name == b"c":
                shutil.rmtree(destination / "a")
            if name == b"d":
                (destination / "d").unlink()
            remove(parent, name, is_dir=is_dir)

        monkeypatch.setattr(self._destination, "remove", remove_late)
        return step(self)

    monkeypatch.setattr(Deleting, "step", race)
    one = sync([f"{source}/"], destination, with_options(delete=True))
    monkeypatch.undo()
    assert one.at_receiver.failures == []
    assert one.totals.deleted == 1
    assert os.listdir(destination) == []


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
    (tmp_path / "link").symlink_to("/dev/null")
    with pytest.raises(LocalFileError, match="it is a device"):
        sync([tmp_path / "file"], tmp_path / "link", ALL)
    assert (tmp_path / "link").is_symlink()
    assert stat.S_ISFIFO((tmp_path / "fifo").lstat().st_mode)
    assert stat.S_ISCHR(os.lstat("/dev/null").st_mode)
    gc.collect()  # the errors hold what was open


@pytest.mark.parametrize("is_there", [True, False])
def test_link_that_is_named_as_the_destination_leads_to_it(
    tmp_path: Path, is_there: bool
) -> None:
    """As with cp: only links in the tree are things of their own."""
    (tmp_path / "file").write_bytes(b"contents")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/new")
    if is_there:
        (tmp_path / "elsewhere/new").write_bytes(b"old")
    sync([tmp_path / "file"], tmp_path / "link", ALL)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere/new").read_bytes() == b"contents"


async def test_who_may_write_to_a_directory_alone_needs_no_more(
    tmp_path: Path,
) -> None:
    """What is unfinished then lies there, and not at the top of what is served."""
    source, top = tmp_path / "source", tmp_path / "top"
    for path in (source, top, top / "incoming"):
        path.mkdir()
    (source / "small").write_bytes(b"contents")
    (source / "large").write_bytes(bytes(2_000_000))
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(path.stat().st_mode | 0o555)
    top.chmod(0o555)
    if os.geteuid() == 0:
        os.chown(top / "incoming", NOBODY, -1)
    with as_nobody():
        seen = await Served(top).push(source, dest=b"incoming")
    assert seen.failures == []
    assert (top / "incoming/small").read_bytes() == b"contents"
    assert (top / "incoming/large").stat().st_size == 2_000_000
    assert os.listdir(top) == ["incoming"]
    assert sorted(os.listdir(top / "incoming")) == ["large", "small"]
