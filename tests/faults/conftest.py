"""A server, its directory and a client for tests of what goes wrong."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc25519_tools.identity.store import LoadedIdentity, load_identity
from tests.faults.programs import (
    Cli,
    srv_of,
)
from tests.helpers import SrvProcess, wait_until


@pytest.fixture(scope="module")
def shared_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture
def served(shared_directory: Path) -> Iterator[Path]:
    """The served directory; empty at the beginning of each test."""
    yield shared_directory

    def emptied() -> bool:
        for path in list(shared_directory.iterdir()):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return not os.listdir(shared_directory)

    # The server may still be putting away what an interrupted client has left.
    wait_until(emptied, what="an empty directory")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where ``cli`` runs."""
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def srv(certs: Path, shared_directory: Path) -> Iterator[SrvProcess]:
    """A server that has to survive all tests that share it."""
    with srv_of(certs, shared_directory) as process:
        yield process
        assert process.process.poll() is None
        assert "Traceback" not in process.stderr()


@pytest.fixture
def cli(certs: Path, home: Path) -> Cli:
    return Cli(certs, home)


@pytest.fixture(scope="module")
def node(certs: Path) -> LoadedIdentity:
    return load_identity(certs, "node", None)


@pytest.fixture(scope="module")
def client_identity(certs: Path) -> LoadedIdentity:
    return load_identity(certs, "client", None)
