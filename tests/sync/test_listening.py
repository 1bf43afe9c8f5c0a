"""What a receiver sends takes a sender's event loop no longer than it is worth."""

import asyncio
import threading
from pathlib import Path

import pytest

from rpc25519_tools.errors import RemoteProtocolError
from rpc25519_tools.rpc.calls import RsyncStep
from rpc25519_tools.rpc.streams import Part
from rpc25519_tools.sync import sender as sender_module
from rpc25519_tools.sync.records import (
    MAX_BATCH,
    Acks,
    Blocks,
    Fins,
    Hashes,
    Removed,
    Table,
    Totals,
    Verdict,
    Verdicts,
    decode_fins,
    decode_hashes,
    encode_records,
    is_quick,
)
from tests.sync.attackers import HostileReceiver, attack_sender

KEY = bytes(range(32))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree of one file."""
    top = tmp_path / "source"
    top.mkdir()
    (top / "f").write_bytes(b"f" * 2000)
    return top


@pytest.mark.parametrize(
    ("step", "record"),
    [(RsyncStep.HASHES, Verdicts(0, b"")), (RsyncStep.ACK, Acks([]))],
)
async def test_a_few_bytes_of_many_records_are_refused(
    source: Path, step: RsyncStep, record: Hashes | Fins
) -> None:
    message = encode_records([record] * 65536)
    assert len(message) < 100

    async def script(receiver: HostileReceiver) -> None:
        await receiver.parts(RsyncStep.OVERVIEW)
        await receiver.channel.send(step, message)
        await asyncio.Event().wait()

    with pytest.raises(RemoteProtocolError, match="malformed"):
        await attack_sender(source, script)


async def test_verdicts_on_nothing_are_refused(source: Path) -> None:
    async def script(receiver: HostileReceiver) -> None:
        await receiver.parts(RsyncStep.OVERVIEW)
        await receiver.hashes(Verdicts(0, b"", key=KEY))
        await asyncio.Event().wait()

    with pytest.raises(RemoteProtocolError, match="judged nothing"):
        await attack_sender(source, script)


async def test_others_have_their_turn_between_messages(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []

    def counting(payload: bytes) -> object:
        turns.append(ticks)
        return decode_fins(payload)

    monkeypatch.setattr(sender_module, "decode_fins", counting)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    async def script(receiver: HostileReceiver) -> None:
        await receiver.parts(RsyncStep.OVERVIEW)
        message = encode_records([Acks([])])
        for _ in range(20):  # all of them come at once
            receiver.channel.peer._parts.append(  # type: ignore[union-attr]
                Part(0, message, {}, False, RsyncStep.ACK)
            )
        await receiver.hashes(Verdicts(0, bytes([Verdict.EQUAL] * 2), key=KEY))
        await receiver.fins(Acks([], {}, Totals()))
        await asyncio.Event().wait()

    ticking = asyncio.ensure_future(tick())
    await attack_sender(source, script)
    ticking.cancel()
    assert len(turns) == len(set(turns)) == 21


@pytest.mark.parametrize("is_packed", [True, False])
async def test_only_what_is_short_and_not_packed_is_decoded_on_the_loop(
    source: Path, monkeypatch: pytest.MonkeyPatch, is_packed: bool
) -> None:
    threads = []

    def noting(payload: bytes) -> object:
        threads.append(threading.get_ident())
        return decode_fins(payload)

    monkeypatch.setattr(sender_module, "decode_fins", noting)

    async def script(receiver: HostileReceiver) -> None:
        await receiver.parts(RsyncStep.OVERVIEW)
        await receiver.hashes(Verdicts(0, bytes([Verdict.EQUAL] * 2), key=KEY))
        done = list(range(100, 400)) if is_packed else [100]
        await receiver.fins(Acks(done, {}, Totals()))
        await asyncio.Event().wait()

    await attack_sender(source, script)
    assert (threads == [threading.get_ident()]) is not is_packed


def test_what_is_quick() -> None:
    plain = encode_records([Acks([])])
    assert is_quick(plain)
    assert is_quick(memoryview(plain))
    assert is_quick(b"")
    assert not is_quick(encode_records([Acks([1] * 300)]))
    assert not is_quick(b"\0" + bytes(5000))


def test_many_tables_may_come_together_and_little_else() -> None:
    table = Table(0, 0, in_place=False, lengths=b"", sums=b"", last=False)
    assert len(decode_hashes(encode_records([table] * 4096))) == 4096
    few: list[Hashes] = [Verdicts(0, b"\0"), table, Blocks(0, b"")] * 5
    assert decode_hashes(encode_records(few)) == few
    # What receivers of any version send in one message at most.
    most = Verdicts(
        0, bytes(MAX_BATCH), [1] * MAX_BATCH, dict.fromkeys(range(MAX_BATCH), "no")
    )
    assert decode_hashes(encode_records([most])) == [most]
    for records in (
        [table] * 4097,
        [Verdicts(0, b"\0")] * 16,
        [table] * 20 + [Blocks(0, b"")],
    ):
        with pytest.raises(RemoteProtocolError, match="malformed"):
            decode_hashes(encode_records(records))


def test_acknowledgements_are_few_in_one_message() -> None:
    few: list[Fins] = [Acks([1], {}), Removed([b"x"])] * 7
    assert decode_fins(encode_records(few)) == few
    with pytest.raises(RemoteProtocolError, match="malformed"):
        decode_fins(encode_records([Acks([])] * 16))
