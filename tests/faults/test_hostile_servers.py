"""What ``cli`` does with servers that break the rules of transfers."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from rpc25519_tools.files.parts import (
    ARG_DOWNLOAD_LEN,
    ARG_SERVER_TOTAL_SUM,
    DOWNLOAD_SERVICE,
    ECHO_FILE_SERVICE,
)
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.digest import digest_text
from rpc25519_tools.wire.message import CallType, Message
from tests.commands.hostile import (
    MIB,
    HostileServer,
    Script,
    Wire,
    answer,
    names_in,
    summed,
)
from tests.faults.frames import (
    ABSURD_LENGTH,
    BOMB_CODECS,
    GARBAGE,
    ONE,
    TWO,
    WHOLE,
    bomb,
    send_some_of,
)
from tests.faults.programs import (
    AREA,
    BIG,
    OLD,
    Cli,
)


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
    # What came before a cut was right, and another attempt carries on with it.
    assert names_in(home) == ([AREA, "f"] if code == 3 else ["f"])
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
        message = asked = await wire.receive_until(CallType.UPLOAD_BEGIN)
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
        # It never says what it has of the file: that is waited for, but not for long.
        words = ("-sendfile", "f", "-tcp", "-wait", "1s")
        line = cli(server.address, *words).error(code)
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
