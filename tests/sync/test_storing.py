"""What is here already is found, holes stay holes, and what is wrong goes."""

import asyncio
import errno
import fcntl
import gc
import os
import random
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from rpc25519_tools.rpc.calls import RsyncStep
from rpc25519_tools.rpc.streams import Part
from rpc25519_tools.sync import basis as basis_module
from rpc25519_tools.sync import copying, reusing, storing
from rpc25519_tools.sync import receiver as receiver_module
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.pending import Outcome, Pending
from rpc25519_tools.sync.receiver import Receiver
from rpc25519_tools.sync.records import End, decode_deltas

from .local import LocalSync, sync
from .trees import Trees

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

ALL = SyncOptions(
    recursive=True, links=True, perms=True, times=True, specials=True, fsync=False
)
LARGE = 300_000
#: Bytes of contents that may travel for a file that is here already.
NEXT_TO_NOTHING = 5000


def some_bytes(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count)


def with_options(**changes: object) -> SyncOptions:
    names = SyncOptions.__struct_fields__
    return SyncOptions(**{name: getattr(ALL, name) for name in names} | changes)


def contents(top: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(top)): path.read_bytes()
        for path in top.rglob("*")
        if path.is_file()
    }


def push(trees: Trees, options: SyncOptions = ALL) -> LocalSync:
    """Sync; both sides have the same in the end."""
    source, destination = trees
    one = sync([f"{source}/"], destination, options)
    assert one.at_receiver.failures == []
    mine = contents(destination)
    theirs = contents(source)
    assert {name: mine[name] for name in theirs} == theirs
    assert not any(".rpc25519" in name for name in mine)
    return one


def literal(one: LocalSync) -> int:
    return one.totals.literal_bytes


# Contents that are here under another name.


def test_equal_file_costs_nothing(trees: Trees) -> None:
    (trees[0] / "a").write_bytes(some_bytes(LARGE))
    assert literal(push(trees)) == LARGE
    one = push(trees)
    assert literal(one) == one.totals.matched_bytes == 0
    assert one.at_receiver.lines == []


@pytest.mark.parametrize("name", ["deep/er/old", "new"])
def test_renamed_file_is_found(trees: Trees, name: str) -> None:
    source, destination = trees
    (source / "old").write_bytes(some_bytes(LARGE))
    push(trees)
    target = source / name
    target.parent.mkdir(parents=True, exist_ok=True)
    (source / "old").rename(target)
    one = push(trees, with_options(delete=True))
    assert literal(one) == 0
    assert one.totals.matched_bytes == LARGE
    assert contents(destination) == {name: some_bytes(LARGE)}


@pytest.mark.parametrize("where", ["other/old", "renamed"])
def test_renamed_and_edited_file_costs_the_edit(trees: Trees, where: str) -> None:
    source, _ = trees
    data = some_bytes(LARGE)
    (source / "old").write_bytes(data)
    push(trees)
    (source / "old").unlink()
    (source / where).parent.mkdir(exist_ok=True)
    (source / where).write_bytes(data[:1000] + b"edited" + data[1000:])
    assert 0 < literal(push(trees, with_options(delete=True))) < 10_000


def test_copies_within_the_transfer_cost_nothing(trees: Trees) -> None:
    source, _ = trees
    (source / "a").write_bytes(some_bytes(LARGE))
    push(trees)
    for name in ("b", "c"):
        (source / name).write_bytes(some_bytes(LARGE))
    assert literal(push(trees)) == 0


@pytest.mark.parametrize("size", [LARGE, 2_000_000])
@pytest.mark.parametrize("fsync", [False, True])
def test_equal_new_files_are_sent_once(trees: Trees, size: int, fsync: bool) -> None:
    for name in ("a", "b", "c"):
        (trees[0] / name).write_bytes(some_bytes(size))
    one = push(trees, with_options(fsync=fsync))
    assert literal(one) == size
    assert one.totals.matched_bytes == 2 * size


def test_new_files_of_equal_length_but_other_contents_arrive(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = count_tables(monkeypatch)
    for number in range(40):
        (trees[0] / f"{number:02}").write_bytes(some_bytes(70_000, number))
    assert literal(push(trees)) == 40 * 70_000
    assert len(tables) <= basis_module._PATIENCE


def test_file_that_waits_for_an_equal_one_that_fails_is_sent(
    trees: Trees,
) -> None:
    source, destination = trees
    for name in ("a", "b", "c"):
        (source / name).write_bytes(some_bytes(LARGE))
    (destination / "a").mkdir()
    (destination / "a/stays").touch()
    one = sync([f"{source}/"], destination, ALL)
    assert [path for path, _ in one.at_receiver.failures] == [(b"a",)]
    assert contents(destination)["c"] == some_bytes(LARGE)
    assert literal(one) == LARGE


def count_tables(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the entry of each local file that is cut."""
    cut: list[int] = []
    tables = basis_module.Basis.tables

    def noting(
        self: basis_module.Basis, index: int, number: int, key: bytes, length: int
    ) -> object:
        cut.append(index)
        return tables(self, index, number, key, length)

    monkeypatch.setattr(basis_module.Basis, "tables", noting)
    return cut


@pytest.mark.parametrize(
    ("now", "before", "new"),
    [(LARGE, LARGE + 5000, 100_000), (3_000_000, 2_500_000, 1_500_000)],
)
def test_rotated_logs_cost_the_new_lines(
    trees: Trees, now: int, before: int, new: int
) -> None:
    source, _ = trees
    (source / "log").write_bytes(some_bytes(now, 1))
    (source / "log.1").write_bytes(some_bytes(before, 2))
    push(trees)
    (source / "log.1").rename(source / "log.2")
    (source / "log").rename(source / "log.1")
    (source / "log").write_bytes(some_bytes(new, 3))
    assert literal(push(trees)) == new


def test_swapped_files_cost_nothing(trees: Trees) -> None:
    source, _ = trees
    (source / "a").write_bytes(some_bytes(LARGE, 1))
    (source / "b").write_bytes(some_bytes(LARGE + 1, 2))
    push(trees)
    (source / "a").rename(source / "c")
    (source / "b").rename(source / "a")
    (source / "c").rename(source / "b")
    assert literal(push(trees)) == 0


def test_useless_guesses_stop(trees: Trees, monkeypatch: pytest.MonkeyPatch) -> None:
    source, destination = trees
    (destination / "other").write_bytes(some_bytes(70_000, 99))
    tables = count_tables(monkeypatch)
    for number in range(30):
        (source / f"{number:02}").write_bytes(some_bytes(70_000 + number, number))
        push(trees)
    assert literal(push(trees)) == 0
    tables.clear()
    for path in source.iterdir():
        path.unlink()
    for number in range(30):
        data = some_bytes(70_100 + number, 100 + number)
        (source / f"n{number:02}").write_bytes(data)
    monkeypatch.setattr(receiver_module, "_MAX_PENDING", 1)
    push(trees)
    assert 0 < len(tables) <= basis_module._PATIENCE


@pytest.mark.parametrize("size", [511, 512, 4000, 70_000, 2_000_000])
def test_changed_file_is_made_of_what_is_there(trees: Trees, size: int) -> None:
    source, _ = trees
    data = some_bytes(size)
    (source / "a").write_bytes(data)
    push(trees)
    (source / "a").write_bytes(data + b"more")
    one = push(trees)
    assert literal(one) <= min(size + 4, 10_000)
    assert literal(one) + one.totals.matched_bytes == size + 4


# Ways to copy.


def test_files_are_cloned_where_the_file_system_can(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloned: list[int] = []

    def ioctl(fd: int, request: int, source: int) -> int:
        assert request == 0x40049409
        os.pwrite(fd, os.pread(source, LARGE, 0), 0)
        cloned.append(source)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    (trees[0] / "a").write_bytes(some_bytes(LARGE))
    push(trees)
    (trees[0] / "a").rename(trees[0] / "b")
    assert literal(push(trees)) == 0
    assert len(cloned) == 1


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "copy_file_range", raising=False)


def unable(code: int) -> Callable[[pytest.MonkeyPatch], None]:
    def set_up(monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*_: int) -> int:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "copy_file_range", fails, raising=False)

    return set_up


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.copy_file_range
    monkeypatch.setattr(
        os,
        "copy_file_range",
        lambda source, target, count, *rest: real(
            source, target, min(count, 9999), *rest
        ),
    )


@pytest.mark.parametrize(
    "way", [without, unable(errno.EXDEV), unable(errno.EINVAL), slow]
)
def test_contents_are_copied_in_other_ways_too(
    trees: Trees,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[pytest.MonkeyPatch], None],
) -> None:
    way(monkeypatch)
    data = some_bytes(LARGE)
    (trees[0] / "a").write_bytes(data)
    push(trees)
    (trees[0] / "a").write_bytes(data[:150_000] + b"!" + data[150_000:])
    assert literal(push(trees)) < NEXT_TO_NOTHING


def test_disk_that_is_full_while_copying_fails_that_file_alone(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = trees
    (source / "a").write_bytes(some_bytes(LARGE))
    push(trees)
    (source / "a").write_bytes(some_bytes(LARGE) + b"!")
    (source / "b").write_bytes(b"small")
    unable(errno.ENOSPC)(monkeypatch)
    one = sync([f"{source}/"], destination, ALL)
    ((path, note),) = one.at_receiver.failures
    assert path == (b"a",)
    assert "disk full" in note
    assert (destination / "a").read_bytes() == some_bytes(LARGE)
    assert (destination / "b").read_bytes() == b"small"


@pytest.mark.parametrize("size", [LARGE, 3_000_000])
def test_what_comes_after_a_failure_is_let_pass(
    trees: Trees, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    source, destination = trees
    for name in ("a", "b"):
        (destination / name).write_bytes(some_bytes(size))
        (source / name).write_bytes(some_bytes(size) + b"!")
    # All that the sender has for both files is there before any of it is stored.
    take = receiver_module.Receiver._take_parts
    waiting: list[Part] = []

    async def take_late(self: Receiver) -> None:
        waiting.extend(self._arrived)
        self._arrived.clear()
        records = [
            record
            for part in waiting
            if part.step is RsyncStep.DELTAS and not part.args
            for record in decode_deltas(part.payload)
        ]
        ends = sum(isinstance(record, End) for record in records)
        if not records or ends == 2:
            self._arrived.extend(waiting)
            waiting.clear()
            await take(self)

    monkeypatch.setattr(Receiver, "_take_parts", take_late)
    unable(errno.ENOSPC)(monkeypatch)
    one = sync([f"{source}/"], destination, ALL)
    assert {path for path, _ in one.at_receiver.failures} == {(b"a",), (b"b",)}
    assert sorted(one.at_sender.failures) == sorted(one.at_receiver.failures)


# Holes.


def make_holes(path: Path, *, data: bytes, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size // 2 // 4096 * 4096)
        file.write(data)


@pytest.mark.parametrize("sparse", [False, True])
def test_holes_stay_holes(trees: Trees, sparse: bool) -> None:
    source, destination = trees
    make_holes(source / "a", data=some_bytes(10_000), size=20 << 20)
    with (source / "hole").open("wb") as file:
        file.truncate(1 << 20)
    one = push(trees, with_options(sparse=sparse))
    assert literal(one) <= 100_000
    assert (destination / "a").stat().st_blocks * 512 < 500_000
    assert (destination / "hole").stat().st_blocks == 0


def test_zeros_become_holes_if_they_shall(trees: Trees) -> None:
    source, destination = trees
    data = some_bytes(100_000) + bytes(2_000_000) + b"end" + bytes(500_000)
    (source / "a").write_bytes(data)
    push(trees, with_options(sparse=True))
    assert (destination / "a").stat().st_blocks * 512 < 400_000
    (destination / "a").unlink()
    push(trees)
    assert (destination / "a").stat().st_blocks * 512 >= len(data)


def test_holes_stay_holes_where_a_changed_file_is_updated(
    trees: Trees,
) -> None:
    source, destination = trees
    make_holes(source / "a", data=some_bytes(200_000), size=20 << 20)
    push(trees)
    with (source / "a").open("r+b") as file:
        file.seek(12 << 20)
        file.write(b"changed")
    one = push(trees)
    assert literal(one) < 200_000
    assert (destination / "a").stat().st_blocks * 512 < 2_000_000


def test_holes_are_not_sent_where_something_similar_is_there(
    trees: Trees,
) -> None:
    source, destination = trees
    (destination / "a").write_bytes(some_bytes(100_000, 7))
    make_holes(source / "a", data=some_bytes(200_000), size=20 << 20)
    one = push(trees)
    assert literal(one) < 500_000
    assert (destination / "a").stat().st_blocks * 512 < 2_000_000


# What goes wrong.


def interfering(
    monkeypatch: pytest.MonkeyPatch, interfere: Callable[[], None]
) -> list[int]:
    """Do something before the first copy from a local file; return what was copied."""
    copied: list[int] = []
    copy_range = copying.copy_range

    def copy(source: int, target: int, start: int, length: int, at: int) -> None:
        if not copied:
            interfere()
        copied.append(length)
        copy_range(source, target, start, length, at)

    monkeypatch.setattr(reusing, "copy_range", copy)
    return copied


@pytest.mark.parametrize("kind", ["overwritten", "overwritten, old time", "cut"])
@pytest.mark.parametrize("size", [60_000, 2_000_000])
def test_basis_that_changes_while_it_is_used(
    trees: Trees, monkeypatch: pytest.MonkeyPatch, kind: str, size: int
) -> None:
    source, destination = trees
    data = some_bytes(size)
    (source / "a").write_bytes(data)
    push(trees)
    (source / "a").write_bytes(data + b"!")

    def interfere() -> None:
        status = (destination / "a").stat()
        with (destination / "a").open("r+b") as file:
            if kind == "cut":
                file.truncate(20_000)
            else:
                file.seek(20_000)
                file.write(b"something else")
        if kind == "overwritten, old time":
            times = (status.st_atime_ns, status.st_mtime_ns)
            os.utime(destination / "a", ns=times)

    copied = interfering(monkeypatch, interfere)
    one = push(trees)
    assert copied
    assert literal(one) >= size + 1


def test_basis_that_only_gets_another_name_is_good(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = trees
    (source / "a").write_bytes(some_bytes(LARGE))
    push(trees)
    (source / "a").write_bytes(some_bytes(LARGE) + b"!")
    interfering(
        monkeypatch, lambda: os.link(destination / "a", destination / "elsewhere")
    )
    assert literal(push(trees)) < NEXT_TO_NOTHING


@pytest.mark.parametrize("size", [60_000, 2_000_000])
@pytest.mark.parametrize("times", [1, 2])
def test_file_with_a_wrong_sum_is_wanted_once_more(
    trees: Trees,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    size: int,
) -> None:
    source, destination = trees
    (source / "a").write_bytes(some_bytes(size))
    (source / "b").write_bytes(b"other")
    (destination / "a").write_bytes(some_bytes(size)[:-5])
    end = storing.Store._end
    seen: list[End] = []

    def wrong(
        self: storing.Store,
        pending: Pending,
        record: End,
        outcome: Outcome,
    ) -> None:
        seen.append(record)
        if len(seen) <= times:
            record.root = bytes(32)
        end(self, pending, record, outcome)

    monkeypatch.setattr(storing.Store, "_end", wrong)
    if times == 1 or size < 100_000:
        # A small file comes whole the second time, with its own sum.
        push(trees)
        return
    one = sync([f"{source}/"], destination, ALL)
    ((path, note),) = one.at_receiver.failures
    assert path == (b"a",)
    assert "blake3" in note
    assert one.at_sender.failures == one.at_receiver.failures
    assert len(seen) == 2
    assert (destination / "a").read_bytes() == some_bytes(size)[:-5]
    assert (destination / "b").read_bytes() == b"other"


def test_thousands_of_changed_files_need_few_descriptors(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = trees
    data = some_bytes(600)
    for number in range(400):
        (source / f"{number}").write_bytes(data + b"new")
        (destination / f"{number}").write_bytes(data)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    here = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (here + 60, limits[1]))
    try:
        one = push(trees, with_options(fsync=True))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert literal(one) < 400 * 603


def test_source_that_vanishes_while_the_basis_is_cut(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = trees
    (source / "a").write_bytes(some_bytes(3_000_000))
    (destination / "a").write_bytes(some_bytes(2_000_000))
    one = LocalSync([f"{source}/"], destination, ALL)

    def walked(files: int, total_bytes: int, *, final: bool) -> None:
        (source / "a").unlink()

    monkeypatch.setattr(one.at_sender, "walked", walked)
    asyncio.run(one.run())
    assert [path for path, _ in one.at_receiver.failures] == [(b"a",)]
    assert (destination / "a").read_bytes() == some_bytes(2_000_000)
    gc.collect()  # tracebacks of what failed hold what was open


def test_unreadable_basis_does_not_matter(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = trees
    (source / "a").write_bytes(some_bytes(LARGE))
    (destination / "a").write_bytes(some_bytes(LARGE, 1))

    def broken(*_: object) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(basis_module, "chunk_digests", broken)
    assert literal(push(trees)) == LARGE
