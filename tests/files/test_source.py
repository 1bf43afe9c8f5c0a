"""What is sent is the file that was opened, or the sender says so."""

import errno
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import FileChangedError, LocalFileError, UnsafePathError
from rpc25519_tools.files.jail import Root
from rpc25519_tools.files.source import (
    SourceFile,
    open_local_source,
    open_remote_source,
)
from rpc25519_tools.wire.constants import PART_LEN


def count_fds() -> int:
    return len(os.listdir("/dev/fd"))


@pytest.fixture(autouse=True)
def no_fd_leak() -> Iterator[None]:
    before = count_fds()
    yield
    assert count_fds() <= before  # others may have left some to the collector


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    return path


def read_part(file: SourceFile, part_bytes: int = 100) -> bytes:
    buffer = bytearray(part_bytes)
    filled = file.read_into(buffer)
    assert len(buffer) == part_bytes
    return bytes(buffer[:filled])


def read_all(file: SourceFile, part_bytes: int) -> bytes:
    parts = []
    while part := read_part(file, part_bytes):
        parts.append(part)
    assert all(len(part) == part_bytes for part in parts[:-1])
    return b"".join(parts)


@settings(deadline=None, max_examples=60)
@given(data=st.binary(max_size=300), part_bytes=st.integers(1, 100))
def test_parts_join_to_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, part_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "parts"
    path.write_bytes(data)
    with open_local_source(str(path)) as file:
        assert file.size_bytes == len(data)
        assert read_all(file, part_bytes) == data
        assert file.read_bytes == len(data)
        file.check_unchanged()


@settings(deadline=None, max_examples=60)
@given(
    pieces=st.lists(st.binary(min_size=1, max_size=20), max_size=10),
    part_bytes=st.integers(1, 50),
)
def test_parts_of_a_pipe_are_full(pieces: list[bytes], part_bytes: int) -> None:
    reader, writer = os.pipe()

    def feed() -> None:
        for piece in pieces:
            os.write(writer, piece)
        os.close(writer)

    thread = threading.Thread(target=feed)
    with SourceFile(reader, "pipe") as file:
        assert file.size_bytes is None
        thread.start()
        assert read_all(file, part_bytes) == b"".join(pieces)
        file.check_unchanged()
    thread.join()


def test_one_system_call_for_each_part(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(bytes(3 * PART_LEN + 1))
    genuine = os.readv
    calls = []

    def counted(fd: int, what: list[memoryview]) -> int:
        calls.append(fd)
        return genuine(fd, what)

    with open_local_source(str(path)) as file:
        monkeypatch.setattr(os, "readv", counted)
        assert len(read_all(file, PART_LEN)) == 3 * PART_LEN + 1
    assert len(calls) == 4


def test_growing_file_ends_and_is_noticed(path: Path) -> None:
    with open_local_source(str(path)) as file, path.open("ab") as writer:
        sent = b""
        while part := read_part(file, 4):
            sent += part
            writer.write(b"more")
            writer.flush()
        assert sent == b"0123456789"
        with pytest.raises(FileChangedError, match="grew"):
            file.check_unchanged()


@pytest.mark.parametrize("after_bytes", [0, 4, 10])
def test_shrinking_file_is_noticed(path: Path, after_bytes: int) -> None:
    with open_local_source(str(path)) as file:
        read_part(file, after_bytes)
        os.truncate(path, 3)
        read_all(file, 4)
        with pytest.raises(FileChangedError, match="shrank"):
            file.check_unchanged()


def test_file_that_was_not_read_to_the_end_is_noticed(path: Path) -> None:
    with open_local_source(str(path)) as file:
        read_part(file, 4)
        with pytest.raises(FileChangedError):
            file.check_unchanged()


def test_overwritten_file_is_noticed(path: Path) -> None:
    with open_local_source(str(path)) as file:
        read_all(file, 4)
        path.write_bytes(b"9876543210")
        os.utime(path, ns=(0, 1))
        with pytest.raises(FileChangedError, match="was changed"):
            file.check_unchanged()


def test_replaced_linked_or_removed_name_is_no_change(path: Path) -> None:
    with open_local_source(str(path)) as file:
        os.link(path, path.with_name("other"))
        path.chmod(0o600)
        path.with_name("new").write_bytes(b"new")
        path.with_name("new").rename(path)
        path.unlink()
        assert read_all(file, 4) == b"0123456789"
        file.check_unchanged()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_file_that_does_not_know_its_size_is_a_stream() -> None:
    with open_local_source("/proc/self/status") as file:
        assert file.size_bytes is None
        assert b"Pid:" in read_all(file, 100)
        file.check_unchanged()


def test_empty_file_has_size_zero(path: Path) -> None:
    path.write_bytes(b"")
    with open_local_source(str(path)) as file:
        assert file.size_bytes == 0
        assert read_part(file) == b""
        file.check_unchanged()


def test_fifo_is_a_stream(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    thread = threading.Thread(target=lambda: fifo.write_bytes(b"through"))
    thread.start()
    with open_local_source(str(fifo)) as file:
        assert file.size_bytes is None
        assert read_all(file, 3) == b"through"
    thread.join()


def test_character_device_is_a_stream() -> None:
    with open_local_source("/dev/null") as file:
        assert file.size_bytes is None
        assert read_part(file) == b""


@pytest.fixture
def stdin() -> Iterator[None]:
    """Let a test replace descriptor 0."""
    saved = os.dup(0)
    try:
        yield
    finally:
        os.dup2(saved, 0)
        os.close(saved)


def test_stdin_from_a_file_starts_where_it_stands(path: Path, stdin: None) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.lseek(fd, 4, os.SEEK_SET)
    os.dup2(fd, 0)
    os.close(fd)
    with open_local_source("-") as file:
        assert file.name == "standard input"
        assert file.size_bytes == 6
        assert read_all(file, 4) == b"456789"
        file.check_unchanged()


def test_non_blocking_stdin_is_waited_for(
    stdin: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.dup2(reader, 0)
    os.close(reader)
    pending = [b"one", b"two"]
    genuine = SourceFile._wait_readable

    def feed(self: SourceFile) -> None:
        if pending:
            os.write(writer, pending.pop(0))
        else:
            os.close(writer)
        genuine(self)

    monkeypatch.setattr(SourceFile, "_wait_readable", feed)
    with open_local_source("-") as file:
        assert read_all(file, 100) == b"onetwo"


def test_closed_stdin_is_one_line(stdin: None) -> None:
    os.close(0)
    try:
        with pytest.raises(LocalFileError, match="standard input: it is closed"):
            open_local_source("-")
    finally:
        os.dup2(1, 0)  # so that the fixture finds a descriptor to replace


def test_directory_as_stdin_is_refused(tmp_path: Path, stdin: None) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    os.dup2(fd, 0)
    os.close(fd)
    with pytest.raises(LocalFileError, match="it is a directory"):
        open_local_source("-")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nothing", "no such file: "),
        ("", "no such file: "),
        ("file/x", "a part of the path is not a directory"),
        (".", "it is a directory"),
        ("sock", "it is a socket"),
        ("nul\0", "not a possible name"),
        ("\ud800", "not a possible name"),
        ("x" * 300, "the name is too long"),
        ("loop", "too many symbolic links"),
    ],
)
def test_mistakes_are_one_line(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.chdir(path.parent)
    os.symlink("loop", "loop")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("sock")
        with pytest.raises(LocalFileError) as caught:
            open_local_source(name)
    assert text in str(caught.value)
    assert str(caught.value).isprintable()


def test_no_permission_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> int:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LocalFileError, match="no permission"):
        open_local_source(str(path))


@pytest.mark.parametrize(
    ("call", "action"),
    [
        ("readv", lambda file: file.read_into(bytearray(4))),
        ("fstat", SourceFile.check_unchanged),
    ],
)
def test_disk_errors_are_one_line(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    action: Callable[[SourceFile], object],
) -> None:
    def fail(*_args: object) -> int:
        raise OSError(errno.EIO, "bad")

    with open_local_source(str(path)) as file:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(LocalFileError, match="input/output error"):
                action(file)
        file.close()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fail)
        with pytest.raises(LocalFileError, match="input/output error"):
            open_local_source(str(path))


def test_remote_source_is_opened_beneath_the_root(path: Path) -> None:
    with Root(path.parent) as root:
        with open_remote_source(root, "file") as file:
            assert file.name == "file"
            assert file.modified_ns == path.stat().st_mtime_ns
            assert read_part(file) == b"0123456789"
            file.check_unchanged()
        with pytest.raises(UnsafePathError):
            open_remote_source(root, "../file")
