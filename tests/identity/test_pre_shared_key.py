"""The key file: what is read, what is refused, and that the key is never shown."""

import os
from pathlib import Path

import pytest

from rpc25519_tools.errors import KeyFileError
from rpc25519_tools.identity.pre_shared_key import (
    MAX_FILE_LEN,
    MIN_FILE_LEN,
    load_pre_shared_key,
)
from rpc25519_tools.wire.tunnel import derive_psk


def key_file(path: Path, length: int, mode: int = 0o600) -> Path:
    path.write_bytes(b"k" * length)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("length", [MIN_FILE_LEN, 33, MAX_FILE_LEN])
def test_all_bytes_count(tmp_path: Path, length: int) -> None:
    key = load_pre_shared_key(key_file(tmp_path / "psk", length))
    assert key.secret == derive_psk(b"k" * length)
    assert key.problem is None


@pytest.mark.parametrize("length", [0, MIN_FILE_LEN - 1])
def test_a_short_file_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(KeyFileError, match=f"too short .* {length} bytes"):
        load_pre_shared_key(key_file(tmp_path / "psk", length))


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, reason in (
        (tmp_path / "nosuch", "no such file"),
        (tmp_path, "directory|regular"),
        (tmp_path / "fifo", "not a regular file"),
        (key_file(tmp_path / "long", MAX_FILE_LEN + 1), "too long"),
    ):
        with pytest.raises(KeyFileError, match=reason):
            load_pre_shared_key(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_loose_permissions_are_a_problem(tmp_path: Path, mode: int) -> None:
    key = load_pre_shared_key(key_file(tmp_path / "psk", 32, mode))
    assert key.problem is not None
    assert f"{mode:04o}" in key.problem


def test_the_key_is_not_shown(tmp_path: Path) -> None:
    key = load_pre_shared_key(key_file(tmp_path / "psk", 32))
    assert "secret" not in repr(key)
    assert repr(key.secret)[2:10] not in repr(key)
