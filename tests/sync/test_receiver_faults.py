"""The receiving side when something goes wrong halfway, or takes long."""

import asyncio
import gc
import os
import random
import resource
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from rpc25519_tools.errors import (
    ConnectionLostError,
    DeadlineError,
    LocalFileError,
    RemoteProtocolError,
)
from rpc25519_tools.rpc.calls import RsyncStep
from rpc25519_tools.sync import receiver as receiver_module
from rpc25519_tools.sync import reusing, tabling
from rpc25519_tools.sync.channel import Channel
from rpc25519_tools.sync.copying import copy_range
from rpc25519_tools.sync.durable import Changes
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.outgoing import HOLE_SUM
from rpc25519_tools.sync.pieces import Pieces
from rpc25519_tools.sync.records import (
    Acks,
    Copies,
    Data,
    Deltas,
    End,
    Refine,
    Zeros,
    decode_fins,
    unpack_table,
)
from rpc25519_tools.sync.storing import Store
from rpc25519_tools.wire.greenpack import Buffer
from tests.sync.attackers import END, FILE, HostileSender, Served, overview
from tests.sync.local import MemoryChannel, sync

pytestmark = pytest.mark.usefixtures("nothing_left_open")

MIB = 1 << 20
ALL = SyncOptions(recursive=True, links=True, perms=True, times=True, fsync=False)
SYNCED = SyncOptions(recursive=True, links=True, perms=True, times=True, fsync=True)


@pytest.fixture
def nothing_left_open(no_leaked_fds: None) -> Iterator[None]:
    """See that no descriptors are left, but for those that errors still refer to."""
    yield
    gc.collect()


def some_bytes(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count)


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    source, destination = tmp_path / "src", tmp_path / "dst"
    source.mkdir()
    destination.mkdir()
    return source, destination


async def first_table(sender: HostileSender) -> tuple[list[int], int]:
    """Return the lengths of the chunks of the first file, and their sum."""
    await sender.until(lambda: any(table.last for table in sender.tables))
    lengths = array("I")
    for table in sender.tables:
        lengths += unpack_table(table)
    return list(lengths), sum(lengths)


async def test_who_is_stopped_in_a_copy_leaves_no_wrong_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is to come has come already when the sync is cancelled."""
    data = some_bytes(MIB)
    (tmp_path / "f").write_bytes(data)
    begun, stopped = threading.Event(), threading.Event()
    copy, stop = copy_range, Store.stop

    def copy_slowly(source: int, target: int, start: int, count: int, at: int) -> None:
        copy(source, target, start, count, at)
        if at == 0:
            begun.set()
            assert stopped.wait(5)

    def stop_and_tell(self: Store) -> None:
        stop(self)
        stopped.set()

    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b"f", FILE), size=MIB), END)
        lengths, total = await first_table(sender)
        # The file, turned round at the end of its first chunk.
        first, rest = lengths[0], total - lengths[0]
        pieces = Pieces()
        at = 0
        for length in lengths[1:]:
            part = data[first + at : first + at + length]
            pieces.add(at, length, blake3(part, key=sender.key).digest())
            at += length
        pieces.add(rest, first, blake3(data[:first], key=sender.key).digest())
        runs = [(0, 0, 1, rest), (0, 1, len(lengths) - 1, 0)]
        await sender.contents(Copies(0, runs))
        assert await asyncio.to_thread(begun.wait, 5)
        await sender.contents(End(0, MIB, pieces.root()))

    monkeypatch.setattr(reusing, "_COPY_STEP", 64 * 1024)
    monkeypatch.setattr(reusing, "copy_range", copy_slowly)
    monkeypatch.setattr(Store, "stop", stop_and_tell)
    await Served(tmp_path).attack(script)
    assert stopped.is_set()
    assert (tmp_path / "f").read_bytes() == data


@pytest.mark.parametrize("more", [False, True])
async def test_what_comes_of_a_failed_file_is_refused_and_kept_nowhere(
    tmp_path: Path, more: bool
) -> None:
    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b"f", FILE), size=2 * MIB), END)
        await sender.judged(1)
        records: list[Deltas] = [End(0, 0, b"", "gone"), Data(0, 0, b"x")]
        await sender.contents(*records[: 1 + more])
        await sender.over()

    if more:
        with pytest.raises(RemoteProtocolError, match="nobody wants"):
            await Served(tmp_path).attack(script)
    else:
        assert (await Served(tmp_path).attack(script)).failed == {0: "gone"}
    assert os.listdir(tmp_path) == []


def test_tables_of_small_files_are_told_in_several_messages(
    trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What becomes a small file may have been a large one."""
    source, destination = trees
    monkeypatch.setattr(tabling, "_MESSAGE_LEN", 5000)
    for number in range(24):
        (destination / f"log{number}").write_bytes(some_bytes(200_000, number))
        (source / f"log{number}").write_bytes(some_bytes(700, number))
    one = sync([f"{source}/"], destination, ALL)
    assert one.at_receiver.failures == []
    tables = [count for step, count in one.down.sent if step is RsyncStep.HASHES]
    assert sum(tables) > 24 * 1000
    assert max(tables) < 7000
    assert (destination / "log23").read_bytes() == some_bytes(700, 23)


def test_names_that_cannot_be_synced_are_told_of_each_file(
    trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = trees
    for number in range(1100):  # more than are synced at once
        (source / f"{number}").write_bytes(b"x")
    calls = []

    def sync_names(self: Changes) -> None:
        calls.append(self)
        if len(calls) == 1:
            raise LocalFileError("cannot write '.': input/output error")

    monkeypatch.setattr(Changes, "sync_names", sync_names)
    one = sync([f"{source}/"], destination, SYNCED)
    assert len(one.at_receiver.failures) == 1024
    assert len(one.at_sender.failures) == 1024
    assert len(one.at_receiver.in_place) == 76


def test_replaced_files_are_let_go_of_when_the_line_breaks(
    trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the fixture looks for what is still open."""
    source, destination = trees
    data = some_bytes(17 * MIB)
    (destination / "f").write_bytes(data)
    (source / "f").write_bytes(data[:1000] + b"x" + data[1000:])
    send = MemoryChannel.send

    async def break_line(
        self: MemoryChannel, step: RsyncStep, payload: Buffer, **how: object
    ) -> None:
        if step is RsyncStep.ACK:
            for record in decode_fins(payload):
                if isinstance(record, Acks) and record.done:
                    raise ConnectionLostError("cut")
        await send(self, step, payload, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryChannel, "send", break_line)
    monkeypatch.setattr(receiver_module, "_SALVAGE_S", 0.05)  # nothing more comes
    with pytest.raises(ConnectionLostError):
        sync([f"{source}/"], destination, ALL)


async def test_holes_are_not_read(tmp_path: Path) -> None:
    """What was copied is read again where its source got another name meanwhile."""
    data = some_bytes(100_000)
    (tmp_path / "f").write_bytes(data)
    hole = 1 << 40

    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b"f", FILE), size=100_000), END)
        lengths, _ = await first_table(sender)
        os.link(tmp_path / "f", tmp_path / "g")
        pieces = Pieces()
        first = data[: lengths[0]]
        pieces.add(0, len(first), blake3(first, key=sender.key).digest())
        pieces.add(len(first), hole, HOLE_SUM)
        records: list[Deltas] = [Copies(0, [(0, 0, 1, 0)]), Zeros(0, len(first), hole)]
        end = End(0, len(first) + hole, pieces.root())
        await sender.contents(*records, end)
        await sender.over()
        assert sender.acked == [0]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await Served(tmp_path).attack(script)
    assert (tmp_path / "f").stat().st_size > hole
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


async def test_zeros_over_holes_take_no_room(tmp_path: Path) -> None:
    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b"f", FILE)), END)
        await sender.judged(1)
        pieces = Pieces()
        pieces.add(256 * MIB, 1, blake3(b"x", key=sender.key).digest())
        pieces.add(0, 256 * MIB, HOLE_SUM)
        records: list[Deltas] = [Data(0, 256 * MIB, b"x"), Zeros(0, 0, 256 * MIB)]
        await sender.contents(*records, End(0, 256 * MIB + 1, pieces.root()))
        await sender.over()
        assert sender.acked == [0]

    await Served(tmp_path).attack(script)
    status = (tmp_path / "f").stat()
    assert status.st_size == 256 * MIB + 1
    assert status.st_blocks * 512 < MIB


async def test_blocks_of_few_files_are_told_at_a_time(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}").write_bytes(some_bytes(100_000, number))
    entries = [(b"%d" % number, FILE) for number in range(8)]

    async def script(sender: HostileSender) -> None:
        await sender.entries(overview(*entries, size=100_000), END)
        await sender.until(lambda: sum(one.last for one in sender.tables) == 8)
        await sender.contents(*[Refine(index, [(0, 0, 1)]) for index in range(8)])
        await sender.over()

    with pytest.raises(RemoteProtocolError, match="at the same time"):
        await Served(tmp_path).attack(script)


def test_finished_files_get_their_names_while_others_stream(
    trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = trees
    (source / "a").write_bytes(b"small")
    (source / "b").write_bytes(some_bytes(8 * MIB))
    monkeypatch.setattr(receiver_module, "_SYNC_WITHIN_S", 0.0)
    sent = []
    send = MemoryChannel.send

    async def wait_for_name(
        self: MemoryChannel, step: RsyncStep, payload: Buffer, **how: object
    ) -> None:
        await send(self, step, payload, **how)  # type: ignore[arg-type]
        if step is RsyncStep.DELTAS and how.get("args"):
            sent.append((destination / "a").exists())
            await asyncio.sleep(0.02)  # sooner than a pause that would do it

    monkeypatch.setattr(MemoryChannel, "send", wait_for_name)
    sync([f"{source}/"], destination, SYNCED)
    assert sent[-1] is True


def watched(monkeypatch: pytest.MonkeyPatch, stall_s: float) -> None:
    """Let channels in memory note what goes, as real ones do."""
    send, receive = MemoryChannel.send, MemoryChannel.receive

    async def noting_send(self: MemoryChannel, *args: object, **how: object) -> None:
        await send(self, *args, **how)  # type: ignore[arg-type]
        self._moved_s = self._sent_s = asyncio.get_running_loop().time()

    async def noting_receive(self: MemoryChannel) -> object:
        parts = await receive(self)
        self._moved_s = asyncio.get_running_loop().time()
        return parts

    monkeypatch.setattr(MemoryChannel, "send", noting_send)
    monkeypatch.setattr(MemoryChannel, "receive", noting_receive)
    monkeypatch.setattr(Channel, "_stall_s", stall_s)


async def test_a_slow_disk_is_no_silent_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storing takes twice as long as a peer may be silent; then the peer is silent."""
    release = threading.Event()
    take = Store.take_piece

    def take_slowly(self: Store, *args: object) -> None:
        release.wait(0.8)
        take(self, *args)  # type: ignore[arg-type]
        done.append(loop.time())

    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b"f", FILE), size=2 * MIB), END)
        await sender.judged(1)
        await sender.piece(0, 0, b"data")
        await asyncio.Event().wait()  # silent from here on

    loop = asyncio.get_running_loop()
    done: list[float] = []
    watched(monkeypatch, 0.4)
    monkeypatch.setattr(Store, "take_piece", take_slowly)
    with pytest.raises(DeadlineError, match="stood still"):
        await Served(tmp_path).attack(script)
    assert len(done) == 1
    assert loop.time() - done[0] >= 0.2
