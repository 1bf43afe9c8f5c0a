"""An attacker that is let in and sends the smallest messages, as fast as it can."""

import asyncio
from collections import deque
from typing import Final

from rpc25519_tools.config import parse_address
from rpc25519_tools.files.echo import ECHO_CALL_SERVICE
from rpc25519_tools.rpc.tunnels import load_tunnel
from rpc25519_tools.transport.base import Receiver, TlsSettings, Transport
from rpc25519_tools.transport.endpoint import connect
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.attacks.floods import Tunnelled, Who, frame_of

#: What a server has to do with a tiny message: name -> its type and its service.
KINDS: Final = {
    "empty": (CallType.NONE, ""),
    "keep-alive": (CallType.KEEP_ALIVE, ""),
    "one-way to nobody": (CallType.ONE_WAY, "nobody"),
    "call to nobody": (CallType.RPC, "nobody"),
    "reply to no call": (CallType.RPC_REPLY, ""),
    "error of no call": (CallType.ERROR, ""),
    "cancel of no call": (CallType.CANCEL_PREVIOUS, ""),
    "part of no upload": (CallType.UPLOAD_MORE, ""),
    "part of no download": (CallType.DOWNLOAD_END, ""),
}
#: Messages in one write.
BATCH: Final = 500
#: Messages of a kind that differ; then they come again.
DIFFERENT: Final = 10_000
#: Writes that the server has not shown to have taken.
_AHEAD: Final = 2
_MARK: Final = b"<taken so far: %d>"


def _message(kind: str, number: int) -> Message:
    call_type, service = KINDS[kind]
    call_id = "" if call_type is CallType.NONE else f"{number}"
    header = Header(call_type=call_type, call_id=call_id, service_name=service)
    return Message(header=header)


def _pieces_of(kind: str) -> list[bytes]:
    """Return DIFFERENT messages of a kind, packed, BATCH of them in each piece."""
    return [
        b"".join(frame_of(_message(kind, first + n)) for n in range(BATCH))
        for first in range(0, DIFFERENT, BATCH)
    ]


class _Marks:
    """A Receiver that drops all that comes but the answers to its own calls."""

    def __init__(self) -> None:
        self.awaited: deque[tuple[bytes, asyncio.Future[None]]] = deque()
        self._memory = bytearray(64 * 1024)
        self._tail = b""

    def get_buffer(self) -> memoryview:
        return memoryview(self._memory)

    def buffer_updated(self, count: int) -> None:
        data = self._tail + self._memory[:count]
        while self.awaited and self.awaited[0][0] in data:
            _, seen = self.awaited.popleft()
            seen.set_result(None)
        self._tail = data[-2 * len(_MARK) :]

    def arriving(self, count: int, held_len: int) -> None:
        pass

    def writable(self) -> None:
        pass

    def connection_lost(self, error: Exception | None) -> None:
        for _, seen in self.awaited:
            seen.set_exception(error or ConnectionError("the server hung up"))


async def _connect(address: str, who: Who, receiver: Receiver) -> Transport:
    def accept(transport: Transport) -> Receiver:
        return receiver

    tls, tunnel = who, None
    if isinstance(who, Tunnelled):
        tls = who.identity if who.over_tls else None
        tunnel = await load_tunnel(str(who.psk_path), who.identity)
    assert not isinstance(tls, Tunnelled)
    return await connect(
        parse_address(address),
        tls=TlsSettings(identity=tls) if tls else None,
        accept=accept,
        timeout_s=20,
        tunnel=tunnel,
    )


async def flood(address: str, who: Who, kind: str, count: int) -> int:
    """Send at least so many messages of a kind; return how many the server has taken.

    Each piece ends with an echo call, whose answer shows that all before it was taken.
    """
    marks, pieces, sent = _Marks(), _pieces_of(kind), 0
    transport = await _connect(address, who, marks)
    loop = asyncio.get_running_loop()
    header = Header(call_type=CallType.RPC, service_name=ECHO_CALL_SERVICE)
    try:
        while sent < count:
            if len(marks.awaited) >= _AHEAD:
                await marks.awaited[0][1]
            piece = pieces[sent // BATCH % len(pieces)]
            sent += BATCH
            mark = _MARK % sent
            marks.awaited.append((mark, loop.create_future()))
            transport.write([piece, frame_of(Message(header=header, payload=mark))])
        while marks.awaited:
            await marks.awaited[0][1]
    finally:
        transport.abort()
    return sent
