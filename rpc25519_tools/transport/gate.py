"""Who may connect: decided before a connection has cost more than its socket (sans-IO).

The gate knows every connection of a server by a ticket, and what its peer has shown:
nothing yet (silent), that it has begun a handshake, that it speaks the protocol where
nobody has to say who he is (nameless), or who it is (known). When a new connection
comes, in this order:

1. its address has failed too often in this minute: it is refused;
2. there are too many from its address: one of these makes room;
3. there are many silent ones and handshakes: one of them is dropped with the chance
   that sshd's MaxStartups (sshd_config(5)) gives it;
4. there are too many in all: one of the address that has most connections whose peers
   have not shown who they are makes room. Where none can, the next such address is
   asked, and so on for a few of them.

Where nobody makes room, the new one is refused.

sshd drops the newcomer. Here others go, the first that there are of:

- where more than a quarter of the places that there are for silent ones and handshakes
  have silent ones: the oldest of the silent ones. Below that they are safe: each must
  have had the time to be listened to. So a flood of silent ones, even one that comes
  from thousands of addresses, costs nobody a handshake that has begun;
- the nameless one that has been idle longest, if that is a second or more: it has sent
  nothing, and does not wait for us;
- the oldest handshake;
- the oldest silent one.

Of silent ones and handshakes, where it is not for one address alone, those of the
address that has most of the kind go first: whoever opens thousands loses them.

Nobody who has shown who he is ever goes, and no nameless one that is busy. Who is
nameless, idle and comes from the address that has most may lose its place, but only
when the server is full, in all or for that address.

Memory is bounded by the number of connections and by _REMEMBERED addresses.
"""

import functools
import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from rpc25519_tools.limits import Limits, Startups
from rpc25519_tools.transport.crowds import Crowd, Idlers, Ranking, Standing, Ticket

#: Addresses whose failures are remembered at a time.
_REMEMBERED: Final = 4096
_MINUTE_S: Final = 60.0
#: The part of all places for unproven ones that silent ones have to themselves.
_SILENT_SHARE: Final = 4
#: Addresses that are asked for one that makes room.
_MOST_ASKED: Final = 8
#: When none of them had any, nobody is asked for so many seconds.
_ASK_AGAIN_S: Final = 0.1

_IPV6_SITE_BITS: Final = 64


def site_of(host: str) -> str:
    """Return what counts as one address: an IPv4 address, or an IPv6 /64.

    Args:
        host: an address as the socket has it, maybe with an IPv6 scope; other text,
            such as that of a socket that is gone, stands for itself.
    """
    return host if ":" not in host else _ipv6_site(host)


@functools.lru_cache(_REMEMBERED)
def _ipv6_site(host: str) -> str:
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    bits = int(address) >> 128 - _IPV6_SITE_BITS << 128 - _IPV6_SITE_BITS
    return f"{ipaddress.IPv6Address(bits)}/{_IPV6_SITE_BITS}"


def is_drop_due(startups: Startups, unproven: int, draw: Callable[[int], int]) -> bool:
    """Decide as sshd does whether a connection has to go.

    Args:
        startups: the setting.
        unproven: how many are unproven, without the new one.
        draw: returns a random number from 0 up to, but not including, its argument.
    """
    if unproven < startups.start:
        return False
    if unproven >= startups.full or startups.rate == 100:
        return True
    beyond, span = unproven - startups.start, startups.full - startups.start
    percent = startups.rate + (100 - startups.rate) * beyond // span
    return draw(100) < percent


@dataclass(frozen=True, slots=True)
class Admission:
    """The new connection may come in.

    Attributes:
        ticket: for the gate's other methods.
        dropped: the connections that have to end for it; their tickets are void.
    """

    ticket: Ticket
    dropped: tuple[Ticket, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The new connection must be closed at once.

    Attributes:
        site: its address.
        reason: one line for the log.
    """

    site: str
    reason: str


class _Failures:
    """Failed handshakes of each address in the minute that its first one began."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: Address -> when its minute began, and how many; the oldest minute first.
        self._minutes: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def add(self, site: str, now: float) -> None:
        if not self._limit:
            return
        self._forget_old(now)
        if site in self._minutes:
            began, count = self._minutes[site]
            self._minutes[site] = (began, count + 1)
            return
        if len(self._minutes) >= _REMEMBERED:
            self._minutes.popitem(last=False)
        self._minutes[site] = (now, 1)

    def are_too_many(self, site: str, now: float) -> bool:
        self._forget_old(now)
        _, count = self._minutes.get(site, (now, 0))
        return bool(self._limit) and count >= self._limit

    def _forget_old(self, now: float) -> None:
        while self._minutes:
            began, _ = next(iter(self._minutes.values()))
            if now - began < _MINUTE_S:
                return
            self._minutes.popitem(last=False)


class Gate:
    """Lets connections in, and keeps count of them.

    Args:
        limits: how many.
        draw: see ``is_drop_due``.
    """

    def __init__(self, limits: Limits, draw: Callable[[int], int]) -> None:
        self._limits = limits
        self._draw = draw
        self._silent = Crowd()
        self._begun = Crowd()
        self._idlers = Idlers()
        #: Addresses of those whose peers have not shown who they are.
        self._nobodies = Ranking()
        self._failures = _Failures(limits.max_failures_per_minute)
        self._total = 0
        self._of_site: dict[str, int] = {}
        full = limits.max_startups.full
        self._most_silent = min(full, limits.max_connections) // _SILENT_SHARE
        self._most_silent_of_site = (
            min(full, limits.max_connections_per_address) // _SILENT_SHARE
        )
        self._ask_again_s = 0.0

    @property
    def total(self) -> int:
        """How many connections are open."""
        return self._total

    @property
    def unproven(self) -> int:
        """How many of them are silent, or in their handshake."""
        return self._silent.count + self._begun.count

    @property
    def is_crowded(self) -> bool:
        """Whether there are so many of these that some have to go for newcomers."""
        return self.unproven >= self._limits.max_startups.start

    def admit(self, host: str, now: float) -> Admission | Refusal:
        """Decide about a new connection.

        Args:
            host: the peer's address, without port.
            now: a clock that never goes back, in seconds.
        """
        site, limits = site_of(host), self._limits
        if self._failures.are_too_many(site, now):
            return Refusal(site, "too many failed handshakes from its address")
        drop_due = is_drop_due(limits.max_startups, self.unproven, self._draw)
        dropped = []
        if self._of_site.get(site, 0) >= limits.max_connections_per_address:
            victim = self._first_of(site, now)
            if victim is None:
                return Refusal(site, "too many connections from its address")
            drop_due = drop_due and not victim.unproven
            self.leave(victim)
            dropped.append(victim)
        if drop_due:
            victim = self._first_unproven()
            assert victim is not None  # or it would not be due
            self.leave(victim)
            dropped.append(victim)
        if self._total >= limits.max_connections:
            victim = self._first_of_all(now)
            if victim is None:
                return Refusal(site, "too many connections")
            self.leave(victim)
            dropped.append(victim)
        ticket = Ticket(site)
        self._total += 1
        self._of_site[site] = self._of_site.get(site, 0) + 1
        self._silent.add(ticket)
        self._nobodies.add(site)
        return Admission(ticket, tuple(dropped))

    def begin(self, ticket: Ticket) -> None:
        """Note that a silent peer has begun its handshake, and been answered."""
        if ticket.standing is Standing.SILENT:
            self._silent.remove(ticket)
            ticket.standing = Standing.BEGUN
            self._begun.add(ticket)

    def seat(self, ticket: Ticket, idle_since: Callable[[], float], now: float) -> None:
        """Note that a peer speaks the protocol where it need not say who it is.

        Args:
            ticket: its ticket.
            idle_since: see Ticket; takes the place of what was given before.
            now: a clock that never goes back, in seconds.
        """
        if ticket.standing in (Standing.KNOWN, Standing.GONE):
            return
        ticket.idle_since = idle_since
        if ticket.standing is not Standing.NAMELESS:
            self._take_out(ticket, Standing.NAMELESS)
            self._idlers.add(ticket, now)

    def prove(self, ticket: Ticket) -> None:
        """Note that a peer has shown who it is; doing so again changes nothing."""
        if ticket.standing not in (Standing.KNOWN, Standing.GONE):
            self._take_out(ticket, Standing.KNOWN)
            self._nobodies.remove(ticket.site)

    def fail(self, ticket: Ticket, now: float) -> None:
        """Note that a peer has failed to show who it is; its connection goes on."""
        self.prove(ticket)  # it is no candidate for dropping any more
        self._failures.add(ticket.site, now)

    def leave(self, ticket: Ticket) -> None:
        """Note that a connection has ended; once for each ticket."""
        if ticket.standing is not Standing.KNOWN:
            self._nobodies.remove(ticket.site)
        self._take_out(ticket, Standing.GONE)
        self._total -= 1
        left = self._of_site[ticket.site] - 1
        if left:
            self._of_site[ticket.site] = left
        else:
            del self._of_site[ticket.site]

    # Inside.

    def _take_out(self, ticket: Ticket, standing: Standing) -> None:
        """Take a ticket from those of its standing; it has another one from now on."""
        before, ticket.standing = ticket.standing, standing
        if before is Standing.SILENT:
            self._silent.remove(ticket)
        elif before is Standing.BEGUN:
            self._begun.remove(ticket)
        elif before is Standing.NAMELESS:
            self._idlers.remove(ticket)

    def _first_unproven(self) -> Ticket | None:
        """Return the silent one, or the handshake, that goes first."""
        if self._silent.count > self._most_silent:
            return self._silent.oldest_of_most()
        return self._begun.oldest_of_most() or self._silent.oldest_of_most()

    def _first_of(self, site: str, now: float) -> Ticket | None:
        """Return the connection of an address that goes first, if any may."""
        if self._silent.count_of(site) > self._most_silent_of_site:
            return self._silent.oldest_of(site)
        return (
            self._idlers.longest_of(site, now)
            or self._begun.oldest_of(site)
            or self._silent.oldest_of(site)
        )

    def _first_of_all(self, now: float) -> Ticket | None:
        """Return the connection that goes first, if any may."""
        if self._silent.count > self._most_silent:
            return self._silent.oldest_of_most()
        if now >= self._ask_again_s:
            for site in islice(self._nobodies, _MOST_ASKED):
                ticket = self._first_of(site, now)
                if ticket is not None:
                    return ticket
            self._ask_again_s = now + _ASK_AGAIN_S
        return None
