"""Syncs by somebody who is not root; run as ``python -m tests.sync.as_user FOLDER``.

Root would be let in everywhere. So this process gives up being root, when everything
is imported, does what the functions below say, and prints what was wrong.
"""

import os
import stat
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from rpc25519_tools.files.area import AREA_NAME
from rpc25519_tools.sync import storing
from rpc25519_tools.sync.options import SyncOptions
from tests.helpers import NOBODY
from tests.sync.local import LocalSync, sync
from tests.sync.trees import ALL, snapshot, with_options

Case = Callable[[Path, Path], None]
CASES: list[Case] = []


def case(function: Case) -> Case:
    CASES.append(function)
    return function


def run(source: Path, destination: Path, options: SyncOptions = ALL) -> LocalSync:
    return sync([f"{source}/"], destination, options)


def failed(one: LocalSync) -> list[str]:
    at_sender, at_receiver = one.at_sender.failures, one.at_receiver.failures
    assert sorted(at_sender) == sorted(at_receiver), (at_sender, at_receiver)
    return sorted(b"/".join(path).decode() for path, _ in one.at_receiver.failures)


@case
def read_only_directories_are_filled(source: Path, destination: Path) -> None:
    for mode in (0o555, 0o500):
        top = source / f"{mode:o}"
        (top / "below").mkdir(parents=True)
        (top / "below/a").write_bytes(b"first")
        (top / "a").write_bytes(bytes(2_000_000))
        os.link(top / "a", top / "below/linked")
        os.utime(top / "below", ns=(5, 5))
        (top / "below").chmod(mode)
        top.chmod(mode)
    assert failed(run(source, destination)) == []
    assert snapshot(source) == snapshot(destination)
    again = run(source, destination)
    assert again.at_receiver.lines == []
    assert snapshot(source) == snapshot(destination)
    top = source / "500"
    top.chmod(0o700)
    (top / "b").write_bytes(b"new")
    (top / "a").unlink()
    top.chmod(0o500)
    (source / "555").chmod(0o700)
    (source / "555/below").chmod(0o700)
    (source / "555/below/linked").unlink()
    (source / "555/below/a").unlink()
    (source / "555/below").rmdir()
    (source / "555").chmod(0o555)
    assert failed(run(source, destination, with_options(delete=True))) == []
    assert snapshot(source) == snapshot(destination)


@case
def what_cannot_be_read_is_told_of(source: Path, destination: Path) -> None:
    for name in ("closed", "open", "blind"):
        (source / name).mkdir()
        (source / name / "a").write_bytes(b"x")
    (source / "file").write_bytes(b"y")
    (source / "large").write_bytes(bytes(2_000_000))
    for name, mode in (("closed", 0), ("blind", 0o600), ("file", 0), ("large", 0)):
        (source / name).chmod(mode)
    (destination / "extra").write_bytes(b"z")
    (destination / "large").write_bytes(bytes(1_000_000))
    one = run(source, destination, with_options(delete=True))
    assert failed(one) == ["blind", "closed", "file", "large"], one.at_receiver.failures
    assert (destination / "open/a").read_bytes() == b"x"
    assert (destination / "extra").exists()
    assert stat.S_IMODE((destination / "closed").stat().st_mode) == 0
    (source / "file").chmod(0o600)
    (source / "large").chmod(0o600)
    assert failed(run(source, destination)) == ["blind", "closed"]
    assert (destination / "large").stat().st_size == 2_000_000


@case
def closed_directories_of_ours_are_opened(source: Path, destination: Path) -> None:
    for top in (source, destination):
        (top / "dir/below").mkdir(parents=True)
        (top / "dir/below/a").write_bytes(top.name.encode())
        (top / "b").write_bytes(top.name.encode())
    (destination / "dir/below").chmod(0)
    (destination / "dir").chmod(0)
    assert failed(run(source, destination)) == []
    assert snapshot(source) == snapshot(destination)
    (destination / "dir").chmod(0o100)
    before = snapshot(source)
    run(source, destination, with_options(dry_run=True))
    assert stat.S_IMODE((destination / "dir").stat().st_mode) == 0o100
    (destination / "dir").chmod(0o700)
    assert snapshot(source) == before


@case
def directories_of_others_are_left_alone(source: Path, destination: Path) -> None:
    # The parent has made "root" and "secret" in both places, of root's.
    (source / "mine").write_bytes(b"x")
    for name in ("theirs", "hidden"):
        (source / name).mkdir()
        (source / name / "a").write_bytes(b"x")
    one = run(source, destination, with_options(delete=True))
    assert {"theirs/a", "hidden"} <= set(failed(one))
    assert (destination / "mine").read_bytes() == b"x"


@case
def a_root_that_takes_no_part_is_not_opened(source: Path, destination: Path) -> None:
    (source / "a").write_bytes(b"x")
    destination.chmod(0o555)
    assert failed(sync([source], destination, ALL)) == ["src"]
    assert stat.S_IMODE(destination.stat().st_mode) == 0o555


@case
def files_that_cannot_be_read_are_replaced(source: Path, destination: Path) -> None:
    for top in (source, destination):
        for name in ("small", "large"):
            size = 2_000_000 if name == "large" else 5000
            (top / name).write_bytes(top.name[:1].encode() * size)
    for name in ("small", "large"):
        (destination / name).chmod(0)
        os.utime(destination / name, ns=(5, 5))
    assert failed(run(source, destination, with_options(checksum=True))) == []
    assert snapshot(source) == snapshot(destination)


@case
def files_that_nobody_may_read_are_synced_to_disk(
    source: Path, destination: Path
) -> None:
    for top in (source, destination):
        for name in ("small", "other", "large"):
            size = 2_000_000 if name == "large" else 5000
            (top / name).write_bytes(top.name[:1].encode() * size)
    for name in ("small", "large"):
        (destination / name).chmod(0)
    assert failed(run(source, destination, with_options(perms=False, fsync=True))) == []
    for name in ("small", "large"):
        assert stat.S_IMODE((destination / name).stat().st_mode) == 0
        (destination / name).chmod(0o600)
        assert (destination / name).read_bytes() == (source / name).read_bytes()


@case
def groups_that_are_not_ours_are_left_out(source: Path, destination: Path) -> None:
    # The parent has made "foreign", of a group that is not ours.
    (source / "a").write_bytes(b"x")
    assert failed(run(source, destination)) == []
    assert (destination / "foreign").stat().st_gid == os.getegid()
    assert run(source, destination).at_receiver.lines == []


@case
def read_only_file_of_a_killed_sync_is_finished(
    source: Path, destination: Path
) -> None:
    (source / "pack").write_bytes(os.urandom(2 << 20))
    (source / "pack").chmod(0o444)
    child = os.fork()
    if not child:
        # Between the file's last mode and its name.
        storing.Store.flush = lambda *_: os._exit(9)  # type: ignore[method-assign]
        run(source, destination)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert os.listdir(destination) == [AREA_NAME.decode()]
    one = run(source, destination)
    assert failed(one) == []
    assert one.totals.literal_bytes == 0, "all of it was here"
    assert snapshot(source) == snapshot(destination)


def main(folder: Path) -> int:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    wrong = 0
    for one in CASES:
        top = folder / one.__name__
        try:
            one(top / "src", top / "dst")
        except Exception:  # noqa: BLE001  # whatever it is, it is told of
            wrong += 1
            sys.stdout.write(f"{one.__name__}:\n{traceback.format_exc()}\n")
    return 1 if wrong else 0


def prepare(folder: Path) -> None:
    """Make the folders, as root; what belongs to others is made here."""
    for one in CASES:
        for name in ("", "src", "dst"):
            (folder / one.__name__ / name).mkdir()
            os.chown(folder / one.__name__ / name, NOBODY, NOBODY)
    top = folder / directories_of_others_are_left_alone.__name__ / "dst"
    (top / "theirs").mkdir(mode=0o755)
    (top / "theirs/old").write_bytes(b"root's")
    (top / "hidden").mkdir(mode=0o700)
    (top / "hidden/old").write_bytes(b"root's")
    top = folder / groups_that_are_not_ours_are_left_out.__name__ / "src"
    (top / "foreign").write_bytes(b"x")
    os.chown(top / "foreign", NOBODY, NOBODY + 1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
