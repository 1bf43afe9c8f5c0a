"""Networks for the tests of calls, and an eye on the threads of handlers."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rpc25519_tools.rpc import handlers
from tests.helpers import wait_until
from tests.rpc.memory import MemoryNetwork
from tests.rpc.nets import Net


@pytest.fixture
def memory(certs: Path, monkeypatch: pytest.MonkeyPatch) -> Net:
    """A network inside the process."""
    network = MemoryNetwork()
    network.install(monkeypatch)
    return Net("tcp", certs, network)


@pytest.fixture(params=["memory", "tcp", "tls", "quic"])
def net(request: pytest.FixtureRequest, certs: Path) -> Net:
    """Each of the networks in turn."""
    if request.param == "memory":
        found: Net = request.getfixturevalue("memory")
        return found
    return Net(request.param, certs)


@pytest.fixture(params=["tcp", "tls", "quic"])
def sockets(request: pytest.FixtureRequest, certs: Path) -> Net:
    """A network whose servers have addresses to come back to, and clients their own."""
    return Net(request.param, certs)


@pytest.fixture
def tcp(certs: Path) -> Net:
    """The network on which nobody has a name."""
    return Net("tcp", certs)


@pytest.fixture
def no_thread_stays_busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that leaves a plain handler's thread at work."""
    lock, busy = threading.Lock(), 0
    run = handlers._run_function

    def counting(function: Callable[..., Any], *args: object) -> Any:
        nonlocal busy
        with lock:
            busy += 1
        try:
            return run(function, *args)
        finally:
            with lock:
                busy -= 1

    monkeypatch.setattr(handlers, "_run_function", counting)
    yield
    wait_until(lambda: not busy, timeout_s=3, what="the end of all plain handlers")
