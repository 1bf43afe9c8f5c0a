"""What commands that connect to a server have in common."""

from typing import TYPE_CHECKING

from ._output import Talk

if TYPE_CHECKING:
    from rpc25519_tools.config import Config
    from rpc25519_tools.errors import DeadlineError
    from rpc25519_tools.rpc.client import Client


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
