"""Clients that make the server collect more than it can hold."""

import asyncio
from pathlib import Path

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.rpc.streams import IncomingStream
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.framing import encode_frame
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import until

#: Far more than the kernel's buffers and our own high-water mark together.
FLOOD_LEN = 96 << 20


async def test_refusals_that_nobody_reads_stop_the_reading(certs: Path) -> None:
    config = Config(address=parse_address("127.0.0.1:0"), network="tcp")
    server = Server(config, Registry())
    await server.start()
    host, port = server.address.split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    request = Message(
        header=Header(
            call_type=CallType.RPC,
            call_id="c",
            service_name="nobody",
            args={"padding": "x" * 60_000},
        )
    )
    frame = b"".join(bytes(part) for part in encode_frame(request, Codec.NONE))
    sent = 0
    try:
        while sent < FLOOD_LEN:
            writer.write(frame)
            async with asyncio.timeout(1.0):
                await writer.drain()
            sent += len(frame)
    except TimeoutError:
        pass
    writer.transport.abort()
    await server.aclose()
    assert sent < FLOOD_LEN, "the server took all of it"


async def test_parts_that_unpack_to_much_more_stay_packed_until_they_are_read(
    certs: Path,
) -> None:
    parts_sent, part_len = 400, 1 << 20
    may_read = asyncio.Event()
    waiting_len, received = 0, 0

    async def slow(context: CallContext, parts: IncomingStream) -> Reply:
        nonlocal waiting_len, received
        await may_read.wait()
        waiting_len = sum(len(part.payload) for part in parts._parts)
        async for part in parts:
            received += len(part.payload)
        return Reply()

    registry = Registry()
    registry.add_upload("slow", slow)
    config = Config(address=parse_address("127.0.0.1:0"), network="tcp")
    server = Server(config, registry)
    await server.start()
    client_config = Config(
        address=parse_address(server.address), network="tcp", compression="zstd:01"
    )
    async with await Client.connect(client_config) as client:
        payload = bytes(part_len)
        async with await client.stream(CallKind.UPLOAD, "slow", payload) as stream:
            await until(lambda: server._connections)
            (connection,) = server._connections
            driver = connection.driver
            # Let everything arrive at once: it is packed into some kilobytes.
            driver.hold_reading()
            for number in range(1, parts_sent):
                await stream.send(payload, last=number == parts_sent - 1)
            driver.release_reading()
            await until(lambda: len(driver._inbox) > parts_sent // 2)
            await until(lambda: driver._holds)
            may_read.set()
            await stream.reply()
    await server.aclose()
    assert received == parts_sent * part_len
    assert waiting_len <= 7 * part_len


async def test_calls_whose_answers_nobody_reads_stop_the_reading(certs: Path) -> None:
    async def echo(context: CallContext) -> Reply:
        return Reply(payload=context.payload)

    registry = Registry()
    registry.add_call("echo", echo)
    config = Config(
        address=parse_address("127.0.0.1:0"), network="tcp", idle_timeout_s=0.5
    )
    server = Server(config, registry)
    await server.start()
    host, port = server.address.split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    sent = 0
    try:
        for number in range(1000):
            request = Message(
                header=Header(
                    call_type=CallType.RPC,
                    call_id=f"call {number}",
                    seqno=number + 2,
                    service_name="echo",
                ),
                payload=bytes(4 << 20),
            )
            for buffer in encode_frame(request, Codec.NONE):
                writer.write(buffer)
                sent += len(buffer)
            async with asyncio.timeout(1.0):
                await writer.drain()
    except (TimeoutError, ConnectionError):
        pass
    assert sent < FLOOD_LEN, "the server took all of it"
    # Nothing moves, and no handler is at work: -read ends it.
    await until(lambda: not server._connections)
    writer.transport.abort()
    await server.aclose()


async def test_arguments_of_parts_count_as_much_as_their_payload(certs: Path) -> None:
    may_read, waiting = asyncio.Event(), 0

    async def slow(context: CallContext, parts: IncomingStream) -> Reply:
        nonlocal waiting
        await may_read.wait()
        waiting = len(parts._parts)
        async for _ in parts:
            pass
        return Reply()

    registry = Registry()
    registry.add_upload("slow", slow)
    config = Config(
        address=parse_address("127.0.0.1:0"), network="tcp", compression="none"
    )
    server = Server(config, registry)
    await server.start()
    client_config = Config(
        address=parse_address(server.address), network="tcp", compression="none"
    )
    args = {"padding": "x" * 100_000}

    async def send_all(client: Client) -> None:
        async with await client.stream(CallKind.UPLOAD, "slow", b"") as stream:
            for number in range(200):
                await stream.send(b"", args=args, last=number == 199)
            await stream.reply()

    async with await Client.connect(client_config) as client:
        sending = asyncio.create_task(send_all(client))
        await until(lambda: server._connections)
        (connection,) = server._connections
        await until(lambda: connection.driver._holds)
        may_read.set()
        await sending
    await server.aclose()
    # Six mebibytes, and what one read from the kernel brought along.
    assert 0 < waiting < 75
