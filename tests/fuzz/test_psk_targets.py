"""The fuzz targets of the tunnel, briefly."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpc25519_tools.wire.handshake import PREFIX_LEN, TAG_LEN, encode_handshake
from tests.fuzz.psk_targets import TARGETS
from tests.wire.psk_vectors import exchange, sample_handshake

RECORDED = bytes.fromhex(exchange("s2")["client_handshake"]["wire_hex"])
SAMPLE = encode_handshake(sample_handshake())
MAGIC_8 = bytes.fromhex("b35d1839ac8e1d01")


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_only_errors_of_ours(
    target: Callable[[bytes], None], data: st.DataObject
) -> None:
    seed = data.draw(
        st.sampled_from([b"", MAGIC_8, RECORDED, RECORDED[PREFIX_LEN:-TAG_LEN], SAMPLE])
    )
    mutated = bytearray(seed + data.draw(st.binary(max_size=200)))
    for _ in range(data.draw(st.integers(0, 4)) if mutated else 0):
        at = data.draw(st.integers(0, len(mutated) - 1))
        mutated[at] = data.draw(st.integers(0, 255))
    target(bytes(mutated))
