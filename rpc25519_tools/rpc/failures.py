"""What callers are told when a handler fails or is stopped, and what is logged."""

import asyncio
import logging
import threading
from typing import Any, Final

from rpc25519_tools.errors import (
    CallCancelledError,
    DeadlineError,
    HandlerError,
    Rpc25519Error,
)
from rpc25519_tools.rpc import methods
from rpc25519_tools.rpc.calls import CANCELLED, EXPIRED, CallKind
from rpc25519_tools.rpc.handlers import Reply, words_of
from rpc25519_tools.rpc.server_core import OpenCall
from rpc25519_tools.wire.message import Message

_log = logging.getLogger(__name__)

#: Characters of an error's text that travel.
_ERROR_LEN: Final = 2000
#: What a handler is told that its client has cancelled.
CANCELLED_BY_CLIENT: Final = "cancelled by the client"
#: What callers and handlers are told of a server that stops.
SHUTTING_DOWN: Final = "the server is shutting down"
_CANCELLED_ITSELF: Final = "the handler was cancelled"


def described(exc: BaseException, name: str, *, reveals: bool) -> str:
    """Return what a caller learns of an error; log what nobody foresaw.

    Args:
        exc: the error.
        name: of the service.
        reveals: whether callers get the text of any error.
    """
    kind, words = type(exc).__name__, words_of(exc)
    if isinstance(exc, Rpc25519Error):
        if not isinstance(exc, DeadlineError | HandlerError | CallCancelledError):
            _log.debug("handler of %r: %s", name, words)
        return words[:_ERROR_LEN] or kind
    _log.error("handler of %r failed", name, exc_info=exc)
    if not reveals:
        return f"internal error of the handler: {kind}"
    return f"{kind}: {words}"[:_ERROR_LEN]


def why_stopped(call: OpenCall, *, stopping: bool) -> str:
    """Return what the caller learns of a handler that was cancelled."""
    if call.expired:
        return EXPIRED
    if call.cancelled:
        return CANCELLED
    return SHUTTING_DOWN if stopping else _CANCELLED_ITSELF


def is_for_us(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Tell whether what came out of a handler is meant to end more than its call.

    That is so for Ctrl-C, which arrives in the main thread wherever that happens to be,
    and for a coroutine that is thrown away unfinished, which may not await any more.
    """
    if isinstance(error, KeyboardInterrupt):
        return threading.current_thread() is threading.main_thread()
    if isinstance(error, GeneratorExit) and task is not None:
        try:
            return asyncio.current_task() is not task
        except RuntimeError:  # no event loop is running
            return True
    return False


def failure(opening: Message, kind: CallKind, error: str) -> Reply:
    """Return the answer to a call that failed, in the form of its kind."""
    if kind is CallKind.NET_RPC:
        return methods.failed(opening.payload, error)
    return Reply(error=error)
