"""What all connections may hold together: rules, and a long random life."""

import random
from dataclasses import dataclass, field

import pytest

from rpc25519_tools.errors import DeadlineError
from rpc25519_tools.rpc.memory import (
    SMALL_LEN,
    STALLED_S,
    STARVED_S,
    Account,
    MemoryBudget,
)

MIB = 1 << 20


@dataclass(eq=False)
class FakeHolder:
    """A connection whose numbers a test sets."""

    memory_len: int = 0
    moved_len: int = 0
    is_mid_message: bool = False
    waits_for_peer: bool = False
    holds: int = 0
    error: Exception | None = None
    account: Account = field(init=False)

    def hold_reading(self) -> None:
        self.holds += 1

    def release_reading(self) -> None:
        assert self.holds
        self.holds -= 1

    def abort(self, error: Exception) -> None:
        self.error = error
        self.account.close()

    def set(self, memory_len: int) -> None:
        self.memory_len = memory_len
        self.account.update()


class World:
    """A budget of 16 MiB and its connections."""

    def __init__(self) -> None:
        self.alarms = 0
        self.budget = MemoryBudget(16 * MIB, self._alarm)

    def _alarm(self) -> None:
        self.alarms += 1

    def holder(self, memory_len: int = 0) -> FakeHolder:
        holder = FakeHolder()
        holder.account = self.budget.open(holder)
        holder.set(memory_len)
        return holder


def test_nobody_waits_below_the_limit() -> None:
    world = World()
    holders = [world.holder(4 * MIB) for _ in range(4)]
    assert world.budget.total_len == 16 * MIB
    assert not any(one.holds for one in holders)
    assert not world.alarms
    assert not world.budget.relieve(0.0)


def test_beyond_the_limit_all_but_one_wait_until_there_is_room() -> None:
    world = World()
    holders = [world.holder(4 * MIB) for _ in range(4)]
    for holder in holders:
        holder.set(5 * MIB)
    # The first one that was over the limit goes on, and may take even more.
    assert [one.holds for one in holders] == [0, 1, 1, 1]
    holders[0].set(9 * MIB)
    assert [one.holds for one in holders] == [0, 1, 1, 1]
    assert world.alarms == 1
    assert world.budget.relieve(0.0)
    holders[0].set(0)  # it is done: 15 MiB are not low, but the next one may go on
    assert [one.holds for one in holders] == [0, 0, 1, 1]
    holders[1].set(0)
    assert not any(one.holds for one in holders)
    assert not world.budget.relieve(1.0)


def test_little_is_neither_counted_nor_stopped() -> None:
    world = World()
    world.holder(20 * MIB)
    small = world.holder(SMALL_LEN - 1)
    assert small.holds == 0
    assert world.budget.total_len == 20 * MIB
    small.set(SMALL_LEN)
    assert small.holds == 1


def test_unpacking_waits_for_room_however_little_there_is_to_unpack() -> None:
    world = World()
    first, second = world.holder(15 * MIB), world.holder()
    assert second.account.may_take()
    first.set(17 * MIB)  # favoured
    assert not second.account.may_take()
    assert second.holds == 1
    first.set(0)
    assert second.holds == 0
    assert second.account.may_take()


@pytest.mark.parametrize("waits", [True, False])
def test_a_peer_that_does_not_go_on_is_ended_while_others_wait(waits: bool) -> None:
    world = World()
    stalled, other = world.holder(15 * MIB), world.holder()
    stalled.waits_for_peer = stalled.is_mid_message = waits
    stalled.set(17 * MIB)
    other.set(MIB)
    assert other.holds == 1
    assert world.budget.relieve(0.0)
    assert world.budget.relieve(STALLED_S - 1)
    world.budget.relieve(STALLED_S)
    assert isinstance(stalled.error, DeadlineError) == waits
    assert other.holds == (not waits)
    assert other.error is None


def test_a_peer_that_goes_on_is_left_alone() -> None:
    world = World()
    busy, other = world.holder(17 * MIB), world.holder(MIB)
    busy.waits_for_peer = busy.is_mid_message = True
    for second in range(25):
        busy.moved_len += 32 * 1024
        assert world.budget.relieve(float(second))
    assert busy.error is other.error is None


def test_the_largest_is_ended_when_nothing_gets_free() -> None:
    world = World()
    largest, other = world.holder(17 * MIB), world.holder(MIB)
    assert world.budget.relieve(0.0)
    assert world.budget.relieve(STARVED_S - 1)
    assert not world.budget.relieve(STARVED_S)
    assert isinstance(largest.error, DeadlineError)
    assert other.error is None
    assert other.holds == 0


def test_turns_change_when_the_favoured_one_has_nothing_to_finish() -> None:
    world = World()
    first = world.holder(17 * MIB)
    others = [world.holder(2 * MIB) for _ in range(2)]
    assert [one.holds for one in others] == [1, 1]
    first.set(10 * MIB)  # now there is room, though not much
    world.budget.relieve(0.0)
    world.budget.relieve(5.0)
    assert [one.holds for one in others] == [0, 1]


def test_closing_twice_is_closing_once() -> None:
    world = World()
    holder, other = world.holder(17 * MIB), world.holder(MIB)
    holder.account.close()
    holder.account.close()
    assert world.budget.total_len == MIB
    assert other.holds == 0


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_memory_is_bounded_and_everybody_gets_through(
    seed: int,
) -> None:
    """Peers of all kinds send messages of up to 8 MiB; the stubborn ones stall."""
    draw = random.Random(seed)
    world, now = World(), 0.0
    peers = [world.holder() for _ in range(12)]
    stubborn = set(draw.sample(peers, 3))
    missing = {peer: draw.randrange(MIB // 2, 8 * MIB) for peer in peers}
    most = 0
    while any(missing[one] and not one.error for one in peers if one not in stubborn):
        now += 0.05
        assert now < 300, "somebody waits for ever"
        for peer in draw.sample(peers, len(peers)):
            stalls = peer in stubborn and peer.memory_len > MIB
            if peer.error or peer.holds or not missing[peer] or stalls:
                continue
            step = min(missing[peer], 256 * 1024)
            missing[peer] -= step
            peer.moved_len += step
            peer.is_mid_message = peer.waits_for_peer = missing[peer] > 0
            peer.set(peer.memory_len + step if missing[peer] else 0)
        most = max(most, world.budget.total_len)
        if world.alarms and round(now * 20) % 20 == 0:
            world.budget.relieve(now)
    # The favoured one's message, and a step of each.
    assert most <= (16 + 8) * MIB + 12 * 256 * 1024
    assert not any(one.error for one in peers if one not in stubborn)
