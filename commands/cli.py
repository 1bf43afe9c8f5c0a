"""The ``cli`` command: download, upload, echo."""

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from ._errors import reporting_errors
from ._gostyle import GoStyleCommand
from ._identity import open_identity
from ._known import check_known_keys, known_keys_options
from ._ls import LsOptions, ls_options
from ._options import (
    NamedPath,
    identity_options,
    transport_options,
    verbosity_options,
    version_option,
)
from ._output import Talk, printable
from ._passphrase import passphrase_options, passphrase_source
from ._psk import codec_in_use, psk_option, warn_unprotected
from ._retry import Attempts, retry_option
from ._startup import begin_imports, end_imports, limit_heaps

if TYPE_CHECKING:
    from rpc25519_tools.config import Config, Network
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
    wait_s: float
    retry_for_s: float
    codec: str
    json: bool
    verbose: bool
    ls: LsOptions | None


@click.command("cli", cls=GoStyleCommand)
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
@click.option(
    "--wait",
    default="10s",
    show_default=True,
    metavar="DURATION",
    help="Limit for connecting, and for each echo call.",
)
@click.option(
    "--hostport",
    default=":0",
    show_default=True,
    metavar="HOST:PORT",
    help="Dial from this local address.",
)
@retry_option
@ls_options
@transport_options
@identity_options("client")
@known_keys_options("known_server_keys")
@psk_option
@passphrase_options
@click.option(
    "--json", "as_json", is_flag=True, help="Print the summary, or a listing, as JSON."
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
    wait: str,
    retry_for: str,
    hostport: str,
    ls: LsOptions | None,
    network: "Network",
    press: str,
    big: bool,
    key_name: str,
    certs_dir: str,
    skip_verify: bool,
    known_keys_path: str | None,
    psk_path: str | None,
    passphrase_file: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """List, download, upload or echo files, or make echo calls.

    Without -ls, -download, -sendfile or -echofile, cli makes echo calls and prints the
    replies and how long they took.
    """
    begin_imports()
    with reporting_errors("cli"):
        from rpc25519_tools.config import Config, parse_address, parse_duration
        from rpc25519_tools.errors import ConfigError
        from rpc25519_tools.files.jail import split_remote_name
        from rpc25519_tools.wire.codecs import codec_from_name

        talk = Talk(prog="cli", quiet=quiet)
        _check_combination(download, sendfile, echofile, out, to, passphrase_file)
        moves_file = (download, sendfile, echofile) != (None, None, None)
        if ls is not None:
            ls.check(alone=not moves_file and calls == 1 and not no_clobber)
        _check_echo_calls(moves_file=moves_file, calls=calls, no_clobber=no_clobber)
        codec_from_name(press)
        if to is not None:
            split_remote_name(to)
        wait_s = parse_duration(wait)
        if not wait_s:
            raise ConfigError("-wait must be above zero")
        retry_for_s = parse_duration(retry_for)
        if not _can_retry(download, sendfile, out):
            retry_for_s = 0.0
        local = parse_address(hostport, default_port=0)
        config = Config(
            address=parse_address(address),
            network=network,
            key_name=key_name,
            certs_dir=certs_dir,
            passphrase=passphrase_source(passphrase_file),
            verify_peer=not skip_verify,
            known_keys_path=known_keys_path,
            pre_shared_key_path=psk_path,
            compression="none" if big else press,
            connect_timeout_s=wait_s,
            call_timeout_s=wait_s,
            local_address=local if local.host or local.port else None,
        )
        job = _Job(
            download=download,
            sendfile=sendfile,
            echofile=echofile,
            out=out,
            to=to,
            clobber=not no_clobber,
            calls=calls,
            wait_s=wait_s,
            retry_for_s=retry_for_s,
            codec=config.compression,
            json=as_json,
            verbose=verbose,
            ls=ls,
        )
        warn_unprotected(
            config,
            talk,
            plain="plain TCP: nothing is protected, and the server is not checked",
            skip="-skip-verify: the server is not checked; it can be anybody",
        )
        _run(config, job, talk)


def _check_combination(
    download: str | None,
    sendfile: str | None,
    echofile: str | None,
    out: str | None,
    to: str | None,
    passphrase_file: str | None,
) -> None:
    given = [name for name in (download, sendfile, echofile) if name is not None]
    if len(given) > 1:
        raise click.UsageError("give only one of -download, -sendfile and -echofile")
    if "" in given:
        raise click.UsageError("the file name is empty")
    if out is not None and download is None and echofile is None:
        raise click.UsageError("-o goes with -download or -echofile")
    if to is not None and sendfile is None:
        raise click.UsageError("--to goes with -sendfile")
    if to == "":
        raise click.UsageError("the name of --to is empty")
    if sendfile == STREAM and to is None:
        raise click.UsageError("standard input has no name: give one with --to")
    if echofile == STREAM and out is None:
        raise click.UsageError("standard input has no name: give a file with -o")
    if passphrase_file == STREAM and STREAM in (sendfile, echofile):
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
                hint = "perhaps it speaks TLS (then drop -tcp), or uses -psk"
                if config.uses_tls:
                    hint = "perhaps it does not let our key in, or uses -psk"
                if config.pre_shared_key_path is not None:
                    hint = "perhaps it has another pre-shared key"
                raise DeadlineError(f"{exc}; not one byte came: {hint}") from exc

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
        _describe_connection(client, talk)
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


def _describe_connection(client: "Client", talk: Talk) -> None:
    transport = client.transport
    peer = transport.peer.describe() if transport.peer else "an unverified server"
    talk.say(
        f"connected from {transport.local_address} to {transport.remote_address}, "
        f"{peer}, {transport.security}"
    )


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
