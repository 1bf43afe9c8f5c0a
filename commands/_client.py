"""What commands that connect to a server have in common."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ._known import known_keys_options
from ._options import identity_options, transport_options
from ._output import Talk
from ._passphrase import passphrase_options, passphrase_source
from ._psk import psk_option, warn_unprotected
from ._retry import retry_option

if TYPE_CHECKING:
    from rpc25519_tools.config import Address, Config, Network
    from rpc25519_tools.errors import DeadlineError
    from rpc25519_tools.rpc.client import Client

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What the command line says about connections, whoever they are to."""

    wait: str
    retry_for: str
    hostport: str
    network: "Network"
    press: str
    big: bool
    key_name: str
    certs_dir: str
    skip_verify: bool
    known_keys_path: str | None
    psk_path: str | None
    passphrase_file: str | None

    def retry_for_s(self) -> float:
        """Return how long to go on without progress after a cut, in seconds.

        Raises:
            ConfigError: it is no duration.
        """
        from rpc25519_tools.config import parse_duration

        return parse_duration(self.retry_for)

    def config(self, address: "Address", talk: Talk) -> "Config":
        """Return the settings, and warn where they protect nothing.

        Raises:
            ConfigError: one of them is not valid.
        """
        from rpc25519_tools.config import Config, parse_address, parse_duration
        from rpc25519_tools.errors import ConfigError
        from rpc25519_tools.wire.codecs import codec_from_name

        codec_from_name(self.press)
        wait_s = parse_duration(self.wait)
        if not wait_s:
            raise ConfigError("-wait must be above zero")
        local = parse_address(self.hostport, default_port=0)
        config = Config(
            address=address,
            network=self.network,
            key_name=self.key_name,
            certs_dir=self.certs_dir,
            passphrase=passphrase_source(self.passphrase_file),
            verify_peer=not self.skip_verify,
            known_keys_path=self.known_keys_path,
            pre_shared_key_path=self.psk_path,
            compression="none" if self.big else self.press,
            connect_timeout_s=wait_s,
            call_timeout_s=wait_s,
            local_address=local if local.host or local.port else None,
        )
        warn_unprotected(
            config,
            talk,
            plain="plain TCP: nothing is protected, and the server is not checked",
            skip="-skip-verify: the server is not checked; it can be anybody",
        )
        return config


def connection_options(command: _F) -> _F:
    """Add how to connect; the command gets Connection as ``connection``."""
    fields = Connection.__dataclass_fields__

    @functools.wraps(command)
    def with_connection(*args: Any, **kwargs: Any) -> Any:
        values = {name: kwargs.pop(name) for name in fields}
        return command(*args, connection=Connection(**values), **kwargs)

    options: Any = with_connection
    for decorate in (
        passphrase_options,
        psk_option,
        known_keys_options("known_server_keys"),
        identity_options("client"),
        transport_options,
        retry_option,
        click.option(
            "--hostport",
            default=":0",
            show_default=True,
            metavar="HOST:PORT",
            help="Dial from this local address.",
        ),
        click.option(
            "--wait",
            default="10s",
            show_default=True,
            metavar="DURATION",
            help="Limit for connecting, and for each echo call.",
        ),
    ):
        options = decorate(options)
    return options  # type: ignore[no-any-return]  # as functools.wraps made it


def describe_connection(client: "Client", talk: Talk) -> None:
    """Say who is connected to whom, and what protects it."""
    transport = client.transport
    peer = transport.peer.describe() if transport.peer else "an unverified server"
    talk.say(
        f"connected from {transport.local_address} to {transport.remote_address}, "
        f"{peer}, {transport.security}"
    )


def unheard(config: "Config", exc: "DeadlineError") -> "DeadlineError":
    """Return an error that also guesses why a server has not said one byte."""
    from rpc25519_tools.errors import DeadlineError

    hint = "perhaps it speaks TLS (then drop -tcp), or uses -psk"
    if config.uses_tls:
        hint = "perhaps it does not let our key in, or uses -psk"
    if config.pre_shared_key_path is not None:
        hint = "perhaps it has another pre-shared key"
    return DeadlineError(f"{exc}; not one byte came: {hint}")
