"""Run a command's coroutine, and end it in order when a signal asks for that."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

#: How long an interrupted command may take to clean up, in seconds. A thread that is
#: stuck in a read or an open cannot be stopped; the process can.
_CLEANUP_S = 3.0


def run_to_end(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``main``; SIGINT and SIGTERM cancel it, a second one ends the process.

    Raises:
        KeyboardInterrupt: SIGINT came.
        SystemExit: SIGTERM or SIGHUP came; the code is 128 plus its number.
    """
    received: list[int] = []

    async def supervised() -> T:
        task = asyncio.ensure_future(main())
        loop = asyncio.get_running_loop()

        def interrupt(number: int) -> None:
            if received:
                os._exit(128 + number)
            received.append(number)
            task.cancel()
            loop.call_later(_CLEANUP_S, os._exit, 128 + number)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, interrupt, number)
        return await task

    try:
        return asyncio.run(supervised())
    except asyncio.CancelledError:
        if not received:
            raise
        if received[0] == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + received[0]) from None
