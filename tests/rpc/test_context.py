"""What handlers learn about their calls."""

import asyncio
import contextlib
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import DeadlineError
from rpc25519_tools.identity.certificate import key_id, raw_public_key
from rpc25519_tools.identity.store import LoadedIdentity, load_identity
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import (
    CallContext,
    Cancellation,
    allowance_s,
    handling_until,
    time_left_s,
    without_deadline,
)
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import issue_certs, until, wait_until
from tests.rpc.nets import Net, raw_client
from tests.rpc.offers import Waiting


class Noting:
    """Services of every kind that keep the contexts of their calls."""

    def __init__(self) -> None:
        self.contexts: list[CallContext] = []
        self.registry = Registry()
        self.registry.add_call("note", self._note)
        self.registry.add_one_way("note", self._note)
        self.registry.add_upload("note", self._note)
        self.registry.add_download("note", self._note)
        self.registry.add_bistream("note", self._note)
        self.registry.register(self)

    async def _note(self, context: CallContext, *streams: object) -> None:
        self.contexts.append(context)

    async def method(self, context: CallContext, number: int) -> int:
        self.contexts.append(context)
        return number


async def call_every_kind(client: Client) -> None:
    """Call all services of Noting, in the order of KINDS."""
    await client.call("note", b"payload", args={"k": "v"}, subject="s")
    await client.send_one_way("note", b"payload", args={"k": "v"})
    for open_stream in (client.upload, client.download, client.bistream):
        async with open_stream("note", b"payload", args={"k": "v"}) as stream:
            await stream.reply()
    await client.netrpc.call("Noting.Method", 5, int)


KINDS = [
    CallKind.RPC,
    CallKind.ONE_WAY,
    CallKind.UPLOAD,
    CallKind.DOWNLOAD,
    CallKind.BISTREAM,
    CallKind.NET_RPC,
]


async def test_calls_of_every_kind_come_with_their_context(net: Net) -> None:
    noting = Noting()
    async with net.pair(noting.registry) as (server, client):
        await call_every_kind(client)
        await until(lambda: len(noting.contexts) == len(KINDS))
        contexts = {one.kind: one for one in noting.contexts}
        assert set(contexts) == set(KINDS)
        for kind, context in contexts.items():
            assert context.header.call_type == kind.value
            assert context.local_address == server.address
            assert context.remote_address == client.local_address
            assert (context.peer is not None) == (net.network != "tcp")
            if kind is not CallKind.NET_RPC:
                assert context.payload == b"payload"
                assert context.header.service_name == "note"
                assert context.header.args == {"k": "v"}
        assert contexts[CallKind.RPC].header.subject == "s"
        assert contexts[CallKind.NET_RPC].header.service_name == "Noting.Method"


# Who the peer is.


def load(certs: Path, name: str) -> LoadedIdentity:
    return load_identity(str(certs), name, None)


async def test_both_sides_know_the_proven_identity_of_the_other(certs: Path) -> None:
    noting = Noting()
    async with Net("tls", certs).pair(noting.registry) as (server, client):
        await call_every_kind(client)
        await until(lambda: len(noting.contexts) == len(KINDS))
        peers = [one.peer for one in noting.contexts]
        peers.append(server.clients[0].peer)
        for name, seen in [("client", peer) for peer in peers] + [
            ("node", client.peer)
        ]:
            own = load(certs, name)
            assert seen is not None
            assert seen.emails == (f"{name}@example.org",)
            assert seen.public_key == raw_public_key(own.certificate)
            assert seen.public_key == own.private_key.public_key().public_bytes_raw()
            assert seen.key_id == key_id(seen.public_key)
            assert seen.certificate_der == own.certificate.public_bytes(Encoding.DER)
            parsed = x509.load_der_x509_certificate(seen.certificate_der)
            assert parsed == own.certificate


async def test_each_client_is_known_by_its_own_certificate(tmp_path: Path) -> None:
    certs = issue_certs(tmp_path, "node", "ann", "bob")
    net, noting = Net("tls", certs), Noting()
    async with net.server(noting.registry) as server:
        seen: dict[str, tuple[str, ...]] = {}
        for name in ("ann", "bob", "ann"):
            config = net.config(server.address, name)
            async with await Client.connect(config) as client:
                await client.call("note", b"")
                assert noting.contexts[-1].peer is not None
                seen[name] = noting.contexts[-1].peer.emails
        assert seen == {"ann": ("ann@example.org",), "bob": ("bob@example.org",)}
        keys = [one.peer.public_key for one in noting.contexts if one.peer]
        assert keys[0] == keys[2] != keys[1]


async def test_an_identity_that_is_only_claimed_is_none(memory: Net) -> None:
    noting = Noting()
    header = Header(
        call_type=CallType.RPC,
        call_id="c",
        service_name="note",
        sender="tls://someone.else:1",
    )
    async with memory.server(noting.registry), raw_client(memory) as peer:
        peer.send(Message(header=header))
        await until(lambda: peer.messages)
    (context,) = noting.contexts
    assert context.peer is None
    assert context.header.sender == "tls://someone.else:1"
    assert context.remote_address == "127.0.0.1:50000"


async def test_ipv6_addresses_have_brackets(certs: Path) -> None:
    noting, net = Noting(), Net("tcp", certs)
    config = Config(address=parse_address("[::1]:0"), network="tcp")
    async with Server(config, noting.registry) as server:
        assert server.address.startswith("[::1]:")
        async with await net.client(server) as client:
            await client.call("note", b"")
            (context,) = noting.contexts
            assert context.local_address == server.address
            assert context.remote_address == client.local_address
            assert client.local_address.startswith("[::1]:")
            with client.listen() as pushes:
                await server.push(context.remote_address, "news")
                assert (await anext(pushes)).header.service_name == "news"


# How long a call may still take.


async def test_a_context_tells_the_time_that_is_left(memory: Net) -> None:
    noting = Noting()
    async with memory.pair(noting.registry) as (_, client):
        await client.call("note", b"", timeout_s=0.1)
        (context,) = noting.contexts
        first_s, second_s = context.time_left_s, context.time_left_s
        assert first_s is not None
        assert second_s is not None
        assert 0.1 >= first_s >= second_s
        assert context.until_s is not None
        await until(lambda: time.monotonic() > (context.until_s or 0))
        assert context.time_left_s is not None
        assert context.time_left_s < 0


async def test_a_call_without_a_deadline_has_all_the_time(memory: Net) -> None:
    noting = Noting()
    async with memory.pair(noting.registry) as (_, client):
        async with client.upload("note") as stream:
            await stream.reply()
        await client.send_one_way("note")
        await until(lambda: len(noting.contexts) == 2)
        assert [one.until_s for one in noting.contexts] == [None, None]
        assert [one.time_left_s for one in noting.contexts] == [None, None]


async def test_the_time_that_is_left_is_known_everywhere_in_a_handler(
    memory: Net,
) -> None:
    registry = Registry()
    seen: list[float | None] = []

    @registry.call("note")
    async def note(context: CallContext) -> None:
        async def in_task() -> None:
            seen.append(time_left_s())

        seen.extend((context.time_left_s, time_left_s()))
        await asyncio.create_task(in_task())
        seen.append(await asyncio.to_thread(time_left_s))

    async with memory.pair(registry) as (_, client):
        await client.call("note", b"", timeout_s=5)
    assert len(seen) == 4
    assert all(left_s is not None and 0 < left_s <= 5 for left_s in seen)
    assert time_left_s() is None


def test_limits_inside_each_other_are_taken_back() -> None:
    now_s = time.monotonic()
    with handling_until(now_s + 10):
        with handling_until(now_s + 5):
            assert (time_left_s() or 0) <= 5
            with handling_until(None):
                assert time_left_s() is None
            with pytest.raises(KeyError), handling_until(now_s):
                raise KeyError
            assert 0 < (time_left_s() or 0) <= 5
        assert 5 < (time_left_s() or 0) <= 10
    assert time_left_s() is None


async def test_a_task_may_outlive_the_deadline_of_its_handler(memory: Net) -> None:
    registry, clients, tasks = Registry(), list[Client](), list[asyncio.Task[bytes]]()
    ends_s: list[float] = []

    async def call_later() -> bytes:
        await go_on.wait()
        return bytes((await clients[0].call("echo", b"later")).payload)

    @registry.call("echo")
    async def echo(context: CallContext) -> Buffer:
        return context.payload

    @registry.call("start")
    async def start(context: CallContext) -> None:
        tasks.append(asyncio.create_task(call_later()))
        with without_deadline():
            assert time_left_s() is None
            tasks.append(asyncio.create_task(call_later()))
        left_s = time_left_s()
        assert left_s is not None
        ends_s.append(time.monotonic() + left_s)

    go_on = asyncio.Event()
    async with memory.pair(registry) as (_, client):
        clients.append(client)
        await client.call("start", timeout_s=0.1)
        await until(lambda: time.monotonic() > ends_s[0])
        go_on.set()
        with pytest.raises(DeadlineError, match="no time is left"):
            await tasks[0]
        assert await tasks[1] == b"later"


def test_threads_of_their_own_know_no_deadline() -> None:
    seen: list[float | None] = []
    with handling_until(time.monotonic() + 5):
        thread = threading.Thread(target=lambda: seen.append(time_left_s()))
        thread.start()
        thread.join()
    assert seen == [None]


_stamps = st.integers(-(2**62), 2**62)


@given(made_ns=_stamps, left_ns=st.integers(-(10**18), 10**18), now_ns=_stamps)
def test_the_allowance_is_the_time_between_the_senders_stamps(
    made_ns: int, left_ns: int, now_ns: int
) -> None:
    header = Header(call_type=CallType.RPC, created_ns=made_ns)
    allowed_s = allowance_s(header, made_ns + left_ns, lambda: now_ns)
    assert allowed_s == pytest.approx(left_ns / 1e9)
    unstamped = Header(call_type=CallType.RPC)
    by_us_s = allowance_s(unstamped, now_ns + left_ns, lambda: now_ns)
    assert by_us_s == pytest.approx(left_ns / 1e9)


# Whether anybody still waits.


async def test_an_async_handler_is_cancelled_and_its_context_says_so(
    net: Net,
) -> None:
    registry, waiting = Registry(), Waiting()
    contexts: list[CallContext] = []

    @registry.call("wait")
    async def wait(context: CallContext) -> None:
        contexts.append(context)
        await waiting(context)

    async with net.pair(registry) as (_, client):
        call = asyncio.create_task(client.call("wait", b""))
        other = asyncio.create_task(client.call("wait", b""))
        await until(lambda: waiting.started == 2)
        assert not any(one.cancellation.is_set for one in contexts)
        call.cancel()
        await until(lambda: waiting.cancelled)
        assert sum(one.cancellation.is_set for one in contexts) == 1
        waiting.go.set()
        await other


def test_a_cancellation_wakes_all_threads_that_wait_for_it() -> None:
    cancellation = Cancellation()
    assert not cancellation.wait(0.01)
    woken: list[bool] = []
    together = threading.Barrier(9)

    def wait() -> None:
        together.wait(5)
        woken.append(cancellation.wait(5))

    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    together.wait(5)
    cancellation.set()
    for thread in threads:
        thread.join(5)
    assert woken == [True] * 8
    cancellation.set()
    assert cancellation.is_set
    assert cancellation.wait()


def test_threads_that_begin_to_wait_at_once_wait_for_the_same() -> None:
    """Both must be woken, also when both find that nobody has waited before."""
    cancellation, both = Cancellation(), threading.Barrier(2)
    waiting: list[threading.Event] = []
    woken: list[bool] = []

    class SlowlyMade(threading.Event):
        def __init__(self) -> None:
            super().__init__()
            with contextlib.suppress(threading.BrokenBarrierError):
                # Wait for the other thread, unless it is kept out; then be the later.
                if both.wait(0.1):
                    wait_until(lambda: waiting)

        def wait(self, timeout: float | None = None) -> bool:
            waiting.append(self)
            return super().wait(timeout)

    threads = [
        threading.Thread(target=lambda: woken.append(cancellation.wait(1)))
        for _ in range(2)
    ]
    with mock.patch("rpc25519_tools.rpc.context.threading", wraps=threading) as patched:
        patched.Event = SlowlyMade
        for thread in threads:
            thread.start()
        wait_until(lambda: len(waiting) == 2)
    cancellation.set()
    for thread in threads:
        thread.join(5)
    assert woken == [True, True]


def test_a_cancellation_before_anybody_waits_is_seen() -> None:
    cancellation = Cancellation()
    cancellation.set()
    assert cancellation.wait(0)
    assert cancellation.is_set
