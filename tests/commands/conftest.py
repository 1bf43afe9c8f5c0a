"""Fixtures for tests of the programs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from rpc25519_tools.commands._authority import CA_VARIABLE

from rpc25519_tools.identity import keyfile
from tests.commands.syncing import Desk, desk_for
from tests.helpers import SrvProcess
from tests.identity.samples import TINY_KDF


@pytest.fixture
def selfy_workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty directory, a cheap key derivation, no pass phrase in the air."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keyfile, "DEFAULT_KDF", TINY_KDF)
    monkeypatch.delenv("RPC25519_PASSPHRASE", raising=False)
    monkeypatch.delenv(CA_VARIABLE, raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty directory, in which commands run."""
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def sync_served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server of all tests of syncs gives out and writes to."""
    return tmp_path_factory.mktemp("synced")


@pytest.fixture(scope="session")
def sync_srv(sync_served: Path, certs: Path) -> Iterator[SrvProcess]:
    """One server for all tests of syncs."""
    words = ("-serve", sync_served, "-readfile", sync_served)
    with SrvProcess(*words, certs=certs) as srv:
        yield srv


@pytest.fixture
def desk(sync_srv: SrvProcess, sync_served: Path, certs: Path, tmp_path: Path) -> Desk:
    """An empty place here, and one on the server."""
    return desk_for(sync_srv, sync_served, certs, tmp_path)
