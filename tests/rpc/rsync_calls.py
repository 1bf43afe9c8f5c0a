"""Rsync calls for tests: which steps go which way, and a handler that waits."""

import asyncio
from typing import Any

from rpc25519_tools.errors import Rpc25519Error
from rpc25519_tools.rpc.calls import CallKind, RsyncStep
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream, Part
from rpc25519_tools.wire.message import CallType, Header, Message

KINDS = [CallKind.RSYNC_READ, CallKind.RSYNC_SEND]
FIRST = {
    CallKind.RSYNC_READ: RsyncStep.REQUEST,
    CallKind.RSYNC_SEND: RsyncStep.OVERVIEW,
}
SENDER = (RsyncStep.OVERVIEW, RsyncStep.DELTAS)
RECEIVER = (RsyncStep.HASHES, RsyncStep.ACK)
UP = {CallKind.RSYNC_READ: RECEIVER, CallKind.RSYNC_SEND: SENDER}
DOWN = {CallKind.RSYNC_READ: SENDER, CallKind.RSYNC_SEND: RECEIVER}
Seen = list[tuple[int, RsyncStep | None, bytes]]


def seen(parts: list[Part]) -> Seen:
    return [(part.number, part.step, bytes(part.payload)) for part in parts]


def opening(kind: CallKind, name: str = "sync", **more: Any) -> Message:
    header = Header(call_type=kind.value, call_id="rs", service_name=name, **more)
    return Message(header=header, payload=b"0")


def later(call_type: int, number: int) -> Message:
    header = Header(call_type=call_type, call_id="rs", stream_part=number)
    return Message(header=header, payload=b"%d" % number)


def type_of(step: RsyncStep) -> CallType:
    return CallType[f"RSYNC_STEP{int(step)}"]


class Draining:
    """A handler that waits; what it finds when that ends: parts, and an error."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.parts: IncomingStream | None = None
        self.found: Seen | None = None
        self.error: Exception | None = None

    @property
    def unread(self) -> int:
        return 0 if self.parts is None else len(self.parts._parts)

    async def __call__(
        self, context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> bytes:
        self.parts = parts
        try:
            await self.go.wait()
            return b"done"
        finally:
            found = seen(parts.take_ready())
            try:
                await anext(parts)
            except Rpc25519Error as exc:
                self.error = exc
            self.found = found


def held_by(server: Server) -> list[tuple[int, int]]:
    """Return what each connection counts as held."""
    return [(one._held_len, one.driver._held_len) for one in server._connections]
