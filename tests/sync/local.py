"""Syncs without a network: a sender and a receiver in this process, joined."""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from rpc25519_tools.errors import ConnectionLostError
from rpc25519_tools.rpc.calls import RsyncStep
from rpc25519_tools.rpc.streams import Part
from rpc25519_tools.sync.carrying import Mark
from rpc25519_tools.sync.channel import Channel, Pace, run_together
from rpc25519_tools.sync.itemize import itemized
from rpc25519_tools.sync.observer import Silence, Subject
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.places import open_local_place
from rpc25519_tools.sync.receiver import Receiver
from rpc25519_tools.sync.records import Totals, Verdict
from rpc25519_tools.sync.sender import Sender
from rpc25519_tools.sync.source import local_source
from rpc25519_tools.sync.tree import Parts
from rpc25519_tools.sync.walk import Walk
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS

#: A sync of these tests is over sooner, or never.
LIMIT_S = 15.0


class MemoryChannel(Channel):
    """One end of a call whose other end is in the same process.

    Attributes:
        sent: step and length of every message.
    """

    def __init__(self) -> None:
        self._pace = Pace()
        self._lock = asyncio.Lock()
        self._parts: deque[Part] = deque()
        self._arrived = asyncio.Event()
        self._numbers = 0
        self.peer: MemoryChannel | None = None
        self.sent: list[tuple[RsyncStep, int]] = []

    async def send(
        self,
        step: RsyncStep,
        payload: Buffer,
        *,
        args: Mapping[str, str] = NO_ARGS,
        waited_s: float = 0.0,
    ) -> None:
        assert self.peer is not None
        self.sent.append((step, len(payload)))
        part = Part(self._numbers, bytes(payload), dict(args), False, step)
        self._numbers += 1
        self.peer._parts.append(part)
        self.peer._arrived.set()
        await asyncio.sleep(0)

    async def receive(self) -> Sequence[Part]:
        while not self._parts:
            self._arrived.clear()
            await self._arrived.wait()
        return self.take_ready()

    async def receive_one(self) -> Part | None:
        while not self._parts:
            self._arrived.clear()
            await self._arrived.wait()
        return self._parts.popleft()

    def take_ready(self) -> Sequence[Part]:
        parts = list(self._parts)
        self._parts.clear()
        return parts


def channel_pair() -> tuple[MemoryChannel, MemoryChannel]:
    """Return both ends of a call."""
    one, two = MemoryChannel(), MemoryChannel()
    one.peer, two.peer = two, one
    return one, two


class Cable:
    """What two channels share: it breaks after so many messages."""

    def __init__(self, left: int) -> None:
        self.left = left

    @property
    def is_broken(self) -> bool:
        return self.left <= 0


class CutChannel(MemoryChannel):
    """One end of a call that is cut at some time; what had come before can be read."""

    def __init__(self, cable: Cable) -> None:
        super().__init__()
        self._cable = cable

    async def send(
        self,
        step: RsyncStep,
        payload: Buffer,
        *,
        args: Mapping[str, str] = NO_ARGS,
        waited_s: float = 0.0,
    ) -> None:
        self._cable.left -= 1
        if self._cable.is_broken:
            assert isinstance(self.peer, CutChannel)
            self._arrived.set()
            self.peer._arrived.set()
            raise ConnectionLostError("cut")
        await super().send(step, payload, args=args, waited_s=waited_s)

    async def receive(self) -> Sequence[Part]:
        while not self._parts:
            if self._cable.is_broken:
                raise ConnectionLostError("cut")
            self._arrived.clear()
            await self._arrived.wait()
        return self.take_ready()


class Lines(Silence):
    """Keeps what happens, in rsync's form."""

    def __init__(self, *, sending: bool) -> None:
        self._sending = sending
        self.lines: list[tuple[str, bytes, bytes]] = []
        self.failures: list[tuple[Parts, str]] = []
        self.warnings: list[tuple[Parts, str]] = []
        self.left_out: list[Parts] = []
        self.in_place: list[Parts] = []

    def judged(
        self, subject: Subject, verdict: Verdict, change: int, note: str
    ) -> None:
        if not change:
            return
        path = b"/".join(subject.path)
        if not subject.path:
            path = b"./"
        elif subject.is_directory:
            path += b"/"
        code = itemized(change, subject.mode, sending=self._sending)
        self.lines.append((code, path, subject.target))

    def placed(self, path: Parts) -> None:
        self.in_place.append(path)

    def failed(self, path: Parts, note: str) -> None:
        self.failures.append((path, note))

    def warned(self, path: Parts, note: str) -> None:
        self.warnings.append((path, note))

    def skipped(self, path: Parts) -> None:
        self.left_out.append(path)

    def removed(self, paths: list[bytes]) -> None:
        self.lines += [("*deleting  ", path, b"") for path in paths]


class LocalSync:
    """One sync from here to here.

    Attributes:
        at_sender, at_receiver: what each side's observer saw.
        totals: what the receiver reported.
        up, down: the channels, with what went through them.
    """

    def __init__(
        self,
        sources: Sequence[str | Path],
        destination: str | Path,
        options: SyncOptions,
        *,
        only: Sequence[bytes] | None = None,
        start_at: Parts | None = None,
    ) -> None:
        self.at_sender = Lines(sending=True)
        self.at_receiver = Lines(sending=False)
        self.totals = Totals()
        self._sources = [str(one).encode(errors="surrogateescape") for one in sources]
        self._destination = str(destination).encode(errors="surrogateescape")
        self._options = options
        self._only = only
        self._start_at = start_at

    async def run(self) -> None:
        self.up, self.down = channel_pair()
        source = local_source(self._sources, self._only)
        place = open_local_place(self._destination, self._options, single=source.single)
        walk = Walk(
            source,
            self._options,
            start=None if self._start_at is None else Mark(self._start_at),
            skipped=self.at_sender.skipped,
        )
        sender = Sender(self.up, walk, self.at_sender)
        receiver = Receiver(
            self.down,
            place.destination,
            self._options,
            self.at_receiver,
            report=True,
            rename=place.rename,
            privileged=True,
            is_new=place.is_new,
        )

        async def send() -> None:
            self.totals = await sender.run()

        async def receive() -> None:
            await receiver.run()

        try:
            async with asyncio.timeout(LIMIT_S):
                await run_together(send(), receive())
        finally:
            place.close()


def sync(
    sources: Sequence[str | Path],
    destination: str | Path,
    options: SyncOptions,
    *,
    only: Sequence[bytes] | None = None,
) -> LocalSync:
    """Sync from here to here and return what was seen."""
    one = LocalSync(sources, destination, options, only=only)
    asyncio.run(one.run())
    return one
