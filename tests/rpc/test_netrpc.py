"""Calls of methods, as Go's net/rpc makes them: turns, ends, failures."""

import asyncio
import dataclasses
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from rpc25519_tools.errors import (
    DeadlineError,
    DecodeError,
    LocalProtocolError,
    RemoteCallError,
)
from rpc25519_tools.greenpack import Int64, decode, encode
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.wire.constants import MAX_PAYLOAD_LEN
from rpc25519_tools.wire.message import CallType, Header, Message
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
from tests.rpc.memory import RawPeer
from tests.rpc.netrpc_services import Args, Report, Sum, services
from tests.rpc.nets import Net, raw_client, raw_server


async def test_methods_are_called(net: Net) -> None:
    registry, _ = services()
    async with net.pair(registry) as (_, client):
        call = client.netrpc.call
        assert await call("Arith.Add", Args(7, -300), Sum) == Sum(-293)
        assert await call("Arith.mul", Args(7, 6), Sum) == Sum(42)
        assert await call("Arith.Who", Args(), str) == client.local_address
        numbers = list(range(1000))
        assert (
            await call("Lab.Total", numbers, int, argument_type=list[Int64]) == 499500
        )
        report = Report(
            "r", datetime(2026, 1, 2, tzinfo=UTC), {"a": -1}, [Report("1"), Report("2")]
        )
        turned = await call("Lab.Turn", report, Report)
        assert turned == dataclasses.replace(report, parts=[Report("2"), Report("1")])


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("Arith.Div", "divide by zero"),
        ("Arith.Crash", "KeyError: 'gone'"),
        ("Arith.Missing", "rpc: can't find method Arith.Missing"),
        ("Nobody.Add", "rpc: can't find service Nobody.Add"),
        ("Arith._hidden", "rpc: can't find method Arith._hidden"),
        ("nodot", "rpc: service/method request ill-formed: nodot"),
        ("Lab.Turn", "is wanted"),
        ("Arith.Wrong", "is wanted"),
    ],
)
async def test_what_goes_wrong_is_told_and_the_connection_goes_on(
    memory: Net, method: str, text: str
) -> None:
    registry, _ = services()
    async with memory.pair(registry) as (_, client):
        with pytest.raises(RemoteCallError, match=text):
            await client.netrpc.call(method, Args(7, 0), Sum)
        assert await client.netrpc.call("Arith.Add", Args(1, 1), Sum) == Sum(2)


async def test_a_method_without_a_result_gives_nothing(memory: Net) -> None:
    registry, _ = services()
    async with memory.pair(registry) as (_, client):
        none = await client.netrpc.call("Arith.Nothing", 1, list[int])
        assert none == [0]  # Go's place-holder


async def test_a_payload_that_is_no_request_is_answered_and_harms_nothing(
    memory: Net,
) -> None:
    registry, _ = services()
    (request,) = [one.message for one in recorded("netrpc-ok", "c2s")]
    async with memory.server(registry), raw_client(memory) as peer:
        peer.send(replace(request, payload=b"\x91\xa1x"))
        peer.send(request)
        await until(lambda: len(peer.messages) == 2)
        by_error = {bool(one.error): one for one in peer.messages}
        assert "net/rpc request" in by_error[True].error
        assert decode_response(by_error[False].payload).error == ""


async def test_wrong_arguments_of_the_caller_cost_no_call(memory: Net) -> None:
    registry, _ = services()
    async with memory.pair(registry) as (_, client):
        with pytest.raises(LocalProtocolError, match=r"Args\.a"):
            await client.netrpc.call("Arith.Add", Args(a=1 << 70), Sum)
        with pytest.raises(DecodeError):
            await client.netrpc.call("Arith.Add", Args(1, 2), str)


async def test_calls_go_out_one_after_another(memory: Net) -> None:
    registry, arith = services()
    async with memory.pair(registry) as (_, client):
        tasks = [client.netrpc.go("Arith.Add", Args(n, 1), Sum) for n in range(50)]
        assert await asyncio.gather(*tasks) == [Sum(n + 1) for n in range(50)]
    assert arith.most_running == 1


async def test_a_method_is_cancelled_and_its_turn_passes_on(net: Net) -> None:
    registry, arith = services()
    async with net.pair(registry) as (_, client):
        task = client.netrpc.go("Arith.WaitLong", Args(), Sum)
        await arith.waiting.wait()
        after = client.netrpc.go("Arith.Add", Args(1, 2), Sum)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await after == Sum(3)
        await until(lambda: arith.cancelled == 1)


async def test_a_deadline_ends_a_method_on_both_sides(net: Net) -> None:
    registry, arith = services()
    async with net.pair(registry) as (_, client):
        with pytest.raises(DeadlineError):
            await client.netrpc.call("Arith.WaitLong", Args(), Sum, timeout_s=0.05)
        await until(lambda: arith.cancelled == 1)
        assert await client.netrpc.call("Arith.Add", Args(1, 2), Sum) == Sum(3)


def request_for(method: str, seq: int = 9, **fields: Any) -> Message:
    header = Header(
        call_type=CallType.NET_RPC, call_id="c", service_name="ignored", **fields
    )
    payload = encode_request(NetRequest(method, seq, encode(Args(1, 2))))
    return Message(header=header, payload=payload)


async def answer_of(peer: RawPeer) -> NetResponse:
    """Return the only response that has come."""
    await until(lambda: peer.messages)
    (answer,) = peer.messages
    assert answer.header.call_type == CallType.RPC_REPLY
    assert answer.error == ""
    return decode_response(answer.payload)


async def test_the_method_inside_the_request_is_the_one_that_counts(
    memory: Net,
) -> None:
    registry, _ = services()
    async with memory.server(registry), raw_client(memory) as peer:
        peer.send(request_for("Arith.Add", seq=1 << 40))
        response = await answer_of(peer)
    assert (response.service_method, response.seq) == ("Arith.Add", 1 << 40)
    assert decode(Sum, response.result) == Sum(3)


@pytest.mark.parametrize("plain", [False, True])
async def test_a_stopped_method_is_answered_in_the_form_of_net_rpc(
    memory: Net, plain: bool
) -> None:
    registry, arith = services()
    method = "Arith.BlockLong" if plain else "Arith.WaitLong"
    async with memory.server(registry):
        async with raw_client(memory) as peer:
            peer.send(request_for(method, created_ns=1, deadline_ns=1 + 40_000_000))
            response = await answer_of(peer)
            assert response.error == "context deadline exceeded"
            assert (response.service_method, response.seq) == (method, 9)
            assert bytes(response.result) == b"\x91\x00"
        async with raw_client(memory) as peer:
            peer.send(request_for(method))
            await until(lambda: arith.started == 2)
            peer.send(
                Message(header=Header(call_type=CallType.CANCEL_PREVIOUS, call_id="c"))
            )
            assert (await answer_of(peer)).error == "context canceled"
    await until(lambda: arith.cancelled == 2)


async def test_a_server_that_stops_answers_in_the_form_of_net_rpc(memory: Net) -> None:
    registry, _ = services()
    async with memory.server(registry) as server, raw_client(memory) as peer:
        await until(lambda: server.clients)
        server.stop_accepting()
        peer.send(request_for("Arith.Add"))
        assert (await answer_of(peer)).error == "the server is shutting down"


async def test_a_result_over_the_limit_is_an_error_in_the_form_of_net_rpc(
    memory: Net,
) -> None:
    class Large:
        async def result(self, args: Args) -> bytes:
            return bytes(MAX_PAYLOAD_LEN)

    registry = Registry()
    registry.register(Large())
    async with memory.server(registry, compression="none"), raw_client(memory) as peer:
        peer.send(request_for("Large.Result"))
        assert "does not fit" in (await answer_of(peer)).error


async def test_only_one_call_at_a_time_is_on_its_way(memory: Net) -> None:
    """A Go server would mix up the answers."""
    async with raw_server(memory) as (peer, client):

        def requests() -> list[Message]:
            all_sent = peer.messages
            return [x for x in all_sent if x.header.call_type == CallType.NET_RPC]

        calls = [client.netrpc.go("Arith.Add", Args(n, 0), Sum) for n in range(4)]
        beside = asyncio.create_task(client.call("echo", b""))
        await until(lambda: len(peer.messages) == 2)
        kinds = {one.header.call_type for one in peer.messages}
        assert kinds == {CallType.NET_RPC, CallType.RPC}
        calls[1].cancel()  # which waits for its turn
        for turn, number in enumerate((0, 2, 3)):
            await until(lambda turn=turn: len(requests()) == turn + 1)  # type: ignore[misc]
            request = requests()[turn]
            inside = decode_request(request.payload)
            assert decode(Args, inside.argument) == Args(number, 0)
            peer.send(response_to(request, encode(Sum(number))))
            assert await calls[number] == Sum(number)
        assert not beside.done()
        (other,) = [x for x in peer.messages if x.header.call_type == CallType.RPC]
        header = replace(other.header, call_type=CallType.RPC_REPLY)
        peer.send(replace(other, header=header))
        await beside


async def test_a_call_that_failed_passes_its_turn_on(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        with pytest.raises(DeadlineError):
            await client.netrpc.call("Any.Thing", 1, int, timeout_s=0.02)
        call = client.netrpc.go("Any.Thing", 2, int)
        await until(lambda: len(peer.messages) == 3)
        late, _, request = peer.messages
        # The answer to the first is late, and must not be taken for the second's.
        peer.send(response_to(late, encode(1)), response_to(request, encode(2)))
        assert await call == 2


async def test_the_time_limit_begins_with_the_turn(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        first = client.netrpc.go("Any.Thing", 1, int)
        second = client.netrpc.go("Any.Thing", 2, int, timeout_s=0.05)
        after = time.monotonic() + 0.1
        await until(lambda: time.monotonic() > after)
        assert not second.done()
        peer.send(response_to(peer.messages[0], encode(1)))
        assert await first == 1
        with pytest.raises(DeadlineError):
            await second


def response_to(request: Message, result: bytes, error: str = "") -> Message:
    inside = decode_request(request.payload)
    payload = encode_response(
        NetResponse(inside.service_method, inside.seq, error, result)
    )
    header = replace(request.header, call_type=CallType.RPC_REPLY)
    return Message(header=header, payload=payload)


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"", "an empty net/rpc response"),
        (b"\x92\xa1x\x02", "must begin with an array of 3"),
        (b"\x93\xa1x\x02\x05\x91\x00", "the error of a net/rpc response is no text"),
        (b"\x93\xa1x\xa1y\xa0\x91\x00", "the number of a net/rpc call"),
        (b"\xc1", "net/rpc|msgpack|greenpack|malformed"),
    ],
)
async def test_a_response_that_makes_no_sense_fails_its_call_alone(
    memory: Net, payload: bytes, text: str
) -> None:
    async with raw_server(memory) as (peer, client):
        call = client.netrpc.go("Any.Thing", 1, int)
        await until(lambda: peer.messages)
        peer.send(replace(response_to(peer.messages[0], b""), payload=payload))
        with pytest.raises(DecodeError, match=text):
            await call
        again = client.netrpc.go("Any.Thing", 1, int)
        await until(lambda: len(peer.messages) == 2)
        peer.send(response_to(peer.messages[1], encode(7)))
        assert await again == 7


async def test_a_response_in_other_forms_of_numbers_is_taken(memory: Net) -> None:
    """Seq may come as any integer, the error as nil."""
    async with raw_server(memory) as (peer, client):
        call = client.netrpc.go("Any.Thing", 1, int)
        await until(lambda: peer.messages)
        seq = decode_request(peer.messages[0].payload).seq
        payload = b"\x93\xa1x\xd3" + seq.to_bytes(8, "big") + b"\xc0" + encode(7)
        peer.send(replace(response_to(peer.messages[0], b""), payload=payload))
        assert await call == 7


async def test_an_answer_to_another_call_is_not_taken(memory: Net) -> None:
    async with raw_server(memory) as (peer, client):
        task = client.netrpc.go("Arith.Add", Args(1, 2), Sum)
        await until(lambda: peer.messages)
        (request,) = peer.messages
        inside = decode_request(request.payload)
        assert inside.seq == request.header.seqno - 1
        payload = encode_response(
            NetResponse(inside.service_method, inside.seq + 5, "", encode(Sum(9)))
        )
        header = replace(request.header, call_type=CallType.RPC_REPLY)
        peer.send(replace(request, header=header, payload=payload))
        with pytest.raises(Exception, match="another net/rpc call"):
            await task
