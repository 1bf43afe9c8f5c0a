"""Servers under attack, which have to serve others meanwhile and afterwards."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc25519_tools.identity.store import LoadedIdentity, load_identity
from tests.attacks.floods import Attacked, Tunnelled, Who
from tests.attacks.strangers import Minter
from tests.attacks.target_server import TargetServer
from tests.fuzz.live import PSK_NAME, make_psk
from tests.helpers import SrvProcess


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


@pytest.fixture(scope="session")
def client_identity(certs: Path) -> LoadedIdentity:
    return load_identity(certs, "client", None)


@pytest.fixture(scope="session")
def psk_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("psk")
    make_psk(folder)
    return folder / PSK_NAME


@pytest.fixture
def attacked(
    request: pytest.FixtureRequest,
    certs: Path,
    psk_path: Path,
    client_identity: LoadedIdentity,
) -> Iterator[Attacked]:
    """A server of its own, reached in the way that the parameter names."""
    over_tls, with_key = "tls" in request.param, "psk" in request.param
    options: list[str | Path] = [] if over_tls else ["-tcp"]
    who: Who = client_identity if over_tls else None
    if with_key:
        options += ["-psk", psk_path]
        who = Tunnelled(client_identity, psk_path, over_tls)
    with SrvProcess(*options, certs=certs) as srv:
        yield Attacked(request.param, srv, who)
        assert srv.process.poll() is None
        assert "Traceback" not in srv.stderr()
