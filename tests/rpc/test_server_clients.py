"""What servers and their observers know of who is connected."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rpc25519_tools.errors import (
    BadMagicError,
    ConnectionLostError,
    DeadlineError,
    HandshakeError,
    NotConnectedError,
    Rpc25519Error,
)
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.server import Server, ServerObserver
from rpc25519_tools.transport.base import Transport
from tests.helpers import until
from tests.rpc.nets import Net, Seen, raw_client
from tests.rpc.offers import services
from tests.rpc.waiting import waiting_call, waiting_services

# Who is connected.


async def test_clients_are_listed_while_they_are_connected(sockets: Net) -> None:
    registry, _ = waiting_services()
    async with sockets.server(registry) as server:
        assert server.clients == []
        clients = [await sockets.client(server) for _ in range(3)]
        await until(lambda: len(server.clients) == 3)

        def addresses() -> set[str]:
            return {one.remote_address for one in server.clients}

        assert addresses() == {one.local_address for one in clients}
        for one in server.clients:
            assert one.local_address == server.address
            assert (one.peer is not None) == (sockets.network != "tcp")
        await clients[1].aclose()
        left = {clients[0].local_address, clients[2].local_address}
        await until(lambda: addresses() == left)
        clients[0].transport.abort()
        await until(lambda: addresses() == {clients[2].local_address})
        for client in (clients[0], clients[2]):
            await client.aclose()
        await until(lambda: not server.clients)


async def test_a_list_of_clients_does_not_change_by_itself(memory: Net) -> None:
    async with memory.server(services()) as server:
        async with raw_client(memory):
            listed = server.clients
            assert len(listed) == 1
        await until(lambda: not server.clients)
        assert len(listed) == 1


async def test_one_client_is_disconnected_and_the_others_stay(sockets: Net) -> None:
    registry, waiting = waiting_services()
    seen = Seen()
    async with sockets.server(registry, seen) as server:
        one, other = await sockets.client(server), await sockets.client(server)
        async with one, other, waiting_call(one, waiting) as call:
            await until(lambda: len(server.clients) == 2)
            address = one.local_address
            server.disconnect(address, "enough of you")
            with pytest.raises(ConnectionLostError):
                await call
            assert [str(reason) for reason in seen.closed] == ["enough of you"]
            await until(lambda: waiting.cancelled == 1)
            for gone in (address, "127.0.0.1:1", ""):
                with pytest.raises(NotConnectedError, match="no client is connected"):
                    server.disconnect(gone)
                with pytest.raises(NotConnectedError, match="no client is connected"):
                    await server.push(gone, "news")
            await other.call("echo", b"")
            assert len(server.clients) == 1


async def test_a_handler_may_disconnect_its_own_client(sockets: Net) -> None:
    registry, _ = waiting_services()
    async with sockets.server(registry) as server, await sockets.client(server) as one:

        @registry.call("go away")
        async def go_away(context: CallContext) -> None:
            server.disconnect(context.remote_address)

        with pytest.raises(ConnectionLostError):
            await one.call("go away", b"")
        await until(lambda: not server.clients)


# What observers are told.


@dataclass
class Diary(ServerObserver):
    """Everything that a server tells, in order."""

    entries: list[tuple[str, str, object]] = field(default_factory=list)

    def connected(self, transport: Transport) -> None:
        self.entries.append(("connected", transport.remote_address, transport.peer))

    def disconnected(self, transport: Transport, reason: Exception) -> None:
        self.entries.append(("disconnected", transport.remote_address, reason))

    def refused(self, address: str, reason: Exception) -> None:
        self.entries.append(("refused", address, reason))


async def test_an_observer_learns_of_each_connection_once(sockets: Net) -> None:
    diary = Diary()
    server = Server(
        sockets.config("127.0.0.1:0", "node", idle_timeout_s=0), services(), diary
    )
    async with server:
        first = await sockets.client(server)
        await first.call("echo", b"")
        second = await sockets.client(server)
        await second.call("echo", b"")
        addresses = [first.local_address, second.local_address]
        await first.aclose()
        await until(lambda: len(diary.entries) == 3)
    await until(lambda: second.is_down)
    await second.aclose()
    told = [(what, address) for what, address, _ in diary.entries]
    assert told == [
        ("connected", addresses[0]),
        ("connected", addresses[1]),
        ("disconnected", addresses[0]),
        ("disconnected", addresses[1]),
    ]
    for _, _, peer in diary.entries[:2]:
        assert (peer is not None) == (sockets.network != "tcp")
    closed_by_peer, closed_by_us = (entry[2] for entry in diary.entries[2:])
    assert str(closed_by_peer) == "the peer closed the connection"
    assert str(closed_by_us) == "this side closed the connection"


async def test_who_says_something_is_heard_once(sockets: Net) -> None:
    diary = Diary()
    server = Server(
        sockets.config("127.0.0.1:0", "node"),
        services(),
        diary,
        heard=lambda one: diary.entries.append(("heard", one.remote_address, None)),
    )
    async with (
        server,
        await sockets.client(server) as silent,
        await sockets.client(server) as client,
    ):
        for _ in range(3):
            await client.call("echo", b"")
        told = [(what, address) for what, address, _ in diary.entries]
        assert told == [
            ("connected", silent.local_address),
            ("connected", client.local_address),
            ("heard", client.local_address),
        ]


async def test_an_observer_learns_why_a_connection_ended(memory: Net) -> None:
    seen = Seen()
    async with memory.server(services(), seen, read_timeout_s=0.05) as server:
        endings: list[tuple[type[Rpc25519Error], bytes]] = [
            (BadMagicError, b"GET / HTTP/1.1\r\n\r\n"),
            (DeadlineError, b""),
        ]
        for error, sent in endings:
            seen.closed.clear()
            async with raw_client(memory) as peer:
                peer.send_bytes(sent)
                await until(lambda: seen.closed)
            assert isinstance(seen.closed[0], error)
        seen.closed.clear()
        async with raw_client(memory) as peer:
            peer.transport.abort()
            await until(lambda: seen.closed)
        assert isinstance(seen.closed[0], ConnectionLostError)
        assert not seen.open
        assert not server.clients


async def test_an_observer_learns_of_refused_clients(
    certs: Path, other_certs: Path
) -> None:
    diary = Diary()
    net = Net("tls", certs)
    server = Server(net.config("127.0.0.1:0", "node"), services(), diary)
    async with server:
        stranger = Net("tls", other_certs)
        with pytest.raises(HandshakeError):
            await stranger.client(server)
        await until(lambda: diary.entries)
        async with await net.client(server) as client:
            await client.call("echo", b"")
            ((refused, address, reason), (connected, *_)) = diary.entries
    assert (refused, connected) == ("refused", "connected")
    assert address.startswith("127.0.0.1:")
    assert isinstance(reason, HandshakeError)


class Failing(ServerObserver):
    """An observer that can do nothing right."""

    def connected(self, transport: Transport) -> None:
        raise ValueError("no disk for logs")

    def disconnected(self, transport: Transport, reason: Exception) -> None:
        raise ValueError("no disk for logs")

    def refused(self, address: str, reason: Exception) -> None:
        raise ValueError("no disk for logs")


async def test_an_observer_that_fails_harms_nobody(
    certs: Path, other_certs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = Net("tls", certs)

    def fail(transport: Transport) -> None:
        raise ValueError("no disk for logs")

    server = Server(
        net.config("127.0.0.1:0", "node"), services(), Failing(), heard=fail
    )
    async with server:
        with pytest.raises(HandshakeError):
            await Net("tls", other_certs).client(server)
        async with await net.client(server) as client:
            await client.call("echo", b"")
            assert len(server.clients) == 1
        await until(lambda: not server.clients)
    logged = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert len(logged) == 4
    assert all("the observer of the server failed" in one.message for one in logged)
