"""The ``srv`` command: serve a directory, take uploads, answer echoes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ._access import AccessOptions, access_options
from ._errors import reporting_errors
from ._gostyle import GoStyleCommand
from ._identity import open_identity
from ._known import known_keys_options
from ._limits import limits_options, raise_descriptor_limit
from ._options import (
    Seconds,
    identity_options,
    transport_options,
    verbosity_options,
    version_option,
)
from ._output import Talk
from ._passphrase import (
    passphrase_options,
    passphrase_source,
    unattended_passphrase,
)
from ._psk import psk_option, warn_unprotected
from ._startup import begin_imports, end_imports, limit_heaps

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Coroutine

    from rpc25519_tools.config import Config, Network
    from rpc25519_tools.identity.access import AccessPolicy
    from rpc25519_tools.limits import Limits
    from rpc25519_tools.rpc.registry import Registry

    from ._transferlog import ServerLog

DEFAULT_ADDRESS = "0.0.0.0:8443"
#: Where selfy keeps the authority, and the lists of known keys, if not told otherwise.
PRIVATE_DIR = "my-keep-private-dir"
DEFAULT_LISTS = ("known_client_keys", "known_server_keys")
#: How often to look whether our certificate has been renewed, in seconds.
IDENTITY_POLL_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What the server has to do, beyond its Config."""

    serve: str | None
    readfile: str | None
    echo: bool
    echo_service: bool
    clobber: bool
    allow_owners: bool
    seconds: float
    grace_s: float
    verbose: bool
    keep_back: tuple[str, ...]


@click.command("srv", cls=GoStyleCommand)
@click.option(
    "-s",
    "address",
    default=DEFAULT_ADDRESS,
    show_default=True,
    metavar="HOST:PORT",
    help="Listen here. Port 0 picks a free one.",
)
@click.option(
    "--serve",
    is_flag=False,
    flag_value=".",
    metavar="[DIR]",
    type=click.Path(file_okay=False, readable=False),
    help="Let clients list and download files of DIR (default: the current directory).",
)
@click.option(
    "--readfile",
    is_flag=False,
    flag_value=".",
    metavar="[DIR]",
    type=click.Path(file_okay=False, readable=False),
    help="Let clients upload files into DIR (default: the current directory).",
)
@click.option("--echo", is_flag=True, help="Send files back (cli -echofile).")
@click.option(
    "--no-echo-service", is_flag=True, help="Do not answer echo calls (customEcho)."
)
@click.option(
    "--no-clobber",
    is_flag=True,
    help="Refuse uploads that would replace a file, and pushes that could.",
)
@click.option(
    "--allow-owners",
    is_flag=True,
    help="Let clients that push set owners, set-uid bits and the like, and make device "
    "files. Only root can do that.",
)
@access_options
@transport_options
@identity_options("node")
@known_keys_options("known_client_keys")
@psk_option
@passphrase_options
@click.option(
    "--sec",
    default=0.0,
    type=Seconds(),
    metavar="N",
    help="Stop after so many seconds (0: never).",
)
@click.option(
    "--read",
    "idle",
    default="0",
    metavar="DURATION",
    help="Close a connection that moves nothing for so long, such as 90s or 5m "
    "(0: never).",
)
@click.option(
    "--grace",
    default="10s",
    show_default=True,
    metavar="DURATION",
    help="How long running transfers may go on after SIGINT or SIGTERM.",
)
@limits_options
@verbosity_options
@version_option
def srv(
    address: str,
    serve: str | None,
    readfile: str | None,
    echo: bool,
    no_echo_service: bool,
    no_clobber: bool,
    allow_owners: bool,
    access: AccessOptions,
    network: "Network",
    press: str,
    big: bool,
    key_name: str,
    certs_dir: str,
    skip_verify: bool,
    known_keys_path: str | None,
    psk_path: str | None,
    passphrase_file: str | None,
    sec: float,
    idle: str,
    grace: str,
    limits: "Limits",
    quiet: bool,
    verbose: bool,
) -> None:
    """Serve files and echo calls over TLS 1.3 or QUIC with client certificates.

    Nothing is given out or written unless -serve or -readfile says where. Clients
    need a certificate of the authority in ca.crt; -access says what each may do.
    Changed certificates, keys and ca.crt are used for new connections within some
    seconds, or at once on SIGHUP.
    """
    begin_imports()
    with reporting_errors("srv"):
        from rpc25519_tools.config import Config, parse_address, parse_duration
        from rpc25519_tools.wire.codecs import codec_from_name

        talk = Talk(prog="srv", quiet=quiet)
        if no_clobber and readfile is None:
            raise click.UsageError("--no-clobber goes with -readfile")
        if allow_owners and readfile is None:
            raise click.UsageError("--allow-owners goes with -readfile")
        codec_from_name(press)
        config = Config(
            address=parse_address(address, default_port=None),
            network=network,
            key_name=key_name,
            certs_dir=certs_dir,
            passphrase=passphrase_source(passphrase_file),
            verify_peer=not skip_verify,
            known_keys_path=known_keys_path,
            pre_shared_key_path=psk_path,
            compression="none" if big else press,
            idle_timeout_s=parse_duration(idle),
            identity_poll_s=IDENTITY_POLL_S,
            reload_passphrase=unattended_passphrase(passphrase_file),
            limits=limits,
        )
        job = _Job(
            serve=serve,
            readfile=readfile,
            echo=echo,
            echo_service=not no_echo_service,
            clobber=not no_clobber,
            allow_owners=allow_owners,
            seconds=sec,
            grace_s=parse_duration(grace),
            verbose=verbose,
            keep_back=_keep_back(config, access.path, passphrase_file),
        )
        warn_unprotected(
            config,
            talk,
            plain="plain TCP: nothing is protected, and anyone can connect",
            skip="-skip-verify: clients are not checked, and anyone can connect",
        )
        if access.check or access.question is not None:
            from ._check import check_server

            offer = _offer(config, job)
            check_server(
                config,
                access,
                talk,
                serve=serve,
                readfile=readfile,
                keep_back=job.keep_back,
                offer=offer,
            )
        else:
            _run(config, job, talk, access.open(config, talk))


def _run(
    config: "Config", job: _Job, talk: Talk, access: "AccessPolicy | None"
) -> None:
    import asyncio
    import contextlib
    import signal

    from rpc25519_tools.rpc.server import Server

    from ._hangup import Hangups
    from ._logging import log_to
    from ._transferlog import ServerLog

    handler = log_to(talk)
    config = raise_descriptor_limit(config, talk)
    log = ServerLog(talk, verbose=job.verbose)
    on_hangup = Hangups()
    identity = open_identity(config, talk)

    async def serve_until_stopped() -> None:
        # Each further signal is less patient: with transfers, then with slow lines.
        stop, hurry, end_now = asyncio.Event(), asyncio.Event(), asyncio.Event()

        def asked_to_stop() -> None:
            next((one for one in (stop, hurry) if not one.is_set()), end_now).set()

        with contextlib.ExitStack() as roots:
            services = _services(job, log, roots)
            # What goes wrong inside may name files of ours.
            server = Server(
                config,
                services,
                log,
                reveal_errors=False,
                identity_reloaded=log.identity_reloaded,
                access=access,
                heard=log.heard,
            )
            await server.start(identity)
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, asked_to_stop)
            if identity is not None:
                on_hangup.handle(server.look_for_identity, asked_to_stop)
            click.echo(f"srv: listening on {server.address} ({_offer(config, job)})")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), job.seconds or None)
            stop.set()
            server.stop_accepting()
            await first_of(
                server.wait_until_idle(), hurry.wait(), timeout_s=job.grace_s
            )
            hurry.set()
            await first_of(server.aclose(), end_now.wait(), timeout_s=None)

    async def first_of(
        *steps: "Coroutine[Any, Any, object]", timeout_s: float | None
    ) -> None:
        """Wait until one of the steps is done, and cancel the others."""
        tasks = [asyncio.create_task(step) for step in steps]
        await asyncio.wait(
            tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        for task in tasks:
            if not task.cancel():
                task.result()  # raises what it failed with

    end_imports()
    limit_heaps()
    try:
        asyncio.run(serve_until_stopped())
    finally:
        log.flush()
        handler.flush()


def _keep_back(
    config: "Config", access_path: str | None, passphrase_file: str | None
) -> tuple[str, ...]:
    """Return what is never served: keys, and what decides who is let in."""
    from rpc25519_tools.identity.known_peers import DENIED_SUFFIX

    lists = [*DEFAULT_LISTS]
    if config.known_keys_path is not None:
        lists.append(config.known_keys_path)
    others = (config.pre_shared_key_path, access_path, passphrase_file)
    return (
        config.certs_dir,
        PRIVATE_DIR,
        *(name + suffix for name in lists for suffix in ("", DENIED_SUFFIX, ".lock")),
        *(path for path in others if path not in (None, "", "-")),
    )


def _services(job: _Job, log: "ServerLog", roots: "contextlib.ExitStack") -> "Registry":
    """Register what the options ask for, and nothing else."""
    from rpc25519_tools.files.download import DownloadService
    from rpc25519_tools.files.echo import (
        ECHO_CALL_SERVICE,
        EchoFileService,
        echo_call,
    )
    from rpc25519_tools.files.jail import Root
    from rpc25519_tools.files.kept_uploads import KEPT_UPLOADS_SERVICE
    from rpc25519_tools.files.parts import (
        DOWNLOAD_SERVICE,
        ECHO_FILE_SERVICE,
        UPLOAD_SERVICE,
    )
    from rpc25519_tools.files.upload import UploadService
    from rpc25519_tools.rpc.context import CallContext
    from rpc25519_tools.rpc.handlers import Reply
    from rpc25519_tools.rpc.registry import Registry
    from rpc25519_tools.sync.list_records import LIST_SERVICE
    from rpc25519_tools.sync.listing import ListService
    from rpc25519_tools.sync.service import add_sync_services

    async def logged_echo_call(context: CallContext) -> Reply:
        log.call(context.remote_address, context.peer, len(context.payload))
        return await echo_call(context)

    registry = Registry()
    read_root = write_root = None
    if job.serve is not None:
        read_root = roots.enter_context(Root(job.serve, keep_back=job.keep_back))
        sender = DownloadService(read_root, log=log.transfer)
        registry.add_download(DOWNLOAD_SERVICE, sender)
        registry.add_download(LIST_SERVICE, ListService(read_root, log=log.transfer))
    if job.readfile is not None:
        write_root = roots.enter_context(Root(job.readfile, keep_back=job.keep_back))
        service = UploadService(write_root, clobber=job.clobber, log=log.transfer)
        registry.add_upload(UPLOAD_SERVICE, service)
        registry.add_call(KEPT_UPLOADS_SERVICE, service.kept)
    add_sync_services(
        registry,
        read_root=read_root,
        write_root=write_root,
        log=log.transfer,
        privileged=job.allow_owners,
        clobber=job.clobber,
    )
    if job.echo:
        registry.add_bistream(ECHO_FILE_SERVICE, EchoFileService(log=log.transfer))
    if job.echo_service:
        registry.add_call(ECHO_CALL_SERVICE, logged_echo_call)
    return registry


def _offer(config: "Config", job: _Job) -> str:
    """Say in a few words what is on offer and to whom."""
    offers = [
        text
        for wanted, text in (
            (job.serve is not None, "downloads, pulls"),
            (job.readfile is not None, "uploads, pushes"),
            (job.echo, "file echo"),
            (job.echo_service, "echo calls"),
        )
        if wanted
    ]
    how = {"tcp": "plain TCP", "quic": "QUIC", "tls": "TLS 1.3"}[config.network]
    if config.pre_shared_key_path is not None:
        how += " with a pre-shared key"
    return f"{how}; {', '.join(offers) or 'nothing on offer'}"
