"""Every kind of Go type, byte for byte; and mistakes that used to go unnoticed."""

import array
import dataclasses
import sys
import threading
import typing
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Annotated, Any, NewType

import pytest

from rpc25519_tools.errors import ConfigError, DecodeError, LocalProtocolError
from rpc25519_tools.greenpack import (
    Byte,
    FixedLen,
    Float32,
    TimeNs,
    Uint8,
    check_type,
    decode,
    encode,
    zid,
)
from tests.wire.go_structs import TYPES, Inner, Level, Row, built, entries

ENTRIES = entries()
each_entry = pytest.mark.parametrize(
    "entry",
    ENTRIES,
    ids=[f"{number}-{one['type']}" for number, one in enumerate(ENTRIES)],
)


def is_nan(value: Any) -> bool:
    return bool(value != value)  # only NaN differs from itself


def same(one: Any, other: Any) -> bool:
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one == other) or (is_nan(one) and is_nan(other))


def test_every_type_is_among_the_entries() -> None:
    assert {entry["type"] for entry in ENTRIES} == set(TYPES)


@each_entry
@pytest.mark.parametrize("form", ["marshal", "stream"])
def test_what_go_sends_is_read(entry: dict[str, Any], form: str) -> None:
    type_ = TYPES[entry["type"]]
    assert same(decode(type_, bytes.fromhex(entry[form])), built(type_, entry["value"]))


@each_entry
@pytest.mark.parametrize("form", ["marshal", "stream"])
def test_go_would_send_the_same(entry: dict[str, Any], form: str) -> None:
    # By way of our reader, which keeps Go's random order of the entries of a map.
    type_, packed = TYPES[entry["type"]], bytes.fromhex(entry[form])
    value = decode(type_, packed)
    assert encode(value, type_, struct_names=form == "stream") == packed


@each_entry
def test_values_made_here_are_sent_as_go_does(entry: dict[str, Any]) -> None:
    type_, packed = TYPES[entry["type"]], bytes.fromhex(entry["marshal"])
    value = built(type_, entry["value"])
    if value != built(type_, entry["value"]):
        return  # Go's NaN has a bit that Python's has not
    made = encode(value, type_)
    assert sorted(made) == sorted(packed)
    if entry["type"] != "Maps":
        assert made == packed


@each_entry
def test_what_is_cut_short_is_refused(entry: dict[str, Any]) -> None:
    packed = bytes.fromhex(entry["stream"])
    for length in range(len(packed)):
        with pytest.raises(DecodeError):
            decode(TYPES[entry["type"]], packed[:length])


# Pointers that Go sends twice.


@dataclasses.dataclass
class Twins:
    first: Inner | None = zid(0, None)
    second: Inner | None = zid(1, None)


#: What Go's EncodeMsg makes of Twins{p, p}, up to the second p.
TWINS = bytes.fromhex(
    "83a140a55477696e73af46697273745f7a696430305f70747283a140a5496e6e6572ae4e616d655f7a"
    "696430305f737472a170ab4e5f7a696430315f696e7405b05365636f6e645f7a696430315f707472"
)


@pytest.mark.parametrize(
    "reference",
    ["d40600", "c70306d100c8", "c70306d1012c", "c70506d200009c40"],
    ids=["0 pointers before", "200", "300", "40000"],
)
def test_a_reference_to_an_earlier_pointer_is_refused_by_its_name(
    reference: str,
) -> None:
    with pytest.raises(DecodeError, match=r"Twins\.second: .*-no-dedup"):
        decode(Twins, TWINS + bytes.fromhex(reference))
    assert decode(Twins, TWINS + b"\x80") == Twins(Inner("p", 5), Inner())


@pytest.mark.parametrize("packed", ["d40700", "c70307d100c8", "c7", "d4", "05", ""])
def test_nothing_else_is_called_a_reference(packed: str) -> None:
    with pytest.raises(DecodeError, match=r"Twins\.second: a map is wanted$"):
        decode(Twins, TWINS + bytes.fromhex(packed))


# Bytes and arrays of a fixed length.

Sum = Annotated[bytes, FixedLen(4)]


def test_fixed_bytes_have_exactly_their_length() -> None:
    assert encode(b"abcd", Sum) == b"\xc4\x04abcd"
    assert decode(Sum, b"\xc4\x04abcd") == b"abcd"
    assert decode(Sum, b"\xc0") == bytes(4)
    with pytest.raises(LocalProtocolError, match="4 bytes are wanted, not 3"):
        encode(b"abc", Sum)
    with pytest.raises(LocalProtocolError, match="bytes is wanted, not str"):
        encode("abcd", Sum)
    with pytest.raises(DecodeError, match="4 bytes are wanted, not 3"):
        decode(Sum, b"\xc4\x03abc")
    with pytest.raises(DecodeError, match="bytes is wanted, not str"):
        decode(Sum, b"\xa4abcd")


@pytest.mark.parametrize("packed", [b"\x92\x01\x02", b"\xc4\x02\x01\x02"])
@pytest.mark.parametrize("type_", [tuple[Byte, Byte], tuple[Uint8, Uint8]])
def test_arrays_of_octets_are_read_from_both_forms(type_: Any, packed: bytes) -> None:
    assert decode(type_, packed) == (1, 2)


def test_arrays_of_octets_are_checked_like_others() -> None:
    with pytest.raises(LocalProtocolError, match=r"\[1\]: 256 is no unsigned 8-bit"):
        encode((1, 256), tuple[Byte, Byte])
    with pytest.raises(DecodeError, match="2 bytes are wanted, not 3"):
        decode(tuple[Byte, Byte], b"\xc4\x03\1\2\3")
    with pytest.raises(DecodeError, match="an array of 2 is wanted, not of 3"):
        decode(tuple[int, int], b"\x93\1\2\3")
    with pytest.raises(DecodeError, match=r"\[1\]: an unsigned 8-bit"):
        decode(tuple[Byte, Byte], b"\x92\1\xa0")


# Types with names of their own.


class Colour(IntEnum):
    RED = 1


Heading = NewType("Heading", str)


@dataclass
class Painted:
    colour: Colour = zid(0, Colour.RED)
    title: Heading = zid(1, "")


def test_a_member_that_does_not_exist_is_refused() -> None:
    assert encode(Painted()) == b"\x81\xb0Colour_zid00_rct\x01"
    assert decode(Painted, b"\x80") == Painted()
    with pytest.raises(DecodeError, match=r"Painted\.colour: 7 is no Colour"):
        decode(Painted, b"\x81\xb0Colour_zid00_rct\x07")
    with pytest.raises(DecodeError, match="0 is no Colour"):
        decode(tuple[Colour, Colour], b"\xc0")
    with pytest.raises(LocalProtocolError, match=r"Painted\.colour: Colour is wanted"):
        encode(Painted(colour=1))  # type: ignore[arg-type]  # the mistake
    assert decode(Level, encode(Level.NINE)) is Level.NINE


class Plain(Enum):
    A = 1


def test_an_enumeration_of_anything_else_cannot_be_encoded() -> None:
    with pytest.raises(ConfigError, match=r"Plain.*no ints or strs"):
        check_type(Plain)


# Mistakes that look like empty values.


@dataclass
class Fields:
    flag: bool = zid(0, False)
    number: int = zid(1, 0)
    real: float = zid(2, 0.0)
    text: str = zid(3, "")
    data: bytes = zid(4, b"")
    items: list[int] = zid(5, default_factory=list)
    table: dict[str, int] = zid(6, default_factory=dict)


WRONG: list[object] = [0, 0.0, False, None, "", b"", [], {}]
RIGHT: dict[str, tuple[type, ...]] = {
    "flag": (bool,),
    "number": (int,),
    "real": (int, float),
    "text": (str,),
    "data": (bytes,),
    "items": (list,),
    "table": (dict,),
}


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("name", RIGHT)
def test_an_empty_value_of_a_wrong_type_is_named(name: str, value: object) -> None:
    record = Fields(**{name: value})  # type: ignore[arg-type]  # the mistake
    if type(value) in RIGHT[name]:
        assert encode(record) == b"\x80"
    else:
        with pytest.raises(LocalProtocolError, match=rf"Fields\.{name}: "):
            encode(record)


@dataclass
class Retries:
    count: int = zid(0, 3)
    names: list[str] = zid(1, default_factory=lambda: ["x"])
    where: str | None = zid(2, "here")


def test_a_zero_where_it_is_not_the_default_is_sent() -> None:
    for value in (Retries(), Retries(0, [], None), Retries(3, ["y"])):
        assert decode(Retries, encode(value)) == value
    assert decode(Retries, b"\x80") == Retries()


# Values that no error may choke on.


@pytest.mark.parametrize(
    ("value", "type_", "text"),
    [
        ("\ud800", str, "half of a surrogate pair"),
        (10**5000, int, "an integer of 16610 bits is no signed 64-bit integer"),
        (10**5000, float, "an integer of 16610 bits is no 64-bit float"),
        (1e300, Float32, r"1e\+300 is no 32-bit float"),
        (10**5000, TimeNs, "an integer of 16610 bits ns is no time"),
    ],
    ids=["surrogate", "int", "float", "float32", "time"],  # pytest cannot write them
)
def test_extreme_values_are_named(value: object, type_: Any, text: str) -> None:
    with pytest.raises(LocalProtocolError, match=text):
        encode(value, type_)


def test_a_float_of_64_bits_is_taken_for_one_of_32_only_if_it_fits() -> None:
    assert decode(Float32, encode(0.1, float)) == decode(Float32, encode(0.1, Float32))
    with pytest.raises(DecodeError, match=r"1e\+300 is no 32-bit float"):
        decode(Float32, encode(1e300, float))


def test_a_view_of_larger_items_is_sent_as_its_bytes() -> None:
    view = memoryview(array.array("H", [1, 2, 3]))
    assert decode(bytes, encode(view, bytes)) == view.tobytes()


@dataclass
class Trailing:
    type_: str = zid(0, "")
    _from: str = zid(1, "")


def test_underscores_around_a_name_are_not_part_of_it() -> None:
    packed = b"\x82\xaeType_zid00_str\xa1a\xaeFrom_zid01_str\xa1b"
    assert encode(Trailing("a", "b")) == packed


# Plans.


@dataclass
class Broken:
    good: "list[Whole]" = zid(0, default_factory=list)
    bad: set[int] = zid(1, default_factory=set)


@dataclass
class Whole:
    broken: Broken | None = zid(0, None)


@dataclass
class Unreadable:
    a: "int[" = zid(0, 0)  # type: ignore[valid-type]  # noqa: F722  # the mistake


def test_a_type_that_leads_to_a_broken_one_is_broken_too() -> None:
    for type_ in (Broken, Whole, Broken, list[Whole]):
        with pytest.raises(ConfigError, match=r"Broken\.bad: set\[int\]"):
            check_type(type_)


@pytest.mark.parametrize("type_", [typing.List, typing.Dict, Unreadable])  # noqa: UP006
def test_annotations_that_say_nothing_are_refused(type_: Any) -> None:
    with pytest.raises(ConfigError):
        check_type(type_)


def test_no_thread_sees_a_plan_that_is_half_made() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(50):
            names = [f"f{number}" for number in range(30)]
            cls = dataclasses.make_dataclass(
                "Wide", [(name, int, zid(n, 0)) for n, name in enumerate(names)]
            )
            value = cls(*range(1, 31))
            found: list[object] = []
            start = threading.Barrier(4)

            def use(
                value: object = value,
                found: list[object] = found,
                start: threading.Barrier = start,
            ) -> None:
                start.wait()
                found.append(encode(value))

            threads = [threading.Thread(target=use) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(found) == 4
            assert len(set(found)) == 1
    finally:
        sys.setswitchinterval(interval)


def test_an_array_record_sends_zeros_too() -> None:
    assert decode(Row, encode(Row())) == Row()
