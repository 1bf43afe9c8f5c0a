"""Every fuzz target for a moment; ``scripts/fuzz`` runs them for long."""

import random
from pathlib import Path
from types import ModuleType

import pytest

from rpc25519_tools.errors import DecodeError
from tests.fuzz.grammars import DER, FRAMES, GREENPACK, objects, parse_der, write_der
from tests.fuzz.identity_targets import TARGETS as IDENTITY
from tests.fuzz.identity_targets import run_signed
from tests.fuzz.mutators import TEXT, mutate
from tests.fuzz.runner import SlowError, Trace, fuzz, try_input
from tests.fuzz.target import Target, all_targets, targets_of
from tests.fuzz.wire_targets import TARGETS as WIRE

#: Some tenths of a second for each target.
RUNS = 1500
#: For functions that are targets by themselves, and may do more for each input.
RUNS_OF_FUNCTIONS = 300
#: A run may keep this much: what libraries cache, and the allocator's slack.
MEMORY_BYTES = 64 << 20

TARGETS = all_targets()


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_taken(name: str) -> None:
    """At least some of what the mutations begin with is in order."""
    target = TARGETS[name]
    seeds = target.seeds()
    assert seeds
    verdicts = [try_input(target, data[: target.max_len]) for data in seeds]
    if target in (*WIRE, *IDENTITY):
        assert None in verdicts, verdicts


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_bytes_end_in_errors_of_ours(name: str) -> None:
    runs = RUNS_OF_FUNCTIONS if ":" in name else RUNS
    report = fuzz(TARGETS[name], runs=runs, seed=1, max_findings=1)
    for finding in report.findings:
        pytest.fail(f"input {finding.data!r} of {name}:\n{finding.error}")
    assert report.executions >= runs
    assert report.grown_bytes < MEMORY_BYTES


def test_most_targets_refuse_for_many_reasons() -> None:
    """The mutations get behind the first checks."""
    report = fuzz(TARGETS["signed-certificate"], runs=RUNS, seed=2)
    assert report.errors_seen >= 5
    assert 0 < report.refused < report.executions


# The harness itself.


def defective(data: bytes) -> None:
    if data.startswith(b"B"):
        raise KeyError("a defect")
    if data.startswith(b"C"):
        raise DecodeError("refused")


def make(run: "object" = defective) -> Target:
    return Target(name="defective", run=run, seeds=lambda: [b"Ab"])  # type: ignore[arg-type]


def test_a_defect_is_found_and_can_be_repeated() -> None:
    report = fuzz(make(), runs=5000, seed=3, max_findings=1)
    (finding,) = report.findings
    assert finding.data.startswith(b"B")
    assert "KeyError: 'a defect'" in finding.error
    assert report.refused
    again = fuzz(make(), runs=5000, seed=3, max_findings=1)
    assert again.findings[0].data == finding.data
    with pytest.raises(KeyError):
        try_input(make(), finding.data)


def test_functions_of_a_module_are_targets() -> None:
    module = ModuleType("tests.fuzz.sample_targets")
    code = """
SEEDS = (b"seed",)
def one(data: bytes) -> None: ...
def _two(data: bytes) -> None: ...
def three(data: bytes, more: int) -> None: ...
def four(text: str) -> None: ...
"""
    exec(code, vars(module))
    (target,) = targets_of(module)
    assert target.name == "sample:one"
    assert target.seeds() == (b"seed",)


def test_an_endless_input_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.runner.SLOW_S", 0.05)

    def endless(data: bytes) -> None:
        while data != b"Ab":
            pass

    report = fuzz(make(endless), runs=5, seed=1, max_findings=1)
    assert SlowError.__name__ in report.findings[0].error


def test_the_last_input_survives_the_process(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace", 100)
    trace.note(7, b"first and longer")
    trace.note(8, b"second")
    assert Trace.read(tmp_path / "trace") == (8, b"second")


@pytest.mark.parametrize("mutators", [FRAMES, GREENPACK, DER, TEXT])
def test_mutators_take_anything(mutators: "tuple[object, ...]") -> None:
    rng = random.Random(4)
    pool = [b"", b"\0", b"\x81\xa1a\x01", bytes(40), rng.randbytes(100)]
    lengths = set()
    for _ in range(2000):
        data = mutate(rng, rng.choice(pool), pool, mutators, 500)  # type: ignore[arg-type]
        lengths.add(len(data))
        assert len(data) <= 500
    assert len(lengths) > 20


def test_objects_of_greenpack_are_found() -> None:
    data = bytes.fromhex("82a16101a16292c0c403") + b"abc"
    spans = [(start, end) for start, _, end in objects(data)]
    assert spans == [(0, 1), (1, 3), (3, 4), (4, 6), (6, 7), (7, 8), (8, 13)]


def test_der_is_written_as_it_was_read() -> None:
    for target in IDENTITY:
        if target.run is run_signed or target.name == "certificate":
            for seed in target.seeds():
                assert write_der(parse_der(seed)) == seed
