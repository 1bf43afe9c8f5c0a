"""Which functions can be handlers."""

import functools
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rpc25519_tools.errors import (
    ConfigError,
)
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import (
    is_async,
)
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream
from tests.rpc.nets import Net
from tests.rpc.offers import echo, parts_of

pytestmark = pytest.mark.usefixtures("no_thread_stays_busy")
STREAMS = [CallKind.UPLOAD, CallKind.DOWNLOAD, CallKind.BISTREAM]
PART = bytes(1000)


def in_worker() -> bool:
    return threading.current_thread().name.startswith("handler")


class CallsAsync:
    async def __call__(self, context: CallContext) -> bytes:
        return b"async object"

    async def method(self, context: CallContext) -> bytes:
        return b"async method"

    @staticmethod
    async def static(context: CallContext) -> bytes:
        return b"async static"


class CallsPlain:
    def __call__(self, context: CallContext) -> bytes:
        assert in_worker()
        return b"plain object"

    def method(self, context: CallContext) -> bytes:
        assert in_worker()
        return b"plain method"

    @classmethod
    def of_class(cls, context: CallContext) -> bytes:
        assert in_worker()
        return b"plain class"


async def with_word(word: bytes, context: CallContext) -> bytes:
    return word


def plain_with_word(word: bytes, context: CallContext) -> bytes:
    assert in_worker()
    return word


def decorated(
    handler: Callable[[CallContext], Awaitable[bytes]],
) -> Callable[[CallContext], Awaitable[bytes]]:
    @functools.wraps(handler)
    async def wrapper(context: CallContext) -> bytes:
        return b"decorated " + await handler(context)

    return wrapper


@pytest.mark.parametrize(
    ("handler", "answer"),
    [
        (CallsAsync(), b"async object"),
        (CallsAsync().method, b"async method"),
        (CallsAsync.static, b"async static"),
        (functools.partial(with_word, b"async partial"), b"async partial"),
        (
            functools.partial(functools.partial(with_word), b"async partial"),
            b"async partial",
        ),
        (functools.partial(CallsAsync()), b"async object"),
        (decorated(CallsAsync()), b"decorated async object"),
        (CallsPlain(), b"plain object"),
        (CallsPlain().method, b"plain method"),
        (CallsPlain.of_class, b"plain class"),
        (functools.partial(plain_with_word, b"plain partial"), b"plain partial"),
        (lambda context: b"lambda", b"lambda"),
    ],
)
async def test_anything_callable_can_be_a_handler(
    memory: Net, handler: Any, answer: bytes
) -> None:
    registry = Registry()
    registry.add_call("any", handler)
    assert is_async(handler) == (b"async" in answer)
    async with memory.pair(registry) as (_, client):
        assert (await client.call("any", b"")).payload == answer


def nothing() -> None: ...


def one(context: CallContext) -> None: ...


def two(context: CallContext, stream: object) -> None: ...


def three(context: CallContext, parts: object, out: object) -> None: ...


def four(context: CallContext, parts: object, out: object, more: object) -> None: ...


def by_name(context: CallContext, *, stream: object) -> None: ...


async def async_two(context: CallContext, stream: object) -> None: ...


def optional(context: CallContext, parts: object = None, out: object = None) -> None:
    """Do for every kind."""


def any_number(*args: object) -> None: ...


@pytest.mark.parametrize(
    ("kind", "fitting"),
    [
        (CallKind.RPC, {one}),
        (CallKind.ONE_WAY, {one}),
        (CallKind.UPLOAD, {two, async_two}),
        (CallKind.DOWNLOAD, {two, async_two}),
        (CallKind.BISTREAM, {three}),
    ],
)
@pytest.mark.parametrize(
    "handler",
    [nothing, one, two, async_two, three, four, by_name, optional, any_number],
)
def test_a_wrong_signature_is_found_when_it_is_registered(
    kind: CallKind, fitting: set[Any], handler: Any
) -> None:
    registry = Registry()
    add, decorate = {
        CallKind.RPC: (registry.add_call, registry.call),
        CallKind.ONE_WAY: (registry.add_one_way, registry.one_way),
        CallKind.UPLOAD: (registry.add_upload, registry.upload),
        CallKind.DOWNLOAD: (registry.add_download, registry.download),
        CallKind.BISTREAM: (registry.add_bistream, registry.bistream),
    }[kind]
    add_any: Any = add
    decorate_any: Any = decorate
    if handler in fitting or handler in (optional, any_number):
        add_any("by call", handler)
        assert decorate_any("decorated")(handler) is handler
        assert registry.offers(kind, "by call")
        assert registry.offers(kind, "decorated")
        with pytest.raises(ConfigError, match="'decorated' is registered twice"):
            decorate_any("decorated")(handler)
        return
    with pytest.raises(ConfigError, match="the handler of 'name' must take"):
        add_any("name", handler)
    with pytest.raises(ConfigError, match="the handler of 'name' must take"):
        decorate_any("name")(handler)
    assert not registry.offers(kind, "name")


async def test_a_decorated_function_serves_and_stays_what_it_was(memory: Net) -> None:
    registry = Registry()

    @registry.call("greet")
    async def greet(context: CallContext) -> bytes:
        return b"hello, " + bytes(context.payload)

    @registry.upload("first")
    async def first(context: CallContext, parts: IncomingStream) -> bytes:
        return bytes((await anext(parts)).payload)

    @registry.download("send")
    async def send(context: CallContext, out: OutgoingStream) -> None:
        await out.send(b"part")
        await out.send(b"", last=True)

    @registry.bistream("answer")
    async def answer(
        context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> None:
        await out.send((await anext(parts)).payload)
        await out.send(b"", last=True)

    assert greet.__name__ == "greet"
    async with memory.pair(registry) as (_, client):
        assert (await client.call("greet", b"you")).payload == b"hello, you"
        async with client.upload("first", b"p") as upload:
            assert (await upload.reply()).payload == b"p"
        async with client.download("send") as download:
            assert await parts_of(download) == [b"part", b""]
        async with client.bistream("answer", b"back") as both:
            assert await parts_of(both) == [b"back", b""]


async def test_a_service_can_be_added_while_the_server_runs(memory: Net) -> None:
    registry = Registry()
    async with memory.pair(registry) as (_, client):
        registry.add_call("late", echo)
        assert (await client.call("late", b"in time")).payload == b"in time"
