"""Whatever changed in long chunks: the file is exactly right, and little is sent."""

import errno
import gc
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import ConnectionLostError, RemoteProtocolError
from rpc25519_tools.sync import contents, refining
from rpc25519_tools.sync import receiver as receiver_module
from rpc25519_tools.sync.chunking import ChunkSizes
from rpc25519_tools.sync.matching import Matcher, Tables
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.pending import Outcome, Pending
from rpc25519_tools.sync.records import SHORT_SUM_LEN, Blocks, Refine
from rpc25519_tools.sync.refining import Refining, block_sums
from rpc25519_tools.sync.reusing import Reusing
from rpc25519_tools.sync.storing import Store

from .deltas import KEY, SIZES, Receiver, edited
from .local import LocalSync, sync
from .trees import Trees

BLOCK_LEN = 32
#: A change of some bytes lies in two blocks at most.
COST = 2 * BLOCK_LEN
ALL = SyncOptions(recursive=True, perms=True, times=True, fsync=False)
SPARSE = SyncOptions(recursive=True, perms=True, times=True, fsync=False, sparse=True)
LARGE = 300_000


@pytest.fixture(scope="module", autouse=True)
def short_blocks() -> Iterator[None]:
    """Have short blocks, and all but small files compared by them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refining, "BLOCK_LEN", BLOCK_LEN)
        patch.setattr(contents, "REFINED_ABOVE", 0)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refining")


class _Source:
    """What a Refining needs of an open source."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_into(self, memory: memoryview, at: int) -> None:
        memory[:] = self._data[at : at + len(memory)]


def transfer(folder: Path, bases: list[tuple[bytes, bool]], new: bytes) -> Receiver:
    """Go through a file and refine what is missing; check what is made of it."""
    receiver = Receiver(folder, bases)
    tables = Tables(ChunkSizes(1, 1, 1 << 32))
    for table in receiver.tables(50):
        tables.add(table)
    path = folder / "new"
    path.write_bytes(new)
    fd = os.open(path, os.O_RDONLY)
    try:
        matcher = Matcher(fd, len(new), KEY, SIZES, tables)
        while not matcher.is_through:
            receiver.copy(matcher.step())
        runs, missing = matcher.settle()
    finally:
        os.close(fd)
    receiver.copy(runs)
    here = Refining(missing, matcher, tables, KEY)
    sums = b"".join(_answer(receiver, *one) for one in here.ranges)
    patches = here.take(sums, _Source(new))  # type: ignore[arg-type]
    for number, offset, length, at in patches:
        assert 0 < length <= refining.MAX_STRETCH
        data = _held(receiver, number)[offset : offset + length]
        assert len(data) == length
        assert offset == at or not receiver.bases[number][3]
        receiver.put(at, data)
        receiver.pieces.add(at, length, blake3(data, key=KEY).digest())
    for at, length in here.missing:
        data = new[at : at + length]
        matcher.pieces.add(at, length, blake3(data, key=KEY).digest())
        receiver.write(at, data)
    assert bytes(receiver.memory[: len(new)]) == new
    assert receiver.pieces.are_whole(len(new))
    assert matcher.pieces.are_whole(len(new))
    assert receiver.pieces.root() == matcher.pieces.root()
    assert receiver.literal + here.matched + matcher.matched == len(new)
    return receiver


def _held(receiver: Receiver, number: int) -> bytes:
    """Return what a basis holds now: an unfinished file changes while it is written."""
    data, _, _, in_place = receiver.bases[number]
    return bytes(receiver.memory) if in_place else data


def _answer(receiver: Receiver, number: int, first: int, count: int) -> bytes:
    lengths = receiver.bases[number][1]
    assert first + count <= len(lengths)
    begin, length = sum(lengths[:first]), sum(lengths[first : first + count])
    assert 0 < length <= refining.MAX_RANGE
    return block_sums(_held(receiver, number)[begin : begin + length], KEY)


@given(edited(), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_refined_file_is_exactly_the_new_one(
    folder: Path, made: tuple[list[bytes], bytes], in_place: int
) -> None:
    olds, new = made
    # An unfinished file is the first of the bases, and 1 of 4 files has one.
    bases = [(old, number == 0 == in_place) for number, old in enumerate(olds)]
    transfer(folder, bases, new)


@given(st.binary(max_size=5000), st.binary(max_size=5000), st.booleans())
@settings(max_examples=50, deadline=None)
def test_contents_that_have_nothing_to_do_with_each_other(
    folder: Path, old: bytes, new: bytes, in_place: bool
) -> None:
    transfer(folder, [(old, in_place)], new)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 8)), min_size=1, max_size=6),
    st.integers(2000, 30_000),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_edits_cost_their_blocks(
    folder: Path, edits: list[tuple[float, int]], size: int, in_place: bool
) -> None:
    old = random.Random(size).randbytes(size)
    new = bytearray(old)
    for where, count in edits:
        at = int(where * (size - count))
        new[at : at + count] = bytes(255 - byte for byte in new[at : at + count])
    receiver = transfer(folder, [(old, in_place)], bytes(new))
    assert 0 < receiver.literal <= COST * len(edits) or new == old


@given(st.floats(0, 1), st.integers(2000, 30_000), st.integers(-60, 60))
@settings(max_examples=100, deadline=None)
def test_insertion_or_deletion_costs_itself_and_the_blocks_around_it(
    folder: Path, where: float, size: int, by: int
) -> None:
    old = random.Random(size).randbytes(size)
    at = int(where * size)
    if by < 0:
        new = old[:at] + old[at - by :]
    else:
        new = old[:at] + random.Random(by).randbytes(by) + old[at:]
    receiver = transfer(folder, [(old, False)], new)
    assert receiver.literal <= max(by, 0) + COST


@pytest.mark.parametrize("place", [0, 15_000, 29_999])
def test_first_and_last_byte(folder: Path, place: int) -> None:
    old = random.Random(1).randbytes(30_000)
    new = bytearray(old)
    new[place] ^= 255
    receiver = transfer(folder, [(old, False)], bytes(new))
    assert 0 < receiver.literal <= BLOCK_LEN


@pytest.mark.parametrize("in_place", [False, True])
def test_zeros(folder: Path, in_place: bool) -> None:
    old = bytes(20_000)
    new = bytes(7000) + b"x" + bytes(15_000)
    receiver = transfer(folder, [(old, in_place)], new)
    assert receiver.literal < 5000


@pytest.mark.parametrize("count", [0, 1, BLOCK_LEN, BLOCK_LEN + 1, 10 * BLOCK_LEN - 1])
def test_sums_of_blocks(count: int) -> None:
    data = random.Random(count).randbytes(count)
    blocks = [data[at : at + BLOCK_LEN] for at in range(0, count, BLOCK_LEN)]
    sums = [blake3(one, key=KEY).digest()[:SHORT_SUM_LEN] for one in blocks]
    assert block_sums(data, KEY) == b"".join(sums)


@pytest.mark.parametrize(
    ("name", "value", "asked"),
    [
        ("MAX_RANGES", 2, 2),
        ("MAX_REFINED", 1000, 3),
        ("MAX_RANGE", 10, 0),
        ("MAX_STRETCH", 10, 0),
    ],
)
def test_what_is_too_much_is_just_sent(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: int, asked: int
) -> None:
    old = random.Random(1).randbytes(30_000)
    new = bytearray(old)
    for at in range(1000, 30_000, 3000):
        new[at] ^= 255
    free = transfer(folder, [(old, False)], bytes(new))
    ranges: list[int] = []
    take = Refining.take

    def noted(self: Refining, *args: object) -> object:
        ranges.append(len(self.ranges))
        return take(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Refining, "take", noted)
    monkeypatch.setattr(refining, name, value)
    bound = transfer(folder, [(old, False)], bytes(new))
    assert free.literal < 10 * COST < bound.literal
    assert min(asked, 1) <= ranges[0] <= asked


@pytest.mark.parametrize("change", [-1, 1, SHORT_SUM_LEN, -SHORT_SUM_LEN])
def test_answer_of_another_length_is_refused(folder: Path, change: int) -> None:
    old = random.Random(1).randbytes(3000)
    receiver = Receiver(folder, [(old, False)])
    tables = Tables(SIZES)
    for table in receiver.tables(50):
        tables.add(table)
    (folder / "new").write_bytes(b"!" + old[1:])
    fd = os.open(folder / "new", os.O_RDONLY)
    matcher = Matcher(fd, len(old), KEY, SIZES, tables)
    matcher.step()
    os.close(fd)
    here = Refining(matcher.settle()[1], matcher, tables, KEY)
    (asked,) = here.ranges
    sums = _answer(receiver, *asked) + bytes(max(change, 0))
    with pytest.raises(RemoteProtocolError, match="not those asked for"):
        here.take(sums[: len(sums) + min(change, 0)], _Source(old))  # type: ignore[arg-type]


# Whole syncs.


@pytest.fixture
def refined(monkeypatch: pytest.MonkeyPatch) -> list[Refine]:
    """What was asked for."""
    asked: list[Refine] = []
    refine = Reusing.refine

    def noted(self: Reusing, pending: Pending, record: Refine) -> Blocks:
        asked.append(record)
        return refine(self, pending, record)

    monkeypatch.setattr(Reusing, "refine", noted)
    return asked


def edited_file(trees: Trees, size: int = LARGE) -> bytes:
    """Have a file on both sides, and a few bytes of it changed."""
    source, destination = trees
    data = bytearray(random.Random(size).randbytes(size))
    (destination / "a").write_bytes(data)
    for at in (0, size // 3, size - 1):
        data[at] ^= 255
    (source / "a").write_bytes(data)
    return bytes(data)


def push(trees: Trees, options: SyncOptions = ALL) -> LocalSync:
    one = sync([f"{trees[0]}/"], trees[1], options)
    assert one.at_sender.failures == one.at_receiver.failures == []
    return one


@pytest.mark.usefixtures("no_leaked_fds")
def test_few_bytes_of_an_edited_file_travel(
    trees: Trees, refined: list[Refine]
) -> None:
    data = edited_file(trees)
    one = push(trees)
    assert (trees[1] / "a").read_bytes() == data
    assert len(refined) == 1
    assert len(refined[0].ranges) == 3
    assert 0 < one.totals.literal_bytes <= 3 * BLOCK_LEN
    assert one.totals.literal_bytes + one.totals.matched_bytes == len(data)


def test_file_that_did_not_change_is_not_asked_about(
    trees: Trees, refined: list[Refine]
) -> None:
    data = edited_file(trees)
    (trees[1] / "a").write_bytes(data)
    assert push(trees).totals.literal_bytes == 0
    assert not refined


def test_file_not_above_the_limit_is_not_asked_about(
    trees: Trees, refined: list[Refine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "REFINED_ABOVE", LARGE)
    data = edited_file(trees)
    assert push(trees).totals.literal_bytes > 3 * BLOCK_LEN
    assert (trees[1] / "a").read_bytes() == data
    assert not refined


def test_file_of_which_much_is_missing_is_not_asked_about(
    trees: Trees, refined: list[Refine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "MAX_MISSING", 1000)
    data = edited_file(trees)
    push(trees)
    assert (trees[1] / "a").read_bytes() == data
    assert not refined


@pytest.mark.parametrize("options", [ALL, SPARSE])
def test_patches_leave_holes(
    trees: Trees, refined: list[Refine], options: SyncOptions
) -> None:
    source, destination = trees
    size, edge = 8 << 20, 1 << 20
    data = random.Random(1).randbytes(edge)
    for top, mark in ((source, b"new"), (destination, b"old")):
        with (top / "a").open("wb") as file:
            file.write(data + mark)
            file.truncate(size)
    one = push(trees, options)
    made = destination / "a"
    assert made.read_bytes() == (source / "a").read_bytes()
    assert refined
    assert one.totals.literal_bytes <= COST
    assert made.stat().st_blocks * 512 < 2 * edge


@pytest.mark.usefixtures("no_leaked_fds")
def test_disk_that_is_full_while_blocks_are_awaited(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Blocks:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Reusing, "refine", full)
    _fails_alone(trees)


@pytest.mark.usefixtures("no_leaked_fds")
@pytest.mark.parametrize("name", ["_copy_from", "patch"])
def test_disk_that_is_full_before_and_after_that(
    trees: Trees,
    refined: list[Refine],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Reusing, name, full)
    _fails_alone(trees)
    assert len(refined) == (name == "patch")


def _fails_alone(trees: Trees) -> None:
    source, destination = trees
    edited_file(trees)
    before = (destination / "a").read_bytes()
    (source / "b").write_bytes(b"small")
    (source / "c").write_bytes(b"other contents" * 10_000)
    one = sync([f"{source}/"], destination, ALL)
    ((path, note),) = one.at_receiver.failures
    assert one.at_sender.failures == one.at_receiver.failures
    assert path == (b"a",)
    assert "disk full" in note
    assert (destination / "a").read_bytes() == before
    assert (destination / "b").read_bytes() == b"small"
    assert (destination / "c").read_bytes() == b"other contents" * 10_000


def _write_into(path: Path) -> None:
    with path.open("r+b") as file:
        for at in (200, LARGE // 2):
            file.seek(at)
            file.write(b"something else")


def _cut_short(path: Path) -> None:
    os.truncate(path, LARGE // 2)


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"another file" * 30_000)
    other.rename(path)


@pytest.mark.usefixtures("no_leaked_fds")
@pytest.mark.parametrize("change", [_write_into, _cut_short, _replace, Path.unlink])
def test_basis_that_changes_before_its_blocks_are_asked_for(
    trees: Trees,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
) -> None:
    data = edited_file(trees)
    refine = Reusing.refine

    def late(self: Reusing, pending: Pending, record: Refine) -> Blocks:
        change(trees[1] / "a")
        return refine(self, pending, record)

    monkeypatch.setattr(Reusing, "refine", late)
    one = push(trees)
    assert (trees[1] / "a").read_bytes() == data
    # A file that was opened stays what it was.
    assert (one.totals.literal_bytes >= LARGE) == (change is _cut_short)


@pytest.mark.usefixtures("no_leaked_fds")
@pytest.mark.parametrize("change", [_write_into, _cut_short])
def test_basis_that_changes_before_it_is_patched_from(
    trees: Trees,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
) -> None:
    data = edited_file(trees)
    patch = Reusing.patch

    def late(self: Reusing, *args: object) -> int:
        change(trees[1] / "a")
        return patch(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Reusing, "patch", late)
    one = push(trees)
    assert (trees[1] / "a").read_bytes() == data
    assert one.totals.literal_bytes >= LARGE


@pytest.mark.usefixtures("no_leaked_fds")
def test_source_that_becomes_shorter_while_blocks_are_awaited(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited_file(trees)
    before = (trees[1] / "a").read_bytes()
    refine = Reusing.refine

    def late(self: Reusing, pending: Pending, record: Refine) -> Blocks:
        os.truncate(trees[0] / "a", 10)
        return refine(self, pending, record)

    monkeypatch.setattr(Reusing, "refine", late)
    one = sync([f"{trees[0]}/"], trees[1], ALL)
    ((path, note),) = one.at_receiver.failures
    assert path == (b"a",)
    assert "changed" in note
    assert (trees[1] / "a").read_bytes() == before
    gc.collect()  # tracebacks of what failed hold what was open


@pytest.mark.usefixtures("no_leaked_fds")
def test_attempt_after_a_cut_while_blocks_were_awaited_refines_what_was_left(
    trees: Trees, refined: list[Refine]
) -> None:
    data = edited_file(trees, 3 << 20)
    tell = receiver_module.Receiver._tell

    async def cut(self: receiver_module.Receiver, outcome: Outcome) -> None:
        if outcome.blocks:
            raise ConnectionLostError("the line was cut")
        await tell(self, outcome)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(receiver_module.Receiver, "_tell", cut)
        patch.setattr(receiver_module, "_SALVAGE_S", 0.1)
        with pytest.raises(ConnectionLostError):
            sync([f"{trees[0]}/"], trees[1], ALL)
    gc.collect()  # its traceback holds what was open
    area = trees[1] / ".rpc25519-part-area"
    left = [one for one in area.rglob("*") if one.is_file()]
    assert max(one.stat().st_size for one in left) > len(data) // 2
    # Nothing but what was left serves the next attempt.
    (trees[1] / "a").unlink()
    before = len(refined)
    one = push(trees)
    assert (trees[1] / "a").read_bytes() == data
    assert one.totals.matched_bytes > len(data) * 9 // 10
    assert len(refined) > before


@pytest.mark.usefixtures("no_leaked_fds")
def test_blocks_of_a_file_are_taken_where_it_lies(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is patched onto what an earlier attempt left of it."""
    data = edited_file(trees, 3 << 20)
    moved = bytearray(data)

    def leave(*_: object) -> None:
        raise RemoteProtocolError("what is there is left")

    with pytest.MonkeyPatch.context() as way:
        way.setattr(Store, "_end", leave)
        with pytest.raises(RemoteProtocolError, match="is left"):
            sync([f"{trees[0]}/"], trees[1], ALL)
    gc.collect()  # its traceback holds what was open
    (trees[1] / "a").unlink()
    for at in (5, 1 << 20, len(moved) - 5):
        moved[at] ^= 255
    (trees[0] / "a").write_bytes(moved)
    in_place: list[bool] = []
    patch = Reusing.patch

    def noted(self: Reusing, pending: Pending, number: int, *rest: int) -> int:
        in_place.append(pending.bases[number].in_place)
        return patch(self, pending, number, *rest)

    monkeypatch.setattr(Reusing, "patch", noted)
    one = push(trees)
    assert (trees[1] / "a").read_bytes() == moved
    assert in_place
    assert all(in_place)
    assert one.totals.literal_bytes <= 3 * BLOCK_LEN
