"""What a peer had sent before its connection was reset."""

import asyncio
import socket
import struct

import pytest

from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.transport.tcp import TcpTransport
from tests.helpers import until
from tests.transport.peers import accepted, dialled, listening

#: Less than the kernel keeps for a reader that takes nothing.
DATA = bytes(range(256)) * 128


@pytest.mark.parametrize("network", ["tcp", "tls"])
async def test_what_came_before_a_reset_is_taken_also_when_writing_notices(
    network: str, node: LoadedIdentity, client: LoadedIdentity
) -> None:
    ours_is, theirs_is = (client, node) if network == "tls" else (None, None)
    async with listening(theirs_is) as found, dialled(found.address, ours_is) as ours:
        theirs = await accepted(found)
        assert isinstance(ours.transport, TcpTransport)
        theirs.transport.pause_reading()
        ours.transport.write([DATA])
        await until(lambda: not ours.transport.unsent_len)
        peer = socket.socket(fileno=ours.transport.fileno())
        how_to_reset = struct.pack("ii", 1, 0)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how_to_reset)
        peer.detach()
        ours.transport.abort()
        await until(lambda: ours.lost)
        while not theirs.lost:
            theirs.transport.write([b"is anybody there?"])
            await asyncio.sleep(0)
        assert isinstance(theirs.error, OSError)
        assert theirs.data == DATA
