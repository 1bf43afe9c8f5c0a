"""Whenever a receiver stops, each final name is absent, what it was, or complete."""

import asyncio
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.tree import Parts
from tests.sync.disk_model import Recorder, Shown
from tests.sync.local import Lines, LocalSync

ARCHIVE = SyncOptions(recursive=True, links=True, perms=True, times=True, specials=True)
KIB = 1024

Make = Callable[[Path, Path, random.Random], None]


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def changed(data: bytes, values: random.Random) -> bytes:
    """Return contents with an insertion somewhere."""
    at = values.randrange(len(data) + 1)
    return data[:at] + values.randbytes(100) + data[at:]


def few_new(source: Path, target: Path, values: random.Random) -> None:
    put(source / "small", values.randbytes(1000))
    put(source / "deep" / "er" / "middle", values.randbytes(700 * KIB))
    (source / "link").symlink_to("small")
    (source / "empty").mkdir()


def many_new(source: Path, target: Path, values: random.Random) -> None:
    for number in range(20):
        put(source / f"d{number % 3}" / f"f{number}", values.randbytes(number * 100))
    put(source / "large", values.randbytes(2500 * KIB))
    os.mkfifo(source / "fifo")


def updates(source: Path, target: Path, values: random.Random) -> None:
    for name, length in (("a", 900), ("d/b", 90 * KIB), ("d/c", 2500 * KIB)):
        data = values.randbytes(length)
        put(target / name, data)
        put(source / name, changed(data, values))
    for number in range(6):
        put(target / f"f{number}", b"old")
        put(source / f"f{number}", b"newer")
    (target / "link").symlink_to("old")
    (source / "link").symlink_to("new")


def one_update(source: Path, target: Path, values: random.Random) -> None:
    put(target / "d" / "one", b"old")
    put(source / "d" / "one", b"newer")


def moved(source: Path, target: Path, values: random.Random) -> None:
    data = values.randbytes(1500 * KIB)
    put(target / "old-name", data)
    put(source / "new-name", data)


def other_kinds(source: Path, target: Path, values: random.Random) -> None:
    put(target / "file-to-dir", b"a file")
    put(source / "file-to-dir" / "in-it", b"a file in a directory")
    put(target / "dir-to-file" / "sub" / "in-it", b"below")
    put(source / "dir-to-file", b"a file now")
    put(target / "dir-to-large" / "in-it", b"below")
    put(source / "dir-to-large", values.randbytes(1100 * KIB))
    put(target / "dir-to-link" / "in-it", b"below")
    (source / "dir-to-link").symlink_to("elsewhere")
    (target / "link-to-dir").symlink_to("elsewhere")
    put(source / "link-to-dir" / "in-it", b"in it")
    (target / "link-to-file").symlink_to("elsewhere")
    put(source / "link-to-file", b"a file now")
    put(target / "file-to-link", b"a file")
    (source / "file-to-link").symlink_to("elsewhere")
    os.mkfifo(target / "fifo-to-file")
    put(source / "fifo-to-file", b"a file")


def hard_links(source: Path, target: Path, values: random.Random) -> None:
    put(source / "a" / "first", values.randbytes(3000))
    (source / "b").mkdir()
    for name in ("second", "third"):
        os.link(source / "a" / "first", source / "b" / name)
    put(target / "b" / "second", b"a file of its own")
    put(target / "x", b"was linked")
    os.link(target / "x", target / "y")
    put(source / "x", b"is one file")
    put(source / "y", b"is another")


def deletions(source: Path, target: Path, values: random.Random) -> None:
    put(target / "gone", b"gone")
    put(target / "tree" / "of" / "gone", b"gone")
    put(target / "stays", b"old")
    put(source / "stays", b"newer")


CASES: list[tuple[Make, dict[str, Any]]] = [
    (few_new, {}),
    (many_new, {}),
    (updates, {}),
    (updates, {"sparse": True}),
    (updates, {"whole_file": True}),
    (one_update, {}),
    (moved, {"delete": True}),
    (other_kinds, {"delete": True}),
    (hard_links, {"hard_links": True}),
    (deletions, {"delete": True}),
    (updates, {"backup_dir": b"kept"}),
    (other_kinds, {"backup_dir": b"kept", "delete": True}),
    (deletions, {"backup_dir": b"kept", "delete": True}),
]
NAMES = [f"{make.__name__}-{'-'.join(more)}" for make, more in CASES]


class Acknowledging(Lines):
    """Has the recorder note what the receiver calls done."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(sending=False)
        self._recorder = recorder

    def placed(self, path: Parts) -> None:
        self._recorder.note("acknowledge", os.fsdecode(b"/".join(path)))


def recorded(
    make: Make,
    options: SyncOptions,
    top: Path,
) -> tuple[Recorder, dict[str, Shown]]:
    """Sync, and return what was done, and what all names show in the end."""
    source, target = top / "source", top / "target"
    source.mkdir()
    target.mkdir()
    make(source, target, random.Random(1))
    with Recorder(target) as recorder:
        sync = LocalSync([f"{source}/"], target, options)
        sync.at_receiver = Acknowledging(recorder)
        asyncio.run(sync.run())
        recorder.note("acknowledge", "")
    assert not sync.at_sender.failures
    assert not sync.at_receiver.failures
    return recorder, on_disk(target)


def on_disk(top: Path) -> dict[str, Shown]:
    found: dict[str, Shown] = {}
    for path in top.rglob("*"):
        kind = stat.S_IFMT(path.lstat().st_mode)
        data = None
        if path.is_symlink():
            data = os.fsencode(os.readlink(path))
        elif path.is_file():
            data = path.read_bytes()
        found[str(path.relative_to(top))] = (kind, data)
    return found


@pytest.mark.parametrize(("make", "more"), CASES, ids=NAMES)
@pytest.mark.parametrize("fsync", [True, False], ids=["fsync", "no-fsync"])
def test_every_name_is_whole_at_every_moment(
    make: Make,
    more: dict[str, Any],
    fsync: bool,
    tmp_path: Path,
) -> None:
    options = msgspec.structs.replace(ARCHIVE, fsync=fsync, **more)
    recorder, new = recorded(make, options, tmp_path)
    model = recorder.start
    old = model.names()
    assert len(recorder.steps) > 3
    for step in recorder.steps:
        model.apply(step)
        looks = [model.names()] + ([model.names(cut=True)] if fsync else [])
        for look in looks:
            for name, shown in look.items():
                allowed = [old.get(name), new.get(name)]
                assert shown in allowed, (name, step.name, step.args[:1])
            for name in old.keys() & new.keys() - look.keys():
                other_kind = old[name][0] != new[name][0]
                assert other_kind, (name, "vanished", step.name)
    assert model.names() == new, "the model is not what the disk is"


@pytest.mark.parametrize(("make", "more"), CASES, ids=NAMES)
def test_what_was_acknowledged_survives_a_power_cut(
    make: Make,
    more: dict[str, Any],
    tmp_path: Path,
) -> None:
    options = msgspec.structs.replace(ARCHIVE, **more)
    recorder, new = recorded(make, options, tmp_path)
    model = recorder.start
    acknowledged = 0
    for step in recorder.steps:
        model.apply(step)
        if step.name == "acknowledge":
            left = model.names(cut=True, forgetful=True)
            (name,) = step.args
            if name:
                acknowledged += 1
                assert left.get(name) == new[name], name
            else:
                assert left == new
    assert acknowledged
