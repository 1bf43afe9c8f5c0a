"""A proxy that breaks its connections after so many bytes, and counts what passes."""

import asyncio
import socket
from collections.abc import Sequence

from rpc25519_tools.config import parse_address
from tests.commands.hostile import Background

_CHUNK_LEN = 32 * 1024


class Cutter(Background):
    """A TCP proxy; one connection after the other is reset in mid transfer.

    Args:
        target: where it connects to for each client.
        way: whether it looks at the bytes of the client, ``up``, or ``down`` to it.
        limits: how many of them pass before each cut; then none is cut.
        stalls: whether it lets no more pass then, instead of a cut.

    Attributes:
        address: where it listens, once entered.
        target: where it connects to; may be changed.
        up_bytes, down_bytes: how many bytes have passed.
        connections: how many clients have come.
    """

    address: str

    def __init__(
        self,
        target: str,
        way: str = "down",
        limits: Sequence[int] = (),
        *,
        stalls: bool = False,
    ) -> None:
        super().__init__()
        self.target = target
        self._limits = {"up": list[int](), "down": list[int]()}
        self._limits[way] += limits
        self._stalls = stalls
        self.up_bytes = self.down_bytes = 0
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def _start(self) -> None:
        listening = socket.socket()
        # Small buffers: what waits in them when a connection is cut is lost.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        listening.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(
            self._connected, sock=listening, limit=_CHUNK_LEN
        )
        self.address = f"127.0.0.1:{listening.getsockname()[1]}"

    async def _stop(self) -> None:
        self._server.close()
        await super()._stop()

    def cut(self) -> None:
        """Break all connections."""

        def cancel() -> None:
            for task in self._tasks:
                task.cancel()

        self._loop.call_soon_threadsafe(cancel)

    def _connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        self._tasks.add(self._loop.create_task(self._pass(reader, writer)))

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        far = socket.socket()
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            far.setsockopt(socket.SOL_SOCKET, option, 64 * 1024)
        far.setblocking(False)
        address = parse_address(self.target)
        far_writer: asyncio.StreamWriter | None = None
        try:
            await self._loop.sock_connect(far, (address.host, address.port))
            far_reader, far_writer = await asyncio.open_connection(
                sock=far, limit=_CHUNK_LEN
            )
            limits = [rest.pop(0) if rest else None for rest in self._limits.values()]
            pumps = [
                asyncio.ensure_future(self._pump("up", reader, far_writer, limits[0])),
                asyncio.ensure_future(
                    self._pump("down", far_reader, writer, limits[1])
                ),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.wait(pumps)
            for pump in pumps:
                pump.cancelled() or pump.exception()
        except OSError:
            far.close()
        finally:
            for one in (writer, far_writer):
                if one is not None:
                    one.transport.abort()

    async def _pump(
        self,
        way: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        limit: int | None,
    ) -> None:
        passed = 0
        while data := await reader.read(_CHUNK_LEN):
            if limit is not None and passed + len(data) > limit:
                if self._stalls:
                    await asyncio.Event().wait()
                return
            passed += len(data)
            writer.write(data)
            if way == "up":
                self.up_bytes += len(data)
            else:
                self.down_bytes += len(data)
            await writer.drain()
