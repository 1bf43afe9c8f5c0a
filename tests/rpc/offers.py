"""Services that tests of calls offer, and what asks them."""

import asyncio

from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.client_stream import ClientStream
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream
from rpc25519_tools.wire.message import Message


class Waiting:
    """A handler that waits to be told, and notes what happens to it."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.go = asyncio.Event()

    async def __call__(self, context: CallContext, *streams: object) -> Reply:
        self.started += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Reply(payload=b"done")


async def echo(context: CallContext) -> Reply:
    return Reply(payload=context.payload, args=context.header.args)


async def collect(context: CallContext, parts: IncomingStream) -> Reply:
    digest = [(part.number, bytes(part.payload), part.last) async for part in parts]
    return Reply(payload=repr(digest).encode())


async def count_down(context: CallContext, out: OutgoingStream) -> Reply:
    count = int(bytes(context.payload) or b"3")
    for number in range(count):
        await out.send(b"part %d" % number, args={"n": str(number)})
    await out.send(b"", last=True)
    return Reply(payload=b"that was all")


async def mirror(
    context: CallContext, parts: IncomingStream, out: OutgoingStream
) -> Reply:
    async for part in parts:
        await out.send(part.payload, args=part.args, last=part.last)
    return Reply()


def services() -> Registry:
    registry = Registry()
    registry.add_call("echo", echo)
    registry.add_upload("collect", collect)
    registry.add_download("count", count_down)
    registry.add_bistream("mirror", mirror)
    return registry


async def reply_of(client: Client, kind: CallKind, name: str) -> Message:
    if kind is CallKind.RPC:
        return await client.call(name, b"")
    async with await client.stream(kind, name) as stream:
        return await stream.reply()


async def parts_of(stream: ClientStream) -> list[bytes]:
    return [bytes(part.payload) async for part in stream]


def released_view() -> memoryview:
    """Return a buffer of which nothing can be sent any more."""
    view = memoryview(b"gone")
    view.release()
    return view
