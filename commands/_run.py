"""Run a command's coroutine, and end it in order when a signal asks for that."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from ._errors import error_line

T = TypeVar("T")

#: How long an interrupted command may take to clean up, in seconds. A thread that is
#: stuck in a read or an open cannot be stopped; the process can.
_CLEANUP_S = 3.0


def run_to_end(prog: str, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``main``; SIGINT and SIGTERM cancel it, a second one ends the process.

    Args:
        prog: the command's name, for the line that tells of the interruption.
        main: makes the coroutine.

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
                _end_now(prog, number)
            received.append(number)
            task.cancel()
            loop.call_later(_CLEANUP_S, _end_now, prog, number)

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


def _end_now(prog: str, number: int) -> NoReturn:
    """End the process without cleaning up, but not without a word."""
    if number == signal.SIGINT:
        with contextlib.suppress(OSError):
            os.write(2, f"{prog}: {error_line(KeyboardInterrupt())}\n".encode())
    os._exit(128 + number)
