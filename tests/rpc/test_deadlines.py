"""Deadlines: both sides keep them, whatever clocks say, and handlers pass them on."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from rpc25519_tools.errors import DeadlineError, RemoteCallError
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext, handling_until, time_left_s
from rpc25519_tools.rpc.deadlines import Deadlines
from rpc25519_tools.rpc.handlers import PlainIncoming, Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.streams import _HIGH_WATER_LEN, IncomingStream
from rpc25519_tools.transport.base import WRITE_HIGH_WATER_LEN
from rpc25519_tools.wire.constants import MIB
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import until, wait_until
from tests.rpc.flows import recorded
from tests.rpc.memory import Plan, RawPeer
from tests.rpc.nets import Net, raw_client, raw_server
from tests.rpc.offers import Waiting, echo, parts_of, services

EXPIRED = "context deadline exceeded"
MS = 10**6
HOUR_NS = 3600 * 10**9
#: Long past and far ahead, for hosts whose clocks are wrong.
OTHER_TIMES = [10**9, 5 * 10**18]

_ids = itertools.count()


def request(
    kind: CallKind, name: str, *, created_ns: int | None, deadline_ns: int | None
) -> Message:
    return Message(
        header=Header(
            call_type=kind.value,
            call_id=f"call {next(_ids)}",
            service_name=name,
            created_ns=created_ns,
            deadline_ns=deadline_ns,
        )
    )


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


# Handlers pass on what is left.


class Relay:
    """Services whose handlers call another server, each in a way of its own."""

    def __init__(self, client: Client, *, timeout_s: float | None = None) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()

    async def _ask(self) -> Reply:
        reply = await self._client.call("inner", b"", timeout_s=self._timeout_s)
        return Reply(payload=reply.payload)

    async def by_call(self, context: CallContext) -> Reply:
        return await self._ask()

    async def by_task(self, context: CallContext) -> Reply:
        return await asyncio.create_task(self._ask())

    def by_thread(self, context: CallContext) -> Reply:
        return asyncio.run_coroutine_threadsafe(self._ask(), self._loop).result()

    async def by_download(self, context: CallContext) -> Reply:
        async with self._client.download("inner", timeout_s=self._timeout_s) as stream:
            return Reply(payload=(await stream.reply()).payload)

    def registry(self) -> Registry:
        registry = Registry()
        registry.add_call("call", self.by_call)
        registry.add_call("task", self.by_task)
        registry.add_call("thread", self.by_thread)
        registry.add_call("download", self.by_download)
        return registry


class Inner(Waiting):
    """The handler at the end of the chain."""

    def __init__(self) -> None:
        super().__init__()
        self.left_s: list[float | None] = []

    async def __call__(self, context: CallContext, *streams: object) -> Reply:
        self.left_s.append(context.time_left_s)
        return await super().__call__(context)

    def registry(self) -> Registry:
        registry = Registry()
        registry.add_call("inner", self)
        registry.add_download("inner", self)
        return registry


@pytest.mark.parametrize("way", ["call", "task", "thread", "download"])
async def test_a_handlers_calls_get_what_is_left(net: Net, way: str) -> None:
    inner = Inner()
    async with (
        net.server(inner.registry()) as far,
        await net.client(far) as relaying,
        net.pair(Relay(relaying).registry()) as (_, client),
    ):
        call = asyncio.create_task(client.call(way, b"", timeout_s=3))
        await until(lambda: inner.left_s)
        left_s = inner.left_s[0]
        assert left_s is not None
        assert 0 < left_s <= 3
        inner.go.set()
        assert (await call).payload == b"done"


@pytest.mark.parametrize("way", ["call", "task", "thread", "download"])
async def test_a_deadline_ends_the_whole_chain(net: Net, way: str) -> None:
    inner = Inner()
    async with (
        net.server(inner.registry()) as far,
        await net.client(far) as relaying,
        net.pair(Relay(relaying).registry()) as (_, client),
    ):
        timeout_s = 0.1
        while not inner.left_s:  # a busy machine may not come to it in time
            with pytest.raises(DeadlineError):
                await client.call(way, b"", timeout_s=timeout_s)
            timeout_s *= 2
        await until(
            lambda: inner.cancelled == len(inner.left_s), what="the far handler's end"
        )
        await far.wait_until_idle()


async def test_a_shorter_limit_of_the_handlers_own_holds(memory: Net) -> None:
    inner = Inner()
    async with (
        memory.server(inner.registry()) as far,
        await memory.client(far) as relaying,
        memory.pair(Relay(relaying, timeout_s=0.05).registry()) as (_, client),
    ):
        with pytest.raises(
            RemoteCallError, match=r"no reply from 'inner' within 0\.05"
        ):
            await client.call("call", b"", timeout_s=5)
        assert inner.left_s[0] is not None
        assert inner.left_s[0] <= 0.05


async def test_no_call_is_made_when_no_time_is_left(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        with handling_until(time.monotonic() - 1):
            with pytest.raises(DeadlineError, match="no time is left"):
                await client.call("any", b"")
            with pytest.raises(DeadlineError, match="no time is left"):
                await client.download("any").begin()
        assert not client.core.open_calls
        assert time_left_s() is None
        await client.send_one_way("any")
        await until(lambda: peer.messages)
        assert len(peer.messages) == 1
        assert peer.messages[0].header.call_type == CallType.ONE_WAY


async def test_calls_at_the_same_time_have_deadlines_of_their_own(memory: Net) -> None:
    registry, everybody = Registry(), asyncio.Event()
    seen: dict[str, float | None] = {}

    async def note(context: CallContext) -> None:
        name = bytes(context.payload).decode()
        before = time_left_s()
        if len(seen) == 2:
            everybody.set()
        seen[name] = before
        await everybody.wait()
        after = time_left_s()
        assert (before is None) == (after is None)
        assert before is None or (after is not None and before - 1 < after <= before)

    registry.add_call("note", note)
    registry.add_upload("note", lambda_upload(note))
    async with memory.pair(registry) as (_, client):
        unlimited = client.upload("note", b"none")
        async with unlimited:
            await asyncio.gather(
                client.call("note", b"short", timeout_s=5),
                client.call("note", b"long", timeout_s=500),
                unlimited.reply(),
            )
    assert seen["none"] is None
    assert 0 < (seen["short"] or 0) <= 5
    assert 400 < (seen["long"] or 0) <= 500


def lambda_upload(handler: Callable[[CallContext], Any]) -> Callable[..., Any]:
    async def run(context: CallContext, parts: IncomingStream) -> None:
        await handler(context)

    return run


@pytest.mark.parametrize("plain", [False, True])
async def test_a_call_without_a_deadline_has_none_whatever_came_before(
    net: Net, plain: bool
) -> None:
    """A handler that lets reading go on must not leave its deadline behind."""
    registry = Registry()
    left: list[float | None] = []

    async def slow(context: CallContext, parts: IncomingStream) -> None:
        await until(lambda: parts._holding)
        async for _ in parts:
            pass

    def slow_plain(context: CallContext, parts: PlainIncoming) -> None:
        wait_until(lambda: parts._stream._holding)
        for _ in parts:
            pass

    async def note(context: CallContext, parts: IncomingStream) -> None:
        left.append(time_left_s())

    registry.add_upload("slow", slow_plain if plain else slow)
    registry.add_upload("note", note)
    async with net.pair(registry, compression="none") as (_, client):
        async with client.upload("slow", timeout_s=8) as stream:
            # More than the reader holds, so that the connection stops being read.
            for _ in range(2 * _HIGH_WATER_LEN // MIB):
                await stream.send(bytes(MIB))
            await stream.send(b"", last=True)
            await stream.reply()
        async with client.upload("note") as stream:
            await stream.reply()
    assert left == [None]


# Deadlines, against a simple model.


class FakeTimer:
    """What FakeLoop.call_at returns."""

    def __init__(self, when_s: float, callback: Callable[[], object]) -> None:
        self._when_s = when_s
        self.callback = callback
        self.live = True

    def when(self) -> float:
        return self._when_s

    def cancel(self) -> None:
        self.live = False


class FakeLoop:
    """An event loop of timers alone, whose time passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.timers: list[FakeTimer] = []

    def time(self) -> float:
        return self.now_s

    def call_at(
        self, when_s: float, callback: Callable[..., object], *args: object
    ) -> FakeTimer:
        timer = FakeTimer(when_s, lambda: callback(*args))
        self.timers.append(timer)
        return timer

    def call_later(
        self, delay_s: float, callback: Callable[..., object], *args: object
    ) -> FakeTimer:
        return self.call_at(self.now_s + delay_s, callback, *args)

    def live_timers(self) -> list[FakeTimer]:
        self.timers = [timer for timer in self.timers if timer.live]
        return self.timers

    def advance(self, to_s: float, *, late: bool = False) -> None:
        """Let time pass; ``late`` fires all timers at its end, as a busy loop does."""
        if late:
            self.now_s = to_s
        while True:
            due = [timer for timer in self.live_timers() if timer.when() <= to_s]
            if not due:
                break
            timer = min(due, key=FakeTimer.when)
            timer.live = False
            self.now_s = max(self.now_s, timer.when())
            timer.callback()
        self.now_s = to_s

    def patched(self, module: str) -> Any:
        """Return what makes this the running loop of a module."""
        return mock.patch(
            f"rpc25519_tools.rpc.{module}.asyncio.get_running_loop", return_value=self
        )


_delays = st.integers(-2, 12)
_steps = st.one_of(
    st.tuples(st.just("add"), _delays),
    st.tuples(st.just("discard"), st.integers(0, 30)),
    st.tuples(st.just("pass"), st.integers(0, 8)),
    st.tuples(st.just("pass late"), st.integers(0, 8)),
)


@settings(deadline=None)
@example(
    steps=[("add", -1), ("add", 0), ("add", -1), ("pass", 0)], again=[], stops=False
)
@given(
    steps=st.lists(_steps, max_size=40),
    again=st.lists(st.none() | _delays, max_size=5),
    stops=st.booleans(),
)
def test_deadlines_pass_exactly_when_they_should(
    steps: list[tuple[str, int]], again: list[int | None], stops: bool
) -> None:
    loop, keys = FakeLoop(), itertools.count()
    waiting: dict[int, float] = {}
    expired: list[int] = []

    def expire(key: int) -> None:
        assert waiting.pop(key) <= loop.now_s, "too early"
        expired.append(key)
        delay_s = again.pop() if again else None
        if delay_s is not None:  # something new begins when something is given up
            add(delay_s)

    def add(delay_s: int) -> None:
        key = next(keys)
        waiting[key] = loop.now_s + delay_s
        deadlines.add(key, waiting[key])

    with loop.patched("deadlines"):
        deadlines: Deadlines[int] = Deadlines(expire)
    for what, number in steps:
        match what:
            case "add":
                add(number)
            case "discard":
                waiting.pop(number, None)
                deadlines.discard(number)
            case _:
                expired.clear()
                # What was too late when it was added has no place in the order.
                before = {key: s for key, s in waiting.items() if s > loop.now_s}
                loop.advance(loop.now_s + number, late=what == "pass late")
                assert all(until_s > loop.now_s for until_s in waiting.values())
                if what == "pass":
                    times = [before[key] for key in expired if key in before]
                    assert times == sorted(times)
        assert len(loop.live_timers()) <= len(waiting) + 1
    if stops:
        deadlines.stop()
        assert not loop.live_timers()
    else:
        loop.advance(loop.now_s + 1000)
        loop.advance(loop.now_s + 1000)
        assert not waiting
        assert not loop.live_timers()


def test_calls_with_one_time_limit_share_one_timer() -> None:
    loop = FakeLoop()
    over: list[int] = []
    with loop.patched("deadlines"):
        deadlines: Deadlines[int] = Deadlines(over.append)
    for key in range(1000):
        loop.advance(loop.now_s + 0.001)
        deadlines.add(key, loop.now_s + 10)
        assert len(loop.live_timers()) == 1
    for key in range(999):
        deadlines.discard(key)
    assert len(loop.live_timers()) == 1
    loop.advance(loop.now_s + 20)
    assert over == [999]
    assert not loop.live_timers()
