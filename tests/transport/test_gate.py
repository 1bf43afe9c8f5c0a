"""The gate against a simple model, and sshd's rule against its own arithmetic."""

import ipaddress
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.limits import Limits, Startups
from rpc25519_tools.transport import gate as gate_module
from rpc25519_tools.transport.crowds import IDLE_S, Standing, Ticket
from rpc25519_tools.transport.gate import (
    Admission,
    Gate,
    Refusal,
    is_drop_due,
    site_of,
)


def never(_: int) -> int:
    return 99


def sshd_drops(startups: int, begin: int, rate: int, full: int, drawn: int) -> bool:
    """Decide as should_drop_connection() of OpenSSH's sshd.c does."""
    if startups < begin:
        return False
    if startups >= full or rate == 100:
        return True
    percent = (100 - rate) * (startups - begin)
    percent //= full - begin
    percent += rate
    return drawn < percent


@given(st.data())
def test_drops_are_those_of_sshd(data: st.DataObject) -> None:
    begin = data.draw(st.integers(1, 100))
    full = data.draw(st.integers(begin, 200))
    rate = data.draw(st.integers(1, 100))
    count = data.draw(st.integers(0, 250))
    drawn = data.draw(st.integers(0, 99))
    due = is_drop_due(Startups(begin, rate, full), count, lambda below: drawn)
    assert due == sshd_drops(count, begin, rate, full, drawn)


@pytest.mark.parametrize(
    ("host", "site"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("no address", "no address"),
    ],
)
def test_what_counts_as_one_address(host: str, site: str) -> None:
    assert site_of(host) == site


@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_all_of_an_ipv6_site_counts_as_one(
    address: ipaddress.IPv6Address, suffix: int
) -> None:
    neighbour = ipaddress.IPv6Address(int(address) >> 64 << 64 | suffix)
    if address.ipv4_mapped is None and neighbour.ipv4_mapped is None:
        assert site_of(str(address)) == site_of(str(neighbour))


@dataclass
class Model:
    """The gate's rules, written as plainly as can be; slow, and unbounded."""

    limits: Limits
    #: In the order in which they came to their standing.
    open: dict[Ticket, Standing] = field(default_factory=dict)
    idle_since: dict[Ticket, float] = field(default_factory=dict)
    failures: dict[str, tuple[float, int]] = field(default_factory=dict)
    deaf_until: float = 0.0

    def having(self, standing: Standing, site: str | None = None) -> list[Ticket]:
        """Return those of a standing, those first that came to it first."""
        return [
            ticket
            for ticket, its in self.open.items()
            if its is standing and site in (None, ticket.site)
        ]

    @property
    def unproven(self) -> int:
        return len(self.having(Standing.SILENT) + self.having(Standing.BEGUN))

    def of(self, site: str) -> list[Ticket]:
        return [ticket for ticket in self.open if ticket.site == site]

    def rise(self, ticket: Ticket, standing: Standing) -> None:
        del self.open[ticket]
        self.open[ticket] = standing

    def fail(self, site: str, now: float) -> None:
        began, count = self.failures.get(site, (now, 0))
        if now - began >= 60:
            began, count = now, 0
        self.failures[site] = began, count + 1

    def is_blocked(self, site: str, now: float) -> bool:
        limit = self.limits.max_failures_per_minute
        began, count = self.failures.get(site, (now, 0))
        return limit > 0 and count >= limit and now - began < 60

    def firsts_of_most(self, standing: Standing) -> list[Ticket]:
        """Return the oldest ones of the addresses that have most."""
        counts = Counter(ticket.site for ticket in self.having(standing))
        return [
            self.having(standing, site)[0]
            for site, count in counts.items()
            if count == max(counts.values())
        ]

    def first_of(self, site: str, now: float) -> list[Ticket]:
        limits = self.limits
        silent = self.having(Standing.SILENT, site)
        share = min(limits.max_startups.full, limits.max_connections_per_address) // 4
        if len(silent) > share:
            return silent[:1]
        idle = {
            ticket: self.idle_since[ticket]
            for ticket in self.having(Standing.NAMELESS, site)
            if self.idle_since[ticket] <= now - IDLE_S
        }
        if idle:
            longest = min(idle.values())
            return [ticket for ticket in idle if idle[ticket] == longest]
        return (self.having(Standing.BEGUN, site) + silent)[:1]

    def first_of_all(self, now: float) -> list[Ticket]:
        nobodies = Counter(
            ticket.site for ticket, its in self.open.items() if its != Standing.KNOWN
        )
        if now < self.deaf_until:
            return []
        # Of addresses that have the same number, either may be asked first.
        found: list[Ticket] = []
        for count in sorted(set(nobodies.values()), reverse=True):
            sites = [site for site in nobodies if nobodies[site] == count]
            found = [one for site in sites for one in self.first_of(site, now)]
            if found:
                return found
        self.deaf_until = now + 0.1
        return found

    def may_go(
        self, site: str, now: float, drawn: int
    ) -> Iterator[tuple[str, list[Ticket]]]:
        """Yield for each that has to go the refusal if there is none, and who may."""
        limits, startups = self.limits, self.limits.max_startups
        due = sshd_drops(
            self.unproven, startups.start, startups.rate, startups.full, drawn
        )
        unproven, total = self.unproven, len(self.open)
        if len(self.of(site)) >= limits.max_connections_per_address:
            yield "too many connections from its address", self.first_of(site, now)
        share = min(startups.full, limits.max_connections) // 4
        too_silent = len(self.having(Standing.SILENT)) > share
        silent = self.firsts_of_most(Standing.SILENT)
        if due and self.unproven == unproven:
            begun = self.firsts_of_most(Standing.BEGUN)
            yield "", silent if too_silent or not begun else begun
        if len(self.open) == total >= limits.max_connections:
            victims = silent if too_silent else self.first_of_all(now)
            yield "too many connections", victims


SITES = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
small = st.integers(1, 12)
limits_of = st.builds(
    lambda total, per, start, more, rate, failures: Limits(
        max_connections=total,
        max_connections_per_address=per,
        max_startups=Startups(start, rate, start + more),
        max_failures_per_minute=failures,
    ),
    small,
    small,
    st.integers(1, 6),
    st.integers(0, 6),
    st.integers(1, 100),
    st.integers(0, 3),
)
DEEDS = ["admit", "admit", "admit", "begin", "seat", "move", "prove", "fail", "leave"]
steps_of = st.lists(
    st.tuples(
        st.sampled_from(DEEDS),
        st.integers(0, 99),
        st.sampled_from([0.0, 0.06, 0.5, 1.0, 20.0, 59.0]),
    ),
    max_size=80,
)


def check_admission(
    model: Model, answer: Admission | Refusal, site: str, now: float, drawn: int
) -> None:
    """Check what the gate has decided, and do it to the model."""
    if model.is_blocked(site, now):
        assert answer == Refusal(site, "too many failed handshakes from its address")
        return
    dropped = list(answer.dropped) if isinstance(answer, Admission) else []
    for reason, victims in model.may_go(site, now, drawn):
        if not victims:
            assert answer == Refusal(site, reason)
            return
        victim = dropped.pop(0)
        assert victim in victims
        assert victim.standing is Standing.GONE
        del model.open[victim]
    assert isinstance(answer, Admission)
    assert not dropped
    assert answer.ticket.site == site
    model.open[answer.ticket] = Standing.SILENT


def act(gate: Gate, model: Model, what: str, ticket: Ticket, now: float) -> None:
    """Do something to a connection that is open."""
    standing = model.open[ticket]
    if what == "begin":
        gate.begin(ticket)
        if standing is Standing.SILENT:
            model.rise(ticket, Standing.BEGUN)
    elif what == "seat":
        gate.seat(ticket, lambda: model.idle_since[ticket], now)
        if standing in (Standing.SILENT, Standing.BEGUN):
            model.idle_since[ticket] = now
            model.rise(ticket, Standing.NAMELESS)
    elif what == "move":
        model.idle_since[ticket] = now
    elif what == "leave":
        gate.leave(ticket)
        del model.open[ticket]
    else:
        gate.prove(ticket) if what == "prove" else gate.fail(ticket, now)
        model.rise(ticket, Standing.KNOWN)
        if what == "fail":
            model.fail(ticket.site, now)
    assert ticket.standing is model.open.get(ticket, Standing.GONE)


@given(limits_of, steps_of)
def test_the_gate_decides_as_the_model(
    limits: Limits, steps: list[tuple[str, int, float]]
) -> None:
    drawn = 0
    model, now = Model(limits), 100.0
    gate = Gate(limits, lambda below: drawn)
    for what, number, pause_s in steps:
        now += pause_s
        if what == "admit":
            drawn, site = number, SITES[number % len(SITES)]
            check_admission(model, gate.admit(site, now), site, now, drawn)
        elif model.open:
            act(gate, model, what, list(model.open)[number % len(model.open)], now)
        assert gate.total == len(model.open) <= limits.max_connections
        assert gate.unproven == model.unproven <= limits.max_startups.full
        for site in SITES:
            assert len(model.of(site)) <= limits.max_connections_per_address
    for ticket in model.open:
        gate.leave(ticket)
    assert not gate.total
    assert not list(gate._nobodies)
    assert not gate._idlers._by_site


def test_a_flood_pushes_out_itself() -> None:
    gate = Gate(Limits(max_startups=Startups(10, 100, 10)), never)
    others = [gate.admit(f"192.0.2.{n}", 0) for n in range(5)]
    good = [one.ticket for one in others if isinstance(one, Admission)]
    for _ in range(1000):
        answer = gate.admit("198.51.100.1", 0)
        assert isinstance(answer, Admission)
        assert not any(ticket in good for ticket in answer.dropped)
    assert gate.unproven == 10


def admit(gate: Gate, host: str, now: float = 0.0) -> Admission:
    answer = gate.admit(host, now)
    assert isinstance(answer, Admission)
    return answer


def address(number: int) -> str:
    return f"198.51.{number // 250}.{number % 250}"


@pytest.mark.parametrize("addresses", [1, 2000], ids=["one address", "many"])
def test_who_shakes_hands_outlives_a_flood_of_silent_ones(addresses: int) -> None:
    gate = Gate(Limits(max_startups=Startups(20, 100, 20)), never)
    good = [admit(gate, address(0)).ticket for _ in range(5)]
    for ticket in good:
        gate.begin(ticket)
    for number in range(1000):
        flood = admit(gate, address(number % addresses))
        assert not any(ticket in good for ticket in flood.dropped)


def test_silent_ones_have_the_time_to_be_listened_to() -> None:
    """A flood of handshakes pushes out itself, and nobody who has just come."""
    gate = Gate(Limits(max_startups=Startups(20, 100, 20)), never)
    for number in range(1000):
        gate.begin(admit(gate, address(number % 7)).ticket)
        newcomers = [admit(gate, address(n)).ticket for n in range(5)]
        assert all(one.standing is Standing.SILENT for one in newcomers)
        for ticket in newcomers:
            gate.leave(ticket)
    assert gate.unproven > 10


class Squat:
    """Four addresses have all places, and have said one thing each."""

    def __init__(self, gate: Gate) -> None:
        self.moved_s: dict[Ticket, float] = {}
        for number in range(40):
            ticket = admit(gate, SITES[0][:-1] + str(number % 4)).ticket
            self.moved_s[ticket] = number / 100
            gate.seat(ticket, lambda it=ticket: self.moved_s[it], number / 100)  # type: ignore[misc]  # the default binds it


def full() -> tuple[Gate, Squat]:
    limits = Limits(max_connections=40, max_connections_per_address=10)
    gate = Gate(limits, never)
    return gate, Squat(gate)


def test_who_has_been_idle_longest_makes_room_where_nobody_is_known() -> None:
    gate, squat = full()
    assert isinstance(gate.admit("198.51.100.1", 0.9), Refusal)  # nobody is idle
    first, *_, last = squat.moved_s
    squat.moved_s[first] = 5.0
    # Of the first address the second one; then the others have more than that.
    second, others_first = list(squat.moved_s)[4], list(squat.moved_s)[1]
    assert admit(gate, "198.51.100.1", 5.5).dropped == (second,)
    assert admit(gate, "198.51.100.2", 5.5).dropped == (others_first,)
    assert last.standing is Standing.NAMELESS


def test_a_full_address_makes_room_by_itself() -> None:
    gate, squat = full()
    site = list(squat.moved_s)[3].site
    dropped = admit(gate, site, 5.0).dropped
    assert dropped == (list(squat.moved_s)[3],)


def test_who_is_busy_or_known_never_makes_room() -> None:
    gate, squat = full()
    known, *others = squat.moved_s
    gate.prove(known)
    for now in range(5, 100, 5):
        squat.moved_s.update(dict.fromkeys(others, now - 0.5))
        assert isinstance(gate.admit("198.51.100.1", float(now)), Refusal)


def test_those_that_fill_the_server_do_not_push_out_others() -> None:
    limits = Limits(max_connections=40, max_connections_per_address=20)
    gate = Gate(limits, never)
    good = admit(gate, "192.0.2.9").ticket
    gate.seat(good, lambda: 0.0, 0.0)
    for number in range(200):
        ticket = admit(gate, SITES[number % 2], number * 2.0).ticket
        gate.seat(ticket, lambda since=number: since * 2.0, number * 2.0)  # type: ignore[misc]  # the default binds it
    assert good.standing is Standing.NAMELESS
    assert gate.total == 40


def test_asking_whether_somebody_is_idle_stays_cheap() -> None:
    """Who is busy is asked once a second, however many want its place."""
    limits = Limits(max_connections=100, max_connections_per_address=100)
    gate, asked = Gate(limits, never), 0

    def busy() -> float:
        nonlocal asked
        asked += 1
        return now

    now = 0.0
    for _ in range(100):
        gate.seat(admit(gate, SITES[0]).ticket, busy, now)
    for number in range(10_000):
        now = 10.0 + number / 5000
        assert isinstance(gate.admit(SITES[1], now), Refusal)
    assert asked <= 300


def test_those_that_have_left_are_forgotten() -> None:
    gate = Gate(Limits(), never)
    stays = admit(gate, SITES[0]).ticket
    gate.seat(stays, lambda: 0.0, 0.0)
    for _ in range(10_000):
        ticket = admit(gate, SITES[0]).ticket
        gate.seat(ticket, lambda: 0.0, 0.0)
        gate.leave(ticket)
    assert len(gate._idlers._by_site[SITES[0]].heap) < 20


def test_memory_is_bounded_whatever_the_number_of_addresses() -> None:
    gate = Gate(Limits(), never)
    for number in range(20_000):
        host = str(ipaddress.IPv4Address(number << 8 | 1))
        answer = gate.admit(host, 0.0)
        assert isinstance(answer, Admission)
        gate.fail(answer.ticket, 0.0)
        gate.leave(answer.ticket)
    assert gate.total == 0
    assert not gate._of_site
    assert len(gate._failures._minutes) == gate_module._REMEMBERED


@pytest.mark.parametrize("failures", [1, 3])
def test_an_address_is_refused_for_the_rest_of_the_minute(failures: int) -> None:
    gate = Gate(Limits(max_failures_per_minute=failures), never)
    for number in range(failures):
        answer = gate.admit("192.0.2.1", 10.0 + number)
        assert isinstance(answer, Admission)
        gate.fail(answer.ticket, 10.0 + number)
    assert isinstance(gate.admit("192.0.2.1", 69.9), Refusal)
    assert isinstance(gate.admit("192.0.2.2", 69.9), Admission)
    assert isinstance(gate.admit("192.0.2.1", 70.0), Admission)


def test_no_failures_are_counted_where_none_are_wanted() -> None:
    gate = Gate(Limits(max_failures_per_minute=0), never)
    for _ in range(100):
        answer = gate.admit("192.0.2.1", 0.0)
        assert isinstance(answer, Admission)
        gate.fail(answer.ticket, 0.0)
