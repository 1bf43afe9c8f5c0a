"""Transfers that are cut at a place, for tests of how they carry on."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from rpc25519_tools.errors import ConnectionLostError
from rpc25519_tools.files.area import AREA_NAME
from rpc25519_tools.files.download import download_file
from rpc25519_tools.files.landing import local_landing
from rpc25519_tools.files.parts import TransferSummary
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.wire.constants import PART_LEN
from tests.files.places import Place, connected, upload
from tests.helpers import until
from tests.rpc.memory import Plan
from tests.rpc.nets import Net

AREA = AREA_NAME.decode()
WHOLE = random.Random(7).randbytes(9 * PART_LEN + 77)
OLD = b"what was there before"


async def fetch(
    client: Client, place: Place, *, clobber: bool = True
) -> TransferSummary:
    return await download_file(
        client, "f", local_landing(str(place.local / "f"), clobber=clobber)
    )


@contextlib.contextmanager
def plan(net: Net, way: str, what: Plan) -> Iterator[None]:
    """Let something happen to the next connection's bytes."""
    assert net.memory is not None
    setattr(net.memory, way, what)
    yield
    setattr(net.memory, way, Plan())


async def move(net: Net, place: Place, way: str, **options: Any) -> TransferSummary:
    async with connected(net, place, compression="none") as client:
        if way == "up":
            return await upload(client, place, **options)
        return await fetch(client, place, **options)


async def cut(net: Net, place: Place, way: str, at: int) -> None:
    """Let a transfer fail after so many bytes, when what came is stored."""
    seen = len(place.records)
    kept = area_len(ends(place, way)[1].parent)
    kept += (at // PART_LEN - (2 if kept and way == "up" else 1)) * PART_LEN
    async with cuttable(net, place, way, at) as client:
        step = upload(client, place) if way == "up" else fetch(client, place)
        moving = asyncio.create_task(step)
        await until(lambda: area_len(ends(place, way)[1].parent) >= kept)
        client.transport.abort()
        with pytest.raises(ConnectionLostError):
            await moving
    await until(lambda: len(place.records) > seen)


@contextlib.asynccontextmanager
async def cuttable(net: Net, place: Place, way: str, at: int) -> AsyncIterator[Client]:
    """Connect; nothing more comes through after so many bytes."""
    with plan(net, way, Plan(stall_at=at)):
        async with connected(net, place, compression="none") as client:
            yield client


def ends(place: Place, way: str) -> tuple[Path, Path]:
    if way == "up":
        return place.local / "f", place.served / "f"
    return place.served / "f", place.local / "f"


async def upload_as(
    client: Client, place: Place, local: str, name: str, **options: Any
) -> TransferSummary:
    from rpc25519_tools.files.source import open_local_source
    from rpc25519_tools.files.upload import upload_file

    with open_local_source(str(place.local / local)) as source:
        return await upload_file(client, source, name, **options)


def area_len(directory: Path) -> int:
    area = directory / AREA
    return sum(one.stat().st_size for one in area.iterdir()) if area.exists() else 0
