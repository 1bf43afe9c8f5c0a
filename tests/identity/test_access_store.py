"""The access file on disk: read again when it changes, of no use when it is unsafe."""

import logging
import os
import threading
import time
from pathlib import Path

import pytest

from rpc25519_tools.errors import AccessFileError, LocalFileError
from rpc25519_tools.identity import access_store
from rpc25519_tools.identity.access import Subject
from rpc25519_tools.identity.access_store import AccessFile
from rpc25519_tools.identity.access_text import MAX_FILE_LEN
from rpc25519_tools.identity.certificate import PeerIdentity

ANN = PeerIdentity(
    public_key=bytes(32), emails=("ann@example.org",), certificate_der=b""
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "access"
    write(path, "* read /a\n")
    return path


def write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)


def replace(path: Path, text: str) -> None:
    """Put a new file in the old one's place, as editors do."""
    write(new := path.with_suffix(".new"), text)
    new.rename(path)


def put_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING
    ]


def test_changes_count_at_once(path: Path) -> None:
    access = AccessFile(path)
    assert access.may(ANN, "read", "/a")
    # Same size, and within one tick of the clock.
    for turn in range(20):
        write(path, "* read /b\n" if turn % 2 else "* read /a\n")
        assert access.may(ANN, "read", "/b") is bool(turn % 2)
        assert access.may(ANN, "read", "/a") is not bool(turn % 2)
    replace(path, "deny ann@example.org\n* read /\n")
    assert not access.may(ANN, "read", "/a")
    assert access.rules is not None
    assert access.rules.decide(Subject(), "read", "/a")


def test_a_file_that_has_settled_is_not_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = AccessFile(path)
    two_hours_later = time.time_ns() + 7_200_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: two_hours_later)
    assert access.may(ANN, "read", "/a")
    monkeypatch.setattr(access_store, "_read", None)  # calling it would fail
    for _ in range(3):
        assert access.may(ANN, "read", "/a")
    monkeypatch.undo()
    write(path, "* read /b\n")
    assert access.may(ANN, "read", "/b")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: write(path, "* read /\nnonsense\n"), "line 2: 'nonsense'"),
        (lambda path: write(path, "* read /"), "line 1"),
        (lambda path: path.unlink(), "cannot read access file"),
        (put_directory, "is not a regular file"),
        (put_fifo, "is not a regular file"),
        (lambda path: path.chmod(0o602), "others can write"),
        (lambda path: path.chmod(0o620), "others can write"),
        (lambda path: path.parent.chmod(0o777), "others can replace"),
        (lambda path: write(path, "#" * MAX_FILE_LEN + "\n"), "longer than"),
        (lambda path: path.write_bytes(b"\xff\n"), "UTF-8"),
    ],
)
def test_while_it_is_of_no_use_nothing_is_allowed(
    path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    damage: object,
    problem: str,
) -> None:
    monkeypatch.setattr(access_store, "_RETRY_S", 0.0)  # each question tries again
    access = AccessFile(path)
    assert access.may(ANN, "read", "/a")
    assert callable(damage)
    damage(path)
    for _ in range(5):
        assert not access.may(ANN, "read", "/a")
        assert access.rules is None
    (text,) = warnings(caplog)
    assert problem in text
    assert str(path) in text
    assert text.endswith("; nothing is allowed until it is mended")
    with pytest.raises((AccessFileError, LocalFileError)) as caught:
        AccessFile(path)
    assert problem in str(caught.value)
    # Mended, it is in force again, which the log says, too.
    path.parent.chmod(0o700)
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    write(path, "* read /a\n")
    assert access.may(ANN, "read", "/a")
    assert warnings(caplog)[1:] == [f"access file {path} is in force again"]


def test_each_new_problem_is_logged(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    access = AccessFile(path)
    for text in ("x\n", "x\n#\n", "y\n", "* read /a\n", "x\n"):
        replace(path, text)
        access.may(ANN, "read", "/a")
    start = f"access file {path}"
    assert [text.removeprefix(start)[:13] for text in warnings(caplog)] == [
        ": line 1: 'x'",
        ": line 1: 'y'",
        " is in force ",
        ": line 1: 'x'",
    ]


def test_a_mended_directory_is_noticed_in_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = AccessFile(path)
    path.parent.chmod(0o777)
    path.touch()
    assert not access.may(ANN, "read", "/a")
    path.parent.chmod(0o700)
    later = time.monotonic() + 2 * access_store._RETRY_S
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert access.may(ANN, "read", "/a")


def test_sticky_directories_are_safe(path: Path) -> None:
    path.parent.chmod(0o1777)
    assert AccessFile(path).may(ANN, "read", "/a")


def test_links_are_followed_and_their_directories_checked(
    path: Path, tmp_path: Path
) -> None:
    (folder := tmp_path / "links").mkdir()
    (link := folder / "access").symlink_to(path)
    access = AccessFile(link)
    assert access.may(ANN, "read", "/a")
    write(path, "* read /b\n")
    assert access.may(ANN, "read", "/b")
    folder.chmod(0o777)
    with pytest.raises(AccessFileError, match="others can replace"):
        AccessFile(link)
    folder.chmod(0o700)
    path.parent.chmod(0o777)
    with pytest.raises(AccessFileError, match="others can replace"):
        AccessFile(link)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_others_are_refused(path: Path) -> None:
    os.chown(path, 12345, -1)
    with pytest.raises(AccessFileError, match="belongs to another user"):
        AccessFile(path)
    os.chown(path, 0, -1)
    os.chown(path.parent, 12345, -1)
    with pytest.raises(AccessFileError, match=r"directory of .* another user"):
        AccessFile(path)
    os.chown(path.parent, 0, -1)


def test_names_that_cannot_be_are_an_error_of_ours() -> None:
    for name in ("no/such/file", "a\0b", "x" * 5000):
        with pytest.raises(LocalFileError, match="cannot read access file"):
            AccessFile(name)


def test_no_thread_ever_sees_half_a_file(path: Path) -> None:
    # Both halves of each file must be there, or none.
    def text(name: str) -> str:
        return f"* read /{name}\n" + "# filler\n" * 500 + f"* write /{name}\n"

    replace(path, text("0"))
    access = AccessFile(path)
    stop = threading.Event()
    wrong: list[tuple[set[str], set[str]]] = []

    def look() -> None:
        while not stop.is_set():
            rules = access.rules
            if rules is None or len(rules.rules) != 2:
                wrong.append((set(), set()))
                continue
            first, second = rules.rules
            if first.path != second.path:
                wrong.append((set(first.path or ()), set(second.path or ())))

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(60):
        replace(path, text(str(number)))
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
