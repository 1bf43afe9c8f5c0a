"""The receiver of a sync: judges what there is, wants what it lacks, stores that.

What touches files runs in worker threads, one thing at a time, so that entries and
contents never get into each other's way; only the cutting of local files goes on beside
that, since it takes long. Listening goes on whatever else waits, so that the two sides
cannot block each other, and what waits is bounded: the sender has a window for entries,
and no more files are wanted than ``_MAX_PENDING``.
"""

import asyncio
import contextlib
import os
import stat
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from rpc25519_tools.errors import (
    DeadlineError,
    IncompleteTransferError,
    RemoteProtocolError,
    Rpc25519Error,
)
from rpc25519_tools.files.carry_on import is_network_failure
from rpc25519_tools.files.workers import (
    StoppedError,
    finished,
    in_stoppable_worker,
    in_worker,
)
from rpc25519_tools.rpc.calls import RsyncStep
from rpc25519_tools.rpc.streams import Part
from rpc25519_tools.sync.basis import Candidates
from rpc25519_tools.sync.carrying import Mark, Placed
from rpc25519_tools.sync.channel import Channel, run_together
from rpc25519_tools.sync.deleting import BATCH_LEN, Deleting
from rpc25519_tools.sync.destination import Destination
from rpc25519_tools.sync.judging import Judged, Judging
from rpc25519_tools.sync.observer import NOTHING_DELETED, SyncObserver
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.pending import Outcome, Pending
from rpc25519_tools.sync.records import (
    ARG_AT,
    ARG_INDEX,
    KEY_LEN,
    MAX_NOTE_LEN,
    Acks,
    Overview,
    Removed,
    Totals,
    Verdict,
    Verdicts,
    decode_deltas,
    decode_overview,
    encode_records,
    told,
)
from rpc25519_tools.sync.seeking import Seeking
from rpc25519_tools.sync.storing import Store
from rpc25519_tools.sync.tabling import Tabling
from rpc25519_tools.sync.tree import Parts, why

#: Wanted files that are not in place, beyond which no more entries are judged.
_MAX_PENDING: Final = 2048
#: Finished files wait for so long for more to be synced with them, in seconds; and so
#: long at most while something else comes.
_SYNC_AFTER_S: Final = 0.05
_SYNC_WITHIN_S: Final = 1.0
#: What came before a cut is stored for so long, in seconds.
_SALVAGE_S: Final = 10.0
#: Bytes of entries that may wait to be judged: a sender of ours keeps to a window.
_MAX_WAITING_LEN: Final = 32 << 20
_PART_COST: Final = 1024
#: How many bytes more have to be stored before the sender is told of these alone.
_TOLD_LEN: Final = 64 * 1024
#: Notes and paths in one message.
_MAX_NOTES: Final = 2048


class Receiver:
    """Receives one source over one call.

    Args:
        channel: the call.
        destination: where it goes.
        options: of the sync.
        observer: learns what happens.
        report: whether the sender is told of every change.
        rename: the only entry gets this name.
        privileged: whether the sender may set owners and the like.
        is_new: whether the destination had to be made, or in a dry run would have.
        asked: names that may come into the destination; None: any, and its own.
        start: where an earlier attempt stopped; None: this one sees all of it.
        random_bytes: returns as many random bytes as it is asked for.
    """

    def __init__(
        self,
        channel: Channel,
        destination: Destination,
        options: SyncOptions,
        observer: SyncObserver,
        *,
        report: bool,
        rename: bytes | None = None,
        privileged: bool,
        is_new: bool = False,
        asked: frozenset[bytes] | None = None,
        start: Mark | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._channel = channel
        self._destination = destination
        self._options = options
        self._observer = observer
        self._report = report
        self._key = random_bytes(KEY_LEN)
        self._key_sent = False
        self._pending: dict[int, Pending] = {}
        self._candidates = Candidates(destination.tree)
        self._judging = Judging(
            destination,
            options,
            self._pending,
            rename=rename,
            privileged=privileged,
            is_new=is_new,
            asked=asked,
        )
        self._seeking = Seeking(destination, options, self._candidates)
        self._store = Store(
            destination,
            options,
            self._key,
            self._pending,
            self._candidates,
            self._seeking.rescue,
        )
        self._disk = asyncio.Lock()
        self._tabling = Tabling(
            channel, self._seeking, self._key, self._pending, self._disk
        )
        self._arrived: deque[Part] = deque()
        self._contents: list[Part] = []
        self._overviews: deque[bytes] = deque()
        self._overviews_len = 0
        self._all_judged = False
        self._changed = asyncio.Event()
        self._files = 0 if start is None else start.files
        self._total_bytes = 0 if start is None else start.total_bytes
        #: Where wanted files that are not in place come, and the last one of all.
        self._marks: dict[int, Mark] = {}
        self._last: Mark | None = None
        #: Whether it has failed and stores what can be kept.
        self.is_ending = False
        #: Bytes of contents that are stored, and of these what the sender knows of.
        self._stored = self._told_stored = 0
        self._closings: set[asyncio.Future[None]] = set()

    @property
    def frontier(self) -> Mark | None:
        """Where another attempt may begin: all before it is in place."""
        return next(iter(self._marks.values()), self._last)

    @property
    def total_bytes(self) -> int:
        """Bytes of the regular files that there are so far."""
        return self._total_bytes

    @property
    def stored(self) -> int:
        """Bytes of messages with contents that are stored."""
        return self._stored

    @property
    def placed(self) -> Placed:
        """What the contents of the files that are in place were made of."""
        return Placed(self._store.literal, self._store.matched)

    @property
    def removed(self) -> int:
        """How many things were removed."""
        return self._judging.extraneous.removed

    def _told(self, path: Parts) -> Parts:
        return self._judging.told_path(path)

    async def run(self) -> Totals:
        """Receive everything; return what was done, in numbers.

        Raises:
            Rpc25519Error: the sync as a whole failed; what has arrived of large files
                is kept for another attempt.
        """
        try:
            return await self._channel.while_alive(
                RsyncStep.ACK, self._take_all(), is_busy=self._disk.locked
            )
        except BaseException as exc:
            self.is_ending = True
            # Who is only silent may be so for ever.
            is_cut = is_network_failure(exc) and not isinstance(exc, DeadlineError)
            await self._salvage(is_cut=is_cut)
            raise

    async def _take_all(self) -> Totals:
        await run_together(
            self._listen(), self._judge(), self._cut(), self._sync_now_and_then()
        )
        return await self._end()

    async def _salvage(self, *, is_cut: bool) -> None:
        """Store what has come before the end, and keep what another attempt can use."""
        if not is_cut:
            self._store.stop()
        try:
            self._contents += self._arrived
            await self._store_rest(self._channel.take_ready())
            if is_cut:
                # The connection may hold more, which it hands on as we take it.
                async with asyncio.timeout(_SALVAGE_S):
                    while parts := await self._channel.receive():
                        await self._store_rest(parts)
        except (OSError, Rpc25519Error, StoppedError):
            pass  # also at the end: the connection's own error, or no more time
        finally:
            self._destination.keep_left()
            await in_worker(self._store.abandon)

    async def _store_rest(self, parts: Sequence[Part]) -> None:
        async with self._disk:
            contents, self._contents = [*self._contents, *parts], []
            await in_worker(self._store_parts, contents)
        self._note_stored(contents)

    async def _change(self) -> None:
        """Wait until something has come, or is done."""
        self._changed.clear()
        await self._changed.wait()

    @property
    def _is_through(self) -> bool:
        # The rest of what failed is on its way: who left it unread would block both.
        return self._all_judged and not self._pending and not self._store.is_owed_more

    # What comes.

    async def _listen(self) -> None:
        while not self._is_through:
            receiving = asyncio.ensure_future(self._receive())
            through = asyncio.ensure_future(self._wait_through())
            try:
                await asyncio.wait(
                    [receiving, through], return_when=asyncio.FIRST_COMPLETED
                )
                if not receiving.done():
                    return
                if not receiving.result():
                    raise IncompleteTransferError("the sender ended the sync early")
            finally:
                through.cancel()
                receiving.cancel()
            await self._take_parts()

    async def _receive(self) -> bool:
        """Wait for parts and note them at once: whoever cancels us loses none."""
        parts = await self._channel.receive()
        self._arrived += parts
        return bool(parts)

    async def _wait_through(self) -> None:
        while not self._is_through:
            await self._change()

    async def _take_parts(self) -> None:
        while self._arrived:
            part = self._arrived.popleft()
            if part.step is RsyncStep.OVERVIEW:
                # They wait as they came: a short message can unpack to a long one.
                self._overviews.append(bytes(part.payload))
                self._overviews_len += len(part.payload) + _PART_COST
                self._check_waiting()
            else:
                self._contents.append(part)
        self._changed.set()
        if self._contents:
            async with self._disk:
                contents, self._contents = self._contents, []
                outcome = await self._stoppable(contents)
            self._note_stored(contents)
            await self._tell(outcome)

    def _note_stored(self, parts: Sequence[Part]) -> None:
        deltas = (part for part in parts if part.step is RsyncStep.DELTAS)
        self._stored += sum(len(part.payload) for part in deltas)

    async def _stoppable(self, contents: Sequence[Part]) -> Outcome:
        """Store contents; copying much of what is here ends early when cancelled."""
        work = asyncio.ensure_future(in_worker(self._store_parts, contents))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self._store.stop()
            await finished(work)
            raise

    def _store_parts(self, parts: Sequence[Part]) -> Outcome:
        """Store contents, in a worker thread."""
        outcome = Outcome()
        for part in parts:
            if part.step is not RsyncStep.DELTAS:
                continue
            if ARG_INDEX in part.args:
                index = _number(part.args.get(ARG_INDEX, ""))
                at = _number(part.args.get(ARG_AT, ""))
                self._store.take_piece(index, at, part.payload, outcome)
            else:
                self._store.take(decode_deltas(part.payload), outcome)
        self._settle(outcome)
        return outcome

    def _settle(self, outcome: Outcome) -> None:
        """Do what follows from files that are in place, or will not be."""
        for pending in outcome.done:
            for path, note in self._judging.links.make_followers(pending):
                outcome.notes.append((path, note))
            self._judging.directories.close(pending.directory)
        for pending, _ in outcome.failed.values():
            outcome.notes += self._judging.links.drop_followers(pending)
            self._judging.directories.close(pending.directory)

    async def _tell(self, outcome: Outcome) -> None:
        """Tell both sides what became of files."""
        if any(pending.bases for pending in outcome.done):
            # Nobody waits for it: the replaced file may be freed by that, and a large
            # one takes a while.
            loop = asyncio.get_running_loop()
            closing = loop.run_in_executor(None, _close_bases, outcome.done)
            self._closings.add(closing)
            closing.add_done_callback(self._closings.discard)
        if outcome.moved:
            self._observer.moved(outcome.moved)
        for pending in outcome.done:
            self._forget(pending, placed=True)
            self._observer.placed(self._told(pending.path))
        failed = {}
        for index, (pending, note) in outcome.failed.items():
            self._forget(pending, placed=False)
            failed[index] = note
            self._observer.failed(self._told(pending.path), note)
        news = self._stored - self._told_stored
        if outcome.done or failed or news >= _TOLD_LEN:
            self._told_stored = self._stored
            done = [pending.entry.index for pending in outcome.done]
            acks = Acks(done, failed, stored=self._stored)
            await self._channel.send(RsyncStep.ACK, encode_records([acks]))
        await self._tell_troubles(outcome.notes)
        for blocks in outcome.blocks:
            await self._channel.send(RsyncStep.HASHES, encode_records([blocks]))
        for pending in outcome.again:
            self._tabling.forget(pending)
            verdict = Verdicts(pending.entry.index, bytes([Verdict.WANT]))
            await self._channel.send(RsyncStep.HASHES, encode_records([verdict]))
        self._changed.set()

    async def _tell_troubles(self, troubles: Sequence[tuple[Parts, str]]) -> None:
        """Tell both sides what went wrong with things that nobody asked for."""
        notes = [
            (told(b"/".join(path)), note[:MAX_NOTE_LEN]) for path, note in troubles
        ]
        for path, note in troubles:
            self._observer.failed(path, note)
        for first in range(0, len(notes), _MAX_NOTES):
            record = Removed([], notes[first : first + _MAX_NOTES])
            await self._channel.send(RsyncStep.ACK, encode_records([record]))

    def _forget(self, pending: Pending, *, placed: bool) -> None:
        del self._pending[pending.entry.index]
        del self._marks[pending.entry.index]
        self._tabling.forget(pending)
        for released in self._seeking.end(pending, placed=placed):
            if released.told:
                self._tabling.add(released)

    async def _sync_now_and_then(self) -> None:
        """Give finished files their names when nothing more comes for a moment."""
        loop = asyncio.get_running_loop()
        since_s: float | None = None
        while not self._is_through:
            if not self._store.unsynced:
                since_s = None
                await self._change()
                continue
            since_s = since_s or loop.time()
            # When only these are left, nothing is gained by waiting.
            coming = len(self._pending) - self._seeking.waiting
            only_these = self._all_judged and self._store.unsynced == coming
            if not only_these and loop.time() < since_s + _SYNC_WITHIN_S:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_SYNC_AFTER_S):
                        await self._change()
                        continue
            since_s = None
            async with self._disk:
                outcome = await in_worker(self._flush)
            await self._tell(outcome)

    def _flush(self) -> Outcome:
        outcome = Outcome()
        self._store.flush(outcome)
        self._settle(outcome)
        return outcome

    # What there is.

    async def _judge(self) -> None:
        base = 0
        while not self._judging.final:
            if not self._overviews or len(self._pending) >= _MAX_PENDING:
                await self._change()
                continue
            payload = self._overviews.popleft()
            self._overviews_len -= len(payload) + _PART_COST
            async with self._disk:
                overview, judged = await in_stoppable_worker(
                    self._judging.stop, self._judge_one, payload
                )
            await self._send_verdicts(base, judged)
            base += len(judged.verdicts)
            for path, note in overview.failed:
                self._observer.failed(tuple(path.split(b"/")), note)
            for path in overview.skipped:
                self._observer.skipped(tuple(path.split(b"/")) if path else ())
            for first in range(0, len(judged.removed), _MAX_NOTES):
                some = judged.removed[first : first + _MAX_NOTES]
                self._observer.removed(some)
                record = Removed([told(path) for path in some])
                await self._channel.send(RsyncStep.ACK, encode_records([record]))
            await self._tell_troubles(judged.troubles)
            for subject, verdict, change, note in judged.told:
                self._observer.judged(subject, verdict, change, note)
                if verdict is Verdict.FAILED:
                    self._observer.failed(subject.path, note)
            self._files += judged.files
            self._total_bytes += judged.total_bytes
            self._observer.walked(
                self._files, self._total_bytes, final=self._judging.final
            )
        self._all_judged = True
        self._changed.set()
        self._check_waiting()

    def _check_waiting(self) -> None:
        """See that no more entries wait than may.

        Raises:
            RemoteProtocolError: more do.
        """
        if self._overviews_len > _MAX_WAITING_LEN:
            raise RemoteProtocolError("more entries came than may wait")
        if self._all_judged and self._overviews:
            raise RemoteProtocolError("entries came after the last ones")

    def _judge_one(self, payload: bytes) -> tuple[Overview, Judged]:
        """Judge some entries and decide how wanted files shall come, in a worker."""
        overview, names = decode_overview(payload)
        judged = self._judging.judge_all(overview, names)
        first = self._judging.count - len(judged.verdicts)
        for pending in judged.wanted:
            if self._seeking.choose(pending):
                at = pending.entry.index - first
                judged.verdicts[at] = Verdict.WANT_DELTA
        self._note_marks(overview, judged.wanted, first)
        return overview, judged

    def _note_marks(
        self, overview: Overview, wanted: Sequence[Pending], first: int
    ) -> None:
        """Note where wanted files come: how many are before them, and their bytes."""
        files, total_bytes = self._files, self._total_bytes
        done = 0
        for pending in wanted:
            at = pending.entry.index - first
            for mode, size in zip(
                overview.modes[done:at], overview.sizes[done:at], strict=True
            ):
                if stat.S_ISREG(mode):
                    files += 1
                    total_bytes += size
            done = at
            self._last = Mark(self._told(pending.path), files, total_bytes)
            self._marks[pending.entry.index] = self._last

    async def _send_verdicts(self, base: int, judged: Judged) -> None:
        changes = judged.changes if self._report and any(judged.changes) else []
        record = Verdicts(base, bytes(judged.verdicts), changes, judged.notes)
        if not self._key_sent:
            record.key = self._key
            self._key_sent = True
        payload = await in_worker(encode_records, [record])
        await self._channel.send(RsyncStep.HASHES, payload)
        for pending in judged.wanted:
            at = pending.entry.index - base
            pending.told = True
            if judged.verdicts[at] == Verdict.WANT_DELTA and not pending.waits:
                self._tabling.add(pending)
        self._changed.set()

    async def _cut(self) -> None:
        """Send tables of local files, one after the other."""
        while not self._is_through:
            if self._tabling.has_work:
                await self._tabling.step()
            else:
                await self._change()

    # The end.

    async def _end(self) -> Totals:
        deleting = Deleting(self._destination, self._judging.extraneous, self._options)
        if self._options.delete and not self._judging.incomplete:
            more = True
            while more:
                async with self._disk:
                    more = await in_worker(deleting.step)
                if deleting.removed or deleting.failed:
                    self._observer.removed(deleting.removed)
                    for path, note in deleting.failed:
                        self._observer.failed(tuple(path.split(b"/")), note)
                    record = Removed(
                        [told(path) for path in deleting.removed],
                        [(told(path), note) for path, note in deleting.failed],
                    )
                    await self._channel.send(RsyncStep.ACK, encode_records([record]))
        elif self._options.delete:
            self._observer.warned((), NOTHING_DELETED)
            await in_worker(self._judging.extraneous.end, set())
        if self._options.fsync and not self._options.dry_run:
            async with self._disk:
                await in_worker(self._destination.changes.sync)
        totals = Totals(
            self._judging.extraneous.removed,
            self._store.matched,
            self._store.literal,
            deleting.left,
        )
        failures = self._judging.directories.failures
        for at in range(0, len(failures), BATCH_LEN):
            some = failures[at : at + BATCH_LEN]
            await self._tell_troubles(
                [(path, why(exc, "write", path)) for path, exc in some]
            )
        await self._channel.send(RsyncStep.ACK, encode_records([Acks([], {}, totals)]))
        return totals


def _close_bases(files: Sequence[Pending]) -> None:
    for pending in files:
        pending.close_bases()


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise RemoteProtocolError("a part of a file says not where it belongs")
    return int(text)
