"""The one table of exit codes, and how errors become a line and a code.

Every command wraps its body in `reporting_errors`. Whatever happens then, the user
sees one line, ``prog: what is wrong``, and the shell sees a code from `EXIT_CODES`;
`RPC25519_DEBUG=1` in the environment adds the traceback.
"""

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import click

from rpc25519_tools import errors
from rpc25519_tools.identity.printable import printable

DEBUG_VARIABLE = "RPC25519_DEBUG"
#: A word, such as a name or address that somebody typed or a path, that would bury what
#: is said about it. Most file systems have no longer names.
_LONG_WORD = re.compile(r"\S{256,}")


class PartlyDoneError(Exception):
    """Some files were not transferred; each has had its line."""


class DeletionsLeftError(Exception):
    """Not everything was deleted, because of ``--max-delete``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitCode:
    """One row of the table.

    Attributes:
        code: what the shell sees.
        name: a word for it.
        meaning: one line for the documentation.
        exceptions: the classes that end in it; rows are tried in order, and the
            first that has a matching class decides.
    """

    code: int
    name: str
    meaning: str
    exceptions: tuple[type[BaseException], ...] = ()


# The order matters: TransportError and the interpreter's own network errors are
# OSErrors too, and must be met before the row of local files.
EXIT_CODES: tuple[ExitCode, ...] = (
    ExitCode(code=0, name="ok", meaning="everything that was asked for was done"),
    ExitCode(
        code=2,
        name="usage",
        meaning="a wrong option, argument or setting; nothing was tried",
        exceptions=(errors.ConfigError, errors.KeyNameError, click.UsageError),
    ),
    ExitCode(
        code=141,
        name="pipe",
        meaning="the reader of standard output went away (128 + SIGPIPE)",
        exceptions=(BrokenPipeError,),
    ),
    ExitCode(
        code=3,
        name="network",
        meaning="no connection, or it was lost, or a time limit passed",
        exceptions=(errors.TransportError, ConnectionError, TimeoutError),
    ),
    ExitCode(
        code=4,
        name="trust",
        meaning="a key, certificate, pass phrase or peer was refused",
        exceptions=(errors.SecurityError,),
    ),
    ExitCode(
        code=5,
        name="protocol",
        meaning="the peer does not keep to the protocol",
        exceptions=(errors.ProtocolError,),
    ),
    ExitCode(
        code=6,
        name="files",
        meaning="a local file or directory cannot be read or written",
        exceptions=(errors.LocalFileError, click.FileError, OSError),
    ),
    ExitCode(
        code=7,
        name="partial",
        meaning="some files were not transferred; the rest was",
        exceptions=(PartlyDoneError,),
    ),
    ExitCode(
        code=8,
        name="undeleted",
        meaning="--max-delete left some files undeleted; the rest was done",
        exceptions=(DeletionsLeftError,),
    ),
    ExitCode(
        code=1,
        name="failed",
        meaning="the operation itself failed: a call, a transfer, a verification",
        exceptions=(errors.Rpc25519Error, click.ClickException),
    ),
    ExitCode(
        code=130,
        name="interrupted",
        meaning="Ctrl-C (128 + SIGINT)",
        exceptions=(KeyboardInterrupt, click.Abort),
    ),
    ExitCode(
        code=70,
        name="internal",
        meaning=(
            "a defect in the program; please report it "
            f"({DEBUG_VARIABLE}=1 shows the traceback)"
        ),
        exceptions=(BaseException,),
    ),
)


def exit_row_for(exc: BaseException) -> ExitCode:
    """Return the row of the table that `exc` ends in."""
    for row in EXIT_CODES:
        if isinstance(exc, row.exceptions):
            return row
    raise AssertionError("the last row takes every exception")


def exit_code_for(exc: BaseException) -> int:
    """Return the exit code for `exc`."""
    return exit_row_for(exc).code


def error_line(exc: BaseException) -> str:
    """Return one line about `exc` for the user, without the command's name."""
    row = exit_row_for(exc)
    if row.name == "interrupted":
        return "interrupted"
    if isinstance(exc, click.ClickException):
        text = exc.format_message()
    elif isinstance(exc, OSError) and not isinstance(exc, errors.TransportError):
        text = _os_error_text(exc)
    else:
        text = str(exc)
    if row.name == "internal":
        text = f"internal error: {type(exc).__name__}: {text}"
    return one_line(text.strip() or type(exc).__name__)


def one_line(text: str) -> str:
    """Make what an error says safe to print, and long words in it short."""
    return _LONG_WORD.sub(_shortened, printable(text))


def _shortened(word: re.Match[str]) -> str:
    """Leave out the middle of a word; the ends of a path say the most."""
    return f"{word[0][:160]}...{word[0][-80:]}"


def _os_error_text(exc: OSError) -> str:
    """Write ``name: reason``; Python's own ``[Errno 2]`` form is for programmers."""
    if exc.strerror is None:
        return str(exc)
    reason = exc.strerror[:1].lower() + exc.strerror[1:]
    if exc.filename is None:
        return reason
    return f"{os.fsdecode(exc.filename)}: {reason}"


@contextlib.contextmanager
def reporting_errors(prog: str) -> Iterator[None]:
    """End the program with one line and the right code if the body fails.

    Usable with ``with`` and as a decorator. Standard output is flushed before it is
    left, so that a full disk or a closed pipe behind it is noticed and reported.

    Raises:
        SystemExit: the body failed; the line is printed.
        click.UsageError: unchanged; `GoStyleCommand` prints it.
    """
    try:
        with _without_remarks():
            yield
        sys.stdout.flush()
    except (SystemExit, GeneratorExit, click.exceptions.Exit, click.UsageError):
        raise
    except BaseException as exc:  # noqa: BLE001  (the outermost frame of a program)
        _fail(prog, _innermost(exc))


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """Keep to ourselves what libraries remark about the certificates of strangers.

    `cryptography` warns about oddities in them, by UserWarnings, and the interpreter
    would print those with source lines. Asked for with -W or the variable for
    debugging, they are shown.
    """
    with warnings.catch_warnings():
        if not sys.warnoptions and not debugging():
            warnings.simplefilter("ignore", UserWarning)
        yield


def debugging() -> bool:
    """Tell whether tracebacks are wanted."""
    return os.environ.get(DEBUG_VARIABLE, "") not in {"", "0"}


def _innermost(exc: BaseException) -> BaseException:
    """Take a lone exception out of the groups that task groups wrap it in."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def _fail(prog: str, exc: BaseException) -> NoReturn:
    row = exit_row_for(exc)
    if debugging():
        import traceback

        traceback.print_exception(exc)
    if row.name == "pipe":
        # The interpreter flushes standard output at exit and would complain again.
        _discard_stdout()
    else:
        with contextlib.suppress(OSError):
            click.echo(f"{prog}: {error_line(exc)}", err=True)
        if isinstance(exc, OSError):
            _flush_or_discard_stdout()
    raise SystemExit(row.code)


def _flush_or_discard_stdout() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _discard_stdout()


def _discard_stdout() -> None:
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
