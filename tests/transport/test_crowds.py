"""Crowds of silent connections, and who goes on with a handshake among them."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import pytest
from OpenSSL import SSL

from rpc25519_tools.limits import Limits, Startups
from rpc25519_tools.transport.tls import tls_context
from tests.helpers import until
from tests.transport.tunnels import (
    CLIENT,
    SERVER,
    frame,
    settings,
    tunnel_dial,
    tunnel_listener,
)

LIMITS = Limits(max_startups=Startups(5, 100, 5))
#: Far more than may be unproven.
CROWD = 40


#: Where a crowd comes from; most systems have one loopback address, Linux has many.
ONE = ["127.0.0.1"] * CROWD
MANY = [f"127.0.0.{number}" for number in range(2, CROWD + 2)]
from_one_or_many = pytest.mark.parametrize(
    "hosts",
    [
        ONE,
        pytest.param(
            MANY,
            marks=pytest.mark.skipif(sys.platform != "linux", reason="one address"),
        ),
    ],
    ids=["one address", "many"],
)


@contextlib.asynccontextmanager
async def crowd(address: str, hosts: list[str]) -> AsyncIterator[None]:
    """Be many that say nothing, until all but some of them have been dropped."""
    host, port = address.rsplit(":", 1)
    ends = [
        await asyncio.open_connection(host, int(port), local_addr=(local, 0))
        for local in hosts
    ]
    try:
        await until(lambda: sum(reader.at_eof() for reader, _ in ends) >= CROWD - 5)
        yield
    finally:
        for _, writer in ends:
            writer.close()


@pytest.mark.parametrize("with_tls", [True, False])
async def test_who_has_failed_and_does_not_hang_up_takes_no_place(
    with_tls: bool,
) -> None:
    tls, tunnel = (SERVER, None) if with_tls else (None, settings(SERVER))
    limits = Limits(max_connections=8, max_failures_per_minute=0)
    async with tunnel_listener(tls=tls, tunnel=tunnel, limits=limits) as found:
        host, port = found.address.rsplit(":", 1)
        ends = [await asyncio.open_connection(host, int(port)) for _ in range(8)]
        for _, writer in ends:
            writer.write(b"\xff" * 64)
        await until(lambda: len(found.failures) == 8)
        client = await tunnel_dial(
            found.address,
            tls=CLIENT if with_tls else None,
            tunnel=None if with_tls else settings(CLIENT),
        )
        await until(lambda: found.accepted)
        assert not client.lost
        client.transport.abort()
        for _, writer in ends:
            writer.close()


async def fail_from(address: str, hosts: list[str]) -> None:
    """Send what is no handshake, once from each host; wait for the answers."""
    host, port = address.rsplit(":", 1)
    for local in hosts:
        reader, writer = await asyncio.open_connection(
            host, int(port), local_addr=(local, 0)
        )
        writer.write(b"\xff" * 64)
        await reader.read()
        writer.close()


@pytest.mark.parametrize("with_tls", [True, False])
@pytest.mark.parametrize(
    ("hosts", "most"),
    [
        (["127.0.0.1"] * 30, 10),
        pytest.param(
            [f"127.0.0.{n}" for n in range(2, 102)],
            50,
            marks=pytest.mark.skipif(sys.platform != "linux", reason="one address"),
        ),
    ],
    ids=["one address", "many"],
)
async def test_failures_are_a_few_lines_even_where_they_are_not_limited(
    with_tls: bool, hosts: list[str], most: int
) -> None:
    tls, tunnel = (SERVER, None) if with_tls else (None, settings(SERVER))
    limits = Limits(max_failures_per_minute=0)
    async with tunnel_listener(tls=tls, tunnel=tunnel, limits=limits) as found:
        await fail_from(found.address, hosts)
        assert len(found.failures) == most


@from_one_or_many
async def test_who_has_been_answered_in_tls_outlives_silent_ones(
    hosts: list[str],
) -> None:
    tls = SSL.Connection(tls_context(CLIENT, side="client", verify=False), None)
    tls.set_connect_state()
    async with tunnel_listener(tls=SERVER, tunnel=None, limits=LIMITS) as found:
        host, port = found.address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        while True:
            try:
                tls.do_handshake()
                break
            except SSL.WantReadError:
                with contextlib.suppress(SSL.WantReadError):
                    writer.write(tls.bio_read(65_536))
                tls.bio_write(await reader.read(65_536))
        async with crowd(found.address, hosts):
            assert not found.accepted
            writer.write(tls.bio_read(65_536))  # the rest of the handshake
            await until(lambda: found.accepted)
        writer.close()


@from_one_or_many
async def test_who_has_opened_a_tunnel_outlives_silent_ones(hosts: list[str]) -> None:
    tunnel = settings(SERVER)
    async with tunnel_listener(tls=None, tunnel=tunnel, limits=LIMITS) as found:
        client = await tunnel_dial(found.address, tls=None, tunnel=settings(CLIENT))
        async with crowd(found.address, hosts):
            client.transport.write([frame(b"at last")])
            await until(lambda: found.accepted[0].data)
        assert not client.lost
        client.transport.close()
