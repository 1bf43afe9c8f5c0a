"""Files that come together are synced to the disk together."""

import os

import pytest

from rpc25519_tools.sync import durable, storing
from tests.sync.local import sync
from tests.sync.trees import Trees, with_options

pytestmark = pytest.mark.usefixtures("no_leaked_fds")


class Syncs:
    """Counts what is synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = 0
        self.file_systems = 0

        def fsync(fd: int) -> None:
            self.files += 1

        def sync_file_system(fd: int) -> bool:
            self.file_systems += 1
            return True

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(storing, "sync_file_system", sync_file_system)
        monkeypatch.setattr(durable, "sync_file_system", sync_file_system)


@pytest.mark.parametrize(
    ("count", "fsync", "files", "file_systems"),
    # The directory is synced for its names, and in the end for its time.
    [(3, True, 5, 0), (3, False, 0, 0), (50, True, 2, 1), (50, False, 0, 0)],
)
def test_files_are_synced_together(
    trees: Trees,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    fsync: bool,
    files: int,
    file_systems: int,
) -> None:
    for number in range(count):
        (trees[0] / f"{number}").write_bytes(b"x")
    syncs = Syncs(monkeypatch)
    sync([f"{trees[0]}/"], trees[1], with_options(fsync=fsync))
    assert (syncs.files, syncs.file_systems) == (files, file_systems)
