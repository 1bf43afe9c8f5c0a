"""What fails while a file is written keeps the old one and is one line."""

import errno
import fcntl
import os
import resource
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rpc25519_tools.errors import LocalFileError
from rpc25519_tools.files.atomic import (
    open_local_sink,
)
from tests.files.atomics import (
    STEM,
    assert_old,
    fail_with,
    names,
    start,
)

pytestmark = pytest.mark.usefixtures("no_fd_leak")


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_file_size_limit_is_one_line_and_keeps_the_old_file(folder: Path) -> None:
    message = ""
    with start(folder) as file, file_size_limit(4096):
        try:
            file.write(bytes(10_000))
        except LocalFileError as exc:
            message = str(exc)
        written_bytes = file.written_bytes
    assert written_bytes == 4096
    assert message.startswith("cannot write 'file': file too large")
    assert_old(folder)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (errno.ENOSPC, "cannot write 'file': disk full"),
        (errno.EDQUOT, "cannot write 'file': disk quota used up"),
        (errno.EROFS, "cannot write 'file': read-only file system"),
        (errno.EIO, "cannot write 'file': the disk reports an input/output error"),
        (errno.ESTALE, f"cannot write 'file': {os.strerror(errno.ESTALE)}"),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "rename", "fchmod"])
def test_every_failing_step_keeps_the_old_file(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    code: int,
    text: str,
) -> None:
    monkeypatch.delattr(fcntl, "F_FULLFSYNC", raising=False)
    with start(folder, fsync=True) as file:
        monkeypatch.setattr(os, call, fail_with(code))
        if call == "write":
            with pytest.raises(LocalFileError) as caught:
                file.write(b"new")
        with pytest.raises(LocalFileError) as caught:
            file.commit()
        monkeypatch.undo()
    assert str(caught.value) == text
    assert_old(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_full_device_is_disk_full() -> None:
    with open_local_sink("/dev/full", clobber=True) as sink:
        with pytest.raises(LocalFileError, match="disk full"):
            sink.write(b"x")
        with pytest.raises(LocalFileError, match="disk full"):
            sink.commit()


def test_announced_length_is_compared_with_the_room(folder: Path) -> None:
    with start(folder) as file:
        file.check_space(1000)
        with pytest.raises(LocalFileError, match=r"disk full \(\d+ bytes needed"):
            file.check_space(1 << 62)
        with file_size_limit(4096):
            file.check_space(4096)
            file.write(b"x")
            try:
                file.check_space(4096)
                message = ""
            except LocalFileError as exc:
                message = str(exc)
    assert "the limit of the process is 4096" in message
    assert_old(folder)


def test_file_system_that_does_not_count_has_room(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(folder) as file:
        monkeypatch.setattr(os, "fstatvfs", lambda _fd: os.statvfs_result([0] * 11))
        file.check_space(1 << 62)
        monkeypatch.setattr(os, "fstatvfs", fail_with(errno.EIO))
        with pytest.raises(LocalFileError, match="input/output"):
            file.check_space(1)


def test_touched_partial_file_is_not_published(folder: Path) -> None:
    with start(folder) as file:
        file.write(b"new")
        os.truncate(folder / f"{STEM}-0", 1)
        with pytest.raises(LocalFileError, match="another program touched"):
            file.commit()
    assert_old(folder)


@pytest.mark.parametrize("replaced", [True, False])
def test_removed_partial_file_is_not_published(folder: Path, replaced: bool) -> None:
    part = folder / f"{STEM}-0"
    with start(folder) as file:
        file.write(b"new")
        part.unlink()
        if replaced:
            part.write_bytes(b"bad")
        with pytest.raises(LocalFileError, match="another program touched"):
            file.commit()
    assert (folder / "file").read_bytes() == b"old"
    assert part.exists() == replaced


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_directory_that_cannot_be_synced(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    with start(folder, fsync=True) as file:
        file.write(b"new")
        if code == errno.EINVAL:
            file.commit()
        else:
            with pytest.raises(LocalFileError, match="is in place, but"):
                file.commit()
    assert names(folder) == ["file"]
    assert (folder / "file").read_bytes() == b"new"
