"""A user's program for the type checker; it runs as well.

It is written as a user would write it, and checked on its own against the installed
package. What is wrong on purpose is marked: an unused mark is an error, too.
"""

import asyncio
import sys
from dataclasses import dataclass
from typing import assert_type

from rpc25519_tools import (
    CallContext,
    Client,
    Config,
    Header,
    IncomingStream,
    Message,
    OutgoingStream,
    Part,
    PersistentClient,
    PlainIncoming,
    PlainOutgoing,
    Registry,
    Reply,
    Server,
    parse_address,
    without_deadline,
)
from rpc25519_tools.blocking import BlockingClient, BlockingServer
from rpc25519_tools.errors import RemoteCallError
from rpc25519_tools.greenpack import Int64, decode, encode, zid


@dataclass
class Point:
    x: Int64 = zid(0, 0)
    name: str = zid(1, "")


class Geometry:
    def mirrored(self, point: Point) -> Point:
        return Point(-point.x, point.name)

    async def doubled(self, context: CallContext | None, point: Point) -> Point:
        return Point(2 * point.x, point.name)


services = Registry()
services.register(Geometry())


@services.call("echo")
async def echo(context: CallContext) -> Reply:
    assert_type(context.header, Header)
    with without_deadline():
        await asyncio.sleep(0)
    return Reply(payload=context.payload, args={"by": context.remote_address})


@services.call("plain")
def plain(context: CallContext) -> bytes:
    return bytes(context.payload)


@services.call("fail")
def fail(context: CallContext) -> Reply:
    return Reply(error="never")


@services.one_way("note")
async def note(context: CallContext) -> None:
    pass


@services.upload("collect")
async def collect(context: CallContext, parts: IncomingStream) -> bytes:
    return b"".join([bytes(part.payload) async for part in parts])


@services.download("count")
async def count(context: CallContext, out: OutgoingStream) -> None:
    await out.send(b"one")
    await out.send(b"two", last=True)


@services.bistream("mirror")
def mirror(context: CallContext, parts: PlainIncoming, out: PlainOutgoing) -> None:
    for part in parts:
        out.send(part.payload, last=part.last)


async def use(client: Client) -> None:
    reply = await client.call("echo", b"hello", args={"k": "v"}, timeout_s=5)
    assert_type(reply, Message)
    assert bytes(reply.payload) == b"hello"
    assert bytes((await client.call("plain", b"x")).payload) == b"x"
    await client.send_one_way("note", memoryview(b"x"))
    async with client.upload("collect", b"a", compress=False) as up:
        await up.send(b"b", last=True)
        assert bytes((await up.reply()).payload) == b"ab"
    async with client.download("count") as down:
        parts = [part async for part in down]
        assert_type(parts, list[Part])
    async with client.bistream("mirror", b"a") as both:
        await both.send(b"b", last=True)
        assert [bytes(part.payload) async for part in both] == [b"a", b"b"]
    point = await client.netrpc.call("Geometry.mirrored", Point(1), Point)
    assert_type(point, Point)
    assert point == Point(-1)
    carried: bytes | None = None
    try:
        await client.call("fail")
    except RemoteCallError as error:
        carried = bytes(error.reply_payload)
    assert carried == b""


async def use_persistent(config: Config) -> None:
    async with PersistentClient(config) as client:
        assert bytes((await client.call("plain", b"x")).payload) == b"x"
        point = await client.netrpc_call("Geometry.doubled", Point(2), Point)
        assert_type(point, Point)
        assert point.x == 4


def use_blocking(config: Config) -> None:
    with BlockingServer(config, services) as server:
        address = parse_address(server.address)
        with BlockingClient(Config(address=address, network="tcp")) as client:
            reply = client.call("echo", b"x", call_id=client.new_call_id())
            assert_type(reply, Message)
            with client.download("count") as down:
                assert [bytes(part.payload) for part in down] == [b"one", b"two"]


async def mistakes(client: Client, config: Config) -> None:
    await client.call("echo", "text")  # type: ignore[arg-type]
    await client.call("echo", args={"k": 1})  # type: ignore[dict-item]
    await client.call("echo", timeout_s="5")  # type: ignore[arg-type]
    Config(address="127.0.0.1:1")  # type: ignore[arg-type]
    Config(address=config.address, network="udp")  # type: ignore[arg-type]
    Server(config, None)  # type: ignore[arg-type]
    Reply(payload=5)  # type: ignore[arg-type]
    services.call(echo)  # type: ignore[arg-type]
    point = await client.netrpc.call("Geometry.mirrored", Point(1), Point)
    point.y  # type: ignore[attr-defined]  # noqa: B018


async def main() -> None:
    config = Config(address=parse_address("127.0.0.1:0"), network="tcp")
    point = decode(Point, encode(Point(5, "five")))
    assert_type(point, Point)
    async with Server(config, services) as server:
        there = Config(address=parse_address(server.address), network="tcp")
        async with await Client.connect(there) as client:
            await use(client)
        await use_persistent(there)
    await asyncio.to_thread(use_blocking, config)
    sys.stdout.write("all is well\n")


if __name__ == "__main__":
    asyncio.run(main())
