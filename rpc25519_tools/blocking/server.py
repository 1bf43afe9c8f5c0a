"""The server for programs without asyncio."""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rpc25519_tools.blocking.loop import Loop, current_loop, run, this_loop
from rpc25519_tools.config import Config
from rpc25519_tools.errors import LocalProtocolError
from rpc25519_tools.identity.access import AccessPolicy
from rpc25519_tools.identity.store import LoadedIdentity, load_identity
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import DEFAULT_KEY_NAME, Server, ServerObserver
from rpc25519_tools.transport.base import Transport
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS


class BlockingServer:
    """A server that runs beside the program; see ``Server``.

    Plain handlers run in threads, async ones on the event loop, and so do the methods
    of the observer. As a context manager it starts on entering and stops gracefully on
    leaving; at the program's end it stops at once, and the program waits for plain
    handlers that do not watch their ``context.cancellation``.

    It belongs to the process that started it. A forked child does not serve and holds
    neither the address nor a client's connection; there, ``stop`` does nothing, and
    the other methods raise ConnectionLostError, except that ``start`` makes a server
    of the child's own.

    Args:
        config: where to listen and who we are.
        registry: the services on offer; more can be added while it runs.
        observer: learns about connections; must not block.
        reveal_errors: see ``Server``.
        grace_s: how long running calls may go on when the context manager is left.
        access: says which client may do what; see ``Server``. It must not block.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        observer: ServerObserver | None = None,
        *,
        reveal_errors: bool = True,
        grace_s: float = 5.0,
        access: AccessPolicy | None = None,
    ) -> None:
        self._config = config
        self._registry = registry
        self._observer = observer
        self._reveal_errors = reveal_errors
        self._grace_s = grace_s
        self._access = access
        self._running: tuple[Server, Loop] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop(self._grace_s)

    def start(self, identity: LoadedIdentity | None = None) -> None:
        """Load our keys and begin to listen; a stopped server starts anew.

        Args:
            identity: our keys, where the caller has loaded them already.

        Raises:
            KeyFileError: our keys or certificates are missing or do not fit.
            ConnectFailedError: the address cannot be listened on.
            LocalProtocolError: it runs already.
        """
        config = self._config
        if identity is None and config.needs_identity:
            # Here, in the caller's thread: a pass phrase may be asked for.
            identity = load_identity(
                config.certs_dir, config.key_name or DEFAULT_KEY_NAME, config.passphrase
            )
        run(lambda: self._start(identity))

    async def _start(self, identity: LoadedIdentity | None) -> None:
        loop = this_loop()
        if self._running is not None and self._running[1] is loop:
            raise LocalProtocolError("this server runs already")
        server = Server(
            self._config,
            self._registry,
            self._observer,
            reveal_errors=self._reveal_errors,
            access=self._access,
        )
        self._running = server, loop
        try:
            await server.start(identity)
        except BaseException:
            self._running = None
            await server.aclose()
            raise
        loop.servers.add(server)

    def _started(self) -> tuple[Server, Loop]:
        if self._running is None:
            raise LocalProtocolError("this server does not run")
        return self._running

    @property
    def address(self) -> str:
        """Where the server listens, with the real port."""
        return self._started()[0].address

    @property
    def clients(self) -> list[Transport]:
        """The connections that are open now: addresses and who the clients are."""
        server, loop = self._started()

        async def clients() -> list[Transport]:
            return server.clients

        return run(clients, on=loop)

    def push(
        self,
        address: str | Transport,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        call_id: str = "",
        compress: bool = True,
    ) -> None:
        """Send a one-way message to a connected client; see ``Server.push``."""
        server, loop = self._started()
        run(
            lambda: server.push(
                address,
                service_name,
                payload,
                args=args,
                call_id=call_id,
                compress=compress,
            ),
            on=loop,
        )

    def disconnect(
        self, address: str | Transport, reason: str = "the server hung up"
    ) -> None:
        """End a client's connection at once; see ``Server.disconnect``."""
        server, loop = self._started()

        async def disconnect() -> None:
            server.disconnect(address, reason)

        run(disconnect, on=loop)

    def reload_identity(self, identity: LoadedIdentity) -> None:
        """Use another identity for connections to come; see the same of ``Server``."""
        server, loop = self._started()

        async def reload_identity() -> None:
            server.reload_identity(identity)

        run(reload_identity, on=loop)

    def stop(self, grace_s: float = 0.0) -> None:
        """Stop; running calls may go on for ``grace_s`` seconds.

        Does nothing where it does not run.
        """
        running = self._running
        if running is not None and running[1] is current_loop():
            run(lambda: self._stop(*running, grace_s))

    async def _stop(self, server: Server, loop: Loop, grace_s: float) -> None:
        await server.stop(grace_s)
        loop.servers.discard(server)
        self._running = None
