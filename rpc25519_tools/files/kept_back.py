"""What is never served, even where it lies beneath a served directory.

Whoever may write a server's list of authorities, its access file or its lists of known
keys decides who is let in; whoever may read its keys can be anybody. The usual place of
those files is the directory in which the server runs, which is also what it serves when
no other is named.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rpc25519_tools.errors import LocalFileError, UnsafePathError
from rpc25519_tools.identity.access import fold
from rpc25519_tools.identity.printable import quoted


class KeptBack:
    """Names beneath one directory that may be neither read nor written.

    Names are compared as rules that deny are: case, Unicode forms, invisible
    characters, and dots and spaces at the end do not count, since there are file
    systems to which they do not. A file can have more names: short ones on FAT, hard
    links, that which a link has been made to lead to meanwhile. So what is opened is
    looked at, too.

    Args:
        root: the served directory.
        paths: files, which need not exist, and directories with all that is in them.

    Raises:
        LocalFileError: the served directory itself lies in one of them.
    """

    def __init__(
        self, root: str | os.PathLike[str], paths: Iterable[str | os.PathLike[str]]
    ) -> None:
        self._paths = [os.path.abspath(path) for path in paths]
        top = Path(os.path.realpath(root))
        self._kept: set[tuple[str, ...]] = set()
        for path in self._paths:
            # A link is kept back itself, as well as what it leads to.
            place = Path(os.path.realpath(os.path.dirname(path)))
            for real in (place / os.path.basename(path), Path(os.path.realpath(path))):
                if real == top or real in top.parents:
                    raise LocalFileError(
                        f"cannot serve {quoted(os.fspath(root))}: "
                        f"{quoted(path)} has keys or rules of the server"
                    )
                if top in real.parents:
                    parts = real.relative_to(top).parts
                    self._kept.add(tuple(map(fold, parts)))

    @property
    def deepest(self) -> int:
        """How many components the longest kept-back name has; 0 for none.

        A longer name is kept back only if one of the directories above it is.
        """
        return max(map(len, self._kept), default=0)

    def inodes(self) -> frozenset[tuple[int, int]]:
        """Return device and inode of what is kept back and there, as it is now."""
        found = set()
        for path in self._paths:
            with contextlib.suppress(OSError, ValueError):
                status = os.stat(path)
                found.add((status.st_dev, status.st_ino))
        return frozenset(found)

    def check(self, parts: Sequence[bytes], remote_name: str) -> None:
        """Check a name from the wire, taken apart.

        Raises:
            UnsafePathError: it is kept back.
        """
        if not self._kept:
            return
        names = tuple(fold(part.decode("utf-8", "surrogateescape")) for part in parts)
        for count in range(1, len(names) + 1):
            if names[:count] in self._kept:
                raise _reserved(remote_name)

    def check_found(self, found: os.stat_result, remote_name: str) -> None:
        """Check a file or directory that a name has led to.

        Raises:
            UnsafePathError: it is kept back, under whatever name.
        """
        for path in self._paths:
            with contextlib.suppress(OSError, ValueError):
                if os.path.samestat(os.stat(path), found):
                    raise _reserved(remote_name)

    def entries_of(
        self, parts: Sequence[bytes]
    ) -> Callable[[bytes, os.stat_result], bool]:
        """Return a check for many entries of one directory, without following links.

        It tells whether a name with that status is kept back, as `check` and
        `check_found` would; what the names lead to is looked up once, now.

        Args:
            parts: the directory's components.
        """
        here = tuple(fold(part.decode("utf-8", "surrogateescape")) for part in parts)
        kept_names = {
            kept[-1] for kept in self._kept if kept[:-1] == here
        }  # what lies deeper is beneath a directory that may be shown
        kept_files = set()
        for path in self._paths:
            for look in (os.stat, os.lstat):
                with contextlib.suppress(OSError, ValueError):
                    found = look(path)
                    kept_files.add((found.st_dev, found.st_ino))

        def is_kept_back(name: bytes, found: os.stat_result) -> bool:
            if (found.st_dev, found.st_ino) in kept_files:
                return True
            if not kept_names:
                return False
            return fold(name.decode("utf-8", "surrogateescape")) in kept_names

        return is_kept_back


def _reserved(remote_name: str) -> UnsafePathError:
    return UnsafePathError(
        f"refused {quoted(remote_name)}: "
        "the name is reserved for the server's own keys and rules"
    )
