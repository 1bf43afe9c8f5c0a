"""Summaries of files and bytes: what they say, and what cannot be summarized."""

import grp
import json
import os
import pwd
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

import rpc25519_tools
from rpc25519_tools.errors import ConfigError, FileChangedError, LocalFileError
from rpc25519_tools.files.source import SourceFile
from rpc25519_tools.greenpack import decode
from rpc25519_tools.sync.chunking import CHUNKER_NAME, chunk_sizes, cut_bytes
from rpc25519_tools.sync.hashes import (
    CdcConfig,
    RsyncHashes,
    diff,
    summarize_bytes,
    summarize_file,
)
from rpc25519_tools.wire.digest import digest_text

MIB = 1 << 20
RECORDED = Path(__file__).parent.parent / "data/records/rsync-structs.json"
DATA = blake3(b"summaries").digest(length=3 * MIB + 5)


def test_the_names_are_public() -> None:
    assert rpc25519_tools.summarize_bytes is summarize_bytes
    assert rpc25519_tools.summarize_file is summarize_file
    assert rpc25519_tools.diff is diff
    assert rpc25519_tools.RsyncHashes is RsyncHashes


def test_a_summary_lists_all_chunks() -> None:
    found = summarize_bytes("box", "name", DATA, 12345)
    chunks = cut_bytes(DATA)
    assert (found.host, found.path, found.mod_time_ns) == ("box", "name", 12345)
    assert found.file_size == len(DATA)
    assert found.hash_name == "blake3.32B"
    assert found.full_file_hash_sum == digest_text(DATA)
    assert found.chunker_name == CHUNKER_NAME
    sizes = chunk_sizes(len(DATA))
    assert found.cdc_config == CdcConfig(sizes.min_len, sizes.avg_len, sizes.max_len)
    assert found.num_chunks == len(found.chunks) == len(chunks)
    offset = 0
    for number, (chunk, data) in enumerate(zip(found.chunks, chunks, strict=True)):
        assert chunk.chunk_number == number
        assert (chunk.beg, chunk.endx, chunk.len) == (
            offset,
            offset + len(data),
            len(data),
        )
        assert chunk.hash == digest_text(data)
        offset = chunk.endx
    assert offset == len(DATA)


def test_a_summary_of_few_bytes_has_the_sums_that_go_makes() -> None:
    packed = bytes.fromhex(
        json.loads(RECORDED.read_text())["summary_of_abc"]["marshal"]
    )
    theirs = decode(RsyncHashes, packed)
    ours = summarize_bytes("box", "abc", b"abc", 1_700_000_000_123_456_789)
    assert theirs.chunker_name.startswith("fastcdc-Stadia")
    assert ours.chunks == theirs.chunks
    for name in ("host", "path", "mod_time_ns", "file_size", "hash_name"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.full_file_hash_sum == theirs.full_file_hash_sum
    assert diff(theirs, ours).only_b == []


def test_nothing_has_no_chunks(tmp_path: Path) -> None:
    found = summarize_bytes("", "", b"")
    assert (found.file_size, found.num_chunks, found.chunks) == (0, 0, [])
    assert found.full_file_hash_sum == digest_text(b"")
    (tmp_path / "empty").touch()
    of_file = summarize_file("", tmp_path / "empty")
    assert of_file.chunks == []
    assert of_file.full_file_hash_sum == digest_text(b"")


def test_any_buffer_is_summarized_by_its_bytes() -> None:
    words = memoryview(DATA[:4000]).cast("I")
    assert summarize_bytes("h", "p", words) == summarize_bytes("h", "p", DATA[:4000])


def test_a_file_is_summarized_as_its_bytes_are(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    path.chmod(0o4751)
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    link = tmp_path / "link"
    link.symlink_to(path)
    of_bytes = summarize_bytes("box", str(link), DATA, 1_700_000_000_123_456_789)
    found = summarize_file("box", link)
    assert found.chunks == of_bytes.chunks
    assert found.full_file_hash_sum == of_bytes.full_file_hash_sum
    assert found.cdc_config == of_bytes.cdc_config
    assert (found.host, found.path) == ("box", str(link))
    assert found.mod_time_ns == 1_700_000_000_123_456_789
    assert found.file_size == len(DATA)
    assert found.file_mode == 0o751 | 1 << 23
    status = path.stat()
    assert found.file_owner_id == status.st_uid
    assert found.file_group_id == status.st_gid
    assert found.file_owner == path.owner()
    assert found.file_group == path.group()


@pytest.mark.parametrize(
    ("mode", "go_mode"),
    [(0o600, 0o600), (0o2750, 1 << 22 | 0o750), (0o1777, 1 << 20 | 0o777)],
)
def test_modes_are_told_as_go_has_them(tmp_path: Path, mode: int, go_mode: int) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    assert summarize_file("", path).file_mode == go_mode


def test_owners_without_a_name_have_a_number_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(number: int) -> Any:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(grp, "getgrgid", unknown)
    (tmp_path / "file").touch()
    found = summarize_file("", tmp_path / "file")
    assert (found.file_owner, found.file_group) == ("", "")
    assert found.file_owner_id == os.getuid()


def test_memory_does_not_grow_with_the_bytes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 256 * MIB)
    tracemalloc.start()
    try:
        found = summarize_file("", path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.num_chunks == 256 * MIB // chunk_sizes(256 * MIB).max_len
    assert peak < 8 * MIB


# Two versions.


def test_two_versions_differ_by_the_edited_chunks(tmp_path: Path) -> None:
    old = summarize_bytes("", "old", DATA[: MIB - 100])
    changed = DATA[:5000] + b"inserted" + DATA[5000:MIB]
    apart = summarize_bytes("", "new", changed)
    assert apart.cdc_config != old.cdc_config
    new = summarize_bytes("", "new", changed, like=old)
    assert new.cdc_config == old.cdc_config
    found = old.diff(new)
    assert 1 <= len(found.only_b) <= 10
    assert len(found.both) > 0.98 * new.num_chunks
    path = tmp_path / "new"
    path.write_bytes(changed)
    assert summarize_file("", path, like=old).chunks == new.chunks


@pytest.mark.parametrize(
    "like",
    [
        RsyncHashes(chunker_name="fastcdc-Stadia", cdc_config=CdcConfig(64, 256, 1024)),
        RsyncHashes(chunker_name=CHUNKER_NAME),
        RsyncHashes(chunker_name=CHUNKER_NAME, cdc_config=CdcConfig(-1, 256, 1024)),
        RsyncHashes(chunker_name=CHUNKER_NAME, cdc_config=CdcConfig(64, 256, 1 << 62)),
        RsyncHashes(chunker_name=CHUNKER_NAME, cdc_config=CdcConfig(512, 256, 1024)),
    ],
)
def test_sizes_that_cannot_be_used_are_refused(
    tmp_path: Path, like: RsyncHashes
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot cut as '' was"):
        summarize_bytes("", "", b"abc", like=like)
    with pytest.raises(ConfigError, match="cannot cut as '' was"):
        summarize_file("", tmp_path / "file", like=like)


# What cannot be summarized.


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_nothing(path: Path) -> None:
    assert not path.exists()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (make_nothing, "no such file: .*name"),
        (Path.mkdir, "it is a directory"),
        (make_fifo, "it is a FIFO"),
        (lambda path: path.symlink_to("/dev/null"), "it is a device"),
        (lambda path: path.symlink_to("/proc/self/status"), "it has no size"),
    ],
)
def test_what_is_no_regular_file_is_refused(
    tmp_path: Path, make: Callable[[Path], None], text: str
) -> None:
    make(tmp_path / "name")
    open_before = os.listdir("/proc/self/fd")
    with pytest.raises(LocalFileError, match=text):
        summarize_file("", tmp_path / "name")
    assert os.listdir("/proc/self/fd") == open_before


def test_an_impossible_name_is_refused() -> None:
    with pytest.raises(LocalFileError, match="not a possible name"):
        summarize_file("", "a\0b")


@pytest.mark.parametrize(
    ("change", "verb"),
    [
        (lambda path: os.truncate(path, MIB), "shrank"),
        (lambda path: path.write_bytes(DATA + DATA), "grew"),
        (lambda path: os.utime(path, ns=(1, 1)), "was changed"),
    ],
)
def test_a_file_that_changes_meanwhile_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
    verb: str,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    reads = 0
    read_into = SourceFile.read_into

    def change_later(source: SourceFile, buffer: bytearray | memoryview) -> int:
        nonlocal reads
        reads += 1
        if reads == 2:
            change(path)
        return read_into(source, buffer)

    monkeypatch.setattr(SourceFile, "read_into", change_later)
    with pytest.raises(FileChangedError, match=verb):
        summarize_file("", path)
    assert reads > 2
