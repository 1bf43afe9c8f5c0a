"""What may go out: payloads that are bytes, and headers that every peer takes.

What our own side may not send is found here, before any of it is on the wire, where it
would cost the whole connection.
"""

from collections.abc import Mapping
from typing import Final

from rpc25519_tools.errors import LocalProtocolError
from rpc25519_tools.limits import LONGEST_HEADER_LEN
from rpc25519_tools.wire.constants import MAX_PAYLOAD_LEN
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import (
    ARG_COST,
    MAX_ERROR_LEN,
    MAX_HEADER_TEXT_LEN,
    Header,
    Message,
)

#: A header that packs to no more than this is within all limits: an entry of Args takes
#: two bytes at least, and counts as ARG_COST more.
UNCHECKED_HEADER_LEN: Final = LONGEST_HEADER_LEN // ARG_COST
#: Names up to this length need no look at the rest of a header.
_SHORT_NAME_LEN: Final = 256


def sendable_payload(payload: object) -> Buffer:
    """Return a payload as a buffer whose length counts bytes, without copying it.

    Whatever has a buffer will do; what does not lie in one piece is copied.

    Raises:
        LocalProtocolError: it has none, or is longer than a message may be.
    """
    data: Buffer
    if type(payload) is bytes or type(payload) is bytearray:
        data = payload
    else:
        data = _bytes_of(payload)
    if len(data) > MAX_PAYLOAD_LEN:
        raise LocalProtocolError(
            f"a payload of {len(data)} bytes does not fit a message; "
            f"the limit is {MAX_PAYLOAD_LEN}"
        )
    return data


def _bytes_of(payload: object) -> Buffer:
    try:
        view = memoryview(payload)  # type: ignore[arg-type]  # this is the check
    except (TypeError, ValueError) as exc:
        kind = type(payload).__name__
        released = isinstance(payload, memoryview)
        raise LocalProtocolError(
            "a payload is a memoryview that has been released"
            if released
            else f"a payload must be bytes, not {kind}"
        ) from exc
    if view.nbytes == 0:
        return b""
    if not view.c_contiguous:
        return view.tobytes()
    if view.itemsize == 1 and view.ndim == 1:
        return view
    try:
        return view.cast("B")
    except (TypeError, ValueError):  # items of a form that memoryview does not know
        return view.tobytes()


def payload_len(payload: object) -> int:
    """Return how many bytes a payload has.

    Raises:
        LocalProtocolError: it is none.
    """
    if type(payload) is bytes:
        return len(payload)
    return len(sendable_payload(payload))


def has_short_name(name: object) -> bool:
    """Tell whether the name of a service is beyond doubt, as nearly all are."""
    return type(name) is str and len(name) <= _SHORT_NAME_LEN and name.isascii()


def require_sendable(header: Header) -> None:
    """Make sure that peers take a header; ours refuse what is over their limits.

    Raises:
        LocalProtocolError: a member that must be text is none, or all of them together
            are too long.
    """
    text_len = sum(
        _text_len(text, what)
        for text, what in (
            (header.sender, "sender"),
            (header.recipient, "recipient"),
            (header.subject, "subject"),
            (header.call_id, "call id"),
            (header.service_name, "service name"),
        )
    )
    args = header.args
    if not isinstance(args, Mapping):
        raise LocalProtocolError(
            f"the args of a message must be a mapping, not {type(args).__name__}"
        )
    for key, text in args.items():
        text_len += _text_len(key, "args") + _text_len(text, "args")
    if text_len > MAX_HEADER_TEXT_LEN:
        raise LocalProtocolError(
            "the name, the subject and the args of a message have "
            f"{text_len} bytes together; the limit is {MAX_HEADER_TEXT_LEN}"
        )
    if text_len + len(args) * ARG_COST > LONGEST_HEADER_LEN:
        raise LocalProtocolError(
            f"{len(args)} args are too many for one message; send them as its payload"
        )


def _text_len(text: object, what: str) -> int:
    """Return the bytes of a header's member."""
    if not isinstance(text, str):
        raise LocalProtocolError(
            f"a message's {what} must be text, not {type(text).__name__}"
        )
    try:
        return len(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise LocalProtocolError(
            f"a message's {what} holds half of a surrogate pair, which is no text"
        ) from None


def require_sendable_error(error: object) -> None:
    """Make sure that peers take an error's text.

    Raises:
        LocalProtocolError: it is no text, or too long.
    """
    error_len = _text_len(error, "error")
    if error_len > MAX_ERROR_LEN:
        raise LocalProtocolError(
            f"an error of {error_len} bytes does not fit a message; "
            f"the limit is {MAX_ERROR_LEN}"
        )


def sendable(message: Message) -> Message:
    """Return a message with a payload that ``sendable_payload`` has looked at.

    Raises:
        LocalProtocolError: the payload is none, or too long.
    """
    payload = sendable_payload(message.payload)
    if payload is message.payload:
        return message
    return Message(header=message.header, payload=payload, error=message.error)
