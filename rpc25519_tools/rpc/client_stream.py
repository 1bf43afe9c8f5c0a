"""One open call of a client: parts up, parts down, and in the end a reply."""

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol, Self

from rpc25519_tools.errors import (
    CallCancelledError,
    ConnectionLostError,
    LocalProtocolError,
)
from rpc25519_tools.rpc.calls import RsyncStep
from rpc25519_tools.rpc.client_core import ClientCore
from rpc25519_tools.rpc.driver import now_ns
from rpc25519_tools.rpc.streams import IncomingStream
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS, Message


class StreamOwner(Protocol):
    """What an open call needs from its client."""

    @property
    def core(self) -> ClientCore:
        """The open calls of the connection."""

    async def send(self, message: Message) -> None:
        """Pack and send with the client's codec."""

    def cancel(self, call_id: str) -> None:
        """Forget a call and tell the server, unless it is over."""


class ClientStream:
    """An upload, download, bistream or rsync call; made by the methods of Client.

    As an asynchronous context manager it opens the call on entering, unless that has
    been done, and cancels it on leaving, unless its reply has come. Iterate over it for
    the parts that come down.
    """

    def __init__(
        self,
        owner: StreamOwner,
        call_id: str,
        begin: Callable[[], Message],
        reply: asyncio.Future[Message],
        incoming: IncomingStream | None,
    ) -> None:
        self._owner = owner
        self._call_id = call_id
        self._begin: Callable[[], Message] | None = begin
        self._reply = reply
        self._incoming = incoming

    async def __aenter__(self) -> Self:
        if self._begin is not None:
            await self.begin()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def __aiter__(self) -> IncomingStream:
        if self._incoming is None:
            raise LocalProtocolError("this kind of call receives no parts")
        self._require_open()
        return self._incoming

    @property
    def call_id(self) -> str:
        """Names the call; a server's handler finds it in the header."""
        return self._call_id

    @property
    def is_over(self) -> bool:
        """Whether the reply, or what came instead of it, is there."""
        return self._reply.done()

    async def begin(self) -> None:
        """Send the opening message, once; the call's time begins to run.

        Raises:
            CallCancelledError: it was cancelled before.
            DeadlineError: the handler that opens it has no time left.
            LocalProtocolError: it has been opened already.
            ConnectionLostError, SecurityError: the connection is over.
        """
        if self._begin is None:
            raise LocalProtocolError("this stream has been opened already")
        if self._reply.done():
            self._reply.result()
        begin, self._begin = self._begin, None
        try:
            await self._owner.send(begin())
        except BaseException:
            self.cancel()
            raise

    def _require_open(self) -> None:
        if self._begin is not None and not self._reply.done():
            raise LocalProtocolError('this stream is not open yet: use "async with"')

    async def send(
        self,
        payload: Buffer,
        *,
        args: Mapping[str, str] = NO_ARGS,
        last: bool = False,
        step: RsyncStep | None = None,
        compress: bool = True,
    ) -> None:
        """Send the next part; wait while the server falls behind.

        A part that is refused, or whose sending is cancelled while it waits, is not
        sent: the next one takes its place.

        Args:
            payload: the bytes; they must not change until they have left.
            args: small named strings to send along.
            last: whether no more parts follow.
            step: what the part is for: needed in rsync calls, which have no last part;
                not possible in others.
            compress: False sends this one part without compression.

        Raises:
            RemoteCallError, NoSuchServiceError: the server ended the call early.
            DeadlineError: the call's time is over.
            LocalProtocolError: the server ended it without an error, or it takes no
                parts, or no more of them; or it is not open; or ``step`` or ``last``
                are not for this kind of call.
            ConnectionLostError, SecurityError: the connection is over.
        """
        self._require_open()
        if self._reply.done():
            self._reply.result()
            raise LocalProtocolError("the server ended the call before its last part")
        part = self._owner.core.next_part(
            self._call_id,
            now_ns=now_ns(),
            payload=payload,
            args=args,
            last=last,
            step=step,
            compress=compress,
        )
        try:
            await self._owner.send(part)
        except ConnectionLostError:
            if self._reply.done():
                self._reply.result()  # the server may have said why before it left
            raise

    async def reply(self) -> Message:
        """Wait for the reply.

        Raises:
            RemoteCallError: the handler returned an error.
            NoSuchServiceError: the server does not offer the service.
            DeadlineError: it did not come in time; the server has been told.
            ConnectionLostError, SecurityError: the connection is over.
            LocalProtocolError: the stream is not open.
        """
        self._require_open()
        return await asyncio.shield(self._reply)

    def cancel(self) -> None:
        """Give the call up; the server is told. Does nothing when it is over."""
        if not self._reply.done() and self._begin is not None:
            self._reply.set_exception(CallCancelledError("the call was cancelled"))
        self._owner.cancel(self._call_id)
