"""Records and other values of users as greenpack, exactly as Go's generated code.

A type is turned into a plan once; encoding and decoding follow it. What Go leaves out
(zero numbers, empty texts and containers, nil pointers, unset times) is left out, in
the order of the ``zid`` numbers. A struct by value is always sent, as are arrays of
fixed length and durations.

Decoding skips members it does not know, lets missing and nil ones keep their defaults,
and takes an integer in either sign form if it fits its width.

A ``NewType`` is a Go type with a name of its own, which changes the key of a field; so
is an enumeration whose members are ints or strs.

Source: encodings made by Go code that greenpack v0.517.0 generated.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Final, TypeVar, overload

from rpc25519_tools.errors import ConfigError, DecodeError, LocalProtocolError
from rpc25519_tools.wire.greenpack import (
    Buffer,
    ValueReader,
    pack_array_header,
    pack_map_header,
    pack_str,
)
from rpc25519_tools.wire.record_containers import (
    array_len,
    array_of,
    dict_of,
    enter,
    fixed_bytes,
    list_of,
    map_len,
    members_of,
    named,
    pointer_to,
    take_nil,
)
from rpc25519_tools.wire.record_plans import (
    In,
    MismatchError,
    Out,
    Plan,
    date_time,
    duration_ns,
    floating,
    integer,
    pack_bytes,
    scalar,
    simple,
    time_ns,
    wrong,
)
from rpc25519_tools.wire.record_types import (
    ARRAY_MARK,
    FixedLen,
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
        struct_names: encode as Go's streaming encoder does, which net/rpc uses: begin
            each map with the entry ``@`` and the name of the struct, which every
            decoder skips, and send ``[N]uint8`` as binary data.

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
        LocalProtocolError: it is no bytes at all.
        ConfigError: the type cannot be decoded.
    """
    return decode_prefix(type_, data)[0]


@overload
def decode_prefix(type_: type[T], data: Buffer) -> tuple[T, int]: ...
@overload
def decode_prefix(type_: Any, data: Buffer) -> tuple[Any, int]: ...
def decode_prefix(type_: Any, data: Buffer) -> tuple[Any, int]:
    """Decode the value at the front of ``data``; return it and how long it was.

    The errors are those of ``decode``.
    """
    plan = _plan_of(type_)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise LocalProtocolError(
            f"what is decoded must be bytes, not {type(data).__name__}"
        )
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
    is_always_sent: bool


#: Types and their plans, while they are being made or for good.
_Plans = dict[Any, Plan]


class _Record:
    """The plan of one dataclass; its fields are found after it is known itself."""

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.fields: list[_Field] = []
        self.by_name: dict[str, _Field] = {}
        self.is_array = bool(getattr(cls, ARRAY_MARK, False))
        self.name_entry = _STRUCT_NAME_KEY + pack_str(cls.__name__)
        self.plan = Plan("rct", self.encode, self.decode, cls, lambda one: False)

    def resolve(self, pending: _Plans) -> None:
        """Read the class's annotations.

        Args:
            pending: see _plan_of.

        Raises:
            ConfigError: a field has no number, shares one, or cannot be encoded.
        """
        cls = self.cls
        try:
            hints = typing.get_type_hints(cls, include_extras=True)
        except Exception as exc:  # annotations may be any code
            raise ConfigError(f"{cls.__name__}: {exc}") from exc
        numbers: dict[int, str] = {}
        for one in dataclasses.fields(cls):
            where = f"{cls.__name__}.{one.name}"
            if not one.init:
                raise ConfigError(
                    f"{where} has init=False: no decoded value could get in"
                )
            number = one.metadata.get("zid")
            if type(number) is not int or not 0 <= number <= 9999:
                raise ConfigError(f"{where} has no zid number")
            if number in numbers:
                raise ConfigError(f"{where} and {numbers[number]} share zid {number}")
            numbers[number] = where
            try:
                plan = _plan_of(hints[one.name], pending)
            except ConfigError as exc:
                raise ConfigError(f"{where}: {exc}") from exc
            name = one.metadata.get("name") or go_name(one.name)
            wire_name = f"{name}_zid{number:02d}_{plan.clue}"
            found = _Field(
                one.name,
                pack_str(wire_name),
                wire_name,
                plan,
                self.is_array or not plan.is_empty(_default_of(one)),
            )
            self.by_name[wire_name] = found
        by_number = sorted(zip(numbers, self.by_name.values(), strict=True))
        self.fields = [found for _, found in by_number]

    def encode(self, value: object, out: Out) -> None:
        """Append a record."""
        if not isinstance(value, self.cls):
            raise wrong(value, self.cls.__name__)
        enter(out)
        pieces = out.pieces
        head = len(pieces)
        pieces.append(b"")  # the header, when it is known how many members there are
        count = 0
        for one in self.fields:
            start = len(pieces)
            if not self.is_array:
                pieces.append(one.key)
            member = getattr(value, one.attribute)
            try:
                one.plan.encode(member, out)
            except MismatchError as fault:
                fault.path = f".{one.attribute}{fault.path}"
                raise
            # Only now: 0 and None look empty in a field of any type.
            if one.is_always_sent or not one.plan.is_empty(member):
                count += 1
            else:
                del pieces[start:]
        if self.is_array:
            pieces[head] = pack_array_header(count)
        elif out.named:
            pieces[head] = pack_map_header(count + 1) + self.name_entry
        else:
            pieces[head] = pack_map_header(count)
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
        except Exception as exc:  # noqa: BLE001  # they may end in anything
            raise MismatchError(f"{type(exc).__name__}: {exc}") from None

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
        if one.plan.clue != "ptr" and take_nil(source):
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

_plans: _Plans = {}


def _default_of(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _plan_of(type_: Any, pending: _Plans | None = None) -> Plan:
    """Return the plan of a type.

    Args:
        type_: the annotation.
        pending: the plans that are being made along with it. They refer to each other,
            so none may be used, by any thread, before all are whole.
    """
    try:
        plan = _plans.get(type_)
    except TypeError:
        raise ConfigError(f"{type_!r} cannot be encoded") from None
    if plan is not None:
        return plan
    if pending is None:
        pending = {}
        plan = _make_plan(type_, pending)
        pending[type_] = plan
        _plans.update(pending)
        return plan
    plan = pending.get(type_)
    if plan is None:
        plan = pending[type_] = _make_plan(type_, pending)
    return plan


def _make_plan(type_: Any, pending: _Plans) -> Plan:
    if type_ in _SIMPLE:
        return _SIMPLE[type_]
    if isinstance(type_, typing.NewType):
        return named(_plan_of(type_.__supertype__, pending))
    if isinstance(type_, type) and issubclass(type_, Enum):
        return _enum_plan(type_)
    if isinstance(type_, type) and dataclasses.is_dataclass(type_):
        return _record_plan(type_, pending)
    arguments = typing.get_args(type_)
    if arguments:
        plan = _composed_plan(typing.get_origin(type_), arguments, pending)
        if plan is not None:
            return plan
    raise ConfigError(f"{type_!r} cannot be encoded")


def _composed_plan(
    origin: Any, arguments: tuple[Any, ...], pending: _Plans
) -> Plan | None:
    if origin is typing.Annotated:
        return _annotated_plan(arguments, pending)
    if origin is list:
        return list_of(_plan_of(arguments[0], pending))
    if origin is dict:
        key, value = (_plan_of(one, pending) for one in arguments)
        if key.clue != "str" and key.clue[0] not in "iu":
            raise ConfigError(f"{arguments[0]!r} cannot be the key of a map")
        return dict_of(key, value)
    if origin is tuple and len(set(arguments)) == 1:
        return array_of(_plan_of(arguments[0], pending), len(arguments))
    if origin in (typing.Union, types.UnionType) and len(arguments) == 2:
        targets = [one for one in arguments if one is not type(None)]
        if len(targets) == 1:
            plan = _plan_of(targets[0], pending)
            return plan if plan.clue == "tim" else pointer_to(plan)
    return None


def _record_plan(cls: type, pending: _Plans) -> Plan:
    record = _Record(cls)
    pending[cls] = record.plan  # a record may hold others of its kind
    record.resolve(pending)
    return record.plan


def _enum_plan(cls: type[Enum]) -> Plan:
    for base in (int, str):
        if base in cls.__mro__:
            return members_of(cls, _SIMPLE[base])
    raise ConfigError(f"{cls!r} cannot be encoded: its members are no ints or strs")


def _annotated_plan(arguments: tuple[Any, ...], pending: _Plans) -> Plan:
    for mark in arguments[1:]:
        if isinstance(mark, Width):
            return floating(mark) if mark.clue[0] == "f" else integer(mark)
        if isinstance(mark, Nanoseconds):
            return time_ns() if mark.clue == "tim" else duration_ns()
        if isinstance(mark, FixedLen) and arguments[0] is bytes and mark.count > 0:
            return fixed_bytes(mark.count)
    return _plan_of(arguments[0], pending)
