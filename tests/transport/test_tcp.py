"""Plain TCP, dialling and listening, and how addresses are written."""

import asyncio
import errno
import os
import socket
from typing import Any, NoReturn

import pytest

from rpc25519_tools.config import Address, parse_address
from rpc25519_tools.errors import ConnectFailedError, DeadlineError
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.transport import listening as listening_module
from rpc25519_tools.transport.base import (
    CHUNK_LEN,
    WRITE_HIGH_WATER_LEN,
    Transport,
    format_address,
    scratch_buffer,
)
from rpc25519_tools.transport.endpoint import connect, listen
from rpc25519_tools.transport.tcp import TcpTransport
from rpc25519_tools.wire.constants import MIB
from tests.helpers import until
from tests.transport.peers import Recorder, dialled, listening


async def test_bytes_arrive_whole_both_ways() -> None:
    async with listening(None) as found, dialled(found.address, None) as ours:
        await until(lambda: found.accepted)
        theirs = found.accepted[0]
        ours.transport.write([b"one", bytearray(b"two"), memoryview(b"three")])
        theirs.transport.write([b"back"])
        await until(lambda: theirs.data == b"onetwothree" and ours.data == b"back")
        assert ours.transport.network == "tcp"
        assert ours.transport.peer is None
        assert "nothing is protected" in ours.transport.security
        assert ours.transport.remote_address == found.address
        assert ours.transport.local_address == theirs.transport.remote_address


async def test_closing_sends_what_is_queued_and_ends_in_order() -> None:
    async with listening(None) as found, dialled(found.address, None) as ours:
        await until(lambda: found.accepted)
        ours.transport.write([bytes(8 * MIB)])
        ours.transport.close()
        ours.transport.close()
        await until(lambda: ours.lost and found.accepted[0].lost)
        assert len(found.accepted[0].data) == 8 * MIB
        assert ours.error is None
        assert found.accepted[0].error is None


async def test_a_paused_reader_makes_the_writer_wait() -> None:
    async with listening(None) as found, dialled(found.address, None) as ours:
        await until(lambda: found.accepted)
        theirs = found.accepted[0]
        theirs.transport.pause_reading()
        ours.transport.write([bytes(32 * MIB)])
        assert ours.transport.unsent_len > WRITE_HIGH_WATER_LEN
        theirs.transport.resume_reading()
        await until(lambda: len(theirs.data) == 32 * MIB)
        assert ours.writable_calls == 1
        assert ours.transport.unsent_len == 0


async def test_a_reset_connection_is_lost_with_an_error() -> None:
    async with listening(None) as found, dialled(found.address, None) as ours:
        await until(lambda: found.accepted)
        found.accepted[0].transport.pause_reading()
        ours.transport.write([b"never read"])
        found.accepted[0].transport.abort()
        await until(lambda: ours.lost)
        assert isinstance(ours.error, ConnectionResetError | BrokenPipeError | None)


@pytest.mark.parametrize("ending", ["abort", "close"])
async def test_ending_a_connection_that_is_over_does_nothing(ending: str) -> None:
    """The peer hangs up first, while we still have something to send."""
    async with listening(None) as found:
        host, port = found.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await until(lambda: found.accepted)
        theirs = found.accepted[0]
        theirs.transport.write([bytes(16 * MIB)])
        writer.write_eof()
        assert len(await reader.read()) == 16 * MIB
        await until(lambda: theirs.lost)
        for _ in range(2):
            getattr(theirs.transport, ending)()
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("secure", [False, True])
async def test_a_peer_that_does_not_hang_up_is_left(
    secure: bool,
    node: LoadedIdentity,
    client: LoadedIdentity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rpc25519_tools.transport.tcp.LINGER_S", 0.05)
    async with (
        listening(node if secure else None) as found,
        dialled(found.address, client if secure else None) as ours,
    ):
        await until(lambda: found.accepted)
        ours.transport.pause_reading()
        found.accepted[0].transport.close()
        await until(lambda: found.accepted[0].lost, what="our end")
        assert not ours.lost


async def test_the_kernel_watches_over_a_silent_peer() -> None:
    async with listening(None) as found, dialled(found.address, None) as ours:
        assert isinstance(ours.transport, TcpTransport)
        assert ours.transport._socket_transport is not None
        sock = ours.transport._socket_transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 70_000


# Dialling.


async def dial(address: str, *, local: str | None = None, timeout_s: float = 5) -> None:
    transport = await connect(
        parse_address(address),
        tls=None,
        accept=Recorder,
        timeout_s=timeout_s,
        local=parse_address(local) if local else None,
    )
    transport.abort()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


async def test_a_port_where_nobody_listens_is_told(no_leaked_fds: None) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConnectFailedError) as caught:
        await dial(address)
    assert str(caught.value) == (
        f"cannot connect to {address}: nobody listens there (connection refused)"
    )


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 64])
async def test_a_name_that_does_not_resolve_is_told(host: str) -> None:
    with pytest.raises(ConnectFailedError, match="the host name does not resolve"):
        await dial(f"{host}:1")


async def test_an_address_of_ours_that_is_not_ours_is_told() -> None:
    async with listening(None) as found:
        with pytest.raises(ConnectFailedError, match="cannot connect to"):
            await dial(found.address, local="192.0.2.1:0")


async def test_the_local_address_can_be_chosen() -> None:
    port = free_port()
    async with listening(None) as found:
        await dial(found.address, local=f"127.0.0.1:{port}")
        await until(lambda: found.accepted)
        assert found.accepted[0].transport.remote_address == f"127.0.0.1:{port}"


async def test_an_empty_host_means_this_machine() -> None:
    async with listening(None) as found:
        await dial(f":{parse_address(found.address).port}")


async def test_dialling_can_be_cancelled(no_leaked_fds: None) -> None:
    # A full backlog answers nothing.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as sock:
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        dialling = asyncio.create_task(dial(f"127.0.0.1:{sock.getsockname()[1]}"))
        await asyncio.sleep(0)
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling
        with pytest.raises(DeadlineError, match=r"within 0\.05 s"):
            await dial(f"127.0.0.1:{sock.getsockname()[1]}", timeout_s=0.05)
        for filler in fillers:
            filler.close()


# Listening.


async def try_to_listen(address: Address) -> None:
    listener = await listen(
        address, tls=None, accept=Recorder, failed=lambda error, peer: None
    )
    listener.close()


async def test_a_port_in_use_is_told() -> None:
    async with listening(None) as found:
        with pytest.raises(ConnectFailedError) as caught:
            await try_to_listen(parse_address(found.address))
        assert str(caught.value) == (
            f"cannot listen on {found.address}: the port is in use"
        )


async def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(ConnectFailedError, match="no such address on this machine"):
        await try_to_listen(Address("192.0.2.1", 0))


async def test_an_unknown_name_to_listen_on_is_told() -> None:
    with pytest.raises(ConnectFailedError, match="does not resolve"):
        await try_to_listen(Address("no-such-host.invalid", 0))


async def test_an_empty_host_listens_everywhere() -> None:
    port = free_port()
    recorders: list[Recorder] = []

    def accept(transport: Transport) -> Recorder:
        recorders.append(Recorder(transport))
        return recorders[-1]

    listener = await listen(
        Address("", port), tls=None, accept=accept, failed=lambda error, peer: None
    )
    await dial(f"127.0.0.1:{port}")
    await until(lambda: recorders and recorders[0].lost)
    listener.close()


async def test_a_closed_listener_takes_nobody_but_open_connections_go_on() -> None:
    async with listening(None) as found, dialled(found.address, None) as ours:
        await until(lambda: found.accepted)
        address = found.address
        found.close()
        with pytest.raises(ConnectFailedError):
            await dial(address)
        ours.transport.write([b"still here"])
        await until(lambda: found.accepted[0].data == b"still here")


# Addresses.


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("127.0.0.1", 8443), "127.0.0.1:8443"),
        (("::1", 8443, 0, 0), "[::1]:8443"),
        (("fe80::1%eth0", 1, 0, 2), "[fe80::1%eth0]:1"),
        ("/run/socket", "/run/socket"),
        (None, "None"),
    ],
)
def test_socket_addresses_are_written_like_typed_ones(
    address: object, text: str
) -> None:
    assert format_address(address) == text


def test_scratch_memory_is_shared_within_a_thread() -> None:
    assert scratch_buffer() is scratch_buffer()
    assert len(scratch_buffer()) == CHUNK_LEN


# One port for every address.


def needs_ipv6() -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 on this machine")


def refuse(*_: object) -> NoReturn:
    raise AssertionError("nobody comes")


async def test_all_interfaces_get_one_port() -> None:
    needs_ipv6()
    for host in ("", "localhost"):
        listener = await listen(
            Address(host, 0), tls=None, accept=refuse, failed=refuse
        )
        ports = set()
        for descriptor in listener.filenos():
            with socket.socket(fileno=os.dup(descriptor)) as one:
                ports.add(one.getsockname()[1])
        listener.close()
        assert len(ports) == 1
        assert listener.address.endswith(f":{ports.pop()}")


async def test_another_port_is_tried_where_one_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs_ipv6()
    listen_on = listening_module._listen_on
    taken: list[int] = []

    def sometimes(family: int, address: Any) -> socket.socket:
        if address[1] and len(taken) < 3:
            taken.append(address[1])
            raise OSError(errno.EADDRINUSE, "taken")
        return listen_on(family, address)

    monkeypatch.setattr(listening_module, "_listen_on", sometimes)
    listener = await listen(Address("", 0), tls=None, accept=refuse, failed=refuse)
    assert len(taken) == 3
    assert len(listener.filenos()) == 2
    listener.close()


async def test_a_port_that_is_asked_for_is_not_sought_elsewhere() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(ConnectFailedError, match="the port is in use"):
            await listen(Address("", port), tls=None, accept=refuse, failed=refuse)
