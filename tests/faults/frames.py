"""What hostile peers send."""

import os

from rpc25519_tools.wire import codecs
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.constants import MAGIC, MAX_PLAIN_LEN
from rpc25519_tools.wire.framing import encode_frame
from rpc25519_tools.wire.message import Message
from tests.commands.hostile import (
    MIB,
    Wire,
)

ONE = os.urandom(MIB)
TWO = os.urandom(MIB)
WHOLE = ONE + TWO
BOMB_CODECS = (Codec.S2, Codec.LZ4, Codec.ZSTD_03)


def bomb(codec: Codec) -> bytes:
    """Make a short frame that unpacks to more than any frame may."""
    body = bytes(codecs.compress(codec, bytes(MAX_PLAIN_LEN + 1)))
    return MAGIC + bytes([codec]) + len(body).to_bytes(8, "big") + body


ABSURD_LENGTH = MAGIC + b"\0" + (1 << 62).to_bytes(8, "big")
GARBAGE = b"HTTP/1.1 200 OK\r\n\r\n" * 100


async def send_some_of(wire: Wire, message: Message) -> None:
    """Send the first half of a message, and then close."""
    whole = b"".join(encode_frame(message, Codec.NONE))
    await wire.send_bytes(whole[: len(whole) // 2])
    wire.transport.close()
