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
import types
import typing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar, overload

from rpc25519_tools.errors import ConfigError, DecodeError, LocalProtocolError
from rpc25519_tools.wire.greenpack import (
    Buffer,
    ValueReader,
    pack_array_header,
    pack_map_header,
    pack_str,
)
from rpc25519_tools.wire.record_plans import (
    In,
    MismatchError,
    Out,
    Plan,
    array_len,
    array_of,
    date_time,
    dict_of,
    duration_ns,
    enter,
    floating,
    integer,
    list_of,
    map_len,
    pack_bytes,
    pointer_to,
    scalar,
    simple,
    take_nil,
    time_ns,
    wrong,
)
from rpc25519_tools.wire.record_types import (
    ARRAY_MARK,
    Nanoseconds,
    Width,
    go_name,
)

T = TypeVar("T")

_STRUCT_NAME_KEY: Final = b"\xa1@"


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
    out = Out(struct_names)
    try:
        plan.encode(value, out)
    except MismatchError as fault:
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
    source = In(ValueReader(data))
    try:
        value = plan.decode(source)
    except MismatchError as fault:
        raise DecodeError(_describe(fault, type_)) from None
    return value, source.reader.offset()


def _describe(fault: MismatchError, type_: Any) -> str:
    name = getattr(type_, "__name__", None) or str(type_)
    return f"{name}{fault.path}: {fault}"


# Plans of records.


@dataclass(slots=True, eq=False)
class _Field:
    attribute: str
    key: bytes
    wire_name: str
    plan: Plan


class _Record:
    """The plan of one dataclass; its fields are found after it is known itself."""

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.fields: list[_Field] = []
        self.by_name: dict[str, _Field] = {}
        self.is_array = bool(getattr(cls, ARRAY_MARK, False))
        self.name_entry = _STRUCT_NAME_KEY + pack_str(cls.__name__)
        self.plan = Plan("rct", self.encode, self.decode, cls, lambda one: False)

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

    def encode(self, value: object, out: Out) -> None:
        """Append a record."""
        if not isinstance(value, self.cls):
            raise wrong(value, self.cls.__name__)
        enter(out)
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
            except MismatchError as fault:
                fault.path = f".{one.attribute}{fault.path}"
                raise
        out.depth -= 1

    def decode(self, source: In) -> object:
        """Read a record."""
        if take_nil(source):
            return self._make({})
        enter(source)
        found = self._read_array(source) if self.is_array else self._read_map(source)
        source.depth -= 1
        return self._make(found)

    def _make(self, found: dict[str, Any]) -> object:
        try:
            return self.cls(**found)
        except ValueError as exc:  # the class's own checks
            raise MismatchError(str(exc)) from None

    def _read_array(self, source: In) -> dict[str, Any]:
        count = array_len(source)
        if count != len(self.fields):
            raise MismatchError(
                f"an array of {len(self.fields)} is wanted, not of {count}"
            )
        found: dict[str, Any] = {}
        for one in self.fields:
            self._read_member(one, source, found)
        return found

    def _read_map(self, source: In) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(map_len(source)):
            key = scalar(source)
            one = self.by_name.get(key) if isinstance(key, str) else None
            if one is not None:
                self._read_member(one, source, found)
                continue
            try:
                source.reader.skip()
            except DecodeError as exc:
                raise MismatchError(str(exc)) from None
        return found

    @staticmethod
    def _read_member(one: _Field, source: In, found: dict[str, Any]) -> None:
        if take_nil(source):
            found.pop(one.attribute, None)  # as if it had not been sent
            return
        try:
            found[one.attribute] = one.plan.decode(source)
        except MismatchError as fault:
            fault.path = f".{one.attribute}{fault.path}"
            raise


# From annotations to plans.

_SIMPLE: Final[dict[Any, Plan]] = {
    bool: simple("boo", "a bool", bool, lambda one: b"\xc3" if one else b"\xc2", bool),
    int: integer(Width("int", 64)),
    float: floating(Width("f64", 64)),
    str: simple("str", "a str", str, pack_str, str),
    bytes: simple("bin", "bytes", (bytes, bytearray, memoryview), pack_bytes, bytes),
    datetime: date_time(),
}

_plans: dict[Any, Plan] = {}


def _plan_of(type_: Any) -> Plan:
    try:
        plan = _plans.get(type_)
    except TypeError:
        raise ConfigError(f"{type_!r} cannot be encoded") from None
    if plan is None:
        plan = _plans[type_] = _make_plan(type_)
    return plan


def _make_plan(type_: Any) -> Plan:
    if type_ in _SIMPLE:
        return _SIMPLE[type_]
    if isinstance(type_, type) and dataclasses.is_dataclass(type_):
        return _record_plan(type_)
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if origin is typing.Annotated:
        return _annotated_plan(type_, arguments)
    if origin is list:
        return list_of(_plan_of(arguments[0]))
    if origin is dict:
        return dict_of(_key_plan(arguments[0]), _plan_of(arguments[1]))
    if origin is tuple and arguments and len(set(arguments)) == 1:
        return array_of([_plan_of(one) for one in arguments])
    if origin in (typing.Union, types.UnionType) and len(arguments) == 2:
        targets = [one for one in arguments if one is not type(None)]
        if len(targets) == 1:
            plan = _plan_of(targets[0])
            return plan if plan.clue == "tim" else pointer_to(plan)
    raise ConfigError(f"{type_!r} cannot be encoded")


def _record_plan(cls: type) -> Plan:
    record = _Record(cls)
    _plans[cls] = record.plan  # a record may hold others of its kind
    try:
        record.resolve()
    except BaseException:
        del _plans[cls]
        raise
    return record.plan


def _annotated_plan(type_: Any, arguments: tuple[Any, ...]) -> Plan:
    for mark in arguments[1:]:
        if isinstance(mark, Width):
            return floating(mark) if mark.clue[0] == "f" else integer(mark)
        if isinstance(mark, Nanoseconds):
            return time_ns() if mark.clue == "tim" else duration_ns()
    return _plan_of(arguments[0])


def _key_plan(type_: Any) -> Plan:
    plan = _plan_of(type_)
    if plan.clue != "str" and plan.clue[0] not in "iu":
        raise ConfigError(f"{type_!r} cannot be the key of a map")
    return plan
