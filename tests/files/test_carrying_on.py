"""Downloads and uploads that carry on, and peers that lie about what there is."""

import asyncio
import contextlib
import errno
import os
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import (
    ChecksumError,
    ConnectionLostError,
    IncompleteTransferError,
    LocalFileError,
    RemoteCallError,
)
from rpc25519_tools.files import landing as landing_module
from rpc25519_tools.files.area import AREA_NAME
from rpc25519_tools.files.download import download_file
from rpc25519_tools.files.kept_uploads import (
    ARG_FITS,
    ARG_START_OVER,
    ARG_UPLOAD_LEN,
    KEPT_UPLOADS_SERVICE,
    new_transfer_id,
)
from rpc25519_tools.files.landing import local_landing
from rpc25519_tools.files.parts import (
    ARG_KEPT_LEN,
    ARG_KEPT_SUM,
    ARG_SERVER_TOTAL_SUM,
    ARG_START,
    ARG_UPLOAD_NAME,
    UPLOAD_SERVICE,
    TransferSummary,
)
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.wire.constants import PART_LEN
from rpc25519_tools.wire.digest import digest_text
from tests.files.places import (
    Place,
    answering,
    connected,
    download_part,
    reply,
    summed,
    upload,
)
from tests.helpers import until
from tests.rpc.memory import Plan
from tests.rpc.nets import Net, raw_server

AREA = AREA_NAME.decode()
WHOLE = random.Random(7).randbytes(9 * PART_LEN + 77)
OLD = b"what was there before"


async def fetch(
    client: Client, place: Place, *, clobber: bool = True
) -> TransferSummary:
    return await download_file(
        client, "f", local_landing(str(place.local / "f"), clobber=clobber)
    )


@contextlib.contextmanager
def plan(net: Net, way: str, what: Plan) -> Iterator[None]:
    """Let something happen to the next connection's bytes."""
    assert net.memory is not None
    setattr(net.memory, way, what)
    yield
    setattr(net.memory, way, Plan())


async def move(net: Net, place: Place, way: str, **options: Any) -> TransferSummary:
    async with connected(net, place, compression="none") as client:
        if way == "up":
            return await upload(client, place, **options)
        return await fetch(client, place, **options)


async def cut(net: Net, place: Place, way: str, at: int) -> None:
    """Let a transfer fail after so many bytes, when what came is stored."""
    seen = len(place.records)
    kept = _area_len(ends(place, way)[1].parent)
    kept += (at // PART_LEN - (2 if kept and way == "up" else 1)) * PART_LEN
    async with cuttable(net, place, way, at) as client:
        step = upload(client, place) if way == "up" else fetch(client, place)
        moving = asyncio.create_task(step)
        await until(lambda: _area_len(ends(place, way)[1].parent) >= kept)
        client.transport.abort()
        with pytest.raises(ConnectionLostError):
            await moving
    await until(lambda: len(place.records) > seen)


@contextlib.asynccontextmanager
async def cuttable(net: Net, place: Place, way: str, at: int) -> AsyncIterator[Client]:
    """Connect; nothing more comes through after so many bytes."""
    with plan(net, way, Plan(stall_at=at)):
        async with connected(net, place, compression="none") as client:
            yield client


def ends(place: Place, way: str) -> tuple[Path, Path]:
    if way == "up":
        return place.local / "f", place.served / "f"
    return place.served / "f", place.local / "f"


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


# Servers that lie


@pytest.mark.parametrize(
    "start",
    ["1", str(PART_LEN), str(len(WHOLE)), str(10**18), "-1", "x", ""],
)
@pytest.mark.parametrize("kept", [True, False])
async def test_a_server_that_goes_on_elsewhere(
    memory: Net, place: Place, start: str, kept: bool
) -> None:
    (place.local / "f").write_bytes(OLD)
    if kept:
        (place.served / "f").write_bytes(WHOLE)
        await cut(memory, place, "down", 4 * PART_LEN)
    async with raw_server(memory) as (peer, client):
        fetching = asyncio.create_task(fetch(client, place))
        await until(lambda: peer.messages)
        args = peer.messages[0].header.args
        assert (ARG_KEPT_LEN in args) == (ARG_KEPT_SUM in args) == kept
        first = download_part(0, b"data", size=len(WHOLE), **{ARG_START: start})
        peer.send(answering(peer.messages[0], first))
        with pytest.raises(IncompleteTransferError):
            await fetching
    assert (place.local / "f").read_bytes() == OLD


async def test_a_server_that_says_no_sum_of_what_it_goes_on_with(
    memory: Net, place: Place
) -> None:
    (place.served / "f").write_bytes(WHOLE)
    await cut(memory, place, "down", 4 * PART_LEN)
    async with raw_server(memory) as (peer, client):
        fetching = asyncio.create_task(fetch(client, place))
        await until(lambda: peer.messages)
        asked = peer.messages[0]
        kept = int(asked.header.args[ARG_KEPT_LEN])
        first = download_part(0, b"data", size=kept + 4, **{ARG_START: str(kept)})
        peer.send(answering(asked, first))
        peer.send(answering(asked, reply()))
        with pytest.raises(IncompleteTransferError, match="does not report its sum"):
            await fetching
    assert os.listdir(place.local) == []


async def test_a_server_that_ignores_what_we_have(memory: Net, place: Place) -> None:
    (place.served / "f").write_bytes(WHOLE)
    await cut(memory, place, "down", 4 * PART_LEN)
    async with raw_server(memory) as (peer, client):
        fetching = asyncio.create_task(fetch(client, place))
        await until(lambda: peer.messages)
        asked = peer.messages[0]
        peer.send(answering(asked, download_part(0, b"data")))
        peer.send(answering(asked, reply()))
        summary = await fetching
    assert (summary.carried_bytes, summary.verified_by_peer) == (0, None)
    assert (place.local / "f").read_bytes() == b"data"
    assert os.listdir(place.local) == ["f"]


@pytest.mark.parametrize(
    "answer",
    [
        reply(error="no such thing"),
        reply(),
        reply(**{ARG_KEPT_LEN: "x"}),
        reply(**{ARG_KEPT_LEN: str(10**18)}),
        reply(**{ARG_KEPT_LEN: "1"}),
    ],
)
async def test_a_server_that_answers_the_question_with_nonsense(
    memory: Net, place: Place, answer: Any
) -> None:
    (place.local / "f").write_bytes(WHOLE)
    async with raw_server(memory) as (peer, client):
        uploading = asyncio.create_task(upload(client, place))
        await until(lambda: len(peer.messages) >= 2)
        asked = {m.header.service_name: m for m in peer.messages}
        peer.send(answering(asked[KEPT_UPLOADS_SERVICE], answer))
        await until(lambda: len(peer.messages) == 12)
        total = {ARG_SERVER_TOTAL_SUM: digest_text(WHOLE)}
        peer.send(answering(asked[UPLOAD_SERVICE], reply(**total)))
        assert (await uploading).carried_bytes == 0


# Clients that lie, and others


async def ask(client: Client, name: str = "f", **args: str) -> dict[str, str]:
    answer = await client.call(
        KEPT_UPLOADS_SERVICE, args={ARG_UPLOAD_NAME: name, **args}
    )
    assert bytes(answer.payload) == b""
    return dict(answer.header.args)


async def kept_bytes(client: Client) -> int:
    return int((await ask(client))[ARG_KEPT_LEN])


async def test_others_learn_a_length_and_whether_their_sum_fits(
    memory: Net, place: Place
) -> None:
    (place.local / "f").write_bytes(WHOLE)
    await cut(memory, place, "up", 5 * PART_LEN)
    async with connected(memory, place) as client:
        size = await kept_bytes(client)
        assert await ask(client) == {ARG_KEPT_LEN: str(size)}
        claims = {
            (size, digest_text(WHOLE[:size])): "1",
            (size, digest_text(b"something else")): "0",
            (size, "nonsense"): "0",
            # Nobody may find out the content bit by bit.
            (size - 1, digest_text(WHOLE[: size - 1])): "0",
            (1, digest_text(WHOLE[:1])): "0",
            (0, digest_text(b"")): "0",
            (size + 1, digest_text(WHOLE[: size + 1])): "0",
        }
        for (length, claim), fits in claims.items():
            args = {ARG_KEPT_LEN: str(length), ARG_KEPT_SUM: claim}
            assert await ask(client, **args) == {ARG_FITS: fits}
        assert await kept_bytes(client) == size


@pytest.mark.parametrize("name", ["", "/f", "../f", AREA, f"{AREA}/x", "a//b", "."])
async def test_questions_about_names_that_are_not_to_be_written(
    memory: Net, place: Place, name: str
) -> None:
    async with connected(memory, place) as client:
        with pytest.raises(RemoteCallError, match="refused"):
            await ask(client, name)


async def test_questions_need_the_right_to_write(memory: Net, place: Place) -> None:
    class NoWriting:
        def may(self, peer: object, right: str, target: str) -> bool:
            asked.append((right, target))
            return False

    asked: list[tuple[str, str]] = []
    with place.services() as registry:
        async with (
            memory.server(registry, access=NoWriting()) as server,
            await memory.client(server) as client,
        ):
            with pytest.raises(RemoteCallError):
                await ask(client)
    assert asked == [("write", "/f")]


@pytest.mark.parametrize(
    ("claim", "text"),
    [
        ({ARG_KEPT_LEN: "x"}, "announces no file size"),
        ({ARG_KEPT_LEN: str(10**18)}, "not here any more"),
        ({ARG_KEPT_LEN: "0"}, "not here any more"),
        ({ARG_KEPT_LEN: "5"}, "not here any more"),
        ({ARG_UPLOAD_LEN: "-5"}, "announces no file size"),
    ],
)
@pytest.mark.parametrize("kept", [True, False])
async def test_uploads_that_claim_what_is_not_there(
    memory: Net, place: Place, claim: dict[str, str], text: str, kept: bool
) -> None:
    (place.local / "f").write_bytes(WHOLE)
    (place.served / "f").write_bytes(OLD)
    if kept:
        await cut(memory, place, "up", 4 * PART_LEN)
    async with connected(memory, place) as client:
        args = {
            ARG_UPLOAD_NAME: "f",
            ARG_UPLOAD_LEN: str(len(WHOLE)),
            ARG_KEPT_SUM: digest_text(WHOLE[:5]),
            **claim,
        }
        stream = await client.stream(
            CallKind.UPLOAD, UPLOAD_SERVICE, b"data", args=args
        )
        async with stream:
            with pytest.raises(RemoteCallError, match=text) as caught:
                await stream.reply()
        assert (ARG_START_OVER in caught.value.reply_args) == (text[:3] == "not")
    assert (place.served / "f").read_bytes() == OLD


async def test_a_beginning_that_is_gone_in_the_last_moment_is_sent_again(
    memory: Net, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.local / "f").write_bytes(WHOLE)
    await cut(memory, place, "up", 4 * PART_LEN)
    monkeypatch.setattr("rpc25519_tools.files.kept_uploads.KeptUploads.take", _nothing)
    assert (await move(memory, place, "up")).carried_bytes == 0
    assert (place.served / "f").read_bytes() == WHOLE


async def _nothing(*_args: object) -> None:
    return None


async def test_two_clients_of_one_name(memory: Net, place: Place) -> None:
    other = random.Random(8).randbytes(5 * PART_LEN)
    (place.local / "f").write_bytes(WHOLE)
    (place.local / "g").write_bytes(other)
    await cut(memory, place, "up", 4 * PART_LEN)
    with place.services() as registry:
        async with memory.server(registry) as server:
            one, two = await memory.client(server), await memory.client(server)
            async with one, two:
                summaries = await asyncio.gather(
                    upload(one, place), _upload_as(two, place, "g", "f")
                )
    assert {s.size_bytes for s in summaries} == {len(WHOLE), len(other)}
    assert (place.served / "f").read_bytes() in (WHOLE, other)
    assert os.listdir(place.served) == ["f"]


async def _upload_as(
    client: Client, place: Place, local: str, name: str, **options: Any
) -> TransferSummary:
    from rpc25519_tools.files.source import open_local_source
    from rpc25519_tools.files.upload import upload_file

    with open_local_source(str(place.local / local)) as source:
        return await upload_file(client, source, name, **options)


@contextlib.asynccontextmanager
async def served(net: Net, place: Place) -> AsyncIterator[Server]:
    with place.services() as registry:
        async with net.server(registry, compression="none") as server:
            yield server


async def test_a_client_that_comes_back_before_its_old_connection_is_gone(
    memory: Net, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpc25519_tools.rpc.driver.CLOSE_TIMEOUT_S", 0.05)
    (place.local / "f").write_bytes(WHOLE)
    mine = new_transfer_id()
    async with served(memory, place) as server:
        with plan(memory, "up", Plan(stall_at=4 * PART_LEN)):
            stalled = await memory.client(server, compression="none")
        first = asyncio.create_task(upload(stalled, place, transfer_id=mine))
        await until(lambda: _area_len(place.served) >= 3 * PART_LEN)
        again = await memory.client(server, compression="none")
        async with again:
            # Another transfer of that name leaves it alone.
            strange = await upload(again, place, transfer_id=new_transfer_id())
            assert strange.carried_bytes == 0
            assert not place.records[:-1]
            summary = await upload(again, place, transfer_id=mine, is_repeated=True)
        assert summary.carried_bytes >= 3 * PART_LEN
        with pytest.raises(RemoteCallError, match="cancelled"):
            await first
        stalled.transport.abort()
        await stalled.aclose()
    assert (place.served / "f").read_bytes() == WHOLE
    assert os.listdir(place.served) == ["f"]
    failures = [one.failure for one in place.records if one.failure]
    assert failures == ["its client has come back on another connection"]


def _area_len(directory: Path) -> int:
    area = directory / AREA
    return sum(one.stat().st_size for one in area.iterdir()) if area.exists() else 0


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
        await _upload_as(client, place, "f", "sub/f")
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
