"""The server: listens, and keeps the connections of its clients."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Final, Protocol, Self

from rpc25519_tools.config import Config, require_config
from rpc25519_tools.errors import (
    ConfigError,
    ConnectionLostError,
    LocalProtocolError,
    NotConnectedError,
)
from rpc25519_tools.identity.access import AccessPolicy
from rpc25519_tools.identity.store import LoadedIdentity, load_identity
from rpc25519_tools.identity.watch import IdentityFiles
from rpc25519_tools.limits import format_size
from rpc25519_tools.rpc.connection import Connection
from rpc25519_tools.rpc.driver import UNPACKERS
from rpc25519_tools.rpc.failures import SHUTTING_DOWN
from rpc25519_tools.rpc.identity_watch import IdentityWatch, warn_of_end
from rpc25519_tools.rpc.known import KnownGuard, known_guard
from rpc25519_tools.rpc.memory import MemoryBudget
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.tunnels import load_tunnel
from rpc25519_tools.transport.base import Receiver, TlsSettings, Transport
from rpc25519_tools.transport.door import Listening
from rpc25519_tools.transport.endpoint import listen
from rpc25519_tools.transport.psk import (
    PskTransport,
    is_proven,
)
from rpc25519_tools.transport.psk_handshake import TunnelSettings
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS

_log = logging.getLogger(__name__)

#: Which pair of keys is a server's own where its Config names none.
DEFAULT_KEY_NAME: Final = "node"


#: How often those are looked for who keep others waiting for memory, in seconds.
_MEMORY_LOOK_S: Final = 1.0


class ServerObserver(Protocol):
    """Learns about connections; for logs. None of these methods may raise."""

    def connected(self, transport: Transport) -> None:
        """A client is connected and, over TLS or in a tunnel, authenticated.

        In a pre-shared-key tunnel that is so from its first message on.
        """

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
        identity_reloaded: told when changed files have brought another certificate,
            key or authority; see ``Config.identity_poll_s``.
        access: says which client may do what, asked at each call; None lets everybody
            do whatever is on offer.
        heard: told when a client has sent its first message, once for each; the
            observer has been told before that it is connected.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        observer: ServerObserver | None = None,
        *,
        reveal_errors: bool = True,
        grace_s: float = 5.0,
        identity_reloaded: Callable[[LoadedIdentity], None] | None = None,
        access: AccessPolicy | None = None,
        heard: Callable[[Transport], None] | None = None,
    ) -> None:
        require_config(config)
        if not isinstance(registry, Registry):
            raise ConfigError(f"a server needs a Registry, not {registry!r:.60}")
        self._config = config
        self._registry = registry
        self._observer = observer
        self._reveal_errors = reveal_errors
        self._grace_s = grace_s
        self._access = access
        self._listener: Listening | None = None
        self._known: KnownGuard | None = None
        self._connections: set[Connection] = set()
        # Over QUIC clients that share their port have one address; the last one counts.
        self._by_address: dict[str, dict[Connection, None]] = {}
        self._started = False
        self._stopping = False
        self._identity_reloaded = identity_reloaded
        self._heard = heard
        self._watch: IdentityWatch | None = None
        self._tunnel: TunnelSettings | None = None
        self._memory = MemoryBudget(config.limits.max_memory_len, self._watch_memory)
        self._memory_timer: asyncio.TimerHandle | None = None
        self._turns = asyncio.Semaphore(UNPACKERS)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.stop(self._grace_s)
        except asyncio.CancelledError:
            self.abort()
            raise

    @property
    def address(self) -> str:
        """Where the server listens, with the real port.

        Raises:
            LocalProtocolError: it has not been started.
        """
        if self._listener is None:
            raise LocalProtocolError("this server has not been started")
        return self._listener.address

    @property
    def clients(self) -> list[Transport]:
        """The connections that are open now: addresses and who the clients are.

        Without those whose client has yet to show that it has the pre-shared key.
        """
        open_now = [one.driver.transport for one in self._connections]
        return [one for one in open_now if is_proven(one)]

    async def start(self, identity: LoadedIdentity | None = None) -> None:
        """Load our keys and begin to listen, once; after a failure, one may try again.

        Args:
            identity: our keys, where the caller has loaded them already.

        Raises:
            KeyFileError: our keys, certificates or pre-shared key are missing or do
                not fit; or the list of known keys is broken, or locked and empty.
            ConnectFailedError: the address cannot be listened on.
            LocalProtocolError: it has been started or stopped before.
        """
        if self._stopping:
            raise LocalProtocolError("this server has been stopped: make another")
        if self._started:
            raise LocalProtocolError("this server has been started already")
        self._started = True
        try:
            await self._start(identity)
        except BaseException:
            self._started = self._listener is not None
            raise

    async def _start(self, identity: LoadedIdentity | None) -> None:
        config = self._config
        tls = None
        self._known = known_guard(config, "client")
        if config.needs_identity:
            if identity is None:
                identity = await asyncio.to_thread(
                    load_identity,
                    config.certs_dir,
                    config.key_name or DEFAULT_KEY_NAME,
                    config.passphrase,
                )
                warn_of_end(identity)
            if config.uses_tls:
                tls = self._tls(identity)
            self._tunnel = await load_tunnel(
                config.pre_shared_key_path, identity, self._known
            )
        if self._known is not None:
            await self._known.require_usable()
        self._listener = await listen(
            config.address,
            tls=tls,
            accept=self._accept,
            failed=self._refused,
            limits=config.limits,
            http_connect=config.http_connect,
            tunnel=self._tunnel,
            quic=config.network == "quic",
            share_port=not config.no_share_port_quic,
        )
        if self._known is not None:
            self._known.watch(lambda: [one.driver for one in self._connections])
        if identity is not None and config.identity_poll_s:
            self._watch = IdentityWatch(
                IdentityFiles(config.certs_dir, identity, config.reload_passphrase),
                self._use_reloaded,
                interval_s=config.identity_poll_s,
            )

    def _tls(self, identity: LoadedIdentity) -> TlsSettings:
        return TlsSettings(
            identity=identity,
            verify=self._config.verify_peer,
            peer_check=self._known,
        )

    def reload_identity(self, identity: LoadedIdentity) -> None:
        """Use another certificate, key or authority for connections to come.

        Open connections go on, whoever has authenticated them. See also
        ``Config.identity_poll_s``, which does this whenever the files change.

        Raises:
            LocalProtocolError: the server does not run.
            ConfigError: it runs on plain TCP, without a pre-shared key.
            KeyFileError: the certificate is too long for a pre-shared key's tunnel.
        """
        if self._listener is None or self._stopping:
            raise LocalProtocolError("this server does not run")
        if not self._config.needs_identity:
            raise ConfigError("there is no identity on plain TCP")
        tls = self._tls(identity) if self._config.uses_tls else None
        if self._tunnel is not None:
            self._tunnel = replace(self._tunnel, identity=identity)
        self._listener.use(tls, self._tunnel)
        if self._watch is not None:
            self._watch.files.current = identity

    def look_for_identity(self) -> None:
        """Look at once whether our files have changed, if they are being watched.

        What is wrong with them, if anything is, is logged again.
        """
        if self._watch is not None:
            self._watch.look_now()

    def _use_reloaded(self, identity: LoadedIdentity) -> None:
        if self._stopping:
            return
        self.reload_identity(identity)
        if self._identity_reloaded is not None:
            self._identity_reloaded(identity)

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
            address: the client's ``remote_address``, such as ``127.0.0.1:50000``; where
                several QUIC clients share it, the one that connected last.
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
        await self._connected_from(address).push(
            service_name, payload, args=args, call_id=call_id, compress=compress
        )

    def disconnect(self, address: str, reason: str = "the server hung up") -> None:
        """End a client's connection at once.

        Raises:
            NotConnectedError: no client is connected from there.
        """
        self._connected_from(address).driver.abort(ConnectionLostError(reason))

    def _connected_from(self, address: str) -> Connection:
        found = self._by_address.get(address)
        if not found:
            raise NotConnectedError(f"no client is connected from {address}")
        return next(reversed(found))

    def filenos(self) -> list[int]:
        """Return the descriptors of all sockets, for who must let go of them."""
        listening = self._listener.filenos() if self._listener is not None else []
        return listening + [one.driver.transport.fileno() for one in self._connections]

    def leave_to_parent(self) -> None:
        """Close our copies of all sockets that have no transport, in a forked child.

        The loop must not run any more.
        """
        if self._listener is not None:
            self._listener.leave_to_parent()

    def stop_accepting(self) -> None:
        """Take no more connections and start no more calls; running ones go on."""
        self._stopping = True
        if self._watch is not None:
            self._watch.close()
        if self._listener is not None:
            self._listener.close()

    async def wait_until_idle(self) -> None:
        """Wait until no call is running, apart from the one whose handler waits."""
        ours = asyncio.current_task()
        while running := [
            task
            for one in self._connections
            for task in one.tasks()
            if task is not ours
        ]:
            await asyncio.wait(running)

    async def stop(self, grace_s: float = 0.0) -> None:
        """Stop: let running calls go on for ``grace_s`` seconds, then cancel them.

        The rest takes as long as ``aclose`` does. A handler that stops its own server
        is not waited for: its own connection closes when it has been answered.
        """
        limit_s = max(0.0, grace_s)
        self.stop_accepting()
        try:
            async with asyncio.timeout(limit_s):
                await self.wait_until_idle()
        except TimeoutError:
            pass
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel running calls, send what is queued, and close all connections.

        This waits, at most 2 s each, for handlers that clean up and for clients that
        take nothing of what is queued for them; and 10 s for one that takes it slowly.
        ``abort`` waits for nobody.
        """
        self.stop_accepting()
        self._stop_memory_timer()
        ours = asyncio.current_task()
        closing = [one.aclose(ours) for one in list(self._connections)]
        await asyncio.gather(*closing)
        if self._known is not None:
            await self._known.aclose()

    def abort(self) -> None:
        """Stop at once: cancel running calls and drop all connections unanswered."""
        self.stop_accepting()
        self._stop_memory_timer()
        for one in list(self._connections):
            one.driver.abort(ConnectionLostError(SHUTTING_DOWN))

    def _stop_memory_timer(self) -> None:
        if self._memory_timer is not None:
            self._memory_timer.cancel()

    # Called by the listener.

    def _accept(self, transport: Transport) -> Receiver:
        connection = Connection(self, transport)
        self._connections.add(connection)
        self._by_address.setdefault(transport.remote_address, {})[connection] = None
        if self._stopping:
            # Its handshake took longer than we live; nobody else would close it.
            transport.abort()
        if isinstance(transport, PskTransport) and not transport.is_proven:
            transport.when_proven(lambda: self._tell_connected(transport))
        else:
            self._tell_connected(transport)
        return connection.driver

    def _tell_connected(self, transport: Transport) -> None:
        self._tell(lambda observer: observer.connected(transport))

    def _refused(self, reason: Exception, address: str) -> None:
        self._tell(lambda observer: observer.refused(address, reason))

    def _tell(self, news: Callable[[ServerObserver], None]) -> None:
        observer = self._observer
        if observer is not None:
            _safely(lambda: news(observer))

    # Called by the memory's budget, and by the timer.

    def _watch_memory(self) -> None:
        _log.warning(
            "clients hold more than %s together: the largest have to wait",
            format_size(self._config.limits.max_memory_len),
        )
        self._look_later()

    def _look_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._memory_timer = loop.call_later(_MEMORY_LOOK_S, self._look_at_memory)

    def _look_at_memory(self) -> None:
        if self._memory.relieve(asyncio.get_running_loop().time()):
            self._look_later()

    # For connections.

    def heard(self, connection: Connection) -> None:
        """Note that a client has sent its first message."""
        transport, heard = connection.driver.transport, self._heard
        if self._listener is not None:
            self._listener.heard(transport, connection.idle_since)
        if heard is not None:
            _safely(lambda: heard(transport))

    def forget(self, connection: Connection, reason: Exception) -> None:
        """Drop a connection that is over."""
        self._connections.discard(connection)
        transport = connection.driver.transport
        here = self._by_address.get(transport.remote_address, {})
        here.pop(connection, None)
        if not here:
            self._by_address.pop(transport.remote_address, None)
        if is_proven(transport):
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
    def access(self) -> AccessPolicy | None:
        """Who may do what; None where everybody may do everything."""
        return self._access

    @property
    def stopping(self) -> bool:
        """Whether ``stop_accepting`` has been called."""
        return self._stopping

    @property
    def memory(self) -> MemoryBudget:
        """What all connections hold."""
        return self._memory

    @property
    def turns(self) -> asyncio.Semaphore:
        """Lets connections unpack, a few at a time."""
        return self._turns


def _safely(tell: Callable[[], None]) -> None:
    """Tell an observer; a failing one must not cost anybody the connection."""
    try:
        tell()
    except Exception:  # noqa: BLE001  # whatever a log can fail with
        _log.exception("the observer of the server failed")
