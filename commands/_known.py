"""The options of ``srv`` and ``cli`` about lists of known keys."""

import contextlib
import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ._options import NamedPath

if TYPE_CHECKING:
    from rpc25519_tools.config import Config
    from rpc25519_tools.identity.known_peers import PeerRole

_F = TypeVar("_F", bound=Callable[..., Any])


def known_keys_options(default_name: str) -> Callable[[_F], _F]:
    """Add ``--known-keys`` and ``--no-known-keys``.

    The command gets one parameter, ``known_keys_path``: what Config has of that name.
    It must also have ``network``, ``skip_verify`` and ``psk_path``.

    Args:
        default_name: the list in the current directory that is used if it is there.
    """

    def decorate(command: _F) -> _F:
        @functools.wraps(command)
        def wrapped(
            *args: Any, known_keys: str | None, no_known_keys: bool, **kwargs: Any
        ) -> Any:
            path = _chosen(known_keys, default_name, off=no_known_keys)
            if known_keys is not None:
                _require_proof(**kwargs)
            return command(*args, known_keys_path=path, **kwargs)

        options: Any = wrapped
        for option in (
            click.option(
                "--no-known-keys", is_flag=True, help="Use no list of known keys."
            ),
            click.option(
                "--known-keys",
                type=NamedPath(readable=False, dir_okay=False),
                metavar="PATH",
                help="List of the keys met before. Writable: new keys are added; "
                "read-only: they are refused. Default, if it is there: "
                f"{default_name} in the current directory.",
            ),
        ):
            options = option(options)
        return options  # type: ignore[no-any-return]  # as functools.wraps made it

    return decorate


def _require_proof(
    *, network: str, skip_verify: bool, psk_path: str | None, **_: object
) -> None:
    """Refuse a list where no peer shows a key that could be looked up in it."""
    if psk_path is None and (network == "tcp" or skip_verify):
        option = "-tcp" if network == "tcp" else "-skip-verify"
        raise click.UsageError(
            f"--known-keys does not work with {option}, which shows no keys; with "
            "-psk it does"
        )


def _chosen(given: str | None, default_name: str, *, off: bool) -> str | None:
    if given is None:
        return None if off else default_name
    if off:
        raise click.UsageError("--known-keys and --no-known-keys exclude each other")
    with contextlib.suppress(OSError, ValueError):  # reading it will tell
        try:
            os.stat(given)
        except FileNotFoundError as exc:
            # Not so for the default name. But who names a list wants to be protected
            # by it, and a missing one protects from nothing.
            raise click.UsageError(
                f"there is no {given!r}; rpc25519 known unlock --file makes one"
            ) from exc
    return given


def check_known_keys(config: "Config", role: "PeerRole") -> None:
    """Check, before anything is connected, that the list lets in anybody at all.

    Args:
        config: the settings.
        role: of those whose keys are in the list.

    Raises:
        KeyFileError: it is locked and empty, or cannot be read.
    """
    from rpc25519_tools.rpc.known import known_guard

    guard = known_guard(config, role)
    if guard is not None:
        guard.require_usable_now()
