"""Datagrams that belong to no QUIC connection, and what is answered to them."""

from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.transport.base import TlsSettings
from rpc25519_tools.transport.quic_connection import (
    ID_LEN,
)
from rpc25519_tools.transport.quic_engine import QuicEngine
from rpc25519_tools.transport.quic_first import Doorman, destination_of, first_packet
from tests.transport.quic_net import CLIENT, SERVER


def first_datagram(client: LoadedIdentity) -> bytes:
    engine = QuicEngine("client", TlsSettings(identity=client), peer_host="x")
    engine.connect(SERVER, 0.0)
    return engine.outgoing(0.0)[0][0]


def test_a_retry_has_to_be_answered_from_the_same_address(
    client: LoadedIdentity, node: LoadedIdentity
) -> None:
    doorman = Doorman()
    engine = QuicEngine("client", TlsSettings(identity=client), peer_host="x")
    engine.connect(SERVER, 0.0)
    data = engine.outgoing(0.0)[0][0]
    first = first_packet(data)
    assert first is not None
    assert first.token == b""
    retry = doorman.retry(first, CLIENT, 0.0)
    assert len(retry) < len(data)
    engine.receive(retry, SERVER, 0.0)
    second = first_packet(engine.outgoing(0.0)[0][0])
    assert second is not None
    assert doorman.original_id(second, CLIENT, 1.0) == first.destination_id
    assert doorman.original_id(second, ("192.0.2.77", 50000), 1.0) is None
    assert doorman.original_id(second, CLIENT, 60.0) is None
    assert Doorman().original_id(second, CLIENT, 1.0) is None


def test_another_version_is_told_ours(client: LoadedIdentity) -> None:
    data = bytearray(first_datagram(client))
    data[1:5] = b"\x0a\x0a\x0a\x0a"
    first = first_packet(bytes(data))
    assert first is not None
    assert not first.is_ours
    answer = Doorman().refuse_version(first)
    assert len(answer) < len(data)
    assert answer.endswith(b"\x00\x00\x00\x01")


@given(st.binary(max_size=1500))
def test_any_bytes_can_be_looked_at(data: bytes) -> None:
    found = destination_of(data)
    assert found is None or len(found) <= ID_LEN
    first = first_packet(data)
    assert first is None or len(data) >= 1200


def test_a_short_first_packet_is_not_answered(client: LoadedIdentity) -> None:
    """Or what is sent back could be more than what came."""
    assert first_packet(first_datagram(client)[:1199]) is None
