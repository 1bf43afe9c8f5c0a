"""Each file system that was changed is synced, not only that of the root."""

import os
import sys
from collections.abc import Iterator

import pytest

from rpc25519_tools.errors import LocalFileError
from rpc25519_tools.sync import durable
from rpc25519_tools.sync.durable import FEW, Changes
from rpc25519_tools.sync.tree import Tree

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not os.path.ismount("/proc"),
    reason="needs two file systems",
)

ROOT = os.stat("/").st_dev


@pytest.fixture
def changes() -> Iterator[Changes]:
    """More was changed than is synced one by one."""
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        changes = Changes(Tree.local(b"/"), fd)
        for number in range(FEW + 1):
            changes.note_file((b"%d" % number,))
            changes.note_directory((b"%d" % number,))
        yield changes
    finally:
        os.close(fd)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is synced, in place of syncing it."""
    synced: list[int] = []

    def noted(fd: int) -> bool:
        synced.append(os.fstat(fd).st_dev)
        return True

    monkeypatch.setattr(durable, "sync_file_system", noted)
    return synced


@pytest.mark.parametrize("of_file", [False, True])
def test_once_each(changes: Changes, synced: list[int], *, of_file: bool) -> None:
    proc = os.stat("/proc").st_dev
    for path in ((b"proc",), (b"proc", b"self"), (b"proc", b"sys")):
        if of_file:
            changes.note_file((*path, b"some"))
        else:
            changes.note_directory(path)
    changes.sync()
    assert synced == [ROOT, proc]
    changes.sync()
    assert synced == [ROOT, proc]  # nothing was changed since


def test_all_are_synced_where_one_is_gone(
    changes: Changes, synced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes.note_directory((b"proc",))
    opened = os.open

    def without(path: str, flags: int, **how: int) -> int:
        if path == ".":
            raise FileNotFoundError(2, "No such file or directory")
        return opened(path, flags, **how)

    everything = []
    monkeypatch.setattr(os, "open", without)
    monkeypatch.setattr(os, "sync", lambda: everything.append(1))
    changes.sync()
    assert synced == [ROOT]
    assert everything == [1]


def test_failure_of_one_is_told(
    changes: Changes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(fd: int) -> bool:
        if os.fstat(fd).st_dev != ROOT:
            raise OSError(5, "Input/output error")
        return True

    monkeypatch.setattr(durable, "sync_file_system", failing)
    changes.note_directory((b"proc",))
    with pytest.raises(LocalFileError, match=r"'proc'.*input/output error"):
        changes.sync()
