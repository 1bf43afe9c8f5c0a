"""A bad network between real programs: a proxy for UDP, in a thread of its own."""

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

Endpoint = tuple[Any, ...]
_BUFFER_LEN = 4 << 20
#: Who has moved more than this has done its handshake.
_HANDSHAKE_LEN = 32 * 1024


@dataclass(frozen=True)
class Faults:
    """What happens to datagrams, in both directions.

    Attributes:
        loss, duplication, reordering: chances from 0 to 1.
        delay_s: how long each takes; a reordered one takes ``late_s`` more.
        late_s: see there.
        mtu: longer datagrams get lost.
    """

    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    delay_s: float = 0.0
    late_s: float = 0.01
    mtu: int = 65535


class UdpProxy:
    """Forwards datagrams of any number of clients to one server.

    Args:
        server: the server's host and port.
        faults: what to do to the datagrams at first.
        seed: of the dice.
    """

    def __init__(self, server: Endpoint, faults: Faults, *, seed: int = 1) -> None:
        self.faults = faults
        self.address = ""
        #: Datagrams that went through, in both directions, and their bytes; the longest
        #: one; those lost.
        self.passed = self.bytes = self.longest = self.lost = 0
        #: How often it has rebound.
        self.rebound = 0
        self._plans: list[tuple[int, Callable[[], None]]] = []
        self._server = server
        self._dice = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()
        self._front: asyncio.DatagramTransport | None = None
        self._backs: dict[Endpoint, asyncio.DatagramTransport] = {}
        self._moved: dict[Endpoint, int] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._call(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def change(self, **faults: Any) -> None:
        """Do something else from now on."""
        self.faults = replace(self.faults, **faults)

    def rebind(self) -> None:
        """Let all clients come from other ports from now on, as a router may."""
        self._call(self._rebind)

    def rebind_at(self, count: int) -> None:
        """Rebind when so many bytes have gone through.

        Those in their handshake stay: a server follows nobody before that is done.
        """
        self._plans.append((count, lambda: self._rebind(_HANDSHAKE_LEN)))

    def change_at(self, count: int, **faults: Any) -> None:
        """Do something else when so many bytes have gone through."""
        self._plans.append((count, lambda: self.change(**faults)))

    def black_out_at(self, count: int, for_s: float) -> None:
        """Lose everything for a while when so many bytes have gone through."""

        def begin() -> None:
            before = self.faults.loss
            self.change(loss=1.0)
            self._loop.call_later(for_s, lambda: self.change(loss=before))

        self._plans.append((count, begin))

    @property
    def is_as_planned(self) -> bool:
        """Whether all that was planned has begun."""
        return not self._plans

    # In the thread.

    def _rebind(self, least_len: int = 0) -> None:
        for client, count in self._moved.items():
            back = self._backs.get(client)
            if back is not None and count > least_len:
                back.close()
                del self._backs[client]
        self.rebound += 1

    def _call(self, step: Callable[[], None]) -> None:
        done = threading.Event()

        def run() -> None:
            step()
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._open())
        self._loop.run_forever()

    async def _open(self) -> None:
        self._front, _ = await self._loop.create_datagram_endpoint(
            lambda: _End(self._from_client), local_addr=("127.0.0.1", 0)
        )
        _widen(self._front)
        host, port = self._front.get_extra_info("sockname")[:2]
        self.address = f"{host}:{port}"
        self._ready.set()

    def _close(self) -> None:
        self._forget_backs()
        assert self._front is not None
        self._front.close()

    def _forget_backs(self) -> None:
        for back in self._backs.values():
            back.close()
        self._backs.clear()

    def _from_client(self, data: bytes, client: Endpoint) -> None:
        back = self._backs.get(client)
        if back is not None:
            self._forward(client, data, lambda: _send(back, data, None))
            return
        self._opening = self._loop.create_task(self._open_back(client, data))

    async def _open_back(self, client: Endpoint, data: bytes) -> None:
        def from_server(answer: bytes, _: Endpoint) -> None:
            self._forward(client, answer, lambda: _send(self._front, answer, client))

        back, _ = await self._loop.create_datagram_endpoint(
            lambda: _End(from_server), remote_addr=self._server
        )
        _widen(back)
        if client in self._backs:
            back.close()
        else:
            self._backs[client] = back
        self._from_client(data, client)

    def _forward(self, client: Endpoint, data: bytes, send: Callable[[], None]) -> None:
        faults, dice = self.faults, self._dice
        if len(data) > faults.mtu or dice.random() < faults.loss:
            self.lost += 1
            return
        self.passed += 1
        self.bytes += len(data)
        self._moved[client] = self._moved.get(client, 0) + len(data)
        while self._plans and self.bytes >= self._plans[0][0]:
            self._plans.pop(0)[1]()
        self.longest = max(self.longest, len(data))
        for _ in range(1 + (dice.random() < faults.duplication)):
            delay_s = faults.delay_s
            if dice.random() < faults.reordering:
                delay_s += faults.late_s
            if delay_s:
                self._loop.call_later(delay_s, send)
            else:
                send()


def _send(
    transport: asyncio.DatagramTransport | None, data: bytes, target: Endpoint | None
) -> None:
    if transport is not None and not transport.is_closing():
        with contextlib.suppress(OSError):
            transport.sendto(data, target)


def _widen(transport: asyncio.DatagramTransport) -> None:
    """Ask for more memory than a system gives by itself."""
    import socket

    sock = transport.get_extra_info("socket")
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_LEN)


class _End(asyncio.DatagramProtocol):
    def __init__(self, taken: Callable[[bytes, Endpoint], None]) -> None:
        self._taken = taken

    def datagram_received(self, data: bytes, addr: Endpoint) -> None:
        self._taken(data, addr)

    def error_received(self, exc: Exception) -> None:
        """A port that is gone; the datagram is lost."""
