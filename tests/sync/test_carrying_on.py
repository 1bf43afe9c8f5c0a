"""Syncs that are cut, killed and started again: all arrives, and little comes twice."""

import asyncio
import os
import random
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rpc25519_tools.sync.client import SyncSettings
from rpc25519_tools.sync.observer import Silence
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.tree import Parts
from tests.files.areas import leave_behind
from tests.helpers import SrvProcess
from tests.sync.lines import Line
from tests.sync.local import sync
from tests.sync.one_sync import ARCHIVE, one_sync
from tests.sync.trees import seen

MIB = 1 << 20
#: What lies between two ends on a line of ordinary length; a cut costs that much.
BUFFER_LEN = 64 * 1024
#: A part of a large file that has not come whole, a connection, the entries.
COST_OF_A_CUT = MIB + 512 * 1024
#: A killed receiver takes along what it and its kernel had not stored yet.
COST_OF_A_KILL = 3 * MIB


class Server:
    """A ``srv`` that can be killed and comes back at the same address.

    Args:
        certs: its certificates.
        served: what it serves.
    """

    def __init__(self, certs: Path, served: Path) -> None:
        self._certs = certs
        self._served = served
        self._program: SrvProcess | None = None
        self.address = "127.0.0.1:0"

    def start(self) -> None:
        served = ("-serve", self._served, "-readfile", self._served)
        options = ("-s", self.address, *served, "--grace", "0")
        program = SrvProcess(*options, certs=self._certs)
        program.__enter__()
        self._program = program
        self.address = program.address

    def stop(self, number: int) -> None:
        program, self._program = self._program, None
        if program is not None:
            program.stop(number)
            program.__exit__(None, None, None)

    async def restart(self, number: int) -> None:
        await asyncio.to_thread(self.stop, number)
        await asyncio.to_thread(self.start)

    async def kill(self) -> None:
        await self.restart(signal.SIGKILL)

    async def end(self) -> None:
        await self.restart(signal.SIGTERM)


class Site:
    """A server, a line to it, and directories on both sides."""

    def __init__(self, certs: Path, top: Path, server: Server, line: Line) -> None:
        self.certs = certs
        self.server = server
        self.line = line
        self.served = top / "served"
        self.local = top / "local"
        self.retries: list[str] = []
        self.failures: list[tuple[Parts, str]] = []

    def ends(self, way: str) -> tuple[Path, Path]:
        """Return source and destination."""
        if way == "push":
            return self.local / "source", self.served / "target"
        return self.served / "source", self.local / "target"

    def words(self, way: str) -> tuple[str, str]:
        """Return source and destination as they are named to a sync."""
        if way == "push":
            return f"{self.local / 'source'}/", "target"
        return "source/", str(self.local / "target")

    async def sync(self, way: str, *, options: SyncOptions = ARCHIVE) -> int:
        """Sync once; return how many bytes passed on the line."""
        before = self.line.count

        def note(error: Exception, wait_s: float) -> None:
            self.retries.append(str(error))

        class Failures(Silence):
            def failed(_, path: Parts, note: str) -> None:  # noqa: N805
                self.failures.append((path, note))

        await one_sync(
            self.line.address,
            str(self.certs),
            way,
            *self.words(way),
            options=options,
            observer=Failures(),
            settings=SyncSettings(retry_for_s=15, on_retry=note),
        )
        assert not self.line.events, "not everything happened that should have"
        return self.line.count - before

    def require_equal(self, way: str) -> None:
        source, target = self.ends(way)
        assert seen(target) == seen(source)
        assert not self.failures
        for place in (self.served, self.local):
            left = [str(path) for path in place.rglob(".rpc25519-part*")]
            assert not left

    def forget_target(self, way: str) -> None:
        shutil.rmtree(self.ends(way)[1])


@asynccontextmanager
async def site_of(certs: Path, top: Path) -> AsyncIterator[Site]:
    (top / "served").mkdir()
    (top / "local").mkdir()
    server = Server(certs, top / "served")
    await asyncio.to_thread(server.start)
    try:
        async with Line(server.address, buffer_len=BUFFER_LEN) as line:
            yield Site(certs, top, server, line)
    finally:
        await asyncio.to_thread(server.stop, signal.SIGKILL)


def make_large(source: Path) -> None:
    source.mkdir(parents=True)
    (source / "large").write_bytes(random.Random(1).randbytes(16 * MIB))


def make_many(source: Path) -> None:
    """Make 500 files in directories that are full, empty, deep and odd."""
    values = random.Random(2)
    for number in range(500):
        path = source / f"d{number % 7}" / f"e{number % 3}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(values.randbytes(values.randrange(16 * 1024)))
        if number % 50 == 0:
            (path.parent / f"link{number}").symlink_to(path.name)
            (path.parent / f"none{number}").mkdir(mode=0o750)
    for path in sorted(source.rglob("*"), reverse=True):
        if not path.is_symlink():
            os.utime(path, ns=(10**18, 10**18 + path.lstat().st_ino))


def marks(seed: int, count: int, total: int) -> list[int]:
    """Return where it shall happen: random, but not when the last word is said."""
    return sorted(random.Random(seed).sample(range(8000, total - 8000), count))


@pytest.mark.parametrize("way", ["push", "pull"])
@pytest.mark.parametrize("make", [make_large, make_many])
async def test_cuts_cost_little(
    certs: Path, tmp_path: Path, make: Callable[[Path], None], way: str
) -> None:
    async with site_of(certs, tmp_path) as site:
        make(site.ends(way)[0])
        undisturbed = await site.sync(way)
        site.require_equal(way)
        site.forget_target(way)
        site.line.at(marks(3, 4, undisturbed), site.line.cut)
        disturbed = await site.sync(way)
        site.require_equal(way)
        assert len(site.retries) == 4
        allowed = COST_OF_A_CUT if make is make_large else 256 * 1024
        assert disturbed <= undisturbed + 4 * allowed


@pytest.mark.parametrize("way", ["push", "pull"])
async def test_a_server_may_be_killed_or_restarted(
    certs: Path, tmp_path: Path, way: str
) -> None:
    async with site_of(certs, tmp_path) as site:
        make_large(site.ends(way)[0])
        make_many(site.ends(way)[0] / "many")
        total = 20 * MIB
        site.line.at([total // 3], site.server.kill)
        site.line.at([total * 2 // 3], site.server.end)
        disturbed = await site.sync(way)
        site.require_equal(way)
        assert len(site.retries) >= 2
        assert disturbed <= total + 2 * COST_OF_A_KILL


@pytest.mark.parametrize("way", ["push", "pull"])
async def test_a_killed_client_is_started_again(
    certs: Path, tmp_path: Path, way: str
) -> None:
    async with site_of(certs, tmp_path) as site:
        make_large(site.ends(way)[0])
        make_many(site.ends(way)[0] / "many")
        words = [site.line.address, str(certs), way, *site.words(way)]
        program = [sys.executable, "-m", "tests.sync.one_sync", *words]
        for stop in (8 * MIB, 8 * MIB):
            client = await asyncio.create_subprocess_exec(*program)

            async def kill(client: asyncio.subprocess.Process = client) -> None:
                client.kill()

            site.line.at([stop], kill)
            assert await client.wait() == -signal.SIGKILL
        await site.sync(way)
        site.require_equal(way)
        assert site.line.count <= 20 * MIB + 2 * COST_OF_A_KILL


async def test_a_client_comes_from_another_address(certs: Path, tmp_path: Path) -> None:
    """The server is never told that the old address is gone."""
    async with site_of(certs, tmp_path) as site:
        make_large(site.ends("push")[0])

        async def move() -> None:
            site.line.source = "127.0.0.2"
            await site.line.go_silent()

        site.line.at([8 * MIB], move)
        disturbed = await site.sync("push")
        site.require_equal("push")
        assert disturbed <= 16 * MIB + 2 * COST_OF_A_CUT


def test_small_files_that_a_killed_sync_has_left_are_used(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub").mkdir(parents=True)
    target.mkdir()
    data = random.Random(1).randbytes(2000).hex().encode()
    (source / "sub" / "small").write_bytes(data)
    (source / "other").write_bytes(data[:1000])
    leave_behind(target, (b"sub/small", data[:3000]), (b"gone", data))
    done = sync([f"{source}/"], target, ARCHIVE)
    assert seen(target) == seen(source)
    assert done.totals.matched_bytes > 1000
    assert done.totals.literal_bytes < 5000 - 1000
