"""Order, codecs and hostile bytes."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from rpc25519_tools.errors import (
    CallCancelledError,
    ConnectionLostError,
    DeadlineError,
    RemoteProtocolError,
)
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.transport.base import WRITE_HIGH_WATER_LEN
from rpc25519_tools.wire.codecs import Codec, codec_name
from rpc25519_tools.wire.constants import MAGIC
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import until
from tests.rpc.memory import MemoryTransport
from tests.rpc.nets import Net, Seen, raw_client, raw_server
from tests.rpc.offers import Waiting, parts_of, services
from tests.rpc.requests import (
    REAL_CODECS,
    request,
)

# Order.


async def test_messages_of_mixed_codecs_and_lengths_keep_their_order(
    memory: Net,
) -> None:
    registry, order = Registry(), []

    async def note(context: CallContext) -> Reply:
        order.append(context.header.seqno)
        return Reply()

    registry.add_one_way("note", note)
    rng = random.Random(1)
    async with memory.server(registry), raw_client(memory) as peer:
        for number in range(120):
            header = Header(
                call_type=CallType.ONE_WAY, service_name="note", seqno=number
            )
            payload = rng.randbytes(rng.choice((0, 10, 5_000, 200_000)))
            if rng.random() < 0.3:
                payload = bytes(100_000)  # packs to little
            peer.send(Message(header=header, payload=payload), codec=Codec(number % 8))
        await until(lambda: len(order) == 120, what="all messages")
        assert order == list(range(120))


@pytest.mark.parametrize("compression", ["none", "s2", "lz4", "zstd:01"])
async def test_parts_of_mixed_lengths_arrive_in_order_both_ways(
    net: Net, compression: str
) -> None:
    rng = random.Random(2)
    payloads = [rng.randbytes(rng.choice((0, 10, 5_000, 300_000))) for _ in range(40)]
    async with (
        net.pair(services(), compression=compression) as (_, client),
        await client.stream(CallKind.BISTREAM, "mirror", payloads[0]) as stream,
    ):
        reading = asyncio.create_task(parts_of(stream))
        for payload in payloads[1:]:
            await stream.send(payload)
        await stream.send(b"", last=True)
        assert await reading == [*payloads, b""]


@pytest.mark.parametrize("name", ["echo", "nobody's"])
async def test_answers_to_what_comes_together_leave_together(
    memory: Net, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = []
    original = MemoryTransport.write

    def write(self: MemoryTransport, buffers: Sequence[Buffer]) -> None:
        writes.append(self)
        original(self, buffers)

    async with memory.server(services()), raw_client(memory) as peer:
        assert memory.memory is not None
        monkeypatch.setattr(MemoryTransport, "write", write)
        peer.send(*(request(name) for _ in range(8)))
        await until(lambda: len(peer.messages) == 8)
        assert writes == [peer.transport, memory.memory.server_ends[0]]
        peer.send(request(name))
        await until(lambda: len(peer.messages) == 9)
        assert len(writes) == 4


@pytest.mark.parametrize("network", ["tcp", "tls"])
async def test_what_is_sent_before_a_client_is_cut_off_leaves(
    certs: Path, network: Literal["tcp", "tls"]
) -> None:
    registry = services()

    @registry.call("go away")
    async def go_away(context: CallContext) -> None:
        await server.push(context.remote_address, "the last word")
        server.disconnect(context.remote_address)

    async with Net(network, certs).pair(registry) as (server, client):
        with client.listen() as listener:
            calls = [client.call(name) for name in ("echo", "go away", "echo")]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(results[0], Message)
            assert isinstance(results[1], ConnectionLostError)
            message = await anext(listener)
            assert message.header.service_name == "the last word"


async def test_calls_that_never_left_are_not_cancelled_at_the_server(
    memory: Net,
) -> None:
    """Or their cancels would pile up without bound, where the server reads nothing."""
    async with raw_server(memory, compression="none") as (peer, client):
        peer.transport.pause_reading()
        before = 0
        while client.transport.unsent_len <= 2 * WRITE_HIGH_WATER_LEN:
            await client.send_one_way("note", bytes(16_000))
            before += 1
        unsent_len = client.transport.unsent_len
        calls = [client.call("echo", timeout_s=0.05) for _ in range(20)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(one) for one in results} == {DeadlineError}
        waiting = asyncio.create_task(client.call("echo", timeout_s=10))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        stream = client.upload("collect", b"part 0")
        opening = asyncio.create_task(stream.begin())
        await asyncio.sleep(0.01)
        stream.cancel()
        with pytest.raises(CallCancelledError):
            await opening
        assert client.transport.unsent_len == unsent_len
        peer.transport.resume_reading()
        call = asyncio.create_task(client.call("echo", timeout_s=10))
        await until(lambda: len(peer.messages) == before + 1)
        assert peer.messages[before].header.call_type == CallType.RPC
        call.cancel()
        await until(lambda: len(peer.messages) == before + 2)
        assert peer.messages[-1].header.call_type == CallType.CANCEL_PREVIOUS


# Codecs.


async def codecs_of_replies(
    net: Net, *requests: tuple[Message, Codec], server: str
) -> list[Codec]:
    """Send requests one after another; return what packed each reply."""
    async with net.server(services(), compression=server), raw_client(net) as peer:
        for count, (message, codec) in enumerate(requests, 1):
            peer.send(message, codec=codec)
            await until(lambda count=count: len(peer.received) == count)  # type: ignore[misc]
        return [codec for _, codec in peer.received]


@pytest.mark.parametrize("codec", REAL_CODECS, ids=codec_name)
@pytest.mark.parametrize("payload_len", [10, 100_000])
async def test_a_reply_is_packed_like_its_request(
    memory: Net, codec: Codec, payload_len: int
) -> None:
    used = await codecs_of_replies(
        memory, (request(payload=bytes(payload_len)), codec), server="s2"
    )
    assert used == [codec]


async def test_each_reply_follows_the_last_request(memory: Net) -> None:
    codecs = [Codec.LZ4, Codec.NONE, Codec.ZSTD_03, Codec.S2]
    used = await codecs_of_replies(
        memory, *((request(), codec) for codec in codecs), server="zstd:11"
    )
    assert used == codecs


async def test_the_codec_of_one_message_is_forgotten(memory: Net) -> None:
    once = request(no_system_compression=True)
    used = await codecs_of_replies(
        memory,
        (once, Codec.LZ4),
        (request(), Codec.LZ4),
        (request(no_system_compression=True), Codec.S2),
        server="s2",
    )
    assert used == [Codec.S2, Codec.LZ4, Codec.LZ4]


@pytest.mark.parametrize("codec", REAL_CODECS, ids=codec_name)
async def test_a_server_without_compression_answers_without(
    memory: Net, codec: Codec
) -> None:
    assert await codecs_of_replies(memory, (request(), codec), server="none") == [
        Codec.NONE
    ]


async def test_a_refusal_of_an_unpacked_request_goes_back_unpacked(
    memory: Net,
) -> None:
    refused = request("nobody", no_system_compression=True)
    used = await codecs_of_replies(memory, (refused, Codec.LZ4), server="s2")
    assert used == [Codec.NONE_ONCE]


@pytest.mark.parametrize("compression", ["none", "s2", "lz4", "zstd:07"])
async def test_a_client_sends_with_its_own_codec_and_reads_every_other(
    memory: Net, compression: str
) -> None:
    async with raw_server(memory, compression=compression) as (peer, client):
        for count, codec in enumerate(Codec, 1):
            call = asyncio.create_task(client.call("echo", b"x" * 100))
            await until(lambda count=count: len(peer.received) == count)  # type: ignore[misc]
            message, used = peer.received[-1]
            assert codec_name(used) == compression
            reply = Header(
                call_type=CallType.RPC_REPLY,
                call_id=message.header.call_id,
                seqno=message.header.seqno,
            )
            peer.send(Message(header=reply, payload=bytes(70_000)), codec=codec)
            assert (await call).payload == bytes(70_000)


# Hostile bytes.


async def bytes_that_end_a_connection(net: Net, data: bytes) -> Exception:
    """Send ``data`` to a server; return why it ended the connection."""
    seen = Seen()
    async with net.server(services(), seen), raw_client(net) as peer:
        peer.send_bytes(data)
        await until(lambda: peer.lost, what="the connection's end")
        assert not seen.open
        return seen.closed[0]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
        pytest.param(MAGIC + b"\x08" + bytes(8), id="no such codec"),
        pytest.param(MAGIC + b"\x00" + b"\xff" * 8, id="too long"),
        pytest.param(MAGIC + b"\x00" + bytes(8), id="empty body"),
        pytest.param(MAGIC + b"\x00" + bytes(7) + b"\x01\xc1", id="no greenpack"),
        pytest.param(MAGIC + b"\x01" + bytes(7) + b"\x01x", id="no S2"),
        pytest.param(MAGIC + b"\x02" + bytes(8), id="no LZ4"),
        pytest.param(
            MAGIC + b"\x03" + (9000).to_bytes(8, "big") + bytes(9000),
            id="no zstd, in a worker",
        ),
    ],
)
async def test_what_breaks_the_protocol_ends_the_connection(
    memory: Net, data: bytes
) -> None:
    reason = await bytes_that_end_a_connection(memory, data)
    assert isinstance(reason, RemoteProtocolError)


async def test_a_client_drops_a_server_that_breaks_the_protocol(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        call = asyncio.create_task(client.call("echo", b""))
        await until(lambda: peer.received)
        peer.send_bytes(b"HTTP/1.0 200 OK\r\n\r\n")
        with pytest.raises(RemoteProtocolError, match="does not speak this protocol"):
            await call
        await until(lambda: peer.lost)


async def test_frames_behind_a_bad_one_are_not_served(memory: Net) -> None:
    registry, waiting = services(), Waiting()
    registry.add_call("wait", waiting)
    bad = Message(header=Header(call_type=CallType.RPC), payload=b"x" * 20_000)
    async with memory.server(registry), raw_client(memory) as peer:
        peer.send(bad, codec=Codec.LZ4)
        peer.send_bytes(MAGIC + b"\x04" + (9000).to_bytes(8, "big") + bytes(9000))
        peer.send(request("wait"))
        await until(lambda: peer.lost)
        assert waiting.started == 0
