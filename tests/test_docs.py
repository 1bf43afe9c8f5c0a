"""What the documentation says is so."""

import re
import subprocess
import sys
from pathlib import Path

import click
from rpc25519_tools.commands._errors import EXIT_CODES
from rpc25519_tools.commands.group import LazyGroup, rpc25519

from tests.helpers import SrvProcess

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_readme_has_the_exit_code_table() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (.+) \|$", README, re.MULTILINE)
    expected = [(str(row.code), row.name, row.meaning) for row in EXIT_CODES]
    assert sorted(rows, key=lambda row: int(row[0])) == sorted(
        expected, key=lambda row: int(row[0])
    )


def test_every_option_in_the_readme_exists() -> None:
    assert isinstance(rpc25519, LazyGroup)
    known = {"version", "help"}
    for name in ("cli", "samesame", "selfy", "srv"):
        command = rpc25519.get_command(rpc25519.make_context("x", ["cli"]), name)
        assert command is not None
        words = command.commands.values() if isinstance(command, click.Group) else ()
        for one in (command, *words):
            known |= {opt.lstrip("-") for param in one.params for opt in param.opts}
    block = README.split("## Use")[1].split("## Completion")[0]
    used = set(re.findall(r"(?<![\w-])--?([a-z][a-z-]*)\b", block))
    assert used - known == set()
    assert len(used) > 15


def test_library_example_of_the_readme_runs(certs: Path, tmp_path: Path) -> None:
    block = README.split("## As a library")[1].split("`docs/")[0]
    code = "\n".join(line[4:] for line in block.splitlines() if line[:4] == "    ")
    with SrvProcess(certs=certs) as server:
        assert "127.0.0.1:8443" in code
        code = code.replace("127.0.0.1:8443", server.address)
        (tmp_path / "certs").symlink_to(certs)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
        )
    assert done.stdout.startswith('b"hello\\n with time customEcho sees this: ')
