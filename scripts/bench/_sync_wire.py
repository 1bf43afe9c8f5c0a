"""Bytes on the wire, and a wire that is slow.

Bytes are counted in a run of their own, by a proxy on loopback that both programs go
through: what it passes on, both ways, is exactly what TCP carries for them. On the slow
link the interface counts, headers and acknowledgements included, so that its runs need
not be made twice.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass

_BLOCK_LEN = 1 << 18
Address = tuple[str, int]


class CountingProxy:
    """Passes connections on to an address, and counts their bytes.

    Attributes:
        sent, received: bytes from the clients, and to them.
    """

    def __init__(self, target: Address) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address: Address = ("127.0.0.1", self._server.getsockname()[1])
        self.sent = self.received = 0
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "CountingProxy":
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone would not wake the thread that waits for a connection.
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(10)

    def _start(self, function: object, *args: object) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(self._target)
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._start(self._pass_on, client, server, "sent")
                self._start(self._pass_on, server, client, "received")

    def _pass_on(self, source: socket.socket, target: socket.socket, way: str) -> None:
        buffer = bytearray(_BLOCK_LEN)
        view = memoryview(buffer)
        with contextlib.suppress(OSError):
            while count := source.recv_into(buffer):
                target.sendall(view[:count])
                with self._lock:
                    setattr(self, way, getattr(self, way) + count)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@dataclass(frozen=True)
class Link:
    """Two network namespaces with a slow link between them.

    Attributes:
        near: runs a program in the clients' namespace.
        far: runs one in the servers' namespace.
        host: the servers' address.
        namespace: the clients'.
    """

    near: tuple[str, ...]
    far: tuple[str, ...]
    host: str
    namespace: str

    def counters(self) -> tuple[int, int]:
        """Return the bytes that clients have sent and received so far."""
        words = ["ip", "-n", self.namespace, "-s", "-j", "link", "show", "dev", "slow"]
        (found,) = json.loads(subprocess.check_output(words))
        return found["stats64"]["tx"]["bytes"], found["stats64"]["rx"]["bytes"]


@contextlib.contextmanager
def slow_link(rate: str) -> Iterator[Link | str]:
    """Make two namespaces and a veth pair that tbf slows down both ways.

    The machine's own network is left alone: clients have a namespace, too.

    Yields:
        The link, or why there can be none.
    """
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("tc")):
        yield "it needs root, ip and tc"
        return
    near, far = (f"rpc25519-bench-{os.getpid()}-{end}" for end in ("near", "far"))
    shape = f"tbf rate {rate} burst 128kb latency 50ms"
    lines = [
        f"ip netns add {near}",
        f"ip netns add {far}",
        f"ip -n {near} link add slow type veth peer name slow netns {far}",
    ]
    # Nobody else sees these addresses, of TEST-NET-1 (RFC 5737).
    for name, address in ((near, "192.0.2.1"), (far, "192.0.2.2")):
        lines += [
            f"ip -n {name} address add {address}/30 dev slow",
            f"ip -n {name} link set lo up",
            f"ip -n {name} link set slow up",
            f"tc -n {name} qdisc add dev slow root {shape}",
        ]
    try:
        problem = next(filter(None, map(_failure_of, lines)), None)
        inside = ("ip", "netns", "exec")
        yield problem or Link((*inside, near), (*inside, far), "192.0.2.2", near)
    finally:
        for name in (near, far):
            _failure_of(f"ip netns delete {name}")


def _failure_of(line: str) -> str | None:
    """Run a command; return why it failed, if it did."""
    done = subprocess.run(line.split(), capture_output=True, text=True, check=False)
    return f"{line}: {done.stderr.strip()}" if done.returncode else None
