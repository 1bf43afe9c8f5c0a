"""Shared by the scripts: a virtual environment with this project installed."""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def require_python() -> None:
    """Stop with one line where Python is too old."""
    if sys.version_info < (3, 11):  # noqa: UP036  # this is where others are told
        version = ".".join(map(str, sys.version_info[:3]))
        sys.exit(
            f"Python 3.11 or newer is needed; this is {version} ({sys.executable})"
        )


def run(*words: str | Path, cwd: Path | None = None) -> None:
    """Run a program; stop with its exit code if it fails."""
    code = subprocess.run(list(map(str, words)), cwd=cwd, check=False).returncode
    if code:
        sys.exit(code if code > 0 else 128 - code)


def make_venv(directory: Path, *requirements: str) -> Path:
    """Make or refresh a virtual environment; return the directory of its programs."""
    programs = directory / "bin"
    stamp = directory / "python-version"
    if not stamp.exists() or stamp.read_text() != sys.version:
        venv.create(directory, clear=True, with_pip=True)
    run(programs / "python", "-m", "pip", "install", "--quiet", *requirements, cwd=ROOT)
    stamp.write_text(sys.version)
    return programs
