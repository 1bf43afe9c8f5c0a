"""Completion in real shells, as installed and as evaluated; and its scripts."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from rpc25519_tools.commands.completion import PROGRAMS, SHELLS

ROOT = Path(__file__).resolve().parents[2]
COMPLETIONS = ROOT / "completions"
PATIENCE_S = 20


def _environment() -> dict[str, str]:
    scripts = sysconfig.get_path("scripts")
    return {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "LANG": "C.UTF-8",
        "TERM": "xterm",
        "HOME": os.devnull,
    }


def need_shell(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


class Shell:
    """An interactive shell on a pseudo-terminal."""

    def __init__(self, command: str, args: list[str], cwd: Path) -> None:
        self._child = pexpect.spawn(
            command,
            args,
            cwd=str(cwd),
            env=_environment(),
            encoding="utf-8",
            timeout=PATIENCE_S,
            dimensions=(40, 250),
            echo=False,
        )

    def run(self, line: str) -> None:
        """Type a command and wait for its end."""
        # In two pieces, so that the typed command is not taken for its output.
        self._child.sendline(f"{line}\necho do''ne")
        self._child.expect_exact("done")

    def words_after_tab(self, typed: str) -> str:
        """Type, press TAB and Enter; return the words that the program would get.

        In place of the program runs a shell function, which completion does not call.
        """
        program = typed.partition(" ")[0]
        self.run(f"{program}() {{ echo wo''rds: \"$*\" :en''d; }}")
        self._child.send(f"{typed}\t\r")
        self._child.expect(r"words: (.*) :end")
        match = self._child.match
        assert isinstance(match, re.Match)
        return str(match[1])

    def close(self) -> None:
        self._child.close(force=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "only-file.bin").write_bytes(b"x")
    (tmp_path / "only dir").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "only-file.bin").write_bytes(b"x")
    (tmp_path / "work" / "some-directory").mkdir()
    return tmp_path / "work"


@pytest.fixture
def bash(folder: Path) -> Iterator[Shell]:
    shell = Shell(need_shell("bash"), ["--norc", "--noprofile", "-i"], folder)
    shell.run("bind 'set bell-style none'; bind 'set enable-bracketed-paste off'")
    yield shell
    shell.close()


@pytest.fixture
def zsh(folder: Path) -> Iterator[Shell]:
    shell = Shell(need_shell("zsh"), ["-f", "-i"], folder)
    shell.run("unsetopt beep")
    yield shell
    shell.close()


#: What is typed before TAB, and the words that come of it.
TABS = [
    ("cli -down", "-download"),
    ("cli --down", "--download"),
    ("cli -sendfile on", "-sendfile only-file.bin"),
    ("cli --sendfile=on", "--sendfile=only-file.bin"),
    ("cli -press l", "-press lz4"),
    ("cli -press=l", "-press=lz4"),
    ("cli -press zstd:1", "-press zstd:11"),
    ("cli -tcp --press=zstd:1", "-tcp --press=zstd:11"),
    ("srv -readf", "-readfile"),
    ("srv -certs so", "-certs some-directory/"),
    ("selfy --verif", "--verify"),
    ("selfy stat", "status"),
    ("selfy renew --da", "renew --days"),
    ("rpc25519 same", "samesame"),
    ("rpc25519 cli -echof", "cli -echofile"),
    ("rpc25519 completion z", "completion zsh"),
]


#: Enough of them to tell that a script was loaded at all, and works twice.
FEW_TABS = [TABS[0], TABS[3], TABS[-2]]

COMPINIT = "autoload -Uz compinit; compinit -u -D"


def after_tabs(shell: Shell, tabs: list[tuple[str, str]]) -> dict[str, str]:
    return {typed: shell.words_after_tab(typed) for typed, _ in tabs}


def test_options_codecs_and_files_complete_in_bash(bash: Shell) -> None:
    for program in PROGRAMS:
        bash.run(f". '{COMPLETIONS}/bash/{program}'")
    assert after_tabs(bash, TABS) == dict(TABS)


def test_bash_can_evaluate_the_completion_command(bash: Shell) -> None:
    bash.run('eval "$(rpc25519 completion bash)"')
    assert after_tabs(bash, FEW_TABS) == dict(FEW_TABS)


def test_options_codecs_and_files_complete_in_zsh(zsh: Shell) -> None:
    zsh.run(f"fpath=('{COMPLETIONS}/zsh' $fpath); {COMPINIT}")
    # At Enter zsh takes away the slash that completion put behind a directory.
    expected = {typed: words.rstrip("/") for typed, words in TABS}
    assert after_tabs(zsh, TABS) == expected


def test_zsh_can_evaluate_the_completion_command(zsh: Shell) -> None:
    zsh.run(f'{COMPINIT}; eval "$(rpc25519 completion zsh)"')
    assert after_tabs(zsh, FEW_TABS) == dict(FEW_TABS)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("cli -downl", ["-download"]),
        ("cli --downl", ["--download"]),
        ("cli -press zstd:0", ["zstd:01", "zstd:03", "zstd:07"]),
        ("cli -sendfile on", ["only-file.bin"]),
        ("rpc25519 sam", ["samesame"]),
    ],
)
def test_options_codecs_and_files_complete_in_fish(
    folder: Path, typed: str, offered: list[str]
) -> None:
    fish = need_shell("fish")
    program = typed.partition(" ")[0]
    script = f"source {COMPLETIONS}/fish/{program}.fish; complete -C '{typed}'"
    result = subprocess.run(
        [fish, "--no-config", "-c", script],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == offered


def test_every_script_is_fresh() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "completions", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_every_program_has_a_script_for_every_shell() -> None:
    present = {
        (path.parent.name, path.name.removeprefix("_").removesuffix(".fish"))
        for path in COMPLETIONS.rglob("*")
        if path.is_file()
    }
    assert present == {(shell, name) for shell in SHELLS for name in PROGRAMS}


def test_check_reports_a_stale_script(tmp_path: Path) -> None:
    copy = tmp_path / "scripts" / "completions"
    copy.parent.mkdir()
    shutil.copy(ROOT / "scripts" / "completions", copy)
    shutil.copytree(COMPLETIONS, tmp_path / "completions")
    with (tmp_path / "completions" / "zsh" / "_cli").open("a") as file:
        file.write("# changed\n")
    (tmp_path / "completions" / "bash" / "srv").unlink()
    (tmp_path / "completions" / "fish" / "gone.fish").write_text("")

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, copy, *args], capture_output=True, text=True, check=False
        )

    checked = run("--check")
    assert checked.returncode == 1
    assert checked.stderr.splitlines() == [
        "stale: completions/bash/srv",
        "stale: completions/fish/gone.fish",
        "stale: completions/zsh/_cli",
    ]
    assert run().returncode == 0
    assert run("--check").returncode == 0
