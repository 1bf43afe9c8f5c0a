"""The examples of the documentation run, and print what stands below them."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from tests.helpers import issue_certs, run_program

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["docs/tutorial.md", "docs/coming-from.md"]
TIME_LIMIT_S = 30.0

#: Printed by the program where a block of its page ends.
MARK = "---- end of block at line "


@dataclass
class Block:
    """One fenced block.

    Attributes:
        language: what stands behind the opening fence.
        line: the number of its first line in the page.
        lines: what is between the fences.
    """

    language: str
    line: int
    lines: list[str]


def blocks_of(page: str) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    found: list[Block] = []
    inside = False
    for number, line in enumerate(page.splitlines(), start=1):
        if line.startswith("```"):
            inside = not inside
            if inside:
                found.append(Block(line[3:].strip(), number + 1, []))
        elif inside:
            found[-1].lines.append(line)
    assert not inside, "a fence is not closed"
    return found


def program_of(blocks: list[Block]) -> str:
    """Return the blocks as one program whose line numbers are those of the page."""
    lines: list[str] = []
    for block in blocks:
        lines += [""] * (block.line - 1 - len(lines))
        lines += block.lines
        lines.append(f"print({MARK + str(block.line)!r}, flush=True)")
    return "\n".join(lines) + "\n"


def outputs_of(stdout: str) -> dict[int, str]:
    """Return what each block printed, by the number of its first line."""
    outputs: dict[int, str] = {}
    position = 0
    for match in re.finditer(rf"^{MARK}(\d+)\n", stdout, re.MULTILINE):
        outputs[int(match[1])] = stdout[position : match.start()]
        position = match.end()
    assert stdout[position:] == "", "printed after the last block"
    return outputs


def make_keys(blocks: list[Block], directory: Path) -> None:
    """Make keys as the page says, or else those that pages may take for granted."""
    commands = [
        shlex.split(line, comments=True)
        for block in blocks
        if block.language == "sh"
        for line in block.lines
        if line.startswith("selfy ")
    ]
    for program, *args in commands:
        done = run_program(program, *args, cwd=directory)
        assert done.returncode == 0, done.stderr
    if not commands:
        issue_certs(directory, "node", "client")


@pytest.mark.parametrize("name", PAGES)
def test_examples_run_and_print_what_the_page_says(name: str, tmp_path: Path) -> None:
    blocks = blocks_of((ROOT / name).read_text())
    code = [block for block in blocks if block.language == "python"]
    assert code
    make_keys(blocks, tmp_path)
    # Its lines are the lines of the page, so tracebacks point there.
    program = tmp_path / f"{Path(name).stem}.md.py"
    program.write_text(program_of(code))
    done = subprocess.run(
        [sys.executable, "-W", "error", program],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    outputs = outputs_of(done.stdout)
    assert list(outputs) == [block.line for block in code]
    expected = dict.fromkeys(outputs, "")
    for block, following in pairwise(blocks):
        if (block.language, following.language) == ("python", "text"):
            expected[block.line] = "\n".join(following.lines) + "\n"
    assert outputs == expected


def test_api_page_is_fresh() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "docs", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("module", ["", ".blocking", ".greenpack"])
def test_api_page_has_every_public_name(module: str) -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    names = importlib.import_module(f"rpc25519_tools{module}").__all__
    for name in set(names) - {"__version__"}:
        assert f"### {name}\n" in page, name


def test_a_stale_api_page_is_found_and_written_again(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "rpc25519_tools",
        tmp_path / "rpc25519_tools",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (tmp_path / "docs").mkdir()
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "docs"
    shutil.copy(ROOT / "scripts" / "docs", script)

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, script, *args], capture_output=True, text=True, check=False
        )

    checked = run("--check")
    assert (checked.returncode, checked.stderr) == (1, "stale: docs/api.md\n")
    assert run().returncode == 0
    assert run("--check").returncode == 0


@pytest.mark.parametrize("name", PAGES)
def test_every_block_of_a_page_is_of_a_known_language(name: str) -> None:
    blocks = blocks_of((ROOT / name).read_text())
    assert {block.language for block in blocks} <= {"python", "text", "sh", "go"}


@pytest.mark.parametrize("name", [*PAGES, "README.md", "docs/architecture.md"])
def test_every_document_that_a_page_names_exists(name: str) -> None:
    page = (ROOT / name).read_text()
    for target in re.findall(r"`((?:docs|scripts)/[\w./-]+)`", page):
        assert (ROOT / target).exists(), target
