"""A log that cannot be written costs nobody a transfer."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers import program_path, run_program, wait_until


@pytest.mark.parametrize("log", ["full disk", "closed pipe"])
def test_srv_serves_without_its_log(log: str, certs: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    (tmp_path / "f").write_bytes(b"content")
    if log == "full disk":
        stderr = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, stderr = os.pipe()
        os.close(reading)
    ready = tmp_path / "ready"
    with ready.open("wb") as stdout:
        server = subprocess.Popen(
            [
                *(program_path("srv"), "-s", "127.0.0.1:0", "-certs", certs),
                *("-readfile", served, "-v"),
            ],
            stdout=stdout,
            stderr=stderr,
        )
    os.close(stderr)
    try:
        wait_until(lambda: b"listening" in ready.read_bytes())
        address = ready.read_text().split()[3]
        for name in ("one", "two"):
            done = run_program(
                *(
                    "cli",
                    "-s",
                    address,
                    "-certs",
                    certs,
                    "-sendfile",
                    "f",
                    "--to",
                    name,
                ),
                cwd=tmp_path,
            )
            assert done.returncode == 0, done.stderr
            assert (served / name).read_bytes() == b"content"
    finally:
        server.terminate()
        assert server.wait(20) == 0


def test_srv_logs_a_name_of_any_length_in_one_short_line(
    certs: Path, tmp_path: Path
) -> None:
    from tests.helpers import SrvProcess

    with SrvProcess("-serve", tmp_path, certs=certs) as server:
        done = run_program(
            *("cli", "-s", server.address, "-certs", certs),
            *("-download", "\\n" * 40_000, "-o", tmp_path / "got"),
        )
        assert done.returncode == 1
        lines = server.stderr().splitlines()
    assert max(map(len, lines)) < 2000
