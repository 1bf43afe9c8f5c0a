"""Attackers in the area for unfinished files: what is not ours alone is refused."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from rpc25519_tools.errors import UnsafePathError
from rpc25519_tools.files.area import PartialArea
from tests.files.areas import AREA, content, held, write_and_keep
from tests.files.atomics import NOBODY, names

pytestmark = pytest.mark.usefixtures("no_fd_leak")


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


def two_in_the_way(folder: Path) -> None:
    give_to_another_user(folder)
    (folder / f"{AREA}-{os.geteuid()}").symlink_to(folder)


def give_to_another_user(folder: Path) -> None:
    (folder / AREA).mkdir(mode=0o700)
    if os.geteuid() != 0:
        pytest.skip("needs another user's directory")
    os.chown(folder / AREA, NOBODY, NOBODY)


@pytest.mark.parametrize("is_late", [False, True])
def test_each_user_has_an_area(folder: Path, place_fd: int, is_late: bool) -> None:
    """As in ``/tmp``, where nobody is to keep others from their files."""
    if not is_late:
        give_to_another_user(folder)
    mine = f"{AREA}-{os.geteuid()}"
    with PartialArea.open(place_fd) as area:
        if is_late:
            give_to_another_user(folder)
        partial = area.acquire(b"key")
        assert partial is not None
        os.write(partial.fd, b"data")
        partial.keep()
        area.scratch().discard()
        assert names(folder) == [AREA, mine]
        assert os.listdir(folder / AREA) == []
    with PartialArea.open(place_fd) as area:
        assert area.holds(b"key") == 4
        partial = area.acquire(b"key")
        assert partial is not None
        partial.discard()
    assert names(folder) == [AREA]


@pytest.mark.parametrize(
    "attack",
    [link, dangling, plain_file, fifo, writable_for_others, two_in_the_way],
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
