"""The dialect's scalars: golden bytes, hostile bytes, and what memory they may take."""

import contextlib
import time
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rpc25519_tools.errors import DecodeError
from rpc25519_tools.wire.constants import MIB
from rpc25519_tools.wire.greenpack import (
    GO_ZERO_TIME_S,
    MAX_ARRAY_LEN,
    MAX_CONTAINER_LEN,
    MAX_KEY_LEN,
    PrefixUnpacker,
    is_container,
    is_nil,
    members,
    pack_bin_header,
    pack_map_header,
    pack_signed,
    pack_str,
    pack_time,
    pack_unsigned,
    read_bin_header,
    read_str,
    unpack_object,
    unpack_time,
)

# Values and their encodings, both ways.

UNSIGNED = [
    (0, "00"),
    (127, "7f"),
    (128, "cc80"),
    (255, "ccff"),
    (256, "cd0100"),
    (65_535, "cdffff"),
    (65_536, "ce00010000"),
    (2**32 - 1, "ceffffffff"),
    (2**32, "cf0000000100000000"),
    (2**64 - 1, "cfffffffffffffffff"),
]
SIGNED = [
    (0, "00"),
    (127, "7f"),
    (128, "d10080"),
    (255, "d100ff"),
    (32_767, "d17fff"),
    (32_768, "d200008000"),
    (2**31 - 1, "d27fffffff"),
    (2**31, "d30000000080000000"),
    (2**63 - 1, "d37fffffffffffffff"),
    (-1, "ff"),
    (-32, "e0"),
    (-33, "d0df"),
    (-128, "d080"),
    (-129, "d1ff7f"),
    (-32_768, "d18000"),
    (-32_769, "d2ffff7fff"),
    (-(2**31), "d280000000"),
    (-(2**31) - 1, "d3ffffffff7fffffff"),
    (-(2**63), "d38000000000000000"),
]


@pytest.mark.parametrize(("value", "packed"), UNSIGNED)
def test_unsigned_integers_take_their_shortest_unsigned_form(
    value: int, packed: str
) -> None:
    assert pack_unsigned(value).hex() == packed
    assert unpack_object(bytes.fromhex(packed)) == value


@pytest.mark.parametrize(("value", "packed"), SIGNED)
def test_signed_integers_take_their_shortest_signed_form(
    value: int, packed: str
) -> None:
    assert pack_signed(value).hex() == packed
    assert unpack_object(bytes.fromhex(packed)) == value


@pytest.mark.parametrize("value", [-1, 2**64])
def test_integers_outside_unsigned_64_bits_are_our_own_fault(value: int) -> None:
    with pytest.raises(OverflowError):
        pack_unsigned(value)


@pytest.mark.parametrize("value", [-(2**63) - 1, 2**63])
def test_integers_outside_signed_64_bits_are_our_own_fault(value: int) -> None:
    with pytest.raises(OverflowError):
        pack_signed(value)


@pytest.mark.parametrize(
    ("text_len", "header"),
    [
        (0, "a0"),
        (31, "bf"),
        (32, "d920"),
        (255, "d9ff"),
        (256, "da0100"),
        (65_535, "daffff"),
        (65_536, "db00010000"),
    ],
)
def test_strings_have_the_shortest_header(text_len: int, header: str) -> None:
    packed = pack_str("e" * text_len)
    assert packed == bytes.fromhex(header) + b"e" * text_len
    assert unpack_object(packed) == "e" * text_len


@pytest.mark.parametrize(
    ("data_len", "header"),
    [
        (0, "c400"),
        (255, "c4ff"),
        (256, "c50100"),
        (65_535, "c5ffff"),
        (65_536, "c600010000"),
    ],
)
def test_binary_data_has_the_shortest_header(data_len: int, header: str) -> None:
    packed = pack_bin_header(data_len)
    assert packed.hex() == header
    assert unpack_object(packed + bytes(data_len)) == bytes(data_len)


@pytest.mark.parametrize(
    ("entries", "header"),
    [(0, "80"), (15, "8f"), (16, "de0010"), (65_535, "deffff"), (65_536, "df00010000")],
)
def test_maps_have_the_shortest_header(entries: int, header: str) -> None:
    assert pack_map_header(entries).hex() == header


@pytest.mark.parametrize(
    ("ns", "packed"),
    [
        (0, "c70c05000000000000000000000000"),
        (1_700_000_000_123_456_789, "c70c05000000006553f100075bcd15"),
        (-1, "c70c05ffffffffffffffff3b9ac9ff"),
    ],
)
def test_times_are_seconds_and_nanoseconds_that_count_forwards(
    ns: int, packed: str
) -> None:
    assert pack_time(ns).hex() == packed


@given(st.integers(0, 2**64 - 1))
def test_every_unsigned_integer_comes_back(value: int) -> None:
    assert unpack_object(pack_unsigned(value)) == value


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_signed_integer_comes_back_and_never_looks_unsigned(value: int) -> None:
    packed = pack_signed(value)
    assert unpack_object(packed) == value
    assert not 0xCC <= packed[0] <= 0xCF


@given(st.binary(max_size=300))
@example(b"\xed\xa0\x80 a surrogate in UTF-8")
@example(b"caf\xe9 in Latin-1")
def test_strings_of_any_bytes_come_back(raw: bytes) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    packed = pack_str(text)
    assert packed.endswith(raw)
    assert unpack_object(packed) == text


@given(st.integers(-(2**63) * 10**9, 2**63 * 10**9 - 1))
def test_every_time_comes_back(ns: int) -> None:
    value = unpack_object(pack_time(ns))
    expected = None if ns == GO_ZERO_TIME_S * 10**9 else ns
    assert unpack_time(value, "Created") == expected


def test_nil_is_an_unset_time() -> None:
    assert unpack_time(None, "Created") is None


@pytest.mark.parametrize(
    ("what", "packed"),
    [
        ("an integer", "01"),
        ("a string", "a178"),
        ("extension 4", "c70c04000000006553f100075bcd15"),
        ("extension 5 of 11 bytes", "c70b05000000006553f100075bcd"),
        ("extension 5 of 8 bytes", "d705000000006553f100"),
        ("a standard timestamp of 4 bytes", "d6ff6553f100"),
        ("a standard timestamp of 12 bytes", "c70cff075bcd15000000006553f100"),
        ("1000000000 nanoseconds", "c70c05000000006553f1003b9aca00"),
        ("-1 nanoseconds", "c70c05000000006553f100ffffffff"),
    ],
)
def test_what_is_no_time_of_this_dialect_is_refused(what: str, packed: str) -> None:
    value = unpack_object(bytes.fromhex(packed))
    with pytest.raises(DecodeError, match="Created"):
        unpack_time(value, "Created")


@pytest.mark.parametrize(
    "packed",
    [
        "",
        "c1",
        "d9",
        "a2 78",
        "c4 05 00",
        "81 a1 78",
        "92 01",
        "dd ffffffff",
        "df ffffffff",
        "db ffffffff",
        "c6 ffffffff",
        "c9 ffffffff 05",
        "81 90 01",
        "81 80 01",
        "d7 ff ffffffffffffffff",
        "c7 05 ff 0102030405",
    ],
)
def test_malformed_objects_are_refused(packed: str) -> None:
    with pytest.raises(DecodeError, match="malformed greenpack"):
        unpack_object(bytes.fromhex(packed))


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        unpack_object(data)


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1x", b"\x81"])
def test_nesting_without_end_is_refused(opening: bytes) -> None:
    with pytest.raises(DecodeError):
        unpack_object(opening * 100_000)


@pytest.mark.parametrize(
    ("header", "most", "member"),
    [(b"\xdd", MAX_ARRAY_LEN, b"\x00"), (b"\xdf", MAX_CONTAINER_LEN, b"\x00\x00")],
)
def test_containers_above_the_limit_are_refused(
    header: bytes, most: int, member: bytes
) -> None:
    unpack_object(header + most.to_bytes(4, "big") + member * most)
    with pytest.raises(DecodeError, match="exceeds"):
        unpack_object(header + (most + 1).to_bytes(4, "big") + member * (most + 1))


def peak_of_decoding(data: bytes) -> int:
    tracemalloc.start()
    try:
        with contextlib.suppress(DecodeError):
            unpack_object(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_announced_containers_cost_no_more_than_what_was_sent() -> None:
    # Each header announces as much as it may and is followed by the next header only.
    started = time.perf_counter()
    assert peak_of_decoding(b"\xdc\x00\x80" * 5000) < 2 * MIB
    assert peak_of_decoding(b"\xde\xff\xff\x01" * 5000) < 2 * MIB
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("unit", [b"\x80", b"\x90", b"\x81\x01\x80", b"\x91\x90"])
@pytest.mark.parametrize("depth", [0, 120])
def test_a_short_body_costs_little_however_it_is_packed(
    unit: bytes, depth: int
) -> None:
    unit = b"\x81\x01" * depth + unit
    block = b"\xdc\x00\x80" + unit * 128
    blocks = max(1, 64 * 1024 // len(block))
    assert peak_of_decoding(b"\xdc" + blocks.to_bytes(2, "big") + block * blocks) < (
        9 * MIB
    )


def test_bytes_after_the_object_are_ignored() -> None:
    assert unpack_object(b"\x07\xff\xff") == 7


# The unpacker of a long body's beginning.


def test_a_prefix_unpacker_reads_objects_one_after_another() -> None:
    data = pack_map_header(2) + pack_str("key") + pack_signed(-5) + b"rest"
    unpacker = PrefixUnpacker(data, 64)
    assert unpacker.map_len() == 2
    assert unpacker.value() == "key"
    assert unpacker.value() == -5
    assert unpacker.offset() == len(data) - len(b"rest")


@pytest.mark.parametrize("data", [b"", b"\x01", b"\xa1x", b"\xc0", b"\xde\x00"])
def test_a_prefix_unpacker_refuses_what_is_no_map(data: bytes) -> None:
    with pytest.raises(DecodeError, match="must be a map"):
        PrefixUnpacker(data, 64).map_len()


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"\xd9\x20" + b"x" * 31, id="cut short"),
        pytest.param(b"\xd9\xff" + b"x" * 255, id="longer than the window"),
        pytest.param(b"\xc1", id="no object"),
        pytest.param(b"\x91" * 5000, id="nested without end"),
        pytest.param(b"\x81\x90\x01", id="unhashable key"),
    ],
)
def test_a_prefix_unpacker_refuses_what_does_not_end_in_its_window(
    value: bytes,
) -> None:
    unpacker = PrefixUnpacker(b"\x81" + value, 64)
    assert unpacker.map_len() == 1
    with pytest.raises(DecodeError, match="malformed member"):
        unpacker.value()


@given(st.binary(max_size=100), st.integers(1, 100))
def test_a_prefix_unpacker_decodes_or_refuses_any_bytes(
    data: bytes, window_len: int
) -> None:
    try:
        unpacker = PrefixUnpacker(data, window_len)
        for _ in range(unpacker.map_len()):
            unpacker.value()
            assert unpacker.offset() <= min(len(data), window_len)
    except DecodeError:
        pass


@pytest.mark.parametrize("data_len", [0, 1, 255, 256, 65_535, 65_536])
def test_a_binary_header_is_found_at_its_offset(data_len: int) -> None:
    header = pack_bin_header(data_len)
    start, length = read_bin_header(b"???" + header + bytes(data_len), 3)
    assert (start, length) == (3 + len(header), data_len)


@pytest.mark.parametrize(
    ("packed", "offset"),
    [("", 0), ("c400", 2), ("a0", 0), ("c4", 0), ("c50001", 0), ("c4020a", 0)],
)
def test_what_is_no_whole_binary_data_is_refused(packed: str, offset: int) -> None:
    with pytest.raises(DecodeError, match="payload"):
        read_bin_header(bytes.fromhex(packed), offset)


# The walk through a map.


def walked(data: bytes) -> list[tuple[str | None, bytes]]:
    return [(key, bytes(value)) for key, value in members(data)]


def test_a_walk_tells_keys_and_where_values_lie() -> None:
    long = pack_bin_header(200_000) + bytes(200_000)
    ext = b"\xc9\x00\x01\x00\x00\x05" + bytes(65_536)
    pairs = [
        (pack_str("a"), "a", b"\x93\x01\x81\x01\x90\xc0"),
        (b"\x05", None, pack_signed(-5)),
        (pack_str("b"), "b", long),
        (pack_str("k" * MAX_KEY_LEN), "k" * MAX_KEY_LEN, b"\xdd" + bytes(4)),
        (pack_str("k" * (MAX_KEY_LEN + 1)), None, ext),
        (pack_str("x" * 70_000), None, pack_str("e" * 70_000)),
        (b"\xd9\x01\xff", "\udcff", b"\x92" + long + long),
    ]
    data = pack_map_header(len(pairs)) + b"".join(key + v for key, _, v in pairs)
    expected = [(key, value) for _, key, value in pairs]
    assert walked(data + b"\xc1 rest") == expected
    for missing in (1, 199_990, 200_010, 400_000, 480_000, len(data) - 3):
        with pytest.raises(DecodeError):
            walked(data[:-missing])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x90",
        b"\xc0",
        b"\x81",
        b"\x81\xa1x",
        b"\x81\xa1x\xc1",
        b"\x81\xc4\x01x\x01",
        b"\x81\x90\x01",
        b"\x81\xdf\xff\xff\xff\xff\x01",
        b"\x81\xa1x\xc6\xff\xff\xff\xff",
        b"\x81\xa1x" + b"\x91" * 100_000,
        b"\x81\xa1x" + b"\x81\x01" * 100_000,
        b"\xdf\x00\x01\x00\x01" + b"\x01\x01" * 65_537,
    ],
)
def test_a_walk_refuses_what_is_no_well_formed_map(data: bytes) -> None:
    with pytest.raises(DecodeError):
        walked(data)


@given(st.binary(max_size=200))
def test_a_walk_takes_what_the_decoder_takes(data: bytes) -> None:
    try:
        value = unpack_object(data)
    except DecodeError:
        value = None
    if not isinstance(value, dict) or any(isinstance(key, bytes) for key in value):
        with contextlib.suppress(DecodeError):
            walked(data)
        return
    pairs = {key: unpack_object(packed) for key, packed in members(data)}
    texts = {
        key: one
        for key, one in value.items()
        if isinstance(key, str)
        and len(key.encode("utf-8", "surrogateescape")) <= MAX_KEY_LEN
    }
    pairs.pop(None, None)
    assert repr(pairs) == repr(texts)


def test_strings_are_read_up_to_a_limit() -> None:
    for text in ("", "e" * 31, "e" * 255, "e" * 65_535, "e" * 65_536, "\udcff"):
        packed = pack_str(text)
        assert read_str(packed + b"rest", 65_536, "text") == text
        assert read_str(memoryview(packed), 65_536, "text") == text
        with pytest.raises(DecodeError, match="text is"):
            read_str(packed[:-1], 65_536, "text")
    assert read_str(b"\xc0", 0, "text") == ""
    with pytest.raises(DecodeError, match="longer than 2"):
        read_str(pack_str("abc"), 2, "text")
    for packed in (b"", b"\x01", b"\xc4\x00", b"\x90"):
        with pytest.raises(DecodeError, match="not a string"):
            read_str(packed, 10, "text")


def test_nil_and_containers_are_told_by_their_first_byte() -> None:
    assert [form for form in range(256) if is_container(bytes((form,)))] == [
        *range(0x80, 0xA0),
        *range(0xDC, 0xE0),
    ]
    assert [form for form in range(256) if is_nil(bytes((form,)))] == [0xC0]
    assert not is_nil(b"")
    assert not is_container(b"")
