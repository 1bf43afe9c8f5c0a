"""Transfers and echo calls over QUIC beside the same over TLS."""

import contextlib
import json
import os
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from _timing import timed

MIB = 1 << 20
BENCH = Path(__file__).resolve().parent
ECHO_CALLS = 2000


@dataclass(frozen=True)
class Way:
    """How ``cli`` and ``srv`` are run, and with which options."""

    name: str
    cli: list[str]
    srv: list[str]


def ways(programs: Path) -> list[Way]:
    """Return QUIC, TLS, and QUIC with datagrams of 1452 bytes."""
    narrow = [str(programs / "python"), str(BENCH / "_narrow.py")]
    cli, srv = str(programs / "cli"), str(programs / "srv")
    return [
        Way("QUIC", [cli, "-q"], [srv, "-q"]),
        Way("TLS", [cli], [srv]),
        Way(
            "QUIC, 1452-byte datagrams", [*narrow, "cli", "-q"], [*narrow, "srv", "-q"]
        ),
    ]


def run(top: Path, programs: Path, *, size_mib: int, runs: int) -> None:
    """Measure; the directory ``top`` has the keys and is empty otherwise.

    Runs alternate between the ways, so that all meet the same machine.
    """
    path = top / "random.bin"
    with path.open("wb") as file:
        for _ in range(size_mib):
            file.write(os.urandom(MIB))
    served = top / "served"
    with contextlib.ExitStack() as stack:
        known = [
            (way, stack.enter_context(_served(way, top))) for way in ways(programs)
        ]
        print(f"{'measurement':44} {'median':>10} {'cli MB':>8}", flush=True)
        for operation in ("upload", "download"):
            results: dict[str, list[tuple[float, float]]] = {}
            for _ in range(runs):
                for way, address in known:
                    target = _target(top, served, path, operation)
                    words = [*way.cli, "-s", address, "-quiet", "-big"]
                    words += ["-certs", str(top / "certs")]
                    words += _operation(path, target, operation)
                    results.setdefault(way.name, []).append(timed(words))
                    if subprocess.run(["cmp", path, target], check=False).returncode:
                        raise SystemExit(f"{operation} over {way.name}: copies differ")
            for name, figures in results.items():
                rate = (
                    path.stat().st_size / 1e6 / statistics.median(s for s, _ in figures)
                )
                memory = max(megabytes for _, megabytes in figures)
                print(
                    f"{operation + ', ' + name:44} {rate:5.0f} MB/s {memory:8.0f}",
                    flush=True,
                )
        _measure_echo(known, top, runs)


def _target(top: Path, served: Path, path: Path, operation: str) -> Path:
    """Return where the copy will be; for a download, put the original in place."""
    target = served / path.name if operation == "upload" else top / "fetched"
    target.unlink(missing_ok=True)
    source = served / path.name
    if operation == "download" and not source.exists():
        os.link(path, source)
    return target


def _operation(path: Path, target: Path, operation: str) -> list[str]:
    if operation == "upload":
        return ["-sendfile", str(path)]
    return ["-download", path.name, "-o", str(target)]


def _measure_echo(known: Sequence[tuple[Way, str]], top: Path, runs: int) -> None:
    """Print the median of the medians of echo calls, one after another."""
    medians: dict[str, list[float]] = {}
    for _ in range(runs):
        for way, address in known:
            words = [*way.cli, "-s", address, "-json", "-n", str(ECHO_CALLS)]
            words += ["-certs", str(top / "certs")]
            answer = json.loads(subprocess.check_output(words, text=True))
            medians.setdefault(way.name, []).append(answer["p50_us"])
    for name, figures in medians.items():
        print(f"{'echo call, ' + name:44} {statistics.median(figures):7.0f} us p50")


@contextlib.contextmanager
def _served(way: Way, top: Path) -> Iterator[str]:
    words = [*way.srv, "-s", "127.0.0.1:0", "-serve", "served", "-readfile", "served"]
    with subprocess.Popen(
        [*words, "-quiet"], cwd=top, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[3]
        finally:
            server.terminate()
