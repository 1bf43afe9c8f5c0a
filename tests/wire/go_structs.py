"""The structs of tests/data/records/go-structs.json as records.

Each entry there is one Go value: the name of its type, what is in it, and the bytes of
Go's MarshalMsg and EncodeMsg. Times and durations are in nanoseconds, floats in
hexadecimal, binary data and strings that are no UTF-8 in hex, maps lists of pairs,
pointers lists of one or null.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, NewType

from rpc25519_tools.greenpack import (
    Byte,
    DurationNs,
    FixedLen,
    Float32,
    Int8,
    Int16,
    Int32,
    Int64,
    TimeNs,
    Uint,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    array_record,
    zid,
)
from rpc25519_tools.wire.greenpack import GO_ZERO_TIME_S
from rpc25519_tools.wire.record_types import Nanoseconds, go_name

FILE = Path(__file__).parent.parent / "data" / "records" / "go-structs.json"

Small = NewType("Small", Uint8)
Title = NewType("Title", str)
Tags = NewType("Tags", list[str])
Blob = NewType("Blob", bytes)
Counts = NewType("Counts", dict[str, Int64])


class Level(IntEnum):
    ZERO = 0
    NINE = 9
    MINUS_FIVE = -5
    MINUS_300 = -300


@dataclass
class Inner:
    name: str = zid(0, "")
    n: int = zid(1, 0)


@dataclass
class Scalars:
    flag: bool = zid(0, False)
    text: str = zid(1, "")
    data: bytes = zid(2, b"")
    i: int = zid(3, 0)
    i8: Int8 = zid(4, 0)
    i16: Int16 = zid(5, 0)
    i32: Int32 = zid(6, 0)
    i64: Int64 = zid(7, 0)
    u: Uint = zid(8, 0)
    u8: Uint8 = zid(9, 0)
    u16: Uint16 = zid(10, 0)
    u32: Uint32 = zid(11, 0)
    u64: Uint64 = zid(12, 0)
    by: Byte = zid(13, 0)
    f32: Float32 = zid(14, 0.0)
    f64: float = zid(15, 0.0)


@dataclass
class Times:
    at: TimeNs = zid(0, None)
    took: DurationNs = zid(1, 0)
    many: list[TimeNs] = zid(2, default_factory=list)
    by_name: dict[str, TimeNs] = zid(3, default_factory=dict)
    waits: list[DurationNs] = zid(4, default_factory=list)


@dataclass
class Lists:
    flags: list[bool] = zid(0, default_factory=list)
    texts: list[str] = zid(1, default_factory=list)
    blobs: list[bytes] = zid(2, default_factory=list)
    ints: list[int] = zid(3, default_factory=list)
    longs: list[Int64] = zid(4, default_factory=list)
    octets: list[Uint8] = zid(5, default_factory=list)
    words: list[Uint64] = zid(6, default_factory=list)
    singles: list[Float32] = zid(7, default_factory=list)
    doubles: list[float] = zid(8, default_factory=list)
    grid: list[list[Int16]] = zid(9, default_factory=list)
    maps: list[dict[str, int]] = zid(10, default_factory=list)


@dataclass
class Maps:
    by_text: dict[str, int] = zid(0, default_factory=dict)
    by_int: dict[int, str] = zid(1, default_factory=dict)
    by_int32: dict[Int32, bool] = zid(2, default_factory=dict)
    by_int64: dict[Int64, bytes] = zid(3, default_factory=dict)
    lists: dict[str, list[str]] = zid(4, default_factory=dict)
    structs: dict[str, Inner] = zid(5, default_factory=dict)
    ptrs: dict[str, Inner | None] = zid(6, default_factory=dict)
    deep: dict[str, dict[int, Uint8]] = zid(7, default_factory=dict)


@dataclass
class Arrays:
    three: tuple[Int32, Int32, Int32] = zid(0, (0, 0, 0))
    sum: Annotated[bytes, FixedLen(4)] = zid(1, bytes(4))
    raw: tuple[Uint8, Uint8, Uint8, Uint8] = zid(2, (0, 0, 0, 0))
    two: tuple[Inner, Inner] = zid(3, default_factory=lambda: (Inner(), Inner()))
    words: tuple[str, str] = zid(4, ("", ""))


@dataclass
class Pointers:
    num: int | None = zid(0, None)
    text: str | None = zid(1, None)
    flag: bool | None = zid(2, None)
    real: float | None = zid(3, None)
    wide: Uint64 | None = zid(4, None)
    in_: Inner | None = zid(5, None)
    list_: list[Int64] | None = zid(6, None)
    lvl: Level | None = zid(7, None)


@array_record
@dataclass
class Pair:
    a: int = zid(0, 0)
    b: int = zid(1, 0)


@dataclass
class Outer:
    in_: Inner = zid(0, default_factory=Inner)
    ptr: Inner | None = zid(1, None)
    list_: list[Inner] = zid(2, default_factory=list)
    ptrs: list[Inner | None] = zid(3, default_factory=list)
    pair: Pair = zid(4, default_factory=Pair)
    pair_p: Pair | None = zid(5, None)
    pairs: list[Pair] = zid(6, default_factory=list)
    scalar: Scalars = zid(7, default_factory=Scalars)


@dataclass
class Named:
    level: Level = zid(0, Level.ZERO)
    small: Small = zid(1, 0)
    title: Title = zid(2, "")
    tags: Tags = zid(3, default_factory=list)
    blob: Blob = zid(4, b"")
    counts: Counts = zid(5, default_factory=dict)


@dataclass
class Node:
    value: int = zid(0, 0)
    next: "Node | None" = zid(1, None)
    kids: "list[Node | None]" = zid(2, default_factory=list)
    same: "list[Node]" = zid(3, default_factory=list)


@dataclass
class Unsorted:
    last: str = zid(3, "")
    first: str = zid(0, "")
    other: Int64 = zid(2, 0, name="renamed")


@array_record
@dataclass
class Row:
    flag: bool = zid(0, False)
    text: str = zid(1, "")
    data: bytes = zid(2, b"")
    num: Int64 = zid(3, 0)
    wide: Uint64 = zid(4, 0)
    real: float = zid(5, 0.0)
    at: TimeNs = zid(6, None)
    took: DurationNs = zid(7, 0)
    list_: list[str] = zid(8, default_factory=list)
    map_: dict[str, Uint32] = zid(9, default_factory=dict)
    in_: Inner = zid(10, default_factory=Inner)
    ptr: Unsorted | None = zid(11, None)
    fixed: tuple[Int16, Int16] = zid(12, (0, 0))
    sum: tuple[Byte, Byte, Byte, Byte] = zid(13, (0, 0, 0, 0))
    pairs: list[Pair] = zid(14, default_factory=list)
    pair_p: Pair | None = zid(15, None)
    num2: int | None = zid(16, None)


@array_record
@dataclass
class Line:
    from_: Pair = zid(0, default_factory=Pair)
    to: Pair = zid(1, default_factory=Pair)
    tag: str = zid(3, "")


LongNames = dataclasses.make_dataclass(
    "LongNames",
    [
        ("the_name_of_this_member_is_quite_long", int, zid(0, 0)),
        *((name, int, zid(n, 0)) for n, name in enumerate("bcdefghijklmnopq", 1)),
    ],
)

TYPES: dict[str, Any] = {
    one.__name__: one
    for one in (
        *(Inner, Scalars, Times, Lists, Maps, Arrays, Pointers, Pair, Outer, Named),
        *(Node, Unsorted, Row, Line, LongNames, Level, Title, Blob),
    )
} | {"Numbers": list[Int64], "Names": dict[str, int]}


def entries() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(FILE.read_text())
    return found


def built(type_: Any, told: Any) -> Any:
    """Make the value that an entry tells of."""
    if isinstance(type_, NewType):
        return built(type_.__supertype__, told)
    if typing.get_args(type_):
        return _composed(typing.get_origin(type_), typing.get_args(type_), told)
    if type_ is float:
        return float.fromhex(told)
    if type_ is bytes:
        return bytes.fromhex(told)
    if type_ is str:
        if isinstance(told, dict):
            return bytes.fromhex(told["hex"]).decode("utf-8", "surrogateescape")
        return told
    if dataclasses.is_dataclass(type_):
        hints = typing.get_type_hints(type_, include_extras=True)
        return typing.cast("type[Any]", type_)(
            **{
                one.name: built(hints[one.name], told[go_name(one.name)])
                for one in dataclasses.fields(type_)
            }
        )
    return type_(told)


def _composed(origin: Any, arguments: tuple[Any, ...], told: Any) -> Any:
    if origin is Annotated:
        mark = arguments[1]
        if isinstance(mark, Nanoseconds):
            is_unset = mark.clue == "tim" and told == GO_ZERO_TIME_S * 10**9
            return None if is_unset else told
        return built(arguments[0], told)
    if origin is dict:
        key, value = arguments
        return {built(key, name): built(value, one) for name, one in told}
    if origin in (typing.Union, types.UnionType):
        return None if told is None else built(arguments[0], told[0])
    assert origin in (list, tuple)
    if isinstance(told, str):  # as Go has bytes and uint8
        told = bytes.fromhex(told)
    return origin(built(arguments[0], one) for one in told)
