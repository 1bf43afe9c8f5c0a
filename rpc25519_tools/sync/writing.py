"""Write unfinished files: each byte once, zeros as holes where that is wanted.

All of this blocks; one thread at a time.
"""

import os
from typing import Final

from blake3 import blake3

from rpc25519_tools.errors import RemoteProtocolError
from rpc25519_tools.sync.destination import Destination
from rpc25519_tools.sync.holes import stretches
from rpc25519_tools.sync.outgoing import HOLE_SUM
from rpc25519_tools.sync.pending import PARTIAL_FROM, Pending
from rpc25519_tools.sync.pieces import Pieces
from rpc25519_tools.wire.greenpack import Buffer

#: Files that may be half written at a time; a sender of ours has one.
_MAX_BEGUN: Final = 4
#: Pieces of unfinished files together, some 50 bytes each.
_MAX_PIECES: Final = 1 << 21
#: Where no file system has a file.
_MAX_OFFSET: Final = (1 << 63) - 1
#: Zeros that are left out as a hole, if they are wanted to be.
_HOLE_LEN: Final = 32 * 1024
_ZEROS: Final = bytes(_HOLE_LEN)


class Writing:
    """Writes wanted files where they are not seen yet.

    Args:
        destination: where files go.
        key: of the sums.
        sparse: whether zeros become holes.
    """

    def __init__(self, destination: Destination, key: bytes, *, sparse: bool) -> None:
        self._destination = destination
        self._key = key
        self._sparse = sparse
        self._begun: set[int] = set()
        self._pieces = 0

    def expect(self, pending: Pending, at: int, length: int, count: int = 1) -> None:
        """See that pieces may belong to a file: each byte comes once.

        Raises:
            RemoteProtocolError: they may not.
        """
        pending.reach = max(pending.reach, at + length)
        if pending.reach > _MAX_OFFSET:
            raise RemoteProtocolError("contents came for no possible place of a file")
        if pending.pieces.covered + length > pending.reach:
            raise RemoteProtocolError("the pieces of a file overlap")
        self._pieces += count
        if self._pieces > _MAX_PIECES:
            raise RemoteProtocolError("the sender cuts files into too many pieces")

    def open(self, pending: Pending) -> None:
        """Have an unfinished file to write to.

        Raises:
            RemoteProtocolError: too many are begun.
            OSError: it cannot be made.
        """
        self._begun.add(pending.entry.index)
        if len(self._begun) > _MAX_BEGUN:
            raise RemoteProtocolError("too many files came at the same time")
        if pending.partial is None:
            area = self._destination.area
            if pending.entry.size >= PARTIAL_FROM:
                pending.partial = area.acquire(self._destination.key(pending.path))
                if pending.partial is not None:
                    os.ftruncate(pending.partial.fd, 0)
            if pending.partial is None:
                pending.partial = area.scratch(self._destination.key(pending.path))

    def forget(self, pending: Pending) -> None:
        """Let go of the pieces of a file."""
        self._begun.discard(pending.entry.index)
        self._pieces -= len(pending.pieces)
        pending.pieces = Pieces()
        pending.reach = 0

    def take(self, pending: Pending, at: int, data: Buffer) -> None:
        """Write what came of a file.

        Raises:
            RemoteProtocolError: it cannot belong there.
            OSError: it cannot be written.
        """
        if data:
            self.expect(pending, at, len(data))
        self.open(pending)
        if not data:
            return
        pending.pieces.add(at, len(data), blake3(data, key=self._key).digest())
        pending.literal += len(data)
        self.write(pending, at, data)

    def take_hole(self, pending: Pending, at: int, length: int) -> None:
        """Have a hole somewhere.

        Raises:
            RemoteProtocolError, OSError: see ``take``.
        """
        if not length:
            return
        self.expect(pending, at, length)
        self.open(pending)
        self.leave_out(pending, at, length)
        pending.pieces.add(at, length, HOLE_SUM)

    def write(
        self, pending: Pending, at: int, data: Buffer, *, sparse: bool = False
    ) -> None:
        """Write bytes to an open file; zeros as holes if that is wanted at all."""
        if not (sparse or self._sparse):
            self.write_all(pending, at, data)
            return
        view = memoryview(data)
        for begin in range(0, len(view), _HOLE_LEN):
            block = view[begin : begin + _HOLE_LEN]
            if block == _ZEROS[: len(block)]:
                self.leave_out(pending, at + begin, len(block))
            else:
                self.write_all(pending, at + begin, block)

    def write_all(self, pending: Pending, at: int, data: Buffer) -> None:
        """Write bytes to an open file, zeros or not."""
        assert pending.partial is not None
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += os.pwrite(pending.partial.fd, view[done:], at + done)

    def leave_out(self, pending: Pending, at: int, length: int) -> None:
        """Have zeros somewhere, as a hole where nothing was written before."""
        assert pending.partial is not None
        fd = pending.partial.fd
        size = os.fstat(fd).st_size
        # What is a hole already stays one.
        for start, count, is_data in stretches(fd, at, min(at + length, size)):
            end = start + count if is_data else start
            for begin in range(start, end, _HOLE_LEN):
                self.write_all(pending, begin, _ZEROS[: end - begin])
        if at + length > size:
            os.ftruncate(fd, at + length)
