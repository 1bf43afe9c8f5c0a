"""Run a sync: connect as often as it takes, print what happens, tell how it ended."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import click

from ._client import describe_connection, unheard
from ._errors import DeletionsLeftError, PartlyDoneError
from ._identity import open_identity
from ._known import check_known_keys
from ._output import Talk, path_text, printable
from ._psk import codec_in_use
from ._retry import say_retry
from ._startup import end_imports, limit_heaps
from ._sync import SyncChoices

if TYPE_CHECKING:
    from rpc25519_tools.config import Config
    from rpc25519_tools.identity.store import LoadedIdentity
    from rpc25519_tools.rpc.client import Client
    from rpc25519_tools.sync.records import Totals

    from ._synclines import Figures, SyncLines

#: What a copy says of everything that it leaves out.
_NEEDS_R: Final = "no regular file (directories need -r)"


def run_sync(
    config: "Config",
    choices: SyncChoices,
    talk: Talk,
    *,
    retry_for_s: float,
    as_json: bool,
    verbose: bool,
) -> None:
    """Do what the command line says, to the end.

    Args:
        config: where to and who we are.
        choices: what to do.
        talk: takes what is for people; its ``prog`` is the command.
        retry_for_s: how long to go on without progress after a cut, in seconds.
        as_json: print the summary, and changes, as JSON.
        verbose: say more.

    Raises:
        PartlyDoneError, DeletionsLeftError: not all was done; the lines are printed.
        Rpc25519Error, OSError: the sync as a whole failed.
    """
    from rpc25519_tools.rpc.client import Client  # noqa: F401  # before end_imports
    from rpc25519_tools.sync import client as _  # noqa: F401

    from ._logging import log_to
    from ._run import run_to_end

    log_to(talk)
    # All that is wrong with the command line is told before anybody is asked for a
    # pass phrase.
    job = _Job(
        config,
        choices,
        talk,
        # A dry run does nothing that could be carried on.
        retry_for_s=0.0 if choices.dry_run else retry_for_s,
        as_json=as_json,
        verbose=verbose,
    )
    check_known_keys(config, "server")
    job.identity = open_identity(config, talk)
    end_imports()
    limit_heaps()
    run_to_end(talk.prog, job.run)


def _no_directory(path: str, *, on_server: bool) -> Exception:
    from rpc25519_tools.errors import LocalFileError, TransferError

    text = f"{path} is no directory, into which several things could go"
    return (
        TransferError(f"{text} (on the server)") if on_server else LocalFileError(text)
    )


class _Job:
    """One sync, over its connections."""

    def __init__(
        self,
        config: "Config",
        choices: SyncChoices,
        talk: Talk,
        *,
        retry_for_s: float,
        as_json: bool,
        verbose: bool,
    ) -> None:
        self._config = config
        self._choices = choices
        self._options = choices.options()
        self._only = choices.only()
        self._retry_for_s = retry_for_s
        self._talk = talk
        self._as_json = as_json
        self._verbose = verbose
        self._clients: list[Client] = []
        self._spare: Client | None = None
        self._lines: SyncLines | None = None
        self.identity: LoadedIdentity | None = None

    async def run(self) -> None:
        """Do it, and report.

        Raises:
            PartlyDoneError, DeletionsLeftError: see ``run_sync``.
        """
        import time

        from rpc25519_tools.errors import DeadlineError

        from ._progress import sync_bar
        from ._synclines import Figures, SyncLines

        started = time.monotonic()
        sending = self._choices.direction == "push"
        with sync_bar(self._choices.direction, enabled=not self._talk.quiet) as bar:
            lines = SyncLines(
                sending=sending,
                itemize=self._choices.itemize,
                as_json=self._as_json,
                bar=bar,
                talk=self._talk,
            )
            self._lines = lines
            try:
                if self._choices.as_copy:
                    await self._settle_names()
                totals = await self._sync(lines)
                lines.all_done()
            except DeadlineError as exc:
                if not self._clients or self._clients[-1].has_heard:
                    raise
                raise unheard(self._config, exc) from exc
            finally:
                if self._spare is not None:
                    await self._spare.aclose()
                lines.warn_of_rest()
                lines.flush()
        figures = Figures(
            operation=self._choices.direction,
            dry_run=self._choices.dry_run,
            lines=lines,
            totals=totals,
            seconds=time.monotonic() - started,
            sent_bytes=sum(client.sent_len for client in self._clients),
            received_bytes=sum(client.received_len for client in self._clients),
            attempts=len(self._clients),
        )
        self._report(figures)

    async def _sync(self, lines: "SyncLines") -> "Totals":
        from rpc25519_tools.sync.client import SyncSettings, pull, push

        choices = self._choices
        settings = SyncSettings(
            retry_for_s=self._retry_for_s,
            compress=self._config.compression != "none",
            follow=choices.as_copy,
            on_retry=self._on_retry,
        )
        default = "" if choices.direction == "push" else "."
        dest = default if choices.dest is None else choices.dest
        work = push if choices.direction == "push" else pull
        return await work(
            self._connect,
            [os.fsencode(path) for path in choices.paths],
            os.fsencode(dest),
            self._options,
            lines,
            settings,
            only=self._only,
        )

    async def _connect(self) -> "Client":
        from rpc25519_tools.rpc.client import Client

        if self._spare is not None:
            client, self._spare = self._spare, None
            return client
        client = await Client.connect(self._config, self.identity)
        if not self._clients:
            codec_in_use(client, self._config.compression, self._talk)
            if self._verbose:
                describe_connection(client, self._talk)
        self._clients.append(client)
        return client

    async def _settle_names(self) -> None:
        """Find out what names of a copy mean: that depends on what is there.

        Raises:
            TransferError, LocalFileError: several things are to go into what is no
                directory.
            PartlyDoneError: a directory alone, and not ``-r``: nothing can be copied.
        """
        from rpc25519_tools.files.workers import in_worker

        choices = self._choices
        paths = [path.rstrip("/") or (path and "/") for path in choices.paths]
        dest = choices.dest or "."
        sending = choices.direction == "push"
        recursive = bool(choices.values["recursive"])
        alone = len(paths) == 1
        is_tree = sending and alone and await in_worker(os.path.isdir, paths[0])
        if is_tree and not recursive:
            raise PartlyDoneError(f"{paths[0]}: {_NEEDS_R}")
        if not sending:
            is_new = not await in_worker(os.path.isdir, dest)
        elif not alone or is_tree:
            is_new = not await self._is_directory(dest)
        else:
            is_new = False
        if is_new and not alone:
            raise _no_directory(dest, on_server=sending)
        if is_new and (sending or await self._is_directory(paths[0])):
            if not recursive:
                raise PartlyDoneError(f"{paths[0]}: {_NEEDS_R}")
            paths[0] = f"{paths[0]}/"
        self._choices = replace(choices, paths=tuple(paths))

    async def _is_directory(self, path: str) -> bool:
        """Ask the server about a path, over a connection that is then used on."""
        from rpc25519_tools.sync.client import is_remote_directory

        client = await self._connect()
        try:
            answer = await is_remote_directory(
                client, os.fsencode(path), self._choices.direction
            )
        except BaseException:
            client.transport.abort()
            await client.aclose()
            raise
        self._spare = client
        return answer

    def _on_retry(self, exc: Exception, wait_s: float) -> None:
        assert self._lines is not None
        self._lines.cut()
        say_retry(self._talk, exc, wait_s)

    def _report(self, figures: "Figures") -> None:
        lines, choices, talk = figures.lines, self._choices, self._talk
        if choices.as_copy:
            self._fail_left_out(lines)
        if self._as_json:
            import json

            click.echo(json.dumps(figures.as_object()))
        else:
            if choices.values["stats"]:
                click.echo("\n".join(figures.block()))
            talk.say(figures.summary(self._names()))
        if not choices.as_copy:
            self._tell_left_out(lines)
        for line in lines.failures.lines():
            click.echo(f"{talk.prog}: {line}", err=True)
        if count := lines.failures.count:
            some = "1 file or directory was"
            if count > 1:
                some = f"{count} files or directories were"
            raise PartlyDoneError(f"{some} not transferred")
        if undeleted := figures.totals.undeleted:
            raise DeletionsLeftError(
                f"--max-delete {choices.values['max_delete']}: {undeleted} more "
                "were to be deleted"
            )

    def _fail_left_out(self, lines: "SyncLines") -> None:
        """Let what was not wanted of a copy be a failure, as with scp."""
        for path, _ in lines.left_out.first:
            name = path or os.fsencode(self._choices.paths[0])
            lines.failures.add(name, _NEEDS_R)
        lines.failures.count += lines.left_out.rest

    def _tell_left_out(self, lines: "SyncLines") -> None:
        """Tell what was not wanted."""
        left_out = lines.left_out
        if left_out.count:
            some = "1 thing was" if left_out.count == 1 else f"{left_out.count} were"
            self._talk.say(f"{some} left out, being of a kind that was not asked for")
            if self._verbose:
                for path, _ in left_out.first:
                    self._talk.say(f"left out: {path_text(path) or self._names()}")

    def _names(self) -> str:
        paths = self._choices.paths
        names = printable(paths[0])
        if len(paths) > 1:
            names += f" and {len(paths) - 1} more"
        return names
