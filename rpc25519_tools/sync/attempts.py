"""Let an attempt of a sync begin only when the one before it has ended.

A client whose connection broke comes back at once. The server may still be storing what
had arrived, or, where the client's address has changed, wait for a connection that is
dead: the earlier attempt would hold unfinished files that the later one is to carry on
with, and both would change the same directories. The same holds for a client that was
killed and started again, which nobody can tell to be the same but by who it is: its
pushes wait for those whose connections have ended.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from rpc25519_tools.errors import IncompleteTransferError

#: An earlier attempt may take so long to end, in seconds.
_PATIENCE_S: Final = 30.0


class Endable(Protocol):
    """What an attempt does."""

    @property
    def is_ending(self) -> bool:
        """Whether it has failed and stores what can be kept."""


class Attempt:
    """One attempt that runs.

    Args:
        peer: whose it is.
        has_hung_up: tells whether the peer's connection is over.

    Attributes:
        job: what it does, as soon as that is known.
        is_superseded: whether a later one has taken over.
    """

    def __init__(self, peer: bytes, has_hung_up: Callable[[], bool]) -> None:
        self.peer = peer
        self._has_hung_up = has_hung_up
        self.job: Endable | None = None
        self.is_superseded = False
        self.task: asyncio.Future[None] | None = None

    @property
    def is_ending(self) -> bool:
        """Whether it only stores what had come before its connection ended."""
        return self._has_hung_up() or (self.job is not None and self.job.is_ending)

    async def give_way(self) -> None:
        """End it, unless it is ending by itself, and wait for that."""
        assert self.task is not None
        if not self.is_ending:
            self.is_superseded = True
            self.task.cancel()
        await asyncio.wait([self.task], timeout=_PATIENCE_S)


class Attempts:
    """The syncs that run, of which all attempts of one share a name."""

    def __init__(self) -> None:
        self._running: dict[Attempt, bytes] = {}

    async def run(
        self, name: bytes, attempt: Attempt, work: Callable[[], Awaitable[None]]
    ) -> None:
        """Do the work of one attempt, after those that it has to wait for.

        Args:
            name: of the sync; empty for one that has no further attempts.
            attempt: a new one.
            work: what to do; tells the attempt of its job.

        Raises:
            IncompleteTransferError: a later attempt has taken over.
            Exception: what the work raises.
        """
        before = [
            one
            for one, its_name in self._running.items()
            if one.peer == attempt.peer
            and (one.is_ending or (name and its_name == name))
        ]

        async def whole() -> None:
            for one in before:
                await one.give_way()
            await work()

        attempt.task = asyncio.ensure_future(whole())
        self._running[attempt] = name
        try:
            await attempt.task
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if attempt.is_superseded and not (task is not None and task.cancelling()):
                raise IncompleteTransferError(
                    "a later attempt of the same sync has taken over"
                ) from None
            raise
        finally:
            del self._running[attempt]
