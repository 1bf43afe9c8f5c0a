"""Transfers with peers that break the rules: nothing wrong is stored."""

import asyncio
import os

import pytest

from rpc25519_tools.errors import (
    ChecksumError,
    ConnectionLostError,
    IncompleteTransferError,
    RemoteCallError,
    Rpc25519Error,
)
from rpc25519_tools.files.echo import (
    echo_file,
)
from rpc25519_tools.files.parts import (
    ARG_CLIENT_TOTAL_SUM,
    ARG_SERVER_TOTAL_SUM,
    UPLOAD_SERVICE,
)
from rpc25519_tools.files.source import open_local_source
from rpc25519_tools.wire.digest import digest_text
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.files.places import (
    Place,
    answering,
    download,
    download_part,
    reply,
    sink_at,
    summed,
)
from tests.helpers import until
from tests.rpc.nets import Net, Seen, raw_client, raw_server


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
