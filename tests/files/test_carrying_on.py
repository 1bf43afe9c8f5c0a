"""Downloads and uploads that carry on after a cut, and failures that leave nothing."""

import asyncio
import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import (
    ChecksumError,
    ConnectionLostError,
    LocalFileError,
    RemoteCallError,
)
from rpc25519_tools.files import landing as landing_module
from rpc25519_tools.wire.constants import PART_LEN
from rpc25519_tools.wire.digest import digest_text
from tests.files.carrying import (
    AREA,
    OLD,
    WHOLE,
    cut,
    ends,
    fetch,
    move,
    plan,
    upload_as,
)
from tests.files.places import Place, answering, connected, download_part, summed
from tests.helpers import until
from tests.rpc.memory import Plan
from tests.rpc.nets import Net, raw_server

WAYS = pytest.mark.parametrize("way", ["up", "down"])


@WAYS
@pytest.mark.parametrize("at", [5 * PART_LEN + 3, len(WHOLE) - 9])
async def test_what_came_before_a_cut_does_not_come_again(
    memory: Net, place: Place, way: str, at: int
) -> None:
    source, target = ends(place, way)
    source.write_bytes(WHOLE)
    target.write_bytes(OLD)
    await cut(memory, place, way, at)
    assert target.read_bytes() == OLD
    summary = await move(memory, place, way)
    assert summary.carried_bytes >= at - PART_LEN - 50_000
    assert summary.carried_bytes % PART_LEN == 0
    assert summary.size_bytes == len(WHOLE)
    assert summary.digest == digest_text(WHOLE)
    assert summary.verified_by_peer is True
    assert target.read_bytes() == WHOLE
    assert os.listdir(target.parent) == ["f"]


@WAYS
async def test_cut_again_and_again(memory: Net, place: Place, way: str) -> None:
    source, target = ends(place, way)
    source.write_bytes(WHOLE)
    for _ in range(2):
        await cut(memory, place, way, 7 * PART_LEN // 2)
    summary = await move(memory, place, way)
    # Each repeated upload has sent one part before it knew better.
    assert summary.carried_bytes >= (3 if way == "up" else 4) * PART_LEN
    assert target.read_bytes() == WHOLE
    assert os.listdir(target.parent) == ["f"]


@WAYS
@pytest.mark.parametrize("size", [0, 1000, PART_LEN - 1])
async def test_small_files_leave_nothing(
    memory: Net, place: Place, way: str, size: int
) -> None:
    source, target = ends(place, way)
    source.write_bytes(WHOLE[:size])
    with (
        plan(memory, way, Plan(cut_at=400)),
        pytest.raises(ConnectionLostError),
    ):
        await move(memory, place, way)
    await until(lambda: os.listdir(target.parent) == [])
    assert (await move(memory, place, way)).carried_bytes == 0
    assert target.read_bytes() == WHOLE[:size]


def changed_early(path: Path) -> bytes:
    return b"!" + WHOLE[1:]


def shorter(path: Path) -> bytes:
    return WHOLE[: 2 * PART_LEN + 5]


def tiny(path: Path) -> bytes:
    return b"tiny"


@WAYS
@pytest.mark.parametrize("change", [changed_early, shorter, tiny])
async def test_a_changed_file_begins_anew(
    memory: Net, place: Place, way: str, change: Any
) -> None:
    source, target = ends(place, way)
    source.write_bytes(WHOLE)
    await cut(memory, place, way, 6 * PART_LEN)
    source.write_bytes(change(source))
    summary = await move(memory, place, way)
    assert summary.carried_bytes == 0
    assert target.read_bytes() == change(source)
    if change is not tiny:
        assert os.listdir(target.parent) == ["f"]


@WAYS
@pytest.mark.parametrize("more", [b"", b"and more of it" * 100_000])
async def test_a_file_that_has_grown_carries_on(
    memory: Net, place: Place, way: str, more: bytes
) -> None:
    source, target = ends(place, way)
    source.write_bytes(WHOLE)
    await cut(memory, place, way, 6 * PART_LEN)
    source.write_bytes(WHOLE + more)
    assert (await move(memory, place, way)).carried_bytes > 0
    assert target.read_bytes() == WHOLE + more


@WAYS
async def test_all_of_it_is_there_already(
    memory: Net, place: Place, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between the last byte and the rename."""
    source, target = ends(place, way)
    source.write_bytes(WHOLE)
    await cut(memory, place, way, 6 * PART_LEN)
    (partial,) = (target.parent / AREA).iterdir()
    partial.write_bytes(WHOLE)
    assert (await move(memory, place, way)).carried_bytes == len(WHOLE)
    assert target.read_bytes() == WHOLE
    assert os.listdir(target.parent) == ["f"]


@WAYS
async def test_damaged_leftovers_are_not_used(
    memory: Net, place: Place, way: str
) -> None:
    """As after a power failure: the length is there, the bytes are not."""
    source, target = ends(place, way)
    source.write_bytes(WHOLE)
    await cut(memory, place, way, 6 * PART_LEN)
    (partial,) = (target.parent / AREA).iterdir()
    partial.write_bytes(bytes(partial.stat().st_size))
    assert (await move(memory, place, way)).carried_bytes == 0
    assert target.read_bytes() == WHOLE


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_cuts_anywhere(memory: Net, place: Place, data: st.DataObject) -> None:
    way = data.draw(st.sampled_from(["up", "down"]))
    source, target = ends(place, way)
    source.write_bytes(WHOLE)

    async def story() -> None:
        for at in data.draw(st.lists(st.integers(500, len(WHOLE)), max_size=3)):
            with (
                plan(memory, way, Plan(cut_at=at)),
                contextlib.suppress(ConnectionLostError),
            ):
                await move(memory, place, way)
        await move(memory, place, way)

    with asyncio.Runner() as runner:
        runner.run(asyncio.wait_for(story(), 20))
    assert target.read_bytes() == WHOLE
    # A handler that had not noticed the cut yet may have kept its own partial.
    assert set(os.listdir(target.parent)) <= {"f", AREA}
    shutil.rmtree(target.parent / AREA, ignore_errors=True)
    target.unlink()
    source.unlink()


# What is no failure of the network leaves nothing


@WAYS
async def test_a_full_disk_leaves_nothing(
    memory: Net, place: Place, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = ends(place, way)
    source.write_bytes(WHOLE)
    await cut(memory, place, way, 4 * PART_LEN)
    real = os.write

    def write(fd: int, data: Any) -> int:
        if os.fstat(fd).st_size > 5 * PART_LEN:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises((LocalFileError, RemoteCallError), match="disk full"):
        await move(memory, place, way)
    assert os.listdir(target.parent) == []


async def test_a_wrong_part_leaves_nothing(memory: Net, place: Place) -> None:
    async with raw_server(memory) as (peer, client):
        fetching = asyncio.create_task(fetch(client, place))
        await until(lambda: peer.messages)
        asked = peer.messages[0]
        peer.send(answering(asked, download_part(0, WHOLE[:PART_LEN], size=len(WHOLE))))
        peer.send(answering(asked, download_part(1, b"data", **summed(b"other"))))
        with pytest.raises(ChecksumError):
            await fetching
    assert os.listdir(place.local) == []


async def test_a_cancelled_download_leaves_nothing(memory: Net, place: Place) -> None:
    async with raw_server(memory) as (peer, client):
        fetching = asyncio.create_task(fetch(client, place))
        await until(lambda: peer.messages)
        first = download_part(0, WHOLE[:PART_LEN], size=len(WHOLE))
        peer.send(answering(peer.messages[0], first))
        await until(lambda: os.listdir(place.local))
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
    assert os.listdir(place.local) == []


# Places


async def test_an_upload_into_another_file_system_is_copied_over(
    memory: Net, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.served / "sub").mkdir()
    (place.served / "sub" / "f").write_bytes(OLD)
    (place.local / "f").write_bytes(WHOLE)
    real = os.rename

    def rename(old: bytes, new: bytes, **fds: int) -> None:
        if b"part-" not in old:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(old, new, **fds)

    monkeypatch.setattr(os, "rename", rename)
    async with connected(memory, place) as client:
        await upload_as(client, place, "f", "sub/f")
    assert (place.served / "sub" / "f").read_bytes() == WHOLE
    assert os.listdir(place.served) == ["sub"]
    assert os.listdir(place.served / "sub") == ["f"]


@WAYS
async def test_where_there_can_be_no_area_files_come_as_before(
    memory: Net, place: Place, way: str
) -> None:
    source, target = ends(place, way)
    source.write_bytes(WHOLE)
    (target.parent / AREA).write_bytes(b"in the way")
    with (
        plan(memory, way, Plan(cut_at=4 * PART_LEN)),
        pytest.raises(ConnectionLostError),
    ):
        await move(memory, place, way)
    await until(lambda: os.listdir(target.parent) == [AREA])
    assert (await move(memory, place, way)).carried_bytes == 0
    assert target.read_bytes() == WHOLE
    assert (target.parent / AREA).read_bytes() == b"in the way"


@WAYS
async def test_nothing_is_replaced_that_shall_not_be(
    memory: Net, place: Place, way: str
) -> None:
    source, target = ends(place, way)
    source.write_bytes(WHOLE)
    await cut(memory, place, way, 4 * PART_LEN)
    target.write_bytes(OLD)
    with pytest.raises((LocalFileError, RemoteCallError), match="no-clobber"):
        await move(memory, place, way, clobber=False)
    assert target.read_bytes() == OLD
    target.unlink()
    assert (await move(memory, place, way, clobber=False)).size_bytes == len(WHOLE)
    assert target.read_bytes() == WHOLE


async def test_reading_what_is_there_can_be_cancelled(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landing_module, "_STEP_LEN", 1)
    read = 0

    def endless(view: memoryview) -> int:
        nonlocal read
        read += 1
        return 1

    task = asyncio.create_task(landing_module.read_prefix(endless, 1 << 60))
    await until(lambda: read > 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
