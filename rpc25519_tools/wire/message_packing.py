"""Messages as greenpack.

Members that are empty, zero or false are left out, and fields go out in ``zid`` order,
as Go's generated code does it; ``Args`` entries may come in any order.

Source: recorded exchanges ``*.c2s.bin`` / ``*.s2c.bin`` and ``gp-message-*.bin``.
"""

import functools
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec.msgpack import Ext

from rpc25519_tools.wire.greenpack import (
    NS_PER_S,
    TIME,
    TIME_EXT_CODE,
    Buffer,
    pack_bin_header,
    pack_map_header,
    pack_signed,
    pack_str,
    pack_time,
    pack_unsigned,
)
from rpc25519_tools.wire.message import Header, Message

#: Longer names are packed each time they are sent.
_CACHED_LEN: Final = 256

KEY_HEADER: Final = pack_str("HDR_zid00_rct")
KEY_PAYLOAD: Final = pack_str("JobSerz_zid01_bin")
KEY_ERROR: Final = pack_str("JobErrs_zid02_str")


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


class _UsualHeader(msgspec.Struct, kw_only=True, gc=False):
    """The header of a call or of its reply, as it goes out.

    What holds a signed number is packed already: 128 and up must have a signed form.
    """

    created: Ext = msgspec.field(name="Created_zid00_tim")
    sender: str = msgspec.field(name="From_zid01_str")
    recipient: str = msgspec.field(name="To_zid02_str")
    seqno: int = msgspec.field(name="Seqno_zid04_u64")
    call_type: msgspec.Raw = msgspec.field(name="Typ_zid05_rct")
    call_id: str = msgspec.field(name="CallID_zid06_str")
    serial: msgspec.Raw = msgspec.field(name="Serial_zid07_i64")
    deadline: Ext = msgspec.field(name="Deadline_zid09_tim")
    service_name: str = msgspec.field(name="ServiceName_zid11_str")


_encode: Final = msgspec.msgpack.Encoder().encode


def _pack_usual(header: Header) -> bytes | None:
    """Pack the header of a call or of its reply; None for one of another form.

    This is most of what sending a short message costs.
    """
    created_ns, deadline_ns = header.created_ns, header.deadline_ns
    if (
        created_ns is None
        or deadline_ns is None
        or not (header.sender and header.recipient and header.call_id)
        or not (header.seqno and header.serial and header.service_name)
        or not header.call_type
        or header.subject
        or header.local_recv_ns is not None
        or header.stream_part
        or header.args
        or header.no_system_compression
        or header.backpressure
        or not type(header.service_name) is type(header.call_id) is str
    ):
        return None
    try:
        return _encode(
            _UsualHeader(
                created=Ext(TIME_EXT_CODE, _time(created_ns)),
                sender=header.sender,
                recipient=header.recipient,
                seqno=header.seqno,
                call_type=msgspec.Raw(pack_signed(header.call_type)),
                call_id=header.call_id,
                serial=msgspec.Raw(pack_signed(header.serial)),
                deadline=Ext(TIME_EXT_CODE, _time(deadline_ns)),
                service_name=header.service_name,
            )
        )
    except UnicodeEncodeError:
        return None  # bytes that are no text, which the general way can pack


def _time(ns: int) -> bytes:
    return TIME.pack(*divmod(ns, NS_PER_S))


def _pack_header(header: Header) -> bytes:  # noqa: C901  # one plain line a field
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
    return pack_map_header(len(out)) + b"".join(out)


def encode_message(message: Message) -> list[Buffer]:
    """Encode ``message`` as buffers that make up the greenpack body in order.

    The payload is passed through as it is, never copied.

    Raises:
        OverflowError: an integer field does not fit its width.
    """
    payload, error = message.payload, message.error
    header = _pack_usual(message.header) or _pack_header(message.header)
    members = pack_map_header(1 + bool(payload) + bool(error))
    if payload:
        lead = (members, KEY_HEADER, header, KEY_PAYLOAD, pack_bin_header(len(payload)))
        buffers: list[Buffer] = [b"".join(lead), payload]
    else:
        buffers = [members + KEY_HEADER + header]
    if error:
        buffers.append(KEY_ERROR + pack_str(error))
    return buffers
