"""Handlers as users write them, made into the one form that the server runs.

A handler is ``async def`` or plain. A plain one runs in a worker thread, where it may
block; its streams then are plain iterators and plain calls. What a handler returns may
be a Reply, a payload, or None for an empty payload.
"""

import asyncio
import concurrent.futures
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from rpc25519_tools.errors import CallCancelledError, ConfigError
from rpc25519_tools.rpc.calls import RsyncStep
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream, Part
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS

#: Plain handlers that can run at a time; more wait for a thread.
MAX_THREADS: Final = 64
_OVER: Final = "the call is over"

T = TypeVar("T")


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler returns.

    Attributes:
        payload: the result.
        args: small named strings to send along.
        error: an error text to send beside the payload; empty for success.
        subject: replaces the request's subject; None leaves it.
        compress: False sends this one message without compression.
    """

    payload: Buffer = b""
    args: Mapping[str, str] = msgspec.field(default_factory=lambda: NO_ARGS)
    error: str = ""
    subject: str | None = None
    compress: bool = True


#: What a handler may return.
Result: TypeAlias = Reply | Buffer | None


class _Steps:
    """Lets a handler's threads take steps on the loop.

    When the call is over, the steps that are being taken end too, and no more can be
    taken: a thread must not wait for ever, nor send what nobody waits for. That holds
    also where the loop stops for good: what a thread waits for is ended by ``end``
    itself, not by anything that the loop would have to do later.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        #: For ``_over`` and ``_waited_for``: nobody may begin to wait after the end.
        self._lock = threading.Lock()
        self._over = False
        self._waited_for: set[concurrent.futures.Future[Any]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, step: Callable[[], Awaitable[T]]) -> T:
        """Take a step; called in a thread.

        Raises:
            CallCancelledError: the call is over.
        """
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        with self._lock:
            if self._over:
                raise CallCancelledError(_OVER)
            self._waited_for.add(future)
            self._loop.call_soon_threadsafe(self._begin, step, future)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise CallCancelledError(_OVER) from None
        finally:
            with self._lock:
                self._waited_for.discard(future)

    def _begin(
        self, step: Callable[[], Awaitable[T]], future: concurrent.futures.Future[T]
    ) -> None:
        if not future.cancelled():
            task = self._loop.create_task(self._run(step, future))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(
        self, step: Callable[[], Awaitable[T]], future: concurrent.futures.Future[T]
    ) -> None:
        try:
            result = await step()
        except asyncio.CancelledError:
            future.cancel()
            raise
        except Exception as exc:  # noqa: BLE001  # the thread gets it, whatever it is
            if not future.cancelled():
                future.set_exception(exc)
        else:
            if not future.cancelled():
                future.set_result(result)

    def end(self) -> None:
        """Say that the call is over; called on the loop."""
        with self._lock:
            self._over = True
            waited_for = list(self._waited_for)
        for future in waited_for:
            future.cancel()
        for task in self._tasks:
            task.cancel()


class PlainIncoming:
    """An incoming stream for a plain handler: iterate over it in the handler's thread.

    Iteration ends or raises as that of IncomingStream does, and raises
    CallCancelledError when nobody waits for the call any more.
    """

    def __init__(self, stream: IncomingStream, steps: _Steps) -> None:
        self._stream = stream
        self._steps = steps

    def __iter__(self) -> Iterator[Part]:
        while (part := self._steps.take(self._next)) is not None:
            yield part

    async def _next(self) -> Part | None:
        # StopAsyncIteration cannot pass through a future.
        return await anext(self._stream, None)


class PlainOutgoing:
    """An outgoing stream for a plain handler."""

    def __init__(self, stream: OutgoingStream, steps: _Steps) -> None:
        self._stream = stream
        self._steps = steps

    def send(
        self,
        payload: Buffer,
        *,
        args: Mapping[str, str] = NO_ARGS,
        last: bool = False,
        step: RsyncStep | None = None,
        compress: bool = True,
    ) -> None:
        """Send the next part, as OutgoingStream does; wait while the peer falls behind.

        Raises:
            LocalProtocolError: the last part has been sent already; or ``step`` or
                ``last`` are not for this kind of call.
            CallCancelledError: nobody waits for the call any more.
            ConnectionLostError: the connection is over.
        """
        self._steps.take(
            lambda: self._stream.send(
                payload, args=args, last=last, step=step, compress=compress
            )
        )


CallHandler: TypeAlias = Callable[[CallContext], Awaitable[Result]]
UploadHandler: TypeAlias = Callable[[CallContext, IncomingStream], Awaitable[Result]]
DownloadHandler: TypeAlias = Callable[[CallContext, OutgoingStream], Awaitable[Result]]
BistreamHandler: TypeAlias = Callable[
    [CallContext, IncomingStream, OutgoingStream], Awaitable[Result]
]

PlainCallHandler: TypeAlias = Callable[[CallContext], Result]
PlainUploadHandler: TypeAlias = Callable[[CallContext, PlainIncoming], Result]
PlainDownloadHandler: TypeAlias = Callable[[CallContext, PlainOutgoing], Result]
PlainBistreamHandler: TypeAlias = Callable[
    [CallContext, PlainIncoming, PlainOutgoing], Result
]


def is_async(handler: Callable[..., object]) -> bool:
    """Tell whether calling ``handler`` gives something to await."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        type(handler).__call__
    )


_threads: ThreadPoolExecutor | None = None


def _pool() -> ThreadPoolExecutor:
    """Return the threads for plain handlers, which may block for long.

    They are not asyncio's default ones: those do the files and the packing, and must
    not wait for a handler.
    """
    global _threads  # noqa: PLW0603  # one pool for the process, made when needed
    if _threads is None:
        _threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="handler")
    return _threads


async def run_in_thread(
    context: CallContext, function: Callable[..., T], *args: object
) -> T:
    """Run a plain handler in a thread that knows its call's deadline.

    Cancelling does not stop the thread, which can watch ``context.cancellation``; its
    result is dropped then.
    """
    carried = copy_context()
    call = functools.partial(carried.run, _run_function, function, *args)
    try:
        return await asyncio.get_running_loop().run_in_executor(_pool(), call)
    finally:
        context.cancellation.set()


def _run_function(function: Callable[..., T], *args: object) -> T:
    try:
        return function(*args)
    except StopIteration as exc:  # no future can hold it
        raise RuntimeError("StopIteration") from exc
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as exc:
        # Such as SystemExit, which would end the event loop where it is awaited. The
        # KeyboardInterrupt of a real Ctrl-C never comes to this thread.
        raise RuntimeError(f"{type(exc).__name__}: {words_of(exc)}") from exc


def words_of(error: BaseException) -> str:
    """Return what an error says, if it can say anything."""
    try:
        return str(error)
    except BaseException:  # noqa: BLE001  # it is its own code that runs
        return "it cannot say what is wrong"


async def _run_with_steps(
    handler: Callable[..., Result],
    context: CallContext,
    make_streams: Callable[[_Steps], tuple[object, ...]],
) -> Result:
    """Run a plain handler of streams in a thread."""
    steps = _Steps(asyncio.get_running_loop())
    try:
        return await run_in_thread(context, handler, context, *make_streams(steps))
    finally:
        steps.end()


def as_call_handler(handler: Callable[..., Any], name: str) -> CallHandler:
    """Make any handler of calls or one-way messages an asynchronous one."""
    _require_parameters(handler, 1, name)
    if is_async(handler):
        return handler

    async def run(context: CallContext) -> Result:
        return await run_in_thread(context, handler, context)

    return run


def as_upload_handler(handler: Callable[..., Any], name: str) -> UploadHandler:
    """Make any handler of uploads an asynchronous one."""
    _require_parameters(handler, 2, name)
    if is_async(handler):
        return handler

    async def run(context: CallContext, parts: IncomingStream) -> Result:
        return await _run_with_steps(
            handler, context, lambda steps: (PlainIncoming(parts, steps),)
        )

    return run


def as_download_handler(handler: Callable[..., Any], name: str) -> DownloadHandler:
    """Make any handler of downloads an asynchronous one."""
    _require_parameters(handler, 2, name)
    if is_async(handler):
        return handler

    async def run(context: CallContext, out: OutgoingStream) -> Result:
        return await _run_with_steps(
            handler, context, lambda steps: (PlainOutgoing(out, steps),)
        )

    return run


def as_bistream_handler(handler: Callable[..., Any], name: str) -> BistreamHandler:
    """Make any handler of bistreams or rsync calls an asynchronous one."""
    _require_parameters(handler, 3, name)
    if is_async(handler):
        return handler

    async def run(
        context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> Result:
        return await _run_with_steps(
            handler,
            context,
            lambda steps: (PlainIncoming(parts, steps), PlainOutgoing(out, steps)),
        )

    return run


def _require_parameters(handler: Callable[..., object], count: int, name: str) -> None:
    """Find a handler with a wrong signature when it is registered, not when called."""
    try:
        inspect.signature(handler).bind(*range(count))
    except ValueError:
        return  # a built-in that does not tell
    except TypeError as exc:
        wanted = ("context", "context and stream", "context, parts and stream")
        raise ConfigError(
            f"the handler of {name!r} must take {count} arguments: {wanted[count - 1]}"
        ) from exc


def as_reply(result: object, name: str) -> Reply:
    """Return what a handler returned as a Reply.

    Raises:
        TypeError: it is nothing that can be sent.
    """
    if type(result) is bytes or isinstance(result, bytearray | memoryview):
        return Reply(payload=result)
    if isinstance(result, Reply):
        _require_fields(result, name)
        return result
    if result is None:
        return Reply()
    raise TypeError(
        f"the handler of {name!r} returned {type(result).__name__}; "
        "return bytes, a Reply or None"
    )


def _require_fields(reply: Any, name: str) -> None:
    """Refuse a Reply whose fields cannot be sent."""
    if not isinstance(reply.payload, bytes | bytearray | memoryview):
        problem = "payload must be bytes"
    elif not isinstance(reply.error, str):
        problem = "error must be a string"
    elif not isinstance(reply.subject, str | None):
        problem = "subject must be a string or None"
    elif reply.args and not _are_texts(reply.args):
        problem = "args must be a mapping of strings to strings"
    else:
        return
    raise TypeError(f"the handler of {name!r} returned a Reply whose {problem}")


def _are_texts(args: object) -> bool:
    return isinstance(args, Mapping) and all(
        isinstance(key, str) and isinstance(value, str) for key, value in args.items()
    )
