"""Further names of files: what they replace, and what becomes of them if one fails."""

import os
from pathlib import Path

import pytest

from rpc25519_tools.sync.destination import Destination
from rpc25519_tools.sync.filters import Rule
from rpc25519_tools.sync.judge import Entry, Old
from rpc25519_tools.sync.outgoing import OpenSource, Wanted
from rpc25519_tools.sync.tree import Parts

from .local import sync
from .trees import ALL, snapshot, with_options

pytestmark = pytest.mark.usefixtures("no_leaked_fds")


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    source, destination = tmp_path / "src", tmp_path / "dst"
    source.mkdir()
    destination.mkdir()
    (source / "a").write_bytes(b"A" * 100)
    os.link(source / "a", source / "b")
    return source, destination


def with_directory(destination: Path, *, leader_is_there: bool) -> None:
    (destination / "b").mkdir()
    (destination / "b/keep.txt").write_bytes(b"precious")
    (destination / "b/other").write_bytes(b"other")
    if leader_is_there:
        (destination / "a").write_bytes(b"A" * 100)
        os.utime(destination / "a", ns=(0, 10**9))
        os.utime(destination.parent / "src/a", ns=(0, 10**9))


leader = pytest.mark.parametrize("leader_is_there", [False, True])
either = pytest.mark.parametrize("dry_run", [False, True])


@leader
@either
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"delete": True, "max_delete": 1},
        {"delete": True, "rules": (Rule(False, b"keep.txt"),)},
    ],
)
def test_a_link_does_not_replace_a_directory_with_what_has_to_stay(
    trees: tuple[Path, Path],
    options: dict[str, object],
    *,
    leader_is_there: bool,
    dry_run: bool,
) -> None:
    source, destination = trees
    with_directory(destination, leader_is_there=leader_is_there)
    one = sync([f"{source}/"], destination, with_options(dry_run=dry_run, **options))
    ((path, note),) = one.at_receiver.failures
    assert path == (b"b",)
    assert "has to stay" in note
    assert b"b" not in [name for _, name, _ in one.at_receiver.lines]
    assert one.at_receiver.failures == one.at_sender.failures
    assert one.totals.deleted == 0
    assert (destination / "b/keep.txt").read_bytes() == b"precious"
    assert (destination / "b/other").read_bytes() == b"other"


@leader
@either
def test_what_goes_for_a_link_is_told_and_counted(
    trees: tuple[Path, Path], *, leader_is_there: bool, dry_run: bool
) -> None:
    source, destination = trees
    with_directory(destination, leader_is_there=leader_is_there)
    options = with_options(delete=True, max_delete=2, dry_run=dry_run)
    one = sync([f"{source}/"], destination, options)
    assert one.at_receiver.failures == []
    lines = one.at_receiver.lines
    gone = [path for code, path, _ in lines if code.startswith("*deleting")]
    assert gone == [b"b/keep.txt", b"b/other"]
    assert ("hf+++++++++", b"b", b"a") in lines
    assert one.totals.deleted == 2
    if not dry_run:
        assert snapshot(destination) == snapshot(source)


def test_a_later_name_of_a_file_that_failed_keeps_its_own_contents(
    trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = trees
    # So many between them that the last name is judged after the first has failed.
    for number in range(5000):
        (source / f"c{number:04}").write_bytes(b"x")
    os.link(source / "a", source / "z")
    (destination / "a").write_bytes(b"old")
    (destination / "z").write_bytes(b"A" * 100)
    os.utime(source / "z", ns=(5, 5))
    os.utime(destination / "z", ns=(5, 5))
    opened = OpenSource.__init__

    def failing(self: OpenSource, wanted: Wanted) -> None:
        if wanted.item.name == b"a":
            raise PermissionError(13, "Permission denied")
        opened(self, wanted)

    monkeypatch.setattr(OpenSource, "__init__", failing)
    one = sync([f"{source}/"], destination, ALL)
    assert [path for path, _ in one.at_receiver.failures] == [(b"a",), (b"b",)]
    assert (destination / "a").read_bytes() == b"old"
    assert (destination / "z").read_bytes() == b"A" * 100
    assert (destination / "z").stat().st_mtime_ns == 5


def test_a_name_beside_a_first_one_that_has_to_give_way_is_a_file_of_its_own(
    trees: tuple[Path, Path],
) -> None:
    source, destination = trees
    (destination / "a").mkdir()
    (destination / "a/inside").write_bytes(b"stays")
    one = sync([f"{source}/"], destination, ALL)
    assert [path for path, _ in one.at_receiver.failures] == [(b"a",)]
    assert (destination / "b").read_bytes() == b"A" * 100


def test_a_name_beside_a_first_one_that_cannot_be_set_right_is_a_file_of_its_own(
    trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = trees
    (destination / "a").write_bytes(b"A" * 100)
    for tree, mode in ((source, 0o640), (destination, 0o604)):
        (tree / "a").chmod(mode)
        os.utime(tree / "a", ns=(5, 5))
    adjust = Destination.adjust

    def failing(self: Destination, parent: Parts, entry: Entry, old: Old) -> None:
        if entry.name == b"a":
            raise PermissionError(1, "Operation not permitted")
        adjust(self, parent, entry, old)

    monkeypatch.setattr(Destination, "adjust", failing)
    one = sync([f"{source}/"], destination, ALL)
    assert [path for path, _ in one.at_receiver.failures] == [(b"a",)]
    assert (destination / "b").stat().st_mode & 0o777 == 0o640
