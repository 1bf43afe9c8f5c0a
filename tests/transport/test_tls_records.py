"""The fast way to read records, on names that pyOpenSSL may drop one day."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from OpenSSL import SSL

from rpc25519_tools.identity.store import load_identity
from rpc25519_tools.transport.tls import tls_context
from rpc25519_tools.transport.tls_records import (
    FastRecords,
    PublicRecords,
    ReadEnd,
    Records,
    records_of,
)

KINDS: dict[str, Callable[[SSL.Connection], Records]] = {
    "fast": FastRecords,
    "public": PublicRecords,
}
both_kinds = pytest.mark.parametrize("kind", KINDS)


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
    # If this fails, transfers still work, an eighth slower: adapt FastRecords.
    assert isinstance(records_of(pair[0]), FastRecords)


def test_without_those_names_the_documented_way_is_taken(
    pair: tuple[SSL.Connection, SSL.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(SSL, "_ffi")
    assert isinstance(records_of(pair[0]), PublicRecords)


@both_kinds
def test_records_come_out_whole_and_in_order(
    kind: str, pair: tuple[SSL.Connection, SSL.Connection]
) -> None:
    client, server = pair
    records = KINDS[kind](server)
    sent = bytes(range(256)) * 256
    client.sendall(sent)
    carry(client, server)
    memory = bytearray(len(sent) + 100)
    view = memoryview(memory)
    assert records.read_into(view[:20_000]) == (20_000, ReadEnd.FULL)
    rest = len(sent) - 20_000
    assert records.read_into(view[20_000:]) == (rest, ReadEnd.DRAINED)
    assert records.read_into(view) == (0, ReadEnd.DRAINED)
    assert bytes(memory) == sent + bytes(100)


@both_kinds
def test_memory_shorter_than_a_record_is_never_overrun(
    kind: str, pair: tuple[SSL.Connection, SSL.Connection]
) -> None:
    client, server = pair
    client.sendall(b"x" * 1000)
    carry(client, server)
    memory = bytearray(40)
    end = KINDS[kind](server).read_into(memoryview(memory)[10:20])
    assert end == (10, ReadEnd.FULL)
    assert memory == bytes(10) + b"x" * 10 + bytes(20)


@both_kinds
def test_damage_and_the_end_are_told_apart(
    kind: str, pair: tuple[SSL.Connection, SSL.Connection]
) -> None:
    client, server = pair
    memory = memoryview(bytearray(100))
    client.shutdown()
    carry(client, server)
    assert KINDS[kind](server).read_into(memory) == (0, ReadEnd.CLOSED)
    server.sendall(b"hello")
    server.sendall(b"world")
    damaged = bytearray(server.bio_read(1 << 20))
    damaged[-1] ^= 1
    client.bio_write(damaged)
    records = KINDS[kind](client)
    assert records.read_into(memory) == (5, ReadEnd.FAILED)
    assert bytes(memory[:6]) == b"hello\0"
    assert "bad record mac" in records.failure


@both_kinds
def test_encrypted_output_is_taken_piece_by_piece(
    kind: str, pair: tuple[SSL.Connection, SSL.Connection]
) -> None:
    client, server = pair
    records = KINDS[kind](client)
    client.sendall(b"y" * 1000)
    memory = memoryview(bytearray(300))
    pieces = []
    while count := records.take_encrypted(memory):
        pieces.append(bytes(memory[:count]))
    assert [len(piece) for piece in pieces[:-1]] == [300, 300, 300]
    server.bio_write(b"".join(pieces))
    assert server.recv(2000) == b"y" * 1000
