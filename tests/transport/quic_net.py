"""Two QUIC engines on a network that exists in memory only, with a clock of its own."""

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.transport.base import PeerCheck, TlsSettings
from rpc25519_tools.transport.quic_connection import Endpoint
from rpc25519_tools.transport.quic_engine import QuicEngine
from rpc25519_tools.transport.quic_first import first_packet

CLIENT: Endpoint = ("192.0.2.1", 50000)
SERVER: Endpoint = ("192.0.2.2", 8443)


@dataclass
class Path:
    """What the network does to datagrams.

    Attributes:
        loss, duplication: chances from 0 to 1.
        delay_s: how long each takes, plus up to ``jitter_s``.
        mtu: longer datagrams get lost.
    """

    loss: float = 0.0
    duplication: float = 0.0
    delay_s: float = 0.001
    jitter_s: float = 0.0
    mtu: int = 65535
    seed: int = 0
    dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def fates(self, size: int) -> list[float]:
        """Return after how long a datagram arrives, for each time that it does."""
        if size > self.mtu or self.dice.random() < self.loss:
            return []
        copies = 1 + (self.dice.random() < self.duplication)
        return [
            self.delay_s + self.dice.random() * self.jitter_s for _ in range(copies)
        ]


class Net:
    """A client, a server that may come to be, and what is on its way between them.

    Args:
        client: the client's engine.
        make_server: makes the server's, of the id that the client began with.
        path: what happens on the way.
    """

    def __init__(
        self,
        client: Any,
        make_server: Callable[[bytes], QuicEngine],
        path: Path | None = None,
    ) -> None:
        self.now = 1000.0
        self.client = client
        self.server: QuicEngine | None = None
        self.path = path or Path()
        self.client_endpoint = CLIENT
        #: Sizes of all datagrams that were sent, from and to.
        self.sent: list[tuple[Endpoint, int]] = []
        self._make_server = make_server
        self._in_flight: list[tuple[float, int, bytes, Endpoint, Endpoint]] = []
        self._order = itertools.count()

    @property
    def ends(self) -> list[QuicEngine]:
        return [self.client, *([self.server] if self.server is not None else [])]

    def connect(self) -> None:
        self.client.connect(SERVER, self.now)

    def flush(self) -> bool:
        """Take what both ends have to send; return whether there was anything."""
        found = False
        for end in self.ends:
            source = self.client_endpoint if end is self.client else SERVER
            while datagrams := end.outgoing(self.now):
                found = True
                for data, target in datagrams:
                    self.sent.append((source, len(data)))
                    for delay_s in self.path.fates(len(data)):
                        entry = (self.now + delay_s, next(self._order))
                        heapq.heappush(self._in_flight, (*entry, data, source, target))
        return found

    def run_for(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now + seconds
        while self.step(end):
            pass
        self.now = end

    def step(self, end: float = math.inf) -> bool:
        """Let the next thing happen; return whether there was one until then."""
        self.flush()
        times = [at for one in self.ends if (at := one.timer()) is not None]
        arrives = self._in_flight[0][0] if self._in_flight else None
        if min([*times, math.inf if arrives is None else arrives], default=end) >= end:
            return False
        if arrives is not None and (not times or arrives <= min(times)):
            self.now = max(self.now, arrives)
            _, _, data, source, target = heapq.heappop(self._in_flight)
            self._arrive(data, source, target)
            return True
        if not times:
            return False
        self.now = max(self.now + 1e-6, min(times))
        for one in self.ends:
            one.handle_timer(self.now)
        return True

    def _arrive(self, data: bytes, source: Endpoint, target: Endpoint) -> None:
        if target == SERVER:
            if self.server is None:
                first = first_packet(data)
                assert first is not None
                self.server = self._make_server(first.destination_id)
            self.server.receive(data, source, self.now)
        elif target == self.client_endpoint:
            self.client.receive(data, source, self.now)

    def run_until(self, done: Callable[[], bool], limit_s: float = 60.0) -> None:
        """Let time pass until something is so.

        Raises:
            AssertionError: it is not after that long, or nothing happens any more.
        """
        end = self.now + limit_s
        while not done():
            assert self.step(), "nothing happens any more"
            assert self.now < end, "it takes too long"


def engines(
    client: LoadedIdentity,
    server: LoadedIdentity,
    path: Path | None = None,
    *,
    verify: bool = True,
    careless: bool = False,
    client_check: PeerCheck | None = None,
    server_check: PeerCheck | None = None,
) -> Net:
    """Return two engines that know nothing of each other yet.

    A careless client does not check the server.
    """
    as_client = TlsSettings(
        identity=client, verify=verify and not careless, peer_check=client_check
    )
    as_server = TlsSettings(identity=server, verify=verify, peer_check=server_check)
    return Net(
        QuicEngine("client", as_client, peer_host="192.0.2.2"),
        lambda original: QuicEngine(
            "server", as_server, peer_host="192.0.2.1", original_id=original
        ),
        path,
    )


def opened(net: Net) -> tuple[QuicEngine, QuicEngine]:
    """Do the handshake; return client and server."""
    net.connect()
    net.run_until(lambda: all(end.is_open for end in net.ends) and len(net.ends) == 2)
    assert net.server is not None
    return net.client, net.server


def moved(net: Net, source: QuicEngine, target: QuicEngine, data: bytes) -> bytes:
    """Send bytes from one end to the other; return what arrives."""
    source.send(memoryview(data))
    got = bytearray()

    def take() -> bool:
        for chunk in target.arrived:
            got.extend(chunk)
            target.consume(len(chunk))
        target.arrived.clear()
        return len(got) >= len(data)

    net.run_until(take, limit_s=600.0)
    return bytes(got)
