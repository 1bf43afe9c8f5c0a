"""The client for programs without asyncio."""

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from rpc25519_tools.blocking.loop import drop_socket, process_loop, run, watch_forks
from rpc25519_tools.config import Config
from rpc25519_tools.errors import ConnectionLostError
from rpc25519_tools.identity.certificate import PeerIdentity
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.client_stream import ClientStream
from rpc25519_tools.rpc.pushes import PushListener
from rpc25519_tools.rpc.streams import NO_ARGS, Part
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import Message

T = TypeVar("T")


class BlockingClient:
    """A connection to a server, for any number of threads.

    Connects when it is made; as a context manager it is closed on leaving. In a forked
    child, the first call makes a connection of the child's own; calls and streams that
    were open in the parent stay the parent's.

    Args:
        config: where to and who we are.
        identity: our keys, where the caller has loaded them already.
        name: for the user's own bookkeeping.

    Raises:
        KeyFileError, ConnectFailedError, HandshakeError, DeadlineError: as
            ``Client.connect``.
    """

    def __init__(
        self, config: Config, identity: LoadedIdentity | None = None, *, name: str = ""
    ) -> None:
        self._config = config
        self._identity = identity
        self.name = name
        self._closed = False
        self._lock = threading.Lock()
        self._client: Client | None = None
        #: Clients of parents, kept from being collected in a child.
        self._inherited: list[Client] = []
        self._client = self._connected()
        watch_forks(self)

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
        with self._lock:
            self._closed = True
            client, self._client = self._client, None
        if client is not None:
            run(client.aclose())

    def after_fork_in_child(self) -> None:
        """Let go of the parent's connection."""
        self._lock = threading.Lock()
        if self._client is not None:
            drop_socket(self._client.transport.fileno())
            self._inherited.append(self._client)
            self._client = None

    def _connected(self) -> Client:
        with self._lock:
            if self._closed:
                raise ConnectionLostError("this client is closed")
            if self._client is None:
                self._client = run(
                    Client.connect(self._config, self._identity, name=self.name)
                )
            return self._client

    @property
    def is_down(self) -> bool:
        """Whether the connection is over, so that every call fails at once."""
        return self._closed or (self._client is not None and self._client.is_down)

    @property
    def local_address(self) -> str:
        """Our end of the connection, such as ``127.0.0.1:50000``."""
        return self._connected().local_address

    @property
    def peer(self) -> PeerIdentity | None:
        """Who the server proved to be; None where nothing was proved."""
        return self._connected().peer

    def call(
        self,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        subject: str = "",
        timeout_s: float | None = None,
        compress: bool = True,
    ) -> Message:
        """Call a service and wait for its reply; see ``Client.call``."""
        return run(
            self._connected().call(
                service_name,
                payload,
                args=args,
                subject=subject,
                timeout_s=timeout_s,
                compress=compress,
            )
        )

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
        run(
            self._connected().send_one_way(
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
    ) -> "BlockingStream":
        """Open an upload; see ``Client.upload``."""
        client = self._connected()
        return BlockingStream(
            lambda: client.upload(service_name, payload, args=args, timeout_s=timeout_s)
        )

    def download(
        self,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        timeout_s: float | None = None,
    ) -> "BlockingStream":
        """Open a download; see ``Client.download``."""
        client = self._connected()
        return BlockingStream(
            lambda: client.download(
                service_name, payload, args=args, timeout_s=timeout_s
            )
        )

    def bistream(
        self,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        timeout_s: float | None = None,
    ) -> "BlockingStream":
        """Open a bistream; see ``Client.bistream``."""
        client = self._connected()
        return BlockingStream(
            lambda: client.bistream(
                service_name, payload, args=args, timeout_s=timeout_s
            )
        )

    def listen(self, call_id: str | None = None) -> "BlockingPushes":
        """Listen for messages that the server sends unasked; see ``Client.listen``."""
        client = self._connected()

        async def listen() -> PushListener:
            return client.listen(call_id)

        return BlockingPushes(run(listen()))

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
        return run(
            self._connected().netrpc.call(
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
        """Start such a call; return the future of its result."""
        step = self._connected().netrpc.call(
            service_method,
            argument,
            result_type,
            argument_type=argument_type,
            timeout_s=timeout_s,
        )
        return asyncio.run_coroutine_threadsafe(step, process_loop())


class BlockingStream:
    """An open upload, download or bistream, for one thread at a time.

    As a context manager it cancels the call on leaving, unless its reply has come.
    Iterate over it for the parts that come down.
    """

    def __init__(self, make: Any) -> None:
        async def begin() -> ClientStream:
            stream: ClientStream = make()
            await stream.begin()
            return stream

        self._stream = run(begin())
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[Part]:
        incoming = aiter(self._stream)

        async def step() -> Part | None:
            return await anext(incoming, None)

        self._require_own()
        while (part := run(step())) is not None:
            yield part

    def send(
        self,
        payload: Buffer,
        *,
        args: Mapping[str, str] = NO_ARGS,
        last: bool = False,
        compress: bool = True,
    ) -> None:
        """Send the next part; see ``ClientStream.send``."""
        self._require_own()
        run(self._stream.send(payload, args=args, last=last, compress=compress))

    def reply(self) -> Message:
        """Wait for the reply; see ``ClientStream.reply``."""
        self._require_own()
        return run(self._stream.reply())

    def cancel(self) -> None:
        """Give the call up; the server is told. Does nothing when it is over."""
        if self._pid == os.getpid():
            run(self._cancel())

    async def _cancel(self) -> None:
        self._stream.cancel()

    def _require_own(self) -> None:
        if self._pid != os.getpid():
            raise ConnectionLostError("this stream belongs to the parent process")


class BlockingPushes:
    """An iterator over pushed messages; see ``PushListener``."""

    def __init__(self, listener: PushListener) -> None:
        self._listener = listener
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Message]:
        while (message := self.next()) is not None:
            yield message

    def next(self, timeout_s: float | None = None) -> Message | None:
        """Return the next message, or None when the listener was closed.

        Raises:
            TimeoutError: none came within ``timeout_s``.
            ConnectionLostError, SecurityError: the connection is over.
        """
        if self._pid != os.getpid():
            raise ConnectionLostError("this listener belongs to the parent process")

        async def step() -> Message | None:
            async with asyncio.timeout(timeout_s):
                return await anext(self._listener, None)

        return run(step())

    def close(self) -> None:
        """Listen no more."""
        if self._pid == os.getpid():
            run(self._close())

    async def _close(self) -> None:
        self._listener.close()
