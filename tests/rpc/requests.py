"""Requests of clients that are no Client."""

import itertools

from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.message import CallType, Header, Message

REAL_CODECS = [codec for codec in Codec if codec is not Codec.NONE_ONCE]
call_ids = itertools.count().__next__


def request(name: str = "echo", payload: bytes = b"", **fields: object) -> Message:
    header = Header(
        call_type=CallType.RPC,
        call_id=f"call {call_ids()}",
        service_name=name,
        **fields,  # type: ignore[arg-type]  # names of Header's fields
    )
    return Message(header=header, payload=payload)
