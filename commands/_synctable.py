"""The options of syncs as click has them: names, types, help."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])

#: What ``-push`` stands for where no path follows it; no path has a NUL.
NO_PATH: Final = "\0"
#: What numbers are cut down to: as good as no limit, and it fits into 64 bits.
MOST: Final = 1 << 62

#: What is taken over from the source: the option's field, its short letter, and help.
#: Each can be switched off with --no-.
ATTRIBUTES: Final = (
    ("recursive", "-r", "What is in directories too (default; with -ls: list it)."),
    ("links", "", "Symbolic links, as links (default)."),
    ("perms", "-p", "Permission bits (default)."),
    ("times", "-t", "Times of change, to the nanosecond (default)."),
    ("owner", "", "Owners, where the receiver may set them."),
    ("group", "-g", "Groups, likewise."),
    ("specials", "", "FIFOs and sockets."),
    ("devices", "", "Device files, where the receiver may make them."),
)
#: Those that are, unless told otherwise: all that makes a second run send nothing.
TAKEN_BY_DEFAULT: Final = frozenset({"recursive", "links", "perms", "times"})

#: Simple switches: the field, its short letter, and help.
SWITCHES: Final = (
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
RULES: Final = (
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
        r"([0-9]{1,15}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})([bkmgt]?)((?:ib|b)?)",
        text.lower(),
    )
    if match is None or (match[2] in {"", "b"} and match[3]):
        return None
    base = 1000 if match[3] == "b" else 1024
    power = {"b": 0, "": 1, "k": 1, "m": 2, "g": 3, "t": 4}[match[2]]
    rate = float(match[1]) * base**power
    return min(max(int(rate), 1), MOST) if rate else 0


class PathsType(click.ParamType[str]):
    """A path that a shell completes as a file's name."""

    name = "path"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[Any]":
        """Let the shell complete names of files."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


class SyncOption(click.Option):
    """An option that stands in a section of its own in the help."""

    section: Final = "Options of -push and -pull"


def _spelled(field: str) -> str:
    return "--" + field.replace("_", "-")


def _make_options() -> tuple[click.Option, ...]:
    made = [
        SyncOption(
            ["-a", "--archive"],
            is_flag=True,
            help="With -push or -pull: take over all attributes there are; as -r "
            "--links --perms --times --owner --group --specials --devices.",
        )
    ]
    for field, short, text in ATTRIBUTES:
        long = _spelled(field)
        words = [f"{long}/--no-{field}"]
        if short:
            words.insert(0, short)
        if field == "recursive":
            words.insert(1, "-R")
        made.append(SyncOption(words, default=None, help=text))
    for field, short, text in SWITCHES:
        words = [short, _spelled(field)] if short else [_spelled(field)]
        made.append(SyncOption(words, is_flag=True, help=text))
    made += [
        SyncOption(
            ["--max-delete"],
            type=click.IntRange(min=0),
            metavar="N",
            help="Delete no more than so many files and directories.",
        ),
        SyncOption(
            ["--backup-dir"],
            metavar="DIR",
            help="Keep what is replaced or deleted in DIR, below the destination.",
        ),
    ]
    made += [
        SyncOption(
            [_spelled(field)],
            multiple=True,
            metavar=metavar,
            type=PathsType() if metavar == "FILE" else None,
            help=text,
        )
        for field, metavar, text in RULES
    ]
    made += [
        SyncOption(
            ["--files-from"],
            type=PathsType(),
            metavar="FILE",
            help="Only the paths in FILE (- is standard input), below the one that is "
            "given. Not what is in directories among them, unless -r is given.",
        ),
        SyncOption(
            ["--from0"], is_flag=True, help="They end with NUL, not with the line."
        ),
        SyncOption(
            ["--bwlimit"],
            default="0",
            type=RateType(),
            metavar="RATE",
            help="Send at most so much a second: 500 (KiB), 1.5m, 1g.",
        ),
        SyncOption(
            ["--fsync/--no-fsync"],
            default=True,
            help="Whether what was transferred has to survive a power failure "
            "(default: yes).",
        ),
        SyncOption(
            ["-i", "--itemize", "--itemize-changes"],
            is_flag=True,
            help="Print a line for every change, as rsync does.",
        ),
        SyncOption(["--stats"], is_flag=True, help="Print figures at the end."),
    ]
    return tuple(made)


PATH_OPTIONS: Final = tuple(
    SyncOption(
        [name],
        is_flag=False,
        flag_value=NO_PATH,
        multiple=True,
        type=kind,
        metavar="PATH...",
        help=text,
    )
    for name, kind, text in (
        ("--push", PathsType(), "Send files and directories; DIR/ is what is in DIR."),
        ("--pull", None, "Fetch files and directories of the served directory."),
    )
)
OPTIONS: Final = _make_options()


def some_sync_options(*names: str) -> Callable[[_F], _F]:
    """Add some of the same options; the command gets their dict as ``sync_values``."""

    def decorate(command: _F) -> _F:
        @functools.wraps(command)
        def with_some(*args: Any, **kwargs: Any) -> Any:
            values = {name: kwargs.pop(name) for name in names}
            return command(*args, sync_values=values, **kwargs)

        add_options(with_some, [one for one in OPTIONS if one.name in names])
        return with_some  # type: ignore[return-value]  # the same to its caller

    return decorate


def default_values() -> dict[str, Any]:
    """Return what the options are if none is given, by field."""
    nothing = click.Command("nothing", params=list(OPTIONS), add_help_option=False)
    return nothing.make_context("nothing", []).params


def add_options(command: Any, options: Sequence[click.Option]) -> None:
    """Do what click.option does, with options that are made already."""
    params = command.__dict__.setdefault("__click_params__", [])
    params.extend(reversed(options))
