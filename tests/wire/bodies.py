"""Messages and bodies made by hand, for tests of messages."""

import random
from collections.abc import Callable

from hypothesis import strategies as st

from rpc25519_tools.errors import DecodeError
from rpc25519_tools.wire.greenpack import (
    GO_ZERO_TIME_S,
    pack_bin_header,
    pack_map_header,
    pack_str,
    pack_time,
    pack_unsigned,
)
from rpc25519_tools.wire.message import (
    Header,
    Message,
)
from rpc25519_tools.wire.message_packing import encode_message
from rpc25519_tools.wire.message_unpacking import (
    decode_message,
)

# Any string that can come off the wire: any bytes at all.
texts = st.one_of(
    st.text(max_size=40, alphabet=st.characters(exclude_categories=["Cs"])),
    st.binary(max_size=40).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
    st.sampled_from(["x" * 31, "x" * 32, "x" * 255, "x" * 256]),
)
signed = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([127, 128, 255, 256, 2**63 - 1, -32, -33, -128, -(2**63)]),
)
unsigned = st.one_of(
    st.integers(0, 2**64 - 1), st.sampled_from([127, 128, 2**63, 2**64 - 1])
)
times = st.one_of(
    st.none(),
    st.integers(-(2**63) * 10**9, 2**63 * 10**9 - 1).filter(
        lambda ns: ns != GO_ZERO_TIME_S * 10**9
    ),
)
headers = st.builds(
    Header,
    created_ns=times,
    sender=texts,
    recipient=texts,
    subject=texts,
    seqno=unsigned,
    call_type=signed,
    call_id=texts,
    serial=signed,
    local_recv_ns=times,
    deadline_ns=times,
    stream_part=signed,
    service_name=texts,
    args=st.dictionaries(texts, texts, max_size=20),
    no_system_compression=st.booleans(),
    backpressure=st.booleans(),
)
messages = st.builds(
    Message, header=headers, payload=st.binary(max_size=300), error=texts
)


def encode(message: Message) -> bytes:
    return b"".join(encode_message(message))


KEY_HEADER = pack_str("HDR_zid00_rct")
KEY_PAYLOAD = pack_str("JobSerz_zid01_bin")
KEY_ERROR = pack_str("JobErrs_zid02_str")
KEY_TYPE = pack_str("Typ_zid05_rct")
KEY_SEQNO = pack_str("Seqno_zid04_u64")
KEY_SERIAL = pack_str("Serial_zid07_i64")
KEY_CREATED = pack_str("Created_zid00_tim")
KEY_SENDER = pack_str("From_zid01_str")
KEY_ARGS = pack_str("Args_zid12_map")
KEY_FLAG = pack_str("NoSystemCompression_zid13_boo")
NIL = b"\xc0"


def packed_map(*members: bytes) -> bytes:
    assert len(members) % 2 == 0
    return pack_map_header(len(members) // 2) + b"".join(members)


def with_header(*members: bytes) -> bytes:
    """Return a body whose header holds these packed keys and values."""
    return packed_map(KEY_HEADER, packed_map(*members))


def as_bin(raw: bytes) -> bytes:
    return pack_bin_header(len(raw)) + raw


TIME = pack_time(5)
ANYTHING = packed_map(pack_str("k"), b"\x93\x01\xc2\xcb" + bytes(8))
TAKEN: dict[str, tuple[bytes, Message]] = {
    "signed field as fixint": (
        with_header(KEY_SERIAL, b"\x05"),
        Message(header=Header(serial=5)),
    ),
    "signed field as d0, longer than needed": (
        with_header(KEY_SERIAL, b"\xd0\x05"),
        Message(header=Header(serial=5)),
    ),
    "signed field as d1, longer than needed": (
        with_header(KEY_SERIAL, b"\xd1\x00\x05"),
        Message(header=Header(serial=5)),
    ),
    "signed field as d2, longer than needed": (
        with_header(KEY_SERIAL, b"\xd2\x00\x00\x00\x05"),
        Message(header=Header(serial=5)),
    ),
    "signed field as d3, longer than needed": (
        with_header(KEY_SERIAL, b"\xd3" + bytes(7) + b"\x05"),
        Message(header=Header(serial=5)),
    ),
    # Go refuses this one and the next; taking either form does no harm.
    "signed field as cc": (
        with_header(KEY_SERIAL, b"\xcc\x80"),
        Message(header=Header(serial=128)),
    ),
    "unsigned field as d1": (
        with_header(KEY_SEQNO, b"\xd1\x00\x80"),
        Message(header=Header(seqno=128)),
    ),
    "unsigned field as cc, longer than needed": (
        with_header(KEY_SEQNO, b"\xcc\x05"),
        Message(header=Header(seqno=5)),
    ),
    "unsigned field as cf, longer than needed": (
        with_header(KEY_SEQNO, b"\xcf" + bytes(7) + b"\x05"),
        Message(header=Header(seqno=5)),
    ),
    "nil for a time": (with_header(KEY_CREATED, NIL), Message(header=Header())),
    "nil for a string": (with_header(KEY_SENDER, NIL), Message(header=Header())),
    "nil for the args": (with_header(KEY_ARGS, NIL), Message(header=Header())),
    "nil for the payload": (
        packed_map(KEY_HEADER, b"\x80", KEY_PAYLOAD, NIL),
        Message(header=Header()),
    ),
    "nil for the error": (
        packed_map(KEY_HEADER, b"\x80", KEY_ERROR, NIL),
        Message(header=Header()),
    ),
    "unknown key in the header, any value": (
        with_header(pack_str("Later_zid14_map"), ANYTHING, KEY_TYPE, b"\x01"),
        Message(header=Header(call_type=1)),
    ),
    "unknown key in the message, any value": (
        packed_map(pack_str("Later_zid03_map"), ANYTHING, KEY_ERROR, pack_str("e")),
        Message(header=Header(), error="e"),
    ),
    "no key at all": (b"\x80", Message(header=Header())),
    "same key twice in the header": (
        with_header(KEY_TYPE, b"\x01", KEY_TYPE, b"\x02"),
        Message(header=Header(call_type=2)),
    ),
    "same key twice in the message": (
        packed_map(KEY_PAYLOAD, as_bin(b"1"), KEY_PAYLOAD, as_bin(b"2")),
        Message(header=Header(), payload=b"2"),
    ),
    "wider map and string headers": (
        (
            b"\xdf\x00\x00\x00\x01\xda\x00\x0dHDR_zid00_rct"
            b"\xde\x00\x01\xdb\x00\x00\x00\x0eFrom_zid01_str\xd9\x01x"
        ),
        Message(header=Header(sender="x")),
    ),
    "bytes after the object": (
        with_header(KEY_TYPE, b"\x01") + b"\xc1\xff",
        Message(header=Header(call_type=1)),
    ),
    "key without its tail": (
        with_header(pack_str("Typ"), b"\x01"),
        Message(header=Header()),
    ),
    "header nil": (packed_map(KEY_HEADER, NIL), Message(header=Header())),
    "whole body nil": (NIL, Message(header=Header())),
    "strings that are not UTF-8": (
        with_header(KEY_SENDER, b"\xa2\xff\xfe"),
        Message(header=Header(sender="\udcff\udcfe")),
    ),
    "key @ with the struct name": (
        with_header(pack_str("@"), pack_str("HDR"), KEY_TYPE, b"\x01"),
        Message(header=Header(call_type=1)),
    ),
    "zero time": (
        with_header(KEY_CREATED, pack_time(GO_ZERO_TIME_S * 10**9)),
        Message(header=Header()),
    ),
    "payload before the header": (
        packed_map(KEY_PAYLOAD, as_bin(b"p"), KEY_HEADER, packed_map(KEY_TYPE, b"\1")),
        Message(header=Header(call_type=1), payload=b"p"),
    ),
}
REFUSED: dict[str, bytes] = {
    "time as the standard timestamp": with_header(KEY_CREATED, b"\xd6\xff\0\0\0\1"),
    "time as an integer": with_header(KEY_CREATED, b"\x05"),
    "str where bin is wanted": packed_map(KEY_PAYLOAD, pack_str("p")),
    "bin where str is wanted": with_header(KEY_SENDER, as_bin(b"x")),
    "bin where the error is wanted": packed_map(KEY_ERROR, as_bin(b"x")),
    "int where bool is wanted": with_header(KEY_FLAG, b"\x01"),
    "nil where bool is wanted": with_header(KEY_FLAG, NIL),
    "bool where int is wanted": with_header(KEY_TYPE, b"\xc3"),
    "nil where int is wanted": with_header(KEY_TYPE, NIL),
    "float where int is wanted": with_header(KEY_TYPE, b"\xcb" + bytes(8)),
    "int inside args": with_header(KEY_ARGS, packed_map(pack_str("k"), b"\x01")),
    "nil inside args": with_header(KEY_ARGS, packed_map(pack_str("k"), NIL)),
    "bin inside args": with_header(KEY_ARGS, packed_map(pack_str("k"), as_bin(b"v"))),
    "int as a key of args": with_header(KEY_ARGS, packed_map(b"\x01", pack_str("v"))),
    "array where args are wanted": with_header(KEY_ARGS, b"\x90"),
    "key of the header as bin": with_header(as_bin(b"Typ_zid05_rct"), b"\x01"),
    "key of the message as bin": packed_map(as_bin(b"HDR_zid00_rct"), b"\x80"),
    "top object an array": b"\x91\x80",
    "top object a string": pack_str("HDR_zid00_rct"),
    "top object an integer": b"\x01",
    "header an array": packed_map(KEY_HEADER, b"\x90"),
    "header a string": packed_map(KEY_HEADER, pack_str("x")),
    "nothing": b"",
    "negative number in an unsigned field": with_header(KEY_SEQNO, b"\xff"),
    "signed field over 63 bits": with_header(KEY_SERIAL, pack_unsigned(2**63)),
    "type over 63 bits": with_header(KEY_TYPE, pack_unsigned(2**64 - 1)),
    "part number over 63 bits": with_header(
        pack_str("StreamPart_zid10_i64"), pack_unsigned(2**63)
    ),
}


def decoded_or_refused(body: bytes) -> Message | None:
    try:
        return decode_message(body)
    except DecodeError:
        return None


def body_mutations() -> dict[str, Callable[[random.Random, bytearray], None]]:
    def flip(rng: random.Random, body: bytearray) -> None:
        body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)

    def replace(rng: random.Random, body: bytearray) -> None:
        body[rng.randrange(len(body))] = rng.randrange(256)

    def remove(rng: random.Random, body: bytearray) -> None:
        start = rng.randrange(len(body))
        del body[start : start + rng.randrange(1, 9)]

    def repeat(rng: random.Random, body: bytearray) -> None:
        start = rng.randrange(len(body))
        body[start:start] = body[start : start + rng.randrange(1, 40)]

    return {"flip": flip, "replace": replace, "remove": remove, "repeat": repeat}
