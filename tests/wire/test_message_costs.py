"""What a body may cost, whatever is in it."""

import time
import tracemalloc

import pytest

from rpc25519_tools.errors import DecodeError
from rpc25519_tools.wire.constants import MIB
from rpc25519_tools.wire.greenpack import (
    pack_bin_header,
    pack_str,
)
from rpc25519_tools.wire.message import (
    MAX_ERROR_LEN,
    MAX_HEADER_LEN,
    MAX_HEADER_TEXT_LEN,
    Header,
    Message,
)
from rpc25519_tools.wire.message_unpacking import (
    SLICE_FROM_LEN,
    decode_message,
)
from tests.wire.bodies import (
    KEY_ARGS,
    KEY_CREATED,
    KEY_ERROR,
    KEY_HEADER,
    KEY_PAYLOAD,
    KEY_SENDER,
    KEY_TYPE,
    NIL,
    as_bin,
    decoded_or_refused,
    encode,
    packed_map,
    with_header,
)


def _bomb(arrays: int = 200, unit: bytes = b"\x90") -> bytes:
    inner = b"\xdd\x00\x01\x00\x00" + unit * 65_536
    return b"\xdd" + arrays.to_bytes(4, "big") + inner * arrays


def _bombs() -> dict[str, tuple[bytes, bool]]:
    """Bodies, and whether they are messages for all that."""
    bomb, small = _bomb(), _bomb(3)  # the small one fits a header
    later = pack_str("later")
    long_payload = as_bin(bytes(SLICE_FROM_LEN))
    usual = (KEY_HEADER, b"\x80", KEY_PAYLOAD, long_payload)
    many = b"\x81\x01" * 127 + b"\x80"
    return {
        "unknown member": (packed_map(later, bomb, KEY_HEADER, b"\x80"), True),
        "unknown member of maps": (packed_map(later, _bomb(50, b"\x81\1\x80")), True),
        "unknown member of deep maps": (packed_map(later, _bomb(1, many)), True),
        "unknown member, behind": (packed_map(*usual, later, bomb), True),
        "unknown member of the header": (with_header(later, small), True),
        "unknown member of a long header": (with_header(later, bomb), False),
        "key": (packed_map(bomb, NIL, KEY_HEADER, b"\x80"), False),
        "key of the header": (with_header(small, NIL), False),
        "whole body": (bomb, False),
        "header": (packed_map(KEY_HEADER, bomb), False),
        "short header": (packed_map(KEY_HEADER, small), False),
        "payload": (packed_map(KEY_HEADER, b"\x80", KEY_PAYLOAD, bomb), False),
        "error": (packed_map(KEY_HEADER, b"\x80", KEY_ERROR, bomb), False),
        "error, behind a payload": (packed_map(*usual, KEY_ERROR, bomb), False),
        "text": (with_header(KEY_SENDER, small), False),
        "time": (with_header(KEY_CREATED, small), False),
        "integer": (with_header(KEY_TYPE, small), False),
        "args": (with_header(KEY_ARGS, small), False),
        "key of args": (with_header(KEY_ARGS, packed_map(small, NIL)), False),
        "value of args": (
            with_header(KEY_ARGS, packed_map(pack_str("k"), small)),
            False,
        ),
        "many args": (
            with_header(
                KEY_ARGS,
                packed_map(
                    *(
                        part
                        for i in range(40_000)
                        for part in (b"\xa2" + i.to_bytes(2, "big"), b"\xa1v")
                    )
                ),
            ),
            True,
        ),
    }


@pytest.mark.parametrize("name", _bombs())
def test_a_body_costs_no_more_than_a_message_needs(name: str) -> None:
    body, is_message = _bombs()[name]
    started = time.perf_counter()
    tracemalloc.start()
    try:
        message = decoded_or_refused(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (message is not None) == is_message
    assert peak < 16 * MIB
    assert time.perf_counter() - started < 5


def test_a_long_unknown_array_in_a_short_body_is_skipped() -> None:
    array = b"\xdc\x10\x00" + bytes(0x1000)
    message = Message(header=Header(call_type=1), payload=b"p")
    later = pack_str("Later_zid14_slc")
    header = packed_map(later, array, KEY_TYPE, b"\x01")
    body = packed_map(KEY_HEADER, header, later, array, KEY_PAYLOAD, as_bin(b"p"))
    assert len(body) < SLICE_FROM_LEN
    decoded = decode_message(body)
    assert decoded == message
    assert isinstance(decoded.payload, bytes)


def test_a_long_payload_in_any_place_is_a_view() -> None:
    payload = bytes(1_000_000)
    body = packed_map(KEY_PAYLOAD, as_bin(payload), KEY_HEADER, b"\x80")
    tracemalloc.start()
    try:
        decoded = decode_message(body)
        assert tracemalloc.get_traced_memory()[1] < MIB // 2
    finally:
        tracemalloc.stop()
    assert decoded == Message(header=Header(), payload=payload)
    assert isinstance(decoded.payload, memoryview)
    assert decoded.payload.obj is body


@pytest.mark.parametrize("payload_len", [0, SLICE_FROM_LEN])
@pytest.mark.parametrize("where", ["field", "args", "key", "spread"])
def test_texts_of_a_header_are_bounded_together(where: str, payload_len: int) -> None:
    def message(text_len: int) -> Message:
        text = "\xe4" * (text_len - 2)
        header = {
            "field": Header(subject=text, sender="ab"),
            "args": Header(args={"k": text, "": "v"}),
            "key": Header(args={text: "vv"}),
            "spread": Header(
                subject=text[:500], call_id="i", args={text[501:]: "v", "k": "v"}
            ),
        }[where]
        return Message(header=header, payload=bytes(payload_len))

    most = MAX_HEADER_TEXT_LEN - 1000  # the rest is for keys: MAX_HEADER_LEN is near
    assert decode_message(encode(message(most))) == message(most)
    with pytest.raises(DecodeError, match="header"):
        decode_message(encode(message(MAX_HEADER_TEXT_LEN + 1)))


def test_the_bound_on_texts_is_exact() -> None:
    most = Header(subject="s" * (MAX_HEADER_TEXT_LEN - 3), args={"k": "vv"})
    assert decode_message(encode(Message(header=most))).header == most
    over = Header(subject="s" * (MAX_HEADER_TEXT_LEN - 3), args={"k": "vvv"})
    with pytest.raises(DecodeError, match="characters"):
        decode_message(encode(Message(header=over)))
    last = with_header(
        KEY_SENDER, pack_str("s" * MAX_HEADER_TEXT_LEN), KEY_SENDER, pack_str("x")
    )
    assert decode_message(last) == Message(header=Header(sender="x"))


def test_a_header_is_bounded_whatever_is_in_it() -> None:
    later = pack_str("later")
    room = MAX_HEADER_LEN - len(packed_map(later, pack_bin_header(MAX_HEADER_LEN)))
    decode_message(with_header(later, as_bin(bytes(room))))
    with pytest.raises(DecodeError, match="header"):
        decode_message(with_header(later, as_bin(bytes(room + 1))))


@pytest.mark.parametrize("payload_len", [0, 5, SLICE_FROM_LEN])
def test_an_error_text_is_bounded(payload_len: int) -> None:
    message = Message(
        header=Header(), payload=bytes(payload_len), error="e" * MAX_ERROR_LEN
    )
    assert decode_message(encode(message)) == message
    over = Message(
        header=Header(), payload=bytes(payload_len), error="e" * (MAX_ERROR_LEN + 1)
    )
    with pytest.raises(DecodeError, match="JobErrs_zid02_str is longer"):
        decode_message(encode(over))
