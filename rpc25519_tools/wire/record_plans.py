"""How single values travel: the plans that records are encoded and decoded by.

A plan appends the bytes of a value, and reads a value back. What does not fit raises
MismatchError, which gathers the path to the value on its way out. `record_containers`
has the plans of what holds other values.
"""

import dataclasses
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from rpc25519_tools.errors import DecodeError
from rpc25519_tools.wire.greenpack import (
    GO_ZERO_TIME_S,
    ValueReader,
    pack_bin_header,
    pack_duration,
    pack_signed,
    pack_time,
    pack_unsigned,
    unpack_duration,
    unpack_time,
)
from rpc25519_tools.wire.record_types import Width

_NS_PER_S: Final = 1_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
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
