"""An attempt that begins where another stopped leaves out only what is in place."""

import asyncio
import os
import stat
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import ConnectionLostError
from rpc25519_tools.sync import sender as sender_module
from rpc25519_tools.sync import walk as walk_module
from rpc25519_tools.sync.carrying import Mark
from rpc25519_tools.sync.observer import Silence
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.places import open_local_place
from rpc25519_tools.sync.receiver import Receiver
from rpc25519_tools.sync.records import ROOT_NAME
from rpc25519_tools.sync.sender import Sender
from rpc25519_tools.sync.source import local_source
from rpc25519_tools.sync.tree import Parts
from rpc25519_tools.sync.walk import Batch, Walk
from tests.sync.local import Cable, CutChannel
from tests.sync.trees import seen

ARCHIVE = SyncOptions(recursive=True, links=True, perms=True, times=True)

#: A tree: names, and for each what is below it, or None for a file.
Spec: TypeAlias = dict[str, "Spec | None"]

names = st.sampled_from(["a", "b", "b.c", "c", "-", "é", "z" * 200, "ab", "B"])
trees = st.recursive(
    st.dictionaries(names, st.none(), max_size=4),
    lambda below: st.dictionaries(names, st.one_of(st.none(), below), max_size=5),
    max_leaves=25,
)


def make(path: Path, spec: Spec) -> None:
    path.mkdir()
    for name, below in spec.items():
        if below is None:
            (path / name).write_text(name)
        else:
            make(path / name, below)


def mark_of(path: Parts | None) -> Mark | None:
    return None if path is None else Mark(path)


def path_of(mark: Mark | None) -> Parts | None:
    return None if mark is None else mark.path


def walked(top: Path, start_at: Parts | None) -> list[Batch]:
    source = local_source([os.fsencode(f"{top}/")])
    return list(Walk(source, ARCHIVE, start=mark_of(start_at)).batches())


def entries(batches: list[Batch]) -> list[tuple[Parts, bool]]:
    """Return path and whether it is a directory, in the order of the walk."""
    return [
        (item.path, stat.S_ISDIR(item.mode))
        for batch in batches
        for item in batch.items
    ]


def ends(batches: list[Batch]) -> list[Parts]:
    """Return the directories whose entries are all told, in that order."""
    paths: list[Parts] = [()]
    found = []
    for batch in batches:
        paths += [
            item.path
            for item in batch.items
            if stat.S_ISDIR(item.mode) and item.name != ROOT_NAME
        ]
        found += [
            paths[segment.directory]
            for segment in batch.overview.segments
            if segment.ends
        ]
    return found


@given(spec=trees, batch_len=st.integers(1, 6), data=st.data())
@settings(max_examples=60, deadline=None)
def test_all_from_there_on_comes_and_before_it_only_directories(
    tmp_path_factory: pytest.TempPathFactory,
    spec: Spec,
    batch_len: int,
    data: st.DataObject,
) -> None:
    top = tmp_path_factory.mktemp("trees") / "top"
    make(top, spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk_module, "BATCH_LEN", batch_len)
        batches = walked(top, None)
        whole = entries(batches)
        ended = ends(batches)
        assert len(set(whole)) == len(whole)
        at = data.draw(st.integers(0, len(batches) - 1), label="batch")
        batch = batches[at]
        places = []
        if batch.start is not None:
            places.append((batch.base, batch.start.path, len(ends(batches[:at]))))
        if batch.items:
            offset = data.draw(st.integers(0, len(batch.items) - 1), label="entry")
            index = batch.base + offset
            # It counts when all of its batch was judged.
            ended_count = len(ends(batches[: at + 1]))
            places.append((index, batch.items[offset].path, ended_count))
        for index, start, ended_count in places:
            late = walked(top, start)
            told = entries(late)
            assert [one for one in whole[index:] if one not in told] == []
            extra = [one for one in told if one not in whole[index:]]
            assert all(is_dir for _, is_dir in extra)
            # Whatever gets its time and mode only later is told of once more.
            assert set(ended[ended_count:]) <= set(ends(late))


async def attempt(
    source: Path, target: Path, messages: int, start_at: Parts | None
) -> tuple[bool, Parts | None, Parts | None]:
    """Sync until it is cut; return whether it was through, and both frontiers."""
    cable = Cable(messages)
    up, down = CutChannel(cable), CutChannel(cable)
    up.peer, down.peer = down, up
    start = mark_of(start_at)
    walk = Walk(local_source([os.fsencode(f"{source}/")]), ARCHIVE, start=start)
    sender = Sender(up, walk, Silence())
    place = open_local_place(os.fsencode(target), ARCHIVE, single=False)
    receiver = Receiver(
        down,
        place.destination,
        ARCHIVE,
        Silence(),
        report=False,
        privileged=True,
        is_new=place.is_new,
    )
    try:
        async with asyncio.timeout(10):
            done = await asyncio.gather(
                sender.run(), receiver.run(), return_exceptions=True
            )
    finally:
        place.close()
    errors = [one for one in done if isinstance(one, BaseException)]
    assert all(isinstance(one, ConnectionLostError) for one in errors), errors
    return not errors, path_of(sender.frontier), path_of(receiver.frontier)


@given(
    spec=trees,
    batch_len=st.integers(1, 6),
    window=st.sampled_from([0, 4, 4096]),
    cuts=st.lists(st.integers(1, 12), max_size=8),
    by_sender=st.booleans(),
)
@example(
    spec={"a": {}, "b": {"c": None}}, batch_len=2, window=0, cuts=[5], by_sender=True
)
@settings(max_examples=60, deadline=None)
def test_attempts_make_together_what_one_would(
    tmp_path_factory: pytest.TempPathFactory,
    spec: Spec,
    batch_len: int,
    window: int,
    cuts: list[int],
    by_sender: bool,
) -> None:
    top = tmp_path_factory.mktemp("attempts")
    make(top / "source", spec)
    for number, path in enumerate(sorted((top / "source").rglob("*"), reverse=True)):
        path.chmod(0o755 if path.is_dir() else 0o640)
        os.utime(path, ns=(10**18, 10**18 + number))
    start_at: Parts | None = None
    is_through = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk_module, "BATCH_LEN", batch_len)
        patch.setattr(sender_module, "FIRST_WINDOW", window)
        for messages in [*cuts, 10_000]:
            step = attempt(top / "source", top / "target", messages, start_at)
            is_through, at_sender, at_receiver = asyncio.run(step)
            start_at = (at_sender if by_sender else at_receiver) or start_at
    assert is_through
    assert seen(top / "target") == seen(top / "source")
