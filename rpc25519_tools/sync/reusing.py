"""Make unfinished files of what is here: chunks that are copied, blocks of chunks.

All of this blocks; one thread at a time.
"""

import os
from typing import Final

from blake3 import blake3

from rpc25519_tools.errors import FileChangedError, RemoteProtocolError
from rpc25519_tools.files.workers import StoppedError
from rpc25519_tools.sync.basis import Basis
from rpc25519_tools.sync.copying import clone, copy_range
from rpc25519_tools.sync.holes import has_holes, stretches
from rpc25519_tools.sync.pending import Pending
from rpc25519_tools.sync.records import SUM_LEN, Blocks, Refine
from rpc25519_tools.sync.refining import (
    MAX_RANGE,
    MAX_REFINED,
    MAX_STRETCH,
    block_sums,
)
from rpc25519_tools.sync.tree import Tree
from rpc25519_tools.sync.writing import Writing

#: Bytes that are copied before a look at whether that is still wanted.
_COPY_STEP: Final = 64 << 20


class Reusing:
    """Takes from local files what the sender says is in them.

    Args:
        tree: where they are.
        writing: where to.
        key: of the sums.
    """

    def __init__(self, tree: Tree, writing: Writing, key: bytes) -> None:
        self._tree = tree
        self._writing = writing
        self._key = key
        #: Whether nothing more is to be copied; may be set by any thread.
        self.stopped = False

    def copy(
        self, pending: Pending, number: int, first: int, count: int, at: int
    ) -> int:
        """Put a run of chunks where they belong; return how many bytes they have.

        Raises:
            RemoteProtocolError: there are none, or they cannot belong there.
            StoppedError: nothing is wanted any more.
            OSError: they cannot be copied.
        """
        basis, start, end = _extent(pending, number, first, count)
        if basis.in_place and start != at:
            raise RemoteProtocolError("the sender moves what is in place")
        self._writing.expect(pending, at, end - start, count)
        self._writing.open(pending)
        if not basis.in_place:
            try:
                basis.begin_copying(self._tree)
                self._copy_from(basis, pending, start, end, at)
            except FileChangedError:
                pending.spoiled = True  # what else comes of it has to be let pass
        # Only now: of a copy that was stopped, nothing counts.
        last = first + count
        sums = bytes(basis.sums[first * SUM_LEN : last * SUM_LEN])
        pending.pieces.extend(at, basis.lengths[first:last], (sums,))
        basis.used = True
        pending.matched += end - start
        return end - start

    def _copy_from(
        self, basis: Basis, pending: Pending, start: int, end: int, at: int
    ) -> None:
        """Copy within this machine; share blocks where the file system can."""
        assert pending.partial is not None
        fd = pending.partial.fd
        source_fd = basis.copy_fd
        if start == at == 0 and end == basis.status.st_size and clone(source_fd, fd):
            return
        if not has_holes(basis.status):
            self._copy_range(source_fd, fd, start, end - start, at)
            return
        for begin, length, is_data in stretches(source_fd, start, end):
            target = at + begin - start
            if is_data:
                self._copy_range(source_fd, fd, begin, length, target)
            else:
                self._writing.leave_out(pending, target, length)

    def _copy_range(
        self, source_fd: int, target_fd: int, start: int, length: int, at: int
    ) -> None:
        """Copy in steps, between which it may be stopped."""
        for done in range(0, length, _COPY_STEP):
            if self.stopped:
                raise StoppedError
            count = min(length - done, _COPY_STEP)
            copy_range(source_fd, target_fd, start + done, count, at + done)

    def refine(self, pending: Pending, record: Refine) -> Blocks:
        """Return the sums of the blocks of some chunks that are here.

        Raises:
            RemoteProtocolError: they are none, too many, or asked for again.
            OSError: they cannot be read.
        """
        self._writing.open(pending)  # which only a few files may be at a time
        if pending.refined:
            raise RemoteProtocolError("the sender asks for blocks of a file twice")
        sums = []
        for number, first, count in record.ranges:
            basis, start, end = _extent(pending, number, first, count)
            pending.refined += end - start
            if end - start > MAX_RANGE or pending.refined > MAX_REFINED:
                raise RemoteProtocolError("the sender asks for too many blocks")
            data = self._read(pending, basis, start, end - start)
            sums.append(block_sums(data, self._key))
        return Blocks(record.index, b"".join(sums))

    def patch(
        self, pending: Pending, number: int, offset: int, length: int, at: int
    ) -> int:
        """Put a stretch that is here where it belongs; return its length.

        Raises:
            RemoteProtocolError: there is none, or it cannot belong there.
            OSError: it cannot be read or written.
        """
        if not 0 < length <= MAX_STRETCH:
            raise RemoteProtocolError("the sender refers to a stretch of no length")
        if not 0 <= number < len(pending.bases):
            raise RemoteProtocolError("the sender refers to a file that we have not")
        basis = pending.bases[number]
        if offset + length > basis.cut_len:
            raise RemoteProtocolError("the sender refers to what we have not")
        if basis.in_place and offset != at:
            raise RemoteProtocolError("the sender moves what is in place")
        self._writing.expect(pending, at, length)
        self._writing.open(pending)
        data = self._read(pending, basis, offset, length)
        pending.pieces.add(at, length, blake3(data, key=self._key).digest())
        basis.used = True
        pending.matched += length
        if not basis.in_place:
            sparse = has_holes(basis.status)
            self._writing.write(pending, at, data, sparse=sparse)
        return length

    def _read(self, pending: Pending, basis: Basis, start: int, length: int) -> bytes:
        """Return bytes of a local file; where it has changed, other ones."""
        try:
            if not basis.in_place:
                basis.begin_copying(self._tree)
                fd = basis.copy_fd
            else:
                assert pending.partial is not None
                fd = pending.partial.fd
            data = os.pread(fd, length, start)
        except FileChangedError:
            data = b""
        pending.spoiled |= len(data) != length
        return data + bytes(length - len(data))


def _extent(
    pending: Pending, number: int, first: int, count: int
) -> tuple[Basis, int, int]:
    """Return the file that the sender's chunks lie in, and from where to where.

    Raises:
        RemoteProtocolError: there are none.
    """
    if not 0 <= number < len(pending.bases) or not count:
        raise RemoteProtocolError("the sender refers to a file that we have not")
    basis = pending.bases[number]
    # Another thread may be cutting it; the sums are what it notes last.
    if first + count > len(basis.sums) // SUM_LEN:
        raise RemoteProtocolError("the sender refers to a chunk that we have not")
    last = first + count - 1
    return basis, basis.offsets[first], basis.offsets[last] + basis.lengths[last]
