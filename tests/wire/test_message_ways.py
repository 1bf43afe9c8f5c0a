"""Three ways lead to a message, which must not be told from each other.

They are the short cut of usual messages, building all of a short body, and the walk
through a long one.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import DecodeError
from rpc25519_tools.wire import message_packing, message_unpacking
from rpc25519_tools.wire.greenpack import (
    pack_map_header,
    pack_signed,
    pack_str,
    pack_time,
    pack_unsigned,
)
from rpc25519_tools.wire.message import (
    Header,
    Message,
)
from rpc25519_tools.wire.message_unpacking import (
    BUILD_UP_TO_LEN,
    SLICE_FROM_LEN,
    decode_message,
)
from tests.wire.bodies import (
    KEY_CREATED,
    KEY_ERROR,
    KEY_HEADER,
    KEY_PAYLOAD,
    KEY_SENDER,
    KEY_TYPE,
    NIL,
    REFUSED,
    TAKEN,
    TIME,
    as_bin,
    body_mutations,
    decoded_or_refused,
    encode,
    messages,
    packed_map,
    signed,
    texts,
    times,
    unsigned,
)


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
    mutations = list(body_mutations().values())
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
    mutations = list(body_mutations().values())
    for _ in range(2000):
        body = bytearray(rng.choice(bodies))
        if body:
            rng.choice(mutations)(rng, body)
        message = decoded_or_refused(bytes(body))
        assert _decoded_by_walking(bytes(body)) == message
        assert _decoded_by_building(bytes(body)) == message
