"""Lists of known keys for tests: what is in them, and how it is changed."""

from pathlib import Path

from rpc25519_tools.identity.certificate import peer_identity
from rpc25519_tools.identity.known_peers import KnownPeer, parse_list
from rpc25519_tools.identity.known_store import KnownStore
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply


def entry(identity: LoadedIdentity, address: str = "127.0.0.1") -> KnownPeer:
    return KnownPeer.of(peer_identity(identity.certificate), address)


def lines_of(path: Path) -> list[tuple[str, str, str]]:
    peers = parse_list(path.read_bytes(), "list").peers
    return [(one.address, one.key_id, one.emails) for one in peers]


def line(identity: LoadedIdentity, address: str = "127.0.0.1") -> tuple[str, str, str]:
    one = entry(identity, address)
    return one.address, one.key_id, one.emails


async def echo(context: CallContext) -> Reply:
    return Reply(payload=context.payload)


async def assert_works(client: Client) -> None:
    reply = await client.call("echo", b"hello")
    assert bytes(reply.payload) == b"hello"


def deny(store: KnownStore, path: Path, identity: LoadedIdentity) -> None:
    store.deny(entry(identity))


def remove(store: KnownStore, path: Path, identity: LoadedIdentity) -> None:
    gone = entry(identity).key_id
    kept = [one for one in path.read_text().splitlines() if gone not in one]
    path.chmod(0o644)
    path.write_text("\n".join(kept))
    path.chmod(0o444)
