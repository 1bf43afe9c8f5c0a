"""A hostile receiver, with a valid certificate: it costs no more than it is owed."""

import asyncio
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from rpc25519_tools.errors import DeadlineError, LocalFileError, RemoteProtocolError
from rpc25519_tools.rpc.calls import RsyncStep
from rpc25519_tools.rpc.streams import Part
from rpc25519_tools.sync.channel import Channel
from rpc25519_tools.sync.matching import MAX_CHUNKS, most_chunks
from rpc25519_tools.sync.observer import Silence
from rpc25519_tools.sync.records import (
    SHORT_SUM_LEN,
    Acks,
    End,
    Hashes,
    Overview,
    Segment,
    Table,
    Totals,
    Verdict,
    Verdicts,
    decode_deltas,
    encode_records,
    pack_lengths,
    pack_nanos,
)
from rpc25519_tools.sync.sender import Sender
from rpc25519_tools.sync.source import Place, SourceDir, selection, served_source
from rpc25519_tools.sync.tree import Tree
from rpc25519_tools.sync.walk import Batch, Item, Walk
from rpc25519_tools.sync.window import FIRST_LEN
from tests.sync.attackers import (
    ALL,
    END,
    FILE,
    HostileReceiver,
    HostileSender,
    Served,
    attack_sender,
    overview,
)
from tests.sync.local import MemoryChannel

_KEY = bytes(range(32))
_WANT = bytes([Verdict.WANT])
_DELTA = bytes([Verdict.WANT_DELTA])
#: Of entries: the root, a directory, two small files, a large one.
_ROOT, _DIRECTORY, _FILE, _OTHER, _LARGE = range(5)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small tree."""
    top = tmp_path / "source"
    (top / "a").mkdir(parents=True)
    (top / "f").write_bytes(b"f" * 2000)
    (top / "g").write_bytes(b"g" * 2000)
    (top / "h").write_bytes(random.Random(1).randbytes(1 << 20))
    return top


def _table(index: int, chunks: Sequence[int], **how: object) -> Table:
    packed = pack_lengths(chunks)
    table = Table(index, 0, in_place=False, lengths=packed, sums=b"", last=False)
    table.sums = bytes(SHORT_SUM_LEN * len(chunks))
    for name, value in how.items():
        setattr(table, name, value)
    return table


async def _refused(source: Path, *records: Hashes | Acks, match: str) -> None:
    async def script(receiver: HostileReceiver) -> None:
        await receiver.parts(RsyncStep.OVERVIEW)
        for record in records:
            if isinstance(record, Acks):
                await receiver.fins(record)
            else:
                await receiver.hashes(record)
        await receiver.parts(RsyncStep.ACK)  # which is never sent

    with pytest.raises(RemoteProtocolError, match=match) as caught:
        await attack_sender(source, script)
    assert "\n" not in str(caught.value)


def _verdicts(*verdicts: Verdict, base: int = 0, **how: object) -> Verdicts:
    made = Verdicts(base, bytes(verdicts), key=b"" if base else _KEY)
    for name, value in how.items():
        setattr(made, name, value)
    return made


_EQUAL, _W, _D = Verdict.EQUAL, Verdict.WANT, Verdict.WANT_DELTA


@pytest.mark.parametrize(
    ("records", "match"),
    [
        ([_verdicts(*[_EQUAL] * 6)], "had not to"),
        ([_verdicts(_EQUAL), _verdicts(_EQUAL)], "out of order|key"),
        ([_verdicts(_EQUAL, base=3)], "out of order"),
        ([Verdicts(0, b"\x09", key=_KEY)], "unknown verdict"),
        ([_verdicts(_EQUAL, key=b"short")], "key makes no sense"),
        ([_verdicts(_EQUAL), _verdicts(_EQUAL, base=1, key=_KEY)], "key makes no"),
        ([_verdicts(_EQUAL, _EQUAL, _W, key=b"")], "sent no key"),
        ([_verdicts(_EQUAL, changes=[1, 2])], "do not fit together"),
        ([_verdicts(_W)], "no contents"),
        ([_verdicts(_EQUAL, _W)], "no contents"),
        ([_verdicts(_EQUAL, _EQUAL, _D), Verdicts(2, _WANT)], "out of order"),
        ([_verdicts(_EQUAL, _EQUAL, _W), Verdicts(2, _DELTA)], "out of order"),
        (
            [_verdicts(_EQUAL, _EQUAL, _W), Verdicts(2, _WANT), Verdicts(2, _WANT)],
            "again and again",
        ),
        ([_verdicts(*[_EQUAL] * 5), Verdicts(2, _WANT)], "out of order"),
        ([Acks([], {}, Totals())], "done before we were"),
        ([_verdicts(_EQUAL, _W), Acks([], {}, Totals())], "no contents"),
        ([_verdicts(*[_EQUAL] * 4, _W), Acks([], {}, Totals())], "done before we"),
        ([_table(3, [2000])], "nobody wants"),
        ([_verdicts(*[_EQUAL] * 4, _W), _table(4, [2000])], "nobody wants"),
    ],
)
async def test_answers_that_make_no_sense_are_refused(
    source: Path, records: list[Hashes | Acks], match: str
) -> None:
    await _refused(source, *records, match=match)


@pytest.mark.parametrize(
    ("table", "match"),
    [
        (_table(_LARGE, [0]), "without bytes"),
        (_table(_LARGE, [(1 << 32) - 1]), "in a way of its own"),
        (_table(_LARGE, [1, 1, 1000]), "in a way of its own"),
        (_table(_LARGE, [1000], lengths=b"\1\2\3"), "does not fit together"),
        (_table(_LARGE, [1000], sums=b"\1\2\3"), "does not fit together"),
        (_table(_LARGE, [1000], basis=3), "out of order"),
    ],
)
async def test_tables_that_make_no_sense_are_refused(
    source: Path, table: Table, match: str
) -> None:
    await _refused(source, _verdicts(*[_EQUAL] * 4, _D), table, match=match)


async def test_short_chunk_ends_a_basis(source: Path) -> None:
    tables = [_table(_LARGE, [1000, 3]), _table(_LARGE, [1000])]
    wanted = _verdicts(*[_EQUAL] * 4, _D)
    await _refused(source, wanted, *tables, match="in a way of its own")


async def test_chunks_of_one_file_are_bounded(source: Path) -> None:
    tables = [_table(_LARGE, [1000] * (1 << 16)) for _ in range(17)]
    most = most_chunks(1 << 20)
    assert most < MAX_CHUNKS < 17 << 16
    wanted = _verdicts(*[_EQUAL] * 4, _D)
    await _refused(source, wanted, *tables, match=f"over {most} chunks")


async def test_chunks_of_files_that_wait_are_bounded(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A small file's tables are only looked at when all of them are there.
    monkeypatch.setattr("rpc25519_tools.sync.sender._MAX_TABLED", 1 << 16)
    wanted = _verdicts(_EQUAL, _EQUAL, _D)
    tables = [_table(_FILE, []) for _ in range(300)]
    await _refused(source, wanted, *tables, match="more chunks than can be kept")


async def test_honest_answers_still_get_their_files(source: Path) -> None:
    async def script(receiver: HostileReceiver) -> None:
        await receiver.parts(RsyncStep.OVERVIEW)
        await receiver.hashes(_verdicts(_EQUAL, _EQUAL, _W, _EQUAL, _EQUAL))
        await receiver.parts(RsyncStep.DELTAS)
        await receiver.hashes(Verdicts(_FILE, _WANT))
        await receiver.parts(RsyncStep.DELTAS, 2)
        assert receiver.literal == 4000
        await receiver.fins(Acks([_FILE]), Acks([], {}, Totals()))
        await asyncio.Event().wait()  # silent from here on

    await attack_sender(source, script)


async def test_chunks_of_a_file_that_was_given_up_are_let_pass(source: Path) -> None:
    async def script(receiver: HostileReceiver) -> None:
        await receiver.parts(RsyncStep.OVERVIEW)
        (source / "h").unlink()
        await receiver.hashes(_verdicts(*[_EQUAL] * 4, _D), _table(_LARGE, [1000]))
        await receiver.parts(RsyncStep.DELTAS)
        assert receiver.literal == 0
        last = _table(_LARGE, [1000], last=True)
        await receiver.hashes(_table(_LARGE, [1000] * 9), last)
        await receiver.fins(Acks([], {_LARGE: "no"}), Acks([], {}, Totals()))
        await asyncio.Event().wait()  # silent from here on

    await attack_sender(source, script)


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("g")], ids=["fifo", "link"]
)
async def test_file_swapped_for_something_else_is_told_and_blocks_nothing(
    source: Path, make: Callable[[Path], None]
) -> None:
    async def script(receiver: HostileReceiver) -> None:
        await receiver.parts(RsyncStep.OVERVIEW)
        (source / "f").unlink()
        make(source / "f")
        await receiver.hashes(_verdicts(_EQUAL, _EQUAL, _W, _EQUAL, _EQUAL))
        (part,) = await receiver.channel.receive()
        (record,) = decode_deltas(part.payload)
        assert isinstance(record, End)
        assert record.failure == "'f' is no regular file any more"
        await receiver.fins(Acks([], {_FILE: "no"}), Acks([], {}, Totals()))
        await asyncio.Event().wait()  # silent from here on

    await attack_sender(source, script)


class _EndlessWalk(Walk):
    """A walk over more files than anybody has."""

    files = total_bytes = produced = 0

    def __init__(self, place: Place) -> None:
        self._place = place

    def batches(self) -> Iterator[Batch]:
        directory = SourceDir(path=(), places=[self._place])
        while True:
            names = [b"%012d" % (self.produced + at) for at in range(2048)]
            items = [
                Item(self._place, directory, name, FILE, 1, 0, holes=False)
                for name in names
            ]
            made = Overview(
                segments=[Segment(0, 2048, ends=False)],
                names=b"\0".join(names),
                modes=[FILE] * 2048,
                sizes=[1] * 2048,
                seconds=[0] * 2048,
                nanos=pack_nanos([0] * 2048),
            )
            yield Batch(self.produced, made, items)
            self.produced += 2048


class _Stalled:
    """The line to a receiver that answers all entries and reads no contents."""

    def __init__(self, answer: Verdict) -> None:
        self.answer = bytes([answer]) * 2048
        self.answers: asyncio.Queue[Part] = asyncio.Queue()
        self.base = 0

    async def send(self, payload: object, **how: object) -> None:
        if how["step"] is not RsyncStep.OVERVIEW:
            await asyncio.Event().wait()  # silent from here on
        record = Verdicts(self.base, self.answer, key=b"" if self.base else _KEY)
        self.base += 2048
        part = Part(0, encode_records([record]), {}, False, RsyncStep.HASHES)
        await self.answers.put(part)

    def __aiter__(self) -> "_Stalled":
        return self

    async def __anext__(self) -> Part:
        return await self.answers.get()

    def take_ready(self) -> list[Part]:
        return []


async def test_who_wants_all_and_reads_nothing_stops_the_walk(source: Path) -> None:
    walk = _EndlessWalk(Place(Tree.local(bytes(source)), (b"f",)))
    line = _Stalled(Verdict.WANT)
    channel = Channel(line, line, stall_s=0.4)  # type: ignore[arg-type]
    with pytest.raises(DeadlineError, match="stood still"):
        await Sender(channel, walk, Silence()).run()
    assert walk.produced < 40_000


class _Silent(_Stalled):
    """The line to somebody who takes everything and says nothing."""

    async def send(self, payload: object, **how: object) -> None:
        pass


@pytest.mark.parametrize("stored", [0, FIRST_LEN])
async def test_no_more_contents_go_than_are_stored_and_a_window(
    tmp_path: Path, stored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryChannel, "_stall_s", 0.4)
    for number in range(100):
        (tmp_path / f"{number}").write_bytes(bytes(64 * 1024))

    async def script(receiver: HostileReceiver) -> None:
        await receiver.parts(RsyncStep.OVERVIEW)
        await receiver.hashes(_verdicts(_EQUAL, *[_W] * 100))
        if stored:
            await receiver.parts(RsyncStep.DELTAS, FIRST_LEN // (128 * 1024))
            await receiver.fins(Acks([], {}, stored=stored))
        arrived.append(receiver)
        await asyncio.Event().wait()  # silent from here on

    arrived: list[HostileReceiver] = []
    with pytest.raises(DeadlineError, match="stood still"):
        await attack_sender(tmp_path, script)
    peer = arrived[0].channel.peer
    assert peer is not None
    sent = sum(count for step, count in peer.sent if step is RsyncStep.DELTAS)
    most = stored + (2 if stored else 1) * FIRST_LEN  # it was stored at once
    assert stored + FIRST_LEN - 128 * 1024 <= sent <= most + 256 * 1024


async def test_silent_receiver_ends_the_sync(source: Path) -> None:
    walk = _EndlessWalk(Place(Tree.local(bytes(source)), (b"f",)))
    line = _Silent(Verdict.WANT)
    channel = Channel(line, line, stall_s=0.2)  # type: ignore[arg-type]
    with pytest.raises(DeadlineError, match="stood still"):
        await Sender(channel, walk, Silence()).run()


async def test_silent_sender_ends_the_sync(tmp_path: Path) -> None:
    line = _Silent(Verdict.WANT)
    channel = Channel(line, line, stall_s=0.2)  # type: ignore[arg-type]
    with (
        Served(tmp_path).receiver(channel) as receiver,  # type: ignore[arg-type]
        pytest.raises(DeadlineError, match="stood still"),
    ):
        await receiver.run()


@pytest.mark.parametrize("step", range(4))
async def test_sender_that_stalls_halfway_ends_the_sync(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryChannel, "_stall_s", 0.2)

    async def script(sender: HostileSender) -> None:
        if step >= 1:
            await sender.entries(overview((b"f", FILE), size=4 << 20))
        if step >= 2:
            await sender.judged(1)
            await sender.piece(0, 0, b"data")
        if step >= 3:
            await sender.entries(END)
        await asyncio.Event().wait()  # silent from here on

    with pytest.raises(DeadlineError, match="stood still"):
        await Served(tmp_path).attack(script)


def test_chosen_paths_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LocalFileError, match="components"):
        selection([b"a/" * 600 + b"a"])
    monkeypatch.setattr("rpc25519_tools.sync.source._MAX_CHOSEN", 100)
    with pytest.raises(LocalFileError, match="too many directories"):
        selection([b"%d/x/y" % number for number in range(60)])


def test_same_directory_named_often_is_listed_once(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    source = served_source(Tree.local(bytes(tmp_path)), [b"d/"] * 5000)
    assert len(source.top.places) == 1


async def test_directory_full_of_what_cannot_be_read_is_told_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpc25519_tools.sync.walk.BATCH_LEN", 16)
    for number in range(100):
        (tmp_path / f"{number}").touch()

    def may(right: object, parts: object) -> bool:
        return right == "list"

    tree = Tree(os.open(tmp_path, os.O_RDONLY), permit=may)
    walk = Walk(served_source(tree, [b""]), ALL)
    batches = list(walk.batches())
    failed = [len(batch.overview.failed) for batch in batches]
    assert sum(failed) == 100
    assert max(failed) <= 16
    assert not batches[-1].overview.segments[-1].whole
