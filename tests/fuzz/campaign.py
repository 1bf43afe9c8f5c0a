"""Run many inputs in processes of their own, and tell what was found."""

import argparse
import concurrent.futures
import multiprocessing
import sys
import time
import warnings
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tests.fuzz.runner import Finding, Report, Trace, fuzz, try_input
from tests.fuzz.target import all_targets

#: Inputs of one process before another one takes over.
_JOB_RUNS = 100_000


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("--target", action="append", metavar="NAME", help="only these")
    parser.add_argument("--runs", type=int, help="inputs for each target, or in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input")
    parser.add_argument("--live", action="store_true", help="attack running servers")
    parser.add_argument("--way", action="append", help="with --live: tls, tcp, ...")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args(words)
    targets = all_targets()
    unknown = set(options.target or ()) - set(targets)
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}; see --list")
    if options.list:
        say("\n".join(targets))
        return 0
    if options.live:
        from tests.fuzz.live import run_live

        return run_live(
            runs=options.runs or 100_000, seed=options.seed, ways=options.way, say=say
        )
    chosen = options.target or list(targets)
    if options.replay:
        return replay(chosen[0], options.replay)
    runs = 100_000 if options.runs is None else options.runs
    return run_all(chosen, runs, options.seed, options.processes, options.out)


def replay(name: str, path: Path) -> int:
    """Run one input; whatever it raises, beyond what it may, is shown."""
    error = try_input(all_targets()[name], path.read_bytes())
    say(f"{name}: {error or 'accepted'}")
    return 0


def run_all(names: list[str], runs: int, seed: int, processes: int, out: Path) -> int:
    """Run all targets in processes of their own; return the exit code."""
    out.mkdir(parents=True, exist_ok=True)
    jobs = [
        (name, min(_JOB_RUNS, runs - start), seed + start // _JOB_RUNS)
        for name in names
        for start in range(0, max(runs, 1), _JOB_RUNS)
    ]
    began = time.perf_counter()
    reports: dict[str, list[Report]] = {name: [] for name in names}
    with concurrent.futures.ThreadPoolExecutor(processes) as threads:
        for report in threads.map(lambda job: run_job(job, out), jobs):
            reports[report.target].append(report)
            for finding in report.findings:
                tell(finding, out)
    say(
        f"{'target':20} {'inputs':>10} {'refused':>8} {'per s':>8} {'errors':>6} memory"
    )
    for name, parts in reports.items():
        summary(name, parts)
    findings = sum(len(part.findings) for parts in reports.values() for part in parts)
    total = sum(part.executions for parts in reports.values() for part in parts)
    seconds = time.perf_counter() - began
    say(f"{total} inputs in {seconds:.0f} s, {findings} findings")
    return 1 if findings else 0


def run_job(job: tuple[str, int, int], out: Path) -> Report:
    """Run one target in a fresh process, which may die of it."""
    name, runs, seed = job
    trace = out / f".{name.replace(':', '-')}-{seed}"
    Trace(trace, 0)  # to be there, even if the process does not get so far
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_in_process, name, runs, seed, trace).result()
        except BrokenProcessPool:
            number, data = Trace.read(trace)
            report = Report(name, executions=number)
            report.findings.append(Finding(name, number, data, "the process died"))
            return report
        finally:
            trace.unlink(missing_ok=True)


def _in_process(name: str, runs: int, seed: int, trace: Path) -> Report:
    # As commands do; where the tests run targets, warnings are errors.
    warnings.simplefilter("ignore", UserWarning)
    target = all_targets()[name]
    return fuzz(target, runs=runs, seed=seed, trace=Trace(trace, target.max_len))


def tell(finding: Finding, out: Path) -> None:
    """Write a failing input to a file; say what happened and how to repeat it."""
    stem = f"{finding.target.replace(':', '-')}-{finding.number}"
    path = out / stem
    path.write_bytes(finding.data)
    say(f"FINDING in {finding.target}, {len(finding.data)} bytes, {path}")
    say("    " + finding.error.strip().replace("\n", "\n    "))
    say(f"    scripts/fuzz --target {finding.target} --replay {path}")


def summary(name: str, parts: list[Report]) -> None:
    executions = sum(part.executions for part in parts)
    refused = sum(part.refused for part in parts) / max(executions, 1)
    rate = executions / max(sum(part.seconds for part in parts), 1e-9)
    grown = max(part.grown_bytes for part in parts) / (1 << 20)
    errors = max(part.errors_seen for part in parts)
    say(
        f"{name:20} {executions:10} {refused:8.1%} {rate:8.0f} {errors:6} "
        f"{grown:.1f} MB"
    )
