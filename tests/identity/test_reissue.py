"""Certificates made out of old ones keep the holder, the key and their validity."""

import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.errors import ConfigError, KeyFileError, PeerNotTrustedError
from rpc25519_tools.identity.authority import parse_alternative_name
from rpc25519_tools.identity.certificate import (
    USAGES,
    Usage,
    peer_identity,
    verify_peer_certificate,
)
from rpc25519_tools.identity.reissue import (
    check_renewable,
    renew_authority,
    renew_certificate,
    renewed_end,
    same_authority,
)

from .samples import (
    NOW,
    YEAR,
    golden_certificate,
    golden_key,
    odd_certificate,
    pem,
    sample_authority,
    sample_key,
    sample_leaf,
)

LATER = NOW + timedelta(days=300)

EXTRA = ("host.example", "10.0.0.7", "second@example.org")


def renewed(
    old: x509.Certificate,
    *,
    ca: x509.Certificate | None = None,
    email: str | None = None,
    extra: tuple[str, ...] | None = None,
    end: datetime = LATER + YEAR,
) -> x509.Certificate:
    names = None if extra is None else [parse_alternative_name(one) for one in extra]
    return renew_certificate(
        old,
        ca=ca or sample_authority(),
        ca_key=sample_key(100),
        email=email,
        extra_names=names,
        now=LATER,
        not_after=end,
        serial_number=77,
    )


def names_of(certificate: x509.Certificate) -> list[str]:
    value = certificate.extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    ).value
    return [str(name.value) for name in value]


@given(
    emails=st.from_regex(r"[a-z]{1,20}@[a-z]{1,20}", fullmatch=True),
    extra=st.lists(st.sampled_from(EXTRA), unique=True),
    usages=st.sampled_from([USAGES, ("client",), ("server",)]),
)
def test_a_renewed_certificate_says_the_same_of_its_holder(
    emails: str, extra: list[str], usages: tuple[Usage, ...]
) -> None:
    old = sample_leaf(
        email=emails,
        usages=usages,
        extra_names=tuple(parse_alternative_name(one) for one in extra),
    )
    new = renewed(old)
    assert new.public_key() == old.public_key()
    assert new.subject.public_bytes() == old.subject.public_bytes()
    assert new.issuer.public_bytes() == sample_authority().subject.public_bytes()
    assert list(new.extensions) == list(old.extensions)
    assert (new.serial_number, old.serial_number) == (77, 8)
    assert (new.not_valid_before_utc, new.not_valid_after_utc) == (LATER, LATER + YEAR)
    for usage in usages:
        verify_peer_certificate(
            new, sample_authority(), usage=usage, now=LATER, host_name="localhost"
        )


@pytest.mark.parametrize(
    ("email", "extra", "expected"),
    [
        (None, None, ["localhost", "ann@example.org", "127.0.0.1", *EXTRA]),
        ("b@c", None, ["localhost", "b@c", "127.0.0.1", *EXTRA]),
        (None, ("x.example",), ["localhost", "ann@example.org", "127.0.0.1"]),
        ("b@c", ("x.example",), ["localhost", "b@c", "127.0.0.1"]),
        ("b@c", ("localhost",), ["localhost", "b@c", "127.0.0.1"]),
    ],
)
def test_names_are_kept_or_replaced(
    email: str | None, extra: tuple[str, ...] | None, expected: list[str]
) -> None:
    extra_names = tuple(parse_alternative_name(one) for one in EXTRA)
    new = renewed(sample_leaf(extra_names=extra_names), email=email, extra=extra)
    if extra == ("x.example",):
        expected = [*expected, *extra]
    assert names_of(new) == expected


def test_a_certificate_without_names_gets_those_that_are_asked_for() -> None:
    old = odd_certificate((x509.BasicConstraints(ca=False, path_length=None), True))
    assert not list(renewed(old).extensions)[1:]
    assert names_of(renewed(old, email="a@b")) == ["localhost", "a@b", "127.0.0.1"]
    assert names_of(renewed(old, extra=("x.y",))) == ["localhost", "127.0.0.1", "x.y"]


def test_an_email_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(ConfigError, match="ASCII"):
        renewed(sample_leaf(), email="é@example.org")


def test_a_life_is_as_long_as_before_unless_days_say_otherwise() -> None:
    old = sample_leaf(life=timedelta(days=90))
    now = LATER + timedelta(microseconds=5)
    assert renewed_end(old, now=now, days=None) == LATER + timedelta(days=90)
    assert renewed_end(old, now=now, days=7) == LATER + timedelta(days=7)
    with pytest.raises(ConfigError, match="at least one day"):
        renewed_end(old, now=now, days=0)
    ages = sample_leaf(life=timedelta(days=365 * 7900))
    assert renewed_end(ages, now=LATER + YEAR * 200, days=None).year >= 9998


def test_who_may_be_renewed_by_whom() -> None:
    ca = sample_authority()
    check_renewable(sample_leaf(), ca)
    check_renewable(ca, ca, is_authority=True)
    for old, authority, reason in (
        (sample_leaf(), sample_authority(seed=5), "the signature is not"),
        (golden_certificate("client"), ca, "the issuer's name|signature is not"),
        (ca, ca, "it is an authority itself"),
        (
            odd_certificate(
                public_key=ec.generate_private_key(ec.SECP256R1()).public_key()
            ),
            ca,
            "not Ed25519",
        ),
    ):
        with pytest.raises(PeerNotTrustedError, match=reason):
            check_renewable(old, authority)
    with pytest.raises(PeerNotTrustedError, match="not a certificate authority"):
        check_renewable(sample_leaf(), ca, is_authority=True)


def test_a_renewed_authority_accepts_what_the_old_one_issued() -> None:
    old, leaf = sample_authority(), sample_leaf(life=2 * YEAR)
    new = renew_authority(
        old, key=sample_key(100), now=LATER, not_after=LATER + YEAR, serial_number=78
    )
    assert same_authority(old, new)
    assert not same_authority(old, sample_authority(seed=5))
    assert list(new.extensions) == list(old.extensions)
    when = LATER + timedelta(days=200)
    verify_peer_certificate(leaf, new, usage="client", now=when, host_name="localhost")
    with pytest.raises(PeerNotTrustedError, match="expired"):
        verify_peer_certificate(leaf, old, usage="client", now=when, host_name=None)


def openssl_accepts(ca: x509.Certificate, leaf: x509.Certificate, folder: Path) -> bool:
    (folder / "ca.pem").write_bytes(pem(ca))
    (folder / "leaf.pem").write_bytes(pem(leaf))
    return all(
        subprocess.run(
            [
                *("openssl", "verify", "-purpose", purpose),
                *("-attime", str(int(LATER.timestamp()) + 5)),
                *("-CAfile", folder / "ca.pem", folder / "leaf.pem"),
            ],
            capture_output=True,
            check=False,
        ).returncode
        == 0
        for purpose in ("sslserver", "sslclient")
    )


def test_openssl_accepts_what_was_renewed(tmp_path: Path) -> None:
    old_ca = sample_authority(life=2 * YEAR)
    new_ca = renew_authority(
        old_ca, key=sample_key(100), now=LATER, not_after=LATER + YEAR, serial_number=7
    )
    leaf = sample_leaf(life=2 * YEAR)
    for ca in (old_ca, new_ca):
        assert openssl_accepts(ca, renewed(leaf, ca=ca), tmp_path)
        assert openssl_accepts(ca, leaf, tmp_path)
    assert not openssl_accepts(sample_authority(seed=5), renewed(leaf), tmp_path)


def test_what_gos_selfy_made_is_renewed_to_the_byte_but_serial_and_dates(
    tmp_path: Path,
) -> None:
    ca, ca_key, leaf = (
        golden_certificate("ca"),
        golden_key("ca"),
        golden_certificate("client"),
    )
    new = renew_certificate(
        leaf,
        ca=ca,
        ca_key=ca_key,
        now=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        serial_number=leaf.serial_number,
    )
    assert pem(new) == pem(leaf)
    assert peer_identity(new).emails == peer_identity(leaf).emails
    new_ca = renew_authority(
        ca, key=ca_key, now=LATER, not_after=LATER + YEAR, serial_number=78
    )
    # OpenSSL does not accept Go's own authority, whose usage is "any"; ours it does.
    assert not openssl_accepts(ca, leaf, tmp_path)
    assert openssl_accepts(new_ca, leaf, tmp_path)
    assert new_ca.subject.public_bytes() == ca.subject.public_bytes()


def test_what_cannot_be_read_is_not_renewed() -> None:
    ca = sample_authority()
    junk = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"junk")
    broken = odd_certificate((junk, False))
    with pytest.raises(PeerNotTrustedError, match="extensions cannot be read"):
        check_renewable(broken, ca)
    with pytest.raises(KeyFileError, match="cannot be copied"):
        renewed(broken)
    with pytest.raises(KeyFileError, match="cannot be copied"):
        renew_authority(
            broken, key=sample_key(), now=NOW, not_after=LATER, serial_number=1
        )
    elliptic = ec.generate_private_key(ec.SECP256R1()).public_key()
    other = odd_certificate(public_key=elliptic, issuer=ca.subject)
    assert not same_authority(other, other)
