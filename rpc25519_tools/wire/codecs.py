"""Pack and unpack a frame's body with the codec that its eighth byte names.

Each body is packed on its own; no state carries over between frames.  What we send is
what every peer version reads with the least to go wrong; what we accept is everything
that the peer's packers write:

====  ========  ==============================  =================================
byte  name      sent                            accepted
====  ========  ==============================  =================================
0, 7  none      the bytes as they are           the same
1     s2        a Snappy stream (`s2` tells     S2 and Snappy streams
                why that is an S2 stream)
2     lz4       one frame, content checksum,    one frame, any block size, linked
                independent blocks of 1 MiB,    or not, either kind of block
                no block checksums              checksum
3..6  zstd      one frame, checksum and         one frame, with or without either,
                content size                    window up to 64 MiB
====  ========  ==============================  =================================

The zstd names are the peer's, and its documentation calls 01 the fastest, but its
sender maps them the wrong way round.  The level is the sender's own choice, since one
decoder reads all four, so here a name means the level it says.

Every unpacker is bounded: sizes that the input declares are checked before anything is
allocated, and what expands beyond the limit is refused on the way.  Nothing but
`DecodeError` and `FrameTooLargeError` comes out of bad input.  Beside the result there
is at most a decoder's own buffers: 8 MiB for LZ4, the window for zstd, 12 MiB for S2.

All functions may run in worker threads.  All native packers and unpackers used here
release the GIL (measured: two threads take 1.0 to 1.9 times as long as one for twice
the work, while a third one goes on running Python); what holds it is the rewriting of
S2 repeats and the walk over block headers.

Sources: WIRE.md 2.1 to 2.5, the ``echo-*`` vectors, RFC 8878 section 3.1.1 (zstd), and
lz4_Frame_format.md of the LZ4 project.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import partial
from typing import Final, Generic, TypeVar

import lz4.frame  # type: ignore[import-untyped]  # lz4 ships neither stubs nor types
import zstandard
from cramjam import snappy

from rpc25519_tools.errors import ConfigError, DecodeError, FrameTooLargeError
from rpc25519_tools.wire import s2
from rpc25519_tools.wire.constants import PART_LEN

Buffer = bytes | bytearray | memoryview


_KEPT_CONTEXTS: Final = 2
"""Idle zstd contexts kept for each level; as many as a small machine has cores."""


class Codec(IntEnum):
    """The codec byte of a frame (WIRE.md 2.1)."""

    NONE = 0
    S2 = 1
    LZ4 = 2
    ZSTD_01 = 3
    ZSTD_03 = 4
    ZSTD_07 = 5
    ZSTD_11 = 6
    NONE_ONCE = 7


_NAMES: Final = {
    Codec.NONE: "none",
    Codec.S2: "s2",
    Codec.LZ4: "lz4",
    Codec.ZSTD_01: "zstd:01",
    Codec.ZSTD_03: "zstd:03",
    Codec.ZSTD_07: "zstd:07",
    Codec.ZSTD_11: "zstd:11",
    Codec.NONE_ONCE: "no-system-compression",
}
_BY_NAME: Final = {
    name: codec for codec, name in _NAMES.items() if codec is not Codec.NONE_ONCE
}

_ZSTD_LEVELS: Final = {
    Codec.ZSTD_01: 1,
    Codec.ZSTD_03: 3,
    Codec.ZSTD_07: 7,
    Codec.ZSTD_11: 11,
}

MAX_ZSTD_WINDOW_LEN: Final = 64 << 20
"""Largest window taken; the peer sends 8 MiB, and dies itself above 512 MiB."""

_ZSTD_MAGIC: Final = bytes.fromhex("28b52ffd")
_ZSTD_BLOCK_LIMIT: Final = 128 << 10
_ZSTD_KEPT_WINDOW_LEN: Final = 8 << 20

_LZ4_MAGIC: Final = bytes.fromhex("04224d18")
_LZ4_STEP: Final = 4 << 20
"""Bytes taken from the LZ4 decoder at a time, which is the largest block."""


def codec_names() -> list[str]:
    """Return the names that ``codec_from_name`` takes."""
    return list(_BY_NAME)


def codec_from_name(name: str) -> Codec:
    """Return the codec that a ``-press`` flag names.

    Raises:
        ConfigError: there is no such codec; the text lists those that there are.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        names = ", ".join(_BY_NAME)
        raise ConfigError(
            f"unknown compression {name!r}; choose from {names}"
        ) from None


def codec_name(codec: Codec) -> str:
    """Return the name of a codec, as ``-press`` takes it where it takes it."""
    return _NAMES[codec]


def compress(codec: Codec, data: Buffer) -> Buffer:
    """Pack a body.  With NONE and NONE_ONCE, ``data`` itself comes back."""
    if codec in (Codec.NONE, Codec.NONE_ONCE):
        return data
    if codec is Codec.S2:
        return memoryview(snappy.compress(data)).toreadonly()
    if codec is Codec.LZ4:
        packed: bytes = lz4.frame.compress(
            data,
            block_size=lz4.frame.BLOCKSIZE_MAX1MB,
            block_linked=False,
            content_checksum=True,
            block_checksum=False,
            store_size=True,
        )
        return packed
    with _compressors[codec].taken() as compressor:
        return compressor.compress(data)


def decompress(codec: Codec, data: Buffer, *, max_len: int) -> Buffer:
    """Unpack a body.

    Args:
        codec: the codec byte of its frame.
        data: the whole body as it was sent.
        max_len: the most bytes that it may unpack to.

    Raises:
        FrameTooLargeError: it declares or unpacks to more than ``max_len``.
        DecodeError: it is empty, cut, corrupt, or has bytes behind its end.
    """
    if codec in (Codec.NONE, Codec.NONE_ONCE):
        if len(data) > max_len:
            raise _too_large(codec, len(data), max_len)
        return data
    if not len(data):
        raise DecodeError(f"{codec_name(codec)}: the body is empty")
    if codec is Codec.S2:
        return s2.decode_stream(data, max_len=max_len)
    if codec is Codec.LZ4:
        return _decompress_lz4(data, max_len)
    return _decompress_zstd(codec, data, max_len)


def _decompress_lz4(data: Buffer, max_len: int) -> Buffer:
    """Unpack an LZ4 frame, whichever of the two block checksums it has.

    Peers built with a lz4 package of v4.1.21 or older sum a block's plain bytes, where
    the format sums the packed ones (vector ``echo-lz4-oldsum``).  The native decoder
    refuses such a frame at its first packed block.  The frame is then read again
    without its block checksums; its content checksum covers the same bytes.
    """
    view = memoryview(data)
    if view[:4] != _LZ4_MAGIC or len(view) < 7:
        raise DecodeError("lz4: the body is no LZ4 frame")
    flags = view[4]
    if flags & 0x01:
        raise DecodeError("lz4: the body needs a dictionary")
    if flags & 0x08:
        declared = int.from_bytes(view[6:14], "little")
        if declared > max_len:
            raise _too_large(Codec.LZ4, declared, max_len)
    try:
        return _read_lz4(view, max_len)
    except RuntimeError as exc:
        if flags & 0x14 != 0x14:  # it has not both kinds of checksum
            raise DecodeError("lz4: the body is corrupt") from exc
    stripped = memoryview(_strip_block_checksums(view))
    try:
        return _read_lz4(stripped, max_len)
    except RuntimeError as exc:
        raise DecodeError("lz4: the body is corrupt") from exc


def _read_lz4(view: memoryview, max_len: int) -> bytes | bytearray:
    """Run the native LZ4 decoder over a frame, a few MiB at a time.

    The native function copies its output once, so one call for everything would hold
    it twice.  Raises RuntimeError, as lz4 does, when the frame is corrupt.
    """
    context = lz4.frame.create_decompression_context()
    plain: bytes | bytearray = b""
    piece: bytes
    pos = 0
    while True:
        step = min(_LZ4_STEP, max_len + 1 - len(plain))
        piece, used, ended = lz4.frame.decompress_chunk(
            context, view[pos:], max_length=step
        )
        pos += used
        if not plain:
            plain = piece
        else:
            if isinstance(plain, bytes):
                plain = bytearray(plain)
            plain += piece
        if len(plain) > max_len:
            raise _too_large(Codec.LZ4, None, max_len)
        if ended:
            break
        if pos == len(view) and len(piece) < step:
            raise DecodeError("lz4: the body is cut")
    if pos != len(view):
        raise DecodeError("lz4: there are bytes behind the frame")
    return plain


def _strip_block_checksums(view: memoryview) -> bytearray:
    """Copy an LZ4 frame without its block checksums."""
    header_end = 14 if view[4] & 0x08 else 6
    if len(view) <= header_end:
        raise DecodeError("lz4: the header is cut")
    if _lz4_header_sum(view[4:header_end]) != view[header_end]:
        raise DecodeError("lz4: the header's checksum is wrong")
    frame = bytearray(view[:header_end])
    frame[4] &= ~0x10
    frame.append(_lz4_header_sum(memoryview(frame)[4:]))
    pos = header_end + 1
    while True:
        word = int.from_bytes(view[pos : pos + 4], "little")
        if not word:
            break  # the end mark, or a cut that the native decoder will find
        end = pos + 4 + (word & 0x7FFFFFFF)
        if end + 4 > len(view):
            raise DecodeError("lz4: the body is cut")
        frame += view[pos:end]
        pos = end + 4
    frame += view[pos:]
    return frame


def _lz4_header_sum(descriptor: memoryview) -> int:
    """Return the second byte of the xxHash-32 (seed 0) of less than 16 bytes."""
    assert len(descriptor) < 16
    mask = 0xFFFFFFFF
    acc = 374761393 + len(descriptor)
    words = len(descriptor) & ~3
    for pos in range(0, words, 4):
        acc += int.from_bytes(descriptor[pos : pos + 4], "little") * 3266489917
        acc &= mask
        acc = (acc << 17 | acc >> 15) * 668265263
    for byte in descriptor[words:]:
        acc = (acc + byte * 374761393) & mask
        acc = (acc << 11 | acc >> 21) * 2654435761
    acc &= mask
    acc = (acc ^ acc >> 15) * 2246822519 & mask
    acc = (acc ^ acc >> 13) * 3266489917 & mask
    return (acc ^ acc >> 16) >> 8 & 0xFF


def _decompress_zstd(codec: Codec, data: Buffer, max_len: int) -> Buffer:
    """Unpack one zstd frame, into memory of no more than its blocks can fill."""
    name = codec_name(codec)
    view = memoryview(data)
    if view[:4] != _ZSTD_MAGIC:
        raise DecodeError(f"{name}: the body is no zstd frame")
    try:
        frame = zstandard.get_frame_parameters(view)
        start = zstandard.frame_header_size(view)
    except zstandard.ZstdError as exc:
        raise DecodeError(f"{name}: the header is cut or corrupt") from exc
    declared: int | None = frame.content_size
    if declared == zstandard.CONTENTSIZE_UNKNOWN:
        declared = None
    elif frame.content_size > max_len:
        raise _too_large(codec, frame.content_size, max_len)
    # A frame in a single segment has its content for a window; that is bounded above.
    if frame.window_size > MAX_ZSTD_WINDOW_LEN and frame.window_size != declared:
        raise DecodeError(f"{name}: the window is over {MAX_ZSTD_WINDOW_LEN} bytes")
    end, most = _walk_zstd_blocks(view, start, frame.window_size)
    if end + (4 if frame.has_checksum else 0) != len(view):
        raise DecodeError(f"{name}: the body is cut or has bytes behind its frame")
    if not most or declared == 0:
        # The native call takes a declared size of zero for an answer by itself.
        if most or declared:
            raise DecodeError(f"{name}: the body does not come to its declared size")
        most = 1
    try:
        with _decompressor_for(frame.window_size) as decompressor:
            return decompressor.decompress(view, max_output_size=min(most, max_len))
    except zstandard.ZstdError as exc:
        if declared is None and most > max_len and "full frame" in str(exc):
            raise _too_large(codec, None, max_len) from exc
        raise DecodeError(f"{name}: the body is corrupt") from exc


def _walk_zstd_blocks(view: memoryview, pos: int, window_len: int) -> tuple[int, int]:
    """Step over a frame's blocks: where they end, and the most they unpack to.

    Where a block is cut, the end lies behind the input (RFC 8878 section 3.1.1.2).
    """
    limit = min(max(window_len, 1024), _ZSTD_BLOCK_LIMIT)
    most = 0
    while True:
        header = int.from_bytes(view[pos : pos + 3], "little")
        pos += 3
        if pos > len(view):
            return pos, most
        kind, block_len = header >> 1 & 3, header >> 3
        most += limit if kind == 2 else block_len
        pos += 1 if kind == 1 else block_len
        if header & 1:
            return pos, most


_Context = TypeVar("_Context")


class _Pool(Generic[_Context]):
    """Idle zstd contexts; none may be used by two threads at once.

    Keeping them saves 9 of the 13 microseconds that packing, and 9 of the 11 that
    unpacking, a message of 300 bytes takes otherwise. They are shared by all threads,
    since each holds up to 12 MB and one transfer uses one at a time.
    """

    def __init__(self, make: Callable[[], _Context]) -> None:
        self._make = make
        self._idle: deque[_Context] = deque(maxlen=_KEPT_CONTEXTS)

    @contextlib.contextmanager
    def taken(self) -> Iterator[_Context]:
        """Lend a context; after an error it is not used again."""
        try:
            context = self._idle.pop()
        except IndexError:
            context = self._make()
        yield context
        self._idle.append(context)


def _new_compressor(level: int) -> zstandard.ZstdCompressor:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=PART_LEN, write_checksum=True, write_content_size=True
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def _new_decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_LEN)


_compressors: Final = {
    codec: _Pool(partial(_new_compressor, level))
    for codec, level in _ZSTD_LEVELS.items()
}
#: An unpacker keeps the largest window that it ever needed, so these see no larger one
#: than _ZSTD_KEPT_WINDOW_LEN.
_decompressors: Final = _Pool(_new_decompressor)


def _decompressor_for(
    window_len: int,
) -> contextlib.AbstractContextManager[zstandard.ZstdDecompressor]:
    """Lend an unpacker; a passing one where the window is large."""
    if window_len > _ZSTD_KEPT_WINDOW_LEN:
        return contextlib.nullcontext(_new_decompressor())
    return _decompressors.taken()


def _too_large(codec: Codec, got: int | None, limit: int) -> FrameTooLargeError:
    return FrameTooLargeError(
        f"{codec_name(codec)}: the body unpacks to more than {limit} bytes",
        limit=limit,
        got=got,
    )
