"""Run one target with many inputs, and keep what goes wrong.

An input is found by (target, seed, number): mutations come from a seeded generator.
Inputs that end in an error never seen before join those that are mutated, so that what
lies behind the first check is reached too; there is no other feedback.
"""

import contextlib
import mmap
import random
import re
import resource
import signal
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tests.fuzz.mutators import mutate
from tests.fuzz.target import Target

#: An input that takes longer than this has found something.
SLOW_S = 2.0
#: How many inputs join the seeds at most, and how many bytes they may have together.
_LEARNT = 300
_LEARNT_LEN = 4 << 20
_DIGITS = re.compile(r"[0-9]+|'.*'")


class SlowError(Exception):
    """One input takes far too long."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An input that must not do what it does."""

    target: str
    number: int
    data: bytes
    error: str


@dataclass(slots=True)
class Report:
    """What came of a run.

    Attributes:
        refused: how many inputs ended in an allowed error.
        grown_bytes: how much the process's memory grew at its peak.
    """

    target: str
    executions: int = 0
    refused: int = 0
    seconds: float = 0.0
    grown_bytes: int = 0
    errors_seen: int = 0
    findings: list[Finding] = field(default_factory=list)


def reset_peak(pid: int | str = "self") -> int:
    """Forget the highest memory use of a process so far; return the use now, in bytes.

    Only Linux can forget; elsewhere peaks count from the start of the process.
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_bytes(pid)


def peak_bytes(pid: int | str = "self") -> int:
    """Return the highest resident memory of a process, in bytes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


class Trace:
    """Keeps the current input in a file, for when the process dies of it."""

    def __init__(self, path: Path, max_len: int) -> None:
        path.write_bytes(bytes(16 + max_len))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def note(self, number: int, data: bytes) -> None:
        self._map[:16] = number.to_bytes(8, "big") + len(data).to_bytes(8, "big")
        self._map[16 : 16 + len(data)] = data

    @staticmethod
    def read(path: Path) -> tuple[int, bytes]:
        noted = path.read_bytes()
        length = int.from_bytes(noted[8:16], "big")
        return int.from_bytes(noted[:8], "big"), noted[16 : 16 + length]


class Watch:
    """Interrupts an input that runs too long; ``number`` is that of the current one."""

    def __init__(self) -> None:
        self.number = -1
        self._seen = -1

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        old = signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, SLOW_S, SLOW_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)

    def _tick(self, _number: int, _frame: FrameType | None) -> None:
        if self.number == self._seen and self.number >= 0:
            self._seen = -1
            raise SlowError(f"one input takes more than {SLOW_S:g} s")
        self._seen = self.number


def try_input(target: Target, data: bytes) -> str | None:
    """Run one input; return the allowed error that it ended in.

    Raises:
        Exception: anything else that it ended in.
    """
    try:
        target.run(data)
    except target.allowed as exc:
        return f"{type(exc).__name__}: {_DIGITS.sub('', str(exc)[:200])}"
    return None


def fuzz(
    target: Target,
    *,
    runs: int,
    seed: int,
    max_findings: int = 5,
    trace: Trace | None = None,
) -> Report:
    """Run a target with all its seeds and then with ``runs`` mutated inputs.

    Args:
        target: what to run.
        runs: how many mutated inputs.
        seed: of the randomness; the same one gives the same inputs.
        max_findings: where to stop.
        trace: told of each input before it is run.
    """
    report = Report(target.name)
    rng = random.Random(f"{seed} {target.name}")
    seeds = [data[: target.max_len] for data in target.seeds()]
    for data in seeds:  # warms up what is loaded and cached once
        _try(target, -1, data, report, set())
    pool = list(seeds)
    seen: set[str] = set()
    room = _LEARNT_LEN
    watch = Watch()
    before = reset_peak()
    began = time.perf_counter()
    with watch.running():
        for number in range(runs):
            data = mutate(rng, rng.choice(pool), pool, target.mutators, target.max_len)
            if trace is not None:
                trace.note(number, data)
            watch.number = number
            learnt = _try(target, number, data, report, seen)
            if learnt and len(pool) < len(seeds) + _LEARNT and len(data) <= room:
                pool.append(data)
                room -= len(data)
            if len(report.findings) >= max_findings:
                break
    report.seconds = time.perf_counter() - began
    report.grown_bytes = max(peak_bytes() - before, 0)
    report.errors_seen = len(seen)
    return report


def _try(
    target: Target, number: int, data: bytes, report: Report, seen: set[str]
) -> bool:
    """Run one input and book it; tell whether it ended as none did before."""
    report.executions += 1
    try:
        error = try_input(target, data)
    except Exception:  # noqa: BLE001  # that is what is looked for
        text = traceback.format_exc()
        report.findings.append(Finding(target.name, number, data, text))
        return False
    if error is None:
        return False
    report.refused += 1
    if error in seen:
        return False
    seen.add(error)
    return True
