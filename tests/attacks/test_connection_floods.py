"""Floods of connections that prove nothing: a good client is served all the same."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc25519_tools.identity.store import LoadedIdentity, load_identity
from rpc25519_tools.wire.constants import MAGIC
from tests.attacks.floods import (
    MIB,
    SERVED_S,
    memory_of,
    need_descriptors,
    serve_one,
    silent_sockets,
)
from tests.helpers import SrvProcess, open_fds, wait_until

#: More than the server lets be unproven, and more than it lets one address have.
FLOOD = 2000


@pytest.fixture(scope="module")
def client_identity(certs: Path) -> LoadedIdentity:
    return load_identity(certs, "client", None)


@pytest.fixture(params=["tls", "tcp"])
def attacked(
    request: pytest.FixtureRequest, certs: Path, client_identity: LoadedIdentity
) -> Iterator[tuple[SrvProcess, LoadedIdentity | None]]:
    need_descriptors(FLOOD)
    over_tls = request.param == "tls"
    with SrvProcess(*([] if over_tls else ["-tcp"]), certs=certs) as srv:
        yield srv, client_identity if over_tls else None
        assert srv.process.poll() is None
        assert "Traceback" not in srv.stderr()


Attacked = tuple[SrvProcess, LoadedIdentity | None]


@pytest.mark.parametrize("begun", [False, True], ids=["silent", "slow-loris"])
def test_a_good_client_connects_beside_two_thousand_silent_ones(
    attacked: Attacked, begun: bool
) -> None:
    srv, identity = attacked
    sent = b""
    if begun:
        sent = b"\x16\x03\x01\x02\x00\x01" if identity else MAGIC[:3]
    before = memory_of(srv)
    with silent_sockets(srv.address, FLOOD, sent):
        # The best of three, since this machine may be busy with other things.
        took_s = min(asyncio.run(serve_one(srv.address, identity)) for _ in range(3))
        growth = memory_of(srv) - before
        assert len(open_fds(srv.process.pid)) < 1100
    assert took_s < SERVED_S
    assert growth < 128 * MIB
    # One line tells of all that are refused, and some seconds later one more.
    assert srv.stderr().count("too many clients in their handshake") <= 2
    wait_until(lambda: len(open_fds(srv.process.pid)) < 50)
    if not (identity and begun):  # those have failed their handshakes, all of them
        assert asyncio.run(serve_one(srv.address, identity))


def test_a_good_client_connects_while_the_flood_goes_on(attacked: Attacked) -> None:
    srv, identity = attacked

    async def attack(until_done: asyncio.Event) -> int:
        host, port = srv.address.split(":")
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            count = 0
            while not until_done.is_set():
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                await loop.sock_connect(sock, (host, int(port)))
                count += 1
                if count >= FLOOD * 3:
                    break
                if count > FLOOD:
                    # As many as before, but always new ones.
                    stack.pop_all().close()
            return count

    async def scenario() -> None:
        done = asyncio.Event()
        flood = asyncio.create_task(attack(done))
        times = []
        for _ in range(5):
            await asyncio.sleep(0.05)
            times.append(await serve_one(srv.address, identity))
        done.set()
        assert await flood > 100
        assert min(times) < SERVED_S

    asyncio.run(scenario())
