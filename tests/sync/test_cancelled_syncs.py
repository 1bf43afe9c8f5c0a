"""Syncs that are cancelled while they do something leave nothing behind."""

import asyncio
import gc
import os
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import LocalFileError
from rpc25519_tools.files.jail import Root
from rpc25519_tools.rpc.calls import CallKind, RsyncStep
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.sync import client as client_module
from rpc25519_tools.sync import outgoing, service
from rpc25519_tools.sync.channel import Channel, run_together
from rpc25519_tools.sync.client import SyncSettings, pull, push
from rpc25519_tools.sync.contents import LargeFiles
from rpc25519_tools.sync.observer import Silence
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.outgoing import Wanted
from rpc25519_tools.sync.records import (
    OFFER_SERVICE,
    SYNC_SERVICE,
    VERSION,
    Request,
    encode_request,
)
from rpc25519_tools.sync.service import add_sync_services
from rpc25519_tools.sync.source import local_source
from rpc25519_tools.sync.walk import Walk
from tests.sync.local import MemoryChannel

OPTIONS = SyncOptions(recursive=True, fsync=False)


@pytest.fixture
def nothing_left(no_leaked_fds: None) -> Iterator[None]:
    """Fail a test that leaves descriptors open; those of trees close themselves."""
    yield
    gc.collect()


class Slow:
    """Makes a function wait, in whatever thread calls it.

    Args:
        monkeypatch: takes it back.
        module: where the function is looked up.
        name: of the function.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, module: object, name: str
    ) -> None:
        self._begun, self._may_go_on = threading.Event(), threading.Event()
        function: Callable[..., object] = getattr(module, name)

        def slow(*args: object, **how: object) -> object:
            self._begun.set()
            assert self._may_go_on.wait(10)
            return function(*args, **how)

        monkeypatch.setattr(module, name, slow)

    async def wait_begun(self) -> None:
        """Wait until it was called."""
        assert await asyncio.to_thread(self._begun.wait, 10)

    def go_on(self) -> None:
        """Let it do its work."""
        self._may_go_on.set()


@asynccontextmanager
async def connected(top: Path) -> AsyncIterator[Callable[[], Awaitable[Client]]]:
    """Serve a directory; yield what connects to the server."""
    registry = Registry()
    with Root(top) as root:
        add_sync_services(registry, read_root=root, write_root=root, log=lambda _: None)
        config = Config(address=parse_address("127.0.0.1:0"), network="tcp")
        async with Server(config, registry) as server:

            async def connect() -> Client:
                address = parse_address(server.address)
                return await Client.connect(Config(address=address, network="tcp"))

            yield connect


@pytest.mark.usefixtures("nothing_left")
async def test_push_that_is_cancelled_while_it_opens_closes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = Slow(monkeypatch, service, "open_place")
    request = encode_request(Request(VERSION, OPTIONS, (), b""))
    async with connected(tmp_path) as connect, await connect() as client:
        async with client.rsync(CallKind.RSYNC_SEND, SYNC_SERVICE, request):
            await opening.wait_begun()
        await client.call(OFFER_SERVICE)  # the server has read of the cancellation
        opening.go_on()


@pytest.mark.usefixtures("nothing_left")
async def test_pull_that_is_cancelled_while_it_opens_closes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "served").mkdir()
    opening = Slow(monkeypatch, client_module, "open_local_place")
    async with connected(tmp_path / "served") as connect:
        target = os.fsencode(tmp_path / "target")
        how = SyncSettings(retry_for_s=0)
        work = pull(connect, [b""], target, OPTIONS, Silence(), how)
        pulling = asyncio.ensure_future(work)
        await opening.wait_begun()
        pulling.cancel()
        await asyncio.sleep(0)
        opening.go_on()
        with pytest.raises(asyncio.CancelledError):
            await pulling


@pytest.mark.usefixtures("nothing_left")
async def test_file_whose_sending_is_cancelled_while_it_opens_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"f")
    opening = Slow(monkeypatch, outgoing, "open_source")
    [batch, *_] = Walk(local_source([os.fsencode(tmp_path / "f")]), OPTIONS).batches()
    files = LargeFiles(asyncio.Queue(), asyncio.Event(), {0: None}, Silence())
    wanted = Wanted(0, batch.items[0], True, None)
    sending = asyncio.ensure_future(files.send(wanted, bytes(32)))
    await opening.wait_begun()
    sending.cancel()
    await asyncio.sleep(0)
    opening.go_on()
    with pytest.raises(asyncio.CancelledError):
        await sending


async def _leave(state: list[str], may_end: asyncio.Event) -> None:
    """Work that takes a while to end."""
    try:
        await asyncio.Event().wait()
    finally:
        await may_end.wait()
        state.append("ended")


def _alive(work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
    return MemoryChannel().while_alive(RsyncStep.ACK, work)


@pytest.mark.parametrize("run", [_alive, run_together])
async def test_who_is_cancelled_twice_still_waits_for_the_work(
    run: Callable[[Coroutine[Any, Any, None]], Coroutine[Any, Any, None]],
) -> None:
    state: list[str] = []
    may_end = asyncio.Event()
    task = asyncio.ensure_future(run(_leave(state, may_end)))
    for _ in range(3):
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert state == ["ended"]


async def test_cancellation_that_comes_when_the_work_is_done_is_not_lost() -> None:
    may_end = asyncio.Event()

    async def fail() -> None:
        raise LocalFileError("no")

    task = asyncio.ensure_future(run_together(_leave([], may_end), fail()))
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_slow_push_takes_the_time_that_its_rate_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As 1 MiB takes longer than 300 s at 3 KB/s.
    defaults = Channel.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "stall_s", 0.2)
    data = random.Random(1).randbytes(1 << 20)
    (tmp_path / "served").mkdir()
    (tmp_path / "f").write_bytes(data)
    options = msgspec.structs.replace(OPTIONS, bandwidth=1 << 20)
    how = SyncSettings(retry_for_s=0)
    async with connected(tmp_path / "served") as connect:
        paths = [os.fsencode(tmp_path / "f")]
        await push(connect, paths, b"", options, Silence(), how)
    assert (tmp_path / "served" / "f").read_bytes() == data
