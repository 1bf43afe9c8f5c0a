"""The client's calls: every state meets every input."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.errors import LocalProtocolError
from rpc25519_tools.rpc.calls import CALL_ID_LEN, CallKind, RsyncStep, new_call_id
from rpc25519_tools.rpc.client_core import (
    CallRefused,
    ClientCore,
    PartReceived,
    PushReceived,
    ReplyReceived,
    StreamBroken,
)
from rpc25519_tools.wire.message import CallType, Header, Message

INPUT_TYPES = [*CallType, 6, 9, 25, 99, -1, -5, 2**63 - 1]
PARTS = (CallType.DOWNLOAD_BEGIN, CallType.DOWNLOAD_MORE, CallType.DOWNLOAD_END)
FIRST_SEQNO = 2
#: The types of the server's parts: of the first one, the others and the last one.
PARTS_DOWN: dict[CallKind, tuple[CallType, ...]] = {
    CallKind.DOWNLOAD: PARTS,
    CallKind.BISTREAM: PARTS,
    CallKind.RSYNC_READ: (CallType.RSYNC_STEP1, CallType.RSYNC_STEP3),
    CallKind.RSYNC_SEND: (CallType.RSYNC_STEP2, CallType.RSYNC_STEP4),
}
STEP_TYPES = {
    RsyncStep.REQUEST: CallType.RSYNC_STEP0,
    RsyncStep.OVERVIEW: CallType.RSYNC_STEP1,
    RsyncStep.HASHES: CallType.RSYNC_STEP2,
    RsyncStep.DELTAS: CallType.RSYNC_STEP3,
    RsyncStep.ACK: CallType.RSYNC_STEP4,
}
#: The steps that the client sends after its opening message.
STEPS_UP = {
    CallKind.RSYNC_READ: (RsyncStep.HASHES, RsyncStep.ACK),
    CallKind.RSYNC_SEND: (RsyncStep.OVERVIEW, RsyncStep.DELTAS),
}


class Counted:
    """A source of distinct bytes."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, count: int) -> bytes:
        self._count += 1
        return self._count.to_bytes(count, "big")


def new_core() -> ClientCore:
    return ClientCore(local="tcp://me", remote="tcp://them", random_bytes=Counted())


FIRST_ID = new_call_id(Counted())


def start(core: ClientCore, kind: CallKind) -> Message:
    return core.start(kind, "service", now_ns=10, payload=b"p", args={"k": "v"})


def message(
    call_type: int,
    call_id: str = FIRST_ID,
    *,
    part: int = 0,
    seqno: int = FIRST_SEQNO,
) -> Message:
    return Message(
        header=Header(
            call_type=call_type,
            call_id=call_id,
            stream_part=part,
            seqno=seqno,
            subject="a reason",
        ),
        payload=b"payload",
    )


@dataclass(frozen=True)
class State:
    """A way into a state; ``due`` is the part that may come next, None if none may."""

    enter: Callable[[ClientCore, CallKind], object]
    known: bool
    due: int | None
    streams_only: bool = False
    needs_last: bool = False


def _after_parts(core: ClientCore, kind: CallKind) -> None:
    start(core, kind)
    for number, call_type in enumerate(PARTS_DOWN[kind][:2]):
        assert isinstance(core.receive(message(call_type, part=number)), PartReceived)


def _ended(core: ClientCore, kind: CallKind) -> None:
    _after_parts(core, kind)
    event = core.receive(message(PARTS[2], part=2))
    assert isinstance(event, PartReceived)
    assert event.last


def _replied(core: ClientCore, kind: CallKind) -> None:
    start(core, kind)
    core.receive(message(CallType.RPC_REPLY))


def _refused(core: ClientCore, kind: CallKind) -> None:
    start(core, kind)
    core.receive(message(CallType.ERROR))


def _cancelled(core: ClientCore, kind: CallKind) -> None:
    start(core, kind)
    core.cancel(FIRST_ID, now_ns=1)


def _broken(core: ClientCore, kind: CallKind) -> None:
    start(core, kind)
    wrong = message(PARTS_DOWN[kind][1], part=5)
    assert isinstance(core.receive(wrong), StreamBroken)


STATES = {
    "nothing": State(lambda core, kind: None, known=False, due=None),
    "fresh": State(start, known=True, due=0),
    "after parts": State(_after_parts, known=True, due=2, streams_only=True),
    "ended": State(_ended, known=True, due=None, streams_only=True, needs_last=True),
    "replied": State(_replied, known=False, due=None),
    "refused": State(_refused, known=False, due=None),
    "cancelled": State(_cancelled, known=False, due=None),
    "broken": State(_broken, known=False, due=None, streams_only=True),
}
PAIRS = [
    pytest.param(kind, state, id=f"{kind.name} {name}")
    for (name, state), kind in itertools.product(STATES.items(), CallKind)
    if (kind in PARTS_DOWN or not state.streams_only)
    and (kind not in STEPS_UP or not state.needs_last)
]


def expected_event(
    kind: CallKind, state: State, call_type: int, *, part: int, seqno: int
) -> type[object] | None:
    """The table: what a message about the one call must mean."""
    if call_type == CallType.ONE_WAY:
        return PushReceived
    # Nothing is remembered about one-way calls.
    if not state.known or kind is CallKind.ONE_WAY:
        return None
    if call_type == CallType.RPC_REPLY:
        return ReplyReceived if seqno == FIRST_SEQNO else None
    if call_type == CallType.ERROR:
        return CallRefused
    if call_type in (*PARTS, *STEP_TYPES.values()) and kind in PARTS_DOWN:
        fits = part == state.due and call_type in PARTS_DOWN[kind]
        return PartReceived if fits else StreamBroken
    return None


@pytest.mark.parametrize(("kind", "state"), PAIRS)
def test_every_input_in_every_state_is_legal_by_the_table_or_an_error(
    kind: CallKind, state: State
) -> None:
    for call_type in INPUT_TYPES:
        for part, seqno in itertools.product(
            (-1, 0, 1, 2, 3, 2**62), (FIRST_SEQNO, 0, FIRST_SEQNO + 1)
        ):
            core = new_core()
            state.enter(core, kind)
            before = core.open_calls
            event = core.receive(message(call_type, part=part, seqno=seqno))
            wanted = expected_event(kind, state, call_type, part=part, seqno=seqno)
            assert type(event) is (wanted or type(None)), (call_type, part, seqno)
            over = isinstance(event, ReplyReceived | CallRefused | StreamBroken)
            assert core.open_calls == before - over
            if isinstance(event, PartReceived):
                assert event.last == (call_type == CallType.DOWNLOAD_END)
            if over:
                # From now on the core knows no such call.
                lates = (*PARTS, *STEP_TYPES.values(), CallType.RPC_REPLY, 14)
                for late in lates:
                    assert core.receive(message(late, part=part)) is None


@pytest.mark.parametrize(("kind", "state"), PAIRS)
def test_messages_for_unknown_calls_are_dropped(kind: CallKind, state: State) -> None:
    for call_type in INPUT_TYPES:
        if call_type == CallType.ONE_WAY:
            continue
        core = new_core()
        state.enter(core, kind)
        before = core.open_calls
        assert core.receive(message(call_type, "other id")) is None
        assert core.open_calls == before


@pytest.mark.parametrize(("kind", "state"), PAIRS)
def test_a_call_is_cancelled_once_and_only_while_it_is_open(
    kind: CallKind, state: State
) -> None:
    core = new_core()
    state.enter(core, kind)
    cancel = core.cancel(FIRST_ID, now_ns=20)
    if not state.known or kind is CallKind.ONE_WAY:
        assert cancel is None
        return
    assert cancel is not None
    assert cancel.header == Header(
        created_ns=20,
        sender="tcp://me",
        recipient="tcp://them",
        seqno=FIRST_SEQNO,
        call_type=CallType.CANCEL_PREVIOUS,
        call_id=FIRST_ID,
        serial=2,
        service_name="service",
    )
    assert core.cancel(FIRST_ID, now_ns=21) is None
    assert core.open_calls == 0


@pytest.mark.parametrize(("kind", "state"), PAIRS)
def test_parts_can_be_sent_only_while_a_sending_call_is_open(
    kind: CallKind, state: State
) -> None:
    core = new_core()
    state.enter(core, kind)
    if state.known and kind in STEPS_UP:
        for step in STEPS_UP[kind]:
            core.next_part(FIRST_ID, now_ns=1, payload=b"", step=step)
        core.cancel(FIRST_ID, now_ns=2)
    elif state.known and kind.sends_parts:
        core.next_part(FIRST_ID, now_ns=1, payload=b"")
        core.next_part(FIRST_ID, now_ns=1, payload=b"", last=True)
    with pytest.raises(LocalProtocolError, match="no more parts"):
        core.next_part(FIRST_ID, now_ns=1, payload=b"")


@pytest.mark.parametrize("kind", CallKind)
def test_an_opening_message_says_all(kind: CallKind) -> None:
    core = new_core()
    opening = core.start(
        kind, "service", now_ns=10, payload=b"p", args={"k": "v"}, deadline_ns=11
    )
    assert opening == Message(
        header=Header(
            created_ns=10,
            sender="tcp://me",
            recipient="tcp://them",
            seqno=FIRST_SEQNO,
            call_type=kind.value,
            call_id=FIRST_ID,
            serial=1,
            deadline_ns=11,
            service_name="service",
            args={"k": "v"},
        ),
        payload=b"p",
    )
    assert core.open_calls == (kind is not CallKind.ONE_WAY)


@pytest.mark.parametrize("kind", [CallKind.UPLOAD, CallKind.BISTREAM])
def test_parts_are_numbered_on_from_the_opening_message(kind: CallKind) -> None:
    core = new_core()
    opening = core.start(kind, "service", now_ns=1, deadline_ns=5)
    parts = [
        core.next_part(FIRST_ID, now_ns=2, payload=b"p", args={"k": "v"}, last=last)
        for last in (False, False, True)
    ]
    assert opening.header.stream_part == 0
    assert [part.header for part in parts] == [
        Header(
            created_ns=2,
            sender="tcp://me",
            recipient="tcp://them",
            seqno=FIRST_SEQNO,
            call_type=call_type,
            call_id=FIRST_ID,
            serial=number + 1,
            deadline_ns=5,
            stream_part=number,
            service_name="service",
            args={"k": "v"},
        )
        for number, call_type in (
            (1, CallType.UPLOAD_MORE),
            (2, CallType.UPLOAD_MORE),
            (3, CallType.UPLOAD_END),
        )
    ]


@pytest.mark.parametrize("kind", STEPS_UP)
@pytest.mark.parametrize("step", RsyncStep)
def test_the_client_sends_the_steps_of_its_role_only(
    kind: CallKind, step: RsyncStep
) -> None:
    core = new_core()
    opening = start(core, kind).header
    allowed = STEPS_UP[kind]
    if step not in allowed:
        with pytest.raises(LocalProtocolError, match="client sends no step"):
            core.next_part(FIRST_ID, now_ns=1, payload=b"", step=step)
    wanted = [allowed[0], allowed[1], allowed[0]]
    parts = [
        core.next_part(FIRST_ID, now_ns=1, payload=b"", step=one).header
        for one in wanted
    ]
    assert [part.call_type for part in parts] == [STEP_TYPES[one] for one in wanted]
    assert [part.stream_part for part in (opening, *parts)] == [0, 1, 2, 3]
    assert {part.seqno for part in parts} == {FIRST_SEQNO}


@pytest.mark.parametrize("kind", STEPS_UP)
def test_a_part_of_an_rsync_call_needs_a_step_and_is_never_the_last(
    kind: CallKind,
) -> None:
    core = new_core()
    start(core, kind)
    with pytest.raises(LocalProtocolError, match="needs its step"):
        core.next_part(FIRST_ID, now_ns=1, payload=b"")
    step = STEPS_UP[kind][0]
    with pytest.raises(LocalProtocolError, match="end with its reply"):
        core.next_part(FIRST_ID, now_ns=1, payload=b"", step=step, last=True)
    part = core.next_part(FIRST_ID, now_ns=1, payload=b"", step=step)
    assert part.header.stream_part == 1


@pytest.mark.parametrize("kind", [CallKind.UPLOAD, CallKind.BISTREAM])
@pytest.mark.parametrize("step", RsyncStep)
def test_other_streams_have_no_steps(kind: CallKind, step: RsyncStep) -> None:
    core = new_core()
    start(core, kind)
    with pytest.raises(LocalProtocolError, match="only the parts of rsync calls"):
        core.next_part(FIRST_ID, now_ns=1, payload=b"", step=step)
    part = core.next_part(FIRST_ID, now_ns=1, payload=b"")
    assert part.header.stream_part == 1


def test_a_part_of_the_opening_type_is_taken_back_as_a_part() -> None:
    core = new_core()
    opening = start(core, CallKind.RSYNC_SEND)
    for _ in range(2):
        part = core.next_part(FIRST_ID, now_ns=1, payload=b"", step=RsyncStep.OVERVIEW)
        assert part.header.call_type == opening.header.call_type
        assert part.header.stream_part == 1
        core.take_back(part)
    assert core.open_calls == 1
    core.take_back(opening)
    assert core.open_calls == 0


def test_a_wrong_step_breaks_the_stream_and_says_why() -> None:
    core = new_core()
    start(core, CallKind.RSYNC_READ)
    event = core.receive(message(CallType.RSYNC_STEP2, part=0))
    assert event == StreamBroken(
        FIRST_ID, "a part of type 22 does not belong into this kind of call"
    )


def test_calls_have_ids_and_numbers_of_their_own() -> None:
    core = new_core()
    openings = [start(core, kind).header for kind in CallKind]
    assert [header.seqno for header in openings] == list(range(2, 2 + len(CallKind)))
    assert [header.serial for header in openings] == list(range(1, 1 + len(CallKind)))
    assert len({header.call_id for header in openings}) == len(openings)


def test_replies_find_their_calls_in_any_order() -> None:
    core = new_core()
    openings = [start(core, CallKind.RPC).header for _ in range(5)]
    for header in reversed(openings):
        reply = message(CallType.RPC_REPLY, header.call_id, seqno=header.seqno)
        assert core.receive(reply) == ReplyReceived(header.call_id, reply)
    assert core.open_calls == 0


def test_a_reply_with_the_number_of_another_call_is_dropped() -> None:
    core = new_core()
    first, second = (start(core, CallKind.RPC).header for _ in range(2))
    mixed = message(CallType.RPC_REPLY, first.call_id, seqno=second.seqno)
    assert core.receive(mixed) is None
    assert core.open_calls == 2


def test_a_refusal_tells_the_servers_reason() -> None:
    core = new_core()
    start(core, CallKind.RPC)
    refusal = core.receive(message(CallType.ERROR))
    assert refusal == CallRefused(FIRST_ID, "a reason")


def test_a_broken_stream_tells_which_part_was_due() -> None:
    core = new_core()
    start(core, CallKind.DOWNLOAD)
    event = core.receive(message(PARTS[0], part=4))
    assert event == StreamBroken(FIRST_ID, "part 4 came where part 0 was due")


def test_a_call_id_is_28_characters_of_url_safe_base64() -> None:
    asked = []

    def random_bytes(count: int) -> bytes:
        asked.append(count)
        return b"\xff" * count

    assert new_call_id(random_bytes) == "_" * 26 + "8="
    assert asked == [CALL_ID_LEN] == [20]


# What cannot be sent.


@pytest.mark.parametrize("kind", list(CallKind))
@pytest.mark.parametrize(
    "wrong",
    [
        {"service_name": 5},
        {"service_name": "n" * 200_000},
        {"service_name": "\ud800"},
        {"payload": "text"},
        {"args": {"k": 1}},
        {"args": {"k": "v" * 200_000}},
        {"subject": "s" * 200_000},
        {"call_id": 5},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_cannot_be_sent_opens_no_call(
    kind: CallKind, wrong: dict[str, Any]
) -> None:
    core = new_core()
    asked: dict[str, Any] = {"service_name": "service", "now_ns": 1, **wrong}
    with pytest.raises(LocalProtocolError):
        core.start(kind, **asked)
    assert core.open_calls == 0
    assert start(core, kind).header.seqno == FIRST_SEQNO


@pytest.mark.parametrize(
    "wrong",
    [{"payload": "text"}, {"args": {"k": "v" * 200_000}}, {"args": {"k": None}}],
    ids=["payload", "long args", "wrong args"],
)
def test_a_part_that_cannot_be_sent_takes_no_number(wrong: dict[str, Any]) -> None:
    core = new_core()
    call_id = start(core, CallKind.UPLOAD).header.call_id
    with pytest.raises(LocalProtocolError):
        core.next_part(call_id, **{"now_ns": 1, "payload": b"", "last": True, **wrong})
    part = core.next_part(call_id, now_ns=1, payload=b"x")
    assert part.header.stream_part == 1


@given(outcomes=st.lists(st.booleans(), max_size=30), ends=st.booleans())
def test_parts_that_could_not_be_sent_leave_no_gap(
    outcomes: list[bool], ends: bool
) -> None:
    core = new_core()
    opening = start(core, CallKind.UPLOAD)
    call_id, sent = opening.header.call_id, [0]
    for goes in outcomes:
        part = core.next_part(call_id, now_ns=1, payload=b"", last=ends and not goes)
        if goes:
            sent.append(part.header.stream_part)
        else:
            core.take_back(part)
    assert sent == list(range(len(sent)))


def test_a_stream_that_misses_a_part_takes_no_more() -> None:
    core = new_core()
    call_id = start(core, CallKind.UPLOAD).header.call_id
    first = core.next_part(call_id, now_ns=1, payload=b"")
    core.next_part(call_id, now_ns=1, payload=b"")
    core.take_back(first)
    with pytest.raises(LocalProtocolError, match="an earlier part"):
        core.next_part(call_id, now_ns=1, payload=b"")


def test_an_opening_that_is_taken_back_was_never_there() -> None:
    core = new_core()
    opening = start(core, CallKind.UPLOAD)
    core.take_back(opening)
    assert not core.open_calls
    assert core.cancel(opening.header.call_id, now_ns=1) is None
    core.take_back(opening)


def test_taking_back_a_cancel_changes_nothing() -> None:
    core = new_core()
    opening = start(core, CallKind.UPLOAD)
    cancel = core.cancel(opening.header.call_id, now_ns=1)
    assert cancel is not None
    core.take_back(cancel)
    core.take_back(opening)
    assert not core.open_calls
