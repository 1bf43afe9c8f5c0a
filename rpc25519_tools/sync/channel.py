"""One open sync call, as sender and receiver see it: parts with a step, both ways."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from rpc25519_tools.errors import DeadlineError
from rpc25519_tools.files.workers import finished
from rpc25519_tools.rpc.calls import RsyncStep
from rpc25519_tools.rpc.streams import IncomingStream, Part
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS

#: Bytes a second: packing pays on lines that are slower than the first, and is given up
#: where the line takes more than the second.
_SLOW: Final = 60e6
_FAST: Final = 250e6
#: Messages from this length on are worth packing, and say something about the line.
_TELLING_LEN: Final = 32 * 1024
#: A sync fails when nothing went either way for so long, in seconds.
STALL_S: Final = 300.0
#: How often we say that we are at work when there is nothing else to say, in seconds.
_ALIVE_S: Final = 30.0
#: What says so: a message of no records.
_NOTHING: Final = b"\0\x90"
#: Where the rate is limited, messages take so long, in seconds, or have so many bytes.
_MESSAGE_S: Final = 0.25
_LEAST_MESSAGE_LEN: Final = 4096
#: A message can take so many bytes' time where the rate is limited, and no more than
#: so many seconds.
_LONG_LEN: Final = 4 << 20
_LONG_S: Final = 3600.0

T = TypeVar("T")


class PartSender(Protocol):
    """Sends parts: a client's open call, or a handler's outgoing stream."""

    async def send(
        self,
        payload: Buffer,
        *,
        args: Mapping[str, str] = NO_ARGS,
        step: RsyncStep | None = None,
        compress: bool = True,
    ) -> None:
        """Send the next part; wait while the peer falls behind."""


class Pace:
    """Keeps to a limit of bytes a second (``--bwlimit``).

    Args:
        limit: bytes a second; 0: no limit.
    """

    def __init__(self, limit: int = 0) -> None:
        self._limit = limit
        self._free_at = 0.0

    def time_of(self, count: int, most_s: float) -> float:
        """Return how long so many bytes take at least, in seconds, up to a limit."""
        return min(count / self._limit, most_s) if self._limit else 0.0

    def message_len(self, most: int) -> int:
        """Return how long messages may be, in bytes, up to a limit.

        Each waits for all of its time and then goes at once: long ones would leave a
        slow line silent for minutes.
        """
        if not self._limit:
            return most
        return min(most, max(int(self._limit * _MESSAGE_S), _LEAST_MESSAGE_LEN))

    async def spend(self, count: int) -> None:
        """Wait until so many bytes may go."""
        if not self._limit:
            return
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now) + count / self._limit
        # A second's worth may go at once, so that short messages do not wait.
        wait_s = self._free_at - now - min(1.0, 65536 / self._limit)
        if wait_s > 0:
            await asyncio.sleep(wait_s)


class Channel:
    """One open call.

    Contents are packed where the line is what everything waits for, and left as they
    are where packing would be: that is seen from how fast the line takes them.

    Args:
        sender: where parts go.
        incoming: where they come from.
        pace: a limit of the rate.
        may_compress: whether packing is allowed at all.
        stall_s: how long nothing may go either way, in seconds.
    """

    #: When something has last gone either way, and when we have last sent anything.
    _moved_s = _sent_s = 0.0
    _stall_s = STALL_S

    def __init__(
        self,
        sender: PartSender,
        incoming: IncomingStream,
        *,
        pace: Pace | None = None,
        may_compress: bool = True,
        stall_s: float = STALL_S,
    ) -> None:
        self._stall_s = stall_s
        self._sender = sender
        self._incoming = incoming
        self._pace = pace or Pace()
        self._may_compress = may_compress
        self._lock = asyncio.Lock()
        self._rate = _FAST
        self._compress = False

    def keep_to(self, bandwidth: int) -> None:
        """Send no more than so many bytes a second from now on; 0: any number."""
        self._pace = Pace(bandwidth)

    def message_len(self, most: int) -> int:
        """Return how many bytes of contents one message is to have, up to a limit."""
        return self._pace.message_len(most)

    async def send(
        self,
        step: RsyncStep,
        payload: Buffer,
        *,
        args: Mapping[str, str] = NO_ARGS,
        waited_s: float = 0.0,
    ) -> None:
        """Send one message of a step; packed by the connection's codec if that pays.

        Args:
            step: its step.
            payload: the bytes.
            args: small named strings to send along.
            waited_s: for how long the line had no room for it before, in seconds.
        """
        count = len(payload)
        telling = self._may_compress and count >= _TELLING_LEN
        async with self._lock:
            await self._pace.spend(count)
            loop = asyncio.get_running_loop()
            begin_s = loop.time()
            await self._sender.send(
                payload, args=args, step=step, compress=telling and self._compress
            )
            self._sent_s = loop.time()
            if payload is not _NOTHING:  # which tells nothing of the other side
                self._moved_s = self._sent_s
            if telling:
                taken_s = waited_s + loop.time() - begin_s
                self._learn(count / max(taken_s, 1e-5))

    def _learn(self, rate: float) -> None:
        """Learn how many bytes a second the line has taken."""
        self._rate += (min(rate, 2 * _FAST) - self._rate) / 8
        if self._rate < _SLOW:
            self._compress = True
        elif self._rate > _FAST:
            self._compress = False

    async def receive(self) -> Sequence[Part]:
        """Return the parts that have come; wait for one; none at the end.

        Raises:
            Rpc25519Error: what ended the call early.
        """
        part = await anext(self._incoming, None)
        self._moved_s = asyncio.get_running_loop().time()
        return () if part is None else (part, *self._incoming.take_ready())

    async def receive_one(self) -> Part | None:
        """Return the next part; None at the end."""
        return await anext(self._incoming, None)

    async def while_alive(
        self,
        step: RsyncStep,
        work: Coroutine[Any, Any, T],
        is_busy: Callable[[], bool] = bool,
    ) -> T:
        """Do the work of one side, as long as the other one goes on.

        Whatever takes long, each side tells the other now and then that it is there.

        Args:
            step: of the messages that say so.
            work: what to do.
            is_busy: whether the peer has to wait for us now, as for a slow disk.

        Raises:
            DeadlineError: nothing went either way for too long.
            Exception: whatever ``work`` raises.
        """
        working = asyncio.ensure_future(work)
        watching = asyncio.ensure_future(self._watch(step, is_busy))
        try:
            await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                watching.result()
                working.cancel()
            return await working
        finally:
            await _stop(working, watching)

    async def _watch(self, step: RsyncStep, is_busy: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        self._moved_s = self._sent_s = loop.time()
        while True:
            await asyncio.sleep(min(_ALIVE_S, self._stall_s / 4))
            now_s = loop.time()
            if is_busy():
                self._moved_s = now_s
            limit_s = self._stall_s + self._pace.time_of(_LONG_LEN, _LONG_S)
            if now_s - self._moved_s > limit_s:
                raise DeadlineError(f"the sync stood still for {limit_s:.0f} s")
            if now_s - self._sent_s >= _ALIVE_S and not self._lock.locked():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._stall_s / 4):
                        await self.send(step, _NOTHING)

    def take_ready(self) -> Sequence[Part]:
        """Return the parts that have come, without waiting."""
        return self._incoming.take_ready()


async def run_together(*steps: Coroutine[Any, Any, None]) -> None:
    """Run steps at the same time; if one fails, stop the others and raise its error."""
    tasks = [asyncio.ensure_future(step) for step in steps]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        await _stop(*tasks)


async def _stop(*tasks: asyncio.Future[Any]) -> None:
    """End tasks and wait for that, however often we are cancelled meanwhile.

    What they raise is dropped: one error is raised already; others follow from it.
    """
    for task in tasks:
        task.cancel()
    ending = asyncio.gather(*tasks, return_exceptions=True)
    try:
        await asyncio.shield(ending)
    except asyncio.CancelledError:
        await finished(ending)
        raise
