"""Owners, and who may set them: root, somebody else, root for a stranger."""

import grp
import os
import pwd
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rpc25519_tools.sync import attributes, walk
from rpc25519_tools.sync.receiver import Receiver
from tests.sync import local
from tests.sync.local import sync
from tests.sync.trees import ALL, Trees, needs_root, push, with_options

pytestmark = pytest.mark.usefixtures("no_leaked_fds")


@needs_root
def test_owners_are_kept(trees: Trees) -> None:
    source, _ = trees
    (source / "dir").mkdir()
    (source / "dir/a").write_bytes(b"x")
    (source / "link").symlink_to("nowhere")
    for number, name in enumerate(("dir/a", "dir", "link")):
        os.chown(source / name, 40_000 + number, 50_000 + number, follow_symlinks=False)
    (source / "setuid").write_bytes(b"y")
    os.chown(source / "setuid", 40_000, 50_000)
    (source / "setuid").chmod(0o6755)
    push(trees)
    os.chown(source / "dir/a", 1, 2)
    push(trees)


@needs_root
@pytest.mark.parametrize("numeric", [False, True])
def test_owners_are_mapped_by_name(
    trees: Trees, monkeypatch: pytest.MonkeyPatch, numeric: bool
) -> None:
    source, destination = trees
    (source / "a").write_bytes(b"x")
    os.chown(source / "a", 40_000, 50_000)
    user, group = pwd.getpwuid(1), grp.getgrgid(2)
    monkeypatch.setattr(walk, "user_name", lambda uid: user.pw_name if uid else "root")
    monkeypatch.setattr(
        walk, "group_name", lambda gid: group.gr_name if gid else "root"
    )
    sync([f"{source}/"], destination, with_options(numeric_ids=numeric))
    status = (destination / "a").stat()
    expected = (40_000, 50_000) if numeric else (user.pw_uid, group.gr_gid)
    assert (status.st_uid, status.st_gid) == expected


@needs_root
def test_replaced_file_keeps_its_owner_where_owners_are_not_taken(
    trees: Trees,
) -> None:
    source, destination = trees
    (source / "a").write_bytes(b"new")
    (destination / "a").write_bytes(b"old one")
    os.chown(destination / "a", 40_000, 50_000)
    sync([f"{source}/"], destination, with_options(owner=False, group=False))
    status = (destination / "a").stat()
    assert (status.st_uid, status.st_gid) == (40_000, 50_000)


@needs_root
def test_syncs_by_somebody_who_is_not_root() -> None:
    from . import as_user

    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        as_user.prepare(Path(folder))
        done = subprocess.run(
            [sys.executable, "-m", "tests.sync.as_user", folder],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@needs_root
def test_sender_without_privilege_sets_no_owners_and_makes_no_devices(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = trees
    (source / "a").write_bytes(b"x")
    os.chown(source / "a", 40_000, 50_000)
    (source / "a").chmod(0o6755)
    (source / "dir").mkdir()
    os.chown(source / "dir", 40_000, 50_000)
    (source / "dir").chmod(0o2755)

    def unprivileged(*args: Any, **kwargs: Any) -> Receiver:
        return Receiver(*args, **kwargs | {"privileged": False})

    monkeypatch.setattr(local, "Receiver", unprivileged)
    assert sync([f"{source}/"], destination, ALL).at_receiver.failures == []
    assert sync([f"{source}/"], destination, ALL).at_receiver.lines == []
    status = (destination / "a").stat()
    assert stat.S_IMODE(status.st_mode) == 0o755
    assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
    assert (destination / "dir").stat().st_uid == os.getuid()
    assert attributes.allowed_mode(0o106755, privileged=False) == 0o100755
    assert attributes.allowed_mode(0o106755, privileged=True) == 0o106755
