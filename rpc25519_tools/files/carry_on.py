"""Try a transfer again when the network fails, for as long as it gets anywhere."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias, TypeVar

from rpc25519_tools.errors import (
    ConnectFailedError,
    ConnectionLostError,
    DeadlineError,
    HandshakeCutError,
    RemoteCallError,
)
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.failures import SHUTTING_DOWN
from rpc25519_tools.rpc.reconnect import Backoff

T = TypeVar("T")

#: What another connection may cure. A peer that is not trusted stays so, and so does a
#: file that cannot be read or written.
NETWORK_FAILURES: Final = (
    ConnectionLostError,
    ConnectFailedError,
    DeadlineError,
    HandshakeCutError,
)


def is_network_failure(exc: BaseException) -> bool:
    """Tell whether another connection may cure a failure.

    Also to a server that is stopping: it may be back soon.
    """
    if isinstance(exc, RemoteCallError):
        return str(exc) == SHUTTING_DOWN
    return isinstance(exc, NETWORK_FAILURES)


#: Called by a job whenever something that it need not do again is done.
Progressed: TypeAlias = Callable[[], None]

#: Learns what failed, and how long the wait for the next attempt is, in seconds.
OnRetry: TypeAlias = Callable[[Exception, float], None]

_BACKOFF: Final = Backoff(first_s=0.2, longest_s=5.0)


async def with_retries(
    connect: Callable[[], Awaitable[Client]],
    job: Callable[[Client, Progressed], Awaitable[T]],
    retry_for_s: float,
    on_retry: OnRetry | None = None,
    *,
    backoff: Backoff = _BACKOFF,
) -> T:
    """Connect and do a job; after a network failure connect anew and do the rest.

    The first attempt to connect fails like any other call, and so does a connection
    over which not one byte has come: most likely it is a mistake, not a failure.

    Args:
        connect: makes a connection; this function closes it.
        job: what to do with it. It has to find out what it has done already.
        retry_for_s: how long to go on without any progress, in seconds, from when a
            failure was noticed; 0: not at all.
        on_retry: called before each wait.
        backoff: how long to wait between attempts; progress begins it anew.

    Returns:
        What the job returns.

    Raises:
        Exception: what the job failed with, at once if it was no network failure; the
            last failure, if the time is over.
    """
    loop = asyncio.get_running_loop()
    failures = 0
    since_s = 0.0
    heard = False

    def progressed() -> None:
        nonlocal failures
        failures = 0

    while True:
        client: Client | None = None
        try:
            client = await connect()
            return await _do(client, job, progressed)
        except (*NETWORK_FAILURES, RemoteCallError) as exc:
            if not is_network_failure(exc):
                raise
            heard = heard or (client is not None and client.has_heard)
            if not failures:
                since_s = loop.time()
            failures += 1
            wait_s = backoff.wait_s(failures)
            if not heard or loop.time() + wait_s >= since_s + retry_for_s:
                raise
            if on_retry is not None:
                on_retry(exc, wait_s)
        await asyncio.sleep(wait_s)


async def _do(
    client: Client, job: Callable[[Client, Progressed], Awaitable[T]], done: Progressed
) -> T:
    """Do the job and close the connection."""
    async with client:
        try:
            return await job(client, done)
        except (asyncio.CancelledError, *NETWORK_FAILURES):
            # Do not wait until a slow line has taken what is queued.
            client.transport.abort()
            raise
