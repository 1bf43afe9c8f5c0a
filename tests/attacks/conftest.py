"""A server under attack, which has to serve others after each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.strangers import Minter
from tests.attacks.target_server import TargetServer


@pytest.fixture(scope="session")
def minter(certs: Path) -> Minter:
    """Makes clients that the server under attack must refuse."""
    return Minter(certs, "client")


@pytest.fixture(scope="session")
def running(
    certs: Path, minter: Minter, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TargetServer]:
    served = tmp_path_factory.mktemp("attacked")
    with TargetServer(certs, served, minter) as server:
        yield server
        assert server.srv.process.poll() is None
        assert "Traceback" not in server.srv.stderr()
        assert "Warning" not in server.srv.stderr()


@pytest.fixture
def target(running: TargetServer) -> Iterator[TargetServer]:
    """The server; it still answers a good client afterwards."""
    running.forget_log()
    yield running
    running.check_it_serves()
