"""Uploads, downloads and file echoes between our ends."""

import asyncio
import os
import random

import pytest

from rpc25519_tools.errors import (
    ConnectionLostError,
    DeadlineError,
    FileChangedError,
    LocalFileError,
    NoSuchServiceError,
    RemoteCallError,
)
from rpc25519_tools.files.area import AREA_NAME
from rpc25519_tools.files.download import download_file
from rpc25519_tools.files.echo import (
    ECHO_CALL_SERVICE,
    echo_file,
)
from rpc25519_tools.files.sink import Sink
from rpc25519_tools.files.source import open_local_source
from rpc25519_tools.files.upload import upload_file
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.wire.constants import PART_LEN
from rpc25519_tools.wire.digest import digest_text
from rpc25519_tools.wire.message import CallType
from tests.files.places import (
    Place,
    answering,
    connected,
    download,
    download_part,
    sink_at,
    upload,
)
from tests.helpers import until
from tests.rpc.memory import Plan
from tests.rpc.nets import Net, raw_server

LENGTHS = [0, 1, PART_LEN - 1, PART_LEN, PART_LEN + 1, 3 * PART_LEN + 5]


# Success.


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("compression", ["none", "s2"])
async def test_an_upload_is_stored_whole(
    net: Net, place: Place, length: int, compression: str
) -> None:
    content = random.Random(length).randbytes(length)
    (place.local / "f").write_bytes(content)
    async with connected(net, place, compression=compression) as client:
        summary = await upload(client, place)
    assert (place.served / "f").read_bytes() == content
    assert summary.size_bytes == length
    assert summary.digest == digest_text(content)
    assert summary.verified_by_peer is True
    assert summary.clobber_refused is None
    assert os.listdir(place.served) == ["f"]
    (record,) = place.records
    assert (record.kind, record.name, record.size_bytes) == ("upload", "f", length)
    assert (record.digest, record.failure) == (summary.digest, None)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("compression", ["none", "s2"])
async def test_a_download_is_stored_whole(
    net: Net, place: Place, length: int, compression: str
) -> None:
    content = random.Random(length).randbytes(length)
    (place.served / "f").write_bytes(content)
    async with connected(net, place, compression=compression) as client:
        summary = await download(client, place)
    assert (place.local / "f").read_bytes() == content
    assert summary.size_bytes == length
    assert summary.digest == digest_text(content)
    assert summary.verified_by_peer is True
    assert os.listdir(place.local) == ["f"]
    (record,) = place.records
    assert (record.kind, record.name, record.size_bytes) == ("download", "f", length)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("compression", ["none", "s2"])
async def test_a_file_comes_back_from_an_echo(
    net: Net, place: Place, length: int, compression: str
) -> None:
    content = random.Random(length).randbytes(length)
    (place.local / "f").write_bytes(content)
    async with connected(net, place, compression=compression) as client:
        with open_local_source(str(place.local / "f")) as source:
            summary = await echo_file(client, source, "f", sink_at(place.local / "g"))
    assert (place.local / "g").read_bytes() == content
    assert summary.size_bytes == length
    assert summary.verified_by_peer is True
    assert os.listdir(place.served) == []
    assert [record.kind for record in place.records] == ["echo"]


async def test_an_echo_call_is_answered_with_the_time(
    memory: Net, place: Place
) -> None:
    async with connected(memory, place) as client:
        reply = await client.call(ECHO_CALL_SERVICE, b"hello")
    assert bytes(reply.payload).startswith(b"hello\n with time customEcho sees this: '")


async def test_transfers_share_a_connection(memory: Net, place: Place) -> None:
    contents = {f"f{n}": random.Random(n).randbytes(300_000 * n) for n in range(6)}
    for name, content in contents.items():
        place.local.joinpath(name).write_bytes(content)
        place.served.joinpath(f"down-{name}").write_bytes(content)
    async with connected(memory, place) as client:
        await asyncio.gather(
            *(upload(client, place, name) for name in contents),
            *(download(client, place, f"down-{name}") for name in contents),
        )
    for name, content in contents.items():
        assert (place.served / name).read_bytes() == content
        assert (place.local / f"down-{name}").read_bytes() == content


async def test_progress_counts_up_to_the_whole(memory: Net, place: Place) -> None:
    length = 2 * PART_LEN + 7
    (place.local / "f").write_bytes(bytes(length))
    up: list[tuple[int, int | None]] = []
    down: list[tuple[int, int | None]] = []
    async with connected(memory, place) as client:
        await upload(client, place, progress=lambda *step: up.append(step))
        await download(client, place, progress=lambda *step: down.append(step))
    for steps in (up, down):
        assert steps == sorted(steps)
        assert steps[-1] == (length, length)


async def test_an_existing_file_is_replaced_or_kept_as_wished(
    memory: Net, place: Place
) -> None:
    (place.local / "f").write_bytes(b"new")
    (place.served / "f").write_bytes(b"old")
    async with connected(memory, place) as client:
        with pytest.raises(RemoteCallError, match="exists"):
            await upload(client, place, clobber=False)
        assert (place.served / "f").read_bytes() == b"old"
        await upload(client, place)
        assert (place.served / "f").read_bytes() == b"new"
        (place.local / "g").write_bytes(b"other")
        summary = await upload(client, place, "g", clobber=False)
        assert summary.clobber_refused is True


async def test_a_server_can_refuse_to_replace(memory: Net, place: Place) -> None:
    (place.local / "f").write_bytes(b"new")
    (place.served / "f").write_bytes(b"old")
    async with connected(memory, place, clobber=False) as client:
        with pytest.raises(RemoteCallError, match="exists"):
            await upload(client, place)
    assert (place.served / "f").read_bytes() == b"old"


# Refusals.


@pytest.mark.parametrize("name", ["../f", "/etc/f", "a/../../f", "", ".", "\0"])
async def test_no_upload_leaves_the_served_directory(
    memory: Net, place: Place, name: str
) -> None:
    (place.local / "f").write_bytes(b"x")
    async with connected(memory, place) as client:
        with (
            open_local_source(str(place.local / "f")) as source,
            pytest.raises(RemoteCallError),
        ):
            await upload_file(client, source, name)
    assert place.names() == ["f"]
    assert place.records[0].failure


@pytest.mark.parametrize(
    "name", ["../local/f", "/etc/hostname", "nothing", "", ".", "directory", "\0"]
)
async def test_no_download_comes_from_outside_the_served_directory(
    memory: Net, place: Place, name: str
) -> None:
    (place.local / "f").write_bytes(b"private")
    (place.served / "directory").mkdir()
    opened = []

    def open_sink() -> Sink:
        opened.append(name)
        return sink_at(place.local / "g")()

    async with connected(memory, place) as client:
        with pytest.raises(RemoteCallError):
            await download_file(client, name, open_sink)
    assert not opened


@pytest.mark.parametrize("what", ["uploads", "downloads", "file echo"])
async def test_a_service_that_is_not_offered_is_named(
    memory: Net, place: Place, what: str
) -> None:
    (place.local / "f").write_bytes(b"x")
    async with memory.pair(Registry()) as (_, client):
        with open_local_source(str(place.local / "f")) as source:
            target = sink_at(place.local / "g")
            transfers = {
                "uploads": lambda: upload_file(client, source, "f"),
                "downloads": lambda: download_file(client, "f", target),
                "file echo": lambda: echo_file(client, source, "f", target),
            }
            with pytest.raises(NoSuchServiceError) as caught:
                await transfers[what]()
    assert str(caught.value).startswith(f"the server does not offer {what} (srv has")
    assert place.names() == ["f"]


async def test_a_target_that_cannot_be_opened_fails_a_download(
    memory: Net, place: Place
) -> None:
    (place.served / "f").write_bytes(bytes(3 * PART_LEN))
    (place.local / "f").mkdir()
    async with connected(memory, place) as client:
        with pytest.raises(LocalFileError, match="directory"):
            await download(client, place)
        await client.call(ECHO_CALL_SERVICE, b"the connection goes on")
        await until(lambda: place.records, what="the server to stop")


async def test_a_source_that_changes_fails_an_upload(memory: Net, place: Place) -> None:
    (place.local / "f").write_bytes(bytes(4 * PART_LEN))

    def touch(*step: object) -> None:
        os.utime(place.local / "f", ns=(0, 0))

    async with connected(memory, place) as client:
        with pytest.raises(FileChangedError):
            await upload(client, place, progress=touch)
        await until(lambda: place.records, what="the server to stop")
    assert os.listdir(place.served) == []


async def test_a_source_that_changes_fails_a_download(
    memory: Net, place: Place
) -> None:
    # Much more than is under way at a time: the server has not yet read the end.
    (place.served / "f").write_bytes(bytes(24 * PART_LEN))

    def touch(*step: object) -> None:
        os.utime(place.served / "f", ns=(0, 0))

    async with connected(memory, place, compression="none") as client:
        with pytest.raises(RemoteCallError, match="changed"):
            await download(client, place, progress=touch)
    assert os.listdir(place.local) == []


# Silence.


@pytest.mark.parametrize("parts", [0, 1])
async def test_a_download_from_a_silent_server_is_given_up(
    memory: Net, place: Place, parts: int
) -> None:
    limits = {"stall_timeout_s": 0.1, "call_timeout_s": 0.1}
    async with raw_server(memory, **limits) as (peer, client):
        downloading = asyncio.create_task(download(client, place))
        await until(lambda: peer.messages)
        for number in range(parts):
            part = download_part(number, b"x", size=100)
            peer.send(answering(peer.messages[0], part))
        with pytest.raises(DeadlineError, match=r"the server sent nothing for 0\.1 s"):
            await downloading
        await until(lambda: len(peer.messages) == 2)
        assert peer.messages[1].header.call_type == CallType.CANCEL_PREVIOUS
    assert os.listdir(place.local) == []


async def test_an_upload_to_a_server_that_takes_nothing_is_given_up(
    memory: Net, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpc25519_tools.rpc.driver.CLOSE_TIMEOUT_S", 0.05)
    (place.local / "f").write_bytes(bytes(8 * PART_LEN))
    assert memory.memory is not None
    memory.memory.up = Plan(stall_at=2 * PART_LEN)
    async with connected(
        memory, place, stall_timeout_s=0.5, compression="none"
    ) as client:
        with pytest.raises(DeadlineError, match=r"the server took nothing for 0\.5 s"):
            await upload(client, place)
    await until(lambda: place.records)
    assert os.listdir(place.served) == [AREA_NAME.decode()]


async def test_an_upload_without_an_answer_is_given_up(
    memory: Net, place: Place
) -> None:
    (place.local / "f").write_bytes(b"x")
    async with raw_server(memory, reply_timeout_s=0.05) as (_, client):
        with pytest.raises(DeadlineError, match="the server did not answer"):
            await upload(client, place)


# Cancellation.


@pytest.mark.parametrize("after", [1, 2, 3, 5, 8, 13, 21])
@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_cancelled_transfer_leaves_nothing(
    memory: Net, place: Place, way: str, after: int
) -> None:
    """Cancel after so many turns of the loop, wherever the transfer then is."""
    source = place.local if way == "up" else place.served
    target = place.served if way == "up" else place.local
    (source / "f").write_bytes(bytes(6 * PART_LEN))
    async with connected(memory, place) as client:
        transfer = upload(client, place) if way == "up" else download(client, place)
        task = asyncio.create_task(transfer)
        for _ in range(after):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await client.call(ECHO_CALL_SERVICE, b"the connection goes on")
        await until(lambda: not os.listdir(target), what="the partial file to go")


@pytest.mark.parametrize("way", ["up", "down", "echo"])
@pytest.mark.parametrize("end", ["client", "server"])
async def test_a_lost_connection_leaves_no_wrong_file(
    memory: Net, place: Place, way: str, end: str
) -> None:
    source = place.served if way == "down" else place.local
    # More than fits into all buffers on the way when the cut comes.
    (source / "f").write_bytes(random.Random(1).randbytes(24 * PART_LEN))
    assert memory.memory is not None

    network = memory.memory

    def cut(moved: int, _: int | None) -> None:
        if moved >= 3 * PART_LEN:
            ends = network.client_ends if end == "client" else network.server_ends
            ends[0].abort()

    async with connected(memory, place) as client:
        with open_local_source(str(source / "f")) as opened:
            target = sink_at(place.local / "g")
            transfers = {
                "up": lambda: upload_file(client, opened, "f", progress=cut),
                "down": lambda: download(client, place, progress=cut),
                "echo": lambda: echo_file(client, opened, "f", target, progress=cut),
            }
            with pytest.raises(ConnectionLostError):
                await transfers[way]()
        # A server keeps what came for another attempt, if anything did; elsewhere it
        # is no landing.
        left = [["f"], [AREA_NAME.decode(), "f"]] if way == "up" else [["f"]]
        await until(lambda: place.records, what="the end")
        await until(lambda: place.names() in left, what="partial files to go")
    assert place.names() in left
