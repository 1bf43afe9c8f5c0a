"""Settings, checked in one place before anything is opened.

Values that a user types as text (addresses, durations) are parsed here too, so that
every tool and the library agree about their form.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from rpc25519_tools.errors import ConfigError

DEFAULT_PORT: Final = 8443


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port; what a user types as ``HOST:PORT``."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str, *, default_port: int | None = DEFAULT_PORT) -> Address:
    """Parse ``HOST:PORT``, ``HOST``, ``:PORT``, ``[IPV6]:PORT`` or a bare IPv6 address.

    An empty host means every interface when listening.

    Raises:
        ConfigError: the text is no address, or has no port and there is no default.
    """
    host, port_text = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or rest == ":" or (rest and not rest.startswith(":")):
            raise ConfigError(f"bad address {text!r}: expected [HOST]:PORT")
        port_text = rest[1:]
        _require_ipv6(host, text)
    elif text.count(":") == 1:
        host, port_text = text.split(":")
        if not port_text:
            raise ConfigError(f"bad address {text!r}: no port after the colon")
    elif ":" in text:
        _require_ipv6(text, text)
    if any(c.isspace() or not c.isprintable() or c in "/@" for c in host):
        raise ConfigError(f"bad address {text!r}: expected HOST:PORT")
    if not port_text:
        if default_port is None or not host:
            raise ConfigError(f"bad address {text!r}: expected HOST:PORT")
        return Address(host, default_port)
    if not re.fullmatch("[0-9]{1,5}", port_text) or int(port_text) >= 1 << 16:
        raise ConfigError(f"bad address {text!r}: the port must be 0 to 65535")
    return Address(host, int(port_text))


def _require_ipv6(host: str, text: str) -> None:
    try:
        ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError as exc:
        raise ConfigError(f"bad address {text!r}: expected HOST:PORT") from exc


_UNIT_S: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_DURATION: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
#: A hundred years; longer durations are typing errors.
_LONGEST_S: Final = 100 * 365 * 86400.0


def parse_duration(text: str) -> float:
    """Parse a Go duration, such as ``10s``, ``1m30s`` or ``500ms``, into seconds.

    A number without a unit counts as seconds.

    Raises:
        ConfigError: the text is no duration, or is negative or absurdly long.
    """
    position, total = 0, 0.0
    if re.fullmatch(r"\d+(\.\d*)?|\.\d+", text):
        position, total = len(text), float(text)
    while match := _DURATION.match(text, position):
        total += float(match[1]) * _UNIT_S[match[2]]
        position = match.end()
    if not text or position < len(text):
        raise ConfigError(f"bad duration {text!r}: write 10s, 1m30s or 500ms")
    if total > _LONGEST_S:
        raise ConfigError(f"bad duration {text!r}: too long")
    return total


#: The transports that a Config can name.
Network = Literal["tls", "tcp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How a client or a server connects and who it is.

    Attributes:
        address: where a client dials to, or a server listens.
        network: ``tls``, or ``tcp`` for plain TCP without any protection.
        key_name: which pair in ``certs_dir`` is ours, NAME.crt and NAME.key.
        certs_dir: the directory with our pair and with ca.crt.
        passphrase: asked for the pass phrase when our key is protected.
        verify_peer: False accepts any peer (a loud choice, for tests only).
        compression: name of the codec for what we send: ``none``, ``s2``, ``lz4``,
            ``zstd:01``, ``zstd:03``, ``zstd:07`` or ``zstd:11``. A server uses it until
            a client's first message, then follows the client, unless it is ``none``.
        connect_timeout_s: limit for connecting and the handshake, in seconds.
        call_timeout_s: limit for one call when the caller names none, in seconds.
        stall_timeout_s: a client's transfer fails when nothing moves for this long.
        reply_timeout_s: limit for storing an upload after its last part, in seconds;
            generous, since the server has to put all of it on its disk.
        idle_timeout_s: a server closes a connection that moves nothing for this long,
            unless it is busy with a call; 0 never does. Dead hosts are noticed by
            TCP keep-alive in any case.
        local_address: where a client dials from; None leaves it to the system.
    """

    address: Address
    network: Network = "tls"
    key_name: str = "client"
    certs_dir: str = "certs"
    passphrase: Callable[[], bytes] | None = None
    verify_peer: bool = True
    compression: str = "s2"
    connect_timeout_s: float = 10.0
    call_timeout_s: float = 10.0
    stall_timeout_s: float = 30.0
    reply_timeout_s: float = 600.0
    idle_timeout_s: float = 0.0
    local_address: Address | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything."""
        if self.network not in ("tls", "tcp"):
            raise ConfigError(f"unknown network {self.network!r}: use tls or tcp")
        for name in (
            "connect_timeout_s",
            "call_timeout_s",
            "stall_timeout_s",
            "reply_timeout_s",
        ):
            if not 0 < getattr(self, name) <= _LONGEST_S:
                raise ConfigError(f"{name} must be above zero and below 100 years")
        if not 0 <= self.idle_timeout_s <= _LONGEST_S:
            raise ConfigError("idle_timeout_s must be zero, or below 100 years")
