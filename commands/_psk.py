"""The ``-psk`` option: a key file for a second layer of encryption."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ._options import NamedPath

if TYPE_CHECKING:
    from rpc25519_tools.config import Config
    from rpc25519_tools.rpc.client import Client

    from ._output import Talk

_F = TypeVar("_F", bound=Callable[..., Any])


def psk_option(command: _F) -> _F:
    """Add ``-psk``; the command gets it as ``psk_path``."""
    return click.option(
        "--psk",
        "psk_path",
        type=NamedPath(readable=False),
        metavar="PATH",
        help="A file with a key (at least 32 bytes; selfy -gensym makes one) that both "
        "sides have: everything is encrypted with it once more, inside TLS or TCP. A "
        "changed file is read at the next start only.",
    )(command)


def check_psk(psk_path: str | None, talk: "Talk") -> None:
    """Read the key file before anything else, and warn when others can read it.

    Raises:
        KeyFileError: it is missing, or not usable.
    """
    if psk_path is None:
        return
    from rpc25519_tools.identity.pre_shared_key import load_pre_shared_key

    problem = load_pre_shared_key(psk_path).problem
    if problem is not None:
        talk.warn(problem)


def warn_unprotected(config: "Config", talk: "Talk", *, plain: str, skip: str) -> None:
    """Warn of what does not protect or does not check, unless the tunnel does it.

    Args:
        config: the settings.
        talk: where to warn.
        plain: the warning for plain TCP.
        skip: the warning for ``-skip-verify``.
    """
    if config.pre_shared_key_path is not None:
        if config.uses_tls and not config.verify_peer:
            talk.warn("-skip-verify: only the handshake of -psk checks the peer")
    elif not config.uses_tls:
        talk.warn(plain)
    elif not config.verify_peer:
        talk.warn(skip)


def codec_in_use(client: "Client", wanted: str, talk: "Talk") -> str:
    """Return the name of what packs our messages; warn where it is not as wanted."""
    from rpc25519_tools.wire.codecs import Codec, codec_from_name

    if client.codec is codec_from_name(wanted):
        return wanted
    assert client.codec is Codec.NONE_ONCE
    if wanted != "none":
        talk.warn(
            f"-press {wanted} is not used: a Go server can die of it with -psk; "
            "nothing is compressed (s2 would be)"
        )
    return "none"
