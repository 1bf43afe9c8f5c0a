"""What the servers of these tests offer, and programs that run against them."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpc25519_tools import (
    CallContext,
    Config,
    OutgoingStream,
    PlainIncoming,
    PlainOutgoing,
    Registry,
    Reply,
    ServerObserver,
    Transport,
    parse_address,
)
from rpc25519_tools.blocking import BlockingClient, BlockingServer
from rpc25519_tools.config import Network
from rpc25519_tools.greenpack import array_record, zid

ROOT = Path(__file__).parent.parent.parent
#: Ends what hangs; longer than any program needs on a busy machine.
LIMIT_S = 20.0


@array_record
@dataclass
class Pair:
    a: int = zid(0, 0)
    b: int = zid(1, 0)


class Maths:
    """Methods for calls in the net/rpc style."""

    def __init__(self, services: "Services") -> None:
        self._services = services

    def add(self, pair: Pair) -> Pair:
        return Pair(pair.a + pair.b)

    async def wait(self, pair: Pair) -> Pair:
        await self._services.wait_for_ever()
        return pair


class Services(ServerObserver):
    """A server's services, and what it has seen.

    Attributes:
        waiting: handlers that wait for ever just now.
        cancelled: how many of them were cancelled.
        taken_len: bytes that came in one-way messages.
        left_s: what handlers of ``left`` found to be left of their time.
        addresses: of all clients that ever connected, in order.
        open: of those that are connected.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.cancelled = 0
        self.taken_len = 0
        self.left_s: list[float | None] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.registry = Registry()
        self.registry.register(Maths(self))
        self.registry.add_call("echo", self.echo)
        self.registry.add_call("where", self.where)
        self.registry.add_call("wait", self.wait)
        self.registry.add_call("wait plainly", self.wait_plainly)
        self.registry.add_call("left", self.left)
        self.registry.add_one_way("take", self.take)
        self.registry.add_upload("collect", self.collect)
        self.registry.add_download("count", self.count)
        self.registry.add_download("drip", self.drip)
        self.registry.add_bistream("upper", self.upper)

    def connected(self, transport: Transport) -> None:
        self.addresses.append(transport.remote_address)
        self.open.append(transport.remote_address)

    def disconnected(self, transport: Transport, reason: Exception) -> None:
        self.open.remove(transport.remote_address)

    def refused(self, address: str, reason: Exception) -> None:
        """Not of interest here."""

    async def wait_for_ever(self) -> None:
        self.waiting += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1

    async def echo(self, context: CallContext) -> Reply:
        return Reply(payload=context.payload, args=context.header.args)

    def where(self, context: CallContext) -> bytes:
        return context.remote_address.encode()

    async def wait(self, context: CallContext) -> None:
        await self.wait_for_ever()

    def wait_plainly(self, context: CallContext) -> None:
        self.waiting += 1
        context.cancellation.wait(LIMIT_S)
        self.waiting -= 1

    def left(self, context: CallContext) -> None:
        self.left_s.append(context.time_left_s)

    async def take(self, context: CallContext) -> None:
        self.taken_len += len(context.payload)

    def collect(self, context: CallContext, parts: PlainIncoming) -> bytes:
        return b" ".join(bytes(part.payload[:12]) for part in parts)

    def count(self, context: CallContext, out: PlainOutgoing) -> bytes:
        total = int(bytes(context.payload))
        for number in range(total):
            out.send(b"%d" % number, last=number == total - 1)
        return b"counted"

    async def drip(self, context: CallContext, out: OutgoingStream) -> None:
        await out.send(b"drop")
        await self.wait_for_ever()

    def upper(
        self, context: CallContext, parts: PlainIncoming, out: PlainOutgoing
    ) -> None:
        for part in parts:
            out.send(bytes(part.payload).upper(), last=part.last)


def config_of(
    certs: str | Path,
    address: str = "127.0.0.1:0",
    network: Network = "tls",
    **settings: Any,
) -> Config:
    return Config(
        address=parse_address(address),
        certs_dir=str(certs),
        network=network,
        **settings,
    )


@contextlib.contextmanager
def serving(certs: str | Path, network: Network = "tls") -> Iterator["Served"]:
    services = Services()
    config = config_of(certs, network=network)
    with BlockingServer(config, services.registry, services, grace_s=0) as server:
        yield Served(services, server, str(certs), network)


@dataclass
class Served:
    """A running server."""

    services: Services
    server: BlockingServer
    certs: str
    network: Network

    def client(self, **settings: Any) -> BlockingClient:
        config = config_of(self.certs, self.server.address, self.network, **settings)
        return BlockingClient(config)


class Program:
    """A function that runs in a process of its own; leaving ends the process.

    It writes lines that ``line`` returns, and may read those of ``tell``.

    Args:
        function: of a module of tests.
        args: its arguments.
    """

    def __init__(self, function: Callable[..., None], *args: str | Path) -> None:
        source = (
            f"import sys; from {function.__module__} import {function.__name__} as run;"
            "run(*sys.argv[1:])"
        )
        # Python 3.12 and later warn of every fork beside threads.
        flags = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
        self.process = subprocess.Popen(
            [sys.executable, *flags, "-c", source, *map(str, args)],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._watchdog = threading.Timer(LIMIT_S, self.process.kill)
        self._watchdog.start()

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        self.process.kill()
        self.process.communicate()

    def line(self) -> str:
        """Return the next line that it writes; empty when it has ended."""
        assert self.process.stdout is not None
        line: str = self.process.stdout.readline()
        return line.strip()

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def rest(self) -> tuple[int, str, str]:
        """Wait for its end; return its exit code, its last lines and its errors.

        The errors are those of its children as well.
        """
        stdout, stderr = self.process.communicate()
        return self.process.returncode, stdout.strip(), stderr


def run_program(
    function: Callable[..., None], *args: str | Path
) -> tuple[int, str, str]:
    with Program(function, *args) as program:
        return program.rest()


def say(line: object) -> None:
    print(line, flush=True)  # noqa: T201  # to the test


def tcp_sockets(kind: str = "tcp") -> set[str]:
    """Return the TCP sockets that this process holds, by the kernel's numbers."""
    ours = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            ours.add(os.readlink(f"/proc/self/fd/{fd}"))
    return {
        f"socket:[{line.split()[9]}]"
        for name in (f"/proc/net/{kind}", f"/proc/net/{kind}6")
        for line in Path(name).read_text().splitlines()[1:]
    } & ours


def udp_sockets() -> set[str]:
    """Return the UDP sockets that this process holds, by the kernel's numbers."""
    return tcp_sockets("udp")
