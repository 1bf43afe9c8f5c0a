"""Targets below a root, and those that the local user gives."""

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rpc25519_tools.errors import LocalFileError, UnsafePathError
from rpc25519_tools.files.atomic import (
    open_local_sink,
    open_local_target,
    open_remote_target,
)
from rpc25519_tools.files.jail import Root
from rpc25519_tools.files.sink import FdSink, PlainSink, Sink
from tests.files.atomics import (
    assert_old,
    fail_with,
)

pytestmark = pytest.mark.usefixtures("no_fd_leak")


def test_remote_target_is_named_as_the_peer_named_it(folder: Path) -> None:
    with Root(folder.parent) as root:
        with open_remote_target(root, "folder/file", clobber=True) as file:
            assert file.name == "folder/file"
            file.write(b"new")
            file.commit()
        with pytest.raises(LocalFileError, match="'folder/file' exists"):
            open_remote_target(root, "folder/file", clobber=False)
        with pytest.raises(UnsafePathError):
            open_remote_target(root, "../file", clobber=True)
        with pytest.raises(LocalFileError, match="no such file or directory"):
            open_remote_target(root, "nothing/file", clobber=True)
    assert (folder / "file").read_bytes() == b"new"


@pytest.mark.parametrize("opener", [open_local_target, open_local_sink])
def test_local_link_survives_and_its_file_is_replaced(
    folder: Path, opener: Callable[..., Sink]
) -> None:
    link = folder.parent / "link"
    link.symlink_to("folder/file")
    with opener(str(link), clobber=True) as file:
        file.write(b"new")
        file.commit()
    assert link.is_symlink()
    assert (folder / "file").read_bytes() == b"new"
    with pytest.raises(LocalFileError, match="exists and --no-clobber"):
        opener(str(link), clobber=False)


def test_local_link_to_nothing_makes_the_file_it_names(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to("folder/new")
    with open_local_sink(str(link), clobber=False) as file:
        file.write(b"new")
        file.commit()
    assert (folder / "new").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("", "empty name"),
        (".", "it is a directory"),
        ("/", "it is a directory"),
        ("folder", "it is a directory"),
        ("folder/", "it is a directory"),
        ("new/", "no such directory"),
        ("nothing/new", "no such file or directory"),
        ("folder/file/new", "a part of the path is not a directory"),
        ("a\0b", "not a possible name"),
        ("\ud800", "not a possible name"),
        ("x" * 300, "the name is too long"),
        ("loop", "it is a symbolic link"),
        ("sock", "it is a socket"),
    ],
)
def test_local_mistakes_are_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, path: str, text: str
) -> None:
    monkeypatch.chdir(folder.parent)
    os.symlink("loop", "loop")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("sock")
    with pytest.raises(LocalFileError) as caught:
        open_local_sink(path, clobber=True)
    assert text in str(caught.value)
    assert str(caught.value).isprintable()
    assert_old(folder)


def test_device_is_written_into_and_stays() -> None:
    with open_local_sink("/dev/null", clobber=False) as sink:
        assert isinstance(sink, PlainSink)
        sink.check_space(1 << 62)
        sink.write(b"away")
        assert sink.written_bytes == 4
        sink.commit()
        with pytest.raises(LocalFileError, match="closed already"):
            sink.commit()
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_fifo_is_written_into_and_tells_when_its_reader_goes(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    received = []

    def read_some() -> None:
        with fifo.open("rb", buffering=0) as reader:
            received.append(reader.read(7))

    thread = threading.Thread(target=read_some)
    thread.start()
    with open_local_sink(str(fifo), clobber=True) as sink:
        sink.write(b"through")
        thread.join()
        with pytest.raises(LocalFileError, match="its reader has gone"):
            sink.write(b"lost")
    assert received == [b"through"]
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_device_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", fail_with(errno.EACCES))
    with pytest.raises(LocalFileError, match="no permission"):
        open_local_sink("/dev/null", clobber=True)


def test_device_that_is_replaced_by_a_file_is_not_overwritten(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder.parent / "out"
    os.mkfifo(path)
    genuine = os.open

    def trapped(name: str, flags: int) -> int:
        path.unlink()
        os.link(folder / "file", path)
        return genuine(name, flags)

    monkeypatch.setattr(os, "open", trapped)
    with pytest.raises(LocalFileError, match="replaced just now"):
        open_local_sink(str(path), clobber=True)
    assert_old(folder)


def test_non_blocking_pipe_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    received = 0
    genuine = FdSink._wait_writable

    def drain(self: FdSink) -> None:
        nonlocal received
        received += len(os.read(reader, 1 << 20))
        genuine(self)

    monkeypatch.setattr(FdSink, "_wait_writable", drain)
    with PlainSink(writer, "pipe") as sink:
        sink.write(bytes(1_000_000))
        sink.commit()
    while chunk := os.read(reader, 1 << 20):
        received += len(chunk)
    os.close(reader)
    assert received == 1_000_000


def test_stream_whose_close_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = os.close

    def close(fd: int) -> None:
        genuine(fd)
        raise OSError(errno.EIO, "bad")

    sink = open_local_sink("/dev/null", clobber=True)
    monkeypatch.setattr(os, "close", close)
    with pytest.raises(LocalFileError, match="input/output"):
        sink.commit()
