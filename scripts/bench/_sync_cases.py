"""What is moved: each case has a source, and what the destination has before."""

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from _mixed import make_mixed_tar, make_random_file

MIB = 1 << 20


@dataclass(frozen=True)
class Sizes:
    """How large the cases are."""

    file_bytes: int
    tar_bytes: int
    files: int
    many_files: int
    tar_of: str


#: Makes a source directory, and perhaps (second) what the destination begins with.
Make = Callable[[Path, Path, Sizes], None]


@dataclass(frozen=True)
class Case:
    """One way of synchronizing.

    Attributes:
        name: a letter.
        title: what happens.
        make: makes its files.
        once: whether one run is enough.
    """

    name: str
    title: str
    make: Make
    once: bool = False


def _edited(source: Path, basis: Path, sizes: Sizes) -> None:
    old, new = basis / "random.bin", source / "random.bin"
    basis.mkdir()
    make_random_file(old, sizes.file_bytes)
    _edit(old, new, random.Random(1))
    # Both have one size; rsync takes files of the same second for unchanged then.
    earlier_s = new.stat().st_mtime - 86_400
    os.utime(old, (earlier_s, earlier_s))


def _edit(old: Path, new: Path, rng: random.Random) -> None:
    """Copy with 100 changes of 1 KiB, an insertion near the front, a deletion."""
    size = old.stat().st_size
    kib = 1024
    changes = [(rng.randrange(size - kib), kib, rng.randbytes(kib)) for _ in range(100)]
    changes += [(size // 100, 0, rng.randbytes(kib)), (size // 2, kib, b"")]
    position = 0
    with old.open("rb") as source, new.open("wb") as target:
        for offset, skipped, put in sorted(changes):
            _copy(source.fileno(), target.fileno(), position, offset)
            os.write(target.fileno(), put)
            position = max(position, offset + skipped)
        _copy(source.fileno(), target.fileno(), position, size)


def _copy(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        start += os.sendfile(target, source, start, min(end - start, 64 * MIB))


def _make_small_files(top: Path, count: int) -> None:
    """Make files of 0 to 8 KiB, a hundred to a directory: half of it text."""
    rng = random.Random(2)
    words = [rng.randbytes(4).hex().encode() for _ in range(2000)]
    for number in range(count):
        folder = top / f"d{number // 100:04}"
        if number % 100 == 0:
            folder.mkdir()
        size = rng.randrange(8192)
        if number % 2:
            content = b" ".join(rng.choices(words, k=size // 9 + 1))
        else:
            content = rng.randbytes(size)
        (folder / f"file-{number:06}").write_bytes(content)


def _small_first(source: Path, basis: Path, sizes: Sizes) -> None:
    _make_small_files(source, sizes.files)


def _small_again(source: Path, basis: Path, sizes: Sizes) -> None:
    _make_small_files(source, sizes.files)
    _copy_tree(source, basis)


def _small_changed(source: Path, basis: Path, sizes: Sizes) -> None:
    """Change one file of a hundred: some bytes within, and some at its end."""
    _small_again(source, basis, sizes)
    rng = random.Random(3)
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for path in rng.sample(files, max(1, len(files) // 100)):
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(rng.randbytes(100))
            file.seek(0, os.SEEK_END)
            file.write(rng.randbytes(100))


def _renamed(source: Path, basis: Path, sizes: Sizes) -> None:
    basis.mkdir()
    make_random_file(source / "new-name.bin", sizes.file_bytes)
    _copy_tree(source, basis)
    (basis / "new-name.bin").rename(basis / "old-name.bin")


def _tar_first(source: Path, basis: Path, sizes: Sizes) -> None:
    make_mixed_tar(source / "mixed.tar", sizes.tar_of, sizes.tar_bytes)


def _many_first(source: Path, basis: Path, sizes: Sizes) -> None:
    _make_small_files(source, sizes.many_files)


def _copy_tree(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", f"{source}/.", target], check=True)


CASES = (
    Case("a", "edited large file", _edited),
    Case("b", "small files, first time", _small_first),
    Case("c", "small files, again", _small_again),
    Case("d", "small files, 1 % changed", _small_changed),
    Case("e", "renamed large file", _renamed),
    Case("f", "tar, first time", _tar_first),
    Case("m", "many files, first time", _many_first, once=True),
)


class Files:
    """The files of one case, in a directory of their own."""

    def __init__(self, top: Path, case: Case, sizes: Sizes) -> None:
        self._top = top
        self.source = top / "source"
        self._basis = top / "basis"
        self.source.mkdir(parents=True)
        case.make(self.source, self._basis, sizes)

    def reset(self, target: Path) -> None:
        """Make a destination what it is at the beginning.

        Files are hard links: both programs make new ones instead of writing into old
        ones, and copying a gibibyte before each run would only take time.
        """
        shutil.rmtree(target, ignore_errors=True)
        if self._basis.exists():
            subprocess.run(["cp", "-al", self._basis, target], check=True)

    def check(self, target: Path) -> None:
        """Stop unless all of the source is in the destination, by rsync's judgement."""
        words = ["rsync", "-anc", "--itemize-changes", f"{self.source}/", f"{target}/"]
        differences = subprocess.check_output(words, text=True)
        if differences:
            raise SystemExit(f"the copy differs:\n{differences[:500]}")

    def remove(self) -> None:
        shutil.rmtree(self._top)
