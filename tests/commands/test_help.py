"""The help of every command: it works, says what there is, and loads nothing heavy."""

import subprocess
import sys

import click
import pytest
from rpc25519_tools.commands.cli import cli
from rpc25519_tools.commands.completion import completion
from rpc25519_tools.commands.cp import cp
from rpc25519_tools.commands.group import rpc25519
from rpc25519_tools.commands.known import known
from rpc25519_tools.commands.samesame import samesame
from rpc25519_tools.commands.selfy import selfy
from rpc25519_tools.commands.srv import srv

from rpc25519_tools import __version__
from tests.helpers import run_program

COMMANDS: dict[str, click.Command] = {
    "cli": cli,
    "rpc25519": rpc25519,
    "samesame": samesame,
    "selfy": selfy,
    "srv": srv,
}
TOOLS = {name: command for name, command in COMMANDS.items() if name != "rpc25519"}
WITHIN_GROUP = {**TOOLS, "completion": completion, "cp": cp, "known": known}

#: What may be loaded beside the standard library; and what may not be loaded from it,
#: since it takes more than a few milliseconds.
ALLOWED = {"click", "rpc25519_tools"}
TOO_HEAVY = {"asyncio", "concurrent", "email", "http", "logging", "socket", "ssl"}

SHOW_MODULES = """
import sys

before = set(sys.modules)
from rpc25519_tools.commands.{module} import {function}

sys.argv = {words!r}
try:
    {function}()
finally:
    loaded = set(sys.modules) - before
    print(*sorted({{name.partition(".")[0] for name in loaded}}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("name", "option"),
    [
        *((name, "--help") for name in COMMANDS),
        *((name, "-help") for name in TOOLS),
        ("cli", "-h"),
        ("rpc25519", "-h"),
    ],
)
def test_help_of_every_program(name: str, option: str) -> None:
    result = run_program(name, option)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: {name} ")
    for param in COMMANDS[name].params:
        for option_name in param.opts:
            assert option_name in result.stdout


@pytest.mark.parametrize("name", WITHIN_GROUP)
def test_help_of_every_tool_within_the_group(name: str) -> None:
    result = run_program("rpc25519", name, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: rpc25519 {name} ")


def test_group_lists_its_tools_with_their_own_first_lines() -> None:
    context = click.Context(rpc25519)
    shown = run_program("rpc25519", "--help").stdout
    for name in rpc25519.list_commands(context):
        tool = rpc25519.get_command(context, name)
        assert tool is WITHIN_GROUP[name]
        assert tool.help is not None
        assert any(line.split()[:1] == [name] for line in shown.splitlines())
    assert set(rpc25519.list_commands(context)) == set(WITHIN_GROUP)


@pytest.mark.parametrize("name", COMMANDS)
def test_version_of_every_program(name: str) -> None:
    result = run_program(name, "--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{name} of rpc25519-tools {__version__}\n"


@pytest.mark.parametrize(
    ("module", "words"),
    [
        *((name, [name, "--help"]) for name in TOOLS),
        *((name, [name, "--version"]) for name in TOOLS),
        ("group", ["rpc25519", "--help"]),
        *(("group", ["rpc25519", name, "--help"]) for name in WITHIN_GROUP),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_and_version_load_nothing_heavy(module: str, words: list[str]) -> None:
    function = "rpc25519" if module == "group" else module
    code = SHOW_MODULES.format(module=module, function=function, words=words)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = {name for name in result.stderr.split() if not name.startswith("_")}
    assert loaded - set(sys.stdlib_module_names) <= ALLOWED
    assert not loaded & TOO_HEAVY
