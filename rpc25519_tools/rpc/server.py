"""The server: accepts connections and runs a handler for each call.

Each call runs as a task of its own. A handler that fails answers its caller with an
error and harms nothing else; a peer that breaks the protocol loses its connection.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

from rpc25519_tools.config import Config
from rpc25519_tools.errors import (
    CallCancelledError,
    ConnectionLostError,
    DeadlineError,
    IncompleteTransferError,
    LocalProtocolError,
    Rpc25519Error,
    SecurityError,
)
from rpc25519_tools.identity.store import LoadedIdentity, load_identity
from rpc25519_tools.rpc import server_core
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.driver import Driver, now_ns
from rpc25519_tools.rpc.registry import CallContext, Registry, Reply
from rpc25519_tools.rpc.server_core import OpenCall, ServerCore
from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream, Part
from rpc25519_tools.transport.base import Receiver, Transport
from rpc25519_tools.transport.endpoint import Listener, TlsSettings, listen
from rpc25519_tools.wire.codecs import Codec, codec_from_name
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import Message

_log = logging.getLogger(__name__)

#: How long cancelled handlers may take to clean up, in seconds.
_CLEANUP_TIMEOUT_S: Final = 2.0
#: A connection is not read from while its running calls hold more than this.
_HIGH_HELD_LEN: Final = 32 << 20
_SHUTTING_DOWN: Final = "the server is shutting down"
#: The wire's own words for a cancelled call.
_CANCELLED: Final = "context canceled"


class ServerObserver(Protocol):
    """Learns about connections; for logs. None of these methods may raise."""

    def connected(self, transport: Transport) -> None:
        """A client is connected and, over TLS, authenticated."""

    def disconnected(self, transport: Transport, reason: Exception) -> None:
        """A client's connection is over."""

    def refused(self, address: str, reason: Exception) -> None:
        """A client did not get as far as being connected."""


@dataclass(slots=True)
class _Running:
    """A call that is running: its task and, for streams, what comes in.

    A task that is cancelled before it has begun runs nothing at all, not even what
    answers the call; ``begun`` tells. ``answering`` tells that the handler has returned
    and only its answer is on the way.
    """

    task: asyncio.Task[None]
    incoming: IncomingStream | None
    begun: bool = False
    answering: bool = False


class Server:
    """A server for one address.

    Args:
        config: where to listen and who we are.
        registry: the services on offer; more can be added while it runs.
        observer: learns about connections.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        observer: ServerObserver | None = None,
    ) -> None:
        self._config = config
        self._codec = codec_from_name(config.compression)
        self._registry = registry
        self._observer = observer
        self._listener: Listener | None = None
        self._connections: set[_Connection] = set()
        self._stopping = False

    @property
    def address(self) -> str:
        """Where the server listens, with the real port."""
        assert self._listener is not None
        return self._listener.address

    async def start(self, identity: LoadedIdentity | None = None) -> None:
        """Load our keys and begin to listen.

        Args:
            identity: our keys, where the caller has loaded them already.

        Raises:
            KeyFileError: our keys or certificates are missing or do not fit.
            ConnectFailedError: the address cannot be listened on.
        """
        config = self._config
        tls = None
        if config.network == "tls":
            if identity is None:
                identity = await asyncio.to_thread(
                    load_identity, config.certs_dir, config.key_name, config.passphrase
                )
            tls = TlsSettings(identity=identity, verify=config.verify_peer)
        self._listener = await listen(
            config.address, tls=tls, accept=self._accept, failed=self._refused
        )

    def stop_accepting(self) -> None:
        """Take no more connections and start no more calls; running ones go on."""
        self._stopping = True
        if self._listener is not None:
            self._listener.close()

    async def wait_until_idle(self) -> None:
        """Wait until no call is running."""
        while running := [task for one in self._connections for task in one.tasks()]:
            await asyncio.wait(running)

    async def aclose(self) -> None:
        """Stop at once: cancel running calls, close all connections and the address."""
        self.stop_accepting()
        closing = [one.aclose() for one in list(self._connections)]
        await asyncio.gather(*closing)

    def _accept(self, transport: Transport) -> Receiver:
        connection = _Connection(self, transport)
        self._connections.add(connection)
        if self._stopping:
            # Its handshake took longer than we live; nobody else would close it.
            transport.abort()
        self._tell(lambda observer: observer.connected(transport))
        return connection.driver

    def _refused(self, reason: Exception, address: str) -> None:
        self._tell(lambda observer: observer.refused(address, reason))

    def forget(self, connection: "_Connection", reason: Exception) -> None:
        """Drop a connection that is over."""
        self._connections.discard(connection)
        transport = connection.driver.transport
        self._tell(lambda observer: observer.disconnected(transport, reason))

    def _tell(self, news: Callable[[ServerObserver], None]) -> None:
        """Tell the observer; a failing one must not cost anybody the connection."""
        if self._observer is None:
            return
        try:
            news(self._observer)
        except Exception:  # noqa: BLE001  # whatever a log can fail with
            _log.exception("the observer of the server failed")

    @property
    def registry(self) -> Registry:
        """The services on offer."""
        return self._registry

    @property
    def default_codec(self) -> Codec:
        """What packs answers before a client has shown its own codec."""
        return self._codec

    @property
    def idle_timeout_s(self) -> float:
        """After how long without a byte a connection is closed; 0 for never."""
        return self._config.idle_timeout_s

    @property
    def stopping(self) -> bool:
        """Whether ``stop_accepting`` has been called."""
        return self._stopping


class _Connection:
    """One client: feeds its messages to the core and runs the handlers."""

    def __init__(self, server: Server, transport: Transport) -> None:
        self._server = server
        self._running: dict[OpenCall, _Running] = {}
        self._idle_timer: asyncio.TimerHandle | None = None
        self._held_len = 0
        self._holding = False
        self.driver = Driver(transport, self._message, self._closed)
        if server.idle_timeout_s:
            self._watch_idleness()
        self._core = ServerCore(
            local=f"{transport.network}://{transport.local_address}",
            remote=f"{transport.network}://{transport.remote_address}",
            default_codec=server.default_codec,
            offers=server.registry.offers,
        )

    def _watch_idleness(self) -> None:
        """Close the connection once it has moved nothing for too long."""
        limit_s = self._server.idle_timeout_s
        rest_s = limit_s - self.driver.idle_s
        # A call without a stream moves nothing while its handler works.
        if rest_s <= 0 and any(
            one.begun and not one.answering and call.kind is CallKind.RPC
            for call, one in self._running.items()
        ):
            rest_s = limit_s
        if rest_s <= 0:
            self.driver.abort(DeadlineError(f"nothing moved for {limit_s:g} s"))
            return
        loop = asyncio.get_running_loop()
        self._idle_timer = loop.call_later(rest_s, self._watch_idleness)

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the tasks of all running calls."""
        return [running.task for running in self._running.values()]

    async def aclose(self) -> None:
        """Cancel what still runs, send what is queued, and close."""
        tasks = self.tasks()
        for task in tasks:
            task.cancel(_SHUTTING_DOWN)
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=_CLEANUP_TIMEOUT_S)
            if stuck:  # behind a peer that does not read
                self.driver.abort(ConnectionLostError(_SHUTTING_DOWN))
        await self.driver.aclose()

    def _message(self, message: Message, codec: Codec) -> None:
        event = self._core.receive(message, codec, now_ns=now_ns())
        match event:
            case None:
                pass
            case server_core.CallStarted(call, opening):
                self._start(call, opening)
            case server_core.PartReceived(call, part, last):
                incoming = self._incoming(call)
                if incoming is not None:
                    incoming.feed(Part.of(part, last=last))
            case server_core.StreamBroken(call, reason):
                incoming = self._incoming(call)
                if incoming is not None:
                    incoming.end(IncompleteTransferError(reason))
            case server_core.CallCancelled(call):
                running = self._running.get(call)
                if running is not None and running.begun:
                    running.task.cancel("cancelled by the client")
            case server_core.MessageToSend(answer):
                self.driver.send_now(answer, self._core.codec)

    def _incoming(self, call: OpenCall) -> IncomingStream | None:
        running = self._running.get(call)
        return running.incoming if running is not None else None

    def _start(self, call: OpenCall, opening: Message) -> None:
        incoming = None
        if call.kind.sends_parts:
            incoming = IncomingStream(self.driver)
            incoming.feed(Part.of(opening, last=False))
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._run(call, opening, incoming))
        task.add_done_callback(lambda _: self._ended(call, len(opening.payload)))
        self._running[call] = _Running(task, incoming)
        self._change_held(len(opening.payload))

    def _ended(self, call: OpenCall, payload_len: int) -> None:
        self._running.pop(call, None)
        self._change_held(-payload_len)

    def _change_held(self, difference: int) -> None:
        """Count what running calls hold; read on only when that is bearable."""
        self._held_len += difference
        too_much = self._held_len > _HIGH_HELD_LEN
        if too_much and not self._holding:
            self._holding = True
            self.driver.hold_reading()
        elif self._holding and not too_much:
            self._holding = False
            self.driver.release_reading()

    async def _run(
        self, call: OpenCall, opening: Message, incoming: IncomingStream | None
    ) -> None:
        """Run the handler of one call and send what it returns."""
        self._running[call].begun = True
        try:
            reply = await self._outcome(call, opening, incoming)
            if incoming is not None:
                incoming.discard()
            self._running[call].answering = True
            await self._answer(call, reply)
        except (ConnectionLostError, SecurityError):
            pass  # nobody is there to be answered
        finally:
            if incoming is not None:
                incoming.discard()

    async def _outcome(
        self, call: OpenCall, opening: Message, incoming: IncomingStream | None
    ) -> Reply:
        if self._server.stopping:
            return Reply(error=_SHUTTING_DOWN)
        try:
            return await self._handle(call, opening, incoming)
        except asyncio.CancelledError:
            if self.driver.is_closed:
                raise
            return Reply(error=_CANCELLED if call.cancelled else _SHUTTING_DOWN)
        except Rpc25519Error as exc:
            return Reply(error=str(exc) or type(exc).__name__)
        except Exception as exc:  # noqa: BLE001  # any fault of a handler ends here
            _log.exception("handler of %r failed", call.request.service_name)
            return Reply(error=f"internal error of the handler: {type(exc).__name__}")

    async def _handle(
        self, call: OpenCall, opening: Message, incoming: IncomingStream | None
    ) -> Reply:
        if call.cancelled:
            raise CallCancelledError(_CANCELLED)
        registry, name = self._server.registry, call.request.service_name
        transport = self.driver.transport
        context = CallContext(
            kind=call.kind,
            header=call.request,
            payload=opening.payload,
            peer=transport.peer,
            local_address=transport.local_address,
            remote_address=transport.remote_address,
        )

        async def send_part(
            payload: Buffer,
            args: Mapping[str, str],
            last: bool,  # noqa: FBT001  # the signature of SendPart
        ) -> None:
            part = self._core.part(
                call, now_ns=now_ns(), payload=payload, args=args, last=last
            )
            await self.driver.send(part, self._core.codec)

        outgoing = OutgoingStream(send_part)
        match call.kind:
            case CallKind.RPC:
                return await registry.calls[name](context)
            case CallKind.ONE_WAY:
                return await registry.one_ways[name](context)
            case CallKind.UPLOAD:
                assert incoming is not None
                return await registry.uploads[name](context, incoming)
            case CallKind.DOWNLOAD:
                return await registry.downloads[name](context, outgoing)
            case CallKind.BISTREAM:
                assert incoming is not None
                return await registry.bistreams[name](context, incoming, outgoing)

    async def _answer(self, call: OpenCall, reply: Reply) -> None:
        message = self._core.finish(
            call,
            now_ns=now_ns(),
            payload=reply.payload,
            args=reply.args,
            error=reply.error,
        )
        if message is None:
            return
        try:
            await self.driver.send(message, self._core.codec)
        except LocalProtocolError as exc:
            await self.driver.send(
                replace(message, payload=b"", error=str(exc)), self._core.codec
            )

    def _closed(self, reason: Exception) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        for running in list(self._running.values()):
            if running.incoming is not None:
                running.incoming.end(reason)
            running.task.cancel(str(reason))
        self._server.forget(self, reason)
