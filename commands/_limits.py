"""Options of what clients may cost; ``srv`` gets them as one object."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rpc25519_tools.errors import ConfigError
from rpc25519_tools.limits import Limits, Startups, format_size, parse_size

if TYPE_CHECKING:
    from rpc25519_tools.config import Config

    from ._output import Talk

_F = TypeVar("_F", bound=Callable[..., Any])
_DEFAULTS = Limits()

#: The option, its field of Limits, the form of its value, and its help.
_OPTIONS: tuple[tuple[str, str, str, str], ...] = (
    (
        "--max-connections",
        "max_connections",
        "N",
        "Most connections in all.",
    ),
    (
        "--max-connections-per-address",
        "max_connections_per_address",
        "N",
        "Most connections from one address, or from one IPv6 /64.",
    ),
    (
        "--max-startups",
        "max_startups",
        "START:RATE:FULL",
        (
            "Most connections that have not proved who they are. From START on, each "
            "new one drops an old one with a chance of RATE percent, growing to 100 "
            "at FULL."
        ),
    ),
    (
        "--max-failures",
        "max_failures_per_minute",
        "N",
        (
            "Refuse an address for the rest of a minute after so many failed "
            "handshakes in it (0: never)."
        ),
    ),
    (
        "--handshake-timeout",
        "handshake_timeout_s",
        "DURATION",
        "How long a client may take to prove who it is.",
    ),
    (
        "--max-message-size",
        "max_message_len",
        "SIZE",
        "Longest message, packed or unpacked. Files need more than 1MiB.",
    ),
    (
        "--max-header-size",
        "max_header_len",
        "SIZE",
        "Longest header of a message: its texts, and 64 bytes for each argument.",
    ),
    (
        "--max-calls",
        "max_calls",
        "N",
        "Most calls and transfers at a time on one connection.",
    ),
    (
        "--max-connection-memory",
        "max_connection_memory_len",
        "SIZE",
        "What the calls of one connection may hold before it has to wait.",
    ),
    (
        "--max-memory",
        "max_memory_len",
        "SIZE",
        "What all connections together may hold before they have to wait.",
    ),
)


def _default(metavar: str, field: str) -> str:
    value = getattr(_DEFAULTS, field)
    if metavar == "SIZE":
        return format_size(value)
    return f"{value:g}s" if metavar == "DURATION" else str(value)


def _parse(option: str, metavar: str, text: str) -> object:
    from rpc25519_tools.config import parse_duration

    try:
        if metavar == "SIZE":
            return parse_size(text)
        if metavar == "DURATION":
            return parse_duration(text)
        if metavar == "START:RATE:FULL":
            return Startups.parse(text)
        if not text.isascii() or not text.isdigit() or len(text) > 9:
            raise ConfigError(f"bad number {text!r}")
        return int(text)
    except ConfigError as exc:
        raise click.BadParameter(str(exc), param_hint=f"'{option}'") from exc


def limits_options(command: _F) -> _F:
    """Add the options of limits; the command gets one ``limits`` for all of them."""

    @functools.wraps(command)
    def with_limits(**values: Any) -> object:
        fields: dict[str, Any] = {}
        for option, field, metavar, _ in _OPTIONS:
            fields[field] = _parse(option, metavar, values.pop(field))
        try:
            limits = Limits(**fields)
        except ConfigError as exc:
            raise click.UsageError(_as_option(str(exc))) from exc
        return command(limits=limits, **values)

    wrapped: Any = with_limits
    for option, field, metavar, text in reversed(_OPTIONS):
        wrapped = click.option(
            option,
            field,
            metavar=metavar,
            default=_default(metavar, field),
            show_default=True,
            help=text,
        )(wrapped)
    return wrapped  # type: ignore[no-any-return]  # the same function to its caller


def _as_option(text: str) -> str:
    """Put the name of an option where an error names a field."""
    for option, field, _, _ in _OPTIONS:
        if text.startswith(f"{field} "):
            return option + text[len(field) :]
    return text


#: Of the descriptors that we may have, connections get so much; files need others.
_SHARE_OF_DESCRIPTORS = 0.75


def raise_descriptor_limit(config: "Config", talk: "Talk") -> "Config":
    """Allow as many open files as the system lets us have, and no more connections.

    Returns:
        The settings, with fewer connections where descriptors are fewer.
    """
    import contextlib
    import dataclasses
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit still
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = config.limits.max_connections
    if soft != resource.RLIM_INFINITY and most > soft * _SHARE_OF_DESCRIPTORS:
        fitting = max(1, int(soft * _SHARE_OF_DESCRIPTORS))
        if most != _DEFAULTS.max_connections:
            talk.warn(
                f"no more than {fitting} connections: this process may open "
                f"{soft} files (ulimit -n)"
            )
        limits = dataclasses.replace(config.limits, max_connections=fitting)
        return dataclasses.replace(config, limits=limits)
    return config
