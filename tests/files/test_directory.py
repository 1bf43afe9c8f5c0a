"""What a listing looks at is beneath the root, and never what is kept back."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc25519_tools.errors import LocalFileError, UnsafePathError
from rpc25519_tools.files.directory import Directory, Found, find
from rpc25519_tools.files.jail import PARTIAL_PREFIX, Root, split_listed_name
from rpc25519_tools.files.sorted_names import NameSpool
from tests.helpers import as_nobody


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "served"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_bytes(b"four")
    (tree / "file").write_bytes(b"x")
    (tree / "link").symlink_to("sub")
    (tmp_path / "outside").mkdir()
    (tree / "out").symlink_to(tmp_path / "outside")
    os.mkfifo(tree / "fifo")
    return tree


@pytest.fixture
def root(tree: Path, no_leaked_fds: None) -> Iterator[Root]:
    with Root(tree) as root:
        yield root


def listed(root: Root, name: str, limit: int = 2) -> list[Found]:
    found: list[Found] = []
    with NameSpool() as spool:
        directory = Directory(root, split_listed_name(name), name, spool)
        while batch := directory.next_batch(limit):
            assert len(batch) <= limit
            found += batch
        directory.close()
    return found


def names(root: Root, name: str) -> list[bytes]:
    return [found.name for found in listed(root, name)]


@pytest.mark.parametrize("name", ["", ".", "/", "./"])
def test_the_root_has_many_names(root: Root, name: str) -> None:
    assert names(root, name) == [b"fifo", b"file", b"link", b"out", b"sub"]


def test_entries_have_their_own_status(root: Root, tree: Path) -> None:
    found = {entry.name.decode(): entry for entry in listed(root, "")}
    for name, entry in found.items():
        assert entry.status == (tree / name).lstat()
    assert found["link"].link_target == b"sub"
    assert found["sub"].link_target is None


@pytest.mark.parametrize(
    "name",
    ["link", "out", "out/x", "file", "fifo", "sub/..", "../served", "/sub", "a//b"],
)
def test_what_is_no_directory_beneath_the_root_is_refused(
    root: Root, name: str
) -> None:
    with pytest.raises(UnsafePathError):
        listed(root, name)


def test_a_missing_directory_is_named(root: Root) -> None:
    with pytest.raises(LocalFileError) as caught:
        listed(root, "nothing")
    assert str(caught.value) == "cannot list 'nothing': no such file or directory"


def test_a_forbidden_directory_is_named(root: Root, tree: Path) -> None:
    assert names(root, "sub") == [b"file"]
    (tree / "sub").chmod(0)
    refused = r"^cannot list 'sub': no permission$"
    with as_nobody(), pytest.raises(LocalFileError, match=refused):
        listed(root, "sub")
    (tree / "sub").chmod(0o755)


def test_a_directory_that_was_replaced_meanwhile_is_noticed(
    root: Root, tree: Path
) -> None:
    with NameSpool() as spool:
        directory = Directory(root, (b"sub",), "sub", spool)
        (tree / "sub").rename(tree / "old")
        (tree / "sub").mkdir()
        with pytest.raises(UnsafePathError, match="replaced"):
            directory.next_batch(10)
        (tree / "sub").rmdir()
        (tree / "sub").symlink_to("old")
        with pytest.raises(UnsafePathError, match="symbolic link"):
            directory.next_batch(10)


def test_what_is_gone_meanwhile_is_left_out(root: Root, tree: Path) -> None:
    with NameSpool() as spool:
        directory = Directory(root, (), ".", spool)
        (tree / "file").unlink()
        found = [entry.name for entry in directory.next_batch(10)]
    assert found == [b"fifo", b"link", b"out", b"sub"]


def test_partial_files_and_our_area_are_not_shown(root: Root, tree: Path) -> None:
    (tree / os.fsdecode(PARTIAL_PREFIX + b"0123-0")).touch()
    (tree / os.fsdecode(PARTIAL_PREFIX.upper() + b"AREA")).mkdir()
    assert names(root, "") == [b"fifo", b"file", b"link", b"out", b"sub"]
    with pytest.raises(UnsafePathError, match="reserved"):
        listed(root, os.fsdecode(PARTIAL_PREFIX.upper() + b"AREA"))
    with pytest.raises(UnsafePathError, match="reserved"):
        find(root, (PARTIAL_PREFIX + b"0123-0",), "x")


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8 there")
def test_names_can_be_any_bytes(root: Root, tree: Path) -> None:
    name = b"\xff\n\x1b"
    (tree / "sub" / os.fsdecode(name)).touch()
    assert names(root, "sub") == [b"file", name]
    assert find(root, (b"sub", name), "x").name == name


def test_one_file_is_found(root: Root, tree: Path) -> None:
    found = find(root, (b"sub", b"file"), "sub/file")
    assert (found.name, found.status.st_size) == (b"file", 4)
    assert find(root, (b"link",), "link").link_target == b"sub"
    with pytest.raises(LocalFileError, match="no such file or directory"):
        find(root, (b"sub", b"nothing"), "sub/nothing")
    with pytest.raises(UnsafePathError):
        find(root, (b"link", b"file"), "link/file")


# What is kept back.


@pytest.fixture
def keeping(tree: Path, no_leaked_fds: None) -> Iterator[Root]:
    """The root, with keys in it: by name, in a directory, by link and by hard link."""
    (tree / "certs").mkdir()
    (tree / "certs" / "node.key").touch()
    (tree / "sub" / "rules").touch()
    os.link(tree / "sub" / "rules", tree / "twin")
    (tree / "certs-link").symlink_to("certs")
    kept = [tree / "certs-link", tree / "sub" / "rules", tree / "yet-to-come"]
    with Root(tree, keep_back=kept) as root:
        yield root


def test_what_is_kept_back_is_not_shown(keeping: Root, tree: Path) -> None:
    (tree / "YET-TO-COME").touch()
    (tree / "other").touch()
    assert names(keeping, "") == [b"fifo", b"file", b"link", b"other", b"out", b"sub"]
    assert names(keeping, "sub") == [b"file"]


@pytest.mark.parametrize("name", ["certs", "certs-link", "twin", "sub/rules"])
def test_what_is_kept_back_is_not_listed_by_name(keeping: Root, name: str) -> None:
    with pytest.raises(UnsafePathError):
        find(keeping, split_listed_name(name), name)
    with pytest.raises(UnsafePathError):
        listed(keeping, name)
