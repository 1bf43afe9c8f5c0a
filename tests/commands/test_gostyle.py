"""The common ground of all commands: Go's spellings, errors and exit codes, talk."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from rpc25519_tools.commands._errors import (
    DEBUG_VARIABLE,
    EXIT_CODES,
    error_line,
    exit_code_for,
    reporting_errors,
)
from rpc25519_tools.commands._gostyle import (
    GIVEN,
    CopyingCommand,
    GoStyleCommand,
    go_to_click,
)
from rpc25519_tools.commands._output import Talk, human_bytes
from rpc25519_tools.commands.group import LazyGroup, rpc25519

from rpc25519_tools import errors

Values = dict[str, Any]


@click.command(cls=GoStyleCommand)
@click.option("-s", "--server", default="here")
@click.option("-k")
@click.option("--tcp", is_flag=True)
@click.option("--echo/--no-echo", default=True)
@click.option("--serve", is_flag=False, flag_value=".", type=click.Path())
@click.option("-n", type=int, default=1)
@click.option("--san", multiple=True)
@click.option("--pair", nargs=2)
@click.option("-v", "--verbose", count=True)
@click.option("--codec", type=click.Choice(["s2", "lz4"]))
def tool(**values: object) -> None:
    """Do nothing but show what was given."""
    defaults = {"server": "here", "echo": True, "n": 1, "san": (), "verbose": 0}
    given = {
        name: value
        for name, value in values.items()
        if value != defaults.get(name) and value not in (None, False, ())
    }
    if values["echo"] is False:
        given["echo"] = False
    click.echo(repr(given))


def run(*words: str) -> Values:
    result = CliRunner().invoke(tool, words)
    assert result.exit_code == 0, result.stderr
    values: Values = eval(result.stdout)
    return values


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("", {}),
        ("-tcp", {"tcp": True}),
        ("--tcp", {"tcp": True}),
        ("-tcp=true", {"tcp": True}),
        ("-tcp=1", {"tcp": True}),
        ("-tcp=false", {}),
        ("-tcp -tcp=F", {}),
        ("-tcp=false --tcp", {"tcp": True}),
        ("-s a:1", {"server": "a:1"}),
        ("-s=a:1", {"server": "a:1"}),
        ("--s=a:1", {"server": "a:1"}),
        ("-server a:1", {"server": "a:1"}),
        ("--server=a=b", {"server": "a=b"}),
        ("-s -tcp", {"server": "-tcp"}),
        ("-s --", {"server": "--"}),
        ("-k=", {"k": ""}),
        ("-k -x -tcp", {"k": "-x", "tcp": True}),
        ("-n=-3", {"n": -3}),
        ("-n -3", {"n": -3}),
        ("-serve", {"serve": "."}),
        ("-serve=true", {"serve": "."}),
        ("-serve -tcp", {"serve": ".", "tcp": True}),
        ("-serve DIR -tcp", {"serve": "DIR", "tcp": True}),
        ("-serve=DIR", {"serve": "DIR"}),
        ("--serve=./-odd", {"serve": "./-odd"}),
        ("--serve=-", {"serve": "-"}),
        ("-serve true", {"serve": "true"}),
        ("-serve=./true", {"serve": "./true"}),
        ("-serve=1", {"serve": "1"}),
        ("-serve=false", {}),
        ("-serve DIR -serve=false", {}),
        ("-serve=false -serve=D", {"serve": "D"}),
        ("-serve --", {"serve": "."}),
        ("-no-echo", {"echo": False}),
        ("-echo=false", {"echo": False}),
        ("-no-echo=false", {}),
        ("-echo=false -echo", {}),
        ("-san a --san=b -san=-c", {"san": ("a", "b", "-c")}),
        ("-pair a b -tcp", {"pair": ("a", "b"), "tcp": True}),
        ("-pair=a b", {"pair": ("a", "b")}),
        ("-v -verbose --v", {"verbose": 3}),
        ("-v -v=false", {}),
        ("-codec=lz4", {"codec": "lz4"}),
    ],
)
def test_spellings(line: str, values: Values) -> None:
    assert run(*line.split()) == values


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("-serv", "No such option '-serv'. (Did you mean"),
        ("-abc", "No such option '-abc'"),
        ("---tcp", "No such option '---tcp'"),
        ("--x=secret", "No such option '--x'."),
        ("-tcp=maybe", "'maybe' is not a boolean"),
        ("stray", "unexpected extra argument (stray)"),
        ("-tcp false", "unexpected extra argument (false)"),
        ("-", "unexpected extra argument (-)"),
        ("-- -tcp", "unexpected extra argument (-tcp)"),
        ("-n x", "'x' is not a valid integer"),
        ("-n", "requires an argument"),
        ("-pair a", "requires 2 arguments"),
        ("-codec=zip", "'zip' is not one of"),
        ("-serve=-odd", "'-odd' looks like an option; if it is a file, write './-odd'"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(line: str, why: str) -> None:
    result = CliRunner().invoke(tool, line.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert why in result.stderr
    assert result.stderr.startswith("tool: ")
    assert result.stderr.endswith("(see 'tool --help')\n")
    assert result.stderr.count("\n") == 1


def test_control_characters_in_a_mistake_are_escaped() -> None:
    result = CliRunner().invoke(tool, ["-\x1b[2J\n"])
    assert result.exit_code == 2
    assert "\x1b" not in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("word", ["-h", "-help", "--help", "--h"])
def test_help(word: str) -> None:
    result = CliRunner().invoke(tool, [word])
    assert result.exit_code == 0
    assert "--serve" in result.stdout


def test_suggestion_names_the_near_option() -> None:
    result = CliRunner().invoke(tool, ["-code"])
    assert "Did you mean '--codec'?" in result.stderr


def test_rewriting_works_without_a_context() -> None:
    assert go_to_click(tool.params, ["-tcp", "x", "--", "-y"]) == [
        *("--tcp", "x", "--", "-y"),
    ]
    with pytest.raises(click.NoSuchOption):
        go_to_click(tool.params, ["-zzz"])


def test_usage_errors_of_the_body_are_one_line_too() -> None:
    @click.command(cls=GoStyleCommand)
    def picky() -> None:
        with reporting_errors("picky"):
            raise click.UsageError("These two exclude\neach other.")

    result = CliRunner().invoke(picky, [])
    assert result.exit_code == 2
    assert result.stderr == (
        "picky: These two exclude\\neach other. (see 'picky --help')\n"
    )


def complete(*words: str, incomplete: str) -> set[str]:
    shell = ShellComplete(tool, {}, "tool", "_TOOL_COMPLETE")
    return {item.value for item in shell.get_completions(list(words), incomplete)}


def test_completion_offers_the_spelling_that_was_begun() -> None:
    assert complete(incomplete="--s") == {"--server", "--serve", "--san"}
    assert complete(incomplete="-s") == {"-s", "-server", "-serve", "-san"}
    assert {"-tcp", "--tcp", "-help", "-no-echo"} <= complete(incomplete="-")
    assert complete("-tcp", incomplete="-t") == set()


@pytest.mark.parametrize("word", ["--codec", "-codec"])
def test_completion_of_values_after_either_spelling(word: str) -> None:
    assert complete("-tcp", word, incomplete="l") == {"lz4"}
    assert complete(incomplete=f"{word}=s") == {"s2"}
    assert complete("--unknown", word, incomplete="") == {"s2", "lz4"}


# Errors and exit codes.


def all_errors(root: type[Exception]) -> list[type[Exception]]:
    found = [root]
    for child in root.__subclasses__():
        found += all_errors(child)
    return found


WANTED: dict[type[Exception], int] = {
    errors.ConfigError: 2,
    errors.ProtocolError: 5,
    errors.SecurityError: 4,
    errors.TransportError: 3,
    errors.CallError: 1,
    errors.TransferError: 1,
    errors.LocalFileError: 6,
}
#: What is another's mistake than that of its root.
EXCEPTIONS: dict[type[Exception], int] = {errors.KeyNameError: 2}


@pytest.mark.parametrize("kind", all_errors(errors.Rpc25519Error))
def test_every_engine_error_has_its_code(kind: type[Exception]) -> None:
    # Errors of other layers, with extra arguments, are made without __init__.
    exc = kind.__new__(kind, "text")
    bases = [base for base in WANTED if issubclass(kind, base)]
    if kind is errors.Rpc25519Error:
        assert exit_code_for(exc) == 1
    else:
        assert len(bases) == 1
        assert exit_code_for(exc) == EXCEPTIONS.get(kind, WANTED[bases[0]])


@pytest.mark.parametrize(
    ("exc", "code", "line"),
    [
        (click.UsageError("bad"), 2, "bad"),
        (click.Abort(), 130, "interrupted"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileNotFoundError(2, "No such file", "a\nb"), 6, "a\\nb: no such file"),
        (OSError(28, "No space left on device"), 6, "no space left on device"),
        (OSError("odd"), 6, "odd"),
        (ConnectionRefusedError(111, "Connection refused"), 3, "connection refused"),
        (TimeoutError(), 3, "TimeoutError"),
        (BrokenPipeError(), 141, "BrokenPipeError"),
        (errors.ConnectFailedError("no server at x"), 3, "no server at x"),
        (errors.KeyFileError("a\x1bb"), 4, "a\\x1bb"),
        (ValueError("x"), 70, "internal error: ValueError: x"),
        (MemoryError(), 70, "internal error: MemoryError:"),
    ],
)
def test_codes_and_lines(exc: BaseException, code: int, line: str) -> None:
    assert exit_code_for(exc) == code
    assert error_line(exc) == line


def test_the_table_is_fit_for_documentation() -> None:
    codes = [row.code for row in EXIT_CODES]
    assert sorted(codes) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 70, 130, 141]
    for row in EXIT_CODES:
        assert row.meaning.isprintable()
        assert row.name.isidentifier()


def failing(exc: BaseException) -> click.Command:
    @click.command(cls=GoStyleCommand)
    @reporting_errors("tool")
    def fail() -> None:
        click.echo("data")
        raise exc

    return fail


@pytest.mark.parametrize(
    ("exc", "code", "stderr"),
    [
        (errors.TransferError("it broke"), 1, "tool: it broke\n"),
        (KeyboardInterrupt(), 130, "tool: interrupted\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (ZeroDivisionError("z"), 70, "tool: internal error: ZeroDivisionError: z\n"),
        (ExceptionGroup("g", [errors.CallError("no")]), 1, "tool: no\n"),
        (SystemExit(9), 9, ""),
        (click.exceptions.Exit(7), 7, ""),
    ],
)
def test_reporting(exc: BaseException, code: int, stderr: str) -> None:
    result = CliRunner().invoke(failing(exc))
    assert (result.exit_code, result.stderr) == (code, stderr)
    assert result.stdout == "data\n"


def ctrl_c(*_: object) -> None:
    signal.raise_signal(signal.SIGINT)


def assert_interrupted(command: click.Command, *words: str, prog: str) -> None:
    result = CliRunner().invoke(command, words, prog_name=prog)
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr == f"{prog}: interrupted\n"


def test_an_interruption_outside_the_body_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @click.command("gadget", cls=GoStyleCommand)
    @click.option("--early", is_flag=True, callback=ctrl_c)
    def early(*, early: bool) -> None: ...

    @click.command("gadget", cls=GoStyleCommand)
    @click.pass_context
    def late(ctx: click.Context) -> None:
        ctx.call_on_close(ctrl_c)

    @click.command("gadget", cls=GoStyleCommand)
    def body() -> None:
        ctrl_c()

    for command in (early, body):
        assert_interrupted(command, prog="gadget")
    result = CliRunner().invoke(late)
    assert result.exit_code == 130
    assert result.stderr.strip() == "gadget: interrupted"  # click writes a line end
    with pytest.raises(click.Abort):
        early.main([], standalone_mode=False)
    monkeypatch.setattr(GoStyleCommand, "_main_shell_completion", ctrl_c)
    assert_interrupted(tool, prog="tool")


def test_an_interruption_of_the_group_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LazyGroup, "get_command", ctrl_c)
    assert_interrupted(rpc25519, "selfy", prog="rpc25519")
    monkeypatch.setattr(LazyGroup, "parse_args", ctrl_c)
    assert_interrupted(rpc25519, "selfy", prog="rpc25519")


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    command = failing(errors.CallError("no"))
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    assert "Traceback" in CliRunner().invoke(command).stderr
    monkeypatch.setenv(DEBUG_VARIABLE, "0")
    assert "Traceback" not in CliRunner().invoke(command).stderr


def closed_pipe() -> int:
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


TALKATIVE = """
import click
from rpc25519_tools.commands._errors import reporting_errors
with reporting_errors("tool"):
    click.echo("x" * 100_000)
    click.echo("y")
"""


@pytest.mark.parametrize(
    ("redirect", "code", "line"),
    [
        (lambda: os.open("/dev/full", os.O_WRONLY), 6, b"no space left on device"),
        (closed_pipe, 141, b""),
    ],
)
def test_standard_output_that_fails(
    redirect: Callable[[], int], code: int, line: bytes
) -> None:
    target = redirect()
    try:
        done = subprocess.run(
            [sys.executable, "-c", TALKATIVE],
            stdout=target,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(target)
    assert done.returncode == code
    assert done.stderr == (b"tool: " + line + b"\n" if line else b"")


# Talk.


def test_talk_goes_to_standard_error_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Talk(prog="tool").say("hello \x1b\n")
    Talk(prog="tool", quiet=True).say("not this")
    Talk(prog="tool", quiet=True).warn("careful\r")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "hello \\x1b\\n\ntool: warning: careful\\r\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (5 * 1024**3, "5.0 GiB"),
        (3 * 1024**5, "3072.0 TiB"),
    ],
)
def test_human_sizes(count: int, text: str) -> None:
    assert human_bytes(count) == text


# What only the commands that copy have.


@click.command(cls=CopyingCommand)
@click.option("-a", "--all", is_flag=True)
@click.option("-b/-B", "--both/--no-both", default=None)
@click.option("-s", "--server")
@click.option("--ab", is_flag=True)
@click.option("--in", multiple=True)
@click.option("--out", multiple=True)
@click.pass_context
def copier(context: click.Context, /, **values: object) -> None:
    """Show what was given, and in which order."""
    click.echo(repr((values, context.meta[GIVEN])))


def copied(*words: str) -> tuple[Values, list[str]]:
    result = CliRunner().invoke(copier, words)
    assert result.exit_code == 0, result.stderr
    seen: tuple[Values, list[str]] = eval(result.stdout)
    return seen


def test_short_letters_can_be_joined() -> None:
    values, given = copied("-ba")
    assert (values["all"], values["both"], values["ab"]) == (True, True, False)
    assert given == ["both", "all"]
    values, _ = copied("-ab")  # an option of that name comes first
    assert (values["all"], values["both"], values["ab"]) == (False, None, True)
    values, _ = copied("-aB")
    assert (values["all"], values["both"]) == (True, False)


@pytest.mark.parametrize("word", ["-as", "-ax", "--ba", "-ba=true", "---ba"])
def test_what_is_no_joined_letters(word: str) -> None:
    result = CliRunner().invoke(copier, [word])
    assert result.exit_code == 2
    assert f"No such option '{word.partition('=')[0]}'" in result.stderr


def test_only_commands_that_copy_join_letters() -> None:
    result = CliRunner().invoke(tool, ["-vk"])
    assert result.exit_code == 2


def test_the_order_of_options_is_known() -> None:
    values, given = copied("-in", "1", "--out=2", "-a", "--in=3")
    assert (values["in"], values["out"]) == (("1", "3"), ("2",))
    assert given == ["in", "out", "all", "in"]
    assert copied("-a", "-a=false", "-out", "1")[1] == ["out"]


def test_sections_of_the_help() -> None:
    class Apart(click.Option):
        section = "Apart"

    params: list[click.Parameter] = [
        click.Option(["--one"], help="First."),
        Apart(["--two"], help="Second."),
        click.Argument(["three"]),
    ]
    command = CopyingCommand("x", params=params)
    shown = CliRunner().invoke(command, ["--help"]).stdout
    assert shown.count("THREE") == 1  # in the first line
    assert shown.index("Options:") < shown.index("--one") < shown.index("--help")
    assert shown.index("--help") < shown.index("Apart:") < shown.index("--two")
