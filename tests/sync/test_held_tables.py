"""What a receiver makes a sender hold is bounded, and counted as its connection's."""

import asyncio
import os
import random
import stat
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import RemoteCallError
from rpc25519_tools.files.jail import Root
from rpc25519_tools.rpc.calls import CallKind, RsyncStep
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.client_stream import ClientStream
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.sync import sender as sender_module
from rpc25519_tools.sync.basis import Basis
from rpc25519_tools.sync.chunking import basis_len, chunk_sizes
from rpc25519_tools.sync.matching import MAX_CHUNKS, Tables, most_chunks
from rpc25519_tools.sync.observer import Silence
from rpc25519_tools.sync.outgoing import SmallFiles, Wanted
from rpc25519_tools.sync.records import (
    ARG_INDEX,
    SHORT_SUM_LEN,
    SYNC_SERVICE,
    VERSION,
    Acks,
    End,
    Request,
    Table,
    Totals,
    Verdict,
    Verdicts,
    decode_deltas,
    encode_records,
    encode_request,
    pack_lengths,
    unpack_table,
)
from rpc25519_tools.sync.sender import Sender
from rpc25519_tools.sync.service import add_sync_services
from rpc25519_tools.sync.source import local_source
from rpc25519_tools.sync.walk import Walk
from tests.helpers import wait_until
from tests.sync.attackers import ALL, HostileReceiver
from tests.sync.local import channel_pair

KEY = bytes(range(32))
#: Of each chunk, in a table that has come, and in one that is in use.
CHUNK_LEN, CHUNK_IN_USE_LEN = 10, 160


def table(index: int, count: int, *, last: bool, length: int = 1000) -> Table:
    sums = random.Random(count).randbytes(SHORT_SUM_LEN * count)
    lengths = pack_lengths([length] * count)
    return Table(index, 0, in_place=False, lengths=lengths, sums=sums, last=last)


async def _take_all(receiver: HostileReceiver, files: int) -> None:
    """Take contents until so many files are through."""
    stored_len = 0
    while files:
        for part in await receiver.channel.receive():
            if part.step is RsyncStep.DELTAS:
                stored_len += len(part.payload)
                await receiver.fins(Acks([], stored=stored_len))
                if ARG_INDEX not in part.args:
                    records = decode_deltas(part.payload)
                    files -= sum(isinstance(record, End) for record in records)


@pytest.mark.parametrize("size", [2000, 1 << 20])
async def test_tables_are_counted_until_their_file_is_sent(
    tmp_path: Path, size: int
) -> None:
    for name in ("f", "g"):
        (tmp_path / name).write_bytes(bytes(size))
    held: list[int] = []
    up, down = channel_pair()
    walk = Walk(local_source([os.fsencode(tmp_path) + b"/"]), ALL)
    sender = Sender(up, walk, Silence(), hold=held.append)
    receiver = HostileReceiver(down)
    sending = asyncio.ensure_future(sender.run())
    async with asyncio.timeout(6):
        await receiver.parts(RsyncStep.OVERVIEW)
        deltas = [Verdict.EQUAL, Verdict.WANT_DELTA, Verdict.WANT_DELTA]
        await receiver.hashes(Verdicts(0, bytes(deltas), key=KEY))
        await receiver.hashes(table(2, 5000, last=False))
        await receiver.hashes(table(1, 3000, last=True))
        await receiver.hashes(table(2, 5000, last=True))
        await _take_all(receiver, 2)
        await receiver.fins(Acks([1, 2]), Acks([], {}, Totals()))
        await sending
    assert held[0] >= 5000 * CHUNK_LEN
    assert max(held) >= 10000 * (CHUNK_LEN + CHUNK_IN_USE_LEN)
    assert held[-1] == 0


def test_tables_in_use_take_what_is_counted() -> None:
    count = 30_000
    tables = Tables(chunk_sizes(2000))
    arrived = [table(0, 1000, last=False) for _ in range(count // 1000)]
    for number, one in enumerate(arrived):
        one.sums = random.Random(number).randbytes(SHORT_SUM_LEN * 1000)
    tracemalloc.start()
    try:
        for one in arrived:
            tables.add(one)
        taken_len = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken_len <= count * CHUNK_IN_USE_LEN
    assert CHUNK_IN_USE_LEN == sender_module._IN_USE_FACTOR * CHUNK_LEN


def test_tables_of_small_files_are_in_use_one_after_the_other(tmp_path: Path) -> None:
    for name in ("f", "g"):
        (tmp_path / name).write_bytes(bytes(2000))
    [batch, *_] = Walk(local_source([os.fsencode(tmp_path) + b"/"]), ALL).batches()
    files = [
        Wanted(index, item, True, Tables(chunk_sizes(2000)))
        for index, item in enumerate(batch.items)
        if stat.S_ISREG(item.mode)
    ]
    for wanted in files:
        wanted.arrived.append(table(wanted.index, 100, last=True))
    assert len(SmallFiles(KEY).records(files)) >= 2
    assert [wanted.tables for wanted in files] == [None, None]


def test_most_chunks_of_a_file_follow_from_its_length() -> None:
    assert most_chunks(70_000) < 700_000 < MAX_CHUNKS
    assert most_chunks(1 << 40) == MAX_CHUNKS


@pytest.mark.parametrize("size", [70_000, 40 << 20])
def test_what_a_receiver_cuts_of_a_long_file_is_taken(
    tmp_path: Path, size: int
) -> None:
    path = tmp_path / "basis"
    path.touch()
    os.truncate(path, 200 << 20)
    fd = os.open(path, os.O_RDONLY)
    try:
        basis = Basis(fd, os.fstat(fd), in_place=False)
        lengths = [
            length
            for one in basis.tables(0, 0, KEY, size)
            for length in unpack_table(one)
        ]
    finally:
        os.close(fd)
    assert sum(lengths) == basis_len(size)
    # Were its chunks as short as can be, and six of the same length beside it.
    assert 7 * (basis_len(size) // chunk_sizes(size).min_len + 1) <= most_chunks(size)


@asynccontextmanager
async def pulled(
    top: Path, request: Request
) -> AsyncIterator[tuple[Server, ClientStream]]:
    """Serve a directory; yield the server, and a pull from it that has begun."""
    registry = Registry()
    with Root(top) as root:
        add_sync_services(registry, read_root=root, write_root=None, log=lambda _: None)
        config = Config(address=parse_address("127.0.0.1:0"), network="tcp")
        async with Server(config, registry) as server:
            address = parse_address(server.address)
            client = await Client.connect(Config(address=address, network="tcp"))
            opening = client.rsync(
                CallKind.RSYNC_READ, SYNC_SERVICE, encode_request(request)
            )
            async with client, opening as stream:
                await anext(aiter(stream))
                yield server, stream


async def _fail(server: Server, stream: ClientStream) -> None:
    """End a pull, and see that nothing of it is held then."""
    await stream.send(b"\0nonsense", step=RsyncStep.HASHES)
    with pytest.raises(RemoteCallError, match="malformed"):
        await stream.reply()
    await asyncio.to_thread(wait_until, lambda: server._memory.total_len == 0)


async def test_chosen_paths_are_counted_while_they_are_pulled(tmp_path: Path) -> None:
    count = 20_000
    (tmp_path / "f").touch()
    only = tuple(b"%x" % number for number in range(count))
    request = Request(VERSION, ALL, (b"",), only=only)
    async with pulled(tmp_path, request) as (server, stream):
        assert server._memory.total_len >= count * 160
        await _fail(server, stream)


async def test_tables_are_counted_at_a_server(tmp_path: Path) -> None:
    count = 20_000
    (tmp_path / "f").write_bytes(bytes(1 << 20))
    async with pulled(tmp_path, Request(VERSION, ALL, (b"",))) as (server, stream):
        assert server._memory.total_len == 0
        await anext(aiter(stream))  # the entries
        verdicts = bytes([Verdict.EQUAL, Verdict.WANT_DELTA])
        message = encode_records(
            [Verdicts(0, verdicts, key=KEY), table(1, count, last=False)]
        )
        await stream.send(message, step=RsyncStep.HASHES)
        each_len = CHUNK_LEN + CHUNK_IN_USE_LEN
        await asyncio.to_thread(
            wait_until, lambda: server._memory.total_len >= count * each_len
        )
        await _fail(server, stream)
