"""The server: listens, and keeps the connections of its clients."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Protocol, Self

from rpc25519_tools.config import Config
from rpc25519_tools.errors import ConnectionLostError, NotConnectedError
from rpc25519_tools.identity.store import LoadedIdentity, load_identity
from rpc25519_tools.rpc.connection import Connection
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.streams import NO_ARGS
from rpc25519_tools.rpc.tunnels import load_tunnel
from rpc25519_tools.transport.base import Receiver, Transport
from rpc25519_tools.transport.endpoint import Listener, TlsSettings, listen
from rpc25519_tools.wire.greenpack import Buffer

_log = logging.getLogger(__name__)

#: Which pair of keys is a server's own where its Config names none.
DEFAULT_KEY_NAME: Final = "node"


class ServerObserver(Protocol):
    """Learns about connections; for logs. None of these methods may raise."""

    def connected(self, transport: Transport) -> None:
        """A client is connected and, over TLS, authenticated."""

    def disconnected(self, transport: Transport, reason: Exception) -> None:
        """A client's connection is over."""

    def refused(self, address: str, reason: Exception) -> None:
        """A client did not get as far as being connected."""


class Server:
    """A server for one address.

    As an asynchronous context manager it starts on entering, and on leaving stops
    gracefully, within ``grace_s``.

    Args:
        config: where to listen and who we are.
        registry: the services on offer; more can be added while it runs.
        observer: learns about connections.
        reveal_errors: whether a caller gets the text of any exception that a handler
            raises, or only of those of this package's own tree.
        grace_s: how long running calls may go on when the context manager is left.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        observer: ServerObserver | None = None,
        *,
        reveal_errors: bool = True,
        grace_s: float = 5.0,
    ) -> None:
        self._config = config
        self._registry = registry
        self._observer = observer
        self._reveal_errors = reveal_errors
        self._grace_s = grace_s
        self._listener: Listener | None = None
        self._connections: set[Connection] = set()
        self._by_address: dict[str, Connection] = {}
        self._stopping = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop(self._grace_s)

    @property
    def address(self) -> str:
        """Where the server listens, with the real port."""
        assert self._listener is not None, "not started"
        return self._listener.address

    @property
    def clients(self) -> list[Transport]:
        """The connections that are open now: addresses and who the clients are."""
        return [one.driver.transport for one in self._connections]

    async def start(self, identity: LoadedIdentity | None = None) -> None:
        """Load our keys and begin to listen.

        Args:
            identity: our keys, where the caller has loaded them already.

        Raises:
            KeyFileError: our keys, certificates or pre-shared key are missing or do
                not fit.
            ConnectFailedError: the address cannot be listened on.
        """
        config = self._config
        tls = tunnel = None
        if config.needs_identity:
            if identity is None:
                identity = await asyncio.to_thread(
                    load_identity,
                    config.certs_dir,
                    config.key_name or DEFAULT_KEY_NAME,
                    config.passphrase,
                )
            if config.network == "tls":
                tls = TlsSettings(identity=identity, verify=config.verify_peer)
            tunnel = await load_tunnel(config.pre_shared_key_path, identity)
        self._listener = await listen(
            config.address,
            tls=tls,
            accept=self._accept,
            failed=self._refused,
            http_connect=config.http_connect,
            tunnel=tunnel,
        )

    async def push(
        self,
        address: str,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        call_id: str = "",
        compress: bool = True,
    ) -> None:
        """Send a one-way message to a connected client, unasked.

        Returns when the message is queued; waits while the client takes too little.

        Args:
            address: the client's ``remote_address``, such as ``127.0.0.1:50000``.
            service_name: what the message is about; clients see it in the header.
            payload: what to send.
            args: small named strings to send along.
            call_id: the conversation it belongs to, for clients that listen to one.
            compress: False sends this one message without compression.

        Raises:
            NotConnectedError: no client is connected from there.
            ConnectionLostError, SecurityError: it has just gone.
            LocalProtocolError: the message is too large.
        """
        connection = self._by_address.get(address)
        if connection is None:
            raise NotConnectedError(f"no client is connected from {address}")
        await connection.push(
            service_name, payload, args=args, call_id=call_id, compress=compress
        )

    def disconnect(self, address: str, reason: str = "the server hung up") -> None:
        """End a client's connection at once.

        Raises:
            NotConnectedError: no client is connected from there.
        """
        connection = self._by_address.get(address)
        if connection is None:
            raise NotConnectedError(f"no client is connected from {address}")
        connection.driver.abort(ConnectionLostError(reason))

    def filenos(self) -> list[int]:
        """Return the descriptors of all sockets, for who must let go of them."""
        listening = self._listener.filenos() if self._listener is not None else []
        return listening + [one.fileno() for one in self.clients]

    def stop_accepting(self) -> None:
        """Take no more connections and start no more calls; running ones go on."""
        self._stopping = True
        if self._listener is not None:
            self._listener.close()

    async def wait_until_idle(self) -> None:
        """Wait until no call is running."""
        while running := [task for one in self._connections for task in one.tasks()]:
            await asyncio.wait(running)

    async def stop(self, grace_s: float = 0.0) -> None:
        """Stop: let running calls go on for ``grace_s`` seconds, then cancel them."""
        self.stop_accepting()
        try:
            async with asyncio.timeout(grace_s):
                await self.wait_until_idle()
        except TimeoutError:
            pass
        await self.aclose()

    async def aclose(self) -> None:
        """Stop at once: cancel running calls, close all connections and the address."""
        self.stop_accepting()
        closing = [one.aclose() for one in list(self._connections)]
        await asyncio.gather(*closing)

    # Called by the listener.

    def _accept(self, transport: Transport) -> Receiver:
        connection = Connection(self, transport)
        self._connections.add(connection)
        self._by_address[transport.remote_address] = connection
        if self._stopping:
            # Its handshake took longer than we live; nobody else would close it.
            transport.abort()
        self._tell(lambda observer: observer.connected(transport))
        return connection.driver

    def _refused(self, reason: Exception, address: str) -> None:
        self._tell(lambda observer: observer.refused(address, reason))

    def _tell(self, news: Callable[[ServerObserver], None]) -> None:
        """Tell the observer; a failing one must not cost anybody the connection."""
        if self._observer is None:
            return
        try:
            news(self._observer)
        except Exception:  # noqa: BLE001  # whatever a log can fail with
            _log.exception("the observer of the server failed")

    # For connections.

    def forget(self, connection: Connection, reason: Exception) -> None:
        """Drop a connection that is over."""
        self._connections.discard(connection)
        transport = connection.driver.transport
        if self._by_address.get(transport.remote_address) is connection:
            del self._by_address[transport.remote_address]
        self._tell(lambda observer: observer.disconnected(transport, reason))

    @property
    def config(self) -> Config:
        """The settings."""
        return self._config

    @property
    def registry(self) -> Registry:
        """The services on offer."""
        return self._registry

    @property
    def reveals_errors(self) -> bool:
        """Whether callers get the text of any error."""
        return self._reveal_errors

    @property
    def stopping(self) -> bool:
        """Whether ``stop_accepting`` has been called."""
        return self._stopping
