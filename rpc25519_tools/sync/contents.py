"""Send large files: whole, or what the receiver has not of them.

One goes out after the other. What blocks runs in worker threads.
"""

import asyncio
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Final

from rpc25519_tools.errors import (
    IncompleteTransferError,
    RemoteProtocolError,
    Rpc25519Error,
)
from rpc25519_tools.files.workers import in_worker, open_in_worker
from rpc25519_tools.sync.chunking import REFINED_ABOVE, chunk_sizes
from rpc25519_tools.sync.matching import PIECE_LEN, Matcher
from rpc25519_tools.sync.observer import SyncObserver
from rpc25519_tools.sync.outgoing import (
    OpenSource,
    PieceReader,
    Wanted,
    failed_end,
    hole_record,
)
from rpc25519_tools.sync.pieces import Pieces
from rpc25519_tools.sync.records import (
    ARG_AT,
    ARG_INDEX,
    Blocks,
    Copies,
    Deltas,
    End,
    Patches,
    Refine,
    encode_records,
)
from rpc25519_tools.sync.refining import MAX_MISSING, Refining
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS

#: Runs of chunks in one message.
_MAX_RUNS: Final = 16384


@dataclass(frozen=True, slots=True)
class Message:
    """One message with contents, on its way out."""

    payload: Buffer
    args: Mapping[str, str]


class LargeFiles:
    """Sends large files over one call.

    Args:
        outbox: takes messages.
        changed: is set when something has come from the receiver.
        is_open: the entries that the receiver has not dealt with.
        observer: learns what happens.
        piece_len: bytes in one message.
    """

    def __init__(
        self,
        outbox: asyncio.Queue[Message | None],
        changed: asyncio.Event,
        is_open: Container[int],
        observer: SyncObserver,
        piece_len: int = PIECE_LEN,
    ) -> None:
        self._outbox = outbox
        self._piece_len = piece_len
        self._changed = changed
        self._open = is_open
        self._observer = observer
        self._key = b""
        self._asked_for: int | None = None
        self._blocks: bytes | None = None

    def take_blocks(self, record: Blocks) -> None:
        """Take the answer to what was asked.

        Raises:
            RemoteProtocolError: nothing was.
        """
        if record.index != self._asked_for:
            raise RemoteProtocolError("sums of blocks came that nobody asked for")
        self._asked_for, self._blocks = None, record.sums

    async def send(self, wanted: Wanted, key: bytes) -> None:
        """Send one file, or tell why it cannot be sent.

        Args:
            wanted: which.
            key: of the sums.

        Raises:
            RemoteProtocolError: the receiver's tables or blocks make no sense.
        """
        self._key = key
        try:
            source = await open_in_worker(lambda: OpenSource(wanted), OpenSource.close)
        except (OSError, Rpc25519Error) as exc:
            await self._records(failed_end(wanted, exc))
            return
        try:
            if wanted.tables is None:
                pieces = await self._send_pieces(source)
            else:
                pieces = await self._send_delta(source)
            changed = await in_worker(source.has_changed)
            end = End(wanted.index, source.size, await in_worker(pieces.root))
            await self._records(end)
            if changed:
                note = "it changed while it was read"
                self._observer.warned(wanted.item.path, note)
        except (OSError, Rpc25519Error) as exc:
            if isinstance(exc, RemoteProtocolError):
                raise
            await self._records(failed_end(wanted, exc))
        finally:
            self._asked_for = None
            await in_worker(source.close)

    def _check(self, wanted: Wanted) -> None:
        """See that the receiver has not given a file up: it needs no more of it."""
        if wanted.index not in self._open:
            raise IncompleteTransferError("the receiver has given it up")

    async def _change(self) -> None:
        """Wait until something has come from the receiver."""
        self._changed.clear()
        await self._changed.wait()

    async def _records(self, *records: Deltas) -> None:
        await self._outbox.put(Message(encode_records(records), NO_ARGS))

    async def _send_pieces(self, source: OpenSource) -> Pieces:
        """Send a file whole; holes as such."""
        pieces = Pieces()
        reader = PieceReader(source, self._key, pieces)
        await self._send_part(source, reader, pieces, 0, source.size)
        return pieces

    async def _send_part(
        self,
        source: OpenSource,
        reader: PieceReader,
        pieces: Pieces,
        start: int,
        end: int,
    ) -> None:
        """Send what lies between two places; holes as such."""
        wanted = source.wanted
        for at, length, is_data in source.stretches(start, end):
            if is_data:
                await self._send_stretch(reader, wanted, at, length)
                continue
            await self._records(hole_record(wanted.index, at, length, pieces))
            self._observer.moved(length)

    async def _send_stretch(
        self, reader: PieceReader, wanted: Wanted, at: int, length: int
    ) -> None:
        end = at + length
        while at < end:
            self._check(wanted)
            count = min(self._piece_len, end - at)
            payload = await in_worker(reader.read, at, count)
            args = {ARG_INDEX: str(wanted.index), ARG_AT: str(at)}
            await self._outbox.put(Message(payload, args))
            del payload  # its memory may be used again as soon as it has left
            wanted.item.literal += count
            self._observer.moved(count)
            at += count

    async def _send_delta(self, source: OpenSource) -> Pieces:
        """Send what the receiver does not have of a file."""
        wanted = source.wanted
        assert wanted.tables is not None
        sizes = chunk_sizes(wanted.item.size)
        matcher = Matcher(source.fd, source.size, self._key, sizes, wanted.tables)
        reader = PieceReader(source, self._key, matcher.pieces)

        def step() -> list[tuple[int, int, int, int]]:
            wanted.take_tables()
            return matcher.step()

        refines = wanted.item.size > REFINED_ABOVE
        while not matcher.is_through:
            self._check(wanted)
            before = matcher.at
            matched = matcher.matched
            if runs := await in_worker(step):
                await self._records(Copies(wanted.index, runs))
            self._observer.moved(matcher.matched - matched)
            refines &= matcher.later_len <= MAX_MISSING
            if matcher.can_settle and not refines:
                await self._settle(matcher, reader, source)
            if matcher.at == before and not wanted.arrived:
                await self._change()  # the next part of a table is awaited
        while not wanted.tables.complete:
            while not wanted.arrived:
                await self._change()
            await in_worker(wanted.take_tables)
        await self._settle(matcher, reader, source, refines=refines)
        return matcher.pieces

    async def _settle(
        self,
        matcher: Matcher,
        reader: PieceReader,
        source: OpenSource,
        *,
        refines: bool = False,
    ) -> None:
        """Send what was put off; of long chunks only the blocks that differ."""
        wanted = source.wanted
        matched = matcher.matched
        runs, missing = matcher.settle()
        for first in range(0, len(runs), _MAX_RUNS):
            some = runs[first : first + _MAX_RUNS]
            await self._records(Copies(wanted.index, some))
        self._observer.moved(matcher.matched - matched)
        if refines and missing:
            missing = await self._refine(matcher, source, missing)
        for at, length in missing:
            await self._send_part(source, reader, matcher.pieces, at, at + length)

    def _answer(self) -> bytes | None:
        return self._blocks

    async def _refine(
        self, matcher: Matcher, source: OpenSource, missing: list[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Ask for blocks of what is missing; return what is missing then."""
        wanted = source.wanted
        assert wanted.tables is not None
        refining = Refining(missing, matcher, wanted.tables, self._key)
        if not refining.ranges:
            return missing
        self._asked_for, self._blocks = wanted.index, None
        await self._records(Refine(wanted.index, refining.ranges))
        while (sums := self._answer()) is None:
            self._check(wanted)
            await self._change()
        patches = await in_worker(refining.take, sums, source)
        for first in range(0, len(patches), _MAX_RUNS):
            some = patches[first : first + _MAX_RUNS]
            await self._records(Patches(wanted.index, some))
        self._observer.moved(refining.matched)
        return refining.missing
