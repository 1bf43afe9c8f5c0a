"""What attacks are made of, and the client beside them that has to be served."""

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import pytest

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.files.echo import ECHO_CALL_SERVICE
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.framing import encode_frame
from rpc25519_tools.wire.message import Message
from tests.helpers import SrvProcess

MIB = 1 << 20
#: Of Linux; socket has it from Python 3.12 on.
_IP_BIND_ADDRESS_NO_PORT: Final = 24
#: A server that is good to a client answers it within this time, whatever goes on.
SERVED_S = 1.0
#: The same for each single call during an attack, on a machine that is busy itself.
NEVER_LONGER_S = 5.0


def need_descriptors(count: int) -> None:
    """Skip where the system does not let this process open so many sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 100:
        pytest.skip(f"only {hard} descriptors")
    if soft < count + 100:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, hard))


def memory_of(srv: SrvProcess, name: str = "VmRSS") -> int:
    """Return the memory that a server takes (VmRSS), or has ever taken (VmHWM)."""
    for line in Path(f"/proc/{srv.process.pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {name}")


@dataclass(frozen=True, slots=True)
class Tunnelled:
    """A good client of a server with a pre-shared key.

    Attributes:
        identity: who it is.
        psk_path: its key.
        over_tls: whether the tunnel is inside TLS, or on plain TCP.
    """

    identity: LoadedIdentity
    psk_path: Path
    over_tls: bool


#: How good clients come: over TLS, over plain TCP (None), or in a tunnel.
Who: TypeAlias = LoadedIdentity | Tunnelled | None


#: The networks of servers under attack, without and with a pre-shared key.
WAYS: Final = ("tls", "tcp", "tls+psk", "tcp+psk")


@dataclass(frozen=True, slots=True)
class Attacked:
    """A running server, and how a good client reaches it.

    Attributes:
        way: one of WAYS.
        srv: the process.
        who: the good client.
    """

    way: str
    srv: SrvProcess
    who: Who

    def serve(self) -> float:
        """Be a good client once; return how long it took."""
        return asyncio.run(serve_one(self.srv.address, self.who))


async def client_of(address: str, who: Who) -> Client:
    tunnel = who if isinstance(who, Tunnelled) else None
    over_tls = tunnel.over_tls if tunnel else who is not None
    config = Config(
        address=parse_address(address),
        network="tls" if over_tls else "tcp",
        pre_shared_key_path=str(tunnel.psk_path) if tunnel else None,
        connect_timeout_s=20,
        call_timeout_s=20,
    )
    return await Client.connect(
        config, who.identity if isinstance(who, Tunnelled) else who
    )


async def serve_one(address: str, who: Who) -> float:
    """Connect and make a call, as good clients do; return how long it took."""
    began = time.monotonic()
    async with await client_of(address, who) as client:
        reply = await client.call(ECHO_CALL_SERVICE, b"good")
        assert bytes(reply.payload).startswith(b"good")
        return time.monotonic() - began


class GoodClient:
    """Calls over and over while an attack goes on, and notes the longest wait."""

    def __init__(self) -> None:
        self.calls = 0
        self.longest_s = 0.0


@contextlib.asynccontextmanager
async def good_client(address: str, who: Who) -> AsyncIterator[GoodClient]:
    """Be served all the while; any failure of a call fails the test."""
    found = GoodClient()

    async def call_on(client: Client) -> None:
        while True:
            began = time.monotonic()
            reply = await client.call(ECHO_CALL_SERVICE, b"good" * 200)
            assert bytes(reply.payload).startswith(b"good")
            found.calls += 1
            found.longest_s = max(found.longest_s, time.monotonic() - began)
            await asyncio.sleep(0.01)

    async with await client_of(address, who) as client:
        task = asyncio.create_task(call_on(client))
        try:
            yield found
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    assert found.calls
    assert found.longest_s < NEVER_LONGER_S


def frame_of(message: Message, codec: Codec = Codec.NONE) -> bytes:
    """Pack a message, as it goes on the wire."""
    return b"".join(bytes(part) for part in encode_frame(message, codec))


@contextlib.contextmanager
def silent_sockets(
    address: str, count: int, sent: bytes = b""
) -> Iterator[Sequence[socket.socket]]:
    """Open sockets that send a few bytes, or none, and then nothing."""
    host, port = address.split(":")
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection((host, int(port))))
            sockets.append(sock)
            if sent:
                with contextlib.suppress(ConnectionError):
                    sock.sendall(sent)
        yield sockets


@contextlib.contextmanager
def burst(
    address: str, count: int, sent: bytes = b"", *, host: str | None = None
) -> Iterator[int]:
    """Open sockets all at once, without waiting for any; yield how many could send.

    Other than those of ``silent_sockets``, which wait like everybody else where the
    server's queue is full, they keep it full, if it can be filled.

    Args:
        address: where to.
        count: how many.
        sent: the few bytes that each of them sends.
        host: the address that they come from, where the system shall not choose it.
    """
    to, port = address.split(":")
    with contextlib.ExitStack() as stack:
        could_send = 0
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            if host is not None:
                # A port that is chosen here is taken for all destinations.
                sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((host, 0))
            with contextlib.suppress(BlockingIOError):
                sock.connect((to, int(port)))
            if sent:
                with contextlib.suppress(OSError):
                    could_send += sock.send(sent) == len(sent)
        yield could_send
