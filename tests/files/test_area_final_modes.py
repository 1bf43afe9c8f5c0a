"""Partials of killed processes that have got a mode which keeps their own user out."""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc25519_tools.errors import UnsafePathError
from rpc25519_tools.files import sweeping
from rpc25519_tools.files.area import AREA_NAME, PartialArea
from tests.files.areas import content, held, write_and_keep

pytestmark = pytest.mark.usefixtures("no_fd_leak")

#: Nobody has this number.
USER = 54_321
LATER_S = 2 * sweeping.MAX_AGE_S


@pytest.fixture
def place_fd(folder: Path, no_fd_leak: None) -> Iterator[int]:
    """Open the folder, and be somebody who is not root: root is let in everywhere."""
    was_root = os.geteuid() == 0
    fd = os.open(folder, os.O_RDONLY)
    if was_root:
        os.fchown(fd, USER, USER)
        os.setegid(USER)
        os.seteuid(USER)
    try:
        yield fd
    finally:
        if was_root:
            os.seteuid(0)
            os.setegid(0)
        os.close(fd)


def leave(place_fd: int, mode: int) -> None:
    """Leave a partial as who was killed just before the rename."""
    with PartialArea.open(place_fd) as area:
        partial = held(area, b"key")
        os.write(partial.fd, b"whole")
        os.fchmod(partial.fd, mode)
        partial.keep()


def partials(place_fd: int) -> dict[str, int]:
    """Return the modes of what is in the area."""
    try:
        fd = os.open(AREA_NAME, os.O_RDONLY, dir_fd=place_fd)
    except FileNotFoundError:
        return {}
    try:
        found = os.listdir(fd)
        return {n: stat.S_IMODE(os.stat(n, dir_fd=fd).st_mode) for n in found}
    finally:
        os.close(fd)


@pytest.mark.parametrize("mode", [0o444, 0o400, 0o555])
def test_a_read_only_partial_is_carried_on_with(place_fd: int, mode: int) -> None:
    leave(place_fd, mode)
    with PartialArea.open(place_fd) as area:
        assert area.holds(b"key") == 5
        partial = held(area, b"key")
        assert content(partial) == b"whole"
        assert list(partials(place_fd).values()) == [0o600]
        os.pwrite(partial.fd, b"other", 0)
        assert content(partial) == b"other"
        partial.discard()
    assert partials(place_fd) == {}


@pytest.mark.parametrize("mode", [0o444, 0o200, 0])
def test_a_partial_of_any_mode_is_swept(place_fd: int, mode: int) -> None:
    leave(place_fd, mode)
    with PartialArea.open(place_fd) as area:
        area.sweep()
        assert list(partials(place_fd).values()) == [mode]
        area.sweep(time.time() + LATER_S)
        assert partials(place_fd) == {}


def test_read_only_partials_that_are_too_many_are_swept(
    place_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "MAX_PARTIALS", 0)
    with PartialArea.open(place_fd) as area:
        partial = held(area, b"key")
        os.write(partial.fd, b"whole")
        os.fchmod(partial.fd, 0o444)
        area.sweep()
        assert len(partials(place_fd)) == 1, "its owner lives"
        partial.keep()
        area.sweep()
        assert partials(place_fd) == {}


def test_a_mode_stays_while_its_owner_lives(place_fd: int) -> None:
    """Otherwise the file would get its name with the mode of an unfinished one."""
    with PartialArea.open(place_fd) as owner, PartialArea.open(place_fd) as other:
        partial = held(owner, b"key")
        os.write(partial.fd, b"whole")
        os.fchmod(partial.fd, 0o444)
        assert other.acquire(b"key") is None
        other.sweep(time.time() + LATER_S)
        assert list(partials(place_fd).values()) == [0o444]
        partial.discard()


@pytest.mark.parametrize("mode", [0o200, 0])
def test_what_cannot_be_locked_is_left_alone(place_fd: int, mode: int) -> None:
    leave(place_fd, mode)
    with PartialArea.open(place_fd) as area:
        assert area.holds(b"key") == 0, "nobody shall wait for it"
        assert area.acquire(b"key", make=False) is None
        assert area.acquire(b"key") is None
        assert list(partials(place_fd).values()) == [mode]


def test_a_file_system_that_locks_only_what_is_written_is_left_in_peace(
    place_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def as_on_nfs(fd: int, operation: int) -> None:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", as_on_nfs)
    leave(place_fd, 0o444)
    with PartialArea.open(place_fd) as area:
        assert area.acquire(b"key") is None
        assert list(partials(place_fd).values()) == [0o444]
        area.sweep(time.time() + LATER_S)
        assert partials(place_fd) == {}


def test_a_finished_file_of_the_same_inode_keeps_its_mode(place_fd: int) -> None:
    leave(place_fd, 0o444)
    (name,) = partials(place_fd)
    path = f"{AREA_NAME.decode()}/{name}"
    os.link(path, "final", src_dir_fd=place_fd, dst_dir_fd=place_fd)
    with PartialArea.open(place_fd) as area:
        partial = held(area, b"key")
        assert content(partial) == b""
        partial.discard()
    status = os.stat("final", dir_fd=place_fd)
    assert (stat.S_IMODE(status.st_mode), status.st_size) == (0o444, 5)


def test_a_link_to_a_read_only_file_is_not_followed(place_fd: int) -> None:
    leave(place_fd, 0o444)
    (name,) = partials(place_fd)
    path = f"{AREA_NAME.decode()}/{name}"
    os.rename(path, "other", src_dir_fd=place_fd, dst_dir_fd=place_fd)
    os.symlink("../other", path, dir_fd=place_fd)
    with (
        PartialArea.open(place_fd) as area,
        pytest.raises(UnsafePathError, match="what is in it is not ours"),
    ):
        area.acquire(b"key")
    assert stat.S_IMODE(os.stat("other", dir_fd=place_fd).st_mode) == 0o444


def test_an_area_that_cannot_be_written_is_an_error(place_fd: int) -> None:
    with PartialArea.open(place_fd) as area:
        write_and_keep(area, b"other", b"data")
        os.chmod(AREA_NAME, 0o500, dir_fd=place_fd)
        with pytest.raises(PermissionError):
            area.acquire(b"key")
        assert area.acquire(b"key", make=False) is None
        os.chmod(AREA_NAME, 0o700, dir_fd=place_fd)
