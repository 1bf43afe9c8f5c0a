"""QUIC clients and servers to be fuzzed, and the first datagrams of clients."""

import functools
import tempfile
from pathlib import Path

from rpc25519_tools.identity.store import LoadedIdentity, load_identity
from tests.attacks.quic_client import crypto_frame, initial
from tests.helpers import issue_certs
from tests.transport.quic_net import Net, engines


@functools.lru_cache(1)
def identities() -> tuple[LoadedIdentity, LoadedIdentity]:
    """Return those of a client and of a server."""
    with tempfile.TemporaryDirectory(prefix="fuzz-quic-") as name:
        certs = issue_certs(Path(name), "node", "client")
        return load_identity(certs, "client", None), load_identity(certs, "node", None)


def new_net() -> Net:
    """Return a client that has not begun, and a network with a server for it."""
    return engines(*identities())


@functools.lru_cache(1)
def hello() -> bytes:
    """Return the first message of a client, without packets around it."""
    net = new_net()
    net.connect()
    streams = net.client._quic._crypto_streams
    return bytes(next(iter(streams.values())).sender._buffer)


def quic_seeds() -> list[bytes]:
    """Return datagrams that begin a connection."""
    net = new_net()
    net.connect()
    ((genuine, _), *_) = net.client.outgoing(net.now)
    frames = crypto_frame(0, hello())
    return [genuine, genuine, initial(frames, destination_id=b"12345678")]
