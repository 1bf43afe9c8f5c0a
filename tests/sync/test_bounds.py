"""What is in flight is bounded, and nothing blocks for that."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc25519_tools.sync import names, receiver, seeking, sender, tabling, walk
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.walk import Batch, Walk

from .local import LocalSync, sync

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

ALL = SyncOptions(recursive=True, links=True, perms=True, times=True, fsync=False)
FSYNC = SyncOptions(recursive=True, links=True, perms=True, times=True)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let hardly anything be in flight."""
    monkeypatch.setattr(walk, "BATCH_LEN", 40)
    monkeypatch.setattr(sender, "FIRST_WINDOW", 16)
    monkeypatch.setattr(sender, "LAST_WINDOW", 100)
    monkeypatch.setattr(sender, "_BUNDLE_COUNT", 3)
    monkeypatch.setattr(receiver, "_MAX_PENDING", 4)
    monkeypatch.setattr(tabling, "_MAX_TABLED", 1)
    monkeypatch.setattr(tabling, "_SMALL_LEN", 100_000)
    monkeypatch.setattr(tabling, "_SMALL_COUNT", 3)
    monkeypatch.setattr(seeking, "_MAX_RESCUED", 1)


def same(source: Path, destination: Path) -> bool:
    """Tell whether two trees have the same files."""
    both = [
        {str(one.relative_to(top)): one.read_bytes() for one in files(top)}
        for top in (source, destination)
    ]
    return both[0] == both[1]


def files(top: Path) -> Iterator[Path]:
    return (one for one in top.rglob("*") if one.is_file())


def checked(source: Path, destination: Path, options: SyncOptions) -> LocalSync:
    one = sync([f"{source}/"], destination, options)
    assert one.at_receiver.failures == one.at_sender.failures == []
    assert same(source, destination)
    again = sync([f"{source}/"], destination, options)
    assert again.at_receiver.lines == []
    return one


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("options", [ALL, FSYNC], ids=["", "fsync"])
def test_thousands_of_files_pass_through_small_windows(
    tmp_path: Path, options: SyncOptions
) -> None:
    chance = random.Random(0)
    source, destination = tmp_path / "src", tmp_path / "dst"
    count = 3000 if options is ALL else 100
    for number in range(count):
        folder = f"{number % 97:02}/{number % 7}"
        path = source / folder / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = chance.randbytes(chance.randrange(600))
        path.write_bytes(data)
        if number % 3 == 0:
            old = destination / folder / f"{number}"
            old.parent.mkdir(parents=True, exist_ok=True)
            old.write_bytes(data + b"old")
    checked(source, destination, options)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("options", [ALL, FSYNC], ids=["", "fsync"])
def test_large_files_of_all_kinds_pass_through_small_windows(
    tmp_path: Path, options: SyncOptions
) -> None:
    source, destination = tmp_path / "src", tmp_path / "dst"
    source.mkdir()
    destination.mkdir()
    for number in range(30):
        size = (70_000, 150_000, 1_100_000)[number % 3]
        data = random.Random(number // 6).randbytes(size)
        (source / f"{number:02}").write_bytes(data)
        match number % 5:
            case 0:
                (destination / f"{number:02}").write_bytes(data[:-9] + b"old")
            case 1:
                (destination / f"moved{number}").write_bytes(data)
            case _:
                pass
    one = sync([f"{source}/"], destination, options)
    assert one.at_receiver.failures == one.at_sender.failures == []
    assert all(
        path.read_bytes() == (destination / path.name).read_bytes()
        for path in files(source)
    )
    # Of each of these contents there are two files.
    total = sum(path.stat().st_size for path in files(source))
    assert one.totals.literal_bytes < total * 6 // 10


@pytest.mark.parametrize("count", [1, 15, 16, 17, 32, 100])
def test_names_of_large_directories_are_sorted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(names, "RUN_LEN", 16)
    monkeypatch.setattr(walk, "BATCH_LEN", 7)
    source, destination = tmp_path / "src", tmp_path / "dst"
    for top, step in ((source, 1), (destination, 3)):
        top.mkdir()
        for number in range(0, count, step):
            (top / f"{number * 37 % 1009:x}\n").write_bytes(b"%d" % number)
            (top / f"{top.name}-{number}").write_bytes(b"")
    delete = SyncOptions(recursive=True, times=True, delete=True, fsync=False)
    one = checked(source, destination, delete)
    assert one.totals.deleted == (count + 2) // 3


def test_entries_come_in_batches_of_bounded_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "BATCH_LEN", 10)
    monkeypatch.setattr(walk, "_NAMES_LEN", 500)
    for number in range(35):
        (tmp_path / f"{number:02}").mkdir()
        (tmp_path / f"{number:02}" / ("x" * 200)).touch()
        (tmp_path / f"file{number}").touch()

    def batches() -> list[Batch]:
        from rpc25519_tools.sync.source import local_source

        return list(Walk(local_source([b"%b/" % bytes(tmp_path)]), ALL).batches())

    found = batches()
    assert sum(len(batch.items) for batch in found) == 35 * 3 + 1
    assert max(len(batch.items) for batch in found) <= 20
    assert max(len(batch.overview.names) for batch in found) <= 1000
    assert [batch.overview.final for batch in found].index(True) == len(found) - 1
    count = 0
    for batch in found:
        assert batch.base == count
        count += len(batch.items)
