"""Orders for new identities: all or nothing, and nothing over the old."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography import x509

from rpc25519_tools.errors import (
    ConfigError,
    KeyFileError,
    KeyNameError,
    LocalFileError,
    PassphraseError,
    Rpc25519Error,
)
from rpc25519_tools.identity.issue import Issued, Order, Passphrases, issue
from rpc25519_tools.identity.keyfile import describe_key_file
from rpc25519_tools.identity.store import load_certificate, load_identity

from .samples import DATA, NOW, TINY_KDF, counted_bytes


def must_not_ask() -> NoReturn:
    raise AssertionError("a pass phrase was asked for")


NO_PHRASES = Passphrases(
    existing_authority=must_not_ask, new_authority=None, new_key=None
)


class Asked:
    """A pass phrase source that notes the order in which it was asked."""

    def __init__(self, **phrases: bytes) -> None:
        self.order: list[str] = []
        self._phrases = phrases

    def __getitem__(self, name: str) -> Callable[[], bytes]:
        def ask() -> bytes:
            self.order.append(name)
            return self._phrases[name]

        return ask

    def passphrases(self) -> Passphrases:
        return Passphrases(
            existing_authority=self["old"],
            new_authority=self["authority"],
            new_key=self["key"],
        )


@pytest.fixture
def order(tmp_path: Path) -> Order:
    return Order(
        private_dir=tmp_path / "private",
        certs_dir=tmp_path / "certs",
        name="node",
        email="node@example.org",
    )


def run(
    order: Order,
    phrases: Passphrases = NO_PHRASES,
    *,
    seed: bytes = b"",
    now: datetime = NOW,
) -> Issued:
    return issue(
        order, phrases, now=now, random_bytes=counted_bytes(seed), kdf=TINY_KDF
    )


def files(tmp_path: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(tmp_path)): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }


def test_the_first_key_brings_its_authority(order: Order, tmp_path: Path) -> None:
    issued = run(order)
    assert sorted(files(tmp_path)) == sorted(
        str(path.relative_to(tmp_path)) for path in issued.paths
    )
    assert sorted(files(tmp_path)) == [
        *("certs/ca.crt", "certs/node.crt", "certs/node.key"),
        *("private/ca.crt", "private/ca.key"),
    ]
    loaded = load_identity(order.certs_dir, "node", None, now=NOW)
    assert loaded.certificate == issued.certificate
    assert loaded.ca == issued.authority
    assert issued.warnings == ()


def test_the_second_key_uses_the_authority_and_leaves_the_rest(
    order: Order, tmp_path: Path
) -> None:
    run(order)
    before = files(tmp_path)
    issued = run(replace(order, name="client"), seed=b"2")
    assert [path.name for path in issued.paths] == ["client.key", "client.crt"]
    assert issued.authority is None
    after = files(tmp_path)
    assert {name: after[name] for name in before} == before


def test_serial_numbers_differ(order: Order) -> None:
    first, second = run(order), run(replace(order, name="b"), seed=b"2")
    assert first.certificate is not None
    assert first.authority is not None
    assert second.certificate is not None
    serials = {
        certificate.serial_number
        for certificate in (first.certificate, first.authority, second.certificate)
    }
    assert len(serials) == 3


def test_each_key_has_its_own_pass_phrase(order: Order) -> None:
    asked = Asked(authority=b"one", key=b"two", old=b"one")
    run(order, asked.passphrases())
    assert asked.order == ["authority", "key"]
    loaded = load_identity(order.certs_dir, "node", lambda: b"two", now=NOW)
    assert loaded.name == "node"
    run(replace(order, name="other"), asked.passphrases(), seed=b"2")
    assert asked.order == ["authority", "key", "old", "key"]


def test_a_wrong_authority_pass_phrase_leaves_nothing(
    order: Order, tmp_path: Path
) -> None:
    run(order, Asked(authority=b"one", key=b"two").passphrases())
    before = files(tmp_path)
    asked = Asked(old=b"wrong", key=b"two")
    with pytest.raises(PassphraseError, match=r"ca\.key: wrong pass phrase"):
        run(replace(order, name="other"), asked.passphrases())
    assert asked.order == ["old"]  # and nobody typed a new phrase in vain
    assert files(tmp_path) == before


def test_existing_keys_stay_unless_replacing_is_asked_for(
    order: Order, tmp_path: Path
) -> None:
    run(order)
    before = files(tmp_path)
    with pytest.raises(LocalFileError, match=r"node\.key exists"):
        run(order, Asked().passphrases())
    assert files(tmp_path) == before
    run(replace(order, replace=True), seed=b"2")
    changed = {name for name, old in before.items() if files(tmp_path)[name] != old}
    assert changed == {"certs/node.key", "certs/node.crt"}


def test_a_new_authority_warns_about_the_old_certificates(
    order: Order, tmp_path: Path
) -> None:
    run(order)
    anew = replace(order, name=None, make_authority=True)
    with pytest.raises(LocalFileError, match=r"ca\.key exists"):
        run(anew)
    issued = run(replace(anew, replace=True), seed=b"2")
    assert any("another authority's" in warning for warning in issued.warnings)
    before = files(tmp_path)
    with pytest.raises(KeyFileError, match="another authority than"):
        run(replace(order, name="client"), seed=b"3")
    assert files(tmp_path) == before
    run(replace(order, replace=True), seed=b"4")
    assert load_identity(order.certs_dir, "node", None, now=NOW).ca == issued.authority


def test_half_an_authority_is_not_replaced_in_passing(order: Order) -> None:
    run(order)
    (order.private_dir / "ca.crt").unlink()
    for force in (False, True):
        with pytest.raises(KeyFileError, match=r"not its ca\.crt"):
            run(replace(order, name="x", replace=force))
    issued = run(replace(order, make_authority=True, replace=True), seed=b"2")
    assert issued.authority is not None


def test_an_authority_without_its_key_is_told(order: Order) -> None:
    run(order)
    (order.private_dir / "ca.key").unlink()
    with pytest.raises(KeyFileError, match=r"cannot read .*ca\.key: no such file"):
        run(replace(order, name="x"))
    (order.private_dir / "ca.key").write_bytes((DATA / "client.key").read_bytes())
    with pytest.raises(KeyFileError, match=r"ca\.key is not the key of .*ca\.crt"):
        run(replace(order, name="x"))


def test_an_unusable_authority_is_told(order: Order) -> None:
    run(replace(order, name=None, make_authority=True, days=1))
    with pytest.raises(KeyFileError, match=r"ca\.crt: it expired"):
        run(order, now=NOW + timedelta(days=2))
    (order.private_dir / "ca.crt").write_bytes((DATA / "client.crt").read_bytes())
    with pytest.raises(KeyFileError, match="not a certificate authority"):
        run(order)


def test_the_authority_of_the_go_peer_issues(order: Order) -> None:
    order.private_dir.mkdir(mode=0o700)
    for name in ("ca.crt", "ca.key"):
        (order.private_dir / name).write_bytes((DATA / name).read_bytes())
        (order.private_dir / name).chmod(0o600)
    run(order)
    loaded = load_identity(order.certs_dir, "node", None, now=NOW)
    assert loaded.ca == load_certificate(DATA / "ca.crt")


def life(certificate: x509.Certificate | None) -> timedelta:
    assert certificate is not None
    return certificate.not_valid_after_utc - certificate.not_valid_before_utc


def test_days_shorten_the_certificate_and_not_its_authority(order: Order) -> None:
    issued = run(replace(order, days=30))
    assert life(issued.certificate) == timedelta(days=30)
    assert life(issued.authority) == timedelta(days=36600)


def test_a_certificate_ends_with_its_authority(order: Order) -> None:
    run(replace(order, name=None, make_authority=True, days=10))
    later = NOW + timedelta(days=4)
    silent = run(order, now=later)
    assert life(silent.certificate) == timedelta(days=6)
    assert silent.warnings == ()
    told = run(replace(order, name="x", days=7), now=later, seed=b"2")
    assert "before its 7 days are over" in told.warnings[0]
    inside = run(replace(order, name="y", days=6), now=later, seed=b"3")
    assert inside.warnings == ()
    seconds_later = later + timedelta(seconds=5)
    nearly = run(replace(order, name="z", days=6), now=seconds_later, seed=b"4")
    assert nearly.warnings == ()


def test_large_certificates_are_warned_about(order: Order) -> None:
    issued = run(replace(order, email="e" * 130))
    assert "Go peers die of more than 641" in issued.warnings[0]


def test_one_directory_for_everything_works(order: Order, tmp_path: Path) -> None:
    together = replace(order, private_dir=tmp_path / "x", certs_dir=tmp_path / "x")
    run(together)
    assert sorted(files(tmp_path)) == [
        *("x/ca.crt", "x/ca.key", "x/node.crt", "x/node.key"),
    ]
    run(replace(together, name="client"), seed=b"2")


def test_symmetric_keys(order: Order, tmp_path: Path) -> None:
    only = replace(order, name=None, symmetric_name="psk.bin")
    run(only)
    assert list(files(tmp_path)) == ["private/psk.bin"]
    assert len((order.private_dir / "psk.bin").read_bytes()) == 32
    with pytest.raises(LocalFileError, match=r"psk\.bin exists"):
        run(only, seed=b"2")
    # Refused before the key beside it is made.
    with pytest.raises(LocalFileError, match=r"psk\.bin exists"):
        run(replace(order, symmetric_name="psk.bin"))
    assert list(files(tmp_path)) == ["private/psk.bin"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"name": "../x"}, KeyNameError),
        ({"name": "ca"}, KeyNameError),
        ({"name": ""}, KeyNameError),
        ({"symmetric_name": "../x"}, KeyNameError),
        ({"symmetric_name": "ca.key", "replace": True}, KeyNameError),
        ({"email": ""}, ConfigError),
        ({"email": "jörg@x"}, ConfigError),
        ({"days": 0}, ConfigError),
        ({"days": 9_999_999}, ConfigError),
        ({"name": None, "make_authority": True, "days": 0}, ConfigError),
    ],
)
def test_bad_orders_are_refused_before_anything(
    order: Order, tmp_path: Path, change: dict[str, object], error: type[Rpc25519Error]
) -> None:
    bad = replace(order, **change)  # type: ignore[arg-type]  # one field at a time
    with pytest.raises(error):
        run(bad, Asked().passphrases())
    assert list(tmp_path.rglob("*")) == []


def test_loose_directories_and_keys_are_warned_about(order: Order) -> None:
    run(order)
    order.private_dir.chmod(0o777)
    order.certs_dir.chmod(0o770)
    (order.private_dir / "ca.key").chmod(0o644)
    issued = run(replace(order, name="x"), seed=b"2")
    assert [warning.split("(")[0].split("/")[-1] for warning in issued.warnings] == [
        "ca.key ",
        "private ",
        "certs ",
    ]


def test_protected_files_carry_the_cost_that_was_asked_for(order: Order) -> None:
    run(order, Asked(authority=b"1", key=b"2").passphrases())
    for path in (order.private_dir / "ca.key", order.certs_dir / "node.key"):
        assert describe_key_file(path.read_bytes()).kdf == TINY_KDF
