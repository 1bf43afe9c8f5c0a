"""Holes and data of a file, told apart."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpc25519_tools.sync.holes import LEAST_HOLE, has_holes, stretches

BLOCK = 64 * 1024


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("holes") / "file"


@settings(deadline=None, max_examples=60)
@given(
    blocks=st.lists(st.booleans(), max_size=8),
    tail=st.integers(0, BLOCK),
    start=st.integers(0, 9 * BLOCK),
    length=st.integers(0, 9 * BLOCK),
)
def test_stretches_cover_what_was_asked_for(
    path: Path, blocks: list[bool], tail: int, start: int, length: int
) -> None:
    size = len(blocks) * BLOCK + tail
    with path.open("wb") as file:
        file.truncate(size)
        for number, is_data in enumerate(blocks):
            if is_data:
                file.seek(number * BLOCK)
                file.write(b"x" * BLOCK)
    fd = os.open(path, os.O_RDONLY)
    try:
        at = start
        for begin, count, is_data in stretches(fd, start, start + length):
            assert begin == at
            assert count > 0
            if not is_data:
                assert not os.pread(fd, count, begin).strip(b"\0")
                assert count >= LEAST_HOLE or begin + count in (start + length, size)
            at += count
        assert at == start + length
        assert has_holes(os.fstat(fd)) or all(blocks)
    finally:
        os.close(fd)


def test_file_system_that_knows_no_holes_has_only_data(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"x" * 300_000)

    def unable(*_: int) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "lseek", unable)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert list(stretches(fd, 5, 300_000)) == [(5, 299_995, True)]
    finally:
        os.close(fd)
