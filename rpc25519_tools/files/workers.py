"""Run blocking work beside the event loop, with cancellation thought through.

What a worker thread touches (a descriptor, a running hash) must not be closed under its
hands, so ``in_worker`` lets the work end before it lets its caller go. That is only
right for work that ends by itself; for reading a terminal or writing to a pipe, which
may take for ever, there is ``in_abandonable_thread``.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_worker(
    function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run ``function`` in a worker thread; a cancelled caller still waits for its end.

    Raises:
        Exception: whatever ``function`` raises.
    """
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, lambda: function(*args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        future.exception()  # seen, though nobody is left to be told
        raise


async def in_abandonable_thread(
    function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run ``function`` in a thread of its own, which a cancelled caller leaves behind.

    The thread does not keep the process from ending.

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
            future.set_result(result)  # type: ignore[arg-type]  # a T when no error

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = function(*args, **kwargs)
        except BaseException as exc:  # noqa: BLE001  # handed to the caller whole
            error = exc
        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver, result, error)

    threading.Thread(target=run, name="blocking-stream", daemon=True).start()
    return await future
