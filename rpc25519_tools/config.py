"""Settings, checked in one place before anything is opened.

Values that a user types as text (addresses, durations) are parsed here too, so that
every tool and the library agree about their form.
"""

import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from rpc25519_tools.errors import ConfigError
from rpc25519_tools.limits import Limits

DEFAULT_PORT: Final = 8443

#: What can pack the bodies of messages, by the names that users give.
COMPRESSIONS: Final = ("none", "s2", "lz4", "zstd:01", "zstd:03", "zstd:07", "zstd:11")


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port; what a user types as ``HOST:PORT``."""

    host: str
    port: int

    def __post_init__(self) -> None:
        """Check both."""
        if not isinstance(self.host, str):
            raise ConfigError(f"the host of an address must be text, not {self.host!r}")
        if type(self.port) is not int or not 0 <= self.port < 1 << 16:
            raise ConfigError(
                f"the port of an address must be 0 to 65535, not {self.port!r:.40}"
            )

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str, *, default_port: int | None = DEFAULT_PORT) -> Address:
    """Parse ``HOST:PORT``, ``HOST``, ``:PORT``, ``[IPV6]:PORT`` or a bare IPv6 address.

    An empty host means every interface when listening.

    Raises:
        ConfigError: the text is no address, or has no port and there is no default.
    """
    if not isinstance(text, str):
        raise ConfigError(f"bad address {text!r:.40}: expected a text, HOST:PORT")
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
    "d": 86400.0,
}
_DURATION: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h|d)")
#: A hundred years; longer durations are typing errors.
LONGEST_S: Final = 100 * 365 * 86400.0


def parse_duration(text: str) -> float:
    """Parse a Go duration, such as ``10s``, ``1m30s`` or ``500ms``, into seconds.

    A number without a unit counts as seconds. Unlike Go we also know ``d``, days of
    24 hours.

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
    if total > LONGEST_S:
        raise ConfigError(f"bad duration {text!r}: too long")
    return total


#: The transports that a Config can name.
Network = Literal["tls", "tcp", "quic"]


_AN_ADDRESS: Final = "an Address, such as parse_address makes from a text"
_SECONDS: Final = "a number of seconds"
_ASKING: Final = "a function that returns bytes, or None"

#: Which fields of a Config must be of which types, and how to say so.
_KINDS: Final[dict[str, tuple[Any, str]]] = {
    "address": (Address, _AN_ADDRESS),
    "network": (str, "text"),
    "key_name": (str, "text"),
    "certs_dir": (str | os.PathLike, "a path"),
    "passphrase": (Callable | None, _ASKING),
    "verify_peer": (bool, "True or False"),
    "known_keys_path": (str | os.PathLike | None, "a path, or None"),
    "pre_shared_key_path": (str | os.PathLike | None, "a path, or None"),
    "compression": (str, "text"),
    "http_connect": (bool, "True or False"),
    "local_address": (Address | None, f"None, or {_AN_ADDRESS}"),
    "no_share_port_quic": (bool, "True or False"),
    "connect_timeout_s": (int | float, _SECONDS),
    "call_timeout_s": (int | float, _SECONDS),
    "read_timeout_s": (int | float, _SECONDS),
    "write_timeout_s": (int | float, _SECONDS),
    "keepalive_s": (int | float, _SECONDS),
    "idle_timeout_s": (int | float, _SECONDS),
    "identity_poll_s": (int | float, _SECONDS),
    "reload_passphrase": (Callable | None, _ASKING),
    "stall_timeout_s": (int | float, _SECONDS),
    "reply_timeout_s": (int | float, _SECONDS),
    "limits": (Limits, "Limits"),
}

#: Shorter intervals would be noise; each costs a timer that fires twice in it.
_SHORTEST_INTERVAL_S: Final = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How a client or a server connects and who it is.

    All times are in seconds. One Config can serve for both roles where they share the
    address; each takes from it what concerns it.

    Attributes:
        address: where a client dials to, or a server listens.
        network: ``tls``; ``quic``, with the same guarantees over UDP; or ``tcp`` for
            plain TCP, which protects nothing unless there is a pre-shared key.
        key_name: which pair in ``certs_dir`` is ours, NAME.crt and NAME.key; empty
            means ``client`` for a client and ``node`` for a server.
        certs_dir: the directory with our pair and with ca.crt.
        passphrase: asked for the pass phrase when our key is protected.
        verify_peer: False accepts any peer (a loud choice, for tests only).
        known_keys_path: the list of keys that were met before: of clients for a server,
            of servers for a client. Where there is no such file, nothing is checked or
            recorded; one that may be written means trust on first use; a read-only one
            refuses unknown keys. None uses none; so do plain TCP and ``verify_peer``
            False, unless there is a pre-shared key, whose tunnel shows keys as well.
        pre_shared_key_path: a file with a key for a second layer of encryption
            inside the first, at least 32 bytes; both sides need the same one. With it
            certificates are needed on plain TCP too.
        compression: name of the codec for what we send: ``none``, ``s2``, ``lz4``,
            ``zstd:01``, ``zstd:03``, ``zstd:07`` or ``zstd:11``. A server uses it until
            a client's first message, then follows the client, unless it is ``none``.
        http_connect: begin with HTTP's CONNECT, as the other side then must do too;
            for plain TCP only.
        local_address: where a client dials from; None leaves it to the system. With
            ``quic`` it may be where this process serves, or where others of its
            clients dial from: they share the UDP port.
        no_share_port_quic: True gives each QUIC client and server a UDP port of its
            own; an address that is in use is an error then.
        connect_timeout_s: limit for connecting and the handshake.
        call_timeout_s: limit for one call when the caller names none.
        read_timeout_s: a connection on which nothing at all arrives for this long is
            over; 0 waits for ever. Use it with keep-alives on the other side.
        write_timeout_s: a connection whose peer takes nothing of what is to be sent
            for this long is over; 0 waits for ever.
        keepalive_s: send a keep-alive when nothing else was sent for this long; 0
            never does. Dead hosts are noticed by TCP's own keep-alive in any case.
        idle_timeout_s: a server closes a connection that moves nothing for this long,
            unless it is busy with a call; 0 never does.
        identity_poll_s: a TLS server looks so often whether its certificate, its key or
            ca.crt have changed, and uses the new ones for new connections; 0 never
            does.
        reload_passphrase: gets the pass phrase of a protected key that has replaced
            another while the server runs. It must not ask a person; it is called in a
            worker thread. None goes on with the old key.
        stall_timeout_s: a client's file transfer fails when nothing moves for this
            long.
        reply_timeout_s: limit for storing an upload after its last part; generous,
            since the server has to put all of it on its disk.
        limits: what peers may cost.
    """

    address: Address
    network: Network = "tls"
    key_name: str = ""
    certs_dir: str = "certs"
    passphrase: Callable[[], bytes] | None = None
    verify_peer: bool = True
    known_keys_path: str | None = None
    pre_shared_key_path: str | None = None
    compression: str = "s2"
    http_connect: bool = False
    local_address: Address | None = None
    no_share_port_quic: bool = False
    connect_timeout_s: float = 10.0
    call_timeout_s: float = 10.0
    read_timeout_s: float = 0.0
    write_timeout_s: float = 0.0
    keepalive_s: float = 0.0
    idle_timeout_s: float = 0.0
    identity_poll_s: float = 0.0
    reload_passphrase: Callable[[], bytes] | None = None
    stall_timeout_s: float = 30.0
    reply_timeout_s: float = 600.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises:
            ConfigError: names the field that is wrong.
        """
        _require_kinds(self)
        _require_key_name(self.key_name)
        if self.network not in ("tls", "tcp", "quic"):
            raise ConfigError(f"unknown network {self.network!r}: use tls, tcp or quic")
        if self.compression not in COMPRESSIONS:
            raise ConfigError(
                f"unknown compression {self.compression!r}; choose from "
                + ", ".join(COMPRESSIONS)
            )
        if self.known_keys_path == "":
            raise ConfigError("known_keys_path must not be empty; None uses no list")
        if self.http_connect and self.network != "tcp":
            raise ConfigError("http_connect works over plain TCP only (network tcp)")
        if self.pre_shared_key_path == "":
            raise ConfigError("pre_shared_key_path is empty")
        for name in (
            "connect_timeout_s",
            "call_timeout_s",
            "stall_timeout_s",
            "reply_timeout_s",
        ):
            if not 0 < getattr(self, name) <= LONGEST_S:
                raise ConfigError(f"{name} must be above zero and below 100 years")
        for name in (
            "read_timeout_s",
            "write_timeout_s",
            "keepalive_s",
            "idle_timeout_s",
            "identity_poll_s",
        ):
            value = getattr(self, name)
            if value and not _SHORTEST_INTERVAL_S <= value <= LONGEST_S:
                raise ConfigError(
                    f"{name} must be zero, or between {_SHORTEST_INTERVAL_S} s and "
                    "100 years"
                )

    @property
    def uses_tls(self) -> bool:
        """Whether the network encrypts, and shows certificates: TLS and QUIC do."""
        return self.network != "tcp"

    @property
    def needs_identity(self) -> bool:
        """Whether our certificate and its key are needed: all but bare plain TCP."""
        return self.uses_tls or self.pre_shared_key_path is not None


def _require_kinds(config: Config) -> None:
    for name, (kinds, words) in _KINDS.items():
        value = getattr(config, name)
        if not isinstance(value, kinds):
            # Its type only: the value may be a secret.
            raise ConfigError(f"{name} must be {words}, not {type(value).__name__}")


def _require_key_name(name: str) -> None:
    """Refuse what would lead out of the directory of keys."""
    if set(name) & set("/\\\0") or name in (".", ".."):
        raise ConfigError(f"key_name must be the name of a pair, not {name!r}")


def require_config(config: object) -> None:
    """Make sure that what a caller has given for a Config is one.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(config, Config):
        raise ConfigError(
            f"a Config is wanted, such as Config(address=...), not {config!r:.60}"
        )
