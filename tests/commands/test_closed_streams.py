"""Programs whose standard input, output or errors were closed by who started them."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import SrvProcess, program_path


def closing(*descriptors: int) -> Callable[[], None]:
    def close() -> None:
        for one in descriptors:
            os.close(one)

    return close


def run(
    cwd: Path, closed: tuple[int, ...], name: str, *words: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [program_path(name), *words],
        cwd=cwd,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=30,
        preexec_fn=closing(*closed),
    )


@pytest.fixture
def srv(tmp_path: Path) -> Iterator[SrvProcess]:
    served = tmp_path / "served"
    served.mkdir()
    (served / "f").write_bytes(b"content")
    with SrvProcess("-tcp", "-serve", served, "-readfile", served) as running:
        yield running


def test_what_would_be_printed_is_lost_and_nothing_else(
    tmp_path: Path, srv: SrvProcess
) -> None:
    to_srv = ["-s", srv.address, "-tcp"]
    got = tmp_path / "f"
    for closed in ((1,), (0, 1), (0, 1, 2)):
        done = run(tmp_path, closed, "cli", *to_srv, "-download", "f")
        assert done.returncode == 0, done.stderr
        assert got.read_bytes() == b"content"
        got.unlink()
    done = run(tmp_path, (1,), "srv", "-tcp", "-s", "127.0.0.1:0", "-sec", "1")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_a_failure_is_told_as_always(tmp_path: Path) -> None:
    done = run(tmp_path, (1,), "cli", "-s", "127.0.0.1:1", "-tcp")
    assert done.returncode == 3
    assert "nobody listens there" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("closed", "words", "text"),
    [
        (0, ["-sendfile", "-", "--to", "x"], "cannot read 'standard input'"),
        (1, ["-download", "f", "-o", "-"], "cannot write 'standard output'"),
    ],
)
def test_a_file_cannot_go_through_a_closed_stream(
    tmp_path: Path, srv: SrvProcess, closed: int, words: list[str], text: str
) -> None:
    done = run(tmp_path, (closed,), "cli", "-s", srv.address, "-tcp", *words)
    assert done.returncode == 6
    assert done.stderr.splitlines()[-1] == f"cli: {text}: it is closed"
    assert not (tmp_path / "served" / "x").exists()
