"""What real programs do when the other side or the disk fails, or the file changes.

Every time: the old file stays, no final name holds bad bytes, the exit code and one
line on stderr tell what happened, and the server goes on serving.
"""

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands import hostile
from tests.commands.hostile import (
    Valve,
    finish,
    kill,
    names_in,
    partials,
    started,
    wait_for_partial,
)
from tests.faults.programs import (
    AREA,
    BIG,
    OLD,
    SOME,
    Cli,
    srv_of,
    wait_for_names,
)
from tests.helpers import SrvProcess, wait_until

# One side is killed


def test_kill_of_the_server_in_mid_upload(
    certs: Path, served: Path, home: Path, cli: Cli
) -> None:
    (home / "f").write_bytes(BIG)
    (served / "f").write_bytes(OLD)
    with (
        srv_of(certs, served) as srv,
        Valve(srv.address, up=SOME) as valve,
        cli.start(valve.address, "-sendfile", "f") as process,
    ):
        wait_for_partial(served)
        kill(srv.process)
        valve.open()
        assert finish(process).error(3)
    assert (served / "f").read_bytes() == OLD
    with srv_of(certs, served) as srv:
        cli(srv.address, "-sendfile", "f").succeed()
    assert (served / "f").read_bytes() == BIG
    assert names_in(served) == ["f"]


def test_kill_of_the_server_in_mid_download(
    certs: Path, served: Path, home: Path, cli: Cli
) -> None:
    (served / "f").write_bytes(BIG)
    (home / "f").write_bytes(OLD)
    with (
        srv_of(certs, served) as srv,
        Valve(srv.address, down=SOME) as valve,
        cli.start(valve.address, "-download", "f") as process,
    ):
        wait_for_partial(home)
        kill(srv.process)
        valve.open()
        assert finish(process).error(3)
    assert (home / "f").read_bytes() == OLD
    assert names_in(home) == [AREA, "f"]
    with srv_of(certs, served) as srv:
        cli(srv.address, "-download", "f").succeed()
    assert (home / "f").read_bytes() == BIG
    assert names_in(home) == ["f"]


def test_kill_of_the_client_in_mid_upload(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    (home / "f").write_bytes(BIG)
    (served / "f").write_bytes(OLD)
    seen = srv.stderr().count(" failed: ")
    with Valve(srv.address, up=SOME) as valve:
        with cli.start(valve.address, "-sendfile", "f") as process:
            wait_for_partial(served)
            kill(process)
        valve.cut()
        wait_until(
            lambda: srv.stderr().count(" failed: ") > seen,
            what="the server to notice",
        )
    assert (served / "f").read_bytes() == OLD
    cli(srv.address, "-sendfile", "f").succeed()
    assert (served / "f").read_bytes() == BIG
    assert names_in(served) == ["f"]


def test_kill_of_the_client_in_mid_download(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    (served / "f").write_bytes(BIG)
    (home / "f").write_bytes(OLD)
    for _ in range(3):
        with (
            Valve(srv.address, down=SOME) as valve,
            cli.start(valve.address, "-download", "f") as process,
        ):
            wait_for_partial(home)
            kill(process)
        assert (home / "f").read_bytes() == OLD
        assert len(partials(home)) == 1
    cli(srv.address, "-download", "f").succeed()
    assert (home / "f").read_bytes() == BIG
    assert names_in(home) == ["f"]


# The disk


def test_server_that_may_not_write_so_much(
    certs: Path, served: Path, home: Path, cli: Cli
) -> None:
    (home / "f").write_bytes(BIG)
    (home / "small").write_bytes(b"small")
    (served / "f").write_bytes(OLD)
    with srv_of(certs, served) as srv:
        limit = (SOME, resource.RLIM_INFINITY)
        resource.prlimit(srv.process.pid, resource.RLIMIT_FSIZE, limit)
        line = cli(srv.address, "-sendfile", "f").error(1)
        assert line.startswith("cannot write 'f': file too large")
        assert (served / "f").read_bytes() == OLD
        cli(srv.address, "-sendfile", "small").succeed()
    assert names_in(served) == ["f", "small"]


def test_client_that_may_not_write_so_much(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    (served / "f").write_bytes(BIG)
    (home / "f").write_bytes(OLD)
    limit = hostile.with_file_limit(SOME)
    with cli.start(srv.address, "-download", "f", preexec=limit) as process:
        line = finish(process).error(6)
    assert line.startswith("cannot write 'f': file too large")
    assert (home / "f").read_bytes() == OLD
    assert names_in(home) == ["f"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "small-disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip("no permission to mount a small file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_upload_to_a_full_disk(
    certs: Path, small_disk: Path, home: Path, cli: Cli
) -> None:
    (home / "f").write_bytes(BIG)
    (small_disk / "f").write_bytes(OLD)
    with srv_of(certs, small_disk) as srv:
        line = cli(srv.address, "-sendfile", "f").error(1)
        assert line == "cannot write 'f': disk full"
        assert names_in(small_disk) == ["f"]
        assert (small_disk / "f").read_bytes() == OLD
        (home / "f").write_bytes(b"this fits")
        cli(srv.address, "-sendfile", "f").succeed()
    assert (small_disk / "f").read_bytes() == b"this fits"


def test_download_and_echo_to_a_full_disk(
    certs: Path, served: Path, small_disk: Path, cli: Cli, home: Path
) -> None:
    (served / "f").write_bytes(BIG)
    (small_disk / "f").write_bytes(OLD)
    (home / "f").write_bytes(BIG)
    with srv_of(certs, served, "-echo") as srv:
        out = ["-o", str(small_disk / "f")]
        line = cli(srv.address, "-download", "f", *out).error(6)
        assert "disk full" in line
        assert names_in(small_disk) == ["f"]
        # The size of an echo is not looked at ahead: this fails in the middle.
        line = cli(srv.address, "-echofile", "f", *out).error(6)
        assert "disk full" in line
        assert names_in(small_disk) == ["f"]
        assert (small_disk / "f").read_bytes() == OLD
        cli(srv.address).succeed()


def test_upload_into_a_read_only_directory(
    certs: Path, served: Path, home: Path, cli: Cli
) -> None:
    (home / "f").write_bytes(b"new")
    (served / "f").write_bytes(OLD)
    (served / "below").mkdir()
    served.chmod(0o555)
    options = ["-s", "127.0.0.1:0", "-readfile", str(served), "-certs", str(certs)]
    with started(
        "srv", *options, cwd=home, preexec=hostile.without_root_powers
    ) as process:
        address = hostile.ready_address(process)
        line = cli(address, "-sendfile", "f").error(1)
        assert line == "cannot write 'f': no permission"
        cli(address, "-sendfile", "f", "--to", "below/f").succeed()
    served.chmod(0o755)
    assert names_in(served) == ["below", "f"]
    assert (served / "f").read_bytes() == OLD


def test_download_into_a_read_only_directory(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    (served / "f").write_bytes(b"new")
    (home / "f").write_bytes(OLD)
    home.chmod(0o555)
    with cli.start(
        srv.address, "-download", "f", preexec=hostile.without_root_powers
    ) as process:
        line = finish(process).error(6)
    home.chmod(0o755)
    assert line == "cannot write 'f': no permission"
    assert names_in(home) == ["f"]
    assert (home / "f").read_bytes() == OLD


# The file changes while it is sent


def shrink(path: Path) -> None:
    os.truncate(path, len(BIG) - 1)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"else")


CHANGES = pytest.mark.parametrize(
    ("change", "verb"), [(shrink, "shrank"), (grow, "grew"), (rewrite, "was changed")]
)


@CHANGES
def test_file_changes_while_it_is_uploaded(
    srv: SrvProcess,
    served: Path,
    home: Path,
    cli: Cli,
    change: Callable[[Path], None],
    verb: str,
) -> None:
    (home / "f").write_bytes(BIG)
    (served / "f").write_bytes(OLD)
    with (
        Valve(srv.address, up=SOME) as valve,
        cli.start(valve.address, "-sendfile", "f") as process,
    ):
        wait_for_partial(served)
        change(home / "f")
        valve.open()
        line = finish(process).error(1)
    assert line == f"'f' {verb} while it was being sent"
    wait_for_names(served, "f")
    assert (served / "f").read_bytes() == OLD


@CHANGES
def test_file_changes_while_it_is_downloaded(
    srv: SrvProcess,
    served: Path,
    home: Path,
    cli: Cli,
    change: Callable[[Path], None],
    verb: str,
) -> None:
    (served / "f").write_bytes(BIG)
    (home / "f").write_bytes(OLD)
    with (
        Valve(srv.address, down=SOME) as valve,
        cli.start(valve.address, "-download", "f") as process,
    ):
        wait_for_partial(home)
        change(served / "f")
        valve.open()
        line = finish(process).error(1)
    assert line == f"'f' {verb} while it was being sent"
    assert names_in(home) == ["f"]
    assert (home / "f").read_bytes() == OLD
    srv.wait_for(f"'f' {verb} while it was being sent")
