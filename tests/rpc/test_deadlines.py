"""Deadlines: both sides keep them, whatever clocks say."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from msgspec.structs import replace

from rpc25519_tools.errors import DeadlineError, RemoteCallError
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.transport.base import WRITE_HIGH_WATER_LEN
from rpc25519_tools.wire.constants import MIB
from rpc25519_tools.wire.message import CallType, Message
from tests.helpers import until
from tests.rpc.flows import recorded
from tests.rpc.memory import Plan, RawPeer
from tests.rpc.nets import Net, raw_client, raw_server
from tests.rpc.offers import Waiting, echo, parts_of, services
from tests.rpc.timing import request

EXPIRED = "context deadline exceeded"
MS = 10**6
HOUR_NS = 3600 * 10**9
#: Long past and far ahead, for hosts whose clocks are wrong.
OTHER_TIMES = [10**9, 5 * 10**18]


def waiting_services(handler: Callable[..., Any]) -> Registry:
    registry = services()
    registry.add_call("wait", handler)
    registry.add_one_way("wait", handler)
    registry.add_upload("wait", handler)
    registry.add_download("wait", handler)
    registry.add_bistream("wait", handler)
    registry.add_rsync(CallKind.RSYNC_READ, "wait", handler)
    registry.add_rsync(CallKind.RSYNC_SEND, "wait", handler)
    return registry


class PlainWaiting:
    """A plain handler that waits to be told that nobody waits for it any more."""

    def __init__(self) -> None:
        self.cancelled = 0

    def __call__(self, context: CallContext, *streams: object) -> bytes:
        assert threading.current_thread() is not threading.main_thread()
        if context.cancellation.wait(10):
            self.cancelled += 1
        return b"too late"


async def reply_to(peer: RawPeer, message: Message) -> Message:
    """Send one message and return what answers it."""
    count = len(peer.messages)
    peer.send(message)
    await until(lambda: len(peer.messages) > count, what="the answer")
    return peer.messages[count]


# The server keeps deadlines from the wire.


@pytest.mark.parametrize("kind", [k for k in CallKind if k is not CallKind.NET_RPC])
@pytest.mark.parametrize("make", [Waiting, PlainWaiting])
async def test_a_handler_is_stopped_at_its_deadline(
    memory: Net, kind: CallKind, make: type[Waiting | PlainWaiting]
) -> None:
    handler = make()
    async with (
        memory.server(waiting_services(handler)),
        raw_client(memory) as peer,
    ):
        begin_s = time.monotonic()
        now_ns = time.time_ns()
        message = request(kind, "wait", created_ns=now_ns, deadline_ns=now_ns + 40 * MS)
        peer.send(message)
        await until(lambda: handler.cancelled, what="the handler's cancellation")
        assert time.monotonic() - begin_s >= 0.04
        if kind is CallKind.ONE_WAY:
            # Nothing answers it; what comes next is the answer to the next call.
            assert (
                await reply_to(
                    peer,
                    request(CallKind.RPC, "echo", created_ns=None, deadline_ns=None),
                )
            ).error == ""
            return
        await until(lambda: peer.messages, what="the answer")
        (answer,) = peer.messages
    assert answer.header.call_type == CallType.RPC_REPLY
    assert answer.error == EXPIRED
    assert answer.header.call_id == message.header.call_id
    assert answer.header.deadline_ns == message.header.deadline_ns


async def test_the_recorded_deadline_gets_the_recorded_answer(memory: Net) -> None:
    registry, waiting = Registry(), Waiting()
    registry.add_call("hang", waiting)
    (sent,) = [one.message for one in recorded("deadline", "c2s")]
    (expected,) = [one.message for one in recorded("deadline", "s2c")]
    async with memory.server(registry), raw_client(memory) as peer:
        answer = await reply_to(peer, sent)
    header = replace(
        answer.header,
        created_ns=expected.header.created_ns,
        sender=expected.header.sender,
        recipient=expected.header.recipient,
        serial=expected.header.serial,
    )
    assert replace(answer, header=header) == expected
    assert waiting.cancelled == 1


async def test_a_handler_that_is_done_in_time_is_not_disturbed(memory: Net) -> None:
    registry, waiting = Registry(), Waiting()
    registry.add_call("wait", waiting)
    async with memory.server(registry), raw_client(memory) as peer:
        now_ns = time.time_ns()
        peer.send(
            request(
                CallKind.RPC, "wait", created_ns=now_ns, deadline_ns=now_ns + HOUR_NS
            )
        )
        await until(lambda: waiting.started)
        waiting.go.set()
        await until(lambda: peer.messages)
        (answer,) = peer.messages
        assert (answer.payload, answer.error) == (b"done", "")


@pytest.mark.parametrize("kind", [CallKind.RPC, CallKind.UPLOAD, CallKind.DOWNLOAD])
@pytest.mark.parametrize("has_created", [True, False])
async def test_a_deadline_long_past_is_answered_without_running_anything(
    memory: Net, kind: CallKind, has_created: bool
) -> None:
    waiting = Waiting()
    async with memory.server(waiting_services(waiting)), raw_client(memory) as peer:
        now_ns = time.time_ns()
        answer = await reply_to(
            peer,
            request(
                kind,
                "wait",
                created_ns=now_ns if has_created else None,
                deadline_ns=now_ns - HOUR_NS,
            ),
        )
        assert answer.error == EXPIRED
        echoed = await reply_to(
            peer, request(CallKind.RPC, "echo", created_ns=None, deadline_ns=None)
        )
        assert echoed.error == ""
    assert waiting.started == 0


async def test_a_deadline_without_a_time_of_making_counts_by_our_clock(
    memory: Net,
) -> None:
    waiting = Waiting()
    async with memory.server(waiting_services(waiting)), raw_client(memory) as peer:
        message = request(
            CallKind.RPC,
            "wait",
            created_ns=None,
            deadline_ns=time.time_ns() + 50 * MS,
        )
        assert (await reply_to(peer, message)).error == EXPIRED
    assert waiting.cancelled == 1


async def test_an_answer_that_is_ready_is_not_taken_back_by_the_deadline(
    memory: Net,
) -> None:
    registry = Registry()
    registry.add_call("echo", echo)
    assert memory.memory is not None
    memory.memory.down = down = Plan(stall_at=0)
    async with (
        memory.server(registry, compression="none") as server,
        raw_client(memory) as peer,
    ):
        now_ns = time.time_ns()
        first = request(CallKind.RPC, "echo", created_ns=None, deadline_ns=None)
        peer.send(replace(first, payload=bytes(2 * MIB)))
        await until(lambda: server.clients[0].unsent_len > WRITE_HIGH_WATER_LEN)
        peer.send(
            request(
                CallKind.RPC, "echo", created_ns=now_ns, deadline_ns=now_ns + 50 * MS
            )
        )
        after = time.monotonic() + 0.1
        await until(lambda: time.monotonic() > after)
        down.stall_at = None
        memory.memory.server_ends[0].push()
        await until(lambda: len(peer.messages) == 2)
        assert [one.error for one in peer.messages] == ["", ""]


# The client keeps them too.


async def test_a_server_that_says_nothing_is_told_at_the_deadline(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        begin_s = time.monotonic()
        with pytest.raises(DeadlineError, match=r"'mute' within 0\.04 s"):
            await client.call("mute", b"", timeout_s=0.04)
        assert 0.04 <= time.monotonic() - begin_s < 5
        await until(lambda: len(peer.messages) == 2)
        opening, cancel = peer.messages
        assert cancel.header.call_type == CallType.CANCEL_PREVIOUS
        assert cancel.header.call_id == opening.header.call_id
        # An answer that comes now is for nobody.
        late = replace(opening.header, call_type=CallType.RPC_REPLY)
        peer.send(replace(opening, header=late))
        with pytest.raises(DeadlineError):
            await client.call("mute", b"", timeout_s=0.01)
        assert not client.is_down


async def test_streams_end_at_their_deadline_on_both_sides(net: Net) -> None:
    waiting = Waiting()
    async with net.pair(waiting_services(waiting)) as (server, client):
        async with client.upload("wait", timeout_s=0.05) as upload:
            with pytest.raises(DeadlineError, match="no reply from 'wait'"):
                await upload.reply()
            with pytest.raises(DeadlineError):
                await upload.send(b"too late")
        async with client.download("wait", timeout_s=0.05) as download:
            with pytest.raises(DeadlineError):
                await parts_of(download)
        async with client.bistream("wait", timeout_s=0.05) as both:
            with pytest.raises(DeadlineError):
                await parts_of(both)
            with pytest.raises(DeadlineError):
                await both.reply()
        await until(lambda: waiting.cancelled == 3)
        await server.wait_until_idle()
        await client.call("echo", b"")


@pytest.mark.parametrize("text", [EXPIRED, "context cancelled"])
async def test_the_ends_of_time_that_go_tells_of_are_deadlines(
    memory: Net, text: str
) -> None:
    """Go's server calls an upload cancelled whose time is over, and copies the time."""
    async with (
        raw_server(memory) as (peer, client),
        client.upload("any", timeout_s=60) as upload,
    ):
        await until(lambda: peer.messages)
        header = replace(peer.messages[0].header, call_type=CallType.RPC_REPLY)
        peer.send(Message(header=header, error=text))
        with pytest.raises(DeadlineError, match="passed at the server"):
            await upload.reply()


async def test_what_has_no_limit_was_cancelled_by_the_handler_itself(
    memory: Net,
) -> None:
    async with raw_server(memory) as (peer, client), client.upload("any") as upload:
        await until(lambda: peer.messages)
        header = replace(peer.messages[0].header, call_type=CallType.RPC_REPLY)
        peer.send(Message(header=header, error="context cancelled"))
        with pytest.raises(RemoteCallError, match=r"^context cancelled$"):
            await upload.reply()


async def test_a_stream_without_a_limit_carries_no_deadline(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        async with client.upload("any"), client.download("any", timeout_s=7):
            await until(lambda: len(peer.messages) == 2)
        without, limited = (one.header for one in peer.messages[:2])
        assert without.deadline_ns is None
        assert limited.deadline_ns is not None
        assert limited.created_ns is not None
        assert limited.deadline_ns - limited.created_ns == 7 * 10**9


@pytest.mark.parametrize("what", ["call", "begin", "send"])
async def test_a_connection_that_takes_nothing_cannot_hold_up_the_deadline(
    memory: Net, what: str
) -> None:
    """Waiting for room to send is part of the time that a call may take."""
    assert memory.memory is not None
    memory.memory.up = Plan(stall_at=0)
    async with memory.server(services()) as server:
        client = await memory.client(server, compression="none")
        upload = client.upload("collect", bytes(2 * MIB), timeout_s=0.05)
        await upload.begin()
        assert client.transport.unsent_len > WRITE_HIGH_WATER_LEN
        late: Coroutine[object, object, object]
        match what:
            case "call":
                late = client.call("echo", b"", timeout_s=0.05)
            case "begin":
                late = client.upload("collect", timeout_s=0.05).begin()
            case _:
                late = upload.send(b"next")
        try:
            with pytest.raises(DeadlineError):
                await asyncio.wait_for(late, 1)
        finally:
            client.transport.abort()
            await client.aclose()


# Clocks that are wrong, or jump.


@pytest.mark.parametrize("made_ns", OTHER_TIMES)
async def test_a_sender_with_a_wrong_clock_gets_its_time(
    memory: Net, made_ns: int
) -> None:
    registry = Registry()
    left: list[float | None] = []

    async def note(context: CallContext) -> None:
        left.append(context.time_left_s)

    registry.add_call("note", note)
    async with memory.server(registry), raw_client(memory) as peer:
        answer = await reply_to(
            peer,
            request(
                CallKind.RPC,
                "note",
                created_ns=made_ns,
                deadline_ns=made_ns + 60 * 10**9,
            ),
        )
        assert answer.error == ""
    assert left[0] is not None
    assert 30 < left[0] <= 60


@pytest.mark.parametrize("side", ["client", "connection"])
@pytest.mark.parametrize("off_ns", [-1000 * HOUR_NS, 1000 * HOUR_NS])
async def test_a_clock_that_is_off_on_one_side_changes_nothing(
    net: Net, monkeypatch: pytest.MonkeyPatch, side: str, off_ns: int
) -> None:
    monkeypatch.setattr(
        f"rpc25519_tools.rpc.{side}.now_ns", lambda: time.time_ns() + off_ns
    )
    waiting = Waiting()
    async with net.pair(waiting_services(waiting)) as (_, client):
        assert (await client.call("echo", b"5", timeout_s=5)).payload == b"5"
        begin_s = time.monotonic()
        with pytest.raises(DeadlineError):
            await client.call("wait", b"", timeout_s=0.05)
        assert time.monotonic() - begin_s >= 0.05
        await until(lambda: waiting.cancelled == 1)


@pytest.mark.parametrize("jump_s", [-1e6, 1e6])
async def test_a_clock_that_jumps_during_calls_changes_nothing(
    memory: Net, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    waiting = Waiting()
    wall, wall_ns = time.time, time.time_ns
    async with memory.pair(waiting_services(waiting)) as (_, client):
        patient = asyncio.create_task(client.call("wait", b"", timeout_s=30))
        hasty = asyncio.create_task(client.call("wait", b"", timeout_s=0.1))
        await until(lambda: waiting.started == 2)
        monkeypatch.setattr(time, "time", lambda: wall() + jump_s)
        monkeypatch.setattr(time, "time_ns", lambda: wall_ns() + int(jump_s * 1e9))
        with pytest.raises(DeadlineError):
            await hasty
        await until(lambda: waiting.cancelled == 1)
        assert not patient.done()
        waiting.go.set()
        assert (await patient).payload == b"done"
