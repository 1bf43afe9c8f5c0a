"""Lists of known keys where a pre-shared-key tunnel shows who the peer is."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import (
    ConnectionLostError,
    HandshakeError,
    PeerNotTrustedError,
)
from rpc25519_tools.identity.known_store import KnownStore
from rpc25519_tools.identity.pre_shared_key import load_pre_shared_key
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.transport import psk_handshake
from rpc25519_tools.transport.psk import PskTransport
from rpc25519_tools.transport.psk_handshake import TunnelSettings
from tests.helpers import until
from tests.rpc.known_lists import (
    assert_works,
    deny,
    echo,
    entry,
    line,
    lines_of,
    remove,
)
from tests.rpc.nets import Seen
from tests.transport.peers import Authority, dialled
from tests.transport.tunnels import Ends, HandMade

AUTHORITY = Authority.make()
NODE = AUTHORITY.identity("node")
ANN = AUTHORITY.identity("ann")
BOB = AUTHORITY.identity("bob")

Change = Callable[[KnownStore, Path, LoadedIdentity], None]


@dataclass
class Way:
    """How clients and servers meet, and where their lists are."""

    network: Literal["tcp", "tls", "quic"]
    verify: bool
    directory: Path

    @property
    def key_path(self) -> Path:
        return self.directory / "psk.bin"

    @property
    def clients(self) -> Path:
        return self.directory / "known_client_keys"

    @property
    def servers(self) -> Path:
        return self.directory / "known_server_keys"

    @property
    def store(self) -> KnownStore:
        return KnownStore(str(self.clients), "client")

    def config(self, address: str, known: Path) -> Config:
        return Config(
            address=parse_address(address),
            network=self.network,
            verify_peer=self.verify,
            known_keys_path=str(known),
            pre_shared_key_path=str(self.key_path),
        )

    @contextlib.asynccontextmanager
    async def serving(
        self, seen: Seen, identity: LoadedIdentity = NODE
    ) -> AsyncIterator[Server]:
        registry = Registry()
        registry.add_call("echo", echo)
        server = Server(self.config("127.0.0.1:0", self.clients), registry, seen)
        await server.start(identity)
        try:
            yield server
        finally:
            await server.aclose()

    async def dial(self, server: Server, identity: LoadedIdentity) -> Client:
        config = self.config(server.address, self.servers)
        return await Client.connect(config, identity)


def way_in(
    directory: Path, network: Literal["tcp", "tls", "quic"], *, verify: bool
) -> Way:
    way = Way(network, verify, directory)
    way.key_path.write_bytes(os.urandom(32))
    way.key_path.chmod(0o600)
    way.clients.touch()
    way.servers.touch()
    return way


@pytest.fixture(params=["tcp", "tls", "quic", "skip-verify"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Way:
    if request.param == "skip-verify":
        return way_in(tmp_path, "tls", verify=False)
    return way_in(tmp_path, request.param, verify=True)


async def assert_refused(
    way: Way, server: Server, identity: LoadedIdentity, seen: Seen, match: str
) -> None:
    count, connected = len(seen.refusals), len(seen.open)
    with pytest.raises((HandshakeError, ConnectionLostError)):
        await way.dial(server, identity)
    await until(lambda: len(seen.refusals) > count, what="the refusal")
    assert len(seen.open) == connected
    with pytest.raises(PeerNotTrustedError, match=match):
        raise seen.refusals[-1]


async def test_both_ends_record_each_other(way: Way) -> None:
    async with way.serving(Seen()) as server:
        async with await way.dial(server, ANN) as client:
            assert lines_of(way.servers) == [line(NODE)]
            await assert_works(client)
            await until(lambda: lines_of(way.clients) == [line(ANN)])
        async with await way.dial(server, ANN) as client:
            await assert_works(client)
    assert lines_of(way.clients) == [line(ANN)]
    assert lines_of(way.servers) == [line(NODE)]


async def test_a_server_that_does_not_confirm_is_recorded_once_it_is_proven(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Servers of Go do not confirm the key.
    monkeypatch.setattr(psk_handshake, "confirmation", lambda *_: b"")
    async with way.serving(Seen()) as server:
        async with await way.dial(server, ANN) as client:
            by_tls = way.network != "tcp" and way.verify
            assert lines_of(way.servers) == ([line(NODE)] if by_tls else [])
            await assert_works(client)
        assert lines_of(way.servers) == [line(NODE)]


async def test_locked_and_denied_keys_do_not_get_in(way: Way) -> None:
    seen = Seen()
    way.store.approve(entry(ANN))
    way.store.lock()
    async with (
        way.serving(seen) as server,
        await way.dial(server, ANN) as client,
    ):
        await assert_works(client)
        await assert_refused(way, server, BOB, seen, r"^bob@.*, which is locked")
        way.store.approve(entry(BOB))
        async with await way.dial(server, BOB) as bob:
            await assert_works(bob)
        way.store.deny(entry(BOB))
        await assert_refused(way, server, BOB, seen, r"^bob@.* is denied")
        await assert_works(client)


async def test_a_server_with_another_key_is_an_alarm(way: Way) -> None:
    async with way.serving(Seen()) as server, await way.dial(server, ANN):
        pass
    async with way.serving(Seen(), AUTHORITY.identity("other")) as server:
        with pytest.raises(PeerNotTrustedError, match="KEY HAS CHANGED"):
            await way.dial(server, ANN)
    assert lines_of(way.servers) == [line(NODE)]


@pytest.mark.parametrize("change", [deny, remove])
async def test_who_may_not_come_in_any_more_is_cut(way: Way, change: Change) -> None:
    seen = Seen()
    way.store.approve(entry(ANN))
    way.store.approve(entry(BOB))
    way.store.lock()
    async with (
        way.serving(seen) as server,
        await way.dial(server, ANN) as stays,
        await way.dial(server, BOB) as goes,
    ):
        await assert_works(goes)
        change(way.store, way.clients, BOB)
        await until(lambda: seen.closed, what="the cut")
        with pytest.raises(PeerNotTrustedError, match=r"^bob@"):
            raise seen.closed[0]
        await assert_works(stays)


@pytest.mark.parametrize("change", [deny, remove])
async def test_a_tunnel_handshake_that_waited_is_judged_by_what_holds_now(
    change: Change, way: Way
) -> None:
    seen, ends = Seen(), Ends()
    way.store.approve(entry(ANN))
    way.store.approve(entry(BOB))
    way.store.lock()
    key = load_pre_shared_key(way.key_path)
    async with (
        way.serving(seen) as server,
        dialled(
            server.address,
            BOB if way.network != "tcp" else None,
            verify=way.verify,
            quic=way.network == "quic",
        ) as below,
    ):
        # A whole good connection after it: the server is done with what came before.
        async with await way.dial(server, ANN) as good:
            await assert_works(good)
        change(way.store, way.clients, BOB)
        tunnel = PskTransport(
            below.transport,
            TunnelSettings(identity=BOB, key=key),
            side="client",
            accept=ends.accept,
            failed=ends.fail,
        )
        await until(lambda: seen.refusals or below.lost, what="the refusal")
        await until(lambda: seen.refusals, what="the refusal")
        with pytest.raises(PeerNotTrustedError, match=r"^bob@.* is (denied|not) in "):
            raise seen.refusals[0]
        assert not tunnel.is_open
        assert not ends.opened
        assert [one.peer.emails for one in seen.open if one.peer] in (
            [],
            [("ann@example.org",)],
        )


async def test_a_repeated_hello_is_nobody(tmp_path: Path) -> None:
    way, seen = way_in(tmp_path, "tcp", verify=True), Seen()
    async with way.serving(seen) as server:
        async with dialled(server.address, None) as below:
            HandMade(below.transport, side="client", identity=ANN)
            await until(lambda: below.data)  # the server's own handshake
            assert not seen.open
            assert not server.clients
            assert len(server.filenos()) == 2
        await until(lambda: seen.refusals)
        assert "before it had shown its pre-shared key" in str(seen.refusals[0])
        assert not seen.closed
        assert lines_of(way.clients) == []


async def test_a_silent_client_of_ours_is_there_at_once(way: Way) -> None:
    seen = Seen()
    async with way.serving(seen) as server, await way.dial(server, ANN) as client:
        listener = client.listen()
        await until(lambda: server.clients)
        assert len(seen.open) == 1
        await server.push(client.local_address, "news", b"n")
        push = await asyncio.wait_for(anext(aiter(listener)), 10)
        assert push.payload == b"n"
