"""What stays in the area for unfinished files: swept, or found after a kill."""

import errno
import fcntl
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rpc25519_tools.files import sweeping
from rpc25519_tools.files.area import PartialArea
from tests.files import area_worker
from tests.files.areas import (
    AREA,
    content,
    held,
    leave_behind,
    publish,
    write_and_keep,
)
from tests.files.atomics import names

pytestmark = pytest.mark.usefixtures("no_fd_leak")
WEEK_S = 7 * 24 * 3600


# Sweeping


def test_partials_are_swept_by_their_age(folder: Path, place_fd: int) -> None:
    with PartialArea.open(place_fd) as area:
        write_and_keep(area, b"idle", b"data")
        (path,) = (folder / AREA).iterdir()
        os.utime(path, (0, 0))  # as if the source's time had been set already
        busy = held(area, b"busy")
        os.write(busy.fd, b"data")
        area.sweep(time.time() + WEEK_S - 60)
        assert len(names(folder / AREA)) == 2
        area.sweep(time.time() + WEEK_S + 60)
        assert names(folder / AREA) == [busy.name.decode()]
        busy.discard()


def test_only_the_newest_partials_stay(folder: Path, place_fd: int) -> None:
    with PartialArea.open(place_fd) as area:
        oldest = held(area, b"oldest")
        os.write(oldest.fd, b"data")
        for number in range(sweeping.MAX_PARTIALS + 5):
            write_and_keep(area, b"%d" % number, b"%d" % number)
            time.sleep(0.005)  # the file system's clock has to move on
        area.sweep()
        assert len(names(folder / AREA)) == sweeping.MAX_PARTIALS + 1
        for number in (5, sweeping.MAX_PARTIALS + 4):
            partial = held(area, b"%d" % number)
            assert content(partial) == b"%d" % number
            partial.discard()
        partial = held(area, b"4")
        assert content(partial) == b""
        partial.discard()
        oldest.discard()


def test_partials_take_no_more_than_their_share_of_the_disk(
    folder: Path, place_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = os.statvfs(folder)
    monkeypatch.setattr(
        sweeping, "MAX_SHARE", disk.f_blocks * disk.f_frsize // (1 << 20)
    )
    with PartialArea.open(place_fd) as area:
        for key in (b"1", b"2", b"3"):
            write_and_keep(area, key, bytes(400_000))
            time.sleep(0.01)
        area.sweep()
        found = [held(area, key) for key in (b"1", b"2", b"3")]
        assert [bool(os.fstat(one.fd).st_size) for one in found] == [False, True, True]
        for one in found:
            one.discard()


def test_a_sweep_gives_up_in_time(
    folder: Path, place_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PartialArea.open(place_fd) as area:
        for number in range(10):
            write_and_keep(area, b"%d" % number, b"data")
        monkeypatch.setattr(sweeping, "SWEEP_S", -1.0)
        area.sweep(time.time() + 2 * WEEK_S)
        assert len(names(folder / AREA)) == 10
        monkeypatch.undo()
        area.sweep(time.time() + 2 * WEEK_S)
        assert names(folder / AREA) == []


def worker(folder: Path, seed: int, rounds: int) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-m", area_worker.__name__]
    return subprocess.Popen(
        [*program, str(folder), str(seed), str(rounds)], stderr=subprocess.PIPE
    )


HOLDER = """
import os, sys
from rpc25519_tools.files.area import PartialArea
area = PartialArea.open(os.open(sys.argv[1], os.O_RDONLY))
for _ in range(50):
    os.write(area.scratch().fd, b"data")
os.write(area.acquire(b"key").fd, b"half")
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_loses_its_session_and_keeps_its_partials(
    folder: Path, place_fd: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with PartialArea.open(place_fd) as area:
            area.sweep(time.time() + 2 * WEEK_S)
            assert area.acquire(b"key") is None
        assert len(names(folder / AREA)) == 2
        process.kill()
    with PartialArea.open(place_fd) as area:
        partial = held(area, b"key")
        assert names(folder / AREA) == [partial.name.decode()]
        assert content(partial) == b"half"
        partial.discard()
    assert names(folder) == []


def test_processes_that_are_killed_at_any_point_leave_no_wrong_file(
    folder: Path, place_fd: int
) -> None:
    """Kill some of those that work at the same time, and let the others end."""
    rng = random.Random(1)
    end_s = time.monotonic() + 2.5
    running: list[subprocess.Popen[bytes]] = []
    seed = killed = 0
    while time.monotonic() < end_s:
        while len(running) < 3:
            seed += 1
            running.append(worker(folder, seed, 10**9))
        time.sleep(rng.random() * 0.4)
        process = running.pop(rng.randrange(len(running)))
        assert process.poll() is None, process.communicate()[1].decode()
        process.kill()
        process.communicate()
        killed += 1
    for process in running:
        process.kill()
        process.communicate()
    last = [worker(folder, seed + n, 60) for n in (1, 2)]
    for process in last:
        _, said = process.communicate()
        assert process.returncode == 0, said.decode()
    assert killed > 4
    finals = [name for name in names(folder) if name != AREA]
    assert finals
    for name in finals:
        key = int(name.removeprefix("final-"))
        whole = area_worker.content(key, area_worker.WHOLE_LEN)
        assert (folder / name).read_bytes() == whole
    with PartialArea.open(place_fd) as area:
        area.sweep(time.time() + 2 * WEEK_S)
    assert AREA not in names(folder)


def test_without_locks_nothing_is_carried_on_with(
    folder: Path, place_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with PartialArea.open(place_fd) as area:
        assert area.acquire(b"key") is None
        scratch = area.scratch()
        with PartialArea.open(place_fd) as other:
            other.sweep()
            publish(scratch, place_fd, b"final")
            assert len(names(folder / AREA)) == 1
            other.sweep(time.time() + 2 * WEEK_S)
            assert names(folder / AREA) == []
    assert names(folder) == ["final"]


# What killed sessions have left


def read_left(area: PartialArea, key: bytes) -> bytes | None:
    fd = area.open_left(key)
    assert area.has_left(key) == (fd >= 0)
    if fd < 0:
        return None
    try:
        return os.read(fd, 1000)
    finally:
        os.close(fd)


def test_who_takes_over_finds_what_killed_sessions_left(
    folder: Path, place_fd: int
) -> None:
    leave_behind(folder, (b"one", b"1"), (b"two", b"2"))
    leave_behind(folder, (b"two", b"newer"))
    with PartialArea.open(place_fd, takes_over=True) as area:
        assert read_left(area, b"one") is None, "the second process has swept it"
        assert read_left(area, b"two") == b"newer"
        assert read_left(area, b"three") is None
        with PartialArea.open(place_fd, takes_over=True) as other:
            assert read_left(other, b"two") is None
        assert read_left(area, b"two") == b"newer"
    assert names(folder) == []


def test_what_is_taken_over_can_be_left_once_more(folder: Path, place_fd: int) -> None:
    leave_behind(folder, (b"one", b"1"))
    with PartialArea.open(place_fd, takes_over=True) as area:
        area.scratch(b"one").discard()
        area.keep_left()
    with PartialArea.open(place_fd, takes_over=True) as area:
        assert read_left(area, b"one") == b"1"
    assert names(folder) == []


def test_who_does_not_take_over_sweeps_it(folder: Path, place_fd: int) -> None:
    leave_behind(folder, (b"one", b"1"))
    with PartialArea.open(place_fd) as area:
        assert read_left(area, b"one") is None
    assert names(folder) == []
