"""Remove at the destination what the source does not have, at the very end.

All of this blocks.
"""

import errno
import stat
from collections.abc import Iterator
from typing import Final

from rpc25519_tools.errors import Rpc25519Error, UnsafePathError
from rpc25519_tools.sync.destination import Destination
from rpc25519_tools.sync.extraneous import UNLISTED, Extraneous
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.tree import Parts, why

#: Things that are removed between two looks at whether somebody wants us to stop.
BATCH_LEN: Final = 256
#: Directories that get their old time back after something in them was removed.
_MAX_TOUCHED: Final = 1 << 18
_NOT_EMPTY: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST})


class Deleting:
    """Removes what was noted.

    Attributes:
        removed: since they were taken last: paths, directories with a slash.
        failed: likewise: what could not be removed, and why.
        left: how many were not because there were too many.
    """

    def __init__(
        self, destination: Destination, extraneous: Extraneous, options: SyncOptions
    ) -> None:
        self._destination = destination
        self._extraneous = extraneous
        self._options = options
        self._touched: set[Parts] = set()
        self._steps: Iterator[bool] | None = None
        self.removed: list[bytes] = []
        self.failed: list[tuple[bytes, str]] = []
        self.left = 0

    def step(self) -> bool:
        """Remove some things; return whether there may be more."""
        self.removed, self.failed = [], []
        if self._steps is None:
            # Not before: a generator that is never run to its end keeps all of this,
            # and the directories that it has open, until the collector comes.
            self._steps = self._run()
        steps = self._steps
        return all(next(steps, None) is not None for _ in range(BATCH_LEN))

    def _run(self) -> Iterator[bool]:
        for path in self._extraneous.paths():
            yield from self._remove(path)
        self._extraneous.end(self._touched)

    def _remove(self, top: Parts) -> Iterator[bool]:
        """Remove one thing and all beneath it, the deepest first."""
        if not self._is_directory(top):
            yield self._remove_one(top, is_dir=False)
            return
        if self._extraneous.is_protected(top, is_dir=True):
            return
        walks = [(top, self._names(top))]
        while walks:
            path, names = walks[-1]
            name = next(names, None)
            if name is None:
                walks.pop()
                yield self._remove_one(path, is_dir=True)
                continue
            below = (*path, name)
            if self._destination.is_backup(below):
                continue
            if not self._is_directory(below):
                yield self._remove_one(below, is_dir=False)
            elif not self._extraneous.is_protected(below, is_dir=True):
                walks.append((below, self._names(below)))

    def _names(self, path: Parts) -> Iterator[bytes]:
        try:
            if not self._destination.tree.may("list", path):
                raise UnsafePathError(UNLISTED)
            if not self._options.dry_run:
                self._destination.open_up(path)
            yield from self._destination.names(path)
        except (OSError, Rpc25519Error) as exc:
            self._fail(path, exc)

    def _is_directory(self, path: Parts) -> bool:
        try:
            old = self._destination.look(path[:-1], path[-1])
        except (OSError, Rpc25519Error):
            return False
        return old is not None and stat.S_ISDIR(old.status.st_mode)

    def _remove_one(self, path: Parts, *, is_dir: bool) -> bool:
        if not is_dir and self._extraneous.is_protected(path, is_dir=False):
            return True
        try:
            self._destination.check_removing(path[:-1], path[-1])
            if self._extraneous.may_not_remove(1):
                self.left += 1
                return True
            if not self._options.dry_run:
                self._destination.remove(path[:-1], path[-1], is_dir=is_dir)
            elif is_dir and self._keeps_something(path):
                return True
        except UnsafePathError:
            return True  # it is kept back: nobody is told that it is there
        except (OSError, Rpc25519Error) as exc:
            stays = isinstance(exc, OSError) and exc.errno in _NOT_EMPTY
            if not (is_dir and stays):
                self._fail(path, exc)
            return True
        self._extraneous.removed += 1
        if len(self._touched) < _MAX_TOUCHED:
            self._touched.add(path[:-1])
        self.removed.append(b"/".join(path) + (b"/" if is_dir else b""))
        return True

    def _keeps_something(self, path: Parts) -> bool:
        """Tell whether the rules would leave something in a directory."""
        if self._options.delete_excluded or not self._options.rules:
            return False
        walks = [path]
        while walks:
            here = walks.pop()
            for name in self._destination.names(here):
                below = (*here, name)
                is_dir = self._is_directory(below)
                if self._extraneous.is_protected(below, is_dir=is_dir):
                    return True
                if is_dir:
                    walks.append(below)
        return False

    def _fail(self, path: Parts, exc: Exception) -> None:
        if FileNotFoundError in (type(exc), type(exc.__cause__)):
            return  # somebody else was quicker
        self.failed.append((b"/".join(path), why(exc, "remove", path)[:1000]))
