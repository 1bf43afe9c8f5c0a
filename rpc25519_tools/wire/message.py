"""Message, Header and CallType: what travels, and the limits of it.

A message is a header, a payload (``JobSerz``) and an error text (``JobErrs``).
``message_packing`` and ``message_unpacking`` turn it into greenpack and back.
"""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final

import msgspec

from rpc25519_tools.wire.greenpack import Buffer

#: Most bytes of a packed header.
MAX_HEADER_LEN: Final = 256 * 1024
#: Most characters in all texts of a header together, keys and values of Args included.
#: File names are at most 4 KiB; a hundred kilobytes of Args is far beyond what peers
#: send. Headers out of BUILD_UP_TO_LEN or _HEADER_WINDOW_LEN bytes cannot exceed it.
MAX_HEADER_TEXT_LEN: Final = 128 * 1024
#: Most bytes of ``JobErrs``.
MAX_ERROR_LEN: Final = 1024 * 1024

NO_ARGS: Final[Mapping[str, str]] = MappingProxyType({})


class CallType(IntEnum):
    """What a message is for; the numbers of the peer's ``CallType``."""

    NONE = 0
    RPC = 1
    NET_RPC = 2
    REQUEST_BISTREAM = 3
    RSYNC_STEP0 = 4
    RSYNC_STEP1 = 5
    ONE_WAY = 10
    RPC_REPLY = 11
    KEEP_ALIVE = 12
    CANCEL_PREVIOUS = 13
    ERROR = 14
    UPLOAD_BEGIN = 15
    UPLOAD_MORE = 16
    UPLOAD_END = 17
    REQUEST_DOWNLOAD = 18
    DOWNLOAD_BEGIN = 19
    DOWNLOAD_MORE = 20
    DOWNLOAD_END = 21
    RSYNC_STEP2 = 22
    RSYNC_STEP3 = 23
    RSYNC_STEP4 = 24


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The header of a message; every field has the peer's meaning.

    Attributes:
        created_ns: when the sender made the message, nanoseconds since 1970 UTC.
        sender: the peer's ``From``, such as ``tcp://127.0.0.1:8443``; never trusted.
        recipient: the peer's ``To``.
        subject: free text; the error text in a message of type ERROR.
        seqno: number of the call on its connection; the first one is 2.
        call_type: a CallType, or another number when a peer sends one we do not know.
        call_id: names the call; 20 random bytes in URL-safe base64.
        serial: counts the messages a process makes; ignored by receivers.
        local_recv_ns: set by a receiver for its own use; not sent.
        deadline_ns: when the caller gives up, nanoseconds since 1970 UTC, or None.
        stream_part: 0 for the first part of a stream, then counted up by one.
        service_name: the name under which the handler is registered.
        args: small named strings.
        no_system_compression: this one message goes out with codec byte 7.
        backpressure: a request's sender takes no more of the stream that it asks for
            than its reader has room for. Go knows no such field, and skips it.
    """

    created_ns: int | None = None
    sender: str = ""
    recipient: str = ""
    subject: str = ""
    seqno: int = 0
    call_type: int = CallType.NONE
    call_id: str = ""
    serial: int = 0
    local_recv_ns: int | None = None
    deadline_ns: int | None = None
    stream_part: int = 0
    service_name: str = ""
    args: Mapping[str, str] = NO_ARGS
    no_system_compression: bool = False
    backpressure: bool = False


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message.

    Attributes:
        header: see Header.
        payload: the peer's ``JobSerz``. A decoded long payload is a memoryview of the
            received body; it stays valid as long as it is referenced.
        error: the peer's ``JobErrs``; empty means success.
    """

    header: Header
    payload: Buffer = b""
    error: str = ""


#: What an entry of Args takes beside its two texts: two objects and a place in a dict.
ARG_COST: Final = 64


def header_len(header: Header) -> int:
    """Return the size of a header as limits count it.

    The characters of all its texts, and ARG_COST for each entry of its Args.
    """
    length = len(header.sender) + len(header.recipient) + len(header.subject)
    length += len(header.call_id) + len(header.service_name)
    for key, text in header.args.items():
        length += len(key) + len(text) + ARG_COST
    return length
