"""Networks for the tests of calls."""

from pathlib import Path

import pytest

from tests.rpc.memory import MemoryNetwork
from tests.rpc.nets import Net


@pytest.fixture
def memory(certs: Path, monkeypatch: pytest.MonkeyPatch) -> Net:
    """A network inside the process."""
    network = MemoryNetwork()
    network.install(monkeypatch)
    return Net("tcp", certs, network)


@pytest.fixture(params=["memory", "tcp", "tls"])
def net(request: pytest.FixtureRequest, certs: Path) -> Net:
    """Each of the networks in turn."""
    if request.param == "memory":
        found: Net = request.getfixturevalue("memory")
        return found
    return Net(request.param, certs)
