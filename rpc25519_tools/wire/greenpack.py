"""Greenpack: the peer's dialect of msgpack.

A struct is a msgpack map whose keys are ``FieldName_zidNN_typ``. What sets the
dialect apart from common msgpack, and why values are packed by hand here:

* signed fields use the signed forms only (128 is ``d1 00 80``, never ``cc 80``);
  a Go decoder drops the connection otherwise;
* times are extension 5: seconds since 1970 as big-endian int64, then nanoseconds as
  int32; the standard msgpack timestamp is refused;
* strings may hold any bytes; they travel through Python with ``surrogateescape``.

Decoding goes through the msgpack library with every length bounded by the input and
nesting bounded by its own stack. A long body is walked through instead: ``members``
tells where each value lies and builds none of them. This is the only module that
imports msgpack.

Source: recorded encodings ``gp-ints``, ``gp-lengths``, ``gp-message-full``.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import msgpack  # type: ignore[import-untyped]  # msgpack ships no types

from rpc25519_tools.errors import DecodeError

Buffer: TypeAlias = bytes | bytearray | memoryview

#: Extension code of a time.
TIME_EXT_CODE: Final = 5
#: Extension code of a duration.
DURATION_EXT_CODE: Final = 7
#: Go's zero time, in seconds since 1970: 1 January of the year 1.
GO_ZERO_TIME_S: Final = -62_135_596_800
#: Most entries of one map; longer ones are refused before they are read.
MAX_CONTAINER_LEN: Final = 65_536
#: Most entries of an array that is built. msgpack allocates what an array announces,
#: on each of about a thousand levels: this keeps all of them together under 1 MiB.
MAX_ARRAY_LEN: Final = 128
#: Map keys above this many bytes are not looked at; no known key comes near it.
MAX_KEY_LEN: Final = 64

#: How much of a body the walk through its members holds at a time.
_WALK_CHUNK_LEN: Final = 64 * 1024
_STR_WIDTHS: Final = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_BIN_WIDTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4}
#: Forms with a length of 32 bits -> bytes in front of the data.
_LONG_HEADER_LENS: Final = {0xC6: 5, 0xC9: 6, 0xDB: 5}

#: What Go's streaming encoder writes for a pointer that it has written before, perhaps
#: in an earlier message. Go's own decoders do not count the pointers as it does.
_REFERENCE_EXT_CODE: Final = b"\x06"
_FIXEXTS: Final = (b"\xd4", b"\xd5", b"\xd6", b"\xd7", b"\xd8")
_REFERENCE: Final = (
    "a reference to an earlier one, which greenpack -no-dedup makes Go leave out"
)

NS_PER_S: Final = 1_000_000_000
TIME: Final = struct.Struct(">qi")
#: A duration is an int64 in msgpack's own form, inside an extension.
_DURATION: Final = struct.Struct(">Bq")
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


def pack_array_header(entries: int) -> bytes:
    """Return what goes in front of an array's members."""
    if entries < 16:
        return bytes((0x90 | entries,))
    if entries <= 0xFFFF:
        return _pack_u16(0xDC, entries)
    return _pack_u32(0xDD, entries)


def pack_time(ns: int) -> bytes:
    """Pack a time given in nanoseconds since 1970 UTC (15 bytes)."""
    seconds, nanoseconds = divmod(ns, NS_PER_S)
    return _pack_time(0xC7, 12, TIME_EXT_CODE, seconds, nanoseconds)


def _extension(code: int, data: bytes) -> object:
    """Return a time as a tuple, which nothing else is unpacked as."""
    if code == TIME_EXT_CODE and len(data) == TIME.size:
        return TIME.unpack(data)
    return msgpack.ExtType(code, data)


def unpack_time(value: object, field: str) -> int | None:
    """Return the nanoseconds since 1970 of a decoded time; None when it is unset.

    Args:
        value: what ``unpack_object`` or PrefixUnpacker made of it.
        field: its name, for errors.

    Raises:
        DecodeError: ``value`` is neither nil nor a time of this dialect.
    """
    if value is None:
        return None
    if type(value) is not tuple:
        raise DecodeError(f"{field} is not a time")
    seconds, nanoseconds = value
    if not 0 <= nanoseconds < NS_PER_S:
        raise DecodeError(f"{field} has {nanoseconds} nanoseconds in a second")
    if seconds == GO_ZERO_TIME_S and nanoseconds == 0:
        return None
    return int(seconds * NS_PER_S + nanoseconds)


def unpack_object(data: Buffer) -> object:
    """Decode the first msgpack object of ``data``; bytes after it are ignored.

    Raises:
        DecodeError: ``data`` is cut short, malformed, nested too deeply, or has an
            array above MAX_ARRAY_LEN or a map above MAX_CONTAINER_LEN.
    """
    try:
        return msgpack.unpackb(
            data,
            strict_map_key=False,
            unicode_errors="surrogateescape",
            ext_hook=_extension,
            max_array_len=MAX_ARRAY_LEN,
            max_map_len=MAX_CONTAINER_LEN,
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
        self._unpacker = msgpack.Unpacker(
            strict_map_key=False,
            unicode_errors="surrogateescape",
            ext_hook=_extension,
            max_buffer_size=window_len,
            max_array_len=MAX_ARRAY_LEN,
            max_map_len=MAX_CONTAINER_LEN,
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
    width = _BIN_WIDTHS.get(data[offset] if offset < len(data) else 0)
    if width is None:
        raise DecodeError("the payload of a message is not binary")
    start = offset + 1 + width
    length = int.from_bytes(data[offset + 1 : start], "big")
    if start > len(data) or length > len(data) - start:
        raise DecodeError("the payload of a message is cut short")
    return start, length


def is_nil(data: Buffer) -> bool:
    """Tell whether ``data`` begins with nil."""
    return len(data) > 0 and data[0] == 0xC0


def is_container(data: Buffer) -> bool:
    """Tell whether ``data`` begins with an array or a map."""
    return len(data) > 0 and (0x80 <= data[0] <= 0x9F or 0xDC <= data[0] <= 0xDF)


def _is_str(form: int) -> bool:
    return 0xA0 <= form <= 0xBF or form in _STR_WIDTHS


def read_str(data: Buffer, max_len: int, name: str) -> str:
    """Decode the string that ``data`` begins with; nil is the empty one.

    Raises:
        DecodeError: no whole string stands there, or it has over ``max_len`` bytes.
    """
    if is_nil(data):
        return ""
    form = data[0] if len(data) > 0 else 0
    if not _is_str(form):
        raise DecodeError(f"{name} is not a string")
    width = _STR_WIDTHS.get(form, 0)
    start = 1 + width
    length = int.from_bytes(data[1:start], "big") if width else form & 0x1F
    if start > len(data) or length > len(data) - start:
        raise DecodeError(f"{name} is cut short")
    if length > max_len:
        raise DecodeError(f"{name} is longer than {max_len} bytes")
    text = data[start : start + length]
    return str(text, "utf-8", "surrogateescape")


class _Chunks:
    """A file of a buffer, so that msgpack never copies all of it."""

    def __init__(self, data: memoryview, offset: int) -> None:
        self._data = data
        self._offset = offset

    def read(self, size: int) -> bytes:
        chunk = bytes(self._data[self._offset : self._offset + size])
        self._offset += len(chunk)
        return chunk


class _Walker:
    """Goes from object to object, building none."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._start_at(0)

    def _start_at(self, offset: int) -> None:
        self._base = offset
        self.offset = offset
        self._unpacker = msgpack.Unpacker(
            _Chunks(self._data, offset),
            read_size=_WALK_CHUNK_LEN,
            max_buffer_size=max(len(self._data), _WALK_CHUNK_LEN),
        )

    def enter_map(self) -> int:
        """Go past a map header; return its number of pairs."""
        entries = int(self._unpacker.read_map_header())
        self.offset = self._base + self._unpacker.tell()
        return entries

    def skip(self) -> None:
        """Go past one whole object."""
        header_len = _LONG_HEADER_LENS.get(self.form())
        if header_len is not None:
            # Long data is jumped over; anything shorter is not worth a new start.
            length = int.from_bytes(
                self._data[self.offset + 1 : self.offset + 5], "big"
            )
            end = self.offset + header_len + length
            if length >= _WALK_CHUNK_LEN:
                if end > len(self._data):
                    raise DecodeError("a member of a message is cut short")
                self._start_at(end)
                return
        self._unpacker.skip()
        self.offset = self._base + self._unpacker.tell()

    def form(self) -> int:
        """Return the first byte of the next object."""
        if self.offset >= len(self._data):
            raise DecodeError("a message is cut short")
        return self._data[self.offset]


def members(
    data: Buffer, max_key_len: int = MAX_KEY_LEN
) -> Iterator[tuple[str | None, memoryview]]:
    """Walk through the map that ``data`` begins with, without building its values.

    Memory stays at a chunk of ``data`` whatever the members hold; only a long string
    deep inside a container is held whole.

    Yields:
        Each key, or None for one that is no string or is above ``max_key_len`` bytes,
        and the bytes of its value, packed as they are.

    Raises:
        DecodeError: ``data`` is no map, is cut short, malformed or nested too deeply,
            has too many entries, or has a key that is binary or a container.
    """
    view = memoryview(data)
    try:
        walker = _Walker(view)
        entries = walker.enter_map()
        if entries > MAX_CONTAINER_LEN:
            raise DecodeError(f"a map has more than {MAX_CONTAINER_LEN} entries")
        for _ in range(entries):
            start = walker.offset
            form = walker.form()
            if form in _BIN_WIDTHS:
                raise DecodeError("a key of a message is binary")
            if is_container(view[start:]):
                raise DecodeError("a key of a message is a container")
            walker.skip()
            key = None
            packed = view[start : walker.offset]
            header_len = 1 + _STR_WIDTHS.get(form, 0)
            if _is_str(form) and len(packed) - header_len <= max_key_len:
                key = read_str(packed, len(packed), "a key")
            start = walker.offset
            walker.skip()
            yield key, view[start : walker.offset]
    except (msgpack.OutOfData, ValueError, TypeError, RecursionError) as exc:
        raise DecodeError(
            f"malformed greenpack: {str(exc) or type(exc).__name__}"
        ) from exc


class ValueReader:
    """Read a long or nested value piece by piece, by a plan that the caller has.

    Nothing is allocated for what is only announced: containers are entered by their
    caller, who reads one member after the other.

    Raises (all methods):
        DecodeError: the next object is malformed, cut short, or not of the kind asked.
    """

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data)
        self._unpacker = msgpack.Unpacker(
            strict_map_key=False,
            unicode_errors="surrogateescape",
            max_buffer_size=max(len(self._data), 1),
            max_array_len=0,
            max_map_len=0,
            ext_hook=_extension,
        )
        self._unpacker.feed(self._data)

    def scalar(self) -> object:
        """Read anything that is no container; times are tuples for unpack_time."""
        try:
            value: object = self._unpacker.unpack()
        except (msgpack.OutOfData, ValueError, TypeError) as exc:
            raise DecodeError("a single value is wanted, or it is cut short") from exc
        return value

    def is_nil(self) -> bool:
        """Tell whether nil comes next; it is not read."""
        offset = self.offset()
        return offset < len(self._data) and self._data[offset] == 0xC0

    def is_binary(self) -> bool:
        """Tell whether binary data comes next; it is not read."""
        offset = self.offset()
        return offset < len(self._data) and self._data[offset] in _BIN_WIDTHS

    def array_len(self) -> int:
        """Enter an array; return how many members follow."""
        return self._header(self._unpacker.read_array_header, "an array")

    def map_len(self) -> int:
        """Enter a map; return how many pairs of key and value follow."""
        return self._header(self._unpacker.read_map_header, "a map")

    def _header(self, read: Callable[[], int], what: str) -> int:
        try:
            length = int(read())
        except (msgpack.OutOfData, ValueError, TypeError) as exc:
            found = ", not " + _REFERENCE if self._is_reference() else ""
            raise DecodeError(f"{what} is wanted{found}") from exc
        if length > len(self._data) - self.offset():
            raise DecodeError(f"{what} of {length} members is cut short")
        return length

    def _is_reference(self) -> bool:
        """Tell whether Go's encoder says here: the same pointer as some time before."""
        head = bytes(self._data[self.offset() :][:3])
        if head[:1] == b"\xc7":
            head = head[1:]
        elif head[:1] not in _FIXEXTS:
            return False
        return head[1:2] == _REFERENCE_EXT_CODE

    def skip(self) -> None:
        """Pass over one object of any kind."""
        try:
            self._unpacker.skip()
        except (msgpack.OutOfData, ValueError, TypeError) as exc:
            raise DecodeError("an unknown member is malformed") from exc

    def offset(self) -> int:
        """Return how many bytes have been read."""
        return int(self._unpacker.tell())


def unpack_duration(value: object, field: str) -> int:
    """Return the nanoseconds of a decoded duration; 0 where it is unset.

    Raises:
        DecodeError: ``value`` is neither nil nor a duration of this dialect.
    """
    if value is None:
        return 0
    if isinstance(value, msgpack.ExtType) and value.code == DURATION_EXT_CODE:
        data = value.data
        if len(data) == _DURATION.size and data[0] == 0xD3:
            return int(_DURATION.unpack(data)[1])
    raise DecodeError(f"{field} is not a duration")


def pack_duration(ns: int) -> bytes:
    """Pack a duration in nanoseconds (12 bytes).

    Raises:
        OverflowError: ``ns`` does not fit 64 bits.
    """
    try:
        return b"\xc7\x09\x07" + _DURATION.pack(0xD3, ns)
    except struct.error as exc:
        raise OverflowError(f"{ns} is no signed 64-bit integer") from exc
