"""The names in a directory that is held open, sorted, whatever their number.

All of this blocks.
"""

import os
from collections.abc import Iterator
from typing import Final

from rpc25519_tools.files.sorted_names import NameSpool
from rpc25519_tools.sync.tree import Directory

#: Directories with fewer names are sorted in memory; of others, runs of so many names
#: go to a temporary file.
RUN_LEN: Final = 1 << 15


def sorted_names(directory: Directory) -> Iterator[bytes]:
    """Yield the names in a directory in the order of their bytes.

    Raises:
        OSError: it cannot be read.
    """
    with NameSpool(RUN_LEN) as spool:
        yield from spool.sort(unsorted_names(directory))


def unsorted_names(directory: Directory) -> Iterator[bytes]:
    """Yield the names in any order; its descriptor is closed after the last one."""
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.fd)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                yield os.fsencode(entry.name)
    finally:
        os.close(fd)
