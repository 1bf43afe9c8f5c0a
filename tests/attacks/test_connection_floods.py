"""Floods of connections that prove nothing: a good client is served all the same."""

import asyncio
import contextlib
import math
import random
import socket
from typing import Final

import pytest

from rpc25519_tools.errors import HandshakeCutError
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.wire.constants import MAGIC
from tests.attacks.floods import (
    MIB,
    NEVER_LONGER_S,
    SERVED_S,
    WAYS,
    Attacked,
    burst,
    memory_of,
    need_descriptors,
    serve_one,
)
from tests.fuzz.live import client_hello, sample_hello
from tests.helpers import open_fds, wait_until
from tests.rpc.memory import MemoryTransport, Plan
from tests.transport.tunnels import HandMade

#: More than the server lets be unproven, and more than it lets one address have.
FLOOD: Final = 2000
TRIES: Final = 10
#: Where attackers come from whose failures would shut out their whole address.
ELSEWHERE: Final = "127.0.0.2"


@pytest.fixture(autouse=True)
def _descriptors() -> None:
    need_descriptors(FLOOD)


every_way = pytest.mark.parametrize("attacked", WAYS, indirect=True)

#: The first bytes of a handshake, as far as none has to be answered.
BEGUN: Final = {
    "tls": b"\x16\x03\x01\x02\x00\x01",
    "tcp": MAGIC[:3],
    "tls+psk": b"\x16\x03\x01\x02\x00\x01",
    "tcp+psk": sample_hello()[:100],
}


@every_way
@pytest.mark.parametrize("begun", [False, True], ids=["silent", "slow-loris"])
def test_a_good_client_connects_beside_two_thousand_that_come_at_once(
    attacked: Attacked, begun: bool
) -> None:
    srv = attacked.srv
    before = memory_of(srv)
    sent = BEGUN[attacked.way] if begun else b""
    with burst(srv.address, FLOOD, sent) as could_send:
        took_s = [attacked.serve() for _ in range(TRIES)]
        growth = memory_of(srv) - before
        assert len(open_fds(srv.process.pid)) < 1100
    assert max(took_s) < SERVED_S, took_s
    assert growth < 128 * MIB
    assert could_send == (FLOOD if begun else 0)
    # One line tells of all that are refused, and some seconds later one more.
    assert srv.stderr().count("too many clients in their handshake") <= 2
    wait_until(lambda: len(open_fds(srv.process.pid)) < 50)


@pytest.mark.parametrize("attacked", ["tls", "tls+psk", "tcp+psk"], indirect=True)
def test_a_good_client_connects_beside_two_thousand_halves_of_handshakes(
    attacked: Attacked, client_identity: LoadedIdentity
) -> None:
    """Each costs the server a signature before it falls silent.

    Some hundred of them are in front of the first try, half a millisecond each, and a
    whole one where they repeat the handshake of a good client over plain TCP. That is
    a failure, and shuts out their own address.
    """
    srv = attacked.srv
    before = memory_of(srv)
    sent, host = client_hello()[0], None
    if attacked.way == "tcp+psk":
        host = ELSEWHERE
        below = MemoryTransport(Plan(), "", "")
        sent = HandMade(below, side="server", identity=client_identity).hello()
    with burst(srv.address, FLOOD, sent, host=host) as could_send:
        first_s, *others_s = [attacked.serve() for _ in range(TRIES)]
        growth = memory_of(srv) - before
        assert len(open_fds(srv.process.pid)) < 1100
    assert first_s < NEVER_LONGER_S
    assert max(others_s) < SERVED_S, others_s
    assert growth < 192 * MIB
    assert could_send == FLOOD


@every_way
def test_a_good_client_connects_beside_two_thousand_that_send_garbage(
    attacked: Attacked,
) -> None:
    """Their failures shut out their own address, and not that of the others."""
    srv = attacked.srv
    before = memory_of(srv)
    sent = random.Random(2000).randbytes(200)
    with burst(srv.address, FLOOD, sent, host=ELSEWHERE) as could_send:
        first_s, *others_s = [attacked.serve() for _ in range(TRIES)]
        growth = memory_of(srv) - before
    assert first_s < NEVER_LONGER_S  # a second and a bit where the machine is busy
    assert max(others_s) < SERVED_S, others_s
    assert growth < 128 * MIB
    assert could_send == FLOOD
    about = [line for line in srv.stderr_lines() if f" {ELSEWHERE}" in line]
    assert 0 < len(about) < 100, len(about)


@every_way
def test_a_good_client_connects_while_the_flood_goes_on(attacked: Attacked) -> None:
    """Thousands come faster than they can be taken, so that the queue can be full.

    Who comes just then tries again a second later. One may be crowded out: the attack
    runs on the good client's own loop, which is late with its first bytes then.
    """
    srv = attacked.srv

    async def tried() -> float:
        try:
            return await serve_one(srv.address, attacked.who)
        except HandshakeCutError:
            return math.inf

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

    async def scenario() -> list[float]:
        done = asyncio.Event()
        flood = asyncio.create_task(attack(done))
        times = [await tried() for _ in range(TRIES)]
        done.set()
        assert await flood > 100
        return times

    took_s = sorted(asyncio.run(scenario()))
    assert took_s[TRIES * 7 // 10] < SERVED_S, took_s
    assert took_s[-2] < NEVER_LONGER_S, took_s
