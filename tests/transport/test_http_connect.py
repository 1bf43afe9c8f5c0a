"""HTTP CONNECT: the head as bytes, both ends on sockets, and ends that do not match."""

import asyncio
import base64
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.config import parse_address
from rpc25519_tools.errors import (
    BadMagicError,
    ConfigError,
    ConnectFailedError,
    DeadlineError,
    HandshakeError,
)
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.limits import Limits, Startups
from rpc25519_tools.transport.base import (
    WRITE_HIGH_WATER_LEN,
    Receiver,
    TlsSettings,
    Transport,
)
from rpc25519_tools.transport.endpoint import connect, listen
from rpc25519_tools.transport.http_connect import (
    ANSWER,
    MAX_HEAD_LEN,
    REQUEST,
    Head,
    HeadReader,
    Side,
    judge_answer,
    judge_request,
)
from rpc25519_tools.wire.constants import MAGIC, MIB
from rpc25519_tools.wire.framing import FrameDecoder
from tests.helpers import open_fds, until
from tests.transport.peers import Listening, Recorder, dialled, listening

FLOWS = Path(__file__).parent.parent / "data" / "wire" / "flows"
DELAY = "rpc25519_tools.transport.http_connect.OPEN_DELAY_S"
NEVER_S = 1000.0
CLIENT_HELLO = bytes.fromhex("16030100c2010000be0303")
TLS_ALERT = bytes.fromhex("15030300020246")

leakless = pytest.mark.usefixtures("no_leaked_fds")


# The head, without sockets.


def recorded_prelude(direction: str) -> bytes:
    index = json.loads((FLOWS / "index.json").read_text())
    (exchange,) = (e for e in index["exchanges"] if e["name"] == "http-connect")
    prelude = base64.b64decode(exchange[direction]["prelude_b64"])
    assert (FLOWS / f"http-connect.{direction}.bin").read_bytes().startswith(prelude)
    return prelude


def test_both_sides_say_what_go_programs_say() -> None:
    assert recorded_prelude("c2s") == REQUEST
    assert recorded_prelude("s2c") == ANSWER


def read_head(side: Side, pieces: list[bytes]) -> Head | str | None:
    """Return the head, the reason against it, or None where it is not complete."""
    reader = HeadReader(side)
    for number, piece in enumerate(pieces):
        try:
            head = reader.receive_data(piece)
        except HandshakeError as exc:
            return str(exc)
        if head is not None:
            return Head(head.first_line, head.rest + b"".join(pieces[number + 1 :]))
    return None


REQUESTS = [
    REQUEST,
    b"CONNECT /_goRPC_ HTTP/1.0\r\n\r\n",
    b"CONNECT /_goRPC_ HTTP/1.1\r\nHost: example.org\r\nX-Empty:\r\n\r\n",
    b"CONNECT /_goRPC_ HTTP/1.1\nA: 1\r\nB: \xe4\tb\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
]
ANSWERS = [
    ANSWER,
    b"HTTP/1.1 200 Connected to Go RPC\r\n\r\n",
    b"HTTP/1.0 200 Connected to Go RPC\r\nServer: x\r\n\r\n",
    b"HTTP/1.1 405 Method Not Allowed\r\nAllow: CONNECT\r\n\r\n",
    b"HTTP/1.1 200\n\n",
]
FRAMES = (FLOWS / "echo-none.c2s.bin").read_bytes()
NO_HEADS = [
    b"\n",
    b"\r\n\r\n",
    b"\r\r\n",
    b"CONNECT /_goRPC_ HTTP/1.0\rX: y\n\n",
    b"CONNECT /_goRPC_ HTTP/2.0\n\n",
    b"CONNECT  /_goRPC_ HTTP/1.0\n\n",
    b"CONNECT /_goRPC_\n\n",
    b"CONNECT /a b HTTP/1.0\n\n",
    b"CONNECT /_go\x00 HTTP/1.0\n\n",
    b"CONNECT /_goRPC_ HTTP/1.0\nno header\n\n",
    b"CONNECT /_goRPC_ HTTP/1.0\n folded: 1\n\n",
    b"CONNECT /_goRPC_ HTTP/1.0\nA: \x01\n\n",
    b"HTTP/1.0 20 Connected to Go RPC\n\n",
    b"HTTP/2 200 Connected to Go RPC\n\n",
    b"HTTP/1.0\n\n",
    b"HTTP/1.0 200 Connected to Go RPC\nA : 1\n\n",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"\xff\xfe",
    b"\x16\x02 no TLS",
    b"x" * 3 * MAX_HEAD_LEN,
    CLIENT_HELLO,
    TLS_ALERT,
    FRAMES,
    MAGIC[:5] + b"??",
]
SIDES: list[Side] = ["client", "server"]


@pytest.mark.parametrize("head", REQUESTS)
def test_a_request_is_read_to_its_end(head: bytes) -> None:
    first_line = head.splitlines()[0].decode()
    for rest in (b"", b"\n", FRAMES):
        assert read_head("server", [head + rest]) == Head(first_line, rest)
    for length in range(len(head)):
        assert read_head("server", [head[:length]]) is None
    assert "does not speak HTTP CONNECT" in str(read_head("client", [head]))


@pytest.mark.parametrize("head", ANSWERS)
def test_an_answer_is_read_to_its_end(head: bytes) -> None:
    first_line = head.splitlines()[0].decode()
    for rest in (b"", b"\n", FRAMES):
        assert read_head("client", [head + rest]) == Head(first_line, rest)
    for length in range(len(head)):
        assert read_head("client", [head[:length]]) is None
    assert "does not speak HTTP CONNECT" in str(read_head("server", [head]))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("data", NO_HEADS)
def test_what_is_no_head_is_refused_in_one_printable_line(
    side: Side, data: bytes
) -> None:
    reason = read_head(side, [data])
    assert isinstance(reason, str)
    assert reason.isascii()
    assert reason.isprintable()
    assert len(reason) < 140


@given(
    side=st.sampled_from(SIDES),
    data=st.sampled_from(REQUESTS + ANSWERS + NO_HEADS),
    rest=st.binary(max_size=20),
    cuts=st.lists(st.integers(0, 120), max_size=12),
)
def test_pieces_come_to_the_same(
    side: Side, data: bytes, rest: bytes, cuts: list[int]
) -> None:
    data += rest
    ends = [*sorted(cuts), len(data)]
    pieces = [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    pieces.append(data[max(ends) :])
    assert b"".join(pieces) == data
    whole = read_head(side, [data])
    assert read_head(side, pieces) == whole
    assert read_head(side, [data[i : i + 1] for i in range(len(data))]) == whole


@given(
    side=st.sampled_from(SIDES),
    beginning=st.sampled_from([b"", REQUEST[:-1], ANSWER[:-1], b"GET ", MAGIC[:3]]),
    data=st.binary(),
)
def test_nothing_but_handshake_errors_comes_of_any_bytes(
    side: Side, beginning: bytes, data: bytes
) -> None:
    found = read_head(side, [beginning + data])
    if isinstance(found, str):
        assert found.isascii()
        assert found.isprintable()


@pytest.mark.parametrize("side", SIDES)
def test_a_head_may_be_just_as_long_as_the_limit(side: Side) -> None:
    line = REQUEST[:-1] if side == "server" else ANSWER[:-1]
    header = b"A: " + b"b" * (MAX_HEAD_LEN - len(line) - 5) + b"\n"
    head = line + header + b"\n"
    assert len(head) == MAX_HEAD_LEN
    assert read_head(side, [head + b"rest"]) == Head(line.decode().rstrip(), b"rest")
    longer = line + b"b" + header + b"\n" if side == "client" else line + b"b" + header
    reason = str(read_head(side, [longer + b"\n"]))
    assert reason.endswith("sent an HTTP head of more than 8192 bytes")


@pytest.mark.parametrize(
    ("first_line", "answer"),
    [
        ("CONNECT /_goRPC_ HTTP/1.0", ANSWER),
        ("CONNECT /_goRPC_ HTTP/1.1", ANSWER),
        ("GET /_goRPC_ HTTP/1.1", b"405 Method Not Allowed"),
        ("connect /_goRPC_ HTTP/1.1", b"405 Method Not Allowed"),
        ("GET / HTTP/1.1", b"404 Not Found"),
        ("CONNECT /other HTTP/1.1", b"404 Not Found"),
        ("CONNECT example.org:443 HTTP/1.1", b"404 Not Found"),
    ],
)
def test_a_request_is_judged_by_path_and_method(first_line: str, answer: bytes) -> None:
    said, error = judge_request(Head(first_line, b""))
    assert said == answer or said.startswith(b"HTTP/1.0 " + answer + b"\r\n")
    assert (error is None) == (said == ANSWER)
    if error is not None:
        assert str(error) == (
            f"the client sent {first_line!r} instead of HTTP CONNECT "
            "(is it a web browser?)"
        )


@pytest.mark.parametrize(
    "status",
    ["200 OK", "200", "200 connected to go rpc", "404 Not Found", "200 " + "x" * 7000],
)
def test_any_other_status_is_a_refusal(status: str) -> None:
    judge_answer(Head("HTTP/1.1 200 Connected to Go RPC", b""))
    with pytest.raises(HandshakeError) as caught:
        judge_answer(Head(f"HTTP/1.1 {status}", b""))
    assert str(caught.value) == (
        f"the server does not speak HTTP CONNECT (status {status[:60]})"
    )


# Both ends on sockets.


@contextlib.asynccontextmanager
async def serving(
    *,
    accept: Callable[[Transport], Receiver] | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[Listening]:
    """Listen for HTTP CONNECT on a free port; every socket is closed afterwards."""
    found, before = Listening(), len(open_fds())
    listener = await listen(
        parse_address("127.0.0.1:0"),
        tls=None,
        accept=accept or found.accept,
        failed=found.fail,
        limits=limits,
        http_connect=True,
    )
    found.address, found.close = listener.address, listener.close
    try:
        yield found
    finally:
        listener.close()
        for recorder in found.accepted:
            recorder.transport.abort()
        await until(lambda: len(open_fds()) <= before, what="the sockets to be closed")


@contextlib.asynccontextmanager
async def calling(
    address: str,
    *,
    accept: Callable[[Transport], Receiver] = Recorder,
    timeout_s: float = 10.0,
) -> AsyncIterator[Recorder]:
    """Connect with HTTP CONNECT."""
    made: list[Receiver] = []

    def keep(transport: Transport) -> Receiver:
        made.append(accept(transport))
        return made[0]

    await connect(
        parse_address(address),
        tls=None,
        accept=keep,
        timeout_s=timeout_s,
        http_connect=True,
    )
    (recorder,) = made
    assert isinstance(recorder, Recorder)
    try:
        yield recorder
    finally:
        recorder.transport.abort()


class RawClient:
    """A client that sends what a test says."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, address: str, data: bytes = b"") -> AsyncIterator["RawClient"]:
        host, port = address.split(":")
        client = cls(*await asyncio.open_connection(host, int(port)))
        client.writer.write(data)
        try:
            yield client
        finally:
            client.writer.transport.abort()

    async def read_all(self) -> bytes:
        """Read until the server hangs up."""
        return await asyncio.wait_for(self.reader.read(), 10)

    async def expect_end(self) -> None:
        """Wait until the server has gone, in whatever way."""
        with contextlib.suppress(ConnectionError):
            await self.read_all()


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def raw_server(talk: Talk) -> AsyncIterator[str]:
    """Serve one client as a test says, and then until it hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await talk(reader, writer)
            await reader.read()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def saying(data: bytes, *, hang_up: bool = False) -> Talk:
    """Answer the exact request with ``data``."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(REQUEST)) == REQUEST
        writer.write(data)
        if hang_up:
            writer.write_eof()

    return talk


@leakless
async def test_bytes_arrive_whole_both_ways() -> None:
    up, down = random.Random(1).randbytes(3 * MIB + 1), random.Random(2).randbytes(MIB)
    async with serving() as found, calling(found.address) as ours:
        ours.transport.write([up])
        await until(lambda: found.accepted)
        theirs = found.accepted[0]
        theirs.transport.write([down])
        await until(lambda: len(theirs.data) == len(up) and len(ours.data) == MIB)
        assert theirs.data == up
        assert ours.data == down
        assert ours.transport.network == theirs.transport.network == "tcp"
        assert ours.transport.peer is None
        assert ours.transport.local_address == theirs.transport.remote_address
        ours.transport.close()
        await until(lambda: ours.lost and theirs.lost)
        assert ours.error is None
        assert theirs.error is None
        assert not found.failures


@leakless
async def test_a_paused_reader_makes_the_writer_wait() -> None:
    async with serving() as found, calling(found.address) as ours:
        await until(lambda: found.accepted)
        theirs = found.accepted[0]
        theirs.transport.pause_reading()
        ours.transport.write([bytes(32 * MIB)])
        assert ours.transport.unsent_len > WRITE_HIGH_WATER_LEN
        theirs.transport.resume_reading()
        await until(lambda: len(theirs.data) == 32 * MIB)
        assert ours.writable_calls == 1


async def test_tls_and_http_connect_exclude_each_other(node: LoadedIdentity) -> None:
    tls = TlsSettings(identity=node)
    address = parse_address("127.0.0.1:1")
    with pytest.raises(ConfigError, match="plain TCP only"):
        await connect(address, tls=tls, accept=Recorder, timeout_s=1, http_connect=True)
    with pytest.raises(ConfigError, match="plain TCP only"):
        await listen(
            address,
            tls=tls,
            accept=Recorder,
            failed=Listening().fail,
            http_connect=True,
        )


# The server.


@leakless
@pytest.mark.parametrize("head", REQUESTS[:-1])
async def test_the_server_opens_with_the_first_byte_behind_the_head(
    head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DELAY, NEVER_S)
    async with serving() as found, RawClient.to(found.address, head) as client:
        assert await client.reader.readexactly(len(ANSWER)) == ANSWER
        assert not found.outcomes
        client.writer.write(FRAMES)
        await until(lambda: found.accepted and found.accepted[0].data == FRAMES)
        found.accepted[0].transport.write([b"frames"])
        found.accepted[0].transport.close()
        client.writer.write_eof()
        assert await client.read_all() == b"frames"


@leakless
async def test_the_server_opens_after_a_while_for_a_client_that_waits() -> None:
    loop = asyncio.get_running_loop()
    async with serving() as found, RawClient.to(found.address, REQUEST) as client:
        assert await client.reader.readexactly(len(ANSWER)) == ANSWER
        answered_s = loop.time()
        await until(lambda: found.accepted)
        assert loop.time() - answered_s > 0.05
        assert not found.accepted[0].data
        found.accepted[0].transport.write([b"a push"])
        assert await client.reader.readexactly(6) == b"a push"
        client.writer.write(b"later")
        await until(lambda: found.accepted[0].data == b"later")


@leakless
async def test_bytes_that_come_with_the_head_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DELAY, NEVER_S)
    data = random.Random(3).randbytes(MIB)
    async with serving() as found, RawClient.to(found.address, REQUEST + data) as raw:
        await until(lambda: found.accepted and len(found.accepted[0].data) == MIB)
        assert found.accepted[0].data == data
        found.accepted[0].transport.close()
        raw.writer.write_eof()
        assert await raw.read_all() == ANSWER


class Narrow(Recorder):
    """A Receiver with little memory, which may end what it has got enough of."""

    ending: str = ""

    def get_buffer(self) -> memoryview:
        return super().get_buffer()[:3]

    def buffer_updated(self, count: int) -> None:
        assert count <= 3
        super().buffer_updated(count)
        if self.ending:
            getattr(self.transport, self.ending)()


@leakless
@pytest.mark.parametrize("ending", ["", "close", "abort"])
async def test_a_receiver_takes_what_came_early_as_it_can(ending: str) -> None:
    made: list[Narrow] = []

    def accept(transport: Transport) -> Receiver:
        made.append(Narrow(transport))
        made[0].ending = ending
        return made[0]

    async with (
        serving(accept=accept) as found,
        RawClient.to(found.address, REQUEST + b"0123456789"),
    ):
        await until(lambda: made and made[0].data)
        assert bytes(made[0].data) == (b"012" if ending else b"0123456789")
        made[0].transport.abort()
        await until(lambda: made[0].lost)
        assert not found.failures


@leakless
@pytest.mark.parametrize("ending", ["close", "abort"])
async def test_a_receiver_may_end_the_connection_at_once(ending: str) -> None:
    made: list[Recorder] = []

    def accept(transport: Transport) -> Receiver:
        made.append(Recorder(transport))
        getattr(transport, ending)()
        return made[0]

    async with (
        serving(accept=accept) as found,
        RawClient.to(found.address, REQUEST + b"early") as client,
    ):
        await client.expect_end()
        client.writer.transport.abort()
        await until(lambda: made[0].lost)
        assert not made[0].data
        assert not found.failures


NO_ANSWER = (
    "the server hung up instead of answering HTTP CONNECT "
    "(does it use TLS, or plain TCP without HTTP CONNECT?)"
)
BROWSER = "(is it a web browser?)"


@leakless
@pytest.mark.parametrize(
    ("sent", "status", "body", "reason"),
    [
        (
            b"GET /_goRPC_ HTTP/1.1\r\nHost: a\r\n\r\n",
            "405 Method Not Allowed",
            "405 must CONNECT\n",
            "the client sent 'GET /_goRPC_ HTTP/1.1' instead of HTTP CONNECT "
            + BROWSER,
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: Mozilla/5.0\r\n\r\n",
            "404 Not Found",
            "404 page not found\n",
            f"the client sent 'GET / HTTP/1.1' instead of HTTP CONNECT {BROWSER}",
        ),
        (
            b"CONNECT /other HTTP/1.0\n\nmore",
            "404 Not Found",
            "404 page not found\n",
            "the client sent 'CONNECT /other HTTP/1.0' instead of HTTP CONNECT "
            + BROWSER,
        ),
        (
            b"EHLO mail\r\n",
            "400 Bad Request",
            "400 bad request\n",
            "the client does not speak HTTP CONNECT (it sent 'EHLO mail')",
        ),
        (
            b"CONNECT /_goRPC_ HTTP/1.0\nnothing\n\n",
            "400 Bad Request",
            "400 bad request\n",
            "the client sent a malformed HTTP header instead of HTTP CONNECT",
        ),
        (
            FRAMES,
            "400 Bad Request",
            "400 bad request\n",
            "the client sent frames right away: it does not use HTTP CONNECT",
        ),
        (
            CLIENT_HELLO,
            "400 Bad Request",
            "400 bad request\n",
            "the client speaks TLS, and this side HTTP CONNECT on plain TCP",
        ),
        (
            b"\x00\x01\x02",
            "400 Bad Request",
            "400 bad request\n",
            "the client does not speak HTTP CONNECT",
        ),
    ],
)
async def test_other_clients_are_told_and_noted(
    sent: bytes, status: str, body: str, reason: str
) -> None:
    async with serving() as found, RawClient.to(found.address, sent) as client:
        said = (await client.read_all()).decode()
        assert said.startswith(f"HTTP/1.0 {status}\r\n")
        assert said.endswith(f"\r\n\r\n{body}")
        assert f"Content-Length: {len(body)}\r\n" in said
        assert str(found.failure) == reason
        assert isinstance(found.failure, HandshakeError)


@leakless
async def test_a_refusal_arrives_although_the_client_goes_on_sending() -> None:
    async with (
        serving() as found,
        RawClient.to(found.address, b"PUT / HTTP/1.1\r\n\r\n" + bytes(MIB)) as client,
    ):
        assert (await client.read_all()).startswith(b"HTTP/1.0 404 ")
        assert len(found.failures) == 1


@leakless
async def test_an_endless_head_ends() -> None:
    async with serving() as found, RawClient.to(found.address, REQUEST[:-1]) as client:
        while not found.outcomes:
            client.writer.write(b"A: b\n" * 100)
            await client.writer.drain()
        client.writer.write_eof()
        assert (await client.read_all()).startswith(b"HTTP/1.0 400 ")
        assert str(found.failure) == (
            "the client sent an HTTP head of more than 8192 bytes"
        )


@leakless
@pytest.mark.parametrize("sent", [b"", b"CONN", REQUEST[:-1], CLIENT_HELLO[:1]])
async def test_a_slow_head_is_given_up(sent: bytes) -> None:
    async with (
        serving(limits=Limits(handshake_timeout_s=0.05)) as found,
        RawClient.to(found.address, sent) as client,
    ):
        await client.expect_end()
        assert str(found.failure) == "no HTTP CONNECT within 0.05 s"


@leakless
async def test_the_time_for_the_head_is_no_time_limit_for_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DELAY, 0.1)
    async with (
        serving(limits=Limits(handshake_timeout_s=0.05)) as found,
        RawClient.to(found.address, REQUEST),
    ):
        await until(lambda: found.outcomes)
        assert found.accepted


@leakless
async def test_too_many_heads_at_a_time_end_the_oldest() -> None:
    async with (
        serving(limits=Limits(max_startups=Startups(2, 100, 2))) as found,
        RawClient.to(found.address, b"C") as oldest,
        RawClient.to(found.address, b"C") as second,
    ):
        async with RawClient.to(found.address, REQUEST + b"early"):
            await oldest.expect_end()
            await until(lambda: found.accepted)
        assert [str(error) for error in found.failures] == [
            "too many clients in their handshake"
        ]
        second.writer.write(REQUEST[1:])
        assert await second.reader.readexactly(len(ANSWER)) == ANSWER


@leakless
async def test_connections_beyond_the_limit_in_one_moment_end() -> None:
    limits = Limits(max_startups=Startups(1, 100, 1))
    async with serving(limits=limits) as found, contextlib.AsyncExitStack() as stack:
        clients = await asyncio.gather(
            *(stack.enter_async_context(RawClient.to(found.address)) for _ in range(8))
        )
        ends = [asyncio.create_task(client.expect_end()) for client in clients]
        await until(lambda: sum(end.done() for end in ends) == 7)
        assert len(found.failures) == 1, "the others are told later, with their number"
        found.close()
        await asyncio.gather(*ends)


@leakless
@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", "the client hung up without HTTP CONNECT"),
        (b"CONNECT", "the client hung up in the middle of HTTP CONNECT"),
        (REQUEST[:-1], "the client hung up in the middle of HTTP CONNECT"),
        (REQUEST, "the client hung up right after HTTP CONNECT"),
    ],
)
@pytest.mark.parametrize("hard", [False, True])
async def test_a_client_that_hangs_up_in_between_is_noted(
    sent: bytes, reason: str, hard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DELAY, NEVER_S)
    async with serving() as found:
        async with RawClient.to(found.address, sent) as client:
            if sent == REQUEST:
                assert await client.reader.readexactly(len(ANSWER)) == ANSWER
            if hard:
                client.writer.transport.abort()
            else:
                client.writer.write_eof()
            await until(lambda: found.outcomes)
        assert str(found.failure) == reason


@leakless
@pytest.mark.parametrize("sent", [b"", b"CONNECT", REQUEST])
async def test_preludes_under_way_end_with_the_listener(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DELAY, NEVER_S)
    async with serving() as found, RawClient.to(found.address, sent) as client:
        if sent == REQUEST:
            assert await client.reader.readexactly(len(ANSWER)) == ANSWER
        found.close()
        await client.expect_end()
        # A connection that nobody had taken yet was never known to us.
        assert not found.accepted
        assert {str(error) for error in found.failures} <= {
            "this side hung up during HTTP CONNECT"
        }


@leakless
async def test_open_connections_outlive_the_listener() -> None:
    async with serving() as found, calling(found.address) as ours:
        ours.transport.write([b"before "])
        await until(lambda: found.accepted)
        found.close()
        ours.transport.write([b"after"])
        await until(lambda: found.accepted[0].data == b"before after")


# The client.


@leakless
@pytest.mark.parametrize("answer", ANSWERS[:3])
async def test_the_client_opens_with_the_answer(answer: bytes) -> None:
    async with (
        raw_server(saying(answer + FRAMES)) as address,
        calling(address) as ours,
    ):
        await until(lambda: ours.data == FRAMES)


@leakless
async def test_the_client_sends_nothing_before_the_whole_answer() -> None:
    made: list[Transport] = []

    def accept(transport: Transport) -> Receiver:
        made.append(transport)
        transport.write([b"frames"])
        return Recorder(transport)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(REQUEST)) == REQUEST
        for position in range(len(ANSWER)):
            assert not made
            writer.write(ANSWER[position : position + 1])
            await writer.drain()
        assert await reader.readexactly(6) == b"frames"
        writer.write(b"all is well")

    async with raw_server(talk) as address, calling(address, accept=accept) as ours:
        await until(lambda: ours.data == b"all is well")


@leakless
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\n\r\n405\n",
            "the server does not speak HTTP CONNECT (status 405 Method Not Allowed)",
        ),
        (
            b"HTTP/1.1 200 OK\r\n\r\n",
            "the server does not speak HTTP CONNECT (status 200 OK)",
        ),
        (
            TLS_ALERT,
            "the server speaks TLS, and this side HTTP CONNECT on plain TCP",
        ),
        (
            FRAMES,
            "the server sent frames right away: it does not use HTTP CONNECT",
        ),
        (
            b"SSH-2.0-OpenSSH_9.6p1\r\n",
            "the server does not speak HTTP CONNECT (it sent 'SSH-2.0-OpenSSH_9.6p1')",
        ),
        (
            b"\x1b[31mred\n",
            "the server does not speak HTTP CONNECT",
        ),
        (
            ANSWER[:-1] + b"x" * 10_000,
            "the server sent an HTTP head of more than 8192 bytes",
        ),
    ],
)
async def test_other_servers_are_refused(answer: bytes, reason: str) -> None:
    async with raw_server(saying(answer)) as address:
        with pytest.raises(HandshakeError) as caught:
            async with calling(address):
                pass
        assert str(caught.value) == reason


@leakless
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", NO_ANSWER),
        (b"HTTP/1.0 200 Conn", "the server hung up in the middle of HTTP CONNECT"),
    ],
)
async def test_a_server_that_hangs_up_is_told(answer: bytes, reason: str) -> None:
    async with raw_server(saying(answer, hang_up=True)) as address:
        with pytest.raises(HandshakeError) as caught:
            async with calling(address):
                pass
        assert str(caught.value) == reason


@leakless
@pytest.mark.parametrize("answer", [b"", ANSWER[:-1]])
async def test_a_slow_answer_runs_into_the_limit_for_connecting(
    answer: bytes,
) -> None:
    async with raw_server(saying(answer)) as address:
        with pytest.raises(DeadlineError, match=r"no answer from .* within 0\.05 s"):
            async with calling(address, timeout_s=0.05):
                pass


@leakless
async def test_waiting_for_the_answer_can_be_cancelled() -> None:
    asked = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(REQUEST))
        asked.set()

    async def call(address: str) -> None:
        async with calling(address):
            pass

    async with raw_server(talk) as address:
        task = asyncio.create_task(call(address))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@leakless
async def test_a_port_where_nobody_listens_is_told() -> None:
    async with raw_server(saying(b"")) as address:
        pass
    with pytest.raises(ConnectFailedError, match="nobody listens there"):
        async with calling(address):
            pass


# Ends that are set differently.


class Frames(Recorder):
    """A Receiver that ends the connection at what is no frame, as all real ones do."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self.decoder = FrameDecoder(bytearray(64 * 1024))
        self.refusal: BadMagicError | None = None

    def buffer_updated(self, count: int) -> None:
        super().buffer_updated(count)
        try:
            self.decoder.receive_data(bytes(self._memory[:count]))
        except BadMagicError as exc:
            self.refusal = exc
            self.transport.abort()


@leakless
async def test_a_server_on_plain_tcp_refuses_a_client_with_http_connect() -> None:
    made: list[Frames] = []

    def accept(transport: Transport) -> Receiver:
        made.append(Frames(transport))
        return made[0]

    listener = await listen(
        parse_address("127.0.0.1:0"), tls=None, accept=accept, failed=Listening().fail
    )
    with pytest.raises(HandshakeError, match="hung up instead of answering"):
        async with calling(listener.address):
            pass
    await until(lambda: made[0].lost)
    assert made[0].refusal is not None
    listener.close()


@leakless
async def test_a_client_on_plain_tcp_is_refused_for_its_frames() -> None:
    async with serving() as found:
        transport = await connect(
            parse_address(found.address), tls=None, accept=Frames, timeout_s=10
        )
        transport.write([FRAMES])
        await until(lambda: found.outcomes)
        assert "sent frames right away" in str(found.failure)
        transport.abort()


@leakless
async def test_a_client_on_tls_is_refused(client: LoadedIdentity) -> None:
    async with serving() as found:
        with pytest.raises(HandshakeError, match="the server does not speak TLS"):
            async with dialled(found.address, client):
                pass
        assert "the client speaks TLS" in str(found.failure)


@leakless
async def test_a_server_on_tls_is_refused(node: LoadedIdentity) -> None:
    async with listening(node) as found:
        with pytest.raises(HandshakeError, match=r"(does it use|speaks) TLS"):
            async with calling(found.address):
                pass
        assert isinstance(found.failure, HandshakeError)
