"""What may go out: buffers of any shape as bytes, and headers that peers take."""

import array
import ctypes
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.errors import LocalProtocolError
from rpc25519_tools.limits import LONGEST_HEADER_LEN
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.constants import FRAME_HEADER_LEN, MAX_PAYLOAD_LEN
from rpc25519_tools.wire.framing import FrameDecoder, decode_frame, encode_frame
from rpc25519_tools.wire.message import (
    ARG_COST,
    MAX_ERROR_LEN,
    MAX_HEADER_TEXT_LEN,
    Header,
    Message,
    header_len,
)
from rpc25519_tools.wire.outgoing import payload_len, require_sendable, sendable_payload

CODECS = (Codec.NONE, Codec.S2, Codec.NONE_ONCE)


#: Buffers that are no plain row of bytes, and the bytes that they stand for.
SHAPES: dict[str, tuple[Any, bytes]] = {
    "wide items": (
        memoryview(array.array("I", [1, 2, 3])),
        array.array("I", [1, 2, 3]).tobytes(),
    ),
    "array": (array.array("H", range(5)), array.array("H", range(5)).tobytes()),
    "every second byte": (memoryview(b"abcdef")[::2], b"ace"),
    "backwards": (memoryview(b"abc")[::-1], b"cba"),
    "wide and strided": (
        memoryview(array.array("H", [1, 2, 3, 4]))[::2],
        array.array("H", [1, 3]).tobytes(),
    ),
    "table": (memoryview(bytes(range(12))).cast("B", (3, 4)), bytes(range(12))),
    "signed": (memoryview(b"\xff\x01").cast("b"), b"\xff\x01"),
    "ctypes": ((ctypes.c_uint16 * 3)(1, 2, 3), array.array("H", [1, 2, 3]).tobytes()),
    "no items": (memoryview(array.array("I")), b""),
    "nothing strided": (memoryview(b"")[::2], b""),
    "bytearray": (bytearray(b"xyz"), b"xyz"),
    "part of bytes": (memoryview(b"abcdef")[1:3], b"bc"),
}


def travelled(message: Message, codec: Codec) -> Message:
    """Encode and decode a message."""
    decoder = FrameDecoder(bytearray(64 * 1024))
    data = b"".join(encode_frame(message, codec))
    frames = decoder.receive_data(data)
    assert len(frames) == 1
    assert decoder.at_frame_boundary
    return decode_frame(frames[0])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_buffer_of_any_shape_arrives_as_its_bytes(shape: str, codec: Codec) -> None:
    payload, expected = SHAPES[shape]
    assert bytes(sendable_payload(payload)) == expected
    assert payload_len(payload) == len(expected)
    found = travelled(Message(header=Header(), payload=payload), codec)
    assert bytes(found.payload) == expected


@pytest.mark.parametrize("codec", CODECS)
def test_a_long_view_of_wide_items_arrives_whole(codec: Codec) -> None:
    wide = array.array("I", range(20_000))
    found = travelled(Message(header=Header(), payload=memoryview(wide)), codec)
    assert bytes(found.payload) == wide.tobytes()


def test_a_payload_in_one_piece_is_not_copied() -> None:
    for payload in (b"abc", bytearray(b"abc")):
        assert sendable_payload(payload) is payload
    data = bytearray(16)
    for view in (memoryview(data), memoryview(data).cast("I")):
        found = sendable_payload(view)
        assert isinstance(found, memoryview)
        assert found.obj is data


@pytest.mark.parametrize("payload", ["text", None, 5, 1.5, [1, 2], [b"1"], object()])
def test_what_is_no_buffer_is_refused_by_name(payload: object) -> None:
    kind = type(payload).__name__
    with pytest.raises(LocalProtocolError, match=f"must be bytes, not {kind}"):
        sendable_payload(payload)
    message = Message(header=Header(), payload=payload)  # type: ignore[arg-type]  # wrong
    with pytest.raises(LocalProtocolError, match="must be bytes"):
        encode_frame(message, Codec.NONE)


def test_a_released_view_is_refused() -> None:
    view = memoryview(b"abc")
    view.release()
    with pytest.raises(LocalProtocolError, match="released"):
        sendable_payload(view)


def test_the_limit_counts_bytes_not_items() -> None:
    fits = memoryview(bytearray(MAX_PAYLOAD_LEN)).cast("Q")
    assert payload_len(fits) == MAX_PAYLOAD_LEN
    with pytest.raises(LocalProtocolError, match=f"the limit is {MAX_PAYLOAD_LEN}"):
        sendable_payload(memoryview(bytearray(MAX_PAYLOAD_LEN + 8)).cast("Q"))


# Headers.


def longest(text: str) -> str:
    return text * MAX_HEADER_TEXT_LEN


#: Headers that are just within the limits, made of texts of one character.
LONG_HEADERS: dict[str, Header] = {
    "subject": Header(subject=longest("s")),
    "name": Header(service_name=longest("n")),
    "call id": Header(call_id=longest("c")),
    "sender": Header(sender=longest("f")),
    "recipient": Header(recipient=longest("t")),
    "value": Header(args={"": longest("v")}),
    "key": Header(args={longest("k"): ""}),
    "two bytes a character": Header(subject="é" * (MAX_HEADER_TEXT_LEN // 2)),
    "entries": Header(args={f"{i:04}": "" for i in range(3855)}),
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("case", LONG_HEADERS)
@pytest.mark.parametrize("payload_len", [0, 100_000])
def test_the_longest_header_is_taken_by_the_other_side(
    case: str, codec: Codec, payload_len: int
) -> None:
    header = LONG_HEADERS[case]
    found = travelled(Message(header=header, payload=bytes(payload_len)), codec)
    assert found.header == header
    assert header_len(header) <= LONGEST_HEADER_LEN


def one_more(header: Header) -> Header:
    """Return a header that is a little longer."""
    if header.args:
        return Header(args={**header.args, "more": "x"})
    return Header(
        subject=header.subject + "x",
        service_name=header.service_name,
        call_id=header.call_id,
        sender=header.sender,
        recipient=header.recipient,
    )


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("case", LONG_HEADERS)
def test_a_longer_header_is_refused(case: str, codec: Codec) -> None:
    message = Message(header=one_more(LONG_HEADERS[case]))
    with pytest.raises(LocalProtocolError, match=r"the limit is \d+|too many"):
        encode_frame(message, codec)


@given(st.integers(0, 6000), st.integers(0, 40))
def test_whatever_is_not_refused_is_within_the_limits(
    entries: int, text_len: int
) -> None:
    header = Header(args={f"{i:x}": "v" * text_len for i in range(entries)})
    try:
        encode_frame(Message(header=header), Codec.NONE)
    except LocalProtocolError:
        text = sum(len(k) + len(v) for k, v in header.args.items())
        cost = text + entries * ARG_COST
        assert text > MAX_HEADER_TEXT_LEN or cost > LONGEST_HEADER_LEN
    else:
        assert header_len(header) <= LONGEST_HEADER_LEN


NO_TEXTS: dict[str, dict[str, Any]] = {
    "service name": {"service_name": 5},
    "service name must": {"service_name": b"echo"},
    "subject": {"subject": ["s"]},
    "call id": {"call_id": 7},
    "args must be text, not int": {"args": {"a": 1}},
    "args must be text, not NoneType": {"args": {"a": None}},
    "args must be text, not bytes": {"args": {b"a": "x"}},
    "args of a message must be a mapping, not list": {"args": ["a"]},
    "args of a message must be a mapping, not str": {"args": "abc"},
    "holds half of a surrogate pair": {"service_name": "\ud800"},
    "args holds half of a surrogate pair": {"args": {"k": "\udfff"}},
}


@pytest.mark.parametrize("what", NO_TEXTS)
def test_what_is_no_text_in_a_header_is_named(what: str) -> None:
    header = Header(**NO_TEXTS[what])
    with pytest.raises(LocalProtocolError, match=what):
        require_sendable(header)
    with pytest.raises(LocalProtocolError, match=what):
        encode_frame(Message(header=header), Codec.NONE)


def test_bytes_in_a_name_that_are_no_utf8_still_travel() -> None:
    header = Header(service_name="\udce9", args={"\udcff": "\udc80"})
    require_sendable(header)
    assert travelled(Message(header=header), Codec.NONE).header == header


def test_an_error_up_to_the_limit_travels() -> None:
    message = Message(header=Header(), error="e" * MAX_ERROR_LEN)
    assert travelled(message, Codec.NONE).error == message.error
    for error in ("e" * (MAX_ERROR_LEN + 1), "é" * (MAX_ERROR_LEN // 2 + 1)):
        with pytest.raises(LocalProtocolError, match=f"the limit is {MAX_ERROR_LEN}"):
            encode_frame(Message(header=Header(), error=error), Codec.NONE)
    wrong = Message(header=Header(), error=5)  # type: ignore[arg-type]  # wrong
    with pytest.raises(LocalProtocolError, match="error must be text, not int"):
        encode_frame(wrong, Codec.NONE)


def test_a_frames_length_is_that_of_its_bytes() -> None:
    for payload, _ in SHAPES.values():
        message = Message(header=Header(), payload=payload)
        data = b"".join(encode_frame(message, Codec.NONE))
        announced = int.from_bytes(data[8:FRAME_HEADER_LEN], "big")
        assert announced == len(data) - FRAME_HEADER_LEN
