"""The plans of lists, arrays, maps, pointers and enumerations in records.

Each is made of the plan of what is inside. What is inside each other is counted.
"""

import dataclasses
from collections.abc import Iterable
from enum import Enum
from typing import Any, Final

from rpc25519_tools.errors import DecodeError
from rpc25519_tools.wire.greenpack import (
    pack_array_header,
    pack_map_header,
)
from rpc25519_tools.wire.record_plans import (
    In,
    MismatchError,
    Out,
    Plan,
    pack_bytes,
    scalar,
    wrong,
)

#: Records, lists and maps inside each other, in what is sent and what is received.
MAX_DEPTH: Final = 100
_NIL: Final = b"\xc0"


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
