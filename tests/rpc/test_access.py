"""Rights are asked for at every call of every kind, before its handler runs."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rpc25519_tools.blocking import BlockingClient, BlockingServer
from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import NoSuchServiceError, RemoteCallError
from rpc25519_tools.files.download import DownloadService, download_file
from rpc25519_tools.files.jail import Root
from rpc25519_tools.files.parts import DOWNLOAD_SERVICE, UPLOAD_SERVICE
from rpc25519_tools.files.sink import Sink
from rpc25519_tools.files.source import open_local_source
from rpc25519_tools.files.upload import UploadService, upload_file
from rpc25519_tools.identity.access import Right
from rpc25519_tools.identity.access_text import parse_access_file
from rpc25519_tools.identity.certificate import PeerIdentity
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream
from rpc25519_tools.wire.greenpack import Buffer
from tests.helpers import until
from tests.rpc.nets import Net


@dataclass
class Policy:
    """Allows what is in a set, and notes each question."""

    allowed: set[tuple[str, str]] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)
    peers: list[PeerIdentity | None] = field(default_factory=list)

    def may(self, peer: PeerIdentity | None, right: Right, target: str) -> bool:
        self.asked.append((right, target))
        self.peers.append(peer)
        return (right, target) in self.allowed


class Arith:
    def __init__(self, ran: list[str]) -> None:
        self.ran = ran

    def add_one(self, number: int) -> int:
        self.ran.append("netrpc")
        return number + 1


def services(ran: list[str]) -> Registry:
    registry = Registry()

    @registry.call("guarded")
    async def call(context: CallContext) -> bytes:
        ran.append("call")
        return b"ok"

    @registry.one_way("guarded")
    async def one_way(context: CallContext) -> None:
        ran.append("one-way")

    @registry.upload("guarded")
    async def upload(context: CallContext, parts: IncomingStream) -> bytes:
        ran.append("upload")
        async for _ in parts:
            pass
        return b"ok"

    @registry.download("guarded")
    async def download(context: CallContext, out: OutgoingStream) -> None:
        ran.append("download")
        await out.send(b"part")

    @registry.bistream("guarded")
    async def bistream(
        context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> None:
        ran.append("bistream")
        async for _ in parts:
            pass

    async def rsync(
        context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> None:
        ran.append(context.kind.name)

    registry.add_rsync(CallKind.RSYNC_READ, "guarded", rsync)
    registry.add_rsync(CallKind.RSYNC_SEND, "guarded", rsync)
    registry.register(Arith(ran))
    return registry


async def do_call(client: Client) -> None:
    await client.call("guarded")


async def do_upload(client: Client) -> None:
    async with client.upload("guarded", b"first") as stream:
        await stream.send(b"last", last=True)
        await stream.reply()


async def do_download(client: Client) -> None:
    async with client.download("guarded") as stream:
        await stream.reply()


async def do_bistream(client: Client) -> None:
    async with client.bistream("guarded", b"first") as stream:
        await stream.send(b"last", last=True)
        await stream.reply()


async def do_rsync_read(client: Client) -> None:
    async with client.rsync(CallKind.RSYNC_READ, "guarded") as stream:
        await stream.reply()


async def do_rsync_send(client: Client) -> None:
    async with client.rsync(CallKind.RSYNC_SEND, "guarded") as stream:
        await stream.reply()


async def do_netrpc(client: Client) -> None:
    assert await client.netrpc.call("Arith.AddOne", 1, int) == 2


KINDS: dict[str, Callable[[Client], Any]] = {
    "call": do_call,
    "upload": do_upload,
    "download": do_download,
    "bistream": do_bistream,
    "RSYNC_READ": do_rsync_read,
    "RSYNC_SEND": do_rsync_send,
    "netrpc": do_netrpc,
}


def target_of(kind: str) -> str:
    return "Arith.AddOne" if kind == "netrpc" else "guarded"


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_of_call_needs_the_right_to_call(net: Net, kind: str) -> None:
    ran: list[str] = []
    target = target_of(kind)
    policy = Policy({("call", "other"), ("read", "/"), ("read", target)})
    async with (
        net.server(services(ran), access=policy) as server,
        await net.client(server) as client,
    ):
        with pytest.raises(RemoteCallError) as caught:
            await KINDS[kind](client)
        assert str(caught.value) == f"not allowed: call '{target}'"
        assert ran == []
        assert policy.asked == [("call", target)]
        # The next call of the same connection knows the new rights.
        policy.allowed.add(("call", target))
        await KINDS[kind](client)
        assert ran == [kind]
        policy.allowed.clear()
        with pytest.raises(RemoteCallError):
            await KINDS[kind](client)
        assert ran == [kind]


async def test_one_way_messages_need_it_too(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []
    policy = Policy()
    async with (
        net.server(services(ran), access=policy) as server,
        await net.client(server) as client,
    ):
        await client.send_one_way("guarded")
        await until(lambda: policy.asked, what="the question")
        await until(lambda: caplog.records, what="the log")
        assert ran == []
        policy.allowed.add(("call", "guarded"))
        await client.send_one_way("guarded")
        await until(lambda: ran == ["one-way"], what="the handler")


async def test_without_a_policy_everything_is_allowed(net: Net) -> None:
    ran: list[str] = []
    async with net.pair(services(ran)) as (_, client):
        for call in KINDS.values():
            await call(client)
    assert ran == list(KINDS)


async def test_a_policy_knows_who_asks(certs: Path) -> None:
    policy = Policy({("call", "guarded")})
    for network in ("tls", "tcp"):
        net = Net(network, certs)
        async with (
            net.server(services([]), access=policy) as server,
            await net.client(server) as client,
        ):
            await client.call("guarded")
    proven, unproven = policy.peers
    assert unproven is None
    assert proven is not None
    assert proven.emails == ("client@example.org",)


async def test_a_refusal_is_logged_with_who_and_what(
    certs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = Net("tls", certs)
    async with (
        net.server(services([]), access=Policy()) as server,
        await net.client(server) as client,
    ):
        with pytest.raises(RemoteCallError):
            await client.call("guarded")
        address = client.local_address
    (record,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    text = record.getMessage()
    assert text.startswith(f"{address} client@example.org (9")
    assert text.endswith(") not allowed: call 'guarded'")


@pytest.mark.parametrize("answer", [None, 1, "yes", "raise", "coroutine"])
async def test_whatever_is_not_true_refuses(memory: Net, answer: object) -> None:
    ran: list[str] = []

    class Odd:
        def may(self, peer: object, right: str, target: str) -> Any:
            if answer == "raise":
                raise OSError("the data base is down")
            if answer == "coroutine":
                future = asyncio.get_running_loop().create_future()
                future.set_result(True)
                return future
            return answer

    async with (
        memory.server(services(ran), access=Odd()) as server,
        await memory.client(server) as client,
    ):
        with pytest.raises(RemoteCallError):
            await client.call("guarded")
    assert ran == []


async def test_unknown_services_are_refused_as_ever(memory: Net) -> None:
    policy = Policy()
    async with (
        memory.server(services([]), access=policy) as server,
        await memory.client(server) as client,
    ):
        with pytest.raises(NoSuchServiceError):
            await client.call("unknown")
        with pytest.raises(RemoteCallError, match="can't find service"):
            await client.netrpc.call("No.Such", 1, int)
    assert policy.asked == []


async def test_handlers_can_ask_themselves(memory: Net) -> None:
    registry = Registry()

    @registry.call("ask")
    def ask(context: CallContext) -> bytes:  # plain, so in a thread
        may = [context.may("read", path) for path in ("/a", "/b")]
        return repr(may).encode()

    policy = Policy({("call", "ask"), ("read", "/b")})
    async with (
        memory.server(registry, access=policy) as server,
        await memory.client(server) as client,
    ):
        reply = await client.call("ask")
    assert bytes(reply.payload) == b"[False, True]"


def test_the_blocking_server_takes_a_policy_too(certs: Path) -> None:
    def config(name: str, address: str = "127.0.0.1:0") -> Config:
        return Config(
            address=parse_address(address), key_name=name, certs_dir=str(certs)
        )

    rules = parse_access_file(b"client@example.org call Arith.AddOne\n")
    with (
        BlockingServer(config("node"), services([]), access=rules) as server,
        BlockingClient(config("client", server.address)) as client,
    ):
        assert client.netrpc_call("Arith.AddOne", 1, int) == 2
        with pytest.raises(RemoteCallError, match="not allowed: call 'guarded'"):
            client.call("guarded")


# Files.


class Memory(Sink):
    """Takes a download, and drops it."""

    def write(self, data: Buffer) -> None:
        pass

    def check_space(self, size_bytes: int) -> None:
        pass

    def commit(self) -> None:
        pass

    def abort(self) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    for name in ("a", "ab", "secret"):
        (folder / name).mkdir(parents=True)
        (folder / name / "f").write_bytes(b"content")
    (folder / "a" / "link").symlink_to("../secret/f")
    return folder


def file_services(root: Root) -> Registry:
    registry = Registry()
    registry.add_download(
        DOWNLOAD_SERVICE, DownloadService(root, log=lambda record: None)
    )
    registry.add_upload(
        UPLOAD_SERVICE, UploadService(root, clobber=True, log=lambda record: None)
    )
    return registry


def names_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


async def outcome(client: Client, action: str, name: str, local: Path) -> str:
    """Return ``ok``, or what the server said."""
    try:
        if action == "read":
            await download_file(client, name, Memory)
        else:
            with open_local_source(str(local)) as source:
                await upload_file(client, source, name)
    except RemoteCallError as exc:
        return str(exc)
    return "ok"


async def test_files_are_read_and_written_where_that_is_allowed(
    memory: Net, served: Path, tmp_path: Path
) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"new")
    rules = parse_access_file(b"deny * read /a/no\nanyone read /a\nanyone write /ab\n")
    with Root(served) as root:
        async with (
            memory.server(file_services(root), access=rules) as server,
            await memory.client(server) as client,
        ):
            assert await outcome(client, "read", "a/f", local) == "ok"
            assert await outcome(client, "write", "ab/g", local) == "ok"
            before = names_below(served)
            for action, name in [
                ("write", "a/f"),
                ("write", "a/new"),
                ("read", "ab/f"),
                ("read", "secret/f"),
                ("read", "secret/missing"),
                ("read", "missing/missing"),
                ("read", "A/f"),
                ("read", "a/NO"),
                ("read", "a/no/missing"),
                ("write", "secret/f"),
                ("write", "missing/x"),
            ]:
                text = await outcome(client, action, name, local)
                assert text == f"not allowed: {action} '/{name}'"
            assert names_below(served) == before
    assert (served / "ab" / "g").read_bytes() == b"new"
    assert (served / "a" / "f").read_bytes() == b"content"


@pytest.mark.parametrize(
    "name",
    [
        "a/../secret/f",
        "a/./../secret/f",
        "./secret/f",
        "/secret/f",
        "a//f",
        "a/f/",
        "./a/f",
        "secret//f",
        "..",
        "",
        "a/link",
        "a/f\0",
    ],
)
async def test_no_spelling_gets_round_the_rights(
    memory: Net, served: Path, tmp_path: Path, name: str
) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"new")
    rules = parse_access_file(b"anyone read write /a\n")
    with Root(served) as root:
        async with (
            memory.server(file_services(root), access=rules) as server,
            await memory.client(server) as client,
        ):
            for action in ("read", "write"):
                text = await outcome(client, action, name, local)
                assert text.startswith("refused "), text
    assert (served / "secret" / "f").read_bytes() == b"content"
    assert (served / "a" / "f").read_bytes() == b"content"


async def test_the_right_to_call_is_no_right_to_files(
    memory: Net, served: Path, tmp_path: Path
) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"new")
    rules = parse_access_file(b"anyone call *\n")
    with Root(served) as root:
        async with (
            memory.server(file_services(root), access=rules) as server,
            await memory.client(server) as client,
        ):
            for action in ("read", "write"):
                text = await outcome(client, action, "a/f", local)
                assert text == f"not allowed: {action} '/a/f'"
