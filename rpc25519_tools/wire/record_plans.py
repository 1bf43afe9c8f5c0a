"""How values of each type travel: the plans that records are encoded and decoded by.

A plan appends the bytes of a value, and reads a value back. What does not fit raises
MismatchError, which gathers the path to the value on its way out.
"""

import dataclasses
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Final

from rpc25519_tools.errors import DecodeError
from rpc25519_tools.wire.greenpack import (
    GO_ZERO_TIME_S,
    ValueReader,
    pack_array_header,
    pack_bin_header,
    pack_duration,
    pack_map_header,
    pack_signed,
    pack_time,
    pack_unsigned,
    unpack_duration,
    unpack_time,
)
from rpc25519_tools.wire.record_types import Width

#: Records, lists and maps inside each other, in what is sent and what is received.
MAX_DEPTH: Final = 100

_NS_PER_S: Final = 1_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_NIL: Final = b"\xc0"
#: Integers with more bits are not written out in errors.
_SHOWN_BITS: Final = 128


class MismatchError(Exception):
    """A value does not fit its type; the path to it grows on the way out."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.path = ""


@dataclass(slots=True, eq=False)
class Out:
    """What is being encoded: the pieces so far, and how deep we are.

    ``named`` means as Go's streaming encoder does it.
    """

    named: bool
    pieces: list[bytes] = dataclasses.field(default_factory=list)
    depth: int = 0


@dataclass(slots=True, eq=False)
class In:
    """What is being decoded, and how deep we are."""

    reader: ValueReader
    depth: int = 0


@dataclass(slots=True, eq=False)
class Plan:
    """How values of one type travel.

    Attributes:
        clue: the type's mark in the key of a field.
        encode: appends the value's bytes; raises MismatchError.
        decode: reads one value; raises MismatchError or DecodeError.
        zero: makes what nil and a missing value stand for in Go.
        is_empty: whether a field with this value is left out.
    """

    clue: str
    encode: Callable[[Any, Out], None]
    decode: Callable[[In], Any]
    zero: Callable[[], Any]
    is_empty: Callable[[Any], bool]


# Plans of single values.


def wrong(value: object, wanted: str) -> MismatchError:
    """Return the error for a value of a wrong Python type."""
    return MismatchError(f"{wanted} is wanted, not {type(value).__name__}")


def _shown(value: float) -> str:
    """Return a number for an error; Python refuses to write very long ones."""
    bits = value.bit_length() if isinstance(value, int) else 0
    return f"{value}" if bits <= _SHOWN_BITS else f"an integer of {bits} bits"


def integer(width: Width) -> Plan:
    """Return the plan of an integer of one of Go's widths."""
    low = -(1 << (width.bits - 1)) if width.signed else 0
    high = (1 << (width.bits - 1)) - 1 if width.signed else (1 << width.bits) - 1
    pack = pack_signed if width.signed else pack_unsigned
    kind = f"{'a signed' if width.signed else 'an unsigned'} {width.bits}-bit integer"

    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong(value, kind)
        if not low <= value <= high:
            raise MismatchError(f"{_shown(value)} is no {kind.partition(' ')[2]}")
        return value

    def encode_integer(value: object, out: Out) -> None:
        out.pieces.append(pack(check(value)))

    def decode_integer(source: In) -> int:
        value = scalar(source)
        return 0 if value is None else check(value)

    return Plan(
        width.clue, encode_integer, decode_integer, lambda: 0, lambda one: one == 0
    )


def floating(width: Width) -> Plan:
    """Return the plan of a float of 32 or 64 bits."""
    mark, form = (
        (b"\xcb", struct.Struct(">d"))
        if width.bits == 64
        else (b"\xca", struct.Struct(">f"))
    )

    def pack(value: float) -> bytes:
        try:
            return form.pack(value)
        except (OverflowError, struct.error):
            raise MismatchError(
                f"{_shown(value)} is no {width.bits}-bit float"
            ) from None

    def encode_float(value: object, out: Out) -> None:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise wrong(value, "a number")
        out.pieces.append(mark + pack(value))

    def decode_float(source: In) -> float:
        value = scalar(source)
        if value is None:
            return 0.0
        if type(value) is not float:
            raise wrong(value, "a float")
        if width.bits == 64:
            return value
        # A peer may have sent 64 bits. What is taken can be encoded again.
        narrow: float = form.unpack(pack(value))[0]
        return narrow

    return Plan(
        width.clue, encode_float, decode_float, lambda: 0.0, lambda one: one == 0
    )


def scalar(source: In) -> object:
    """Read a single value of any type."""
    try:
        return source.reader.scalar()
    except DecodeError as exc:
        raise MismatchError(str(exc)) from None


def simple(
    clue: str,
    wanted: str,
    kind: type | tuple[type, ...],
    pack: Callable[[Any], bytes],
    zero: Callable[[], Any],
) -> Plan:
    """Return the plan of a value that one msgpack object stands for."""
    read_as = kind[0] if isinstance(kind, tuple) else kind

    def encode_simple(value: object, out: Out) -> None:
        if not isinstance(value, kind):
            raise wrong(value, wanted)
        try:
            out.pieces.append(pack(value))
        except UnicodeEncodeError:
            raise MismatchError("half of a surrogate pair is no text") from None

    def decode_simple(source: In) -> object:
        value = scalar(source)
        if value is None:
            return zero()
        if type(value) is not read_as:
            raise wrong(value, wanted)
        return value

    return Plan(clue, encode_simple, decode_simple, zero, lambda one: not one)


def pack_bytes(value: bytes | bytearray | memoryview) -> bytes:
    """Pack binary data with its header."""
    raw = bytes(value)  # a memoryview's own length may count larger items
    return pack_bin_header(len(raw)) + raw


def time_ns() -> Plan:
    """Return the plan of a time in nanoseconds since 1970 UTC; None is unset.

    Unset is Go's zero time on the wire, so that this one moment cannot be sent.
    """

    def encode_time(value: object, out: Out) -> None:
        if value is None:
            out.pieces.append(pack_time(GO_ZERO_TIME_S * _NS_PER_S))
        elif value == GO_ZERO_TIME_S * _NS_PER_S:
            # It would come back as None.
            raise MismatchError(
                "the first moment of the year 1 is Go's zero time, which means unset: "
                "use None"
            )
        elif type(value) is int:
            try:
                out.pieces.append(pack_time(value))
            except (OverflowError, struct.error):
                raise MismatchError(
                    f"{_shown(value)} ns is no time that fits"
                ) from None
        else:
            raise wrong(value, "a time in nanoseconds")

    def decode_time(source: In) -> int | None:
        try:
            return unpack_time(source.reader.scalar(), "the value")
        except DecodeError as exc:
            raise MismatchError(str(exc)) from None

    return Plan("tim", encode_time, decode_time, lambda: None, lambda one: one is None)


def date_time() -> Plan:
    """Return the plan of a datetime, which rounds down to microseconds."""
    by_ns = time_ns()

    def encode_datetime(value: object, out: Out) -> None:
        if value is None:
            by_ns.encode(None, out)
            return
        if not isinstance(value, datetime):
            raise wrong(value, "a datetime")
        if value.tzinfo is None:
            raise MismatchError("a datetime with a time zone is wanted")
        by_ns.encode((value - _EPOCH) // _MICROSECOND * 1000, out)

    def decode_datetime(source: In) -> datetime | None:
        ns = by_ns.decode(source)
        if ns is None:
            return None
        try:
            return _EPOCH + timedelta(microseconds=ns // 1000)
        except OverflowError:
            raise MismatchError("a time that no datetime can hold") from None

    return Plan(
        "tim", encode_datetime, decode_datetime, lambda: None, lambda one: one is None
    )


def duration_ns() -> Plan:
    """Return the plan of a duration in nanoseconds."""

    def encode_duration(value: object, out: Out) -> None:
        if type(value) is not int:
            raise wrong(value, "a duration in nanoseconds")
        try:
            out.pieces.append(pack_duration(value))
        except OverflowError:
            raise MismatchError(
                f"{_shown(value)} ns is no duration that fits"
            ) from None

    def decode_duration(source: In) -> int:
        try:
            return unpack_duration(source.reader.scalar(), "the value")
        except DecodeError as exc:
            raise MismatchError(str(exc)) from None

    return Plan("dur", encode_duration, decode_duration, lambda: 0, lambda one: False)


# Plans of containers.


def enter(where: Out | In) -> None:
    """Count one more container inside the others."""
    where.depth += 1
    if where.depth > MAX_DEPTH:
        raise MismatchError(f"more than {MAX_DEPTH} containers inside each other")


def array_len(source: In) -> int:
    """Enter an array; return its length."""
    try:
        return source.reader.array_len()
    except DecodeError as exc:
        raise MismatchError(str(exc)) from None


def map_len(source: In) -> int:
    """Enter a map; return its number of pairs."""
    try:
        return source.reader.map_len()
    except DecodeError as exc:
        raise MismatchError(str(exc)) from None


def take_nil(source: In) -> bool:
    """Read nil if it comes next; return whether it did."""
    if source.reader.is_nil():
        source.reader.scalar()
        return True
    return False


def _encode_items(value: Iterable[object], item: Plan, out: Out) -> None:
    for index, one in enumerate(value):
        try:
            item.encode(one, out)
        except MismatchError as fault:
            fault.path = f"[{index}]{fault.path}"
            raise


def _decode_items(count: int, item: Plan, source: In) -> list[Any]:
    items: list[Any] = []
    for index in range(count):
        try:
            items.append(item.decode(source))
        except MismatchError as fault:
            fault.path = f"[{index}]{fault.path}"
            raise
    return items


def list_of(item: Plan) -> Plan:
    """Return the plan of a Go slice."""

    def encode_list(value: object, out: Out) -> None:
        if not isinstance(value, list | tuple):
            raise wrong(value, "a list")
        enter(out)
        out.pieces.append(pack_array_header(len(value)))
        _encode_items(value, item, out)
        out.depth -= 1

    def decode_list(source: In) -> list[Any]:
        if take_nil(source):
            return []
        enter(source)
        items = _decode_items(array_len(source), item, source)
        source.depth -= 1
        return items

    return Plan("slc", encode_list, decode_list, list, lambda one: not one)


def array_of(item: Plan, count: int) -> Plan:
    """Return the plan of a Go array, whose length is part of its type.

    ``[N]byte`` travels as binary data. So does ``[N]uint8`` in Go's streaming form;
    both forms of it are read.
    """
    is_byte, is_uint8 = item.clue == "byt", item.clue == "u08"

    def encode_fixed(value: object, out: Out) -> None:
        if not isinstance(value, tuple | list) or len(value) != count:
            raise MismatchError(f"a tuple of {count} is wanted")
        enter(out)
        start = len(out.pieces)
        out.pieces.append(pack_array_header(count))
        _encode_items(value, item, out)
        if is_byte or (is_uint8 and out.named):
            out.pieces[start:] = [pack_bytes(bytes(value))]
        out.depth -= 1

    def decode_fixed(source: In) -> tuple[Any, ...]:
        if take_nil(source):
            return zero()
        if (is_byte or is_uint8) and source.reader.is_binary():
            return tuple(fixed.decode(source))
        enter(source)
        sent = array_len(source)
        if sent != count:
            raise MismatchError(f"an array of {count} is wanted, not of {sent}")
        items = _decode_items(count, item, source)
        source.depth -= 1
        return tuple(items)

    def zero() -> tuple[Any, ...]:
        return tuple(item.zero() for _ in range(count))

    fixed = fixed_bytes(count)
    return Plan("ary", encode_fixed, decode_fixed, zero, lambda one: False)


def fixed_bytes(count: int) -> Plan:
    """Return the plan of Go's ``[count]byte``."""

    def check(value: bytes) -> bytes:
        if len(value) != count:
            raise MismatchError(f"{count} bytes are wanted, not {len(value)}")
        return value

    def encode_bytes(value: object, out: Out) -> None:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise wrong(value, "bytes")
        out.pieces.append(pack_bytes(check(bytes(value))))

    def decode_bytes(source: In) -> bytes:
        value = scalar(source)
        if value is None:
            return bytes(count)
        if type(value) is not bytes:
            raise wrong(value, "bytes")
        return check(value)

    return Plan(
        "ary", encode_bytes, decode_bytes, lambda: bytes(count), lambda one: False
    )


def dict_of(key_plan: Plan, value_plan: Plan) -> Plan:
    """Return the plan of a Go map."""

    def encode_dict(value: object, out: Out) -> None:
        if not isinstance(value, dict):
            raise wrong(value, "a dict")
        enter(out)
        out.pieces.append(pack_map_header(len(value)))
        for key, one in value.items():
            try:
                key_plan.encode(key, out)
                value_plan.encode(one, out)
            except MismatchError as fault:
                fault.path = f"[{key!r:.40}]{fault.path}"
                raise
        out.depth -= 1

    def decode_dict(source: In) -> dict[Any, Any]:
        if take_nil(source):
            return {}
        enter(source)
        found: dict[Any, Any] = {}
        for _ in range(map_len(source)):
            key: Any = "?"
            try:
                key = key_plan.decode(source)
                found[key] = value_plan.decode(source)
            except MismatchError as fault:
                fault.path = f"[{key!r:.40}]{fault.path}"
                raise
        source.depth -= 1
        return found

    return Plan("map", encode_dict, decode_dict, dict, lambda one: not one)


def pointer_to(target: Plan) -> Plan:
    """Return the plan of a Go pointer, which may be nil."""

    def encode_pointer(value: object, out: Out) -> None:
        if value is None:
            out.pieces.append(_NIL)
        else:
            target.encode(value, out)

    def decode_pointer(source: In) -> object:
        return None if take_nil(source) else target.decode(source)

    return Plan(
        "ptr", encode_pointer, decode_pointer, lambda: None, lambda one: one is None
    )


def named(base: Plan) -> Plan:
    """Return the plan of a Go type that has a name of its own, such as ``Level``."""
    return dataclasses.replace(base, clue="rct")


def members_of(cls: type[Enum], base: Plan) -> Plan:
    """Return the plan of an enumeration, whose members are values of ``base``."""

    def encode_member(value: object, out: Out) -> None:
        if not isinstance(value, cls):
            raise wrong(value, cls.__name__)
        base.encode(value.value, out)

    def decode_member(source: In) -> Enum:
        return member(base.decode(source))

    def member(value: Any) -> Enum:
        try:
            return cls(value)
        except ValueError:
            raise MismatchError(f"{value!r:.40} is no {cls.__name__}") from None

    return Plan(
        "rct",
        encode_member,
        decode_member,
        lambda: member(base.zero()),
        lambda one: isinstance(one, cls) and base.is_empty(one.value),
    )
