"""Turns of streams that make their parts: few at a time, in order, and counted."""

import asyncio

import pytest

from rpc25519_tools.errors import ConnectionLostError
from rpc25519_tools.rpc.driver import Driver
from rpc25519_tools.rpc.memory import MemoryBudget
from rpc25519_tools.rpc.turns import PARTS_PER_TURN, SendTurns, Turn
from rpc25519_tools.transport.base import Transport
from rpc25519_tools.wire.constants import MIB, PART_LEN
from tests.helpers import until
from tests.rpc.memory import Plan, RawPeer, memory_pair

ONE_TURN_LEN = 2 * PARTS_PER_TURN * PART_LEN


class FakeMemory:
    """Counts, and lets nobody go on while it is told to be short."""

    def __init__(self) -> None:
        self.held_len = 0
        self.is_short_of_memory = False
        self.error: Exception | None = None
        self.waiting: list[asyncio.Future[None]] = []

    def change_held(self, difference: int) -> None:
        self.held_len += difference

    async def wait_for_memory(self) -> None:
        if self.is_short_of_memory:
            self.waiting.append(asyncio.get_running_loop().create_future())
            await self.waiting[-1]
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("limit_len", "count"),
    [
        (PART_LEN, 1),
        (ONE_TURN_LEN, 1),
        (3 * ONE_TURN_LEN, 3),
        (100 * ONE_TURN_LEN, 4),
    ],
)
async def test_so_many_turns_at_a_time(limit_len: int, count: int) -> None:
    turns = SendTurns(FakeMemory(), limit_len)
    taken = [Turn(turns) for _ in range(count)]
    for turn in taken:
        await turn.next()
    late = asyncio.create_task(Turn(turns).next())
    await until(lambda: turns.waiting_count == 1)
    assert not late.done()
    taken[0].give_up()
    assert not taken[0].is_taken
    await late


async def test_a_turn_ends_between_parts_for_those_that_wait_in_their_order() -> None:
    turns = SendTurns(FakeMemory(), ONE_TURN_LEN)
    order = []

    async def stream(name: str) -> None:
        turn = Turn(turns)
        for _ in range(3):
            await turn.next()
            order.append(name)
            await asyncio.sleep(0)
        turn.give_up()

    await asyncio.gather(*(stream(name) for name in "abc"))
    assert "".join(order) == "abcabcabc"


async def test_memory_for_parts_is_kept_while_somebody_waits() -> None:
    turns = SendTurns(FakeMemory(), ONE_TURN_LEN)
    first, second = Turn(turns), Turn(turns)
    pool = await first.next()
    assert await first.next() is pool
    waiting = asyncio.create_task(second.next())
    await until(lambda: turns.waiting_count == 1)
    first.give_up()
    assert await waiting is pool
    second.give_up()
    assert await first.next() is not pool


def ahead(turn: Turn) -> bool:
    return turn.may_go_ahead


async def test_reading_ahead_is_for_those_who_keep_nobody_waiting() -> None:
    memory = FakeMemory()
    turns = SendTurns(memory, ONE_TURN_LEN)
    turn = Turn(turns)
    await turn.next()
    assert ahead(turn)
    memory.is_short_of_memory = True
    assert not ahead(turn)
    memory.is_short_of_memory = False
    assert ahead(turn)
    late = asyncio.create_task(Turn(turns).next())
    await until(lambda: turns.waiting_count == 1)
    assert not ahead(turn)
    late.cancel()
    await asyncio.wait([late])
    assert ahead(turn)
    assert not ahead(Turn(SendTurns(memory, ONE_TURN_LEN - 1)))


async def test_what_a_turn_holds_is_counted() -> None:
    memory = FakeMemory()
    turn = Turn(SendTurns(memory, ONE_TURN_LEN))
    await turn.next()
    turn.hold(5)
    turn.hold(3)
    assert memory.held_len == 3
    await turn.next()
    assert memory.held_len == 0
    turn.hold(4)
    turn.give_up()
    turn.give_up()
    assert memory.held_len == 0


async def test_a_turn_waits_for_memory_and_is_given_up_with_the_connection() -> None:
    memory = FakeMemory()
    turns = SendTurns(memory, ONE_TURN_LEN)
    memory.is_short_of_memory = True
    turn = Turn(turns)
    taking = asyncio.create_task(turn.next())
    await until(lambda: bool(memory.waiting))
    assert not taking.done()
    memory.error = ConnectionLostError("gone")
    memory.waiting[0].set_result(None)
    with pytest.raises(ConnectionLostError):
        await taking
    assert not turn.is_taken
    memory.is_short_of_memory, memory.error = False, None
    await Turn(turns).next()


# Waiting for memory, in a connection's driver.


class Drivers:
    """Drivers of three connections that share 16 MiB; the first one holds more."""

    def __init__(self) -> None:
        self.budget = budget = MemoryBudget(16 * MIB, lambda: None)
        self.closed: list[Exception] = []
        self.all: list[Driver] = []
        for _ in range(3):
            memory_pair(Plan(), Plan(), RawPeer, lambda end: self._driver(end, budget))
        self.all[0].change_held(17 * MIB)
        # The first one that waits is the favoured one, and goes on.
        assert not self.all[0].is_short_of_memory

    def _driver(self, transport: Transport, budget: MemoryBudget) -> Driver:
        driver = Driver(
            transport,
            lambda message, codec: None,
            self.closed.append,
            memory=budget,
        )
        self.all.append(driver)
        return driver


async def test_whoever_would_take_more_waits_until_there_is_room() -> None:
    first, second, third = Drivers().all
    waiting = [asyncio.create_task(one.wait_for_memory()) for one in (second, third)]
    await until(lambda: second.is_short_of_memory and third.is_short_of_memory)
    assert not any(task.done() for task in waiting)
    first.change_held(-17 * MIB)
    await asyncio.gather(*waiting)
    assert second.is_reading
    assert third.is_reading


async def test_the_end_of_the_connection_ends_the_wait_for_memory() -> None:
    drivers = Drivers()
    first, second, _ = drivers.all
    waiting = asyncio.create_task(second.wait_for_memory())
    await until(lambda: second.is_short_of_memory)
    second.abort(ConnectionLostError("gone"))
    with pytest.raises(ConnectionLostError, match="gone"):
        await waiting
    # What is counted of it later changes nothing for the others.
    second.change_held(17 * MIB)
    assert drivers.budget.total_len == 17 * MIB
    first.change_held(-17 * MIB)
    assert drivers.budget.total_len == 0
    assert drivers.budget.held_count == 0
