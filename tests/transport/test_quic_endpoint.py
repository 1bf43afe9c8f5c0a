"""Dialling and listening over QUIC."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

import pytest

from rpc25519_tools.config import Address, parse_address
from rpc25519_tools.errors import ConnectFailedError, DeadlineError
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.transport import quic_endpoint
from rpc25519_tools.transport.base import TlsSettings, Transport
from rpc25519_tools.transport.endpoint import connect, listen
from tests.helpers import free_udp_ports, until
from tests.transport.peers import Recorder, accepted, dialled, listening

# Dialling.


async def dial(
    address: str,
    identity: LoadedIdentity,
    *,
    local: str | None = None,
    timeout_s: float = 5,
) -> str:
    """Connect and hang up in order; return the local address."""
    made: list[Recorder] = []

    def accept(transport: Transport) -> Recorder:
        made.append(Recorder(transport))
        return made[0]

    transport = await connect(
        parse_address(address),
        tls=TlsSettings(identity=identity, verify=True),
        accept=accept,
        timeout_s=timeout_s,
        local=parse_address(local) if local else None,
        quic=True,
    )
    transport.close()
    await until(lambda: made[0].lost)
    return transport.local_address


@pytest.mark.usefixtures("no_leaked_fds")
async def test_a_port_where_nobody_listens_is_told(client: LoadedIdentity) -> None:
    address = f"127.0.0.1:{free_udp_ports(1)[0]}"
    with pytest.raises(ConnectFailedError) as caught:
        await dial(address, client)
    assert str(caught.value) == (
        f"cannot connect to {address}: nobody listens there (connection refused)"
    )


@pytest.mark.parametrize("first", ["deaf", "silent"])
async def test_the_next_address_of_a_host_is_tried(
    first: str,
    node: LoadedIdentity,
    client: LoadedIdentity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quic_endpoint, "_PATIENCE_S", 0.05)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.2", 0))
        number = other.getsockname()[1]
        if first == "deaf":
            other.close()
        async with listening_at(Address("127.0.0.1", number), node):

            async def both(*_: object, **__: object) -> list[object]:
                kind = (socket.AF_INET, socket.SOCK_DGRAM, 17, "")
                return [(*kind, (f"127.0.0.{n}", number)) for n in (2, 1)]

            monkeypatch.setattr(loop, "getaddrinfo", both)
            async with dialled(f"two.example:{number}", client, quic=True) as ours:
                assert ours.transport.remote_address == f"127.0.0.1:{number}"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b"])
async def test_a_name_that_does_not_resolve_is_told(
    host: str, client: LoadedIdentity
) -> None:
    with pytest.raises(ConnectFailedError, match="the host name does not resolve"):
        await dial(f"{host}:1", client)


async def test_the_local_address_can_be_chosen(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    own = f"127.0.0.1:{free_udp_ports(1)[0]}"
    async with listening(node, quic=True) as found:
        assert await dial(found.address, client, local=own) == own
        assert (await accepted(found)).transport.remote_address == own
        with pytest.raises(ConnectFailedError, match="cannot connect to"):
            await dial(found.address, client, local="192.0.2.1:0")


async def test_an_empty_host_means_this_machine(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    async with listening(node, quic=True) as found:
        await dial(f":{parse_address(found.address).port}", client)


@pytest.mark.usefixtures("no_leaked_fds")
async def test_dialling_can_be_cancelled(client: LoadedIdentity) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        dialling = asyncio.create_task(dial(address, client))
        await until(lambda: readable(silent), what="the first datagram")
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling
        with pytest.raises(DeadlineError, match=r"within 0\.05 s"):
            await dial(address, client, timeout_s=0.05)


def readable(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(2048, socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


# Listening.


async def test_a_port_in_use_is_told(node: LoadedIdentity) -> None:
    async with listening(node, quic=True) as found:
        with pytest.raises(ConnectFailedError) as caught:
            async with listening_at(parse_address(found.address), node):
                pass
        assert str(caught.value) == (
            f"cannot listen on {found.address}: the port is in use"
        )


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("192.0.2.1", "no such address on this machine"),
        ("no-such-host.invalid", "does not resolve"),
    ],
)
async def test_where_nobody_can_listen_is_told(
    host: str, words: str, node: LoadedIdentity
) -> None:
    with pytest.raises(ConnectFailedError, match=words):
        async with listening_at(Address(host, 0), node):
            pass


@contextlib.asynccontextmanager
async def listening_at(
    address: Address, identity: LoadedIdentity
) -> AsyncIterator[tuple[str, list[int], list[Transport]]]:
    """Listen anywhere; yield the address, the descriptors and who has come."""
    came: list[Transport] = []

    def accept(transport: Transport) -> Recorder:
        came.append(transport)
        return Recorder(transport)

    listener = await listen(
        address,
        tls=TlsSettings(identity=identity, verify=True),
        accept=accept,
        failed=lambda error, peer: None,
        quic=True,
    )
    try:
        yield listener.address, listener.filenos(), came
    finally:
        listener.close()
        for transport in came:
            transport.abort()


async def test_all_interfaces_get_one_port(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    async with listening_at(Address("", 0), node) as (address, descriptors, came):
        ports = set()
        for descriptor in descriptors:
            with socket.socket(fileno=os.dup(descriptor)) as one:
                ports.add(one.getsockname()[1])
        (port,) = ports
        assert address.endswith(f":{port}")
        hosts = ["127.0.0.1", "[::1]"][: len(descriptors)]
        for host in hosts:
            await dial(f"{host}:{port}", client)
        await until(lambda: len(came) == len(hosts))
        assert [one.local_address for one in came] == [
            f"{host}:{port}" for host in hosts
        ]


async def test_a_closed_listener_refuses_others_but_open_connections_go_on(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    async with (
        listening(node, quic=True) as found,
        dialled(found.address, client, quic=True) as ours,
    ):
        theirs = await accepted(found)
        found.close()
        with pytest.raises(ConnectFailedError, match="takes no connections for now"):
            await dial(found.address, client)
        ours.transport.write([b"still here"])
        await until(lambda: theirs.data == b"still here")
