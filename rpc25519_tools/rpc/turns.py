"""Who may hold parts that are to be sent: few streams of a connection at a time.

A client can open a thousand downloads and read none of them. If each read its next
parts while it waits to send the ones before, they would hold gigabytes. So whoever
makes its parts itself, as a download reads them from a file, takes a turn first. What
is held during a turn is counted among what all connections hold, and while that is too
much, no turn goes on.

Turns are for one event loop.
"""

import asyncio
from typing import Final, Protocol

from rpc25519_tools.wire.buffers import BufferPool
from rpc25519_tools.wire.constants import PART_LEN

#: How many parts one turn may hold where nobody waits: two that are being sent, and two
#: that are read meanwhile.
PARTS_PER_TURN: Final = 4
#: More turns at a time make no connection faster.
_MOST_TURNS: Final = 4


class Memory(Protocol):
    """Where what is held is counted: a driver."""

    def change_held(self, difference: int) -> None:
        """Count what is held for messages."""

    @property
    def is_short_of_memory(self) -> bool:
        """Whether this connection may not take more now."""

    async def wait_for_memory(self) -> None:
        """Wait until the connection may take more."""


class SendTurns:
    """The turns of one connection.

    Args:
        memory: where the parts are counted.
        limit_len: bytes that the connection may hold; half of them for these parts.
    """

    def __init__(self, memory: Memory, limit_len: int) -> None:
        self.memory = memory
        fitting = limit_len // (2 * PARTS_PER_TURN * PART_LEN)
        #: Whether there is room for a turn that reads ahead.
        self.has_room_ahead = fitting > 0
        self._free = asyncio.Semaphore(max(1, min(fitting, _MOST_TURNS)))
        self._pools: list[BufferPool] = []
        #: How many wait for a turn.
        self.waiting_count = 0

    async def take(self) -> BufferPool:
        """Wait for a turn; first come, first served. Return its memory for parts."""
        self.waiting_count += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting_count -= 1
            if not self.waiting_count:
                del self._pools[1:]
        return self._pools.pop() if self._pools else BufferPool()

    def give_up(self, pool: BufferPool) -> None:
        """End a turn. Its memory goes to the next one, and is freed when none waits."""
        if self.waiting_count:
            self._pools.append(pool)
        else:
            self._pools.clear()
        self._free.release()


class Turn:
    """One stream's turn, taken again and again.

    Args:
        turns: those of its connection.
    """

    def __init__(self, turns: SendTurns) -> None:
        self._turns = turns
        self._pool: BufferPool | None = None
        self._held_len = 0
        #: Whether a turn, or memory for it, is waited for.
        self.is_waiting = False

    @property
    def is_taken(self) -> bool:
        """Whether parts may be held now."""
        return self._pool is not None

    @property
    def may_go_ahead(self) -> bool:
        """Whether more than the next part may be read: nobody else needs the room."""
        turns = self._turns
        return (
            turns.has_room_ahead
            and not turns.waiting_count
            and not turns.memory.is_short_of_memory
        )

    async def next(self) -> BufferPool:
        """Begin the next turn, or go on with this one where nobody else waits.

        To be called when all that was held has been sent.

        Returns:
            Memory for parts, for as long as the turn lasts.

        Raises:
            ConnectionLostError, SecurityError: the connection is over.
        """
        self.hold(0)
        if self._turns.waiting_count:
            self.give_up()
        self.is_waiting = True
        try:
            if self._pool is None:
                self._pool = await self._turns.take()
            await self._turns.memory.wait_for_memory()
        except BaseException:
            self.give_up()
            raise
        finally:
            self.is_waiting = False
        return self._pool

    def hold(self, held_len: int) -> None:
        """Count so many bytes as held, instead of what was counted before."""
        if held_len != self._held_len:
            change = held_len - self._held_len
            self._held_len = held_len
            self._turns.memory.change_held(change)

    def give_up(self) -> None:
        """End the turn, if there is one."""
        self.hold(0)
        pool, self._pool = self._pool, None
        if pool is not None:
            self._turns.give_up(pool)
