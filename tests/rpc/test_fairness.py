"""Small calls get through beside bulk transfers on the same connection.

Nothing is measured in seconds: the bulk goes on until the small calls are done, and
what counts is how much of it passes meanwhile.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from rpc25519_tools.errors import DeadlineError
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream
from rpc25519_tools.transport.base import WRITE_HIGH_WATER_LEN
from rpc25519_tools.wire.constants import MIB
from tests.helpers import until
from tests.rpc.nets import Net, is_backed_up
from tests.rpc.offers import Waiting, parts_of, services

SMALL_CALLS = 10
#: How much bulk may pass in the time of one small call, on average. What waits before
#: it in our own queues, there and back, is a few parts, or a few large messages; with
#: more than ten streams it is less than one part of each ...
FEW_PARTS_LEN = 8 * MIB
FEW_MESSAGES_LEN = 32 * MIB
#: ... and the kernel's queues grow to 36 MiB each way on Linux.
KERNEL_LEN = 72 * MIB
PART = random.Random(1).randbytes(MIB)


class Bulk:
    """Transfers without end, until they are told to stop.

    Attributes:
        passed: bytes that have arrived at the end of their way.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.passed = 0
        self.registry = services()
        self.registry.add_upload("sink", self._sink)
        self.registry.add_download("source", self._source)

    async def _sink(self, context: CallContext, parts: IncomingStream) -> None:
        async for part in parts:
            self.passed += len(part.payload)

    async def _source(self, context: CallContext, out: OutgoingStream) -> None:
        while not self.stop.is_set():
            await out.send(PART)
        await out.send(b"", last=True)

    async def upload(self, server: Server, client: Client) -> None:
        async with client.upload("sink") as stream:
            while not self.stop.is_set():
                await stream.send(PART)
            await stream.send(b"", last=True)
            await stream.reply()

    async def download(self, server: Server, client: Client) -> None:
        async with client.download("source") as stream:
            async for part in stream:
                self.passed += len(part.payload)

    async def mirror(self, server: Server, client: Client) -> None:
        async with client.bistream("mirror") as stream:

            async def send_all() -> None:
                while not self.stop.is_set():
                    await stream.send(PART)
                await stream.send(b"", last=True)

            sending = asyncio.create_task(send_all())
            async for part in stream:
                self.passed += len(part.payload)
            await sending

    async def large_calls(self, server: Server, client: Client) -> None:
        async def call_again() -> None:
            payload = PART * 4
            while not self.stop.is_set():
                reply = await client.call("echo", payload, timeout_s=60)
                self.passed += len(reply.payload)

        await asyncio.gather(*(call_again() for _ in range(4)))

    async def pushes(self, server: Server, client: Client) -> None:
        await until(lambda: server.clients)
        with client.listen() as listener:

            async def push_all() -> None:
                while not self.stop.is_set():
                    await server.push(client.local_address, "bulk", PART)
                await server.push(client.local_address, "end", b"")

            pushing = asyncio.create_task(push_all())
            async for message in listener:
                if not message.payload:
                    break
                self.passed += len(message.payload)
            await pushing

    @contextlib.asynccontextmanager
    async def running(
        self,
        server: Server,
        client: Client,
        *loads: Callable[[Server, Client], Awaitable[None]],
    ) -> AsyncIterator[None]:
        """Let loads run; leaving it ends them in order."""
        tasks = [asyncio.ensure_future(load(server, client)) for load in loads]
        await until(lambda: self.passed > 4 * MIB, what="the bulk to flow")
        try:
            yield
            assert not any(task.done() for task in tasks)
        finally:
            self.stop.set()
            await asyncio.gather(*tasks)


async def call_beside(bulk: Bulk, client: Client, passing_len: int) -> None:
    """Make small calls, and check how much else has passed meanwhile."""
    before = bulk.passed
    await call_small_ones(client)
    assert bulk.passed - before <= SMALL_CALLS * passing_len


async def call_small_ones(client: Client) -> None:
    for number in range(SMALL_CALLS):
        payload = b"%d" % number
        assert (await client.call("echo", payload)).payload == payload


LOADS = {
    "upload": ["upload"],
    "download": ["download"],
    "large calls": ["large_calls"],
    "pushes": ["pushes"],
    "many uploads": ["upload"] * 12,
    "many downloads": ["download"] * 12,
}


@pytest.mark.parametrize("compression", ["none", "lz4"])
@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS)
async def test_small_calls_complete_beside_bulk(
    memory: Net, loads: list[str], compression: str
) -> None:
    bulk = Bulk()
    async with (
        memory.pair(bulk.registry, compression=compression) as (server, client),
        bulk.running(server, client, *(getattr(bulk, load) for load in loads)),
    ):
        is_large = "large_calls" in loads
        limit_len = FEW_MESSAGES_LEN if is_large else FEW_PARTS_LEN
        await call_beside(bulk, client, limit_len)


@pytest.mark.parametrize("loads", [["upload", "download", "large_calls"], ["mirror"]])
async def test_small_calls_complete_beside_bulk_both_ways(
    net: Net, loads: list[str]
) -> None:
    bulk = Bulk()
    async with (
        net.pair(bulk.registry, compression="none") as (server, client),
        bulk.running(server, client, *(getattr(bulk, load) for load in loads)),
    ):
        limit_len = FEW_MESSAGES_LEN + (0 if net.memory else KERNEL_LEN)
        await call_beside(bulk, client, limit_len)


async def test_small_streams_and_messages_get_through_too(net: Net) -> None:
    bulk, noted = Bulk(), 0

    @bulk.registry.one_way("note")
    async def note(context: CallContext) -> None:
        nonlocal noted
        noted += 1

    async with (
        net.pair(bulk.registry, compression="none") as (server, client),
        bulk.running(server, client, bulk.upload, bulk.download),
    ):
        for number in range(3):
            await client.send_one_way("note")
            async with client.upload("collect", b"a") as upload:
                await upload.send(b"b", last=True)
                await upload.reply()
            async with client.download("count", b"3") as download:
                assert len(await parts_of(download)) == 4
            await until(lambda number=number: noted == number + 1)  # type: ignore[misc]


async def test_a_small_call_does_not_wait_for_all_that_wait_to_send(
    memory: Net,
) -> None:
    """Calls of many callers, who all wait for room: the small one is not the last."""
    done: list[str] = []
    async with memory.pair(services(), compression="none") as (_, client):

        async def call(name: str, payload: bytes) -> None:
            await client.call("echo", payload)
            done.append(name)

        large = [asyncio.create_task(call("large", PART * 4)) for _ in range(20)]
        await asyncio.sleep(0)  # they wait, and none has been sent whole
        await asyncio.gather(call("small", b"x"), *large)
    assert done.index("small") <= 4


async def test_senders_take_turns(memory: Net) -> None:
    """No stream has to wait until another one is through."""
    order: list[int] = []

    async def note(context: CallContext, parts: IncomingStream) -> None:
        nonlocal order
        async for part in parts:
            order += [int(part.args.get("stream", -1))]

    registry = Registry()
    registry.add_upload("note", note)
    async with memory.pair(registry, compression="none") as (_, client):

        async def upload(number: int) -> None:
            async with client.upload("note") as stream:
                for _ in range(12):
                    await stream.send(PART, args={"stream": str(number)})
                await stream.send(b"", last=True)
                await stream.reply()

        await asyncio.gather(*(upload(number) for number in range(4)))
    parts = [number for number in order if number >= 0]
    assert len(parts) == 4 * 12
    first_third = parts[: len(parts) // 3]
    assert all(2 <= first_third.count(number) <= 6 for number in range(4))


async def test_a_stuck_reader_of_one_client_holds_up_no_other(net: Net) -> None:
    registry, go = services(), asyncio.Event()

    @registry.upload("stuck")
    async def stuck(context: CallContext, parts: IncomingStream) -> None:
        await go.wait()

    async with (
        net.server(registry, compression="none") as server,
        await net.client(server, compression="none") as one,
        await net.client(server, compression="none") as other,
        one.upload("stuck") as stream,
    ):

        async def send_for_ever() -> None:
            while True:
                await stream.send(PART)

        sending = asyncio.create_task(send_for_ever())
        await until(lambda: is_backed_up(one.transport))
        await call_small_ones(other)
        sending.cancel()
        await asyncio.wait([sending])
        go.set()


async def test_giving_up_a_call_does_not_stop_streams_that_wait_both_ways(
    memory: Net,
) -> None:
    """A cancel that has to wait must not keep us from reading."""
    registry, waiting = services(), Waiting()
    registry.add_call("wait", waiting)
    async with (
        memory.pair(registry, compression="none") as (server, client),
        client.bistream("mirror") as stream,
    ):
        call = asyncio.create_task(client.call("wait", b"", timeout_s=0.2))
        await until(lambda: waiting.started)

        async def send_all() -> None:
            for _ in range(40):
                await stream.send(PART)
            await stream.send(b"", last=True)

        sending = asyncio.create_task(send_all())
        ends = [client.transport, server.clients[0]]
        await until(
            lambda: all(end.unsent_len > WRITE_HIGH_WATER_LEN for end in ends),
            what="both directions to be full",
        )
        with pytest.raises(DeadlineError):
            await call
        try:
            parts = await asyncio.wait_for(parts_of(stream), 2)
            assert sum(map(len, parts)) == 40 * MIB
        finally:
            sending.cancel()
            await asyncio.wait([sending])
            if not stream.is_over:
                client.transport.abort()
