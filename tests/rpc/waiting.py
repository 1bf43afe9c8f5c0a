"""Servers whose handlers wait until they are told, for tests of how they end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.registry import Registry
from tests.helpers import until
from tests.rpc.offers import Waiting, services


def waiting_services() -> tuple[Registry, Waiting]:
    registry, waiting = services(), Waiting()
    registry.add_call("wait", waiting)
    registry.add_upload("wait", waiting)
    return registry, waiting


@contextlib.asynccontextmanager
async def waiting_call(
    client: Client, waiting: Waiting
) -> AsyncIterator[asyncio.Task[object]]:
    """Start a call that waits; it is over when this is left."""
    before = waiting.started
    call: asyncio.Task[object] = asyncio.create_task(client.call("wait", b""))
    await until(lambda: waiting.started > before)
    yield call
    if not call.done():
        call.cancel()
    await asyncio.wait([call])
    if not call.cancelled():
        call.exception()
