"""Transfers that go on by themselves after cuts, kills and restarts."""

import os
import random
from pathlib import Path

import pytest

from tests.commands.hostile import MIB, finish, kill, names_in, wait_for_partial
from tests.faults.cutting import Cutter
from tests.faults.programs import AREA, Cli, srv_of
from tests.helpers import SrvProcess

#: Does not shrink, so that bytes can be counted.
WHOLE = os.urandom(40 * MIB + 12345)
ALLOWED = len(WHOLE) * 105 // 100 + MIB


@pytest.fixture
def cli(certs: Path, home: Path) -> Cli:
    return Cli(certs, home, retry_for="20s")


def cuts(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(4 * MIB, 20 * MIB) for _ in range(3)]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_transfer_goes_on_after_cuts(
    srv: SrvProcess, served: Path, home: Path, cli: Cli, way: str, seed: int
) -> None:
    source, target = (home, served) if way == "up" else (served, home)
    (source / "f").write_bytes(WHOLE)
    option = "-sendfile" if way == "up" else "-download"
    with Cutter(srv.address, **{way: cuts(seed)}) as cutter:
        cli(cutter.address, option, "f").succeed()
        moved = cutter.up_bytes if way == "up" else cutter.down_bytes
        assert cutter.connections == 4 or moved < sum(cuts(seed))
    assert (target / "f").read_bytes() == WHOLE
    assert names_in(target) == ["f"]
    os.write(2, f"\n{way} {moved / len(WHOLE)} {cutter.connections}\n".encode())
    assert len(WHOLE) < moved < ALLOWED
