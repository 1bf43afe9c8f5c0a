"""A final name holds the old bytes or the new ones, whatever happens."""

import errno
import fcntl
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from rpc25519_tools.errors import LocalFileError, UnsafePathError
from rpc25519_tools.files import atomic, partial
from rpc25519_tools.files.atomic import (
    AtomicFile,
    open_local_sink,
    open_local_target,
    open_remote_target,
    process_umask,
)
from rpc25519_tools.files.jail import Root
from rpc25519_tools.files.sink import FdSink, PlainSink, Sink

NAME = b"file"
STEM = ".rpc25519-part-" + blake3(NAME).hexdigest()[:16]
NOBODY = 65534


def count_fds() -> int:
    return len(os.listdir("/dev/fd"))


@pytest.fixture(autouse=True)
def no_fd_leak() -> Iterator[None]:
    before = count_fds()
    yield
    assert count_fds() == before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Hold the old file and nothing else."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"old")
    return folder


def start(folder: Path, *, clobber: bool = True, fsync: bool = False) -> AtomicFile:
    fd = os.open(folder, os.O_RDONLY)
    try:
        return AtomicFile(fd, NAME, clobber=clobber, fsync=fsync)
    finally:
        os.close(fd)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def assert_old(folder: Path) -> None:
    """Check that the old file is there and no partial file."""
    assert names(folder) == ["file"]
    assert (folder / "file").read_bytes() == b"old"


def fail_with(code: int) -> Callable[..., int]:
    def fail(*_args: object, **_kwargs: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail


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


# Failures while writing


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


# Other processes

PRELUDE = """
import os, sys
from rpc25519_tools.files.atomic import open_local_target
os.chdir(sys.argv[1])
"""


def run_python(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + script, str(folder)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@contextmanager
def writing_process(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that has written half of a file and then waits; kill -9 it."""
    script = """
file = open_local_target("file", clobber=True)
file.write(b"half of it")
print("ready", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_partial_file_of_a_killed_process_is_taken_over(folder: Path) -> None:
    with writing_process(folder):
        pass
    assert names(folder) == [f"{STEM}-0", "file"]
    assert (folder / "file").read_bytes() == b"old"
    left = (folder / f"{STEM}-0").stat()
    with start(folder) as file:
        assert (folder / f"{STEM}-0").stat().st_size == 0
        file.write(b"new")
        file.commit()
    assert names(folder) == ["file"]
    assert (folder / "file").read_bytes() == b"new"
    assert (folder / "file").stat().st_ino == left.st_ino


def test_two_processes_write_one_name_at_once(folder: Path) -> None:
    with writing_process(folder):
        with start(folder) as file:
            assert names(folder) == [f"{STEM}-0", f"{STEM}-1", "file"]
            file.write(b"new")
            file.commit()
        assert names(folder) == [f"{STEM}-0", "file"]
        assert (folder / f"{STEM}-0").read_bytes() == b"half of it"
    with start(folder) as file:
        file.commit()
    assert names(folder) == ["file"]


def test_leftovers_with_higher_numbers_are_removed(folder: Path) -> None:
    with writing_process(folder), writing_process(folder), writing_process(folder):
        assert len(names(folder)) == 4
    assert len(names(folder)) == 4
    (folder / f"{STEM}-9").touch()
    (folder / f"{STEM}-3").mkdir()
    os.mkfifo(folder / f"{STEM}-4")
    strange = [f"{STEM}-3", f"{STEM}-4"]
    with start(folder) as first, start(folder) as second:
        assert names(folder) == [f"{STEM}-0", f"{STEM}-1", *strange, "file"]
        second.write(b"second")
        second.commit()
        first.write(b"first")
        first.commit()
    assert (folder / "file").read_bytes() == b"first"
    assert names(folder) == [*strange, "file"]


def test_running_transfers_are_not_removed_as_leftovers(folder: Path) -> None:
    with start(folder) as first, start(folder) as second:
        first.abort()
        with start(folder) as third:
            assert names(folder) == [f"{STEM}-0", f"{STEM}-1", "file"]
            third.commit()
        second.write(b"second")
        second.commit()
    assert (folder / "file").read_bytes() == b"second"


@pytest.mark.parametrize("clobber", [True, False])
@pytest.mark.parametrize("step", ["fchmod", "fsync", "rename", "link"])
def test_crash_before_the_replacement_keeps_the_old_file(
    folder: Path, step: str, clobber: bool
) -> None:
    if not clobber:
        (folder / "file").unlink()
    script = f"""
with open_local_target("file", clobber={clobber}) as file:
    file.write(b"new")
    os.{step} = lambda *args, **kwargs: os._exit(9)
    file.commit()
"""
    result = run_python(folder, script)
    skipped = step == ("link" if clobber else "rename")
    assert result.returncode == (0 if skipped else 9), result.stderr
    if skipped:
        assert names(folder) == ["file"]
        assert (folder / "file").read_bytes() == b"new"
        return
    if clobber:
        assert (folder / "file").read_bytes() == b"old"
    else:
        assert not (folder / "file").exists()
    with start(folder, clobber=clobber) as file:
        file.write(b"newer")
        file.commit()
    assert names(folder) == ["file"]
    assert (folder / "file").read_bytes() == b"newer"


def test_crash_after_the_link_does_not_spoil_the_finished_file(tmp_path: Path) -> None:
    script = """
with open_local_target("file", clobber=False) as file:
    file.write(b"whole")
    genuine = os.link
    def link(*args, **kwargs):
        genuine(*args, **kwargs)
        os._exit(9)
    os.link = link
    file.commit()
"""
    assert run_python(tmp_path, script).returncode == 9
    assert names(tmp_path) == [f"{STEM}-0", "file"]
    with start(tmp_path) as file:
        assert (tmp_path / "file").read_bytes() == b"whole"
        file.write(b"new")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"whole"


@pytest.mark.parametrize("mode", [0o555, 0o666])
def test_read_only_directory_is_one_line(folder: Path, mode: int) -> None:
    # 0o666 lacks the search bit: not even the old file can be looked at.
    script = f"""
os.chmod(".", {mode})
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
from rpc25519_tools.errors import LocalFileError
try:
    open_local_target("file", clobber=True)
except LocalFileError as exc:
    print(exc)
"""
    result = run_python(folder, script)
    folder.chmod(0o755)
    assert result.stderr == ""
    assert result.stdout == "cannot write 'file': no permission\n"
    assert_old(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="needs O_PATH")
def test_directory_that_cannot_be_listed_can_be_written_into(folder: Path) -> None:
    script = f"""
if os.geteuid() == 0:
    os.chown(".", {NOBODY}, {NOBODY})
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
os.chmod(".", 0o300)
from rpc25519_tools.files.atomic import open_remote_target
from rpc25519_tools.files.jail import Root
with Root(".") as root, open_remote_target(root, "new", clobber=True) as file:
    file.write(b"new")
    file.commit()
"""
    result = run_python(folder, script)
    folder.chmod(0o755)
    assert result.stderr == ""
    assert (folder / "new").read_bytes() == b"new"


# What can be in the way of a partial file


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "socket"])
def test_strange_things_in_the_way_are_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    victim = folder.parent / "victim"
    victim.write_bytes(b"victim")
    monkeypatch.chdir(folder)
    name = f"{STEM}-0"
    if kind == "link":
        os.symlink(victim, name)
    elif kind == "fifo":
        os.mkfifo(name)
    elif kind == "directory":
        os.mkdir(name)
    else:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(name)
    opened = []
    genuine = os.open

    def traced(*args: object, **kwargs: object) -> int:
        fd: int = genuine(*args, **kwargs)  # type: ignore[arg-type]  # passed on
        opened.append(os.fstat(fd).st_ino)
        return fd

    monkeypatch.setattr(os, "open", traced)
    with start(folder) as file:
        assert f"{STEM}-1" in names(folder)
        file.write(b"new")
        file.commit()
    assert names(folder) == [name, "file"]
    assert victim.stat().st_ino not in opened
    assert victim.read_bytes() == b"victim"


def test_hard_link_in_the_way_is_not_written_into(folder: Path) -> None:
    victim = folder.parent / "victim"
    victim.write_bytes(b"victim")
    os.link(victim, folder / f"{STEM}-0")
    with start(folder) as file:
        file.write(b"new")
        file.commit()
    assert victim.read_bytes() == b"victim"
    assert names(folder) == ["file"]


@pytest.mark.parametrize("removable", [True, False])
def test_leftover_of_another_user_is_not_reused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, removable: bool
) -> None:
    left = folder / f"{STEM}-0"
    left.write_bytes(b"theirs")
    inode = left.stat().st_ino
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY - 1)
    with left.open("rb") as reader:  # so that the inode number is not used again
        if not removable:
            with monkeypatch.context() as patch:
                patch.setattr(os, "unlink", fail_with(errno.EPERM))
                file = start(folder)
        else:
            file = start(folder)
        with file:
            file.write(b"new")
            file.commit()
        assert reader.read() == b"theirs"
    assert (folder / "file").stat().st_ino != inode
    assert left.exists() != removable


def test_wider_mode_of_a_leftover_is_narrowed(folder: Path) -> None:
    (folder / f"{STEM}-0").touch(mode=0o666)
    with start(folder):
        assert stat.S_IMODE((folder / f"{STEM}-0").stat().st_mode) == 0o600


@pytest.mark.parametrize("rounds", [1, 5, partial.MAX_RACES])
def test_partial_file_that_vanishes_before_the_lock_is_made_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    genuine = fcntl.flock
    left = rounds

    def trapped(fd: int, operation: int) -> None:
        nonlocal left
        if left:
            left -= 1
            (folder / f"{STEM}-0").unlink()  # as if its owner had committed it
        genuine(fd, operation)

    monkeypatch.setattr(fcntl, "flock", trapped)
    with start(folder) as file:
        number = 1 if rounds == partial.MAX_RACES else 0
        assert f"{STEM}-{number}" in names(folder)
        file.write(b"new")
        file.commit()
    assert (folder / "file").read_bytes() == b"new"


def test_partial_file_that_vanishes_before_it_is_opened_is_made_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = os.open
    (folder / f"{STEM}-0").touch()

    def trapped(
        path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> int:
        if path == f"{STEM}-0".encode() and not flags & os.O_CREAT:
            (folder / f"{STEM}-0").unlink()
        return genuine(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", trapped)
    with start(folder):
        assert names(folder) == [f"{STEM}-0", "file"]


def test_without_locks_only_fresh_partial_files_are_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / f"{STEM}-0").write_bytes(b"perhaps somebody's")
    monkeypatch.setattr(fcntl, "flock", fail_with(errno.ENOLCK))
    with start(folder) as file:
        file.write(b"new")
        file.commit()
    assert names(folder) == [f"{STEM}-0", "file"]
    assert (folder / f"{STEM}-0").read_bytes() == b"perhaps somebody's"


def test_all_numbers_are_searched_for_leftovers(folder: Path) -> None:
    for number in range(0, partial.MAX_PARTIALS, partial.REAP_GAP):
        (folder / f"{STEM}-{number}").touch()
    with start(folder):
        assert names(folder) == [f"{STEM}-0", "file"]


def test_leftover_that_is_renamed_before_the_lock_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = fcntl.flock
    (folder / f"{STEM}-1").touch()

    def trapped(fd: int, operation: int) -> None:
        if (folder / f"{STEM}-1").exists() and not os.fstat(fd).st_size:
            (folder / f"{STEM}-1").rename(folder / "committed")
            (folder / f"{STEM}-1").write_bytes(b"the next transfer")
        genuine(fd, operation)

    monkeypatch.setattr(fcntl, "flock", trapped)
    (folder / f"{STEM}-0").write_bytes(b"x")
    with start(folder):
        assert names(folder) == [f"{STEM}-0", f"{STEM}-1", "committed", "file"]


def test_directory_that_cannot_be_opened_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Root(folder) as root, root.resolve_for_writing("file") as target:
        monkeypatch.setattr(os, "open", fail_with(errno.EMFILE))
        with pytest.raises(LocalFileError, match="too many open files"):
            AtomicFile(target.dir_fd, target.name, clobber=True)


def test_too_many_transfers_of_one_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "MAX_PARTIALS", 2)
    with (
        start(folder),
        start(folder),
        pytest.raises(LocalFileError) as caught,
    ):
        start(folder)
    # A remote peer reads this too; it is not told the names of partial files.
    assert str(caught.value) == (
        "cannot write 'file': too many transfers of it are under way"
    )
    assert_old(folder)


def test_partial_file_that_cannot_be_taken_for_lack_of_descriptors(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = os.open

    def trapped(
        path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> int:
        if path == f"{STEM}-0".encode():
            code = errno.EEXIST if flags & os.O_CREAT else errno.EMFILE
            raise OSError(code, os.strerror(code))
        return genuine(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", trapped)
    with pytest.raises(LocalFileError, match="too many open files"):
        start(folder)


# Targets below a root, and those that the local user gives


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
