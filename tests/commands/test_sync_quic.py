"""Pushes, pulls and deltas over QUIC: ``cli -q`` and ``srv -q``, real processes."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.commands.hostile import MIB, finish, kill, started
from tests.commands.syncing import Desk, Done, content_of, desk_for, make_tree
from tests.helpers import SrvProcess, wait_until

BIG_LEN = 3 * MIB

_HASTY = """
from rpc25519_tools.commands.srv import srv
from rpc25519_tools.transport import quic_connection

quic_connection.IDLE_TIMEOUT_S = 1.0
srv()
"""
#: A ``srv`` with which connections end after a second of silence, instead of thirty:
#: the smaller of what both ends say counts. Nothing else tells of a killed server.
HASTY_SRV = (sys.executable, "-c", _HASTY)


def srv_of(
    certs: Path, served: Path, *options: str, program: Sequence[str] = ()
) -> SrvProcess:
    return SrvProcess(
        "-q",
        "-serve",
        served,
        "-readfile",
        served,
        *options,
        certs=certs,
        program=program,
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def srv(certs: Path, served: Path) -> Iterator[SrvProcess]:
    with srv_of(certs, served) as process:
        yield process
        assert process.process.poll() is None
        assert "Traceback" not in process.stderr()


@pytest.fixture
def quic_desk(srv: SrvProcess, served: Path, certs: Path, tmp_path: Path) -> Desk:
    """An empty place here, and one on the server."""
    return desk_for(srv, served, certs, tmp_path)


def cli(desk: Desk, *words: str) -> Done:
    return desk.cli("-q", *words, "--json", quick=False).succeed()


def test_a_tree_goes_up_and_comes_back(quic_desk: Desk) -> None:
    desk = quic_desk
    big = os.urandom(BIG_LEN)
    tree = make_tree(
        desk.here / "tree", {"big": big, "sub/small": "small", "sub/empty/": ""}
    )
    (tree / "link").symlink_to("sub/small")
    up = ("-push", "tree/", "--to", desk.name)
    done = cli(desk, *up)
    assert content_of(desk.there) == content_of(tree)
    assert done.summary["attempts"] == 1
    assert BIG_LEN < done.summary["sent_bytes"] < BIG_LEN * 1.1

    at = BIG_LEN // 2
    (tree / "big").write_bytes(big[:at] + b"something new" + big[at:])
    done = cli(desk, *up)
    assert content_of(desk.there) == content_of(tree)
    assert done.summary["transferred"] == 1
    assert 13 <= done.summary["literal_bytes"] < 200_000
    assert done.summary["sent_bytes"] + done.summary["received_bytes"] < 300_000

    done = cli(desk, "-pull", f"{desk.name}/", "-o", "back")
    assert content_of(desk.here / "back") == content_of(tree)
    assert done.summary["received_bytes"] > BIG_LEN


def test_a_killed_server_comes_back_at_its_port(certs: Path, tmp_path: Path) -> None:
    served, here = tmp_path / "served", tmp_path / "here"
    for path in (served, here):
        path.mkdir()
    (here / "big").write_bytes(os.urandom(BIG_LEN))
    area = served / ".rpc25519-part-area"

    def stored() -> int:
        return sum(one.stat().st_size for one in area.rglob("*") if one.is_file())

    with srv_of(certs, served, program=HASTY_SRV) as srv:
        words = ["-q", "-s", srv.address, "-certs", os.fspath(certs), "-push", "big"]
        words += ["--bwlimit", "3m", "--retry-for", "20s", "--json"]
        with started("cli", *words, cwd=here) as process:
            wait_until(lambda: stored() >= MIB, what="something to arrive")
            kill(srv.process)
            assert not (served / "big").exists()
            with srv_of(certs, served, "-s", srv.address):
                outcome = finish(process).succeed()
    assert (served / "big").read_bytes() == (here / "big").read_bytes()
    done = Done(outcome.code, outcome.stdout, outcome.stderr)
    assert done.summary["attempts"] >= 2
    assert "; trying again in " in done.stderr
    # What had been stored did not come again.
    assert done.summary["literal_bytes"] < BIG_LEN
    assert done.summary["matched_bytes"] > 0
