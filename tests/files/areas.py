"""Partial files in areas, for tests of what becomes of them."""

import os
import subprocess
import sys
from pathlib import Path

from rpc25519_tools.files.area import AREA_NAME, Partial, PartialArea

AREA = AREA_NAME.decode()


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


def publish(partial: Partial, dir_fd: int, name: bytes) -> None:
    """Give a file its final name, as those do that use areas."""
    os.rename(partial.name, name, src_dir_fd=partial.dir_fd, dst_dir_fd=dir_fd)
    partial.close()


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
