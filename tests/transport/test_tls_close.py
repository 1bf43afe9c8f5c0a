"""Closing a TLS connection that still has bytes to send."""

import asyncio
from pathlib import Path

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from tests.helpers import until

PAYLOAD = bytes(20 << 20)


async def test_close_sends_what_is_queued_and_ends_once(certs: Path) -> None:
    arrived: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def take(context: CallContext) -> Reply:
        arrived.set_result(len(context.payload))
        return Reply()

    registry = Registry()
    registry.add_one_way("take", take)
    config = Config(
        address=parse_address("127.0.0.1:0"),
        key_name="node",
        certs_dir=str(certs),
        compression="none",
    )
    server = Server(config, registry)
    await server.start()
    client = await Client.connect(
        Config(
            address=parse_address(server.address),
            certs_dir=str(certs),
            compression="none",
        )
    )
    sending = asyncio.ensure_future(client.send_one_way("take", PAYLOAD))
    await until(lambda: client.transport.unsent_len)
    await client.aclose()
    assert await arrived == len(PAYLOAD)
    await asyncio.gather(sending, return_exceptions=True)
    await server.aclose()
