"""Record what rsync's dry run says of many small trees and options.

Usage, with rsync installed, from the project's folder::

    python -m tests.sync.record_rsync

It writes ``tests/data/rsync/*.json`` anew. The cases are the tables of
``rsync_tables.py`` and the trees of ``rsync_random.py``. With the same rsync two runs
write the same lines; only where deletions stand among the others depends on how fast
its two processes are.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import structs

from tests.sync.rsync_cases import DATA, Case, build, rsync_command
from tests.sync.rsync_random import random_cases
from tests.sync.rsync_tables import TABLES

_TIMEOUT_S = 20.0


def record(case: Case, folder: Path) -> Case:
    """Build a case in an empty folder, run rsync; return the case with what it said."""
    build(case, folder)
    done = subprocess.run(
        rsync_command(case),
        cwd=folder,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    return structs.replace(
        case,
        lines=_lines(done.stdout, folder),
        errors=_lines(done.stderr, folder),
        exit_code=done.returncode,
    )


def _lines(printed: bytes, folder: Path) -> tuple[str, ...]:
    text = printed.decode("ascii").replace(f"{folder}/", "")
    return tuple(text.removesuffix("\n").split("\n")) if text else ()


def write(name: str, cases: Sequence[Case]) -> None:
    """Record cases and write them to a file, one a line."""
    recorded = []
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            recorded.append(record(case, Path(folder)))
    lines = b",\n".join(msgspec.json.encode(case) for case in recorded)
    (DATA / f"{name}.json").write_bytes(b"[\n%s\n]\n" % lines)
    sys.stdout.write(f"{name}: {len(recorded)} cases\n")


def main() -> None:
    DATA.mkdir(exist_ok=True)
    for name, cases in TABLES.items():
        write(name, cases)
    write("random", random_cases())


if __name__ == "__main__":
    main()
