"""Lists of known keys on disk: first use, lockdown, many writers, changes, faults."""

import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rpc25519_tools.errors import (
    KeyFileError,
    LocalFileError,
    PeerNotTrustedError,
    Rpc25519Error,
)
from rpc25519_tools.identity import known_store, list_file
from rpc25519_tools.identity.certificate import key_id
from rpc25519_tools.identity.known_peers import (
    ANY_ADDRESS,
    HEADER,
    PREFIX,
    KnownPeer,
    Verdict,
    added,
    parse_list,
)
from rpc25519_tools.identity.known_store import KnownStore
from rpc25519_tools.identity.outputs import Output, write_outputs
from tests.commands.hostile import without_root_powers
from tests.identity.samples import DATA


def peer(number: int, address: str = "10.0.0.1") -> KnownPeer:
    key = key_id(number.to_bytes(32, "big"))
    return KnownPeer(address=address, key_id=key, emails=f"{number}@x")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "known_client_keys"


@pytest.fixture
def store(path: Path) -> KnownStore:
    return KnownStore(str(path), "client")


def keys_in(path: Path) -> list[str]:
    return [one.key_id for one in parse_list(path.read_bytes(), "list").peers]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def denied(path: Path) -> Path:
    return path.with_name(path.name + ".denied")


# First use and lockdown.


def test_an_absent_list_checks_nothing_and_is_not_made(
    store: KnownStore, path: Path
) -> None:
    assert store.judge(peer(1)) is Verdict.UNCHECKED
    assert store.record([peer(1)]) == 0
    store.require_usable()
    assert not path.exists()


def test_a_writable_list_takes_new_keys(store: KnownStore, path: Path) -> None:
    path.touch(mode=0o640)
    store.require_usable()
    assert store.judge(peer(1)) is Verdict.FIRST_USE
    assert store.record([peer(1), peer(2), peer(1, "10.0.0.9")]) == 2
    assert store.judge(peer(1)) is Verdict.KNOWN
    assert path.read_text() == (
        f"{HEADER}\n"
        f"10.0.0.1 {PREFIX}{peer(1).key_id}:1@x\n"
        f"10.0.0.1 {PREFIX}{peer(2).key_id}:2@x\n"
    )
    assert mode_of(path) == 0o640
    assert store.record([peer(1), peer(2)]) == 0


@pytest.mark.parametrize("mode", [0o444, 0o400, 0o555])
def test_no_write_bit_means_lockdown_for_root_too(
    store: KnownStore, path: Path, mode: int
) -> None:
    path.write_bytes((DATA / "known_client_keys").read_bytes())
    path.chmod(mode)
    with pytest.raises(PeerNotTrustedError, match="which is locked"):
        store.judge(peer(1))
    assert store.record([peer(1)]) == 0
    assert path.read_bytes() == (DATA / "known_client_keys").read_bytes()


@pytest.mark.parametrize("mode", [0o200, 0o020, 0o002])
def test_any_write_bit_means_first_use(
    store: KnownStore, path: Path, mode: int
) -> None:
    path.touch()
    path.chmod(0o444 | mode)
    assert store.judge(peer(1)) is Verdict.FIRST_USE


@pytest.mark.parametrize("content", ["", f"{HEADER}\n", "\nword\n"])
def test_an_empty_locked_list_is_of_no_use_to_a_server(
    store: KnownStore, path: Path, content: str
) -> None:
    path.write_text(content)
    path.chmod(0o444)
    with pytest.raises(KeyFileError, match="read-only and has no keys, so that nobody"):
        store.require_usable()


def test_rewriting_keeps_comments_unknown_lines_and_spacing(
    store: KnownStore, path: Path
) -> None:
    content = f"# ours\n\n  h\t{PREFIX}{peer(1).key_id}:a@b extra\r\n\xffword\nlone"
    path.write_bytes(content.encode("latin-1"))
    store.record([peer(2)])
    store.deny(peer(2))
    assert path.read_bytes() == content.encode("latin-1") + b"\n"


def test_a_link_stays_and_its_target_is_replaced(
    store: KnownStore, path: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "keys"
    target.touch(mode=0o600)
    path.symlink_to(target)
    assert store.record([peer(1)]) == 1
    assert path.is_symlink()
    assert keys_in(target) == [peer(1).key_id]
    assert sorted(os.listdir(target.parent)) == ["keys", "keys.lock"]
    store.lock()
    assert mode_of(target) == 0o400


def test_nothing_but_the_lock_file_is_left_behind(
    store: KnownStore, path: Path, tmp_path: Path
) -> None:
    path.touch()
    store.record([peer(1)])
    assert sorted(os.listdir(tmp_path)) == [path.name, f"{path.name}.lock"]
    assert mode_of(tmp_path / f"{path.name}.lock") == 0o600


def test_a_chmod_while_the_new_file_is_written_is_not_lost(
    store: KnownStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.touch(mode=0o644)

    def chmod_and_write(outputs: Sequence[Output]) -> None:
        path.chmod(0o444)
        write_outputs(outputs)

    monkeypatch.setattr(f"{known_store.__name__}.write_outputs", chmod_and_write)
    assert store.record([peer(1)]) == 1
    assert mode_of(path) == 0o444
    with pytest.raises(PeerNotTrustedError, match="locked"):
        store.judge(peer(2))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_writes_stays_its_owners(store: KnownStore, path: Path) -> None:
    path.touch(mode=0o600)
    os.chown(path, 65534, 65534)
    store.record([peer(1), peer(2)])
    store.deny(peer(1))
    for one in (path, denied(path), Path(f"{path}.lock")):
        assert (one.stat().st_uid, one.stat().st_gid) == (65534, 65534)
        assert mode_of(one) == 0o600


# Changes.


def edit_in_place(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


def replace(path: Path, content: bytes) -> None:
    new = path.with_name("new")
    new.write_bytes(content)
    new.replace(path)


def as_go_does(path: Path, content: bytes) -> None:
    path.rename(path.with_name(path.name + ".old"))
    path.write_bytes(content)


@pytest.mark.parametrize("change", [edit_in_place, replace, as_go_does])
def test_changes_take_effect_at_once(
    store: KnownStore, path: Path, change: Callable[[Path, bytes], None]
) -> None:
    path.touch()
    for number in range(1, 30):
        # Of the same length, and mostly within one tick of the clock of files.
        change(path, added(parse_list(b"", ""), [peer(100 + number)]))
        assert store.judge(peer(100 + number)) is Verdict.KNOWN
        assert store.judge(peer(99 + number)) is Verdict.FIRST_USE


def test_locking_and_unlocking_take_effect_at_once(
    store: KnownStore, path: Path
) -> None:
    path.touch()
    store.record([peer(1)])
    path.chmod(0o400)
    with pytest.raises(PeerNotTrustedError, match="locked"):
        store.judge(peer(2))
    path.chmod(0o600)
    assert store.judge(peer(2)) is Verdict.FIRST_USE


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_list_that_goes_away_still_lets_in_whom_it_named_and_nobody_else(
    store: KnownStore, path: Path, mode: int
) -> None:
    path.touch()
    store.record([peer(1), peer(3)])
    path.chmod(mode)
    assert not store.is_gone()
    away = path.rename(path.with_name("away"))
    assert store.judge(peer(1)) is Verdict.KNOWN
    assert store.is_gone()
    with pytest.raises(PeerNotTrustedError, match=r"is not known, and .* is gone$"):
        store.judge(peer(2))
    assert store.record([peer(2)]) == 0
    denied(path).write_bytes(added(parse_list(b"", ""), [peer(3)]))
    with pytest.raises(PeerNotTrustedError, match="is denied"):
        store.judge(peer(3))
    assert not path.exists()
    away.chmod(0o600)
    away.rename(path)
    assert store.judge(peer(2)) is Verdict.FIRST_USE
    assert not store.is_gone()


def test_a_link_to_a_list_that_goes_away_opens_nothing(
    store: KnownStore, path: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_bytes(added(parse_list(b"", ""), [peer(1)]))
    path.symlink_to(target)
    store.require_usable()
    target.unlink()
    assert store.judge(peer(1)) is Verdict.KNOWN
    with pytest.raises(PeerNotTrustedError, match="gone"):
        store.judge(peer(2))


def test_a_server_whose_list_moves_is_still_its_server(path: Path) -> None:
    store = KnownStore(str(path), "server")
    path.write_bytes(added(parse_list(b"", ""), [peer(1, "h")]))
    assert store.judge(peer(1, "h")) is Verdict.KNOWN
    path.unlink()
    assert store.judge(peer(1, "h")) is Verdict.KNOWN
    with pytest.raises(PeerNotTrustedError, match="KEY HAS CHANGED"):
        store.judge(peer(2, "h"))


def test_what_is_unchanged_is_not_read_again(
    store: KnownStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes((DATA / "known_client_keys").read_bytes())
    assert store.has_changed()
    before = store.knowledge()
    assert store.has_changed()  # written so recently that more may come unnoticed
    assert store.knowledge() is before
    monkeypatch.setattr(list_file, "_UNSETTLED_NS", -(10**18))
    store.knowledge()
    assert not store.has_changed()
    monkeypatch.setattr(os, "open", None)
    assert store.knowledge() is before


def test_the_path_does_not_follow_the_working_directory(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = KnownStore(path.name, "client")
    monkeypatch.chdir("/")
    path.touch()
    assert store.judge(peer(1)) is Verdict.FIRST_USE


# Approving and denying.


def test_approving_makes_a_list_and_adds_to_a_locked_one(
    store: KnownStore, path: Path
) -> None:
    assert store.approve(peer(1, ANY_ADDRESS), everywhere=True)
    assert mode_of(path) == 0o600
    path.chmod(0o444)
    assert store.approve(peer(2), everywhere=True)
    assert not store.approve(peer(2, "10.0.0.2"), everywhere=True)
    assert store.approve(peer(2, "10.0.0.2"))
    assert not store.approve(peer(2, "10.0.0.2"))
    assert mode_of(path) == 0o444
    assert keys_in(path) == [peer(n).key_id for n in (1, 2, 2)]
    assert store.judge(peer(2)) is Verdict.KNOWN


@pytest.mark.parametrize("listed", [False, True])
def test_denying_moves_a_key_and_approving_moves_it_back(
    store: KnownStore, path: Path, listed: bool
) -> None:
    path.touch(mode=0o640)
    store.record([peer(1), peer(3)] if listed else [peer(3)])
    assert store.deny(peer(1))
    assert not store.deny(peer(1))
    assert keys_in(path) == [peer(3).key_id]
    assert keys_in(denied(path)) == [peer(1).key_id]
    assert mode_of(denied(path)) == 0o640
    with pytest.raises(PeerNotTrustedError, match=r"is denied in .*\.denied$"):
        store.judge(peer(1))
    assert store.record([peer(1)]) == 0
    assert store.approve(peer(1), everywhere=True)
    assert store.judge(peer(1)) is Verdict.KNOWN
    assert keys_in(denied(path)) == []


def test_denying_holds_without_a_first_list(store: KnownStore, path: Path) -> None:
    assert store.deny(peer(1))
    assert not path.exists()
    with pytest.raises(PeerNotTrustedError, match="denied"):
        store.judge(peer(1))
    assert store.judge(peer(2)) is Verdict.UNCHECKED


def test_a_key_in_both_lists_is_denied(store: KnownStore, path: Path) -> None:
    path.touch()
    store.record([peer(1)])
    denied(path).write_bytes(path.read_bytes())
    with pytest.raises(PeerNotTrustedError, match="denied"):
        store.judge(peer(1))


def test_locking_and_unlocking_change_the_mode_only(
    store: KnownStore, path: Path
) -> None:
    with pytest.raises(LocalFileError, match="has no keys; locked like that nobody"):
        store.lock()
    store.unlock()
    assert path.read_text() == f"{HEADER}\n"
    with pytest.raises(LocalFileError, match="has no keys"):
        store.lock()
    store.record([peer(1)])
    path.chmod(0o664)
    store.lock()
    assert mode_of(path) == 0o444
    store.unlock()
    assert mode_of(path) == 0o644
    assert keys_in(path) == [peer(1).key_id]


# Many writers.

WRITER = """
import sys
from rpc25519_tools.identity.certificate import key_id
from rpc25519_tools.identity.known_peers import KnownPeer
from rpc25519_tools.identity.known_store import KnownStore

store = KnownStore(sys.argv[1], "client")
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    key = key_id(number.to_bytes(32, "big"))
    assert store.record([KnownPeer(address="h", key_id=key, emails="a@b")]) == 1
"""


def test_two_hundred_first_contacts_of_four_processes_lose_no_line(
    path: Path,
) -> None:
    path.write_text("# stays\n")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, path, str(first), str(first + 50)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in range(0, 200, 50)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    seen = 0
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.close()
    while any(process.poll() is None for process in processes):
        keys = keys_in(path)  # whole at every moment, and never shorter than before
        assert len(keys) >= seen
        seen = len(keys)
    for process in processes:
        assert process.wait() == 0
        assert process.stdout is not None
        process.stdout.close()
    assert sorted(keys_in(path)) == sorted(peer(n).key_id for n in range(200))
    assert path.read_text().startswith("# stays\n")


def test_threads_share_a_store(store: KnownStore, path: Path) -> None:
    path.touch()

    def work(first: int) -> None:
        for number in range(first, first + 10):
            store.record([peer(number)])
            assert store.judge(peer(number)) is Verdict.KNOWN

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(0, 80, 10)))
    assert len(keys_in(path)) == 80


# Faults.


@pytest.mark.parametrize("which", ["", ".denied"])
def test_a_broken_line_refuses_everybody_until_it_is_mended(
    store: KnownStore, path: Path, which: str
) -> None:
    path.touch()
    store.record([peer(1)])
    broken = Path(f"{path}{which}")
    good = broken.read_bytes() if broken.exists() else b""
    broken.write_bytes(good + b"h broken\n")
    line = 3 if not which else 1
    pattern = rf"cannot be checked: .*{broken.name} line {line}: the second word"
    for _ in range(3):
        with pytest.raises(PeerNotTrustedError, match=pattern):
            store.judge(peer(1))
    with pytest.raises(KeyFileError, match=f"line {line}"):
        store.record([peer(2)])
    assert broken.read_bytes() == good + b"h broken\n"
    broken.write_bytes(good)
    assert store.judge(peer(1)) is Verdict.KNOWN


def make_directory(path: Path) -> None:
    path.mkdir()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [make_directory, make_fifo, make_loop])
@pytest.mark.parametrize("which", ["", ".denied"])
def test_what_is_no_file_refuses_everybody(
    store: KnownStore, path: Path, make: Callable[[Path], None], which: str
) -> None:
    make(Path(f"{path}{which}"))
    for _ in range(2):
        with pytest.raises(PeerNotTrustedError, match="cannot be checked"):
            store.judge(peer(1))
        with pytest.raises(KeyFileError):
            store.require_usable()


@pytest.mark.parametrize("text", ["nul\0", "\ud800"])
def test_an_impossible_path_is_an_error_of_ours(text: str) -> None:
    store = KnownStore(text, "client")
    with pytest.raises(KeyFileError):
        store.require_usable()
    with pytest.raises(Rpc25519Error):
        store.unlock()


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    store = KnownStore(str(tmp_path / "no" / "keys"), "client")
    assert store.judge(peer(1)) is Verdict.UNCHECKED
    with pytest.raises(LocalFileError, match=r"cannot lock .*: no such file"):
        store.approve(peer(1))


def test_a_lock_that_is_never_released_is_told(
    store: KnownStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.touch()
    monkeypatch.setattr(known_store, "_LOCK_TIMEOUT_S", 0.02)
    with Path(f"{path}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LocalFileError, match="another program holds the lock"):
            store.record([peer(1)])
    assert store.record([peer(1)]) == 1


def test_a_lock_file_that_is_a_link_is_not_followed(
    store: KnownStore, path: Path, tmp_path: Path
) -> None:
    path.touch()
    Path(f"{path}.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(LocalFileError, match="cannot lock"):
        store.record([peer(1)])
    assert not (tmp_path / "victim").exists()


def test_a_failing_disk_leaves_the_old_list(
    store: KnownStore, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.touch()
    store.record([peer(1)])
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(LocalFileError, match="no space left"):
        store.record([peer(2)])
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == [path.name, f"{path.name}.lock"]


UNPRIVILEGED = """
import sys
from rpc25519_tools.errors import KeyFileError, LocalFileError, PeerNotTrustedError
from rpc25519_tools.identity.certificate import key_id
from rpc25519_tools.identity.known_peers import KnownPeer
from rpc25519_tools.identity.known_store import KnownStore

store = KnownStore(sys.argv[1], "client")
peer = KnownPeer(address="h", key_id=key_id(bytes(32)), emails="")
try:
    store.judge(peer)
    store.record([peer])
except (PeerNotTrustedError, LocalFileError) as exc:
    print(exc)
"""


@pytest.mark.parametrize(
    ("directory_mode", "file_mode", "text"),
    [(0o700, 0o200, "cannot read"), (0o500, 0o600, "cannot lock")],
)
def test_missing_permissions_are_told(
    path: Path, directory_mode: int, file_mode: int, text: str
) -> None:
    path.touch()
    path.chmod(file_mode)
    path.parent.chmod(directory_mode)
    try:
        result = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, path],
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=without_root_powers,
        )
    finally:
        path.parent.chmod(0o700)
    assert text in result.stdout
    assert "permission denied" in result.stdout
