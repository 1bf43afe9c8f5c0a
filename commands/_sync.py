"""Options of ``cli -push`` and ``cli -pull``; the command gets them as one object."""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import click

from ._gostyle import GIVEN

if TYPE_CHECKING:
    from rpc25519_tools.sync.filters import Parsed
    from rpc25519_tools.sync.options import SyncOptions

_F = TypeVar("_F", bound=Callable[..., Any])

Direction = Literal["push", "pull"]

#: What ``-push`` stands for where no path follows it; no path has a NUL.
_NO_PATH: Final = "\0"
#: Bytes of the file of ``--files-from``, and paths in it.
MAX_LIST_LEN: Final = 16 << 20
MAX_LIST_PATHS: Final = 1 << 20
STREAM: Final = "-"

#: What is taken over from the source: the option's field, its short letter, and help.
#: Each can be switched off with --no-.
_ATTRIBUTES: Final = (
    ("recursive", "-r", "What is in directories too (default; with -ls: list it)."),
    ("links", "", "Symbolic links, as links (default)."),
    ("perms", "-p", "Permission bits (default)."),
    ("times", "-t", "Times of change, to the nanosecond (default)."),
    ("owner", "", "Owners, where the receiver may set them."),
    ("group", "-g", "Groups, likewise."),
    ("specials", "", "FIFOs and sockets."),
    ("devices", "", "Device files, where the receiver may make them."),
)
_DEFAULT: Final = frozenset({"recursive", "links", "perms", "times"})

#: Simple switches: the field, its short letter, and help.
_SWITCHES: Final = (
    ("hard_links", "-H", "Make hard links of what are hard links."),
    ("sparse", "-S", "Leave out long runs of zeros when writing."),
    ("numeric_ids", "", "Do not map owners and groups by name."),
    ("delete", "", "Delete what the source does not have."),
    ("delete_excluded", "", "Delete what the rules exclude, too."),
    ("dry_run", "", "Change nothing; print what would be done."),
    ("checksum", "-c", "Compare contents, not size and time."),
    ("size_only", "", "Compare nothing but the size."),
    ("ignore_times", "-I", "Transfer files of equal size and time too."),
    ("existing", "", "Make nothing new."),
    ("ignore_existing", "", "Change nothing that is there."),
    ("update", "-u", "Keep files that are newer at the destination."),
    ("whole_file", "-W", "Send whole files, not only what has changed."),
)

#: Options of rules, which are tried in their order on the command line.
_RULES: Final = (
    ("exclude", "PATTERN", "Leave out what matches. Repeatable, as all these four."),
    ("include", "PATTERN", "Take what matches. The first rule that matches decides."),
    ("exclude_from", "FILE", "Read such patterns from FILE (- is standard input)."),
    ("include_from", "FILE", "Likewise."),
)


class RateType(click.ParamType[Any]):
    """A rate in KiB a second, or with a suffix: ``1.5m``, ``500K``, ``2G``."""

    name = "rate"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        """Return bytes a second; 0 means no limit."""
        if not isinstance(value, str):
            return value
        rate = parse_rate(value)
        if rate is None:
            self.fail(f"{value!r} is no rate: write 500, 1.5m or 1g", param, ctx)
        return rate


def parse_rate(text: str) -> int | None:
    """Return bytes a second, by rsync's rules; None where the text is no rate.

    A number counts as KiB; ``k``, ``m``, ``g`` and ``t`` are powers of 1024, also with
    ``iB``, and powers of 1000 with ``B``; ``b`` alone is bytes.
    """
    import re

    match = re.fullmatch(
        r"(\d{1,15}(?:\.\d{0,9})?|\.\d{1,9})([bkmgt]?)((?:ib|b)?)", text.lower()
    )
    if match is None or (match[2] in {"", "b"} and match[3]):
        return None
    base = 1000 if match[3] == "b" else 1024
    power = {"b": 0, "": 1, "k": 1, "m": 2, "g": 3, "t": 4}[match[2]]
    rate = float(match[1]) * base**power
    return max(int(rate), 1) if rate else 0


class PathsType(click.ParamType[str]):
    """A path that a shell completes as a file's name."""

    name = "path"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[Any]":
        """Let the shell complete names of files."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncChoices:
    """What the command line says about a sync.

    Attributes:
        direction: push or pull.
        paths: what is moved.
        values: of the options, by field; of an attribute None where it was not given.
        rules: the option and value of each rule, in their order.
        dest: where it goes; None for the default.
        as_copy: whether it goes by the rules of scp: a slash behind a directory's name
            means nothing; its new name is the destination, if that is not there yet;
            and links are followed that are named themselves.
    """

    direction: Direction
    paths: tuple[str, ...]
    values: Mapping[str, Any]
    rules: tuple[tuple[str, str], ...] = ()
    dest: str | None = None
    as_copy: bool = False

    @property
    def dry_run(self) -> bool:
        """Whether nothing is to be changed."""
        return bool(self.values["dry_run"])

    @property
    def itemize(self) -> bool:
        """Whether every change is printed."""
        return bool(self.values["itemize"]) or self.dry_run

    def uses_stdin(self) -> bool:
        """Tell whether a list or rules come on standard input.

        Raises:
            click.UsageError: two of them do.
        """
        streams = [text for option, text in self.rules if option.endswith("_from")]
        streams.append(self.values["files_from"] or "")
        count = streams.count(STREAM)
        if count > 1:
            raise click.UsageError("only one list can come on standard input")
        return count == 1

    def check(self, *, alone: bool, calls: int, no_clobber: bool) -> None:
        """Refuse what does not go together.

        Args:
            alone: whether nothing else is to be done.
            calls: the value of ``-n``.
            no_clobber: whether ``--no-clobber`` was given.

        Raises:
            click.UsageError: something contradicts itself, or is missing.
        """
        name = f"-{self.direction}"
        if not alone:
            raise click.UsageError(
                f"{name} goes without -download, -sendfile, -echofile and -ls"
            )
        if calls != 1:
            raise click.UsageError("-n is for echo calls; a dry run is --dry-run")
        if no_clobber:
            raise click.UsageError(f"with {name}, --no-clobber is --ignore-existing")
        if not self.paths:
            raise click.UsageError(f"{name} needs a path (. is all that is there)")
        if "" in self.paths:
            raise click.UsageError("a path is empty")
        if STREAM in (*self.paths, self.dest):
            raise click.UsageError(
                f"{name} does not go with standard input or output; a file of that "
                "name is ./-"
            )
        if self.values["files_from"] is not None and len(self.paths) != 1:
            raise click.UsageError(
                "--files-from has paths below one directory: give just that one"
            )
        if self.values["from0"] and self.values["files_from"] is None:
            raise click.UsageError("--from0 goes with --files-from")
        backup_dir = self.values["backup_dir"]
        if backup_dir is not None and backup_dir.startswith("/"):
            raise click.UsageError("--backup-dir is relative to the destination")

    def _takes(self, attribute: str) -> bool:
        """Tell whether an attribute is taken over from the source."""
        given = self.values[attribute]
        if given is not None:
            return bool(given)
        if attribute == "recursive" and self.values["files_from"] is not None:
            return False  # as rsync has it
        return attribute in _DEFAULT or bool(self.values["archive"])

    def options(self) -> "SyncOptions":
        """Return what both sides have to know.

        Raises:
            ConfigError: a rule is not valid, or options contradict each other.
            LocalFileError: a file of rules cannot be read.
        """
        import os

        from rpc25519_tools.sync.filters import FilterRules, parse_rules
        from rpc25519_tools.sync.options import SyncOptions

        fields: dict[str, Any] = {name: self.values[name] for name, _, _ in _SWITCHES}
        fields |= {name: self._takes(name) for name, _, _ in _ATTRIBUTES}
        fields["delete"] |= fields["delete_excluded"]
        rules = parse_rules(self._parsed_rules())
        FilterRules(rules)
        backup_dir, max_delete = self.values["backup_dir"], self.values["max_delete"]
        options = SyncOptions(
            **fields,
            max_delete=None if max_delete is None else min(max_delete, 1 << 62),
            backup_dir=None if backup_dir is None else os.fsencode(backup_dir),
            rules=rules,
            fsync=self.values["fsync"],
            bandwidth=self.values["bwlimit"],
        )
        options.check()
        return options

    def _parsed_rules(self) -> "Iterator[Parsed | None]":
        import os

        from rpc25519_tools.errors import ConfigError
        from rpc25519_tools.sync.filters import (
            MAX_FILE_LEN,
            rule_from_option,
            rules_from_file,
        )

        for option, text in self.rules:
            include = option.startswith("include")
            if not option.endswith("_from"):
                yield rule_from_option(os.fsencode(text), include=include)
                continue
            try:
                data = _read(text, MAX_FILE_LEN)
                yield from rules_from_file(data, include=include)
            except ConfigError as exc:
                raise ConfigError(f"{_name_of(text)}: {exc}") from exc

    def only(self) -> list[bytes] | None:
        """Return the paths of ``--files-from``; None where it was not given.

        Raises:
            ConfigError: there are too many.
            LocalFileError: they cannot be read.
        """
        name = self.values["files_from"]
        if name is None:
            return None
        from rpc25519_tools.errors import ConfigError

        data = _read(name, MAX_LIST_LEN)
        if len(data) > MAX_LIST_LEN:
            raise ConfigError(f"{_name_of(name)}: more than {MAX_LIST_LEN} bytes")
        paths = _listed(data, from0=self.values["from0"])
        if len(paths) > MAX_LIST_PATHS:
            raise ConfigError(f"{_name_of(name)}: more than {MAX_LIST_PATHS} paths")
        return paths


def _listed(data: bytes, *, from0: bool) -> list[bytes]:
    """Take a list apart: by NUL, or by lines, of which some are comments."""
    if from0:
        return [path for path in data.split(b"\0") if path]
    lines = data.replace(b"\r", b"\n").split(b"\n")
    return [line for line in lines if line and not line.startswith((b"#", b";"))]


def _name_of(path: str) -> str:
    return "standard input" if path == STREAM else path


def _read(path: str, limit: int) -> bytes:
    """Return the beginning of a file: its first ``limit`` bytes and one more."""
    import sys

    from ._streams import require_open

    if path == STREAM:
        require_open(0)
        return sys.stdin.buffer.read(limit + 1)
    with open(path, "rb") as file:
        return file.read(limit + 1)


def sync_options(command: _F) -> _F:
    """Add ``-push``, ``-pull`` and their options.

    The command gets SyncChoices as ``sync``, or None, and the destination has to be
    put into it; and ``recursive``, if there is another use for that option.
    """

    @functools.wraps(command)
    def with_sync(
        *args: Any,
        push: tuple[str, ...],
        pull: tuple[str, ...],
        paths: tuple[str, ...],
        **kwargs: Any,
    ) -> Any:
        names = [param.name for param in _OPTIONS]
        values = {name: kwargs.pop(name) for name in names if name}
        context = click.get_current_context()
        if push and pull:
            raise click.UsageError("give only one of -push and -pull")
        if not push and not pull:
            _refuse_alone(context, paths, {*names} - {"recursive"})
            recursive = bool(values["recursive"])
            return command(*args, sync=None, recursive=recursive, **kwargs)
        given = [path for path in push or pull if path != _NO_PATH]
        sync = SyncChoices(
            direction="push" if push else "pull",
            paths=(*given, *paths),
            values=values,
            rules=tuple(_rules_in_order(context, values)),
        )
        return command(*args, sync=sync, recursive=False, **kwargs)

    _add_options(with_sync, (*_PATHS, *_OPTIONS))
    arguments = click.argument("paths", nargs=-1, type=PathsType())
    return arguments(with_sync)  # type: ignore[return-value]  # the same to its caller


def some_sync_options(*names: str) -> Callable[[_F], _F]:
    """Add some of the same options; the command gets their dict as ``sync_values``."""

    def decorate(command: _F) -> _F:
        @functools.wraps(command)
        def with_some(*args: Any, **kwargs: Any) -> Any:
            values = {name: kwargs.pop(name) for name in names}
            return command(*args, sync_values=values, **kwargs)

        _add_options(with_some, [one for one in _OPTIONS if one.name in names])
        return with_some  # type: ignore[return-value]  # the same to its caller

    return decorate


def default_values() -> dict[str, Any]:
    """Return what the options are if none is given, by field."""
    nothing = click.Command("nothing", params=list(_OPTIONS), add_help_option=False)
    return nothing.make_context("nothing", []).params


def _add_options(command: Any, options: Sequence[click.Option]) -> None:
    """Do what click.option does, with options that are made already."""
    params = command.__dict__.setdefault("__click_params__", [])
    params.extend(reversed(options))


def _refuse_alone(
    context: click.Context, paths: Sequence[str], names: Collection[str | None]
) -> None:
    """Refuse paths and options that only a sync goes by."""
    if paths:
        some = "s" if len(paths) > 1 else ""
        raise click.UsageError(
            f"Got unexpected extra argument{some} ({' '.join(paths)})", context
        )
    for name in context.meta.get(GIVEN, ()):
        if name in names:
            spelled = "-a" if name == "archive" else f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{spelled} goes with -push or -pull", context)


def _rules_in_order(
    context: click.Context, values: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    rest = {name: iter(values[name]) for name, _, _ in _RULES}
    for name in context.meta.get(GIVEN, ()):
        if name in rest:
            yield name, next(rest[name])


def _spelled(field: str) -> str:
    return "--" + field.replace("_", "-")


def _make_options() -> tuple[click.Option, ...]:
    made = [
        click.Option(
            ["-a", "--archive"],
            is_flag=True,
            help="With -push or -pull: take over all attributes there are; as -r "
            "--links --perms --times --owner --group --specials --devices.",
        )
    ]
    for field, short, text in _ATTRIBUTES:
        long = _spelled(field)
        words = [f"{long}/--no-{field}"]
        if short:
            words.insert(0, short)
        if field == "recursive":
            words.insert(1, "-R")
        made.append(click.Option(words, default=None, help=text))
    for field, short, text in _SWITCHES:
        words = [short, _spelled(field)] if short else [_spelled(field)]
        made.append(click.Option(words, is_flag=True, help=text))
    made += [
        click.Option(
            ["--max-delete"],
            type=click.IntRange(min=0),
            metavar="N",
            help="Delete no more than so many files and directories.",
        ),
        click.Option(
            ["--backup-dir"],
            metavar="DIR",
            help="Keep what is replaced or deleted in DIR, below the destination.",
        ),
    ]
    made += [
        click.Option(
            [_spelled(field)],
            multiple=True,
            metavar=metavar,
            type=PathsType() if metavar == "FILE" else None,
            help=text,
        )
        for field, metavar, text in _RULES
    ]
    made += [
        click.Option(
            ["--files-from"],
            type=PathsType(),
            metavar="FILE",
            help="Only the paths in FILE (- is standard input), below the one that is "
            "given. Not what is in directories among them, unless -r is given.",
        ),
        click.Option(
            ["--from0"], is_flag=True, help="They end with NUL, not with the line."
        ),
        click.Option(
            ["--bwlimit"],
            default="0",
            type=RateType(),
            metavar="RATE",
            help="Send at most so much a second: 500 (KiB), 1.5m, 1g.",
        ),
        click.Option(
            ["--fsync/--no-fsync"],
            default=True,
            help="Whether what was transferred has to survive a power failure "
            "(default: yes).",
        ),
        click.Option(
            ["-i", "--itemize", "--itemize-changes"],
            is_flag=True,
            help="Print a line for every change, as rsync does.",
        ),
        click.Option(["--stats"], is_flag=True, help="Print figures at the end."),
    ]
    return tuple(made)


_PATHS: Final = tuple(
    click.Option(
        [name],
        is_flag=False,
        flag_value=_NO_PATH,
        multiple=True,
        type=PathsType(),
        metavar="PATH...",
        help=text,
    )
    for name, text in (
        ("--push", "Send these files and directories; DIR/ is what is in DIR."),
        ("--pull", "Fetch these files and directories of the served directory."),
    )
)
_OPTIONS: Final = _make_options()
