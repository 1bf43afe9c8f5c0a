"""Names that try to leave the served directory, on read and on write, at a real srv.

All are refused with one kind of error; nothing outside of the root is read or written,
and the server goes on.
"""

import asyncio
import contextlib
import os
import re
import socket
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import RemoteCallError
from rpc25519_tools.files.atomic import open_local_sink
from rpc25519_tools.files.download import download_file
from rpc25519_tools.files.parts import ARG_DOWNLOAD_LEN, ARG_SERVER_TOTAL_SUM
from rpc25519_tools.files.source import open_local_source
from rpc25519_tools.files.upload import upload_file
from rpc25519_tools.identity.store import LoadedIdentity, load_identity
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.wire.digest import digest_text
from rpc25519_tools.wire.message import CallType
from tests.commands.hostile import (
    MIB,
    HostileServer,
    Valve,
    Wire,
    answer,
    finish,
    names_in,
    run,
    started,
    summed,
    wait_for_partial,
)
from tests.helpers import SrvProcess

SECRET = b"nobody may read this"
INSIDE = b"anybody may read this"
EVIL = b"nobody may write this"

#: For each attack its id and its name; ``{outside}`` is an absolute path.
ATTACKS = {
    "dot-dot": "..",
    "up": "../outside/secret",
    "up-new": "../outside/new",
    "down-and-up": "a/../../outside/secret",
    "real-and-up": "sub/../../outside/secret",
    "up-to-itself": "../served/inside",
    "up-within": "sub/../inside",
    "absolute": "{outside}/secret",
    "absolute-twice": "/{outside}/secret",
    "absolute-new": "{outside}/new",
    "root": "/",
    "link-to-file": "link-to-file",
    "link-to-nothing": "link-to-nothing",
    "link-to-directory": "link-to-directory",
    "below-link": "link-to-directory/secret",
    "new-below-link": "link-to-directory/new",
    "link-inside": "link-inside",
    "absolute-link": "absolute-link",
    "proc": "link-to-proc/self/environ",
    "nul": "inside\0",
    "nul-inside": "inside\0/../../outside/secret",
    "long-name": "n" * 256,
    "long-part": "n" * 256 + "/x",
    "long-path": "sub/" * 1024 + "x",
    "long-wide": "\u20ac" * 86,
    "directory": "sub",
    "fifo": "fifo",
    "socket": "socket",
    "device": "device",
    "file-as-directory": "inside/x",
    "fifo-as-directory": "fifo/x",
    "dot": ".",
    "dot-first": "./inside",
    "dot-within": "sub/./x",
    "slash-at-end": "inside/",
    "directory-slash": "sub/",
    "slashes": "sub//x",
    "partial": ".rpc25519-part-0123456789abcdef-0",
    "partial-upper": ".RPC25519-Part-x",
    "partial-below": "sub/.rpc25519-part-x",
    "below-partial": ".rpc25519-part-d/x",
    "empty": "",
}

#: Those that can stand on a command line, and are not the same as another one there.
BY_CLI = ["up", "absolute", "link-to-file", "below-link", "long-name", "fifo", "device"]

Tree: TypeAlias = dict[str, tuple[int, int, bytes]]


def snapshot(directory: Path, *, times: bool) -> Tree:
    """Return mode, time and content of everything in a directory, and its own."""
    found: Tree = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        status = path.lstat()
        content = b""
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.fsencode(path.readlink())
        changed = status.st_mtime_ns if times else 0
        found[str(path.relative_to(directory))] = (status.st_mode, changed, content)
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A served directory, and one outside of it that must stay as it is."""
    # A short path, because those of sockets may not be long.
    path = tmp_path_factory.mktemp("w")
    served, outside = path / "served", path / "outside"
    for directory in (served, served / "sub", outside):
        directory.mkdir()
    (outside / "secret").write_bytes(SECRET)
    (served / "inside").write_bytes(INSIDE)
    (served / "link-to-file").symlink_to("../outside/secret")
    (served / "link-to-nothing").symlink_to("../outside/new")
    (served / "link-to-directory").symlink_to("../outside")
    (served / "link-to-proc").symlink_to("/proc")
    (served / "link-inside").symlink_to("inside")
    (served / "absolute-link").symlink_to(outside / "secret")
    os.mkfifo(served / "fifo")
    with contextlib.suppress(PermissionError):
        os.mknod(served / "device", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    with contextlib.chdir(served), socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    return path


@pytest.fixture(scope="module")
def srv(world: Path, certs: Path) -> Iterator[SrvProcess]:
    served = world / "served"
    with SrvProcess(
        "-serve", str(served), "-readfile", str(served), certs=certs
    ) as process:
        yield process


@pytest.fixture(scope="module")
def calm_srv(world: Path, certs: Path) -> Iterator[SrvProcess]:
    """A server with so few failures that it logs each of them."""
    served = world / "served"
    with SrvProcess(
        "-serve", str(served), "-readfile", str(served), certs=certs
    ) as process:
        yield process


@pytest.fixture(scope="module")
def identity(certs: Path) -> LoadedIdentity:
    return load_identity(certs, "client", None)


@pytest.fixture
def unharmed(world: Path, srv: SrvProcess) -> Iterator[None]:
    """Fail a test after which anything has changed, in or outside of the root."""
    outside = snapshot(world / "outside", times=True)
    served = snapshot(world / "served", times=False)
    yield
    assert snapshot(world / "outside", times=True) == outside
    assert snapshot(world / "served", times=False) == served
    assert srv.process.poll() is None
    assert "Traceback" not in srv.stderr()


@contextlib.asynccontextmanager
async def connected(
    srv: SrvProcess, identity: LoadedIdentity, address: str = ""
) -> AsyncIterator[Client]:
    config = Config(address=parse_address(address or srv.address))
    async with await Client.connect(config, identity) as client:
        yield client


async def read(client: Client, name: str, target: Path) -> bytes:
    await download_file(
        client, name, lambda: open_local_sink(str(target), clobber=True)
    )
    return target.read_bytes()  # noqa: ASYNC240  # some bytes


async def write(client: Client, name: str, content: Path) -> None:
    with open_local_source(str(content)) as source:
        await upload_file(client, source, name)


@pytest.fixture(params=ATTACKS)
def attack(request: pytest.FixtureRequest, world: Path) -> str:
    if request.param == "device" and not (world / "served" / "device").exists():
        pytest.skip("no permission to make a device")
    return str(ATTACKS[request.param]).format(outside=world / "outside")


def run_with(
    srv: SrvProcess,
    identity: LoadedIdentity,
    steps: Callable[[Client], Awaitable[None]],
) -> None:
    async def scenario() -> None:
        async with connected(srv, identity) as client:
            await steps(client)

    asyncio.run(scenario())


@pytest.mark.usefixtures("unharmed")
def test_attack_is_refused_on_read(
    srv: SrvProcess, identity: LoadedIdentity, tmp_path: Path, attack: str
) -> None:
    async def steps(client: Client) -> None:
        with pytest.raises(RemoteCallError, match=r"^refused '") as caught:
            await read(client, attack, tmp_path / "got")
        assert str(caught.value).isprintable()
        assert await read(client, "inside", tmp_path / "inside") == INSIDE

    run_with(srv, identity, steps)
    assert names_in(tmp_path) == ["inside"]


@pytest.mark.usefixtures("unharmed")
def test_attack_is_refused_on_write(
    srv: SrvProcess, identity: LoadedIdentity, tmp_path: Path, attack: str
) -> None:
    (tmp_path / "evil").write_bytes(EVIL)

    async def steps(client: Client) -> None:
        with pytest.raises(RemoteCallError, match=r"^refused '") as caught:
            await write(client, attack, tmp_path / "evil")
        assert str(caught.value).isprintable()
        assert await read(client, "inside", tmp_path / "inside") == INSIDE

    run_with(srv, identity, steps)


REFUSED_BY_CLI = {"up", "absolute", "long-name"}


@pytest.mark.parametrize("name", BY_CLI)
@pytest.mark.parametrize("option", ["-download", "-sendfile"])
@pytest.mark.usefixtures("unharmed")
def test_attack_is_refused_by_way_of_the_command_line(
    srv: SrvProcess, world: Path, certs: Path, tmp_path: Path, name: str, option: str
) -> None:
    attack = ATTACKS[name].format(outside=world / "outside")
    if name == "device" and not (world / "served" / "device").exists():
        pytest.skip("no permission to make a device")
    (tmp_path / "evil").write_bytes(EVIL)
    args = [option, attack, "-o", "got"]
    if option == "-sendfile":
        args = [option, "evil", "--to", attack]
    outcome = run("cli", "-s", srv.address, "-certs", str(certs), *args, cwd=tmp_path)
    # What can be seen from the name alone, cli refuses before it connects.
    by_cli = option == "-sendfile" and name in REFUSED_BY_CLI
    assert outcome.error(6 if by_cli else 1).startswith("refused '")
    assert names_in(tmp_path) == ["evil"]


@pytest.mark.usefixtures("unharmed")
def test_name_that_is_no_text_on_the_wire(
    srv: SrvProcess, identity: LoadedIdentity, tmp_path: Path
) -> None:
    (tmp_path / "evil").write_bytes(EVIL)

    async def steps(client: Client) -> None:
        with pytest.raises(RemoteCallError, match=r"^no such file: "):
            await read(client, "\udcff\udcfe", tmp_path / "got")
        with pytest.raises(RemoteCallError, match=r"^refused '"):
            await read(client, "../\udcff", tmp_path / "got")
        with pytest.raises(RemoteCallError, match=r"^refused '"):
            await write(client, "\udcff/../../outside/new", tmp_path / "evil")

    run_with(srv, identity, steps)


NASTY_NAMES = [
    "line\nsrv: listening on 6.6.6.6:666",
    "escape\x1b[2J\x1b]0;title\x07",
    "return\rover",
    "bidi\u202egpj.exe",
    "byte\udcff",
    "quote'\"\\",
    "separator\u2028line",
]


@pytest.mark.parametrize("name", NASTY_NAMES, ids=ascii)
def test_nasty_name_is_stored_as_it_is_and_logged_in_one_line(
    calm_srv: SrvProcess,
    identity: LoadedIdentity,
    certs: Path,
    world: Path,
    tmp_path: Path,
    name: str,
) -> None:
    (tmp_path / "f").write_bytes(INSIDE)
    before = calm_srv.stderr().count("\n")

    async def steps(client: Client) -> None:
        await write(client, name, tmp_path / "f")
        assert await read(client, name, tmp_path / "got") == INSIDE
        with pytest.raises(RemoteCallError, match=r"^no such file") as caught:
            await read(client, name + "x", tmp_path / "got")
        assert str(caught.value).isprintable()

    run_with(calm_srv, identity, steps)
    assert os.fsencode(name) in os.listdir(os.fsencode(world / "served"))
    outcome = run(
        "cli",
        "-s",
        calm_srv.address,
        "-certs",
        str(certs),
        "-download",
        name,
        cwd=tmp_path,
    ).succeed()
    assert len(outcome.lines) == 1
    assert outcome.lines[0].isprintable()
    os.unlink(os.fsencode(world / "served") + b"/" + os.fsencode(name))
    # Connected, upload, download, failed download; connected, download.
    lines = calm_srv.stderr().split("\n")[before:-1]
    assert len(lines) == 6
    for line in lines:
        assert line.isprintable()
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ 127\.0\.0\.1:\d+ ", line)


# What is swapped while a transfer runs


@pytest.fixture
def swapped(tmp_path: Path, certs: Path) -> Iterator[tuple[SrvProcess, Path, Path]]:
    """A server, its directory with ``dir/f``, and a directory outside with ``f``."""
    served, outside = tmp_path / "served", tmp_path / "outside"
    (served / "dir").mkdir(parents=True)
    outside.mkdir()
    (served / "dir" / "f").write_bytes(INSIDE)
    (outside / "f").write_bytes(SECRET)
    before = snapshot(outside, times=True)
    with SrvProcess(
        "-serve", str(served), "-readfile", str(served), certs=certs
    ) as process:
        yield process, served, outside
        assert process.process.poll() is None
    assert snapshot(outside, times=True) == before


Swapped: TypeAlias = tuple[SrvProcess, Path, Path]


def test_directory_becomes_a_link_during_an_upload(
    swapped: Swapped, certs: Path, tmp_path: Path
) -> None:
    srv, served, outside = swapped
    content = os.urandom(8 * MIB)
    (tmp_path / "f").write_bytes(content)
    with Valve(srv.address, up=MIB + MIB // 2) as valve:
        args = ["-s", valve.address, "-certs", str(certs), "-sendfile", "f"]
        with started("cli", *args, "--to", "dir/f", cwd=tmp_path) as process:
            wait_for_partial(served)
            (served / "dir").rename(served / "old-dir")
            (served / "dir").symlink_to(outside)
            valve.open()
            finish(process).succeed()
    # It was written into the directory that it was meant for, wherever that is now.
    assert (served / "old-dir" / "f").read_bytes() == content


def test_target_becomes_a_link_during_an_upload(
    swapped: Swapped, certs: Path, tmp_path: Path
) -> None:
    srv, served, outside = swapped
    (tmp_path / "f").write_bytes(os.urandom(8 * MIB))
    with Valve(srv.address, up=MIB + MIB // 2) as valve:
        args = ["-s", valve.address, "-certs", str(certs), "-sendfile", "f"]
        with started("cli", *args, "--to", "dir/f", cwd=tmp_path) as process:
            wait_for_partial(served)
            (served / "dir" / "f").unlink()
            (served / "dir" / "f").symlink_to(outside / "f")
            valve.open()
            line = finish(process).error(1)
    assert line == "refused 'dir/f': it is a symbolic link"
    assert names_in(served / "dir") == ["f"]
    assert (served / "dir" / "f").is_symlink()


@pytest.mark.parametrize("what", ["file", "directory", "root"])
def test_link_that_appears_during_a_download_is_not_followed(
    swapped: Swapped, certs: Path, tmp_path: Path, what: str
) -> None:
    srv, served, outside = swapped
    content = os.urandom(8 * MIB)
    (served / "dir" / "f").write_bytes(content)
    with Valve(srv.address, down=MIB + MIB // 2) as valve:
        args = ["-s", valve.address, "-certs", str(certs), "-download", "dir/f"]
        with started("cli", *args, cwd=tmp_path) as process:
            wait_for_partial(tmp_path)
            path = {"file": served / "dir/f", "directory": served / "dir"}.get(
                what, served
            )
            path.rename(tmp_path / "moved")
            path.symlink_to(outside / "f" if what == "file" else outside)
            valve.open()
            finish(process).succeed()
    assert (tmp_path / "f").read_bytes() == content


def test_link_that_comes_and_goes_is_never_followed(
    swapped: Swapped, identity: LoadedIdentity, tmp_path: Path
) -> None:
    srv, served, outside = swapped
    (tmp_path / "evil").write_bytes(EVIL)
    stop = threading.Event()

    def swap() -> None:
        (served / "link").symlink_to(outside)
        while not stop.is_set():
            # One is always there under the name ``dir``, or for a moment none.
            (served / "dir").rename(served / "aside")
            (served / "link").rename(served / "dir")
            (served / "dir").rename(served / "link")
            (served / "aside").rename(served / "dir")

    async def steps(client: Client) -> None:
        outcomes = set()
        for _ in range(150):
            try:
                assert await read(client, "dir/f", tmp_path / "got") in {INSIDE, EVIL}
                outcomes.add("read")
                await write(client, "dir/f", tmp_path / "evil")
                outcomes.add("written")
            except RemoteCallError as exc:
                outcomes.add(str(exc).partition(" ")[0])
        assert outcomes <= {"read", "written", "refused", "no", "cannot"}

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        run_with(srv, identity, steps)
    finally:
        stop.set()
        thread.join()


# The client's side


@pytest.mark.parametrize("sent_name", ["../evil", "/tmp/evil", "a/../../evil", "\0"])
def test_names_that_a_server_sends_mean_nothing(
    certs: Path, tmp_path: Path, sent_name: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()

    async def serve(wire: Wire) -> None:
        asked = await wire.receive()
        args = {
            **summed(INSIDE),
            "path": sent_name,
            "filename": sent_name,
            ARG_DOWNLOAD_LEN: str(len(INSIDE)),
        }
        await wire.send(
            answer(asked, CallType.DOWNLOAD_BEGIN, payload=INSIDE, args=args)
        )
        await wire.send(
            answer(asked, CallType.DOWNLOAD_END, part=1, args={**args, **summed(b"")})
        )
        total = {ARG_SERVER_TOTAL_SUM: digest_text(INSIDE)}
        await wire.send(answer(asked, CallType.RPC_REPLY, args=total))

    with HostileServer(serve, load_identity(certs, "node", None)) as server:
        args = ["-s", server.address, "-certs", str(certs), "-download", "dir/mine"]
        run("cli", *args, cwd=home).succeed()
    assert names_in(home) == ["mine"]
    assert names_in(tmp_path) == ["home"]


@pytest.mark.parametrize("name", ["..", ".", "dir/..", "/", "dir/"])
def test_download_without_a_name_of_its_own_needs_one(
    srv: SrvProcess, certs: Path, tmp_path: Path, name: str
) -> None:
    args = ["-s", srv.address, "-certs", str(certs), "-download", name]
    outcome = run("cli", *args, cwd=tmp_path)
    assert "does not end with a file name" in outcome.error(6)
    assert names_in(tmp_path) == []
