"""Which certificates are sent, and which authorities are accepted."""

import shutil
from pathlib import Path

import pytest

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import KeyFileError, PeerNotTrustedError
from rpc25519_tools.identity.store import load_identity
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server
from rpc25519_tools.transport.base import Transport
from rpc25519_tools.transport.tls import TlsTransport


async def echo(context: CallContext) -> Reply:
    return Reply(payload=context.payload)


class Seen:
    """Keeps the server's ends of connections."""

    def __init__(self) -> None:
        self.transports: list[Transport] = []

    def connected(self, transport: Transport) -> None:
        self.transports.append(transport)

    def disconnected(self, transport: Transport, reason: Exception) -> None:
        pass

    def refused(self, address: str, reason: Exception) -> None:
        pass


async def start(certs: Path, seen: Seen | None = None) -> Server:
    registry = Registry()
    registry.add_call("echo", echo)
    config = Config(
        address=parse_address("127.0.0.1:0"), key_name="node", certs_dir=str(certs)
    )
    server = Server(config, registry, seen)
    await server.start()
    return server


def client_config(server: Server, certs: Path) -> Config:
    return Config(address=parse_address(server.address), certs_dir=str(certs))


def certificates_from_peer(transport: Transport) -> int:
    """Count what the peer sent; on a server the list leaves the peer's own out."""
    assert isinstance(transport, TlsTransport)
    return len(transport._ssl.get_peer_cert_chain(as_cryptography=True) or [])


async def test_both_sides_send_their_own_certificate_alone(certs: Path) -> None:
    # A Go peer records every certificate sent as a known key: an authority's key in
    # that file would let in whoever has a certificate of it.
    seen = Seen()
    server = await start(certs, seen)
    async with await Client.connect(client_config(server, certs)) as client:
        await client.call("echo", b"x")
        assert certificates_from_peer(client.transport) == 1
        assert certificates_from_peer(seen.transports[0]) == 0
    await server.aclose()


@pytest.fixture
def both(certs: Path, other_certs: Path, tmp_path: Path) -> Path:
    """The pairs of ``certs``, trusting the authority of ``other_certs`` as well."""
    directory = tmp_path / "both"
    shutil.copytree(certs, directory)
    own, other = (one / "ca.crt" for one in (certs, other_certs))
    (directory / "ca.crt").write_bytes(other.read_bytes() + own.read_bytes())
    return directory


async def test_every_authority_of_a_bundle_is_trusted(
    both: Path, certs: Path, other_certs: Path, tmp_path: Path
) -> None:
    server = await start(both)
    async with await Client.connect(client_config(server, certs)) as client:
        assert bytes((await client.call("echo", b"own")).payload) == b"own"
    other = tmp_path / "other"
    shutil.copytree(other_certs, other)
    (other / "ca.crt").write_bytes((both / "ca.crt").read_bytes())
    async with await Client.connect(client_config(server, other)) as client:
        assert bytes((await client.call("echo", b"other")).payload) == b"other"
    await server.aclose()


async def test_an_authority_outside_the_bundle_is_not_trusted(
    certs: Path, both: Path, other_certs: Path
) -> None:
    server = await start(certs)
    with pytest.raises(PeerNotTrustedError, match="authority"):
        async with await Client.connect(client_config(server, other_certs)) as client:
            await client.call("echo", b"x")
    await server.aclose()


def test_a_bundle_must_hold_authorities_only(both: Path) -> None:
    with (both / "ca.crt").open("ab") as bundle:
        bundle.write((both / "client.crt").read_bytes())
    with pytest.raises(KeyFileError, match="not a certificate authority"):
        load_identity(both, "client", None)
