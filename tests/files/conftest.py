"""Fixtures for tests that write and transfer files."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.files.atomics import count_fds
from tests.files.places import Place
from tests.rpc.memory import MemoryNetwork
from tests.rpc.nets import Net


@pytest.fixture
def no_fd_leak() -> Iterator[None]:
    before = count_fds()
    yield
    # Fewer are all right: what others have left to the collector may go meanwhile.
    assert count_fds() <= before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Hold the old file and nothing else."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"old")
    return folder


@pytest.fixture
def place_fd(folder: Path, no_fd_leak: None) -> Iterator[int]:
    """Hold open a folder in which there is nothing."""
    (folder / "file").unlink()
    fd = os.open(folder, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def memory(certs: Path, monkeypatch: pytest.MonkeyPatch) -> Net:
    network = MemoryNetwork()
    network.install(monkeypatch)
    return Net("tcp", certs, network)


@pytest.fixture(params=["memory", "tls", "quic"])
def net(request: pytest.FixtureRequest, certs: Path) -> Net:
    if request.param == "memory":
        found: Net = request.getfixturevalue("memory")
        return found
    return Net(request.param, certs)


@pytest.fixture
def place(tmp_path: Path, no_leaked_fds: None) -> Place:
    place = Place(tmp_path / "served", tmp_path / "local")
    place.served.mkdir()
    place.local.mkdir()
    return place
