"""Mutators that know a grammar: greenpack, frames, packed bodies, DER.

They keep the rest of an input well-formed, so that the change arrives at what reads it:
lengths around a changed part are mended, packed bodies are packed again.
"""

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from rpc25519_tools.errors import RemoteProtocolError
from rpc25519_tools.wire.codecs import Codec, compress, decompress
from rpc25519_tools.wire.constants import FRAME_HEADER_LEN, MAGIC
from tests.fuzz.mutators import (
    BYTES,
    ODD_NUMBERS,
    Mutator,
    flip_bits,
    put,
)

# Greenpack

#: First byte -> bytes of length, bytes of each unit of it; containers have none.
_SIZED = {
    0xC4: (1, 0),
    0xC5: (2, 0),
    0xC6: (4, 0),
    0xD9: (1, 0),
    0xDA: (2, 0),
    0xDB: (4, 0),
    0xC7: (1, 1),
    0xC8: (2, 1),
    0xC9: (4, 1),
}
_FIXED = {
    0xCA: 4,
    0xCB: 8,
    0xCC: 1,
    0xCD: 2,
    0xCE: 4,
    0xCF: 8,
    0xD0: 1,
    0xD1: 2,
    0xD2: 4,
    0xD3: 8,
    0xD4: 2,
    0xD5: 3,
    0xD6: 5,
    0xD7: 9,
    0xD8: 17,
}
_CONTAINER_WIDTHS = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}

ODD_OBJECTS = (
    *(b"\xc0", b"\xc1", b"\xc2", b"\xc3", b"\x00", b"\x7f", b"\xff", b"\xe0"),
    *(b"\xcc\x80", b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7), b"\xd0\x80"),
    *(b"\xcb\x7f\xf0" + bytes(6), b"\xcb\x7f\xf8" + bytes(6), b"\xca\x00\x00\x00\x00"),
    *(b"\xa0", b"\xa3\xff\xfe\xfd", b"\xd9\xff", b"\xdb\xff\xff\xff\xff", b"\xc4\x00"),
    *(b"\xc6\xff\xff\xff\xff", b"\xc6\x03\xff\xff\xb0", b"\x80", b"\x90", b"\x8f"),
    *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xde\xff\xff", b"\x91" * 600),
    *(b"\x81\xa1a" * 600, b"\xc7\x0c\x05" + b"\xff" * 12, b"\xc7\x0c\x05" + bytes(12)),
    *(b"\xc7\x0c\x05\x80" + bytes(11), b"\xd6\xff" + bytes(4), b"\xc7\x09\x07\xd3"),
    *(b"\xc7\x09\x07\xd3" + b"\xff" * 8, b"\xc8\xff\xff\x05", b"\xd7\x05" + bytes(8)),
    *(
        b"\x81\xc4\x01a\x01",
        b"\x81\x90\xc0",
        b"\x82\xa1a\x01\xa1a\x02",
        b"\x81\xc0\xc0",
    ),
    *(b"\xb4Args_zid12_map_longer", b"\xadHDR_zid00_rct", b"\xa1@"),
)


def objects(data: bytes) -> list[tuple[int, int, int]]:
    """Return (start, end of header, end) of the objects in ``data``, sound or not.

    A container's end is that of its header; its members are objects of their own.
    """
    found: list[tuple[int, int, int]] = []
    at = 0
    while at < len(data) and len(found) < 2000:
        form = data[at]
        start = at
        at += 1
        body = 0
        if 0xA0 <= form <= 0xBF:
            body = form & 0x1F
        elif form in _SIZED:
            width, extra = _SIZED[form]
            body = int.from_bytes(data[at : at + width], "big") + extra
            at += width
        elif form in _FIXED:
            body = _FIXED[form]
        elif form in _CONTAINER_WIDTHS:
            at += _CONTAINER_WIDTHS[form]
        found.append((start, at, at + body))
        at += body
    return found


def replace_object(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """Put an object of another type, or of another input, in the place of one."""
    found = objects(data)
    if not found:
        return rng.choice(ODD_OBJECTS)
    start, _, end = rng.choice(found)
    new = rng.choice(ODD_OBJECTS)
    if rng.random() < 0.3:
        other = rng.choice(pool)
        first, _, last = rng.choice(objects(other) or [(0, 0, 0)])
        new = other[first:last]
    return put(data, start, new, end)


def swap_objects(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    found = objects(data)
    if len(found) < 2:
        return data
    (start, _, end), (first, _, last) = sorted(rng.sample(found, 2))
    middle = data[end:first]
    return data[:start] + data[first:last] + middle + data[start:end] + data[last:]


def change_object_header(
    rng: random.Random, data: bytes, pool: Sequence[bytes]
) -> bytes:
    """Let an object claim another type, or another length or number of members."""
    found = objects(data)
    if not found:
        return data
    start, header_end, _ = rng.choice(found)
    form = data[start]
    if rng.random() < 0.4:
        return put(data, start, bytes((rng.choice((form ^ 1, rng.randrange(256))),)))
    if 0x80 <= form <= 0xBF:
        return put(data, start, bytes((form & 0xF0 | rng.randrange(16),)))
    width = header_end - start - 1
    number = rng.choice(ODD_NUMBERS) & (1 << 8 * width) - 1
    return put(data, start + 1, number.to_bytes(width, "big"))


def multiply_object(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """Repeat an object, mostly without anybody having announced it."""
    found = objects(data)
    if not found:
        return data
    start, _, end = rng.choice(found)
    # What is cut off again later would only take memory of ours.
    times = min(rng.choice((0, 2, 3, 20, 300)), 65_536 // max(end - start, 1) + 2)
    return data[:start] + data[start:end] * times + data[end:]


def wrap_object(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """Nest an object."""
    found = objects(data)
    if not found:
        return data
    start, _, _ = rng.choice(found)
    shell = rng.choice((b"\x91", b"\x81\xa1k", b"\xdc\x00\x01", b"\x81\xc0", b"\x81"))
    return data[:start] + shell * rng.choice((1, 1, 2, 60, 500)) + data[start:]


GREENPACK: tuple[Mutator, ...] = (
    *(replace_object, replace_object, swap_objects, change_object_header),
    *(change_object_header, multiply_object, wrap_object, *BYTES),
)


# Frames

_HEADER = struct.Struct(">7sBQ")


def frame(codec: int, body: bytes) -> bytes:
    return _HEADER.pack(MAGIC, codec, len(body)) + body


def first_frame(data: bytes) -> tuple[int, bytes, bytes]:
    """Take a stream apart: codec and body of its first frame, and the rest."""
    if len(data) < FRAME_HEADER_LEN:
        return 0, data, b""
    _, codec, body_len = _HEADER.unpack_from(data)
    end = FRAME_HEADER_LEN + min(body_len, len(data))
    return codec, data[FRAME_HEADER_LEN:end], data[end:]


def change_frame_header(
    rng: random.Random, data: bytes, pool: Sequence[bytes]
) -> bytes:
    codec, body, rest = first_frame(data)
    match rng.randrange(4):
        case 0:
            codec = rng.choice((*range(8), 8, 255))
            return frame(codec, body) + rest
        case 1:
            length = rng.choice((*ODD_NUMBERS, len(body) + rng.randrange(-3, 4)))
            length = max(length, 0)
            return _HEADER.pack(MAGIC, codec & 255, length) + body + rest
        case 2:
            magic = bytearray(MAGIC)
            magic[rng.randrange(7)] ^= 1 << rng.randrange(8)
            return _HEADER.pack(bytes(magic), codec & 255, len(body)) + body + rest
        case _:
            return rest + frame(codec & 255, body)


def change_message(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """Change the message inside the first frame, and pack it again."""
    codec, body, rest = first_frame(data)
    plain = body
    if codec in (1, 2, 3, 4, 5, 6):
        try:
            plain = bytes(decompress(Codec(codec), body, max_len=1 << 18))
        except RemoteProtocolError:
            return frame(0, body) + rest
    inner = [first_frame(one)[1] for one in (rng.choice(pool), data)]
    plain = rng.choice(GREENPACK)(rng, plain, inner)
    codec = rng.choice((0, 0, 0, 1, 2, 3, 7))
    return frame(codec, bytes(compress(Codec(codec), plain))) + rest


def change_body(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """Change the packed body of the first frame; the frame stays right."""
    codec, body, rest = first_frame(data)
    return frame(codec & 255, rng.choice(BYTES)(rng, body, pool)) + rest


FRAMES: tuple[Mutator, ...] = (
    *(change_message, change_message, change_message, change_body),
    *(change_frame_header, change_frame_header, *BYTES),
)


# Packed bodies

_LZ4_MAGIC = bytes.fromhex("04224d18")


def repack(
    codec: Codec, rng: random.Random, data: bytes, pool: Sequence[bytes]
) -> bytes:
    """Pack other bytes: very repetitive ones, none, or random ones."""
    plain = rng.choice((b"", b"a", bytes(70_000), rng.randbytes(300), b"ab" * 9000))
    return bytes(compress(codec, plain))


def repackers(codec: Codec) -> tuple[Mutator, ...]:
    return (partial(repack, codec),)


def mend_lz4_header(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """Change the descriptor of an LZ4 frame and give it the right check byte."""
    from rpc25519_tools.wire.codecs import _lz4_header_sum

    if len(data) < 7:
        return data
    flags = rng.choice((data[4], rng.randrange(256), 0x60, 0x64, 0x68, 0x6C, 0x4C))
    block = rng.choice((data[5], 0x40, 0x70, rng.randrange(256)))
    body_at = 15 if data[4] & 8 else 7
    descriptor = bytes((flags, block))
    if flags & 8:
        descriptor += rng.choice(ODD_NUMBERS).to_bytes(8, "little")
    check = _lz4_header_sum(memoryview(descriptor))
    return _LZ4_MAGIC + descriptor + bytes((check,)) + data[body_at:]


def change_s2_chunk(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """Change, drop, double or swap whole chunks of an S2 stream; lengths stay right."""
    chunks = list(_s2_chunks(data))
    if not chunks:
        return data
    at = rng.randrange(len(chunks))
    kind, body = chunks[at]
    match rng.randrange(5):
        case 0:
            chunks[at] = rng.choice((0, 1, 2, 0x7F, 0x80, 0xFD, 0xFE, 0xFF)), body
        case 1:
            chunks[at] = kind, rng.choice(BYTES)(rng, body, pool)
        case 2:
            del chunks[at]
        case 3:
            chunks.insert(at, rng.choice(chunks))
        case _:
            chunks.insert(at, rng.choice(list(_s2_chunks(rng.choice(pool))) or chunks))
    return b"".join(
        bytes((kind,)) + len(body).to_bytes(3, "little") + body for kind, body in chunks
    )


def _s2_chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        end = at + 4 + int.from_bytes(data[at + 1 : at + 4], "little")
        yield data[at], data[at + 4 : end]
        at = end


def add_s2_elements(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """Put elements into a block: literals, copies of all kinds, repeats, cut ones."""
    element = rng.choice(
        (
            b"\x00a",
            b"\xf0" + rng.randbytes(1),
            b"\xf4\xff\xff",
            b"\xfc\xff\xff\xff\xff",
            bytes((rng.randrange(64) << 2 | 1, rng.randrange(256))),
            bytes((rng.randrange(64) << 2 | 2,)) + rng.randbytes(2),
            bytes((rng.randrange(64) << 2 | 3,)) + rng.randbytes(4),
            bytes((rng.randrange(8) << 2 | 1, 0)) + rng.randbytes(rng.randrange(4)),
            b"\x1d\x00\xff\xff\xff",
        )
    )
    at = rng.randrange(1, len(data) + 1) if data else 0
    return data[:at] + element * rng.choice((1, 1, 3, 50)) + data[at:]


# DER

_Node = tuple[int, "bytes | list[_Node]"]


def parse_der(data: bytes) -> "list[_Node]":
    """Take DER apart as far as it makes sense; ValueError where it does not."""
    nodes: list[_Node] = []
    at = 0
    while at < len(data):
        tag = data[at]
        if at + 1 >= len(data) or tag & 0x1F == 0x1F:
            raise ValueError("no DER")
        length = data[at + 1]
        at += 2
        if length & 0x80:
            width = length & 0x7F
            if not 1 <= width <= 4:
                raise ValueError("no DER")
            length = int.from_bytes(data[at : at + width], "big")
            at += width
        content = data[at : at + length]
        if len(content) < length:
            raise ValueError("no DER")
        at += length
        inside: bytes | list[_Node] = content
        if tag & 0x20 or (tag in (0x03, 0x04) and len(content) > 2):
            # Strings that hold DER, as extensions do, count as constructed too.
            try:
                inside = parse_der(content)
            except ValueError:
                if tag & 0x20:
                    raise
        nodes.append((tag, inside))
    return nodes


def write_der(nodes: "list[_Node]") -> bytes:
    out = b""
    for tag, inside in nodes:
        content = inside if isinstance(inside, bytes) else write_der(inside)
        out += bytes((tag,)) + _der_length(len(content)) + content
    return out


def _der_length(length: int) -> bytes:
    if length < 0x80:
        return bytes((length,))
    width = (length.bit_length() + 7) // 8
    return bytes((0x80 | width,)) + length.to_bytes(width, "big")


def _lists_of(nodes: "list[_Node]") -> "list[list[_Node]]":
    found = [nodes] if nodes else []
    for _, inside in nodes:
        if isinstance(inside, list):
            found += _lists_of(inside)
    return found


ODD_DER: tuple[_Node, ...] = (
    *((0x05, b""), (0x01, b"\x00"), (0x01, b"\xff"), (0x01, b"\x01"), (0x02, b"")),
    *((0x02, b"\x00"), (0x02, b"\xff" * 40), (0x02, b"\x7f" * 9), (0x06, b"")),
    *((0x06, b"\x80"), (0x06, b"\xff" * 30), (0x06, bytes.fromhex("551d25"))),
    *((0x0C, b"\xff\xfe"), (0x13, b"localhost"), (0x16, b"a@b"), (0x1E, b"\x00a")),
    *((0x14, b"\xe4"), (0x1C, bytes(4)), (0x17, b"991231235959Z"), (0x17, b"x")),
    *((0x18, b"99991231235959Z"), (0x18, b"00000101000000Z"), (0x30, b""), (0x31, b"")),
    *((0x81, b"a\x00b"), (0x82, b"localhost"), (0x82, b"*"), (0x87, b"\x7f\x00\x00")),
    *((0x82, "lo\u0441alhost".encode()), (0xA0, b""), (0xA3, b""), (0x04, b"")),
    *((0x03, b""), (0x03, b"\x08\x00"), (0x0A, b"\x01"), (0x24, b"\x04\x00")),
)


def change_der(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """Change one element; the lengths of all around it are mended."""
    try:
        nodes = parse_der(data)
    except ValueError:
        return rng.choice(BYTES)(rng, data, pool)
    lists = _lists_of(nodes)
    if not lists:
        return data
    siblings = rng.choice(lists)
    at = rng.randrange(len(siblings))
    tag, inside = siblings[at]
    match rng.randrange(7):
        case 0:
            del siblings[at]
        case 1:
            siblings.insert(at, siblings[at])
        case 2:
            siblings[at] = rng.choice(ODD_DER)
        case 3:
            siblings[at] = (
                rng.choice((tag ^ 0x20, tag ^ 1, rng.randrange(31))),
                inside,
            )
        case 4:
            content = inside if isinstance(inside, bytes) else write_der(inside)
            siblings[at] = (tag, rng.choice(BYTES)(rng, content, pool))
        case 5:
            other = rng.choice(rng.choice(lists))
            siblings[at] = other if other[1] is not siblings else siblings[at]
        case _:
            rng.shuffle(siblings)
    try:
        return write_der(nodes)
    except RecursionError:
        return data


def wrong_der_length(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    length: Callable[[], bytes] = rng.choice(
        (
            lambda: b"\x80",
            lambda: b"\x84\xff\xff\xff\xff",
            lambda: b"\x81" + rng.randbytes(1),
            lambda: b"\x82" + rng.randbytes(2),
            lambda: b"\x89" + bytes(8) + b"\x05",
        )
    )
    return data[:at] + length() + data[at + 1 :]


DER: tuple[Mutator, ...] = (*(change_der,) * 6, wrong_der_length, *BYTES)
#: For what is hardly read at all unless it is DER.
STRICT_DER: tuple[Mutator, ...] = (*(change_der,) * 8, flip_bits)
