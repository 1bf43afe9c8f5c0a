"""Messages there and back, what Go takes and refuses, and mutated bodies."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import DecodeError
from rpc25519_tools.wire.greenpack import (
    pack_signed,
)
from rpc25519_tools.wire.message import (
    CallType,
    Header,
    Message,
)
from rpc25519_tools.wire.message_packing import encode_message
from rpc25519_tools.wire.message_unpacking import (
    SLICE_FROM_LEN,
    decode_message,
)
from tests.rpc.flows import flow_names, recorded
from tests.wire.bodies import (
    KEY_SERIAL,
    KEY_TYPE,
    REFUSED,
    TAKEN,
    body_mutations,
    decoded_or_refused,
    encode,
    messages,
)


@given(messages)
@example(Message(header=Header()))
@example(Message(header=Header(call_type=CallType.RPC), payload=b"", error="e"))
def test_every_message_comes_back(message: Message) -> None:
    assert decode_message(encode(message)) == message


@given(messages, st.integers(SLICE_FROM_LEN, SLICE_FROM_LEN + 70_000))
@settings(max_examples=30)
def test_every_message_with_a_long_payload_comes_back_as_a_view(
    message: Message, payload_len: int
) -> None:
    payload = bytes(message.payload or b"x").ljust(payload_len, b".")
    body = encode(Message(header=message.header, payload=payload, error=message.error))
    decoded = decode_message(body)
    assert decoded.header == message.header
    assert decoded.error == message.error
    assert isinstance(decoded.payload, memoryview)
    assert decoded.payload == payload
    assert decoded.payload.obj is body


def test_a_payload_is_passed_through_and_not_copied() -> None:
    payload = bytearray(100_000)
    buffers = encode_message(Message(header=Header(), payload=payload, error="e"))
    assert any(buffer is payload for buffer in buffers)


@pytest.mark.parametrize(
    "header",
    [
        Header(seqno=-1),
        Header(seqno=2**64),
        Header(serial=2**63),
        Header(call_type=-(2**63) - 1),
        Header(stream_part=2**63),
    ],
)
def test_integers_that_do_not_fit_are_our_own_fault(header: Header) -> None:
    with pytest.raises(OverflowError):
        encode_message(Message(header=header))


# Bodies made by hand.


@pytest.mark.parametrize("case", TAKEN)
def test_what_go_tolerates_is_taken(case: str) -> None:
    body, message = TAKEN[case]
    assert decode_message(body) == message


@pytest.mark.parametrize("case", REFUSED)
def test_what_breaks_the_rules_is_refused(case: str) -> None:
    with pytest.raises(DecodeError):
        decode_message(REFUSED[case])


def test_go_takes_every_form_that_we_send() -> None:
    # A positive number in a signed field never goes out in an unsigned form.
    for value in (128, 255, 256, 65_535, 65_536, 2**31, 2**32 - 1, 2**32):
        body = encode(Message(header=Header(serial=value, call_type=value)))
        for key in (KEY_SERIAL, KEY_TYPE):
            form = body[body.index(key) + len(key)]
            assert 0xD1 <= form <= 0xD3
        assert pack_signed(value) in body


def test_truncated_anywhere_a_message_is_refused() -> None:
    full = encode(
        Message(
            header=Header(
                created_ns=1,
                sender="tcp://a",
                seqno=300,
                call_type=128,
                args={"k": "v"},
                no_system_compression=True,
            ),
            payload=b"payload",
            error="error",
        )
    )
    decode_message(full)
    for length in range(len(full)):
        with pytest.raises(DecodeError):
            decode_message(full[:length])


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused(body: bytes) -> None:
    decoded_or_refused(body)


@pytest.mark.parametrize("mutation", body_mutations())
@pytest.mark.parametrize("seed", range(3))
def test_mutated_messages_are_decoded_or_refused(mutation: str, seed: int) -> None:
    rng = random.Random(f"{mutation} {seed}")
    mutate = body_mutations()[mutation]
    bodies = [
        one.plain
        for name in flow_names()
        for one in recorded(name, "c2s")[:2]
        if len(one.plain) < 1000
    ]
    for _ in range(1500):
        body = bytearray(rng.choice(bodies))
        for _ in range(rng.randrange(1, 4)):
            if body:
                mutate(rng, body)
        message = decoded_or_refused(bytes(body))
        if message is not None:
            encode(message)  # what was taken can be sent on
