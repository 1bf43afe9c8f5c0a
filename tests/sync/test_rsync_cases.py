"""The recorded runs of rsync: they are sound, and its filters are ours."""

import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc25519_tools.sync.filters import FilterRules
from tests.sync.record_rsync import record
from tests.sync.rsync_cases import (
    Case,
    Change,
    build,
    content_of,
    load_cases,
    parse_change,
    plain,
    spelled,
)
from tests.sync.rsync_random import random_cases
from tests.sync.rsync_tables import TABLES

CASES = load_cases()
BY_NAME = {case.name: case for case in CASES}
FILTER_CASES = [case for case in CASES if case.filters_only and not case.errors]
needs_rsync = pytest.mark.skipif(shutil.which("rsync") is None, reason="no rsync here")


def transferred(case: Case, sources: list[str]) -> set[bytes]:
    """Walk the sources; return the paths that take part, directories with a slash."""
    rules = FilterRules(case.options.rules)
    found: set[bytes] = set()
    for source in sources:
        root = os.fsencode(source)
        if root.endswith((b"/", b"/.")):
            found.update(below(root, b"", rules, links=case.options.links))
        else:
            found.update(
                taking_part(
                    root, os.path.basename(root), rules, links=case.options.links
                )
            )
    return found


def below(
    folder: bytes, prefix: bytes, rules: FilterRules, *, links: bool
) -> Iterator[bytes]:
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        yield from taking_part(path, prefix + name, rules, links=links)


def taking_part(
    path: bytes, name: bytes, rules: FilterRules, *, links: bool
) -> Iterator[bytes]:
    mode = os.lstat(path).st_mode
    if not rules.decide(name, is_dir=stat.S_ISDIR(mode)):
        return
    if stat.S_ISDIR(mode):
        yield name + b"/"
        yield from below(path, name + b"/", rules, links=links)
    elif stat.S_ISREG(mode) or (links and stat.S_ISLNK(mode)):
        yield name


@pytest.mark.parametrize("case", FILTER_CASES, ids=lambda case: case.name)
def test_filters_are_those_of_rsync(case: Case, tmp_path: Path) -> None:
    sources, _ = build(case, tmp_path)
    recorded = {change.path for change in case.changes} - {b"./"}
    assert transferred(case, sources) == recorded


def test_there_are_enough_cases() -> None:
    assert len(CASES) == len(BY_NAME) >= 200
    assert len(FILTER_CASES) >= 100
    assert max(len(case.entries) for case in CASES) <= 45
    assert sum(bool(case.changes) for case in CASES) >= 200
    used = {argument.partition("=")[0] for case in CASES for argument in case.arguments}
    assert used == {
        "-a", "-r", "--backup-dir", "--checksum", "--delete", "--delete-excluded",
        "--exclude", "--exclude-from", "--existing", "--files-from", "--hard-links",
        "--ignore-existing", "--include", "--include-from", "--links", "--max-delete",
        "--perms", "--size-only", "--times", "--update",
    }  # fmt: skip


def test_files_hold_the_cases_of_the_scripts() -> None:
    # Whoever changes a case has to record it anew.
    made = [case for cases in TABLES.values() for case in cases] + random_cases()
    assert {case.name: spoken_for(case) for case in made} == {
        case.name: spoken_for(case) for case in CASES
    }


def spoken_for(case: Case) -> tuple[object, ...]:
    return (
        case.entries,
        case.texts,
        case.sources,
        case.destination,
        case.arguments,
    )


@pytest.mark.parametrize("name", ["types", "hard links", "links", "changed -a"])
def test_built_trees_are_as_described(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    old_mask = os.umask(0o077)
    try:
        build(case, tmp_path)
    finally:
        os.umask(old_mask)
    seen = Counter[str]()
    for entry in case.entries:
        path = tmp_path / os.fsdecode(plain(entry.path))
        status = path.lstat()
        seen[entry.kind] += 1
        if entry.kind == "link":
            assert stat.S_ISLNK(status.st_mode)
            assert os.fsencode(os.readlink(path)) == plain(entry.target)
        elif entry.kind == "hardlink":
            assert path.samefile(tmp_path / entry.target)
        elif entry.kind == "file":
            assert path.read_bytes() == content_of(entry)
            assert stat.S_IMODE(status.st_mode) == int(entry.mode or "644", 8)
        elif entry.kind == "dir":
            assert stat.S_IMODE(status.st_mode) == int(entry.mode or "755", 8)
        else:
            assert stat.S_ISFIFO(status.st_mode)
        if entry.kind != "hardlink":
            assert status.st_mtime_ns == entry.mtime_ns
    assert seen["dir"] >= 2


def test_contents_follow_from_seed_and_size() -> None:
    by_name = {entry.path: entry for entry in BY_NAME["changed -a"].entries}
    same = content_of(by_name["src/same"])
    assert same == content_of(by_name["dst/same"])
    assert len(same) == 5
    first, second = (
        content_of(by_name[f"{end}/other_content"]) for end in ("src", "dst")
    )
    assert first != second
    assert len(first) == len(second)


def test_options_are_parsed() -> None:
    options = BY_NAME["changed -a --delete --max-delete=2"].options
    assert options.archive
    assert (options.recursive, options.links, options.perms, options.times) == (
        (True,) * 4
    )
    assert options.delete
    assert options.max_delete == 2
    assert not options.checksum
    assert options.rules == ()
    cleared = BY_NAME["filter file that clears"].options.rules
    assert [(rule.include, rule.pattern) for rule in cleared] == [
        (False, b"*.h"),
        (False, b"!x"),
    ]
    assert BY_NAME["files-from plain"].options.files_from == b"top\na/one\nb/c/three\n"
    assert BY_NAME["changed -a --backup-dir=old"].options.backup_dir == b"old"


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (">f+++++++++ a/b", Change(code=">f+++++++++", path=b"a/b")),
        (".d..t...... ./", Change(code=".d..t......", path=b"./")),
        ("*deleting   a  b/", Change(code="*deleting  ", path=b"a  b/")),
        (
            r"cL+++++++++ \#303\#244 -> x",
            Change(code="cL+++++++++", path=b"\xc3\xa4", target=b"x"),
        ),
        (
            "hf          e => d",
            Change(code="hf         ", path=b"e", target=b"d"),
        ),
        (
            ">f+++++++++ a -> b => c",
            Change(code=">f+++++++++", path=b"a -> b => c"),
        ),
        ("cannot delete non-empty directory: a", None),
        ('skipping non-regular file "a"', None),
        ("created directory dst", None),
    ],
)
def test_line_is_parsed(line: str, change: Change | None) -> None:
    assert parse_change(line) == change


@pytest.mark.parametrize(
    "name", [b"a", b"\\", b"\\#", b"\\#101", b"\n\x00\xff", b"\\\\#1011", b"#101"]
)
def test_spelling_can_be_read_back(name: bytes) -> None:
    assert plain(spelled(name)) == name


@needs_rsync
@pytest.mark.parametrize("name", ["filter odd none", "changed -a --delete"])
def test_rsync_still_says_what_was_recorded(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    anew = record(case, tmp_path)
    assert sorted(anew.lines) == sorted(case.lines)
    assert anew.exit_code == case.exit_code
