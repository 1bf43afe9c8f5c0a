"""Greenpack: the peer's dialect of msgpack.

A struct is a msgpack map whose keys are ``FieldName_zidNN_typ``. What sets the
dialect apart from common msgpack, and why values are packed by hand here:

* signed fields use the signed forms only (128 is ``d1 00 80``, never ``cc 80``);
  a Go decoder drops the connection otherwise;
* times are extension 5: seconds since 1970 as big-endian int64, then nanoseconds as
  int32; the standard msgpack timestamp is refused;
* strings may hold any bytes; they travel through Python with ``surrogateescape``.

Decoding goes through the msgpack library with every length bounded by the input and
nesting bounded by its own stack. This is the only module that imports msgpack.

Source: recorded encodings ``gp-ints``, ``gp-lengths``, ``gp-message-full``.
"""

import struct
from typing import Final, TypeAlias

import msgpack  # type: ignore[import-untyped]  # msgpack ships no types

from rpc25519_tools.errors import DecodeError

Buffer: TypeAlias = bytes | bytearray | memoryview

#: Extension code of a time.
TIME_EXT_CODE: Final = 5
#: Go's zero time, in seconds since 1970: 1 January of the year 1.
GO_ZERO_TIME_S: Final = -62_135_596_800
#: Most entries of one map or array; longer ones are refused before allocation.
MAX_CONTAINER_LEN: Final = 65_536

_NS_PER_S: Final = 1_000_000_000
_TIME: Final = struct.Struct(">qi")
_pack_time: Final = struct.Struct(">BBBqi").pack
_pack_u16: Final = struct.Struct(">BH").pack
_pack_u32: Final = struct.Struct(">BI").pack
_pack_u64: Final = struct.Struct(">BQ").pack
_pack_i8: Final = struct.Struct(">Bb").pack
_pack_i16: Final = struct.Struct(">Bh").pack
_pack_i32: Final = struct.Struct(">Bi").pack
_pack_i64: Final = struct.Struct(">Bq").pack


def pack_unsigned(value: int) -> bytes:
    """Pack a ``u64`` or ``u32`` field in its shortest unsigned form.

    Raises:
        OverflowError: ``value`` is negative or does not fit 64 bits.
    """
    if 0 <= value < 0x80:
        return bytes((value,))
    if 0 <= value <= 0xFF:
        return bytes((0xCC, value))
    if 0 <= value <= 0xFFFF:
        return _pack_u16(0xCD, value)
    if 0 <= value <= 0xFFFFFFFF:
        return _pack_u32(0xCE, value)
    if 0 <= value < 1 << 64:
        return _pack_u64(0xCF, value)
    raise OverflowError(f"{value} is no unsigned 64-bit integer")


def pack_signed(value: int) -> bytes:
    """Pack an ``i64`` or ``int`` field in its shortest signed form.

    Raises:
        OverflowError: ``value`` does not fit 64 bits.
    """
    if 0 <= value < 0x80:
        return bytes((value,))
    if -0x20 <= value < 0:
        return bytes((value & 0xFF,))
    if -0x80 <= value < 0:
        return _pack_i8(0xD0, value)
    if -0x8000 <= value <= 0x7FFF:
        return _pack_i16(0xD1, value)
    if -0x80000000 <= value <= 0x7FFFFFFF:
        return _pack_i32(0xD2, value)
    if -(1 << 63) <= value < 1 << 63:
        return _pack_i64(0xD3, value)
    raise OverflowError(f"{value} is no signed 64-bit integer")


def pack_str(text: str) -> bytes:
    """Pack a string; lone surrogates from ``surrogateescape`` become bytes again."""
    raw = text.encode("utf-8", "surrogateescape")
    length = len(raw)
    if length < 32:
        return bytes((0xA0 | length,)) + raw
    if length <= 0xFF:
        return bytes((0xD9, length)) + raw
    if length <= 0xFFFF:
        return _pack_u16(0xDA, length) + raw
    return _pack_u32(0xDB, length) + raw


def pack_bin_header(length: int) -> bytes:
    """Return what goes in front of ``length`` bytes of binary data."""
    if length <= 0xFF:
        return bytes((0xC4, length))
    if length <= 0xFFFF:
        return _pack_u16(0xC5, length)
    return _pack_u32(0xC6, length)


def pack_map_header(entries: int) -> bytes:
    """Return what goes in front of ``entries`` pairs of key and value."""
    if entries < 16:
        return bytes((0x80 | entries,))
    if entries <= 0xFFFF:
        return _pack_u16(0xDE, entries)
    return _pack_u32(0xDF, entries)


def pack_time(ns: int) -> bytes:
    """Pack a time given in nanoseconds since 1970 UTC (15 bytes)."""
    seconds, nanoseconds = divmod(ns, _NS_PER_S)
    return _pack_time(0xC7, 12, TIME_EXT_CODE, seconds, nanoseconds)


def unpack_time(value: object, field: str) -> int | None:
    """Return the nanoseconds since 1970 of a decoded time; None when it is unset.

    Raises:
        DecodeError: ``value`` is neither nil nor a time of this dialect.
    """
    if value is None:
        return None
    if (
        not isinstance(value, msgpack.ExtType)
        or value.code != TIME_EXT_CODE
        or len(value.data) != _TIME.size
    ):
        raise DecodeError(f"{field} is not a time")
    seconds, nanoseconds = _TIME.unpack(value.data)
    if not 0 <= nanoseconds < _NS_PER_S:
        raise DecodeError(f"{field} has {nanoseconds} nanoseconds in a second")
    if seconds == GO_ZERO_TIME_S and nanoseconds == 0:
        return None
    return int(seconds * _NS_PER_S + nanoseconds)


def unpack_object(data: Buffer) -> object:
    """Decode the first msgpack object of ``data``; bytes after it are ignored.

    Raises:
        DecodeError: ``data`` is cut short, malformed, nested too deeply, or has a
            container above MAX_CONTAINER_LEN.
    """
    # msgpack allocates what an array announces; a member takes one byte at least.
    max_len = min(MAX_CONTAINER_LEN, len(data))
    try:
        return msgpack.unpackb(
            data,
            strict_map_key=False,
            unicode_errors="surrogateescape",
            max_array_len=max_len,
            max_map_len=max_len,
        )
    except msgpack.ExtraData as extra:
        unpacked: object = extra.unpacked
        return unpacked
    except (ValueError, TypeError, OverflowError, RecursionError) as exc:
        raise DecodeError(
            f"malformed greenpack: {str(exc) or type(exc).__name__}"
        ) from exc


class PrefixUnpacker:
    """Decode the leading objects of a long body without touching the rest.

    Only the first ``window_len`` bytes are looked at, so a large binary member can be
    sliced out of the body instead of copied.

    Raises (all methods):
        DecodeError: an object is malformed or does not end inside the window.
    """

    def __init__(self, data: Buffer, window_len: int) -> None:
        max_len = min(MAX_CONTAINER_LEN, window_len)
        self._unpacker = msgpack.Unpacker(
            strict_map_key=False,
            unicode_errors="surrogateescape",
            max_buffer_size=window_len,
            max_array_len=max_len,
            max_map_len=max_len,
        )
        self._unpacker.feed(memoryview(data)[:window_len])

    def map_len(self) -> int:
        """Read a map header; return its number of pairs."""
        try:
            return int(self._unpacker.read_map_header())
        except (msgpack.OutOfData, ValueError, TypeError) as exc:
            raise DecodeError("a message must be a map") from exc

    def value(self) -> object:
        """Read one whole object."""
        try:
            result: object = self._unpacker.unpack()
        except (msgpack.OutOfData, ValueError, TypeError, RecursionError) as exc:
            raise DecodeError("a message begins with a malformed member") from exc
        return result

    def offset(self) -> int:
        """Return how many bytes the objects read so far have taken."""
        return int(self._unpacker.tell())


def read_bin_header(data: Buffer, offset: int) -> tuple[int, int]:
    """Read the header of binary data at ``offset``.

    Returns:
        Where the bytes start, and how many there are; both lie inside ``data``.

    Raises:
        DecodeError: no binary header stands there, or the data is cut short.
    """
    width = {0xC4: 1, 0xC5: 2, 0xC6: 4}.get(data[offset] if offset < len(data) else 0)
    if width is None:
        raise DecodeError("the payload of a message is not binary")
    start = offset + 1 + width
    length = int.from_bytes(data[offset + 1 : start], "big")
    if start > len(data) or length > len(data) - start:
        raise DecodeError("the payload of a message is cut short")
    return start, length
