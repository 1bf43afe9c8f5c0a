"""Servers and clients that go by lists of known keys, over TLS."""

import asyncio
import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import (
    ConfigError,
    ConnectionLostError,
    KeyFileError,
    PeerNotTrustedError,
)
from rpc25519_tools.identity import known_store
from rpc25519_tools.identity.known_store import KnownStore
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.reconnect import PersistentClient
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
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
from tests.transport.peers import Authority

CUT_WITHIN_S = 1.0


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make()


@pytest.fixture(scope="module")
def node(authority: Authority) -> LoadedIdentity:
    return authority.identity("node")


@pytest.fixture(scope="module")
def ann(authority: Authority) -> LoadedIdentity:
    return authority.identity("ann")


@pytest.fixture(scope="module")
def bob(authority: Authority) -> LoadedIdentity:
    return authority.identity("bob")


@pytest.fixture
def clients(tmp_path: Path) -> Path:
    """The server's list, which exists and is empty."""
    path = tmp_path / "known_client_keys"
    path.touch()
    return path


@pytest.fixture
def servers(tmp_path: Path) -> Path:
    """The client's list, which exists and is empty."""
    path = tmp_path / "known_server_keys"
    path.touch()
    return path


def content_of(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@contextlib.contextmanager
def lock_held(path: Path) -> Iterator[None]:
    """Hold the lock that writers of a list take."""
    with Path(f"{path}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.asynccontextmanager
async def serving(
    identity: LoadedIdentity,
    known: Path | None,
    seen: Seen | None = None,
    *,
    verify: bool = True,
    address: str = "127.0.0.1:0",
) -> AsyncIterator[Server]:
    registry = Registry()
    registry.add_call("echo", echo)
    config = Config(
        address=parse_address(address),
        verify_peer=verify,
        known_keys_path=None if known is None else str(known),
    )
    server = Server(config, registry, seen)
    await server.start(identity)
    try:
        yield server
    finally:
        await server.aclose()


async def dial(
    server: Server,
    identity: LoadedIdentity,
    known: Path | None = None,
    *,
    host: str = "127.0.0.1",
    verify: bool = True,
) -> Client:
    config = Config(
        address=parse_address(f"{host}:{server.address.rpartition(':')[2]}"),
        verify_peer=verify,
        known_keys_path=None if known is None else str(known),
    )
    return await Client.connect(config, identity)


async def assert_refused(
    server: Server, identity: LoadedIdentity, seen: Seen, match: str
) -> None:
    """Check that the server lets nobody in, and says why."""
    count, connected = len(seen.refusals), len(seen.open)
    async with await dial(server, identity) as client:
        with pytest.raises((PeerNotTrustedError, ConnectionLostError)):
            await client.call("echo", b"hello")
    await until(lambda: len(seen.refusals) > count, what="the refusal")
    assert len(seen.open) == connected
    with pytest.raises(PeerNotTrustedError, match=match):
        raise seen.refusals[-1]


# First use.


async def test_both_ends_record_each_other_at_first_use(
    node: LoadedIdentity, ann: LoadedIdentity, clients: Path, servers: Path
) -> None:
    async with serving(node, clients) as server:
        async with await dial(server, ann, servers) as client:
            assert lines_of(servers) == [line(node)]
            await assert_works(client)
        async with await dial(server, ann, servers, host="localhost") as client:
            await assert_works(client)
    assert lines_of(clients) == [line(ann)]
    assert lines_of(servers) == [line(node)]


async def test_without_a_list_nothing_is_recorded(
    node: LoadedIdentity, ann: LoadedIdentity, tmp_path: Path
) -> None:
    async with (
        serving(node, tmp_path / "absent") as server,
        await dial(server, ann, tmp_path / "absent too") as client,
    ):
        await assert_works(client)
    assert os.listdir(tmp_path) == []


async def test_two_hundred_simultaneous_first_contacts_lose_no_line(
    authority: Authority, node: LoadedIdentity, clients: Path
) -> None:
    identities = [authority.identity(f"client{n}") for n in range(200)]
    seen = Seen()
    async with serving(node, clients, seen) as server:
        made = await asyncio.gather(*(dial(server, one) for one in identities))
        await until(lambda: len(seen.open) == 200)
        await asyncio.gather(*(client.aclose() for client in made))
    assert sorted(lines_of(clients)) == sorted(line(one) for one in identities)
    assert not seen.refusals


async def test_a_failing_record_is_told_and_costs_nobody_the_connection(
    node: LoadedIdentity,
    ann: LoadedIdentity,
    clients: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(known_store, "_LOCK_TIMEOUT_S", 0.02)
    with lock_held(clients):
        async with serving(node, clients) as server, await dial(server, ann) as client:
            await assert_works(client)
            await until(lambda: "new keys (1) were not recorded" in caplog.text)
    assert "another program holds the lock" in caplog.text
    assert content_of(clients) == b""


# Lockdown.


async def test_a_locked_server_refuses_new_keys_within_the_handshake(
    node: LoadedIdentity, ann: LoadedIdentity, bob: LoadedIdentity, clients: Path
) -> None:
    store, seen = KnownStore(str(clients), "client"), Seen()
    store.approve(entry(ann))
    store.lock()
    before = content_of(clients)
    async with (
        serving(node, clients, seen) as server,
        await dial(server, ann) as client,
    ):
        await assert_works(client)
        await assert_refused(server, bob, seen, r"bob@.* is not in .*, which is locked")
        await assert_works(client)
    assert content_of(clients) == before


async def test_a_locked_client_refuses_a_new_server(
    authority: Authority, node: LoadedIdentity, ann: LoadedIdentity, servers: Path
) -> None:
    store, seen = KnownStore(str(servers), "server"), Seen()
    store.approve(entry(authority.identity("other"), "other.example.org"))
    store.lock()
    async with serving(node, None, seen) as server:
        with pytest.raises(PeerNotTrustedError, match=r"^node@.* which is locked"):
            await dial(server, ann, servers)
        await until(lambda: seen.refusals)
        assert not seen.open


async def test_an_empty_locked_list_stops_a_server_at_its_start(
    node: LoadedIdentity, clients: Path, no_leaked_fds: None
) -> None:
    os.chmod(clients, 0o444)
    with pytest.raises(KeyFileError, match="has no keys, so that nobody could be let"):
        async with serving(node, clients):
            pass


async def test_changes_take_effect_without_a_restart(
    node: LoadedIdentity, ann: LoadedIdentity, clients: Path, authority: Authority
) -> None:
    store, seen = KnownStore(str(clients), "client"), Seen()
    bob = authority.identity("bob")
    async with serving(node, clients, seen) as server:
        async with await dial(server, ann) as client:
            await assert_works(client)
        await until(lambda: lines_of(clients))
        store.lock()
        await assert_refused(server, bob, seen, "which is locked")
        store.approve(entry(bob))
        async with await dial(server, bob) as client:
            await assert_works(client)
        store.deny(entry(ann))
        await assert_refused(server, ann, seen, "is denied")
        store.unlock()
        await assert_refused(server, ann, seen, "is denied")
        async with await dial(server, authority.identity("new")) as client:
            await assert_works(client)


async def test_a_list_that_is_taken_away_opens_nothing_and_cuts_nobody(
    node: LoadedIdentity,
    ann: LoadedIdentity,
    bob: LoadedIdentity,
    clients: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, seen = KnownStore(str(clients), "client"), Seen()
    store.approve(entry(ann))
    store.lock()
    away = clients.with_name("away")
    async with (
        serving(node, clients, seen) as server,
        await dial(server, ann) as stays,
    ):
        await assert_works(stays)
        os.rename(clients, away)
        await assert_refused(server, bob, seen, "is not known, and .* is gone")
        await until(lambda: "is gone; until it is back" in caplog.text)
        async with await dial(server, ann) as client:
            await assert_works(client)
        await assert_works(stays)
        os.rename(away, clients)
        await assert_refused(server, bob, seen, "which is locked")
        await assert_works(stays)
    assert caplog.text.count("is gone") == 1


async def test_a_client_that_connects_again_remembers_a_list_that_went_away(
    authority: Authority, node: LoadedIdentity, ann: LoadedIdentity, servers: Path
) -> None:
    async with serving(node, None) as server:
        address = server.address
        config = Config(address=parse_address(address), known_keys_path=str(servers))
        client = PersistentClient(config, ann)
        await client.call("echo", b"hello")
        assert lines_of(servers) == [line(node)]
    os.unlink(servers)
    async with client:
        async with serving(node, None, address=address):
            await client.call("echo", b"hello")
        other = authority.identity("other")
        async with serving(other, None, address=address):
            with pytest.raises(PeerNotTrustedError, match="KEY HAS CHANGED"):
                await client.call("echo", b"hello")
        assert client.connections == 2


# The alarm.


async def test_a_server_with_another_key_is_an_alarm_until_it_is_approved(
    authority: Authority, node: LoadedIdentity, ann: LoadedIdentity, servers: Path
) -> None:
    other = authority.identity("other")
    async with serving(node, None) as server, await dial(server, ann, servers):
        pass
    before = content_of(servers)
    async with serving(other, None) as server:
        with pytest.raises(
            PeerNotTrustedError,
            match=r"KEY HAS CHANGED: 127.0.0.1 is now other@.* and was node@",
        ):
            await dial(server, ann, servers)
        assert content_of(servers) == before
        # The name, dialled for the first time, is another address.
        async with await dial(server, ann, servers, host="localhost") as client:
            await assert_works(client)
        with pytest.raises(PeerNotTrustedError, match="KEY HAS CHANGED"):
            await dial(server, ann, servers)
        KnownStore(str(servers), "server").approve(entry(other))
        async with await dial(server, ann, servers) as client:
            await assert_works(client)


async def test_a_denied_server_is_refused(
    node: LoadedIdentity, ann: LoadedIdentity, servers: Path
) -> None:
    KnownStore(str(servers), "server").deny(entry(node))
    async with serving(node, None) as server:
        with pytest.raises(PeerNotTrustedError, match=r"^node@.* is denied"):
            await dial(server, ann, servers)


@pytest.mark.parametrize("change", [deny, remove])
async def test_who_may_not_come_in_any_more_is_cut_within_a_second(
    change: Callable[[KnownStore, Path, LoadedIdentity], None],
    node: LoadedIdentity,
    ann: LoadedIdentity,
    bob: LoadedIdentity,
    clients: Path,
) -> None:
    store, seen = KnownStore(str(clients), "client"), Seen()
    release = threading.Event()
    async with (
        serving(node, clients, seen) as server,
        await dial(server, ann) as stays,
        await dial(server, bob) as goes,
    ):
        await assert_works(goes)
        await until(lambda: len(lines_of(clients)) == 2)
        store.lock()
        # What reads files for others keeps all of the usual threads busy.
        loop = asyncio.get_running_loop()
        busy = [loop.run_in_executor(None, release.wait) for _ in range(40)]
        try:
            start = time.monotonic()
            change(store, clients, bob)
            await until(lambda: seen.closed, timeout_s=CUT_WITHIN_S, what="the cut")
            assert time.monotonic() - start < CUT_WITHIN_S
        finally:
            release.set()
            await asyncio.gather(*busy)
        with pytest.raises(PeerNotTrustedError, match=r"^bob@.* is (denied|not) in "):
            raise seen.closed[0]
        with pytest.raises(ConnectionLostError):
            await goes.call("echo", b"hello")
        await assert_works(stays)
        assert len(seen.open) == 1


async def test_a_change_that_a_handshake_has_read_already_still_cuts(
    node: LoadedIdentity, ann: LoadedIdentity, bob: LoadedIdentity, clients: Path
) -> None:
    store, seen = KnownStore(str(clients), "client"), Seen()
    store.approve(entry(ann))
    async with (
        serving(node, clients, seen) as server,
        await dial(server, bob) as goes,
    ):
        await assert_works(goes)
        store.deny(entry(bob))
        async with await dial(server, ann) as stays:
            await assert_works(stays)
            await until(lambda: seen.closed, timeout_s=CUT_WITHIN_S)
            await assert_works(stays)


async def test_stopping_ends_the_watch(
    node: LoadedIdentity, clients: Path, no_leaked_fds: None
) -> None:
    def threads() -> list[str]:
        names = [thread.name for thread in threading.enumerate()]
        return [name for name in names if name.startswith("known-keys")]

    async with serving(node, clients):
        write(clients, b"# changed")
        await until(threads)
    await until(lambda: not threads())
    assert not [one for one in asyncio.all_tasks() if one is not asyncio.current_task()]


# Faults.


@pytest.mark.parametrize("which", ["", ".denied"])
async def test_a_broken_list_refuses_everybody_and_the_server_goes_on(
    which: str,
    node: LoadedIdentity,
    ann: LoadedIdentity,
    clients: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken, seen = Path(f"{clients}{which}"), Seen()
    async with (
        serving(node, clients, seen) as server,
        await dial(server, ann) as client,
    ):
        await assert_works(client)
        await until(lambda: lines_of(clients))
        good = content_of(broken)
        number = len(good.splitlines()) + 1
        write(broken, good + b"h oops\n")
        pattern = rf"cannot be checked: .*{broken.name} line {number}: "
        await assert_refused(server, ann, seen, pattern)
        await until(lambda: "all clients are refused until" in caplog.text)
        assert f"{broken.name} line {number}" in caplog.text
        await assert_works(client)  # who was judged by a good list stays
        write(broken, good)
        async with await dial(server, ann) as again:
            await assert_works(again)
        refusals = [e for e in seen.closed if isinstance(e, PeerNotTrustedError)]
        assert not refusals
    records = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(records) == 1


async def test_a_broken_list_stops_a_server_at_its_start(
    node: LoadedIdentity, clients: Path
) -> None:
    write(clients, b"h oops")
    with pytest.raises(KeyFileError, match="known_client_keys line 1: "):
        async with serving(node, clients):
            pass


async def test_lists_are_not_looked_at_without_verification(
    node: LoadedIdentity, ann: LoadedIdentity, clients: Path, servers: Path
) -> None:
    for path in (clients, servers):
        write(path, b"h oops")
    async with (
        serving(node, clients, verify=False) as server,
        await dial(server, ann, servers, verify=False) as client,
    ):
        await assert_works(client)


async def test_lists_are_not_looked_at_on_plain_tcp(
    clients: Path, servers: Path
) -> None:
    for path in (clients, servers):
        write(path, b"h oops")
    registry = Registry()
    registry.add_call("echo", echo)
    address = parse_address("127.0.0.1:0")
    config = Config(address=address, network="tcp", known_keys_path=str(clients))
    async with Server(config, registry) as server:
        address = parse_address(server.address)
        config = Config(address=address, network="tcp", known_keys_path=str(servers))
        async with await Client.connect(config) as client:
            await assert_works(client)


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="known_keys_path must not be empty"):
        Config(address=parse_address("h"), known_keys_path="")


async def test_a_certificate_that_is_refused_is_not_shown_to_the_check(
    node: LoadedIdentity, clients: Path
) -> None:
    stranger, seen = Authority.make(), Seen()
    async with serving(node, clients, seen) as server:
        with contextlib.suppress(PeerNotTrustedError, ConnectionLostError):
            identity = stranger.identity("stranger")
            async with await dial(server, identity, verify=False) as client:
                await client.call("echo", b"hello")
        await until(lambda: seen.refusals)
    assert content_of(clients) == b""
