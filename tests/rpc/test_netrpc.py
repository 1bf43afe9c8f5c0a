"""Calls of methods, as Go's net/rpc makes them."""

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest

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
from rpc25519_tools.wire.message import CallType
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
from tests.rpc.nets import Net, raw_client

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

    async def wait_long(self, context: CallContext, args: Args) -> Sum:
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
        return replace(report, parts=report.parts[::-1])

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


@pytest.mark.parametrize("name", VECTORS)
def test_recorded_payloads_come_apart_and_together(name: str) -> None:
    (sent,) = [one.message.payload for one in recorded(name, "c2s")]
    request = decode_request(sent)
    assert encode_request(request) == bytes(sent)
    (came,) = [one.message.payload for one in recorded(name, "s2c")]
    response = decode_response(came)
    assert encode_response(response) == bytes(came)
    assert response.seq == request.seq


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
        assert turned == replace(report, parts=[Report("2"), Report("1")])


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
        with pytest.raises((DeadlineError, RemoteCallError)):
            await client.netrpc.call("Arith.WaitLong", Args(), Sum, timeout_s=0.05)
        await until(lambda: arith.cancelled == 1)


async def test_an_answer_to_another_call_is_not_taken(memory: Net) -> None:
    from tests.rpc.nets import raw_server

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
