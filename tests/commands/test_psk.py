"""``-psk`` of srv, cli and samesame, as processes."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers import SrvProcess, run_program

CONTENT = os.urandom(700_000) + b"text " * 150_000
NETWORKS = pytest.mark.parametrize(
    "network", [["-tcp"], [], ["-q"]], ids=["tcp", "tls", "quic"]
)
TRUST = 4


def make_key(path: Path) -> Path:
    path.write_bytes(os.urandom(32))
    path.chmod(0o600)
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "psk.bin")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "up").write_bytes(CONTENT)
    return tmp_path / "home"


@pytest.fixture
def served(tmp_path: Path) -> Path:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "down").write_bytes(CONTENT[::-1])
    return tmp_path / "served"


def cli(
    srv: SrvProcess, certs: Path, home: Path, *args: str | Path
) -> subprocess.CompletedProcess[str]:
    return run_program("cli", "-s", srv.address, "-certs", certs, *args, cwd=home)


@NETWORKS
def test_everything_works_through_it(
    network: list[str], certs: Path, key: Path, home: Path, served: Path
) -> None:
    options: list[str | Path] = ["-serve", served, "-readfile", served, "-echo"]
    options += ["-psk", key, *network]
    with SrvProcess(*options, certs=certs) as srv:
        assert "with a pre-shared key" in srv.stdout()
        for operation in (
            ["-n", "3"],
            ["-sendfile", "up"],
            ["-download", "down"],
            ["-echofile", "up", "-press", "zstd:01"],
        ):
            done = cli(srv, certs, home, "-psk", key, *network, *operation)
            assert done.returncode == 0, done.stderr
            assert "warning" not in done.stderr
        assert (served / "up").read_bytes() == CONTENT
        assert (home / "down").read_bytes() == CONTENT[::-1]
        assert (home / "up.echoed").read_bytes() == CONTENT
        verbose = cli(srv, certs, home, "-psk", key, *network, "-v").stderr
        assert "pre-shared key" in verbose
        assert "node@example.org" in verbose
        assert "nothing is protected" not in srv.stderr() + verbose
        assert "client@example.org" in srv.stdout() + srv.stderr()


@NETWORKS
def test_wrong_and_missing_keys(
    network: list[str], certs: Path, key: Path, home: Path, tmp_path: Path
) -> None:
    other = make_key(tmp_path / "other.bin")
    with SrvProcess("-psk", key, *network, certs=certs) as srv:
        done = cli(srv, certs, home, "-psk", other, *network)
        assert done.returncode == TRUST
        assert (
            done.stderr == "cli: the server has another pre-shared key than we have\n"
        )
        srv.wait_for("the pre-shared keys differ")
        done = cli(srv, certs, home, "-quiet", *network)
        assert done.returncode == 5
        assert "the peer uses a pre-shared key (-psk)" in done.stderr
        srv.wait_for("the peer does not use a pre-shared key")
        assert "Traceback" not in srv.stderr()
    with SrvProcess(*network, certs=certs) as srv:
        done = cli(srv, certs, home, "-psk", key, *network)
        assert done.returncode == TRUST
        assert "perhaps it does not use -psk" in done.stderr
        srv.wait_for("the peer uses a pre-shared key (-psk), and this side does not")


@pytest.mark.parametrize("program", ["srv", "cli", "samesame"])
def test_a_key_file_that_is_none_stops_the_program(
    program: str, certs: Path, tmp_path: Path
) -> None:
    (tmp_path / "short").write_bytes(b"s" * 31)
    for name, reason in (
        ("nosuch", "no such file or directory"),
        ("", "directory"),
        ("short", "31 bytes, at least 32"),
    ):
        path = tmp_path / name
        done = run_program(program, "-certs", certs, "-psk", path, cwd=tmp_path)
        assert done.returncode == TRUST
        (line,) = done.stderr.splitlines()
        assert reason in line.lower()
        assert str(path) in line


def test_a_key_that_others_can_read_is_warned_of(
    certs: Path, key: Path, home: Path
) -> None:
    with SrvProcess("-psk", key, certs=certs) as srv:
        assert "warning" not in srv.stderr()
        key.chmod(0o644)
        done = cli(srv, certs, home, "-psk", key)
        assert done.returncode == 0
        assert f"cli: warning: others can use {key} (mode 0644)" in done.stderr


def test_a_certificate_that_is_too_long_is_refused_at_start(
    tmp_path: Path, key: Path
) -> None:
    made = run_program(
        *("selfy", "-k", "node", "-nopass", "-e", "e" * 150 + "@example.org"),
        cwd=tmp_path,
    )
    assert made.returncode == 0
    assert "with a pre-shared key" in made.stderr
    done = run_program("srv", "-psk", key, "-s", "127.0.0.1:0", cwd=tmp_path)
    assert done.returncode == TRUST
    assert "at most 641" in done.stderr
    assert "listening" not in done.stdout
