"""The client's side of calls, as a pure state machine: messages in, events out.

It makes the messages of a call and tells what an incoming message means. It never
waits, reads no clock and draws no randomness of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from rpc25519_tools.errors import LocalProtocolError
from rpc25519_tools.rpc.calls import (
    FIRST_SEQNO,
    NO_PARTS,
    PART_MISSING,
    PARTS_DOWN,
    CallKind,
    PartCounter,
    RsyncStep,
    fault_of_type,
    new_call_id,
    part_type,
    serial_numbers,
)
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS, CallType, Header, Message
from rpc25519_tools.wire.outgoing import (
    has_short_name,
    require_sendable,
    sendable_payload,
)


class ReplyReceived(msgspec.Struct, frozen=True):
    """The call is over; the message is its reply, with an error text or without."""

    call_id: str
    message: Message


class PartReceived(msgspec.Struct, frozen=True):
    """The next part of a stream has come, in order."""

    call_id: str
    message: Message
    last: bool


class CallRefused(msgspec.Struct, frozen=True):
    """The call is over: the server does not offer the service."""

    call_id: str
    reason: str


class StreamBroken(msgspec.Struct, frozen=True):
    """The call is over: the peer's parts are missing or out of order."""

    call_id: str
    reason: str


class PushReceived(msgspec.Struct, frozen=True):
    """The server sent a one-way message of its own accord."""

    message: Message


ClientEvent: TypeAlias = (
    ReplyReceived | PartReceived | CallRefused | StreamBroken | PushReceived
)


@dataclass(slots=True)
class _OpenCall:
    kind: CallKind
    header: Header
    sent: PartCounter = NO_PARTS
    received: PartCounter = NO_PARTS


class ClientCore:
    """All open calls of one connection, seen from the client.

    Args:
        local: our address as the wire has it, such as ``tcp://127.0.0.1:50000``.
        remote: the server's address as dialled, in the same form.
        random_bytes: returns as many random bytes as it is asked for.
    """

    def __init__(
        self, *, local: str, remote: str, random_bytes: Callable[[int], bytes]
    ) -> None:
        self._local = local
        self._remote = remote
        self._random_bytes = random_bytes
        self._serial = serial_numbers()
        self._next_seqno = FIRST_SEQNO
        self._open: dict[str, _OpenCall] = {}

    @property
    def open_calls(self) -> int:
        """How many calls wait for their reply."""
        return len(self._open)

    def new_call_id(self) -> str:
        """Return a call id that was never used."""
        return new_call_id(self._random_bytes)

    def take_seqno(self) -> int:
        """Use up one call number; a net/rpc request carries it as its own."""
        seqno = self._next_seqno
        self._next_seqno += 1
        return seqno

    def start(
        self,
        kind: CallKind,
        service_name: str,
        *,
        now_ns: int,
        payload: Buffer = b"",
        args: Mapping[str, str] = NO_ARGS,
        subject: str = "",
        deadline_ns: int | None = None,
        call_id: str = "",
        compress: bool = True,
        backpressure: bool = False,
    ) -> Message:
        """Open a call; return the message that has to be sent.

        Args:
            kind: how to call; where the client sends parts, the message is part 0.
            service_name: the name that the server registered.
            now_ns: the clock, nanoseconds since 1970 UTC.
            payload: what to send along.
            args: small named strings to send along.
            subject: free text to send along.
            deadline_ns: when the caller gives up, on the same clock.
            call_id: for a ONE_WAY message, the conversation that it belongs to; for any
                other kind, from ``new_call_id``. A fresh one where empty.
            compress: False sends this one message without compression.
            backpressure: whether no more parts are taken than their reader has room
                for, so that they may be sent as fast as the network takes them.

        Raises:
            LocalProtocolError: the call id is in use, or what is to be sent cannot be.
        """
        payload = sendable_payload(payload)
        header = Header(
            created_ns=now_ns,
            sender=self._local,
            recipient=self._remote,
            subject=subject,
            seqno=self._next_seqno,
            call_type=kind.value,
            call_id=call_id or new_call_id(self._random_bytes),
            serial=self._serial(),
            deadline_ns=deadline_ns,
            service_name=service_name,
            args=args,
            no_system_compression=not compress,
            backpressure=backpressure,
        )
        if args or subject or call_id or not has_short_name(service_name):
            require_sendable(header)
        if call_id in self._open:
            raise LocalProtocolError("this call id belongs to a call that is running")
        self._next_seqno += 1
        if kind is not CallKind.ONE_WAY:
            call = _OpenCall(kind, header)
            if kind.has_parts:
                call.sent, call.received = PartCounter(), PartCounter()
            if kind.sends_parts:
                call.sent.advance(last=False)
            self._open[header.call_id] = call
        return Message(header=header, payload=payload)

    def next_part(
        self,
        call_id: str,
        *,
        now_ns: int,
        payload: Buffer,
        args: Mapping[str, str] = NO_ARGS,
        last: bool = False,
        step: RsyncStep | None = None,
        compress: bool = True,
    ) -> Message:
        """Return the next part of an upload, bistream or rsync call, to be sent.

        A part that is not sent has to be taken back.

        Raises:
            LocalProtocolError: the call is over, sends no parts, or had its last one,
                or one that went before could not be sent; or ``step`` or ``last`` are
                not for this kind of call.
        """
        call = self._open.get(call_id)
        if call is None or not call.kind.sends_parts or call.sent.ended:
            raise LocalProtocolError("this call takes no more parts")
        if call.sent.broken:
            raise LocalProtocolError(PART_MISSING)
        header = Header(
            created_ns=now_ns,
            sender=self._local,
            recipient=self._remote,
            seqno=call.header.seqno,
            call_type=part_type(call.kind, step, up=True, first=False, last=last),
            call_id=call_id,
            serial=self._serial(),
            deadline_ns=call.header.deadline_ns,
            stream_part=call.sent.next_number,
            service_name=call.header.service_name,
            args=args,
            no_system_compression=not compress,
        )
        payload = sendable_payload(payload)
        if args:
            require_sendable(header)
        call.sent.advance(last=last)
        return Message(header=header, payload=payload)

    def take_back(self, message: Message) -> None:
        """Note that a message could not be sent.

        If it is a part, its number is free for the next one. If it opened a call, that
        is forgotten: the server has not heard of it.
        """
        call = self._open.get(message.header.call_id)
        if call is None:
            return
        if message.header is call.header:
            del self._open[message.header.call_id]
        elif message.header.stream_part:
            call.sent.take_back(message.header.stream_part)

    def cancel(self, call_id: str, *, now_ns: int) -> Message | None:
        """Forget a call; return the message that tells the server, or None if over."""
        call = self._open.pop(call_id, None)
        if call is None:
            return None
        header = Header(
            created_ns=now_ns,
            sender=self._local,
            recipient=self._remote,
            seqno=call.header.seqno,
            call_type=CallType.CANCEL_PREVIOUS,
            call_id=call_id,
            serial=self._serial(),
            service_name=call.header.service_name,
        )
        return Message(header=header)

    def receive(self, message: Message) -> ClientEvent | None:
        """Take one message from the server; return what it means, None for nothing.

        A reply must carry the call id and the call number of an open call; what does
        not is dropped, as late replies to cancelled calls are.
        """
        header = message.header
        match header.call_type:
            case CallType.ONE_WAY:
                return PushReceived(message)
            case CallType.RPC_REPLY:
                call = self._open.get(header.call_id)
                if call is None or call.header.seqno != header.seqno:
                    return None
                del self._open[header.call_id]
                return ReplyReceived(header.call_id, message)
            case CallType.ERROR:
                if self._open.pop(header.call_id, None) is None:
                    return None
                return CallRefused(header.call_id, header.subject)
            case part if part in PARTS_DOWN:
                return self._receive_part(message)
            case _:
                return None

    def _receive_part(self, message: Message) -> PartReceived | StreamBroken | None:
        header = message.header
        call = self._open.get(header.call_id)
        if call is None or not call.kind.receives_parts:
            return None
        fault = call.received.fault_of(header.stream_part) or fault_of_type(
            call.kind, header.call_type, up=False
        )
        if fault is not None:
            del self._open[header.call_id]
            return StreamBroken(header.call_id, fault)
        last = header.call_type == CallType.DOWNLOAD_END
        call.received.advance(last=last)
        return PartReceived(header.call_id, message, last)
