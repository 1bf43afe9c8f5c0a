"""Messages that a server sends of its own accord."""

import asyncio
import contextlib
import gc
import random
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from rpc25519_tools.errors import (
    ConnectionLostError,
    LocalProtocolError,
    NotConnectedError,
)
from rpc25519_tools.rpc import pushes as pushes_module
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.pushes import PushListener
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.transport.base import CHUNK_LEN, WRITE_HIGH_WATER_LEN
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.constants import MAX_PAYLOAD_LEN, MIB
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import until
from tests.rpc.flows import recorded
from tests.rpc.memory import RawPeer
from tests.rpc.nets import Net, raw_client, raw_server
from tests.rpc.offers import services

PART_LEN = MIB // 4
#: More than any kernel keeps for a connection.
TOTAL_LEN = 32 * MIB


def push(payload: bytes = b"", *, call_id: str = "", name: str = "news") -> Message:
    header = Header(call_type=CallType.ONE_WAY, call_id=call_id, service_name=name)
    return Message(header=header, payload=payload)


def texts(messages: list[Message]) -> list[str]:
    return [bytes(one.payload).decode() for one in messages]


async def take(listener: PushListener, count: int) -> list[str]:
    return texts([await anext(listener) for _ in range(count)])


@contextlib.asynccontextmanager
async def three_clients(net: Net) -> AsyncIterator[tuple[Server, list[Client]]]:
    """Run a server whose clients can be told apart by their addresses."""
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(net.server(services()))
        clients = [
            await stack.enter_async_context(await net.client(server)) for _ in range(3)
        ]
        await until(lambda: len(server.clients) == 3)
        yield server, clients


# Pushing.


async def test_a_push_reaches_the_client_with_that_address_alone(sockets: Net) -> None:
    async with three_clients(sockets) as (server, clients):
        listeners = [client.listen() for client in clients]
        for number, client in enumerate(clients):
            await server.push(client.local_address, "news", b"for %d" % number)
            await server.push(client.local_address, "news", b"end")
        for number, listener in enumerate(listeners):
            assert await take(listener, 2) == [f"for {number}", "end"]


async def test_a_handler_pushes_to_its_caller(sockets: Net) -> None:
    async with three_clients(sockets) as (server, (one, other, _)):

        async def start(context: CallContext) -> None:
            for number in range(3):
                await server.push(
                    context.remote_address,
                    "progress",
                    b"%d" % number,
                    call_id=bytes(context.payload).decode(),
                )

        server.registry.add_call("start", start)
        with one.listen("job 7") as progress, other.listen() as elsewhere:
            await one.call("start", b"job 7")
            assert await take(progress, 3) == ["0", "1", "2"]
            await server.push(other.local_address, "end")
            assert (await anext(elsewhere)).header.service_name == "end"


async def test_a_push_says_who_sent_what(memory: Net) -> None:
    async with (
        memory.server(services(), compression="s2") as server,
        raw_client(memory) as peer,
    ):
        address = peer.transport.local_address
        await server.push(address, "first", b"p", args={"k": "v"}, call_id="talk")
        await server.push(address, "second", b"q" * 100, compress=False)
        await until(lambda: len(peer.received) == 2)
    (first, first_codec), (second, second_codec) = peer.received
    assert first.payload == b"p"
    assert replace(first.header, created_ns=None) == Header(
        sender="tcp://127.0.0.1:8443",
        recipient="tcp://127.0.0.1:50000",
        call_type=CallType.ONE_WAY,
        call_id="talk",
        serial=1,
        service_name="first",
        args={"k": "v"},
    )
    assert first.header.created_ns
    assert (first_codec, second_codec) == (Codec.S2, Codec.NONE_ONCE)
    assert second.header.no_system_compression
    assert second.header.serial == 2
    assert second.payload == b"q" * 100


async def test_pushes_keep_their_order_whatever_their_length(memory: Net) -> None:
    rng = random.Random(7)
    payloads = [rng.randbytes(rng.choice((0, 10, 5_000, 200_000))) for _ in range(60)]
    async with memory.pair(services()) as (server, client):
        with client.listen() as listener:
            for payload in payloads:
                await server.push(client.local_address, "news", payload)
            for payload in payloads:
                assert (await anext(listener)).payload == payload


async def test_pushes_and_replies_never_mix(net: Net) -> None:
    async with net.pair(services(), compression="none") as (server, client):
        await until(lambda: server.clients)
        payload = bytes(range(256)) * 1000

        async def push_some() -> None:
            for _ in range(10):
                await server.push(client.local_address, "news", payload)

        with client.listen() as listener:
            tasks = [asyncio.create_task(push_some()) for _ in range(3)]
            replies = [
                asyncio.create_task(client.call("echo", payload)) for _ in range(20)
            ]
            for _ in range(30):
                assert (await anext(listener)).payload == payload
            for reply in replies:
                assert (await reply).payload == payload
            await asyncio.gather(*tasks)


async def test_a_push_to_nobody_says_so(sockets: Net) -> None:
    async with three_clients(sockets) as (server, clients):
        for address in ("127.0.0.1:1", "", "nonsense"):
            with pytest.raises(NotConnectedError, match=f"connected from {address}"):
                await server.push(address, "news", b"")
        gone = clients[1].local_address
        await clients[1].aclose()
        await until(lambda: len(server.clients) == 2)
        with pytest.raises(NotConnectedError):
            await server.push(gone, "news", b"")
        with clients[0].listen() as listener:
            await server.push(clients[0].local_address, "news", b"still")
            assert await take(listener, 1) == ["still"]


async def test_a_push_that_waits_for_a_client_fails_when_it_goes(sockets: Net) -> None:
    async with three_clients(sockets) as (server, (deaf, *_)):
        address = deaf.local_address
        (theirs,) = [one for one in server.clients if one.remote_address == address]
        deaf.transport.pause_reading()

        async def push_for_ever() -> None:
            while True:
                await server.push(address, "news", bytes(MIB))

        pushing = asyncio.create_task(push_for_ever())
        await until(lambda: theirs.unsent_len > WRITE_HIGH_WATER_LEN)
        assert not pushing.done()
        deaf.transport.abort()
        with pytest.raises((ConnectionLostError, NotConnectedError)):
            await pushing


async def test_a_push_that_is_too_large_harms_nothing(memory: Net) -> None:
    async with memory.pair(services(), compression="none") as (server, client):
        with client.listen() as listener:
            with pytest.raises(LocalProtocolError, match="does not fit"):
                await server.push(
                    client.local_address, "news", memoryview(bytes(MAX_PAYLOAD_LEN + 1))
                )
            await server.push(client.local_address, "news", b"next")
            assert await take(listener, 1) == ["next"]


# Listening.


async def test_recorded_pushes_reach_those_who_listen(memory: Net) -> None:
    sent = [one.message for one in recorded("push", "s2c")]
    (opening,) = [one.message for one in recorded("push", "c2s")]
    async with raw_server(memory) as (peer, client):
        with client.listen() as everything, client.listen(opening.header.call_id) as it:
            peer.send(*sent)
            assert [await anext(everything) for _ in sent] == sent
            assert await anext(it) == sent[1]
            assert sent[1].header.call_id == opening.header.call_id
            assert not it._waiting


async def test_everybody_gets_what_they_listen_for(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        with (
            client.listen() as one,
            client.listen() as other,
            client.listen("a") as only_a,
            client.listen("b") as only_b,
            client.listen("") as without,
        ):
            peer.send(
                push(b"1", call_id="a"),
                push(b"2", call_id="b"),
                push(b"3"),
                push(b"4", call_id="a"),
                push(b"end"),
            )
            assert await take(one, 5) == await take(other, 5)
            assert await take(only_a, 2) == ["1", "4"]
            assert await take(only_b, 1) == ["2"]
            assert await take(without, 2) == ["3", "end"]
            assert not any(x._waiting for x in (one, other, only_a, only_b, without))


async def test_what_nobody_listens_for_is_dropped(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        call = asyncio.create_task(client.call("any", b""))
        await until(lambda: peer.messages)
        before = [push(bytes(MIB)) for _ in range(20)]
        with client.listen("another"):
            peer.send(*before, answer_to(peer))
            await call
        with client.listen() as late:
            peer.send(push(b"now"))
            assert await take(late, 1) == ["now"]


def answer_to(peer: RawPeer) -> Message:
    opening = peer.messages[-1]
    return replace(
        opening, header=replace(opening.header, call_type=CallType.RPC_REPLY)
    )


async def test_a_reader_that_stops_waiting_loses_nothing(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        with client.listen() as listener:
            reading = asyncio.create_task(take(listener, 1))
            await until(lambda: listener._reader)
            reading.cancel()
            await asyncio.wait([reading])
            peer.send(push(b"1"), push(b"2"))
            assert await take(listener, 2) == ["1", "2"]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(listener)
            peer.send(push(b"3"))
            assert await take(listener, 1) == ["3"]


# Falling behind.


async def test_a_slow_listener_holds_the_server_back_and_nothing_grows(
    net: Net,
) -> None:
    async with net.pair(services(), compression="none") as (server, client):
        await until(lambda: server.clients)
        (theirs,) = server.clients
        pushed = 0

        async def push_all() -> None:
            nonlocal pushed
            while pushed < TOTAL_LEN:
                await server.push(client.local_address, "bulk", bytes(PART_LEN))
                pushed += PART_LEN

        with client.listen() as slow, client.listen("nobody's") as other:
            pushing = asyncio.create_task(push_all())
            await until(
                lambda: slow._holding and theirs.unsent_len > WRITE_HIGH_WATER_LEN
            )
            assert not pushing.done()
            limit = pushes_module._HIGH_WATER_LEN + PART_LEN + 4 * CHUNK_LEN
            most = read = 0
            while read < TOTAL_LEN:
                most = max(most, slow._len)
                read += len((await anext(slow)).payload)
            await pushing
            assert pushes_module._HIGH_WATER_LEN < most <= limit
            assert slow._len == 0
            assert not slow._holding
            assert not other._waiting
        assert client._driver.is_reading


async def test_short_pushes_count_for_more_than_their_payload(memory: Net) -> None:
    count = 1500
    async with raw_server(memory) as (peer, client):
        with client.listen() as slow:
            for number in range(count):
                peer.send(push(b"%d" % number))
            await until(lambda: slow._holding)
            most = pushes_module._HIGH_WATER_LEN // pushes_module._MESSAGE_COST + 1
            for number in range(count):
                assert len(slow._waiting) <= most
                assert (await anext(slow)).payload == b"%d" % number


async def test_arguments_of_pushes_count_too(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        with client.listen() as slow:
            message = push()
            header = replace(message.header, args={"k" * 30_000: "v" * 30_000})
            for _ in range(100):
                peer.send(replace(message, header=header))
            await until(lambda: slow._holding)
            assert len(slow._waiting) <= 1 + pushes_module._HIGH_WATER_LEN // 60_000
            for _ in range(100):
                await anext(slow)


async def test_the_slowest_of_several_listeners_decides(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        quick, slow = client.listen(), client.listen()
        for _ in range(12):
            peer.send(push(bytes(PART_LEN)))
        await until(lambda: quick._holding and slow._holding)
        read = 0
        while quick._waiting:
            await anext(quick)
            read += 1
        assert read < 12
        assert [quick._holding, slow._holding] == [False, True]
        assert not client._driver.is_reading
        slow.close()
        await until(lambda: client._driver.is_reading)
        for _ in range(12 - read):
            await anext(quick)
        quick.close()


async def test_a_slow_listener_holds_up_its_own_connection_alone(sockets: Net) -> None:
    async with three_clients(sockets) as (server, (slow, quick, _)):
        with slow.listen() as unread:

            async def push_all() -> None:
                for _ in range(64):
                    await server.push(slow.local_address, "bulk", bytes(MIB))

            pushing = asyncio.create_task(push_all())
            await until(lambda: unread._holding)
            for _ in range(10):
                await quick.call("echo", b"")
            assert not pushing.done()
        await pushing
        await slow.call("echo", b"")


# The end of listening.


async def test_closing_a_listener_that_is_behind_lets_the_connection_go_on(
    net: Net,
) -> None:
    async with net.pair(services(), compression="none") as (server, client):
        await until(lambda: server.clients)

        async def push_all() -> None:
            for _ in range(20):
                await server.push(client.local_address, "bulk", bytes(MIB))

        with client.listen() as listener:
            pushing = asyncio.create_task(push_all())
            await until(lambda: listener._holding)
        assert client._driver.is_reading
        await pushing
        await client.call("echo", b"")
        assert [one async for one in listener] == []
        assert client._pushes._listeners == []


async def test_closing_ends_who_waits(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        listener = client.listen()

        async def read_all() -> list[str]:
            return texts([one async for one in listener])

        reading = asyncio.create_task(read_all())
        peer.send(push(b"1"))
        await until(lambda: listener._reader)
        listener.close()
        assert await reading == ["1"]
        listener.close()
        with pytest.raises(StopAsyncIteration):
            await anext(listener)


async def test_a_listener_may_be_closed_by_its_own_reader(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        listener, other, got = client.listen(), client.listen(), []
        peer.send(push(b"1"), push(b"2"), push(b"3"))
        async for message in listener:
            got.append(message)
            if message.payload == b"2":
                listener.close()
        assert texts(got) == ["1", "2"]
        assert await take(other, 3) == ["1", "2", "3"]


@pytest.mark.parametrize("ending", ["broken", "closed by them", "closed by us"])
async def test_the_end_of_the_connection_comes_after_what_is_waiting(
    memory: Net, ending: str
) -> None:
    async with raw_server(memory) as (peer, client):
        listener, idle = client.listen(), client.listen("other")
        waiting = asyncio.create_task(take(idle, 1))
        peer.send(push(b"1"), push(b"2"), push(b"3"))
        await until(lambda: len(listener._waiting) == 3)
        match ending:
            case "broken":
                peer.transport.abort()
            case "closed by them":
                peer.transport.close()
            case _:
                await client.aclose()
        with pytest.raises(ConnectionLostError):
            await waiting
        assert client.is_down
        assert await take(listener, 3) == ["1", "2", "3"]
        for _ in range(2):
            with pytest.raises(ConnectionLostError):
                await anext(listener)
        late = client.listen()
        with pytest.raises(ConnectionLostError):
            await anext(late)
        for one in (listener, idle, late):
            one.close()
            with pytest.raises(StopAsyncIteration):
                await anext(one)


async def test_what_came_before_the_end_reaches_a_listener_that_is_behind(
    memory: Net,
) -> None:
    async with raw_server(memory) as (peer, client):
        listener = client.listen()
        for number in range(12):
            peer.send(push(bytes([number]) * PART_LEN))
        await until(lambda: listener._holding)
        peer.transport.close()
        for number in range(12):
            assert (await anext(listener)).payload == bytes([number]) * PART_LEN
        with pytest.raises(ConnectionLostError):
            await anext(listener)


async def test_a_server_without_its_clients_pushes_to_nobody(sockets: Net) -> None:
    async with sockets.server(Registry()) as server:
        client = await sockets.client(server)
        await until(lambda: server.clients)
        await server.aclose()
        with pytest.raises(NotConnectedError):
            await server.push(client.local_address, "news", b"")
        with pytest.raises(ConnectionLostError):
            await anext(client.listen())
        await client.aclose()


async def test_a_forgotten_listener_lets_its_connection_go_on(sockets: Net) -> None:
    async with sockets.pair(services(), compression="none") as (server, client):
        await client.call("echo", b"")
        listener = client.listen()
        for _ in range(3 * pushes_module._HIGH_WATER_LEN // PART_LEN):
            await server.push(client.local_address, "news", bytes(PART_LEN))
        await until(lambda: client._driver.is_held, what="reading to be held")
        del listener
        gc.collect()
        await client.call("echo", b"")
        assert not client._driver.is_held
        client.listen()
        assert len(client._pushes._listeners) == 1


async def test_a_listener_has_one_reader_at_a_time(memory: Net) -> None:
    async with memory.pair(services()) as (_, client):
        with client.listen() as listener:
            first = asyncio.create_task(anext(listener, None))
            await asyncio.sleep(0)
            with pytest.raises(LocalProtocolError, match="one reader at a time"):
                await anext(listener)
        assert await first is None
