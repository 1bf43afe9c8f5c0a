"""The client for programs without asyncio."""

import asyncio
import concurrent.futures
import weakref
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from rpc25519_tools.blocking.loop import (
    Loop,
    current_loop,
    post,
    run,
    start,
    this_loop,
)
from rpc25519_tools.blocking.streams import BlockingPushes, BlockingStream
from rpc25519_tools.config import Config, require_config
from rpc25519_tools.errors import ConnectionLostError
from rpc25519_tools.identity.certificate import PeerIdentity
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.rpc.client import Client, load_own_identity
from rpc25519_tools.rpc.client_stream import ClientStream
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS, Message

T = TypeVar("T")


class _Link:
    """The connection of one client in one process; used on its loop's thread only."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.client: Client | None = None
        self._closed = False
        self._turn = asyncio.Lock()
        self._connecting: asyncio.Task[Any] | None = None

    async def connect(
        self, config: Config, identity: LoadedIdentity | None, name: str
    ) -> Client:
        """Connect, unless somebody else has just done it."""
        async with self._turn:
            if self.client is None:
                self._require_open()
                self._connecting = asyncio.current_task()
                try:
                    self.client = await Client.connect(config, identity, name=name)
                except asyncio.CancelledError:
                    self._require_open()  # it may have been ``aclose``
                    raise
                finally:
                    self._connecting = None
                self.loop.clients.add(self.client)
            return self.client

    async def aclose(self) -> None:
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        client, self.client = self.client, None
        if client is not None:
            await client.aclose()
            self.loop.clients.discard(client)

    def _require_open(self) -> None:
        if self._closed:
            raise ConnectionLostError("this client is closed")


class BlockingClient:
    """A connection to a server, for any number of threads.

    Connects when it is made. As a context manager it is closed on leaving; it is closed
    as well when nothing refers to it any more, and at the program's end.

    A forked child never shares the connection: its first call makes one of its own,
    with the same keys. Streams, listeners and futures stay the parent's, and raise
    ConnectionLostError in the child. Do not fork in async handlers.

    A call that is interrupted, by Ctrl-C for instance, is cancelled, and so is its
    handler on the server. Async handlers cannot make blocking calls; they get
    RuntimeError.

    Args:
        config: where to and who we are.
        identity: our keys, where the caller has loaded them already.
        name: for the user's own bookkeeping.

    Raises:
        KeyFileError, ConnectFailedError, HandshakeError, DeadlineError: as
            ``Client.connect``, here and in a child's first call.
    """

    def __init__(
        self, config: Config, identity: LoadedIdentity | None = None, *, name: str = ""
    ) -> None:
        require_config(config)
        if identity is None and config.needs_identity:
            # Here, in the caller's thread: a pass phrase may be asked for, once.
            identity = load_own_identity(config)
        self._config = config
        self._identity = identity
        self.name = name
        self._closed = False
        self._link: _Link | None = None
        run(self._connected)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Send what is queued and close; waiting calls fail."""
        self._closed = True
        if current_loop() is not None:
            run(self._disconnect)

    async def _connected(self) -> Client:
        """Return our connection; make it if there is none in this process."""
        link, loop = self._link, this_loop()
        if self._closed:
            raise ConnectionLostError("this client is closed")
        if link is None or link.loop is not loop:
            link = self._link = _Link(loop)
            weakref.finalize(self, _abandon, link).atexit = False
        if link.client is not None:
            return link.client
        return await link.connect(self._config, self._identity, self.name)

    async def _disconnect(self) -> None:
        if self._link is not None and self._link.loop is this_loop():
            await self._link.aclose()

    def _run(self, use: Callable[[Client], Awaitable[T]]) -> T:
        async def step() -> T:
            return await use(await self._connected())

        return run(step)

    @property
    def is_down(self) -> bool:
        """Whether the connection is over, so that every call fails at once."""
        if self._closed:
            return True
        link = self._link
        if link is None or link.client is None or link.loop is not current_loop():
            return False
        return link.client.is_down

    @property
    def local_address(self) -> str:
        """Our end of the connection, such as ``127.0.0.1:50000``."""
        return run(self._connected).local_address

    @property
    def peer(self) -> PeerIdentity | None:
        """Who the server proved to be; None where nothing was proved."""
        return run(self._connected).peer

    def call(
        self,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        subject: str = "",
        timeout_s: float | None = None,
        call_id: str = "",
        compress: bool = True,
    ) -> Message:
        """Call a service and wait for its reply; see ``Client.call``."""
        return self._run(
            lambda client: client.call(
                service_name,
                payload,
                args=args,
                subject=subject,
                timeout_s=timeout_s,
                call_id=call_id,
                compress=compress,
            )
        )

    def new_call_id(self) -> str:
        """Return a fresh id for one ``call``; see ``Client.new_call_id``."""

        async def take(client: Client) -> str:
            return client.new_call_id()

        return self._run(take)

    def send_one_way(
        self,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        call_id: str = "",
        compress: bool = True,
    ) -> None:
        """Send a message that gets no answer; see ``Client.send_one_way``."""
        self._run(
            lambda client: client.send_one_way(
                service_name, payload, args=args, call_id=call_id, compress=compress
            )
        )

    def upload(
        self,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        timeout_s: float | None = None,
        compress: bool = True,
    ) -> BlockingStream:
        """Open an upload; see ``Client.upload``."""
        return self._open(
            lambda client: client.upload(
                service_name,
                payload,
                args=args,
                timeout_s=timeout_s,
                compress=compress,
            )
        )

    def download(
        self,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        timeout_s: float | None = None,
        compress: bool = True,
    ) -> BlockingStream:
        """Open a download; see ``Client.download``."""
        return self._open(
            lambda client: client.download(
                service_name,
                payload,
                args=args,
                timeout_s=timeout_s,
                compress=compress,
            )
        )

    def bistream(
        self,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        timeout_s: float | None = None,
        compress: bool = True,
    ) -> BlockingStream:
        """Open a bistream; see ``Client.bistream``."""
        return self._open(
            lambda client: client.bistream(
                service_name,
                payload,
                args=args,
                timeout_s=timeout_s,
                compress=compress,
            )
        )

    def _open(self, make: Callable[[Client], ClientStream]) -> BlockingStream:
        async def begin(client: Client) -> BlockingStream:
            stream = make(client)
            await stream.begin()
            return BlockingStream(self, stream)

        return self._run(begin)

    def listen(self, call_id: str | None = None) -> BlockingPushes:
        """Listen for messages that the server sends unasked; see ``Client.listen``."""

        async def begin(client: Client) -> BlockingPushes:
            return BlockingPushes(self, client.listen(call_id))

        return self._run(begin)

    def netrpc_call(
        self,
        service_method: str,
        argument: object,
        result_type: type[T],
        *,
        argument_type: Any = None,
        timeout_s: float | None = None,
    ) -> T:
        """Call a method of a registered object; see ``NetRpc.call``."""
        return self._run(
            lambda client: client.netrpc.call(
                service_method,
                argument,
                result_type,
                argument_type=argument_type,
                timeout_s=timeout_s,
            )
        )

    def netrpc_go(
        self,
        service_method: str,
        argument: object,
        result_type: type[T],
        *,
        argument_type: Any = None,
        timeout_s: float | None = None,
    ) -> concurrent.futures.Future[T]:
        """Start such a call; return the future of its result.

        Cancelling the future cancels the call.
        """

        async def step() -> T:
            client = await self._connected()
            return await client.netrpc.call(
                service_method,
                argument,
                result_type,
                argument_type=argument_type,
                timeout_s=timeout_s,
            )

        return start(step)


def _abandon(link: _Link) -> None:
    """Close the connection of a client that nothing refers to."""
    post(link.loop, lambda: link.loop.create_task(link.aclose()))
