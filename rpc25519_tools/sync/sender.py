"""The sender of a sync: tells what there is, learns what is wanted, sends that.

Three things go on at the same time: the walk, whose entries go out as long as the
receiver keeps up; the sending of wanted files; and listening, which never waits for
anything else, so that the two sides cannot block each other.

What the sender remembers is bounded: entries that the receiver has not dealt with, of
which there are no more than the window allows, and the tables of a few files.
"""

import asyncio
import stat
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from rpc25519_tools.errors import (
    IncompleteTransferError,
    RemoteProtocolError,
)
from rpc25519_tools.files.workers import in_stoppable_worker, in_worker
from rpc25519_tools.rpc.calls import RsyncStep
from rpc25519_tools.sync.carrying import Mark, Placed
from rpc25519_tools.sync.channel import Channel, run_together
from rpc25519_tools.sync.chunking import chunk_sizes
from rpc25519_tools.sync.contents import LargeFiles, Message
from rpc25519_tools.sync.matching import PIECE_LEN, Tables, most_chunks
from rpc25519_tools.sync.observer import NOTHING_DELETED, Subject, SyncObserver
from rpc25519_tools.sync.outgoing import BUNDLE_LEN, SMALL_LEN, SmallFiles, Wanted
from rpc25519_tools.sync.records import (
    KEY_LEN,
    Acks,
    Blocks,
    Data,
    Hashes,
    Removed,
    Table,
    Totals,
    Verdict,
    Verdicts,
    Whole,
    decode_fins,
    decode_hashes,
    encode_overview,
    encode_plain,
    is_quick,
)
from rpc25519_tools.sync.walk import Batch, Item, Walk
from rpc25519_tools.sync.window import StoreWindow
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS

#: Entries that may be on their way without a verdict, at first and at most.
FIRST_WINDOW: Final = 4096
LAST_WINDOW: Final = 65536
#: Wanted files that are not in place, beyond which no more entries go out: more than
#: a receiver of ours ever has.
_MAX_WANTED: Final = 16384
#: Bytes of tables that are kept; ``_TABLE_COST`` each counts beside its chunks. At most
#: 8 MiB, and those of one message or one file, a receiver of ours has out.
_MAX_TABLED: Final = 32 << 20
_TABLE_COST: Final = 256
#: In use tables take so many times as much more: 150 bytes for each chunk of 10.
_IN_USE_FACTOR: Final = 16
#: How often a file may be wanted: once more if it changed while it was read.
_MAX_TRIES: Final = 2
#: Small files in one message.
_BUNDLE_COUNT: Final = 512
#: Messages that are ready before their turn.
_AHEAD: Final = 2
_LAST_VERDICT: Final = max(Verdict)

T = TypeVar("T")


class Sender:
    """Sends one source over one call.

    Args:
        channel: the call.
        walk: over what is sent.
        observer: learns what happens.
        hold: learns how many bytes the receiver makes us hold.
    """

    def __init__(
        self,
        channel: Channel,
        walk: Walk,
        observer: SyncObserver,
        *,
        hold: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._channel = channel
        self._walk = walk
        self._observer = observer
        self._hold = hold
        self._open: dict[int, Item] = {}
        #: Batches without verdicts.
        self._batches: deque[Batch] = deque()
        self._sent_entries = 0
        self._judged = 0
        self._window = FIRST_WINDOW
        self._walked = False
        self._final_sent = False
        self._tabled_len = 0
        #: The file whose tables are unpacked: the one of a bundle that has most.
        self._in_use: Wanted | None = None
        self._changed = asyncio.Event()
        self._key = b""
        self._ready: deque[Wanted] = deque()
        self._tabled: dict[int, Wanted] = {}
        self._outbox: asyncio.Queue[Message | None] = asyncio.Queue(_AHEAD)
        self._totals: Totals | None = None
        self._last: Item | None = None
        #: Bytes of messages that the receiver has stored, and what it has removed.
        self.stored = self.removed = 0
        self._placed_len = self._placed_literal = 0
        self._store_window = StoreWindow()
        self._bundle_len = channel.message_len(BUNDLE_LEN)
        self._small_len = channel.message_len(SMALL_LEN)
        piece_len = channel.message_len(PIECE_LEN)
        self._large = LargeFiles(
            self._outbox, self._changed, self._open, observer, piece_len
        )

    @property
    def placed(self) -> Placed:
        """What the contents of the files that are in place were made of."""
        return Placed(self._placed_literal, self._placed_len - self._placed_literal)

    @property
    def total_bytes(self) -> int:
        """Bytes of the regular files that there are so far."""
        return self._walk.total_bytes

    @property
    def frontier(self) -> Mark | None:
        """Where another attempt may begin: all before it is in place.

        None: where this one did. What it begins with may be the way to there.

        That a directory has no more entries is news, too: it gets its time and mode
        only then. So nothing of a batch that was not judged is left out.
        """
        index, item = next(iter(self._open.items()), (0, None))
        for batch in self._batches:
            if batch.start is not None and (item is None or index >= batch.base):
                return batch.start if batch.base else None
        last = self._last if item is None else item
        return None if last is None else last.mark

    async def run(self) -> Totals:
        """Send everything; return what the receiver reports in the end.

        Raises:
            Rpc25519Error: the sync as a whole failed; single files that fail are told
                to the observer.
        """
        await self._channel.while_alive(RsyncStep.DELTAS, self._send())
        assert self._totals is not None
        return self._totals

    async def _send(self) -> None:
        await run_together(
            self._send_overview(),
            self._fill_outbox(),
            self._empty_outbox(),
            self._listen(),
        )

    # The walk.

    async def _send_overview(self) -> None:
        batches = self._walk.batches()
        batch = await in_stoppable_worker(self._walk.stop, next, batches, None)
        while batch is not None:
            if not batch.items:
                # The receiver has no verdicts on it, so the window does not hold it.
                while self._judged < self._sent_entries and not batch.overview.final:
                    await self._change()
            self._remember(batch)
            payload = await in_worker(encode_overview, batch.overview)
            self._final_sent = batch.overview.final
            await self._channel.send(RsyncStep.OVERVIEW, payload)
            final = batch.overview.final
            for path, note in batch.overview.failed:
                self._observer.failed(tuple(path.split(b"/")), note)
            self._observer.walked(self._walk.files, self._walk.total_bytes, final=final)
            if final:
                if self._walk.stops_deleting:
                    self._observer.warned((), NOTHING_DELETED)
                break
            while self._is_too_far_ahead():
                await self._change()
            batch = await in_stoppable_worker(self._walk.stop, next, batches, None)
        self._walked = True
        self._changed.set()

    def _is_too_far_ahead(self) -> bool:
        """Tell whether the receiver has to deal with what it has first."""
        ahead = self._sent_entries - self._judged
        return ahead > self._window or len(self._open) > self._window + _MAX_WANTED

    def _remember(self, batch: Batch) -> None:
        self._batches.append(batch)
        for index, item in enumerate(batch.items, batch.base):
            self._open[index] = item
        self._sent_entries += len(batch.items)
        if batch.items:
            self._last = batch.items[-1]

    async def _change(self) -> None:
        """Wait until something has come from the receiver, or the walk is over."""
        self._changed.clear()
        await self._changed.wait()

    # What comes from the receiver.

    async def _listen(self) -> None:
        while self._totals is None:
            parts = await self._channel.receive()
            if not parts:
                raise IncompleteTransferError("the receiver ended the sync early")
            for part in parts:
                if part.step is RsyncStep.HASHES:
                    await self._take_hashes(await _decoded(decode_hashes, part.payload))
                elif part.step is RsyncStep.ACK:
                    for fin in await _decoded(decode_fins, part.payload):
                        self._take_fin(fin)
                await asyncio.sleep(0)  # others have a right to the loop, too
            self._changed.set()

    async def _take_hashes(self, records: Sequence[Hashes]) -> None:
        for record in records:
            if isinstance(record, Table):
                self._take_table(record)
            elif isinstance(record, Blocks):
                self._large.take_blocks(record)
            else:
                self._take_verdicts(record)
                await asyncio.sleep(0)

    def _note_judged(self, record: Verdicts) -> None:
        batch = self._batches[0] if self._batches else None
        if batch is not None and batch.base == record.base:
            self._batches.popleft()
        if not record.verdicts and (batch is None or batch.items):
            raise RemoteProtocolError("the receiver judged nothing")

    def _take_verdicts(self, record: Verdicts) -> None:
        if record.key:
            if self._key or len(record.key) != KEY_LEN:
                raise RemoteProtocolError("the receiver's key makes no sense")
            self._key = record.key
        if record.changes and len(record.changes) != len(record.verdicts):
            raise RemoteProtocolError("the receiver's verdicts do not fit together")
        if record.base != self._judged:
            self._take_retry(record)
            return
        equal = 0
        for at, number in enumerate(record.verdicts):
            index = record.base + at
            if number > _LAST_VERDICT:
                raise RemoteProtocolError("the receiver sent an unknown verdict")
            verdict = Verdict(number)
            change = record.changes[at] if record.changes else 0
            item = self._open.get(index)
            if item is None:
                raise RemoteProtocolError("the receiver judged what it had not to")
            note = record.notes.get(index, "")
            if verdict is not Verdict.EQUAL or change:
                subject = Subject(item.path, item.mode, item.size, item.target)
                self._observer.judged(subject, verdict, change, note)
            if verdict in (Verdict.WANT, Verdict.WANT_DELTA):
                self._want(index, item, with_tables=verdict is Verdict.WANT_DELTA)
                continue
            equal += verdict is Verdict.EQUAL
            del self._open[index]
            if verdict is Verdict.FAILED:
                self._observer.failed(item.path, note)
        self._judged += len(record.verdicts)
        self._note_judged(record)
        if equal > len(record.verdicts) * 9 // 10:
            self._window = min(2 * self._window, LAST_WINDOW)

    def _take_retry(self, record: Verdicts) -> None:
        """Send a file once more, whole: what has come of it was not right."""
        item = self._open.get(record.base)
        if (
            item is None
            or not item.tries
            or record.base in self._tabled
            or record.verdicts != bytes([Verdict.WANT])
        ):
            raise RemoteProtocolError("the receiver's verdicts came out of order")
        self._want(record.base, item, with_tables=False)

    def _want(self, index: int, item: Item, *, with_tables: bool) -> None:
        if not self._key:
            raise RemoteProtocolError("the receiver wants a file and sent no key")
        if not stat.S_ISREG(item.mode):
            raise RemoteProtocolError("the receiver wants what has no contents")
        if item.tries == _MAX_TRIES:
            raise RemoteProtocolError("the receiver wants a file again and again")
        item.tries += 1
        tables = None
        if with_tables:
            tables = Tables(chunk_sizes(item.size), most_chunks(item.size))
        is_small = item.size <= self._small_len and not item.holes
        wanted = Wanted(index, item, is_small, tables)
        if with_tables:
            self._tabled[index] = wanted
        else:
            self._ready.append(wanted)

    def _take_table(self, table: Table) -> None:
        wanted = self._tabled.get(table.index)
        if wanted is None:
            raise RemoteProtocolError("chunks came for a file that nobody wants")
        if table.last:
            del self._tabled[table.index]
        if wanted.is_over:
            return
        is_first = not wanted.tabled_len
        cost = len(table.lengths) + len(table.sums) + _TABLE_COST
        wanted.tabled_len += cost
        self._tabled_len += cost
        if self._tabled_len > _MAX_TABLED:
            raise RemoteProtocolError("the receiver sent more chunks than can be kept")
        self._count_tables()
        wanted.arrived.append(table)
        if table.last if wanted.is_small else is_first:
            self._ready.append(wanted)

    def _end_of(self, wanted: Wanted) -> None:
        """Forget the tables of a file that was sent, or was given up."""
        wanted.is_over = True
        wanted.arrived.clear()
        wanted.tables = None
        self._tabled_len -= wanted.tabled_len

    def _count_tables(self) -> None:
        in_use = 0 if self._in_use is None else self._in_use.tabled_len
        self._hold(self._tabled_len + _IN_USE_FACTOR * in_use)

    def _use_tables(self, wanted: Wanted | None) -> None:
        """Note whose tables are in use from now on."""
        self._in_use = wanted
        self._count_tables()

    def _take_fin(self, fin: Acks | Removed) -> None:
        if isinstance(fin, Removed):
            self.removed += len(fin.paths)
            self._observer.removed(fin.paths)
            for path, note in fin.notes:
                self._observer.failed(tuple(path.split(b"/")), note)
            return
        self.stored = max(self.stored, fin.stored)
        self._store_window.note_stored(fin.stored, self._now())
        for index in fin.done:
            item = self._open.pop(index, None)
            if item is not None:
                self._placed_len += item.size
                self._placed_literal += min(item.literal, item.size)
                self._observer.placed(item.path)
        for index, note in fin.failed.items():
            item = self._open.pop(index, None)
            if item is not None:
                self._observer.failed(item.path, note)
        if fin.totals is not None:
            is_through = self._final_sent and self._judged == self._sent_entries
            if self._open or not is_through:
                raise RemoteProtocolError("the receiver was done before we were")
            self._totals = fin.totals

    # What goes out.

    async def _empty_outbox(self) -> None:
        while (message := await self._outbox.get()) is not None:
            since_s = self._now()
            while not (self._store_window.has_room or self._is_over()):
                await self._change()
            now_s = self._now()
            self._store_window.note_sent(len(message.payload), now_s)
            await self._channel.send(
                RsyncStep.DELTAS,
                message.payload,
                args=message.args,
                waited_s=now_s - since_s,
            )

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _fill_outbox(self) -> None:
        while not self._is_over():
            if not self._ready:
                if self._walked and not self._open:
                    break
                await self._change()
                continue
            if not self._ready[0].is_small:
                await self._send_large(self._ready.popleft())
                continue
            await self._send_bundle(self._next_bundle())
        await self._outbox.put(None)

    def _next_bundle(self) -> list[Wanted]:
        """Take small files that are wanted, as many as fit into one message."""
        bundle: list[Wanted] = []
        room = self._bundle_len
        while self._ready and self._ready[0].is_small:
            if room <= 0 or len(bundle) == _BUNDLE_COUNT:
                break
            bundle.append(self._ready.popleft())
            room -= bundle[-1].item.size
        return bundle

    def _is_over(self) -> bool:
        return self._totals is not None

    async def _send_bundle(self, bundle: list[Wanted]) -> None:
        small = SmallFiles(self._key)
        self._use_tables(max(bundle, key=lambda wanted: wanted.tabled_len))
        records = await in_worker(small.records, bundle)
        self._ready.extendleft(reversed(bundle[small.done :]))
        del bundle[small.done :]
        for wanted in bundle:
            self._end_of(wanted)
        self._use_tables(None)
        payload = encode_plain(records)
        await self._outbox.put(Message(payload, NO_ARGS))
        items = {wanted.index: wanted.item for wanted in bundle}
        for record in records:
            if isinstance(record, Whole | Data):
                items[record.index].literal += len(record.data)
        for wanted in bundle:
            self._observer.moved(wanted.item.size)
        for item in small.changed:
            self._observer.warned(item.path, "it changed while it was read")

    async def _send_large(self, wanted: Wanted) -> None:
        self._use_tables(wanted)
        try:
            await self._large.send(wanted, self._key)
        finally:
            self._end_of(wanted)
            self._use_tables(None)


async def _decoded(decode: Callable[[Buffer], T], payload: Buffer) -> T:
    """Decode a message: a few bytes can unpack to what takes the loop too long."""
    return decode(payload) if is_quick(payload) else await in_worker(decode, payload)
