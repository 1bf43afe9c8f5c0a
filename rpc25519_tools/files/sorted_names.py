"""Names in the order of their bytes, however many there are, in little memory.

Directories give their names in no order. Up to some thousands are sorted in memory;
more go, in sorted runs, to a temporary file without a name, and are merged while they
are read. A walk through a tree has one directory open inside the other, so the file is
used as a stack: what was written last is given up first.

All of this blocks; call it from a worker thread, one at a time.
"""

import heapq
import os
import tempfile
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import BinaryIO, Final, Self

from rpc25519_tools.errors import LocalFileError

#: So many names are sorted at a time, and twice as many are held in memory: with what
#: Python needs for each, about a mebibyte.
RUN_NAMES: Final = 8192
#: A run is read in blocks of so many bytes; ten million names are some 1200 runs.
_BLOCK_LEN: Final = 4096


class NameSpool:
    """Memory and a temporary file for the names of nested directories.

    Args:
        run_names: how many names are sorted at a time.
    """

    def __init__(self, run_names: int = RUN_NAMES) -> None:
        self._run_names = run_names
        self._held_names = 0
        self._file: BinaryIO | None = None
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the file; later calls do nothing."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def sort(self, names: Iterable[bytes]) -> "SortedNames":
        """Take all names, which have no NUL in them.

        Returns:
            An iterator over them in order. Close it after all that were made later.

        Raises:
            OSError: they could not be read, or there is no room for them.
        """
        start = self._end
        runs: list[tuple[int, int]] = []
        run: list[bytes] = []
        for name in names:
            run.append(name)
            if len(run) == self._run_names:
                runs.append(self._write(sorted(run)))
                run = []
        run.sort()
        if run and (runs or self._held_names + len(run) > 2 * self._run_names):
            runs.append(self._write(run))
            run = []
        self._held_names += len(run)
        readers = [self._read(*where) for where in runs]
        merged = heapq.merge(*readers) if readers else iter(run)
        return SortedNames(self, merged, start, len(run))

    def give_up(self, start: int, held_names: int) -> None:
        """Forget what was written from ``start`` on, and so many names in memory."""
        self._end = start
        self._held_names -= held_names

    def _write(self, names: list[bytes]) -> tuple[int, int]:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # see close
        start = self._end
        text = memoryview(b"\0".join(names) + b"\0")
        while text:
            written = os.pwrite(self._file.fileno(), text, self._end)
            self._end += written
            text = text[written:]
        return start, self._end

    def _read(self, start: int, end: int) -> Iterator[bytes]:
        rest = b""
        while start < end:
            assert self._file is not None, "closed"
            length = min(_BLOCK_LEN, end - start)
            block = os.pread(self._file.fileno(), length, start)
            if not block:
                raise LocalFileError("a temporary file has been cut short")
            start += len(block)
            *names, rest = (rest + block).split(b"\0")
            yield from names


class SortedNames:
    """An iterator over sorted names; made by `NameSpool.sort`."""

    def __init__(
        self, spool: NameSpool, names: Iterator[bytes], start: int, held_names: int
    ) -> None:
        self._spool = spool
        self._names = names
        self._start = start
        self._held_names = held_names
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._names)

    def close(self) -> None:
        """Give its room back; later calls do nothing."""
        if not self._closed:
            self._closed = True
            self._names = iter(())
            self._spool.give_up(self._start, self._held_names)
