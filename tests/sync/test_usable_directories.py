"""A directory of ours that is closed to ourselves is opened, on every system."""

import os
import stat
import sys
from pathlib import Path

import pytest

from rpc25519_tools.files.jail import DIR_FLAGS
from rpc25519_tools.sync.attributes import make_usable

USER = 54_321


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    """A system that is no Linux has neither ``/proc`` nor ``O_PATH``."""
    if sys.platform != "linux" and platform == "linux":
        pytest.skip("there is no /proc here")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o2500)
    closed.chmod(0o2550)
    if os.geteuid() == 0:
        os.chown(closed, USER, USER)
        closed.chmod(0o2550)
        monkeypatch.setattr(os, "geteuid", lambda: USER)
    chmod = os.chmod

    def without_proc(path: str, mode: int) -> None:
        assert not path.startswith("/proc/")
        chmod(path, mode)

    fd = os.open(closed, DIR_FLAGS if platform == "linux" else os.O_RDONLY)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "platform", platform)
            if platform != "linux":
                patched.setattr(os, "chmod", without_proc)
            assert make_usable(fd, os.fstat(fd))
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o2750
        assert not make_usable(fd, os.fstat(fd))
    finally:
        os.close(fd)
