"""Whatever changed, and however tables arrive: what is told makes exactly the file."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import FileChangedError, RemoteProtocolError
from rpc25519_tools.sync import matching, outgoing
from rpc25519_tools.sync.chunking import ChunkSizes
from rpc25519_tools.sync.matching import Matcher, Tables
from rpc25519_tools.sync.pieces import Pieces
from rpc25519_tools.sync.records import Table, pack_lengths
from tests.sync.deltas import KEY, SIZES, Receiver, edited

#: Lengths of chunks do not matter here.
ANY = ChunkSizes(1, 1, 1 << 32)


def transfer(
    folder: Path,
    bases: list[tuple[bytes, bool]],
    new: bytes,
    *,
    part_len: int = 1000,
    steps: Iterator[int] | None = None,
) -> Receiver:
    """Go through a file while tables arrive; check what the other side makes of it."""
    receiver = Receiver(folder, bases)
    tables = Tables(ANY)
    coming = list(receiver.tables(part_len))
    path = folder / "new"
    path.write_bytes(new)
    fd = os.open(path, os.O_RDONLY)
    try:
        matcher = Matcher(fd, len(new), KEY, SIZES, tables)

        def settle() -> None:
            runs, missing = matcher.settle()
            receiver.copy(runs)
            for at, length in missing:
                data = new[at : at + length]
                matcher.pieces.add(at, length, blake3(data, key=KEY).digest())
                receiver.write(at, data)

        while not matcher.is_through or coming:
            for _ in range(next(steps, 1) if steps is not None else 1):
                if coming:
                    tables.add(coming.pop(0))
            before = matcher.at
            receiver.copy(matcher.step())
            if matcher.can_settle:
                settle()
            assert coming or matcher.at > before or matcher.is_through
        settle()
        assert not matcher.can_settle
    finally:
        os.close(fd)
    assert bytes(receiver.memory[: len(new)]) == new
    assert receiver.pieces.covered == matcher.pieces.covered == len(new)
    assert receiver.pieces.root() == matcher.pieces.root()
    assert receiver.literal + matcher.matched == len(new)
    return receiver


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matching")


@settings(deadline=None, max_examples=120)
@given(
    contents=edited(),
    part_len=st.sampled_from([1, 3, 50, 1000]),
    step_len=st.sampled_from([1, 3000, 1 << 20]),
    arrivals=st.lists(st.integers(0, 4), max_size=20),
)
def test_any_file_is_made_again(
    folder: Path,
    contents: tuple[list[bytes], bytes],
    part_len: int,
    step_len: int,
    arrivals: list[int],
) -> None:
    olds, new = contents
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "STEP_LEN", step_len)
        bases = [(old, False) for old in olds]
        transfer(folder, bases, new, part_len=part_len, steps=iter(arrivals))


@settings(deadline=None, max_examples=60)
@given(contents=edited(), kept=st.integers(0, 20_000), hole=st.integers(0, 5000))
def test_file_is_carried_on_with_in_place(
    folder: Path, contents: tuple[list[bytes], bytes], kept: int, hole: int
) -> None:
    olds, new = contents
    partial = bytearray(new[:kept])
    partial[hole : hole + 500] = bytes(len(partial[hole : hole + 500]))
    bases = [(bytes(partial), True), *((old, False) for old in olds[:1])]
    receiver = transfer(folder, bases, new)
    assert receiver.literal <= len(new)


@pytest.mark.parametrize("seed", range(20))
def test_little_is_sent_where_little_changed(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    old = chance.randbytes(60_000)
    new = bytearray(old)
    edits = chance.randrange(1, 5)
    for _ in range(edits):
        at = chance.randrange(len(new))
        match chance.randrange(3):
            case 0:
                new[at:at] = chance.randbytes(10)
            case 1:
                del new[at : at + 10]
            case _:
                new[at : at + 10] = chance.randbytes(10)
    receiver = transfer(folder, [(old, False)], bytes(new), part_len=7)
    # An edit spoils its chunk, at times the next one or two.
    assert receiver.literal <= edits * 3 * SIZES.max_len


@pytest.mark.parametrize("part_len", [1, 1000])
def test_nothing_is_sent_of_what_is_there(folder: Path, part_len: int) -> None:
    one, two = (random.Random(seed).randbytes(20_000) for seed in (1, 2))
    assert transfer(folder, [(one, False)], one, part_len=part_len).literal == 0
    shuffled = two + one + two + one
    got = transfer(folder, [(one, False), (two, False)], shuffled, part_len=part_len)
    # Where contents meet, chunks begin elsewhere than in either file.
    assert got.literal <= 7 * SIZES.max_len


def test_half_of_a_file_that_is_there_is_not_sent_again(folder: Path) -> None:
    new = random.Random(5).randbytes(30_000)
    receiver = transfer(folder, [(new[:20_000], True)], new)
    assert receiver.literal <= 10_000 + SIZES.max_len


def test_zeros_in_an_unfinished_file_match_only_where_they_are(folder: Path) -> None:
    new = random.Random(6).randbytes(10_000) + bytes(20_000)
    receiver = transfer(folder, [(bytes(30_000), True)], new)
    assert bytes(receiver.memory) == new


def test_file_without_a_basis_is_sent_in_pieces_that_are_not_too_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "PIECE_LEN", 5000)
    new = random.Random(7).randbytes(23_456)
    receiver = transfer(folder, [], new)
    assert receiver.literal == len(new)
    lengths = [length for _, length, _ in receiver.pieces.all()]
    assert 4 < len(lengths) <= 7
    assert max(lengths) <= 5000


def test_empty_file_needs_nothing(folder: Path) -> None:
    assert transfer(folder, [(b"old", False)], b"").literal == 0
    assert transfer(folder, [], b"").literal == 0


def test_file_that_becomes_shorter_is_given_up(folder: Path) -> None:
    path = folder / "short"
    path.write_bytes(bytes(5000))
    fd = os.open(path, os.O_RDONLY)
    try:
        tables = Tables(ANY)
        tables.add(Table(0, 0, False, b"", b"", True))
        matcher = Matcher(fd, 6000, KEY, SIZES, tables)
        with pytest.raises(FileChangedError):
            matcher.step()
    finally:
        os.close(fd)


# Tables.


def table(
    basis: int = 0, *, lengths: tuple[int, ...] = (5,), last: bool = False
) -> Table:
    sums = b"".join(b"%06d" % length for length in lengths)
    return Table(0, basis, False, pack_lengths(lengths), sums, last)


def test_tables_know_where_chunks_are() -> None:
    tables = Tables(ANY)
    tables.add(table(lengths=(5, 6)))
    tables.add(table(1, lengths=(7, 5), last=True))
    assert tables.find(b"%06d" % 5, 5, 100) == (0, 0)
    assert tables.find(b"%06d" % 7, 7, 100) == (1, 0)
    assert tables.find(b"%06d" % 7, 8, 100) is None
    assert tables.find(b"%06d" % 9, 9, 100) is None


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        (table(1), None, "out of order"),
        (table(), table(2), "out of order"),
        (table(last=True), table(), "after the last"),
        (Table(0, 0, False, b"\1\0\0\0", b"", True), None, "fit together"),
        (Table(0, 0, False, b"\1\0\0", b"x" * 6, True), None, "fit together"),
        (Table(0, 0, False, bytes(4), b"x" * 6, True), None, "without bytes"),
    ],
)
def test_tables_that_make_no_sense_are_refused(
    first: Table, second: Table | None, why: str
) -> None:
    tables = Tables(ANY)
    if second is not None:
        tables.add(first)
    with pytest.raises(RemoteProtocolError, match=why):
        tables.add(first if second is None else second)


def test_too_many_chunks_are_refused() -> None:
    tables = Tables(ANY, 3)
    tables.add(table(lengths=(1, 2, 3)))
    with pytest.raises(RemoteProtocolError, match="over 3 chunks"):
        tables.add(table(lengths=(4,)))


def test_too_many_bases_are_refused() -> None:
    tables = Tables(ANY)
    for number in range(matching.MAX_BASES):
        tables.add(table(number))
    with pytest.raises(RemoteProtocolError, match="out of order"):
        tables.add(table(matching.MAX_BASES))


# Pieces.


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=30),
    order=st.randoms(use_true_random=False),
    grouped=st.booleans(),
)
def test_order_of_pieces_does_not_matter(
    lengths: list[int], order: random.Random, grouped: bool
) -> None:
    found = []
    at = 0
    for length in lengths:
        found.append((at, length, blake3(b"%d" % at).digest()))
        at += length
    straight, mixed = Pieces(), Pieces()
    if grouped:
        straight.extend(0, lengths, [one for _, _, one in found])
    else:
        for piece in found:
            straight.add(*piece)
    shuffled = found.copy()
    order.shuffle(shuffled)
    for piece in shuffled:
        mixed.add(*piece)
    assert list(mixed.all()) == list(straight.all()) == found
    assert mixed.root() == straight.root() == mixed.root()
    assert mixed.covered == at


def test_other_pieces_have_another_root() -> None:
    def root(*found: tuple[int, int, bytes]) -> bytes:
        pieces = Pieces()
        for piece in found:
            pieces.add(*piece)
        return pieces.root()

    one, two = bytes([1]) * 32, bytes([2]) * 32
    roots = {
        root(),
        root((0, 5, one)),
        root((0, 6, one)),
        root((0, 5, two)),
        root((1, 5, one)),
        root((0, 5, one), (5, 5, two)),
        root((0, 5, two), (5, 5, one)),
        root((0, 4, one), (4, 6, two)),
        root((0, 5, one), (5, 6, two)),
        root((0, 5, outgoing.HOLE_SUM)),
    }
    assert len(roots) == 10


def test_root_is_fixed() -> None:
    pieces = Pieces()
    pieces.add(0, 7, bytes(range(32)))
    pieces.add(7, 3, bytes(range(32, 64)))
    assert pieces.root().hex() == GOLDEN_ROOT


GOLDEN_ROOT = "e20ac7ae7a6c8b255c6c43572e3deaf04cf651f853df7f2278aab45f06405c10"
