"""The area for unfinished files: carrying on, and others who use it too."""

import fcntl
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rpc25519_tools.files.area import AREA_NAME, PartialArea
from rpc25519_tools.files.jail import is_partial_name
from tests.files.areas import AREA, content, held, publish, write_and_keep
from tests.files.atomics import names

pytestmark = pytest.mark.usefixtures("no_fd_leak")


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
        publish(partial, place_fd, b"final")
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
        publish(scratches[7], place_fd, b"seven")
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


def test_what_has_taken_the_name_of_a_partial_is_not_discarded(
    folder: Path, place_fd: int
) -> None:
    with PartialArea.open(place_fd) as area:
        partial = held(area, b"key")
        path = folder / AREA / partial.name.decode()
        path.unlink()
        path.write_bytes(b"something else")
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
        publish(partial, place_fd, b"one")
        publish(scratch, place_fd, b"two")
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
                    publish(two, place_fd, b"%d" % number)
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
