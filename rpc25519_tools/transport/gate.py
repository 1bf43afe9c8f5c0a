"""Who may connect: decided before a connection has cost more than its socket (sans-IO).

The gate knows every connection of a server by a ticket. A ticket is unproven until its
peer has shown who it is. When a new connection comes, in this order:

1. its address has failed too often in this minute: it is refused;
2. there are too many connections from its address, or in all: an unproven one of the
   same address, or of the address that has most of them, makes room. Without any, the
   new one is refused;
3. there are many unproven ones: one of them is dropped with the chance that sshd's
   MaxStartups (sshd_config(5)) gives it.

sshd drops the newcomer. Here the oldest one of the address with most unproven
connections goes: whoever opens thousands and says nothing has the oldest, and loses
them, while a client that goes on with its handshake is through before it is its turn.
Where it is not, on a line or machine that is slow, it still comes after those of its
address that have not begun one.

Memory is bounded by the number of connections and by _REMEMBERED addresses.
"""

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from rpc25519_tools.limits import Limits, Startups

#: Addresses whose failures are remembered at a time.
_REMEMBERED: Final = 4096
_MINUTE_S: Final = 60.0

_IPV6_SITE_BITS: Final = 64


def site_of(host: str) -> str:
    """Return what counts as one address: an IPv4 address, or an IPv6 /64.

    Args:
        host: an address as the socket has it, maybe with an IPv6 scope; other text,
            such as that of a socket that is gone, stands for itself.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
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


@dataclass(slots=True, eq=False)
class Ticket:
    """One connection that was let in.

    Attributes:
        site: its address, as ``site_of`` writes it.
        unproven: whether its peer has yet to show who it is.
    """

    site: str
    unproven: bool = True


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


class _OfSite:
    """The unproven tickets of one address, the oldest first.

    Those that have begun a handshake are set apart when it would be their turn, which
    happens once to each.
    """

    def __init__(self) -> None:
        self._silent: OrderedDict[Ticket, None] = OrderedDict()
        self._begun: OrderedDict[Ticket, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._silent) + len(self._begun)

    def add(self, ticket: Ticket) -> None:
        self._silent[ticket] = None

    def remove(self, ticket: Ticket) -> None:
        del (self._silent if ticket in self._silent else self._begun)[ticket]

    def oldest(self, has_begun: Callable[[Ticket], bool]) -> Ticket:
        while self._silent:
            ticket = next(iter(self._silent))
            if not has_begun(ticket):
                return ticket
            del self._silent[ticket]
            self._begun[ticket] = None
        return next(iter(self._begun))


class _Unproven:
    """Unproven tickets by address; finds the address that has most of them.

    Every operation takes the same time, however many there are: they are done when
    there are far too many.
    """

    def __init__(self, has_begun: Callable[[Ticket], bool]) -> None:
        self.count = 0
        self._has_begun = has_begun
        self._by_site: dict[str, _OfSite] = {}
        #: At index n the addresses that have n tickets, in the order they came there.
        self._with_count: list[OrderedDict[str, None]] = [OrderedDict()]

    def add(self, ticket: Ticket) -> None:
        tickets = self._by_site.setdefault(ticket.site, _OfSite())
        tickets.add(ticket)
        self.count += 1
        count = len(tickets)
        if count == len(self._with_count):
            self._with_count.append(OrderedDict())
        self._with_count[count - 1].pop(ticket.site, None)
        self._with_count[count][ticket.site] = None

    def remove(self, ticket: Ticket) -> None:
        tickets = self._by_site[ticket.site]
        count = len(tickets)
        tickets.remove(ticket)
        self.count -= 1
        del self._with_count[count][ticket.site]
        if tickets:
            self._with_count[count - 1][ticket.site] = None
        else:
            del self._by_site[ticket.site]
        while len(self._with_count) > 1 and not self._with_count[-1]:
            self._with_count.pop()

    def oldest_of(self, site: str) -> Ticket | None:
        tickets = self._by_site.get(site)
        return tickets.oldest(self._has_begun) if tickets else None

    def oldest_of_most(self) -> Ticket | None:
        if not self.count:
            return None
        return self.oldest_of(next(iter(self._with_count[-1])))


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
        has_begun: tells whether an unproven peer has begun its handshake, and been
            answered: it is dropped after those of its address that have not.
    """

    def __init__(
        self,
        limits: Limits,
        draw: Callable[[int], int],
        has_begun: Callable[[Ticket], bool] = lambda _: False,
    ) -> None:
        self._limits = limits
        self._draw = draw
        self._unproven = _Unproven(has_begun)
        self._failures = _Failures(limits.max_failures_per_minute)
        self._total = 0
        self._of_site: dict[str, int] = {}

    @property
    def total(self) -> int:
        """How many connections are open."""
        return self._total

    @property
    def unproven(self) -> int:
        """How many of them are unproven."""
        return self._unproven.count

    def admit(self, host: str, now: float) -> Admission | Refusal:
        """Decide about a new connection.

        Args:
            host: the peer's address, without port.
            now: a clock that never goes back, in seconds.
        """
        site, limits = site_of(host), self._limits
        if self._failures.are_too_many(site, now):
            return Refusal(site, "too many failed handshakes from its address")
        drop_due = is_drop_due(limits.max_startups, self._unproven.count, self._draw)
        dropped = []
        if self._of_site.get(site, 0) >= limits.max_connections_per_address:
            victim = self._unproven.oldest_of(site)
            if victim is None:
                return Refusal(site, "too many connections from its address")
            self.leave(victim)
            dropped.append(victim)
        elif self._total >= limits.max_connections or drop_due:
            victim = self._unproven.oldest_of_most()
            if victim is None:
                return Refusal(site, "too many connections")
            self.leave(victim)
            dropped.append(victim)
        ticket = Ticket(site)
        self._total += 1
        self._of_site[site] = self._of_site.get(site, 0) + 1
        self._unproven.add(ticket)
        return Admission(ticket, tuple(dropped))

    def prove(self, ticket: Ticket) -> None:
        """Note that a peer has shown who it is; doing so again changes nothing."""
        if ticket.unproven:
            ticket.unproven = False
            self._unproven.remove(ticket)

    def fail(self, ticket: Ticket, now: float) -> None:
        """Note that a peer has failed to show who it is; its connection goes on."""
        self.prove(ticket)  # it is no candidate for dropping any more
        self._failures.add(ticket.site, now)

    def leave(self, ticket: Ticket) -> None:
        """Note that a connection has ended; once for each ticket."""
        self.prove(ticket)
        self._total -= 1
        left = self._of_site[ticket.site] - 1
        if left:
            self._of_site[ticket.site] = left
        else:
            del self._of_site[ticket.site]
