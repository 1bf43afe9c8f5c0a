"""What handlers return and raise, and what their callers get."""

import asyncio
import contextlib
import logging
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from rpc25519_tools.errors import (
    ConnectionLostError,
    DeadlineError,
    HandlerError,
    RemoteCallError,
    TransferError,
)
from rpc25519_tools.rpc import failures
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import (
    PlainIncoming,
    Reply,
    Result,
    as_reply,
)
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.wire.constants import MIB
from tests.helpers import until
from tests.rpc.nets import Net
from tests.rpc.offers import echo, released_view, reply_of, services

pytestmark = pytest.mark.usefixtures("no_thread_stays_busy")
STREAMS = [CallKind.UPLOAD, CallKind.DOWNLOAD, CallKind.BISTREAM]
PART = bytes(1000)


def in_worker() -> bool:
    return threading.current_thread().name.startswith("handler")


# What handlers return.


@pytest.mark.parametrize(
    ("result", "payload"),
    [
        (b"bytes", b"bytes"),
        (bytearray(b"array"), b"array"),
        (memoryview(b"a view")[2:], b"view"),
        (None, b""),
        (Reply(payload=b"reply"), b"reply"),
    ],
)
@pytest.mark.parametrize("plain", [False, True])
async def test_a_handler_may_return(
    memory: Net, result: Result, payload: bytes, plain: bool
) -> None:
    registry = Registry()

    async def answer(context: CallContext, *streams: object) -> Result:
        return result

    def plain_answer(context: CallContext, *streams: object) -> Result:
        return result

    handler: Any = plain_answer if plain else answer
    registry.add_call("answer", handler)
    registry.add_upload("answer", handler)
    registry.add_download("answer", handler)
    registry.add_bistream("answer", handler)
    async with memory.pair(registry) as (_, client):
        for kind in (CallKind.RPC, *STREAMS):
            assert bytes((await reply_of(client, kind, "answer")).payload) == payload


@pytest.mark.parametrize("result", ["text", 5, ["a", "list"], (b"a", b"b"), True, echo])
@pytest.mark.parametrize("plain", [False, True])
async def test_what_cannot_be_sent_is_an_error_of_the_call(
    memory: Net, caplog: pytest.LogCaptureFixture, result: object, plain: bool
) -> None:
    registry = services()

    async def answer(context: CallContext, *streams: object) -> object:
        return result

    def plain_answer(context: CallContext, *streams: object) -> object:
        return result

    handler: Any = plain_answer if plain else answer
    registry.add_call("answer", handler)
    registry.add_upload("answer", handler)
    registry.add_one_way("answer", handler)
    name = type(result).__name__
    async with memory.pair(registry) as (_, client):
        for kind in (CallKind.RPC, CallKind.UPLOAD):
            with pytest.raises(RemoteCallError, match=f"returned {name}; return bytes"):
                await reply_of(client, kind, "answer")
        await client.send_one_way("answer")
        await client.call("echo", b"")
        await until(lambda: len(caplog.records) == 3)
    assert all("'answer'" in one.getMessage() for one in caplog.records)


def test_a_reply_is_taken_as_it_is() -> None:
    reply = Reply(payload=b"p", args={"k": "v"}, error="e", subject="s", compress=False)
    assert as_reply(reply, "name") is reply


async def test_a_reply_says_all_that_a_message_can(memory: Net) -> None:
    registry = Registry()

    @registry.call("all")
    def all_of_it(context: CallContext) -> Reply:
        return Reply(payload=b"p", args={"k": "v"}, subject="s", compress=False)

    async with memory.pair(registry) as (_, client):
        reply = await client.call("all", b"", subject="mine")
        assert reply.payload == b"p"
        assert reply.header.args == {"k": "v"}
        assert reply.header.subject == "s"
        assert reply.header.no_system_compression


# What handlers raise.


@pytest.mark.parametrize("reveal", [False, True])
@pytest.mark.parametrize("plain", [False, True])
async def test_the_text_of_a_handlers_own_error_travels_and_is_not_logged(
    net: Net, caplog: pytest.LogCaptureFixture, reveal: bool, plain: bool
) -> None:
    caplog.set_level(logging.DEBUG, "rpc25519_tools")
    registry = services()

    async def refuse(context: CallContext, *streams: object) -> None:
        raise HandlerError("no such mailbox")

    def plain_refuse(context: CallContext, *streams: object) -> None:
        raise HandlerError("no such mailbox")

    handler: Any = plain_refuse if plain else refuse
    registry.add_call("refuse", handler)
    registry.add_upload("refuse", handler)
    registry.add_download("refuse", handler)
    registry.add_bistream("refuse", handler)
    async with (
        net.server(registry, reveal_errors=reveal) as server,
        await net.client(server) as client,
    ):
        for kind in (CallKind.RPC, *STREAMS):
            with pytest.raises(RemoteCallError) as caught:
                await reply_of(client, kind, "refuse")
            assert str(caught.value) == "no such mailbox"
        await client.call("echo", b"")
    assert not caplog.records


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (HandlerError(), "HandlerError"),
        (HandlerError("x" * 5000), "x" * 2000),
        (TransferError("disk full"), "disk full"),
        (ValueError("v"), "ValueError: v"),
        (KeyError("k"), "KeyError: 'k'"),
        (StopIteration("s"), None),
        (StopAsyncIteration("s"), None),
        (TimeoutError("t"), "TimeoutError: t"),
        (DeadlineError("of another call"), "of another call"),
        (asyncio.CancelledError("inside"), None),
        (SystemExit(3), None),
        (GeneratorExit(), None),
        (SpeechlessError(), "SpeechlessError: it cannot say what is wrong"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("plain", [False, True])
async def test_whatever_a_handler_raises_its_caller_gets_an_answer(
    memory: Net, error: BaseException, text: str | None, plain: bool
) -> None:
    registry = services()

    async def fail(context: CallContext) -> None:
        raise error

    def plain_fail(context: CallContext) -> None:
        raise error

    registry.add_call("fail", plain_fail if plain else fail)
    async with memory.pair(registry, call_timeout_s=2) as (_, client):
        with pytest.raises(RemoteCallError) as caught:
            await client.call("fail", b"")
        assert text is None or str(caught.value) == text
        assert "shutting down" not in str(caught.value)
        await client.call("echo", b"")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
async def test_what_ends_programs_ends_no_server_from_a_handlers_thread(
    memory: Net, error: BaseException
) -> None:
    class Service:
        def leave(self, number: int) -> int:
            raise error

    registry = services()

    @registry.upload("leave")
    def leave(context: CallContext, parts: PlainIncoming) -> None:
        raise error

    registry.register(Service())
    async with memory.pair(registry, call_timeout_s=2) as (_, client):
        for ended in (
            reply_of(client, CallKind.UPLOAD, "leave"),
            client.netrpc.call("Service.leave", 1, int),
        ):
            with pytest.raises(RemoteCallError, match=type(error).__name__):
                await ended
        await client.call("echo", b"")


async def test_a_method_that_wants_to_exit_is_an_error_of_its_call(memory: Net) -> None:
    class Service:
        async def leave(self, number: int) -> int:
            raise SystemExit(number)

    registry = services()
    registry.register(Service())
    async with memory.pair(registry, call_timeout_s=2) as (_, client):
        with pytest.raises(RemoteCallError, match="SystemExit: 4"):
            await client.netrpc.call("Service.leave", 4, int)
        await client.call("echo", b"")


def test_ctrl_c_during_a_handler_still_ends_the_program(certs: Path) -> None:
    registry = services()

    @registry.call("interrupted")
    async def interrupted(context: CallContext) -> None:
        signal.raise_signal(signal.SIGINT)

    async def call_it() -> None:
        async with Net("tcp", certs).pair(registry) as (_, client):
            with contextlib.suppress(ConnectionLostError):
                await client.call("interrupted", b"")

    loop = asyncio.new_event_loop()
    running = loop.create_task(call_it())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(running)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(running)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_a_handler_that_is_thrown_away_with_its_loop_does_nothing_more() -> None:
    async def wait_for_ever() -> None:
        await asyncio.get_running_loop().create_future()

    async def judge() -> None:
        task = asyncio.current_task()
        assert task is not None
        for error in (GeneratorExit(), SystemExit(1), KeyboardInterrupt()):
            judged[type(error)] = failures.is_for_us(error, task)
        other = asyncio.ensure_future(wait_for_ever())
        judged["of another task"] = failures.is_for_us(GeneratorExit(), other)
        other.cancel()
        kept.append(task)

    judged: dict[object, bool] = {}
    kept: list[asyncio.Task[None]] = []
    asyncio.run(judge())
    judged["without a loop"] = failures.is_for_us(GeneratorExit(), kept[0])
    assert judged == {
        GeneratorExit: False,
        SystemExit: False,
        KeyboardInterrupt: True,
        "of another task": True,
        "without a loop": True,
    }


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"payload": "text"}, "payload must be bytes"),
        ({"payload": None}, "payload must be bytes"),
        ({"error": ValueError("x")}, "error must be a string"),
        ({"subject": 5}, "subject must be a string or None"),
        ({"args": {"n": 1}}, "args must be a mapping of strings to strings"),
        ({"args": {1: "n"}}, "args must be a mapping of strings to strings"),
        ({"args": [("k", "v")]}, "args must be a mapping of strings to strings"),
    ],
)
async def test_a_reply_with_a_wrong_field_is_an_error_of_the_call(
    memory: Net, fields: dict[str, Any], problem: str
) -> None:
    registry = services()

    @registry.call("wrong")
    @registry.upload("wrong")
    async def wrong(context: CallContext, *streams: object) -> Reply:
        return Reply(**fields)

    async with memory.pair(registry, call_timeout_s=2) as (_, client):
        for kind in (CallKind.RPC, CallKind.UPLOAD):
            with pytest.raises(RemoteCallError, match=f"a Reply whose {problem}"):
                await reply_of(client, kind, "wrong")
        await client.call("echo", b"")


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (Reply(payload=bytes(65 * MIB)), "the limit is"),
        (Reply(args={"long": "v" * 65 * MIB}), "the limit is"),
        (Reply(payload=released_view()), "has been released"),
    ],
    ids=["payload", "args", "view"],
)
async def test_an_answer_that_cannot_be_packed_is_an_error_and_no_leak(
    memory: Net, reply: Reply, text: str
) -> None:
    registry = services()

    @registry.call("unfit")
    async def unfit(context: CallContext) -> Reply:
        return reply

    async with memory.pair(registry, call_timeout_s=5, compression="none") as (
        server,
        client,
    ):
        with pytest.raises(RemoteCallError, match=text):
            await client.call("unfit", b"")
        (its_end,) = server._connections
        assert its_end._core.open_calls == 0
        assert not its_end.tasks()
        await client.call("echo", b"")
