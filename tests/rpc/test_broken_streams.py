"""Streams that break, and streams that are not open."""

import asyncio
import time

import pytest

from rpc25519_tools.errors import (
    CallCancelledError,
    IncompleteTransferError,
    LocalProtocolError,
    RemoteCallError,
    TransferError,
)
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client_stream import ClientStream
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import until
from tests.rpc.nets import Net, raw_client, raw_server
from tests.rpc.offers import (
    Waiting,
    collect,
    parts_of,
    services,
)


async def test_parts_out_of_order_fail_an_upload_and_nothing_else(
    memory: Net,
) -> None:
    async with memory.server(services()), raw_client(memory) as peer:
        begin = Header(
            call_type=CallType.UPLOAD_BEGIN, call_id="up", service_name="collect"
        )
        more = Header(call_type=CallType.UPLOAD_MORE, call_id="up", stream_part=5)
        peer.send(Message(header=begin), Message(header=more))
        await until(lambda: peer.messages)
        assert peer.messages[0].error == "part 5 came where part 1 was due"
        call = Header(call_type=CallType.RPC, call_id="rpc", service_name="echo")
        peer.send(Message(header=call, payload=b"still here"))
        await until(lambda: len(peer.messages) == 2)
        assert peer.messages[1].payload == b"still here"


async def test_parts_after_the_last_one_fail_an_upload(memory: Net) -> None:
    registry, waiting = Registry(), Waiting()
    failures = []

    async def wait_and_collect(context: CallContext, parts: IncomingStream) -> Reply:
        await waiting.go.wait()
        try:
            return await collect(context, parts)
        except IncompleteTransferError as exc:
            failures.append(str(exc))
            raise

    registry.add_upload("collect", wait_and_collect)
    async with memory.server(registry), raw_client(memory) as peer:
        for part, call_type in enumerate(
            (CallType.UPLOAD_BEGIN, CallType.UPLOAD_END, CallType.UPLOAD_MORE)
        ):
            header = Header(
                call_type=call_type,
                call_id="up",
                service_name="collect",
                stream_part=part,
            )
            peer.send(Message(header=header))
        await until(lambda: not peer.transport.unsent_len)
        waiting.go.set()
        await until(lambda: peer.messages)
        assert peer.messages[0].error == "part 2 came after the last part"
        assert failures == ["part 2 came after the last part"]


async def test_parts_out_of_order_fail_a_download_and_nothing_else(
    memory: Net,
) -> None:
    async with raw_server(memory) as (peer, client):
        stream = await client.stream(CallKind.DOWNLOAD, "d")
        await until(lambda: peer.messages)
        opening = peer.messages[0].header
        for number in (0, 2):
            header = Header(
                call_type=CallType.DOWNLOAD_MORE,
                call_id=opening.call_id,
                stream_part=number,
            )
            peer.send(Message(header=header, payload=b"p"))
        with pytest.raises(IncompleteTransferError, match=r"part 2 .* part 1 was due"):
            await parts_of(stream)
        with pytest.raises(IncompleteTransferError):
            await stream.reply()
        call = asyncio.create_task(client.call("echo", b""))
        await until(lambda: len(peer.messages) == 2)
        request = peer.messages[1].header
        reply = Header(
            call_type=CallType.RPC_REPLY, call_id=request.call_id, seqno=request.seqno
        )
        peer.send(Message(header=reply, payload=b"fine"))
        assert (await call).payload == b"fine"


async def test_a_download_may_end_with_its_reply(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        stream = await client.stream(CallKind.DOWNLOAD, "d")
        await until(lambda: peer.messages)
        opening = peer.messages[0].header
        for call_type in (CallType.DOWNLOAD_BEGIN, CallType.RPC_REPLY):
            header = Header(
                call_type=call_type, call_id=opening.call_id, seqno=opening.seqno
            )
            peer.send(Message(header=header, payload=b"p"))
        assert await parts_of(stream) == [b"p"]
        await stream.reply()


async def test_parts_come_before_the_error_that_ends_a_download(memory: Net) -> None:
    async with (
        raw_server(memory) as (peer, client),
        client.download("d") as stream,
    ):
        await until(lambda: peer.messages)
        opening = peer.messages[0].header
        for number, call_type in enumerate(
            (CallType.DOWNLOAD_BEGIN, CallType.DOWNLOAD_MORE, CallType.RPC_REPLY)
        ):
            is_reply = call_type is CallType.RPC_REPLY
            header = Header(
                call_type=call_type,
                call_id=opening.call_id,
                seqno=opening.seqno,
                stream_part=0 if is_reply else number,
            )
            peer.send(
                Message(
                    header=header,
                    payload=b"%d" % number,
                    error="gone bad" if is_reply else "",
                )
            )
        with pytest.raises(RemoteCallError, match="gone bad"):
            await stream.reply()
        parts = aiter(stream)
        assert [(await anext(parts)).payload for _ in range(2)] == [b"0", b"1"]
        with pytest.raises(RemoteCallError, match="gone bad"):
            await anext(parts)


async def test_pushes_and_late_replies_are_dropped(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        for call_type in (CallType.ONE_WAY, CallType.RPC_REPLY, CallType.KEEP_ALIVE):
            peer.send(Message(header=Header(call_type=call_type, call_id="?")))
        call = asyncio.create_task(client.call("echo", b""))
        await until(lambda: peer.messages)
        request = peer.messages[0].header
        reply = Header(
            call_type=CallType.RPC_REPLY, call_id=request.call_id, seqno=request.seqno
        )
        peer.send(Message(header=reply))
        await call


async def test_an_upload_that_the_server_ends_early_stops_its_sender(
    net: Net,
) -> None:
    registry = services()

    async def refuse(context: CallContext, parts: IncomingStream) -> Reply:
        raise TransferError("no more room")

    async def enough(context: CallContext, parts: IncomingStream) -> Reply:
        return Reply(payload=b"that will do")

    registry.add_upload("refuse", refuse)
    registry.add_upload("enough", enough)
    async with net.pair(registry) as (_, client):
        async with await client.stream(CallKind.UPLOAD, "refuse", b"0") as stream:
            with pytest.raises(RemoteCallError, match="no more room"):
                await send_for_ever(stream)
        async with await client.stream(CallKind.UPLOAD, "enough", b"0") as stream:
            with pytest.raises(LocalProtocolError, match="before its last part"):
                await send_for_ever(stream)
            assert (await stream.reply()).payload == b"that will do"
        await client.call("echo", b"")


async def send_for_ever(stream: ClientStream) -> None:
    while True:
        await stream.send(b"more")
        await asyncio.sleep(0)


async def test_a_part_after_the_last_one_is_our_own_fault(memory: Net) -> None:
    registry = services()
    waiting = Waiting()
    registry.add_upload("wait", waiting)
    async with memory.pair(registry) as (_, client):
        async with await client.stream(CallKind.UPLOAD, "wait") as stream:
            await stream.send(b"", last=True)
            with pytest.raises(LocalProtocolError, match="no more parts"):
                await stream.send(b"")
        async with await client.stream(CallKind.DOWNLOAD, "count") as stream:
            with pytest.raises(LocalProtocolError, match="no more parts"):
                await stream.send(b"")


async def test_a_handler_that_sends_after_its_last_part_is_told(memory: Net) -> None:
    registry = Registry()

    async def overdo(context: CallContext, out: OutgoingStream) -> Reply:
        await out.send(b"")
        await out.send(b"", last=True)
        await out.send(b"")
        return Reply()

    registry.add_download("overdo", overdo)
    async with (
        memory.pair(registry) as (_, client),
        await client.stream(CallKind.DOWNLOAD, "overdo") as stream,
    ):
        with pytest.raises(RemoteCallError, match="no more parts"):
            await stream.reply()


async def test_a_stream_that_is_never_opened_costs_nothing(memory: Net) -> None:
    async with memory.pair(services()) as (_, client):
        for _ in range(3):
            client.upload("collect", bytes(1000), timeout_s=0.01)
        assert not client._pending
        assert not client.core.open_calls


async def test_the_time_of_a_stream_begins_when_it_is_opened(memory: Net) -> None:
    registry, headers = Registry(), []

    @registry.upload("note")
    async def note(context: CallContext, parts: IncomingStream) -> None:
        headers.append(context.header)

    async with memory.pair(registry) as (_, client):
        stream = client.upload("note", timeout_s=5)
        opened_ns = time.time_ns()
        async with stream:
            await stream.reply()
    (header,) = headers
    assert header.created_ns is not None
    assert header.created_ns >= opened_ns
    assert header.deadline_ns == header.created_ns + 5 * 10**9


async def test_a_stream_that_is_not_open_says_so(memory: Net) -> None:
    async with memory.pair(services()) as (_, client):
        stream = client.bistream("mirror")
        for use in (stream.send(b""), stream.reply()):
            with pytest.raises(LocalProtocolError, match="not open yet"):
                await use
        with pytest.raises(LocalProtocolError, match="not open yet"):
            aiter(stream)
        assert not stream.is_over
        async with stream:
            with pytest.raises(LocalProtocolError, match="opened already"):
                await stream.begin()
        await client.call("echo", b"")


async def test_a_stream_that_was_cancelled_before_does_not_open(memory: Net) -> None:
    async with memory.pair(services()) as (_, client):
        stream = client.upload("collect")
        stream.cancel()
        assert stream.is_over
        for use in (stream.begin(), stream.reply(), stream.send(b"")):
            with pytest.raises(CallCancelledError):
                await use
        assert not client.core.open_calls


async def test_a_stream_has_one_reader_at_a_time(memory: Net) -> None:
    async with (
        memory.pair(services()) as (_, client),
        client.bistream("mirror", b"0") as stream,
    ):
        parts = aiter(stream)
        await anext(parts)
        first = asyncio.create_task(anext(parts))
        await asyncio.sleep(0)
        with pytest.raises(LocalProtocolError, match="one reader at a time"):
            await anext(parts)
        await stream.send(b"1", last=True)
        assert (await first).payload == b"1"
