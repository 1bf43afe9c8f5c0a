"""A final name holds the old bytes or the new ones, whatever happens."""

import errno
import fcntl
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rpc25519_tools.errors import LocalFileError, UnsafePathError
from rpc25519_tools.files import atomic
from rpc25519_tools.files.atomic import (
    AtomicFile,
    open_local_target,
    process_umask,
)
from tests.files.atomics import (
    STEM,
    assert_old,
    fail_with,
    names,
    start,
)

pytestmark = pytest.mark.usefixtures("no_fd_leak")


# Publishing


@pytest.mark.parametrize("fsync", [True, False])
@pytest.mark.parametrize("clobber", [True, False])
def test_new_file_appears_whole_at_commit(
    tmp_path: Path, clobber: bool, fsync: bool
) -> None:
    with start(tmp_path, clobber=clobber, fsync=fsync) as file:
        assert names(tmp_path) == [f"{STEM}-0"]
        file.write(b"ab")
        file.write(bytearray(b"cd"))
        file.write(memoryview(b"ef"))
        file.write(b"")
        assert file.written_bytes == 6
        assert names(tmp_path) == [f"{STEM}-0"]
        file.commit()
        assert names(tmp_path) == ["file"]
        file.abort()
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"abcdef"
    assert (tmp_path / "file").stat().st_nlink == 1


def test_old_file_is_replaced_only_at_commit(folder: Path) -> None:
    with start(folder) as file, (folder / "file").open("rb") as reader:
        file.write(b"new")
        assert (folder / "file").read_bytes() == b"old"
        file.commit()
        assert (folder / "file").read_bytes() == b"new"
        assert reader.read() == b"old"


def test_leaving_without_commit_keeps_the_old_file(folder: Path) -> None:
    with start(folder) as file:
        file.write(b"new")
    assert_old(folder)
    with pytest.raises(LocalFileError, match="closed already"):
        file.write(b"x")
    with pytest.raises(LocalFileError, match="closed already"):
        file.commit()


def test_empty_file_can_be_written(folder: Path) -> None:
    with start(folder) as file:
        file.commit()
    assert (folder / "file").read_bytes() == b""


def test_file_then_rename_then_directory_are_synced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    fsync, rename = os.fsync, os.rename

    def traced_fsync(fd: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def traced_rename(src: bytes, dst: bytes, **fds: int) -> None:
        steps.append("rename")
        rename(src, dst, **fds)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "rename", traced_rename)
    monkeypatch.delattr(fcntl, "F_FULLFSYNC", raising=False)
    with start(folder, fsync=True) as file:
        file.commit()
    with start(folder, fsync=False) as file:
        file.commit()
    assert steps == ["file", "rename", "directory", "rename"]


def test_full_sync_is_used_where_it_exists(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda _fd, code: calls.append(code))
    with start(folder, fsync=True) as file:
        file.commit()
    assert calls == [51]


# Modes


@pytest.mark.parametrize("mode", [0o600, 0o604, 0o640, 0o755, 0o4755])
def test_replacing_keeps_the_permission_bits(folder: Path, mode: int) -> None:
    (folder / "file").chmod(mode)
    with start(folder) as file:
        assert stat.S_IMODE((folder / f"{STEM}-0").stat().st_mode) == 0o600
        file.commit()
    assert stat.S_IMODE((folder / "file").stat().st_mode) == mode & 0o777


@pytest.mark.parametrize("clobber", [True, False])
def test_new_file_obeys_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clobber: bool
) -> None:
    monkeypatch.setattr(atomic, "process_umask", lambda: 0o027)
    with start(tmp_path, clobber=clobber) as file:
        file.commit()
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_umask_is_read_without_changing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    process_umask.cache_clear()
    old = os.umask(0o027)
    try:
        assert process_umask() == 0o027
        process_umask.cache_clear()
        monkeypatch.setattr(atomic, "open", fail_with(errno.ENOENT), raising=False)
        assert process_umask() == 0o027
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
        process_umask.cache_clear()


def test_owner_and_group_are_handed_on_where_permitted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    old = (folder / "file").stat()
    monkeypatch.setattr(os, "fchown", lambda _fd, *ids: asked.append(ids))
    with start(folder) as file:
        fields = list(old)
        fields[stat.ST_GID] += 1
        (folder / "file").chmod(0o664)
        monkeypatch.setattr(
            AtomicFile, "_check_final", lambda _self: os.stat_result(fields)
        )
        file.commit()
    owner = old.st_uid if os.geteuid() == 0 else -1
    assert asked == [(owner, old.st_gid + 1)]


def test_bits_of_another_group_are_dropped_when_it_cannot_be_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").chmod(0o664)
    fields = list((folder / "file").stat())
    fields[stat.ST_GID] += 1
    monkeypatch.setattr(os, "fchown", fail_with(errno.EPERM))
    monkeypatch.setattr(
        AtomicFile, "_check_final", lambda _self: os.stat_result(fields)
    )
    with start(folder) as file:
        file.commit()
    assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o604


# Names


@pytest.mark.parametrize("kind", ["directory", "link", "dangling", "fifo", "socket"])
@pytest.mark.parametrize("when", ["start", "commit"])
def test_only_regular_files_are_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, when: str
) -> None:
    victim = folder.parent / "victim"
    victim.write_bytes(b"victim")
    monkeypatch.chdir(folder)

    def put_in_place() -> None:
        os.unlink("file")
        if kind == "directory":
            os.mkdir("file")
        elif kind == "link":
            os.symlink(victim, "file")
        elif kind == "dangling":
            os.symlink("../new", "file")
        elif kind == "fifo":
            os.mkfifo("file")
        else:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind("file")

    if when == "start":
        put_in_place()
        with pytest.raises(UnsafePathError):
            start(folder)
    else:
        with start(folder) as file:
            put_in_place()
            with pytest.raises(UnsafePathError):
                file.commit()
    assert names(folder) == ["file"]
    assert names(folder.parent) == ["folder", "victim"]
    assert victim.read_bytes() == b"victim"


def test_link_put_in_place_while_syncing_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(_fd: int) -> None:
        (folder / "file").unlink()
        (folder / "file").symlink_to("elsewhere")

    monkeypatch.setattr(atomic, "_sync_file", sync)
    with (
        start(folder, fsync=True) as file,
        pytest.raises(UnsafePathError, match="it is a symbolic link"),
    ):
        file.commit()
    assert names(folder) == ["file"]
    assert (folder / "file").is_symlink()


def test_link_put_in_place_at_the_last_moment_is_replaced_not_followed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = folder.parent / "victim"
    victim.write_bytes(b"victim")
    genuine = os.rename

    def trapped(src: bytes, dst: bytes, **fds: int) -> None:
        (folder / "file").unlink()
        (folder / "file").symlink_to(victim)
        genuine(src, dst, **fds)

    monkeypatch.setattr(os, "rename", trapped)
    with start(folder) as file:
        file.write(b"new")
        file.commit()
    assert not (folder / "file").is_symlink()
    assert (folder / "file").read_bytes() == b"new"
    assert victim.read_bytes() == b"victim"


def test_names_of_partial_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafePathError, match="reserved"):
        open_local_target(str(tmp_path / f"{STEM}-0"), clobber=True)


def test_file_keeps_its_directory_when_the_path_is_swapped(folder: Path) -> None:
    with start(folder) as file:
        moved = folder.rename(folder.with_name("moved"))
        folder.mkdir()
        file.write(b"new")
        file.commit()
    assert names(folder) == []
    assert (moved / "file").read_bytes() == b"new"


# No clobber


def test_no_clobber_refuses_an_old_file_at_once(folder: Path) -> None:
    with pytest.raises(LocalFileError) as caught:
        start(folder, clobber=False)
    assert str(caught.value) == "'file' exists and --no-clobber was given"
    assert_old(folder)


@pytest.mark.parametrize("step", ["fstat", "link"])
@pytest.mark.parametrize("links_work", [True, False])
def test_no_clobber_keeps_a_file_that_appears_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, links_work: bool
) -> None:
    link = os.link if links_work else fail_with(errno.EPERM)
    genuine: Callable[..., object] = link if step == "link" else getattr(os, step)

    def trapped(*args: object, **kwargs: object) -> object:
        (tmp_path / "file").write_bytes(b"old")
        return genuine(*args, **kwargs)

    with start(tmp_path, clobber=False) as file:
        file.write(b"new")
        monkeypatch.setattr(os, "link", link)
        monkeypatch.setattr(os, step, trapped)
        with pytest.raises(LocalFileError, match="exists and --no-clobber"):
            file.commit()
        monkeypatch.undo()
    assert_old(tmp_path)


def test_no_clobber_has_one_winner_among_threads(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)
    winners = []
    losers = []

    def run(number: int) -> None:
        with start(tmp_path, clobber=False) as file:
            file.write(b"%d" % number)
            barrier.wait()
            try:
                file.commit()
                winners.append(number)
            except LocalFileError as exc:
                losers.append(str(exc))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert set(losers) == {"'file' exists and --no-clobber was given"}
    assert (tmp_path / "file").read_bytes() == b"%d" % winners[0]
    assert names(tmp_path) == ["file"]


def test_no_clobber_works_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", fail_with(errno.EPERM))
    with start(tmp_path, clobber=False) as file:
        file.write(b"new")
        file.commit()
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"new"


def test_placeholder_is_removed_when_the_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", fail_with(errno.EPERM))
    monkeypatch.setattr(os, "rename", fail_with(errno.EIO))
    with (
        start(tmp_path, clobber=False) as file,
        pytest.raises(LocalFileError, match="input/output error"),
    ):
        file.commit()
    assert names(tmp_path) == []


def test_failing_link_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", fail_with(errno.ENOSPC))
    with (
        start(tmp_path, clobber=False) as file,
        pytest.raises(LocalFileError, match="disk full"),
    ):
        file.commit()
    assert names(tmp_path) == []
