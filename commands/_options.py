"""Options that several commands share: one decorator per subject."""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from rpc25519_tools import __version__

_F = TypeVar("_F", bound=Callable[..., Any])

DEFAULT_CERTS_DIR = "certs"


class NamedPath(click.Path):
    """A path that is not empty, which would mean the current directory, or nothing."""

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        """Check what was typed; see `click.ParamType.convert`."""
        if not value:
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


class Seconds(click.FloatRange):
    """A number of seconds, from 0 on, and no ``nan`` or ``inf``."""

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        """Check what was typed; see `click.ParamType.convert`."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return number


def identity_options(default_key: str) -> Callable[[_F], _F]:
    """Add who we are: ``-k``, ``-certs`` and ``-skip-verify``."""

    def decorate(command: _F) -> _F:
        for option in (
            click.option(
                "--skip-verify",
                is_flag=True,
                help="Accept any peer, whoever it is. For tests only.",
            ),
            click.option(
                "--certs",
                "certs_dir",
                type=NamedPath(readable=False),
                default=DEFAULT_CERTS_DIR,
                show_default=True,
                metavar="DIR",
                help="Directory with NAME.crt, NAME.key and ca.crt.",
            ),
            click.option(
                "-k",
                "key_name",
                default=default_key,
                show_default=True,
                metavar="NAME",
                help="Which key pair in the certificate directory is ours.",
            ),
        ):
            command = option(command)
        return command

    return decorate


def transport_options(command: _F) -> _F:
    """Add how to connect and to compress: ``-tcp``, ``-q``, ``-press`` and ``-big``.

    The command gets ``press``, ``big``, and ``network`` as Config has it.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, tcp: bool, quic: bool, **kwargs: Any) -> Any:
        if tcp and quic:
            raise click.UsageError("-tcp and -q exclude each other")
        network = "tcp" if tcp else "quic" if quic else "tls"
        return command(*args, network=network, **kwargs)

    options: Any = wrapped
    for option in (
        click.option("-q", "--quic", is_flag=True, help="QUIC, which is over UDP."),
        click.option(
            "--big",
            is_flag=True,
            help="Send without compression; right for what is compressed already.",
        ),
        click.option(
            "--press",
            default="s2",
            show_default=True,
            metavar="CODEC",
            shell_complete=_complete_codec,
            help="Compress what is sent: s2, lz4, zstd:01, zstd:03, zstd:07, zstd:11 "
            "or none.",
        ),
        click.option(
            "--tcp",
            is_flag=True,
            help="Plain TCP: nothing is encrypted and nobody is authenticated.",
        ),
    ):
        options = option(options)
    return options  # type: ignore[no-any-return]  # as functools.wraps made it


def _complete_codec(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[str]:
    from rpc25519_tools.wire.codecs import codec_names

    return [name for name in codec_names() if name.startswith(incomplete)]


def verbosity_options(command: _F) -> _F:
    """Add ``-quiet`` and ``-v``."""
    command = click.option(
        "-v", "--verbose", "verbose", is_flag=True, help="Say more about what happens."
    )(command)
    return click.option(
        "--quiet", is_flag=True, help="Say nothing but warnings and errors."
    )(command)


def version_option(command: _F) -> _F:
    """Add ``--version``."""
    return click.version_option(
        __version__, message="%(prog)s of rpc25519-tools %(version)s"
    )(command)
