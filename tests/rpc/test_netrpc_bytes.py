"""The bytes of net/rpc calls, recorded from Go: taken and made as they are."""

from typing import Any

import pytest
from msgspec.structs import replace

from rpc25519_tools.errors import DecodeError, RemoteCallError
from rpc25519_tools.greenpack import decode, encode
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.constants import FRAME_HEADER_LEN
from rpc25519_tools.wire.framing import encode_frame
from rpc25519_tools.wire.message import CallType, Message
from rpc25519_tools.wire.netrpc import (
    NetRequest,
    NetResponse,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from tests.helpers import until
from tests.rpc.flows import recorded
from tests.rpc.netrpc_services import Args, Sum, services
from tests.rpc.nets import Net, raw_client, raw_server
from tests.wire import go_structs

VECTORS = ["netrpc-ok", "netrpc-error", "netrpc-no-method", "netrpc-no-service"]


@pytest.mark.parametrize("name", VECTORS)
async def test_a_recorded_request_gets_the_recorded_response(
    memory: Net, name: str
) -> None:
    registry, _ = services()
    (request,) = [one.message for one in recorded(name, "c2s")]
    (expected,) = [one.message for one in recorded(name, "s2c")]
    async with (
        memory.server(registry, compression="none"),
        raw_client(memory) as peer,
    ):
        peer.send(request)
        await until(lambda: peer.messages)
        (answer,) = peer.messages
    assert bytes(answer.payload) == bytes(expected.payload)
    assert answer.error == expected.error == ""
    for field in ("call_type", "call_id", "seqno", "service_name", "deadline_ns"):
        assert getattr(answer.header, field) == getattr(expected.header, field)


def like(message: Message, recorded_one: Message) -> Message:
    """Return a message with the times, addresses and ids of a recorded one."""
    theirs = recorded_one.header
    header = replace(
        message.header,
        created_ns=theirs.created_ns,
        sender=theirs.sender,
        recipient=theirs.recipient,
        call_id=theirs.call_id,
        serial=theirs.serial,
        deadline_ns=theirs.deadline_ns,
    )
    return replace(message, header=header)


def plain_of(message: Message) -> bytes:
    frame = b"".join(map(bytes, encode_frame(message, Codec.NONE)))
    return frame[FRAME_HEADER_LEN:]


@pytest.mark.parametrize("name", VECTORS)
async def test_the_server_makes_the_recorded_bytes(memory: Net, name: str) -> None:
    registry, _ = services()
    (request,), (expected,) = recorded(name, "c2s"), recorded(name, "s2c")
    async with memory.server(registry), raw_client(memory) as peer:
        peer.send(request.message, codec=Codec.S2)
        await until(lambda: peer.messages)
        ((answer, codec),) = peer.received
    assert codec is Codec.S2
    assert answer.header.call_id == request.message.header.call_id
    assert plain_of(like(answer, expected.message)) == expected.plain


@pytest.mark.parametrize(
    ("name", "method", "args", "text"),
    [
        ("netrpc-ok", "Arith.Add", Args(7, -300), ""),
        ("netrpc-error", "Arith.Div", Args(7, 0), "divide by zero"),
        ("netrpc-no-method", "Arith.NoSuch", Args(7, 8), "can't find method"),
        ("netrpc-no-service", "Nope.Add", Args(7, 8), "can't find service"),
    ],
)
async def test_the_client_makes_the_recorded_bytes_and_reads_the_recorded_answer(
    memory: Net, name: str, method: str, args: Args, text: str
) -> None:
    (expected,), (answer,) = recorded(name, "c2s"), recorded(name, "s2c")
    async with raw_server(memory) as (peer, client):
        call = client.netrpc.go(method, args, Sum)
        await until(lambda: peer.messages)
        (request,) = peer.messages
        assert plain_of(like(request, expected.message)) == expected.plain
        header = replace(answer.message.header, call_id=request.header.call_id)
        peer.send(replace(answer.message, header=header))
        if text:
            with pytest.raises(RemoteCallError, match=text):
                await call
        else:
            assert await call == Sum(-293)


@pytest.mark.parametrize("name", VECTORS)
def test_recorded_payloads_come_apart_and_together(name: str) -> None:
    (sent,) = [one.message.payload for one in recorded(name, "c2s")]
    request = decode_request(sent)
    assert encode_request(request) == bytes(sent)
    (came,) = [one.message.payload for one in recorded(name, "s2c")]
    response = decode_response(came)
    assert encode_response(response) == bytes(came)
    assert response.seq == request.seq


#: What Go's EncodeMsg makes of structs without maps, whose order is random there.
ENTRIES = [one for one in go_structs.entries() if one["type"] in ("Arrays", "Outer")]
assert ENTRIES


class Mirror:
    def arrays(self, value: go_structs.Arrays) -> go_structs.Arrays:
        return value

    def outer(self, value: go_structs.Outer) -> go_structs.Outer:
        return value


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda one: str(one["type"]))
async def test_a_result_has_the_bytes_that_go_streams(
    memory: Net, entry: dict[str, Any]
) -> None:
    # Not those of MarshalMsg: Go's DecodeMsg would refuse an array of uint8 in them.
    registry = Registry()
    registry.register(Mirror())
    packed = bytes.fromhex(entry["stream"])
    asked = encode_request(NetRequest(f"Mirror.{entry['type']}", 1, packed))
    (request,) = [one.message for one in recorded("netrpc-ok", "c2s")]
    async with memory.server(registry), raw_client(memory) as peer:
        peer.send(replace(request, payload=asked))
        await until(lambda: peer.messages)
    response = decode_response(peer.messages[0].payload)
    assert (response.error, response.result) == ("", packed)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda one: str(one["type"]))
async def test_an_argument_has_the_bytes_that_go_streams(
    memory: Net, entry: dict[str, Any]
) -> None:
    type_, packed = go_structs.TYPES[entry["type"]], bytes.fromhex(entry["stream"])
    value = go_structs.built(type_, entry["value"])
    async with raw_server(memory) as (peer, client):
        call = client.netrpc.go("Mirror.Same", value, type_)
        await until(lambda: peer.messages)
        (sent,) = peer.messages
        request = decode_request(sent.payload)
        assert request.argument == packed
        answer = encode_response(NetResponse("Mirror.Same", request.seq, "", packed))
        header = replace(sent.header, call_type=CallType.RPC_REPLY, deadline_ns=None)
        peer.send(Message(header=header, payload=answer))
        assert await call == value


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x91\xa1x",
        b"\x93\xa1x\1\2",
        b"\x92\1\1",
        b"\x92\xa1x\xff",
        b"\xc0",
        b"\x92",
    ],
)
def test_what_is_no_request_is_refused(payload: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_request(payload)


@pytest.mark.parametrize(
    "payload", [b"", b"\x92\xa1x\1", b"\x93\xa1x\1\1", b"\x93\1\1\xa0", b"\x93\xa1x"]
)
def test_what_is_no_response_is_refused(payload: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_response(payload)


def test_requests_are_made_of_encoded_arguments() -> None:
    packed = encode_request(NetRequest("Arith.Add", 2, encode(Args(7, -300))))
    assert decode(Args, decode_request(packed).argument) == Args(7, -300)
