"""cli -push and -pull: what goes where, what is taken over, what is printed."""

import json
import os
import re
import stat
from pathlib import Path

import pexpect
import pytest
from rpc25519_tools.commands._output import Talk
from rpc25519_tools.commands._synclines import SyncLines

from rpc25519_tools.sync.itemize import Change
from rpc25519_tools.sync.observer import Subject
from rpc25519_tools.sync.records import Verdict
from tests.commands.syncing import (
    OLD_S,
    Desk,
    age,
    breaking_line,
    content_of,
    make_tree,
)
from tests.helpers import SrvProcess, program_path

TREE = {"one": "1", "sub/two": "22", "sub/deep/three": "333", "empty/": ""}
LINES = [
    "cd+++++++++ tree/",
    "cd+++++++++ tree/empty/",
    "cL+++++++++ tree/link -> sub/two",
    "<f+++++++++ tree/one",
    "cd+++++++++ tree/sub/",
    "cd+++++++++ tree/sub/deep/",
    "<f+++++++++ tree/sub/two",
    "<f+++++++++ tree/sub/deep/three",
]
MEBIBYTE = bytes(range(256)) * 4096
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def test_a_directory_goes_into_the_destination_and_comes_back(desk: Desk) -> None:
    tree = make_tree(desk.here / "tree", TREE)
    (tree / "link").symlink_to("sub/two")
    age(tree)
    pushed = desk.push("tree", quick=False).succeed()
    assert pushed.lines == LINES
    assert pushed.stderr.startswith("pushed tree: 3 of 3 files (6 B of 6 B), in ")
    assert content_of(desk.there / "tree") == content_of(tree)
    assert (desk.there / "tree" / "link").lstat().st_mtime == OLD_S
    assert (desk.there / "tree" / "sub").stat().st_mtime == OLD_S

    again = desk.push("tree", quick=False).succeed()
    assert again.lines == []
    assert again.stderr.startswith("pushed tree: 0 of 3 files (0 B of 6 B), in ")

    pulled = desk.pull(f"{desk.name}/tree", "-o", "back", quick=False).succeed()
    assert pulled.lines == [line.replace("<", ">") for line in LINES]
    assert content_of(desk.here / "back" / "tree") == content_of(tree)


def test_a_slash_means_what_is_in_a_directory(desk: Desk) -> None:
    make_tree(desk.here / "tree", TREE)
    desk.cli("-a", "-push", "tree/", "--to", f"{desk.name}/new").succeed()
    assert content_of(desk.there / "new") == content_of(desk.here / "tree")
    done = desk.pull(f"{desk.name}/new/", "-o", "back").succeed()
    assert done.lines[0] == "cd+++++++++ ./"
    assert content_of(desk.here / "back") == content_of(desk.here / "tree")


def test_a_slash_alone_is_the_top_of_what_is_served(
    certs: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    make_tree(here / "tree", TREE)
    with SrvProcess("-serve", there, "-readfile", there, certs=certs) as srv:
        desk = Desk(here, there, "", srv.address, certs)
        desk.cli("-push", "tree/", "--to", "/").succeed()
        assert content_of(there) == content_of(here / "tree")
        desk.pull("/", "-o", "back").succeed()
    assert content_of(here / "back") == content_of(here / "tree")


@pytest.mark.parametrize(
    "words",
    [
        ("-push", "a", "b"),
        ("-push=a", "b"),
        ("a", "b", "--push"),
        ("-push", "-quiet", "a", "--push", "b"),
        ("-push", "-quiet=true", "--", "a", "b"),
        ("-ai", "-push", "a", "b"),
    ],
    ids=" ".join,
)
def test_spellings(desk: Desk, words: tuple[str, ...]) -> None:
    make_tree(desk.here, {"a": "1", "b/c": "2"})
    desk.cli("--to", desk.name, *words).succeed()
    assert content_of(desk.there) == {"a": b"1", "b": None, "b/c": b"2"}


def test_defaults_of_both_destinations(desk: Desk) -> None:
    make_tree(desk.here, {f"{desk.name}/a": "1", "elsewhere/": ""})
    desk.cli("-push", desk.name).succeed()
    assert content_of(desk.there) == {"a": b"1"}
    os.unlink(desk.here / desk.name / "a")
    desk.cli("-pull", desk.name).succeed()
    assert content_of(desk.here / desk.name) == {"a": b"1"}


def test_one_file_gets_a_new_name_or_goes_into_a_directory(desk: Desk) -> None:
    make_tree(desk.here, {"f": "1", "dir/": ""})
    desk.cli("-push", "f", "--to", f"{desk.name}/new").succeed()
    desk.cli("-push", "f", "--to", desk.name).succeed()
    assert content_of(desk.there) == {"f": b"1", "new": b"1"}
    pulled = desk.pull(f"{desk.name}/new", "-o", "zz", "--json").succeed()
    assert pulled.summary["transferred"] == 1
    desk.pull(f"{desk.name}/new", "-o", "dir").succeed()
    assert (desk.here / "zz").read_text() == "1"
    assert (desk.here / "dir" / "new").read_text() == "1"


def test_what_is_taken_over_unless_told_otherwise(desk: Desk) -> None:
    tree = make_tree(desk.here / "tree", {"f": "1", "g": "1"})
    (tree / "f").chmod(0o640)
    (tree / "g").chmod(0o4755)
    (tree / "link").symlink_to("f")
    os.mkfifo(tree / "fifo")
    age(tree)
    done = desk.push("tree").succeed()
    there = desk.there / "tree"
    assert stat.S_IMODE((there / "f").stat().st_mode) == 0o640
    assert stat.S_IMODE((there / "g").stat().st_mode) == 0o755  # no set-uid bit
    assert (there / "f").stat().st_mtime == OLD_S
    assert (there / "link").is_symlink()
    assert not os.path.lexists(there / "fifo")
    assert "1 thing was left out" in done.stderr

    words = ("--no-perms", "--no-times", "--no-links", "--specials")
    done = desk.cli("-push", "tree/", "--to", f"{desk.name}/other", *words).succeed()
    other = desk.there / "other"
    assert stat.S_IMODE((other / "g").stat().st_mode) == 0o755 & ~_umask()
    assert (other / "f").stat().st_mtime > OLD_S
    assert not os.path.lexists(other / "link")
    assert stat.S_ISFIFO((other / "fifo").stat().st_mode)

    done = desk.push("tree/f", "tree/link", "tree", "--no-recursive")
    assert "1 thing was left out" in done.stderr
    assert set(content_of(desk.there)) - {"f", "link"} == {
        *("tree", "tree/f", "tree/g", "tree/link"),
        *("other", "other/f", "other/g"),
    }


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_hard_links_and_holes(desk: Desk) -> None:
    tree = make_tree(desk.here / "tree", {"a": "1", "zeros": bytes(1 << 20)})
    os.link(tree / "a", tree / "b")
    age(tree)
    done = desk.push("tree", "-H", "-S").succeed()
    assert "hf+++++++++ tree/b => tree/a" in done.lines
    there = desk.there / "tree"
    assert os.path.samefile(there / "a", there / "b")
    assert (there / "zeros").stat().st_blocks * 512 < 1 << 20
    desk.push("tree", "--no-times").succeed()
    desk.cli("-push", "tree/", "--to", f"{desk.name}/apart").succeed()
    apart = desk.there / "apart"
    assert not os.path.samefile(apart / "a", apart / "b")
    assert (apart / "zeros").stat().st_blocks * 512 >= 1 << 20


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can set owners")
def test_owners_and_devices_need_leave(desk: Desk) -> None:
    tree = make_tree(desk.here / "tree", {"f": "1"})
    os.mknod(tree / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.chown(tree / "f", 1234, 1234)
    (tree / "f").chmod(0o4755)
    desk.push("tree", "-a", "--numeric-ids")
    assert (desk.there / "tree" / "f").stat().st_uid == os.geteuid()
    assert not os.path.lexists(desk.there / "tree" / "null")
    words = ("-serve", desk.there, "-readfile", desk.there, "--allow-owners")
    with SrvProcess(*words, certs=desk.certs) as srv:
        send = ("-push", "tree", "--numeric-ids", "--to", "x")
        desk.cli(*send, "--owner", "--group", address=srv.address).succeed()
        status = (desk.there / "x" / "tree" / "f").stat()
        assert (status.st_uid, status.st_gid) == (1234, 1234)
        assert stat.S_IMODE(status.st_mode) == 0o4755
        assert not os.path.lexists(desk.there / "x" / "tree" / "null")
        desk.cli(*send, "-a", address=srv.address).succeed()
        device = (desk.there / "x" / "tree" / "null").stat()
        assert device.st_rdev == os.makedev(1, 3)


def test_only_what_has_changed_is_sent(desk: Desk) -> None:
    path = desk.here / "big"
    path.write_bytes(MEBIBYTE)
    desk.cli("-push", "big", "--to", desk.name).succeed()
    changed = bytearray(MEBIBYTE + b"more")
    changed[500_000] ^= 1
    path.write_bytes(changed)
    done = desk.cli("-push", "big", "--to", desk.name, "-json").succeed()
    figures = done.summary
    assert figures["literal_bytes"] < 200_000
    assert figures["matched_bytes"] + figures["literal_bytes"] == len(changed)
    assert 0 < figures["sent_bytes"] < 200_000
    assert 0 < figures["received_bytes"] < 200_000
    assert (desk.there / "big").read_bytes() == changed

    changed[0] ^= 1
    path.write_bytes(changed)
    done = desk.cli("-push", "big", "--to", desk.name, "-W", "--json").succeed()
    assert done.summary["literal_bytes"] == len(changed)
    assert (desk.there / "big").read_bytes() == changed


def test_json_of_changes_and_of_the_whole(desk: Desk) -> None:
    tree = make_tree(desk.here / "tree", {"a": "123", "b": "1"})
    (tree / "link").symlink_to("a")
    os.link(tree / "b", tree / "c")
    (tree / os.fsdecode(b"\x1b\xff")).touch()
    (desk.there / "old").touch()
    done = desk.push("tree/", "-H", "--delete", "--json").succeed()
    objects = [json.loads(line) for line in done.lines]
    by_path = {one["path"]: one for one in objects[:-1]}
    assert by_path["a"] == {"change": "<f+++++++++", "path": "a", "size_bytes": 3}
    assert by_path["link"]["target"] == "a"
    assert by_path["c"]["change"] == "hf+++++++++"
    assert by_path["c"]["link_of"] == "b"
    assert by_path["old"] == {"change": "*deleting", "path": "old"}
    assert by_path["\\x1b\\udcff"]["path_base64"] == "G/8="
    figures = objects[-1]
    for name, value in {
        "operation": "push",
        "dry_run": False,
        "files": 4,
        "created": 5,
        "created_files": 4,
        "created_links": 1,
        "created_directories": 0,
        "transferred": 3,
        "transferred_bytes": 4,
        "deleted": 1,
        "undeleted": 0,
        "attempts": 1,
        "failed": 0,
        "failures": [],
    }.items():
        assert figures[name] == value, name
    assert done.stderr == ""


def test_names_are_escaped(desk: Desk) -> None:
    (desk.here / os.fsdecode(b"a\n\x1b[31m\xff")).touch()
    done = desk.cli("-push", ".", "--to", desk.name, "-i").succeed()
    assert done.lines[-1] == "<f+++++++++ a\\n\\x1b[31m\\udcff"


def test_stats(desk: Desk) -> None:
    make_tree(desk.here / "tree", TREE)
    (desk.there / "old").touch()
    done = desk.cli(
        *("-push", "tree/", "--to", desk.name, "--stats", "--delete", "-quiet")
    ).succeed()
    assert done.stderr == ""
    figures = dict(line.split(": ") for line in done.lines)
    assert figures.pop("Sent").endswith(" bytes")
    assert figures.pop("Received").endswith(" bytes")
    assert float(figures.pop("Speedup")) >= 0
    assert figures == {
        "Files": "3",
        "Created": "6 (3 files, 3 directories)",
        "Deleted": "1",
        "Transferred": "3",
        "Changed in attributes alone": "1",
        "Total size": "6 bytes",
        "Transferred size": "6 bytes",
        "Literal data": "6 bytes",
        "Matched data": "0 bytes",
    }


def test_the_server_counts_files(desk: Desk, sync_srv: SrvProcess) -> None:
    make_tree(desk.here / "tree", TREE)
    (desk.there / "old").touch()
    desk.push("tree/", "--delete").succeed()
    desk.pull(desk.name, "-o", "back").succeed()
    sync_srv.wait_for(f"pull '{desk.name}' 3 files 6 bytes ")
    assert f"push '{desk.name}' 3 files 1 deleted 6 bytes " in sync_srv.stderr()


def test_a_cut_is_carried_on_after(desk: Desk) -> None:
    (desk.here / "big").write_bytes(os.urandom(4 << 20))
    with breaking_line(desk.address, after=2 << 20) as address:
        done = desk.push("big", "--json", address=address, quick=False).succeed()
    assert (desk.there / "big").read_bytes() == (desk.here / "big").read_bytes()
    assert re.fullmatch(r"cli: .*; trying again in 0\.\d s\n", done.stderr)
    assert done.summary["attempts"] == 2
    assert (done.summary["wanted"], done.summary["transferred"]) == (1, 1)
    assert 4 << 20 <= done.summary["sent_bytes"] < 8 << 20

    with breaking_line(desk.address, after=2 << 20) as address:
        done = desk.pull(
            f"{desk.name}/big", "-o", "renamed", address=address, quick=False
        ).succeed()
    assert done.lines == [">f+++++++++ big"]
    assert (desk.here / "renamed").read_bytes() == (desk.here / "big").read_bytes()

    with breaking_line(desk.address, after=2 << 20) as address:
        words = ("-W", "-I", "--retry-for", "0")
        done = desk.push("big", *words, address=address, quick=False)
    assert done.code == 3
    assert "trying" not in done.stderr


def test_a_terminal_sees_how_far_it_is(desk: Desk) -> None:
    make_tree(desk.here / "tree", {"a": os.urandom(9 << 20), "b": "1"})
    words = ["-s", desk.address, "-certs", str(desk.certs), "-i"]
    words += ["-push", "tree", "--to", desk.name, "--bwlimit", "9m"]
    child = pexpect.spawn(
        program_path("cli"),
        words,
        cwd=str(desk.here),
        timeout=30,
        encoding="utf-8",
        dimensions=(24, 160),
        env={"TERM": "xterm", "PATH": "/usr/bin:/bin"},
    )
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    seen = _ESCAPES.sub("", child.before or "")
    assert re.search(r"push [01]/2 of 2 files .*\d/9\.\d MiB", seen)
    assert re.search(r"[\d.]+ ?MB/s", seen)
    assert re.search(r"\d:\d\d:\d\d", seen)
    assert "<f+++++++++ tree/a" in seen
    assert "pushed tree: 2 of 2 files" in seen


def test_a_file_counts_once_however_often_it_is_told_of() -> None:
    lines = SyncLines(
        sending=True, itemize=False, as_json=False, bar=None, talk=Talk(prog="cli")
    )
    change = Change.CONTENT | Change.NEW
    for name in (b"a", b"b", b"c"):
        subject = Subject((name,), stat.S_IFREG, 10)
        lines.judged(subject, Verdict.WANT, change, "")
        lines.judged(subject, Verdict.WANT_DELTA, change, "")
    lines.placed((b"a",))
    lines.placed((b"a",))
    lines.failed((b"b",), "gone")
    lines.failed((b"b",), "gone")
    assert (lines.wanted, lines.transferred, lines.transferred_bytes) == (3, 1, 10)
    lines.all_done()
    lines.all_done()
    assert (lines.wanted, lines.transferred, lines.transferred_bytes) == (3, 2, 20)
    assert (lines.created["f"], lines.failures.count) == (3, 1)
