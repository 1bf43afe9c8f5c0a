"""The gate against a simple model, and sshd's rule against its own arithmetic."""

import ipaddress
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.limits import Limits, Startups
from rpc25519_tools.transport import gate as gate_module
from rpc25519_tools.transport.gate import (
    Admission,
    Gate,
    Refusal,
    Ticket,
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
    open: list[Ticket] = field(default_factory=list)
    begun: set[Ticket] = field(default_factory=set)
    failures: dict[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def unproven(self) -> list[Ticket]:
        """Those that go first are in front of the others of their address."""
        tickets = [ticket for ticket in self.open if ticket.unproven]
        return sorted(tickets, key=lambda ticket: ticket in self.begun)

    def of(self, site: str) -> list[Ticket]:
        return [ticket for ticket in self.open if ticket.site == site]

    def fail(self, site: str, now: float) -> None:
        began, count = self.failures.get(site, (now, 0))
        if now - began >= 60:
            began, count = now, 0
        self.failures[site] = began, count + 1

    def is_blocked(self, site: str, now: float) -> bool:
        limit = self.limits.max_failures_per_minute
        began, count = self.failures.get(site, (now, 0))
        return limit > 0 and count >= limit and now - began < 60

    def admit(
        self, site: str, now: float, drawn: int
    ) -> tuple[str | None, list[Ticket]]:
        """Return why the new one is refused, or None, and who may be dropped."""
        limits, startups = self.limits, self.limits.max_startups
        if self.is_blocked(site, now):
            return "too many failed handshakes from its address", []
        if len(self.of(site)) >= limits.max_connections_per_address:
            victims = [ticket for ticket in self.unproven if ticket.site == site][:1]
            reason = "too many connections from its address"
            return (None if victims else reason), victims
        due = sshd_drops(
            len(self.unproven), startups.start, startups.rate, startups.full, drawn
        )
        if len(self.open) < limits.max_connections and not due:
            return None, []
        counts = {ticket.site: 0 for ticket in self.unproven}
        for ticket in self.unproven:
            counts[ticket.site] += 1
        most = max(counts.values(), default=0)
        victims = []
        for where, count in counts.items():
            if count == most:
                victims.append(next(t for t in self.unproven if t.site == where))
        return (None if victims else "too many connections"), victims


SITES = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
small = st.integers(1, 8)
limits_of = st.builds(
    lambda total, per, start, more, rate, failures: Limits(
        max_connections=total,
        max_connections_per_address=per,
        max_startups=Startups(start, rate, start + more),
        max_failures_per_minute=failures,
    ),
    small,
    small,
    st.integers(1, 4),
    st.integers(0, 4),
    st.integers(1, 100),
    st.integers(0, 3),
)
steps_of = st.lists(
    st.tuples(
        st.sampled_from(["admit", "admit", "admit", "begin", "prove", "fail", "leave"]),
        st.integers(0, 99),
        st.sampled_from([0.0, 0.5, 20.0, 59.0]),
    ),
    max_size=60,
)


@given(limits_of, steps_of)
def test_the_gate_decides_as_the_model(
    limits: Limits, steps: list[tuple[str, int, float]]
) -> None:
    drawn = 0
    model, now = Model(limits), 0.0
    gate = Gate(limits, lambda below: drawn, lambda ticket: ticket in model.begun)
    for what, number, pause_s in steps:
        now += pause_s
        if what == "admit":
            drawn, site = number, SITES[number % len(SITES)]
            reason, victims = model.admit(site, now, drawn)
            answer = gate.admit(site, now)
            if reason is not None:
                assert answer == Refusal(site, reason)
            else:
                assert isinstance(answer, Admission)
                assert len(answer.dropped) == bool(victims)
                for ticket in answer.dropped:
                    assert ticket in victims
                    model.open.remove(ticket)
                assert answer.ticket.site == site
                model.open.append(answer.ticket)
        elif model.open:
            ticket = model.open[number % len(model.open)]
            if what == "begin":
                model.begun.add(ticket)
            elif what == "prove":
                gate.prove(ticket)
                assert not ticket.unproven
            elif what == "fail":
                gate.fail(ticket, now)
                model.fail(ticket.site, now)
                assert not ticket.unproven
            else:
                gate.leave(ticket)
                model.open.remove(ticket)
        assert gate.total == len(model.open) <= limits.max_connections
        assert gate.unproven == len(model.unproven) <= limits.max_startups.full
        for site in SITES:
            assert len(model.of(site)) <= limits.max_connections_per_address


def test_a_flood_pushes_out_itself() -> None:
    gate = Gate(Limits(max_startups=Startups(10, 100, 10)), never)
    others = [gate.admit(f"192.0.2.{n}", 0) for n in range(5)]
    good = [one.ticket for one in others if isinstance(one, Admission)]
    for _ in range(1000):
        answer = gate.admit("198.51.100.1", 0)
        assert isinstance(answer, Admission)
        assert not any(ticket in good for ticket in answer.dropped)
    assert gate.unproven == 10


def test_who_shakes_hands_outlives_a_flood_of_silent_ones_from_its_address() -> None:
    begun: set[Ticket] = set()
    gate = Gate(Limits(max_startups=Startups(10, 100, 10)), never, begun.__contains__)

    def admit() -> Admission:
        answer = gate.admit("192.0.2.1", 0)
        assert isinstance(answer, Admission)
        return answer

    good = [admit().ticket for _ in range(5)]
    begun.update(good)
    flood = [admit() for _ in range(1000)]
    assert not any(ticket in good for one in flood for ticket in one.dropped)
    # Where all have begun, the oldest one goes.
    begun.update(one.ticket for one in flood)
    assert admit().dropped == (good[0],)


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
