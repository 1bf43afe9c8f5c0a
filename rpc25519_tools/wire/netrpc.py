"""What net/rpc calls carry as their payload: a small array, then the value itself.

A request is ``[ServiceMethod, Seq]`` and the argument, a response
``[ServiceMethod, Seq, Error]`` and the result, or ``[0]`` where there is an error.

Source: recorded exchanges ``netrpc-*``.
"""

from dataclasses import dataclass
from typing import Final

from rpc25519_tools.errors import DecodeError
from rpc25519_tools.wire.greenpack import (
    Buffer,
    PrefixUnpacker,
    pack_str,
    pack_unsigned,
)

#: Stands in a response for the result that an error does not have.
NO_RESULT: Final = b"\x91\x00"
#: Most bytes that the array in front of the value may take.
_HEAD_LEN: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class NetRequest:
    """A call of one method; ``argument`` is encoded."""

    service_method: str
    seq: int
    argument: Buffer


@dataclass(frozen=True, slots=True)
class NetResponse:
    """The answer to one call; ``result`` is encoded, and empty of meaning on error."""

    service_method: str
    seq: int
    error: str
    result: Buffer


def encode_request(request: NetRequest) -> bytes:
    """Return the payload of a request."""
    name, seq = pack_str(request.service_method), pack_unsigned(request.seq)
    return b"\x92" + name + seq + bytes(request.argument)


def encode_response(response: NetResponse) -> bytes:
    """Return the payload of a response; an error leaves the result out."""
    head = b"\x93" + pack_str(response.service_method) + pack_unsigned(response.seq)
    head += pack_str(response.error)
    return head + (NO_RESULT if response.error else bytes(response.result))


def decode_request(payload: Buffer) -> NetRequest:
    """Read the payload of a request.

    Raises:
        DecodeError: it does not begin with a request's array.
    """
    (name, seq), argument = _head(payload, 2, "request")
    return NetRequest(_name(name), _seq(seq), argument)


def decode_response(payload: Buffer) -> NetResponse:
    """Read the payload of a response.

    Raises:
        DecodeError: it does not begin with a response's array.
    """
    (name, seq, error), result = _head(payload, 3, "response")
    if error is not None and not isinstance(error, str):
        raise DecodeError("the error of a net/rpc response is no text")
    return NetResponse(_name(name), _seq(seq), error or "", result)


def _head(payload: Buffer, count: int, what: str) -> tuple[list[object], memoryview]:
    if not payload:
        raise DecodeError(f"an empty net/rpc {what}")
    unpacker = PrefixUnpacker(payload, _HEAD_LEN)
    head = unpacker.value()
    if not isinstance(head, list) or len(head) != count:
        raise DecodeError(f"a net/rpc {what} must begin with an array of {count}")
    return head, memoryview(payload)[unpacker.offset() :]


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise DecodeError("the method name of a net/rpc call is no text")
    return value


def _seq(value: object) -> int:
    if type(value) is not int or value < 0:
        raise DecodeError("the number of a net/rpc call is no unsigned integer")
    return value
