"""The library works on uvloop, whose transports are no subclasses of asyncio's."""

import asyncio
from pathlib import Path

import pytest

from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.registry import Registry
from tests.conftest import ASYNC_TEST_TIMEOUT_S
from tests.rpc.nets import Net

uvloop = pytest.importorskip("uvloop")


@pytest.mark.parametrize("network", ["tcp", "tls"])
def test_calls_and_large_messages_pass(network: str, certs: Path) -> None:
    registry = Registry()

    @registry.call("echo")
    async def echo(context: CallContext) -> bytes:
        return bytes(context.payload)

    async def run() -> None:
        net = Net("tls" if network == "tls" else "tcp", certs)
        async with net.pair(registry, compression="none") as (_, client):
            for size in (0, 1, 100_000, 5_000_000):
                payload = bytes(size)
                assert (await client.call("echo", payload)).payload == payload
            calls = (client.call("echo", bytes(200_000)) for _ in range(30))
            assert len(await asyncio.gather(*calls)) == 30

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(run(), ASYNC_TEST_TIMEOUT_S))
