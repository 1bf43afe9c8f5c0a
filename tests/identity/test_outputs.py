"""Writing files: all of them or none, and never over what is there unasked."""

import os
import stat
from pathlib import Path
from typing import NoReturn

import pytest

from rpc25519_tools.errors import (
    LocalFileError,
)
from rpc25519_tools.identity.outputs import Output, check_outputs, write_outputs


def outputs(directory: Path, count: int = 3, *, replace: bool = False) -> list[Output]:
    return [
        Output(
            path=directory / f"d{number % 2}" / "deep" / f"file{number}",
            content=f"content {number}".encode(),
            replace=replace,
        )
        for number in range(count)
    ]


def tree(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


@pytest.fixture
def no_umask() -> object:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_umask")
def test_files_are_private_from_their_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    real_open = os.open

    def spy(path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = real_open(path, flags, mode)
        if flags & os.O_CREAT:
            found = os.fstat(descriptor)
            seen.append((stat.S_IMODE(found.st_mode), found.st_size))
        return descriptor

    monkeypatch.setattr(os, "open", spy)
    write_outputs(outputs(tmp_path))
    assert seen == [(0o600, 0)] * 3
    for path in tmp_path.rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted
    assert [path.name for path in tmp_path.rglob("file*")]
    assert not list(tmp_path.rglob(".*"))


def test_existing_directories_keep_their_mode(tmp_path: Path) -> None:
    (tmp_path / "d0").mkdir()
    (tmp_path / "d0").chmod(0o755)
    write_outputs(outputs(tmp_path, 1))
    assert stat.S_IMODE((tmp_path / "d0").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "d0" / "deep").stat().st_mode) == 0o700


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    write_outputs(outputs(tmp_path, 1))
    victim = tmp_path / "d0" / "deep" / "file0"
    victim.write_bytes(b"precious")
    before = tree(tmp_path)
    with pytest.raises(LocalFileError, match=r"file0 exists.*--force replaces"):
        write_outputs(outputs(tmp_path))
    assert tree(tmp_path) == before
    write_outputs(outputs(tmp_path, replace=True))
    assert victim.read_bytes() == b"content 0"
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3


def test_a_dangling_link_counts_as_existing_and_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    link = tmp_path / "key"
    link.symlink_to(target)
    output = Output(path=link, content=b"x")
    with pytest.raises(LocalFileError, match="exists"):
        write_outputs([output])
    write_outputs([Output(path=link, content=b"x", replace=True)])
    assert not target.exists()
    assert not link.is_symlink()
    assert link.read_bytes() == b"x"


def test_a_name_taken_in_the_meantime_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "d0" / "deep" / "file2"
    victim.parent.mkdir(parents=True)
    monkeypatch.setattr(
        f"{write_outputs.__module__}.check_outputs",
        lambda _outputs: victim.write_bytes(b"theirs"),
    )
    with pytest.raises(LocalFileError, match="cannot write"):
        write_outputs(outputs(tmp_path))
    assert tree(tmp_path) == {"d0": None, "d0/deep": None, "d0/deep/file2": b"theirs"}


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("function", ["link", "replace", "fsync", "mkdir", "open"])
@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("fail_at", range(1, 9))
def test_a_failure_at_any_step_leaves_everything_as_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    replace: bool,
    error: BaseException,
    fail_at: int,
) -> None:
    old = tmp_path / "d0" / "deep" / "file0"
    if replace:
        old.parent.mkdir(parents=True)
        old.write_bytes(b"old content")
    before = tree(tmp_path)
    real = getattr(os, function)
    calls = 0

    def failing(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise error
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(os, function, failing)
        try:
            write_outputs(outputs(tmp_path, replace=replace))
        except (LocalFileError, KeyboardInterrupt):
            assert tree(tmp_path) == before
            return
    assert calls < fail_at  # there was no such step: all is written
    assert len(tree(tmp_path)) == 3 + 4


def test_file_systems_without_hard_links_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_args: object, **_kwargs: object) -> NoReturn:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    write_outputs(outputs(tmp_path))
    with pytest.raises(LocalFileError, match="exists"):
        write_outputs(outputs(tmp_path))
    write_outputs(outputs(tmp_path, replace=True))
    assert len(tree(tmp_path)) == 3 + 4


def test_directories_that_cannot_be_synced_are_forgiven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_outputs(outputs(tmp_path))


def test_unusable_places_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    below_file = Output(path=tmp_path / "file" / "x", content=b"")
    with pytest.raises(LocalFileError, match="file is not a directory"):
        check_outputs([below_file])
    with pytest.raises(LocalFileError, match="is a directory"):
        check_outputs([Output(path=tmp_path, content=b"", replace=True)])
    monkeypatch.setattr(os, "access", lambda *_args: False)
    with pytest.raises(LocalFileError, match=r"cannot write in .*permission denied"):
        check_outputs([Output(path=tmp_path / "new" / "x", content=b"")])
