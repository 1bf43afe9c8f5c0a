"""One open sync call, as sender and receiver see it: parts with a step, both ways."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol

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
    """

    def __init__(
        self,
        sender: PartSender,
        incoming: IncomingStream,
        *,
        pace: Pace | None = None,
        may_compress: bool = True,
    ) -> None:
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

    async def send(
        self, step: RsyncStep, payload: Buffer, *, args: Mapping[str, str] = NO_ARGS
    ) -> None:
        """Send one message of a step; packed by the connection's codec if that pays."""
        count = len(payload)
        telling = self._may_compress and count >= _TELLING_LEN
        async with self._lock:
            await self._pace.spend(count)
            loop = asyncio.get_running_loop()
            begin_s = loop.time()
            await self._sender.send(
                payload, args=args, step=step, compress=telling and self._compress
            )
            if telling:
                self._learn(count / max(loop.time() - begin_s, 1e-5))

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
        return () if part is None else (part, *self._incoming.take_ready())

    async def receive_one(self) -> Part | None:
        """Return the next part; None at the end."""
        return await anext(self._incoming, None)

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
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # one error is raised; the others follow from it
