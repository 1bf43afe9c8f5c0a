"""Options of cli -push and -pull: what each one makes of the same two trees."""

import os
import time
from pathlib import Path

import pytest
from rpc25519_tools.commands._synctable import parse_rate

from tests.commands.syncing import OLD_S, Desk, content_of, desk_for, make_tree
from tests.helpers import SrvProcess

#: What is there, and what is at the destination: of "same" nothing differs, of "size"
#: the size, of "time" the time, of "newer" the destination's time is later, and of
#: "hidden" the contents alone.
SOURCE = {
    **dict.fromkeys(("same", "size", "time", "newer", "hidden", "new.c"), "12"),
    "sub/new.c": "12",
    "sub/new.o": "12",
}
DESTINATION = {
    "same": "12",
    "size": "1",
    "time": "12",
    "newer": "34",
    "hidden": "34",
    "extra.c": "1",
    "sub/extra.o": "1",
}

NEW = {"<f+++++++++ new.c", "<f+++++++++ sub/new.c", "<f+++++++++ sub/new.o"}
SIZE = "<f.s....... size"
TIME = "<f..t...... time"
NEWER = "<f..t...... newer"
USUAL = {*NEW, SIZE, TIME, NEWER}
DELETED = {"*deleting   extra.c", "*deleting   sub/extra.o"}


@pytest.fixture(scope="module")
def pair(
    sync_srv: SrvProcess,
    sync_served: Path,
    certs: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Desk:
    """Two trees that only dry runs may touch."""
    here = tmp_path_factory.mktemp("pair")
    desk = desk_for(sync_srv, sync_served, certs, here)
    make_tree(here / "tree", SOURCE)
    make_tree(desk.there, DESTINATION)
    os.utime(desk.there / "time", (OLD_S - 9, OLD_S - 9))
    os.utime(desk.there / "newer", (OLD_S + 9, OLD_S + 9))
    (here / "rules").write_text("# objects\n\n*.o\n")
    (here / "sources").write_text("*.c\n*/\n")
    (here / "list").write_text("sub\nsame\r\n# no\n\nsize\n")
    (here / "list0").write_text("new.c\0# no\0")
    (here / "# no").touch()
    return desk


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("", USUAL),
        ("--existing", {SIZE, TIME, NEWER}),
        ("--ignore-existing", NEW),
        ("-u", USUAL - {NEWER}),
        ("--size-only", {*NEW, SIZE, ".f..t...... time", ".f..t...... newer"}),
        (
            "-c",
            {
                *NEW,
                "<fcs....... size",
                ".f..t...... time",
                "<fc.t...... newer",
                "<fc........ hidden",
            },
        ),
        ("-I", {*USUAL, "<f......... same", "<f......... hidden"}),
        (
            "--no-times -W",
            {*NEW, "<f.sT...... size", "<f..T...... time", "<f..T...... newer"},
        ),
        ("--no-recursive", set()),
        ("--delete", USUAL | DELETED),
        (
            "--delete --exclude=*.o",
            USUAL - {"<f+++++++++ sub/new.o"} | {"*deleting   extra.c"},
        ),
        (
            "--delete-excluded --exclude *.o",
            USUAL - {"<f+++++++++ sub/new.o"} | DELETED,
        ),
        ("--delete --max-delete 1", None),
        (
            "--exclude=*.c --include=new.c",
            USUAL - {"<f+++++++++ new.c", "<f+++++++++ sub/new.c"},
        ),
        ("--include=sub/new.c --exclude=*.c", USUAL - {"<f+++++++++ new.c"}),
        (
            "--exclude sub --include=*.c",
            USUAL - {"<f+++++++++ sub/new.c", "<f+++++++++ sub/new.o"},
        ),
        (
            "--include sub/ --include=new.c --exclude *",
            {"<f+++++++++ new.c", "<f+++++++++ sub/new.c"},
        ),
        ("--exclude-from rules", USUAL - {"<f+++++++++ sub/new.o"}),
        (
            "--include-from sources --exclude *",
            {"<f+++++++++ new.c", "<f+++++++++ sub/new.c"},
        ),
        ("--exclude * --include-from sources", set()),
        ("--exclude new.c --exclude ! --exclude size", USUAL - {SIZE}),
        ("--files-from list", {SIZE}),
        (
            "--files-from list -r",
            {SIZE, "<f+++++++++ sub/new.c", "<f+++++++++ sub/new.o"},
        ),
        ("--files-from list -a", {SIZE}),
        ("--bwlimit 1m --no-fsync -H -S --numeric-ids", USUAL),
    ],
)
def test_dry_run(pair: Desk, words: str, lines: set[str] | None) -> None:
    before = content_of(pair.there)
    done = pair.cli(*("-push", "tree/", "--to", pair.name, "--dry-run"), *words.split())
    found = {line for line in done.lines if line[0] == "*" or line[1] != "d"}
    if lines is not None:
        assert found == lines
        assert done.code == 0
        assert "nothing is changed: would have pushed tree/: " in done.stderr
    else:
        assert len(found & DELETED) == 1
        assert done.code == 8
    assert content_of(pair.there) == before


def test_lists_on_standard_input(pair: Desk) -> None:
    words = ("-push", "tree", "--to", pair.name, "--dry-run", "-quiet")
    done = pair.cli(*words, "--files-from=-", "--from0", input="same\0size\0")
    assert done.lines == [SIZE]
    done = pair.cli(*words, "--exclude-from", "-", "--delete", input="*\n")
    assert done.lines == []
    done = pair.cli(*words, "--files-from", "list0", "--from0", "--json")
    assert done.code == 7
    assert done.summary["failures"][0]["path"] == "# no"


def test_a_pull_has_the_same_options(pair: Desk) -> None:
    done = pair.pull(
        *(f"{pair.name}/", "-o", "tree", "--dry-run", "--delete", "--exclude=*.o"),
        *("--existing", "--backup-dir", "kept"),
    ).succeed()
    lines = {line for line in done.lines if line[1:2] != "d" or line[0] == "*"}
    assert lines == {
        *("*deleting   new.c", "*deleting   sub/new.c"),
        *(line.replace("<", ">") for line in (SIZE, TIME, NEWER)),
    }


def test_what_is_deleted_and_replaced_is_kept(desk: Desk) -> None:
    make_tree(desk.here / "tree", {"a": "new", "sub/b": "new"})
    make_tree(desk.there, {"a": "older", "sub/b": "older", "sub/c": "gone"})
    words = ("tree/", "--delete", "--backup-dir", "kept/here")
    done = desk.push(*words).succeed()
    assert "*deleting   sub/c" in done.lines
    assert "3 deleted" not in done.stderr
    assert ", 1 deleted, " in done.stderr
    assert content_of(desk.there) == {
        "a": b"new",
        "sub": None,
        "sub/b": b"new",
        "kept": None,
        "kept/here": None,
        "kept/here/sub": None,
        "kept/here/a": b"older",
        "kept/here/sub/b": b"older",
        "kept/here/sub/c": b"gone",
    }
    assert desk.push(*words).succeed().lines == []


def test_as_many_as_that_are_deleted(desk: Desk) -> None:
    make_tree(desk.here / "tree", {"a": "1"})
    make_tree(desk.there, {"b": "1", "c": "1", "d": "1"})
    done = desk.push("tree/", "--delete", "--max-delete", "2")
    assert done.code == 8
    assert done.stderr.splitlines()[-1] == (
        "cli: --max-delete 2: 1 more were to be deleted"
    )
    assert len(content_of(desk.there)) == 2
    assert desk.push("tree/", "--max-delete=0", "--delete").code == 8
    done = desk.push("tree/", "--max-delete", str(1 << 70), "--delete").succeed()
    assert content_of(desk.there) == {"a": b"1"}


def test_a_limited_rate(desk: Desk) -> None:
    (desk.here / "f").write_bytes(os.urandom(300_000))
    for move in (
        ("-push", "f", "--to", desk.name),
        # A copy beside it would be found, and nothing be sent.
        ("-pull", f"{desk.name}/f", "-o", "elsewhere/"),
    ):
        start_s = time.monotonic()
        desk.cli(*move, "--bwlimit", "400").succeed()
        assert time.monotonic() - start_s > 0.5
    assert (desk.here / "elsewhere" / "f").read_bytes() == (
        desk.here / "f"
    ).read_bytes()


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        *(("0", 0), ("1", 1024), ("500", 512_000), ("1.5m", 1_572_864)),
        *(("2G", 2 << 30), ("1kB", 1000), ("1KiB", 1024), ("1MB", 1_000_000)),
        *((".5k", 512), ("100b", 100), ("0.0001", 1), ("1t", 1 << 40)),
        ("999999999999999t", 1 << 62),
    ],
)
def test_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text",
    ["", "m", "-1", "1.5.2", "1x", "1 m", "1e3", "1bb", "1ib", "\u0661", "9" * 16],
)
def test_what_is_no_rate(text: str) -> None:
    assert parse_rate(text) is None
