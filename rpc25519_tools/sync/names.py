"""The names in a directory, sorted, whatever their number.

A directory with more names than fit well into memory is sorted in a temporary file.
All of this blocks.
"""

import heapq
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Final

from rpc25519_tools.sync.tree import Directory

#: Names that are sorted in memory.
RUN_LEN: Final = 1 << 16


def sorted_names(directory: Directory) -> Iterator[bytes]:
    """Yield the names in a directory in the order of their bytes.

    Raises:
        OSError: it cannot be read.
    """
    with ExitStack() as stack:
        run: list[bytes] = []
        runs: list[IO[bytes]] = []
        for name in unsorted_names(directory):
            run.append(name)
            if len(run) == RUN_LEN:
                runs.append(stack.enter_context(_spilled(run)))
                run = []
        run.sort()
        yield from heapq.merge(run, *map(_read_run, runs)) if runs else run


def unsorted_names(directory: Directory) -> Iterator[bytes]:
    """Yield the names in any order; its descriptor is closed after the last one."""
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.fd)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                yield os.fsencode(entry.name)
    finally:
        os.close(fd)


def _spilled(run: list[bytes]) -> IO[bytes]:
    """Write sorted names into a temporary file; NUL, which no name has, parts them."""
    run.sort()
    file = tempfile.TemporaryFile()  # noqa: SIM115  # the caller's stack closes it
    file.write(b"".join(name + b"\0" for name in run))
    file.seek(0)
    return file


def _read_run(file: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while block := file.read(1 << 16):
        *names, rest = (rest + block).split(b"\0")
        yield from names
