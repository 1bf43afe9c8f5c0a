"""What ``samesame`` does: serve a partner and call it, on one UDP port."""

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import replace
from typing import Final, NoReturn

import click

from rpc25519_tools.config import Address, Config, parse_address
from rpc25519_tools.errors import (
    ConnectFailedError,
    DeadlineError,
    DecryptionError,
    PeerNotTrustedError,
)
from rpc25519_tools.files.echo import ECHO_CALL_SERVICE, ECHO_REQUEST, echo_call
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.transport.base import Transport, format_address

from ._output import Talk, printable
from ._transferlog import ServerLog

#: How long to wait between two attempts to reach the partner, in seconds.
_RETRY_S: Final = 0.2
#: Shortest limit for one attempt, in seconds.
_ATTEMPT_S: Final = 0.1
#: How long the partner may take to close its connections when all is done, in seconds.
#: One in Go never does, and loses a reply whose connection we close at once.
_LINGER_S: Final = 0.5


class _PartnerLog(ServerLog):
    """Logs what comes; learns when the partner refuses us, or we refuse it.

    Args:
        talk: where the lines go.
        verbose: see ServerLog.
    """

    def __init__(self, talk: Talk, *, verbose: bool) -> None:
        super().__init__(talk, verbose=verbose)
        #: Where the partner may be found.
        self.partner: frozenset[str] = frozenset()
        self.distrust: asyncio.Future[NoReturn] = asyncio.Future()
        self.alone = asyncio.Event()
        self.alone.set()
        self._connected: set[Transport] = set()

    def connected(self, transport: Transport) -> None:
        """Log it, and count it."""
        super().connected(transport)
        self._connected.add(transport)
        self.alone.clear()

    def disconnected(self, transport: Transport, reason: Exception) -> None:
        """Log it, if it is unusual, and count it."""
        super().disconnected(transport, reason)
        self._connected.discard(transport)
        if not self._connected:
            self.alone.set()

    def refused(self, address: str, reason: Exception) -> None:
        """Log it; there is no use in waiting for a partner that trusts us not."""
        super().refused(address, reason)
        final = isinstance(reason, PeerNotTrustedError | DecryptionError)
        if final and address in self.partner and not self.distrust.done():
            self.distrust.set_exception(reason)

    def forget(self) -> None:
        """Let nobody hear of distrust any more."""
        if not self.distrust.cancel():
            self.distrust.exception()

    async def unless_refused(self, work: Coroutine[object, object, None]) -> None:
        """Do something unless the partner and we do not trust each other.

        Raises:
            PeerNotTrustedError: that is so.
            DecryptionError: the partner has another pre-shared key.
        """
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait(
                (task, self.distrust), return_when=asyncio.FIRST_COMPLETED
            )
            if self.distrust.done() and not task.done():
                self.distrust.result()
            task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Meeting:
    """Two programs call each other.

    Args:
        as_client: who we are to the partner's server, and where that is.
        as_server: who we are to the partner's clients, and where they find us.
        sends: so many calls each.
        wait_s: how long to wait for the partner, in seconds.
        talk: where the log and the summary go.
        verbose: whether the log has everything.
    """

    def __init__(
        self,
        as_client: Config,
        as_server: Config,
        *,
        sends: int,
        wait_s: float,
        talk: Talk,
        verbose: bool,
    ) -> None:
        self._as_client = as_client
        self._as_server = as_server
        self._sends = sends
        self._wait_s = wait_s
        self._talk = talk
        self._verbose = verbose
        self._received = 0
        self._all_received = asyncio.Event()

    async def run(
        self, client_key: LoadedIdentity | None, server_key: LoadedIdentity | None
    ) -> None:
        """Meet the partner; return when both have made their calls.

        Raises:
            DeadlineError: the partner has not made its calls.
            ConnectFailedError: it cannot be reached.
            PeerNotTrustedError: the partner and we do not trust each other.
        """
        registry = Registry()
        registry.add_call(ECHO_CALL_SERVICE, self._echo)
        log = _PartnerLog(self._talk, verbose=self._verbose)
        server = Server(self._as_server, registry, log)
        await server.start(server_key)
        try:
            click.echo(f"samesame: listening on {server.address}")
            log.partner = await _places(self._as_client.address)
            # From the port that we serve on.
            own = parse_address(server.address)
            config = replace(self._as_client, local_address=own)
            await log.unless_refused(self._exchange(config, client_key))
            await server.wait_until_idle()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    await log.alone.wait()
        finally:
            log.forget()
            await server.aclose()
        self._talk.say(f"samesame: sent {self._sends} calls, received {self._received}")

    async def _echo(self, context: CallContext) -> Reply:
        self._received += 1
        text = bytes(context.payload).decode("utf-8", "replace")
        click.echo(f"received call {self._received}: {printable(text)}")
        if self._received >= self._sends:
            self._all_received.set()
        return await echo_call(context)

    async def _exchange(self, config: Config, key: LoadedIdentity | None) -> None:
        for number in range(1, self._sends + 1):
            reply = await self._call(config, key, number)
            click.echo(f"reply to call {number}: {printable(reply)}")
        try:
            async with asyncio.timeout(self._wait_s):
                await self._all_received.wait()
        except TimeoutError as exc:
            raise DeadlineError(
                f"sent {self._sends} calls, but received {self._received} of "
                f"{self._sends} from the partner within {self._wait_s:g} s"
            ) from exc

    async def _call(
        self, config: Config, key: LoadedIdentity | None, number: int
    ) -> str:
        """Make one call on a new connection; wait for the partner to be there."""
        async with await self._connected(config, key) as client:
            request = f"call {number}: {ECHO_REQUEST}".encode()
            reply = await client.call(ECHO_CALL_SERVICE, request)
            return bytes(reply.payload).decode("utf-8", "replace")

    async def _connected(self, config: Config, key: LoadedIdentity | None) -> Client:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._wait_s
        while True:
            left_s = max(_ATTEMPT_S, round(give_up_at - loop.time(), 1))
            attempt_s = min(left_s, self._as_client.connect_timeout_s)
            try:
                return await Client.connect(
                    replace(config, connect_timeout_s=attempt_s), key
                )
            except (ConnectFailedError, DeadlineError):
                if loop.time() + _RETRY_S > give_up_at:
                    raise
                await asyncio.sleep(_RETRY_S)


async def _places(address: Address) -> frozenset[str]:
    """Return the addresses that a host and port stand for; none for an unknown name.

    Whoever dials a name that does not resolve is told so.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            address.host or "127.0.0.1", address.port
        )
    except (OSError, UnicodeError):
        return frozenset()
    return frozenset(format_address(endpoint) for *_, endpoint in found)
