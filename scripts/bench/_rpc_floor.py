"""The steps that no call over TLS on an event loop can do without, and nothing else.

The product's own transports carry the payload there and back. There are no frames, no
messages, no tasks and no handlers: the figures bound what the product can reach on the
same machine with the same libraries.
"""

import asyncio
from collections import deque
from pathlib import Path

from _rpc_peers import Latencies, Step, pump

from rpc25519_tools.config import parse_address
from rpc25519_tools.identity.store import load_identity
from rpc25519_tools.transport.base import TlsSettings, Transport
from rpc25519_tools.transport.endpoint import connect, listen

#: A call's payload is sent on as soon as so much of it is there, as a file's part is.
_PIECE_LEN = 1 << 20


class _Bare:
    """What both ends share: memory to receive into."""

    def __init__(self) -> None:
        self.transport: Transport
        self._memory = memoryview(bytearray(_PIECE_LEN))

    def opened(self, transport: Transport) -> "_Bare":
        self.transport = transport
        return self

    def get_buffer(self) -> memoryview:
        return self._memory

    def buffer_updated(self, count: int) -> None:
        """Take what came."""

    def arriving(self, count: int, held_len: int) -> None:
        """No transport here holds anything back."""

    def writable(self) -> None:
        """Nothing waits for room: what is in flight is bounded."""

    def connection_lost(self, error: Exception | None) -> None:
        """The process ends with it."""


class _Echo(_Bare):
    """Sends back what comes."""

    def buffer_updated(self, count: int) -> None:
        self.transport.write([bytes(self._memory[:count])])


class _Caller(_Bare):
    """Waits until as much has come back as was sent."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._sent_len = self._received_len = 0

    def buffer_updated(self, count: int) -> None:
        self._received_len += count
        while self._waiting and self._waiting[0][0] <= self._received_len:
            self._waiting.popleft()[1].set_result(None)

    async def call(self, payload: bytes) -> None:
        self._sent_len += len(payload)
        back = asyncio.get_running_loop().create_future()
        self._waiting.append((self._sent_len, back))
        self.transport.write([payload])
        await back


def _settings(directory: Path, key: str) -> TlsSettings:
    return TlsSettings(identity=load_identity(directory / "certs", key, None))


def serve(directory: Path) -> None:
    """Serve until killed; print the port."""

    async def run() -> None:
        listener = await listen(
            parse_address("127.0.0.1:0"),
            tls=_settings(directory, "node"),
            accept=lambda transport: _Echo().opened(transport),
            failed=lambda error, _: print(error),
        )
        print(listener.address.rpartition(":")[2], flush=True)
        await asyncio.Event().wait()

    asyncio.run(run())


def call(
    directory: Path,
    port: int,
    payload: bytes,
    in_flight: int,
    connections: int,
    seconds: float,
) -> Latencies:
    """Send payloads there and back."""

    async def run() -> Latencies:
        steps: list[Step] = []
        callers = [_Caller() for _ in range(connections)]

        def step_of(caller: _Caller) -> Step:
            return lambda: caller.call(payload)

        for caller in callers:
            await connect(
                parse_address(f"127.0.0.1:{port}"),
                tls=_settings(directory, "client"),
                accept=caller.opened,
                timeout_s=10,
            )
            steps.append(step_of(caller))
        try:
            return await pump(steps, in_flight, seconds)
        finally:
            for caller in callers:
                caller.transport.abort()

    return asyncio.run(run())
