"""Fixtures for tests of syncs."""

from pathlib import Path

import pytest

from tests.sync.trees import Trees


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    """Two empty directories: what is synced, and where to."""
    source, destination = tmp_path / "src", tmp_path / "dst"
    source.mkdir()
    destination.mkdir()
    return source, destination
