"""Both peers cut alike: for ever, and however the bytes are read."""

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from rpc25519_tools.sync.chunking import (
    CHUNKER_NAME,
    ChunkDigest,
    Chunker,
    ChunkSizes,
    chunk_digests,
    chunk_sizes,
    cut_blocks,
    cut_bytes,
)

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
SMALL = ChunkSizes(64, 256, 1024)
KEY = bytes(range(32))


def noise(name: str, length: int) -> bytes:
    """Return bytes that are the same everywhere, and look random."""
    return blake3(name.encode()).digest(length=length)


def lengths_of(data: bytes, sizes: ChunkSizes | None = None) -> list[int]:
    return [len(chunk) for chunk in cut_bytes(data, sizes)]


# What must never change.

SIZES_DIGEST = "a89243c5c13d498161166081829ffcdf4f6972932d0d969496f01c37314a9795"
CUTS_DIGEST = "7b095c776cb5141384d3c7a230284c2382c5093016d220b00d6fb74a33df5e19"


def test_the_sizes_never_change() -> None:
    """Older peers cut by them: see the module's docstring before changing this."""
    told = blake3()
    for exponent in range(45):
        for around in (-1, 0, 1):
            file_len = (1 << exponent) + around
            told.update(f"{file_len} {chunk_sizes(file_len)}\n".encode())
    assert told.hexdigest() == SIZES_DIGEST


def test_the_cut_points_never_change() -> None:
    told = blake3(CHUNKER_NAME.encode())
    text = b"".join(b"line %d of a text\n" % number for number in range(40_000))
    for name, data in (
        ("noise", noise("noise", 3 * MIB + 1)),
        ("zeros", bytes(MIB + 7)),
        ("text", text),
        ("short", noise("short", 700)),
        ("empty", b""),
    ):
        for file_len in (1, 2 * MIB, 100 * MIB, 500 * MIB, GIB, 10 * GIB, 20 * GIB):
            told.update(f"{name} {lengths_of(data, chunk_sizes(file_len))}".encode())
        for sizes in (SMALL, ChunkSizes(65, 257, 1025), ChunkSizes(999, 5000, 9001)):
            told.update(f"{name} {lengths_of(data, sizes)}".encode())
    large = noise("large", 20 * MIB)
    for file_len in (512 * GIB, TIB, 8 * TIB):
        told.update(f"large {lengths_of(large, chunk_sizes(file_len))}".encode())
    assert told.hexdigest() == CUTS_DIGEST


# Sizes.


@pytest.mark.parametrize(
    ("file_len", "mean_len"),
    [
        (0, KIB),
        (MIB, KIB),
        (MIB + 1, 2 * KIB),
        (16 * MIB, 2 * KIB),
        (16 * MIB + 1, 4 * KIB),
        (128 * MIB + 1, 8 * KIB),
        (512 * MIB + 1, 64 * KIB),
        (GIB, 64 * KIB),
        (32 * GIB, 64 * KIB),
        (32 * GIB + 1, 128 * KIB),
        (2 * TIB, 4 * MIB),
        (1 << 60, 4 * MIB),
    ],
)
def test_the_mean_length_follows_from_the_size(file_len: int, mean_len: int) -> None:
    sizes = chunk_sizes(file_len)
    assert sizes.avg_len * 4 == mean_len * 3
    assert sizes.max_len == mean_len * 4
    assert sizes.min_len == min(sizes.avg_len, MIB)


@given(st.integers(0, 2 * TIB))
def test_no_table_is_longer_than_planned(file_len: int) -> None:
    sizes = chunk_sizes(file_len)
    assert sizes.cutter().avg_size == sizes.avg_len  # the library takes it
    if file_len <= 512 * GIB:
        assert file_len // sizes.min_len <= (1 << 19) * 4 // 3
    assert file_len // (sizes.avg_len * 4 // 3) <= 1 << 19


@pytest.mark.parametrize("file_len", [MIB, 16 * MIB])
def test_the_mean_length_is_what_it_is_called(file_len: int) -> None:
    lengths = lengths_of(noise("mean", file_len))
    mean_len = chunk_sizes(file_len).max_len // 4
    assert file_len / len(lengths) == pytest.approx(mean_len, rel=0.05)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="out of range"):
        Chunker(ChunkSizes(1024, 512, 4096))


def test_an_edit_spoils_few_chunks() -> None:
    old = noise("edits", 16 * MIB)
    new = bytearray(old)
    for number in range(20):
        start = 12_345 + number * 800_000
        new[start : start + KIB] = noise(f"edit {number}", KIB)
    new[8 * MIB : 8 * MIB + 3333] = b""
    new[100_000:100_000] = noise("inserted", 1000)
    sizes = chunk_sizes(len(old))
    known = set(ChunkDigest().of(cut_bytes(old, sizes)))
    chunks = cut_bytes(new, sizes)
    digests = ChunkDigest().of(chunks)
    spoilt = [
        len(chunk)
        for chunk, digest in zip(chunks, digests, strict=True)
        if digest not in known
    ]
    assert 22 <= len(spoilt) <= 22 * 3
    assert sum(spoilt) <= 22 * 3 * 2 * KIB * 5 // 4


# Reading.


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Make bytes with stretches in which nothing or everything is a cut."""
    piece = st.one_of(
        st.builds(noise, st.text(max_size=3), st.integers(1, 3000)),
        st.builds(bytes, st.integers(1, 3000)),
        st.builds(
            lambda byte, count: bytes([byte]) * count,
            st.integers(0, 255),
            st.integers(1, 3000),
        ),
        st.binary(max_size=40),
    )
    return b"".join(draw(st.lists(piece, max_size=8)))


@st.composite
def all_sizes(draw: st.DrawFn) -> ChunkSizes:
    low = draw(st.integers(64, 400))
    middle = draw(st.integers(max(low, 256), 900))
    return ChunkSizes(low, middle, draw(st.integers(1024, 3000)))


@given(data=contents(), sizes=all_sizes(), steps=st.lists(st.integers(1, 5000)))
def test_cuts_do_not_depend_on_how_bytes_come(
    data: bytes, sizes: ChunkSizes, steps: list[int]
) -> None:
    chunker = Chunker(sizes, block_len=1)
    found: list[bytes] = []
    done = 0
    for step in [*steps, *[len(data)] * (len(data) // 1000 + 1)]:
        room = chunker.room()
        part = data[done : done + min(step, len(room))]
        room[: len(part)] = part
        found += [bytes(chunk) for chunk in chunker.advance(len(part))]
        done += len(part)
    found += [bytes(chunk) for chunk in chunker.finish()]
    assert found == [bytes(chunk) for chunk in cut_bytes(data, sizes)]
    assert b"".join(found) == data
    assert chunker.finish() == []


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@settings(max_examples=40)
@given(data=contents(), sizes=all_sizes(), block_len=st.integers(1, 6000))
def test_a_file_is_cut_as_its_bytes_are(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    sizes: ChunkSizes,
    block_len: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut-file"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        found = [
            bytes(chunk)
            for chunks in cut_blocks(fd, len(data), sizes, block_len=block_len)
            for chunk in chunks
        ]
        tables = list(chunk_digests(fd, len(data), KEY, sizes, block_len=block_len))
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    finally:
        os.close(fd)
    assert found == [bytes(chunk) for chunk in cut_bytes(data, sizes)]
    assert b"".join(found) == data
    assert [n for lengths, _ in tables for n in lengths] == list(map(len, found))
    assert [digest for _, digests in tables for digest in digests] == [
        blake3(chunk, key=KEY).digest() for chunk in found
    ]


def test_sizes_follow_from_the_length_that_is_told(file: int) -> None:
    data = noise("follow", 3 * MIB)
    os.write(file, data)
    (table,) = chunk_digests(file, 1, None)
    assert table == ([1], [blake3(data[:1]).digest()])
    found = [len(c) for cs in cut_blocks(file, len(data)) for c in cs]
    assert found == lengths_of(data, chunk_sizes(len(data)))


def test_an_empty_file_has_no_chunks(file: int) -> None:
    assert list(cut_blocks(file, 0)) == []
    assert list(chunk_digests(file, 0)) == []
    assert cut_bytes(b"") == []


def test_a_file_that_is_longer_ends_where_it_is_told(file: int) -> None:
    data = noise("longer", 50_000)
    os.write(file, data)
    blocks = cut_blocks(file, 40_000, SMALL, block_len=4096)
    found = [len(chunk) for chunks in blocks for chunk in chunks]
    assert found == lengths_of(data[:40_000], SMALL)


def test_a_file_that_shrinks_ends_early(file: int) -> None:
    data = noise("shrinks", 50_000)
    os.write(file, data)
    found = [bytes(c) for cs in cut_blocks(file, 90_000, SMALL) for c in cs]
    assert b"".join(found) == data

    blocks = cut_blocks(file, 50_000, SMALL, block_len=4096)
    found = [bytes(chunk) for chunk in next(blocks)]
    os.ftruncate(file, 100)
    found += [bytes(chunk) for chunks in blocks for chunk in chunks]
    whole = b"".join(found)
    assert 100 < len(whole) < 10_000
    assert data.startswith(whole)


def test_errors_of_reading_are_passed_on() -> None:
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(OSError, match="seek"):
            list(cut_blocks(read_end, 10))
    finally:
        os.close(read_end)
        os.close(write_end)


def test_memory_does_not_grow_with_the_file(file: int) -> None:
    os.ftruncate(file, 256 * MIB)
    tracemalloc.start()
    try:
        count = sum(len(lengths) for lengths, _ in chunk_digests(file, 256 * MIB))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 256 * MIB // chunk_sizes(256 * MIB).max_len
    assert peak < MIB


@pytest.mark.parametrize("key", [None, KEY])
def test_digests_do_not_depend_on_each_other(key: bytes | None) -> None:
    chunks = [b"", b"abc", noise("one", 5000), b"abc"]
    digests = ChunkDigest(key).of(chunks)
    alone = [ChunkDigest(key).of([chunk])[0] for chunk in chunks]
    assert digests == alone
    if key is None:
        assert digests[1] == blake3(b"abc").digest()
    else:
        assert digests[1] == blake3(b"abc", key=key).digest()


def test_a_key_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32"):
        ChunkDigest(b"short")
