"""Messages that the server sends of its own accord, for whoever listens.

What nobody listens for is dropped. A listener that falls behind slows the server down,
like the reader of a stream: the connection is not read from until it has caught up.
"""

import asyncio
import contextlib
import weakref
from collections import deque
from types import TracebackType
from typing import Final, Self

from rpc25519_tools.errors import LocalProtocolError
from rpc25519_tools.rpc.driver import Driver
from rpc25519_tools.wire.message import Message

#: The connection stops reading while a listener has more than this before it, and
#: goes on when it has less than half of it.
_HIGH_WATER_LEN: Final = 1 << 20
#: What a message takes beside its payload and arguments.
_MESSAGE_COST: Final = 1024


def _cost(message: Message) -> int:
    args = message.header.args.items()
    text_len = sum(len(key) + len(value) for key, value in args)
    return len(message.payload) + text_len + _MESSAGE_COST


class PushListener:
    """An asynchronous iterator over pushed messages; made by ``Client.listen``.

    It ends when it is closed, and raises what ended the connection. As a context
    manager it is closed on leaving; one that is forgotten unclosed ends when nothing
    refers to it any more.
    """

    def __init__(self, driver: Driver, pushes: "Pushes", call_id: str | None) -> None:
        self._holding = False
        self._loop = asyncio.get_running_loop()
        self._driver = driver
        self._pushes = pushes
        self._call_id = call_id
        self._waiting: deque[Message] = deque()
        self._len = 0
        self._closed = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Whatever thread this is in; a loop that is closed holds nothing any more.
        if self._holding:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._driver.release_reading)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        """Return the next message.

        Raises:
            StopAsyncIteration: the listener was closed.
            LocalProtocolError: somebody else waits for it already.
            ConnectionLostError, SecurityError: the connection is over.
        """
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error.with_traceback(None)
            if self._reader is not None:
                raise LocalProtocolError("a listener has one reader at a time")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        message = self._waiting.popleft()
        cost = _cost(message)
        self._len -= cost
        self._driver.taken_len += cost
        if self._holding and self._len <= _HIGH_WATER_LEN // 2:
            self._release()
        return message

    def close(self) -> None:
        """Listen no more; what is waiting is dropped."""
        self._closed = True
        self._waiting.clear()
        self._len = 0
        if self._holding:
            self._release()
        self._pushes.remove(self)
        self._wake()

    # For Pushes.

    def wants(self, message: Message) -> bool:
        """Tell whether this message is one to listen for."""
        return self._call_id is None or message.header.call_id == self._call_id

    def feed(self, message: Message) -> None:
        """Append a message that has come."""
        self._waiting.append(message)
        self._len += _cost(message)
        if self._len > _HIGH_WATER_LEN and not self._holding:
            self._holding = True
            self._driver.hold_reading()
        self._wake()

    def end(self, error: Exception) -> None:
        """Let the reader fail after what is waiting."""
        self._error = error
        self._wake()

    def _release(self) -> None:
        self._holding = False
        self._driver.release_reading()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class Pushes:
    """All listeners of one connection."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        #: Not kept alive from here: nobody reads one that its user has forgotten.
        self._listeners: list[weakref.ref[PushListener]] = []
        self._error: Exception | None = None

    def listen(self, call_id: str | None) -> PushListener:
        """Make a listener for all messages, or for those of one call id."""
        listener = PushListener(self._driver, self, call_id)
        if self._error is not None:
            listener.end(self._error)
        self._listeners = [one for one in self._listeners if one() is not None]
        self._listeners.append(weakref.ref(listener))
        return listener

    def remove(self, listener: PushListener) -> None:
        """Forget a listener."""
        self._listeners = [one for one in self._listeners if one() is not listener]

    def feed(self, message: Message) -> None:
        """Hand a message to everybody who listens for it."""
        for one in self._listeners:
            listener = one()
            if listener is not None and listener.wants(message):
                listener.feed(message)

    def end(self, error: Exception) -> None:
        """Tell all listeners that the connection is over."""
        self._error = error
        for one in self._listeners:
            listener = one()
            if listener is not None:
                listener.end(error)
