"""The ``samesame`` command: be server and client at the same time."""

import click

from ._errors import reporting_errors
from ._gostyle import GoStyleCommand
from ._identity import open_identity
from ._options import DEFAULT_CERTS_DIR, NamedPath, verbosity_options, version_option
from ._output import Talk
from ._passphrase import passphrase_options, passphrase_source
from ._psk import psk_option, warn_unprotected

#: How long the partner may take to answer a call, if -wait is not shorter, in seconds.
CALL_TIMEOUT_S = 10.0
#: A shorter -wait means this, in seconds.
SHORTEST_WAIT_S = 0.1


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
        from ._meeting import Meeting
        from ._run import run_to_end

        talk = Talk(prog="samesame", quiet=quiet)
        log_to(talk)
        if swap:
            own_address, partner_address = partner_address, own_address
            client_key, server_key = server_key, client_key
        wait_s = max(parse_duration(wait), SHORTEST_WAIT_S)
        as_client = Config(
            address=parse_address(partner_address),
            network="quic",
            key_name=client_key,
            certs_dir=certs_dir,
            passphrase=passphrase_source(passphrase_file),
            verify_peer=not skip_verify,
            pre_shared_key_path=psk_path,
            call_timeout_s=min(CALL_TIMEOUT_S, wait_s),
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
            meeting = Meeting(
                as_client,
                as_server,
                sends=sends,
                wait_s=wait_s,
                talk=talk,
                verbose=verbose,
            )
            await meeting.run(*keys)

        run_to_end("samesame", main)
