"""The ``cli`` command: download, upload, echo."""

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from ._client import (
    Connection,
    connection_options,
    describe_connection,
    unheard,
)
from ._errors import reporting_errors
from ._gostyle import CopyingCommand
from ._identity import open_identity
from ._known import check_known_keys
from ._ls import LsOptions, ls_options
from ._options import (
    NamedPath,
    verbosity_options,
    version_option,
)
from ._output import Talk, printable
from ._psk import codec_in_use
from ._retry import Attempts
from ._startup import begin_imports, end_imports, limit_heaps
from ._sync import SyncChoices, sync_options
from ._syncrun import run_sync

if TYPE_CHECKING:
    from rpc25519_tools.config import Config
    from rpc25519_tools.files.carry_on import Progressed
    from rpc25519_tools.files.parts import TransferSummary
    from rpc25519_tools.rpc.client import Client

DEFAULT_ADDRESS = "127.0.0.1:8443"
STREAM = "-"
#: Bytes of an echo reply that are printed.
_SHOWN_LEN = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What to do, once connected."""

    download: str | None
    sendfile: str | None
    echofile: str | None
    out: str | None
    to: str | None
    clobber: bool
    calls: int
    retry_for_s: float
    codec: str
    json: bool
    verbose: bool
    ls: LsOptions | None


@click.command("cli", cls=CopyingCommand)
@click.option(
    "-s",
    "address",
    default=DEFAULT_ADDRESS,
    show_default=True,
    metavar="HOST[:PORT]",
    help="The server. The port is 8443 if none is given.",
)
@click.option(
    "--download", metavar="PATH", help="Fetch this file of the served directory."
)
@click.option(
    "-o",
    "--out",
    "out",
    type=NamedPath(allow_dash=True, readable=False),
    metavar="OUT",
    help="Where a download or echo goes: a file, a directory, or - for standard "
    "output. Default: the file's own name in the current directory.",
)
@click.option(
    "--sendfile",
    type=click.Path(allow_dash=True, readable=False),
    metavar="PATH",
    help="Upload this file, or - for standard input.",
)
@click.option(
    "--to", metavar="NAME", help="The name of the upload; default: the file's own."
)
@click.option(
    "--echofile",
    type=click.Path(allow_dash=True, readable=False),
    metavar="PATH",
    help="Send this file and store what comes back (default: as NAME.echoed).",
)
@click.option(
    "--no-clobber", is_flag=True, help="Do not replace a file that exists already."
)
@click.option(
    "-n",
    "calls",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="How many echo calls to make, where no file is moved.",
)
@sync_options
@ls_options
@connection_options
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the summary, a listing, or changes as JSON.",
)
@verbosity_options
@version_option
def cli(
    address: str,
    download: str | None,
    out: str | None,
    sendfile: str | None,
    to: str | None,
    echofile: str | None,
    no_clobber: bool,
    calls: int,
    sync: SyncChoices | None,
    ls: LsOptions | None,
    connection: Connection,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """List, push, pull, download, upload or echo files, or make echo calls.

    -push and -pull move directories and what has changed of files. They take over
    what is in directories, links, permission bits and times; -a takes over owners,
    groups and special files, too, and --no-times and the like leave something out.
    Without one of -push, -pull, -ls, -download, -sendfile and -echofile, cli makes
    echo calls and prints the replies and how long they took.
    """
    begin_imports()
    with reporting_errors("cli"):
        from rpc25519_tools.config import parse_address
        from rpc25519_tools.files.jail import split_remote_name

        talk = Talk(prog="cli", quiet=quiet)
        _check_combination(
            download,
            sendfile,
            echofile,
            out,
            to,
            connection.passphrase_file,
            sync,
        )
        moves_file = (download, sendfile, echofile) != (None, None, None)
        if ls is not None:
            ls.check(alone=not moves_file and calls == 1 and not no_clobber)
        if sync is not None:
            sync = replace(sync, dest=to if sync.direction == "push" else out)
            alone = not moves_file and ls is None
            sync.check(alone=alone, calls=calls, no_clobber=no_clobber)
        else:
            _check_echo_calls(moves_file=moves_file, calls=calls, no_clobber=no_clobber)
        if to is not None and sync is None:
            split_remote_name(to)
        retry_for_s = connection.retry_for_s()
        config = connection.config(parse_address(address), talk)
        job = _Job(
            download=download,
            sendfile=sendfile,
            echofile=echofile,
            out=out,
            to=to,
            clobber=not no_clobber,
            calls=calls,
            retry_for_s=(retry_for_s if _can_retry(download, sendfile, out) else 0.0),
            codec=config.compression,
            json=as_json,
            verbose=verbose,
            ls=ls,
        )
        if sync is not None:
            run_sync(
                config,
                sync,
                talk,
                retry_for_s=retry_for_s,
                as_json=as_json,
                verbose=verbose,
            )
        else:
            _run(config, job, talk)


def _check_combination(
    download: str | None,
    sendfile: str | None,
    echofile: str | None,
    out: str | None,
    to: str | None,
    passphrase_file: str | None,
    sync: SyncChoices | None,
) -> None:
    direction = sync.direction if sync is not None else None
    given = [name for name in (download, sendfile, echofile) if name is not None]
    if len(given) > 1:
        raise click.UsageError("give only one of -download, -sendfile and -echofile")
    if "" in given:
        raise click.UsageError("the file name is empty")
    if out is not None and (download, echofile) == (None, None) and direction != "pull":
        raise click.UsageError("-o goes with -download, -echofile or -pull")
    if to is not None and sendfile is None and direction != "push":
        raise click.UsageError("--to goes with -sendfile or -push")
    if to == "":
        raise click.UsageError("the name of --to is empty")
    if sendfile == STREAM and to is None:
        raise click.UsageError("standard input has no name: give one with --to")
    if echofile == STREAM and out is None:
        raise click.UsageError("standard input has no name: give a file with -o")
    listed = sync is not None and sync.uses_stdin()
    if passphrase_file == STREAM and (listed or STREAM in (sendfile, echofile)):
        raise click.UsageError(
            "standard input cannot be both the file and the pass phrase"
        )


def _can_retry(download: str | None, sendfile: str | None, out: str | None) -> bool:
    """Tell whether the job is one that another attempt can carry on with.

    Echo calls and echoes of files are tests of the connection that there is.
    """
    from ._targets import is_regular, target_path

    if download is not None:
        return is_regular(target_path(out, os.path.basename(download)))
    return sendfile is not None and is_regular(sendfile)


def _check_echo_calls(*, moves_file: bool, calls: int, no_clobber: bool) -> None:
    """Refuse what only echo calls, or only files, go by."""
    if moves_file and calls != 1:
        raise click.UsageError("-n is for echo calls; one file is moved at a time")
    if no_clobber and not moves_file:
        raise click.UsageError(
            "--no-clobber goes with -download, -sendfile or -echofile"
        )


def _run(config: "Config", job: _Job, talk: Talk) -> None:
    from functools import partial

    from rpc25519_tools.errors import DeadlineError
    from rpc25519_tools.files.carry_on import with_retries
    from rpc25519_tools.rpc.client import Client

    from ._logging import log_to
    from ._run import run_to_end

    log_to(talk)
    check_known_keys(config, "server")
    identity = open_identity(config, talk)

    async def main() -> None:
        attempts = Attempts(talk=talk)

        async def attempt(client: Client, progressed: "Progressed") -> None:
            try:
                await _do(client, job, talk, attempts, progressed)
            except DeadlineError as exc:
                if client.has_heard:
                    raise
                raise unheard(config, exc) from exc

        connect = partial(Client.connect, config, identity)
        await with_retries(connect, attempt, job.retry_for_s, attempts.failed)

    end_imports()
    limit_heaps()
    run_to_end("cli", main)


async def _do(
    client: "Client",
    job: _Job,
    talk: Talk,
    attempts: Attempts,
    progressed: "Progressed",
) -> None:
    job = replace(job, codec=codec_in_use(client, job.codec, talk))
    if job.verbose:
        describe_connection(client, talk)
    if job.ls is not None:
        await job.ls.run(client, as_json=job.json, talk=talk)
    elif job.download is not None:
        await _download(client, job.download, job, talk, attempts, progressed)
    elif job.sendfile is not None:
        await _send(client, job.sendfile, job, talk, attempts, progressed)
    elif job.echofile is not None:
        await _echo_file(client, job.echofile, job, talk)
    else:
        await _echo_calls(client, job, talk)


async def _download(
    client: "Client",
    path: str,
    job: _Job,
    talk: Talk,
    attempts: Attempts,
    progressed: "Progressed",
) -> None:
    from rpc25519_tools.files.download import default_local_name, download_file

    from ._progress import progress_line
    from ._targets import noticing_closed_stdout, target_opener

    name = default_local_name(path) if job.out != STREAM else ""
    with (
        noticing_closed_stdout(job.out),
        progress_line(path, enabled=not talk.quiet) as shown,
    ):
        summary = await download_file(
            client,
            path,
            target_opener(job.out, name, clobber=job.clobber),
            progress=attempts.watch(progressed, shown),
        )
    _report("downloaded", attempts.whole(summary), job, talk)


async def _send(
    client: "Client",
    path: str,
    job: _Job,
    talk: Talk,
    attempts: Attempts,
    progressed: "Progressed",
) -> None:
    from rpc25519_tools.files.upload import default_remote_name, upload_file

    from ._progress import progress_line
    from ._targets import open_source

    with (
        await open_source(path) as source,
        progress_line(path, enabled=not talk.quiet) as shown,
    ):
        summary = await upload_file(
            client,
            source,
            job.to if job.to is not None else default_remote_name(path),
            clobber=job.clobber,
            progress=attempts.watch(progressed, shown),
            transfer_id=attempts.transfer_id,
            is_repeated=attempts.count > 0,
        )
    if summary.clobber_refused is False:
        talk.warn("this server does not know --no-clobber and may have replaced a file")
    _report("uploaded", attempts.whole(summary), job, talk)


async def _echo_file(client: "Client", path: str, job: _Job, talk: Talk) -> None:
    from rpc25519_tools.files.echo import echo_file
    from rpc25519_tools.files.upload import default_remote_name

    from ._progress import progress_line
    from ._targets import noticing_closed_stdout, open_source, sink_opener

    name = default_remote_name(path)
    open_sink = sink_opener(job.out, f"{name}.echoed", clobber=job.clobber)
    with (
        noticing_closed_stdout(job.out),
        await open_source(path) as source,
        progress_line(path, enabled=not talk.quiet) as progress,
    ):
        summary = await echo_file(client, source, name, open_sink, progress=progress)
    _report("echoed", summary, job, talk)


def _report(verb: str, summary: "TransferSummary", job: _Job, talk: Talk) -> None:
    """Print the one line, or JSON object, that a transfer ends with."""
    from ._output import human_bytes
    from ._transferlog import rate_mb_s

    rate = rate_mb_s(summary.size_bytes, summary.seconds)
    if job.json:
        import json

        text = json.dumps(
            {
                "operation": verb,
                "name": summary.name,
                "size_bytes": summary.size_bytes,
                "seconds": round(summary.seconds, 6),
                "mb_per_s": round(rate, 3),
                "codec": job.codec,
                "blake3": summary.blake3_hex,
                "verified_by_peer": summary.verified_by_peer,
                "carried_bytes": summary.carried_bytes,
            }
        )
        click.echo(text, err=job.out == STREAM)
        return
    carried = ""
    if summary.carried_bytes:
        carried = f", {summary.carried_bytes} of them from before,"
    talk.say(
        f"{verb} {printable(summary.name)}: {summary.size_bytes} bytes "
        f"({human_bytes(summary.size_bytes)}){carried} in {summary.seconds:.3f} s, "
        f"{rate:.1f} MB/s, codec {job.codec}, blake3 {summary.blake3_hex}"
    )


async def _echo_calls(client: "Client", job: _Job, talk: Talk) -> None:
    import time

    from rpc25519_tools.errors import NoSuchServiceError
    from rpc25519_tools.files.echo import ECHO_CALL_SERVICE, ECHO_REQUEST

    from ._latency import latency_summary

    seconds: list[float] = []
    for _ in range(job.calls):
        start = time.perf_counter()
        try:
            reply = await client.call(ECHO_CALL_SERVICE, ECHO_REQUEST.encode())
        except NoSuchServiceError as exc:
            raise NoSuchServiceError(
                "the server does not offer echo calls (ours: --no-echo-service; "
                "Go's: -readfile)"
            ) from exc
        seconds.append(time.perf_counter() - start)
        if not talk.quiet and not job.json:
            shown = bytes(reply.payload[:_SHOWN_LEN]).decode("utf-8", "replace")
            for line in shown.split("\n"):
                click.echo(printable(line))
    summary = latency_summary(seconds)
    if job.json:
        import json

        click.echo(json.dumps({"operation": "echo", **summary}))
        return
    count = summary.pop("calls")
    figures = ", ".join(
        f"{name.removesuffix('_us')} {value:g} us" for name, value in summary.items()
    )
    click.echo(f"{count} echo call{'s' if count > 1 else ''}: {figures}")
