"""One event loop for the process, in a thread of its own: how it starts, forks, ends.

A thread that waits for the loop may be interrupted by a signal's handler anywhere, so
it holds no lock that the loop would need.

A fork copies objects and open sockets, but no threads. So before a fork the loop is
held still between two of its steps, where no lock is held and every socket is known. In
the child its sockets are closed, without a word to the peer, and it is left as it is:
nothing that the parent has under way is continued, cancelled or cleaned up there. What
the child does itself makes a new loop.

At the end of the program servers stop first, since the interpreter waits for the
threads of their handlers; clients go on serving the program's own ``atexit`` functions
and are closed after them.
"""

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import os
import selectors
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, Final, Generic, TypeAlias, TypeVar

from rpc25519_tools.errors import ConnectionLostError, Rpc25519Error
from rpc25519_tools.rpc import driver, handlers
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import is_in_handler
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.transport.udp_port import leave_ports_to_parent

T = TypeVar("T")
Coro: TypeAlias = Coroutine[Any, Any, T]

_log = logging.getLogger(__name__)

#: How long a fork waits for the loop to come to rest; an async handler may block it.
_REST_TIMEOUT_S: Final = 1.0
#: How long the program's end may wait for servers to stop, and then for clients to send
#: what is queued.
_END_TIMEOUT_S: Final = 2.0
_ENDING: Final = "the program is ending"
_NOT_OURS: Final = "it belongs to the parent process, which goes on with it"


class Loop(asyncio.SelectorEventLoop):
    """An event loop that knows its sockets, and what is open on it."""

    def __init__(self) -> None:
        self._poll = selectors.DefaultSelector()
        super().__init__(self._poll)
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.thread = threading.Thread(
            target=self._run, name="rpc25519-loop", daemon=True
        )
        #: Open clients; touched on the loop's thread only, as ``servers`` is.
        self.clients: set[Client] = set()
        #: Running servers.
        self.servers: set[Server] = set()

    def _run(self) -> None:
        while True:
            try:
                self.run_forever()
                break
            except SystemExit as exc:
                if self is not _process.loop:
                    raise
                _log.error("something on the event loop called sys.exit", exc_info=exc)
        if rest := asyncio.all_tasks(self):
            for task in rest:
                task.cancel()
            self.run_until_complete(asyncio.wait(rest, timeout=_END_TIMEOUT_S / 4))
        self.close()

    # Every socket that gets a transport passes through one of these before that. Those
    # of servers that have none yet the servers know.

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Connect, for ``create_connection``."""
        self._sockets.add(sock)
        await super().sock_connect(sock, address)

    async def connect_accepted_socket(
        self, protocol_factory: Any, sock: socket.socket, **kwargs: Any
    ) -> Any:
        """Make the transport of a connection that a server has accepted."""
        self._sockets.add(sock)
        return await super().connect_accepted_socket(protocol_factory, sock, **kwargs)

    def leave_to_parent(self) -> None:
        """Close our copies of the parent's sockets; called in a child.

        The poll set is shared with the parent: taking a socket out of it would take it
        out of the parent's. So it goes first, and its number is kept occupied.
        """
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, self._poll.fileno(), inheritable=False)
            os.close(null)
        for server in self.servers:
            server.leave_to_parent()
        leave_ports_to_parent(self)
        for sock in list(self._sockets):
            with contextlib.suppress(OSError):
                sock.close()


class _Rest:
    """Holds the loop between two of its steps while the process forks."""

    def __init__(self) -> None:
        self._resting = threading.Lock()
        self._over = threading.Lock()
        self._resting.acquire()
        self._over.acquire()

    def begin(self, loop: Loop) -> None:
        """Wait until the loop rests, but not for ever."""
        loop.call_soon_threadsafe(self._hold)
        self._resting.acquire(timeout=_REST_TIMEOUT_S)

    def _hold(self) -> None:
        self._resting.release()
        self._over.acquire()

    def end(self) -> None:
        """Let the loop go on."""
        self._over.release()


class _Process:
    """What this process has. A forked child begins with a new one."""

    def __init__(self) -> None:
        #: Held for starting the loop, and while the process forks. A signal's handler
        #: may fork too, in the very thread that holds it.
        self.lock = threading.RLock()
        self.loop: Loop | None = None
        self.rests: list[_Rest] = []
        self.ending = False


_process = _Process()

#: Loops of parents. Nothing on them may be collected: coroutines would be unwound.
_left: Final[list[Loop]] = []


def current_loop() -> Loop | None:
    """Return the loop of this process, None where there is none now."""
    return _process.loop


def this_loop() -> Loop:
    """Return the loop that the caller, a coroutine, runs on."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    return loop


def _running_loop() -> Loop:
    """Return the loop of this process; start it if there is none."""
    if _process.loop is not None:
        return _process.loop
    with _process.lock:
        if _process.ending:
            raise ConnectionLostError(_ENDING)
        if _process.loop is None:
            loop = Loop()
            loop.thread.start()
            _process.loop = loop
        return _process.loop


def _require_caller(loop: Loop) -> None:
    """Refuse a caller that would hold up what it waits for."""
    if threading.get_ident() == loop.thread.ident or _in_async_handler():
        raise RuntimeError(
            "a blocking call inside an async handler, which would hold up all others: "
            "await a call of rpc25519_tools.Client, or make the handler a plain "
            "function"
        )


def _in_async_handler() -> bool:
    """Tell whether we are in a handler on another event loop of this program."""
    if not is_in_handler():
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def post(loop: Loop, function: Callable[[], object]) -> None:
    """Have ``function`` run on ``loop`` soon, if this process runs it; never waits.

    For finalizers too, which may be called in any thread at any time.
    """
    if loop is _process.loop:
        with contextlib.suppress(RuntimeError):  # it is being closed
            loop.call_soon_threadsafe(function)


class _Step(Generic[T]):
    """A coroutine on the loop, and the thread that waits for it."""

    def __init__(self, loop: Loop, make: Callable[[], Coro[T]]) -> None:
        self._loop = loop
        self._make = make
        self._task: asyncio.Task[T] | None = None
        self._cancelled = False
        self._results: list[T] = []
        self._error: BaseException | None = None
        self.has_ended = False
        self._done = threading.Lock()
        self._done.acquire()

    def begin(self) -> None:
        """Begin; called on the loop."""
        if not self._cancelled:
            self._task = self._loop.create_task(self._make())
            self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[T]) -> None:
        # The task shall not be freed in the waiting thread: asyncio is told of that by
        # Python code, where an interruption would be lost.
        self._task = None
        if task.cancelled():
            self._error = ConnectionLostError(_ENDING)
        elif (error := task.exception()) is not None:
            self._error = error
        else:
            self._results.append(task.result())
        self.has_ended = True
        self._done.release()

    def cancel(self) -> None:
        """Cancel, or never begin; called on the loop."""
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    def wait(self, timeout_s: float = -1) -> T:
        """Wait for the result; called in the thread.

        Raises:
            TimeoutError: it is not there in time.
            ConnectionLostError: the program is ending.
            Exception: whatever the coroutine raises.
        """
        if not self._done.acquire(timeout=timeout_s):
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._results.pop()


def run(make: Callable[[], Coro[T]], *, on: Loop | None = None) -> T:
    """Run a coroutine on the process's loop and wait for its result.

    A wait that is interrupted (Ctrl-C) cancels it.

    Args:
        make: makes the coroutine, on the loop; it knows the deadline of the handler
            that we may be in.
        on: the loop to which what it works with belongs; None for any.

    Raises:
        ConnectionLostError: ``on`` is the loop of a parent process, or the program is
            at its end.
        RuntimeError: called from an async handler, which would wait for ever.
        Exception: whatever the coroutine raises.
    """
    loop = step = None
    try:
        loop = _running_loop()
        if on is not None and on is not loop:
            raise ConnectionLostError(_NOT_OURS)
        _require_caller(loop)
        step = _Step(loop, make)
        try:
            loop.call_soon_threadsafe(step.begin)
        except RuntimeError as exc:
            raise ConnectionLostError(_ENDING) from exc
        return step.wait()
    except BaseException as exc:
        if loop is not None and step is not None and not step.has_ended:
            post(loop, step.cancel)  # a signal's handler has raised this
        if isinstance(exc, Rpc25519Error) and _process.ending:
            _end_daemon()
        raise
    finally:
        del step  # it and a traceback would hold each other


def _end_daemon() -> None:
    """End the thread if the program's end does not wait for it, without a traceback."""
    if threading.current_thread().daemon:
        sys.exit()


class Started(concurrent.futures.Future[T]):
    """The result of a coroutine that runs on the loop; see ``start``."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result; raises ConnectionLostError in a forked child."""
        self._require_own()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the error; raises ConnectionLostError in a forked child."""
        self._require_own()
        return super().exception(timeout)

    def _require_own(self) -> None:
        if self._loop in _left:
            raise ConnectionLostError(_NOT_OURS)


def start(make: Callable[[], Coro[T]]) -> Started[T]:
    """Start a coroutine on the process's loop; return the future of its result.

    Cancelling the future cancels the coroutine. Raises as ``run`` does.
    """
    loop = _running_loop()
    _require_caller(loop)
    started = Started[T](loop)

    async def carry() -> None:
        try:
            result = await make()
        except BaseException as exc:  # noqa: BLE001  # handed to the caller whole
            if started.set_running_or_notify_cancel():
                started.set_exception(exc)
        else:
            if started.set_running_or_notify_cancel():
                started.set_result(result)

    def begin() -> None:
        task = loop.create_task(carry())
        started.add_done_callback(
            lambda done: post(loop, task.cancel) if done.cancelled() else None
        )

    post(loop, begin)
    return started


# Forks.

#: Pools of threads of the layers below: none of their threads survives a fork.
_POOLS: Final[tuple[tuple[ModuleType, str, Callable[[], object]], ...]] = (
    (driver, "_UNPACKERS", lambda: ThreadPoolExecutor(2, "unpack")),
    (handlers, "_threads", lambda: None),
)


def _before_fork() -> None:
    _process.lock.acquire()
    loop = _process.loop
    if loop is not None and threading.get_ident() != loop.thread.ident:
        rest = _Rest()
        _process.rests.append(rest)
        rest.begin(loop)


def _after_fork_in_parent() -> None:
    try:
        if _process.rests:
            _process.rests.pop().end()
    finally:
        _process.lock.release()


def _after_fork_in_child() -> None:
    global _process
    parents, _process = _process, _Process()
    for module, name, make in _POOLS:
        setattr(module, name, make())
    if parents.loop is not None:
        _left.append(parents.loop)
        parents.loop.leave_to_parent()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


# The end of the program.


def _finish(loop: Loop, make: Callable[[], Coro[None]]) -> None:
    """Take the last steps on the loop, and wait for them a little while."""
    step = _Step(loop, make)
    loop.call_soon_threadsafe(step.begin)
    with contextlib.suppress(TimeoutError):
        step.wait(_END_TIMEOUT_S)


def _before_threads_end() -> None:
    loop, _process.ending = _process.loop, True
    if loop is None:
        return

    async def stop_servers() -> None:
        await asyncio.gather(*[server.aclose() for server in loop.servers])

    _finish(loop, stop_servers)


def _at_exit() -> None:
    loop, _process.loop, _process.ending = _process.loop, None, True
    if loop is None:
        return

    async def close_clients() -> None:
        clients = list(loop.clients)
        closing = [loop.create_task(client.aclose()) for client in clients]
        if closing:
            await asyncio.wait(closing, timeout=_END_TIMEOUT_S / 2)
        for client in clients:
            client.transport.abort()

    _finish(loop, close_clients)
    loop.call_soon_threadsafe(loop.stop)
    loop.thread.join(_END_TIMEOUT_S)


# What ``threading`` calls before it waits for threads has no public name;
# concurrent.futures uses it too.
getattr(threading, "_register_atexit", atexit.register)(_before_threads_end)
atexit.register(_at_exit)
