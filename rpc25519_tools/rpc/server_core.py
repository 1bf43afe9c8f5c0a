"""The server's side of calls, as a pure state machine: messages in, events out.

One core serves one connection. It decides what an incoming message means, makes the
messages that answer it, and remembers which codec the client used last, because
answers follow it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec
from msgspec import structs

from rpc25519_tools.errors import LocalProtocolError
from rpc25519_tools.rpc.calls import (
    NO_PARTS,
    PART_MISSING,
    PARTS_UP,
    REFUSAL_TEXTS,
    CallKind,
    PartCounter,
    RsyncStep,
    fault_of_type,
    part_type,
    serial_numbers,
)
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS, CallType, Header, Message, header_len
from rpc25519_tools.wire.outgoing import require_sendable, sendable_payload

_KINDS: Final[Mapping[int, CallKind]] = {kind.value: kind for kind in CallKind}

#: Calls that one connection may have running where nothing else is said; more are
#: answered with an error.
MAX_OPEN_CALLS: Final = 1024
#: Characters of an unknown name that a refusal repeats.
_NAME_LEN: Final = 200
#: A refusal repeats the args of a header up to this length: with its text added it must
#: not be longer than what the client takes.
_ECHOED_LEN: Final = 64 * 1024


@dataclass(slots=True, eq=False)
class OpenCall:
    """One running call.

    Attributes:
        kind: how it was called.
        request: the header of the message that opened it.
        cancelled: whether the client has cancelled it.
        expired: whether its deadline has passed.
        closed: whether it counts as running no more.
    """

    kind: CallKind
    request: Header
    cancelled: bool = False
    expired: bool = False
    closed: bool = False
    sent: PartCounter = NO_PARTS
    received: PartCounter = NO_PARTS


class CallStarted(msgspec.Struct, frozen=True):
    """A client opened a call; where it sends parts, the message is also part 0."""

    call: OpenCall
    message: Message


class PartReceived(msgspec.Struct, frozen=True):
    """The next part of a client's stream has come, in order."""

    call: OpenCall
    message: Message
    last: bool


class StreamBroken(msgspec.Struct, frozen=True):
    """The client's parts are missing or out of order; no more of them will come."""

    call: OpenCall
    reason: str


class CallCancelled(msgspec.Struct, frozen=True):
    """The client wants no answer to this call any more."""

    call: OpenCall


class MessageToSend(msgspec.Struct, frozen=True):
    """The core answers by itself."""

    message: Message


ServerEvent: TypeAlias = (
    CallStarted | PartReceived | StreamBroken | CallCancelled | MessageToSend
)


class ServerCore:
    """All running calls of one connection, seen from the server.

    Args:
        local: our address as the wire has it, such as ``tcp://127.0.0.1:8443``.
        remote: the client's address, in the same form.
        default_codec: what packs answers before the client has shown its own codec;
            NONE is kept whatever the client uses.
        offers: tells whether a service of that kind and name is registered.
        max_calls: how many calls may be running at a time.
    """

    def __init__(
        self,
        *,
        local: str,
        remote: str,
        default_codec: Codec,
        offers: Callable[[CallKind, str], bool],
        max_calls: int = MAX_OPEN_CALLS,
    ) -> None:
        self._max_calls = max_calls
        self._local = local
        self._remote = remote
        self._follows = default_codec is not Codec.NONE
        self._offers = offers
        self._serial = serial_numbers()
        self._open: dict[str, OpenCall] = {}
        self._open_count = 0
        #: What packs the next answer.
        self.codec = default_codec

    @property
    def open_calls(self) -> int:
        """How many calls are running."""
        return self._open_count

    def receive(
        self, message: Message, codec: Codec, *, now_ns: int
    ) -> ServerEvent | None:
        """Take one message that came packed with ``codec``; return what it means.

        Types that a server does not know are ignored, as a Go server does.
        """
        if self._follows and codec is not Codec.NONE_ONCE:
            self.codec = codec
        call_type = message.header.call_type
        if call_type in PARTS_UP:
            return self._receive_part(message)
        if call_type == CallType.CANCEL_PREVIOUS:
            call = self._open.pop(message.header.call_id, None)
            if call is None:
                return None
            call.cancelled = True
            return CallCancelled(call)
        kind = _KINDS.get(call_type)
        if kind is None:
            return None
        if kind.has_steps and message.header.stream_part > 0:
            return self._receive_part(message)
        return self._start(kind, message, now_ns)

    def _start(
        self, kind: CallKind, message: Message, now_ns: int
    ) -> CallStarted | MessageToSend:
        header = message.header
        # A net/rpc call names its method inside; its reply says if there is none.
        if kind is not CallKind.NET_RPC and not self._offers(kind, header.service_name):
            return MessageToSend(self._refusal(kind, header))
        call = OpenCall(kind, header)
        if kind.has_parts:
            call.sent, call.received = PartCounter(), PartCounter()
        namesake = self._open.get(header.call_id)
        problem = None
        if self._open_count >= self._max_calls:
            problem = f"more than {self._max_calls} calls at a time on one connection"
        elif namesake and (kind.sends_parts or namesake.kind.sends_parts):
            # Parts find their call by its id alone.
            problem = "this call id belongs to a call that is still running"
        elif kind.sends_parts and header.stream_part:
            problem = f"a stream must begin with part 0, not {header.stream_part}"
        if problem is not None:
            reply = self._reply_to(header, now_ns, error=problem, subject="")
            return MessageToSend(reply)
        if kind.sends_parts:
            call.received.advance(last=False)
        # Go's cli sends several calls under one id; the newest answers to a cancel.
        self._open[header.call_id] = call
        self._open_count += 1
        return CallStarted(call, message)

    def _receive_part(self, message: Message) -> PartReceived | StreamBroken | None:
        header = message.header
        call = self._open.get(header.call_id)
        if call is None or not call.kind.sends_parts:
            return None  # what is left of a stream that is over
        fault = call.received.fault_of(header.stream_part) or fault_of_type(
            call.kind, header.call_type, up=True
        )
        if fault is not None:
            del self._open[header.call_id]
            return StreamBroken(call, fault)
        last = header.call_type == CallType.UPLOAD_END
        call.received.advance(last=last)
        return PartReceived(call, message, last)

    def part(
        self,
        call: OpenCall,
        *,
        now_ns: int,
        payload: Buffer,
        args: Mapping[str, str] = NO_ARGS,
        last: bool = False,
        step: RsyncStep | None = None,
        compress: bool = True,
    ) -> Message:
        """Return the next part of a download, bistream or rsync call, to be sent.

        Part 0 has a type of its own, so a stream of one part needs an empty last one.
        A part that is not sent has to be taken back.

        Raises:
            LocalProtocolError: the call sends no parts, or had its last one, or one
                that went before could not be sent; or ``step`` or ``last`` are not for
                this kind of call.
        """
        if not call.kind.receives_parts or call.sent.ended:
            raise LocalProtocolError("this call takes no more parts")
        if call.sent.broken:
            raise LocalProtocolError(PART_MISSING)
        first = call.sent.next_number == 0
        call_type = part_type(call.kind, step, up=False, first=first, last=last)
        request = call.request
        header = Header(
            created_ns=now_ns,
            # Go leaves the two addresses as they were in the request.
            sender=request.sender,
            recipient=request.recipient,
            subject=request.subject,
            seqno=request.seqno,
            call_type=call_type,
            call_id=request.call_id,
            serial=self._serial(),
            deadline_ns=request.deadline_ns,
            stream_part=call.sent.next_number,
            service_name=request.service_name,
            args=args,
            no_system_compression=not compress,
        )
        payload = sendable_payload(payload)
        if args:
            require_sendable(header)
        call.sent.advance(last=last)
        return Message(header=header, payload=payload)

    def take_back(self, call: OpenCall, part: Message) -> None:
        """Note that a part could not be sent; its number is free for the next one."""
        call.sent.take_back(part.header.stream_part)

    def push(
        self,
        service_name: str,
        *,
        now_ns: int,
        payload: Buffer = b"",
        args: Mapping[str, str] = NO_ARGS,
        call_id: str = "",
        compress: bool = True,
    ) -> Message:
        """Return a one-way message to the client, to be sent at any time."""
        header = Header(
            created_ns=now_ns,
            sender=self._local,
            recipient=self._remote,
            call_type=CallType.ONE_WAY,
            call_id=call_id,
            serial=self._serial(),
            service_name=service_name,
            args=args,
            no_system_compression=not compress,
        )
        return Message(header=header, payload=payload)

    def close(self, call: OpenCall) -> None:
        """Count a call as running no more; doing so again changes nothing."""
        if call.closed:
            return
        call.closed = True
        self._open_count -= 1
        if self._open.get(call.request.call_id) is call:
            del self._open[call.request.call_id]

    def finish(
        self,
        call: OpenCall,
        *,
        now_ns: int,
        payload: Buffer = b"",
        args: Mapping[str, str] = NO_ARGS,
        error: str = "",
        subject: str | None = None,
        compress: bool = True,
    ) -> Message | None:
        """Close a call; return its reply to be sent, or None if it has none."""
        self.close(call)
        if call.kind is CallKind.ONE_WAY:
            return None
        return self._reply_to(
            call.request, now_ns, payload, args, error, subject, compress=compress
        )

    def _reply_to(
        self,
        request: Header,
        now_ns: int,
        payload: Buffer = b"",
        args: Mapping[str, str] = NO_ARGS,
        error: str = "",
        subject: str | None = None,
        *,
        compress: bool = True,
    ) -> Message:
        header = Header(
            created_ns=now_ns,
            sender=self._local,
            recipient=self._remote,
            subject=request.subject if subject is None else subject,
            seqno=request.seqno,
            call_type=CallType.RPC_REPLY,
            call_id=request.call_id,
            serial=self._serial(),
            deadline_ns=request.deadline_ns,
            service_name=request.service_name,
            args=args,
            no_system_compression=not compress,
        )
        return Message(header=header, payload=payload, error=error)

    def _refusal(self, kind: CallKind, request: Header) -> Message:
        """Return the request sent back as an error, as a Go server does it."""
        name = request.service_name[:_NAME_LEN]
        text = (
            f"{REFUSAL_TEXTS[kind]}req.HDR.ServiceName='{name}'; "
            f"req.HDR.CallID='{request.call_id}'"
        )
        header = structs.replace(
            request,
            call_type=CallType.ERROR,
            sender=request.recipient,
            recipient=request.sender,
            subject=text,
            service_name=name,
            args=NO_ARGS if header_len(request) > _ECHOED_LEN else request.args,
        )
        return Message(header=header)
