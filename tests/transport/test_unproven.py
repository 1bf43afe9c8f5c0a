"""Memory for clients that have not shown their keys: who goes, and what is bounded."""

import random

import pytest

from rpc25519_tools.errors import ConnectionLostError
from rpc25519_tools.transport.unproven import (
    PATIENCE_S,
    SMALL_LEN,
    Share,
    UnprovenMemory,
)

MIB = 1 << 20


class World:
    """16 MiB for all."""

    def __init__(self) -> None:
        self.memory = UnprovenMemory(16 * MIB)
        self.gone: list[Share] = []

    def share(self, site: str = "there") -> Share:
        def give_way(error: ConnectionLostError) -> None:
            assert "not shown their pre-shared key" in str(error)
            made.close()  # as tunnels do: it changes nothing any more
            self.gone.append(made)

        made = self.memory.share(site, give_way)
        return made

    def holding(self, held_len: int, site: str = "there", now_s: float = 0.0) -> Share:
        made = self.share(site)
        made.hold(held_len, now_s)
        return made


def test_all_of_the_room_can_be_taken() -> None:
    world = World()
    alone = world.holding(MIB)
    for held_len in (2 * MIB, 8 * MIB, 16 * MIB):
        alone.hold(held_len, 0.0)
    assert world.memory.total_len == 16 * MIB
    alone.hold(0, 0.0)
    assert world.memory.total_len == 0
    assert not world.gone


def test_little_is_not_counted_and_never_goes() -> None:
    world = World()
    small = [world.holding(SMALL_LEN) for _ in range(1000)]
    full = world.holding(16 * MIB)
    assert world.memory.total_len == 16 * MIB
    small[0].hold(0, 1.0)
    small[1].hold(SMALL_LEN + 1, 1.0)
    assert world.gone == [full]
    assert world.memory.total_len == SMALL_LEN + 1


def test_the_oldest_of_the_address_that_holds_most_goes() -> None:
    world = World()
    lonely = world.holding(4 * MIB, "lonely")
    crowd = [world.holding(2 * MIB, "crowd", 0.1 * number) for number in range(6)]
    other = world.holding(2 * MIB, "other", 1.0)
    assert world.gone == crowd[:1]
    lonely.hold(7 * MIB, 2.0)
    assert world.gone == crowd[:3]
    assert lonely.held_len == 7 * MIB
    assert other.held_len == 2 * MIB


def test_one_that_stopped_in_the_middle_goes_wherever_it_is() -> None:
    world = World()
    stopped = world.holding(4 * MIB, "lonely")
    crowd = [world.holding(2 * MIB, "crowd", PATIENCE_S) for _ in range(6)]
    late = world.holding(2 * MIB, "crowd", PATIENCE_S + 0.1)
    assert world.gone == [stopped]
    assert all(one.held_len for one in [*crowd, late])


def test_who_is_next_to_go_goes_itself_when_it_wants_more() -> None:
    world = World()
    large = world.holding(9 * MIB, "large")
    other = world.holding(6 * MIB, "other")
    with pytest.raises(ConnectionLostError, match="too much memory"):
        large.hold(18 * MIB, 1.0)
    assert not world.gone  # it has been told
    assert world.memory.total_len == other.held_len == 6 * MIB
    large.close()
    assert world.memory.total_len == 6 * MIB


def test_what_can_never_fit_takes_nobody_with_it() -> None:
    world = World()
    small = world.holding(MIB, "other")
    greedy = world.holding(8 * MIB)
    with pytest.raises(ConnectionLostError):
        greedy.hold(17 * MIB, 0.0)
    assert small.held_len == MIB


@pytest.mark.parametrize("seed", range(10))
def test_whatever_happens_it_is_bounded_and_the_sums_are_right(seed: int) -> None:
    draw = random.Random(seed)
    world, now_s = World(), 0.0
    shares = [world.share(f"site {draw.randrange(5)}") for _ in range(60)]
    for _ in range(3000):
        now_s += draw.random()
        share = draw.choice(shares)
        held_len = draw.choice([0, SMALL_LEN, MIB // 8, MIB, 3 * MIB, 16 * MIB])
        try:
            share.hold(held_len, now_s)
        except ConnectionLostError:
            assert share.held_len == 0
        else:
            assert share.held_len == (held_len if held_len > SMALL_LEN else 0)
        assert world.memory.total_len == sum(one.held_len for one in shares)
        assert world.memory.total_len <= 16 * MIB
    for share in shares:
        share.close()
    assert world.memory.total_len == 0
    assert not world.memory._sites
    assert not world.memory._shares
