"""One UDP port for a server and any number of clients of one process."""

import asyncio
import contextlib
import itertools
import sys
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import ConnectFailedError, NotConnectedError
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from tests.conftest import ASYNC_TEST_TIMEOUT_S
from tests.helpers import SrvProcess, free_udp_ports, run_program, until
from tests.rpc.nets import Net, Seen
from tests.sockets import udp_ports_of

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="sockets are listed in /proc"
)


@pytest.fixture
def net(certs: Path) -> Net:
    return Net("quic", certs)


def echoing() -> Registry:
    registry = Registry()

    @registry.call("customEcho")
    async def echo(context: CallContext) -> bytes:
        return bytes(context.payload)

    return registry


@pytest.fixture
def own() -> str:
    """An address that nobody uses."""
    return f"127.0.0.1:{free_udp_ports(1)[0]}"


@contextlib.asynccontextmanager
async def closing(made: Any) -> AsyncIterator[Any]:
    try:
        yield made
    finally:
        await made.aclose()


async def start_server(net: Net, address: str, **settings: Any) -> Server:
    server = Server(net.config(address, "node", **settings), echoing(), Seen())
    await server.start()
    return server


async def dial(net: Net, target: str, own: str, **settings: Any) -> Client:
    config = net.config(target, "client", local_address=parse_address(own), **settings)
    return await Client.connect(config)


async def echoed(client: Client, text: bytes = b"hello") -> bool:
    reply = await client.call("customEcho", text)
    return bytes(reply.payload).startswith(text)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_server_and_five_clients_have_one_socket(
    net: Net, certs: Path, own: str, loop: str
) -> None:
    """They talk to another process's server, and get called, all at the same time."""
    factory = None
    if loop == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop
    before = udp_ports_of()

    async def talk(target: str) -> None:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(closing(await start_server(net, own)))
            clients = [await dial(net, target, own) for _ in range(5)]
            for client in clients:
                stack.push_async_callback(client.aclose)
                assert client.local_address == own
            assert udp_ports_of() - before == {own}
            called = asyncio.to_thread(
                run_program, "cli", "-q", "-s", own, "-certs", certs, "-n", "20"
            )
            calls = [
                echoed(client, b"%d of %d" % (round_, number))
                for round_ in range(20)
                for number, client in enumerate(clients)
            ]
            done, echoes = await asyncio.gather(called, asyncio.gather(*calls))
            assert done.returncode == 0, done.stderr
            assert all(echoes)
            assert udp_ports_of() - before == {own}

    with (
        SrvProcess("-q", "-echo", certs=certs) as srv,
        asyncio.Runner(loop_factory=factory) as runner,
    ):
        runner.run(asyncio.wait_for(talk(srv.address), ASYNC_TEST_TIMEOUT_S))
        runner.run(until(lambda: udp_ports_of() == before, what="the socket's end"))


@pytest.mark.parametrize("order", list(itertools.permutations("SAB")), ids="".join)
async def test_the_socket_closes_with_its_last_user(
    net: Net, own: str, order: tuple[str, ...]
) -> None:
    before = udp_ports_of()
    async with closing(await start_server(net, "127.0.0.1:0")) as other:
        target = other.address
        users: dict[str, Server | Client] = {
            "S": await start_server(net, own),
            "A": await dial(net, target, own),
            "B": await dial(net, target, own),
        }
        for name in order:
            assert own in udp_ports_of()
            await users.pop(name).aclose()
            for left in users.values():
                if isinstance(left, Client):
                    assert await echoed(left)
                else:
                    async with await net.client(left) as caller:
                        assert await echoed(caller)
        await until(lambda: own not in udp_ports_of(), what="the socket's end")
    await until(lambda: udp_ports_of() == before)


async def test_clients_may_be_there_before_the_server(net: Net, own: str) -> None:
    async with closing(await start_server(net, "127.0.0.1:0")) as other:
        first = await dial(net, other.address, own)
        server = await start_server(net, own)
        assert server.address == own
        second = await dial(net, other.address, own)
        async with closing(server), first, second, await net.client(server) as caller:
            assert await echoed(caller)
            assert await echoed(first)
            assert await echoed(second)
        # The address is free for everybody once more.
        await until(lambda: own not in udp_ports_of())
        async with (
            closing(await start_server(net, own)) as server,
            await net.client(server) as caller,
        ):
            assert await echoed(caller)


async def test_a_client_may_call_the_server_on_its_own_port(net: Net, own: str) -> None:
    async with (
        closing(await start_server(net, own)) as server,
        await dial(net, own, own) as client,
    ):
        assert await echoed(client)
        assert client.local_address == server.address == own
        assert await echoed(client, bytes(300_000))


async def test_an_aborted_user_leaves_the_others_alone(net: Net, own: str) -> None:
    async with (
        closing(await start_server(net, "127.0.0.1:0")) as other,
        closing(await start_server(net, own)) as server,
        await dial(net, other.address, own) as one,
        await dial(net, other.address, own) as two,
        await net.client(server) as caller,
    ):
        one.transport.abort()
        for _ in range(3):
            assert await echoed(two)
            assert await echoed(caller)


async def test_a_client_that_cannot_connect_leaves_the_others_alone(
    net: Net, own: str
) -> None:
    nobody = f"127.0.0.1:{free_udp_ports(1)[0]}"
    async with (
        closing(await start_server(net, own)) as server,
        await net.client(server) as caller,
    ):
        for _ in range(3):
            with pytest.raises(ConnectFailedError, match="nobody listens there"):
                await dial(net, nobody, own)
            assert await echoed(caller)
    await until(lambda: own not in udp_ports_of())


async def test_a_server_that_stops_refuses_at_once_and_clients_go_on(
    net: Net, own: str
) -> None:
    async with closing(await start_server(net, "127.0.0.1:0")) as other:
        server = await start_server(net, own)
        async with await dial(net, other.address, own) as client:
            await server.aclose()
            with pytest.raises(ConnectFailedError, match="takes no connections"):
                await net.client(server)
            assert await echoed(client)
            # Another one may take its place.
            async with (
                closing(await start_server(net, own)) as next_one,
                await net.client(next_one) as caller,
            ):
                assert await echoed(caller)


# Not sharing, and conflicts.


async def test_a_second_server_on_a_port_is_refused(net: Net, own: str) -> None:
    async with closing(await start_server(net, own)) as server:
        for settings in ({}, {"no_share_port_quic": True}):
            with pytest.raises(ConnectFailedError) as caught:
                await start_server(net, own, **settings)
            assert str(caught.value) == f"cannot listen on {own}: the port is in use"
        async with await net.client(server) as caller:
            assert await echoed(caller)


async def test_who_does_not_share_has_a_port_of_its_own(net: Net, own: str) -> None:
    before = udp_ports_of()
    alone = {"no_share_port_quic": True}
    ports = [f"127.0.0.1:{port}" for port in free_udp_ports(2)]
    async with (
        closing(await start_server(net, own, **alone)) as server,
        await dial(net, own, ports[0], **alone) as one,
        await dial(net, own, ports[1], **alone) as two,
    ):
        assert await echoed(one)
        assert await echoed(two)
        assert udp_ports_of() - before == {own, *ports}
        assert {one.remote_address for one in server.clients} == set(ports)


@pytest.mark.parametrize(
    ("server_alone", "client_alone"), [(True, True), (True, False), (False, True)]
)
async def test_a_port_that_is_not_shared_is_a_conflict(
    net: Net, own: str, server_alone: bool, client_alone: bool
) -> None:
    async with (
        closing(await start_server(net, "127.0.0.1:0")) as other,
        closing(
            await start_server(net, own, no_share_port_quic=server_alone)
        ) as server,
    ):
        with pytest.raises(ConnectFailedError, match="the port is in use") as caught:
            await dial(net, other.address, own, no_share_port_quic=client_alone)
        assert f"cannot connect to {other.address}" in str(caught.value)
        async with await net.client(server) as caller:
            assert await echoed(caller)
    await until(lambda: own not in udp_ports_of())


async def test_a_port_of_another_process_is_a_conflict(net: Net, certs: Path) -> None:
    with SrvProcess("-q", "-echo", certs=certs) as srv:
        with pytest.raises(ConnectFailedError, match="the port is in use"):
            await start_server(net, srv.address)
        with pytest.raises(ConnectFailedError, match="the port is in use"):
            await dial(net, srv.address, srv.address)


async def test_a_server_for_all_addresses_shares_with_clients_for_all(
    net: Net,
) -> None:
    before = udp_ports_of()
    (port,) = free_udp_ports(1)
    config = replace(
        net.config("127.0.0.1:0", "node"), address=parse_address(f":{port}")
    )
    async with (
        closing(await start_server(net, "127.0.0.1:0")) as other,
        Server(config, echoing(), Seen()) as server,
        await dial(net, other.address, f"0.0.0.0:{port}") as one,
        await dial(net, other.address, f":{port}") as two,
        await net_client(net, f"127.0.0.1:{port}") as caller,
    ):
        for client in (one, two, caller):
            assert await echoed(client)
        assert one.local_address == f"127.0.0.1:{port}"
        mine = {text for text in udp_ports_of() - before if text.endswith(f":{port}")}
        assert mine <= {f"0.0.0.0:{port}", f"[::]:{port}"}
        assert f":{port}" in server.address


def net_client(net: Net, address: str) -> Awaitable[Client]:
    """Connect from anywhere."""
    config: Config = net.config(address, "client")
    return Client.connect(config)


async def test_pushes_reach_nobody_where_two_are_meant(net: Net, own: str) -> None:
    """Clients on one port have one address; none gets what is for the other."""
    async with closing(await start_server(net, "127.0.0.1:0")) as server:
        first = await dial(net, server.address, own)
        second = await dial(net, server.address, own)
        await until(lambda: len(server.clients) == 2)
        with pytest.raises(NotConnectedError, match="2 clients are connected from"):
            await server.push(own, "news", b"for one of them")
        with second.listen() as listener:
            await server.push(server.clients[0], "news", b"for one of them")
            await server.push(server.clients[1], "news", b"for one of them")
            assert (await anext(listener)).payload == b"for one of them"
        await second.aclose()
        await until(lambda: len(server.clients) == 1)
        with first.listen() as listener:
            await server.push(own, "news", b"for the first")
            assert (await anext(listener)).payload == b"for the first"
        await first.aclose()
