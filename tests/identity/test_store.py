"""Loading identities with one clear line for each mistake, and writing them safely."""

import os
import shutil
import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from rpc25519_tools.errors import (
    KeyFileError,
    KeyNameError,
    LocalFileError,
    PassphraseError,
)
from rpc25519_tools.identity import store
from rpc25519_tools.identity.keyfile import encode_private_key
from rpc25519_tools.identity.store import (
    Output,
    check_name,
    check_outputs,
    load_identity,
    loose_permissions,
    read_bounded,
    write_outputs,
)

from .samples import (
    DATA,
    NOW,
    TINY_KDF,
    YEAR,
    counted_bytes,
    odd_certificate,
    pem,
    sample_authority,
    sample_key,
    sample_leaf,
)

PHRASE = b"open sesame"


def key_file(seed: int = 1, phrase: bytes | None = None) -> bytes:
    return encode_private_key(
        sample_key(seed), phrase, random_bytes=counted_bytes(), kdf=TINY_KDF
    )


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    """A directory with a protected identity ``node``."""
    directory = tmp_path / "certs"
    directory.mkdir(mode=0o700)
    (directory / "ca.crt").write_bytes(pem(sample_authority()))
    (directory / "node.crt").write_bytes(pem(sample_leaf()))
    (directory / "node.key").write_bytes(key_file(phrase=PHRASE))
    (directory / "node.key").chmod(0o600)
    return directory


def load(certs: Path, name: str = "node") -> store.LoadedIdentity:
    return load_identity(certs, name, lambda: PHRASE, now=NOW)


def test_identity_loads(certs: Path) -> None:
    identity = load(certs)
    assert identity.name == "node"
    assert identity.certificate == sample_leaf()
    assert identity.ca == sample_authority()
    assert identity.private_key.private_bytes_raw() == bytes([1]) * 32
    assert (b"\x01" * 8).hex() not in repr(identity)


def test_identity_of_the_go_peer_loads_on_todays_clock() -> None:
    assert load_identity(str(DATA), "client", None).name == "client"


def test_pass_phrase_is_asked_for_last(certs: Path) -> None:
    def must_not_ask() -> NoReturn:
        raise AssertionError("asked in vain")

    (certs / "ca.crt").write_bytes(pem(sample_authority(seed=101)))
    with pytest.raises(KeyFileError, match="not signed by our"):
        load_identity(certs, "node", must_not_ask, now=NOW)


def test_pass_phrase_mistakes(certs: Path) -> None:
    with pytest.raises(PassphraseError, match=r"node\.key: wrong pass phrase"):
        load_identity(certs, "node", lambda: b"open barley", now=NOW)
    with pytest.raises(PassphraseError, match=r"node\.key: the key is protected"):
        load_identity(certs, "node", None, now=NOW)


def put_in_place_of_key(certs: Path, make: Callable[[Path], None]) -> None:
    (certs / "node.key").unlink()
    make(certs / "node.key")


def breakage(name: str, change: Callable[[Path], object], why: str) -> object:
    return pytest.param(change, why, id=name)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        breakage(
            "no directory",
            shutil.rmtree,
            r"no certificate directory .*certs: run `selfy -k node` to make one",
        ),
        breakage(
            "no key",
            lambda d: (d / "node.key").unlink(),
            r"there is no .*node\.key: run `selfy -k node`",
        ),
        breakage(
            "no certificate",
            lambda d: (d / "node.crt").unlink(),
            r"there is no .*node\.crt: run",
        ),
        breakage(
            "no authority",
            lambda d: (d / "ca.crt").unlink(),
            r"there is no .*ca\.crt: run",
        ),
        breakage(
            "garbage certificate",
            lambda d: (d / "node.crt").write_bytes(b"?"),
            r"node\.crt is not a certificate",
        ),
        breakage(
            "garbage key",
            lambda d: (d / "node.key").write_bytes(b"?"),
            r"node\.key: not a private key file",
        ),
        breakage(
            "huge key",
            lambda d: (d / "node.key").write_bytes(bytes(10**6)),
            r"node\.key is too long",
        ),
        breakage(
            "directory as key",
            lambda d: put_in_place_of_key(d, lambda path: path.mkdir()),
            r"(cannot read .*directory|not a regular file)",
        ),
        breakage(
            "fifo as key",
            lambda d: put_in_place_of_key(d, os.mkfifo),
            r"node\.key is not a regular file",
        ),
        breakage(
            "key of another",
            lambda d: (d / "node.key").write_bytes(key_file(2)),
            r"node\.key is not the key of .*node\.crt",
        ),
        breakage(
            "another authority",
            lambda d: (d / "ca.crt").write_bytes(pem(sample_authority(seed=101))),
            r"node\.crt: it was not signed by our certificate authority",
        ),
        breakage(
            "no authority at all",
            lambda d: (d / "ca.crt").write_bytes(pem(sample_leaf())),
            r"ca\.crt: it is not a certificate authority",
        ),
        breakage(
            "expired",
            lambda d: (d / "node.crt").write_bytes(
                pem(sample_leaf(now=NOW - YEAR, life=timedelta(days=1)))
            ),
            r"node\.crt: it expired on 2025-11-24",
        ),
        breakage(
            "not yet valid",
            lambda d: (d / "node.crt").write_bytes(pem(sample_leaf(now=NOW + YEAR))),
            r"node\.crt: it is not valid before 2027",
        ),
        breakage(
            "not Ed25519",
            lambda d: (d / "node.crt").write_bytes(
                pem(
                    odd_certificate(
                        public_key=ec.generate_private_key(ec.SECP256R1()).public_key()
                    )
                )
            ),
            r"node\.crt: its key is of type EC, not Ed25519",
        ),
    ],
)
def test_each_mistake_is_one_line(
    certs: Path, change: Callable[[Path], object], why: str
) -> None:
    change(certs)
    with pytest.raises(KeyFileError, match=why) as info:
        load(certs)
    assert str(info.value).isprintable()


def test_no_permission_is_told(certs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: object, *_args: object) -> NoReturn:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(KeyFileError, match=r"cannot read .*ca\.crt: permission denied"):
        load(certs)
    monkeypatch.setattr(os, "stat", deny)
    with pytest.raises(KeyFileError, match=r"cannot read .*certs: permission denied"):
        load(certs)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../x", "/etc/x", "a/b", "a\\b", ".hidden", "-k"),
        *("a\x00b", "a\nb", "a\u202eb", "x" * 201, "\udcff"),
    ],
)
def test_names_that_are_no_plain_file_names_are_refused(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(KeyNameError) as info:
        check_name(name)
    assert str(info.value).isprintable()
    with pytest.raises(KeyNameError):
        load_identity(tmp_path, name, None)


@pytest.mark.parametrize("name", ["node", "Jörg", "a b", "x" * 200, "a..b", "_", "é.k"])
def test_plain_names_are_accepted(name: str) -> None:
    assert check_name(name) == name


def test_reading_refuses_a_nul_in_the_path() -> None:
    with pytest.raises(KeyFileError, match="cannot read"):
        read_bounded("a\x00b", 10)


# Writing.


def outputs(directory: Path, count: int = 3, *, replace: bool = False) -> list[Output]:
    return [
        Output(
            path=directory / f"d{number % 2}" / "deep" / f"file{number}",
            content=f"content {number}".encode(),
            replace=replace,
        )
        for number in range(count)
    ]


def tree(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


@pytest.fixture
def no_umask() -> object:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_umask")
def test_files_are_private_from_their_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    real_open = os.open

    def spy(path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = real_open(path, flags, mode)
        if flags & os.O_CREAT:
            found = os.fstat(descriptor)
            seen.append((stat.S_IMODE(found.st_mode), found.st_size))
        return descriptor

    monkeypatch.setattr(os, "open", spy)
    write_outputs(outputs(tmp_path))
    assert seen == [(0o600, 0)] * 3
    for path in tmp_path.rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted
    assert [path.name for path in tmp_path.rglob("file*")]
    assert not list(tmp_path.rglob(".*"))


def test_existing_directories_keep_their_mode(tmp_path: Path) -> None:
    (tmp_path / "d0").mkdir()
    (tmp_path / "d0").chmod(0o755)
    write_outputs(outputs(tmp_path, 1))
    assert stat.S_IMODE((tmp_path / "d0").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "d0" / "deep").stat().st_mode) == 0o700


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    write_outputs(outputs(tmp_path, 1))
    victim = tmp_path / "d0" / "deep" / "file0"
    victim.write_bytes(b"precious")
    before = tree(tmp_path)
    with pytest.raises(LocalFileError, match=r"file0 exists.*--force replaces"):
        write_outputs(outputs(tmp_path))
    assert tree(tmp_path) == before
    write_outputs(outputs(tmp_path, replace=True))
    assert victim.read_bytes() == b"content 0"
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3


def test_a_dangling_link_counts_as_existing_and_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    link = tmp_path / "key"
    link.symlink_to(target)
    output = Output(path=link, content=b"x")
    with pytest.raises(LocalFileError, match="exists"):
        write_outputs([output])
    write_outputs([Output(path=link, content=b"x", replace=True)])
    assert not target.exists()
    assert not link.is_symlink()
    assert link.read_bytes() == b"x"


def test_a_name_taken_in_the_meantime_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "d0" / "deep" / "file2"
    victim.parent.mkdir(parents=True)
    monkeypatch.setattr(
        store, "check_outputs", lambda _outputs: victim.write_bytes(b"theirs")
    )
    with pytest.raises(LocalFileError, match="cannot write"):
        write_outputs(outputs(tmp_path))
    assert tree(tmp_path) == {"d0": None, "d0/deep": None, "d0/deep/file2": b"theirs"}


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("function", ["link", "replace", "fsync", "mkdir", "open"])
@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("fail_at", range(1, 9))
def test_a_failure_at_any_step_leaves_everything_as_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    replace: bool,
    error: BaseException,
    fail_at: int,
) -> None:
    old = tmp_path / "d0" / "deep" / "file0"
    if replace:
        old.parent.mkdir(parents=True)
        old.write_bytes(b"old content")
    before = tree(tmp_path)
    real = getattr(os, function)
    calls = 0

    def failing(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise error
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(os, function, failing)
        try:
            write_outputs(outputs(tmp_path, replace=replace))
        except (LocalFileError, KeyboardInterrupt):
            assert tree(tmp_path) == before
            return
    assert calls < fail_at  # there was no such step: all is written
    assert len(tree(tmp_path)) == 3 + 4


def test_file_systems_without_hard_links_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_args: object, **_kwargs: object) -> NoReturn:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    write_outputs(outputs(tmp_path))
    with pytest.raises(LocalFileError, match="exists"):
        write_outputs(outputs(tmp_path))
    write_outputs(outputs(tmp_path, replace=True))
    assert len(tree(tmp_path)) == 3 + 4


def test_directories_that_cannot_be_synced_are_forgiven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_outputs(outputs(tmp_path))


def test_unusable_places_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    below_file = Output(path=tmp_path / "file" / "x", content=b"")
    with pytest.raises(LocalFileError, match="file is not a directory"):
        check_outputs([below_file])
    with pytest.raises(LocalFileError, match="is a directory"):
        check_outputs([Output(path=tmp_path, content=b"", replace=True)])
    monkeypatch.setattr(os, "access", lambda *_args: False)
    with pytest.raises(LocalFileError, match=r"cannot write in .*permission denied"):
        check_outputs([Output(path=tmp_path / "new" / "x", content=b"")])


def test_loose_permissions_are_told(tmp_path: Path) -> None:
    file, directory = tmp_path / "key", tmp_path / "dir"
    file.write_bytes(b"")
    directory.mkdir()
    for mode, loose in ((0o600, False), (0o400, False), (0o640, True), (0o604, True)):
        file.chmod(mode)
        assert (loose_permissions(file) is not None) == loose
    for mode, loose in ((0o755, False), (0o775, True), (0o757, True), (0o1777, False)):
        directory.chmod(mode)
        assert (loose_permissions(directory) is not None) == loose
    assert loose_permissions(tmp_path / "missing") is None
