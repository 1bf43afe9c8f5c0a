"""Options of ``cli -push`` and ``cli -pull``; the command gets them as one object."""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import click

from ._gostyle import GIVEN
from ._synctable import (
    ATTRIBUTES,
    MOST,
    NO_PATH,
    OPTIONS,
    PATH_OPTIONS,
    RULES,
    SWITCHES,
    TAKEN_BY_DEFAULT,
    PathsType,
    add_options,
)

if TYPE_CHECKING:
    from rpc25519_tools.sync.filters import Parsed
    from rpc25519_tools.sync.options import SyncOptions

_F = TypeVar("_F", bound=Callable[..., Any])

Direction = Literal["push", "pull"]

#: Bytes of the file of ``--files-from``, and paths in it.
MAX_LIST_LEN: Final = 8 << 20
MAX_LIST_PATHS: Final = 1 << 20
STREAM: Final = "-"


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
        return attribute in TAKEN_BY_DEFAULT or bool(self.values["archive"])

    def options(self) -> "SyncOptions":
        """Return what both sides have to know.

        Raises:
            ConfigError: a rule is not valid, or options contradict each other.
            OSError: a file of rules cannot be read.
            LocalFileError: they come on standard input, which is closed.
        """
        import os

        from rpc25519_tools.errors import ConfigError
        from rpc25519_tools.sync.filters import FilterRules, parse_rules
        from rpc25519_tools.sync.options import MAX_PATHS, SyncOptions

        if len(self.paths) > MAX_PATHS:
            raise ConfigError(f"{len(self.paths)} paths; at most {MAX_PATHS} at a time")
        named = (*self.paths, self.dest, self.values["backup_dir"])
        _check_lengths([os.fsencode(path) for path in named if path is not None])
        fields: dict[str, Any] = {name: self.values[name] for name, _, _ in SWITCHES}
        fields |= {name: self._takes(name) for name, _, _ in ATTRIBUTES}
        fields["delete"] |= fields["delete_excluded"]
        rules = parse_rules(self._parsed_rules())
        FilterRules(rules)
        backup_dir, max_delete = self.values["backup_dir"], self.values["max_delete"]
        options = SyncOptions(
            **fields,
            max_delete=None if max_delete is None else min(max_delete, MOST),
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
            OSError: the file that they are in cannot be read.
            LocalFileError: they come on standard input, which is closed.
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
        _check_lengths(paths)
        return paths


def _check_lengths(paths: Sequence[bytes]) -> None:
    from rpc25519_tools.errors import ConfigError
    from rpc25519_tools.sync.options import MAX_PATH_LEN

    longest = max(map(len, paths), default=0)
    if longest > MAX_PATH_LEN:
        raise ConfigError(f"a path of {longest} bytes; at most {MAX_PATH_LEN}")


def _listed(data: bytes, *, from0: bool) -> list[bytes]:
    """Take a list apart: by NUL, or by lines, of which some are comments."""
    if from0:
        return [path for path in data.split(b"\0") if path]
    lines = data.replace(b"\r", b"\n").split(b"\n")
    return [line for line in lines if line and not line.startswith((b"#", b";"))]


def _name_of(path: str) -> str:
    return "standard input" if path == STREAM else path


def _read(path: str, limit: int) -> bytes:
    """Return the beginning of a file: its first ``limit`` bytes and one more.

    Raises:
        OSError: it cannot be read; the command shows its name.
        LocalFileError: it is standard input, which is closed.
    """
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
        names = [param.name for param in OPTIONS]
        values = {name: kwargs.pop(name) for name in names if name}
        context = click.get_current_context()
        if push and pull:
            raise click.UsageError("give only one of -push and -pull")
        if not push and not pull:
            _refuse_alone(context, paths, {*names} - {"recursive"})
            recursive = bool(values["recursive"])
            return command(*args, sync=None, recursive=recursive, **kwargs)
        given = [path for path in push or pull if path != NO_PATH]
        sync = SyncChoices(
            direction="push" if push else "pull",
            paths=(*given, *paths),
            values=values,
            rules=tuple(_rules_in_order(context, values)),
        )
        return command(*args, sync=sync, recursive=False, **kwargs)

    add_options(with_sync, (*PATH_OPTIONS, *OPTIONS))
    arguments = click.argument("paths", nargs=-1, type=PathsType())
    return arguments(with_sync)  # type: ignore[return-value]  # the same to its caller


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
    rest = {name: iter(values[name]) for name, _, _ in RULES}
    for name in context.meta.get(GIVEN, ()):
        if name in rest:
            yield name, next(rest[name])
