"""Syncs over lines that are cut: they go on while that gets them anywhere."""

import asyncio
import os
import random
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import ConnectionLostError
from rpc25519_tools.files.jail import Root
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.sync.client import SyncSettings, pull, push
from rpc25519_tools.sync.observer import Silence
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.records import Totals
from rpc25519_tools.sync.service import add_sync_services
from rpc25519_tools.sync.tree import Parts

MIB = 1 << 20
PLAIN = SyncOptions(recursive=True, fsync=False)
ENOUGH = SyncSettings(retry_for_s=5, compress=False)
SOON = SyncSettings(retry_for_s=0.5, compress=False)
WAYS = pytest.mark.parametrize("way", ["push", "pull"])


class Watcher(Silence):
    """Notes what is told, and cuts when the first thing was removed."""

    def __init__(self, site: "Site | None" = None) -> None:
        self._site = site
        self.gone: list[bytes] = []
        self.threads: list[threading.Thread] = []

    def removed(self, paths: list[bytes]) -> None:
        if not self.gone and self._site is not None:
            self._site.clients[-1].transport.abort()
        self.gone += paths

    def skipped(self, path: Parts) -> None:
        self.threads.append(threading.current_thread())


@dataclass(slots=True)
class Site:
    """A server, a line that breaks after so many bytes each time, and two trees."""

    top: Path
    address: str = ""
    room: int = 0
    clients: list[Client] = field(default_factory=list)

    async def sync(
        self,
        way: str,
        options: SyncOptions = PLAIN,
        settings: SyncSettings = ENOUGH,
        observer: Silence | None = None,
    ) -> Totals:
        async def connect() -> Client:
            address = parse_address(self.address)
            client = await Client.connect(Config(address=address, network="tcp"))
            self.clients.append(client)
            return client

        observer = observer or Silence()
        if way == "push":
            words = [os.fsencode(f"{self.top}/source/")], b"target"
            return await push(connect, *words, options, observer, settings)
        words = [b"source/"], os.fsencode(f"{self.top}/target")
        return await pull(connect, *words, options, observer, settings)

    async def pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str
    ) -> None:
        """Pass a connection on until it has had enough bytes."""
        host, _, port = target.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        room = self.room

        async def pump(
            source: asyncio.StreamReader, sink: asyncio.StreamWriter
        ) -> None:
            nonlocal room
            while (data := await source.read(16384)) and room > 0:
                room -= len(data)
                sink.write(data)
                await sink.drain()

        ways = [pump(reader, far_writer), pump(far_reader, writer)]
        pumps = [asyncio.ensure_future(way) for way in ways]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in pumps:
                one.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in (writer, far_writer):
                end.transport.abort()


@asynccontextmanager
async def site_of(top: Path, *, room: int = 1 << 40) -> AsyncIterator[Site]:
    registry = Registry()
    with Root(top) as root:
        add_sync_services(
            registry, read_root=root, write_root=root, log=lambda record: None
        )
        config = Config(address=parse_address("127.0.0.1:0"), network="tcp")
        async with Server(config, registry) as server:
            site = Site(top, room=room)
            listener = await asyncio.start_server(
                lambda reader, writer: site.pass_on(reader, writer, server.address),
                "127.0.0.1",
            )
            async with listener:
                port = listener.sockets[0].getsockname()[1]
                site.address = f"127.0.0.1:{port}"
                yield site


def make(top: Path, names: Sequence[str], data: bytes = b"") -> None:
    top.mkdir()
    for name in names:
        (top / name).write_bytes(data)


@WAYS
async def test_an_attempt_that_stores_nothing_is_no_progress(
    tmp_path: Path, way: str
) -> None:
    make(tmp_path / "source", ["large"], random.Random(1).randbytes(4 * MIB))
    async with site_of(tmp_path, room=300_000) as site:
        with pytest.raises(ConnectionLostError):
            await site.sync(way, settings=SOON)
        assert 1 < len(site.clients) < 8
    assert not (tmp_path / "target" / "large").exists()


@WAYS
async def test_a_file_of_which_some_is_stored_each_time_arrives(
    tmp_path: Path, way: str
) -> None:
    data = random.Random(1).randbytes(20 * MIB)
    make(tmp_path / "source", ["large"], data)
    async with site_of(tmp_path, room=3 * MIB) as site:
        totals = await site.sync(way, settings=SOON)
        assert len(site.clients) > 5
    assert (tmp_path / "target" / "large").read_bytes() == data
    assert totals.literal_bytes + totals.matched_bytes == len(data)
    assert totals.literal_bytes < 4 * MIB


@WAYS
async def test_no_more_is_deleted_than_allowed_in_all_attempts(
    tmp_path: Path, way: str
) -> None:
    make(tmp_path / "source", ["kept"], b"1")
    make(tmp_path / "target", [f"{number:02}" for number in range(20)])
    options = SyncOptions(recursive=True, delete=True, max_delete=5, fsync=False)
    async with site_of(tmp_path) as site:
        watcher = Watcher(site)
        totals = await site.sync(way, options, observer=watcher)
        assert len(site.clients) == 2
    left = [path.name for path in (tmp_path / "target").iterdir()]
    assert len(left) == 16
    assert len(watcher.gone) == totals.deleted == 5
    assert totals.undeleted == 15


async def test_what_is_left_out_is_told_on_the_event_loop(tmp_path: Path) -> None:
    make(tmp_path / "source", ["file"])
    (tmp_path / "source" / "link").symlink_to("file")
    async with site_of(tmp_path) as site:
        for way in ("push", "pull"):
            watcher = Watcher()
            await site.sync(way, observer=watcher)
            assert watcher.threads == [threading.current_thread()]
