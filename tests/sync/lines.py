"""A line between a client and a server that is cut, and on which bytes are counted."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self

from rpc25519_tools.config import parse_address

#: What happens when so many bytes have passed.
Event = tuple[int, Callable[[], Awaitable[None]]]

_BLOCK_LEN = 64 * 1024
_HOW_TO_RESET = struct.pack("ii", 1, 0)


class Line:
    """Passes connections on to a server, byte by byte, and counts both directions.

    Args:
        target: the server's address, ``HOST:PORT``.
        buffer_len: what the kernel may hold of each direction at each end; a fast line
            over a short way holds little. 0: as much as it likes.
        source: the address that the server sees.

    Attributes:
        address: where it listens, once entered.
        count: bytes that have passed, both ways together.
        connections: how many there were.
        events: what happens when so many bytes have passed, the first one first.
    """

    def __init__(
        self, target: str, *, buffer_len: int = 0, source: str = "127.0.0.1"
    ) -> None:
        self.target = target
        self.source = source
        self.address = ""
        self.count = 0
        self.connections = 0
        self.events: list[Event] = []
        self._buffer_len = buffer_len
        self._open: dict[asyncio.Task[None], tuple[socket.socket, ...]] = {}
        self._silent = False
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._listener = self._socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        host, port = self._listener.getsockname()
        self.address = f"{host}:{port}"
        self._accepting = asyncio.ensure_future(self._accept())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._accepting is not None
        assert self._listener is not None
        tasks = [self._accepting, *self._open]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    def at(self, counts: Sequence[int], action: Callable[[], Awaitable[None]]) -> None:
        """Do something when so many bytes more than now have passed, each time."""
        self.events += [(self.count + count, action) for count in counts]
        self.events.sort(key=lambda event: event[0])

    async def cut(self) -> None:
        """Reset all connections, at both ends."""
        for task in list(self._open):
            task.cancel()

    async def go_silent(self) -> None:
        """Reset what the clients have; the server is never told."""
        self._silent = True
        await self.cut()
        self._silent = False

    # How it works.

    def _socket(self) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setblocking(False)
        if self._buffer_len:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer_len)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_len)
        return made

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._listener is not None
        while True:
            near, _ = await loop.sock_accept(self._listener)
            self.connections += 1
            far = self._socket()
            task = asyncio.ensure_future(self._serve(near, far))
            self._open[task] = (near, far)

    async def _serve(self, near: socket.socket, far: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        silent = False
        try:
            far.bind((self.source, 0))
            address = parse_address(self.target)
            await loop.sock_connect(far, (address.host, address.port))
            ways = [self._pump(near, far), self._pump(far, near)]
            pumps = [asyncio.ensure_future(way) for way in ways]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                silent = self._silent
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # the server is not there
        finally:
            task = asyncio.current_task()
            assert task is not None
            del self._open[task]
            _reset(near)
            if silent:
                loop.call_later(3600, far.close)
            else:
                _reset(far)

    async def _pump(self, source: socket.socket, target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(source, _BLOCK_LEN):
                await loop.sock_sendall(target, data)
                self.count += len(data)
                while self.events and self.count >= self.events[0][0]:
                    _, action = self.events.pop(0)
                    # Not in this task: the action may end it.
                    doing = asyncio.ensure_future(action())
                    await asyncio.shield(doing)


def _reset(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _HOW_TO_RESET)
    sock.close()
