"""The wheel and the sdist build, hold everything, install, and their programs start."""

import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from rpc25519_tools import __version__

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("cli", "rpc25519", "samesame", "selfy", "srv")
TIMEOUT_S = 240


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both from a copy, so that no earlier build can lend it a file."""
    top = tmp_path_factory.mktemp("packaging")
    source = top / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("rpc25519_tools", "commands"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    out = top / "dist"
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source],
        check=True,
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    return out


def modules_in_source() -> set[str]:
    found = {
        f"rpc25519_tools/{path.relative_to(ROOT / 'rpc25519_tools')}"
        for path in (ROOT / "rpc25519_tools").rglob("*.py")
    }
    return found | {
        f"rpc25519_tools/commands/{path.name}"
        for path in (ROOT / "commands").glob("*.py")
    }


def test_wheel_holds_every_module_and_nothing_at_the_top(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert modules_in_source() == {name for name in names if name.endswith(".py")}
    assert "rpc25519_tools/py.typed" in names
    assert {name.split("/")[0] for name in names} == {
        "rpc25519_tools",
        f"rpc25519_tools-{__version__}.dist-info",
    }


def test_sdist_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    subprocess.run(
        [
            *(sys.executable, "-m", "build", "--wheel", "--no-isolation"),
            *("--outdir", tmp_path / "again", unpacked),
        ],
        check=True,
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    (wheel,) = (tmp_path / "again").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert modules_in_source() == {name for name in names if name.endswith(".py")}


def test_wheel_installs_into_a_fresh_environment_and_its_programs_start(
    built: Path, tmp_path: Path
) -> None:
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    subprocess.run(
        [programs / "python", "-m", "pip", "install", "--quiet", wheel],
        check=True,
        timeout=TIMEOUT_S,
    )
    for name in PROGRAMS:
        done = subprocess.run(
            [programs / name, "--version"],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
        )
        assert done.stdout == f"{name} of rpc25519-tools {__version__}\n"
