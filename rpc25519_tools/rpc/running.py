"""One running call of a server: its task, what comes in, and how the task begins."""

import asyncio
import sys
from collections.abc import Coroutine
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from rpc25519_tools.rpc.context import (
    Cancellation,
)
from rpc25519_tools.rpc.streams import (
    IncomingStream,
)
from rpc25519_tools.rpc.turns import Turn


@dataclass(slots=True)
class RunningCall:
    """A call that is running: its task and, for streams, what comes in.

    A task that is cancelled before it has begun runs nothing at all, not even what
    answers the call; ``begun`` tells. ``answering`` tells that the handler has returned
    and only its answer is on the way. ``cost`` is what the message that began it takes,
    in bytes; ``kept_len`` is as much for a stream, and 0 for others. ``refusal`` is why
    it must not run, ``stopped`` why it was stopped. ``sending`` counts the parts that
    are about to be sent, and ``turn`` is taken by those who wait until they may make
    some.
    """

    incoming: IncomingStream | None
    cancellation: Cancellation
    until_s: float | None
    cost: int
    task: asyncio.Task[Any] | None = None
    begun: bool = False
    answering: bool = False
    sending: int = 0
    turn: Turn | None = None
    kept_len: int = 0
    refusal: str = ""
    stopped: str = ""

    @property
    def its_task(self) -> asyncio.Task[Any]:
        """The task, which is known before anything of the call runs."""
        assert self.task is not None
        return self.task

    @property
    def waits_for_client(self) -> bool:
        """Whether the handler waits for the client to send a part, or to take one."""
        return (
            self.sending > 0
            or (self.incoming is not None and self.incoming.is_waited_for)
            or (self.turn is not None and self.turn.is_waiting)
        )


def begin_task(
    run: Coroutine[Any, Any, None],
    loop: asyncio.AbstractEventLoop,
    context: Context,
) -> asyncio.Task[None]:
    """Start a task: at once where asyncio can, else in the loop's next turn.

    An answer that waits for nothing is then on its way before anything else is looked
    at. The loop's own create_task would cost as much again as the task.
    """
    if sys.version_info >= (3, 12):
        return asyncio.Task(run, loop=loop, context=context, eager_start=True)
    else:  # noqa: RET505  # or mypy finds it unreachable
        return asyncio.Task(run, loop=loop, context=context)
