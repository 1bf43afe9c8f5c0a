"""Numbers of the wire protocol, each with its arithmetic or precedent."""

from typing import Final

MIB: Final = 1 << 20

#: Every frame starts with these seven bytes; the eighth names the codec.
MAGIC: Final = bytes.fromhex("b35d1839ac8e1d")

#: Magic, codec byte and big-endian 64-bit body length.
FRAME_HEADER_LEN: Final = 16

#: Longest frame body as sent: 64 MiB - 80. One byte more is refused by a Go peer.
MAX_BODY_LEN: Final = 64 * MIB - 80

#: Longest body after unpacking that a Go peer survives: 64 MiB + 80.
MAX_PLAIN_LEN: Final = 64 * MIB + 80

#: Longest payload that a Go sender lets through: MAX_BODY_LEN - 1024.
MAX_PAYLOAD_LEN: Final = MAX_BODY_LEN - 1024

#: Payload bytes in one part of a file. A Go client loses its way when many smaller
#: parts arrive faster than it writes them, so parts are never smaller.
PART_LEN: Final = MIB
