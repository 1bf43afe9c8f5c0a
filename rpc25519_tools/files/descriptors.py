"""How many files all transfers, and those of one connection, may have open.

Descriptors are few, and connections need them too. A client that opens a thousand
transfers at a time gets an error for most of them; everybody else goes on.
"""

import contextlib
import functools
import resource
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Final, Self

from rpc25519_tools.errors import LocalFileError

#: A download has its file open.
PER_DOWNLOAD: Final = 1
#: An upload has its partial file and the directory open.
PER_UPLOAD: Final = 2
#: A listing has a directory open twice for moments, and perhaps a file of names.
PER_LISTING: Final = 3
#: A transfer that can carry on has its area and the directory of that open, too.
PER_AREA: Final = 2

#: One descriptor in so many is for transfers; three of four are for connections.
_SHARE: Final = 5
#: One connection gets one in so many of those.
_CONNECTION_SHARE: Final = 4
_LEAST: Final = 16
#: Where the system sets no limit.
_MOST: Final = 100_000


class OpenFiles:
    """Counts the descriptors of transfers; safe to use from several threads.

    Args:
        most: how many all transfers may have.
        most_per_connection: how many those of one connection may have.
    """

    def __init__(self, most: int, most_per_connection: int) -> None:
        self._most = most
        self._most_per_connection = most_per_connection
        self._lock = threading.Lock()
        self._by_connection: Counter[str] = Counter()
        self._count = 0

    @classmethod
    def fitting(cls, descriptors: int) -> Self:
        """Return what fits a process that may have so many descriptors."""
        most = max(_LEAST, min(descriptors // _SHARE, _MOST))
        return cls(most, most // _CONNECTION_SHARE)

    @property
    def count(self) -> int:
        """How many are reserved."""
        return self._count

    @contextlib.contextmanager
    def reserve(self, connection: str, count: int) -> Iterator[None]:
        """Reserve descriptors for the length of a ``with``.

        Args:
            connection: names it among all that are open: the peer's address.
            count: how many.

        Raises:
            LocalFileError: there are too many already; the text is for the peer.
        """
        with self._lock:
            if self._by_connection[connection] + count > self._most_per_connection:
                raise LocalFileError(
                    "this connection has too many files open; wait until some of "
                    "its transfers are done"
                )
            if self._count + count > self._most:
                raise LocalFileError(
                    "the server has too many files open; try again later"
                )
            self._change(connection, count)
        try:
            yield
        finally:
            with self._lock:
                self._change(connection, -count)

    def _change(self, connection: str, difference: int) -> None:
        self._count += difference
        self._by_connection[connection] += difference
        if not self._by_connection[connection]:
            del self._by_connection[connection]


@functools.cache
def open_files() -> OpenFiles:
    """Return the one count of this process, as its limit was at the first call."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    return OpenFiles.fitting(_MOST * _SHARE if unlimited else soft)
