"""The library works on uvloop, whose transports are no subclasses of asyncio's."""

import asyncio
import contextlib
from pathlib import Path
from typing import Literal

import pytest

from rpc25519_tools.errors import ConnectionLostError, DeadlineError
from rpc25519_tools.limits import Limits, Startups
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.wire.message import Message
from tests.conftest import ASYNC_TEST_TIMEOUT_S
from tests.rpc.nets import Net
from tests.rpc.offers import services

uvloop = pytest.importorskip("uvloop")


@pytest.mark.parametrize("network", ["tcp", "tls", "quic"])
def test_calls_and_large_messages_pass(
    network: Literal["tcp", "tls", "quic"], certs: Path
) -> None:
    registry = Registry()

    @registry.call("echo")
    async def echo(context: CallContext) -> bytes:
        return bytes(context.payload)

    async def run() -> None:
        net = Net(network, certs)
        async with net.pair(registry, compression="none") as (_, client):
            for size in (0, 1, 100_000, 5_000_000):
                payload = bytes(size)
                assert (await client.call("echo", payload)).payload == payload
            calls = (client.call("echo", bytes(200_000)) for _ in range(30))
            assert len(await asyncio.gather(*calls)) == 30

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(run(), ASYNC_TEST_TIMEOUT_S))


@pytest.mark.parametrize("network", ["tcp", "tls"])
def test_a_good_client_is_served_beside_a_silent_crowd(
    network: str, certs: Path
) -> None:
    async def run() -> None:
        net = Net("tls" if network == "tls" else "tcp", certs)
        limits = Limits(max_startups=Startups(20, 100, 20))
        async with net.server(services(), limits=limits) as server:
            host, port = server.address.split(":")
            crowd = [await asyncio.open_connection(host, int(port)) for _ in range(40)]
            for _ in range(3):
                async with await net.client(server) as client:
                    assert (await client.call("echo", b"e")).payload == b"e"
            for reader, _ in crowd[5:15]:
                assert await reader.read() == b""
            for _, writer in crowd:
                writer.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(run(), ASYNC_TEST_TIMEOUT_S))


def test_calls_whose_time_is_over_already_harm_no_others(certs: Path) -> None:
    """The timer that uvloop makes for the past cannot tell its time."""

    async def run() -> None:
        async with Net("tcp", certs).pair(services()) as (_, client):
            for _ in range(3):
                late = [client.call("echo", b"", timeout_s=-1.0) for _ in range(2)]
                calls = [client.call("echo", b"", timeout_s=5.0) for _ in range(2)]
                results = await asyncio.gather(*late, *calls, return_exceptions=True)
                assert [type(one) for one in results] == [DeadlineError] * 2 + [
                    Message
                ] * 2
                given_up = asyncio.ensure_future(client.call("echo", timeout_s=1e-4))
                await asyncio.sleep(0)
                given_up.cancel()
                await asyncio.wait([given_up])
                assert (await client.call("echo", b"e")).payload == b"e"

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(run(), ASYNC_TEST_TIMEOUT_S))


@pytest.mark.parametrize("later", [False, True])
def test_ctrl_c_during_a_handler_still_ends_the_program(
    certs: Path, later: bool
) -> None:
    registry = Registry()

    @registry.call("interrupted")
    async def interrupted(context: CallContext) -> None:
        if later:
            await asyncio.sleep(0)
        raise KeyboardInterrupt

    async def run() -> None:
        async with Net("tcp", certs).pair(registry) as (_, client):
            with contextlib.suppress(ConnectionLostError):
                await client.call("interrupted")

    with (
        pytest.raises(KeyboardInterrupt),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(asyncio.wait_for(run(), ASYNC_TEST_TIMEOUT_S))
