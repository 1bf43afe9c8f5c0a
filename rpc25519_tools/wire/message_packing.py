"""Messages as greenpack.

Members that are empty, zero or false are left out, and fields go out in ``zid`` order,
as Go's generated code does it; ``Args`` entries may come in any order.

Source: recorded exchanges ``*.c2s.bin`` / ``*.s2c.bin`` and ``gp-message-*.bin``.
"""

import functools
from collections.abc import Mapping
from typing import Final

from rpc25519_tools.wire.greenpack import (
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
_TWO_MEMBERS: Final = pack_map_header(2)
#: How the header of a call and of its reply begins: nine members, the first one.
_USUAL_HEADER: Final = KEY_HEADER + pack_map_header(9) + b"\xb1Created_zid00_tim"


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
    return KEY_HEADER + pack_map_header(len(out)) + b"".join(out)


def encode_message(message: Message) -> list[Buffer]:
    """Encode ``message`` as buffers that make up the greenpack body in order.

    The payload is passed through as it is, never copied.

    Raises:
        OverflowError: an integer field does not fit its width.
    """
    payload, error = message.payload, message.error
    header = _pack_usual_header(message.header) or _pack_header(message.header)
    if payload and not error:
        lead = (_TWO_MEMBERS, header, KEY_PAYLOAD, pack_bin_header(len(payload)))
        return [b"".join(lead), payload]
    head = pack_map_header(1 + bool(payload) + bool(error)) + header
    buffers: list[Buffer] = [head]
    if payload:
        buffers[0] = head + KEY_PAYLOAD + pack_bin_header(len(payload))
        buffers.append(payload)
    if error:
        buffers.append(KEY_ERROR + pack_str(error))
    return buffers
