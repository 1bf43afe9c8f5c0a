"""Message, Header and CallType, and their greenpack encoding.

A message is a header, a payload (``JobSerz``) and an error text (``JobErrs``). Members
that are empty, zero or false are left out, and fields go out in ``zid`` order, as Go's
generated code does it; ``Args`` entries may come in any order.

Decoding is as tolerant as the Go decoder (unknown keys are skipped, missing ones keep
their defaults, nil counts as unset, bytes after the object are ignored) and as strict
about types, except that an integer is taken in either sign form. What was decoded can
always be encoded again, so an integer that does not fit its field is refused.

What a body costs is bounded by what a message needs, not by what a peer packs into it:
a short body may be built as it is; of a longer one only the known members are.

Source: recorded exchanges ``*.c2s.bin`` / ``*.s2c.bin`` and ``gp-message-*.bin``.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import field
from enum import IntEnum
from types import MappingProxyType
from typing import Final, cast

from rpc25519_tools.errors import DecodeError
from rpc25519_tools.values import keyword_value_class
from rpc25519_tools.wire.greenpack import (
    Buffer,
    PrefixUnpacker,
    is_container,
    is_nil,
    members,
    pack_bin_header,
    pack_map_header,
    pack_signed,
    pack_str,
    pack_time,
    pack_unsigned,
    read_bin_header,
    read_str,
    unpack_object,
    unpack_time,
)

#: Bodies from this length on have their payload sliced out instead of copied.
SLICE_FROM_LEN: Final = 32 * 1024
#: How much of a long body is looked at for the header.
_HEADER_WINDOW_LEN: Final = 16 * 1024
#: Bodies up to this length are built whole, known or not. Python objects take up to a
#: hundred times their packed size, which is 8 MiB here.
BUILD_UP_TO_LEN: Final = 64 * 1024
#: Most bytes of a packed header.
MAX_HEADER_LEN: Final = 256 * 1024
#: Most characters in all texts of a header together, keys and values of Args included.
#: File names are at most 4 KiB; a hundred kilobytes of Args is far beyond what peers
#: send. Headers out of BUILD_UP_TO_LEN or _HEADER_WINDOW_LEN bytes cannot exceed it.
MAX_HEADER_TEXT_LEN: Final = 128 * 1024
#: Most bytes of ``JobErrs``.
MAX_ERROR_LEN: Final = 1024 * 1024

_NO_ARGS: Final[Mapping[str, str]] = MappingProxyType({})

#: Longer names are packed each time they are sent.
_CACHED_LEN: Final = 256


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


@keyword_value_class
class Header:
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
    args: Mapping[str, str] = field(default_factory=lambda: _NO_ARGS)
    no_system_compression: bool = False
    backpressure: bool = False


@keyword_value_class
class Message:
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


_KEY_HEADER: Final = pack_str("HDR_zid00_rct")
_KEY_PAYLOAD: Final = pack_str("JobSerz_zid01_bin")
_KEY_ERROR: Final = pack_str("JobErrs_zid02_str")
#: How the header of a call and of its reply begins: nine members, the first one.
_USUAL_HEADER: Final = _KEY_HEADER + pack_map_header(9) + b"\xb1Created_zid00_tim"
_EMPTY_HEADER: Final = _KEY_HEADER + pack_map_header(0)
_NIL: Final = memoryview(b"\xc0")
_SIGNED_END: Final = 1 << 63


def _pack_args(args: Mapping[str, str]) -> bytes:
    packed = [pack_map_header(len(args))]
    for key, value in args.items():
        packed.append(pack_str(key))
        packed.append(pack_str(value))
    return b"".join(packed)


@functools.lru_cache(maxsize=1024)
def _packed_name(text: str) -> bytes:
    """Pack a text that comes again and again: addresses and names of services."""
    return pack_str(text)


def _pack_name(text: str) -> bytes:
    return _packed_name(text) if len(text) <= _CACHED_LEN else pack_str(text)


@functools.lru_cache(maxsize=1024)
def _packed_ends(sender: str, recipient: str) -> bytes:
    """Pack the two addresses, which are those of a connection, with their keys."""
    return b"".join(
        (
            b"\xaeFrom_zid01_str",
            pack_str(sender),
            b"\xacTo_zid02_str",
            pack_str(recipient),
        )
    )


def _pack_usual_header(header: Header) -> bytes | None:
    """Pack the header of a call or of its reply; None for one of another form.

    This is most of what sending a short message costs.
    """
    sender, recipient, created_ns = header.sender, header.recipient, header.created_ns
    if (
        created_ns is None
        or header.deadline_ns is None
        or header.subject
        or header.local_recv_ns is not None
        or header.stream_part
        or header.args
        or header.no_system_compression
        or header.backpressure
        or not (sender and recipient and header.seqno and header.call_type)
        or not (header.call_id and header.serial and header.service_name)
        or len(sender) + len(recipient) > _CACHED_LEN
    ):
        return None
    return b"".join(
        (
            _USUAL_HEADER,
            pack_time(created_ns),
            _packed_ends(sender, recipient),
            b"\xafSeqno_zid04_u64",
            pack_unsigned(header.seqno),
            b"\xadTyp_zid05_rct",
            pack_signed(header.call_type),
            b"\xb0CallID_zid06_str",
            pack_str(header.call_id),
            b"\xb0Serial_zid07_i64",
            pack_signed(header.serial),
            b"\xb2Deadline_zid09_tim",
            pack_time(header.deadline_ns),
            b"\xb5ServiceName_zid11_str",
            _pack_name(header.service_name),
        )
    )


def _pack_header(header: Header) -> bytes:  # noqa: C901  # one plain line a field
    usual = _pack_usual_header(header)
    if usual is not None:
        return usual
    out: list[bytes] = []
    if header.created_ns is not None:
        out.append(b"\xb1Created_zid00_tim" + pack_time(header.created_ns))
    if header.sender:
        out.append(b"\xaeFrom_zid01_str" + _pack_name(header.sender))
    if header.recipient:
        out.append(b"\xacTo_zid02_str" + _pack_name(header.recipient))
    if header.subject:
        out.append(b"\xb1Subject_zid03_str" + pack_str(header.subject))
    if header.seqno:
        out.append(b"\xafSeqno_zid04_u64" + pack_unsigned(header.seqno))
    if header.call_type:
        out.append(b"\xadTyp_zid05_rct" + pack_signed(header.call_type))
    if header.call_id:
        out.append(b"\xb0CallID_zid06_str" + pack_str(header.call_id))
    if header.serial:
        out.append(b"\xb0Serial_zid07_i64" + pack_signed(header.serial))
    if header.local_recv_ns is not None:
        out.append(b"\xb5LocalRecvTm_zid08_tim" + pack_time(header.local_recv_ns))
    if header.deadline_ns is not None:
        out.append(b"\xb2Deadline_zid09_tim" + pack_time(header.deadline_ns))
    if header.stream_part:
        out.append(b"\xb4StreamPart_zid10_i64" + pack_signed(header.stream_part))
    if header.service_name:
        out.append(b"\xb5ServiceName_zid11_str" + _pack_name(header.service_name))
    if header.args:
        out.append(b"\xaeArgs_zid12_map" + _pack_args(header.args))
    if header.no_system_compression:
        out.append(b"\xbdNoSystemCompression_zid13_boo\xc3")
    if header.backpressure:
        out.append(b"\xb6Backpressure_zid99_boo\xc3")
    return _KEY_HEADER + pack_map_header(len(out)) + b"".join(out)


def encode_message(message: Message) -> list[Buffer]:
    """Encode ``message`` as buffers that make up the greenpack body in order.

    The payload is passed through as it is, never copied.

    Raises:
        OverflowError: an integer field does not fit its width.
    """
    payload, error = message.payload, message.error
    head = pack_map_header(1 + bool(payload) + bool(error)) + _pack_header(
        message.header
    )
    buffers: list[Buffer] = [head]
    if payload:
        buffers[0] = head + _KEY_PAYLOAD + pack_bin_header(len(payload))
        buffers.append(payload)
    if error:
        buffers.append(_KEY_ERROR + pack_str(error))
    return buffers


def _as_str(value: object, name: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    raise DecodeError(f"{name} is not a string")


def _as_signed(value: object, name: str) -> int:
    if type(value) is not int:
        raise DecodeError(f"{name} is not an integer")
    if value >= 1 << 63:
        raise DecodeError(f"{name} does not fit a signed 64-bit integer")
    return value


def _as_unsigned(value: object, name: str) -> int:
    if type(value) is not int:
        raise DecodeError(f"{name} is not an integer")
    if value < 0:
        raise DecodeError(f"{name} is negative")
    return value


def _as_bool(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return value
    raise DecodeError(f"{name} is not a boolean")


def _as_args(value: object, name: str) -> Mapping[str, str]:
    if value is None:
        return _NO_ARGS
    if not isinstance(value, dict):
        raise DecodeError(f"{name} is not a map")
    for key, text in value.items():
        if type(key) is not str or type(text) is not str:
            raise DecodeError(f"{name} holds something that is not a string")
    return cast("dict[str, str]", value)


#: Wire key -> field of Header and the check that turns the value into it.
_HEADER_FIELDS: Final[dict[str, tuple[str, Callable[[object, str], object]]]] = {
    "Created_zid00_tim": ("created_ns", unpack_time),
    "From_zid01_str": ("sender", _as_str),
    "To_zid02_str": ("recipient", _as_str),
    "Subject_zid03_str": ("subject", _as_str),
    "Seqno_zid04_u64": ("seqno", _as_unsigned),
    "Typ_zid05_rct": ("call_type", _as_signed),
    "CallID_zid06_str": ("call_id", _as_str),
    "Serial_zid07_i64": ("serial", _as_signed),
    "LocalRecvTm_zid08_tim": ("local_recv_ns", unpack_time),
    "Deadline_zid09_tim": ("deadline_ns", unpack_time),
    "StreamPart_zid10_i64": ("stream_part", _as_signed),
    "ServiceName_zid11_str": ("service_name", _as_str),
    "Args_zid12_map": ("args", _as_args),
    "NoSystemCompression_zid13_boo": ("no_system_compression", _as_bool),
    "Backpressure_zid99_boo": ("backpressure", _as_bool),
}


def _usual_header(value: dict[str, object]) -> Header | None:
    """Decode a header that has only known members, each of the type that peers send.

    Returns None for any other, which _header_of then takes or refuses. This is most of
    what receiving a short message costs.
    """
    get = value.get
    count = len(value)
    created, deadline = get("Created_zid00_tim"), get("Deadline_zid09_tim")
    sender, recipient = get("From_zid01_str", ""), get("To_zid02_str", "")
    subject, seqno = get("Subject_zid03_str", ""), get("Seqno_zid04_u64", 0)
    call_type, call_id = get("Typ_zid05_rct", 0), get("CallID_zid06_str", "")
    serial, part = get("Serial_zid07_i64", 0), get("StreamPart_zid10_i64", 0)
    service_name, args = get("ServiceName_zid11_str", ""), get("Args_zid12_map")
    plain = get("NoSystemCompression_zid13_boo", False)  # dict.get
    known = (
        (created is not None)
        + (deadline is not None)
        + (sender != "")
        + (recipient != "")
        + (subject != "")
        + (seqno != 0)
        + (call_type != 0)
        + (call_id != "")
        + (serial != 0)
        + (part != 0)
        + (service_name != "")
        + (args is not None)
        + (plain is not False)
    )
    if known != count or not (
        type(sender) is type(recipient) is type(subject) is str
        and type(call_id) is type(service_name) is str
        and type(seqno) is type(call_type) is type(serial) is type(part) is int
        and type(plain) is bool
        and seqno >= 0
        and call_type < _SIGNED_END
        and serial < _SIGNED_END
        and part < _SIGNED_END
    ):
        return None
    return Header(
        created_ns=unpack_time(created, "Created_zid00_tim"),
        sender=sender,
        recipient=recipient,
        subject=subject,
        seqno=seqno,
        call_type=call_type,
        call_id=call_id,
        serial=serial,
        deadline_ns=unpack_time(deadline, "Deadline_zid09_tim"),
        stream_part=part,
        service_name=service_name,
        args=_NO_ARGS if args is None else _as_args(args, "Args_zid12_map"),
        no_system_compression=plain,
    )


def _header_of(value: object) -> Header:
    if value is None:
        return Header()
    if not isinstance(value, dict):
        raise DecodeError("the header of a message is not a map")
    usual = _usual_header(value)
    if usual is not None:
        return usual
    fields: dict[str, object] = {}
    for key, member in value.items():
        known = _HEADER_FIELDS.get(key) if isinstance(key, str) else None
        if known is not None:
            name, check = known
            fields[name] = check(member, key)
        elif isinstance(key, bytes):
            raise DecodeError("a key in the header of a message is binary")
    return Header(**fields)  # type: ignore[arg-type]  # each value passed its check


def _message_of(value: object) -> Message:
    if value is None:
        return Message(header=Header())
    if not isinstance(value, dict):
        raise DecodeError("a message must be a map")
    payload = value.get("JobSerz_zid01_bin")
    header = value.get("HDR_zid00_rct")
    if type(payload) is bytes and len(value) == 2 and header is not None:
        return Message(header=_header_of(header), payload=payload)
    if any(isinstance(key, bytes) for key in value):
        raise DecodeError("a key of a message is binary")
    if payload is None:
        payload = b""
    elif not isinstance(payload, bytes):
        raise DecodeError("JobSerz_zid01_bin is not binary")
    return Message(
        header=_header_of(header),
        payload=payload,
        error=_as_str(value.get("JobErrs_zid02_str"), "JobErrs_zid02_str"),
    )


def _sliced_message(body: Buffer) -> Message | None:
    """Decode a body in the usual order of members without copying its payload.

    Returns None when the body is in any other form that the general decoder may take.
    """
    try:
        unpacker = PrefixUnpacker(body, _HEADER_WINDOW_LEN)
        entries = unpacker.map_len()
        if not 2 <= entries <= 3 or unpacker.value() != "HDR_zid00_rct":
            return None
        header = unpacker.value()
        if unpacker.value() != "JobSerz_zid01_bin":
            return None
        start, length = read_bin_header(body, unpacker.offset())
    except DecodeError:
        return None
    payload = memoryview(body)[start : start + length]
    error = ""
    if entries == 3:
        rest = memoryview(body)[start + length :]
        if bytes(rest[: len(_KEY_ERROR)]) != _KEY_ERROR:
            return None
        rest = rest[len(_KEY_ERROR) :]
        error = read_str(rest, MAX_ERROR_LEN, "JobErrs_zid02_str")
    return Message(header=_header_of(header), payload=payload, error=error)


def _walked_args(packed: memoryview, name: str) -> Mapping[str, str]:
    if is_nil(packed):
        return _NO_ARGS
    args: dict[str, str] = {}
    for key, value in members(packed, MAX_HEADER_LEN):
        if key is None or is_nil(value):
            raise DecodeError(f"{name} holds something that is not a string")
        args[key] = read_str(value, len(value), name)
    return args


def _walked_header(packed: memoryview) -> Header:
    """Decode a header; like _header_of, but build the known fields only."""
    if len(packed) > MAX_HEADER_LEN:
        raise DecodeError(f"the header of a message has over {MAX_HEADER_LEN} bytes")
    if is_nil(packed):
        return Header()
    found = {key: value for key, value in members(packed) if key in _HEADER_FIELDS}
    fields: dict[str, object] = {}
    text_len = 0
    for key, value in found.items():
        name, check = _HEADER_FIELDS[key]
        if name == "args":
            args = _walked_args(value, key)
            text_len += sum(len(arg) + len(text) for arg, text in args.items())
            fields[name] = args
            continue
        if is_container(value):
            raise DecodeError(f"{key} is an array or a map")
        field_value = check(unpack_object(value), key)
        if isinstance(field_value, str):
            text_len += len(field_value)
        fields[name] = field_value
    if text_len > MAX_HEADER_TEXT_LEN:
        raise DecodeError(
            f"the header of a message has over {MAX_HEADER_TEXT_LEN} characters"
        )
    return Header(**fields)  # type: ignore[arg-type]  # each value passed its check


def _walked_message(body: Buffer) -> Message:
    """Decode a body of any form; like _message_of, but build the known members only."""
    if is_nil(body):
        return Message(header=Header())
    header, payload, error = _NIL, _NIL, _NIL
    for key, value in members(body):
        if key == "HDR_zid00_rct":
            header = value
        elif key == "JobSerz_zid01_bin":
            payload = value
        elif key == "JobErrs_zid02_str":
            error = value
    data: Buffer = b""
    if not is_nil(payload):
        start, length = read_bin_header(payload, 0)
        data = payload[start : start + length]
        if length < SLICE_FROM_LEN:
            data = bytes(data)  # rather than keep a long body for it
    return Message(
        header=_walked_header(header),
        payload=data,
        error=read_str(error, MAX_ERROR_LEN, "JobErrs_zid02_str"),
    )


def decode_message(body: Buffer) -> Message:
    """Decode one greenpack body.

    Args:
        body: the unpacked body of a frame. The message may keep a view of it, so it
            must not be changed afterwards.

    Raises:
        DecodeError: ``body`` is not a well-formed message.
    """
    if len(body) >= SLICE_FROM_LEN:
        sliced = _sliced_message(body)
        if sliced is not None:
            return sliced
    if len(body) > BUILD_UP_TO_LEN:
        return _walked_message(body)
    try:
        value = unpack_object(body)
    except DecodeError:
        # It may be an unknown member that is beyond what we build, such as an array.
        return _walked_message(body)
    return _message_of(value)
