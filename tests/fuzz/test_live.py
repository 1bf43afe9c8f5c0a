"""Running servers under attack for a moment; ``scripts/fuzz --live`` goes on longer."""

import random

import pytest

from rpc25519_tools.wire.framing import FrameDecoder, decode_frame
from tests.fuzz.live import MEMORY_BYTES, WAYS, attack, strange_message


@pytest.mark.parametrize("way", WAYS)
def test_a_server_under_attack_serves_others(way: str) -> None:
    report = attack(WAYS[way], runs=600, seed=1)
    assert report.inputs >= 600
    assert report.failures == []
    assert report.stuck == 0
    assert report.tracebacks == 0
    assert report.grown_bytes < MEMORY_BYTES
    assert report.ok, str(report)


def test_strange_messages_are_well_formed() -> None:
    rng = random.Random(1)
    kinds = set()
    for _ in range(300):
        (frame,) = FrameDecoder(bytearray(1 << 16)).receive_data(strange_message(rng))
        kinds.add(decode_frame(frame).header.call_type)
    assert len(kinds) > 10
