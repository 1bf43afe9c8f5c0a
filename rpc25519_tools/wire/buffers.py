"""Memory for the bodies of frames, used again and again.

A transfer fills a mebibyte several hundred times a second. Fresh memory each time would
be zeroed, faulted in and given back, and leaves the heap in pieces.
"""

import sys
from typing import Final

from rpc25519_tools.wire.constants import MIB

#: A part of a file with its header fits in.
POOLED_LEN: Final = MIB + 16 * 1024
#: Shorter bodies are not worth a pooled buffer.
_POOLED_FROM_LEN: Final = 128 * 1024
#: What is kept for good, 8 MiB for one event loop.
_KEPT: Final = 8

#: References to a buffer that nobody uses: the pool's list, the loop's variable, and
#: the argument of getrefcount. A view of a buffer holds a reference to it.
_UNUSED_REFERENCES: Final = 3


class BufferPool:
    """Buffers for frame bodies, for the use of one thread.

    A buffer is free again when nothing refers to it any more, neither a frame nor the
    payload of a message, in whatever thread that was. Nobody has to give it back.
    """

    def __init__(self) -> None:
        self._buffers: list[bytearray] = []

    def allocate(self, body_len: int) -> bytearray:
        """Return at least the first part of the memory for a body.

        Args:
            body_len: the announced length; memory beyond POOLED_LEN is left to the
                caller, who adds it when bytes have really come.

        Returns:
            A buffer of ``body_len`` bytes, or of POOLED_LEN bytes.
        """
        if body_len < _POOLED_FROM_LEN:
            return bytearray(body_len)
        for buffer in self._buffers:
            if sys.getrefcount(buffer) == _UNUSED_REFERENCES:
                return buffer
        buffer = bytearray(POOLED_LEN)
        if len(self._buffers) < _KEPT:
            self._buffers.append(buffer)
        return buffer
