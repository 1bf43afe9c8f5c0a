"""Hostile peers that ask for blocks, or answer: bounded, and one clear line."""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from blake3 import blake3

from rpc25519_tools.errors import (
    DeadlineError,
    IncompleteTransferError,
    RemoteProtocolError,
)
from rpc25519_tools.rpc.calls import RsyncStep
from rpc25519_tools.sync import contents, refining, reusing
from rpc25519_tools.sync.chunking import chunk_sizes
from rpc25519_tools.sync.pieces import Pieces
from rpc25519_tools.sync.records import (
    MAX_RANGES,
    MAX_RECORDS,
    SHORT_SUM_LEN,
    Acks,
    Blocks,
    Data,
    Deltas,
    End,
    Patches,
    Refine,
    Table,
    Totals,
    Verdict,
    Verdicts,
    decode_deltas,
    decode_hashes,
    encode_records,
    pack_lengths,
)
from tests.sync.attackers import (
    END,
    FILE,
    HostileReceiver,
    HostileSender,
    Served,
    attack_sender,
    overview,
)
from tests.sync.local import MemoryChannel

SIZE = 300_000
OLD = random.Random(SIZE).randbytes(SIZE)
KEY = bytes(range(32))
AREA = ".rpc25519-part-area"


@pytest.fixture
def served(tmp_path: Path) -> Served:
    """A served directory with a file that is about to be changed."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "f").write_bytes(OLD)
    return Served(tmp_path / "root")


async def _tabled(one: HostileSender) -> None:
    """Offer a file, and wait for the tables of what is there."""
    await one.entries(overview((b"f", FILE), size=SIZE), END)
    assert await one.judged(1) == [Verdict.WANT_DELTA]
    await one.until(lambda: any(table.last for table in one.tables))


async def _refused(served: Served, *records: Deltas, match: str) -> None:
    async def script(one: HostileSender) -> None:
        await _tabled(one)
        for record in records:
            await one.contents(record)
        await one.over()

    with pytest.raises(RemoteProtocolError, match=match) as caught:
        await served.attack(script)
    assert "\n" not in str(caught.value)
    assert (served.path / "f").read_bytes() == OLD
    assert set(os.listdir(served.path)) <= {"f", AREA}


_ONE = (0, 0, 1)


@pytest.mark.parametrize(
    ("ranges", "match"),
    [
        ([(1, 0, 1)], "a file that we have not"),
        ([(15, 0, 1)], "a file that we have not"),
        ([((1 << 63) - 1, 0, 1)], "a file that we have not"),
        ([(0, 0, 0)], "a file that we have not"),
        ([(0, 1 << 20, 1)], "a chunk that we have not"),
        ([(0, 0, 1 << 20)], "a chunk that we have not"),
        ([(0, (1 << 63) - 1, (1 << 63) - 1)], "a chunk that we have not"),
        ([_ONE, (0, 0, 1 << 20)], "a chunk that we have not"),
        ([], "malformed"),
        ([_ONE] * (MAX_RANGES + 1), "malformed"),
        ([(-1, 0, 1)], "malformed"),
        ([(0, -1, 1)], "malformed"),
        ([(0, 0, -1)], "malformed"),
    ],
)
async def test_chunks_that_there_are_not_are_not_summed_up(
    served: Served, ranges: list[tuple[int, int, int]], match: str
) -> None:
    await _refused(served, Refine(0, ranges), match=match)


async def test_blocks_of_a_file_nobody_wants(served: Served) -> None:
    await _refused(served, Refine(1, [_ONE]), match="nobody wants")


async def test_blocks_are_asked_for_once(served: Served) -> None:
    await _refused(served, Refine(0, [_ONE]), Refine(0, [_ONE]), match="twice")


@pytest.mark.parametrize(
    ("name", "limit", "ranges"),
    [
        ("MAX_RANGE", SIZE // 4, [(0, 0, 200)]),
        ("MAX_REFINED", 5 * SIZE // 4, [(0, 0, 200)] * MAX_RANGES),
    ],
)
async def test_blocks_that_are_summed_up_are_bounded(
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    limit: int,
    ranges: list[tuple[int, int, int]],
) -> None:
    summed = 0

    def noted(data: bytes, key: bytes) -> bytes:
        nonlocal summed
        summed += len(data)
        return refining.block_sums(data, key)

    monkeypatch.setattr(reusing, "block_sums", noted)
    monkeypatch.setattr(reusing, name, limit)
    await _refused(served, Refine(0, ranges), match="too many blocks")
    assert summed <= limit


_HUGE = (1 << 63) - 1


@pytest.mark.parametrize(
    ("patches", "match"),
    [
        ([(1, 0, 10, 0)], "a file that we have not"),
        ([(15, 0, 10, 0)], "a file that we have not"),
        ([(0, 0, 0, 0)], "a stretch of no length"),
        ([(0, 0, refining.MAX_STRETCH + 1, 0)], "a stretch of no length"),
        ([(0, 0, _HUGE, 0)], "a stretch of no length"),
        ([(0, SIZE, 1, 0)], "what we have not"),
        ([(0, SIZE - 9, 10, 0)], "what we have not"),
        ([(0, _HUGE, 10, 0)], "what we have not"),
        ([(0, 0, 10, _HUGE - 5)], "no possible place"),
        ([(0, 0, 10, 0), (0, 0, 10, 5)], "overlap"),
        ([(0, 0, 10, 0)] * 2, "overlap"),
        ([(-1, 0, 10, 0)], "malformed"),
        ([(0, -1, 10, 0)], "malformed"),
        ([(0, 0, -10, 0)], "malformed"),
        ([(0, 0, 10, -1)], "malformed"),
        ([(0, 0, 10, 0)] * (MAX_RECORDS + 1), "malformed"),
    ],
)
async def test_patches_of_what_there_is_not_are_refused(
    served: Served, patches: list[tuple[int, int, int, int]], match: str
) -> None:
    await _refused(served, Patches(0, patches), match=match)


async def test_patch_of_a_file_that_is_wanted_whole(served: Served) -> None:
    async def script(one: HostileSender) -> None:
        await one.entries(overview((b"g", FILE), size=4))
        assert await one.judged(1) == [Verdict.WANT]
        await one.contents(Patches(0, [(0, 0, 4, 0)]))
        await one.over()

    with pytest.raises(RemoteProtocolError, match="a file that we have not"):
        await served.attack(script)


async def _pieces(one: HostileSender, *ranges: tuple[int, int]) -> Pieces:
    pieces = Pieces()
    for begin, end in ranges:
        data = OLD[begin:end]
        pieces.add(begin, end - begin, blake3(data, key=one.key).digest())
    return pieces


@pytest.mark.parametrize("lie", [False, True])
async def test_gaps_between_patches_are_no_file(served: Served, lie: bool) -> None:
    """Patches that are right make a file; with a gap it is wanted again, then fails."""

    async def script(one: HostileSender) -> None:
        await _tabled(one)
        middle = SIZE // 2
        pieces = await _pieces(one, (0, middle), (middle, SIZE))
        gap = 10 if lie else 0
        rest = SIZE - middle - gap
        patches = [(0, 0, middle, 0), (0, middle + gap, rest, middle + gap)]
        await one.contents(Refine(0, [_ONE]), Patches(0, patches))
        end = End(0, SIZE, pieces.root())
        await one.contents(end)
        if lie:
            await one.until(lambda: one.again == [0])
            await one.contents(Data(0, 0, OLD), end)
        await one.over()

    one = await served.attack(script)
    assert one.acked == ([] if lie else [0])
    assert list(one.failed) == ([0] if lie else [])
    assert (served.path / "f").read_bytes() == OLD


async def test_what_is_in_place_is_not_moved(tmp_path: Path) -> None:
    size = 2 << 20
    data = random.Random(1).randbytes(size)
    (tmp_path / "root").mkdir()
    served = Served(tmp_path / "root")

    async def leave(one: HostileSender) -> None:
        await one.entries(overview((b"f", FILE), size=size))
        await one.judged(1)
        await one.contents(Data(0, 0, data))
        await one.contents(Data(7, 0, b"to be thrown out"))
        await one.over()

    with pytest.raises(RemoteProtocolError, match="nobody wants"):
        await served.attack(leave)

    async def move(one: HostileSender) -> None:
        await one.entries(overview((b"f", FILE), size=size))
        assert await one.judged(1) == [Verdict.WANT_DELTA]
        await one.until(lambda: any(table.last for table in one.tables))
        assert one.tables[0].in_place
        await one.contents(Refine(0, [_ONE]), Patches(0, [(0, 0, 100, 0)]))
        await one.contents(Patches(0, [(0, 0, 100, 100)]))
        await one.over()

    with pytest.raises(RemoteProtocolError, match="moves what is in place"):
        await served.attack(move)


# Hostile receivers.


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with one large file, which is compared by blocks."""
    monkeypatch.setattr(contents, "REFINED_ABOVE", 0)
    top = tmp_path / "source"
    top.mkdir()
    (top / "f").write_bytes(random.Random(1).randbytes(1 << 20))
    return top


Answer = Callable[[HostileReceiver], Awaitable[None]]


async def _asked(one: HostileReceiver) -> Refine:
    """Have a sender ask for blocks; nothing of its file is here, it believes."""
    await one.parts(RsyncStep.OVERVIEW)
    sizes = chunk_sizes(1 << 20)
    chunks = [sizes.avg_len] * ((1 << 20) // sizes.avg_len)
    wrong = bytes(SHORT_SUM_LEN * len(chunks))
    table = Table(1, 0, in_place=False, lengths=b"", sums=wrong, last=True)
    table.lengths = pack_lengths(chunks)
    verdicts = bytes([Verdict.EQUAL, Verdict.WANT_DELTA])
    await one.hashes(Verdicts(0, verdicts, key=KEY), table)
    while True:
        for part in await one.channel.receive():
            if part.step is not RsyncStep.DELTAS or part.args:
                continue
            for record in decode_deltas(part.payload):
                if isinstance(record, Refine):
                    return record


def _right(refine: Refine) -> Blocks:
    """Return an answer of the right length."""
    sizes = chunk_sizes(1 << 20)
    (_, _, count), *others = refine.ranges
    assert not others
    blocks = -(-count * sizes.avg_len // refining.BLOCK_LEN)
    return Blocks(refine.index, bytes(SHORT_SUM_LEN * blocks))


async def _thrown_out(source: Path, script: Answer, match: str) -> None:
    with pytest.raises(RemoteProtocolError, match=match) as caught:
        await attack_sender(source, script)
    assert "\n" not in str(caught.value)


async def test_blocks_nobody_asked_for_are_refused(source: Path) -> None:
    async def script(one: HostileReceiver) -> None:
        await one.parts(RsyncStep.OVERVIEW)
        await one.hashes(Blocks(1, b"sixsix"))
        await one.parts(RsyncStep.ACK)

    await _thrown_out(source, script, "nobody asked for")


@pytest.mark.parametrize(
    ("answers", "match"),
    [
        (lambda right: [Blocks(right.index + 1, right.sums)], "nobody asked for"),
        (lambda right: [right, right], "nobody asked for"),
        (lambda right: [Blocks(right.index, b"")], "not those asked for"),
        (lambda right: [Blocks(right.index, right.sums[1:])], "not those asked for"),
        (lambda right: [Blocks(right.index, bytes(1 << 20))], "not those asked for"),
    ],
)
async def test_wrong_answers_are_refused(
    source: Path, answers: Callable[[Blocks], Sequence[Blocks]], match: str
) -> None:
    async def script(one: HostileReceiver) -> None:
        await one.hashes(*answers(_right(await _asked(one))))
        await one.parts(RsyncStep.ACK)

    await _thrown_out(source, script, match)


async def test_blocks_that_are_all_wrong_cost_what_a_whole_file_does(
    source: Path,
) -> None:
    got = 0

    async def script(one: HostileReceiver) -> None:
        nonlocal got
        await one.hashes(_right(await _asked(one)))
        while True:
            for part in await one.channel.receive():
                if part.args:
                    got += len(part.payload)
                    await one.fins(Acks([], {}, stored=1 << 40))
                    continue
                records = decode_deltas(part.payload) if part.payload else []
                if any(isinstance(record, End) for record in records):
                    await one.hashes(Blocks(9, b""))

    await _thrown_out(source, script, "nobody asked for")
    assert got == 1 << 20


async def test_receiver_that_never_answers_ends_the_sync(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryChannel, "_stall_s", 0.2)

    async def script(one: HostileReceiver) -> None:
        await _asked(one)
        await asyncio.Event().wait()  # silent from here on

    with pytest.raises(DeadlineError, match="stood still"):
        await attack_sender(source, script)


async def test_receiver_that_leaves_instead_of_answering_ends_the_sync(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(one: HostileReceiver) -> None:
        await _asked(one)
        assert one.channel.peer is not None
        monkeypatch.setattr(one.channel.peer, "take_ready", tuple)
        await one.hashes()
        await asyncio.Event().wait()  # silent from here on

    with pytest.raises(IncompleteTransferError, match="ended the sync early"):
        await attack_sender(source, script)


async def test_blocks_of_a_file_that_was_given_up_are_refused(source: Path) -> None:
    async def script(one: HostileReceiver) -> None:
        refine = await _asked(one)
        await one.fins(Acks([], {refine.index: "no room"}))
        await one.parts(RsyncStep.DELTAS, 1)
        await one.hashes(_right(refine))
        await one.parts(RsyncStep.ACK)

    await _thrown_out(source, script, "nobody asked for")


async def test_little_more_comes_of_a_file_that_was_given_up(source: Path) -> None:
    size = 128 << 20
    with (source / "f").open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    got = 0
    ends: list[End] = []

    async def script(one: HostileReceiver) -> None:
        nonlocal got
        await one.parts(RsyncStep.OVERVIEW)
        verdicts = bytes([Verdict.EQUAL, Verdict.WANT])
        await one.hashes(Verdicts(0, verdicts, key=KEY))
        while not ends:
            for part in await one.channel.receive():
                if part.args:
                    if not got:
                        await one.fins(Acks([], {1: "disk full"}))
                    got += len(part.payload)
                    await one.fins(Acks([], {}, stored=got))
                elif part.step is RsyncStep.DELTAS and part.payload:
                    (record,) = decode_deltas(part.payload)
                    assert isinstance(record, End)
                    ends.append(record)
        await one.fins(Acks([], {}, Totals()))

    await attack_sender(source, script)
    assert 0 < got < size // 2
    assert "given it up" in ends[0].failure


@pytest.mark.parametrize("ranges", [[_ONE] * MAX_RANGES, [(0, 1, 2)]])
def test_as_many_ranges_as_may_be_are_read(ranges: list[tuple[int, int, int]]) -> None:
    (record,) = decode_deltas(encode_records([Refine(3, ranges)]))
    assert record == Refine(3, ranges)
    (answer,) = decode_hashes(encode_records([Blocks(3, b"sums")]))
    assert answer == Blocks(3, b"sums")
