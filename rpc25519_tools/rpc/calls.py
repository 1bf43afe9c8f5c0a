"""What kinds of calls there are, and which call types carry each of them (sans-IO).

A call is opened by the client with one message and closed by the server with one reply
of type RPC_REPLY (or refused with ERROR). In between, parts may flow, numbered from 0:

    kind       opened by          parts up       parts down
    RPC        RPC                -              -
    NET_RPC    NET_RPC            -              -
    ONE_WAY    ONE_WAY            -              - (and no reply)
    UPLOAD     UPLOAD_BEGIN (0)   MORE.. END     -
    DOWNLOAD   REQUEST_DOWNLOAD   -              BEGIN (0) MORE.. END
    BISTREAM   REQUEST_BISTREAM (0)  MORE.. END  BEGIN (0) MORE.. END
    RSYNC_READ RSYNC_STEP0 (0)    STEP2, STEP4   STEP1, STEP3
    RSYNC_SEND RSYNC_STEP1 (0)    STEP1, STEP3   STEP2, STEP4

A short download may end with its reply, without an END part. The steps of an rsync call
come in any order and number, and none of them is the last: the reply ends both ways. A
message of type RSYNC_STEP1 with a part number above 0 is a part of an open call.
"""

import base64
import itertools
from collections.abc import Callable, Mapping
from enum import Enum, IntEnum
from typing import Final

from rpc25519_tools.errors import LocalProtocolError
from rpc25519_tools.wire.message import CallType

#: The wire's own words for a call that was cancelled, and for one whose deadline has
#: passed: those of Go's contexts.
CANCELLED: Final = "context canceled"
EXPIRED: Final = "context deadline exceeded"
#: What a Go server says when the time of an upload is over, or of a stream that its
#: handler was sending: either of the two.
ENDED: Final = "context cancelled"

#: Why a stream takes no more parts although nobody has ended it.
PART_MISSING: Final = "an earlier part of this stream could not be sent"

#: Random bytes in a call id.
CALL_ID_LEN: Final = 20
#: The call number of the first call on a connection; the counter starts at 1 and is
#: raised before use.
FIRST_SEQNO: Final = 2


class RsyncStep(IntEnum):
    """What a part of an rsync call is for; the numbers of the peer's five steps.

    Source: the reference's ``hdr.go``, the constants ``CallRsyncStep0`` to ``4``.
    """

    REQUEST = 0
    OVERVIEW = 1
    HASHES = 2
    DELTAS = 3
    ACK = 4


_TYPE_OF_STEP: Final[Mapping[RsyncStep, CallType]] = {
    RsyncStep.REQUEST: CallType.RSYNC_STEP0,
    RsyncStep.OVERVIEW: CallType.RSYNC_STEP1,
    RsyncStep.HASHES: CallType.RSYNC_STEP2,
    RsyncStep.DELTAS: CallType.RSYNC_STEP3,
    RsyncStep.ACK: CallType.RSYNC_STEP4,
}
#: The step that a call type stands for.
STEP_OF_TYPE: Final[Mapping[int, RsyncStep]] = {
    call_type: step for step, call_type in _TYPE_OF_STEP.items()
}

_UPLOAD_PARTS: Final = frozenset({CallType.UPLOAD_MORE, CallType.UPLOAD_END})
_DOWNLOAD_PARTS: Final = frozenset(
    {CallType.DOWNLOAD_BEGIN, CallType.DOWNLOAD_MORE, CallType.DOWNLOAD_END}
)
_SENDER_STEPS: Final = frozenset({CallType.RSYNC_STEP1, CallType.RSYNC_STEP3})
_RECEIVER_STEPS: Final = frozenset({CallType.RSYNC_STEP2, CallType.RSYNC_STEP4})
_NO_TYPES: Final[frozenset[CallType]] = frozenset()

#: What opens a call, and the types of its parts up after that one, and down.
_PART_TYPES: Final = {
    CallType.UPLOAD_BEGIN: (_UPLOAD_PARTS, _NO_TYPES),
    CallType.REQUEST_DOWNLOAD: (_NO_TYPES, _DOWNLOAD_PARTS),
    CallType.REQUEST_BISTREAM: (_UPLOAD_PARTS, _DOWNLOAD_PARTS),
    CallType.RSYNC_STEP0: (_RECEIVER_STEPS, _SENDER_STEPS),
    CallType.RSYNC_STEP1: (_SENDER_STEPS, _RECEIVER_STEPS),
}


class CallKind(Enum):
    """One way of calling; the value is the call type that opens such a call."""

    RPC = CallType.RPC
    NET_RPC = CallType.NET_RPC
    ONE_WAY = CallType.ONE_WAY
    UPLOAD = CallType.UPLOAD_BEGIN
    DOWNLOAD = CallType.REQUEST_DOWNLOAD
    BISTREAM = CallType.REQUEST_BISTREAM
    RSYNC_READ = CallType.RSYNC_STEP0
    RSYNC_SEND = CallType.RSYNC_STEP1

    def __init__(self, opening: CallType) -> None:
        #: The types of the client's parts after the opening one, and of the server's.
        self.types_up, self.types_down = _PART_TYPES.get(
            opening, (_NO_TYPES, _NO_TYPES)
        )
        #: Whether the client sends parts; the opening message is then part 0.
        self.sends_parts = bool(self.types_up)
        #: Whether the server sends parts.
        self.receives_parts = bool(self.types_down)
        #: Whether each part carries a step, and none is the last.
        self.has_steps = opening in STEP_OF_TYPE
        #: Whether their reader gets all that have come before it learns of an early
        #: end, because another call may carry on behind them.
        self.keeps_parts = self.has_steps or self.sends_parts != self.receives_parts
        #: Whether either side sends parts.
        self.has_parts = self.sends_parts or self.receives_parts


#: What a Go server says in front of ``ServiceName='...'`` when a name is unknown. A
#: NET_RPC call is never refused so: its own reply says that there is no such method.
REFUSAL_TEXTS: Final = {
    CallKind.RPC: "error! CallRPC begin received but no server side upcall "
    "registered for ",
    CallKind.ONE_WAY: "error! CallOneWay received but no server side upcall "
    "registered for ",
    CallKind.UPLOAD: "error! CallUploadBegin stream begin received but no registered "
    "stream upload reader available on the server. ",
    CallKind.DOWNLOAD: "error! CallRequestDownload received but no server side upcall "
    "registered for ",
    CallKind.BISTREAM: "error! CallRequestBistreaming received but no server side "
    "upcall registered for ",
    # Ours, in the same manner: a Go server ignores these calls.
    CallKind.RSYNC_READ: "error! CallRsyncStep0 received but no server side upcall "
    "registered for ",
    CallKind.RSYNC_SEND: "error! CallRsyncStep1 received but no server side upcall "
    "registered for ",
}

#: What a client sends in open calls. Steps that also open calls are not among them;
#: their part number tells which they do.
PARTS_UP: Final = _UPLOAD_PARTS | {
    CallType.RSYNC_STEP2,
    CallType.RSYNC_STEP3,
    CallType.RSYNC_STEP4,
}
PARTS_DOWN: Final = _DOWNLOAD_PARTS | frozenset(_TYPE_OF_STEP.values())


def part_type(
    kind: CallKind, step: RsyncStep | None, *, up: bool, first: bool, last: bool
) -> CallType:
    """Return the type of a part that is to be sent.

    Args:
        kind: of a call that sends parts in that direction.
        step: what it is for, in an rsync call.
        up: whether the client sends it, after its opening message.
        first: whether it is part 0.
        last: whether no part follows.

    Raises:
        LocalProtocolError: that kind of call has no such part.
    """
    if kind.has_steps:
        if step is None:
            raise LocalProtocolError("each part of an rsync call needs its step")
        if last:
            raise LocalProtocolError("the parts of an rsync call end with its reply")
        call_type = _TYPE_OF_STEP.get(step)
        if call_type is None or call_type not in (
            kind.types_up if up else kind.types_down
        ):
            sender = "client" if up else "server"
            raise LocalProtocolError(
                f"the {sender} sends no step {step!r:.40} in this kind of call"
            )
        return call_type
    if step is not None:
        raise LocalProtocolError("only the parts of rsync calls have a step")
    if up:
        return CallType.UPLOAD_END if last else CallType.UPLOAD_MORE
    if first and last:
        raise LocalProtocolError("part 0 of a stream cannot be its last")
    if first:
        return CallType.DOWNLOAD_BEGIN
    return CallType.DOWNLOAD_END if last else CallType.DOWNLOAD_MORE


def fault_of_type(kind: CallKind, call_type: int, *, up: bool) -> str | None:
    """Return why a part of this type may not come, or None if it may."""
    if call_type in (kind.types_up if up else kind.types_down):
        return None
    return f"a part of type {call_type:d} does not belong into this kind of call"


def new_call_id(random_bytes: Callable[[int], bytes]) -> str:
    """Return a fresh call id: 28 characters that must never repeat."""
    return base64.urlsafe_b64encode(random_bytes(CALL_ID_LEN)).decode("ascii")


class PartCounter:
    """The numbers of one stream's parts in one direction.

    Attributes:
        next_number: the number that the next part has to carry.
        ended: whether the last part has passed.
        broken: whether a part is missing for good.
    """

    __slots__ = ("broken", "ended", "next_number")

    def __init__(self) -> None:
        self.next_number = 0
        self.ended = False
        self.broken = False

    def advance(self, *, last: bool) -> int:
        """Return the number of the part that passes now."""
        number = self.next_number
        self.next_number += 1
        self.ended = last
        return number

    def take_back(self, number: int) -> None:
        """Note that the part of this number could not be sent after all.

        Its number is free again, unless a later part has gone meanwhile.
        """
        if number == self.next_number - 1:
            self.next_number = number
            self.ended = False
        else:
            self.broken = True

    def fault_of(self, number: int) -> str | None:
        """Return why a part with this number may not come now, or None if it may."""
        if self.ended:
            return f"part {number} came after the last part"
        if number != self.next_number:
            return f"part {number} came where part {self.next_number} was due"
        return None


#: The counters of all calls that have no parts.
NO_PARTS: Final = PartCounter()


def serial_numbers() -> Callable[[], int]:
    """Return a counter of messages made, starting at 1."""
    return itertools.count(1).__next__
