"""Peers that lie about what is kept of a file, and clients that share a name."""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rpc25519_tools.errors import IncompleteTransferError, RemoteCallError
from rpc25519_tools.files.kept_uploads import (
    ARG_FITS,
    ARG_START_OVER,
    ARG_UPLOAD_LEN,
    KEPT_UPLOADS_SERVICE,
    new_transfer_id,
)
from rpc25519_tools.files.parts import (
    ARG_KEPT_LEN,
    ARG_KEPT_SUM,
    ARG_SERVER_TOTAL_SUM,
    ARG_START,
    ARG_UPLOAD_NAME,
    UPLOAD_SERVICE,
)
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.wire.constants import PART_LEN
from rpc25519_tools.wire.digest import digest_text
from tests.files.carrying import (
    AREA,
    OLD,
    WHOLE,
    area_len,
    cut,
    fetch,
    move,
    plan,
    upload_as,
)
from tests.files.places import Place, answering, connected, download_part, reply, upload
from tests.helpers import until
from tests.rpc.memory import Plan
from tests.rpc.nets import Net, raw_server

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
                    upload(one, place), upload_as(two, place, "g", "f")
                )
    assert {s.size_bytes for s in summaries} == {len(WHOLE), len(other)}
    assert (place.served / "f").read_bytes() in (WHOLE, other)
    assert os.listdir(place.served) == ["f"]


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
        await until(lambda: area_len(place.served) >= 3 * PART_LEN)
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
