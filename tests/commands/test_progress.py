"""Progress and latency figures."""

import re
from pathlib import Path

import pexpect
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rpc25519_tools.commands._latency import latency_summary

from tests.helpers import SrvProcess, program_path, run_program

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture
def served(tmp_path: Path) -> Path:
    directory = tmp_path / "served"
    directory.mkdir()
    (directory / "big.bin").write_bytes(bytes(5 << 20))
    return directory


def test_a_terminal_sees_bytes_rate_and_time_left(
    certs: Path, served: Path, tmp_path: Path
) -> None:
    with SrvProcess("-serve", served, certs=certs) as server:
        arguments = ["-s", server.address, "-certs", str(certs), "-download", "big.bin"]
        child = pexpect.spawn(
            program_path("cli"),
            arguments,
            cwd=str(tmp_path),
            timeout=30,
            encoding="utf-8",
            dimensions=(24, 160),
            env={"TERM": "xterm", "PATH": "/usr/bin:/bin"},
        )
        child.expect(pexpect.EOF)
        child.close()
    assert child.exitstatus == 0
    seen = _ESCAPES.sub("", child.before or "")
    assert "5.0/5.0 MiB" in seen
    assert re.search(r"[\d.]+ ?[kMG]?B/s|\?", seen)
    assert re.search(r"\d:\d\d:\d\d|-:--:--", seen)
    assert "downloaded big.bin: 5242880 bytes (5.0 MiB)" in seen


def test_without_a_terminal_there_is_one_line(
    certs: Path, served: Path, tmp_path: Path
) -> None:
    with SrvProcess("-serve", served, certs=certs) as server:
        done = run_program(
            *("cli", "-s", server.address, "-certs", str(certs)),
            *("-download", "big.bin"),
            cwd=tmp_path,
        )
    assert (done.returncode, done.stdout) == (0, "")
    assert len(done.stderr.splitlines()) == 1


def test_quantiles_are_by_nearest_rank() -> None:
    figures = latency_summary([n / 1e6 for n in range(1000, 0, -1)])
    assert figures == {
        "calls": 1000,
        "min_us": 1.0,
        "p50_us": 500.0,
        "p90_us": 900.0,
        "p99_us": 990.0,
        "p999_us": 999.0,
        "max_us": 1000.0,
    }


@given(st.lists(st.floats(1e-6, 10.0), min_size=1, max_size=50))
def test_quantiles_are_measured_values_in_order(seconds: list[float]) -> None:
    figures = latency_summary(seconds)
    assert figures.pop("calls") == len(seconds)
    values = list(figures.values())
    assert values == sorted(values)
    assert set(values) <= {round(value * 1e6, 1) for value in seconds}
