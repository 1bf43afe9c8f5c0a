"""Tell the holes of a file from its data, where the file system knows them.

All of this blocks.
"""

import errno
import os
from collections.abc import Iterator
from typing import Final

#: Shorter holes are taken for data.
LEAST_HOLE: Final = 64 * 1024


def has_holes(status: os.stat_result) -> bool:
    """Tell whether a file takes less room than it has bytes."""
    return status.st_blocks * 512 < status.st_size


def stretches(fd: int, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Yield offset, length and whether it is data, of what lies between two places.

    A file that ends before, ends with a hole.
    """
    at = start
    while at < end:
        try:
            data = min(os.lseek(fd, at, os.SEEK_DATA), end)
        except OSError as exc:
            # ENXIO: nothing but a hole; anything else: no holes are told here.
            data = end if exc.errno == errno.ENXIO else at
        if data - at >= LEAST_HOLE or data == end:
            yield at, data - at, False
        else:
            data = at
        if data == end:
            return
        try:
            hole = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        except OSError:
            hole = end
        if hole <= data:  # a short hole that counts as data
            hole = min(data + LEAST_HOLE, end)
        yield data, hole - data, True
        at = hole
