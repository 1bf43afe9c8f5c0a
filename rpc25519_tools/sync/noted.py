"""Note a great many files, and find them by length, time and name.

Each takes 30 to 40 bytes and its path, and there is an end to them: trees of a million
files cost no more than those of a hundred thousand. To find one takes a bounded number
of steps, however many are alike.
"""

from array import array
from bisect import bisect_left
from collections.abc import Hashable, Iterator
from typing import Final

from rpc25519_tools.sync.tree import Parts

#: Files that are noted, and bytes of their paths: 14 MiB at most, 9 for mostly short
#: paths.
MAX_NOTED: Final = 100_000
_MAX_PATHS_LEN: Final = 8 << 20
#: Steps to find files by one key, most of which lead to one. Who makes up lengths and
#: times could make many keys fall together.
_MAX_STEPS: Final = 1024
_BUCKETS: Final = 1 << 16
#: Times are noted without what goes beyond 64 bits.
_TIME_MASK: Final = (1 << 64) - 1


def join(path: Parts) -> bytes:
    """Return a path in less memory."""
    return b"/".join(path)


def split(joined: bytes) -> Parts:
    """Return the components of a joined path."""
    return tuple(joined.split(b"/")) if joined else ()


class _Chains:
    """Numbers from 0 on by a key that each has, the newest first, in 4 bytes each.

    It may give numbers that have another key, too.
    """

    def __init__(self) -> None:
        self._heads = array("I", bytes(4 * _BUCKETS))  # each number one higher; 0: none
        self._next = array("I")

    def add(self, key: Hashable) -> None:
        """Take the key of the next number."""
        bucket = hash(key) % _BUCKETS
        self._next.append(self._heads[bucket])
        self._heads[bucket] = len(self._next)

    def find(self, key: Hashable) -> Iterator[int]:
        """Yield what may have a key."""
        number = self._heads[hash(key) % _BUCKETS]
        for _ in range(_MAX_STEPS):
            if not number:
                return
            yield number - 1
            number = self._next[number - 1]


class NotedFiles:
    """Files that are found by what is known of them."""

    def __init__(self) -> None:
        self._sizes = array("Q")
        self._times = array("Q")
        self._paths = bytearray()
        self._ends = array("I")
        self._by_size = _Chains()
        self._by_time = _Chains()
        self._by_name = _Chains()
        self._lengths: array[int] | None = None  # in order, each once

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def is_full(self) -> bool:
        """Whether no more files are noted."""
        return len(self) >= MAX_NOTED

    def note(self, path: Parts, size: int, mtime_ns: int) -> None:
        """Note a file, if there is room."""
        joined = join(path)
        if self.is_full or len(self._paths) + len(joined) > _MAX_PATHS_LEN:
            return
        time = mtime_ns & _TIME_MASK
        self._sizes.append(size)
        self._times.append(time)
        self._paths += joined
        self._ends.append(len(self._paths))
        # Plain numbers are their own hashes, and lengths are often multiples.
        self._by_size.add((size,))
        self._by_time.add((size, time))
        self._by_name.add(path[-1])
        if self._lengths is not None:
            at = bisect_left(self._lengths, size)
            if self._lengths[at : at + 1] != array("Q", [size]):
                self._lengths.insert(at, size)

    def of_time(self, size: int, mtime_ns: int) -> Iterator[Parts]:
        """Yield files of a length and a time of change."""
        time = mtime_ns & _TIME_MASK
        for number in self._by_time.find((size, time)):
            if self._sizes[number] == size and self._times[number] == time:
                yield self._path(number)

    def of_length(self, size: int) -> Iterator[Parts]:
        """Yield files of a length."""
        for number in self._by_size.find((size,)):
            if self._sizes[number] == size:
                yield self._path(number)

    def of_name(self, name: bytes, least: int) -> Iterator[Parts]:
        """Yield files of a name that have at least so many bytes."""
        for number in self._by_name.find(name):
            if self._sizes[number] >= least:
                path = self._path(number)
                if path[-1] == name:
                    yield path

    def nearest_length(self, size: int) -> int | None:
        """Return the length of a file that is next to another one; None: no files."""
        if self._lengths is None:
            self._lengths = array("Q", sorted(set(self._sizes)))
        at = bisect_left(self._lengths, size)
        around = self._lengths[max(at - 1, 0) : at + 1]
        return min(around, key=lambda length: abs(length - size), default=None)

    def _path(self, number: int) -> Parts:
        begin = self._ends[number - 1] if number else 0
        return split(bytes(self._paths[begin : self._ends[number]]))
