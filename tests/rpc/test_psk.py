"""Calls, streams and cancels through the pre-shared-key tunnel, on TCP and TLS."""

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Literal

import pytest

from rpc25519_tools.blocking.client import BlockingClient
from rpc25519_tools.blocking.server import BlockingServer
from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import (
    ConfigError,
    ConnectionLostError,
    DecryptionError,
    HandshakeError,
    KeyFileError,
)
from rpc25519_tools.limits import Limits
from rpc25519_tools.rpc import memory
from rpc25519_tools.rpc import server as rpc_server
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.reconnect import PersistentClient
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.transport import psk_handshake
from rpc25519_tools.transport.base import Transport
from rpc25519_tools.transport.psk import PskTransport
from rpc25519_tools.wire.codecs import Codec, codec_from_name
from rpc25519_tools.wire.constants import FRAME_HEADER_LEN, MAX_BODY_LEN, MIB
from rpc25519_tools.wire.framing import encode_frame
from rpc25519_tools.wire.message import CallType, Header, Message
from rpc25519_tools.wire.tunnel import INNER_HEADER_LEN
from tests.helpers import until
from tests.rpc.nets import Net, Seen

NETWORKS: tuple[Literal["tcp", "tls", "quic"], ...] = ("tcp", "tls", "quic")


@pytest.fixture(params=NETWORKS)
def net(request: pytest.FixtureRequest, certs: Path) -> Net:
    return Net(request.param, certs)


@pytest.fixture
def key_path(tmp_path: Path) -> str:
    path = tmp_path / "psk.bin"
    path.write_bytes(os.urandom(40))
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def other_key_path(tmp_path: Path) -> str:
    path = tmp_path / "other.bin"
    path.write_bytes(os.urandom(40))
    return str(path)


def services() -> tuple[Registry, list[str]]:
    registry = Registry()
    seen: list[str] = []

    @registry.call("echo")
    async def echo(context: CallContext) -> bytes:
        assert context.peer is not None
        seen.append(context.peer.emails[0])
        return bytes(context.payload)

    @registry.call("wait")
    async def wait(context: CallContext) -> bytes:
        seen.append("waiting")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        return b""

    return registry, seen


@pytest.mark.parametrize("compression", ["none", "s2", "zstd:03"])
async def test_calls_of_every_length(net: Net, key_path: str, compression: str) -> None:
    registry, seen = services()
    settings = {"pre_shared_key_path": key_path, "compression": compression}
    async with net.pair(registry, **settings) as (_, client):
        assert client.codec is codec_from_name(compression)
        for length in (0, 1, 20_000, 1_000_000, 5_000_000):
            payload = (b"0123456789abcdef" * (length // 16 + 1))[:length]
            assert (await client.call("echo", payload)).payload == payload
        calls = (client.call("echo", bytes(1000 * n)) for n in range(40))
        replies = await asyncio.gather(*calls)
        assert [len(reply.payload) for reply in replies] == [
            1000 * n for n in range(40)
        ]
        assert set(seen) == {"client@example.org"}
        assert client.peer is not None
        assert client.peer.emails == ("node@example.org",)


async def test_it_goes_through_http_connect(certs: Path, key_path: str) -> None:
    registry, _ = services()
    settings = {"pre_shared_key_path": key_path, "http_connect": True}
    async with Net("tcp", certs).pair(registry, **settings) as (_, client):
        assert (await client.call("echo", b"x")).payload == b"x"
        assert "pre-shared key" in client.transport.security


async def test_a_cancel_goes_through(net: Net, key_path: str) -> None:
    registry, seen = services()
    async with net.pair(registry, pre_shared_key_path=key_path) as (_, client):
        call = asyncio.create_task(client.call("wait"))
        await until(lambda: "waiting" in seen)
        call.cancel()
        await until(lambda: "cancelled" in seen)
        assert (await client.call("echo", b"still there")).payload == b"still there"


async def test_pushes_go_through(net: Net, key_path: str) -> None:
    registry, _ = services()
    async with net.pair(registry, pre_shared_key_path=key_path) as (server, client):
        listener = client.listen()
        await client.call("echo")
        await server.push(client.local_address, "news", b"n" * 100_000)
        push = await anext(aiter(listener))
        assert push.payload == b"n" * 100_000


async def test_another_codec_than_a_go_server_bears_is_not_sent(
    net: Net, key_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What tells our servers from those of Go is the proof in their handshake.
    monkeypatch.setattr(psk_handshake, "confirmation", lambda *_: b"")
    registry, _ = services()
    async with net.server(registry, pre_shared_key_path=key_path) as server:
        for compression, expected in (
            ("s2", Codec.S2),
            ("none", Codec.NONE_ONCE),
            ("zstd:03", Codec.NONE_ONCE),
        ):
            client = await net.client(
                server, pre_shared_key_path=key_path, compression=compression
            )
            async with client:
                assert client.codec is expected
                for _ in range(3):
                    payload = b"text" * 20_000
                    assert (await client.call("echo", payload)).payload == payload
                (connection,) = server._connections
                assert connection._core.codec is Codec.S2
            await until(lambda: not server._connections)


async def test_a_wrong_key_is_told_to_both(
    net: Net, key_path: str, other_key_path: str
) -> None:
    registry, calls = services()
    seen = Seen()
    async with net.server(registry, seen, pre_shared_key_path=key_path) as server:
        with pytest.raises(DecryptionError, match="another pre-shared key"):
            await net.client(server, pre_shared_key_path=other_key_path)
        await until(lambda: seen.refusals)
        assert isinstance(seen.refusals[0], DecryptionError)
        assert not seen.open
        assert not seen.closed
    assert not calls


async def test_a_wrong_key_that_nothing_confirms_is_told_to_both(
    net: Net, key_path: str, other_key_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psk_handshake, "confirmation", lambda *_: b"")
    registry, calls = services()
    seen = Seen()
    async with net.server(registry, seen, pre_shared_key_path=key_path) as server:
        client = await net.client(server, pre_shared_key_path=other_key_path)
        async with client:
            with pytest.raises(HandshakeError, match="pre-shared key is another"):
                await client.call("echo", b"secret")
        await until(lambda: seen.refusals)
        assert isinstance(seen.refusals[0], DecryptionError)
        assert not seen.open
        assert not seen.closed
    assert not calls


async def test_the_longest_first_message_gets_through(
    certs: Path, key_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a client in Go, which shows its key with its first message.
    monkeypatch.setattr(Client, "_show_key", lambda _: None)
    registry = Registry()

    @registry.call("count")
    async def count(context: CallContext) -> bytes:
        return str(len(context.payload)).encode()

    net = Net("tcp", certs)
    settings = {"pre_shared_key_path": key_path, "compression": "none"}
    payload = bytes(MAX_BODY_LEN - 1024)
    async with net.pair(registry, **settings) as (server, client):
        assert not server.clients
        assert (await client.call("count", payload)).payload == b"67107760"
        assert server.memory.total_len < len(payload)


def sealed_by(client: Client, payload_len: int) -> tuple[Transport, bytes]:
    """Return a client's tunnel from below, and a message sealed as its next one."""
    tunnel = client.transport
    assert isinstance(tunnel, PskTransport)
    assert tunnel._sealer is not None
    header = Header(call_type=CallType.KEEP_ALIVE)
    message = Message(header=header, payload=bytes(payload_len))
    frame = b"".join(map(bytes, encode_frame(message, Codec.NONE)))
    plain = frame[:INNER_HEADER_LEN] + frame[FRAME_HEADER_LEN:]
    return tunnel._below, b"".join(map(bytes, tunnel._sealer.seal([plain])))


async def test_half_a_sealed_message_is_in_the_account(net: Net, key_path: str) -> None:
    registry, _ = services()
    async with net.pair(registry, pre_shared_key_path=key_path) as (server, client):
        await client.call("echo")
        (connection,) = server._connections
        driver = connection.driver
        below, wire = sealed_by(client, 10 * MIB)
        before_s, moved_len = driver.last_received_s, driver.moved_len
        below.write([wire[: 6 * MIB]])
        await until(lambda: driver.moved_len - moved_len >= 6 * MIB)
        assert 6 * MIB <= server.memory.total_len <= 12 * MIB
        assert driver.is_mid_message
        assert driver.waits_for_peer
        assert driver.last_received_s > before_s  # so that it is not idle
        below.write([wire[6 * MIB :]])
        assert (await client.call("echo", b"x")).payload == b"x"
        assert server.memory.total_len == 0
        assert not driver.is_mid_message


async def test_what_tls_has_proved_is_in_the_account_before_the_key_is_shown(
    net: Net, key_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "_show_key", lambda _: None)
    registry, _ = services()
    async with net.pair(registry, pre_shared_key_path=key_path) as (server, client):
        await until(lambda: server._connections)
        (connection,) = server._connections
        driver = connection.driver
        below, wire = sealed_by(client, 10 * MIB)
        below.write([wire[: 6 * MIB]])
        await until(lambda: driver.moved_len >= 6 * MIB)
        # On plain TCP it shares the memory of those that nobody has proved.
        assert (server.memory.total_len >= 6 * MIB) == (net.network != "tcp")
        assert not server.clients


async def test_half_sealed_messages_wait_where_memory_is_short(
    net: Net, key_path: str
) -> None:
    registry, _ = services()
    limits = Limits(max_memory_len=16 * MIB)
    async with (
        net.server(registry, pre_shared_key_path=key_path, limits=limits) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        rests: list[tuple[Client, Transport, bytes]] = []
        for _ in range(4):
            client = await net.client(server, pre_shared_key_path=key_path)
            await stack.enter_async_context(client)
            below, wire = sealed_by(client, 10 * MIB)
            below.write([wire[: 6 * MIB]])
            rests.append((client, below, wire[6 * MIB :]))
        # All of it would be 24 MiB; one goes on beyond the limit.
        await until(lambda: server.memory.held_count)
        for _, below, rest in rests:
            below.write([rest])
        for client, _, _ in rests:
            assert (await client.call("echo", b"x")).payload == b"x"
        assert server.memory.held_count == 0
        assert server.memory.total_len == 0


async def test_what_moves_in_a_tunnel_is_counted_once(net: Net, key_path: str) -> None:
    """Counted twice, a peer could go at half the pace that is asked of others."""
    registry, _ = services()
    async with net.pair(registry, pre_shared_key_path=key_path) as (server, client):
        assert (await client.call("echo", b"x")).payload == b"x"
        (connection,) = server._connections
        driver = connection.driver
        before_len = driver.moved_len
        below, wire = sealed_by(client, 10 * MIB)
        below.write([wire[: 6 * MIB]])
        await until(lambda: driver.moved_len - before_len >= 6 * MIB - 64)
        assert driver.moved_len - before_len <= 6 * MIB
        below.write([wire[6 * MIB :]])
        await until(lambda: not driver.is_mid_message)
        received_len = driver.moved_len - driver.sent_len
        assert len(wire) - 1024 < received_len - before_len < len(wire) + 1024


async def test_a_peer_that_stops_in_the_middle_is_noticed_in_a_tunnel_too(
    net: Net, key_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "STALLED_S", 0.5)
    monkeypatch.setattr(rpc_server, "_MEMORY_LOOK_S", 0.1)
    registry, _ = services()
    limits = Limits(max_memory_len=16 * MIB)
    async with (
        net.server(registry, pre_shared_key_path=key_path, limits=limits) as server,
        await net.client(server, pre_shared_key_path=key_path) as stopped,
        await net.client(server, pre_shared_key_path=key_path) as other,
    ):
        below, wire = sealed_by(stopped, 20 * MIB)
        below.write([wire[: 17 * MIB]])
        await until(lambda: server.memory.total_len > 16 * MIB)
        below, wire = sealed_by(other, MIB)
        below.write([wire])
        with pytest.raises(ConnectionLostError):
            await stopped.call("echo", b"x", timeout_s=10)
        assert (await other.call("echo", b"x")).payload == b"x"


async def test_clients_that_connect_again_use_the_key(net: Net, key_path: str) -> None:
    registry, _ = services()
    async with net.server(registry, pre_shared_key_path=key_path) as server:
        config = net.config(server.address, "client", pre_shared_key_path=key_path)
        async with PersistentClient(config) as client:
            assert (await client.call("echo", b"1")).payload == b"1"
            server.disconnect(server.clients[0].remote_address)
            assert (await client.call("echo", b"2")).payload == b"2"
            assert client.connections == 2


@pytest.mark.parametrize("network", NETWORKS)
def test_programs_without_asyncio_use_the_key(
    network: Literal["tcp", "tls", "quic"], certs: Path, key_path: str
) -> None:
    registry, _ = services()
    net = Net(network, certs)
    config = net.config("127.0.0.1:0", "node", pre_shared_key_path=key_path)
    with BlockingServer(config, registry) as server:
        config = net.config(server.address, "client", pre_shared_key_path=key_path)
        with BlockingClient(config) as client:
            assert client.call("echo", b"x").payload == b"x"


async def test_a_missing_key_stops_both_sides(net: Net, tmp_path: Path) -> None:
    registry, _ = services()
    missing = str(tmp_path / "nosuch")
    with pytest.raises(KeyFileError, match="nosuch"):
        async with net.server(registry, pre_shared_key_path=missing):
            pass
    with pytest.raises(KeyFileError, match="nosuch"):
        await Client.connect(
            net.config("127.0.0.1:1", "client", pre_shared_key_path=missing)
        )


def test_an_empty_path_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="pre_shared_key_path"):
        Config(address=parse_address("h:1"), pre_shared_key_path="")
