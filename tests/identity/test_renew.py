"""Renewing certificates on disk: all files or none, and only what may be renewed."""

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

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
from rpc25519_tools.identity.renew import Renewal
from rpc25519_tools.identity.store import (
    load_authorities,
    load_certificate,
    load_identity,
)
from tests.identity.renewing import CA_PHRASE, KEY_PHRASE, LATER, made, run
from tests.identity.samples import DATA, NOW, pem, sample_authority


def files(tmp_path: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(tmp_path)): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }


def changed(before: dict[str, bytes], tmp_path: Path) -> list[str]:
    after = files(tmp_path)
    assert set(before) <= set(after)
    return sorted(name for name in after if after[name] != before.get(name))


def test_several_certificates_are_renewed_and_the_old_ones_kept(tmp_path: Path) -> None:
    renewal = made(tmp_path, "node", "client")
    before = files(tmp_path)
    result = run(renewal)
    assert changed(before, tmp_path) == sorted(
        f"certs/{name}.crt{suffix}"
        for name in ("node", "client")
        for suffix in ("", ".old")
    )
    assert result.warnings == ()
    serials = set()
    for name in ("node", "client"):
        identity = load_identity(renewal.certs_dir, name, None, now=LATER)
        assert identity.certificate == result.certificates[name]
        assert identity.certificate.not_valid_after_utc == LATER + timedelta(days=200)
        serials.add(identity.certificate.serial_number)
        old = (renewal.certs_dir / f"{name}.crt.old").read_bytes()
        assert old == before[f"certs/{name}.crt"]
    assert len(serials) == 2
    run(renewal, now=LATER + timedelta(days=1))  # over the .old of before


def test_only_the_authoritys_pass_phrase_is_needed(tmp_path: Path) -> None:
    renewal = made(tmp_path, "node", protected=True)
    asked = []

    def phrase() -> bytes:
        asked.append(1)
        return CA_PHRASE

    run(renewal, phrase)
    assert asked == [1]
    load_identity(renewal.certs_dir, "node", lambda: KEY_PHRASE, now=LATER)


def test_a_wrong_pass_phrase_leaves_all_as_it_was(tmp_path: Path) -> None:
    renewal = made(tmp_path, "node", protected=True)
    before = files(tmp_path)
    with pytest.raises(PassphraseError, match=r"ca\.key: wrong pass phrase"):
        run(renewal, lambda: b"wrong")
    assert files(tmp_path) == before


def test_what_has_expired_can_be_renewed(tmp_path: Path) -> None:
    renewal = made(tmp_path, "node", days=1)
    with pytest.raises(KeyFileError, match="expired"):
        load_identity(renewal.certs_dir, "node", None, now=LATER)
    run(renewal)
    load_identity(renewal.certs_dir, "node", None, now=LATER)


def test_a_certificate_can_be_renewed_where_its_key_is_not(tmp_path: Path) -> None:
    renewal = made(tmp_path, "node")
    (renewal.certs_dir / "node.key").unlink()
    assert set(run(renewal).certificates) == {"node"}


def test_the_authority_is_renewed_with_its_copies(tmp_path: Path) -> None:
    renewal = made(tmp_path, "node", days=300, ca_days=300)
    before = files(tmp_path)
    result = run(replace(renewal, names=(), authority=True))
    assert changed(before, tmp_path) == [
        *("certs/ca.crt", "private/ca.crt", "private/ca.crt.old")
    ]
    when = NOW + timedelta(days=299)
    identity = load_identity(renewal.certs_dir, "node", None, now=when)
    assert identity.ca == result.certificates["ca"]
    assert identity.ca == load_certificate(renewal.private_dir / "ca.crt")
    # It is over with the old authority, and can be renewed under the new one.
    when = NOW + timedelta(days=350)
    with pytest.raises(KeyFileError, match=r"node\.crt: it expired"):
        load_identity(renewal.certs_dir, "node", None, now=when)
    run(renewal, now=when)
    load_identity(renewal.certs_dir, "node", None, now=when)


def test_an_expired_authority_must_be_renewed_first(tmp_path: Path) -> None:
    renewal = made(tmp_path, "node", days=10, ca_days=10)
    before = files(tmp_path)
    with pytest.raises(KeyFileError, match=r"ca\.crt: it expired"):
        run(renewal)
    assert files(tmp_path) == before
    result = run(replace(renewal, authority=True, days=7))
    ends = {
        name: (one.not_valid_after_utc - LATER).days
        for name, one in result.certificates.items()
    }
    assert ends == {"ca": 10, "node": 7}
    load_identity(renewal.certs_dir, "node", None, now=LATER)


def test_a_life_ends_with_the_authoritys(tmp_path: Path) -> None:
    renewal = made(tmp_path, "node", ca_days=150)
    result = run(renewal)
    assert result.certificates["node"].not_valid_after_utc == NOW + timedelta(days=150)
    (warning,) = result.warnings
    assert warning == "node ends with its authority on 2027-04-22; --ca renews that"


@pytest.mark.parametrize("days", [None, 36600])
@pytest.mark.parametrize(("seconds", "remarks"), [(1, 0), (86_399, 0), (86_400, 1)])
def test_an_end_some_seconds_early_is_not_worth_a_remark(
    tmp_path: Path, days: int | None, seconds: int, remarks: int
) -> None:
    renewal = replace(made(tmp_path, "node", days=36600), days=days)
    result = run(renewal, now=NOW + timedelta(seconds=seconds))
    assert len(result.warnings) == remarks
    end = load_certificate(renewal.private_dir / "ca.crt").not_valid_after_utc
    assert result.certificates["node"].not_valid_after_utc == end


def test_other_authorities_in_a_bundle_stay(tmp_path: Path) -> None:
    renewal = made(tmp_path, "node")
    copy = renewal.certs_dir / "ca.crt"
    other = sample_authority(seed=9)
    copy.write_bytes(pem(other) + copy.read_bytes())
    result = run(replace(renewal, names=(), authority=True))
    assert load_authorities(copy) == (other, result.certificates["ca"])
    copy.write_bytes(pem(other))
    result = run(replace(renewal, names=(), authority=True), now=LATER + timedelta(1))
    assert load_authorities(copy) == (other,)
    (warning,) = result.warnings
    assert "another authority's and was left alone" in warning


def test_modes_of_certificates_are_kept(tmp_path: Path) -> None:
    renewal = made(tmp_path, "node")
    path = renewal.certs_dir / "node.crt"
    path.chmod(0o644)
    run(renewal)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    old = renewal.certs_dir / "node.crt.old"
    assert stat.S_IMODE(old.stat().st_mode) == 0o600


def foreign(renewal: Renewal) -> None:
    (renewal.certs_dir / "node.crt").write_bytes((DATA / "client.crt").read_bytes())


def swapped_key(renewal: Renewal) -> None:
    (renewal.certs_dir / "node.key").write_bytes((DATA / "client.key").read_bytes())


def damaged_key(renewal: Renewal) -> None:
    (renewal.certs_dir / "node.key").write_bytes(b"no key")


def damaged(renewal: Renewal) -> None:
    (renewal.certs_dir / "node.crt").write_bytes(b"no certificate")


def lost(renewal: Renewal) -> None:
    (renewal.certs_dir / "node.crt").unlink()


def no_authority(renewal: Renewal) -> None:
    (renewal.private_dir / "ca.crt").unlink()


def other_ca_key(renewal: Renewal) -> None:
    (renewal.private_dir / "ca.key").write_bytes((DATA / "client.key").read_bytes())


def nested(renewal: Renewal) -> None:
    copy = (renewal.private_dir / "ca.crt").read_bytes()
    (renewal.certs_dir / "node.crt").write_bytes(copy)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lost, r"there is no .*node\.crt: nothing to renew; `selfy -k node`"),
        (foreign, r"node\.crt: it was not (issued|signed) by our certificate author"),
        (swapped_key, r"node\.key is not the key of .*node\.crt"),
        (damaged_key, r"node\.key: not a private key file"),
        (damaged, r"node\.crt is not a certificate"),
        (no_authority, r"cannot read .*private/ca\.crt: no such file"),
        (other_ca_key, r"ca\.key is not the key of .*ca\.crt"),
        (nested, r"node\.crt: it is an authority itself"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(
    tmp_path: Path, spoil: Callable[[Renewal], None], reason: str
) -> None:
    renewal = made(tmp_path, "client", "node")
    spoil(renewal)
    before = files(tmp_path)
    with pytest.raises(KeyFileError, match=reason):
        run(renewal)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"names": ()}, ConfigError, "nothing to renew"),
        ({"names": ("ca",)}, ConfigError, "with --ca"),
        ({"names": ("../x",)}, KeyNameError, "begin with"),
        ({"names": ("a", "b"), "email": "a@b"}, ConfigError, "one certificate only"),
        ({"email": "é@b"}, ConfigError, "ASCII"),
        ({"days": 0}, ConfigError, "at least one day"),
        ({"days": 10**7}, ConfigError, "9999"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path,
    changes: dict[str, object],
    error: type[Rpc25519Error],
    reason: str,
) -> None:
    renewal = made(tmp_path, "node", protected=True)
    before = files(tmp_path)
    with pytest.raises(error, match=reason):
        run(replace(renewal, **changes))  # type: ignore[arg-type]  # any field
    assert files(tmp_path) == before


def test_no_file_is_changed_when_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewal = replace(made(tmp_path, "node", "client"), authority=True)
    before = files(tmp_path)
    replace_file = os.replace
    replaced: list[str] = []

    def fail_at_the_last_one(old: Path, new: Path) -> None:
        replaced.append(Path(new).name)
        if replaced.count("client.crt") == 1 and replaced[-1] == "client.crt":
            raise OSError(28, "No space left on device", str(new))
        replace_file(old, new)

    monkeypatch.setattr(os, "replace", fail_at_the_last_one)
    with pytest.raises(LocalFileError, match="no space left"):
        run(renewal)
    assert {"ca.crt", "node.crt"} <= set(replaced)  # and these were taken back
    assert files(tmp_path) == before


def test_a_renewed_certificate_of_gos_selfy_is_loaded(tmp_path: Path) -> None:
    private, certs = tmp_path / "private", tmp_path / "certs"
    for folder, names in (
        (private, ("ca.crt", "ca.key")),
        (certs, ("ca.crt", "client.crt", "client.key")),
    ):
        folder.mkdir(mode=0o700)
        for name in names:
            (folder / name).write_bytes((DATA / name).read_bytes())
            (folder / name).chmod(0o600)
    renewal = Renewal(private_dir=private, certs_dir=certs, names=("client",))
    for one in (renewal, replace(renewal, authority=True)):
        result = run(one)
        identity = load_identity(certs, "client", None, now=LATER)
        assert identity.certificate == result.certificates["client"]
        issuer: x509.Name = identity.certificate.issuer
        assert issuer.public_bytes() == identity.ca.subject.public_bytes()


def test_what_the_user_should_know_is_told(tmp_path: Path) -> None:
    renewal = made(tmp_path, "node")
    (renewal.private_dir / "ca.key").chmod(0o644)
    (renewal.certs_dir / "ca.crt").unlink()
    result = run(replace(renewal, email="e" * 130 + "@b"))
    size, open_to_others = result.warnings
    assert size.startswith("node: the certificate has 6")
    assert "ca.key (mode 0644): chmod 600" in open_to_others
    assert not (renewal.certs_dir / "ca.crt").exists()


def test_all_in_one_directory(tmp_path: Path) -> None:
    renewal = made(tmp_path, "node")
    for name in ("node.crt", "node.key"):
        (renewal.certs_dir / name).rename(renewal.private_dir / name)
    before = files(tmp_path)
    run(replace(renewal, certs_dir=renewal.private_dir, authority=True))
    assert changed(before, tmp_path) == [
        f"private/{name}.crt{suffix}"
        for name in ("ca", "node")
        for suffix in ("", ".old")
    ]
    load_identity(renewal.private_dir, "node", None, now=LATER)
