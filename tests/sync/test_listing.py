"""Listings between our ends."""

import asyncio
import contextlib
import os
import re
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from rpc25519_tools.errors import (
    DecodeError,
    IncompleteTransferError,
    LocalFileError,
    NoSuchServiceError,
    RemoteCallError,
)
from rpc25519_tools.files.descriptors import OpenFiles
from rpc25519_tools.files.directory import Directory, Found
from rpc25519_tools.files.jail import Root
from rpc25519_tools.files.record import TransferRecord
from rpc25519_tools.identity.access import AccessPolicy
from rpc25519_tools.identity.access_text import parse_access_file
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.sync import listing
from rpc25519_tools.sync.list_records import LIST_SERVICE, ListEntry
from rpc25519_tools.sync.listing import ListService, list_remote
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import PATIENCE_S, until
from tests.rpc.memory import MemoryNetwork
from tests.rpc.nets import Net, raw_server


@pytest.fixture
def memory(certs: Path, monkeypatch: pytest.MonkeyPatch) -> Net:
    network = MemoryNetwork()
    network.install(monkeypatch)
    return Net("tcp", certs, network)


@dataclass
class Served:
    """A served directory, and what its service has noted."""

    net: Net
    top: Path
    records: list[TransferRecord] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def client(
        self, *, access: AccessPolicy | None = None, files: OpenFiles | None = None
    ) -> AsyncIterator[Client]:
        registry = Registry()
        with Root(self.top) as root:
            service = ListService(root, log=self.records.append, files=files)
            registry.add_download(LIST_SERVICE, service)
            async with (
                self.net.server(registry, access=access) as server,
                await self.net.client(server) as client,
            ):
                yield client


@pytest.fixture
def served(memory: Net, tmp_path: Path, no_leaked_fds: None) -> Served:
    top = tmp_path / "served"
    (top / "b" / "deep").mkdir(parents=True)
    for name in ("a", "b/x", "b/deep/y", "b/deep/z", "b.c"):
        (top / name).write_text(name)
    (top / "c").mkdir()
    (top / "link").symlink_to("b/x")
    return Served(memory, top)


async def listed(client: Client, *args: Any, **options: Any) -> list[ListEntry]:
    return [entry async for entry in list_remote(client, *args, **options)]


def paths(entries: Sequence[ListEntry]) -> list[str]:
    return [os.fsdecode(entry.path) for entry in entries]


async def test_a_directory_is_listed_in_order(served: Served) -> None:
    async with served.client() as client:
        for name in ("", ".", "/"):
            assert paths(await listed(client, name)) == ["a", "b", "b.c", "c", "link"]
        assert paths(await listed(client, "b")) == ["deep", "x"]
        assert paths(await listed(client, "b/deep/")) == ["y", "z"]
        assert await listed(client, "c") == []
    assert [(record.kind, record.failure) for record in served.records] == [
        ("list", None)
    ] * 6


async def test_entries_say_what_the_disk_says(served: Served) -> None:
    async with served.client() as client:
        found = {os.fsdecode(one.name): one for one in await listed(client)}
    for name, entry in found.items():
        status = (served.top / name).lstat()
        assert (entry.mode, entry.size) == (status.st_mode, status.st_size)
        assert (entry.mtime_ns, entry.nlink) == (status.st_mtime_ns, status.st_nlink)
        assert (entry.uid, entry.gid) == (status.st_uid, status.st_gid)
        assert (served.top / name).owner() == entry.owner
        assert (served.top / name).group() == entry.group
    assert found["link"].link_target == b"b/x"
    assert [found[name].kind for name in ("a", "b", "link")] == [
        "file",
        "directory",
        "link",
    ]


async def test_a_tree_is_listed_as_it_is_walked(served: Served) -> None:
    async with served.client() as client:
        everything = await listed(client, recursive=True)
        below = await listed(client, "b", recursive=True)
    assert paths(everything) == [
        "a",
        "b",
        "b/deep",
        "b/deep/y",
        "b/deep/z",
        "b/x",
        "b.c",
        "c",
        "link",
    ]
    assert paths(below) == ["deep", "deep/y", "deep/z", "x"]


async def test_many_entries_come_in_many_parts(served: Served) -> None:
    names = sorted(f"{number:x}-" + "n" * 100 for number in range(3000))
    for name in names:
        (served.top / "c" / name).touch()
    async with served.client() as client:
        assert paths(await listed(client, "c")) == names
        assert len(await listed(client, "", recursive=True)) == 3009
    assert served.records[0].size_bytes > 3000 * 100


async def test_a_deep_tree_is_listed(served: Served) -> None:
    names = [f"d{depth}" for depth in range(60)]
    (served.top / "c" / "/".join(names)).mkdir(parents=True)
    async with served.client() as client:
        found = await listed(client, "c", recursive=True)
    assert found[-1].path.decode() == "/".join(names)


async def test_a_path_that_is_too_long_to_ask_for_is_not_entered(
    served: Served,
) -> None:
    back = os.getcwd()
    os.chdir(served.top / "c")
    try:
        for _ in range(17):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
        async with served.client() as client:
            found = await listed(client, recursive=True)
    finally:
        os.chdir(back)
    deepest = found[-2]
    assert len(deepest.parents) == 17  # "c", and 16 * 251 bytes
    assert "too long" in deepest.problem


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("a/", "cannot list 'a/': it is a file, not a directory"),
        ("link/", "cannot list 'link/': it is a symbolic link, not a directory"),
        ("none", "cannot list 'none': no such file or directory"),
        ("none/x", "cannot list 'none/x': no such file or directory"),
        ("a/x", "refused 'a/x': 'a' is a symbolic link or no directory"),
        ("../served", "refused '../served': the path has an empty, '.' or"),
        ("/b", "refused '/b': the path is absolute"),
    ],
)
async def test_what_cannot_be_listed_is_told(
    served: Served, path: str, text: str
) -> None:
    async with served.client() as client:
        with pytest.raises(RemoteCallError, match=f"^{re.escape(text)}"):
            await listed(client, path)
        assert paths(await listed(client, "c")) == []
    assert (served.records[0].failure or "").startswith(text)


async def test_a_file_is_listed_alone(served: Served) -> None:
    async with served.client() as client:
        for recursive in (False, True):
            (entry,) = await listed(client, "b/x", recursive=recursive)
            assert (entry.path, entry.size) == (b"x", 3)
        (link,) = await listed(client, "link")
        assert link.kind == "link"


async def test_directories_that_fail_are_named_and_the_rest_is_listed(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = Root.hold_directory

    def fail_for_deep(self: Root, parts: Sequence[bytes], shown: str) -> int:
        if tuple(parts) == (b"b", b"deep"):
            raise LocalFileError(f"cannot list {shown!r}: no permission")
        return hold(self, parts, shown)

    monkeypatch.setattr(Root, "hold_directory", fail_for_deep)
    async with served.client() as client:
        found = await listed(client, recursive=True)
    problems = {entry.path: entry.problem for entry in found if entry.problem}
    assert problems == {b"b/deep": "cannot list 'b/deep': no permission"}
    assert paths(found) == ["a", "b", "b/deep", "b/x", "b.c", "c", "link"]


async def test_times_beyond_the_wire_are_clipped(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_INT64_END", 1000)
    async with served.client() as client:
        assert {entry.mtime_ns for entry in await listed(client)} == {999}


# Rights.


async def test_only_what_may_be_listed_is_shown(served: Served) -> None:
    rules = parse_access_file(
        b"deny anyone list /b/x\nanyone list /b\nanyone read /c\n"
    )
    async with served.client(access=rules) as client:
        assert paths(await listed(client, "b")) == ["deep"]
        assert paths(await listed(client, "b", recursive=True)) == [
            "deep",
            "deep/y",
            "deep/z",
        ]
        assert paths(await listed(client, "b/deep/y")) == ["y"]
        for path, target in (
            ("", "/"),
            ("b/x", "/b/x"),
            ("c", "/c"),
            ("none", "/none"),
        ):
            with pytest.raises(RemoteCallError) as caught:
                await listed(client, path)
            assert str(caught.value) == f"not allowed: list '{target}'"


async def test_a_forbidden_directory_is_not_entered(served: Served) -> None:
    rules = parse_access_file(b"deny anyone list /b\nanyone list /\n")
    async with served.client(access=rules) as client:
        found = await listed(client, recursive=True)
    assert paths(found) == ["a", "b.c", "c", "link"]


# Bounds.


async def test_a_connection_has_few_listings_at_a_time(served: Served) -> None:
    async with served.client(files=OpenFiles(100, 2)) as client:
        with pytest.raises(RemoteCallError, match="too many files open"):
            await listed(client)


async def test_who_stops_reading_ends_the_call(served: Served) -> None:
    for number in range(4000):
        (served.top / "c" / f"{number:0100}").touch()
    async with served.client() as client:
        async with contextlib.aclosing(list_remote(client, "c")) as entries:
            async for _ in entries:
                break
        await until(lambda: served.records, what="the end of the listing")
        assert paths(await listed(client, "b")) == ["deep", "x"]


async def test_a_server_without_listings_is_told_apart(memory: Net) -> None:
    async with memory.pair(Registry()) as (_, client):
        with pytest.raises(NoSuchServiceError, match=r"listings .*-serve"):
            await listed(client)


async def test_a_slow_disk_is_not_taken_for_a_dead_server(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    signs, enough = [], threading.Event()
    send, look = listing._Sender._send, Directory.next_batch

    async def counted(self: listing._Sender, *, last: bool = False) -> None:
        await send(self, last=last)
        signs.append(last)
        if len(signs) >= 3:
            enough.set()

    def slow(self: Directory, limit: int) -> list[Found]:
        assert enough.wait(PATIENCE_S)
        return look(self, limit)

    monkeypatch.setattr(listing, "_SIGN_OF_LIFE_S", 0.01)
    monkeypatch.setattr(listing._Sender, "_send", counted)
    monkeypatch.setattr(Directory, "next_batch", slow)
    async with served.client() as client:
        assert paths(await listed(client, "b")) == ["deep", "x"]
    assert len(signs) > 3


async def test_a_listing_that_is_given_up_leaves_no_thread_behind(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    look = Directory.next_batch

    def slow(self: Directory, limit: int) -> list[Found]:
        began.set()
        assert go_on.wait(PATIENCE_S)
        return look(self, limit)

    monkeypatch.setattr(Directory, "next_batch", slow)
    async with served.client() as client:
        task = asyncio.create_task(listed(client, "b"))
        await until(began.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert served.records == []
        go_on.set()
        await until(lambda: served.records, what="the end of the listing")
    assert served.records[0].failure is not None


# A hostile server.


def part(number: int, payload: bytes, *, last: bool = False) -> Message:
    kinds = (CallType.DOWNLOAD_BEGIN, CallType.DOWNLOAD_MORE)
    kind = CallType.DOWNLOAD_END if last else kinds[min(number, 1)]
    return Message(header=Header(call_type=kind, stream_part=number), payload=payload)


def reply(**args: str) -> Message:
    return Message(header=Header(call_type=CallType.RPC_REPLY, args=args))


LIES: dict[str, tuple[list[Message], type[Exception]]] = {
    "no listing": ([part(0, b"\xc1")], DecodeError),
    "a path as a name": (
        [part(0, b"\x91\x9c\x00\xc4\x03a/b\xcd\x81\xa4\0\0\0\0\xa0\xa0\1\xc0\xa0")],
        DecodeError,
    ),
    "fewer entries than it says": (
        [part(0, b""), part(1, b"", last=True), reply(listCount="1")],
        IncompleteTransferError,
    ),
    "no count": (
        [part(0, b""), part(1, b"", last=True), reply()],
        IncompleteTransferError,
    ),
}


@pytest.mark.parametrize("case", LIES)
async def test_a_server_that_lies_is_refused(memory: Net, case: str) -> None:
    answers, error = LIES[case]
    async with raw_server(memory) as (peer, client):
        task = asyncio.create_task(listed(client))
        await until(lambda: peer.messages)
        opening = peer.messages[0].header
        for one in answers:
            header = replace(one.header, call_id=opening.call_id, seqno=opening.seqno)
            peer.send(replace(one, header=header))
        with pytest.raises(error):
            await task
