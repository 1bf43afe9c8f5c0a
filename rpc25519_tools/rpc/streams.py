"""Streams of parts, as handlers and callers see them.

A stream has bounded memory on both sides: when its reader falls behind, the connection
stops reading, and the sender on the other side has to wait.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Self, TypeAlias

import msgspec

from rpc25519_tools.errors import LocalProtocolError
from rpc25519_tools.rpc.calls import STEP_OF_TYPE, RsyncStep
from rpc25519_tools.rpc.driver import Driver
from rpc25519_tools.rpc.turns import Turn
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS, Message

#: The connection stops reading while a stream holds more than this for its reader,
#: and goes on when it holds less than half of it.
_HIGH_WATER_LEN: Final = 6 << 20
#: The same of an rsync call: what is not stored yet when the process is killed has come
#: in vain.
_STEPS_HIGH_WATER_LEN: Final = 2 << 20

#: What a part takes beside its payload and arguments.
_PART_COST: Final = 1024


class Part(msgspec.Struct, frozen=True):
    """One part of a stream.

    Attributes:
        number: 0 for the first part, then counted up without gaps.
        payload: the bytes; a memoryview where the part is long.
        args: small named strings that came along.
        last: whether the sender called it the last one.
        step: what it is for, in an rsync call; None in all others.
    """

    number: int
    payload: Buffer
    args: Mapping[str, str]
    last: bool
    step: RsyncStep | None = None

    @property
    def cost(self) -> int:
        """About how much memory the part takes, in bytes."""
        args = sum(len(key) + len(value) for key, value in self.args.items())
        return len(self.payload) + args + _PART_COST

    @classmethod
    def of(cls, message: Message, *, last: bool) -> Self:
        """Return the part that a message carries."""
        header = message.header
        step = STEP_OF_TYPE.get(header.call_type)
        return cls(header.stream_part, message.payload, header.args, last, step)


class IncomingStream:
    """The parts that the peer sends: an asynchronous iterator for one reader.

    It ends after the last part, or raises what ended it early. Leaving it unread holds
    the whole connection back: other calls on it wait, and so does the peer's word that
    it has cancelled this one. ``discard`` says that nobody will read on.

    Args:
        driver: the connection.
        change_held: learns how much more, or less, the stream holds.
        keeps_parts: whether the reader gets the parts that are here before any error,
            whatever it is.
        has_steps: whether it is of an rsync call.
    """

    def __init__(
        self,
        driver: Driver,
        change_held: Callable[[int], None] | None = None,
        *,
        keeps_parts: bool = False,
        has_steps: bool = False,
    ) -> None:
        self._driver = driver
        self._change_held = driver.change_held if change_held is None else change_held
        self._keeps_parts = keeps_parts
        self._high_water_len = _STEPS_HIGH_WATER_LEN if has_steps else _HIGH_WATER_LEN
        self._parts: deque[Part] = deque()
        self._len = 0
        self._holding = False
        self._discarded = False
        self._ended = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Part:
        """Return the next part.

        Raises:
            StopAsyncIteration: there are no more.
            LocalProtocolError: somebody else waits for the next one already.
            Rpc25519Error: what ended the stream early.
        """
        while not self._parts:
            if self._error is not None:
                raise self._error.with_traceback(None)
            if self._ended:
                raise StopAsyncIteration
            if self._reader is not None:
                raise LocalProtocolError("a stream has one reader at a time")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self._pop()

    @property
    def is_unread(self) -> bool:
        """Whether parts are here that the reader has not taken."""
        return bool(self._parts)

    @property
    def is_waited_for(self) -> bool:
        """Whether the reader waits for the peer to send."""
        return self._reader is not None

    def take_ready(self) -> list[Part]:
        """Return the parts that can be had without waiting, which may be none."""
        return [self._pop() for _ in range(len(self._parts))]

    def _pop(self) -> Part:
        part = self._parts.popleft()
        self._len -= part.cost
        self._change_held(-part.cost)
        if self._holding and self._len <= self._high_water_len // 2:
            self._release()
        return part

    def feed(self, part: Part) -> None:
        """Append a part that has come."""
        if self._discarded or self._error is not None:
            return
        self._parts.append(part)
        self._len += part.cost
        self._change_held(part.cost)
        if self._len > self._high_water_len and not self._holding:
            self._holding = True
            self._driver.hold_reading()
        if part.last:
            self._ended = True
        self._wake()

    def end(self, error: Exception | None = None, *, after_parts: bool = False) -> None:
        """Let the reader stop after the parts that are here, or fail.

        Args:
            error: what it fails with.
            after_parts: whether it gets the parts that are here first, also where the
                stream does not keep them anyway.
        """
        self._ended = True
        if error is not None and self._error is None:
            self._error = error
            if after_parts or self._keeps_parts:
                # No more will come: the connection need not wait for the reader.
                self._release()
            else:
                self._drop_parts()
        self._wake()

    def discard(self) -> None:
        """Drop what is here and what will come."""
        self._discarded = True
        self._drop_parts()

    def _drop_parts(self) -> None:
        self._parts.clear()
        self._change_held(-self._len)
        self._len = 0
        self._release()

    def _release(self) -> None:
        if self._holding:
            self._holding = False
            self._driver.release_reading()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


#: Sends one part: payload, args, whether it is the last one, whether to compress it,
#: its step.
SendPart: TypeAlias = Callable[
    [Buffer, Mapping[str, str], bool, bool, RsyncStep | None], Awaitable[None]
]


class OutgoingStream:
    """The parts that we send.

    Args:
        send_part: packs and queues one part, and waits while the peer falls behind.
        turn: for handlers that make their parts only when they may hold some; those
            that have their parts anyway need none.
    """

    def __init__(self, send_part: SendPart, turn: Turn) -> None:
        self._send_part = send_part
        self.turn = turn
        self._has_begun = False

    async def send(
        self,
        payload: Buffer,
        *,
        args: Mapping[str, str] = NO_ARGS,
        last: bool = False,
        step: RsyncStep | None = None,
        compress: bool = True,
    ) -> None:
        """Send the next part; wait while the peer falls behind.

        A part that is refused, or whose sending is cancelled while it waits, is not
        sent: the next one takes its place.

        Args:
            payload: the bytes; they must not change until they have left.
            args: small named strings to send along.
            last: whether no more parts follow. Where there is only one, an empty part
                comes after it: the wire has no other way to say so.
            step: what the part is for: needed in rsync calls, which have no last part;
                not possible in others.
            compress: False sends this one part without compression.

        Raises:
            LocalProtocolError: the last part has been sent already; or the part is too
                large; or one before it could not be sent after later ones had been; or
                ``step`` or ``last`` are not for this kind of call.
            ConnectionLostError: the connection is over.
        """
        # Part 0 has a type of its own, which cannot say that it is the last.
        is_only = last and step is None and not self._has_begun
        await self._send_part(payload, args, last and not is_only, compress, step)
        self._has_begun = True
        if is_only:
            await self._send_part(b"", NO_ARGS, True, compress, None)
