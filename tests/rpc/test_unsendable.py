"""What cannot be sent, and what can though it is no plain bytes."""

import array
import asyncio
from typing import Any

import pytest

from rpc25519_tools.errors import (
    LocalProtocolError,
    NoSuchServiceError,
    RemoteCallError,
)
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.streams import OutgoingStream
from rpc25519_tools.wire.constants import MAX_PAYLOAD_LEN
from tests.rpc.nets import Net
from tests.rpc.offers import (
    Waiting,
    parts_of,
    services,
)


def odd_services() -> Registry:
    registry = services()
    waiting = Waiting()
    registry.add_call("wait", waiting)

    @registry.one_way("go")
    async def go(context: CallContext) -> None:
        waiting.go.set()

    @registry.call("wide")
    async def wide(context: CallContext) -> memoryview:
        return memoryview(array.array("I", bytes(context.payload)))

    @registry.call("reply")
    async def reply(context: CallContext) -> Reply:
        return ODD_REPLIES[bytes(context.payload).decode()]

    @registry.download("wide parts")
    async def wide_parts(context: CallContext, out: OutgoingStream) -> None:
        await out.send(memoryview(array.array("I", [1, 2])))
        with pytest.raises(LocalProtocolError):
            await out.send("text")  # type: ignore[arg-type]  # wrong
        with pytest.raises(LocalProtocolError):
            await out.send(b"", args={"k": "v" * 200_000})
        await out.send(memoryview(b"abcdef")[::2], last=True)

    return registry


#: What a handler should not return.
ODD_REPLIES: dict[str, Reply] = {
    "long args": Reply(args={"k": "v" * 200_000}),
    "many args": Reply(args={str(number): "v" for number in range(10_000)}),
    "args of no text": Reply(args={"k": 5}),  # type: ignore[dict-item]  # wrong
    "long subject": Reply(subject="s" * 200_000),
    "subject of no text": Reply(subject=5),  # type: ignore[arg-type]  # wrong
    "long error": Reply(error="e" * 1_100_000),
    "text": Reply(payload="text"),  # type: ignore[arg-type]  # wrong
    "no payload": Reply(payload=None),  # type: ignore[arg-type]  # wrong
}


@pytest.mark.parametrize("compression", ["none", "s2"])
async def test_buffers_of_any_shape_go_through_and_harm_no_other_call(
    net: Net, compression: str
) -> None:
    wide = array.array("I", range(20_000))
    async with net.pair(odd_services(), compression=compression) as (_, client):
        other = asyncio.create_task(client.call("wait"))
        reply = await client.call("echo", memoryview(wide))
        assert bytes(reply.payload) == wide.tobytes()
        reply = await client.call("echo", memoryview(b"abcdef")[::2])
        assert bytes(reply.payload) == b"ace"
        reply = await client.call("wide", wide.tobytes())
        assert bytes(reply.payload) == wide.tobytes()
        async with client.download("wide parts") as down:
            parts = await parts_of(down)
            assert parts == [array.array("I", [1, 2]).tobytes(), b"ace"]
        async with client.upload("collect", memoryview(wide)[:2]) as up:
            await up.send(memoryview(wide)[:1], last=True)
            expected = [(0, bytes(wide[:2]), False), (1, bytes(wide[:1]), True)]
            assert bytes((await up.reply()).payload) == repr(expected).encode()
        await client.send_one_way("go")
        assert (await other).payload == b"done"


@pytest.mark.parametrize("compression", ["none", "s2"])
@pytest.mark.parametrize("odd", ODD_REPLIES)
async def test_a_reply_that_cannot_be_sent_becomes_an_error(
    memory: Net, odd: str, compression: str
) -> None:
    async with memory.pair(odd_services(), compression=compression) as (_, client):
        with pytest.raises(RemoteCallError, match=r"limit|must be|too many"):
            await client.call("reply", odd.encode())
        assert (await client.call("echo", b"still here")).payload == b"still here"


WRONG_CALLS: dict[str, dict[str, Any]] = {
    "payload": {"payload": "text"},
    "long args": {"args": {"k": "v" * 200_000}},
    "many args": {"args": {str(number): "v" for number in range(10_000)}},
    "args": {"args": {"k": 5}},
    "name": {"service_name": 5},
    "long name": {"service_name": "n" * 200_000},
}


@pytest.mark.parametrize("wrong", WRONG_CALLS)
async def test_a_call_that_cannot_be_sent_costs_nothing(
    memory: Net, wrong: str
) -> None:
    asked = {"service_name": "echo", **WRONG_CALLS[wrong]}
    async with memory.pair(services()) as (server, client):
        with pytest.raises(LocalProtocolError):
            await client.call(**asked)
        with pytest.raises(LocalProtocolError):
            await client.send_one_way(**asked)
        with pytest.raises(LocalProtocolError):
            await client.upload(**asked).begin()
        with pytest.raises(LocalProtocolError):
            await server.push(client.local_address, **asked)
        assert client.core.open_calls == 0
        assert (await client.call("echo", b"x")).payload == b"x"


async def test_a_part_that_cannot_be_sent_leaves_its_stream_whole(memory: Net) -> None:
    async with (
        memory.pair(services()) as (_, client),
        client.upload("collect", b"one") as up,
    ):
        for wrong in ("text", bytes(MAX_PAYLOAD_LEN + 1)):
            with pytest.raises(LocalProtocolError):
                await up.send(wrong)  # type: ignore[arg-type]  # wrong
        await up.send(b"two", last=True)
        expected = [(0, b"one", False), (1, b"two", True)]
        assert bytes((await up.reply()).payload) == repr(expected).encode()


async def test_the_refusal_of_the_longest_name_comes_back(memory: Net) -> None:
    async with memory.pair(services()) as (_, client):
        with pytest.raises(NoSuchServiceError) as caught:
            await client.call("n" * 130_000)
        assert len(str(caught.value)) < 1000
        assert (await client.call("echo", b"x")).payload == b"x"
