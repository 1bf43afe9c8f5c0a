"""What syncs and copies say in numbers is true, also of what is cut or too long."""

import random
from pathlib import Path

import pytest
from rpc25519_tools.commands._output import Talk
from rpc25519_tools.commands._synclines import SyncLines

from rpc25519_tools.sync import receiver, sender, walk
from tests.commands.syncing import Desk, breaking_line, make_tree


def test_a_copy_counts_in_json_what_it_left_out(desk: Desk) -> None:
    make_tree(desk.here, {"tree/a": "1", "f": "2"})
    done = desk.cp("tree", "f", desk.remote(""), "--json")
    assert done.code == 7
    assert done.summary["left_out"] == done.summary["failed"] == 1
    assert done.summary["failures"] == [
        {"path": "tree", "reason": "no regular file (directories need -r)"}
    ]
    done = desk.cli("-push", "tree", "f", "--no-recursive", "--json").succeed()
    assert done.summary["left_out"] == 1
    assert done.summary["failed"] == 0


@pytest.mark.parametrize(("count", "last"), [(100, "99: odd"), (103, "... and 3 more")])
def test_warnings_beyond_the_first_are_counted(
    capsys: pytest.CaptureFixture[str], count: int, last: str
) -> None:
    lines = SyncLines(
        sending=True, itemize=False, as_json=False, bar=None, talk=Talk(prog="cli")
    )
    for number in range(count):
        lines.warned((b"%d" % number,), "odd")
        lines.warned((b"%d" % number,), "odd")
    lines.warn_of_rest()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == min(count, 101)
    assert told[-1] == f"cli: warning: {last}"


def make_many(top: Path, count: int) -> int:
    """Make files that cannot be packed, in some directories; return their bytes."""
    values = random.Random(1)
    sizes = [values.randrange(200_000 // count) for _ in range(count)]
    for number in range(5):
        (top / f"d{number}").mkdir(parents=True)
    for number, size in enumerate(sizes):
        (top / f"d{number % 5}" / f"{number}").write_bytes(values.randbytes(size))
    return sum(sizes)


@pytest.mark.parametrize(("way", "count"), [("push", 400), ("pull", 2500)])
def test_figures_are_those_of_all_attempts(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, way: str, count: int
) -> None:
    # The walk is not at its end when the line is cut.
    monkeypatch.setattr(walk, "BATCH_LEN", 20)
    monkeypatch.setattr(sender, "FIRST_WINDOW", 20)
    monkeypatch.setattr(sender, "LAST_WINDOW", 40)
    monkeypatch.setattr(sender, "_MAX_WANTED", 40)
    monkeypatch.setattr(receiver, "_MAX_PENDING", 100)
    source = desk.here if way == "push" else desk.there
    total = make_many(source / "tree", count)
    words = {
        "push": ("-push", "tree", "--to", desk.name),
        "pull": ("-pull", f"{desk.name}/tree", "-o", "back"),
    }[way]
    with breaking_line(desk.address, after=100_000) as address:
        done = desk.cli(*words, "--json", "--no-fsync", address=address).succeed()
    summary = done.summary
    assert summary["attempts"] == 2
    assert (summary["files"], summary["total_bytes"]) == (count, total)
    assert (summary["transferred"], summary["transferred_bytes"]) == (count, total)
    assert (summary["literal_bytes"], summary["matched_bytes"]) == (total, 0)


@pytest.mark.parametrize("way", ["push", "pull"])
def test_the_figures_of_a_large_file_after_a_cut(desk: Desk, way: str) -> None:
    source = desk.here if way == "push" else desk.there
    other = desk.there if way == "push" else desk.here / "back"
    data = random.Random(2).randbytes(8 << 20)
    make_tree(source, {"large": data})
    make_tree(other, {"large": data[: 2 << 20]})
    words = {
        "push": ("-push", "large", "--to", desk.name),
        "pull": ("-pull", f"{desk.name}/large", "-o", "back/"),
    }[way]
    with breaking_line(desk.address, after=3 << 20) as address:
        done = desk.cli(*words, "--json", address=address).succeed()
    summary = done.summary
    assert summary["attempts"] == 2
    assert summary["transferred_bytes"] == summary["total_bytes"] == len(data)
    literal, matched = summary["literal_bytes"], summary["matched_bytes"]
    # What came before the cut was there for the next attempt.
    assert (3 << 20) < literal < (6 << 20)
    assert literal + matched == len(data)
    assert literal <= summary[f"{'sent' if way == 'push' else 'received'}_bytes"]
