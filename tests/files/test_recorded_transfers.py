"""Transfers of recorded Go peers, played back to our ends."""

import asyncio
import os
from collections.abc import Mapping

import pytest

from rpc25519_tools.errors import (
    RemoteCallError,
)
from rpc25519_tools.files.download import download_file
from rpc25519_tools.files.echo import (
    echo_file,
)
from rpc25519_tools.files.source import open_local_source
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.files.places import Place, answering, download, sink_at
from tests.helpers import until
from tests.rpc.flows import flow_names, recorded, stream_of
from tests.rpc.memory import RawPeer
from tests.rpc.nets import Net, raw_client, raw_server

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
