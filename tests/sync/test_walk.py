"""What a walk tells of what it cannot read, and how it ends early."""

import asyncio
import grp
import os
import pwd
import resource
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rpc25519_tools.errors import LocalFileError
from rpc25519_tools.files.jail import Root
from rpc25519_tools.files.workers import StoppedError
from rpc25519_tools.sync import judging
from rpc25519_tools.sync import walk as walk_module
from rpc25519_tools.sync.observer import Silence
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.owners import group_name, user_name
from rpc25519_tools.sync.records import decode_overview, encode_overview
from rpc25519_tools.sync.sender import Sender
from rpc25519_tools.sync.source import local_source, served_source
from rpc25519_tools.sync.tree import Tree
from rpc25519_tools.sync.walk import BATCH_LEN, Batch, Walk, file_sum
from tests.sync.local import LocalSync, channel_pair

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

RECURSIVE = SyncOptions(recursive=True)


def failures(
    paths: Sequence[Path | str],
    options: SyncOptions = RECURSIVE,
    only: Sequence[bytes] | None = None,
) -> list[tuple[bytes, str]]:
    """Walk; return what the receiver is told of what failed."""
    told: list[tuple[bytes, str]] = []
    walk = Walk(local_source([os.fsencode(path) for path in paths], only), options)
    for batch in walk.batches():
        overview, _ = decode_overview(encode_overview(batch.overview))
        assert len(overview.failed) < 2 * BATCH_LEN
        told += overview.failed
    return told


@pytest.mark.parametrize("count", [1, 256, 257, 1000])
def test_a_chosen_name_that_is_missing_is_told(tmp_path: Path, count: int) -> None:
    chosen = [b"%04d" % number for number in range(count)]
    for name in chosen:
        (tmp_path / os.fsdecode(name)).touch()
    (tmp_path / "other").touch()
    found = failures([tmp_path], only=[*chosen, b"none"])
    assert found == [(b"none", "no such file or directory")]


def test_many_chosen_names_that_are_missing_are_told(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "there").touch()
    chosen = [b"sub/%05d" % number for number in range(10_000)]
    found = failures([tmp_path], only=[*chosen, b"sub/there"])
    assert [path for path, _ in found] == chosen


def test_many_sources_that_are_missing_are_told(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    names = [f"{tmp_path}/{number:05}" for number in range(9000)]
    found = failures([tmp_path / "there", *names])
    assert [path for path, _ in found] == [os.fsencode(name) for name in names]


def test_sources_in_one_directory_take_one_descriptor(tmp_path: Path) -> None:
    names = [tmp_path / f"{number}" for number in range(100)]
    for name in names:
        name.touch()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    fd = os.open("/", os.O_RDONLY)
    os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 20, before[1]))
    try:
        assert failures(names) == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_directories_than_can_be_merged_are_refused(tmp_path: Path) -> None:
    paths = [b"%d/" % number for number in range(65)]
    for path in paths:
        (tmp_path / os.fsdecode(path)).mkdir()
    with Root(tmp_path) as root:
        tree = Tree.served(root, None)
        assert len(served_source(tree, [*paths[:64], paths[0]]).top.places) == 64
        with pytest.raises(LocalFileError, match="over 64 directories cannot"):
            served_source(tree, paths)


def test_directories_that_wait_are_counted_while_one_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk_module, "BATCH_LEN", 4)
    monkeypatch.setattr(walk_module, "MAX_WAITING_DIRS", 10)
    for number in range(30):
        (tmp_path / f"{number:02}").mkdir()
    walk = Walk(local_source([os.fsencode(f"{tmp_path}/")]), RECURSIVE)
    passed: deque[int] = deque()
    with pytest.raises(LocalFileError, match="over 10 directories lie side by side"):
        passed.extend(len(batch.items) for batch in walk.batches())
    assert sum(passed) < 12
    source = local_source([os.fsencode(f"{tmp_path}/{n:02}") for n in range(10)])
    batches = list(Walk(source, RECURSIVE).batches())
    assert sum(len(batch.items) for batch in batches) == 10


@pytest.mark.parametrize("look_up", [user_name, group_name])
def test_names_of_owners_can_be_sent(
    monkeypatch: pytest.MonkeyPatch, look_up: Callable[[int], str]
) -> None:
    odd = "x\udcff" + "y" * 300
    found = SimpleNamespace(pw_name=odd, gr_name=odd)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: found)
    monkeypatch.setattr(grp, "getgrgid", lambda _: found)
    assert look_up(1) == "x?" + "y" * 254


@pytest.mark.parametrize("error", [KeyError, OverflowError, OSError])
def test_an_owner_without_a_name(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(number: int) -> None:
        raise error(number)

    monkeypatch.setattr(pwd, "getpwuid", fail)
    monkeypatch.setattr(grp, "getgrgid", fail)
    assert (user_name(1), group_name(1)) == ("", "")


def test_a_file_that_gives_an_error_does_not_end_a_walk_for_sums() -> None:
    checksums = SyncOptions(checksum=True)
    source = local_source([b"/proc/self/mem", b"/proc/self/stat"])
    batches = list(Walk(source, checksums).batches())
    sums = b"".join(batch.overview.sums for batch in batches)
    assert len(sums) == 64
    assert sums[:32] == bytes(32)
    assert sums[32:] != bytes(32)


@pytest.mark.parametrize("step", ["sums", "entries"])
async def test_a_cancelled_sender_lets_its_walk_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "large").open("wb") as file:
        file.truncate(1 << 30)
    for number in range(1000):
        (source / f"small{number}").touch()
    loop = asyncio.get_running_loop()
    begun = asyncio.Event()
    go_on = threading.Event()
    passed: list[object] = []
    ends: list[type[BaseException]] = []

    def wait(value: object) -> None:
        passed.append(value)
        if len(passed) == 1:
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(10)

    class Watched(Walk):
        def batches(self) -> Iterator[Batch]:
            try:
                yield from super().batches()
            except BaseException as exc:
                ends.append(type(exc))
                raise

        def stop(self) -> None:
            super().stop()
            go_on.set()

        def _check_stopped(self) -> None:
            if step == "entries":
                wait(0)
            super()._check_stopped()

    def preadv(*args: Any) -> int:
        count = os_preadv(*args)
        if step == "sums":
            wait(args)
        return count

    os_preadv = os.preadv
    monkeypatch.setattr(os, "preadv", preadv)
    options = SyncOptions(recursive=True, checksum=step == "sums")
    walk = Watched(local_source([os.fsencode(f"{source}/")]), options)
    sender = asyncio.ensure_future(Sender(channel_pair()[0], walk, Silence()).run())
    await begun.wait()
    sender.cancel()
    await asyncio.wait([sender])
    assert sender.cancelled()
    assert ends == [StoppedError]
    assert len(passed) == 1


async def test_a_cancelled_receiver_lets_its_sums_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "large").open("wb") as file:
            file.truncate(8 << 20)
    loop = asyncio.get_running_loop()
    begun = asyncio.Event()
    go_on = threading.Event()
    ends: list[type[BaseException]] = []

    def slow_sum(fd: int, check: Callable[[], None] = lambda: None) -> bytes:
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(10)
        try:
            return file_sum(fd, check)
        except BaseException as exc:
            ends.append(type(exc))
            raise

    def stop(self: judging.Judging) -> None:
        really_stop(self)
        go_on.set()

    really_stop = judging.Judging.stop
    monkeypatch.setattr(judging.Judging, "stop", stop)
    monkeypatch.setattr(judging, "file_sum", slow_sum)
    options = SyncOptions(recursive=True, checksum=True)
    one = LocalSync([f"{tmp_path}/source/"], tmp_path / "target", options)
    running = asyncio.ensure_future(one.run())
    await begun.wait()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert ends == [StoppedError]
