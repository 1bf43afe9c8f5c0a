"""What two threads know of the files that stay open is changed by one at a time."""

import os
import random
import threading
from pathlib import Path

import pytest

from rpc25519_tools.sync import receiver
from rpc25519_tools.sync.seeking import Seeking
from tests.sync.trees import Trees, push

pytestmark = pytest.mark.usefixtures("no_leaked_fds")


class Watched(Seeking):
    """Sees that the count of open files changes only under the lock."""

    counts: list[int]

    @property
    def _rescued(self) -> int:
        return self.counts[-1]

    @_rescued.setter
    def _rescued(self, count: int) -> None:
        lock: threading.Lock | None = getattr(self, "_lock", None)
        assert lock is None or lock.locked()  # None: it is being made
        self.counts.append(count)


def write(path: Path, seed: int, length: int) -> None:
    path.write_bytes(random.Random(seed).randbytes(length))


def test_open_files_are_counted_under_the_lock(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watched, "counts", [], raising=False)
    monkeypatch.setattr(receiver, "Seeking", Watched)
    source, _ = trees
    write(source / "log", 1, 300_000)
    write(source / "log.1", 2, 310_000)
    push(trees)
    os.rename(source / "log.1", source / "log.2")
    os.rename(source / "log", source / "log.1")
    write(source / "log", 3, 100_000)
    Watched.counts.clear()
    assert push(trees).totals.literal_bytes == 100_000
    assert max(Watched.counts) > 0, "a file was to be replaced that others need"
    assert Watched.counts[-1] == 0
