"""Fuzz one target with feedback from coverage, by atheris; run by ``scripts/fuzz``.

It sees which lines of this package an input reaches, and keeps what reaches new ones;
mutations are ours and libFuzzer's in turn. It sees nothing of the native libraries, and
runs a tenth of the inputs that the plain harness does in the same time, so that it is
for what is decoded in Python: messages, records, S2 repeats, key files.
"""

import contextlib
import random
import sys
import warnings
from pathlib import Path

import atheris  # type: ignore[import-untyped]  # only scripts/fuzz --guided has it


def main(name: str, runs: int, out: Path) -> None:
    """Fuzz one target; libFuzzer ends the process, and tells of what it found."""
    warnings.simplefilter("ignore", UserWarning)
    with atheris.instrument_imports(include=["rpc25519_tools"]):
        from tests.fuzz.mutators import mutate
        from tests.fuzz.target import all_targets

        target = all_targets()[name]
    seeds = [data[: target.max_len] for data in target.seeds()]

    def run_one(data: bytes) -> None:
        with contextlib.suppress(*target.allowed):
            target.run(data)

    def change(data: bytes, max_len: int, seed: int) -> bytes:
        if seed % 3 == 0:
            mutated: bytes = atheris.Mutate(data, max_len)
            return mutated
        rng = random.Random(seed)
        return mutate(rng, bytes(data), seeds, target.mutators, max_len)

    # libFuzzer ends the process and leaves what it has learnt for the next run.
    corpus = out / f"corpus-{name.replace(':', '-')}"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    atheris.Setup(
        [
            *("fuzz", str(corpus), f"-runs={runs}", f"-max_len={target.max_len}"),
            *("-timeout=10", "-print_final_stats=1"),
            f"-artifact_prefix={out}/{name.replace(':', '-')}-",
        ],
        run_one,
        custom_mutator=change,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path("fuzz-findings"))
