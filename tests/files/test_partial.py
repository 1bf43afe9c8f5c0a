"""Partial files: of other processes, of killed ones, and what can be in their way."""

import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rpc25519_tools.errors import LocalFileError
from rpc25519_tools.files import partial
from rpc25519_tools.files.atomic import (
    AtomicFile,
)
from rpc25519_tools.files.jail import Root
from tests.files.atomics import (
    NOBODY,
    STEM,
    assert_old,
    fail_with,
    names,
    start,
)

pytestmark = pytest.mark.usefixtures("no_fd_leak")


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
