"""Messages there and back, what Go takes and refuses, and hostile bodies."""

import random
import time
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import DecodeError
from rpc25519_tools.wire import message_packing, message_unpacking
from rpc25519_tools.wire.constants import MIB
from rpc25519_tools.wire.greenpack import (
    GO_ZERO_TIME_S,
    pack_bin_header,
    pack_map_header,
    pack_signed,
    pack_str,
    pack_time,
    pack_unsigned,
)
from rpc25519_tools.wire.message import (
    MAX_ERROR_LEN,
    MAX_HEADER_LEN,
    MAX_HEADER_TEXT_LEN,
    CallType,
    Header,
    Message,
)
from rpc25519_tools.wire.message_packing import encode_message
from rpc25519_tools.wire.message_unpacking import (
    BUILD_UP_TO_LEN,
    SLICE_FROM_LEN,
    decode_message,
)
from tests.rpc.flows import flow_names, recorded

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


def decoded_or_refused(body: bytes) -> Message | None:
    try:
        return decode_message(body)
    except DecodeError:
        return None


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused(body: bytes) -> None:
    decoded_or_refused(body)


def _mutations() -> dict[str, Callable[[random.Random, bytearray], None]]:
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


@pytest.mark.parametrize("mutation", _mutations())
@pytest.mark.parametrize("seed", range(3))
def test_mutated_messages_are_decoded_or_refused(mutation: str, seed: int) -> None:
    rng = random.Random(f"{mutation} {seed}")
    mutate = _mutations()[mutation]
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


# Long bodies take a short cut that must never be noticed.


def _long_bodies() -> dict[str, bytes]:
    filler = as_bin(b"p" * (SLICE_FROM_LEN + 5))
    header = packed_map(KEY_TYPE, b"\x01", KEY_CREATED, TIME)
    usual = KEY_HEADER + header + KEY_PAYLOAD + filler
    return {
        "header and payload": b"\x82" + usual,
        "with an error": b"\x83" + usual + KEY_ERROR + pack_str("e"),
        "with bytes behind": b"\x82" + usual + b"\xc1\xc1",
        "with an error and bytes behind": (
            b"\x83" + usual + KEY_ERROR + pack_str("e") + b"\xc1"
        ),
        "with an unknown member behind": b"\x83" + usual + pack_str("later") + b"\x01",
        "with a second payload": b"\x83" + usual + KEY_PAYLOAD + as_bin(b"2"),
        "with a second header": b"\x83" + usual + KEY_HEADER + b"\x80",
        "with four members": b"\x84" + usual + KEY_ERROR + NIL + KEY_ERROR + NIL,
        "payload first": b"\x82" + KEY_PAYLOAD + filler + KEY_HEADER + header,
        "only a payload": b"\x81" + KEY_PAYLOAD + filler,
        "header nil": b"\x82" + KEY_HEADER + NIL + KEY_PAYLOAD + filler,
        "error instead of a payload": packed_map(
            KEY_HEADER, header, KEY_ERROR, pack_str("e" * SLICE_FROM_LEN)
        ),
        "a header that is long itself": packed_map(
            KEY_HEADER,
            packed_map(KEY_SENDER, pack_str("s" * 20_000)),
            KEY_PAYLOAD,
            filler,
        ),
    }


@pytest.mark.parametrize("form", _long_bodies())
def test_long_bodies_in_any_form_are_decoded(form: str) -> None:
    body = _long_bodies()[form]
    message = decode_message(body)
    as_short = _decoded_as_short(body)
    assert as_short == message


@pytest.mark.parametrize("form", _long_bodies())
def test_long_bodies_cut_short_are_refused(form: str) -> None:
    body = _long_bodies()[form].rstrip(b"\xc1")
    for missing in (1, 2, 10, len(body) // 2 - 1):
        with pytest.raises(DecodeError):
            decode_message(body[:-missing])


REFUSED_LONG: dict[str, bytes] = {
    "error as bin": KEY_ERROR + as_bin(b"e"),
    "error cut short": KEY_ERROR + b"\xa5e",
    "key as bin": as_bin(b"JobErrs_zid02_str") + NIL,
}


@pytest.mark.parametrize("case", REFUSED_LONG)
def test_long_bodies_with_bad_endings_are_refused(case: str) -> None:
    body = b"\x83" + _long_bodies()["header and payload"][1:] + REFUSED_LONG[case]
    with pytest.raises(DecodeError):
        decode_message(body)


def _decoded_as_short(body: bytes) -> Message:
    """Decode through the general decoder, whatever the length."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rpc25519_tools.wire.message_unpacking.SLICE_FROM_LEN", 1 << 40)
        return decode_message(body)


@pytest.mark.parametrize("seed", range(4))
def test_the_short_cut_for_long_bodies_agrees_with_the_general_decoder(
    seed: int,
) -> None:
    rng = random.Random(seed)
    bodies = list(_long_bodies().values())
    mutations = list(_mutations().values())
    for _ in range(400):
        body = bytearray(rng.choice(bodies))
        head, tail = bytearray(body[:120]), bytearray(body[-60:])
        rng.choice(mutations)(rng, rng.choice([head, tail]))
        changed = bytes(head + body[120:-60] + tail)
        try:
            general = _decoded_as_short(changed)
        except DecodeError:
            general = None
        assert decoded_or_refused(changed) == general


# What a body may cost.


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


# Three ways lead to a message, which must not be told from each other: the short cut of
# usual messages, building all of a short body, and the walk through a long one.


def _decoded_by_walking(body: bytes) -> Message | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rpc25519_tools.wire.message_unpacking.BUILD_UP_TO_LEN", 0)
        return decoded_or_refused(body)


def _decoded_by_building(body: bytes) -> Message | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(message_unpacking, "_usual_message", lambda _: None)
        return decoded_or_refused(body)


@given(messages)
def test_the_short_cut_takes_what_go_sends(message: Message) -> None:
    body = encode(message)
    all_text = all(_is_text(text) for text in _texts_of(message))
    taken = message_unpacking._usual_message(body)
    assert taken == (message if all_text else None)


usual_texts = texts.filter(bool)


@given(
    st.builds(
        Header,
        created_ns=times.filter(lambda ns: ns is not None),
        sender=usual_texts,
        recipient=usual_texts,
        seqno=unsigned.filter(bool),
        call_type=signed.filter(bool),
        call_id=usual_texts,
        serial=signed.filter(bool),
        deadline_ns=times.filter(lambda ns: ns is not None),
        service_name=usual_texts,
    ),
)
def test_usual_headers_are_packed_as_all_others(header: Header) -> None:
    all_text = all(_is_text(text) for text in _texts_of(Message(header=header)))
    packed = message_packing._pack_header(header) if all_text else None
    assert message_packing._pack_usual(header) == packed


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts_of(message: Message) -> list[str]:
    header = message.header
    known = [header.sender, header.recipient, header.subject, header.call_id]
    named = [text for pair in header.args.items() for text in pair]
    return [*known, header.service_name, *named, message.error]


@pytest.mark.parametrize("case", TAKEN)
def test_a_walk_takes_what_go_tolerates(case: str) -> None:
    body, message = TAKEN[case]
    assert _decoded_by_walking(body) == _decoded_by_building(body) == message
    if body != NIL:
        long = as_bin(bytes(BUILD_UP_TO_LEN))
        later = bytes((body[0] + 1,)) if body[0] < 0x90 else body[:4] + b"\x02"
        grown = later + pack_str("later") + long + body[len(later) :]
        assert decode_message(grown) == message


@pytest.mark.parametrize("case", REFUSED)
def test_a_walk_refuses_what_breaks_the_rules(case: str) -> None:
    assert _decoded_by_walking(REFUSED[case]) is None
    assert _decoded_by_building(REFUSED[case]) is None


packed_values = st.recursive(
    st.one_of(
        signed.map(pack_signed),
        unsigned.map(pack_unsigned),
        texts.map(pack_str),
        st.binary(max_size=300).map(as_bin),
        st.integers(0, 2**60).map(pack_time),
        st.sampled_from([NIL, b"\xc2", b"\xc3", b"\xcb" + bytes(8), b"\xd4\x01x"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5).map(
            lambda v: bytes((0x90 + len(v),)) + b"".join(v)
        ),
        st.lists(st.tuples(texts.map(pack_str), inner), max_size=5).map(
            lambda pairs: packed_map(*(part for pair in pairs for part in pair))
        ),
    ),
    max_leaves=10,
)
unknown_members = st.tuples(
    st.one_of(texts.map(pack_str), signed.map(pack_signed), st.just(NIL)),
    packed_values,
)


@st.composite
def bodies_with_unknown_members(draw: st.DrawFn) -> bytes:
    message = draw(messages)
    packed_header = encode(Message(header=message.header))[1 + len(KEY_HEADER) :]
    later = draw(st.lists(unknown_members, max_size=2))
    entries, start = packed_header[0] & 0x0F, 1
    if entries + len(later) < 16:
        packed_header = (
            pack_map_header(entries + len(later))
            + b"".join(key + value for key, value in later)
            + packed_header[start:]
        )
    known = [
        (KEY_HEADER, packed_header),
        (KEY_PAYLOAD, as_bin(bytes(message.payload))),
        (KEY_ERROR, pack_str(message.error)),
        (KEY_ERROR, pack_str("twice")),
    ]
    members = draw(st.permutations(known)) + draw(st.lists(unknown_members, max_size=3))
    chosen = draw(st.permutations(members))[draw(st.integers(0, 2)) :]
    return packed_map(*(part for pair in chosen for part in pair))


@given(bodies_with_unknown_members())
@settings(max_examples=200)
def test_walking_and_building_agree(body: bytes) -> None:
    message = decode_message(body)
    assert _decoded_by_walking(body) == _decoded_by_building(body) == message


@pytest.mark.parametrize("seed", range(3))
def test_walking_and_building_agree_on_mutated_messages(seed: int) -> None:
    rng = random.Random(seed)
    bodies = [body for body, _ in TAKEN.values()] + list(REFUSED.values())
    mutations = list(_mutations().values())
    for _ in range(2000):
        body = bytearray(rng.choice(bodies))
        if body:
            rng.choice(mutations)(rng, body)
        message = decoded_or_refused(bytes(body))
        assert _decoded_by_walking(bytes(body)) == message
        assert _decoded_by_building(bytes(body)) == message
