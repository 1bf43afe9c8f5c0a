"""Records and other values of users as greenpack, exactly as Go's generated code.

A type is turned into a plan once; encoding and decoding follow it. What Go leaves out
(zero numbers, empty texts and containers, nil pointers, unset times) is left out, in
the order of the ``zid`` numbers. A struct by value is always sent, as are arrays of
fixed length and durations.

Decoding skips members it does not know, lets missing and nil ones keep their defaults,
and takes an integer in either sign form if it fits its width.

Source: encodings made by Go code that greenpack v0.517.0 generated.
"""

import dataclasses
import struct
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar, overload

from rpc25519_tools.errors import ConfigError, DecodeError, LocalProtocolError
from rpc25519_tools.wire.greenpack import (
    GO_ZERO_TIME_S,
    Buffer,
    ValueReader,
    pack_array_header,
    pack_bin_header,
    pack_duration,
    pack_map_header,
    pack_signed,
    pack_str,
    pack_time,
    pack_unsigned,
    unpack_duration,
    unpack_time,
)
from rpc25519_tools.wire.record_types import (
    ARRAY_MARK,
    Nanoseconds,
    Width,
    go_name,
)

T = TypeVar("T")

#: Records, lists and maps inside each other, in what is sent and what is received.
MAX_DEPTH: Final = 100

_NS_PER_S: Final = 1_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_NIL: Final = b"\xc0"
_STRUCT_NAME_KEY: Final = b"\xa1@"


class _MismatchError(Exception):
    """A value does not fit its type; the path to it grows on the way out."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.path = ""


@dataclass(slots=True, eq=False)
class _Out:
    """What is being encoded: the pieces so far, and how deep we are."""

    named: bool
    pieces: list[bytes] = dataclasses.field(default_factory=list)
    depth: int = 0


@dataclass(slots=True, eq=False)
class _In:
    """What is being decoded, and how deep we are."""

    reader: ValueReader
    depth: int = 0


@dataclass(slots=True, eq=False)
class _Plan:
    """How values of one type travel.

    Attributes:
        clue: the type's mark in the key of a field.
        encode: appends the value's bytes; raises _MismatchError.
        decode: reads one value; raises _MismatchError or DecodeError.
        zero: makes what nil and a missing value stand for in Go.
        is_empty: whether a field with this value is left out.
    """

    clue: str
    encode: Callable[[Any, _Out], None]
    decode: Callable[[_In], Any]
    zero: Callable[[], Any]
    is_empty: Callable[[Any], bool]


def check_type(type_: Any) -> None:
    """Make sure that values of a type can be encoded and decoded.

    Raises:
        ConfigError: they cannot; names the class and the field.
    """
    _plan_of(type_)


def encode(value: object, type_: Any = None, *, struct_names: bool = False) -> bytes:
    """Encode a record, or any value that ``type_`` describes.

    Args:
        value: what to encode.
        type_: its annotation; the value's own class where it is None.
        struct_names: begin each map with the entry ``@`` and the name of the struct,
            as Go's streaming encoder does; every decoder skips it.

    Raises:
        LocalProtocolError: the value does not fit; names the field.
        ConfigError: the type cannot be encoded.
    """
    plan = _plan_of(type(value) if type_ is None else type_)
    out = _Out(struct_names)
    try:
        plan.encode(value, out)
    except _MismatchError as fault:
        raise LocalProtocolError(_describe(fault, type_ or type(value))) from None
    return b"".join(out.pieces)


@overload
def decode(type_: type[T], data: Buffer) -> T: ...
@overload
def decode(type_: Any, data: Buffer) -> Any: ...
def decode(type_: Any, data: Buffer) -> Any:
    """Decode one value; bytes after it are ignored.

    Raises:
        DecodeError: ``data`` is malformed or not of that type; names the field.
        ConfigError: the type cannot be decoded.
    """
    return decode_prefix(type_, data)[0]


def decode_prefix(type_: Any, data: Buffer) -> tuple[Any, int]:
    """Decode the value at the front of ``data``; return it and how long it was.

    The errors are those of ``decode``.
    """
    plan = _plan_of(type_)
    source = _In(ValueReader(data))
    try:
        value = plan.decode(source)
    except _MismatchError as fault:
        raise DecodeError(_describe(fault, type_)) from None
    return value, source.reader.offset()


def _describe(fault: _MismatchError, type_: Any) -> str:
    name = getattr(type_, "__name__", None) or str(type_)
    return f"{name}{fault.path}: {fault}"


# Plans of single values.


def _wrong(value: object, wanted: str) -> _MismatchError:
    return _MismatchError(f"{wanted} is wanted, not {type(value).__name__}")


def _integer(width: Width) -> _Plan:
    low = -(1 << (width.bits - 1)) if width.signed else 0
    high = (1 << (width.bits - 1)) - 1 if width.signed else (1 << width.bits) - 1
    pack = pack_signed if width.signed else pack_unsigned
    kind = f"{'a signed' if width.signed else 'an unsigned'} {width.bits}-bit integer"

    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong(value, kind)
        if not low <= value <= high:
            raise _MismatchError(f"{value} is no {kind.partition(' ')[2]}")
        return value

    def encode_integer(value: object, out: _Out) -> None:
        out.pieces.append(pack(check(value)))

    def decode_integer(source: _In) -> int:
        value = _scalar(source)
        return 0 if value is None else check(value)

    return _Plan(
        width.clue, encode_integer, decode_integer, lambda: 0, lambda one: one == 0
    )


def _float(width: Width) -> _Plan:
    mark, pack = (
        (b"\xcb", struct.Struct(">d").pack)
        if width.bits == 64
        else (b"\xca", struct.Struct(">f").pack)
    )

    def encode_float(value: object, out: _Out) -> None:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _wrong(value, "a number")
        try:
            out.pieces.append(mark + pack(value))
        except (OverflowError, struct.error):
            raise _MismatchError(f"{value} is no {width.bits}-bit float") from None

    def decode_float(source: _In) -> float:
        value = _scalar(source)
        if value is None:
            return 0.0
        if type(value) is not float:
            raise _wrong(value, "a float")
        return value

    return _Plan(
        width.clue, encode_float, decode_float, lambda: 0.0, lambda one: one == 0
    )


def _scalar(source: _In) -> object:
    try:
        return source.reader.scalar()
    except DecodeError as exc:
        raise _MismatchError(str(exc)) from None


def _simple(
    clue: str,
    wanted: str,
    kind: type | tuple[type, ...],
    pack: Callable[[Any], bytes],
    zero: Callable[[], Any],
) -> _Plan:
    """Return the plan of a value that one msgpack object stands for."""
    read_as = kind[0] if isinstance(kind, tuple) else kind

    def encode_simple(value: object, out: _Out) -> None:
        if not isinstance(value, kind):
            raise _wrong(value, wanted)
        out.pieces.append(pack(value))

    def decode_simple(source: _In) -> object:
        value = _scalar(source)
        if value is None:
            return zero()
        if type(value) is not read_as:
            raise _wrong(value, wanted)
        return value

    return _Plan(clue, encode_simple, decode_simple, zero, lambda one: not one)


def _pack_bytes(value: bytes | bytearray | memoryview) -> bytes:
    return pack_bin_header(len(value)) + bytes(value)


def _time_ns() -> _Plan:
    def encode_time(value: object, out: _Out) -> None:
        if value is None:
            out.pieces.append(pack_time(GO_ZERO_TIME_S * _NS_PER_S))
        elif type(value) is int:
            try:
                out.pieces.append(pack_time(value))
            except (OverflowError, struct.error):
                raise _MismatchError(f"{value} ns is no time that fits") from None
        else:
            raise _wrong(value, "a time in nanoseconds")

    def decode_time(source: _In) -> int | None:
        try:
            return unpack_time(source.reader.scalar(), "the value")
        except DecodeError as exc:
            raise _MismatchError(str(exc)) from None

    return _Plan("tim", encode_time, decode_time, lambda: None, lambda one: one is None)


def _datetime() -> _Plan:
    by_ns = _time_ns()

    def encode_datetime(value: object, out: _Out) -> None:
        if value is None:
            by_ns.encode(None, out)
            return
        if not isinstance(value, datetime):
            raise _wrong(value, "a datetime")
        if value.tzinfo is None:
            raise _MismatchError("a datetime with a time zone is wanted")
        by_ns.encode((value - _EPOCH) // _MICROSECOND * 1000, out)

    def decode_datetime(source: _In) -> datetime | None:
        ns = by_ns.decode(source)
        if ns is None:
            return None
        try:
            return _EPOCH + timedelta(microseconds=ns // 1000)
        except OverflowError:
            raise _MismatchError("a time that no datetime can hold") from None

    return _Plan(
        "tim", encode_datetime, decode_datetime, lambda: None, lambda one: one is None
    )


def _duration_ns() -> _Plan:
    def encode_duration(value: object, out: _Out) -> None:
        if type(value) is not int:
            raise _wrong(value, "a duration in nanoseconds")
        try:
            out.pieces.append(pack_duration(value))
        except OverflowError:
            raise _MismatchError(f"{value} ns is no duration that fits") from None

    def decode_duration(source: _In) -> int:
        try:
            return unpack_duration(source.reader.scalar(), "the value")
        except DecodeError as exc:
            raise _MismatchError(str(exc)) from None

    return _Plan("dur", encode_duration, decode_duration, lambda: 0, lambda one: False)


# Plans of containers.


def _enter(where: _Out | _In) -> None:
    where.depth += 1
    if where.depth > MAX_DEPTH:
        raise _MismatchError(f"more than {MAX_DEPTH} containers inside each other")


def _array_len(source: _In) -> int:
    try:
        return source.reader.array_len()
    except DecodeError as exc:
        raise _MismatchError(str(exc)) from None


def _map_len(source: _In) -> int:
    try:
        return source.reader.map_len()
    except DecodeError as exc:
        raise _MismatchError(str(exc)) from None


def _take_nil(source: _In) -> bool:
    if source.reader.is_nil():
        source.reader.scalar()
        return True
    return False


def _list(item: _Plan) -> _Plan:
    def encode_list(value: object, out: _Out) -> None:
        if not isinstance(value, list | tuple):
            raise _wrong(value, "a list")
        _enter(out)
        out.pieces.append(pack_array_header(len(value)))
        for index, one in enumerate(value):
            try:
                item.encode(one, out)
            except _MismatchError as fault:
                fault.path = f"[{index}]{fault.path}"
                raise
        out.depth -= 1

    def decode_list(source: _In) -> list[Any]:
        if _take_nil(source):
            return []
        _enter(source)
        items: list[Any] = []
        for index in range(_array_len(source)):
            try:
                items.append(item.decode(source))
            except _MismatchError as fault:
                fault.path = f"[{index}]{fault.path}"
                raise
        source.depth -= 1
        return items

    return _Plan("slc", encode_list, decode_list, list, lambda one: not one)


def _fixed(items: list[_Plan]) -> _Plan:
    """Return the plan of a Go array, whose length is part of its type."""
    count = len(items)
    as_list = _list(items[0]) if items else None

    def encode_fixed(value: object, out: _Out) -> None:
        if not isinstance(value, tuple | list) or len(value) != count:
            raise _MismatchError(f"a tuple of {count} is wanted")
        assert as_list is not None
        as_list.encode(value, out)

    def decode_fixed(source: _In) -> tuple[Any, ...]:
        if _take_nil(source):
            return tuple(item.zero() for item in items)
        assert as_list is not None
        value = as_list.decode(source)
        if len(value) != count:
            raise _MismatchError(f"an array of {count} is wanted, not of {len(value)}")
        return tuple(value)

    return _Plan(
        "ary",
        encode_fixed,
        decode_fixed,
        lambda: tuple(item.zero() for item in items),
        lambda one: not count,
    )


def _dict(key_plan: _Plan, value_plan: _Plan) -> _Plan:
    def encode_dict(value: object, out: _Out) -> None:
        if not isinstance(value, dict):
            raise _wrong(value, "a dict")
        _enter(out)
        out.pieces.append(pack_map_header(len(value)))
        for key, one in value.items():
            try:
                key_plan.encode(key, out)
                value_plan.encode(one, out)
            except _MismatchError as fault:
                fault.path = f"[{key!r:.40}]{fault.path}"
                raise
        out.depth -= 1

    def decode_dict(source: _In) -> dict[Any, Any]:
        if _take_nil(source):
            return {}
        _enter(source)
        found: dict[Any, Any] = {}
        for _ in range(_map_len(source)):
            key: Any = "?"
            try:
                key = key_plan.decode(source)
                found[key] = value_plan.decode(source)
            except _MismatchError as fault:
                fault.path = f"[{key!r:.40}]{fault.path}"
                raise
        source.depth -= 1
        return found

    return _Plan("map", encode_dict, decode_dict, dict, lambda one: not one)


def _pointer(target: _Plan) -> _Plan:
    def encode_pointer(value: object, out: _Out) -> None:
        if value is None:
            out.pieces.append(_NIL)
        else:
            target.encode(value, out)

    def decode_pointer(source: _In) -> object:
        return None if _take_nil(source) else target.decode(source)

    return _Plan(
        "ptr", encode_pointer, decode_pointer, lambda: None, lambda one: one is None
    )


# Plans of records.


@dataclass(slots=True, eq=False)
class _Field:
    attribute: str
    key: bytes
    wire_name: str
    plan: _Plan


class _Record:
    """The plan of one dataclass; its fields are found after it is known itself."""

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.fields: list[_Field] = []
        self.by_name: dict[str, _Field] = {}
        self.is_array = bool(getattr(cls, ARRAY_MARK, False))
        self.name_entry = _STRUCT_NAME_KEY + pack_str(cls.__name__)
        self.plan = _Plan("rct", self.encode, self.decode, cls, lambda one: False)

    def resolve(self) -> None:
        """Read the class's annotations.

        Raises:
            ConfigError: a field has no number, shares one, or cannot be encoded.
        """
        cls = self.cls
        try:
            hints = typing.get_type_hints(cls, include_extras=True)
        except (NameError, TypeError) as exc:
            raise ConfigError(f"{cls.__name__}: {exc}") from exc
        numbers: dict[int, str] = {}
        for one in dataclasses.fields(cls):
            where = f"{cls.__name__}.{one.name}"
            number = one.metadata.get("zid")
            if type(number) is not int or not 0 <= number <= 9999:
                raise ConfigError(f"{where} has no zid number")
            if number in numbers:
                raise ConfigError(f"{where} and {numbers[number]} share zid {number}")
            numbers[number] = where
            try:
                plan = _plan_of(hints[one.name])
            except ConfigError as exc:
                raise ConfigError(f"{where}: {exc}") from exc
            name = one.metadata.get("name") or go_name(one.name)
            wire_name = f"{name}_zid{number:02d}_{plan.clue}"
            found = _Field(one.name, pack_str(wire_name), wire_name, plan)
            self.by_name[wire_name] = found
        by_number = sorted(zip(numbers, self.by_name.values(), strict=True))
        self.fields = [found for _, found in by_number]

    def encode(self, value: object, out: _Out) -> None:
        """Append a record."""
        if not isinstance(value, self.cls):
            raise _wrong(value, self.cls.__name__)
        _enter(out)
        sent = [
            (one, getattr(value, one.attribute))
            for one in self.fields
            if self.is_array or not one.plan.is_empty(getattr(value, one.attribute))
        ]
        if self.is_array:
            out.pieces.append(pack_array_header(len(sent)))
        else:
            out.pieces.append(pack_map_header(len(sent) + out.named))
            if out.named:
                out.pieces.append(self.name_entry)
        for one, member in sent:
            if not self.is_array:
                out.pieces.append(one.key)
            try:
                one.plan.encode(member, out)
            except _MismatchError as fault:
                fault.path = f".{one.attribute}{fault.path}"
                raise
        out.depth -= 1

    def decode(self, source: _In) -> object:
        """Read a record."""
        if _take_nil(source):
            return self._make({})
        _enter(source)
        found = self._read_array(source) if self.is_array else self._read_map(source)
        source.depth -= 1
        return self._make(found)

    def _make(self, found: dict[str, Any]) -> object:
        try:
            return self.cls(**found)
        except ValueError as exc:  # the class's own checks
            raise _MismatchError(str(exc)) from None

    def _read_array(self, source: _In) -> dict[str, Any]:
        count = _array_len(source)
        if count != len(self.fields):
            raise _MismatchError(
                f"an array of {len(self.fields)} is wanted, not of {count}"
            )
        found: dict[str, Any] = {}
        for one in self.fields:
            self._read_member(one, source, found)
        return found

    def _read_map(self, source: _In) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(_map_len(source)):
            key = _scalar(source)
            one = self.by_name.get(key) if isinstance(key, str) else None
            if one is not None:
                self._read_member(one, source, found)
                continue
            try:
                source.reader.skip()
            except DecodeError as exc:
                raise _MismatchError(str(exc)) from None
        return found

    @staticmethod
    def _read_member(one: _Field, source: _In, found: dict[str, Any]) -> None:
        if _take_nil(source):
            found.pop(one.attribute, None)  # as if it had not been sent
            return
        try:
            found[one.attribute] = one.plan.decode(source)
        except _MismatchError as fault:
            fault.path = f".{one.attribute}{fault.path}"
            raise


# From annotations to plans.

_SIMPLE: Final[dict[Any, _Plan]] = {
    bool: _simple("boo", "a bool", bool, lambda one: b"\xc3" if one else b"\xc2", bool),
    int: _integer(Width("int", 64)),
    float: _float(Width("f64", 64)),
    str: _simple("str", "a str", str, pack_str, str),
    bytes: _simple("bin", "bytes", (bytes, bytearray, memoryview), _pack_bytes, bytes),
    datetime: _datetime(),
}

_plans: dict[Any, _Plan] = {}


def _plan_of(type_: Any) -> _Plan:
    try:
        plan = _plans.get(type_)
    except TypeError:
        raise ConfigError(f"{type_!r} cannot be encoded") from None
    if plan is None:
        plan = _plans[type_] = _make_plan(type_)
    return plan


def _make_plan(type_: Any) -> _Plan:
    if type_ in _SIMPLE:
        return _SIMPLE[type_]
    if isinstance(type_, type) and dataclasses.is_dataclass(type_):
        return _record_plan(type_)
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if origin is typing.Annotated:
        return _annotated_plan(type_, arguments)
    if origin is list:
        return _list(_plan_of(arguments[0]))
    if origin is dict:
        return _dict(_key_plan(arguments[0]), _plan_of(arguments[1]))
    if origin is tuple and arguments and len(set(arguments)) == 1:
        return _fixed([_plan_of(one) for one in arguments])
    if origin in (typing.Union, types.UnionType) and len(arguments) == 2:
        targets = [one for one in arguments if one is not type(None)]
        if len(targets) == 1:
            plan = _plan_of(targets[0])
            return plan if plan.clue == "tim" else _pointer(plan)
    raise ConfigError(f"{type_!r} cannot be encoded")


def _record_plan(cls: type) -> _Plan:
    record = _Record(cls)
    _plans[cls] = record.plan  # a record may hold others of its kind
    try:
        record.resolve()
    except BaseException:
        del _plans[cls]
        raise
    return record.plan


def _annotated_plan(type_: Any, arguments: tuple[Any, ...]) -> _Plan:
    for mark in arguments[1:]:
        if isinstance(mark, Width):
            return _float(mark) if mark.clue[0] == "f" else _integer(mark)
        if isinstance(mark, Nanoseconds):
            return _time_ns() if mark.clue == "tim" else _duration_ns()
    return _plan_of(arguments[0])


def _key_plan(type_: Any) -> _Plan:
    plan = _plan_of(type_)
    if plan.clue != "str" and plan.clue[0] not in "iu":
        raise ConfigError(f"{type_!r} cannot be the key of a map")
    return plan
