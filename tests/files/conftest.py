"""Fixtures for tests that write files."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.files.atomics import count_fds


@pytest.fixture
def no_fd_leak() -> Iterator[None]:
    before = count_fds()
    yield
    assert count_fds() == before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Hold the old file and nothing else."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"old")
    return folder
