"""Files of an identity that change: what is loaded, and what is told once."""

import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from rpc25519_tools.errors import KeyFileError, LocalFileError, PassphraseError
from rpc25519_tools.identity import keyfile
from rpc25519_tools.identity.store import LoadedIdentity, load_identity
from rpc25519_tools.identity.watch import IdentityFiles

from .renewing import KEY_PHRASE, LATER, made, run
from .samples import NOW, TINY_KDF

AT = NOW + timedelta(days=1)


def never() -> bytes:
    raise AssertionError("a pass phrase was asked for")


class Node:
    """The files of ``node``, and what is replaced in them."""

    def __init__(self, tmp_path: Path, *, protected: bool = False) -> None:
        self.protected = protected
        self.renewal = made(tmp_path / "a", "node", protected=protected)
        self.certs = self.renewal.certs_dir
        other = made(tmp_path / "b", "node", protected=protected, seed=b"other")
        self.other = other.certs_dir
        phrase = (lambda: KEY_PHRASE) if protected else None
        self.identity = load_identity(self.certs, "node", phrase, now=NOW)

    def files(self, phrase: Callable[[], bytes] | None = never) -> IdentityFiles:
        return IdentityFiles(self.certs, self.identity, phrase)

    def renew(self, now: datetime = NOW) -> None:
        run(self.renewal, lambda: b"of the authority", now=now)

    def take(self, *names: str) -> None:
        """Put files of another set in place of ours."""
        for name in names:
            shutil.copy(self.other / name, self.certs / f"{name}.new")
            (self.certs / f"{name}.new").replace(self.certs / name)


@pytest.fixture(params=[False, True], ids=["plain", "protected"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Node:
    return Node(tmp_path, protected=request.param)


def test_what_has_not_changed_is_nothing_new(node: Node) -> None:
    files = node.files()
    for asked in (False, False, True, False):
        assert files.look(AT, asked=asked) is None
    (node.certs / "node.crt").touch()
    assert files.look(AT) is None
    assert files.current is node.identity


def test_a_renewed_certificate_is_taken_without_opening_the_key(node: Node) -> None:
    files = node.files()
    assert files.look(AT) is None
    node.renew()
    found = files.look(AT)
    assert found is not None
    assert files.current is found
    assert found.certificate != node.identity.certificate
    assert files.look(AT) is None


def test_a_change_before_the_first_look_is_seen(node: Node) -> None:
    files = node.files()
    node.renew()
    assert files.look(AT) is not None


def test_new_authorities_are_taken(node: Node) -> None:
    files = node.files()
    ca = node.certs / "ca.crt"
    ca.write_bytes(ca.read_bytes() + (node.other / "ca.crt").read_bytes())
    found = files.look(AT)
    assert found is not None
    assert len(found.authorities) == 2


def looks(files: IdentityFiles, count: int, now: datetime = AT) -> list[str]:
    """Look several times; return what was told."""
    told = []
    for _ in range(count):
        try:
            assert files.look(now) is None
        except KeyFileError as exc:
            told.append(str(exc))
    return told


def test_files_that_do_not_fit_are_told_once_and_change_nothing(node: Node) -> None:
    files = node.files()
    node.take("node.crt")
    told = looks(files, 10)
    assert len(told) == 1
    assert "node.crt: it was not" in told[0]
    assert files.current is node.identity
    with pytest.raises(KeyFileError, match="it was not"):
        files.look(AT, asked=True)
    assert looks(files, 5) == []
    (node.certs / "node.crt").write_bytes(b"half of")
    assert [("is not a certificate" in text) for text in looks(files, 5)] == [True]
    (node.certs / "node.crt").unlink()
    assert [("there is no" in text) for text in looks(files, 5)] == [True]
    node.take("ca.crt", "node.key", "node.crt")
    assert IdentityFiles(node.certs, node.identity, lambda: KEY_PHRASE).look(AT)


def test_files_may_be_replaced_one_by_one_without_a_word(node: Node) -> None:
    files = node.files(lambda: KEY_PHRASE)
    for name in ("node.crt", "ca.crt"):
        node.take(name)
        assert looks(files, 1) == []
    node.take("node.key")
    found = files.look(AT)
    assert found is not None
    loaded = load_identity(node.certs, "node", lambda: KEY_PHRASE, now=AT)
    assert found.certificate == loaded.certificate
    assert looks(files, 3) == []


def test_what_is_not_valid_yet_is_taken_when_it_is(node: Node) -> None:
    files = node.files()
    node.renew(now=LATER)
    assert len(looks(files, 4)) == 1
    assert files.look(LATER + timedelta(seconds=1)) is not None


def test_an_expired_certificate_gives_way_to_a_new_one(node: Node) -> None:
    files = node.files()
    end = node.identity.certificate.not_valid_after_utc + timedelta(days=1)
    assert files.look(AT) is None
    assert looks(files, 3, end) == []  # which the reminder is for
    node.renew(now=end)
    assert files.look(end) is not None


class Phrases:
    """Counts how often a pass phrase is asked for."""

    def __init__(self, *phrases: bytes) -> None:
        self._phrases = list(phrases)
        self.count = 0

    def __call__(self) -> bytes:
        self.count += 1
        return self._phrases[min(self.count, len(self._phrases)) - 1]


def test_another_protected_key_is_tried_once_for_each_change(tmp_path: Path) -> None:
    node = Node(tmp_path, protected=True)
    phrases = Phrases(b"wrong", b"wrong", KEY_PHRASE)
    files = node.files(phrases)
    node.take("ca.crt", "node.crt", "node.key")
    told = looks(files, 10)
    assert [("node.key: wrong pass phrase" in text) for text in told] == [True]
    assert phrases.count == 1
    with pytest.raises(PassphraseError, match="wrong pass phrase"):
        files.look(AT, asked=True)
    assert phrases.count == 2
    node.take("node.key")
    found = files.look(AT)
    assert found is not None
    assert phrases.count == 3


def test_another_protected_key_without_a_way_to_open_it_is_told(tmp_path: Path) -> None:
    node = Node(tmp_path, protected=True)
    files = node.files(None)
    node.take("ca.crt", "node.crt", "node.key")
    (told,) = looks(files, 10)
    assert "nobody can be asked for its pass phrase" in told
    assert files.current is node.identity


def test_a_pass_phrase_file_that_is_gone_is_told(tmp_path: Path) -> None:
    def gone() -> bytes:
        raise LocalFileError("cannot read the pass phrase file")

    node = Node(tmp_path, protected=True)
    files = node.files(gone)
    node.take("ca.crt", "node.crt", "node.key")
    assert files.look(AT) is None
    with pytest.raises(LocalFileError):
        files.look(AT)
    assert files.look(AT) is None


def test_a_key_that_is_protected_anew_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path)
    monkeypatch.setattr(keyfile, "DEFAULT_KDF", TINY_KDF)
    files = node.files()
    identity: LoadedIdentity = node.identity
    (node.certs / "node.key").write_bytes(
        keyfile.encode_private_key(identity.private_key, b"new", random_bytes=bytes)
    )
    assert files.look(AT) is None
    node.renew()
    assert files.look(AT) is not None


def test_a_plain_key_that_is_not_the_certificates_is_told(tmp_path: Path) -> None:
    node = Node(tmp_path)
    files = node.files()
    node.take("node.key")
    assert [("node.key is not the key of" in text) for text in looks(files, 5)] == [
        True
    ]
