"""Messages out of greenpack.

Decoding is as tolerant as the Go decoder (unknown keys are skipped, missing ones keep
their defaults, nil counts as unset, bytes after the object are ignored) and as strict
about types, except that an integer is taken in either sign form. What was decoded can
always be encoded again, so an integer that does not fit its field is refused.

What a body costs is bounded by what a message needs, not by what a peer packs into it:
a short body may be built as it is; of a longer one only the known members are.

Source: recorded exchanges ``*.c2s.bin`` / ``*.s2c.bin`` and ``gp-message-*.bin``.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Annotated, Final, TypeAlias, cast

import msgspec
from msgspec.msgpack import Ext

from rpc25519_tools.errors import DecodeError
from rpc25519_tools.wire.greenpack import (
    TIME,
    TIME_EXT_CODE,
    Buffer,
    PrefixUnpacker,
    is_container,
    is_nil,
    members,
    read_bin_header,
    read_str,
    unpack_object,
    unpack_time,
)
from rpc25519_tools.wire.message import (
    MAX_ERROR_LEN,
    MAX_HEADER_LEN,
    MAX_HEADER_TEXT_LEN,
    NO_ARGS,
    Header,
    Message,
)
from rpc25519_tools.wire.message_packing import KEY_ERROR

#: Bodies from this length on have their payload sliced out instead of copied.
SLICE_FROM_LEN: Final = 32 * 1024
#: How much of a long body is looked at for the header.
_HEADER_WINDOW_LEN: Final = 16 * 1024
#: Bodies up to this length are built whole, known or not. Python objects take up to a
#: hundred times their packed size, which is 8 MiB here.
BUILD_UP_TO_LEN: Final = 64 * 1024

_NIL: Final = memoryview(b"\xc0")

_Signed: TypeAlias = Annotated[int, msgspec.Meta(le=(1 << 63) - 1)]
_Unsigned: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


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
        return NO_ARGS
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


class _WireHeader(msgspec.Struct, kw_only=True, gc=False):
    """A header as nearly all peers send it; ``Ext`` is what holds a time."""

    created: Ext | None = msgspec.field(default=None, name="Created_zid00_tim")
    sender: str = msgspec.field(default="", name="From_zid01_str")
    recipient: str = msgspec.field(default="", name="To_zid02_str")
    subject: str = msgspec.field(default="", name="Subject_zid03_str")
    seqno: _Unsigned = msgspec.field(default=0, name="Seqno_zid04_u64")
    call_type: _Signed = msgspec.field(default=0, name="Typ_zid05_rct")
    call_id: str = msgspec.field(default="", name="CallID_zid06_str")
    serial: _Signed = msgspec.field(default=0, name="Serial_zid07_i64")
    local_recv: Ext | None = msgspec.field(default=None, name="LocalRecvTm_zid08_tim")
    deadline: Ext | None = msgspec.field(default=None, name="Deadline_zid09_tim")
    stream_part: _Signed = msgspec.field(default=0, name="StreamPart_zid10_i64")
    service_name: str = msgspec.field(default="", name="ServiceName_zid11_str")
    args: dict[str, str] | None = msgspec.field(default=None, name="Args_zid12_map")
    plain: bool = msgspec.field(default=False, name="NoSystemCompression_zid13_boo")
    backpressure: bool = msgspec.field(default=False, name="Backpressure_zid99_boo")


class _WireMessage(msgspec.Struct, kw_only=True, gc=False):
    header: _WireHeader = msgspec.field(name="HDR_zid00_rct")
    payload: bytes = msgspec.field(default=b"", name="JobSerz_zid01_bin")
    error: str = msgspec.field(default="", name="JobErrs_zid02_str")


_USUAL: Final = msgspec.msgpack.Decoder(_WireMessage)


def _usual_message(body: Buffer) -> Message | None:
    """Decode a message that has no member of an unusual type.

    Returns None for any other, which the general decoder then takes or refuses. This
    is most of what receiving a short message costs, and ten times as fast.
    """
    try:
        wire = _USUAL.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    header = wire.header
    args = header.args
    return Message(
        header=Header(
            created_ns=_ns_of(header.created, "Created_zid00_tim"),
            sender=header.sender,
            recipient=header.recipient,
            subject=header.subject,
            seqno=header.seqno,
            call_type=header.call_type,
            call_id=header.call_id,
            serial=header.serial,
            local_recv_ns=_ns_of(header.local_recv, "LocalRecvTm_zid08_tim"),
            deadline_ns=_ns_of(header.deadline, "Deadline_zid09_tim"),
            stream_part=header.stream_part,
            service_name=header.service_name,
            args=NO_ARGS if args is None else args,
            no_system_compression=header.plain,
            backpressure=header.backpressure,
        ),
        payload=wire.payload,
        error=wire.error,
    )


def _ns_of(time: Ext | None, name: str) -> int | None:
    if time is None:
        return None
    try:
        stamp = TIME.unpack(time.data)
    except struct.error:
        stamp = None
    if stamp is None or time.code != TIME_EXT_CODE:
        raise DecodeError(f"{name} is not a time")
    return unpack_time(stamp, name)


def _header_of(value: object) -> Header:
    if value is None:
        return Header()
    if not isinstance(value, dict):
        raise DecodeError("the header of a message is not a map")
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
        if bytes(rest[: len(KEY_ERROR)]) != KEY_ERROR:
            return None
        rest = rest[len(KEY_ERROR) :]
        error = read_str(rest, MAX_ERROR_LEN, "JobErrs_zid02_str")
    return Message(header=_header_of(header), payload=payload, error=error)


def _walked_args(packed: memoryview, name: str) -> Mapping[str, str]:
    if is_nil(packed):
        return NO_ARGS
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
    usual = _usual_message(body)
    if usual is not None:
        return usual
    try:
        value = unpack_object(body)
    except DecodeError:
        # It may be an unknown member that is beyond what we build, such as an array.
        return _walked_message(body)
    return _message_of(value)
