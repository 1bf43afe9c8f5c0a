"""Lets every command understand the Go tools' spelling of options.

Go's flag package has no short and long options: ``-name``, ``--name``, ``-name=value``
and ``--name value`` are one thing, and a boolean takes ``-tcp=false``. Click reads
``-tcp`` as ``-t -c -p`` and has no ``=false``. So before click parses, the arguments
are rewritten into click's own spelling, by looking at what the command declares;
click then does all the rest (types, defaults, errors, help).

Options whose value may be left out (declared with ``is_flag=False, flag_value=...``)
take ``-serve``, ``-serve DIR``, ``-serve=DIR`` and, as they are booleans in Go,
``-serve=true`` and ``-serve=false``. A directory of that name is ``./true``.
"""

import contextlib
import copy
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from ._errors import error_line, exit_code_for
from ._streams import fill_closed_streams

#: Key of ``ctx.meta`` to the names of all options that were given, in their order and
#: as often as they were given: click itself forgets how options mix.
GIVEN = "rpc25519_tools.given"
# The words of Go's strconv.ParseBool.
_TRUE = {"1", "t", "T", "true", "TRUE", "True"}
_FALSE = {"0", "f", "F", "false", "FALSE", "False"}


class OneLineUsageError(click.UsageError):
    """A usage error that is shown as one line, as all other errors are."""

    def show(self, file: Any = None) -> None:
        """Write ``prog: what is wrong (see 'prog --help')`` to standard error."""
        path = self.ctx.command_path if self.ctx is not None else ""
        hint = f" (see '{path} --help')" if path else ""
        line = f"{path}: {self.format_message()}{hint}".removeprefix(": ")
        click.echo(line, file=file, err=file is None)


class InterruptibleCommand(click.Command):
    """A click command that Ctrl-C ends in one line and 130, whenever it comes.

    Click catches it itself, says "Aborted!" and exits with 1; before and after that it
    would be a traceback.
    """

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the arguments; see `click.Command.make_context`."""
        with _aborting():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; see `click.Command.invoke`."""
        with _aborting():
            return super().invoke(ctx)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: FBT002  (as click has it)
        **extra: Any,
    ) -> Any:
        """Run as a program; see `click.Command.main`."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        fill_closed_streams()
        try:
            try:
                result = super().main(args, prog_name, complete_var, False, **extra)
            except click.ClickException as exc:
                exc.show()
                result = exc.exit_code
        except (KeyboardInterrupt, click.Abort) as exc:
            with contextlib.suppress(OSError):
                click.echo(f"{prog_name or self.name}: {error_line(exc)}", err=True)
            raise SystemExit(exit_code_for(exc)) from None
        # What asks to exit, as --help does, has its code returned.
        raise SystemExit(result if isinstance(result, int) else 0)


@contextlib.contextmanager
def _aborting() -> Iterator[None]:
    """Turn Ctrl-C into what click passes on without a word."""
    try:
        yield
    except KeyboardInterrupt as exc:
        raise click.Abort from exc


class GoStyleCommand(InterruptibleCommand):
    """A click command that also takes Go's spellings and reports errors in one line.

    Use it as ``@click.command(cls=GoStyleCommand)``; nothing else changes.
    """

    #: Whether everything from the first word on is somebody else's to read.
    takes_words = False
    #: Whether ``-rp``, where it is no option, means ``-r -p``.
    joins_letters = False

    def __init__(
        self,
        name: str | None,
        context_settings: MutableMapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        settings = {"help_option_names": ["-h", "--help"], **(context_settings or {})}
        super().__init__(name, context_settings=settings, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite the arguments into click's spelling, then parse them."""
        try:
            words = go_to_click(
                self.get_params(ctx),
                args,
                ctx=ctx,
                until_word=self.takes_words,
                joins=self.joins_letters,
            )
            return super().parse_args(ctx, words)
        except click.UsageError as exc:
            raise _one_line(exc, ctx) from exc

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; usage errors found by its body become one line too."""
        try:
            return super().invoke(ctx)
        except click.UsageError as exc:
            raise _one_line(exc, ctx) from exc

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters; for completion, with their single-dash spellings.

        Completion matches what was typed against the declared spellings only, both
        when it offers names and when it looks for the option whose value is due.
        """
        params = super().get_params(ctx)
        if not ctx.resilient_parsing:
            return params
        taken = {opt for param in params for opt in _spellings(param)}
        return [_with_single_dashes(param, taken) for param in params]


class CopyingCommand(GoStyleCommand):
    """One whose short letters can be joined, as rsync's and scp's users do."""

    joins_letters = True

    def format_options(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Write the options; those with a ``section`` under its name."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                name = getattr(param, "section", "Options")
                sections.setdefault(name, []).append(record)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl(records)


class OneLineGroup(InterruptibleCommand, click.Group):
    """A group that reports errors in one line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the group's own options; a wrong one is told in one line."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as exc:
            raise _one_line(exc, ctx) from exc

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand; an unknown one is told in one line."""
        try:
            return super().invoke(ctx)
        except click.UsageError as exc:
            raise _one_line(exc, ctx) from exc


class GoStyleGroup(GoStyleCommand, click.Group):
    """A command with options of its own that also knows words, each with its options.

    What stands before the word is spelled as the command has it, what follows as the
    word's own command has it.
    """

    takes_words = True


def _one_line(exc: click.UsageError, ctx: click.Context) -> click.UsageError:
    if isinstance(exc, OneLineUsageError | click.exceptions.NoArgsIsHelpError):
        return exc
    return OneLineUsageError(error_line(exc), ctx=exc.ctx or ctx)


def _spellings(param: click.Parameter) -> list[str]:
    return [*param.opts, *param.secondary_opts]


def _with_single_dashes(param: click.Parameter, taken: set[str]) -> click.Parameter:
    if not isinstance(param, click.Option):
        return param
    both = copy.copy(param)
    both.opts = _doubled(param.opts, taken)
    both.secondary_opts = _doubled(param.secondary_opts, taken)
    return both


def _doubled(opts: Iterable[str], taken: set[str]) -> list[str]:
    result: list[str] = []
    for opt in opts:
        result.append(opt)
        single = "-" + opt.lstrip("-")
        if single not in taken:
            result.append(single)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """An option, and whether it was found by its negative spelling (``--no-x``)."""

    option: click.Option
    negative: bool

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value (``-quiet``), but Go's ``=true`` or ``=false``."""
        return self.option.is_flag or self.option.count

    @property
    def may_lack_value(self) -> bool:
        """Whether its value may be left out (``-serve``)."""
        # Click has no public name for "is_flag=False with a flag_value".
        return bool(self.option._flag_needs_value) and not self.is_switch


class _Rewriter:
    """Walks over the arguments once and collects click's spelling of them."""

    def __init__(
        self,
        params: Sequence[click.Parameter],
        ctx: click.Context | None,
        *,
        joins: bool = False,
    ) -> None:
        self._ctx = ctx
        self._joins = joins
        self._known: dict[str, _Known] = {}
        for param in params:
            if isinstance(param, click.Option):
                for opt in param.opts:
                    self._add(opt, param, negative=False)
                for opt in param.secondary_opts:
                    self._add(opt, param, negative=True)
        self._result: list[tuple[click.Option | None, list[str]]] = []

    def _add(self, opt: str, option: click.Option, *, negative: bool) -> None:
        self._known.setdefault(
            opt.lstrip("-"), _Known(option=option, negative=negative)
        )

    def rewrite(self, args: Sequence[str], *, until_word: bool = False) -> list[str]:
        rest = list(args)
        while rest:
            word = rest.pop(0)
            if word == "--":
                self._result.append((None, [word, *rest]))
                break
            if not _looks_like_option(word):
                self._result.append((None, [word]))
                if until_word:
                    self._result.append((None, rest))
                    break
                continue
            name, equals, text = word.lstrip("-").partition("=")
            known = self._known.get(name) if not word.startswith("---") else None
            if known is None:
                if not (self._joins and self._letters(word)):
                    self._unknown(word)
                continue
            value = text if equals else None
            if known.is_switch:
                self._switch(known, value)
            elif known.may_lack_value:
                self._maybe_value(known, value, rest)
            else:
                self._value(known, value, rest)
        if self._ctx is not None:
            self._ctx.meta[GIVEN] = [
                option.name for option, _ in self._result if option is not None
            ]
        return [word for _, words in self._result for word in words]

    def _letters(self, word: str) -> bool:
        """Take ``-rp`` as ``-r -p``; tell whether it is that."""
        letters = [self._known.get(letter) for letter in word[1:]]
        if word.startswith("--") or not all(one and one.is_switch for one in letters):
            return False
        for one in letters:
            assert one is not None
            self._switch(one, None)
        return True

    def _unknown(self, word: str) -> None:
        if self._ctx is not None and self._ctx.resilient_parsing:
            return  # completion: somebody is still typing
        raise click.NoSuchOption(
            word.partition("=")[0],
            possibilities=sorted({f"--{name}" for name in self._known}),
            ctx=self._ctx,
        )

    def _switch(self, known: _Known, value: str | None) -> None:
        option = known.option
        if value is None or value in _TRUE:
            on = not known.negative
        elif value in _FALSE:
            on = known.negative
        else:
            raise click.BadParameter(
                f"{value!r} is not a boolean (true or false)", self._ctx, option
            )
        if on:
            self._result.append((option, [_longest(option.opts)]))
        elif option.secondary_opts:
            self._result.append((option, [_longest(option.secondary_opts)]))
        else:
            # Off is what it would be had it never been given.
            self._drop(option)

    def _maybe_value(self, known: _Known, value: str | None, rest: list[str]) -> None:
        option = known.option
        if value in {"true", "false"}:
            if value == "false":
                self._drop(option)
                return
            value = None
        elif value is None and rest and not _looks_like_option(rest[0]):
            value = rest.pop(0)
        name = _longest(option.opts)
        if value is not None and _looks_like_option(value):
            # Click would take it for an option even behind an equals sign.
            raise click.BadParameter(
                f"{value!r} looks like an option; if it is a file, write './{value}'",
                self._ctx,
                option,
            )
        # Always in one word: click would take the next one as the value.
        text = str(option.flag_value) if value is None else value
        self._result.append((option, [f"{name}={text}"]))

    def _value(self, known: _Known, value: str | None, rest: list[str]) -> None:
        option = known.option
        words = [_longest(option.opts)]
        if value is not None:
            words.append(value)
        while len(words) <= option.nargs and rest:
            words.append(rest.pop(0))
        self._result.append((option, words))

    def _drop(self, option: click.Option) -> None:
        self._result = [entry for entry in self._result if entry[0] is not option]


def go_to_click(
    params: Sequence[click.Parameter],
    args: Sequence[str],
    *,
    ctx: click.Context | None = None,
    until_word: bool = False,
    joins: bool = False,
) -> list[str]:
    """Rewrite arguments in any of Go's spellings into click's.

    Values are never touched, and nothing after ``--`` is. Unlike Go, options may also
    stand after other words.

    Args:
        params: what the command declares, its help option included.
        args: the words of the command line.
        ctx: for error messages; while completing, unknown options are dropped.
        until_word: leave everything from the first word on as it is.
        joins: take ``-rp`` as ``-r -p`` where all are known letters without a value.

    Raises:
        click.UsageError: an unknown option, or a boolean that is neither true nor
            false.
    """
    return _Rewriter(params, ctx, joins=joins).rewrite(args, until_word=until_word)


def _looks_like_option(word: str) -> bool:
    return len(word) > 1 and word[0] == "-"


def _longest(opts: Sequence[str]) -> str:
    """Choose the ``--name`` spelling, which takes a value after ``=`` in click."""
    return max(opts, key=len)
