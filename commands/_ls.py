"""Listings of the served directory: ``cli -ls`` and its options."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ._output import Talk, path_text, printable, text_fields

if TYPE_CHECKING:
    from rpc25519_tools.rpc.client import Client
    from rpc25519_tools.sync.list_records import ListEntry

#: Entries that are printed together: one write for each takes longer than listing it.
_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LsOptions:
    """What the command line says about a listing.

    Attributes:
        path: what to list, relative to the served directory.
        long: print all that is known of each entry.
        recursive: also list the directories in it.
    """

    path: str
    long: bool
    recursive: bool

    @staticmethod
    def check(*, alone: bool) -> None:
        """Refuse what a listing does not go with.

        Raises:
            click.UsageError: something else is to be done as well.
        """
        if not alone:
            raise click.UsageError(
                "-ls goes without -download, -sendfile, -echofile, -n and --no-clobber"
            )

    async def run(self, client: "Client", *, as_json: bool, talk: Talk) -> None:
        """Print the listing; names go to standard output as they come.

        Raises:
            IncompleteTransferError: some directories in it could not be listed.
            Rpc25519Error: it failed; see ``list_remote``.
        """
        import contextlib

        from rpc25519_tools.errors import IncompleteTransferError
        from rpc25519_tools.sync.listing import list_remote

        form = (
            json_lines if as_json else LongLines().lines if self.long else short_lines
        )
        problems = 0
        waiting: list[ListEntry] = []
        listing = list_remote(client, self.path, recursive=self.recursive)
        async with contextlib.aclosing(listing) as entries:
            try:
                async for entry in entries:
                    waiting.append(entry)
                    if entry.problem:
                        problems += 1
                        talk.warn(entry.problem)
                    if len(waiting) >= _AT_ONCE:
                        _print(form(waiting))
                        waiting.clear()
            finally:
                _print(form(waiting))
        if problems:
            some = "a directory" if problems == 1 else f"{problems} directories"
            raise IncompleteTransferError(f"{some} could not be listed")


def ls_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``-ls`` and ``-l``; the command gets LsOptions as ``ls``, or None.

    ``-R`` is one of those that ``sync_options`` adds, which have to stand outside.
    """

    @functools.wraps(command)
    def with_ls(
        *args: Any, ls: str | None, long: bool, recursive: bool, **kwargs: Any
    ) -> None:
        if ls is None and (long or recursive):
            option = "-l goes with -ls" if long else "-r goes with -ls, -push or -pull"
            raise click.UsageError(option)
        options = LsOptions(path=ls or "", long=long, recursive=recursive)
        command(*args, ls=None if ls is None else options, **kwargs)

    for option in (
        click.option(
            "-l",
            "--long",
            is_flag=True,
            help="With -ls: print mode, links, owner, group, size and time too.",
        ),
        click.option(
            "--ls",
            is_flag=False,
            flag_value=".",
            metavar="[PATH]",
            help="List this directory, or file, of the served directory (default: all "
            "of it). With --json, one JSON object per line.",
        ),
    ):
        with_ls = option(with_ls)
    return with_ls


def _print(lines: Sequence[str]) -> None:
    text = "\n".join(lines)
    if text:
        click.echo(text)


def _shown_path(entry: "ListEntry") -> str:
    text = path_text(entry.path)
    return f"{text}/" if entry.kind == "directory" else text


def short_lines(entries: "Sequence[ListEntry]") -> list[str]:
    """Return the paths, with a slash behind those of directories."""
    return list(map(_shown_path, entries))


class LongLines:
    """Lines such as those of ``ls -l``. Columns grow as wider entries come."""

    def __init__(self) -> None:
        self._widths = [1, 1, 1, 1]

    def lines(self, entries: "Sequence[ListEntry]") -> list[str]:
        """Return mode, links, owner, group, size, time, name and a link's target."""
        rows = [_columns(entry) for entry in entries]
        for row in rows:
            self._widths = list(map(max, self._widths, map(len, row)))
        return list(map(self._line, entries, rows))

    def _line(self, entry: "ListEntry", row: list[str]) -> str:
        import stat

        links, owner, group, size = self._widths
        name = _shown_path(entry)
        if entry.link_target is not None:
            name += f" -> {path_text(entry.link_target)}"
        return (
            f"{stat.filemode(entry.mode)} {row[0]:>{links}} {row[1]:<{owner}} "
            f"{row[2]:<{group}} {row[3]:>{size}} {local_time(entry.mtime_ns)} {name}"
        )


def _columns(entry: "ListEntry") -> list[str]:
    """Return links, owner, group and size as text."""
    owner = printable(entry.owner) or str(entry.uid)
    group = printable(entry.group) or str(entry.gid)
    return [str(entry.nlink), owner, group, str(entry.size)]


def local_time(mtime_ns: int) -> str:
    """Return a time to the second in the local zone, in the form of ISO 8601.

    A time that no calendar here has becomes ``@`` and its seconds since 1970.
    """
    from datetime import UTC, datetime

    seconds = mtime_ns // 1_000_000_000
    try:
        moment = datetime.fromtimestamp(seconds, UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        return f"@{seconds}"
    return moment.isoformat(sep=" ", timespec="seconds")


def json_lines(entries: "Sequence[ListEntry]") -> list[str]:
    """Return a JSON object for each entry, in a line of ASCII.

    A path, name or target that is not UTF-8 is shown with escapes, and in full as
    ``path_base64``, ``name_base64`` or ``target_base64``.
    """
    import json

    return [json.dumps(_fields(entry)) for entry in entries]


def _fields(entry: "ListEntry") -> dict[str, object]:
    fields: dict[str, object] = {
        **text_fields("path", entry.path),
        **text_fields("name", entry.name),
        "kind": entry.kind,
        "mode": f"{entry.mode & 0o7777:04o}",
        "size": entry.size,
        "mtime_ns": entry.mtime_ns,
        "uid": entry.uid,
        "gid": entry.gid,
        "owner": entry.owner,
        "group": entry.group,
        "nlink": entry.nlink,
    }
    if entry.link_target is not None:
        fields.update(text_fields("target", entry.link_target))
    if entry.problem:
        fields["problem"] = entry.problem
    return fields
