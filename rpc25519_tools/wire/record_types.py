"""How a Python class says what Go struct it is.

A record is a dataclass whose fields are made with ``zid``. Their annotations say how
each travels; the aliases below name Go's widths where Python has one type for all.
"""

import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from typing import Annotated, Any, Final, TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Width:
    """A number's form in Go: the clue in the field's key, and its bits."""

    clue: str
    bits: int
    signed: bool = True


@dataclass(frozen=True, slots=True)
class FixedLen:
    """Bytes that are a Go array: ``Annotated[bytes, FixedLen(32)]`` is ``[32]byte``."""

    count: int


@dataclass(frozen=True, slots=True)
class Nanoseconds:
    """An int that is a time (``tim``) or a duration (``dur``) in nanoseconds."""

    clue: str


Int: TypeAlias = Annotated[int, Width("int", 64)]
Int8: TypeAlias = Annotated[int, Width("i08", 8)]
Int16: TypeAlias = Annotated[int, Width("i16", 16)]
Int32: TypeAlias = Annotated[int, Width("i32", 32)]
Int64: TypeAlias = Annotated[int, Width("i64", 64)]
Uint: TypeAlias = Annotated[int, Width("unt", 64, signed=False)]
Uint8: TypeAlias = Annotated[int, Width("u08", 8, signed=False)]
Uint16: TypeAlias = Annotated[int, Width("u16", 16, signed=False)]
Uint32: TypeAlias = Annotated[int, Width("u32", 32, signed=False)]
Uint64: TypeAlias = Annotated[int, Width("u64", 64, signed=False)]
#: Go's ``byte``: the same numbers as Uint8, but another key.
Byte: TypeAlias = Annotated[int, Width("byt", 8, signed=False)]
Float32: TypeAlias = Annotated[float, Width("f32", 32)]
Float64: TypeAlias = Annotated[float, Width("f64", 64)]
#: A time in nanoseconds since 1970 UTC, which a datetime cannot hold; None is unset,
#: and Go's zero time, the first moment of the year 1, is refused in its place.
TimeNs: TypeAlias = Annotated[int | None, Nanoseconds("tim")]
#: Go's time.Duration in nanoseconds.
DurationNs: TypeAlias = Annotated[int, Nanoseconds("dur")]

#: Where ``array_record`` leaves its mark.
ARRAY_MARK: Final = "__greenpack_array__"


def zid(
    number: int,
    default: Any = MISSING,
    *,
    default_factory: Callable[[], Any] | None = None,
    name: str = "",
) -> Any:
    """Return a dataclass field with its greenpack number.

    Args:
        number: the field's ``zid`` in Go; it must never change or be used again.
        default: what a record has that was sent without this field. Go leaves out
            zero values, so this is zero, empty or None for fields that Go knows.
            Where it is anything else, our own zero values are sent, and come back.
        default_factory: makes the default, for lists, dicts and records.
        name: the field's name in Go; the CamelCase of its Python name where empty.

    Raises:
        TypeError: there is no default.
    """
    metadata = {"zid": number, "name": name}
    if default_factory is not None:
        return field(default_factory=default_factory, metadata=metadata)
    if default is MISSING:
        raise TypeError("a field of a record needs a default: it may not be sent")
    return field(default=default, metadata=metadata)


def array_record(cls: type[T]) -> type[T]:
    """Let a record travel as an array of all its fields, without names.

    So do the types of Go code that was generated with ``greenpack -alltuple``.
    """
    setattr(cls, ARRAY_MARK, True)
    return cls


def go_name(name: str) -> str:
    """Return a Python name as Go would spell it: ``sleep_milli`` is ``SleepMilli``.

    Underscores around it, as in ``type_``, are not part of the name.
    """
    name = name.strip("_")
    return re.sub(r"(?:^|_+)([a-zA-Z0-9])", lambda match: match[1].upper(), name)
