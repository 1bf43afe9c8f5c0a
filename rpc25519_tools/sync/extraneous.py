"""What the source does not have: noted as it is found, and removed at the very end.

All of this blocks; one thread at a time.
"""

import tempfile
from collections.abc import Iterator
from typing import IO, Final

from rpc25519_tools.errors import UnsafePathError
from rpc25519_tools.sync.destination import Destination
from rpc25519_tools.sync.directories import Directories, DirState
from rpc25519_tools.sync.filters import FilterRules
from rpc25519_tools.sync.options import MAX_PATH_LEN, SyncOptions
from rpc25519_tools.sync.tree import Parts

#: Directories that are remembered since something in them is to be deleted; others get
#: their time before that.
_MAX_DELETING: Final = 1 << 18
#: Why what is in a directory stays.
UNLISTED: Final = "listing it is not allowed, so nothing in it is deleted"


class Extraneous:
    """Paths to be removed, any number of them: they wait in a temporary file.

    Args:
        destination: where they lie.
        options: of the sync.
        directories: those that wait for removals get their times after these.

    Attributes:
        removed: how many things were removed so far, or will be.
    """

    def __init__(
        self, destination: Destination, options: SyncOptions, directories: Directories
    ) -> None:
        self._destination = destination
        self._options = options
        self._directories = directories
        self._rules = FilterRules(options.rules)
        self._file: IO[bytes] | None = None
        self._deleting: list[DirState] = []
        self.removed = 0

    def note(self, state: DirState, names: Iterator[bytes]) -> None:
        """Note names in a directory that the source does not have."""
        # The root is only compared where its contents were named, as in "src/".
        is_compared = state.above is not None or state.entry is not None
        may_list = self._destination.tree.may("list", state.path)
        for name in names:
            if not is_compared:
                continue
            if not may_list:
                # What is deleted is told, and so would be what there is.
                self._directories.fail(state.path, UnsafePathError(UNLISTED))
                may_list, is_compared = True, False
                continue
            path = (*state.path, name)
            if self._destination.is_backup(path):
                continue
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  # to the end
            is_new = not self._deleting or self._deleting[-1] is not state
            if is_new and len(self._deleting) < _MAX_DELETING:
                self._deleting.append(state)
                state.open += 1
            self._file.write(b"/".join(path) + b"\0")

    def paths(self) -> Iterator[Parts]:
        """Yield what the source does not have, as it was found."""
        if self._file is None:
            return
        self._file.seek(0)
        rest = b""
        while block := self._file.read(1 << 16):
            *paths, rest = (rest + block).split(b"\0")
            for path in paths:
                yield tuple(path.split(b"/"))

    def is_protected(self, path: Parts, *, is_dir: bool) -> bool:
        """Tell whether the rules keep something from being deleted."""
        if self._options.delete_excluded or not self._options.rules:
            return False
        joined = b"/".join(path)
        return len(joined) > MAX_PATH_LEN or not self._rules.decide(
            joined, is_dir=is_dir
        )

    def end(self, touched: set[Parts]) -> None:
        """Finish the directories in which something was to be deleted."""
        for state in self._deleting:
            state.touched |= state.path in touched
            self._directories.close(state)
        self._deleting = []
        if self._file is not None:
            self._file.close()
            self._file = None

    def may_not_remove(self, count: int) -> bool:
        """Tell whether so many more removals would be too many."""
        limit = self._options.max_delete
        return limit is not None and self.removed + count > limit
