"""What clients that repeat a handshake can make a server keep in memory."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import pytest

from rpc25519_tools.config import parse_address
from rpc25519_tools.errors import (
    ConnectionLostError,
    DecryptionError,
    FrameTooLargeError,
)
from rpc25519_tools.limits import Limits
from rpc25519_tools.transport import unproven
from rpc25519_tools.transport.base import Receiver, Transport
from rpc25519_tools.transport.endpoint import connect
from rpc25519_tools.transport.unproven import SMALL_LEN
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.constants import MIB
from rpc25519_tools.wire.framing import encode_frame
from rpc25519_tools.wire.message import Header, Message
from rpc25519_tools.wire.tunnel import OVERHEAD_LEN
from tests.helpers import until
from tests.transport.peers import Listening, Recorder
from tests.transport.tunnels import (
    CLIENT,
    SERVER,
    settings,
    sniffed_hello,
    tunnel_dial,
    tunnel_listener,
    tunnel_of,
)

#: All first messages together get little more than the longest one.
LIMITS = Limits(
    max_memory_len=16 * MIB, max_message_len=4 * MIB, max_failures_per_minute=0
)
BUDGET = LIMITS.unproven_memory_len
#: Most systems have one loopback address, Linux has sixteen million.
two_addresses = pytest.mark.skipif(sys.platform != "linux", reason="one address")
LONGEST_CLAIM = (4 * MIB).to_bytes(8, "big")


def held_len(found: Listening) -> int:
    """Return the memory that partial messages of unproven clients really take."""
    tunnels = [tunnel_of(one.transport) for one in found.accepted]
    openers = [one._opener for one in tunnels if not one.is_proven]
    return sum(opener.held_len for opener in openers if opener is not None)


def frame_of(length: int) -> bytes:
    message = Message(payload=bytes(length), header=Header(call_id="x"))
    return b"".join(map(bytes, encode_frame(message, Codec.NONE)))


class Pusher:
    """Repeats a handshake and goes on with a message that will never open."""

    def __init__(self, found: Listening) -> None:
        self._found = found
        self.writer: asyncio.StreamWriter | None = None

    async def begin(self, claim: bytes = LONGEST_CLAIM) -> None:
        host, port = self._found.address.rsplit(":", 1)
        known = len(self._found.accepted)
        _, self.writer = await asyncio.open_connection(host, int(port))
        self.writer.write(sniffed_hello() + claim)
        await until(lambda: len(self._found.accepted) > known)
        self.receiver = self._found.accepted[-1]

    async def send(self, data: bytes) -> None:
        assert self.writer is not None
        self.writer.write(data)
        await self.writer.drain()

    async def push(self, length: int) -> None:
        """Send so much, as far as the server takes it."""
        with contextlib.suppress(ConnectionError):
            for _ in range(0, length, 64 * 1024):
                await self.send(bytes(64 * 1024))

    async def push_all_of(self, length: int) -> None:
        """Send so much, and wait until the server has it."""
        await self.push(length)
        await until(lambda: self.receiver.arriving_len >= length or self.receiver.lost)

    def hang_up(self) -> None:
        if self.writer is not None:
            self.writer.transport.abort()


@contextlib.asynccontextmanager
async def pushing(found: Listening, count: int = 1) -> AsyncIterator[list[Pusher]]:
    pushers = [Pusher(found) for _ in range(count)]
    try:
        for pusher in pushers:
            await pusher.begin()
        yield pushers
    finally:
        for pusher in pushers:
            pusher.hang_up()


async def dial_from(address: str, local: str) -> Recorder:
    """Connect from another address of this machine."""
    made: list[Recorder] = []

    def accept(transport: Transport) -> Receiver:
        made.append(Recorder(transport))
        return made[0]

    await connect(
        parse_address(address),
        tls=None,
        accept=accept,
        timeout_s=10.0,
        local=parse_address(f"{local}:0"),
        tunnel=settings(CLIENT),
    )
    return made[0]


async def test_what_a_hundred_push_is_bounded_and_a_good_client_is_served() -> None:
    most_len = 0
    async with (
        tunnel_listener(tls=None, tunnel=settings(SERVER), limits=LIMITS) as found,
        pushing(found, 100) as pushers,
    ):
        floods = [asyncio.create_task(one.push(3 * MIB)) for one in pushers]
        good = await tunnel_dial(found.address, tls=None, tunnel=settings(CLIENT))
        good.transport.write([frame_of(10)])  # as our clients do at once
        sent = frame_of(10)
        for _ in range(4):
            good.transport.write([frame_of(3 * MIB)])
            sent += frame_of(3 * MIB)
        served = found.accepted[-1]

        def is_served() -> bool:
            nonlocal most_len
            most_len = max(most_len, held_len(found))
            return len(served.data) == len(sent)

        await until(is_served)
        await asyncio.wait(floods)
        await until(lambda: sum(one.receiver.lost for one in pushers) > 90)
        dropped = [one.receiver for one in pushers if one.receiver.lost]
        assert all("too much memory" in str(one.error) for one in dropped)
        assert all(isinstance(one.error, ConnectionLostError) for one in dropped)
        assert BUDGET // 2 < most_len <= BUDGET + 100 * SMALL_LEN
        assert not served.lost
        good.transport.close()


async def test_as_many_as_like_may_hold_a_little() -> None:
    async with (
        tunnel_listener(tls=None, tunnel=settings(SERVER), limits=LIMITS) as found,
        pushing(found, 100) as pushers,
    ):
        for pusher in pushers:
            await pusher.send(bytes(SMALL_LEN - 1))
        await until(lambda: held_len(found) == 100 * SMALL_LEN)
        assert held_len(found) > BUDGET
        assert not any(one.lost for one in found.accepted)


async def test_an_announcement_takes_no_memory() -> None:
    async with (
        tunnel_listener(tls=None, tunnel=settings(SERVER)) as found,
        pushing(found, 20) as pushers,
    ):
        for pusher in pushers:
            await pusher.send(b"x")
        await until(lambda: all(one.arriving_len for one in found.accepted))
        assert held_len(found) <= 20 * 16 * 1024


async def test_who_has_stopped_in_the_middle_gives_way() -> None:
    async with (
        tunnel_listener(tls=None, tunnel=settings(SERVER), limits=LIMITS) as found,
        pushing(found) as (stopped,),
    ):
        await stopped.push_all_of(3 * MIB)
        assert held_len(found) == 4 * MIB
        good = await tunnel_dial(found.address, tls=None, tunnel=settings(CLIENT))
        sent = frame_of(3 * MIB)
        good.transport.write([sent])  # its first message, as of a client in Go
        await until(lambda: found.accepted[-1].data == sent)
        assert stopped.receiver.lost
        assert held_len(found) == 0
        assert "too much memory" in str(found.failures[0])
        good.transport.close()


@two_addresses
async def test_who_is_slow_gives_way_to_another_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with (
        tunnel_listener(tls=None, tunnel=settings(SERVER), limits=LIMITS) as found,
        pushing(found) as (slow,),
    ):
        await slow.push_all_of(MIB + MIB // 2)
        good = await dial_from(found.address, "127.0.0.2")
        sent = frame_of(3 * MIB)
        good.transport.write([sent])
        # It is the one that holds most, and both have begun just now.
        await until(lambda: found.accepted[-1].lost)
        assert [one.lost for one in found.accepted] == [False, True]
        monkeypatch.setattr(unproven, "PATIENCE_S", 0.0)
        again = await dial_from(found.address, "127.0.0.2")
        again.transport.write([sent])
        await until(lambda: found.accepted[-1].data == sent)
        assert slow.receiver.lost
        again.transport.close()


@two_addresses
async def test_a_crowd_does_not_push_out_the_first_message_of_another_address() -> None:
    async with (
        tunnel_listener(tls=None, tunnel=settings(SERVER), limits=LIMITS) as found,
        pushing(found, 30) as pushers,
    ):
        good = await dial_from(found.address, "127.0.0.2")
        floods = [asyncio.create_task(one.push(3 * MIB)) for one in pushers]
        sent = frame_of(MIB)
        good.transport.write([sent])
        served = found.accepted[-1]
        await until(lambda: served.lost or served.data == sent)
        assert not served.lost
        await asyncio.wait(floods)
        good.transport.close()


async def test_a_message_that_does_not_open_is_gone_with_its_connection() -> None:
    async with (
        tunnel_listener(tls=None, tunnel=settings(SERVER), limits=LIMITS) as found,
        pushing(found) as (pusher,),
    ):
        await pusher.push(4 * MIB)
        await until(lambda: pusher.receiver.lost)
        assert isinstance(pusher.receiver.error, DecryptionError)
        assert held_len(found) == 0
        (failure,) = found.failures
        assert isinstance(failure, DecryptionError)
        # There is room for the next one.
        good = await tunnel_dial(found.address, tls=None, tunnel=settings(CLIENT))
        sent = frame_of(4 * MIB - 1000)
        good.transport.write([sent])
        await until(lambda: found.accepted[-1].data == sent)
        good.transport.close()


async def test_who_hangs_up_in_the_middle_holds_nothing_any_more() -> None:
    async with (
        tunnel_listener(tls=None, tunnel=settings(SERVER), limits=LIMITS) as found,
        pushing(found) as (pusher,),
    ):
        await pusher.push_all_of(3 * MIB)
        pusher.hang_up()
        await until(lambda: pusher.receiver.lost)
        assert held_len(found) == 0
        async with pushing(found) as (other,):
            await other.push_all_of(3 * MIB)
            assert held_len(found) == 4 * MIB
            assert not other.receiver.lost


async def test_messages_over_the_limit_are_refused_when_announced() -> None:
    async with tunnel_listener(
        tls=None, tunnel=settings(SERVER), limits=LIMITS
    ) as found:
        pusher = Pusher(found)
        await pusher.begin((4 * MIB + OVERHEAD_LEN + 1).to_bytes(8, "big"))
        await until(lambda: pusher.receiver.lost)
        assert isinstance(pusher.receiver.error, FrameTooLargeError)
        assert pusher.receiver.error.limit == 4 * MIB + OVERHEAD_LEN
        pusher.hang_up()
