"""The wheel and the sdist build, hold everything, install, and their programs start."""

import re
import shutil
import subprocess
import sys
import sysconfig
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


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with the wheel and what it needs."""
    top = tmp_path_factory.mktemp("installed")
    venv.create(top, with_pip=False)
    (site,) = top.glob("lib/python*/site-packages")
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return top / "bin" / "python"


def check_types(program: Path, python: Path) -> subprocess.CompletedProcess[str]:
    """Run mypy with its strict settings, and no others, as a user would."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file="),
            *("--python-executable", python, "--cache-dir", program.parent / "cache"),
            program,
        ],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=program.parent,
        check=False,
    )


def test_a_users_program_passes_the_type_checker_and_runs(
    installed: Path, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    shutil.copy(ROOT / "tests" / "typed_program.py", program)
    checked = check_types(program, installed)
    assert checked.stdout == "Success: no issues found in 1 source file\n"
    done = subprocess.run(
        [installed, "-W", "error", program],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "all is well\n", "")


def test_a_users_mistakes_are_found_by_the_type_checker(
    installed: Path, tmp_path: Path
) -> None:
    text = (ROOT / "tests" / "typed_program.py").read_text()
    marks = re.findall(r"  # type: ignore\[([\w-]+)\].*", text)
    program = tmp_path / "program.py"
    program.write_text(re.sub(r"  # type: ignore\[[\w-]+\].*", "", text))
    found = re.findall(
        r": error: .*\[([\w-]+)\]$",
        check_types(program, installed).stdout,
        re.MULTILINE,
    )
    assert sorted(found) == sorted(marks)
    assert len(marks) == 9
