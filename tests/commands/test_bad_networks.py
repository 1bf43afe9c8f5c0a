"""``cli -q`` and ``srv -q`` with a bad network between them."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from tests.commands.hostile import MIB, finish, started
from tests.helpers import SrvProcess
from tests.transport.udp_proxy import Faults, UdpProxy

#: What goes each way, and what a third of both is: where the network changes.
CONTENT = os.urandom(2 * MIB)
A_THIRD = 2 * len(CONTENT) // 3
#: UDP's payload in Ethernet's usual frames.
USUAL = 1472


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served")
    (path / "down").write_bytes(CONTENT)
    return path


@pytest.fixture(scope="module")
def srv(certs: Path, served: Path) -> Iterator[SrvProcess]:
    options = ["-q", "-serve", str(served), "-readfile", str(served), "-echo"]
    with SrvProcess(*options, certs=certs) as process:
        yield process


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "up").write_bytes(CONTENT)
    return tmp_path / "home"


Transfer = Callable[..., None]


@pytest.fixture
def transfer(srv: SrvProcess, certs: Path, home: Path, served: Path) -> Transfer:
    """An upload and a download at the same time, through a proxy, checked."""

    def run_both(proxy: UdpProxy) -> None:
        options = ["-q", "-s", proxy.address, "-certs", str(certs), "-big"]
        upload, download = ["-sendfile", "up"], ["-download", "down"]
        with contextlib.ExitStack() as stack:
            running = [
                stack.enter_context(started("cli", *options, *what, cwd=home))
                for what in (upload, download)
            ]
            outcomes = [finish(process).succeed() for process in running]
        for outcome in outcomes:
            assert blake3(CONTENT).hexdigest() in outcome.stdout + outcome.stderr
        assert (served / "up").read_bytes() == CONTENT
        assert (home / "down").read_bytes() == CONTENT
        (served / "up").unlink()
        assert proxy.is_as_planned
        assert proxy.bytes > 2 * len(CONTENT)

    return run_both


@contextlib.contextmanager
def proxy_to(srv: SrvProcess, faults: Faults) -> Iterator[UdpProxy]:
    host, port = srv.address.split(":")
    with UdpProxy((host, int(port)), faults, seed=7) as proxy:
        yield proxy


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(), id="none"),
        pytest.param(Faults(mtu=USUAL, loss=0.01), id="loss 1 %"),
        pytest.param(Faults(mtu=USUAL, loss=0.05), id="loss 5 %"),
        pytest.param(
            Faults(mtu=USUAL, reordering=0.05, late_s=0.003, duplication=0.1),
            id="reordering and duplication",
        ),
        pytest.param(Faults(delay_s=0.1), id="delay 100 ms"),
    ],
)
def test_files_arrive_whole(
    srv: SrvProcess, transfer: Transfer, faults: Faults
) -> None:
    with proxy_to(srv, faults) as proxy:
        transfer(proxy)
        assert proxy.longest <= faults.mtu
        if faults.loss:
            assert proxy.lost > 2 * len(CONTENT) / USUAL * faults.loss / 2


def test_a_black_out_of_five_seconds_is_survived(
    srv: SrvProcess, transfer: Transfer
) -> None:
    with proxy_to(srv, Faults(delay_s=0.01)) as proxy:
        proxy.black_out_at(A_THIRD, 5.0)
        transfer(proxy)
        assert proxy.lost > 0


def test_a_path_may_become_narrower_in_the_middle(
    srv: SrvProcess, transfer: Transfer
) -> None:
    with proxy_to(srv, Faults(delay_s=0.005)) as proxy:
        proxy.change_at(A_THIRD, mtu=1252)
        transfer(proxy)
        assert proxy.longest > USUAL
        assert proxy.lost > 4


def test_a_clients_address_may_change_in_the_middle(
    srv: SrvProcess, transfer: Transfer
) -> None:
    before = srv.stderr().count(" connected")
    with proxy_to(srv, Faults(delay_s=0.005)) as proxy:
        proxy.rebind_at(A_THIRD)
        proxy.rebind_at(2 * A_THIRD)
        transfer(proxy)
        assert proxy.rebound == 2
    assert srv.stderr().count(" connected") == before + 2
