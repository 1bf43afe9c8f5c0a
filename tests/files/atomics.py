"""What tests of targets and their partial files share."""

import os
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from rpc25519_tools.files.atomic import (
    AtomicFile,
)

NAME = b"file"
STEM = ".rpc25519-part-" + blake3(NAME).hexdigest()[:16]
NOBODY = 65534


def count_fds() -> int:
    return len(os.listdir("/dev/fd"))


def start(folder: Path, *, clobber: bool = True, fsync: bool = False) -> AtomicFile:
    fd = os.open(folder, os.O_RDONLY)
    try:
        return AtomicFile(fd, NAME, clobber=clobber, fsync=fsync)
    finally:
        os.close(fd)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def assert_old(folder: Path) -> None:
    """Check that the old file is there and no partial file."""
    assert names(folder) == ["file"]
    assert (folder / "file").read_bytes() == b"old"


def fail_with(code: int) -> Callable[..., int]:
    def fail(*_args: object, **_kwargs: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail
