"""A client that connects again when its connection is lost.

Only for calls that may safely run twice: when a connection breaks, nobody can tell
whether the server has done the work already.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from rpc25519_tools.config import Config, require_config
from rpc25519_tools.errors import (
    ConfigError,
    ConnectFailedError,
    ConnectionLostError,
    DeadlineError,
    HandshakeCutError,
    Rpc25519Error,
)
from rpc25519_tools.identity.known_store import KnownStore
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.identity.watch import IdentityFiles
from rpc25519_tools.rpc.client import Client, load_own_identity
from rpc25519_tools.rpc.context import time_left_s
from rpc25519_tools.rpc.deadlines import require_limit
from rpc25519_tools.rpc.known import shared_store
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS, Message

T = TypeVar("T")

#: What a new connection may cure. A peer that is not trusted stays so.
_CURABLE: Final = (
    ConnectionLostError,
    ConnectFailedError,
    DeadlineError,
    HandshakeCutError,
)
_log = logging.getLogger(__name__)

_CLOSED: Final = "this client is closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait between attempts.

    Attributes:
        first_s: before the second attempt, in seconds.
        longest_s: no wait is longer.
        factor: each wait is so many times the one before.
        jitter: up to this share of each wait is taken off at random, so that many
            clients do not come back all at once.
    """

    first_s: float = 0.05
    longest_s: float = 5.0
    factor: float = 2.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 < self.first_s <= self.longest_s or not self.factor >= 1:
            raise ConfigError("a backoff must start above zero and never shrink")
        if not 0 <= self.jitter <= 1:
            raise ConfigError("the jitter of a backoff must be between 0 and 1")

    def wait_s(self, failures: int) -> float:
        """Return the wait after so many failures, 1 or more."""
        try:
            full_s = min(self.first_s * self.factor ** (failures - 1), self.longest_s)
        except OverflowError:
            full_s = self.longest_s
        return full_s * (1 - self.jitter * random.random())  # noqa: S311  # no secret


class PersistentClient:
    """A client for idempotent calls, connected whenever there is something to do.

    Made without connecting; used as an asynchronous context manager, or closed.

    Our keys are loaded for the first connection, and a pass phrase is asked for then.
    Later ones use them again, with the certificate that lies in the directory by then;
    a key that has taken their place is opened with the Config's ``reload_passphrase``.

    Args:
        config: where to and who we are.
        identity: our keys, where the caller has loaded them already.
        backoff: how long to wait between attempts.
    """

    def __init__(
        self,
        config: Config,
        identity: LoadedIdentity | None = None,
        *,
        backoff: Backoff | None = None,
    ) -> None:
        require_config(config)
        self._config = config
        self._identity = identity
        # Held, so that a list that goes away meanwhile does not let in just anybody.
        self._known: KnownStore | None = None
        if config.known_keys_path is not None:
            self._known = shared_store(config.known_keys_path, "server")
        self._files: IdentityFiles | None = None
        self._loading: asyncio.Task[LoadedIdentity] | None = None
        self._backoff = backoff or Backoff()
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._attempt: asyncio.Task[Client] | None = None
        self._closing = asyncio.Event()
        #: How often a connection was made.
        self.connections = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection, if there is one, and make no more."""
        self._closing.set()
        if self._loading is not None:
            self._loading.cancel()
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait([self._attempt])
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    @property
    def is_down(self) -> bool:
        """Whether there is no connection just now."""
        return self._client is None or self._client.is_down

    async def call(
        self,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        timeout_s: float | None = None,
    ) -> Message:
        """Call a service, again and again until it answers or the time is over.

        The arguments and errors are those of ``Client.call``, except that
        ``timeout_s`` covers all attempts and the waits between them.
        """

        async def attempt(client: Client, left_s: float) -> Message:
            return await client.call(service_name, payload, args=args, timeout_s=left_s)

        return await self._insist(attempt, timeout_s)

    async def netrpc_call(
        self,
        service_method: str,
        argument: object,
        result_type: type[T],
        *,
        argument_type: Any = None,
        timeout_s: float | None = None,
    ) -> T:
        """Call a method in the net/rpc style, in the same way as ``call``."""

        async def attempt(client: Client, left_s: float) -> T:
            return await client.netrpc.call(
                service_method,
                argument,
                result_type,
                argument_type=argument_type,
                timeout_s=left_s,
            )

        return await self._insist(attempt, timeout_s)

    async def _insist(
        self,
        attempt: Callable[[Client, float], Awaitable[T]],
        timeout_s: float | None,
    ) -> T:
        limit_s = self._config.call_timeout_s if timeout_s is None else timeout_s
        require_limit(limit_s)
        left_s = time_left_s()
        if left_s is not None:  # of a handler's own call
            limit_s = min(limit_s, left_s)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + limit_s
        failures = 0
        while True:
            client: Client | None = None
            try:
                client = await self._connected(until_s - loop.time())
                return await attempt(client, until_s - loop.time())
            except _CURABLE as exc:
                if isinstance(exc, DeadlineError) and client and not client.is_down:
                    raise  # it is the call that took too long
                failures += 1
                wait_s = self._backoff.wait_s(failures)
                if self._closing.is_set() or loop.time() + wait_s >= until_s:
                    raise
            await self._pause(wait_s)

    async def _pause(self, wait_s: float) -> None:
        """Wait between two attempts, or until we are closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._closing.wait()

    async def _connected(self, left_s: float) -> Client:
        """Return the connection; make one if there is none."""
        try:
            async with asyncio.timeout(left_s), self._connecting:
                if not self._closing.is_set() and self.is_down:
                    await self._connect()
                if self._closing.is_set() or self._client is None:
                    raise ConnectionLostError(_CLOSED)
                return self._client
        except TimeoutError as exc:
            if isinstance(exc, DeadlineError):
                raise
            raise DeadlineError(f"no connection to {self._config.address}") from exc

    async def _connect(self) -> None:
        """Make a connection; closing ends the attempt."""
        self._attempt = asyncio.get_running_loop().create_task(self._make_client())
        self._attempt.add_done_callback(self._attempted)
        caller = asyncio.current_task()
        assert caller is not None
        try:
            await self._attempt
        except asyncio.CancelledError:
            if self._closing.is_set() and not caller.cancelling():
                raise ConnectionLostError(_CLOSED) from None
            raise
        finally:
            self._attempt = None

    async def _make_client(self) -> Client:
        return await Client.connect(self._config, await self._own_identity())

    async def _own_identity(self) -> LoadedIdentity | None:
        """Return our keys; None for bare plain TCP, which has none."""
        if self._identity is not None or not self._config.needs_identity:
            return self._identity
        if self._files is None:
            await self._load()
        else:
            try:
                await asyncio.to_thread(self._files.look, datetime.now(UTC))
            except Rpc25519Error as exc:
                _log.warning("going on with the old certificate: %s", exc)
        assert self._files is not None
        return self._files.current

    async def _load(self) -> None:
        """Load our keys, once for all callers.

        Whoever types a pass phrase may take longer than the caller who needs it first.
        """
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(
                asyncio.to_thread(load_own_identity, self._config)
            )
            # The caller may be gone when it fails.
            self._loading.add_done_callback(lambda f: f.cancelled() or f.exception())
        try:
            identity = await asyncio.shield(self._loading)
        finally:
            if self._loading.done():
                self._loading = None
        self._files = IdentityFiles(
            self._config.certs_dir, identity, self._config.reload_passphrase
        )

    def _attempted(self, attempt: asyncio.Task[Client]) -> None:
        """Keep a new connection, also when nobody waits for it any more."""
        if attempt.cancelled() or attempt.exception() is not None:
            return
        if self._closing.is_set():
            attempt.result().transport.abort()
            return
        self._client = attempt.result()
        self.connections += 1
