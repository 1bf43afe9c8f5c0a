"""The server's calls: every state meets every input."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from rpc25519_tools.errors import LocalProtocolError
from rpc25519_tools.rpc import server_core
from rpc25519_tools.rpc.calls import (
    REFUSAL_TEXTS,
    CallKind,
    PartCounter,
    RsyncStep,
)
from rpc25519_tools.rpc.server_core import (
    MAX_OPEN_CALLS,
    CallCancelled,
    CallStarted,
    MessageToSend,
    OpenCall,
    PartReceived,
    ServerCore,
    ServerEvent,
    StreamBroken,
)
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.message import (
    MAX_HEADER_TEXT_LEN,
    CallType,
    Header,
    Message,
)
from rpc25519_tools.wire.outgoing import require_sendable

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


def new_core(
    default_codec: Codec = Codec.S2,
    offers: Callable[[CallKind, str], bool] = lambda kind, name: True,
    max_calls: int = MAX_OPEN_CALLS,
) -> ServerCore:
    return ServerCore(
        local="tcp://server",
        remote="tcp://client",
        default_codec=default_codec,
        offers=offers,
        max_calls=max_calls,
    )


def message(
    call_type: int, call_id: str = "id", *, part: int = 0, name: str = "service"
) -> Message:
    return Message(
        header=Header(
            call_type=call_type,
            call_id=call_id,
            seqno=7,
            stream_part=part,
            service_name=name,
            subject="subject",
            deadline_ns=99,
            sender="tcp://from",
            recipient="tcp://to",
        )
    )


def receive(core: ServerCore, one: Message) -> ServerEvent | None:
    return core.receive(one, Codec.NONE, now_ns=1)


def start(core: ServerCore, kind: CallKind, call_id: str = "id") -> OpenCall:
    event = receive(core, message(kind.value, call_id))
    assert isinstance(event, CallStarted)
    return event.call


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


# Parts that the server sends.


def send_part(core: ServerCore, call: OpenCall, *, last: bool = False) -> Message:
    return core.part(call, now_ns=3, payload=b"p", args={"k": "v"}, last=last)


@pytest.mark.parametrize("kind", [CallKind.DOWNLOAD, CallKind.BISTREAM])
def test_parts_go_out_numbered_with_the_addresses_of_the_request(
    kind: CallKind,
) -> None:
    core = new_core()
    call = start(core, kind)
    parts = [send_part(core, call) for _ in range(3)]
    parts.append(send_part(core, call, last=True))
    assert [part.header.stream_part for part in parts] == [0, 1, 2, 3]
    assert [part.header.call_type for part in parts] == [
        CallType.DOWNLOAD_BEGIN,
        CallType.DOWNLOAD_MORE,
        CallType.DOWNLOAD_MORE,
        CallType.DOWNLOAD_END,
    ]
    assert [part.header.serial for part in parts] == [1, 2, 3, 4]
    for part in parts:
        assert (part.header.sender, part.header.recipient) == (
            "tcp://from",
            "tcp://to",
        )
        assert (part.header.call_id, part.header.seqno) == ("id", 7)
        assert part.header.args == {"k": "v"}


@pytest.mark.parametrize("kind", [CallKind.DOWNLOAD, CallKind.BISTREAM])
def test_no_part_can_follow_the_last_one(kind: CallKind) -> None:
    core = new_core()
    call = start(core, kind)
    send_part(core, call)
    send_part(core, call, last=True)
    for last in (False, True):
        with pytest.raises(LocalProtocolError, match="no more parts"):
            send_part(core, call, last=last)


def test_part_zero_cannot_be_the_last() -> None:
    core = new_core()
    call = start(core, CallKind.DOWNLOAD)
    with pytest.raises(LocalProtocolError, match="part 0"):
        send_part(core, call, last=True)


@pytest.mark.parametrize("kind", [CallKind.RPC, CallKind.ONE_WAY, CallKind.UPLOAD])
def test_calls_without_parts_down_send_none(kind: CallKind) -> None:
    core = new_core()
    call = start(core, kind)
    with pytest.raises(LocalProtocolError, match="no more parts"):
        send_part(core, call)


# The steps of rsync calls.

#: The steps that the server sends, by the kind of call.
STEPS_DOWN = {
    CallKind.RSYNC_READ: (RsyncStep.OVERVIEW, RsyncStep.DELTAS),
    CallKind.RSYNC_SEND: (RsyncStep.HASHES, RsyncStep.ACK),
}
STEP_TYPES = {
    RsyncStep.REQUEST: 4,
    RsyncStep.OVERVIEW: 5,
    RsyncStep.HASHES: 22,
    RsyncStep.DELTAS: 23,
    RsyncStep.ACK: 24,
}


def send_step(core: ServerCore, call: OpenCall, step: Any, **named: Any) -> Message:
    return core.part(call, now_ns=3, payload=b"p", step=step, **named)


@pytest.mark.parametrize("kind", STEPS_DOWN)
@pytest.mark.parametrize("step", RsyncStep)
def test_the_server_sends_the_steps_of_its_role_only(
    kind: CallKind, step: RsyncStep
) -> None:
    core = new_core()
    call = start(core, kind)
    if step not in STEPS_DOWN[kind]:
        with pytest.raises(LocalProtocolError, match="server sends no step"):
            send_step(core, call, step)
    allowed = STEPS_DOWN[kind]
    wanted = [allowed[0], allowed[0], allowed[1], allowed[0]]
    parts = [send_step(core, call, one).header for one in wanted]
    assert [part.call_type for part in parts] == [STEP_TYPES[one] for one in wanted]
    assert [part.stream_part for part in parts] == [0, 1, 2, 3]
    assert {(part.call_id, part.seqno) for part in parts} == {("id", 7)}


@pytest.mark.parametrize("kind", STEPS_DOWN)
@pytest.mark.parametrize("after", [0, 1])
def test_a_part_of_an_rsync_call_needs_a_step_and_is_never_the_last(
    kind: CallKind, after: int
) -> None:
    core = new_core()
    call = start(core, kind)
    for _ in range(after):
        send_step(core, call, STEPS_DOWN[kind][0])
    with pytest.raises(LocalProtocolError, match="needs its step"):
        send_step(core, call, None)
    with pytest.raises(LocalProtocolError, match="end with its reply"):
        send_step(core, call, STEPS_DOWN[kind][0], last=True)
    for wrong in (7, "step"):
        with pytest.raises(LocalProtocolError, match="no step"):
            send_step(core, call, wrong)
    # None of them took a number.
    assert send_step(core, call, STEPS_DOWN[kind][1]).header.stream_part == after


@pytest.mark.parametrize("kind", [CallKind.DOWNLOAD, CallKind.BISTREAM])
@pytest.mark.parametrize("step", RsyncStep)
def test_other_streams_have_no_steps(kind: CallKind, step: RsyncStep) -> None:
    core = new_core()
    call = start(core, kind)
    with pytest.raises(LocalProtocolError, match="only the parts of rsync calls"):
        send_step(core, call, step)
    assert send_part(core, call).header.stream_part == 0


def test_the_overview_goes_on_in_parts_of_the_opening_type() -> None:
    core = new_core()
    call = start(core, CallKind.RSYNC_SEND)
    for part in (1, 2, 3):
        event = receive(core, message(CallType.RSYNC_STEP1, part=part))
        assert isinstance(event, PartReceived)
        assert event.call is call
        assert not event.last
    assert core.open_calls == 1
    core.finish(call, now_ns=1)
    # What was on the way when the call ended opens nothing and is not answered.
    assert receive(core, message(CallType.RSYNC_STEP1, part=4)) is None
    assert core.open_calls == 0


@pytest.mark.parametrize("kind", STEPS_DOWN)
def test_a_wrong_step_breaks_the_stream_and_says_why(kind: CallKind) -> None:
    core = new_core()
    call = start(core, kind)
    wrong = STEP_TYPES[STEPS_DOWN[kind][0]]
    event = receive(core, message(wrong, part=1))
    assert event == StreamBroken(
        call, f"a part of type {wrong} does not belong into this kind of call"
    )


# Codecs.


def codec_after(core: ServerCore, *codecs: Codec) -> Codec:
    for codec in codecs:
        core.receive(message(CallType.KEEP_ALIVE), codec, now_ns=1)
    return core.codec


@pytest.mark.parametrize("default", [codec for codec in Codec if codec < 7])
def test_the_first_answer_has_the_default_codec(default: Codec) -> None:
    assert codec_after(new_core(default)) is default


@pytest.mark.parametrize("codec", [codec for codec in Codec if codec < 7])
def test_answers_follow_the_codec_of_the_last_message(codec: Codec) -> None:
    assert codec_after(new_core(Codec.S2), Codec.LZ4, codec) is codec


def test_the_codec_for_one_message_is_not_remembered() -> None:
    assert codec_after(new_core(Codec.S2), Codec.NONE_ONCE) is Codec.S2
    core = new_core(Codec.S2)
    assert codec_after(core, Codec.LZ4, Codec.NONE_ONCE) is Codec.LZ4


@pytest.mark.parametrize("codec", Codec)
def test_a_server_without_compression_never_follows(codec: Codec) -> None:
    assert codec_after(new_core(Codec.NONE), codec) is Codec.NONE


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


# What cannot be sent.


@pytest.mark.parametrize(
    "wrong",
    [{"payload": "text"}, {"args": {"k": "v" * 200_000}}, {"args": {"k": None}}],
    ids=["payload", "long args", "wrong args"],
)
def test_a_part_that_cannot_be_sent_takes_no_number(wrong: dict[str, Any]) -> None:
    core = new_core()
    call = start(core, CallKind.DOWNLOAD)
    with pytest.raises(LocalProtocolError):
        core.part(call, **{"now_ns": 1, "payload": b"", **wrong})
    assert core.part(call, now_ns=1, payload=b"x").header.stream_part == 0


def longest_request(call_type: CallType, **texts: Any) -> Message:
    """Return a request with a header as long as a client's may be."""
    return Message(header=Header(call_type=call_type, call_id="id", seqno=2, **texts))


LONGEST_TEXT = "x" * (MAX_HEADER_TEXT_LEN - 2)


@pytest.mark.parametrize(
    "texts",
    [
        {"service_name": LONGEST_TEXT},
        {"args": {"": LONGEST_TEXT}},
        {"subject": LONGEST_TEXT},
        {"args": {str(number): "" for number in range(3800)}},
    ],
    ids=["name", "args", "subject", "entries"],
)
def test_a_refusal_of_the_longest_request_can_be_sent(texts: dict[str, Any]) -> None:
    core = new_core(offers=lambda kind, name: False)
    event = receive(core, longest_request(CallType.RPC, **texts))
    assert isinstance(event, MessageToSend)
    require_sendable(event.message.header)
    assert event.message.header.call_type == CallType.ERROR
    assert event.message.header.call_id == "id"
    assert len(event.message.header.subject) < 1000


def test_an_answer_to_one_call_too_many_can_be_sent() -> None:
    core = new_core(max_calls=1)
    start(core, CallKind.RPC)
    event = receive(core, longest_request(CallType.RPC, subject=LONGEST_TEXT))
    assert isinstance(event, MessageToSend)
    require_sendable(event.message.header)
    assert "more than 1 calls" in event.message.error


def test_the_number_of_a_part_that_could_not_be_sent_is_used_again() -> None:
    core = new_core()
    call = start(core, CallKind.DOWNLOAD)
    for number in (0, 1):
        for last in (False, number == 1):
            part = core.part(call, now_ns=1, payload=b"", last=last)
            assert part.header.stream_part == number
            core.take_back(call, part)
        assert core.part(call, now_ns=1, payload=b"").header.stream_part == number
    first = core.part(call, now_ns=1, payload=b"")
    core.part(call, now_ns=1, payload=b"")
    core.take_back(call, first)
    with pytest.raises(LocalProtocolError, match="an earlier part"):
        core.part(call, now_ns=1, payload=b"")
