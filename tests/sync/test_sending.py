"""What a sender sends, and where another attempt begins after it."""

import asyncio
import os
from pathlib import Path

import pytest

from rpc25519_tools.errors import ConnectionLostError
from rpc25519_tools.rpc.calls import RsyncStep
from rpc25519_tools.rpc.streams import Part
from rpc25519_tools.sync.carrying import Mark
from rpc25519_tools.sync.channel import Channel, Pace
from rpc25519_tools.sync.observer import Silence
from rpc25519_tools.sync.outgoing import BUNDLE_LEN, SMALL_LEN
from rpc25519_tools.sync.records import (
    Acks,
    Hashes,
    Totals,
    Verdict,
    Verdicts,
    Whole,
    decode_deltas,
    encode_records,
)
from rpc25519_tools.sync.sender import Sender
from rpc25519_tools.sync.source import local_source
from rpc25519_tools.sync.walk import Walk
from rpc25519_tools.wire.greenpack import Buffer
from tests.sync.attackers import ALL, HostileReceiver, attack_sender
from tests.sync.local import Cable, CutChannel, MemoryChannel

KEY = bytes(range(32))
TOTAL = 24_000_000


async def test_files_that_grow_to_too_much_for_one_message_come_in_several(
    tmp_path: Path,
) -> None:
    count, grown = 40, 40_000
    paths: list[Path] = []
    for number in range(count):
        paths.append(tmp_path / f"{number:02}")
        paths[-1].touch()
    sizes: list[int] = []
    came: list[int] = []

    async def script(receiver: HostileReceiver) -> None:
        await receiver.parts(RsyncStep.OVERVIEW)
        for path in paths:
            path.write_bytes(b"x" * grown)
        verdicts = bytes([Verdict.EQUAL] + [Verdict.WANT] * count)
        await receiver.hashes(Verdicts(0, verdicts, key=KEY))
        while len(came) < count:
            for part in await receiver.channel.receive():
                if part.step is RsyncStep.DELTAS:
                    sizes.append(len(part.payload))
                    for record in decode_deltas(part.payload):
                        assert isinstance(record, Whole)
                        assert record.data == b"x" * grown
                        came.append(record.index)
                    await receiver.fins(Acks([], stored=sum(sizes)))
        await receiver.fins(Acks(came), Acks([], {}, Totals()))
        await asyncio.Event().wait()

    await attack_sender(tmp_path, script)
    assert came == list(range(1, count + 1))
    assert max(sizes) < BUNDLE_LEN + 2 * SMALL_LEN + 4096
    assert len(sizes) == count // 4


@pytest.mark.parametrize("limit", [2_000, 100_000, 10_000_000])
async def test_messages_are_short_where_the_rate_is_limited(
    tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for its time, and the line is silent until then."""
    (tmp_path / "large").write_bytes(bytes(3_000_000))
    for number in range(9):
        (tmp_path / f"small{number}").write_bytes(bytes(60_000))
    pace = Pace(limit)
    monkeypatch.setattr(
        MemoryChannel, "message_len", lambda _, most: pace.message_len(most)
    )
    sizes: list[int] = []

    async def script(receiver: HostileReceiver) -> None:
        await receiver.parts(RsyncStep.OVERVIEW)
        verdicts = bytes([Verdict.EQUAL] + [Verdict.WANT] * 10)
        await receiver.hashes(Verdicts(0, verdicts, key=KEY))
        while sum(sizes) < 3_540_000:
            for part in await receiver.channel.receive():
                if part.step is RsyncStep.DELTAS:
                    sizes.append(len(part.payload))
                    await receiver.fins(Acks([], stored=sum(sizes)))
        await receiver.fins(Acks(list(range(1, 11))), Acks([], {}, Totals()))
        await asyncio.Event().wait()

    await attack_sender(tmp_path, script)
    # A small file travels whole where it takes a quarter of a second at most.
    assert max(sizes) <= min(max(4096, limit // 4), 1 << 20) + 61_000 * (limit > 1e6)
    assert len(sizes) >= 3_540_000 // max(sizes)


async def test_attempt_of_which_nothing_was_judged_leaves_the_place_as_it_was(
    tmp_path: Path,
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("f", "g"):
        (tmp_path / "a" / "b" / name).touch()
    cable = Cable(2)  # the first entries get through, and nothing comes back
    up, down = CutChannel(cable), CutChannel(cable)
    up.peer, down.peer = down, up
    source = local_source([os.fsencode(tmp_path) + b"/"])
    sender = Sender(up, Walk(source, ALL, start=Mark((b"a", b"b", b"g"))), Silence())
    sending = asyncio.ensure_future(sender.run())
    assert await down.receive()
    cable.left = 0
    up._arrived.set()
    with pytest.raises(ConnectionLostError):
        await sending
    assert sender.frontier is None


class _SlowLine:
    """The line to an honest receiver that takes so many bytes a second.

    Attributes:
        packed: of each message with contents, whether it may be packed.
        is_through: is set when all of TOTAL bytes has come.
    """

    def __init__(self, rate: float, entries: int) -> None:
        self.packed: list[bool] = []
        self.is_through = asyncio.Event()
        self._rate = rate
        self._entries = entries
        self._answers: asyncio.Queue[Part] = asyncio.Queue()
        self._sent = 0
        self._free_s = 0.0

    def _answer(self, step: RsyncStep, record: Hashes | Acks) -> None:
        self._answers.put_nowait(Part(0, encode_records([record]), {}, False, step))

    async def send(
        self, payload: Buffer, *, step: RsyncStep, compress: bool, **_: object
    ) -> None:
        loop = asyncio.get_running_loop()
        if step is RsyncStep.OVERVIEW:
            verdicts = bytes([Verdict.EQUAL] + [Verdict.WANT] * self._entries)
            self._answer(RsyncStep.HASHES, Verdicts(0, verdicts, key=KEY))
            return
        if len(payload) > 100:
            self.packed.append(compress)
        self._sent += len(payload)
        if self._sent >= TOTAL:
            self.is_through.set()
        self._free_s = max(self._free_s, loop.time()) + len(payload) / self._rate
        acks = Acks([], stored=self._sent)
        loop.call_at(self._free_s, self._answer, RsyncStep.ACK, acks)

    def end(self) -> None:
        """Tell that everything is in place."""
        done = list(range(1, self._entries + 1))
        self._answer(RsyncStep.ACK, Acks(done, {}, Totals()))

    def __aiter__(self) -> "_SlowLine":
        return self

    async def __anext__(self) -> Part:
        return await self._answers.get()

    def take_ready(self) -> list[Part]:
        return []


@pytest.mark.parametrize("is_slow", [True, False])
@pytest.mark.parametrize("is_large", [True, False])
async def test_contents_are_packed_where_the_line_is_slow(
    tmp_path: Path, is_slow: bool, is_large: bool
) -> None:
    """That a receiver has no room, and not that the line has none, tells it, too."""
    count = 1 if is_large else 400
    for number in range(count):
        (tmp_path / f"{number}").write_bytes(bytes(TOTAL // count))
    line = _SlowLine(30e6 if is_slow else 5e9, count)
    channel = Channel(line, line)  # type: ignore[arg-type]
    walk = Walk(local_source([os.fsencode(tmp_path) + b"/"]), ALL)
    sending = asyncio.ensure_future(Sender(channel, walk, Silence()).run())
    async with asyncio.timeout(10):
        await line.is_through.wait()
        line.end()
        await sending
    assert line.packed[0] is False
    assert line.packed[-1] is is_slow
