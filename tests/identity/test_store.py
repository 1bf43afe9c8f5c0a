"""Loading identities, with one clear line for each mistake."""

import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from rpc25519_tools.errors import (
    KeyFileError,
    KeyNameError,
    PassphraseError,
)
from rpc25519_tools.identity import store
from rpc25519_tools.identity.keyfile import encode_private_key
from rpc25519_tools.identity.store import (
    check_name,
    load_identity,
    loose_permissions,
    read_bounded,
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
