"""Datagrams that belong to no QUIC connection: reads and answers them (sans-IO).

Source: RFC 8999, RFC 9000 sections 6 and 8; SECURITY-WIRE.md section 6.
"""

import os
from dataclasses import dataclass
from typing import Final

from aioquic.buffer import Buffer as QuicBuffer  # type: ignore[attr-defined]
from aioquic.quic.connection import (
    TRANSPORT_CLOSE_FRAME_CAPACITY,
)
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.packet_builder import (
    QuicPacketBuilder,
)
from aioquic.quic.retry import QuicRetryTokenHandler

from rpc25519_tools.transport.quic_connection import ID_LEN, Endpoint
from rpc25519_tools.transport.quic_mtu import BASE_LEN

#: Bytes of the id that a client makes up for the server, at least (RFC 9000, 7.2).
_SHORTEST_ID_LEN: Final = 8


class Doorman:
    """Answers to datagrams that belong to no connection; keeps nothing of them.

    A client that is told to try again shows that it can receive at its address.
    """

    def __init__(self) -> None:
        self._tokens = QuicRetryTokenHandler()

    def refuse_version(self, first: "FirstPacket") -> bytes:
        """Return what tells a client which version there is."""
        return encode_quic_version_negotiation(
            source_cid=first.destination_id,
            destination_cid=first.source_id,
            supported_versions=[QuicProtocolVersion.VERSION_1],
        )

    def retry(self, first: "FirstPacket", endpoint: Endpoint, now: float) -> bytes:
        """Return what tells a client to begin again, with proof of its address."""
        retry_id = os.urandom(ID_LEN)
        token = self._tokens.create_token(
            address=endpoint,
            original_destination_connection_id=first.destination_id,
            retry_source_connection_id=retry_id,
            now=now,
        )
        return encode_quic_retry(
            version=QuicProtocolVersion.VERSION_1,
            source_cid=retry_id,
            destination_cid=first.source_id,
            original_destination_cid=first.destination_id,
            retry_token=token,
        )

    def refuse(self, first: "FirstPacket") -> bytes:
        """Return what tells a client that nobody is let in (RFC 9000 section 5.2.2).

        It is far shorter than what it answers.
        """
        keys = CryptoPair()
        keys.setup_initial(
            cid=first.destination_id,
            is_client=False,
            version=QuicProtocolVersion.VERSION_1,
        )
        builder = QuicPacketBuilder(
            host_cid=first.destination_id,
            peer_cid=first.source_id,
            version=QuicProtocolVersion.VERSION_1,
            is_client=False,
            max_datagram_size=BASE_LEN,
        )
        builder.start_packet(QuicPacketType.INITIAL, keys)
        frame = builder.start_frame(
            QuicFrameType.TRANSPORT_CLOSE, capacity=TRANSPORT_CLOSE_FRAME_CAPACITY
        )
        frame.push_uint_var(QuicErrorCode.CONNECTION_REFUSED)
        frame.push_uint_var(QuicFrameType.PADDING)
        frame.push_uint_var(0)  # no words
        (datagram,), _ = builder.flush()
        return datagram

    def original_id(
        self, first: "FirstPacket", endpoint: Endpoint, now: float
    ) -> bytes | None:
        """Return the id that the client began with; None for a token not of ours."""
        try:
            return self._tokens.validate_token(
                address=endpoint,
                destination_cid=first.destination_id,
                token=first.token,
                now=now,
            )
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class FirstPacket:
    """A client's packet that may begin a connection.

    Attributes:
        is_ours: whether it has the version that we speak.
        destination_id: made up by the client.
        source_id: by which the client wants to be known.
        token: proof of its address, if we gave it one.
    """

    is_ours: bool
    destination_id: bytes
    source_id: bytes
    token: bytes


def destination_of(data: bytes) -> bytes | None:
    """Return the id that a datagram is for; None where it is no QUIC (RFC 8999)."""
    if len(data) <= ID_LEN:
        return None
    if not data[0] & 0x80:
        return data[1 : 1 + ID_LEN]
    length = data[5]
    if length > ID_LEN or len(data) < 7 + length:
        return None
    return data[6 : 6 + length]


def first_packet(data: bytes) -> FirstPacket | None:
    """Read a datagram that is for no connection we know; None where it begins none."""
    if len(data) < BASE_LEN or not data[0] & 0x80:
        return None
    try:
        header = pull_quic_header(QuicBuffer(data=data), host_cid_length=ID_LEN)
    except ValueError:
        return None
    if header.packet_type is QuicPacketType.VERSION_NEGOTIATION:
        return None
    is_ours = header.version == QuicProtocolVersion.VERSION_1
    if is_ours and (
        header.packet_type is not QuicPacketType.INITIAL
        or len(header.destination_cid) < _SHORTEST_ID_LEN
    ):
        return None
    return FirstPacket(is_ours, header.destination_cid, header.source_cid, header.token)
