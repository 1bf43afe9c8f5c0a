"""Transfers that go on after cuts, kills and restarts, with real programs."""

import os
import random
from pathlib import Path

import pytest

from tests.commands.hostile import MIB, finish, kill, names_in, wait_for_partial
from tests.faults.cutting import Cutter
from tests.faults.programs import AREA, OLD, Cli, srv_of
from tests.helpers import SrvProcess, wait_until

#: Does not shrink, so that bytes can be counted.
WHOLE = os.urandom(40 * MIB + 12345)
#: What has passed when something happens.
SOME = 9 * MIB
ALLOWED = len(WHOLE) * 105 // 100 + MIB
WAYS = pytest.mark.parametrize("way", ["up", "down"])
OPTION = {"up": "-sendfile", "down": "-download"}


@pytest.fixture
def cli(certs: Path, home: Path) -> Cli:
    return Cli(certs, home, retry_for="20s")


def ends(way: str, served: Path, home: Path) -> tuple[Path, Path]:
    return (home, served) if way == "up" else (served, home)


def moved(cutter: Cutter, way: str) -> int:
    return cutter.up_bytes if way == "up" else cutter.down_bytes


def kept_bytes(directory: Path) -> int:
    """Return how much an area holds."""
    area = directory / AREA
    return sum(path.stat().st_size for path in area.iterdir()) if area.exists() else 0


@pytest.mark.parametrize("seed", [1, 2])
@WAYS
def test_a_transfer_goes_on_after_cuts(
    srv: SrvProcess, served: Path, home: Path, cli: Cli, way: str, seed: int
) -> None:
    source, target = ends(way, served, home)
    (source / "f").write_bytes(WHOLE)
    rng = random.Random(seed)
    cuts = [rng.randrange(4 * MIB, 13 * MIB) for _ in range(3)]
    with Cutter(srv.address, way, cuts) as cutter:
        cli(cutter.address, OPTION[way], "f").succeed()
        assert cutter.connections == 4
        assert len(WHOLE) < moved(cutter, way) < ALLOWED
    assert (target / "f").read_bytes() == WHOLE
    assert names_in(target) == ["f"]


def test_each_retry_is_told_in_one_line(
    srv: SrvProcess, served: Path, certs: Path, home: Path
) -> None:
    (served / "f").write_bytes(WHOLE)
    loud = Cli(certs, home, retry_for="20s", quiet=False)
    with Cutter(srv.address, "down", [4 * MIB, SOME]) as cutter:
        outcome = loud(cutter.address, "-download", "f").succeed()
    retries = [line for line in outcome.lines if "trying again in" in line]
    assert len(retries) == 2
    assert all(line.startswith("cli: ") for line in retries)
    assert len(outcome.lines) == 3
    assert "of them from before" in outcome.lines[-1]


@WAYS
def test_the_same_command_again_carries_on_after_a_kill_of_the_client(
    certs: Path, served: Path, home: Path, cli: Cli, way: str
) -> None:
    source, target = ends(way, served, home)
    (source / "f").write_bytes(WHOLE)
    (target / "f").write_bytes(OLD)
    with srv_of(certs, served) as srv:
        with (
            Cutter(srv.address, way, [SOME], stalls=True) as cutter,
            cli.start(cutter.address, OPTION[way], "f") as process,
        ):
            wait_until(lambda: kept_bytes(target) > SOME - 2 * MIB, what="some parts")
            kill(process)
            cutter.cut()
            srv.wait_for(" failed: ")
        assert (target / "f").read_bytes() == OLD
        kept = kept_bytes(target)
        with Cutter(srv.address) as cutter:
            cli(cutter.address, OPTION[way], "f").succeed()
            assert moved(cutter, way) < (len(WHOLE) - kept) * 105 // 100 + MIB
    assert (target / "f").read_bytes() == WHOLE
    assert names_in(target) == ["f"]


@pytest.mark.parametrize("end", ["killed", "stopped"])
@WAYS
def test_a_server_that_ends_and_comes_back(
    certs: Path, served: Path, home: Path, cli: Cli, way: str, end: str
) -> None:
    source, target = ends(way, served, home)
    (source / "f").write_bytes(WHOLE)
    with Cutter("127.0.0.1:1", way, [SOME], stalls=True) as cutter:
        with srv_of(certs, served, "--grace", "0.1s") as srv:
            cutter.target = srv.address
            process = cli.begin(cutter.address, OPTION[way], "f")
            wait_until(lambda: kept_bytes(target) > SOME - 2 * MIB, what="some parts")
            if end == "killed":
                kill(srv.process)
            else:
                assert srv.stop() == 0
        cutter.cut()
        assert process.poll() is None
        with srv_of(certs, served) as srv:
            cutter.target = srv.address
            finish(process).succeed()
        assert moved(cutter, way) < ALLOWED
    assert (target / "f").read_bytes() == WHOLE
    assert names_in(target) == ["f"]


@WAYS
def test_a_file_that_has_changed_begins_anew(
    srv: SrvProcess, served: Path, home: Path, certs: Path, way: str
) -> None:
    source, target = ends(way, served, home)
    (source / "f").write_bytes(WHOLE)
    hasty = Cli(certs, home)
    with Cutter(srv.address, way, [SOME]) as cutter:
        assert hasty(cutter.address, OPTION[way], "f").error(3)
    wait_for_partial(target)
    other = os.urandom(12 * MIB)
    (source / "f").write_bytes(other)
    hasty(srv.address, OPTION[way], "f").succeed()
    assert (target / "f").read_bytes() == other
    assert names_in(target) == ["f"]


def test_what_cannot_be_gone_back_in_is_not_tried_again(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    (served / "f").write_bytes(WHOLE)
    for out in ("-", "/dev/null"):
        with Cutter(srv.address, "down", [SOME]) as cutter:
            assert cli(cutter.address, "-download", "f", "-o", out).error(3)
            assert cutter.connections == 1


def test_a_server_that_never_comes_back_is_given_up(
    srv: SrvProcess, served: Path, certs: Path, home: Path
) -> None:
    (served / "f").write_bytes(WHOLE)
    patient = Cli(certs, home, retry_for="1s")
    with Cutter(srv.address, "down", [SOME, *[0] * 100]) as cutter:
        # The last failure decides: here a handshake that is cut.
        assert patient(cutter.address, "-download", "f").error(4)
        assert cutter.connections > 2
    assert names_in(home) == [AREA]
    assert kept_bytes(home) > 7 * MIB
