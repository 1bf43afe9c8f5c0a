"""What a walk tells of what it cannot read, and how it ends early."""

import os
import resource
from collections.abc import Sequence
from pathlib import Path

import pytest

from rpc25519_tools.errors import LocalFileError
from rpc25519_tools.files.jail import Root
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.records import decode_overview, encode_overview
from rpc25519_tools.sync.source import local_source, served_source
from rpc25519_tools.sync.tree import Tree
from rpc25519_tools.sync.walk import BATCH_LEN, Walk

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

RECURSIVE = SyncOptions(recursive=True)


def failures(
    paths: Sequence[Path | str],
    options: SyncOptions = RECURSIVE,
    only: Sequence[bytes] | None = None,
) -> list[tuple[bytes, str]]:
    """Walk; return what the receiver is told of what failed."""
    told: list[tuple[bytes, str]] = []
    walk = Walk(local_source([os.fsencode(path) for path in paths], only), options)
    for batch in walk.batches():
        overview, _ = decode_overview(encode_overview(batch.overview))
        assert len(overview.failed) < 2 * BATCH_LEN
        told += overview.failed
    return told


@pytest.mark.parametrize("count", [1, 256, 257, 1000])
def test_a_chosen_name_that_is_missing_is_told(tmp_path: Path, count: int) -> None:
    chosen = [b"%04d" % number for number in range(count)]
    for name in chosen:
        (tmp_path / os.fsdecode(name)).touch()
    (tmp_path / "other").touch()
    found = failures([tmp_path], only=[*chosen, b"none"])
    assert found == [(b"none", "no such file or directory")]


def test_many_chosen_names_that_are_missing_are_told(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "there").touch()
    chosen = [b"sub/%05d" % number for number in range(10_000)]
    found = failures([tmp_path], only=[*chosen, b"sub/there"])
    assert [path for path, _ in found] == chosen


def test_many_sources_that_are_missing_are_told(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    names = [f"{tmp_path}/{number:05}" for number in range(9000)]
    found = failures([tmp_path / "there", *names])
    assert [path for path, _ in found] == [os.fsencode(name) for name in names]


def test_sources_in_one_directory_take_one_descriptor(tmp_path: Path) -> None:
    names = [tmp_path / f"{number}" for number in range(100)]
    for name in names:
        name.touch()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    fd = os.open("/", os.O_RDONLY)
    os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 20, before[1]))
    try:
        assert failures(names) == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_directories_than_can_be_merged_are_refused(tmp_path: Path) -> None:
    paths = [b"%d/" % number for number in range(65)]
    for path in paths:
        (tmp_path / os.fsdecode(path)).mkdir()
    with Root(tmp_path) as root:
        tree = Tree.served(root, None)
        assert len(served_source(tree, [*paths[:64], paths[0]]).top.places) == 64
        with pytest.raises(LocalFileError, match="over 64 directories cannot"):
            served_source(tree, paths)
