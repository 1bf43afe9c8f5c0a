"""What a handler knows about its call, and the deadline that it passes on.

Deadlines travel as wall-clock times, but a clock may jump, and those of two hosts
differ. So a deadline is turned into a stretch of time as soon as it arrives, by the
sender's own two time stamps, and from then on only the monotonic clock counts.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import msgspec

from rpc25519_tools.errors import AccessDeniedError
from rpc25519_tools.identity.access import AccessPolicy, Right, refusal
from rpc25519_tools.identity.certificate import PeerIdentity
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.transport.base import Transport
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import Header

_log = logging.getLogger(__name__)

_NS_PER_S: Final = 1_000_000_000

#: When the call that is being handled must be done, on the monotonic clock.
_handled_until_s: ContextVar[float | None] = ContextVar(
    "rpc25519_handled_until_s", default=None
)
#: What ``is_in_handler`` finds where nothing was ever set.
_NO_HANDLER: Final = object()


def time_left_s() -> float | None:
    """Return how long the call that is being handled may still take, in seconds.

    None outside of handlers and for calls without a deadline. Calls that a handler
    makes are given no more than this by themselves, also from threads that
    ``asyncio.to_thread`` started and from tasks that the handler has started, even
    those that go on after it: see ``without_deadline``.
    """
    until_s = _handled_until_s.get()
    return None if until_s is None else until_s - time.monotonic()


def is_in_handler() -> bool:
    """Tell whether a handler is at work here, or what it has started."""
    return _handled_until_s.get(_NO_HANDLER) is not _NO_HANDLER


@contextmanager
def without_deadline() -> Iterator[None]:
    """Let what is started inside outlive the call that is being handled.

    A task inherits the deadline of the handler that starts it, and when that has passed
    its own calls fail. One that is started inside has no deadline::

        with without_deadline():
            background.add(asyncio.create_task(work()))

    Calls that are made inside have their own limits alone.
    """
    with handling_until(None):
        yield


@contextmanager
def handling_until(until_s: float | None) -> Iterator[None]:
    """Let outgoing calls made inside inherit a deadline on the monotonic clock."""
    token = _handled_until_s.set(until_s)
    try:
        yield
    finally:
        _handled_until_s.reset(token)


def set_handled_until(until_s: float | None) -> None:
    """Set the deadline for the rest of the running task."""
    _handled_until_s.set(until_s)


def allowance_s(request: Header, deadline_ns: int, now_ns: Callable[[], int]) -> float:
    """Return how long a request that has just arrived may take, in seconds.

    Args:
        request: its header.
        deadline_ns: its deadline. The time between its two stamps counts.
        now_ns: our wall clock, for a request that does not say when it was made.
    """
    made_ns = now_ns() if request.created_ns is None else request.created_ns
    return (deadline_ns - made_ns) / _NS_PER_S


#: Two threads that wait for one call must wait for the same event.
_making_events: Final = threading.Lock()


class Cancellation:
    """Tells a handler that nobody wants its answer any more. Safe from any thread."""

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._event: threading.Event | None = None

    def set(self) -> None:
        """Tell it."""
        self._is_set = True
        if self._event is not None:
            self._event.set()

    @property
    def is_set(self) -> bool:
        """Whether the call was cancelled or is too late, or its client has gone."""
        return self._is_set

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait in a plain handler's thread; return whether the call is cancelled.

        An ``async`` handler has no need of this: it is cancelled where it waits.
        """
        with _making_events:
            if self._event is None:
                self._event = threading.Event()
        if self._is_set:  # set before anybody could see the event
            self._event.set()
        return self._event.wait(timeout_s)


class CallContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler knows about its call.

    Attributes:
        kind: how it was called.
        header: the header of the opening message; its addresses are the peer's claim.
        payload: what the opening message carried; where the client sends parts, that is
            also the first part of the stream.
        peer: who the peer proved to be; None where nothing was proved.
        local_address: our end of the connection, such as ``127.0.0.1:8443``.
        remote_address: the peer's end; ``Server.push`` reaches this client by it, where
            it is the only one there.
        client: its connection, by which ``Server.push`` always reaches it.
        until_s: when the answer must be ready, on the clock of ``time.monotonic``;
            None for no limit.
        cancellation: tells plain handlers that nobody waits for them any more.
        access: the server's policy; None where everybody may do everything.
    """

    kind: CallKind
    header: Header
    payload: Buffer
    peer: PeerIdentity | None
    local_address: str
    remote_address: str
    client: Transport | None = None
    until_s: float | None = None
    cancellation: Cancellation = msgspec.field(default_factory=Cancellation)
    access: AccessPolicy | None = None

    @property
    def time_left_s(self) -> float | None:
        """Seconds until the deadline, negative after it; None for no limit."""
        return None if self.until_s is None else self.until_s - time.monotonic()

    def may(self, right: Right, target: str) -> bool:
        """Tell whether the peer may do something now; see ``AccessPolicy.may``."""
        # Not just anything true: the coroutine of an async method would be, too.
        return self.access is None or self.access.may(self.peer, right, target) is True

    def require(self, right: Right, target: str) -> None:
        """Refuse the call, and log who wanted what, unless the peer may do it.

        A peer can have as many refusals logged as it makes calls. For handlers that
        count them, the log record has the texts ``refusal``, ``address`` and ``peer``
        (empty for who proved nothing).

        Raises:
            AccessDeniedError: it may not; its text is for the caller.
        """
        if self.may(right, target):
            return
        text = refusal(right, target)
        peer = "" if self.peer is None else self.peer.describe()
        _log.warning(
            "%s %s %s",
            self.remote_address,
            peer or "unauthenticated",
            text,
            extra={"refusal": text, "address": self.remote_address, "peer": peer},
        )
        raise AccessDeniedError(text)
