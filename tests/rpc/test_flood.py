"""A client that causes answers and never reads them."""

import asyncio
from pathlib import Path

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.framing import encode_frame
from rpc25519_tools.wire.message import CallType, Header, Message

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
            args={"padding": "x" * 100_000},
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
