"""The cores against recorded exchanges: events, and the messages they make."""

import base64
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from rpc25519_tools.rpc import client_core, server_core
from rpc25519_tools.rpc.calls import PARTS_DOWN, PARTS_UP, CallKind
from rpc25519_tools.rpc.client_core import ClientCore
from rpc25519_tools.rpc.server_core import ServerCore
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.framing import FrameDecoder, decode_frame
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.rpc.flows import flow_names, recorded, stream_of

OPENING = {kind.value for kind in CallKind}

#: Exchanges in which the client used what this package does not offer.
NET_RPC = [name for name in flow_names() if name.startswith("netrpc")]
CALLS = flow_names()


def without_serial(message: Message) -> Message:
    """Drop the number of the message within its process, which means nothing."""
    return replace(message, header=replace(message.header, serial=0))


def server_for(name: str) -> ServerCore:
    """Return a core with the addresses of the recorded server."""
    request = recorded(name, "c2s")[0].message.header
    replies = [
        one.message.header
        for one in recorded(name, "s2c")
        if one.message.header.call_type == CallType.RPC_REPLY
    ]
    default = Codec.S2
    if name in ("echo-none", "echo-srvoff", "upload-rand-none", "download-rand-none"):
        default = Codec.NONE
    return ServerCore(
        local=replies[0].sender if replies else request.recipient,
        remote=replies[0].recipient if replies else request.sender,
        default_codec=default,
        offers=lambda kind, name: not name.startswith("no"),
    )


class ServerReplay:
    """Feeds a recorded client to a core, and asks it for the recorded answers."""

    def __init__(self, name: str) -> None:
        self.core = server_for(name)
        # Pushes and keep-alives answer nothing.
        self.answers = [
            one.message
            for one in recorded(name, "s2c")
            if one.message.header.call_type
            not in (CallType.KEEP_ALIVE, CallType.ONE_WAY)
        ]
        self.calls: dict[str, server_core.OpenCall] = {}
        self.events: list[object] = []

    def receive(self, message: Message, codec: Codec) -> None:
        header = message.header
        if header.call_type == CallType.CANCEL_PREVIOUS and not self._waits(header):
            self.answer(header.call_id)
        event = self.core.receive(message, codec, now_ns=0)
        self.events.append(event)
        match event:
            case server_core.CallStarted(call, _):
                self.calls[call.request.call_id] = call
                if call.kind is CallKind.RPC and not self._waits(header):
                    self.answer(header.call_id)
            case server_core.MessageToSend(answer):
                assert self._take(header.call_id) == [answer]
            case _:
                pass

    def answer(self, call_id: str) -> None:
        """Make the recorded messages of one call and compare them."""
        for expected in self._take(call_id):
            made = self._make(self.calls[call_id], expected)
            assert without_serial(made) == without_serial(expected)

    def finish(self) -> None:
        for call_id in self.calls:
            self.answer(call_id)
        assert not self.answers

    def _make(self, call: server_core.OpenCall, expected: Message) -> Message:
        header = expected.header
        assert header.created_ns is not None
        if header.call_type in PARTS_DOWN:
            return self.core.part(
                call,
                now_ns=header.created_ns,
                payload=expected.payload,
                args=header.args,
                last=header.call_type == CallType.DOWNLOAD_END,
            )
        made = self.core.finish(
            call,
            now_ns=header.created_ns,
            payload=expected.payload,
            args=header.args,
            error=expected.error,
        )
        assert made is not None
        if header.subject != call.request.subject:
            # The recorded handler chose a subject of its own.
            made = replace(made, header=replace(made.header, subject=header.subject))
        return made

    def _take(self, call_id: str) -> list[Message]:
        taken = [one for one in self.answers if one.header.call_id == call_id]
        self.answers = [one for one in self.answers if one not in taken]
        return taken

    def _waits(self, header: Header) -> bool:
        """Tell whether the recorded call was still running when it was cancelled."""
        return any(
            one.header.call_id == header.call_id and one.error == "context canceled"
            for one in self.answers
        )


def replay_to_server(name: str) -> ServerReplay:
    replay = ServerReplay(name)
    decoder = FrameDecoder(bytearray(4096))
    for frame in decoder.receive_data(stream_of(name, "c2s")):
        replay.receive(decode_frame(frame), frame.codec)
    return replay


def expected_events(name: str) -> list[type[object]]:
    refused, cancelled = name.startswith("unknown"), name == "cancel"
    events: list[type[object]] = []
    for one in recorded(name, "c2s"):
        call_type = one.message.header.call_type
        if call_type in OPENING:
            events.append(
                server_core.MessageToSend if refused else server_core.CallStarted
            )
        elif call_type in PARTS_UP:
            events.append(server_core.PartReceived)
        elif call_type == CallType.CANCEL_PREVIOUS and cancelled:
            events.append(server_core.CallCancelled)
        else:
            events.append(type(None))
    return events


@pytest.mark.parametrize("name", flow_names())
def test_a_recorded_client_gives_the_expected_events(name: str) -> None:
    events = replay_to_server(name).events
    assert [type(event) for event in events] == expected_events(name)


@pytest.mark.parametrize("name", CALLS)
def test_the_server_makes_the_recorded_answers(name: str) -> None:
    replay = replay_to_server(name)
    replay.finish()
    assert replay.core.open_calls == sum(
        call.kind is CallKind.ONE_WAY for call in replay.calls.values()
    )


@pytest.mark.parametrize("name", CALLS)
def test_recorded_parts_are_handed_on_whole(name: str) -> None:
    parts = [
        event
        for event in replay_to_server(name).events
        if isinstance(event, server_core.PartReceived)
    ]
    sent = [
        one.message
        for one in recorded(name, "c2s")
        if one.message.header.call_type in PARTS_UP
    ]
    assert [part.message for part in parts] == sent
    assert [part.last for part in parts] == [
        one.header.call_type == CallType.UPLOAD_END for one in sent
    ]


@pytest.mark.parametrize("name", CALLS)
def test_answers_use_the_recorded_codecs(name: str) -> None:
    core = server_for(name)
    used = []
    for one in recorded(name, "c2s"):
        core.receive(one.message, one.frame.codec, now_ns=0)
        used.append(core.codec)
    answers = [one.frame.codec for one in recorded(name, "s2c")]
    if len(answers) == len(used):  # one answer to each message
        assert answers == used
    else:
        assert set(answers) == set(used)


# The client's side.


class Chooser:
    """A source of randomness that yields the recorded call ids."""

    def __init__(self) -> None:
        self.next = b""

    def __call__(self, count: int) -> bytes:
        assert len(self.next) == count
        return self.next

    def choose(self, call_id: str) -> None:
        self.next = base64.urlsafe_b64decode(call_id)


def client_for(name: str, random_bytes: Callable[[int], bytes]) -> ClientCore:
    header = recorded(name, "c2s")[0].message.header
    return ClientCore(
        local=header.sender, remote=header.recipient, random_bytes=random_bytes
    )


def make_like(core: ClientCore, chooser: Chooser, message: Message) -> Message | None:
    """Let the core make what a recorded client sent."""
    header = message.header
    now_ns = header.created_ns
    assert now_ns is not None
    if header.call_type in OPENING:
        chooser.choose(header.call_id)
        if header.call_type == CallType.NET_RPC:
            core.take_seqno()  # for the request inside
        made = core.start(
            CallKind(CallType(header.call_type)),
            header.service_name,
            now_ns=now_ns,
            payload=message.payload,
            args=header.args,
            deadline_ns=header.deadline_ns,
        )
        # What the recorded programs set and ours do not.
        return replace(
            made,
            header=replace(
                made.header,
                subject=header.subject,
                no_system_compression=header.no_system_compression,
            ),
        )
    if header.call_type in PARTS_UP:
        return core.next_part(
            header.call_id,
            now_ns=now_ns,
            payload=message.payload,
            args=header.args,
            last=header.call_type == CallType.UPLOAD_END,
        )
    assert header.call_type == CallType.CANCEL_PREVIOUS
    return core.cancel(header.call_id, now_ns=now_ns)


#: A call made by a waiting caller is cancelled with a copy of its request there.
COPIED = ("cancel", "unknown-service")


@pytest.mark.parametrize("name", [name for name in CALLS if name != "keepalive"])
def test_the_client_makes_the_recorded_messages(name: str) -> None:
    chooser = Chooser()
    core = client_for(name, chooser)
    for one in recorded(name, "c2s"):
        made = make_like(core, chooser, one.message)
        assert made is not None
        expected = one.message
        if name in COPIED and expected.header.call_type == CallType.CANCEL_PREVIOUS:
            expected = replace(
                expected,
                header=replace(expected.header, subject="", args={}, deadline_ns=None),
            )
        assert without_serial(made) == without_serial(expected)


@pytest.mark.parametrize("name", CALLS)
def test_a_recorded_server_gives_the_expected_events(name: str) -> None:
    chooser = Chooser()
    core = client_for(name, chooser)
    for one in recorded(name, "c2s"):
        if one.message.header.call_type in OPENING:
            make_like(core, chooser, one.message)
    wanted: dict[int, type[object]] = {
        CallType.RPC_REPLY: client_core.ReplyReceived,
        CallType.DOWNLOAD_BEGIN: client_core.PartReceived,
        CallType.DOWNLOAD_MORE: client_core.PartReceived,
        CallType.DOWNLOAD_END: client_core.PartReceived,
        CallType.ERROR: client_core.CallRefused,
        CallType.ONE_WAY: client_core.PushReceived,
        CallType.KEEP_ALIVE: type(None),
    }
    decoder = FrameDecoder(bytearray(4096))
    for frame in decoder.receive_data(stream_of(name, "s2c")):
        message = decode_frame(frame)
        event = core.receive(message)
        if name == "unknown-oneway":
            assert event is None  # nobody waits for the fate of a one-way call
            continue
        assert type(event) is wanted[message.header.call_type]
        match event:
            case client_core.ReplyReceived(call_id, reply):
                assert (call_id, reply) == (message.header.call_id, message)
            case client_core.PartReceived(call_id, part, last):
                assert (call_id, part) == (message.header.call_id, message)
                assert last == (message.header.call_type == CallType.DOWNLOAD_END)
            case client_core.CallRefused(_, reason):
                assert reason == message.header.subject
            case client_core.PushReceived(push):
                assert push == message
            case _:
                pass
    assert core.open_calls == 0


@pytest.mark.parametrize("name", NET_RPC)
def test_the_client_drops_replies_to_calls_it_did_not_make(name: str) -> None:
    core = client_for(name, Chooser())
    for one in recorded(name, "s2c"):
        assert core.receive(one.message) is None
