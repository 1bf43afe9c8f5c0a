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

A short download may end with its reply, without an END part.
"""

import base64
import itertools
from collections.abc import Callable
from enum import Enum
from typing import Final

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


class CallKind(Enum):
    """One way of calling; the value is the call type that opens such a call."""

    RPC = CallType.RPC
    NET_RPC = CallType.NET_RPC
    ONE_WAY = CallType.ONE_WAY
    UPLOAD = CallType.UPLOAD_BEGIN
    DOWNLOAD = CallType.REQUEST_DOWNLOAD
    BISTREAM = CallType.REQUEST_BISTREAM

    def __init__(self, opening: CallType) -> None:
        #: Whether the client sends parts; the opening message is then part 0.
        self.sends_parts = opening in (
            CallType.UPLOAD_BEGIN,
            CallType.REQUEST_BISTREAM,
        )
        #: Whether the server sends parts.
        self.receives_parts = opening in (
            CallType.REQUEST_DOWNLOAD,
            CallType.REQUEST_BISTREAM,
        )
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
}

PARTS_UP: Final = frozenset({CallType.UPLOAD_MORE, CallType.UPLOAD_END})
PARTS_DOWN: Final = frozenset(
    {CallType.DOWNLOAD_BEGIN, CallType.DOWNLOAD_MORE, CallType.DOWNLOAD_END}
)


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
