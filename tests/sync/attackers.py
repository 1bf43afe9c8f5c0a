"""Hostile ends of a sync: they send what no program of ours would."""

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from rpc25519_tools.errors import Rpc25519Error
from rpc25519_tools.files.jail import Root
from rpc25519_tools.rpc.calls import RsyncStep
from rpc25519_tools.rpc.streams import Part
from rpc25519_tools.sync.channel import run_together
from rpc25519_tools.sync.observer import Silence
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.places import open_place
from rpc25519_tools.sync.receiver import Receiver
from rpc25519_tools.sync.records import (
    ARG_AT,
    ARG_INDEX,
    Acks,
    Data,
    Deltas,
    End,
    Fins,
    Hashes,
    Overview,
    Removed,
    Segment,
    Table,
    Totals,
    Verdict,
    Verdicts,
    Whole,
    decode_deltas,
    decode_fins,
    decode_hashes,
    encode_overview,
    encode_records,
    pack_nanos,
)
from rpc25519_tools.sync.sender import Sender
from rpc25519_tools.sync.source import local_source
from rpc25519_tools.sync.tree import Permit, Tree
from rpc25519_tools.sync.walk import Walk
from tests.sync.local import Lines, MemoryChannel, channel_pair

FILE = stat.S_IFREG | 0o644
DIR = stat.S_IFDIR | 0o755
LINK = stat.S_IFLNK | 0o777
ALL = SyncOptions(
    recursive=True,
    links=True,
    perms=True,
    times=True,
    specials=True,
    devices=True,
    hard_links=True,
    fsync=False,
)
LIMIT_S = 6.0


def overview(
    *entries: tuple[bytes, int],
    directory: int = 0,
    ends: bool = True,
    final: bool = False,
    size: int = 4,
    seconds: int = 1_000_000,
    **columns: object,
) -> Overview:
    """Return entries, names with modes, of one directory."""
    count = len(entries)
    made = Overview(
        segments=[Segment(directory, count, ends)],
        names=b"\0".join(name for name, _ in entries),
        modes=[mode for _, mode in entries],
        sizes=[size if stat.S_ISREG(mode) else 0 for _, mode in entries],
        seconds=[seconds] * count,
        nanos=pack_nanos([0] * count),
        targets=[b"target" for _, mode in entries if stat.S_ISLNK(mode)],
        final=final,
    )
    for name, value in columns.items():
        setattr(made, name, value)
    return made


END = Overview(final=True)


class HostileSender:
    """Drives the sending end of a sync by hand.

    Attributes:
        key: of the sums, once it has come.
        verdicts: all that have come, in their order.
        tables, acked, failed: what came likewise.
    """

    def __init__(self, channel: MemoryChannel) -> None:
        self.channel = channel
        self.key = b""
        self.verdicts: list[Verdict] = []
        self.notes: dict[int, str] = {}
        self.again: list[int] = []
        self.tables: list[Table] = []
        self.acked: list[int] = []
        self.failed: dict[int, str] = {}
        self.removed: list[bytes] = []
        self.removal_notes: list[tuple[bytes, str]] = []
        self.totals: Totals | None = None

    async def entries(self, *overviews: Overview) -> None:
        """Send entries."""
        for one in overviews:
            await self.channel.send(RsyncStep.OVERVIEW, encode_overview(one))

    async def contents(self, *records: Deltas) -> None:
        """Send records of contents."""
        await self.channel.send(RsyncStep.DELTAS, encode_records(records))

    async def piece(self, index: object, at: object, data: bytes) -> None:
        """Send bare bytes."""
        args = {ARG_INDEX: str(index), ARG_AT: str(at)}
        await self.channel.send(RsyncStep.DELTAS, data, args=args)

    def whole(self, index: int, data: bytes) -> Whole:
        """Return an honest small file."""
        return Whole(index, data, blake3(data, key=self.key).digest())

    async def until(self, condition: Callable[[], object]) -> None:
        """Take what comes until something is so."""
        while not condition():
            for part in await self.channel.receive():
                self._take(part)

    async def judged(self, count: int) -> list[Verdict]:
        """Wait for verdicts on so many entries."""
        await self.until(lambda: len(self.verdicts) >= count)
        return self.verdicts

    async def over(self) -> None:
        """Wait for the end."""
        await self.until(lambda: self.totals is not None)

    def _take(self, part: Part) -> None:
        records: list[Hashes | Fins] = []
        if part.step is RsyncStep.HASHES:
            records += decode_hashes(part.payload)
        else:
            records += decode_fins(part.payload)
        for record in records:
            if isinstance(record, Verdicts):
                self.key = self.key or record.key
                if record.base < len(self.verdicts):
                    self.again.append(record.base)
                else:
                    self.verdicts += map(Verdict, record.verdicts)
                    self.notes |= record.notes
            elif isinstance(record, Table):
                self.tables.append(record)
            elif isinstance(record, Acks):
                self.acked += record.done
                self.failed |= record.failed
                self.totals = record.totals or self.totals
            elif isinstance(record, Removed):
                self.removed += record.paths
                self.removal_notes += record.notes


Script = Callable[[HostileSender], Awaitable[None]]


@dataclass
class Served:
    """A served directory, and who may do what in it."""

    path: Path
    keep_back: Sequence[Path] = ()
    permit: Permit | None = None
    privileged: bool = False
    observer: Lines = field(default_factory=lambda: Lines(sending=False))

    @contextmanager
    def receiver(
        self,
        channel: MemoryChannel,
        options: SyncOptions = ALL,
        *,
        dest: bytes = b"",
        single: bool = False,
        asked: frozenset[bytes] | None = None,
    ) -> Iterator[Receiver]:
        """Make a receiver as the server does."""
        root = Root(self.path, keep_back=self.keep_back)
        place = open_place(
            Tree.served(root, self.permit),
            dest,
            options,
            single=single,
            privileged=self.privileged,
            area_at_root=True,
            owner=b"somebody" if self.permit else b"",
        )
        try:
            yield Receiver(
                channel,
                place.destination,
                options,
                self.observer,
                report=True,
                rename=place.rename,
                privileged=self.privileged,
                is_new=place.is_new,
                asked=asked,
            )
        finally:
            place.close()
            root.close()

    async def attack(
        self, script: Script, options: SyncOptions = ALL, **how: object
    ) -> HostileSender:
        """Let a hostile sender do what it wants, until it is done or thrown out.

        Raises:
            Rpc25519Error: what the receiver refused it with.
        """
        up, down = channel_pair()
        sender = HostileSender(up)
        with self.receiver(down, options, **how) as receiver:  # type: ignore[arg-type]
            receiving = asyncio.ensure_future(_quiet(receiver.run()))
            attacking = asyncio.ensure_future(script(sender))
            try:
                async with asyncio.timeout(LIMIT_S):
                    await asyncio.wait(
                        [receiving, attacking], return_when=asyncio.FIRST_COMPLETED
                    )
                    if attacking.done():
                        attacking.result()
                    else:
                        receiving.result()
                        await attacking
            finally:
                for task in (receiving, attacking):
                    task.cancel()
                await asyncio.wait([receiving, attacking])
        if not receiving.cancelled():
            receiving.result()
        return sender

    async def push(
        self, source: Path, options: SyncOptions = ALL, *, dest: bytes = b""
    ) -> Lines:
        """Let an honest client push what is in a directory; return what it saw."""
        up, down = channel_pair()
        seen = Lines(sending=True)
        walk = Walk(local_source([bytes(source) + b"/"]), options)
        with self.receiver(down, options, dest=dest) as receiver:

            async def receive() -> None:
                await receiver.run()

            async def send() -> None:
                await Sender(up, walk, seen).run()

            async with asyncio.timeout(LIMIT_S):
                await run_together(receive(), send())
        return seen


async def _quiet(work: Awaitable[Totals]) -> Totals:
    return await work


def listing(path: Path) -> dict[str, bytes]:
    """Return all files beneath a directory, with their contents."""
    return {
        str(one.relative_to(path)): one.read_bytes() if one.is_file() else b""
        for one in sorted(path.rglob("*"))
        if not one.is_symlink()
    }


class HostileReceiver:
    """Drives the receiving end of a sync by hand.

    Attributes:
        got: how many parts of each step have come.
        literal: bytes of contents among them.
    """

    def __init__(self, channel: MemoryChannel) -> None:
        self.channel = channel
        self.got: dict[RsyncStep, int] = dict.fromkeys(RsyncStep, 0)
        self.literal = 0

    async def hashes(self, *records: Hashes) -> None:
        """Send verdicts and tables."""
        await self.channel.send(RsyncStep.HASHES, encode_records(records))

    async def fins(self, *records: Fins) -> None:
        """Send acknowledgements."""
        await self.channel.send(RsyncStep.ACK, encode_records(records))

    async def parts(self, step: RsyncStep, count: int = 1) -> None:
        """Wait until so many parts of a step have come."""
        while self.got[step] < count:
            for part in await self.channel.receive():
                assert part.step is not None
                self.got[part.step] += 1
                if part.step is RsyncStep.DELTAS:
                    self.literal += _literal(part)


def _literal(part: Part) -> int:
    if ARG_INDEX in part.args:
        return len(part.payload)
    records = decode_deltas(part.payload)
    return sum(len(one.data) for one in records if isinstance(one, Whole | Data))


async def attack_sender(
    source: Path,
    script: Callable[[HostileReceiver], Awaitable[None]],
    options: SyncOptions = ALL,
) -> Sender:
    """Let a hostile receiver do what it wants to a sender of a directory.

    Raises:
        Rpc25519Error: what the sender refused it with.
    """
    up, down = channel_pair()
    walk = Walk(local_source([os.fsencode(source) + b"/"]), options)
    sender = Sender(up, walk, Silence())
    sending = asyncio.ensure_future(_quiet(sender.run()))
    attacking = asyncio.ensure_future(script(HostileReceiver(down)))
    try:
        async with asyncio.timeout(LIMIT_S):
            await asyncio.wait(
                [sending, attacking], return_when=asyncio.FIRST_COMPLETED
            )
            if attacking.done():
                attacking.result()
                await sending
            sending.result()
    finally:
        for task in (sending, attacking):
            task.cancel()
        await asyncio.wait([sending, attacking])
        for task in (sending, attacking):
            if not task.cancelled() and isinstance(task.exception(), Rpc25519Error):
                pass
    return sender


def end(index: int, size: int, root: bytes) -> End:
    """Return the record that ends a file."""
    return End(index, size, root)
