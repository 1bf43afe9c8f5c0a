"""Run a sync: connect as often as it takes, print what happens, tell how it ended."""

import os
from typing import TYPE_CHECKING

import click

from ._client import describe_connection, unheard
from ._errors import DeletionsLeftError, PartlyDoneError
from ._identity import open_identity
from ._known import check_known_keys
from ._output import Talk, printable
from ._psk import codec_in_use
from ._startup import end_imports, limit_heaps
from ._sync import SyncChoices

if TYPE_CHECKING:
    from rpc25519_tools.config import Config
    from rpc25519_tools.identity.store import LoadedIdentity
    from rpc25519_tools.rpc.client import Client
    from rpc25519_tools.sync.records import Totals

    from ._synclines import Figures, SyncLines


def run_sync(
    config: "Config", choices: SyncChoices, talk: Talk, *, as_json: bool, verbose: bool
) -> None:
    """Do what the command line says, to the end.

    Args:
        config: where to and who we are.
        choices: what to do.
        talk: takes what is for people; its ``prog`` is the command.
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
    job = _Job(config, choices, talk, as_json=as_json, verbose=verbose)
    check_known_keys(config, "server")
    job.identity = open_identity(config, talk)
    end_imports()
    limit_heaps()
    run_to_end(talk.prog, job.run)


class _Job:
    """One sync, over its connections."""

    def __init__(
        self,
        config: "Config",
        choices: SyncChoices,
        talk: Talk,
        *,
        as_json: bool,
        verbose: bool,
    ) -> None:
        self._config = config
        self._choices = choices
        self._options = choices.options()
        self._only = choices.only()
        self._retry_for_s = choices.retry_for_s()
        self._talk = talk
        self._as_json = as_json
        self._verbose = verbose
        self._clients: list[Client] = []
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
                totals = await self._sync(lines)
            except DeadlineError as exc:
                if not self._clients or self._clients[-1].has_heard:
                    raise
                raise unheard(self._config, exc) from exc
            finally:
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
            bandwidth=choices.values["bwlimit"],
            compress=self._config.compression != "none",
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

        client = await Client.connect(self._config, self.identity)
        if not self._clients:
            codec_in_use(client, self._config.compression, self._talk)
            if self._verbose:
                describe_connection(client, self._talk)
        self._clients.append(client)
        return client

    def _on_retry(self, exc: Exception, wait_s: float) -> None:
        assert self._lines is not None
        self._lines.cut()
        self._talk.warn(f"{exc}; trying again in {wait_s:.1f} s")

    def _report(self, figures: "Figures") -> None:
        lines, choices, talk = figures.lines, self._choices, self._talk
        if self._as_json:
            import json

            click.echo(json.dumps(figures.as_object()))
        else:
            if choices.values["stats"]:
                click.echo("\n".join(figures.block()))
            talk.say(figures.summary(self._names()))
        for line in lines.failures.lines():
            click.echo(f"{talk.prog}: {line}", err=True)
        if count := lines.failures.count:
            some = "1 file or directory was" if count == 1 else f"{count} were"
            raise PartlyDoneError(f"{some} not transferred")
        if undeleted := figures.totals.undeleted:
            raise DeletionsLeftError(
                f"--max-delete {choices.values['max_delete']}: {undeleted} more "
                "were to be deleted"
            )

    def _names(self) -> str:
        paths = self._choices.paths
        names = printable(paths[0])
        if len(paths) > 1:
            names += f" and {len(paths) - 1} more"
        return names
