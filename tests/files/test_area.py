"""The area for unfinished files: carrying on, sweeping, attackers, killed processes."""

import errno
import fcntl
import os
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rpc25519_tools.errors import OtherFileSystemError, UnsafePathError
from rpc25519_tools.files import sweeping
from rpc25519_tools.files.area import AREA_NAME, Partial, PartialArea
from rpc25519_tools.files.jail import is_partial_name
from tests.files import area_worker
from tests.files.atomics import NOBODY, names

pytestmark = pytest.mark.usefixtures("no_fd_leak")

AREA = AREA_NAME.decode()
WEEK_S = 7 * 24 * 3600


@pytest.fixture
def place_fd(folder: Path, no_fd_leak: None) -> Iterator[int]:
    (folder / "file").unlink()
    fd = os.open(folder, os.O_RDONLY)
    yield fd
    os.close(fd)


def write_and_keep(area: PartialArea, key: bytes, data: bytes) -> None:
    partial = area.acquire(key)
    assert partial is not None
    os.pwrite(partial.fd, data, 0)
    partial.keep()


def held(area: PartialArea, key: bytes) -> Partial:
    partial = area.acquire(key)
    assert partial is not None
    return partial


def content(partial: Partial) -> bytes:
    return os.pread(partial.fd, 1000, 0)


# What it is for


def test_its_name_is_never_served() -> None:
    assert is_partial_name(AREA_NAME)


def test_nothing_is_made_before_a_file_is_asked_for(
    folder: Path, place_fd: int
) -> None:
    with PartialArea.open(place_fd):
        assert names(folder) == []
    assert names(folder) == []


def test_a_kept_partial_is_carried_on_with(folder: Path, place_fd: int) -> None:
    with PartialArea.open(place_fd) as area:
        write_and_keep(area, b"key", b"half")
    assert stat.S_IMODE((folder / AREA).stat().st_mode) == 0o700
    with PartialArea.open(place_fd) as area:
        other = held(area, b"other")
        assert content(other) == b""
        other.discard()
        partial = held(area, b"key")
        assert content(partial) == b"half"
        assert stat.S_IMODE(os.fstat(partial.fd).st_mode) == 0o600
        os.pwrite(partial.fd, b" and half", 4)
        partial.publish(place_fd, b"final")
        assert partial.fd == -1
        partial.discard()
    assert names(folder) == ["final"]
    assert (folder / "final").read_bytes() == b"half and half"


def test_an_empty_partial_is_not_kept(folder: Path, place_fd: int) -> None:
    with PartialArea.open(place_fd) as area:
        held(area, b"key").keep()
    assert names(folder) == []


def test_discarded_files_leave_nothing(folder: Path, place_fd: int) -> None:
    with PartialArea.open(place_fd) as area:
        partial, scratch = held(area, b"key"), area.scratch()
        for one in (partial, scratch):
            os.write(one.fd, b"data")
            one.discard()
            one.discard()
    assert names(folder) == []


def test_scratch_files_die_with_their_area(folder: Path, place_fd: int) -> None:
    with PartialArea.open(place_fd) as area:
        scratches = [area.scratch() for _ in range(20)]
        assert len({one.name for one in scratches}) == 20
        for number, one in enumerate(scratches):
            os.write(one.fd, b"%d" % number)
            one.close_fd()
        scratches[7].publish(place_fd, b"seven")
    assert names(folder) == ["seven"]
    assert (folder / "seven").read_bytes() == b"7"


def test_a_scratch_file_costs_one_call(
    place_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noted(name: str, function: Callable[..., int]) -> Callable[..., int]:
        def call(*args: object, **kwargs: object) -> int:
            calls.append(name)
            return function(*args, **kwargs)

        return call

    with PartialArea.open(place_fd) as area:
        first = area.scratch()
        with monkeypatch.context() as patch:
            for name in ("open", "fstat", "stat", "mkdir", "urandom", "fchmod"):
                patch.setattr(os, name, noted(name, getattr(os, name)))
            for name in ("flock", "lockf"):
                function = getattr(fcntl, name)
                patch.setattr(fcntl, name, noted(name, function))
            second = area.scratch()
        assert calls == ["open"]
        first.discard()
        second.discard()


def test_an_old_file_is_replaced(folder: Path, place_fd: int) -> None:
    (folder / "final").write_bytes(b"old")
    with PartialArea.open(place_fd) as area:
        for data, partial in ((b"1", held(area, b"key")), (b"2", area.scratch())):
            os.write(partial.fd, data)
            partial.publish(place_fd, b"final")
            assert (folder / "final").read_bytes() == data
    assert names(folder) == ["final"]


def test_a_target_on_another_file_system_is_told_apart(
    folder: Path, place_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    with PartialArea.open(place_fd) as area:
        for partial in (held(area, b"key"), area.scratch()):
            os.write(partial.fd, b"data")
            with monkeypatch.context() as patch:
                patch.setattr(os, "rename", rename)
                with pytest.raises(OtherFileSystemError):
                    partial.publish(place_fd, b"final")
            assert content(partial) == b"data"
            partial.discard()
    assert names(folder) == []


def test_a_partial_that_lost_its_name_is_not_published(
    folder: Path, place_fd: int
) -> None:
    with PartialArea.open(place_fd) as area:
        partial = held(area, b"key")
        path = folder / AREA / partial.name.decode()
        path.unlink()
        path.write_bytes(b"something else")
        with pytest.raises(FileNotFoundError):
            partial.publish(place_fd, b"final")
        partial.discard()
        assert path.read_bytes() == b"something else"
        path.unlink()
    assert names(folder) == []


# Others


def test_one_transfer_at_a_time_has_a_partial(place_fd: int) -> None:
    with PartialArea.open(place_fd) as one, PartialArea.open(place_fd) as two:
        partial = held(one, b"key")
        assert one.acquire(b"key") is None
        assert two.acquire(b"key") is None
        other = held(two, b"other")
        other.discard()
        os.write(partial.fd, b"data")
        partial.keep()
        partial = held(two, b"key")
        assert content(partial) == b"data"
        partial.discard()


def test_the_area_is_made_again_when_another_has_removed_it(
    folder: Path, place_fd: int
) -> None:
    with PartialArea.open(place_fd) as area:
        write_and_keep(area, b"key", b"data")
    with PartialArea.open(place_fd) as slow, PartialArea.open(place_fd) as again:
        with PartialArea.open(place_fd) as quick:
            held(quick, b"key").discard()
        assert names(folder) == []
        partial, scratch = held(slow, b"key"), again.scratch()
        partial.publish(place_fd, b"one")
        scratch.publish(place_fd, b"two")
    assert names(folder) == ["one", "two"]


def test_threads_that_make_and_leave_areas_do_not_disturb_each_other(
    folder: Path, place_fd: int
) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(150):
                with PartialArea.open(place_fd) as area:
                    one, two = area.acquire(b"%d" % number), area.scratch()
                    assert one is not None
                    one.discard()
                    two.publish(place_fd, b"%d" % number)
        except BaseException as exc:  # noqa: BLE001  # told in the main thread
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert names(folder) == ["0", "1", "2", "3"]


def test_one_area_may_be_used_by_many_threads(folder: Path, place_fd: int) -> None:
    made: list[bytes] = []

    def work() -> None:
        for _ in range(100):
            one = area.scratch()
            made.append(one.name)
            one.discard()

    with PartialArea.open(place_fd) as area:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(os.listdir(folder / AREA)) == 1
    assert len(set(made)) == 400


# Attackers


def link(folder: Path) -> None:
    (folder / "elsewhere").mkdir(mode=0o700)
    (folder / AREA).symlink_to(folder / "elsewhere")


def dangling(folder: Path) -> None:
    (folder / AREA).symlink_to(folder / "nowhere")


def plain_file(folder: Path) -> None:
    (folder / AREA).write_bytes(b"")


def fifo(folder: Path) -> None:
    os.mkfifo(folder / AREA)


def writable_for_others(folder: Path) -> None:
    (folder / AREA).mkdir()
    (folder / AREA).chmod(0o733)


def of_another_user(folder: Path) -> None:
    (folder / AREA).mkdir(mode=0o700)
    if os.geteuid() != 0:
        pytest.skip("needs another user's directory")
    os.chown(folder / AREA, NOBODY, NOBODY)


@pytest.mark.parametrize(
    "attack",
    [link, dangling, plain_file, fifo, writable_for_others, of_another_user],
    ids=lambda attack: attack.__name__,
)
def test_what_is_not_ours_alone_is_refused(
    folder: Path, place_fd: int, attack: Callable[[Path], None]
) -> None:
    with PartialArea.open(place_fd) as early:
        attack(folder)
        with pytest.raises(UnsafePathError):
            early.acquire(b"key")
        with pytest.raises(UnsafePathError):
            early.scratch()
    with pytest.raises(UnsafePathError):
        PartialArea.open(place_fd)
    for path in (folder / "elsewhere", folder / AREA):
        assert not path.is_dir() or os.listdir(path) == []
    assert not (folder / "nowhere").exists()


def test_an_area_that_others_can_read_is_closed_to_them(
    folder: Path, place_fd: int
) -> None:
    (folder / AREA).mkdir(mode=0o755)
    (folder / AREA).chmod(0o755)
    with PartialArea.open(place_fd) as area:
        write_and_keep(area, b"key", b"data")
    assert stat.S_IMODE((folder / AREA).stat().st_mode) == 0o700


def partial_path(folder: Path, area: PartialArea) -> Path:
    partial = held(area, b"key")
    partial.discard()
    return folder / AREA / partial.name.decode()


def test_a_partial_that_is_another_file_too_is_begun_anew(
    folder: Path, place_fd: int
) -> None:
    (folder / "precious").write_bytes(b"precious")
    with PartialArea.open(place_fd) as area:
        path = partial_path(folder, area)
        path.hardlink_to(folder / "precious")
        partial = held(area, b"key")
        assert content(partial) == b""
        os.write(partial.fd, b"data")
        partial.keep()
    assert (folder / "precious").read_bytes() == b"precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file of another user")
def test_a_partial_of_another_user_is_begun_anew(folder: Path, place_fd: int) -> None:
    with PartialArea.open(place_fd) as area:
        path = partial_path(folder, area)
        path.write_bytes(b"planted")
        os.chown(path, NOBODY, NOBODY)
        partial = held(area, b"key")
        assert content(partial) == b""
        assert os.fstat(partial.fd).st_uid == os.geteuid()
        partial.discard()


def plant_link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "target")


def plant_directory(path: Path) -> None:
    path.mkdir()


def plant_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("plant", [plant_link, plant_directory, plant_fifo])
def test_a_partial_that_is_no_file_is_refused(
    folder: Path, place_fd: int, plant: Callable[[Path], None]
) -> None:
    with PartialArea.open(place_fd) as area:
        plant(partial_path(folder, area))
        with pytest.raises(UnsafePathError):
            area.acquire(b"key")
    assert not (folder / "target").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="asks for rights as somebody else")
def test_a_directory_that_we_may_not_write_is_an_error(
    folder: Path, place_fd: int
) -> None:
    folder.chmod(0o755)
    with PartialArea.open(place_fd) as area:
        os.seteuid(NOBODY)
        try:
            with pytest.raises(PermissionError):
                area.acquire(b"key")
            with pytest.raises(PermissionError):
                area.scratch()
        finally:
            os.seteuid(0)
    assert names(folder) == []


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
            scratch.publish(place_fd, b"final")
            assert len(names(folder / AREA)) == 1
            other.sweep(time.time() + 2 * WEEK_S)
            assert names(folder / AREA) == []
    assert names(folder) == ["final"]


# What killed sessions have left


def leave_behind(folder: Path, *files: tuple[bytes, bytes]) -> None:
    """Have a process killed that holds these files in a session."""
    program = (
        "import os, sys\n"
        "from rpc25519_tools.files.area import PartialArea\n"
        "area = PartialArea.open(os.open(sys.argv[1], os.O_RDONLY))\n"
        "for word in sys.argv[2:]:\n"
        "    key, _, data = word.encode().partition(b'=')\n"
        "    os.write(area.scratch(key).fd, data)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    words = [f"{key.decode()}={data.decode()}" for key, data in files]
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), *words], check=False
    )
    assert done.returncode == -9


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
