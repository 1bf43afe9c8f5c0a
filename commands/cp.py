"""The ``rpc25519 cp`` command: copy files in the manner of scp."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from ._client import Connection, connection_options
from ._errors import reporting_errors
from ._gostyle import CopyingCommand
from ._options import verbosity_options, version_option
from ._output import Talk
from ._startup import begin_imports
from ._sync import SyncChoices
from ._syncrun import run_sync
from ._synctable import PathsType, default_values, some_sync_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._sync import Direction

_PROG: Final = "rpc25519 cp"
#: ``[HOST]`` or HOST; a port, if digits stand between two colons; and the path.
_REMOTE: Final = re.compile(
    r"(\[[^\]/]*\]|[^:/\[]*)(?::([0-9]+)(?=:))?:(.*)", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A file or directory, here or on a server.

    Attributes:
        path: on a server relative to the served directory; empty for all of it.
        address: ``HOST`` or ``HOST:PORT`` of the server; None means here.
    """

    path: str
    address: str | None


def parse_place(text: str) -> Place:
    """Tell ``HOST:PATH`` and ``HOST:PORT:PATH`` from a path on this machine.

    An IPv6 address stands in brackets. What has a slash before its first colon is a
    path here, such as ``./a:b``. A path on a server that begins with digits and a colon
    is to be written ``HOST:./1:a``.

    Raises:
        click.UsageError: it is empty, or has no host before the colon.
    """
    if not text:
        raise click.UsageError("a path is empty")
    match = _REMOTE.fullmatch(text)
    if match is None:
        return Place(path=text, address=None)
    host, port, path = match.groups()
    if host in ("", "[]"):
        raise click.UsageError(
            f"no host before the colon of {text!r} (a file of that name is ./{text})"
        )
    return Place(path=path, address=f"{host}:{port}" if port else host)


@click.command("cp", cls=CopyingCommand)
@click.argument("source", nargs=-1, required=True, type=PathsType())
@click.argument("dest", type=PathsType())
@click.option("-r", "--recursive", is_flag=True, help="Copy directories, too.")
@click.option(
    "-p", "--preserve", is_flag=True, help="Keep times of change and permission bits."
)
@some_sync_options("dry_run", "bwlimit", "fsync")
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@verbosity_options
@version_option
def cp(
    source: tuple[str, ...],
    dest: str,
    recursive: bool,
    preserve: bool,
    sync_values: dict[str, Any],
    connection: Connection,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Copy files to or from a server.

    One side is HOST:PATH or HOST:PORT:PATH, where PATH is relative to the served
    directory, and the port is 8443 if none is given. A file here with a colon in its
    name is written ./NAME. Into DEST if that is a directory; else DEST is the new name.
    What is there already is not sent again, and cuts are carried on after.
    """
    begin_imports()
    with reporting_errors(_PROG):
        from rpc25519_tools.config import parse_address

        talk = Talk(prog=_PROG, quiet=quiet)
        task = _task([parse_place(text) for text in source], parse_place(dest))
        values = {
            **default_values(),
            **sync_values,
            "recursive": recursive,
            "links": True,
            "perms": preserve,
            "times": preserve,
        }
        choices = SyncChoices(
            direction=task.direction,
            paths=task.paths,
            dest=task.dest,
            values=values,
            as_copy=True,
        )
        config = connection.config(parse_address(task.address), talk)
        run_sync(
            config,
            choices,
            talk,
            retry_for_s=connection.retry_for_s(),
            as_json=as_json,
            verbose=verbose,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    direction: "Direction"
    address: str
    paths: tuple[str, ...]
    dest: str


def _task(sources: "Sequence[Place]", dest: Place) -> _Task:
    """Tell which way to copy.

    Raises:
        click.UsageError: there is no server, or more than one.
    """
    addresses = {place.address for place in sources}
    if len(addresses) > 1:
        raise click.UsageError("all sources must be here, or all on one server")
    address = sources[0].address
    if address is not None and dest.address is not None:
        raise click.UsageError(
            "source and destination are both on a server; one has to be here"
        )
    where = address or dest.address
    if where is None:
        raise click.UsageError(
            "neither source nor destination is on a server: write HOST:PATH"
        )
    return _Task(
        direction="push" if address is None else "pull",
        address=where,
        # HOST: alone is the top of what is served.
        paths=tuple(place.path or "." for place in sources),
        dest=dest.path,
    )
