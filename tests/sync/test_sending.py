"""What a sender sends, and where another attempt begins after it."""

import asyncio
from pathlib import Path

from rpc25519_tools.rpc.calls import RsyncStep
from rpc25519_tools.sync.outgoing import BUNDLE_LEN, SMALL_LEN
from rpc25519_tools.sync.records import (
    Acks,
    Totals,
    Verdict,
    Verdicts,
    Whole,
    decode_deltas,
)
from tests.sync.attackers import HostileReceiver, attack_sender

KEY = bytes(range(32))


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
