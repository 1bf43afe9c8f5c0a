import json
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import lz4.block  # type: ignore[import-untyped]  # lz4 ships no types
import lz4.frame  # type: ignore[import-untyped]
import pytest
import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import ConfigError, DecodeError, FrameTooLargeError
from rpc25519_tools.wire.codecs import (
    Codec,
    codec_from_name,
    codec_name,
    compress,
    decompress,
)

DATA = Path(__file__).parent.parent / "data" / "wire"
VECTORS = json.loads((DATA / "codec-index.json").read_text())["vectors"]
PACKING = [codec for codec in Codec if codec not in (Codec.NONE, Codec.NONE_ONCE)]
ZSTD = [codec for codec in PACKING if codec >= Codec.ZSTD_01]
MANY = 1 << 24
SAMPLE = b"".join(b"%d green bottles\n" % n for n in range(9))

every_packer = pytest.mark.parametrize("codec", PACKING, ids=codec_name)


def verdict(codec: Codec, body: bytes, max_len: int = MANY) -> bytes | None:
    """Return what a body unpacks to, or None where it is refused."""
    try:
        return bytes(decompress(codec, body, max_len=max_len))
    except (DecodeError, FrameTooLargeError):
        return None


# ------------------------------------------------------------------------ names
NAMES = {
    "none": 0,
    "s2": 1,
    "lz4": 2,
    "zstd:01": 3,
    "zstd:03": 4,
    "zstd:07": 5,
    "zstd:11": 6,
}


@pytest.mark.parametrize(("name", "byte"), NAMES.items())
def test_name_stands_for_the_peers_byte(name: str, byte: int) -> None:
    assert codec_from_name(name) == byte
    assert codec_name(Codec(byte)) == name


def test_codec_7_has_a_name_but_is_no_choice() -> None:
    assert codec_name(Codec(7)) == "no-system-compression"
    with pytest.raises(ConfigError):
        codec_from_name("no-system-compression")


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        codec_from_name("zstd:02")
    assert all(name in str(caught.value) for name in ["zstd:02", *NAMES])


# ------------------------------------------------------------------- the peer's bodies
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["file"])
def test_body_packed_by_the_peer_is_unpacked(vector: dict[str, Any]) -> None:
    codec = Codec(vector["codec"])
    body = (DATA / vector["file"]).read_bytes()
    plain = decompress(codec, body, max_len=vector["plain_len"])
    assert len(plain) == vector["plain_len"]
    payload = memoryview(plain)[-vector["payload_len"] :]
    assert blake3(payload).hexdigest() == vector["payload_blake3"]
    with pytest.raises(FrameTooLargeError) as caught:
        decompress(codec, body, max_len=vector["plain_len"] - 1)
    assert caught.value.limit == vector["plain_len"] - 1


@pytest.mark.parametrize("codec", ZSTD, ids=codec_name)
def test_one_decoder_reads_all_four_zstd_bytes(codec: Codec) -> None:
    for vector in VECTORS:
        if vector["codec"] >= Codec.ZSTD_01:
            body = (DATA / vector["file"]).read_bytes()
            assert len(decompress(codec, body, max_len=MANY)) == vector["plain_len"]


# ------------------------------------------------------------------------ what we send
def test_no_codec_hands_on_the_same_object() -> None:
    for codec in (Codec.NONE, Codec.NONE_ONCE):
        assert compress(codec, SAMPLE) is SAMPLE
        assert decompress(codec, SAMPLE, max_len=len(SAMPLE)) is SAMPLE
        with pytest.raises(FrameTooLargeError):
            decompress(codec, SAMPLE, max_len=len(SAMPLE) - 1)


def test_s2_is_sent_as_a_snappy_stream() -> None:
    assert bytes(compress(Codec.S2, SAMPLE)[:10]) == b"\xff\x06\0\0sNaPpY"


def test_lz4_is_sent_as_every_peer_version_reads_it() -> None:
    info = lz4.frame.get_frame_info(compress(Codec.LZ4, SAMPLE))
    assert info["content_checksum"] is True
    assert info["block_checksum"] is info["block_linked"] is False
    assert info["content_size"] == len(SAMPLE)


def test_zstd_is_sent_with_checksum_and_size_at_the_level_named() -> None:
    plain = random.Random(5).randbytes(4000) * 20
    for codec, level in zip(ZSTD, (1, 3, 7, 11), strict=True):
        body = compress(codec, plain)
        frame = zstandard.get_frame_parameters(body)
        assert frame.has_checksum
        assert frame.content_size == len(plain)
        packer = zstandard.ZstdCompressor(level=level, write_checksum=True)
        assert body == packer.compress(plain)


@every_packer
@settings(deadline=None, max_examples=50)
@given(piece=st.binary(min_size=1, max_size=300), count=st.integers(1, 3000))
def test_round_trip(codec: Codec, piece: bytes, count: int) -> None:
    plain = piece * count
    body = compress(codec, memoryview(plain))
    assert decompress(codec, body, max_len=len(plain)) == plain
    assert decompress(codec, bytearray(body), max_len=len(plain)) == plain
    with pytest.raises(FrameTooLargeError):
        decompress(codec, body, max_len=len(plain) - 1)


@every_packer
def test_body_of_several_blocks_makes_the_round_trip(codec: Codec) -> None:
    noise = random.Random(1).randbytes(1_500_000)
    plain = bytearray(noise + bytes(8_000_000) + noise + SAMPLE)
    body = bytes(compress(codec, plain))
    assert decompress(codec, body, max_len=len(plain)) == plain
    assert decompress(codec, body, max_len=MANY) == plain
    with pytest.raises(FrameTooLargeError):
        decompress(codec, body, max_len=len(plain) - 1)


@every_packer
def test_threads_do_not_disturb_each_other(codec: Codec) -> None:
    failed: list[int] = []

    def work(seed: int) -> None:
        plain = random.Random(seed).randbytes(3000) * 30
        for _ in range(10):
            body = compress(codec, plain)
            if decompress(codec, body, max_len=len(plain)) != plain:
                failed.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


# ------------------------------------------------------------------------ bad bodies
@every_packer
def test_empty_body_is_refused(codec: Codec) -> None:
    with pytest.raises(DecodeError, match="empty"):
        decompress(codec, b"", max_len=MANY)


@every_packer
def test_body_cut_anywhere_is_refused(codec: Codec) -> None:
    body = bytes(compress(codec, SAMPLE))
    for length in range(len(body)):
        try:
            plain = decompress(codec, body[:length], max_len=MANY)
        except DecodeError:
            continue
        # A stream of chunks may end after each; here that is after the identifier.
        assert (codec, length, bytes(plain)) == (Codec.S2, 10, b"")


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["file"])
def test_body_of_the_peer_cut_anywhere_is_refused(vector: dict[str, Any]) -> None:
    body = (DATA / vector["file"]).read_bytes()
    codec = Codec(vector["codec"])
    step = max(1, len(body) // 500)
    for length in {10, *range(0, len(body), step), *range(len(body) - 9, len(body))}:
        # Only an S2 stream may end early: behind its identifier.
        empty = codec is Codec.S2 and length == 10
        assert verdict(codec, body[:length]) == (b"" if empty else None)


@every_packer
@pytest.mark.parametrize("tail", [b"\0", b"\0\0\0\0", b"x" * 20, None])
def test_bytes_behind_the_end_are_refused(codec: Codec, tail: bytes | None) -> None:
    body = bytes(compress(codec, SAMPLE))
    if codec is Codec.S2 and tail in (None, b"\0\0\0\0"):
        pytest.skip("two streams in a row are one stream")
    with pytest.raises(DecodeError):
        decompress(codec, body + (body if tail is None else tail), max_len=MANY)


@every_packer
def test_changed_byte_never_gives_other_bytes(codec: Codec) -> None:
    body = bytes(compress(codec, SAMPLE))
    for at in range(len(body)):
        for bit in range(8):
            broken = bytearray(body)
            broken[at] ^= 1 << bit
            assert verdict(codec, bytes(broken)) in (None, SAMPLE, b"")


@every_packer
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_noise_is_refused_and_nothing_else_is_raised(
    codec: Codec, data: st.DataObject
) -> None:
    body = bytes(compress(codec, SAMPLE))
    keep = data.draw(st.integers(0, len(body)))
    noise = data.draw(st.binary(max_size=60))
    rest = data.draw(st.integers(keep, len(body)))
    assert verdict(codec, body[:keep] + noise + body[rest:], 1 << 16) in (
        None,
        SAMPLE,
        b"",
    )


# ------------------------------------------------------------------------------ LZ4
def xxh32(data: bytes) -> int:
    """Compute xxHash-32 with seed 0, after the specification in the xxHash project."""
    mask = 0xFFFFFFFF
    p1, p2, p3, p4, p5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393

    def rotate(value: int, by: int) -> int:
        return (value << by | value >> 32 - by) & mask

    pos = 0
    acc = p5
    if len(data) >= 16:
        lanes = [p1 + p2 & mask, p2, 0, -p1 & mask]
        while pos + 16 <= len(data):
            for lane in range(4):
                word = int.from_bytes(data[pos : pos + 4], "little")
                lanes[lane] = rotate(lanes[lane] + word * p2 & mask, 13) * p1 & mask
                pos += 4
        by = (1, 7, 12, 18)
        acc = sum(rotate(lane, n) for lane, n in zip(lanes, by, strict=True))
    acc = acc + len(data) & mask
    while pos + 4 <= len(data):
        word = int.from_bytes(data[pos : pos + 4], "little")
        acc = rotate(acc + word * p3 & mask, 17) * p4 & mask
        pos += 4
    for byte in data[pos:]:
        acc = rotate(acc + byte * p5 & mask, 11) * p1 & mask
    acc = (acc ^ acc >> 15) * p2 & mask
    acc = (acc ^ acc >> 13) * p3 & mask
    return acc ^ acc >> 16


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def lz4_frame(
    blocks: list[bytes],
    *,
    block_sum: str = "none",
    content_sum: bool = True,
    declared: int | None = None,
    flags: int = 0,
) -> bytes:
    """Write an LZ4 frame of independent blocks; every second one is stored."""
    flags |= 0x60 | (block_sum != "none") << 4 | content_sum << 2
    flags |= (declared is not None) << 3
    header = bytes([flags, 0x70])
    if declared is not None:
        header += declared.to_bytes(8, "little")
    if flags & 1:
        header += u32(7)
    out = b"\x04\x22\x4d\x18" + header + bytes([xxh32(header) >> 8 & 0xFF])
    for number, plain in enumerate(blocks):
        packed, raw = lz4.block.compress(plain, store_size=False), 0
        if number % 2:
            packed, raw = plain, 1 << 31
        out += u32(len(packed) | raw) + packed
        if block_sum != "none":
            out += u32(xxh32(plain if block_sum == "plain" else packed))
    out += u32(0)
    return out + u32(xxh32(b"".join(blocks))) if content_sum else out


BLOCKS = [b"abc" * 100, SAMPLE, b"x" * 3000]


@pytest.mark.parametrize("block_sum", ["none", "packed", "plain"])
@pytest.mark.parametrize("declared", [None, sum(map(len, BLOCKS))])
def test_lz4_takes_either_block_checksum(block_sum: str, declared: int | None) -> None:
    body = lz4_frame(BLOCKS, block_sum=block_sum, declared=declared)
    plain = b"".join(BLOCKS)
    assert decompress(Codec.LZ4, body, max_len=len(plain)) == plain
    assert verdict(Codec.LZ4, body + b"\0") is None
    assert all(verdict(Codec.LZ4, body[:cut]) is None for cut in range(len(body)))
    with pytest.raises(FrameTooLargeError):
        decompress(Codec.LZ4, body, max_len=len(plain) - 1)


def test_lz4_checks_the_content_where_block_checksums_are_of_the_old_kind() -> None:
    body = lz4_frame(BLOCKS, block_sum="plain")
    plain = b"".join(BLOCKS)
    for at in range(len(body)):
        broken = bytearray(body)
        broken[at] ^= 0x10
        assert verdict(Codec.LZ4, bytes(broken)) in (None, plain)


def test_lz4_needs_one_sum_that_fits() -> None:
    good = lz4_frame(BLOCKS, block_sum="packed", content_sum=False)
    assert verdict(Codec.LZ4, good) == b"".join(BLOCKS)
    bad = lz4_frame(BLOCKS, block_sum="plain", content_sum=False)
    with pytest.raises(DecodeError):
        decompress(Codec.LZ4, bad, max_len=MANY)


@pytest.mark.parametrize("block_size", range(4, 8))
@pytest.mark.parametrize("linked", [False, True])
def test_lz4_takes_every_form_of_frame(block_size: int, linked: bool) -> None:
    plain = random.Random(9).randbytes(70_000) * 3
    for checksum in (False, True):
        body = lz4.frame.compress(
            plain,
            block_size=block_size,
            block_linked=linked,
            content_checksum=checksum,
            block_checksum=checksum,
            store_size=checksum,
        )
        assert decompress(Codec.LZ4, body, max_len=len(plain)) == plain


@pytest.mark.parametrize("off_by", [-1, 1, 5000])
@pytest.mark.parametrize("block_sum", ["none", "plain"])
def test_lz4_frame_that_lies_about_its_size_is_refused(
    off_by: int, block_sum: str
) -> None:
    declared = sum(map(len, BLOCKS)) + off_by
    body = lz4_frame(BLOCKS, block_sum=block_sum, declared=declared)
    with pytest.raises(DecodeError):
        decompress(Codec.LZ4, body, max_len=MANY)


def test_lz4_frame_that_declares_too_much_is_refused_by_its_header() -> None:
    body = lz4_frame([b"a"], declared=MANY + 1)
    with pytest.raises(FrameTooLargeError) as caught:
        decompress(Codec.LZ4, body, max_len=MANY)
    assert caught.value.got == MANY + 1


def test_lz4_frame_with_a_dictionary_is_refused() -> None:
    with pytest.raises(DecodeError, match="dictionary"):
        decompress(Codec.LZ4, lz4_frame([b"a"], flags=1), max_len=MANY)


def test_lz4_header_of_another_version_is_refused() -> None:
    body = bytearray(lz4_frame(BLOCKS, block_sum="plain", declared=9))
    body[4] ^= 0xC0
    assert all(verdict(Codec.LZ4, bytes(body[:cut])) is None for cut in range(20))


# ------------------------------------------------------------------------------ zstd
def zstd_header(
    *,
    window: int | None = 0x68,
    content_size: int | None = None,
    checksum: bool = False,
) -> bytes:
    """Write a zstd frame header; no window means a single segment.

    The window byte 0x68 is 8 MiB (RFC 8878 section 3.1.1.1.2).
    """
    flags = (content_size is not None) * 0xC0 | (window is None) << 5 | checksum << 2
    size = b"" if content_size is None else content_size.to_bytes(8, "little")
    return (
        b"\x28\xb5\x2f\xfd"
        + bytes([flags, *([] if window is None else [window])])
        + size
    )


def zstd_block(kind: int, length: int, data: bytes, *, last: bool = False) -> bytes:
    return (length << 3 | kind << 1 | last).to_bytes(3, "little") + data


def rle(length: int, *, last: bool = False) -> bytes:
    return zstd_block(1, length, b"a", last=last)


@pytest.mark.parametrize("size", [0, 1, 300, 200_000])
@pytest.mark.parametrize("checksum", [False, True])
def test_zstd_size_and_checksum_may_be_missing(size: int, checksum: bool) -> None:
    plain = random.Random(size).randbytes(size)
    packer = zstandard.ZstdCompressor(
        level=3, write_checksum=checksum, write_content_size=False
    )
    body = packer.compress(plain)
    assert decompress(Codec.ZSTD_03, body, max_len=max(size, 1)) == plain
    assert verdict(Codec.ZSTD_03, body + b"\0") is None
    assert verdict(Codec.ZSTD_03, body[:-1]) is None


def test_zstd_unknown_size_over_the_limit_is_refused() -> None:
    packer = zstandard.ZstdCompressor(level=1, write_content_size=False)
    body = packer.compress(SAMPLE * 5000)
    with pytest.raises(FrameTooLargeError) as caught:
        decompress(Codec.ZSTD_01, body, max_len=len(SAMPLE) * 5000 - 1)
    assert caught.value.got is None


@pytest.mark.parametrize(
    ("window", "taken"), [(0x68, True), (0x80, True), (0x81, False), (0x90, False)]
)
def test_zstd_window_over_64_mib_is_refused(window: int, taken: bool) -> None:
    for content_size in (None, 5):
        body = zstd_header(window=window, content_size=content_size) + rle(5, last=True)
        assert verdict(Codec.ZSTD_03, body) == (b"aaaaa" if taken else None)


@pytest.mark.parametrize("declared", [0, 1, 99, 101, 1 << 20])
@pytest.mark.parametrize("window", [None, 0x68])
def test_zstd_frame_that_lies_about_its_size_is_refused(
    declared: int, window: int | None
) -> None:
    header = zstd_header(window=window, content_size=declared)
    with pytest.raises(DecodeError):
        decompress(Codec.ZSTD_03, header + rle(100, last=True), max_len=MANY)


def test_zstd_frame_that_declares_nothing_and_holds_nothing_is_empty() -> None:
    nothing = zstd_block(0, 0, b"", last=True)
    for window in (None, 0x68):
        body = zstd_header(window=window, content_size=0) + nothing
        assert verdict(Codec.ZSTD_03, body) == b""
        lie = zstd_header(window=window, content_size=9) + nothing
        assert verdict(Codec.ZSTD_03, lie) is None


def test_zstd_frame_that_declares_too_much_is_refused_by_its_header() -> None:
    body = zstd_header(content_size=MANY + 1)
    with pytest.raises(FrameTooLargeError) as caught:
        decompress(Codec.ZSTD_03, body, max_len=MANY)
    assert caught.value.got == MANY + 1


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x28\xb5\x2f", id="a cut magic"),
        pytest.param(zstd_header(), id="no blocks"),
        pytest.param(zstd_header() + rle(5), id="no last block"),
        pytest.param(zstd_header(checksum=True) + rle(5, last=True), id="no sum"),
        pytest.param(
            zstd_header() + zstd_block(3, 5, b"aaaaa", last=True), id="kind 3"
        ),
        pytest.param(zstd_header() + rle(1 << 18, last=True), id="a large block"),
        pytest.param(b"\x50\x2a\x4d\x18\x01\0\0\0x", id="a skippable frame"),
        pytest.param(zstd_header()[:4] + b"\x08" + bytes(9), id="a reserved flag"),
        pytest.param(zstd_header()[:4] + b"\x21\x07\x01\x09\0\0x", id="a dictionary"),
    ],
)
def test_bad_zstd_frame_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        decompress(Codec.ZSTD_03, body, max_len=MANY)


# ----------------------------------------------------------------------------- memory
# Each bomb stands for 1 GiB or more in a few KiB or MiB of input.
BOMBS = """
import resource, sys
import lz4.block
from rpc25519_tools.errors import RemoteProtocolError
from rpc25519_tools.wire.codecs import Codec, decompress

GIB = 1 << 30
MAX_LEN = 32 << 20
ZSTD = bytes.fromhex("28b52ffd")
rle = ((128 << 10) << 3 | 1 << 1).to_bytes(3, "little") + b"a"
packed = lz4.block.compress(bytes(4 << 20), store_size=False)
block = len(packed).to_bytes(4, "little") + packed
lz4_frame = bytes.fromhex("04224d18607073") + block * 64 + bytes(4)
lz4_summed = bytes.fromhex("04224d1874708e") + (block + b"sum!") * 64 + bytes(8)
declares = bytes.fromhex("80808010")  # a varint: 32 MiB
s2_id = bytes.fromhex("ff060000") + b"S2sTwO"
repeat = bytes.fromhex("1d00ffffff")
s2_long = s2_id + bytes.fromhex("00140000") + b"crc!" + b"\\xff\\xff\\xff\\x01"
s2_long += b"\\0a\\x01\\x01" + repeat + b"\\0\\0\\0"
s2_block = bytes.fromhex("80808002") + b"\\0a\\x01\\x01" + repeat * 100_000
s2_full = bytes([0]) + (4 + len(s2_block)).to_bytes(3, "little") + b"crc!" + s2_block
tiny = bytes.fromhex("00090000") + b"crc!" + bytes.fromhex("8080800200")
bodies = [
    (Codec.ZSTD_03, ZSTD + b"\\0\\x68" + rle * 8191 + b"\\1\\0\\0"),
    (Codec.ZSTD_03, ZSTD + b"\\xc0\\x68" + GIB.to_bytes(8, "little") + rle * 8191),
    (Codec.ZSTD_03, ZSTD + b"\\xc0\\x68" + MAX_LEN.to_bytes(8, "little") + rle * 8191),
    (Codec.LZ4, lz4_frame),
    (Codec.LZ4, lz4_summed),
    (Codec.S2, s2_long),
    (Codec.S2, s2_id + s2_full),
    (Codec.S2, s2_id + s2_full * 9),
    (Codec.S2, s2_id + tiny * 100_000),
    (Codec.S2, s2_id + bytes.fromhex("80000000") * 300_000),
]
for codec in Codec:
    try:
        decompress(codec, b"warm up", max_len=9)
    except RemoteProtocolError:
        pass
unit = 1 if sys.platform == "darwin" else 1024
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for codec, body in bodies:
    try:
        print(len(decompress(codec, body, max_len=MAX_LEN)), end=" ")
    except RemoteProtocolError as exc:
        print(type(exc).__name__, end=" ")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit >> 20)
"""


def test_bombs_cost_no_more_than_the_limit_and_a_little() -> None:
    run = subprocess.run(
        [sys.executable, "-c", BOMBS], capture_output=True, text=True, check=True
    )
    *verdicts, grown_mib = run.stdout.split()
    large, corrupt = "FrameTooLargeError", "DecodeError"
    assert verdicts == [
        *(large, large, corrupt),
        *(large, large),
        *(corrupt, corrupt, large, large, "0"),
    ]
    # The limit, one window or LZ4's two blocks, and what a chunk may be rewritten to.
    assert int(grown_mib) < 32 + 24
