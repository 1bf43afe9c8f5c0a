"""Streams and pushed messages for programs without asyncio.

Each belongs to the process that opened it, and ends when nothing refers to it: left
unread, it would hold up its whole connection.
"""

import asyncio
import weakref
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rpc25519_tools.blocking.loop import current_loop, post, run, this_loop
from rpc25519_tools.errors import DeadlineError
from rpc25519_tools.rpc.client_stream import ClientStream
from rpc25519_tools.rpc.deadlines import require_limit
from rpc25519_tools.rpc.pushes import PushListener
from rpc25519_tools.rpc.streams import Part
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS, Message


class BlockingStream:
    """An open upload, download or bistream; made by the methods of BlockingClient.

    As a context manager it cancels the call on leaving, unless its reply has come.
    Iterate over it for the parts that come down; one thread may do that while another
    one sends.

    Args:
        client: kept from being closed for want of other uses.
        stream: the open call.
    """

    def __init__(self, client: object, stream: ClientStream) -> None:
        self._client = client
        self._stream = stream
        self._loop = this_loop()
        self._parts: deque[Part] = deque()
        self._receiving = asyncio.Lock()
        self._sending = asyncio.Lock()
        weakref.finalize(self, post, self._loop, stream.cancel).atexit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Part:
        """Return the next part that comes down.

        Raises:
            StopIteration: there are no more.
            LocalProtocolError: this kind of call receives no parts.
            Rpc25519Error: what ended the stream early; ConnectionLostError in a forked
                child.
        """
        if self._parts and self._loop is current_loop():
            return self._parts.popleft()
        part = run(self._receive, on=self._loop)
        if part is None:
            raise StopIteration
        return part

    async def _receive(self) -> Part | None:
        incoming = aiter(self._stream)
        async with self._receiving:
            if not self._parts:
                first = await anext(incoming, None)
                if first is None:
                    return None
                # A change of threads for each part would take longer than the part.
                self._parts += [first, *incoming.take_ready()]
            return self._parts.popleft()

    @property
    def call_id(self) -> str:
        """Names the call; a server's handler finds it in the header."""
        return self._stream.call_id

    def send(
        self,
        payload: Buffer,
        *,
        args: Mapping[str, str] = NO_ARGS,
        last: bool = False,
        compress: bool = True,
    ) -> None:
        """Send the next part; see ``ClientStream.send``."""

        async def send() -> None:
            async with self._sending:  # or long parts could overtake each other
                await self._stream.send(
                    payload, args=args, last=last, compress=compress
                )

        run(send, on=self._loop)

    def reply(self) -> Message:
        """Wait for the reply; see ``ClientStream.reply``."""
        return run(self._stream.reply, on=self._loop)

    def cancel(self) -> None:
        """Give the call up; the server is told. Does nothing when it is over."""

        async def cancel() -> None:
            self._stream.cancel()

        if self._loop is current_loop():
            run(cancel)


class BlockingPushes:
    """An iterator over pushed messages, for any number of threads.

    Made by ``BlockingClient.listen``. As a context manager it is closed on leaving.

    Args:
        client: kept from being closed for want of other uses.
        listener: what hears them.
    """

    def __init__(self, client: object, listener: PushListener) -> None:
        self._client = client
        self._listener = listener
        self._loop = this_loop()
        self._turn = asyncio.Lock()
        weakref.finalize(self, post, self._loop, listener.close).atexit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message:
        """Return the next message; see ``next``."""
        message = self.next()
        if message is None:
            raise StopIteration
        return message

    def next(self, timeout_s: float | None = None) -> Message | None:
        """Return the next message, or None when the listener was closed.

        Raises:
            DeadlineError: none came within ``timeout_s``.
            LocalProtocolError: that is no time limit.
            ConnectionLostError, SecurityError: the connection is over; the former also
                in a forked child.
        """
        if timeout_s is not None:
            require_limit(timeout_s)

        async def step() -> Message | None:
            async with asyncio.timeout(timeout_s), self._turn:
                return await anext(self._listener, None)

        try:
            return run(step, on=self._loop)
        except TimeoutError as exc:
            if isinstance(exc, DeadlineError):
                raise
            raise DeadlineError(f"no message within {timeout_s:g} s") from exc

    def close(self) -> None:
        """Listen no more."""

        async def close() -> None:
            self._listener.close()

        if self._loop is current_loop():
            run(close)
