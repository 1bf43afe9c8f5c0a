"""Connections by address, and which of them would go first (sans-IO).

Every operation takes about the same time, however many connections there are: they are
done when there are far too many. Memory is bounded by the number of connections.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

#: Who has done something within so many seconds is not idle.
IDLE_S: Final = 1.0


class Standing(Enum):
    """What is known of a connection's peer."""

    #: It has sent nothing that counts.
    SILENT = auto()
    #: It has begun a handshake, and been answered.
    BEGUN = auto()
    #: It speaks the protocol, and has not shown who it is: nobody asks for that.
    NAMELESS = auto()
    #: It has shown who it is; or has failed to, and is about to go.
    KNOWN = auto()
    #: The connection has ended.
    GONE = auto()


@dataclass(slots=True, eq=False)
class Ticket:
    """One connection that was let in.

    Attributes:
        site: its address, as ``gate.site_of`` writes it.
        standing: what is known of its peer; changed by the gate alone.
        idle_since: returns when a NAMELESS peer last did something: now, where it is
            waiting for us. In seconds, on the clock of the gate.
    """

    site: str
    standing: Standing = Standing.SILENT
    idle_since: Callable[[], float] | None = None

    @property
    def unproven(self) -> bool:
        """Whether its peer has yet to show who it is, or that it speaks at all."""
        return self.standing in (Standing.SILENT, Standing.BEGUN)


class Ranking:
    """Addresses by how many connections each has."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        #: At index n the addresses that have n, in the order they came there.
        self._with_count: list[OrderedDict[str, None]] = [OrderedDict()]

    def add(self, site: str) -> None:
        """Count one more."""
        count = self._counts.get(site, 0)
        self._counts[site] = count + 1
        if count:
            del self._with_count[count][site]
        if count + 1 == len(self._with_count):
            self._with_count.append(OrderedDict())
        self._with_count[count + 1][site] = None

    def remove(self, site: str) -> None:
        """Count one less."""
        count = self._counts[site]
        del self._with_count[count][site]
        if count > 1:
            self._counts[site] = count - 1
            self._with_count[count - 1][site] = None
        else:
            del self._counts[site]
        while len(self._with_count) > 1 and not self._with_count[-1]:
            self._with_count.pop()

    def count_of(self, site: str) -> int:
        """Return how many an address has."""
        return self._counts.get(site, 0)

    def __iter__(self) -> Iterator[str]:
        """Yield the addresses, those first that have most."""
        for sites in reversed(self._with_count):
            yield from sites


class Crowd:
    """Tickets of one standing, by address, the oldest first."""

    def __init__(self) -> None:
        self.count = 0
        self._by_site: dict[str, OrderedDict[Ticket, None]] = {}
        self._ranking = Ranking()

    def add(self, ticket: Ticket) -> None:
        """Put a ticket in, as the newest."""
        tickets = self._by_site.get(ticket.site)
        if tickets is None:
            tickets = self._by_site[ticket.site] = OrderedDict()
        tickets[ticket] = None
        self.count += 1
        self._ranking.add(ticket.site)

    def remove(self, ticket: Ticket) -> None:
        """Take a ticket out."""
        tickets = self._by_site[ticket.site]
        del tickets[ticket]
        if not tickets:
            del self._by_site[ticket.site]
        self.count -= 1
        self._ranking.remove(ticket.site)

    def count_of(self, site: str) -> int:
        """Return how many are of an address."""
        return self._ranking.count_of(site)

    def oldest_of(self, site: str) -> Ticket | None:
        """Return the oldest one of an address."""
        tickets = self._by_site.get(site)
        return next(iter(tickets)) if tickets else None

    def oldest_of_most(self) -> Ticket | None:
        """Return the oldest one of the address that has most."""
        for site in self._ranking:
            return self.oldest_of(site)
        return None


@dataclass(slots=True, order=True)
class _Entry:
    """A nameless ticket in a heap, by when it was last known to do something.

    A number keeps tickets from being compared. None stands for a ticket that is gone.
    """

    since: float
    number: int
    ticket: Ticket | None = field(compare=False)


class _Idlers:
    """The nameless tickets of one address."""

    __slots__ = ("entries", "heap")

    def __init__(self) -> None:
        self.entries: dict[Ticket, _Entry] = {}
        self.heap: list[_Entry] = []


class Idlers:
    """Nameless tickets by address; finds the one that has been idle longest.

    That they do something costs nothing here: when it matters each is asked, and again
    only if it could have been idle for IDLE_S since.
    """

    def __init__(self) -> None:
        self._by_site: dict[str, _Idlers] = {}
        self._number = 0

    def add(self, ticket: Ticket, now: float) -> None:
        """Put a ticket in that has just done something."""
        of_site = self._by_site.get(ticket.site)
        if of_site is None:
            of_site = self._by_site[ticket.site] = _Idlers()
        self._number += 1
        entry = of_site.entries[ticket] = _Entry(now, self._number, ticket)
        heapq.heappush(of_site.heap, entry)

    def remove(self, ticket: Ticket) -> None:
        """Take a ticket out."""
        of_site = self._by_site[ticket.site]
        of_site.entries.pop(ticket).ticket = None
        if not of_site.entries:
            del self._by_site[ticket.site]
        elif len(of_site.heap) > 2 * len(of_site.entries) + 8:
            of_site.heap = list(of_site.entries.values())
            heapq.heapify(of_site.heap)

    def longest_of(self, site: str, now: float) -> Ticket | None:
        """Return who of an address has been idle longest; None if nobody is idle."""
        of_site = self._by_site.get(site)
        heap = [] if of_site is None else of_site.heap
        while heap and heap[0].since <= now - IDLE_S:
            first = heap[0]
            if first.ticket is None:
                heapq.heappop(heap)
                continue
            assert first.ticket.idle_since is not None
            since = first.ticket.idle_since()
            if since <= first.since:
                return first.ticket
            first.since = since
            heapq.heapreplace(heap, first)
        return None
