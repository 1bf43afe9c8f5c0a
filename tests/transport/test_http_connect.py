"""HTTP CONNECT: both ends on sockets, the server, and ends that do not match."""

import asyncio
import contextlib
import random

import pytest

from rpc25519_tools.config import parse_address
from rpc25519_tools.errors import (
    BadMagicError,
    ConfigError,
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
    REQUEST,
)
from rpc25519_tools.wire.constants import MIB
from rpc25519_tools.wire.framing import FrameDecoder
from tests.helpers import until
from tests.transport.http_peers import (
    CLIENT_HELLO,
    DELAY,
    FRAMES,
    NEVER_S,
    REQUESTS,
    RawClient,
    calling,
    leakless,
    serving,
)
from tests.transport.peers import Listening, Recorder, dialled, listening

# Both ends on sockets.


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
