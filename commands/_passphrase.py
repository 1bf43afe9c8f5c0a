"""Where pass phrases come from: a file, the environment, or a terminal.

Never from the command line, which every user of the machine can read. A source is
lazy: nothing is read or asked before a protected key really needs it, and then once.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from rpc25519_tools.errors import LocalFileError, PassphraseError
from rpc25519_tools.identity.printable import printable

from ._options import NamedPath

VARIABLE = "RPC25519_PASSPHRASE"

# A terminal in line mode delivers at most 4095 bytes; files are held to the same
# order, so that a wrong path does not read a film into memory.
MAX_PASSPHRASE_BYTES = 64 * 1024

_F = TypeVar("_F", bound=Callable[..., Any])

THREE_WAYS = (
    f"give --passphrase-file PATH, set {VARIABLE}, or run it on a terminal to be asked"
)


def passphrase_options(command: _F) -> _F:
    """Add ``--passphrase-file`` to a command, as the argument ``passphrase_file``."""
    return click.option(
        "--passphrase-file",
        type=NamedPath(readable=False, allow_dash=True),
        metavar="PATH",
        help="Read the pass phrase of the private key from this file ('-': standard "
        f"input). Else {VARIABLE} is used if set, else you are asked.",
    )(command)


def passphrase_source(
    passphrase_file: str | None,
    *,
    what: str = "the private key",
    confirm: bool = False,
    variable: str = VARIABLE,
) -> Callable[[], bytes]:
    """Return a function that gets the pass phrase, once, when it is first called.

    Args:
        passphrase_file: the value of ``--passphrase-file``; wins over the environment.
        what: what the phrase is for; shown in the prompt.
        confirm: a key is being created: ask twice, and refuse an empty phrase.
        variable: the environment variable to look at; if it is empty it counts as
            not set.

    The returned function raises:
        PassphraseError: there is no way to ask, the two answers differ, or the new
            phrase is empty.
        LocalFileError: the file cannot be read.
    """
    known: list[bytes] = []

    def get() -> bytes:
        if not known:
            phrase = _given(passphrase_file, variable)
            if phrase is None:
                phrase = _ask(what, confirm=confirm)
            known.append(phrase)
        return known[0]

    return refusing_empty(get) if confirm else get


def refusing_empty(source: Callable[[], bytes]) -> Callable[[], bytes]:
    """Return a source that raises `PassphraseError` instead of an empty phrase.

    For keys that are being created. The reference writes such keys, under a prompt
    that says "empty for no passphrase", so opening them must stay possible.
    """

    def get() -> bytes:
        phrase = source()
        if not phrase:
            raise PassphraseError(
                "an empty pass phrase protects nothing; -nopass writes the key "
                "without one"
            )
        return phrase

    return get


def unattended_passphrase(passphrase_file: str | None) -> Callable[[], bytes]:
    """Return a function that gets the pass phrase anew each time, and asks nobody.

    For keys that change while the program runs; their new pass phrase is in the file by
    then. Pipes and standard input have been read already.

    The returned function raises:
        PassphraseError: it cannot be had without asking.
        LocalFileError: the file cannot be read.
    """

    def get() -> bytes:
        if passphrase_file is not None and not os.path.isfile(passphrase_file):
            phrase = None
        else:
            phrase = _given(passphrase_file, VARIABLE)
        if phrase is None:
            raise PassphraseError(
                "this is another key than before, and nobody can be asked for its pass "
                f"phrase while the program runs: start it again (or next time give a "
                f"file with --passphrase-file, or set {VARIABLE})"
            )
        return phrase

    return get


def is_passphrase_given(passphrase_file: str | None, variable: str = VARIABLE) -> bool:
    """Tell whether a pass phrase can be had without asking anybody."""
    return passphrase_file is not None or bool(os.environ.get(variable))


def _given(passphrase_file: str | None, variable: str) -> bytes | None:
    if passphrase_file is not None:
        return _read(passphrase_file)
    phrase = os.environ.get(variable)
    return os.fsencode(phrase) if phrase else None


def _read(path: str) -> bytes:
    """Read a pass phrase file and take off exactly one line end."""
    try:
        if path == "-":
            content = sys.stdin.buffer.read(MAX_PASSPHRASE_BYTES + 1)
        else:
            # Not only regular files: shells pass <(pass show key) as a pipe.
            with open(path, "rb") as file:
                content = file.read(MAX_PASSPHRASE_BYTES + 1)
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        raise LocalFileError(
            f"cannot read the pass phrase file {printable(path)}: {reason}"
        ) from exc
    if len(content) > MAX_PASSPHRASE_BYTES:
        raise LocalFileError(f"the pass phrase file {printable(path)} is too long")
    for line_end in (b"\r\n", b"\n"):
        if content.endswith(line_end):
            return content.removesuffix(line_end)
    return content


def _ask(what: str, *, confirm: bool) -> bytes:
    with _terminal() as descriptor:
        if descriptor is None:
            raise PassphraseError(f"a pass phrase for {what} is needed: {THREE_WAYS}")
        new = "New pass phrase" if confirm else "Pass phrase"
        phrase = _prompt(descriptor, f"{new} for {printable(what)}: ")
        if confirm and phrase and _prompt(descriptor, "The same again: ") != phrase:
            raise PassphraseError("the two pass phrases differ; nothing was written")
    return phrase


@contextlib.contextmanager
def _terminal() -> Iterator[int | None]:
    """Yield the descriptor of a terminal to ask on, or None."""
    try:
        descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        # No controlling terminal; standard input can be one all the same.
        try:
            descriptor = os.dup(sys.stdin.fileno()) if sys.stdin.isatty() else -1
        except (OSError, ValueError):
            descriptor = -1
    if descriptor < 0:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _prompt(descriptor: int, text: str) -> bytes:
    """Ask on a terminal without echo; return the line's bytes as they are typed.

    `getpass` would decode them by the locale, and a phrase typed under another locale
    would then be another phrase. The reference uses the bytes too.
    """
    import termios

    before = termios.tcgetattr(descriptor)
    silent = list(before)
    silent[3] &= ~termios.ECHO
    silent[3] |= termios.ICANON | termios.ISIG
    with _exiting_by_signal() as hold_back:
        try:
            # TCSAFLUSH drops what was typed before the prompt: it was echoed.
            termios.tcsetattr(descriptor, termios.TCSAFLUSH, silent)
            _write(descriptor, text.encode("utf-8", "backslashreplace"))
            line = _read_line(descriptor)
        finally:
            hold_back()
            with contextlib.suppress(termios.error):  # the terminal hung up
                termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
            _write(descriptor, b"\n")
    if not line.endswith(b"\n"):
        raise PassphraseError("no pass phrase was typed (end of input)")
    return line[:-1]


@contextlib.contextmanager
def _exiting_by_signal() -> Iterator[Callable[[], None]]:
    """Let signals that end the process do so as an exception, so that it cleans up.

    Yields a function that makes them wait until the body is left. In other threads
    than the main one nothing changes; nor for a signal that is ignored, as under nohup.

    Raises:
        SystemExit: SIGTERM or SIGHUP came; the code is 128 plus its number.
    """
    received: list[int] = []
    held_back = False

    def end(number: int, _frame: object) -> None:
        received.append(number)
        if not held_back and len(received) == 1:
            raise SystemExit(128 + number)

    def hold_back() -> None:
        nonlocal held_back
        held_back = True

    old = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):
                    old[number] = handler
                    signal.signal(number, end)
        yield hold_back
    finally:
        hold_back()
        for number, handler in old.items():
            signal.signal(number, handler)
    if received:
        raise SystemExit(128 + received[0])


def _write(descriptor: int, text: bytes) -> None:
    """Write to the terminal, or to standard error if it was opened for reading only."""
    try:
        os.write(descriptor, text)
    except OSError:
        with contextlib.suppress(OSError):
            os.write(2, text)


def _read_line(descriptor: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(descriptor, 4096)
        if not part:
            break
        line += part
    return line
