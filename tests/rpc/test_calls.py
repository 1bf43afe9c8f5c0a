"""Calls between a client and a server, over memory, plain TCP and TLS."""

import asyncio
import logging
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rpc25519_tools.errors import (
    CallCancelledError,
    ConnectionLostError,
    DeadlineError,
    LocalProtocolError,
    NoSuchServiceError,
    PeerNotTrustedError,
    RemoteCallError,
    TransferError,
)
from rpc25519_tools.identity.store import load_identity
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.wire.constants import MAX_PAYLOAD_LEN
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import until
from tests.rpc.nets import Net, Seen, raw_client
from tests.rpc.offers import (
    Waiting,
    parts_of,
    reply_of,
    services,
)
from tests.transport.peers import Authority

# Success.


async def test_a_call_is_answered(net: Net) -> None:
    async with net.pair(services()) as (_, client):
        reply = await client.call("echo", b"hello", args={"k": "v"})
        assert bytes(reply.payload) == b"hello"
        assert reply.header.args == {"k": "v"}


@pytest.mark.parametrize("payload_len", [0, 1, 4096, 4097, 100_000, 3_000_000])
@pytest.mark.parametrize("compression", ["none", "s2", "zstd:03"])
async def test_payloads_of_any_length_come_back(
    net: Net, payload_len: int, compression: str
) -> None:
    payload = random.Random(payload_len).randbytes(payload_len // 2).ljust(payload_len)
    async with net.pair(services(), compression=compression) as (_, client):
        reply = await client.call("echo", payload)
        assert reply.payload == payload


async def test_64_calls_at_a_time_get_their_own_replies(net: Net) -> None:
    rng = random.Random(64)
    payloads = [rng.randbytes(rng.choice((10, 5_000, 70_000))) for _ in range(64)]
    async with net.pair(services()) as (_, client):
        replies = await asyncio.gather(
            *(client.call("echo", payload) for payload in payloads)
        )
        assert [reply.payload for reply in replies] == payloads


async def test_a_slow_call_does_not_hold_up_a_quick_one(net: Net) -> None:
    registry, waiting = services(), Waiting()
    registry.add_call("wait", waiting)
    async with net.pair(registry) as (_, client):
        slow = asyncio.create_task(client.call("wait", b""))
        await client.call("echo", b"")
        assert not slow.done()
        waiting.go.set()
        assert (await slow).payload == b"done"


async def test_a_one_way_message_arrives_and_gets_no_answer(net: Net) -> None:
    registry, arrived = services(), asyncio.Event()

    async def note(context: CallContext) -> Reply:
        assert bytes(context.payload) == b"by the way"
        arrived.set()
        return Reply(payload=b"to nobody")

    registry.add_one_way("note", note)
    async with net.pair(registry) as (_, client):
        await client.send_one_way("note", b"by the way")
        await arrived.wait()
        await client.call("echo", b"")


async def test_an_upload_arrives_in_order(net: Net) -> None:
    async with net.pair(services()) as (_, client):
        async with await client.stream(CallKind.UPLOAD, "collect", b"a") as stream:
            await stream.send(b"b")
            await stream.send(b"", last=True)
            reply = await stream.reply()
        assert bytes(reply.payload) == (
            b"[(0, b'a', False), (1, b'b', False), (2, b'', True)]"
        )


async def test_a_download_arrives_in_order(net: Net) -> None:
    async with (
        net.pair(services()) as (_, client),
        await client.stream(CallKind.DOWNLOAD, "count", b"4") as stream,
    ):
        parts = [part async for part in stream]
        assert [bytes(part.payload) for part in parts[:-1]] == [
            b"part %d" % n for n in range(4)
        ]
        assert [part.number for part in parts] == list(range(5))
        assert [part.last for part in parts] == [False] * 4 + [True]
        assert parts[2].args == {"n": "2"}
        assert (await stream.reply()).payload == b"that was all"
        assert stream.is_over


async def test_a_bistream_flows_both_ways_at_once(net: Net) -> None:
    async with (
        net.pair(services()) as (_, client),
        await client.stream(CallKind.BISTREAM, "mirror", b"0") as stream,
    ):
        back = aiter(stream)
        assert (await anext(back)).payload == b"0"
        for n in range(1, 4):
            await stream.send(b"%d" % n, last=n == 3)
            assert (await anext(back)).payload == b"%d" % n
        with pytest.raises(StopAsyncIteration):
            await anext(back)
        await stream.reply()


async def test_the_handler_knows_who_calls(net: Net) -> None:
    registry, contexts = Registry(), []

    async def note(context: CallContext) -> Reply:
        contexts.append(context)
        return Reply()

    registry.add_call("note", note)
    async with net.pair(registry) as (server, client):
        await client.call("note", b"p", args={"k": "v"})
        (context,) = contexts
        assert context.kind is CallKind.RPC
        assert context.payload == b"p"
        assert context.header.args == {"k": "v"}
        assert context.local_address == server.address
        assert context.remote_address == client.transport.local_address
        assert context.header.sender == f"{net.scheme}://{context.remote_address}"
        assert context.header.recipient.endswith(context.local_address) or (
            net.memory is not None
        )
        if net.network != "tcp":
            assert context.peer is not None
            assert "client@example.org" in str(context.peer)
        else:
            assert context.peer is None


# Failure.


async def test_the_text_of_an_engine_error_goes_to_the_caller(net: Net) -> None:
    registry = services()

    async def fail(context: CallContext) -> Reply:
        raise TransferError("the disk is full of eels")

    registry.add_call("fail", fail)
    async with net.pair(registry) as (_, client):
        with pytest.raises(RemoteCallError) as caught:
            await client.call("fail", b"")
        assert str(caught.value) == "the disk is full of eels"
        await client.call("echo", b"")


async def test_an_engine_error_without_text_goes_out_by_name(memory: Net) -> None:
    registry = Registry()

    async def fail(context: CallContext) -> Reply:
        raise TransferError

    registry.add_call("fail", fail)
    async with memory.pair(registry) as (_, client):
        with pytest.raises(RemoteCallError, match=r"^TransferError$"):
            await client.call("fail", b"")


async def test_an_error_text_beside_a_payload_is_an_error(memory: Net) -> None:
    registry = Registry()

    async def fail(context: CallContext) -> Reply:
        return Reply(payload=b"half of it", error="the other half is missing")

    registry.add_call("fail", fail)
    async with memory.pair(registry) as (_, client):
        with pytest.raises(RemoteCallError, match="the other half is missing"):
            await client.call("fail", b"")


@pytest.mark.parametrize("reveal", [True, False])
async def test_a_crash_of_a_handler_is_told_as_far_as_the_server_wants(
    net: Net, caplog: pytest.LogCaptureFixture, reveal: bool
) -> None:
    registry = services()

    async def crash(context: CallContext, *streams: object) -> Reply:
        raise ValueError("/secret/path")

    registry.add_call("crash", crash)
    registry.add_upload("crash", crash)
    registry.add_download("crash", crash)
    registry.add_bistream("crash", crash)
    told = "ValueError: /secret/path"
    if not reveal:
        told = "internal error of the handler: ValueError"
    async with (
        net.server(registry, reveal_errors=reveal) as server,
        await net.client(server) as client,
    ):
        with pytest.raises(RemoteCallError) as caught:
            await client.call("crash", b"")
        assert str(caught.value) == told
        for kind in (CallKind.UPLOAD, CallKind.DOWNLOAD, CallKind.BISTREAM):
            async with await client.stream(kind, "crash") as stream:
                with pytest.raises(RemoteCallError, match=told):
                    await stream.reply()
        await client.call("echo", b"")
    logged = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert len(logged) == 4
    assert all("crash" in one.getMessage() and one.exc_info for one in logged)


@pytest.mark.parametrize(
    "kind", [CallKind.RPC, CallKind.UPLOAD, CallKind.DOWNLOAD, CallKind.BISTREAM]
)
async def test_an_unknown_service_is_refused_and_the_connection_goes_on(
    net: Net, kind: CallKind
) -> None:
    async with net.pair(services()) as (_, client):
        for name in ("nobody", "echo" if kind is not CallKind.RPC else "collect"):
            with pytest.raises(NoSuchServiceError, match=f"ServiceName='{name}'"):
                await reply_of(client, kind, name)
        await client.call("echo", b"")


async def test_reading_a_refused_stream_says_that_it_is_not_offered(
    memory: Net,
) -> None:
    async with (
        memory.pair(services()) as (_, client),
        await client.stream(CallKind.DOWNLOAD, "nobody") as stream,
    ):
        with pytest.raises(NoSuchServiceError):
            await parts_of(stream)


async def test_a_one_way_message_to_nobody_harms_nothing(net: Net) -> None:
    async with net.pair(services()) as (_, client):
        await client.send_one_way("nobody", b"")
        await client.call("echo", b"")


async def test_a_payload_over_the_limit_is_refused_here_and_harms_nothing(
    memory: Net,
) -> None:
    async with memory.pair(services(), compression="none") as (_, client):
        with pytest.raises(LocalProtocolError, match="does not fit"):
            await client.call("echo", memoryview(bytes(MAX_PAYLOAD_LEN + 1)))
        await client.call("echo", b"")


async def test_a_reply_over_the_limit_becomes_an_error_of_the_call(
    memory: Net,
) -> None:
    registry = services()

    async def too_much(context: CallContext) -> Reply:
        return Reply(payload=memoryview(bytes(MAX_PAYLOAD_LEN + 1)))

    registry.add_call("too much", too_much)
    async with memory.pair(registry, compression="none") as (_, client):
        with pytest.raises(RemoteCallError, match="does not fit a message"):
            await client.call("too much", b"")
        await client.call("echo", b"")


# Giving up.


async def test_a_call_that_takes_too_long_is_cancelled_at_the_server(net: Net) -> None:
    registry, waiting = services(), Waiting()
    registry.add_call("wait", waiting)
    async with net.pair(registry) as (server, client):
        with pytest.raises(DeadlineError, match=r"no reply from 'wait' within 0\.05 s"):
            await client.call("wait", b"", timeout_s=0.05)
        await until(lambda: waiting.cancelled, what="the handler's cancellation")
        await server.wait_until_idle()
        await client.call("echo", b"")


async def test_the_configured_limit_holds_where_the_caller_names_none(
    memory: Net,
) -> None:
    registry, waiting = Registry(), Waiting()
    registry.add_call("wait", waiting)
    async with memory.pair(registry, call_timeout_s=0.05) as (_, client):
        with pytest.raises(DeadlineError):
            await client.call("wait", b"")


async def test_a_call_carries_its_deadline(memory: Net) -> None:
    registry, headers = Registry(), []

    async def note(context: CallContext) -> Reply:
        headers.append(context.header)
        return Reply()

    registry.add_call("note", note)
    async with memory.pair(registry) as (_, client):
        await client.call("note", b"", timeout_s=7)
    (header,) = headers
    assert header.created_ns
    assert header.deadline_ns
    assert 6 * 10**9 < header.deadline_ns - header.created_ns <= 7 * 10**9


async def test_a_cancelled_caller_cancels_the_handler(net: Net) -> None:
    registry, waiting = services(), Waiting()
    registry.add_call("wait", waiting)
    async with net.pair(registry) as (_, client):
        call = asyncio.create_task(client.call("wait", b""))
        await until(lambda: waiting.started)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: waiting.cancelled, what="the handler's cancellation")
        await client.call("echo", b"")


@pytest.mark.parametrize(
    "kind", [CallKind.UPLOAD, CallKind.DOWNLOAD, CallKind.BISTREAM]
)
async def test_leaving_a_stream_cancels_the_handler(net: Net, kind: CallKind) -> None:
    registry, waiting = services(), Waiting()
    registry.add_upload("wait", waiting)
    registry.add_download("wait", waiting)
    registry.add_bistream("wait", waiting)
    async with net.pair(registry) as (_, client):
        async with await client.stream(kind, "wait"):
            await until(lambda: waiting.started)
        await until(lambda: waiting.cancelled, what="the handler's cancellation")
        await client.call("echo", b"")


async def test_a_cancelled_stream_wakes_whoever_reads_it(memory: Net) -> None:
    registry, waiting = services(), Waiting()
    registry.add_download("wait", waiting)
    async with memory.pair(registry) as (_, client):
        stream = await client.stream(CallKind.DOWNLOAD, "wait")
        reading = asyncio.create_task(parts_of(stream))
        replying = asyncio.create_task(stream.reply())
        await until(lambda: waiting.started)
        stream.cancel()
        for task in (reading, replying):
            with pytest.raises(CallCancelledError):
                await asyncio.wait_for(task, 5)


async def test_a_call_cancelled_as_it_comes_is_over(memory: Net) -> None:
    """Its handler may have begun, where asyncio begins tasks at once, or not at all."""
    registry, waiting = services(), Waiting()
    registry.add_call("wait", waiting)
    async with memory.server(registry) as server, raw_client(memory) as peer:
        header = Header(call_type=CallType.RPC, call_id="id", service_name="wait")
        cancel = Header(call_type=CallType.CANCEL_PREVIOUS, call_id="id")
        for _ in range(3):
            peer.send(Message(header=header), Message(header=cancel))
        await until(lambda: len(peer.messages) == 3, what="three replies")
        assert {one.error for one in peer.messages} == {"context canceled"}
        assert waiting.started == waiting.cancelled
        await asyncio.wait_for(server.wait_until_idle(), 5)


async def test_a_cancelled_call_is_answered_with_the_words_of_the_wire(
    memory: Net,
) -> None:
    registry, waiting = services(), Waiting()
    registry.add_call("wait", waiting)
    async with memory.server(registry), raw_client(memory) as peer:
        header = Header(call_type=CallType.RPC, call_id="id", service_name="wait")
        peer.send(Message(header=header))
        await until(lambda: waiting.started)
        cancel = Header(call_type=CallType.CANCEL_PREVIOUS, call_id="id")
        peer.send(Message(header=cancel))
        await until(lambda: peer.messages, what="the reply")
        assert peer.messages[0].error == "context canceled"
        assert peer.messages[0].header.call_type == CallType.RPC_REPLY


# The end of connections.


async def test_a_lost_connection_fails_all_that_wait_at_once(net: Net) -> None:
    registry, waiting = Registry(), Waiting()
    registry.add_call("wait", waiting)
    registry.add_upload("wait", waiting)
    registry.add_download("wait", waiting)
    registry.add_bistream("wait", waiting)
    seen = Seen()
    async with net.server(registry, seen) as server:
        client = await net.client(server)
        waits = [asyncio.create_task(client.call("wait", b"")) for _ in range(3)]
        up = await client.stream(CallKind.UPLOAD, "wait")
        down = await client.stream(CallKind.DOWNLOAD, "wait")
        both = await client.stream(CallKind.BISTREAM, "wait")
        waits += [asyncio.create_task(one.reply()) for one in (up, down, both)]
        readers = [asyncio.create_task(parts_of(one)) for one in (down, both)]
        await until(lambda: waiting.started == 6)
        seen.open[0].abort()
        results = await asyncio.gather(*waits, *readers, return_exceptions=True)
        assert len(results) == 8
        assert all(isinstance(one, ConnectionLostError) for one in results), results
        await until(lambda: waiting.cancelled == 6, what="the handlers' cancellation")
        # What comes too late is told the same.
        with pytest.raises(ConnectionLostError):
            await client.call("wait", b"")
        with pytest.raises(ConnectionLostError):
            await client.send_one_way("wait", b"")
        with pytest.raises(ConnectionLostError):
            await client.stream(CallKind.UPLOAD, "wait")
        with pytest.raises(ConnectionLostError):
            await up.send(b"")
        await client.aclose()


async def test_a_client_that_goes_cancels_its_handlers(net: Net) -> None:
    registry, waiting = Registry(), Waiting()
    registry.add_call("wait", waiting)
    async with net.server(registry) as server:
        client = await net.client(server)
        call = asyncio.create_task(client.call("wait", b""))
        await until(lambda: waiting.started)
        client.transport.abort()
        with pytest.raises(ConnectionLostError):
            await call
        await until(lambda: waiting.cancelled, what="the handler's cancellation")
        await client.aclose()


async def test_a_refused_client_hears_why_at_its_first_call(certs: Path) -> None:
    net, seen = Net("tls", certs), Seen()
    async with net.server(services(), seen) as server:
        ours = load_identity(certs, "client", None)
        stranger = replace(Authority.make().identity(), ca=ours.ca)
        config = net.config(server.address, "client")
        async with await Client.connect(config, stranger) as client:
            with pytest.raises(PeerNotTrustedError, match="refused our certificate"):
                await client.call("echo", b"")
        assert isinstance(seen.refusals[0], PeerNotTrustedError)
        assert not seen.closed


# Time limits.

NO_LIMITS: tuple[Any, ...] = (math.inf, -math.inf, math.nan, "5", 1e10, 1e300, [1])


@pytest.mark.parametrize("limit", NO_LIMITS, ids=repr)
async def test_what_is_no_time_limit_is_refused(memory: Net, limit: Any) -> None:
    async with memory.pair(services()) as (_, client):
        with pytest.raises(LocalProtocolError, match="must be a number of seconds"):
            await client.call("echo", b"x", timeout_s=limit)
        with pytest.raises(LocalProtocolError, match="must be a number of seconds"):
            await client.upload("collect", b"x", timeout_s=limit).begin()
        with pytest.raises(LocalProtocolError, match="must be a number of seconds"):
            await client.netrpc.call("A.b", 1, int, timeout_s=limit)
        assert client.core.open_calls == 0
        assert (await client.call("echo", b"x", timeout_s=1e9)).payload == b"x"


@pytest.mark.parametrize("limit", [0, -1, -1.5])
async def test_a_limit_that_has_passed_ends_the_call(memory: Net, limit: float) -> None:
    async with memory.pair(services()) as (_, client):
        with pytest.raises(DeadlineError):
            await client.call("echo", b"x", timeout_s=limit)


async def test_the_name_of_a_method_is_text(memory: Net) -> None:
    wrong: Any = 5
    async with memory.pair(services()) as (_, client):
        with pytest.raises(LocalProtocolError, match="name of a method must be text"):
            await client.netrpc.call(wrong, 1, int)
