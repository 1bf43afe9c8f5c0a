"""Tell the sender which chunks of wanted files are here: tables, one after the other.

Files are cut in worker threads, beside the one that stores contents, since it takes
long.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from rpc25519_tools.files.workers import in_worker
from rpc25519_tools.rpc.calls import RsyncStep
from rpc25519_tools.sync.channel import Channel
from rpc25519_tools.sync.matching import MAX_CHUNKS
from rpc25519_tools.sync.pending import PARTIAL_FROM, Pending
from rpc25519_tools.sync.records import SHORT_SUM_LEN, Hashes, Table, encode_records
from rpc25519_tools.sync.seeking import Seeking

#: Bytes of tables that may be out for files that have not come.
_MAX_TABLED: Final = 8 << 20
#: Tables of files below this length travel together, and those of so many.
_SMALL_LEN: Final = PARTIAL_FROM
_SMALL_COUNT: Final = 256
#: About how long a message may be; what a small file is made of may be long.
_MESSAGE_LEN: Final = 1 << 20


class Tabling:
    """Sends tables over one call.

    Args:
        channel: the call.
        seeking: opens what a file is made of.
        key: of the sums.
        pending: the wanted files, by index; shared with the receiver.
        disk: holds while local files are looked for.
    """

    def __init__(
        self,
        channel: Channel,
        seeking: Seeking,
        key: bytes,
        pending: Mapping[int, Pending],
        disk: asyncio.Lock,
    ) -> None:
        self._channel = channel
        self._seeking = seeking
        self._key = key
        self._pending = pending
        self._disk = disk
        self._files: deque[Pending] = deque()
        self._tabled = 0

    @property
    def has_work(self) -> bool:
        """Whether a table is wanted, and may be sent."""
        return bool(self._files) and self._tabled <= _MAX_TABLED

    def add(self, pending: Pending) -> None:
        """Have the tables of a file sent."""
        self._files.append(pending)

    def forget(self, pending: Pending) -> None:
        """Note that the sender needs the tables of a file no more."""
        self._tabled -= pending.tabled
        pending.tabled = 0

    async def step(self) -> None:
        """Send the tables of the next file, or of some small ones."""
        small: list[Pending] = []
        while self._files and len(small) < _SMALL_COUNT:
            if self._files[0].entry.size >= _SMALL_LEN:
                break
            small.append(self._files.popleft())
        if not small:
            await self._cut_large(self._files.popleft())
            return
        payload, count = await in_worker(self._small_tables, small)
        self._files.extendleft(reversed(small[count:]))
        self._count(small[:count])
        await self._channel.send(RsyncStep.HASHES, payload)

    def _count(self, files: Sequence[Pending]) -> None:
        """Count tables of files that have not come meanwhile."""
        for pending in files:
            if pending.entry.index in self._pending:
                count = sum(basis.table_len for basis in pending.bases)
                self._tabled += count - pending.tabled
                pending.tabled = count

    def _small_tables(self, files: Sequence[Pending]) -> tuple[bytes, int]:
        """Return a message of tables, and of how many files it has them."""
        records: list[Hashes] = []
        length = count = 0
        for pending in files:
            if length >= _MESSAGE_LEN:
                break
            count += 1
            index, size = pending.entry.index, pending.entry.size
            with pending.cutting() as bases:
                self._seeking.open(pending)
                tables = [
                    table
                    for number, basis in enumerate(bases)
                    for table in basis.tables(index, number, self._key, size)
                ]
            if not tables:
                tables = [_no_table(index)]
            tables[-1].last = True
            records += tables
            length += sum(len(table.lengths) + len(table.sums) for table in tables)
        return encode_records(records), count

    async def _cut_large(self, pending: Pending) -> None:
        index, size = pending.entry.index, pending.entry.size
        last = _no_table(index)
        chunks = 0
        with pending.cutting() as bases:
            async with self._disk:
                await in_worker(self._seeking.open, pending)
            for number, basis in enumerate(bases):
                last.basis, last.in_place = number, basis.in_place
                tables = basis.tables(index, number, self._key, size)
                while (table := await in_worker(next, tables, None)) is not None:
                    chunks += len(table.sums) // SHORT_SUM_LEN
                    if index not in self._pending or chunks > MAX_CHUNKS:
                        break  # it has failed meanwhile, or there are too many
                    self._count([pending])
                    await self._channel.send(RsyncStep.HASHES, encode_records([table]))
                if chunks > MAX_CHUNKS:
                    break
        await self._channel.send(RsyncStep.HASHES, encode_records([last]))


def _no_table(index: int) -> Table:
    return Table(index, 0, in_place=False, lengths=b"", sums=b"", last=True)
