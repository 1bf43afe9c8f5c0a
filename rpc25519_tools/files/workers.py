"""Run blocking work beside the event loop, with cancellation thought through.

What a worker thread touches (a descriptor, a running hash) must not be closed under its
hands, so ``in_worker`` lets the work end before it lets its caller go. That is only
right for work that ends by itself; for reading a terminal or writing to a pipe, which
may take for ever, there is ``AbandonableThread``. What takes long but can be told to
stop goes to ``in_stoppable_worker``.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class StoppedError(Exception):
    """Work ended early, since nobody waits for it any more."""


async def in_worker(
    function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run ``function`` in a worker thread; a cancelled caller still waits for its end.

    Raises:
        Exception: whatever ``function`` raises.
    """
    return await in_stoppable_worker(lambda: None, function, *args, **kwargs)


async def in_stoppable_worker(
    stop: Callable[[], None],
    function: Callable[P, T],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Run ``function`` in a worker thread; a cancelled caller lets it end early.

    Args:
        stop: tells ``function`` to end soon, as by a StoppedError, which is dropped;
            called on the event loop, before the caller waits for that end.
        function: what to do.
        *args: for it.
        **kwargs: for it.

    Raises:
        Exception: whatever ``function`` raises.
    """
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, lambda: function(*args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop()
        await finished(future)
        raise


async def finished(future: asyncio.Future[T]) -> None:
    """Wait until ``future`` is done, even when cancelled; drop its result or error."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    if not future.cancelled():
        future.exception()


async def open_in_worker(opener: Callable[[], T], closer: Callable[[T], None]) -> T:
    """Open something in a worker thread, and close it again for a cancelled caller.

    Raises:
        Exception: whatever ``opener`` raises.
    """
    opened: list[T] = []
    try:
        await in_worker(lambda: opened.append(opener()))
        return opened[0]
    except asyncio.CancelledError:
        if opened:
            await in_worker(closer, opened[0])
        raise


class AbandonableThread:
    """A thread of its own for steps that may block for ever.

    A cancelled caller leaves a blocked step behind; the thread does not keep the
    process from ending. Steps run one after the other.
    """

    def __init__(self) -> None:
        self._steps: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._started = False

    async def run(
        self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``function`` in the thread.

        Raises:
            Exception: whatever ``function`` raises.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def deliver(result: T | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]  # a T, no error

        def step() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = function(*args, **kwargs)
            except BaseException as exc:  # noqa: BLE001  # handed to the caller whole
                error = exc
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(deliver, result, error)

        if not self._started:
            self._started = True
            threading.Thread(
                target=self._work, name="blocking-stream", daemon=True
            ).start()
        self._steps.put(step)
        return await future

    def close(self) -> None:
        """Let the thread end after the step that it is in."""
        self._steps.put(None)

    def _work(self) -> None:
        while (step := self._steps.get()) is not None:
            step()
