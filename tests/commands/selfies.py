"""What tests of selfy share: runs of it, on a terminal too."""

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pexpect
from click.testing import CliRunner, Result
from rpc25519_tools.commands.selfy import selfy

# selfy as a program of its own, with a cheap key derivation.
PROGRAM = """
import sys
from rpc25519_tools.identity import keyfile
keyfile.DEFAULT_KDF = keyfile.KdfParameters(
    memory_kib=8, iterations=1, threads=1, key_len=32
)
from rpc25519_tools.commands.selfy import selfy
selfy(prog_name="selfy")
"""


def run(*words: str, code: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(selfy, words, input=stdin)
    assert result.exit_code == code, result.output
    if code:
        assert "selfy: " in result.stderr
    assert "Traceback" not in result.output
    return result


def tree(directory: str = ".") -> list[str]:
    return sorted(str(path) for path in Path(directory).rglob("*") if path.is_file())


ALL_FILES = [
    *("certs/ca.crt", "certs/node.crt", "certs/node.key"),
    *("my-keep-private-dir/ca.crt", "my-keep-private-dir/ca.key"),
]


def program(*words: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, *words]


@contextlib.contextmanager
def on_a_terminal(*words: str) -> Iterator["pexpect.spawn[str]"]:
    with warnings.catch_warnings():
        # forkpty warns if another test left a thread behind.
        warnings.simplefilter("ignore", DeprecationWarning)
        command, *arguments = program(*words)
        child = pexpect.spawn(command, arguments, timeout=10, encoding="utf-8")
    child.logfile_read = io.StringIO()
    try:
        yield child
    finally:
        child.close(force=True)


def finish(child: "pexpect.spawn[str]") -> tuple[int | None, str]:
    """Wait for the end; return the exit code and all that was shown."""
    child.expect(pexpect.EOF)
    child.close()
    assert isinstance(child.logfile_read, io.StringIO)
    return child.exitstatus, child.logfile_read.getvalue()


def answer(child: "pexpect.spawn[str]", prompt: str, phrase: str) -> None:
    child.expect_exact(prompt)
    child.waitnoecho(5)
    child.sendline(phrase)
