"""Memory for large pieces of data, used again and again.

A transfer fills a mebibyte several hundred times a second. Fresh memory each time would
be zeroed, faulted in and given back, and leaves the heap in pieces.
"""

import sys
from typing import Final

from rpc25519_tools.wire.constants import MIB

#: A part of a file with its header fits in.
POOLED_LEN: Final = MIB + 16 * 1024
#: Shorter pieces are not worth a pooled buffer.
_POOLED_FROM_LEN: Final = 128 * 1024
#: What a body gets before any of it has come, and the pool is in use.
_START_LEN: Final = 16 * 1024

#: References to a buffer that nobody uses: the pool's list, the loop's variable, and
#: the argument of getrefcount. A view of a buffer holds a reference to it.
_UNUSED_REFERENCES: Final = 3


class BufferPool:
    """Buffers for bodies of frames, parts of files and the like.

    A buffer is free again when nothing refers to it any more, neither a frame nor the
    payload of a message, in whatever thread that was. Nobody has to give it back.
    ``allocate`` itself is for one thread at a time.

    Args:
        pooled_len: length of every pooled buffer.
        kept: how many buffers are kept for good.
    """

    def __init__(self, pooled_len: int = POOLED_LEN, *, kept: int = 16) -> None:
        self._pooled_len = pooled_len
        self._kept = kept
        self._buffers: list[bytearray] = []

    def allocate(self, wanted_len: int) -> bytearray:
        """Return memory for ``wanted_len`` bytes, or for the first of them.

        Args:
            wanted_len: how much is announced; memory beyond the pooled length is left
                to the caller, who adds it when bytes have really come.

        Returns:
            A buffer of exactly ``wanted_len`` bytes where that is little, else one of
            the pooled length. Its content is whatever was there before.
        """
        if wanted_len < _POOLED_FROM_LEN:
            return bytearray(wanted_len)
        return self._pooled() or bytearray(self._pooled_len)

    def allocate_start(self, wanted_len: int) -> bytearray:
        """Return memory for the first of ``wanted_len`` bytes, of which none has come.

        Returns:
            A buffer of the pool where one is free, which costs nothing, and little
            memory otherwise: five hundred peers that announce a mebibyte each, and send
            nothing, must not get it.
        """
        if wanted_len < _POOLED_FROM_LEN:
            return bytearray(wanted_len)
        return self._pooled() or bytearray(_START_LEN)

    def _pooled(self) -> bytearray | None:
        """Return a buffer of the pool, or None where all are in use."""
        for buffer in self._buffers:
            if sys.getrefcount(buffer) == _UNUSED_REFERENCES:
                return buffer
        if len(self._buffers) < self._kept:
            self._buffers.append(bytearray(self._pooled_len))
            return self._buffers[-1]
        return None
