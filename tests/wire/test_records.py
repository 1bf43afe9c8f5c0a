"""Records travel as Go's generated code sends them, and nothing else is believed."""

import dataclasses
import math
import struct
import tracemalloc
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import ConfigError, DecodeError, LocalProtocolError
from rpc25519_tools.greenpack import (
    DurationNs,
    Float32,
    Int8,
    Int64,
    TimeNs,
    Uint8,
    array_record,
    check_type,
    decode,
    decode_prefix,
    encode,
    zid,
)
from tests.wire.record_samples import FULL, LONG, SAMPLES, All, Inner, Tup

DATA = Path(__file__).parent.parent / "data" / "records"


def recorded(name: str) -> bytes:
    return (DATA / f"{name}.bin").read_bytes()


# Bytes that Go made.


@pytest.mark.parametrize("name", SAMPLES)
def test_records_are_encoded_as_go_does_it(name: str) -> None:
    assert encode(SAMPLES[name]) == recorded(name)


@pytest.mark.parametrize("name", SAMPLES)
def test_what_go_encoded_is_decoded(name: str) -> None:
    value = SAMPLES[name]
    assert decode(type(value), recorded(name)) == value


@pytest.mark.parametrize("name", ["full", "zero"])
def test_the_form_with_names_of_structs_is_encoded_and_decoded(name: str) -> None:
    packed = recorded(f"{name}-named")
    assert encode(SAMPLES[name], struct_names=True) == packed
    assert decode(All, packed) == SAMPLES[name]


# Round trips.

int64 = st.integers(-(1 << 63), (1 << 63) - 1)
inners = st.builds(Inner, st.text(), int64)
alls = st.builds(
    All,
    i=int64,
    i8=st.integers(-128, 127),
    i16=st.integers(-(1 << 15), (1 << 15) - 1),
    i32=st.integers(-(1 << 31), (1 << 31) - 1),
    i64=int64,
    u=st.integers(0, (1 << 64) - 1),
    u8=st.integers(0, 255),
    u16=st.integers(0, (1 << 16) - 1),
    u32=st.integers(0, (1 << 32) - 1),
    u64=st.integers(0, (1 << 64) - 1),
    f32=st.floats(width=32, allow_nan=False),
    f64=st.floats(allow_nan=False),
    b=st.booleans(),
    s=st.text(),
    bin=st.binary(),
    t=st.none() | st.integers(-(1 << 60), 1 << 60),
    strs=st.lists(st.text()),
    ints=st.lists(int64),
    inners=st.lists(inners),
    pointers=st.lists(st.none() | inners),
    m=st.dictionaries(st.text(), st.text()),
    m_i=st.dictionaries(st.text(), int64),
    m_k=st.dictionaries(int64, int64),
    nested=inners,
    p=st.none() | inners,
    p_s=st.none() | st.text(),
    p_i=st.none() | int64,
    arr=st.tuples(int64, int64),
    m_in=st.dictionaries(st.text(), inners),
    s_s=st.lists(st.lists(int64)),
    d=int64,
)


@given(value=alls, names=st.booleans())
def test_every_record_comes_back(value: All, names: bool) -> None:
    packed = encode(value, struct_names=names)
    assert decode(All, packed) == value
    assert decode_prefix(All, packed + b"more") == (value, len(packed))


@given(value=st.lists(st.dictionaries(st.integers(0, 255), st.none() | inners)))
def test_other_values_than_records_come_back(
    value: list[dict[int, Inner | None]],
) -> None:
    type_ = list[dict[Uint8, Inner | None]]
    assert decode(type_, encode(value, type_)) == value


@given(st.datetimes(timezones=st.just(UTC)), st.integers(-(1 << 62), 1 << 62))
def test_times_are_kept_to_what_each_type_can_hold(moment: datetime, ns: int) -> None:
    assert decode(datetime, encode(moment)) == moment
    assert decode(TimeNs, encode(ns, TimeNs)) == ns
    assert decode(DurationNs, encode(ns, DurationNs)) == ns
    rounded = decode(datetime, encode(ns, TimeNs))
    assert rounded == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
        microseconds=ns // 1000
    )


@dataclass
class Node:
    value: int = zid(0, 0)
    next: "Node | None" = zid(1, None)


def chain(length: int) -> Node | None:
    node = None
    for number in range(length):
        node = Node(number, node)
    return node


def test_a_record_may_hold_its_own_kind() -> None:
    assert decode(Node, encode(chain(100))) == chain(100)


# Changes of a record over time.


@dataclass
class Old:
    a: int = zid(0, 7)
    c: str = zid(2, "seven")


@dataclass
class New:
    a: int = zid(0, 0)
    b: list[str] = zid(1, default_factory=list)
    c: str = zid(2, "")
    d: "Inner | None" = zid(3, None)


def test_unknown_members_are_skipped_and_missing_ones_keep_their_defaults() -> None:
    new = New(1, ["x", "y"], "", Inner("deep", 1))
    assert decode(Old, encode(new)) == Old(1, "seven")
    assert decode(New, encode(Old(3, "c"))) == New(3, [], "c", None)
    assert decode(Old, b"\x80") == Old()


def test_nil_counts_as_not_sent() -> None:
    assert decode(Old, b"\xc0") == Old()
    packed = b"\x82\xabA_zid00_int\xc0\xabC_zid02_str\xa1x"
    assert decode(Old, packed) == Old(7, "x")


def test_the_last_of_two_members_with_one_name_wins() -> None:
    packed = b"\x82\xabA_zid00_int\x01\xabA_zid00_int\x02"
    assert decode(Old, packed).a == 2


@pytest.mark.parametrize(
    "packed",
    [b"\5", b"\xcc\5", b"\xcd\0\5", b"\xd0\5", b"\xd3" + bytes(7) + b"\5"],
)
def test_integers_are_taken_in_any_form(packed: bytes) -> None:
    assert decode(Int8, packed) == 5
    assert decode(Uint8, packed) == 5


# Mistakes of the user.


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (All(i8=128), "All.i8: 128 is no signed 8-bit integer"),
        (All(u8=-1), "All.u8: -1 is no unsigned 8-bit integer"),
        (All(i="1"), "All.i: a signed 64-bit integer is wanted, not str"),  # type: ignore[arg-type]  # the mistake
        (All(i=True), "All.i: a signed 64-bit integer is wanted, not bool"),
        (All(f32=1e300), r"All.f32: 1e\+300 is no 32-bit float"),
        (All(f64="x"), "All.f64: a number is wanted, not str"),  # type: ignore[arg-type]  # the mistake
        (All(s=b"x"), "All.s: a str is wanted, not bytes"),  # type: ignore[arg-type]  # the mistake
        (All(bin="x"), "All.bin: bytes is wanted, not str"),  # type: ignore[arg-type]  # the mistake
        (All(t=1.5), "All.t: a time in nanoseconds is wanted, not float"),  # type: ignore[arg-type]  # the mistake
        (All(strs=["a", 1]), r"All.strs\[1\]: a str is wanted, not int"),  # type: ignore[list-item]  # the mistake
        (All(inners=[Inner(n="x")]), r"All.inners\[0\].n: a signed"),  # type: ignore[arg-type]  # the mistake
        (All(pointers=[None, 3]), r"All.pointers\[1\]: Inner is wanted, not int"),  # type: ignore[list-item]  # the mistake
        (All(m={"k": 1}), r"All.m\['k'\]: a str is wanted, not int"),  # type: ignore[dict-item]  # the mistake
        (All(m_in={"k": Inner(name=2)}), r"All.m_in\['k'\].name: a str"),  # type: ignore[arg-type]  # the mistake
        (All(arr=(1,)), "All.arr: a tuple of 2 is wanted"),  # type: ignore[arg-type]  # the mistake
        (All(s_s=[[1], 2]), r"All.s_s\[1\]: a list is wanted, not int"),  # type: ignore[list-item]  # the mistake
        (All(d=1 << 64), "All.d: .* is no duration that fits"),
        (All(t=1 << 200), "All.t: .* is no time that fits"),
        (All(p=Old()), "All.p: Inner is wanted, not Old"),  # type: ignore[arg-type]  # the mistake
        (chain(101), "Node.next.*more than 100 containers inside each other"),
    ],
)
def test_a_value_that_does_not_fit_is_named(value: object, text: str) -> None:
    with pytest.raises(LocalProtocolError, match=text):
        encode(value)


def test_a_datetime_needs_a_time_zone() -> None:
    naive = datetime(2026, 1, 1)  # noqa: DTZ001  # the mistake
    with pytest.raises(LocalProtocolError, match="a datetime with a time zone"):
        encode(naive)


@dataclass
class NoNumber:
    a: int = 0


@dataclass
class SameNumber:
    a: int = zid(0, 0)
    b: int = zid(0, 0)


@dataclass
class BadField:
    a: set[int] = zid(0, default_factory=set)


@dataclass
class BadKey:
    a: dict[float, int] = zid(0, default_factory=dict)


@dataclass
class Outer:
    a: list[BadField] = zid(0, default_factory=list)


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (NoNumber, "NoNumber.a has no zid number"),
        (SameNumber, "SameNumber.b and SameNumber.a share zid 0"),
        (BadField, r"BadField.a: set\[int\] cannot be encoded"),
        (BadKey, "BadKey.a: .*float.* cannot be the key of a map"),
        (Outer, r"Outer.a: BadField.a: set\[int\] cannot be encoded"),
        (object, "object.* cannot be encoded"),
        (int | str, "cannot be encoded"),
        (tuple[int, str], "cannot be encoded"),
        ([1], "cannot be encoded"),
    ],
)
def test_a_type_that_cannot_travel_is_named(type_: Any, text: str) -> None:
    for _ in range(2):  # a failed plan must not be remembered
        with pytest.raises(ConfigError, match=text):
            check_type(type_)


def test_a_field_needs_a_default() -> None:
    with pytest.raises(TypeError, match="needs a default"):
        zid(3)


# Mistakes and lies of the peer.


@pytest.mark.parametrize(
    ("type_", "packed", "text"),
    [
        (Old, b"\x93\1\2\3", "Old: a map is wanted"),
        (Old, b"\x81\xabA_zid00_int\xa1x", "Old.a: a signed 64-bit integer is wanted"),
        (Old, b"\x81\xabA_zid00_int\x91\1", "Old.a: a single value is wanted"),
        (Old, b"\x81\xabC_zid02_str\xc4\1x", "Old.c: a str is wanted, not bytes"),
        (
            Old,
            b"\x81\xabA_zid00_int\xcf" + b"\xff" * 8,
            "Old.a: .* is no signed 64-bit",
        ),
        (Int8, encode(128), "128 is no signed 8-bit integer"),
        (Float32, b"\x01", "a float is wanted, not int"),
        (TimeNs, encode(5), "not a time"),
        (DurationNs, encode(5, TimeNs), "not a duration"),
        (
            datetime,
            encode(1 << 62, TimeNs)[:3] + struct.pack(">qi", 1 << 60, 0),
            "hold",
        ),
        (list[int], b"\x92\1\xc2", r"\[1\]: a signed 64-bit integer is wanted"),
        (Tup, b"\x92\1\2", "Tup: an array of 3 is wanted, not of 2"),
        (All, encode(New(1, [], "", None))[:-1], "All"),
    ],
)
def test_a_wrong_value_is_named(type_: Any, packed: bytes, text: str) -> None:
    with pytest.raises(DecodeError, match=text):
        decode(type_, packed)


@pytest.mark.parametrize("name", ["full", "full-named", "tuple"])
def test_a_record_cut_short_is_refused_at_every_length(name: str) -> None:
    packed = recorded(name)
    type_ = Tup if name == "tuple" else All
    for length in range(len(packed)):
        with pytest.raises(DecodeError):
            decode(type_, packed[:length])


@settings(max_examples=300)
@given(
    data=st.binary(max_size=200), position=st.integers(0, 724), bit=st.integers(0, 7)
)
def test_whatever_comes_is_decoded_or_refused(
    data: bytes, position: int, bit: int
) -> None:
    changed = bytearray(recorded("full"))
    changed[position] ^= 1 << bit
    for packed in (data, bytes(changed)):
        try:
            value = decode(All, packed)
        except DecodeError:
            continue
        assert decode(All, encode(value)) == value or _has_nan(value)


def _has_nan(value: All) -> bool:
    return math.isnan(value.f32) or math.isnan(value.f64)


@pytest.mark.parametrize(
    "packed",
    [
        b"\xdd\xff\xff\xff\xff" * 1000,
        b"\xdf\xff\xff\xff\xff" * 1000,
        b"\x81\xabL_zid02_slc\xdd\x0f\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x81\xa1x" + b"\x91" * 100_000,
        b"\xdd\x00\x01\x00\x00" + b"\xdd\x00\x01\x00\x00" * 20_000,
    ],
)
def test_announced_lengths_and_depths_cost_nothing(packed: bytes) -> None:
    tracemalloc.start()
    try:
        for type_ in (All, Tup, list[list[list[int]]], dict[str, list[int]], Node):
            with pytest.raises(DecodeError):
                decode(type_, packed)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20


def test_a_deep_chain_from_a_peer_is_refused() -> None:
    packed = b"\xc0"
    for _ in range(101):
        packed = b"\x81\xaeNext_zid01_ptr" + packed
    with pytest.raises(DecodeError, match="more than 100 containers"):
        decode(Node, packed)


@dataclass
class Positive:
    n: int = zid(0, 1)

    def __post_init__(self) -> None:
        if self.n <= 0:
            raise ValueError("n must be positive")


def test_checks_of_the_class_itself_hold_for_what_comes() -> None:
    packed = encode(Positive(5)).replace(b"\5", b"\xff")
    with pytest.raises(DecodeError, match="Positive: n must be positive"):
        decode(Positive, packed)


def test_long_lists_are_read_whole() -> None:
    many = list(range(200_000))
    assert decode(list[Int64], encode(many, list[Int64])) == many
    assert decode(All, recorded("long")) == LONG


@array_record
@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    x: int = zid(0, 0)


def test_frozen_and_keyword_records_work() -> None:
    assert decode(Frozen, encode(Frozen(x=4))) == Frozen(x=4)
    assert dataclasses.replace(FULL, i=2) != FULL


@dataclass
class Picky:
    n: int = zid(0, 0)

    def __post_init__(self) -> None:
        errors: list[Exception] = [TypeError("no"), KeyError("no"), RuntimeError("no")]
        if 0 < self.n <= len(errors):
            raise errors[self.n - 1]


@pytest.mark.parametrize(
    ("n", "text"),
    [(1, "TypeError: no"), (2, "KeyError: 'no'"), (3, "RuntimeError: no")],
)
def test_whatever_a_class_raises_for_what_came_is_a_decode_error(
    n: int, text: str
) -> None:
    fine = encode(Picky(7))
    with pytest.raises(DecodeError, match=f"Picky: {text}"):
        decode(Picky, fine[:-1] + bytes([n]))
    assert decode(Picky, fine) == Picky(7)


@dataclass
class Late:
    a: int = zid(0, 0)
    b: int = field(init=False, default=0, metadata={"zid": 1, "name": ""})


def test_a_field_that_cannot_be_given_is_refused() -> None:
    for use in (lambda: encode(Late()), lambda: decode(Late, b"\x80")):
        with pytest.raises(ConfigError, match=r"Late\.b has init=False"):
            use()


@dataclass
class When:
    at: datetime | None = zid(0, None)
    ns: TimeNs = zid(1, None)


def test_the_time_that_means_unset_is_refused_and_its_neighbours_travel() -> None:
    first = datetime.min.replace(tzinfo=UTC)
    elsewhere = first + timedelta(hours=1)
    elsewhere = elsewhere.replace(tzinfo=timezone(timedelta(hours=1)))
    zero_ns = -62_135_596_800 * 1_000_000_000
    for when in (When(at=first), When(at=elsewhere), When(ns=zero_ns)):
        with pytest.raises(LocalProtocolError, match="means unset: use None"):
            encode(when)
    for when in (
        When(at=first + timedelta(microseconds=1)),
        When(ns=zero_ns + 1),
        When(ns=zero_ns - 1),
        When(),
    ):
        assert decode(When, encode(when)) == when


@pytest.mark.parametrize("data", [None, "text", 5, [1]])
def test_what_is_decoded_must_be_bytes(data: Any) -> None:
    with pytest.raises(LocalProtocolError, match="must be bytes, not"):
        decode(Picky, data)
