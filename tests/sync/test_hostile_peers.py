"""Hostile ends of a sync over real connections: to ``srv``, and to our client."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import RemoteCallError, RemoteProtocolError
from rpc25519_tools.identity.store import load_identity
from rpc25519_tools.rpc.calls import CallKind, RsyncStep
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream
from rpc25519_tools.sync.client import SyncSettings, pull, push
from rpc25519_tools.sync.observer import Silence
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.records import (
    OFFER_SERVICE,
    SYNC_SERVICE,
    VERSION,
    Data,
    Deltas,
    Overview,
    Request,
    Verdict,
    Verdicts,
    encode_overview,
    encode_records,
    encode_request,
)
from rpc25519_tools.wire.codecs import Codec, compress
from tests.helpers import SrvProcess
from tests.sync.attackers import ALL, DIR, FILE, listing, overview

_NO_RETRY = SyncSettings(retry_for_s=0.0)
_BOMB = b"\1" + bytes(compress(Codec.ZSTD_01, bytes(64 << 20)))


def _config(certs: Path, address: str) -> Config:
    return Config(
        address=parse_address(address), key_name="client", certs_dir=str(certs)
    )


async def _connect(certs: Path, address: str) -> Client:
    identity = await asyncio.to_thread(load_identity, certs, "client", None)
    return await Client.connect(_config(certs, address), identity)


def _request(dest: bytes = b"", **options: object) -> bytes:
    made = SyncOptions(recursive=True, fsync=False, **options)  # type: ignore[arg-type]
    return encode_request(Request(VERSION, made, (), dest))


def _pull(*paths: bytes, **how: object) -> bytes:
    options = SyncOptions(recursive=True)
    return encode_request(Request(VERSION, options, paths, **how))  # type: ignore[arg-type]


_OVERVIEW, _DELTAS, _HASHES = RsyncStep.OVERVIEW, RsyncStep.DELTAS, RsyncStep.HASHES
_Messages = list[tuple[RsyncStep, bytes]]


def _entries(made: Overview) -> tuple[RsyncStep, bytes]:
    return _OVERVIEW, encode_overview(made)


def _contents(*records: Deltas) -> tuple[RsyncStep, bytes]:
    return _DELTAS, encode_records(records)


_PUSHES: list[tuple[bytes, _Messages]] = [
    (b"", []),
    (b"\xff", []),
    (_BOMB, []),
    (_request(b"../x"), []),
    (_request(b"/etc"), []),
    (_request(b"a\0b"), []),
    (_request(b".rpc25519-part-area/x"), []),
    (_request(backup_dir=b"../x"), []),
    (_request(delete_excluded=True), []),
    (_request(), [(_OVERVIEW, b"\x07")]),
    (_request(), [(_OVERVIEW, _BOMB)]),
    (_request(), [(_OVERVIEW, b"\0" + b"\x91" * 100_000)]),
    (_request(), [_entries(overview((b"..", FILE)))]),
    (_request(), [_entries(overview((b"a", FILE), directory=9))]),
    (_request(), [_entries(overview((b"a", 0o170644)))]),
    (_request(), [_entries(overview((b"b", DIR), (b"a", DIR)))]),
    (_request(), [_contents(Data(3, 0, b"x"))]),
    (_request(), [(_DELTAS, _BOMB)]),
    (_request(), [_entries(overview((b"f", FILE))), _contents(Data(7, 0, b""))]),
    (_request(), [_entries(overview(final=True)), _entries(overview())]),
]
_PULLS: list[tuple[bytes, _Messages]] = [
    (b"", []),
    (_pull(b"../x"), []),
    (_pull(b"missing"), []),
    (_pull(b"d/", start_at=b"../x"), []),
    (_pull(b"", only=(b"a/" * 2000,)), []),
    (_pull(b"d/"), [(_HASHES, b"\x07")]),
    (_pull(b"d/"), [(_HASHES, _BOMB)]),
    (_pull(b"d/"), [(_HASHES, encode_records([Verdicts(99, b"\2")]))]),
    (_pull(b"d/"), [(_HASHES, encode_records([Verdicts(0, b"\2")]))]),
    (_pull(b"d/"), [(_HASHES, encode_records([Verdicts(0, b"\x63")]))]),
]


async def _attack(
    client: Client, kind: CallKind, opening: bytes, messages: _Messages
) -> str:
    """Open a call, send messages, and return how the server refuses them."""
    call = client.rsync(kind, SYNC_SERVICE, opening, compress=False)
    async with call as stream:
        try:
            for step, payload in messages:
                await stream.send(payload, step=step)
            async for _ in stream:
                pass
            await stream.reply()
        except RemoteCallError as exc:
            return str(exc)
    return "it took it"


async def test_server_refuses_hostile_clients_and_serves_good_ones(
    certs: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (root / "d" / "f").write_bytes(b"good")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "f").write_bytes(b"good")
    served = ["-serve", str(root), "-readfile", str(root)]
    with SrvProcess(*served, certs=certs) as srv:
        client = await _connect(certs, srv.address)
        try:
            for kind, attacks in (
                (CallKind.RSYNC_SEND, _PUSHES),
                (CallKind.RSYNC_READ, _PULLS),
            ):
                for opening, messages in attacks:
                    async with asyncio.timeout(5):
                        said = await _attack(client, kind, opening, messages)
                    assert "\n" not in said
                    assert "internal error" not in said
                    assert said != "it took it", (opening[:40], messages)
        finally:
            await client.aclose()

        async def connect() -> Client:
            return await _connect(certs, srv.address)

        source = [os.fsencode(tmp_path / "source") + b"/"]
        await push(connect, source, b"new", ALL, Silence(), _NO_RETRY)
        said = srv.stdout() + srv.stderr()
    assert "Traceback" not in said
    assert "internal" not in said
    assert listing(root / "new") == {"f": b"good"}
    assert sorted(os.listdir(root)) == ["b", "d", "new"]  # b came in order
    assert sorted(os.listdir(tmp_path)) == ["root", "source"]


class _Evil:
    """A service that answers a pull with whatever it wants."""

    checks_access = True

    def __init__(self, messages: _Messages) -> None:
        self._messages = messages

    async def __call__(
        self, context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> Reply:
        await out.send(
            encode_overview(Overview()), step=_OVERVIEW, args={"single": "1"}
        )
        for step, payload in self._messages:
            await out.send(payload, step=step)
        async for _ in parts:
            pass
        return Reply()


async def _offer(context: CallContext) -> Reply:
    return Reply()


@asynccontextmanager
async def _evil_server(certs: Path, messages: _Messages) -> AsyncIterator[str]:
    registry = Registry()
    registry.add_rsync(CallKind.RSYNC_READ, SYNC_SERVICE, _Evil(messages))
    registry.add_call(OFFER_SERVICE, _offer)
    config = Config(
        address=parse_address("127.0.0.1:0"), key_name="node", certs_dir=str(certs)
    )
    async with Server(config, registry) as server:
        yield server.address


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([_entries(overview((b".bashrc", FILE)))], "was not asked for"),
        ([_entries(overview((b".", DIR)))], "was not asked for"),
        ([_entries(overview((b"../d", FILE)))], "no single component"),
        ([(_OVERVIEW, _BOMB)], "unpack|too long|over|more than"),
        ([_contents(Data(0, 0, b"x"))], "nobody wants"),
    ],
)
async def test_client_refuses_hostile_servers(
    certs: Path, tmp_path: Path, messages: _Messages, error: str
) -> None:
    async with _evil_server(certs, messages) as address:

        async def connect() -> Client:
            return await _connect(certs, address)

        pulling = pull(connect, [b"d"], bytes(tmp_path), ALL, Silence(), _NO_RETRY)
        with pytest.raises(RemoteProtocolError, match=error) as caught:
            await asyncio.wait_for(pulling, 8)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_verdicts_are_as_the_attacks_have_them() -> None:
    assert (Verdict.EQUAL, Verdict.WANT, len(Verdict)) == (0, 2, 6)
