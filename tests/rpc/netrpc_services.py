"""What tests of net/rpc call: the services that Go's own examples have, and more."""

import asyncio
import dataclasses
from dataclasses import dataclass
from datetime import datetime

from rpc25519_tools.errors import HandlerError
from rpc25519_tools.greenpack import Int64, array_record, zid
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.registry import Registry


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
