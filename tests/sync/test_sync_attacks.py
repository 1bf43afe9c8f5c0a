"""Attacks on what a server protects: its own keys, and what peers may not do."""

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3

from rpc25519_tools.errors import LocalFileError, Rpc25519Error, UnsafePathError
from rpc25519_tools.identity.access import Right
from rpc25519_tools.rpc.calls import RsyncStep
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.records import Verdict
from rpc25519_tools.sync.tree import Parts
from tests.sync.attackers import (
    ALL,
    DIR,
    END,
    FILE,
    HostileSender,
    Served,
    listing,
    overview,
)
from tests.sync.local import Lines, LocalSync

_SECRET = b"the server's key"


def _with(**changes: object) -> SyncOptions:
    return msgspec.structs.replace(ALL, **changes)


@pytest.fixture
def keys(tmp_path: Path) -> Served:
    """A served directory with keys of the server in it."""
    root = tmp_path / "root"
    (root / "conf" / "certs").mkdir(parents=True)
    (root / "conf" / "certs" / "node.key").write_bytes(_SECRET)
    (root / "access").write_bytes(_SECRET)
    return Served(root, keep_back=[root / "conf" / "certs", root / "access"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What a client pushes."""
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def _are_safe(served: Served) -> bool:
    found = listing(served.path)
    secrets = [name for name, data in found.items() if data == _SECRET]
    return secrets == ["access", "conf/certs/node.key"]


# What is kept back.


@pytest.mark.parametrize("name", ["access", "ACCESS", "conf/certs/node.key"])
async def test_kept_back_file_is_no_target(
    keys: Served, source: Path, name: str
) -> None:
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_bytes(b"evil")
    (source / "good").write_bytes(b"good")
    seen = await keys.push(source)
    assert seen.failures
    assert _are_safe(keys)
    assert (keys.path / "good").read_bytes() == b"good"


async def test_kept_back_files_are_not_deleted(keys: Served, source: Path) -> None:
    (source / "good").write_bytes(b"good")
    (keys.path / "old").write_bytes(b"old")
    seen = await keys.push(source, _with(delete=True))
    assert [path for _, path, _ in seen.lines if path in (b"access", b"conf/")] == []
    assert _are_safe(keys)
    assert not (keys.path / "old").exists()


@pytest.mark.parametrize("delete", [False, True])
@pytest.mark.parametrize("backup_dir", [None, b"b", b"conf/certs", b"access/x"])
async def test_directory_with_kept_back_files_is_not_replaced(
    keys: Served, source: Path, delete: bool, backup_dir: bytes | None
) -> None:
    # Moved to the backups, the keys would be files like any other.
    (source / "conf").write_bytes(b"evil")
    options = _with(delete=delete, backup_dir=backup_dir)
    try:
        seen = await keys.push(source, options)
    except Rpc25519Error:
        pass
    else:
        assert seen.failures
    assert _are_safe(keys)


@pytest.mark.parametrize("kind", ["empty", "full"])
async def test_directory_above_kept_back_files_is_not_moved_by_backups(
    keys: Served, source: Path, kind: str
) -> None:
    place = keys.path / "x" / "d"
    place.mkdir(parents=True)
    if kind == "full":
        os.link(keys.path / "access", place / "other-name")
    (source / "x").mkdir()
    (source / "x" / "d").write_bytes(b"file")
    await keys.push(source, _with(delete=True, backup_dir=b"b"))
    assert place.is_file() is (kind == "empty")
    assert not (keys.path / "b/x/d").exists()


@pytest.mark.parametrize("backup_dir", [b"../b", b"/tmp/b", b"x/../../b", b"b\0c"])
async def test_backups_do_not_lead_out(
    keys: Served, source: Path, backup_dir: bytes
) -> None:
    (source / "f").write_bytes(b"new")
    (keys.path / "f").write_bytes(b"old")
    with pytest.raises(UnsafePathError):
        await keys.push(source, _with(backup_dir=backup_dir))
    assert (keys.path / "f").read_bytes() == b"old"


@pytest.mark.parametrize("backup_dir", [b"", b".", b"./"])
async def test_backups_in_place_are_refused(
    keys: Served, source: Path, backup_dir: bytes
) -> None:
    (source / "f").write_bytes(b"new")
    (keys.path / "f").write_bytes(b"old")
    with pytest.raises(LocalFileError, match="the root itself"):
        await keys.push(source, _with(backup_dir=backup_dir))
    assert (keys.path / "f").read_bytes() == b"old"


async def test_backups_do_not_follow_links(keys: Served, source: Path) -> None:
    (source / "f").write_bytes(b"new")
    (keys.path / "f").write_bytes(b"old")
    (keys.path / "b").symlink_to("..")
    seen = await keys.push(source, _with(backup_dir=b"b"))
    assert seen.failures
    assert not (keys.path.parent / "f").exists()
    assert (keys.path / "f").read_bytes() == b"old"


async def test_kept_back_file_gets_no_other_name(keys: Served) -> None:
    size = len(_SECRET)

    async def script(sender: HostileSender) -> None:
        names = [(b"access", FILE), (b"mine", FILE)]
        await sender.entries(overview(*names, leaders={1: 0}, size=size), END)
        verdicts = await sender.judged(2)
        assert verdicts[0] is Verdict.FAILED
        if verdicts[1] is Verdict.WANT:
            await sender.contents(sender.whole(1, b"mine"))
        await sender.over()

    await keys.attack(script, _with(size_only=True))
    assert _are_safe(keys)
    assert (keys.path / "mine").read_bytes() == b"mine"


async def test_kept_back_file_is_no_basis(keys: Served) -> None:
    data = os.urandom(200_000)
    (keys.path / "access").write_bytes(data)

    async def script(sender: HostileSender) -> None:
        entry = overview((b"new", FILE), size=200_000)
        await sender.entries(entry, END)
        await sender.judged(1)
        if sender.verdicts == [Verdict.WANT_DELTA]:
            await sender.until(lambda: sender.tables and sender.tables[-1].last)
        assert not any(table.lengths for table in sender.tables)

    await keys.attack(script)


# What the rules say.


def _rules(*allowed: tuple[str, str]) -> Callable[[Right, Parts], bool]:
    """Allow rights below paths."""

    def may(right: Right, parts: Parts) -> bool:
        path = "/" + b"/".join(parts).decode()
        return any(
            right in rights.split()
            and (path == top or path.startswith(top.rstrip("/") + "/"))
            for rights, top in allowed
        )

    return may


@pytest.fixture
def drop(tmp_path: Path) -> Served:
    """A directory that one may only put things into, and one to read as well."""
    root = tmp_path / "root"
    (root / "drop").mkdir(parents=True)
    (root / "public").mkdir()
    (root / "drop" / "secret").write_bytes(_SECRET)
    os.utime(root / "drop" / "secret", (1_000_000, 1_000_000))
    permit = _rules(("write", "/drop"), ("write read list", "/public"))
    return Served(root, permit=permit)


async def test_write_only_peer_gets_no_sums(drop: Served) -> None:
    data = os.urandom(200_000)
    (drop.path / "drop" / "large").write_bytes(data)

    async def script(sender: HostileSender) -> None:
        entry = overview((b"large", FILE), (b"moved", FILE), size=200_000)
        await sender.entries(entry, END)
        await sender.judged(2)
        if Verdict.WANT_DELTA in sender.verdicts:
            count = sender.verdicts.count(Verdict.WANT_DELTA)
            await sender.until(
                lambda: sum(table.last for table in sender.tables) == count
            )
        assert not any(table.lengths for table in sender.tables)

    await drop.attack(script, dest=b"drop")


async def test_write_only_peer_cannot_compare_contents(drop: Served) -> None:
    async def script(sender: HostileSender) -> None:
        entry = overview(
            (b"secret", FILE), size=len(_SECRET), sums=blake3(_SECRET).digest()
        )
        await sender.entries(entry, END)
        await sender.judged(1)

    options = _with(checksum=True)
    sender = await drop.attack(script, options, dest=b"drop")
    assert sender.verdicts == [Verdict.WANT]


@pytest.mark.parametrize("how", ["equal", "ignored", "size"])
async def test_write_only_peer_cannot_link_to_where_it_reads(
    drop: Served, how: str
) -> None:
    options = {
        "equal": ALL,
        "ignored": _with(ignore_existing=True),
        "size": _with(size_only=True),
    }[how]

    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b"drop", DIR), (b"public", DIR)))
        secret = overview((b"secret", FILE), directory=1, size=len(_SECRET))
        await sender.entries(secret)
        copy = overview((b"copy", FILE), directory=2, size=len(_SECRET), leaders={0: 2})
        await sender.entries(copy, END)
        verdicts = await sender.judged(4)
        if verdicts[3] is Verdict.WANT:
            await sender.contents(sender.whole(3, b"mine"))
        await sender.over()

    await drop.attack(script, options)
    copy = drop.path / "public" / "copy"
    assert not copy.exists() or copy.read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["secret", "sub"])
async def test_write_only_peer_cannot_back_up_to_where_it_reads(
    drop: Served, source: Path, name: str
) -> None:
    (drop.path / "drop" / "sub").mkdir()
    (drop.path / "drop" / "sub" / "inner").write_bytes(_SECRET)
    (source / "drop").mkdir()
    (source / "drop" / name).write_bytes(b"new")
    options = _with(backup_dir=b"public", delete=True)
    seen = await drop.push(source, options)
    assert seen.failures
    assert listing(drop.path / "public") == {}


async def test_peer_without_list_learns_no_names_by_deleting(
    drop: Served, source: Path
) -> None:
    seen = await drop.push(source, _with(delete=True), dest=b"drop")
    assert [path for _, path, _ in seen.lines if b"secret" in path] == []
    assert any("listing" in note for _, note in seen.failures)
    assert (drop.path / "drop" / "secret").exists()


async def test_root_keeps_its_mode_for_who_may_not_write_it(
    drop: Served, source: Path
) -> None:
    (source / "drop").mkdir()
    (source / "drop" / "f").write_bytes(b"new")
    os.chmod(source, 0o700)
    os.chmod(drop.path, 0o755)
    await drop.push(source)
    assert stat.S_IMODE(drop.path.stat().st_mode) == 0o755
    assert (drop.path / "drop" / "f").read_bytes() == b"new"


async def test_paths_that_may_not_be_written_stay(drop: Served, source: Path) -> None:
    (drop.path / "other").mkdir()
    for name in ("other", "public", "new"):
        (source / name).mkdir(exist_ok=True)
        (source / name / "f").write_bytes(b"new")
    seen = await drop.push(source)
    assert {path for path, _ in seen.failures} >= {(b"other",), (b"new",)}
    assert sorted(os.listdir(drop.path)) == ["drop", "other", "public"]
    assert os.listdir(drop.path / "other") == []
    assert (drop.path / "public" / "f").read_bytes() == b"new"


# What stands in the way, or comes at the same time.


async def test_strange_things_at_target_names_are_replaced(
    tmp_path: Path, source: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    os.mkfifo(root / "fifo")
    (root / "link").symlink_to("/etc/passwd")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.fsencode(root / "sock"))
    for name in ("fifo", "link", "sock"):
        (source / name).write_bytes(b"new")
    seen = await Served(root).push(source)
    assert seen.failures == []
    assert listing(root) == dict.fromkeys(("fifo", "link", "sock"), b"new")


async def test_new_contents_do_not_inherit_set_uid(
    tmp_path: Path, source: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "sh").write_bytes(b"trusted")
    os.chmod(root / "sh", 0o6755)
    (source / "sh").write_bytes(b"evil")
    await Served(root).push(source, _with(perms=False))
    assert (root / "sh").read_bytes() == b"evil"
    assert stat.S_IMODE((root / "sh").stat().st_mode) == 0o755


@pytest.mark.parametrize("what", ["file", "link", "fifo", "directory"])
async def test_what_appears_at_a_name_meanwhile_is_replaced_or_stays(
    tmp_path: Path, what: str
) -> None:
    (tmp_path / "other").write_bytes(b"other")

    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b"f", FILE)), END)
        await sender.judged(1)
        if what == "file":
            (tmp_path / "f").write_bytes(b"an upload of the same name")
        elif what == "link":
            (tmp_path / "f").symlink_to("other")
        elif what == "fifo":
            os.mkfifo(tmp_path / "f")
        else:
            (tmp_path / "f" / "d").mkdir(parents=True)
        await sender.contents(sender.whole(0, b"last"))
        await sender.over()

    sender = await Served(tmp_path).attack(script)
    assert (tmp_path / "other").read_bytes() == b"other"
    if what == "directory":
        assert list(sender.failed) == [0]
        assert (tmp_path / "f" / "d").is_dir()
    else:
        assert sender.acked == [0]
        assert (tmp_path / "f").read_bytes() == b"last"
        assert not (tmp_path / "f").is_symlink()
    assert ".rpc25519-part-area" not in os.listdir(tmp_path)


async def test_two_syncs_of_the_same_tree_break_nothing(tmp_path: Path) -> None:
    sources = [tmp_path / "one", tmp_path / "two"]
    for number, source in enumerate(sources):
        for name in range(30):
            path = source / f"d{name % 3}" / f"{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"%d" % number * 5000)
        (source / "large").write_bytes(b"%d" % number * (3 << 20))
    target = tmp_path / "target"
    target.mkdir()
    syncs = [LocalSync([f"{source}/"], target, ALL) for source in sources]
    await asyncio.gather(*(one.run() for one in syncs))
    assert [one.at_receiver.failures for one in syncs] == [[], []]
    for there, data in listing(target).items():
        wanted = [
            (source / there).read_bytes() if (source / there).is_file() else b""
            for source in sources
        ]
        assert data in wanted, there
    assert len(listing(target)) == 34


def _fold(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Let names beneath a directory differ by more than case only, as far as we look.

    A file system that does so cannot be had everywhere.
    """
    real_stat, real_rename = os.stat, os.rename

    def spelled(name: object, dir_fd: int | None) -> object:
        if dir_fd is None or not isinstance(name, bytes) or name == b".":
            return name
        if not os.readlink(f"/proc/self/fd/{dir_fd}").startswith(str(root)):
            return name
        for other in os.listdir(f"/proc/self/fd/{dir_fd}"):
            if os.fsencode(other).lower() == name.lower():
                return os.fsencode(other)
        return name

    def stat_folded(
        path: object, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> os.stat_result:
        found = spelled(path, dir_fd)
        return real_stat(found, dir_fd=dir_fd, follow_symlinks=follow_symlinks)  # type: ignore[arg-type]

    def rename_folded(
        old: object,
        new: object,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        target = spelled(new, dst_dir_fd)
        real_rename(old, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", stat_folded)
    monkeypatch.setattr(os, "rename", rename_folded)


async def test_twins_of_a_folding_file_system_are_told_of(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (source / "A").write_bytes(b"first")
    (source / "a").write_bytes(b"second")
    (source / "D").mkdir()
    (source / "D" / "x").write_bytes(b"x")
    (source / "d").mkdir()
    (source / "d" / "x").write_bytes(b"y")
    _fold(monkeypatch, target)
    seen = await Served(target).push(source)
    monkeypatch.undo()
    assert {path for path, _ in seen.failures} >= {(b"a",), (b"d",)}
    assert all("the same name" in note for _, note in seen.failures[:2])
    assert listing(target) == {"A": b"first", "D": b"", "D/x": b"x"}


async def test_directory_that_cannot_be_listed_fails_alone(
    tmp_path: Path,
) -> None:
    (tmp_path / "d").mkdir()

    async def script(sender: HostileSender) -> None:
        names = [(b"%02d" % number, DIR) for number in range(40)]
        await sender.entries(overview(*names, (b"d", DIR), (b"f", FILE)))
        await sender.judged(42)
        (tmp_path / "d").rmdir()
        (tmp_path / "d").symlink_to("/etc")
        for number in range(1, 41):
            await sender.entries(overview((b"x", DIR), directory=number))
        await sender.entries(overview((b"hosts", FILE), directory=41), END)
        await sender.contents(sender.whole(41, b"good"))
        await sender.judged(83)
        await sender.over()

    sender = await Served(tmp_path).attack(script)
    assert sender.verdicts[-1] is Verdict.FAILED
    assert "symbolic link" in sender.notes[82]
    assert (tmp_path / "f").read_bytes() == b"good"


async def test_peers_do_not_share_unfinished_files_where_there_are_rules(
    drop: Served,
) -> None:
    async def leave(sender: HostileSender) -> None:
        await sender.entries(overview((b"large", FILE), size=4 << 20))
        await sender.judged(1)
        await sender.piece(0, 0, os.urandom(2 << 20))
        await sender.channel.send(RsyncStep.OVERVIEW, b"\xff")
        await sender.over()

    with pytest.raises(Rpc25519Error, match="no known form"):
        await drop.attack(leave, dest=b"drop")

    async def look(sender: HostileSender) -> None:
        await sender.entries(overview((b"large", FILE), size=4 << 20))
        await sender.judged(1)

    again = await drop.attack(look, dest=b"drop")
    assert again.verdicts == [Verdict.WANT_DELTA]  # its own
    everybody = Served(drop.path, observer=Lines(sending=False))
    other = await everybody.attack(look, dest=b"drop")
    assert other.verdicts == [Verdict.WANT]
