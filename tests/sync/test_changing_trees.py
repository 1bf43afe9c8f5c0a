"""What changes or cannot be read meanwhile is told of, and the rest goes on."""

import asyncio
import errno
import gc
import os
import random
from collections.abc import Callable

import pytest

from rpc25519_tools.sync import walk
from rpc25519_tools.sync.outgoing import OpenSource
from tests.sync.local import LocalSync, sync
from tests.sync.trees import ALL, Trees, push, with_options

pytestmark = pytest.mark.usefixtures("no_leaked_fds")


def meddle(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[], object]
) -> None:
    """Change something right after a file has been opened to be sent."""
    init = OpenSource.__init__

    def opened(self: OpenSource, wanted: object) -> None:
        init(self, wanted)  # type: ignore[arg-type]
        if self.wanted.item.name == name.encode():
            change()

    monkeypatch.setattr(OpenSource, "__init__", opened)


@pytest.mark.parametrize("size", [1000, 3_000_000])
@pytest.mark.parametrize("has_old", [False, True])
def test_file_that_grows_while_it_is_read(
    trees: Trees, monkeypatch: pytest.MonkeyPatch, size: int, has_old: bool
) -> None:
    source, destination = trees
    data = random.Random(0).randbytes(size)
    (source / "log").write_bytes(data)
    if has_old:
        (destination / "log").write_bytes(data[: size // 2])

    def grow() -> None:
        with (source / "log").open("ab") as file:
            file.write(b"more")

    meddle(monkeypatch, "log", grow)
    one = sync([f"{source}/"], destination, ALL)
    assert one.at_sender.warnings == [((b"log",), "it changed while it was read")]
    assert one.at_receiver.failures == []
    assert (destination / "log").read_bytes() == data
    monkeypatch.undo()
    push(trees)


@pytest.mark.parametrize("size", [1000, 3_000_000])
@pytest.mark.parametrize("has_old", [False, True])
def test_file_that_shrinks_while_it_is_read(
    trees: Trees, monkeypatch: pytest.MonkeyPatch, size: int, has_old: bool
) -> None:
    source, destination = trees
    data = random.Random(0).randbytes(size)
    (source / "log").write_bytes(data)
    (source / "other").write_bytes(b"other")
    if has_old:
        (destination / "log").write_bytes(data[: size // 2])
    meddle(monkeypatch, "log", lambda: os.truncate(source / "log", 500))
    one = sync([f"{source}/"], destination, ALL)
    ((path, note),) = one.at_receiver.failures
    assert path == (b"log",)
    assert one.at_sender.failures == one.at_receiver.failures
    assert "while it was read" in note
    assert (destination / "log").exists() is has_old
    assert (destination / "other").exists()
    assert not [name for name in os.listdir(destination) if name.startswith(".")]
    gc.collect()  # tracebacks of what failed hold what was open


@pytest.mark.parametrize("what", ["file", "small", "dir", "link"])
def test_what_vanishes_is_told_of_and_the_rest_goes_on(
    trees: Trees, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    source, destination = trees
    (source / "file").write_bytes(bytes(100_000))
    (source / "small").write_bytes(b"x")
    (source / "dir").mkdir()
    (source / "link").symlink_to("nowhere")
    (source / "rest").write_bytes(b"rest")

    if what == "link":

        def readlink(*_: object, **__: object) -> bytes:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

        monkeypatch.setattr(os, "readlink", readlink)
    one = LocalSync([f"{source}/"], destination, ALL)
    finish = walk.Walk._list

    def listing(self: walk.Walk, number: int, *rest: object) -> object:
        yield from finish(self, number, *rest)  # type: ignore[arg-type]
        if number == 0 and what != "link":
            path = source / what
            path.rmdir() if what == "dir" else path.unlink()

    monkeypatch.setattr(walk.Walk, "_list", listing)
    asyncio.run(one.run())
    failed = {path for path, _ in one.at_receiver.failures}
    assert failed == {(what.encode(),)}
    assert {path for path, _ in one.at_sender.failures} == failed
    there = set(os.listdir(destination))
    assert there >= {"rest"}
    assert (what in there) is (what == "dir")
    gc.collect()  # tracebacks of what failed hold what was open


def test_nothing_is_deleted_when_the_source_had_errors(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = trees
    (source / "dir").mkdir()
    (source / "dir/a").write_bytes(b"x")
    (source / "b").write_bytes(b"y")
    (destination / "extra").write_bytes(b"z")
    stat_ = os.stat

    def fails(path: object, *args: object, **kwargs: object) -> object:
        if path == b"b" and kwargs.get("dir_fd") is not None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat_(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", fails)
    one = sync([f"{source}/"], destination, with_options(delete=True))
    assert [path for path, _ in one.at_receiver.failures] == [(b"b",)]
    assert [note for _, note in one.at_receiver.warnings] == [
        "something of the source could not be read, so nothing is deleted"
    ]
    monkeypatch.undo()
    assert (destination / "extra").exists()
    assert (destination / "dir/a").exists()
