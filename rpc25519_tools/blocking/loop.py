"""One event loop for the process, in a thread of its own, and what a fork does to it.

A forked child has the parent's objects but not its threads, and its sockets are the
parent's. So the child forgets the loop and lets go of the sockets; what it then does
makes a new loop and new connections.
"""

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Forkable(Protocol):
    """Something with a socket that a forked child must not share."""

    def after_fork_in_child(self) -> None:
        """Let go of what belongs to the parent."""


class _Process:
    """What this process has: its loop, and who wants to know of forks."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread_id: int | None = None
        self.forkables: weakref.WeakSet[Forkable] = weakref.WeakSet()
        #: Loops of parents. They must never be closed, nor collected: that would take
        #: the parent's sockets out of the poll set that both share.
        self.inherited: list[asyncio.AbstractEventLoop] = []


_process = _Process()


def _run(loop: asyncio.AbstractEventLoop, started: threading.Event) -> None:
    asyncio.set_event_loop(loop)
    loop.call_soon(started.set)
    loop.run_forever()


def process_loop() -> asyncio.AbstractEventLoop:
    """Return the running loop of this process; start it if there is none."""
    with _process.lock:
        if _process.loop is None:
            loop, started = asyncio.new_event_loop(), threading.Event()
            thread = threading.Thread(
                target=_run, args=(loop, started), name="rpc25519-loop", daemon=True
            )
            thread.start()
            started.wait()
            _process.loop, _process.thread_id = loop, thread.ident
        return _process.loop


def run(step: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the process's loop and wait for its result.

    An interrupted wait (Ctrl-C) cancels it.

    Raises:
        RuntimeError: called on the loop's own thread, which would wait for ever.
        Exception: whatever ``step`` raises.
    """
    loop = process_loop()
    if threading.get_ident() == _process.thread_id:
        step.close()
        raise RuntimeError(
            "a blocking call inside an async handler: make it with await, on a Client "
            "of rpc25519_tools.rpc"
        )
    future = asyncio.run_coroutine_threadsafe(step, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def watch_forks(what: Forkable) -> None:
    """Tell ``what`` after a fork, in the child."""
    _process.forkables.add(what)


def drop_socket(fd: int) -> None:
    """Let go of an inherited socket, keeping its number out of others' hands.

    Python objects of the parent still hold the number, and may close it some day.
    """
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.dup2(null, fd, inheritable=False)
        finally:
            os.close(null)


def _after_fork_in_child() -> None:
    _process.lock = threading.Lock()  # somebody may have held the old one
    if _process.loop is not None:
        _process.inherited.append(_process.loop)
    _process.loop = _process.thread_id = None
    for what in list(_process.forkables):
        what.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
