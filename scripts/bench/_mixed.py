"""Files to be moved: random bytes, and a tar of what a system has."""

import os
import tarfile
from pathlib import Path

_BLOCK_LEN = 1 << 20


def make_random_file(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        for start in range(0, size_bytes, _BLOCK_LEN):
            file.write(os.urandom(min(_BLOCK_LEN, size_bytes - start)))


def make_mixed_tar(path: Path, source: str, size_bytes: int) -> None:
    """Put files of ``source``, by name, into a tar of about a size."""
    with tarfile.open(path, "w") as tar:
        for directory, folders, files in os.walk(source):
            folders.sort()
            for file in sorted(files):
                full = Path(directory, file)
                if full.is_file() and not full.is_symlink():
                    tar.add(full, recursive=False)
                if tar.offset >= size_bytes:
                    return
