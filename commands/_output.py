"""Talk and data: standard error is for people, standard output for programs.

`Talk` writes lines for people and honours ``--quiet``; results go to standard output
by `click.echo`. Anything that came from a peer, a file or the file system goes through
`printable` first.
"""

import contextlib
from dataclasses import dataclass

import click

from rpc25519_tools.identity.printable import printable

__all__ = ["Talk", "human_bytes", "path_text", "printable", "text_fields"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """Says things to people, on standard error.

    Attributes:
        prog: the command's name, which begins warnings.
        quiet: drop what `say` says; warnings are always shown.
    """

    prog: str
    quiet: bool = False

    def say(self, text: str) -> None:
        """Write a line unless quiet; control characters are escaped."""
        if not self.quiet:
            _write(printable(text))

    def warn(self, text: str) -> None:
        """Write a warning line, quiet or not; control characters are escaped."""
        _write(f"{self.prog}: warning: {printable(text)}")


def _write(line: str) -> None:
    """Write to standard error; where that is a full disk or a closed pipe, nowhere.

    What is said here is for people. That nobody can be told is no reason to fail.
    """
    with contextlib.suppress(OSError, ValueError):
        click.echo(line, err=True)


def path_text(path: bytes) -> str:
    """Return a path for people: printable, and one line."""
    return printable(path.decode("utf-8", "surrogateescape"))


def text_fields(name: str, value: bytes) -> dict[str, str]:
    """Return a name or path for JSON; one that is no UTF-8 also whole, as base64."""
    import base64

    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        encoded = base64.b64encode(value).decode("ascii")
        return {name: path_text(value), f"{name}_base64": encoded}


def human_bytes(count: float) -> str:
    """Write a number of bytes for people, in binary units: ``1.5 MiB``."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        count /= 1024
        # 1023.95 would be rounded up to "1024.0" of this unit.
        if count < 1023.95 or unit == "TiB":
            break
    return f"{count:.1f} {unit}"
