"""Uploads, downloads and file echoes between our ends, and with recorded Go peers."""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec.structs import replace

from rpc25519_tools.errors import (
    ChecksumError,
    ConnectionLostError,
    DeadlineError,
    FileChangedError,
    IncompleteTransferError,
    LocalFileError,
    NoSuchServiceError,
    RemoteCallError,
    Rpc25519Error,
)
from rpc25519_tools.files.atomic import open_local_target
from rpc25519_tools.files.download import DownloadService, download_file
from rpc25519_tools.files.echo import (
    ECHO_CALL_SERVICE,
    EchoFileService,
    echo_call,
    echo_file,
)
from rpc25519_tools.files.jail import Root
from rpc25519_tools.files.parts import (
    ARG_CLIENT_TOTAL_SUM,
    ARG_PART_SUM,
    ARG_SERVER_TOTAL_SUM,
    DOWNLOAD_SERVICE,
    ECHO_FILE_SERVICE,
    UPLOAD_SERVICE,
    TransferSummary,
)
from rpc25519_tools.files.record import TransferRecord
from rpc25519_tools.files.sink import Sink
from rpc25519_tools.files.source import open_local_source
from rpc25519_tools.files.upload import UploadService, upload_file
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.wire.constants import PART_LEN
from rpc25519_tools.wire.digest import digest_text
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import until
from tests.rpc.flows import flow_names, recorded, stream_of
from tests.rpc.memory import MemoryNetwork, Plan, RawPeer
from tests.rpc.nets import Net, Seen, raw_client, raw_server

LENGTHS = [0, 1, PART_LEN - 1, PART_LEN, PART_LEN + 1, 3 * PART_LEN + 5]


@pytest.fixture
def memory(certs: Path, monkeypatch: pytest.MonkeyPatch) -> Net:
    network = MemoryNetwork()
    network.install(monkeypatch)
    return Net("tcp", certs, network)


@pytest.fixture(params=["memory", "tls"])
def net(request: pytest.FixtureRequest, certs: Path) -> Net:
    if request.param == "memory":
        found: Net = request.getfixturevalue("memory")
        return found
    return Net("tls", certs)


@dataclass
class Place:
    """Two directories, and what the services have noted."""

    served: Path
    local: Path
    records: list[TransferRecord] = field(default_factory=list)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.served) + os.listdir(self.local))

    @contextlib.contextmanager
    def services(self, *, clobber: bool = True) -> Iterator[Registry]:
        with Root(self.served) as root:
            registry = Registry()
            log = self.records.append
            registry.add_upload(
                UPLOAD_SERVICE, UploadService(root, clobber=clobber, log=log)
            )
            registry.add_download(DOWNLOAD_SERVICE, DownloadService(root, log=log))
            registry.add_bistream(ECHO_FILE_SERVICE, EchoFileService(log=log))
            registry.add_call(ECHO_CALL_SERVICE, echo_call)
            yield registry


@pytest.fixture
def place(tmp_path: Path, no_leaked_fds: None) -> Place:
    place = Place(tmp_path / "served", tmp_path / "local")
    place.served.mkdir()
    place.local.mkdir()
    return place


@contextlib.asynccontextmanager
async def connected(
    net: Net, place: Place, *, clobber: bool = True, **settings: object
) -> AsyncIterator[Client]:
    with place.services(clobber=clobber) as registry:
        async with net.pair(registry, **settings) as (_, client):
            yield client


async def upload(
    client: Client, place: Place, name: str = "f", **options: object
) -> TransferSummary:
    with open_local_source(str(place.local / name)) as source:
        return await upload_file(client, source, name, **options)  # type: ignore[arg-type]


def sink_at(path: Path, *, clobber: bool = True) -> Callable[[], Sink]:
    return lambda: open_local_target(str(path), clobber=clobber)


async def download(
    client: Client, place: Place, name: str = "f", **options: object
) -> TransferSummary:
    target = sink_at(place.local / name)
    return await download_file(client, name, target, **options)  # type: ignore[arg-type]


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


# A client that breaks the rules.


def upload_part(number: int, payload: bytes, **args: str) -> Message:
    """Return one part of an upload; it is the last one if it has a total sum."""
    call_type = CallType.UPLOAD_BEGIN
    if number:
        call_type = CallType.UPLOAD_MORE
    else:
        args["readFile"] = "f"
    if ARG_CLIENT_TOTAL_SUM in args:
        call_type = CallType.UPLOAD_END
    return Message(
        header=Header(
            call_type=call_type,
            call_id="id",
            service_name=UPLOAD_SERVICE,
            stream_part=number,
            args=args,
        ),
        payload=payload,
    )


def summed(payload: bytes) -> dict[str, str]:
    return {ARG_PART_SUM: digest_text(payload)}


BAD_UPLOADS: dict[str, tuple[list[Message], str]] = {
    "wrong sum": (
        [upload_part(0, b"x", **summed(b"y"))],
        "part 0 does not match its blake3 sum",
    ),
    "missing sum": (
        [upload_part(0, b"x"), upload_part(1, b"y")],
        "part 1 carries no blake3 sum",
    ),
    "missing part": (
        [upload_part(0, b"x"), upload_part(2, b"y", **summed(b"y"))],
        "part 2 came where part 1 was due",
    ),
    "wrong total": (
        [
            upload_part(0, b"x"),
            upload_part(
                1, b"", **summed(b""), **{ARG_CLIENT_TOTAL_SUM: digest_text(b"z")}
            ),
        ],
        "the file does not match",
    ),
    "no name": (
        [
            Message(
                header=Header(
                    call_type=CallType.UPLOAD_BEGIN,
                    call_id="id",
                    service_name=UPLOAD_SERVICE,
                )
            )
        ],
        "",
    ),
}


@pytest.mark.parametrize("case", BAD_UPLOADS)
async def test_a_bad_upload_is_refused_and_leaves_nothing(
    memory: Net, place: Place, case: str
) -> None:
    messages, text = BAD_UPLOADS[case]
    (place.served / "f").write_bytes(b"old")
    with place.services() as registry:
        async with memory.server(registry), raw_client(memory) as peer:
            peer.send(*messages)
            await until(lambda: peer.messages, what="the refusal")
            assert peer.messages[0].error
            assert text in peer.messages[0].error
            assert place.records[0].failure == peer.messages[0].error
    assert os.listdir(place.served) == ["f"]
    assert (place.served / "f").read_bytes() == b"old"


async def test_an_upload_cut_off_leaves_nothing(memory: Net, place: Place) -> None:
    seen = Seen()
    with place.services() as registry:
        async with memory.server(registry, seen):
            async with raw_client(memory) as peer:
                peer.send(upload_part(0, b"x" * 100_000))
                await until(lambda: os.listdir(place.served), what="a partial file")
            await until(lambda: place.records, what="the server to notice")
    assert os.listdir(place.served) == []
    assert place.records[0].failure


# A server that breaks the rules.


def download_part(
    number: int, payload: bytes, *, size: int | str | None = None, **args: str
) -> Message:
    if number == 0 and size is None:
        size = len(payload)
    if size is not None:
        args["pathsize"] = str(size)
    return Message(
        header=Header(
            call_type=CallType.DOWNLOAD_MORE if number else CallType.DOWNLOAD_BEGIN,
            stream_part=number,
            args=args,
        ),
        payload=payload,
    )


def reply(error: str = "", **args: str) -> Message:
    header = Header(call_type=CallType.RPC_REPLY, args=args)
    return Message(header=header, error=error)


def answering(opening: Message, answer: Message) -> Message:
    """Make an answer belong to a call."""
    header = replace(
        answer.header, call_id=opening.header.call_id, seqno=opening.header.seqno
    )
    return replace(answer, header=header)


BAD_DOWNLOADS: dict[str, tuple[list[Message], type[Rpc25519Error], str]] = {
    "an error": ([reply("no such file")], RemoteCallError, "^no such file$"),
    "an error after parts": (
        [download_part(0, b"x", size=9), reply("disk error")],
        RemoteCallError,
        "^disk error$",
    ),
    "no part": ([reply()], IncompleteTransferError, "sent no part"),
    "no size": ([download_part(0, b"x", size="")], IncompleteTransferError, "pathsize"),
    "a silly size": (
        [download_part(0, b"x", size="-1")],
        IncompleteTransferError,
        "pathsize",
    ),
    "wrong sum": (
        [download_part(0, b"x", **summed(b"y"))],
        ChecksumError,
        "part 0 does not match",
    ),
    "missing sum": (
        [download_part(0, b"x", size=2), download_part(1, b"y")],
        ChecksumError,
        "part 1 carries no",
    ),
    "too much": (
        [download_part(0, b"xyz", size=2)],
        IncompleteTransferError,
        "sends more than the 2 bytes",
    ),
    "too little": (
        [download_part(0, b"xyz", size=4), reply()],
        IncompleteTransferError,
        "sent 3 bytes of a file of 4",
    ),
    "a missing part": (
        [download_part(0, b"x", size=9), download_part(2, b"z")],
        IncompleteTransferError,
        "part 2 came where part 1 was due",
    ),
    "wrong total": (
        [download_part(0, b"x"), reply(**{ARG_SERVER_TOTAL_SUM: digest_text(b"y")})],
        ChecksumError,
        "does not match its blake3 sum at the other end",
    ),
}


@pytest.mark.parametrize("case", BAD_DOWNLOADS)
async def test_a_bad_download_is_refused_and_leaves_nothing(
    memory: Net, place: Place, case: str
) -> None:
    answers, error, text = BAD_DOWNLOADS[case]
    (place.local / "f").write_bytes(b"old")
    async with raw_server(memory) as (peer, client):
        downloading = asyncio.create_task(download(client, place))
        await until(lambda: peer.messages)
        peer.send(*(answering(peer.messages[0], one) for one in answers))
        with pytest.raises(error, match=text):
            await downloading
    assert os.listdir(place.local) == ["f"]
    assert (place.local / "f").read_bytes() == b"old"


async def test_a_download_cut_off_leaves_nothing(memory: Net, place: Place) -> None:
    async with raw_server(memory) as (peer, client):
        downloading = asyncio.create_task(download(client, place))
        await until(lambda: peer.messages)
        first = download_part(0, b"x", size=100)
        peer.send(answering(peer.messages[0], first))
        await until(lambda: os.listdir(place.local), what="a partial file")
        peer.transport.close()
        with pytest.raises(ConnectionLostError):
            await downloading
    assert os.listdir(place.local) == []


async def test_an_echo_that_returns_something_else_is_refused(
    memory: Net, place: Place
) -> None:
    (place.local / "f").write_bytes(b"what was sent")
    async with raw_server(memory) as (peer, client):
        with open_local_source(str(place.local / "f")) as source:
            echoing = asyncio.create_task(
                echo_file(client, source, "f", sink_at(place.local / "g"))
            )
            await until(lambda: len(peer.messages) >= 2)
            for one in (download_part(0, b"something else"), reply()):
                peer.send(answering(peer.messages[0], one))
            with pytest.raises(ChecksumError, match="something else than was sent"):
                await echoing
    assert place.names() == ["f"]


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
    assert os.listdir(place.served) == []


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
async def test_a_lost_connection_leaves_nothing(
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
        await until(lambda: place.names() == ["f"], what="partial files to go")
    assert place.names() == ["f"]


# Recorded Go peers.

RECORDED_UPLOADS = [
    "upload-text-s2",
    "upload-rand-none",
    "upload-exact-s2",
    "upload-empty-s2",
]


@pytest.mark.parametrize("name", RECORDED_UPLOADS)
async def test_the_upload_of_a_go_client_is_stored(
    memory: Net, place: Place, name: str
) -> None:
    sent = [one.message for one in recorded(name, "c2s")]
    content = b"".join(bytes(one.payload) for one in sent)
    theirs = recorded(name, "s2c")[0].message
    with place.services() as registry:
        async with memory.server(registry), raw_client(memory) as peer:
            peer.send_bytes(stream_of(name, "c2s"))
            await until(lambda: peer.messages)
            ours = peer.messages[0]
    (stored,) = os.listdir(place.served)
    assert (place.served / stored).read_bytes() == content
    assert stored == sent[0].header.args["readFile"]
    assert not ours.error
    assert ours.header.args == theirs.header.args
    assert ours.header.call_id == theirs.header.call_id
    assert ours.header.seqno == theirs.header.seqno
    assert f"bytesWrit={len(content)};".encode() in bytes(ours.payload)


RECORDED_DOWNLOADS = [
    "download-text-s2",
    "download-rand-none",
    "download-small-s2",
    "download-empty",
]


@pytest.mark.parametrize("name", RECORDED_DOWNLOADS)
async def test_the_download_from_a_go_server_is_stored(
    memory: Net, place: Place, name: str
) -> None:
    answers = [one.message for one in recorded(name, "s2c")]
    path = recorded(name, "c2s")[0].message.header.args["downloadRequestedPath"]
    async with raw_server(memory) as (peer, client):
        target = sink_at(place.local / "f")
        downloading = asyncio.create_task(download_file(client, path, target))
        await until(lambda: peer.messages)
        assert dict(peer.messages[0].header.args) == {"downloadRequestedPath": path}
        peer.send(*(answering(peer.messages[0], one) for one in answers))
        summary = await downloading
    content = b"".join(bytes(one.payload) for one in answers)
    assert (place.local / "f").read_bytes() == content
    assert summary.verified_by_peer is None  # a Go server reports no total


async def test_the_refusal_of_a_go_server_is_told(memory: Net, place: Place) -> None:
    (answer,) = (one.message for one in recorded("download-missing", "s2c"))
    async with raw_server(memory) as (peer, client):
        downloading = asyncio.create_task(download(client, place))
        await until(lambda: peer.messages)
        peer.send(answering(peer.messages[0], answer))
        with pytest.raises(RemoteCallError, match="no such path"):
            await downloading
    assert place.names() == []


async def test_the_echo_of_a_go_server_is_stored(memory: Net, place: Place) -> None:
    sent = [one.message for one in recorded("bistream-echo", "c2s")]
    content = b"".join(bytes(one.payload) for one in sent)
    (place.local / "f").write_bytes(content)
    async with raw_server(memory) as (peer, client):
        with open_local_source(str(place.local / "f")) as source:
            echoing = asyncio.create_task(
                echo_file(client, source, "f", sink_at(place.local / "g"))
            )
            await until(lambda: _types(peer)[-1:] == [CallType.UPLOAD_END])
            for one in recorded("bistream-echo", "s2c"):
                peer.send(answering(peer.messages[0], one.message))
            await echoing
    assert (place.local / "g").read_bytes() == content


async def test_a_go_client_gets_its_echo(memory: Net, place: Place) -> None:
    theirs = [one.message for one in recorded("bistream-echo", "s2c")]
    with place.services() as registry:
        async with memory.server(registry), raw_client(memory) as peer:
            peer.send_bytes(stream_of("bistream-echo", "c2s"))
            await until(lambda: peer.messages)
            # The recorded client ends with a cancel, which may come before the end.
            await until(lambda: _is_reply(peer.messages[-1]))
            ours = peer.messages
    for one, other in zip(ours, theirs, strict=False):
        if one.header.call_type == CallType.RPC_REPLY:
            break
        assert one.payload == other.payload
        assert _essence(one.header) == _essence(other.header)


def _types(peer: RawPeer) -> list[int]:
    return [message.header.call_type for message in peer.messages]


def _is_reply(message: Message) -> bool:
    return message.header.call_type == CallType.RPC_REPLY


def _essence(header: Header) -> tuple[int, int, str, Mapping[str, str]]:
    return header.call_type, header.stream_part, header.call_id, dict(header.args)


def test_recorded_transfers_are_all_replayed() -> None:
    kinds = ("upload-", "download-", "bistream-")
    transfers = {name for name in flow_names() if name.startswith(kinds)}
    assert transfers == {
        *RECORDED_UPLOADS,
        *RECORDED_DOWNLOADS,
        "download-missing",
        "bistream-echo",
    }
