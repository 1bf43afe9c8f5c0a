"""The fast way to read records, on names that pyOpenSSL may drop one day."""

import contextlib
from pathlib import Path

import pytest
from OpenSSL import SSL

from rpc25519_tools.identity.store import load_identity
from rpc25519_tools.transport.tls import tls_context
from rpc25519_tools.transport.tls_read import (
    RECORD_LEN,
    ReadRecord,
    public_record_reader,
    record_reader,
)

READERS = {"fast": record_reader, "public": public_record_reader}


@pytest.fixture
def pair(certs: Path) -> tuple[SSL.Connection, SSL.Connection]:
    identity = load_identity(certs, "node", None)
    client, server = (
        SSL.Connection(tls_context(identity, side=side, verify=False), None)
        for side in ("client", "server")
    )
    client.set_connect_state()
    server.set_accept_state()
    for _ in range(3):
        for one, other in ((client, server), (server, client)):
            with contextlib.suppress(SSL.WantReadError):
                one.do_handshake()
            carry(one, other)
    return client, server


def carry(one: SSL.Connection, other: SSL.Connection) -> None:
    with contextlib.suppress(SSL.WantReadError):
        other.bio_write(one.bio_read(1 << 20))


def test_this_pyopenssl_still_has_the_names_of_the_fast_way(
    pair: tuple[SSL.Connection, SSL.Connection],
) -> None:
    # If this fails, transfers still work, a tenth slower: adapt record_reader.
    assert record_reader(pair[0]).__name__ == "read"


@pytest.mark.parametrize("kind", READERS)
def test_records_come_out_whole_and_in_order(
    kind: str, pair: tuple[SSL.Connection, SSL.Connection]
) -> None:
    client, server = pair
    read: ReadRecord = READERS[kind](server)
    sent = bytes(range(256)) * 256
    client.sendall(sent)
    carry(client, server)
    memory = bytearray(len(sent) + 100)
    view, filled = memoryview(memory), 0
    while filled < len(sent):
        count = read(view[filled:])
        assert 0 < count <= RECORD_LEN
        filled += count
    with pytest.raises(SSL.WantReadError):
        read(view[filled:])
    assert bytes(memory) == sent + bytes(100)


@pytest.mark.parametrize("kind", READERS)
def test_memory_shorter_than_a_record_is_never_overrun(
    kind: str, pair: tuple[SSL.Connection, SSL.Connection]
) -> None:
    client, server = pair
    read = READERS[kind](server)
    client.sendall(b"x" * 1000)
    carry(client, server)
    memory = bytearray(40)
    assert read(memoryview(memory)[10:20]) == 10
    assert memory == bytes(10) + b"x" * 10 + bytes(20)


@pytest.mark.parametrize("kind", READERS)
def test_damage_and_the_end_are_told_apart(
    kind: str, pair: tuple[SSL.Connection, SSL.Connection]
) -> None:
    client, server = pair
    memory = memoryview(bytearray(100))
    client.shutdown()
    carry(client, server)
    with pytest.raises(SSL.ZeroReturnError):
        READERS[kind](server)(memory)
    server.sendall(b"hello")
    damaged = bytearray(server.bio_read(1 << 20))
    damaged[-1] ^= 1
    client.bio_write(damaged)
    with pytest.raises(SSL.Error) as caught:
        READERS[kind](client)(memory)
    assert not isinstance(caught.value, SSL.WantReadError)
