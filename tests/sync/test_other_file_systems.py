"""Where a part of the destination is another file system, all goes as elsewhere."""

import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rpc25519_tools.files.area import PartialArea
from rpc25519_tools.sync.across import copy_across
from rpc25519_tools.sync.copying import copy_range
from rpc25519_tools.sync.destination import Destination
from rpc25519_tools.sync.places import open_local_place

from .local import sync
from .mounts import CASES, REAL_CASES, USER, Case, prepare
from .trees import ALL, needs_root, with_options

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

ACROSS = "rpc25519_tools.sync.across"


def is_mounted(dir_fd: int) -> bool:
    return "/dst/mnt" in os.readlink(f"/proc/self/fd/{dir_fd}")


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no rename and no link lead into or out of the destination's ``mnt``."""

    def within(real: Callable[..., None]) -> Callable[..., None]:
        def checked(old: bytes, new: bytes, **how: int) -> None:
            if "src_dir_fd" in how:
                source, target = how["src_dir_fd"], how["dst_dir_fd"]
                if is_mounted(source) != is_mounted(target):
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            real(old, new, **how)

        return checked

    monkeypatch.setattr(os, "rename", within(os.rename))
    monkeypatch.setattr(os, "link", within(os.link))


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize("one", CASES)
def test_simulated(tmp_path: Path, one: Case) -> None:
    one(*prepare(tmp_path, one))


def test_real(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("nothing can be mounted here")
    space = [unshare, "-m"] if os.geteuid() == 0 else [unshare, "-r", "-m"]
    if subprocess.run([*space, "true"], check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    command = [*space, sys.executable, "-m", "tests.sync.mounts", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if "no mounts here" in done.stdout:
        pytest.skip("nothing can be mounted here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{len(CASES + REAL_CASES)} cases\n"


# What is beside the final names.


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    (tmp_path / "dst/mnt").mkdir(parents=True)
    return tmp_path / "dst"


def place(destination: Destination, area: PartialArea, name: bytes) -> None:
    """Give a file, whose contents are its name, that name in ``mnt``."""
    partial = area.scratch()
    try:
        os.write(partial.fd, name)
        directory = destination.tree.directory((b"mnt",))
        where = ((b"mnt",), directory, name, None)
        destination.place(partial.dir_fd, partial.name, *where)
    finally:
        partial.close_fd()


@pytest.mark.usefixtures("simulated")
def test_two_syncs_in_one_process_do_not_meet(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = (
        open_local_place(os.fsencode(mounted), ALL, single=False) for _ in range(2)
    )
    began, may_go_on = threading.Event(), threading.Event()

    def waiting(source: int, target: int, start: int, length: int, at: int) -> None:
        copy_range(source, target, start, length, at)
        if length == len(b"slow"):
            began.set()
            assert may_go_on.wait(10)

    monkeypatch.setattr(f"{ACROSS}.copy_range", waiting)
    try:
        assert slow.area is not None
        assert quick.area is not None
        args = (slow.destination, slow.area, b"slow")
        thread = threading.Thread(target=place, args=args)
        thread.start()
        assert began.wait(10)
        place(quick.destination, quick.area, b"quick")
        may_go_on.set()
        thread.join()
    finally:
        slow.close()
        quick.close()
    assert {path.name: path.read_bytes() for path in (mounted / "mnt").iterdir()} == {
        "slow": b"slow",
        "quick": b"quick",
    }


@pytest.mark.usefixtures("simulated")
def test_a_name_that_another_one_has_is_left_to_it(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mounted / "mnt/.rpc25519-part-sync-taken").write_bytes(b"another's")
    monkeypatch.setattr(f"{ACROSS}.name_beside", lambda: b".rpc25519-part-sync-taken")
    opened = open_local_place(os.fsencode(mounted), ALL, single=False)
    try:
        assert opened.area is not None
        with pytest.raises(FileExistsError):
            place(opened.destination, opened.area, b"new")
    finally:
        opened.close()
    (left,) = (mounted / "mnt").iterdir()
    assert left.read_bytes() == b"another's"


@pytest.mark.usefixtures("simulated")
def test_a_copy_that_fails_leaves_nothing(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"{ACROSS}.copy_range", full)
    source = mounted.parent / "src"
    (source / "mnt").mkdir(parents=True)
    (source / "mnt/a").write_bytes(b"x")
    (mounted / "mnt/a").write_bytes(b"old contents")
    one = sync([f"{source}/"], mounted, ALL)
    assert [path for path, _ in one.at_receiver.failures] == [(b"mnt", b"a")]
    (left,) = (mounted / "mnt").iterdir()
    assert left.read_bytes() == b"old contents"


def left_behind(mounted: Path) -> tuple[Path, Path]:
    source = mounted.parent / "src"
    (source / "mnt").mkdir(parents=True)
    left = mounted / "mnt/.rpc25519-part-sync-0123456789abcdef"
    left.write_bytes(b"half of it")
    os.utime(mounted / "mnt", ns=(5, 5))
    os.utime(source / "mnt", ns=(5, 5))
    return source, left


def test_what_a_killed_sync_has_left_goes_after_a_day(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, left = left_behind(mounted)
    (mounted / "mnt/.rpc25519-part-other").write_bytes(b"another program's")
    os.utime(mounted / "mnt", ns=(5, 5))
    sync([f"{source}/"], mounted, ALL)
    assert left.exists()
    later_s = left.stat().st_ctime + 24 * 3600 + 1
    monkeypatch.setattr(time, "time", lambda: later_s)
    sync([f"{source}/"], mounted, with_options(dry_run=True))
    assert left.exists()
    sync([f"{source}/"], mounted, ALL)
    assert os.listdir(mounted / "mnt") == [".rpc25519-part-other"]
    assert (mounted / "mnt").stat().st_mtime_ns == 5


@needs_root
def test_what_cannot_be_given_away_does_not_run_as_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"x")
    os.chown(tmp_path / "a", USER, USER)
    (tmp_path / "a").chmod(0o6755)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chown", refused)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(PermissionError):
            copy_across(fd, b"a", fd, b"b", fsync=True)
        assert os.listdir(tmp_path) == ["a"]
        monkeypatch.setattr(os, "geteuid", lambda: USER + 1)
        copy_across(fd, b"a", fd, b"b", fsync=True)
    finally:
        os.close(fd)
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o755
    assert (tmp_path / "b").read_bytes() == b"x"
