"""What one peer, one address and all of them together may cost a server.

The numbers are generous to whoever works with us and bounded for whoever does not: a
hostile peer costs a connection, not the server. Also here, since they are written in
the same options: sizes (``64MiB``) and start:rate:full (``512:30:1024``) as text.
"""

import re
from dataclasses import dataclass, field
from typing import Final, Self

from rpc25519_tools.errors import ConfigError

_KIB: Final = 1 << 10
_MIB: Final = 1 << 20

#: No message can be longer than the wire's own limit, which is a little below this.
LONGEST_MESSAGE_LEN: Final = 64 * _MIB
#: No header can be longer than the wire's own limit.
LONGEST_HEADER_LEN: Final = 256 * _KIB
#: Shorter limits would refuse our own programs' calls.
_SHORTEST_LEN: Final = 4 * _KIB
#: A count above this is a typing error.
_MOST: Final = 1_000_000
_MOST_MEMORY_LEN: Final = 1 << 50
_LONGEST_HANDSHAKE_S: Final = 3600.0

_UNITS: Final = {
    "": 1,
    "b": 1,
    "k": _KIB,
    "kib": _KIB,
    "kb": 1000,
    "m": _MIB,
    "mib": _MIB,
    "mb": 1000**2,
    "g": 1 << 30,
    "gib": 1 << 30,
    "gb": 1000**3,
}
_SIZE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]{0,3})")


def parse_size(text: str) -> int:
    """Parse a number of bytes: ``1000``, ``64KiB``, ``10MB``, ``1.5GiB``, ``512M``.

    K, M and G alone mean the powers of 1024.

    Raises:
        ConfigError: the text is no size.
    """
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ConfigError(f"bad size {text!r}: write 65536, 64KiB, 10MB or 1GiB")
    return int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


def format_size(size_len: int) -> str:
    """Write a number of bytes as ``parse_size`` reads it."""
    for name, unit in (("GiB", 1 << 30), ("MiB", _MIB), ("KiB", _KIB)):
        if size_len and size_len % unit == 0:
            return f"{size_len // unit}{name}"
    return str(size_len)


@dataclass(frozen=True, slots=True)
class Startups:
    """How many connections may be unproven at a time: sshd's MaxStartups.

    Below ``start`` none is dropped; from there on each new connection has one dropped
    with a chance of ``rate`` percent, which grows to certainty at ``full``.

    sshd has 10:30:100, since each of its connections is a process. Ours is a socket and
    some kilobytes, and five hundred machines may well come back in the same second.
    """

    start: int = 512
    rate: int = 30
    full: int = 1024

    def __post_init__(self) -> None:
        if not 1 <= self.start <= self.full <= _MOST or not 1 <= self.rate <= 100:
            raise ConfigError(
                f"bad startups {self}: write START:RATE:FULL with START not above "
                "FULL and RATE from 1 to 100, such as 512:30:1024"
            )

    def __str__(self) -> str:
        return f"{self.start}:{self.rate}:{self.full}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``START:RATE:FULL``, or ``FULL`` alone, which drops none below it.

        Raises:
            ConfigError: the text is neither.
        """
        match = re.fullmatch(r"([0-9]{1,7})(?::([0-9]{1,3}):([0-9]{1,7}))?", text)
        if match is None:
            raise ConfigError(
                f"bad startups {text!r}: write START:RATE:FULL, such as 512:30:1024"
            )
        if match[2] is None:
            return cls(int(match[1]), 100, int(match[1]))
        return cls(int(match[1]), int(match[2]), int(match[3]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What peers may cost; a server's, except for the sizes of single messages.

    An address is an IPv4 address, or the first 64 bits of an IPv6 address: a customer
    gets no less than that, and could use another address for each connection.

    Attributes:
        max_connections: open connections in all. 4096 are ten times "a few hundred
            machines"; idle ones take about 60 KiB each.
        max_connections_per_address: open connections from one address; a quarter of
            all, since many machines can be behind one.
        max_startups: connections that have not proved who they are (over TLS) or have
            not sent one whole message (over plain TCP), in all.
        max_failures_per_minute: failed handshakes from one address; the rest of the
            minute it is refused. 0 does not count them. 60 are a program that tries
            once a second; each costs us a signature.
        handshake_timeout_s: seconds that a client may take to prove who it is, or for
            its HTTP head; Go's server has the same.
        max_message_len: bytes of a message, packed as well as unpacked. The wire allows
            64 MiB; a part of a file needs a little more than 1 MiB.
        max_header_len: bytes of a header: its texts, and 64 for each entry of its
            args, so that the number of entries is bounded too. The wire allows 256 KiB.
        max_calls: calls and streams that one connection may have running; one more is
            answered with an error. From Python 3.12 on a handler that waits for nothing
            has ended before the next call is looked at and never counts; on 3.11 calls
            that arrive in one piece all count, and some of more than 1,024 are refused.
        max_connection_memory_len: bytes that the calls of one connection may hold, in
            what they were called with, in parts that nobody has read yet, and in what
            waits to be sent. Beyond, it is not read from. 32 MiB are half of the
            longest message.
        max_memory_len: bytes that all connections together may hold in calls, parts,
            half-received messages and unsent answers. Beyond, whoever holds more than a
            little is not read from until there is room. Without what half-received
            messages take of clients that have yet to show their pre-shared key: see
            ``unproven_memory_len``.
    """

    max_connections: int = 4096
    max_connections_per_address: int = 1024
    max_startups: Startups = field(default_factory=Startups)
    max_failures_per_minute: int = 60
    handshake_timeout_s: float = 20.0
    max_message_len: int = LONGEST_MESSAGE_LEN
    max_header_len: int = LONGEST_HEADER_LEN
    max_calls: int = 1024
    max_connection_memory_len: int = 32 * _MIB
    max_memory_len: int = 512 * _MIB

    @property
    def unproven_memory_len(self) -> int:
        """Bytes that the first messages may take of clients that nobody has proved.

        That is a quarter of what all others may hold, but enough for the longest
        message. They are clients with a pre-shared key on plain TCP that have yet to
        show it.
        """
        return max(self.max_memory_len // 4, self.max_message_len + _KIB)

    def __post_init__(self) -> None:
        for name, least, most in (
            ("max_connections", 1, _MOST),
            ("max_connections_per_address", 1, _MOST),
            ("max_failures_per_minute", 0, _MOST),
            ("max_message_len", _SHORTEST_LEN, LONGEST_MESSAGE_LEN),
            ("max_header_len", _SHORTEST_LEN, LONGEST_HEADER_LEN),
            ("max_calls", 1, _MOST),
            ("max_connection_memory_len", _MIB, _MOST_MEMORY_LEN),
            ("max_memory_len", 16 * _MIB, _MOST_MEMORY_LEN),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                as_text = format_size if name.endswith("_len") else str
                raise ConfigError(
                    f"{name} must be from {as_text(least)} to {as_text(most)}"
                )
        if not 0 < self.handshake_timeout_s <= _LONGEST_HANDSHAKE_S:
            raise ConfigError("handshake_timeout_s must be above zero, up to an hour")
