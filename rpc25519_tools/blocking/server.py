"""The server for programs without asyncio."""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rpc25519_tools.blocking.loop import drop_socket, run, watch_forks
from rpc25519_tools.config import Config
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server, ServerObserver
from rpc25519_tools.rpc.streams import NO_ARGS
from rpc25519_tools.transport.base import Transport
from rpc25519_tools.wire.greenpack import Buffer


class BlockingServer:
    """A server that runs beside the program; see ``Server``.

    Plain handlers run in threads, async ones on the event loop. As a context manager it
    starts on entering and stops gracefully on leaving. It belongs to the process that
    started it: a forked child does not serve.
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
        self._server = Server(
            config, registry, observer, reveal_errors=reveal_errors, grace_s=grace_s
        )
        self._grace_s = grace_s
        watch_forks(self)

    def after_fork_in_child(self) -> None:
        """Let go of the address and of the clients; the parent serves them."""
        for number in self._server.filenos():
            if number >= 0:
                drop_socket(number)

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

    @property
    def address(self) -> str:
        """Where the server listens, with the real port."""
        return self._server.address

    @property
    def clients(self) -> list[Transport]:
        """The connections that are open now."""
        return run(self._clients())

    async def _clients(self) -> list[Transport]:
        return self._server.clients

    def start(self, identity: LoadedIdentity | None = None) -> None:
        """Load our keys and begin to listen; see ``Server.start``."""
        run(self._server.start(identity))

    def push(
        self,
        address: str,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        call_id: str = "",
        compress: bool = True,
    ) -> None:
        """Send a one-way message to a connected client; see ``Server.push``."""
        run(
            self._server.push(
                address,
                service_name,
                payload,
                args=args,
                call_id=call_id,
                compress=compress,
            )
        )

    def stop(self, grace_s: float = 0.0) -> None:
        """Stop; running calls may go on for ``grace_s`` seconds."""
        run(self._server.stop(grace_s))
