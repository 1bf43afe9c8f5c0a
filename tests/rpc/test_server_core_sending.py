"""What the server's calls send: parts, steps of rsync calls, codecs, long texts."""

from typing import Any

import pytest

from rpc25519_tools.errors import LocalProtocolError
from rpc25519_tools.rpc.calls import CallKind, RsyncStep
from rpc25519_tools.rpc.server_core import (
    MessageToSend,
    OpenCall,
    PartReceived,
    ServerCore,
    StreamBroken,
)
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.message import MAX_HEADER_TEXT_LEN, CallType, Header, Message
from rpc25519_tools.wire.outgoing import require_sendable
from tests.rpc.server_cores import message, new_core, receive, start

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
