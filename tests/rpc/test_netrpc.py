"""Calls of methods, as Go's net/rpc makes them."""

import asyncio
import dataclasses
import functools
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from rpc25519_tools.errors import (
    ConfigError,
    DeadlineError,
    DecodeError,
    HandlerError,
    LocalProtocolError,
    RemoteCallError,
)
from rpc25519_tools.greenpack import Int64, array_record, decode, encode, zid
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.methods import methods_of
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.constants import FRAME_HEADER_LEN, MAX_PAYLOAD_LEN
from rpc25519_tools.wire.framing import encode_frame
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
from tests.rpc.nets import Net, raw_client, raw_server
from tests.wire import go_structs

VECTORS = ["netrpc-ok", "netrpc-error", "netrpc-no-method", "netrpc-no-service"]


@array_record
@dataclass
class Args:
    a: int = zid(0, 0)
    b: int = zid(1, 0)


@array_record
@dataclass
class Sum:
    c: int = zid(0, 0)


class Arith:
    """The Go package's own example, as far as it is recorded."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.started = 0
        self.waiting = asyncio.Event()
        self.running = 0
        self.most_running = 0

    async def add(self, args: Args) -> Sum:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        return Sum(args.a + args.b)

    def mul(self, args: Args) -> Sum:
        return Sum(args.a * args.b)

    def div(self, args: Args) -> Sum:
        if args.b == 0:
            raise HandlerError("divide by zero")
        return Sum(args.a // args.b)

    def crash(self, args: Args) -> Sum:
        raise KeyError("gone")

    def who(self, context: CallContext, args: Args) -> str:
        return context.remote_address

    def block_long(self, context: CallContext, args: Args) -> Sum:
        self.started += 1
        if context.cancellation.wait(10):
            self.cancelled += 1
        return Sum()

    async def wait_long(self, context: CallContext, args: Args) -> Sum:
        self.started += 1
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Sum()

    def nothing(self, args: int) -> None:
        return None

    def wrong(self, args: int) -> str:
        return 5  # type: ignore[return-value]  # the mistake

    def _hidden(self, args: int) -> int:
        return args


@dataclass
class Report:
    title: str = zid(0, "")
    when: datetime | None = zid(1, None)
    counts: dict[str, Int64] = zid(2, default_factory=dict)
    parts: list["Report"] = zid(3, default_factory=list)


class Lab:
    def turn(self, report: Report) -> Report:
        return dataclasses.replace(report, parts=report.parts[::-1])

    def total(self, numbers: list[Int64]) -> int:
        return sum(numbers)


def services() -> tuple[Registry, Arith]:
    registry, arith = Registry(), Arith()
    registry.register(arith)
    registry.register(Lab())
    return registry, arith


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


def test_requests_are_made_of_encoded_arguments() -> None:
    packed = encode_request(NetRequest("Arith.Add", 2, encode(Args(7, -300))))
    assert decode(Args, decode_request(packed).argument) == Args(7, -300)


# Registering.


class NoHints:
    def run(self, thing):  # type: ignore[no-untyped-def]  # the mistake
        return thing


class TwoArguments:
    def run(self, one: int, two: int) -> int:
        return one


class NotEncodable:
    def run(self, one: set[int]) -> int:
        return 1


class ByKeyword:
    def run(self, *, one: int) -> int:
        return one


class AnyNumber:
    def run(self, *one: int) -> int:
        return one[0]


class NoArgument:
    def run(self) -> int:
        return 1


class NothingAsArgument:
    def run(self, one: None) -> int:
        return 1


class UnknownAnnotation:
    def run(self, one: "Undefined") -> int:  # type: ignore[name-defined]  # noqa: F821
        return 1


class ContextLast:
    def run(self, one: int, context: CallContext) -> int:
        return one


class Nothing:
    value = 3


class SameInGo:
    def a_b(self, one: int) -> int:
        return one

    def AB(self, one: int) -> int:  # noqa: N802  # the clash
        return one


@pytest.mark.parametrize(
    ("service", "name", "text"),
    [
        (NoHints(), None, "NoHints.run: 'thing' has no annotation"),
        (TwoArguments(), None, "TwoArguments.run must take one argument"),
        (NotEncodable(), None, "cannot be encoded"),
        (ByKeyword(), None, "ByKeyword.run must take one argument"),
        (AnyNumber(), None, "AnyNumber.run must take one argument"),
        (NoArgument(), None, "NoArgument.run must take one argument"),
        (NothingAsArgument(), None, "cannot be encoded"),
        (UnknownAnnotation(), None, "annotations are of no use"),
        (ContextLast(), None, "ContextLast.run must take one argument"),
        (Nothing(), None, "Nothing has no public methods"),
        (SameInGo(), None, "SameInGo.AB stands for two methods"),
        (Lab(), "A.B", "'A.B' cannot be the name"),
        (Lab(), "", "cannot be the name"),
    ],
)
def test_what_cannot_be_offered_is_refused(
    service: Any, name: str | None, text: str
) -> None:
    if name == "":
        with pytest.raises(ConfigError, match=text):
            methods_of(service, name)
        return
    with pytest.raises(ConfigError, match=text):
        Registry().register(service, name)


def test_a_name_is_registered_once() -> None:
    registry = Registry()
    registry.register(Lab())
    with pytest.raises(ConfigError, match="registered twice"):
        registry.register(Lab())
    registry.register(Lab(), "Other")


class Base:
    def inherited(self, one: int) -> int:
        return one + 1


class Mixed(Base):
    """Has members of every sort; only its methods are served."""

    value = 3

    def __init__(self) -> None:
        self.asked = 0

    @property
    def trap(self) -> int:
        self.asked += 1
        raise RuntimeError("asked for its value")

    @functools.cached_property
    def cached_trap(self) -> int:
        self.asked += 1
        return 1

    @staticmethod
    def static(one: int) -> int:
        return one + 2

    @classmethod
    def of_class(cls, one: int) -> int:
        return one + 3

    def optional_context(self, context: CallContext | None, one: int) -> int:
        assert context is not None
        return one + 4

    async def with_html_in_name(self, one: int) -> int:
        return one + 5

    def __call__(self, one: int) -> int:
        return one


async def test_methods_of_every_sort_are_served_in_both_spellings(memory: Net) -> None:
    registry, mixed = Registry(), Mixed()
    registry.register(mixed, "M")
    assert mixed.asked == 0
    assert sorted(registry.methods) == [
        "M.Inherited",
        "M.OfClass",
        "M.OptionalContext",
        "M.Static",
        "M.WithHtmlInName",
        "M.inherited",
        "M.of_class",
        "M.optional_context",
        "M.static",
        "M.with_html_in_name",
    ]
    expected = {"inherited": 1, "static": 2, "ofclass": 3, "optionalcontext": 4}
    async with memory.pair(registry) as (_, client):
        for name in registry.methods:
            key = name[2:].lower().replace("_", "")
            wanted = expected.get(key, 5)
            assert await client.netrpc.call(name, 0, int) == wanted


async def test_two_objects_of_a_class_are_served_under_two_names(memory: Net) -> None:
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def add(self, by: int) -> int:
            self.count += by
            return self.count

    registry = Registry()
    registry.register(Counter(), "One")
    registry.register(Counter(), "Two")
    async with memory.pair(registry) as (_, client):
        call = client.netrpc.call
        assert [await call("One.Add", 1, int), await call("One.Add", 2, int)] == [1, 3]
        assert await call("Two.add", 5, int) == 5


def test_a_refused_object_leaves_nothing_behind() -> None:
    registry = Registry()
    registry.register(Lab(), "Lab")
    before = dict(registry.methods)

    class Twice:
        def other(self, one: int) -> int:
            return one

        def turn(self, one: int) -> int:
            return one

    with pytest.raises(ConfigError, match="registered twice"):
        registry.register(Twice(), "Lab")
    assert registry.methods == before
