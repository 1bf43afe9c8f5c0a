"""The ``samesame`` command: be server and client at the same time."""

from typing import TYPE_CHECKING

import click

from ._errors import reporting_errors
from ._gostyle import GoStyleCommand
from ._identity import open_identity
from ._options import DEFAULT_CERTS_DIR, NamedPath, verbosity_options, version_option
from ._output import Talk, printable
from ._passphrase import passphrase_options, passphrase_source
from ._psk import psk_option, warn_unprotected

if TYPE_CHECKING:
    from rpc25519_tools.config import Config
    from rpc25519_tools.identity.store import LoadedIdentity

#: How long to wait between two attempts to reach the partner, in seconds.
RETRY_S = 0.2


@click.command("samesame", cls=GoStyleCommand)
@click.option(
    "-c",
    "own_address",
    default="127.0.0.1:8445",
    show_default=True,
    metavar="HOST:PORT",
    help="Our own address, to serve on and to call from: one UDP port.",
)
@click.option(
    "-s",
    "partner_address",
    default="127.0.0.1:8443",
    show_default=True,
    metavar="HOST:PORT",
    help="The partner's address, to call.",
)
@click.option("-r", "swap", is_flag=True, help="Swap the addresses and the key names.")
@click.option(
    "-k",
    "client_key",
    default="client",
    show_default=True,
    metavar="NAME",
    help="Our key pair as a client.",
)
@click.option(
    "--ks",
    "server_key",
    default="node",
    show_default=True,
    metavar="NAME",
    help="Our key pair as a server.",
)
@click.option(
    "--certs",
    "certs_dir",
    type=NamedPath(readable=False),
    default=DEFAULT_CERTS_DIR,
    show_default=True,
    metavar="DIR",
    help="Directory with the key pairs and ca.crt.",
)
@click.option("--skip-verify", is_flag=True, help="Accept any partner. For tests only.")
@click.option(
    "--sends",
    default=2,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="How many calls to make, each on a connection of its own.",
)
@click.option(
    "--wait",
    default="60s",
    show_default=True,
    metavar="DURATION",
    help="How long to wait for the partner, to be there and to make its calls.",
)
@psk_option
@passphrase_options
@verbosity_options
@version_option
def samesame(
    own_address: str,
    partner_address: str,
    swap: bool,
    client_key: str,
    server_key: str,
    certs_dir: str,
    skip_verify: bool,
    sends: int,
    wait: str,
    psk_path: str | None,
    passphrase_file: str | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Be server and client on one UDP port, and call a partner that is the same.

    Both speak QUIC. Start one with, and one without -r, in either order. Each waits
    for the other, makes its calls, answers the other's, and ends with a summary.
    """
    with reporting_errors("samesame"):
        from dataclasses import replace

        from rpc25519_tools.config import Config, parse_address, parse_duration

        from ._logging import log_to
        from ._run import run_to_end

        talk = Talk(prog="samesame", quiet=quiet)
        log_to(talk)
        if swap:
            own_address, partner_address = partner_address, own_address
            client_key, server_key = server_key, client_key
        wait_s = parse_duration(wait)
        as_client = Config(
            address=parse_address(partner_address),
            network="quic",
            key_name=client_key,
            certs_dir=certs_dir,
            passphrase=passphrase_source(passphrase_file),
            verify_peer=not skip_verify,
            pre_shared_key_path=psk_path,
        )
        warn_unprotected(
            as_client,
            talk,
            plain="nothing is protected",
            skip="-skip-verify: the partner is not checked; it can be anybody",
        )
        as_server = replace(
            as_client,
            address=parse_address(own_address, default_port=None),
            key_name=server_key,
        )

        keys = (open_identity(as_client, talk), open_identity(as_server, talk))

        async def main() -> None:
            await _meet(as_client, as_server, keys, sends, wait_s, talk, verbose)

        run_to_end("samesame", main)


async def _meet(
    as_client: "Config",
    as_server: "Config",
    keys: "tuple[LoadedIdentity | None, LoadedIdentity | None]",
    sends: int,
    wait_s: float,
    talk: Talk,
    verbose: bool,
) -> None:
    import asyncio
    from dataclasses import replace

    from rpc25519_tools.config import parse_address
    from rpc25519_tools.errors import DeadlineError
    from rpc25519_tools.files.echo import ECHO_CALL_SERVICE, echo_call
    from rpc25519_tools.rpc.context import CallContext
    from rpc25519_tools.rpc.handlers import Reply
    from rpc25519_tools.rpc.registry import Registry
    from rpc25519_tools.rpc.server import Server

    from ._transferlog import ServerLog

    received = 0
    all_received = asyncio.Event()

    async def counted_echo(context: CallContext) -> Reply:
        nonlocal received
        received += 1
        text = bytes(context.payload).decode("utf-8", "replace")
        click.echo(f"received call {received}: {printable(text)}")
        if received >= sends:
            all_received.set()
        return await echo_call(context)

    registry = Registry()
    registry.add_call(ECHO_CALL_SERVICE, counted_echo)
    server = Server(as_server, registry, ServerLog(talk, verbose=verbose))
    await server.start(keys[1])
    try:
        click.echo(f"samesame: listening on {server.address}")
        # From the port that we serve on.
        as_client = replace(as_client, local_address=parse_address(server.address))
        for number in range(1, sends + 1):
            reply = await _call_partner(as_client, keys[0], number, wait_s)
            click.echo(f"reply to call {number}: {printable(reply)}")
        try:
            async with asyncio.timeout(wait_s):
                await all_received.wait()
        except TimeoutError as exc:
            raise DeadlineError(
                f"sent {sends} calls, but received {received} of {sends} from the "
                f"partner within {wait_s:g} s"
            ) from exc
        await server.wait_until_idle()
    finally:
        await server.aclose()
    talk.say(f"samesame: sent {sends} calls, received {received}")


async def _call_partner(
    config: "Config", key: "LoadedIdentity | None", number: int, wait_s: float
) -> str:
    """Make one call on a new connection; wait for the partner to be there."""
    import asyncio

    from rpc25519_tools.errors import ConnectFailedError, DeadlineError
    from rpc25519_tools.files.echo import ECHO_CALL_SERVICE, ECHO_REQUEST
    from rpc25519_tools.rpc.client import Client

    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + wait_s
    client: Client | None = None
    while client is None:
        try:
            client = await Client.connect(config, key)
        except (ConnectFailedError, DeadlineError):
            if loop.time() > give_up_at:
                raise
            await asyncio.sleep(RETRY_S)
    async with client:
        request = f"call {number}: {ECHO_REQUEST}".encode()
        reply = await client.call(ECHO_CALL_SERVICE, request)
        return bytes(reply.payload).decode("utf-8", "replace")
