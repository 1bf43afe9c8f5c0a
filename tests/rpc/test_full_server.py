"""A full server whose clients have not shown who they are: the idle make room."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rpc25519_tools.errors import ConnectionLostError, CrowdedOutError, Rpc25519Error
from rpc25519_tools.limits import Limits
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.transport import crowds
from tests.helpers import until
from tests.rpc.nets import Net, Seen

PLACES = 4
IDLE_S = 0.2


@pytest.fixture(autouse=True)
def _soon_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowds, "IDLE_S", IDLE_S)


@pytest.fixture(params=["tcp", "tls", "quic"])
def net(request: pytest.FixtureRequest, certs: Path) -> Net:
    return Net(request.param, certs)


class Full:
    """A server with few places, all of them taken."""

    def __init__(self, net: Net, server: Server, seen: Seen, **settings: Any) -> None:
        self._net = net
        self._settings = settings
        self.server = server
        self.seen = seen
        self.may_answer = asyncio.Event()
        self.clients: list[Client] = []

    async def connect(self) -> Client:
        client = await self._net.client(self.server, **self._settings)
        self.clients.append(client)
        assert (await client.call("echo", b"x")).payload == b"x"
        return client

    async def idle(self) -> None:
        """Wait until everybody has said nothing for long enough."""
        loop = asyncio.get_running_loop()
        last_s = max(one.idle_since() for one in self.server._connections)
        await until(lambda: loop.time() - last_s > IDLE_S)


@contextlib.asynccontextmanager
async def full(net: Net, **settings: Any) -> AsyncIterator[Full]:
    registry, seen = Registry(), Seen()

    async def echo(context: CallContext) -> bytes:
        return bytes(context.payload)

    async def wait(context: CallContext) -> bytes:
        await made.may_answer.wait()
        return b"done"

    registry.add_call("echo", echo)
    registry.add_call("wait", wait)
    limits = Limits(max_connections=PLACES)
    async with net.server(registry, seen, limits=limits, **settings) as server:
        made = Full(net, server, seen, **settings)
        for _ in range(PLACES):
            await made.connect()
        yield made
        made.may_answer.set()
        for client in made.clients:
            await client.aclose()


async def test_the_one_that_has_been_idle_longest_makes_room(net: Net) -> None:
    async with full(net, verify_peer=False) as made:
        first, second, *_ = made.clients
        await first.call("echo", b"again")
        await made.idle()
        await made.connect()
        (reason,) = made.seen.closed
        assert isinstance(reason, CrowdedOutError)
        with pytest.raises(ConnectionLostError):
            await second.call("echo", b"x")
        assert (await first.call("echo", b"x")).payload == b"x"


async def test_who_waits_for_an_answer_keeps_its_place(net: Net) -> None:
    async with full(net, verify_peer=False) as made:
        calls = [
            asyncio.create_task(client.call("wait", b"")) for client in made.clients
        ]
        await until(lambda: all(one.tasks() for one in made.server._connections))
        await made.idle()
        with pytest.raises(Rpc25519Error):
            await made.connect()
        made.may_answer.set()
        replies = await asyncio.gather(*calls)
        assert [bytes(reply.payload) for reply in replies] == [b"done"] * PLACES


async def test_who_has_shown_who_it_is_keeps_its_place(certs: Path) -> None:
    async with full(Net("tls", certs)) as made:
        await made.idle()
        with pytest.raises(Rpc25519Error):
            await made.connect()
        for client in made.clients[:PLACES]:
            assert (await client.call("echo", b"x")).payload == b"x"
