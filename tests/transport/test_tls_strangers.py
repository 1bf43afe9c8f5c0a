"""TLS with strangers: certificates that do not fit, peers that speak no TLS."""

import asyncio
import contextlib
import re

import pytest

from rpc25519_tools.errors import (
    BadMagicError,
    DeadlineError,
    HandshakeError,
    PeerNotTrustedError,
)
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.limits import Limits
from rpc25519_tools.transport.tls_records import FastRecords
from rpc25519_tools.wire.framing import FrameDecoder
from tests.helpers import until
from tests.transport.peers import DAY, NOW, Authority, dialled, listening

# Strangers.


async def refused_server(server: LoadedIdentity, client: LoadedIdentity) -> str:
    """Connect to a server that must be refused; return the client's reason."""
    async with listening(server) as found:
        with pytest.raises(PeerNotTrustedError) as caught:
            async with dialled(found.address, client):
                pass
        await until(lambda: found.outcomes, what="the server to notice")
        assert isinstance(found.failure, HandshakeError)
        return str(caught.value)


async def refused_client(server: LoadedIdentity, client: LoadedIdentity) -> str:
    """Let a server refuse a client; return the server's reason."""
    async with listening(server) as found, dialled(found.address, client) as ours:
        ours.transport.write([b"a request, sent before the verdict is known"])
        await until(lambda: found.outcomes, what="the server's verdict")
        assert isinstance(found.failure, PeerNotTrustedError)
        await until(lambda: ours.lost, what="the client to hear the verdict")
        assert isinstance(ours.error, PeerNotTrustedError)
        assert str(ours.error).startswith("the server refused our certificate (")
        return str(found.failure)


async def test_a_client_refuses_a_server_of_another_authority(
    client: LoadedIdentity,
) -> None:
    reason = await refused_server(Authority.make().identity(), client)
    assert re.search("authority", reason), reason


async def test_a_server_refuses_a_client_of_another_authority(
    authority: Authority, node: LoadedIdentity
) -> None:
    stranger = Authority.make().identity(trusts=authority)
    reason = await refused_client(node, stranger)
    assert re.search("authority", reason), reason


async def test_a_self_signed_server_is_refused(
    authority: Authority, client: LoadedIdentity
) -> None:
    await refused_server(authority.self_signed(), client)


async def test_a_self_signed_client_is_refused(
    authority: Authority, node: LoadedIdentity
) -> None:
    await refused_client(node, authority.self_signed())


LIVES = {
    "expired": ((NOW - 3 * DAY, NOW - DAY), r"expired( on |$)"),
    "not valid yet": ((NOW + DAY, NOW + 2 * DAY), r"not valid (before |yet$)"),
}


@pytest.mark.parametrize("life", LIVES)
async def test_a_server_outside_its_life_is_refused(
    authority: Authority, client: LoadedIdentity, life: str
) -> None:
    (begin, end), text = LIVES[life]
    server = authority.identity(begin=begin, end=end)
    assert re.search(text, await refused_server(server, client))


@pytest.mark.parametrize("life", LIVES)
async def test_a_client_outside_its_life_is_refused(
    authority: Authority, node: LoadedIdentity, life: str
) -> None:
    (begin, end), text = LIVES[life]
    client = authority.identity(begin=begin, end=end)
    assert re.search(text, await refused_client(node, client))


@pytest.mark.parametrize("life", LIVES)
async def test_an_authority_outside_its_life_is_refused(life: str) -> None:
    (begin, end), text = LIVES[life]
    authority = Authority.make(begin=begin, end=end)
    reason = await refused_server(authority.identity("n"), authority.identity("c"))
    assert re.search(text, reason)
    assert "authority" in reason


async def test_a_certificate_for_clients_is_refused_as_a_server(
    authority: Authority, client: LoadedIdentity
) -> None:
    server = authority.identity(usages=("client",))
    reason = await refused_server(server, client)
    assert "does not allow use as a server" in reason


async def test_a_certificate_for_servers_is_refused_as_a_client(
    authority: Authority, node: LoadedIdentity
) -> None:
    client = authority.identity(usages=("server",))
    reason = await refused_client(node, client)
    assert "does not allow use as a client" in reason


# What does not speak TLS.


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(bytes.fromhex("b35d1839ac8e1d") + bytes(40), id="frame"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="http"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="ssh"),
    ],
)
async def test_a_client_that_speaks_no_tls_is_told_apart(
    node: LoadedIdentity, data: bytes
) -> None:
    async with listening(node) as found, dialled(found.address, None) as ours:
        ours.transport.write([data])
        await until(lambda: found.outcomes)
        assert str(found.failure) == (
            "the client does not speak TLS (give -tcp for plain TCP)"
        )
        await until(lambda: ours.lost)
        with pytest.raises(BadMagicError, match="the peer speaks TLS"):
            FrameDecoder(bytearray(100)).receive_data(ours.data)


async def test_a_server_that_speaks_no_tls_is_told_apart(
    client: LoadedIdentity,
) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        await reader.read()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    with pytest.raises(HandshakeError, match="the server does not speak TLS"):
        async with dialled(f"{host}:{port}", client):
            pass
    server.close()


async def test_a_server_that_hangs_up_on_tls_is_told_apart(
    client: LoadedIdentity,
) -> None:
    async with listening(None) as found:
        dialling = asyncio.create_task(dial_and_leave(found.address, client))
        await until(lambda: found.accepted)
        found.accepted[0].transport.close()
        with pytest.raises(HandshakeError, match="closed the connection during"):
            await dialling


async def dial_and_leave(address: str, identity: LoadedIdentity) -> None:
    async with dialled(address, identity):
        pass


async def test_a_client_that_says_nothing_is_given_up(node: LoadedIdentity) -> None:
    async with (
        listening(node, limits=Limits(handshake_timeout_s=0.05)) as found,
        dialled(found.address, None) as ours,
    ):
        await until(lambda: ours.lost, what="the server to hang up")
        assert str(found.failure) == "no TLS handshake within 0.05 s"


async def test_a_server_that_says_nothing_is_given_up(client: LoadedIdentity) -> None:
    async with listening(None) as found:
        with pytest.raises(DeadlineError, match=r"no answer from .* within 0\.1 s"):
            async with dialled(found.address, client, timeout_s=0.1):
                pass
        await until(lambda: found.accepted[0].lost, what="the client to hang up")


async def test_a_client_that_leaves_during_the_handshake_is_noted(
    node: LoadedIdentity,
) -> None:
    async with listening(node) as found:
        async with dialled(found.address, None) as ours:
            ours.transport.close()
            await until(lambda: ours.lost)
        await until(lambda: found.outcomes)
        assert "hung up without TLS handshake" in str(found.failure)


async def test_openssl_gets_no_more_of_a_handshake_than_it_may_have(
    node: LoadedIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps a first message until that is whole, however much it announces."""
    fed: list[int] = []
    feed = FastRecords.feed

    def counted(records: FastRecords, encrypted: memoryview) -> None:
        fed.append(len(encrypted))
        feed(records, encrypted)

    monkeypatch.setattr(FastRecords, "feed", counted)
    body = b"\x01" + (120_000).to_bytes(3, "big") + bytes(100_000)
    records = b"".join(
        b"\x16\x03\x01" + len(body[start : start + 16_384]).to_bytes(2, "big")
        + body[start : start + 16_384]
        for start in range(0, len(body), 16_384)
    )  # fmt: skip
    async with listening(node) as found:
        host, port = found.address.rsplit(":", 1)
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(records)
        await until(lambda: found.outcomes)
        assert "more than 32768 bytes" in str(found.failure)
        assert max(fed) <= 16 * 1024
        assert sum(fed) <= 48 * 1024
        writer.close()


async def test_handshakes_under_way_end_with_the_listener(
    node: LoadedIdentity, no_leaked_fds: None
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with listening(node) as found:
            peers = [
                await stack.enter_async_context(dialled(found.address, None))
                for _ in range(3)
            ]
        await until(lambda: all(peer.lost for peer in peers), what="their end")


async def test_refused_peers_do_not_outlive_the_listener(
    node: LoadedIdentity, no_leaked_fds: None
) -> None:
    reader, writer = None, None
    async with listening(node) as found:
        host, port = found.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\n\r\n" * 10)
        await until(lambda: found.failures)
    await reader.read()
    writer.close()
    await writer.wait_closed()
