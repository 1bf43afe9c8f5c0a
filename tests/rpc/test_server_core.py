"""The server's calls: every state meets every input."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from rpc25519_tools.rpc import server_core
from rpc25519_tools.rpc.calls import REFUSAL_TEXTS, CallKind, PartCounter
from rpc25519_tools.rpc.server_core import (
    MAX_OPEN_CALLS,
    CallCancelled,
    CallStarted,
    MessageToSend,
    PartReceived,
    ServerCore,
    StreamBroken,
)
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.rpc.server_cores import message, new_core, receive, start

OPENING = {kind.value: kind for kind in CallKind}
INPUT_TYPES = [*CallType, 6, 9, 25, 99, -1, -5, 2**63 - 1]
#: The types of a client's further parts, by the kind of call.
PARTS_UP = {
    CallKind.UPLOAD: (CallType.UPLOAD_MORE, CallType.UPLOAD_END),
    CallKind.BISTREAM: (CallType.UPLOAD_MORE, CallType.UPLOAD_END),
    CallKind.RSYNC_READ: (CallType.RSYNC_STEP2, CallType.RSYNC_STEP4),
    CallKind.RSYNC_SEND: (CallType.RSYNC_STEP1, CallType.RSYNC_STEP3),
}
#: What is a part wherever it comes, and what is one if it has a number above 0.
ALWAYS_PARTS = (CallType.UPLOAD_MORE, CallType.UPLOAD_END, 22, 23, 24)
NUMBERED_PARTS = (CallType.RSYNC_STEP0, CallType.RSYNC_STEP1)
#: The kinds whose names the server looks up before the call begins.
ASKED_FOR = [kind for kind in CallKind if kind is not CallKind.NET_RPC]


# States: how a call got there, and what it then waits for.


@dataclass(frozen=True)
class State:
    """A way into a state, and the number of the part that may come next there.

    ``due`` is None where no part may come: after the last one (``ended``), or because
    the core does not know the call any more (``known`` is False).
    """

    enter: Callable[[ServerCore, CallKind], None]
    known: bool
    due: int | None
    streams_only: bool = False
    needs_last: bool = False


def more_of(kind: CallKind) -> CallType:
    return PARTS_UP.get(kind, (CallType.UPLOAD_MORE,))[0]


def _fresh(core: ServerCore, kind: CallKind) -> None:
    start(core, kind)


def _after_parts(core: ServerCore, kind: CallKind) -> None:
    start(core, kind)
    for part in (1, 2):
        assert isinstance(
            receive(core, message(more_of(kind), part=part)), PartReceived
        )


def _ended(core: ServerCore, kind: CallKind) -> None:
    _after_parts(core, kind)
    event = receive(core, message(CallType.UPLOAD_END, part=3))
    assert isinstance(event, PartReceived)
    assert event.last


def _cancelled(core: ServerCore, kind: CallKind) -> None:
    start(core, kind)
    receive(core, message(CallType.CANCEL_PREVIOUS))


def _finished(core: ServerCore, kind: CallKind) -> None:
    core.finish(start(core, kind), now_ns=1)


def _broken(core: ServerCore, kind: CallKind) -> None:
    start(core, kind)
    event = receive(core, message(more_of(kind), part=5))
    assert isinstance(event, StreamBroken)


STATES = {
    "nothing": State(lambda core, kind: None, known=False, due=None),
    "fresh": State(_fresh, known=True, due=1),
    "after parts": State(_after_parts, known=True, due=3, streams_only=True),
    "ended": State(_ended, known=True, due=None, streams_only=True, needs_last=True),
    "cancelled": State(_cancelled, known=False, due=None),
    "finished": State(_finished, known=False, due=None),
    "broken": State(_broken, known=False, due=None, streams_only=True),
}
PAIRS = [
    pytest.param(kind, state, id=f"{kind.name} {name}")
    for (name, state), kind in itertools.product(STATES.items(), CallKind)
    if (kind in PARTS_UP or not state.streams_only)
    and (CallType.UPLOAD_END in PARTS_UP.get(kind, ()) or not state.needs_last)
]


def expected_event(
    kind: CallKind, state: State, call_type: int, part: int
) -> type[object] | None:
    """The table: what a message about the one call must mean."""
    if call_type in ALWAYS_PARTS or (call_type in NUMBERED_PARTS and part > 0):
        if not state.known or kind not in PARTS_UP:
            return None
        fits = part == state.due and call_type in PARTS_UP[kind]
        return PartReceived if fits else StreamBroken
    if call_type == CallType.CANCEL_PREVIOUS:
        return CallCancelled if state.known else None
    if call_type in OPENING:
        opens_stream = OPENING[CallType(call_type)] in PARTS_UP
        if state.known and (opens_stream or kind in PARTS_UP):
            return MessageToSend
        return MessageToSend if opens_stream and part != 0 else CallStarted
    return None


@pytest.mark.parametrize(("kind", "state"), PAIRS)
def test_every_input_in_every_state_is_legal_by_the_table_or_an_error(
    kind: CallKind, state: State
) -> None:
    for call_type in INPUT_TYPES:
        for part in (-1, 0, 1, 2, 3, 4, 2**62):
            core = new_core()
            state.enter(core, kind)
            event = receive(core, message(call_type, part=part))
            wanted = expected_event(kind, state, call_type, part)
            assert type(event) is (wanted or type(None)), (call_type, part)
            if isinstance(event, PartReceived):
                assert event.last == (call_type == CallType.UPLOAD_END)
            if isinstance(event, MessageToSend):
                assert event.message.error
            if isinstance(event, StreamBroken | CallCancelled):
                # From now on the core knows no such call.
                assert receive(core, message(CallType.UPLOAD_MORE, part=part)) is None
                assert receive(core, message(CallType.CANCEL_PREVIOUS)) is None


@pytest.mark.parametrize(("kind", "state"), PAIRS)
def test_messages_for_unknown_calls_are_ignored(kind: CallKind, state: State) -> None:
    for call_type in (
        CallType.UPLOAD_MORE,
        CallType.UPLOAD_END,
        CallType.RSYNC_STEP0,
        CallType.RSYNC_STEP1,
        CallType.RSYNC_STEP2,
        CallType.RSYNC_STEP3,
        CallType.RSYNC_STEP4,
        CallType.CANCEL_PREVIOUS,
    ):
        core = new_core()
        state.enter(core, kind)
        before = core.open_calls
        assert receive(core, message(call_type, "other", part=1)) is None
        assert core.open_calls == before


@pytest.mark.parametrize("kind", CallKind)
def test_a_call_is_open_until_it_is_finished_whatever_the_client_says(
    kind: CallKind,
) -> None:
    core = new_core()
    call = start(core, kind)
    assert core.open_calls == 1
    receive(core, message(CallType.CANCEL_PREVIOUS))
    assert call.cancelled
    assert core.open_calls == 1
    core.finish(call, now_ns=1)
    assert core.open_calls == 0


@pytest.mark.parametrize("kind", CallKind)
def test_a_reply_belongs_to_its_request(kind: CallKind) -> None:
    core = new_core()
    call = start(core, kind)
    reply = core.finish(
        call, now_ns=5, payload=b"result", args={"k": "v"}, error="oops"
    )
    if kind is CallKind.ONE_WAY:
        assert reply is None
        return
    assert reply == Message(
        header=Header(
            created_ns=5,
            sender="tcp://server",
            recipient="tcp://client",
            subject="subject",
            seqno=7,
            call_type=CallType.RPC_REPLY,
            call_id="id",
            serial=1,
            deadline_ns=99,
            service_name="service",
            args={"k": "v"},
        ),
        payload=b"result",
        error="oops",
    )


@pytest.mark.parametrize("kind", ASKED_FOR)
def test_an_unknown_service_sends_the_request_back_as_an_error(kind: CallKind) -> None:
    core = new_core(offers=lambda kind, name: False)
    event = receive(core, message(kind.value, "ID", name="NAME"))
    assert isinstance(event, MessageToSend)
    header = event.message.header
    assert header.call_type == CallType.ERROR
    assert header.subject == (
        REFUSAL_TEXTS[kind] + "req.HDR.ServiceName='NAME'; req.HDR.CallID='ID'"
    )
    assert (header.sender, header.recipient) == ("tcp://to", "tcp://from")
    assert (header.seqno, header.call_id, header.deadline_ns) == (7, "ID", 99)
    assert event.message.payload == b""
    assert core.open_calls == 0


def test_offers_are_asked_by_kind_and_name() -> None:
    asked = []

    def offers(kind: CallKind, name: str) -> bool:
        asked.append((kind, name))
        return False

    for kind in CallKind:
        receive(new_core(offers=offers), message(kind.value, name=f"for {kind.name}"))
    assert asked == [(kind, f"for {kind.name}") for kind in ASKED_FOR]


# Call ids that are used again.


def test_calls_may_share_an_id_and_each_is_answered() -> None:
    core = new_core()
    calls = [start(core, CallKind.RPC) for _ in range(3)]
    assert core.open_calls == 3
    for call in calls:
        assert core.finish(call, now_ns=1) is not None
    assert core.open_calls == 0


def test_a_cancel_goes_to_the_newest_call_of_its_id() -> None:
    core = new_core()
    older, newer = start(core, CallKind.RPC), start(core, CallKind.RPC)
    assert receive(core, message(CallType.CANCEL_PREVIOUS)) == CallCancelled(newer)
    assert newer.cancelled
    assert not older.cancelled


def test_a_call_that_is_closed_again_counts_once() -> None:
    core = new_core()
    call = start(core, CallKind.RPC)
    core.finish(call, now_ns=1)
    core.close(call)
    assert core.open_calls == 0


def test_finishing_an_older_call_does_not_forget_the_newer_one() -> None:
    core = new_core()
    older, newer = start(core, CallKind.RPC), start(core, CallKind.RPC)
    core.finish(older, now_ns=1)
    assert receive(core, message(CallType.CANCEL_PREVIOUS)) == CallCancelled(newer)


@pytest.mark.parametrize("kind", PARTS_UP)
@pytest.mark.parametrize("running", CallKind)
def test_a_stream_cannot_take_the_id_of_a_running_call(
    kind: CallKind, running: CallKind
) -> None:
    core = new_core()
    first = start(core, running)
    event = receive(core, message(kind.value))
    assert isinstance(event, MessageToSend)
    assert event.message.header.call_type == CallType.RPC_REPLY
    assert "still running" in event.message.error
    assert receive(core, message(CallType.CANCEL_PREVIOUS)) == CallCancelled(first)


@pytest.mark.parametrize("kind", CallKind)
@pytest.mark.parametrize("running", PARTS_UP)
def test_no_call_can_take_the_id_of_a_running_stream(
    kind: CallKind, running: CallKind
) -> None:
    core = new_core()
    first = start(core, running)
    assert isinstance(receive(core, message(kind.value)), MessageToSend)
    event = receive(core, message(more_of(running), part=1))
    assert isinstance(event, PartReceived)
    assert event.call is first


@pytest.mark.parametrize("kind", CallKind)
def test_an_id_can_be_used_again_after_its_reply(kind: CallKind) -> None:
    core = new_core()
    core.finish(start(core, kind), now_ns=1)
    start(core, kind)
    assert core.open_calls == 1


# Too many calls.


@pytest.mark.parametrize("kind", CallKind)
def test_one_call_more_than_the_limit_is_answered_with_an_error(
    kind: CallKind,
) -> None:
    core = new_core()
    calls = [start(core, CallKind.RPC, str(n)) for n in range(MAX_OPEN_CALLS)]
    event = receive(core, message(kind.value, "one more"))
    assert isinstance(event, MessageToSend)
    assert str(MAX_OPEN_CALLS) in event.message.error
    assert event.message.header.call_id == "one more"
    assert core.open_calls == MAX_OPEN_CALLS
    core.finish(calls[0], now_ns=1)
    start(core, kind, "one more")


def test_cancelled_calls_count_until_their_handlers_end() -> None:
    core = new_core()
    calls = [start(core, CallKind.RPC, str(n)) for n in range(MAX_OPEN_CALLS)]
    for n in range(MAX_OPEN_CALLS):
        receive(core, message(CallType.CANCEL_PREVIOUS, str(n)))
    assert isinstance(receive(core, message(CallType.RPC, "more")), MessageToSend)
    for call in calls:
        core.finish(call, now_ns=1)
    start(core, CallKind.RPC, "more")


# The counter under both cores.


def test_a_part_counter_says_what_is_wrong() -> None:
    counter = PartCounter()
    assert counter.fault_of(0) is None
    assert counter.fault_of(1) == "part 1 came where part 0 was due"
    assert counter.advance(last=False) == 0
    assert counter.fault_of(0) == "part 0 came where part 1 was due"
    assert counter.advance(last=True) == 1
    assert counter.fault_of(2) == "part 2 came after the last part"


def test_events_of_the_server_carry_the_message() -> None:
    core = new_core()
    opening = message(CallType.UPLOAD_BEGIN)
    event = receive(core, opening)
    assert isinstance(event, server_core.CallStarted)
    assert event.message is opening
    assert event.call.request is opening.header
