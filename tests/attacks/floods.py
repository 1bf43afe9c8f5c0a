"""What attacks are made of, and the client beside them that has to be served."""

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.files.echo import ECHO_CALL_SERVICE
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.rpc.client import Client
from tests.helpers import SrvProcess

MIB = 1 << 20
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


async def client_of(
    address: str, identity: LoadedIdentity | None, *, psk: str | None = None
) -> Client:
    """Connect over TLS with an identity, over plain TCP without, or in a tunnel."""
    config = Config(
        address=parse_address(address),
        network="tls" if identity and not psk else "tcp",
        pre_shared_key_path=psk,
        connect_timeout_s=20,
        call_timeout_s=20,
    )
    return await Client.connect(config, identity)


async def serve_one(address: str, identity: LoadedIdentity | None) -> float:
    """Connect and make a call, as good clients do; return how long it took."""
    began = time.monotonic()
    async with await client_of(address, identity) as client:
        reply = await client.call(ECHO_CALL_SERVICE, b"good")
        assert bytes(reply.payload).startswith(b"good")
        return time.monotonic() - began


class GoodClient:
    """Calls over and over while an attack goes on, and notes the longest wait."""

    def __init__(self) -> None:
        self.calls = 0
        self.longest_s = 0.0


@contextlib.asynccontextmanager
async def good_client(
    address: str, identity: LoadedIdentity | None, *, psk: str | None = None
) -> AsyncIterator[GoodClient]:
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

    async with await client_of(address, identity, psk=psk) as client:
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
