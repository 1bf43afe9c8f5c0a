"""What real programs do when the other side, the line, the disk or the file fails.

Every time: the old file stays, no final name holds bad bytes, the exit code and one
line on stderr tell what happened, and the server goes on serving.
"""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.files.atomic import open_local_sink
from rpc25519_tools.files.download import download_file
from rpc25519_tools.files.echo import ECHO_CALL_SERVICE
from rpc25519_tools.files.parts import (
    ARG_CLIENT_TOTAL_SUM,
    ARG_DOWNLOAD_LEN,
    ARG_PART_SUM,
    ARG_SERVER_TOTAL_SUM,
    ARG_UPLOAD_NAME,
    DOWNLOAD_SERVICE,
    ECHO_FILE_SERVICE,
    UPLOAD_SERVICE,
)
from rpc25519_tools.files.source import open_local_source
from rpc25519_tools.files.upload import upload_file
from rpc25519_tools.identity.store import LoadedIdentity, load_identity
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.wire import codecs
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.constants import MAGIC, MAX_PLAIN_LEN
from rpc25519_tools.wire.digest import digest_text
from rpc25519_tools.wire.framing import encode_frame
from rpc25519_tools.wire.message import CallType, Message
from tests.commands import hostile
from tests.commands.hostile import (
    MIB,
    HostileServer,
    Outcome,
    Script,
    Valve,
    Wire,
    answer,
    finish,
    hostile_client,
    kill,
    names_in,
    partials,
    request,
    run,
    started,
    summed,
    wait_for_partial,
)
from tests.helpers import SrvProcess, until, wait_until

OLD = b"what was there before"
#: Larger than what the kernel keeps for a stalled line, so that senders have to wait.
BIG = os.urandom(12 * MIB)
#: How much a valve lets through: one whole part, and some of the next.
SOME = 3 * MIB // 2


@pytest.fixture(scope="module")
def shared_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture
def served(shared_directory: Path) -> Iterator[Path]:
    """The served directory; empty at the beginning of each test."""
    yield shared_directory
    for path in list(shared_directory.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where ``cli`` runs."""
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def srv(certs: Path, shared_directory: Path) -> Iterator[SrvProcess]:
    """A server that has to survive all tests that share it."""
    with srv_of(certs, shared_directory) as process:
        yield process
        assert process.process.poll() is None
        assert "Traceback" not in process.stderr()


def srv_of(certs: Path, served: Path, *options: str) -> SrvProcess:
    return SrvProcess("-serve", served, "-readfile", served, *options, certs=certs)


class Cli:
    """``cli`` with its connection options."""

    def __init__(self, certs: Path, home: Path) -> None:
        self._certs = certs
        self._home = home

    def options(self, address: str) -> list[str]:
        return ["-s", address, "-certs", str(self._certs), "-quiet"]

    def __call__(self, address: str, *args: str) -> Outcome:
        return run("cli", *self.options(address), *args, cwd=self._home)

    def start(
        self, address: str, *args: str, preexec: Callable[[], None] | None = None
    ) -> "contextlib.AbstractContextManager[subprocess.Popen[str]]":
        return started(
            "cli", *self.options(address), *args, cwd=self._home, preexec=preexec
        )


@pytest.fixture
def cli(certs: Path, home: Path) -> Cli:
    return Cli(certs, home)


def wait_for_names(directory: Path, *names: str) -> None:
    wait_until(
        lambda: names_in(directory) == sorted(names),
        what=lambda: f"{names} in {names_in(directory)}",
    )


# One side is killed


def test_kill_of_the_server_in_mid_upload(
    certs: Path, served: Path, home: Path, cli: Cli
) -> None:
    (home / "f").write_bytes(BIG)
    (served / "f").write_bytes(OLD)
    with (
        srv_of(certs, served) as srv,
        Valve(srv.address, up=SOME) as valve,
        cli.start(valve.address, "-sendfile", "f") as process,
    ):
        wait_for_partial(served)
        kill(srv.process)
        valve.open()
        assert finish(process).error(3)
    assert (served / "f").read_bytes() == OLD
    with srv_of(certs, served) as srv:
        cli(srv.address, "-sendfile", "f").succeed()
    assert (served / "f").read_bytes() == BIG
    assert names_in(served) == ["f"]


def test_kill_of_the_server_in_mid_download(
    certs: Path, served: Path, home: Path, cli: Cli
) -> None:
    (served / "f").write_bytes(BIG)
    (home / "f").write_bytes(OLD)
    with (
        srv_of(certs, served) as srv,
        Valve(srv.address, down=SOME) as valve,
        cli.start(valve.address, "-download", "f") as process,
    ):
        wait_for_partial(home)
        kill(srv.process)
        valve.open()
        assert finish(process).error(3)
    assert (home / "f").read_bytes() == OLD
    assert names_in(home) == ["f"]
    with srv_of(certs, served) as srv:
        cli(srv.address, "-download", "f").succeed()
    assert (home / "f").read_bytes() == BIG


def test_kill_of_the_client_in_mid_upload(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    (home / "f").write_bytes(BIG)
    (served / "f").write_bytes(OLD)
    with Valve(srv.address, up=SOME) as valve:
        with cli.start(valve.address, "-sendfile", "f") as process:
            wait_for_partial(served)
            kill(process)
        valve.cut()
        wait_for_names(served, "f")
    assert (served / "f").read_bytes() == OLD
    cli(srv.address, "-sendfile", "f").succeed()
    assert (served / "f").read_bytes() == BIG
    assert names_in(served) == ["f"]


def test_kill_of_the_client_in_mid_download(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    (served / "f").write_bytes(BIG)
    (home / "f").write_bytes(OLD)
    for _ in range(3):
        with (
            Valve(srv.address, down=SOME) as valve,
            cli.start(valve.address, "-download", "f") as process,
        ):
            wait_for_partial(home)
            kill(process)
        assert (home / "f").read_bytes() == OLD
        assert len(partials(home)) == 1
    cli(srv.address, "-download", "f").succeed()
    assert (home / "f").read_bytes() == BIG
    assert names_in(home) == ["f"]


# The disk


def test_server_that_may_not_write_so_much(
    certs: Path, served: Path, home: Path, cli: Cli
) -> None:
    (home / "f").write_bytes(BIG)
    (home / "small").write_bytes(b"small")
    (served / "f").write_bytes(OLD)
    with srv_of(certs, served) as srv:
        limit = (SOME, resource.RLIM_INFINITY)
        resource.prlimit(srv.process.pid, resource.RLIMIT_FSIZE, limit)
        line = cli(srv.address, "-sendfile", "f").error(1)
        assert line.startswith("cannot write 'f': file too large")
        assert (served / "f").read_bytes() == OLD
        cli(srv.address, "-sendfile", "small").succeed()
    assert names_in(served) == ["f", "small"]


def test_client_that_may_not_write_so_much(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    (served / "f").write_bytes(BIG)
    (home / "f").write_bytes(OLD)
    limit = hostile.with_file_limit(SOME)
    with cli.start(srv.address, "-download", "f", preexec=limit) as process:
        line = finish(process).error(6)
    assert line.startswith("cannot write 'f': file too large")
    assert (home / "f").read_bytes() == OLD
    assert names_in(home) == ["f"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "small-disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip("no permission to mount a small file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_upload_to_a_full_disk(
    certs: Path, small_disk: Path, home: Path, cli: Cli
) -> None:
    (home / "f").write_bytes(BIG)
    (small_disk / "f").write_bytes(OLD)
    with srv_of(certs, small_disk) as srv:
        line = cli(srv.address, "-sendfile", "f").error(1)
        assert line == "cannot write 'f': disk full"
        assert names_in(small_disk) == ["f"]
        assert (small_disk / "f").read_bytes() == OLD
        (home / "f").write_bytes(b"this fits")
        cli(srv.address, "-sendfile", "f").succeed()
    assert (small_disk / "f").read_bytes() == b"this fits"


def test_download_and_echo_to_a_full_disk(
    certs: Path, served: Path, small_disk: Path, cli: Cli, home: Path
) -> None:
    (served / "f").write_bytes(BIG)
    (small_disk / "f").write_bytes(OLD)
    (home / "f").write_bytes(BIG)
    with srv_of(certs, served, "-echo") as srv:
        out = ["-o", str(small_disk / "f")]
        line = cli(srv.address, "-download", "f", *out).error(6)
        assert "disk full" in line
        assert names_in(small_disk) == ["f"]
        # The size of an echo is not looked at ahead: this fails in the middle.
        line = cli(srv.address, "-echofile", "f", *out).error(6)
        assert "disk full" in line
        assert names_in(small_disk) == ["f"]
        assert (small_disk / "f").read_bytes() == OLD
        cli(srv.address).succeed()


def test_upload_into_a_read_only_directory(
    certs: Path, served: Path, home: Path, cli: Cli
) -> None:
    (home / "f").write_bytes(b"new")
    (served / "f").write_bytes(OLD)
    (served / "below").mkdir()
    served.chmod(0o555)
    options = ["-s", "127.0.0.1:0", "-readfile", str(served), "-certs", str(certs)]
    with started(
        "srv", *options, cwd=home, preexec=hostile.without_root_powers
    ) as process:
        address = hostile.ready_address(process)
        line = cli(address, "-sendfile", "f").error(1)
        assert line == "cannot write 'f': no permission"
        cli(address, "-sendfile", "f", "--to", "below/f").succeed()
    served.chmod(0o755)
    assert names_in(served) == ["below", "f"]
    assert (served / "f").read_bytes() == OLD


def test_download_into_a_read_only_directory(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    (served / "f").write_bytes(b"new")
    (home / "f").write_bytes(OLD)
    home.chmod(0o555)
    with cli.start(
        srv.address, "-download", "f", preexec=hostile.without_root_powers
    ) as process:
        line = finish(process).error(6)
    home.chmod(0o755)
    assert line == "cannot write 'f': no permission"
    assert names_in(home) == ["f"]
    assert (home / "f").read_bytes() == OLD


# The file changes while it is sent


def shrink(path: Path) -> None:
    os.truncate(path, len(BIG) - 1)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"else")


CHANGES = pytest.mark.parametrize(
    ("change", "verb"), [(shrink, "shrank"), (grow, "grew"), (rewrite, "was changed")]
)


@CHANGES
def test_file_changes_while_it_is_uploaded(
    srv: SrvProcess,
    served: Path,
    home: Path,
    cli: Cli,
    change: Callable[[Path], None],
    verb: str,
) -> None:
    (home / "f").write_bytes(BIG)
    (served / "f").write_bytes(OLD)
    with (
        Valve(srv.address, up=SOME) as valve,
        cli.start(valve.address, "-sendfile", "f") as process,
    ):
        wait_for_partial(served)
        change(home / "f")
        valve.open()
        line = finish(process).error(1)
    assert line == f"'f' {verb} while it was being sent"
    wait_for_names(served, "f")
    assert (served / "f").read_bytes() == OLD


@CHANGES
def test_file_changes_while_it_is_downloaded(
    srv: SrvProcess,
    served: Path,
    home: Path,
    cli: Cli,
    change: Callable[[Path], None],
    verb: str,
) -> None:
    (served / "f").write_bytes(BIG)
    (home / "f").write_bytes(OLD)
    with (
        Valve(srv.address, down=SOME) as valve,
        cli.start(valve.address, "-download", "f") as process,
    ):
        wait_for_partial(home)
        change(served / "f")
        valve.open()
        line = finish(process).error(1)
    assert line == f"'f' {verb} while it was being sent"
    assert names_in(home) == ["f"]
    assert (home / "f").read_bytes() == OLD
    srv.wait_for(f"'f' {verb} while it was being sent")


# Hostile peers over TCP and over TLS

ONE = os.urandom(MIB)
TWO = os.urandom(MIB)
WHOLE = ONE + TWO
BOMB_CODECS = (Codec.S2, Codec.LZ4, Codec.ZSTD_03)


def bomb(codec: Codec) -> bytes:
    """Make a short frame that unpacks to more than any frame may."""
    body = bytes(codecs.compress(codec, bytes(MAX_PLAIN_LEN + 1)))
    return MAGIC + bytes([codec]) + len(body).to_bytes(8, "big") + body


ABSURD_LENGTH = MAGIC + b"\0" + (1 << 62).to_bytes(8, "big")
GARBAGE = b"HTTP/1.1 200 OK\r\n\r\n" * 100


async def send_some_of(wire: Wire, message: Message) -> None:
    """Send the first half of a message, and then close."""
    whole = b"".join(encode_frame(message, Codec.NONE))
    await wire.send_bytes(whole[: len(whole) // 2])
    wire.transport.close()


class Serving:
    """Steps of a server that sends WHOLE, to be done wrongly."""

    def __init__(self, wire: Wire, asked: Message, codec: Codec = Codec.NONE) -> None:
        self._wire = wire
        self._asked = asked
        self._codec = codec

    async def part(
        self,
        number: int,
        payload: bytes,
        *,
        size: str | None = str(2 * MIB),
        sum_of: bytes | None = None,
        last: bool = False,
    ) -> None:
        args = summed(payload if sum_of is None else sum_of)
        if size is not None:
            args[ARG_DOWNLOAD_LEN] = size
        call_type = CallType.DOWNLOAD_MORE
        if number == 0:
            call_type = CallType.DOWNLOAD_BEGIN
        elif last:
            call_type = CallType.DOWNLOAD_END
        await self._wire.send(
            answer(self._asked, call_type, part=number, payload=payload, args=args),
            self._codec,
        )

    async def reply(self, total: bytes = WHOLE) -> None:
        args = {ARG_SERVER_TOTAL_SUM: digest_text(total)}
        message = answer(self._asked, CallType.RPC_REPLY, args=args)
        await self._wire.send(message, self._codec)


ServingScript = Callable[[Serving, Wire, Message], Awaitable[None]]


async def close_in_mid_part(s: Serving, wire: Wire, asked: Message) -> None:
    await s.part(0, ONE)
    args = summed(TWO)
    await send_some_of(
        wire, answer(asked, CallType.DOWNLOAD_MORE, part=1, payload=TWO, args=args)
    )


async def wrong_part_sum(s: Serving, _wire: Wire, _asked: Message) -> None:
    await s.part(0, ONE)
    await s.part(1, TWO, sum_of=ONE)


async def wrong_first_part_sum(s: Serving, _wire: Wire, _asked: Message) -> None:
    await s.part(0, ONE, sum_of=TWO)


async def missing_part_sum(s: Serving, wire: Wire, asked: Message) -> None:
    await s.part(0, ONE)
    await wire.send(answer(asked, CallType.DOWNLOAD_MORE, part=1, payload=TWO))


async def wrong_total_sum(s: Serving, _wire: Wire, _asked: Message) -> None:
    await s.part(0, ONE)
    await s.part(1, TWO)
    await s.part(2, b"", last=True)
    await s.reply(TWO + ONE)


async def out_of_order(s: Serving, _wire: Wire, _asked: Message) -> None:
    await s.part(0, ONE, size=str(3 * MIB))
    await s.part(2, TWO)
    await s.part(1, TWO)


async def duplicate_part(s: Serving, _wire: Wire, _asked: Message) -> None:
    await s.part(0, ONE)
    await s.part(1, TWO)
    await s.part(1, TWO)


async def missing_part(s: Serving, _wire: Wire, _asked: Message) -> None:
    await s.part(0, ONE)
    await s.part(2, b"", last=True)
    await s.reply()


async def missing_first_part(s: Serving, _wire: Wire, _asked: Message) -> None:
    await s.part(1, ONE)


async def part_after_the_last(s: Serving, _wire: Wire, _asked: Message) -> None:
    await s.part(0, ONE)
    await s.part(1, TWO)
    await s.part(2, b"", last=True)
    await s.part(3, TWO)
    await s.reply()


async def more_than_announced(s: Serving, _wire: Wire, _asked: Message) -> None:
    await s.part(0, ONE, size=str(MIB))
    await s.part(1, TWO, size=str(MIB))


async def less_than_announced(s: Serving, _wire: Wire, _asked: Message) -> None:
    await s.part(0, ONE, size=str(3 * MIB))
    await s.part(1, b"", last=True)
    await s.reply(ONE)


async def reply_before_the_end(s: Serving, _wire: Wire, _asked: Message) -> None:
    await s.part(0, ONE)
    await s.reply(ONE)


async def nothing_but_a_reply(s: Serving, _wire: Wire, _asked: Message) -> None:
    await s.reply()


def announcing(size: str | None) -> ServingScript:
    async def script(s: Serving, _wire: Wire, _asked: Message) -> None:
        await s.part(0, ONE, size=size)
        await s.part(1, TWO, size=size)
        await s.part(2, b"", size=size, last=True)
        await s.reply()

    return script


def raw_after_the_first_part(data: bytes) -> ServingScript:
    async def script(s: Serving, wire: Wire, _asked: Message) -> None:
        await s.part(0, ONE)
        await wire.send_bytes(data)

    return script


async def refused_with_escapes(_s: Serving, wire: Wire, asked: Message) -> None:
    text = "no\n\x1b[31mroot: all is well\r\x00\u202e"
    await wire.send(answer(asked, CallType.RPC_REPLY, error=text))


#: What the server does, the client's exit code, and what its line tells.
BAD_DOWNLOADS: list[tuple[ServingScript, str, int, str]] = [
    (close_in_mid_part, "mid-part", 3, "in the middle of a message"),
    (wrong_part_sum, "part-sum", 1, "part 1 does not match its blake3 sum"),
    (wrong_first_part_sum, "first-part-sum", 1, "part 0 does not match its blake3"),
    (missing_part_sum, "no-part-sum", 1, "part 1 carries no blake3 sum"),
    (wrong_total_sum, "total-sum", 1, "the file does not match its blake3 sum"),
    (out_of_order, "out-of-order", 1, "part 2 came where part 1 was due"),
    (duplicate_part, "duplicate", 1, "part 1 came where part 2 was due"),
    (missing_part, "missing", 1, "part 2 came where part 1 was due"),
    (missing_first_part, "missing-first", 1, "part 1 came where part 0 was due"),
    (part_after_the_last, "after-last", 1, "part 3 came after the last part"),
    (more_than_announced, "more", 1, "more than the 1048576 bytes"),
    (less_than_announced, "less", 1, "sent 1048576 bytes of a file of 3145728"),
    (reply_before_the_end, "early-reply", 1, "sent 1048576 bytes of a file of 2097152"),
    (nothing_but_a_reply, "only-reply", 1, "the server sent no part of the file"),
    (announcing("1048577"), "size-small", 1, "more than the 1048577 bytes"),
    (announcing("2097153"), "size-large", 1, "of a file of 2097153"),
    (announcing("9" * 18), "size-absurd", 6, "disk full"),
    (announcing("9" * 30), "size-no-number", 1, "announces no file size"),
    (announcing("-1"), "size-negative", 1, "announces no file size"),
    (announcing("²"), "size-superscript", 1, "announces no file size"),
    (announcing(None), "size-missing", 1, "announces no file size"),
    (raw_after_the_first_part(ABSURD_LENGTH), "length", 5, "announces a message of"),
    (raw_after_the_first_part(GARBAGE), "garbage", 5, "bad magic"),
    *(
        (
            raw_after_the_first_part(bomb(codec)),
            f"bomb-{codec.name}",
            5,
            "the body unpacks to",
        )
        for codec in BOMB_CODECS
    ),
    (refused_with_escapes, "escapes", 1, r"no\n\x1b[31mroot: all is well\r\x00\u202e"),
]
#: TLS changes nothing but how the connection ends; these are enough to show it.
OVER_TLS_TOO = {"mid-part", "part-sum", "length", "garbage"}


@pytest.fixture(scope="module")
def node(certs: Path) -> LoadedIdentity:
    return load_identity(certs, "node", None)


@pytest.fixture(scope="module")
def client_identity(certs: Path) -> LoadedIdentity:
    return load_identity(certs, "client", None)


@pytest.mark.parametrize(
    ("network", "script", "code", "text"),
    [
        pytest.param(network, script, code, text, id=f"{network}-{name}")
        for script, name, code, text in BAD_DOWNLOADS
        for network in ("tcp", "tls")
        if network == "tcp" or name in OVER_TLS_TOO
    ],
)
def test_hostile_server_of_a_download(
    home: Path,
    cli: Cli,
    node: LoadedIdentity,
    network: str,
    script: ServingScript,
    code: int,
    text: str,
) -> None:
    (home / "f").write_bytes(OLD)

    async def serve(wire: Wire) -> None:
        asked = await wire.receive()
        assert asked.header.service_name == DOWNLOAD_SERVICE
        await script(Serving(wire, asked), wire, asked)

    options = ["-tcp"] if network == "tcp" else []
    with HostileServer(serve, node if network == "tls" else None) as server:
        line = cli(server.address, "-download", "f", *options).error(code)
    assert text in line
    assert names_in(home) == ["f"]
    assert (home / "f").read_bytes() == OLD


@pytest.mark.parametrize("codec", [Codec.NONE, Codec.S2], ids=lambda c: c.name)
def test_server_may_close_right_after_its_reply(
    home: Path, cli: Cli, node: LoadedIdentity, codec: Codec
) -> None:
    async def serve(wire: Wire) -> None:
        serving = Serving(wire, await wire.receive(), codec)
        await serving.part(0, ONE)
        await serving.part(1, TWO)
        await serving.part(2, b"", last=True)
        await serving.reply()
        wire.transport.close()

    with HostileServer(serve, node) as server:
        cli(server.address, "-download", "f").succeed()
    assert (home / "f").read_bytes() == WHOLE


def upload_script(
    reply_when: Callable[[Message], bool], **reply: "dict[str, str] | str"
) -> Script:
    async def serve(wire: Wire) -> None:
        message = await wire.receive()
        asked = message
        while not reply_when(message):
            message = await wire.receive()
        await wire.send(answer(asked, CallType.RPC_REPLY, **reply))  # type: ignore[arg-type]  # args or error
        while True:
            await wire.receive()

    return serve


def after_the_end(message: Message) -> bool:
    return message.header.call_type == CallType.UPLOAD_END


def after_the_first(message: Message) -> bool:
    return message.header.call_type == CallType.UPLOAD_BEGIN


@pytest.mark.parametrize(
    ("script", "code", "text"),
    [
        pytest.param(
            upload_script(after_the_end, args={ARG_SERVER_TOTAL_SUM: "blake3.32B-x"}),
            1,
            "the file does not match its blake3 sum at the other end",
            id="total-sum",
        ),
        pytest.param(
            upload_script(after_the_end, error="not today"), 1, "not today", id="error"
        ),
        pytest.param(
            upload_script(after_the_first, error="not today"),
            1,
            "not today",
            id="early-error",
        ),
        pytest.param(
            upload_script(after_the_first),
            5,
            "the server ended the call before its last part",
            id="early-reply",
        ),
    ],
)
def test_hostile_server_of_an_upload(
    home: Path, cli: Cli, script: Script, code: int, text: str
) -> None:
    (home / "f").write_bytes(BIG)
    with HostileServer(script, None) as server:
        line = cli(server.address, "-sendfile", "f", "-tcp").error(code)
    assert line.startswith(text)


def test_server_that_closes_in_mid_upload(home: Path, cli: Cli) -> None:
    (home / "f").write_bytes(BIG)

    async def serve(wire: Wire) -> None:
        await wire.receive()
        wire.transport.abort()

    with HostileServer(serve, None) as server:
        assert cli(server.address, "-sendfile", "f", "-tcp").error(3)


def test_server_that_echoes_something_else(home: Path, cli: Cli) -> None:
    (home / "f").write_bytes(WHOLE)
    (home / "f.echoed").write_bytes(OLD)

    async def serve(wire: Wire) -> None:
        asked = await wire.receive()
        assert asked.header.service_name == ECHO_FILE_SERVICE
        await wire.receive_until(CallType.UPLOAD_END)
        serving = Serving(wire, asked)
        await serving.part(0, TWO)
        await serving.part(1, ONE)
        await serving.part(2, b"", last=True)
        await serving.reply()

    with HostileServer(serve, None) as server:
        line = cli(server.address, "-echofile", "f", "-tcp").error(1)
    assert line == "the server returned something else than was sent"
    assert (home / "f.echoed").read_bytes() == OLD
    assert names_in(home) == ["f", "f.echoed"]


# Hostile clients


class Uploading:
    """Steps of a client that sends WHOLE as ``f``, to be done wrongly."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    async def part(
        self,
        number: int,
        payload: bytes,
        *,
        sum_of: bytes | None = None,
        call_type: CallType | None = None,
        total: str | None = None,
    ) -> None:
        if call_type is None:
            call_type = CallType.UPLOAD_MORE if number else CallType.UPLOAD_BEGIN
        args = {ARG_UPLOAD_NAME: "f"}
        if total is not None:
            args[ARG_CLIENT_TOTAL_SUM] = total
        if sum_of != b"":
            args[ARG_PART_SUM] = digest_text(payload if sum_of is None else sum_of)
        await self.wire.send(
            request(call_type, UPLOAD_SERVICE, args=args, payload=payload, part=number)
        )

    async def end(self, number: int, total: bytes = WHOLE) -> None:
        await self.part(
            number, b"", call_type=CallType.UPLOAD_END, total=digest_text(total)
        )


UploadingScript = Callable[[Uploading], Awaitable[None]]


async def up_wrong_part_sum(u: Uploading) -> None:
    await u.part(0, ONE)
    await u.part(1, TWO, sum_of=ONE)


async def up_missing_part_sum(u: Uploading) -> None:
    await u.part(0, ONE)
    await u.part(1, TWO, sum_of=b"")


async def up_wrong_total_sum(u: Uploading) -> None:
    await u.part(0, ONE)
    await u.part(1, TWO)
    await u.end(2, total=ONE)


async def up_out_of_order(u: Uploading) -> None:
    await u.part(0, ONE)
    await u.part(2, TWO)
    await u.part(1, TWO)


async def up_duplicate(u: Uploading) -> None:
    await u.part(0, ONE)
    await u.part(1, TWO)
    await u.part(1, TWO)


async def up_missing(u: Uploading) -> None:
    await u.part(0, ONE)
    await u.end(2, total=ONE)


async def up_second_first_part(u: Uploading) -> None:
    await u.part(0, ONE)
    await u.part(0, TWO)


async def up_not_from_zero(u: Uploading) -> None:
    await u.part(1, ONE, call_type=CallType.UPLOAD_BEGIN)


async def up_absurd_part_number(u: Uploading) -> None:
    await u.part(0, ONE)
    await u.part((1 << 63) - 1, TWO)


#: What the client does, and what the server answers.
BAD_UPLOADS: list[tuple[UploadingScript, str]] = [
    (up_wrong_part_sum, "part 1 does not match its blake3 sum"),
    (up_missing_part_sum, "part 1 carries no blake3 sum"),
    (up_wrong_total_sum, "the file does not match its blake3 sum"),
    (up_out_of_order, "part 2 came where part 1 was due"),
    (up_duplicate, "part 1 came where part 2 was due"),
    (up_missing, "part 2 came where part 1 was due"),
    (up_second_first_part, "this call id belongs to a call that is still running"),
    (up_not_from_zero, "a stream must begin with part 0, not 1"),
    (up_absurd_part_number, "came where part 1 was due"),
]


@pytest.fixture(scope="module")
def shared(
    certs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[SrvProcess, SrvProcess, Path]]:
    """Servers for all hostile clients, over TLS and TCP; they have to survive."""
    served = tmp_path_factory.mktemp("served-to-hostile-clients")
    with srv_of(certs, served) as tls, srv_of(certs, served, "-tcp") as tcp:
        yield tls, tcp, served


@pytest.fixture(params=["tcp", "tls"])
def hostile_to(
    request: pytest.FixtureRequest,
    shared: tuple[SrvProcess, SrvProcess, Path],
    client_identity: LoadedIdentity,
) -> Iterator[tuple[SrvProcess, LoadedIdentity | None, Path]]:
    """A server, how to reach it, and its directory, looked at afterwards."""
    tls, tcp, served = shared
    over_tls = request.param == "tls"
    srv, identity = (tls, client_identity) if over_tls else (tcp, None)
    (served / "f").write_bytes(OLD)
    yield srv, identity, served
    wait_for_names(served, "f")
    assert (served / "f").read_bytes() == OLD
    assert srv.process.poll() is None
    assert "Traceback" not in srv.stderr()
    asyncio.run(call_once(srv.address, identity))


async def call_once(address: str, identity: LoadedIdentity | None) -> None:
    """Show that the server goes on serving."""
    async with await connected(address, identity) as client:
        reply = await client.call(ECHO_CALL_SERVICE, b"still there?")
        assert bytes(reply.payload).startswith(b"still there?")


async def connected(address: str, identity: LoadedIdentity | None) -> Client:
    config = Config(
        address=parse_address(address),
        network="tls" if identity else "tcp",
        connect_timeout_s=30,
        call_timeout_s=30,
    )
    return await Client.connect(config, identity)


HostileTo = tuple[SrvProcess, LoadedIdentity | None, Path]


@pytest.mark.parametrize(
    ("script", "text"),
    [pytest.param(script, text, id=script.__name__) for script, text in BAD_UPLOADS],
)
def test_hostile_client_of_an_upload(
    hostile_to: HostileTo, script: UploadingScript, text: str
) -> None:
    srv, identity, _ = hostile_to

    async def scenario() -> None:
        async with hostile_client(srv.address, identity) as wire:
            await script(Uploading(wire))
            reply = await wire.receive()
            assert reply.header.call_type == CallType.RPC_REPLY
            assert text in reply.error

    asyncio.run(scenario())


def test_parts_after_the_last_change_nothing(hostile_to: HostileTo) -> None:
    srv, identity, served = hostile_to

    async def scenario() -> None:
        async with hostile_client(srv.address, identity) as wire:
            uploading = Uploading(wire)
            await uploading.part(0, ONE)
            await uploading.end(1, total=ONE)
            await uploading.part(2, TWO)
            reply = await wire.receive()
            # The one or the other, depending on which was there first; both are fine.
            stored = (served / "f").read_bytes()
            if reply.error:
                assert "came after the last part" in reply.error
                assert stored == OLD
            else:
                assert stored == ONE

    asyncio.run(scenario())
    (served / "f").write_bytes(OLD)


def test_client_that_closes_in_mid_part(hostile_to: HostileTo) -> None:
    srv, identity, served = hostile_to

    async def scenario() -> None:
        async with hostile_client(srv.address, identity) as wire:
            await Uploading(wire).part(0, ONE)
            await until(lambda: partials(served), what="a partial file")
            await send_some_of(
                wire, request(CallType.UPLOAD_MORE, "x", payload=TWO, part=1)
            )
            await wire.wait_gone()

    asyncio.run(scenario())
    srv.wait_for("failed: the peer closed the connection in the middle of a message")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(ABSURD_LENGTH, "announces a message of", id="length"),
        pytest.param(GARBAGE, "bad magic", id="garbage"),
        pytest.param(MAGIC + b"\x09" + bytes(8), "names codec 9", id="codec"),
        pytest.param(
            MAGIC + b"\0" + (4).to_bytes(8, "big") + b"\xc1\xc1\xc1\xc1",
            "disconnected: ",
            id="no-message",
        ),
        *(
            pytest.param(bomb(codec), "the body unpacks to", id=f"bomb-{codec.name}")
            for codec in BOMB_CODECS
        ),
    ],
)
@pytest.mark.parametrize("uploading", [False, True], ids=["at-once", "in-mid-upload"])
def test_client_that_breaks_the_protocol_loses_its_connection(
    hostile_to: HostileTo, data: bytes, text: str, uploading: bool
) -> None:
    srv, identity, served = hostile_to

    async def scenario() -> None:
        async with hostile_client(srv.address, identity) as wire:
            if uploading:
                await Uploading(wire).part(0, ONE)
                await until(lambda: partials(served), what="a partial file")
            await wire.send_bytes(data)
            await wire.wait_gone()

    asyncio.run(scenario())
    srv.wait_for(text)


# Many at once


def test_two_uploads_of_one_name_at_once(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    contents = [os.urandom(4 * MIB), os.urandom(3 * MIB)]
    for number, content in enumerate(contents):
        (home / f"{number}").write_bytes(content)
    with (
        Valve(srv.address, up=SOME) as valve,
        cli.start(valve.address, "-sendfile", "0", "--to", "f") as first,
        cli.start(valve.address, "-sendfile", "1", "--to", "f") as second,
    ):
        wait_until(
            lambda: [p.stat().st_size > 0 for p in partials(served)] == [True] * 2,
            timeout_s=hostile.PATIENCE_S,
            what="two partial files",
        )
        valve.open()
        finish(first).succeed()
        finish(second).succeed()
    assert names_in(served) == ["f"]
    assert (served / "f").read_bytes() in contents


def test_two_hundred_clients_at_once(
    srv: SrvProcess,
    served: Path,
    home: Path,
    cli: Cli,
    client_identity: LoadedIdentity,
) -> None:
    count = 200
    for number in range(count):
        (served / f"down-{number}").write_bytes(b"%d" % number * 5000)
        (home / f"up-{number}").write_bytes(b"%d" % number * 7000)
    together = asyncio.Barrier(count)
    logged = len(srv.stderr())

    async def one(number: int) -> None:
        async with await connected(srv.address, client_identity) as client:
            await together.wait()  # all are connected, and begin now
            target = str(home / f"down-{number}")
            await download_file(
                client,
                f"down-{number}",
                lambda: open_local_sink(target, clobber=False, fsync=False),
            )
            with open_local_source(str(home / f"up-{number}")) as source:
                await upload_file(client, source, f"up-{number}", clobber=False)

    async def everybody() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(number))

    asyncio.run(everybody())
    for number in range(count):
        down, up = b"%d" % number * 5000, b"%d" % number * 7000
        assert (home / f"down-{number}").read_bytes() == down
        assert (served / f"up-{number}").read_bytes() == up
    assert not partials(served)
    assert not partials(home)
    log = srv.stderr()[logged:]
    assert log.count(" upload 'up-") == count
    assert log.count(" ok\n") == 2 * count


def test_ten_programs_at_once(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    (served / "down").write_bytes(WHOLE)
    (home / "up").write_bytes(WHOLE)
    with contextlib.ExitStack() as stack:
        programs = [
            stack.enter_context(cli.start(srv.address, *args))
            for number in range(5)
            for args in (
                ("-download", "down", "-o", f"down-{number}"),
                ("-sendfile", "up", "--to", f"up-{number}"),
            )
        ]
        for program in programs:
            finish(program).succeed()
    for number in range(5):
        assert (home / f"down-{number}").read_bytes() == WHOLE
        assert (served / f"up-{number}").read_bytes() == WHOLE


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("way", ["up", "down"])
def test_server_that_is_stopped_lets_a_transfer_end(
    certs: Path, served: Path, home: Path, cli: Cli, number: int, way: str
) -> None:
    source, target = (home, served) if way == "up" else (served, home)
    (source / "f").write_bytes(BIG)
    option = "-sendfile" if way == "up" else "-download"
    with (
        srv_of(certs, served, "--grace", "30s") as srv,
        Valve(srv.address, **{way: SOME}) as valve,
        cli.start(valve.address, option, "f") as process,
    ):
        wait_for_partial(target)
        srv.process.send_signal(number)
        wait_until(lambda: refuses(srv.address), what="the end of listening")
        valve.open()
        finish(process).succeed()
        assert srv.process.wait(hostile.PATIENCE_S) == 0
        assert "Traceback" not in srv.stderr()
    assert (target / "f").read_bytes() == BIG
    assert names_in(target) == ["f"]


def refuses(address: str) -> bool:
    """Tell whether nobody listens there any more."""
    where = parse_address(address)
    try:
        socket.create_connection((where.host, where.port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # it was just being closed: ask again
    return False


@pytest.mark.parametrize("way", ["up", "down"])
def test_server_that_is_stopped_ends_a_transfer_that_takes_too_long(
    certs: Path, served: Path, home: Path, cli: Cli, way: str
) -> None:
    source, target = (home, served) if way == "up" else (served, home)
    (source / "f").write_bytes(BIG)
    (target / "f").write_bytes(OLD)
    option = "-sendfile" if way == "up" else "-download"
    with (
        srv_of(certs, served, "--grace", "0.1s") as srv,
        Valve(srv.address, **{way: SOME}) as valve,
        cli.start(valve.address, option, "f") as process,
    ):
        wait_for_partial(target)
        srv.process.terminate()
        srv.wait_for(" failed: ")
        valve.open()
        outcome = finish(process)
        assert srv.process.wait(hostile.PATIENCE_S) == 0
        assert "Traceback" not in srv.stderr()
    assert outcome.error(outcome.code)
    assert outcome.code in (1, 3)
    assert (target / "f").read_bytes() == OLD
    assert names_in(target) == ["f"]


def test_second_signal_ends_the_grace(
    certs: Path, served: Path, home: Path, cli: Cli
) -> None:
    (home / "f").write_bytes(BIG)
    with (
        srv_of(certs, served, "--grace", "1h") as srv,
        Valve(srv.address, up=SOME) as valve,
        cli.start(valve.address, "-sendfile", "f") as process,
    ):
        wait_for_partial(served)
        srv.process.terminate()
        wait_until(lambda: refuses(srv.address), what="the end of listening")
        srv.process.terminate()
        srv.wait_for(" failed: ")
        valve.open()
        outcome = finish(process)
        assert outcome.error(outcome.code)
        assert srv.process.wait(hostile.PATIENCE_S) == 0
    assert names_in(served) == []


def test_third_signal_does_not_wait_for_a_stalled_line(
    certs: Path, served: Path, home: Path, cli: Cli
) -> None:
    (served / "f").write_bytes(BIG)
    with (
        srv_of(certs, served, "--grace", "1h") as srv,
        Valve(srv.address, down=SOME) as valve,
        cli.start(valve.address, "-download", "f") as process,
    ):
        wait_for_partial(home)
        srv.process.terminate()
        wait_until(lambda: refuses(srv.address), what="the end of listening")
        srv.process.terminate()
        srv.wait_for(" failed: ")
        srv.process.terminate()
        assert srv.process.wait(4) == 0, "it waits 15 s for a line that stalls"
        assert "Traceback" not in srv.stderr()
        valve.cut()
        assert finish(process).error(3)
    assert names_in(home) == []


def test_server_stops_after_its_time(certs: Path, served: Path) -> None:
    with srv_of(certs, served, "-sec", "0.2") as srv:
        assert srv.process.wait(hostile.PATIENCE_S) == 0


@pytest.mark.parametrize("way", ["up", "down"])
def test_interrupted_client_leaves_nothing(
    srv: SrvProcess, served: Path, home: Path, cli: Cli, way: str
) -> None:
    source, target = (home, served) if way == "up" else (served, home)
    (source / "f").write_bytes(BIG)
    (target / "f").write_bytes(OLD)
    option = "-sendfile" if way == "up" else "-download"
    with (
        Valve(srv.address, **{way: SOME}) as valve,
        cli.start(valve.address, option, "f") as process,
    ):
        wait_for_partial(target)
        process.send_signal(signal.SIGINT)
        if way == "down":
            wait_for_names(target, "f")
        valve.open()
        assert finish(process).error(130) == "interrupted"
    wait_for_names(target, "f")
    assert (target / "f").read_bytes() == OLD


def test_interrupted_client_does_not_wait_for_a_stalled_line(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    (home / "f").write_bytes(BIG)
    with (
        Valve(srv.address, up=SOME) as valve,
        cli.start(valve.address, "-sendfile", "f") as process,
    ):
        wait_for_partial(served)
        valve.wait_held()
        process.send_signal(signal.SIGINT)
        assert finish(process).error(130) == "interrupted"
    wait_for_names(served)


def test_second_interrupt_ends_the_client_at_once(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    (home / "f").write_bytes(BIG)
    with (
        Valve(srv.address, up=SOME) as valve,
        cli.start(valve.address, "-sendfile", "f") as process,
    ):
        wait_for_partial(served)
        valve.wait_held()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        assert finish(process).error(130) == "interrupted"
    wait_for_names(served)


def test_client_can_be_interrupted_while_a_fifo_has_no_other_end(
    srv: SrvProcess, home: Path, cli: Cli, served: Path
) -> None:
    os.mkfifo(home / "fifo")
    (served / "f").write_bytes(ONE)
    for args in (["-sendfile", "fifo"], ["-download", "f", "-o", "fifo"]):
        seen = srv.stderr().count(" connected")
        with cli.start(srv.address, *args) as process:
            wait_until(lambda: srv.stderr().count(" connected") > seen)  # noqa: B023
            process.send_signal(signal.SIGINT)
            assert finish(process).error(130) == "interrupted"


def test_reader_of_standard_output_goes_away(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    (served / "f").write_bytes(BIG)
    with cli.start(srv.address, "-download", "f", "-o", "-") as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        process.stdout.close()
        assert process.stderr is not None
        stderr = process.stderr.read()
        assert (process.wait(hostile.PATIENCE_S), stderr) == (141, "")
    cli(srv.address).succeed()
    assert names_in(home) == []
