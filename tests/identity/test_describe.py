"""What certificates and keys look like to people and programs."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from rpc25519_tools.errors import KeyFileError, PeerNotTrustedError
from rpc25519_tools.identity.describe import (
    describe_certificate,
    key_json,
    key_rows,
    verify_authority,
    verify_for_any_use,
)
from rpc25519_tools.identity.keyfile import describe_key_file

from .samples import (
    DATA,
    NOW,
    YEAR,
    golden_certificate,
    odd_certificate,
    sample_authority,
    sample_leaf,
)


@pytest.mark.parametrize("name", ["ca", "client"])
def test_identity_texts_are_those_of_the_references_view(name: str) -> None:
    golden = (DATA / f"selfy-view-{name}.txt").read_text()
    details = describe_certificate(golden_certificate(name))
    rows = dict(details.rows(NOW))
    for label in ("Public key, hex", "Public key, base58"):
        assert f" {rows[label]} (" in golden
    assert details.subject in golden
    assert details.issuer in golden
    assert f"Serial Number: {details.serial_number} " in golden
    assert (
        rows["Kind"] == {"ca": "certificate authority", "client": "certificate"}[name]
    )


def test_json_holds_every_field() -> None:
    fields = describe_certificate(golden_certificate("client")).as_json(NOW)
    assert json.loads(json.dumps(fields)) == fields
    assert fields["emails"] == ["client@example.org"]
    assert fields["identity"] == (
        "pubkey@edwardsRPC-ed25519-b58c-"
        "9ZWZYQmC262jcpxETnEhHmuUDs4TdSWz5PXmXRYjyJoACSF29qs:client@example.org"
    )
    assert fields["der_bytes"] == 526
    assert fields["extended_key_usage"] == ["TLS client", "TLS server"]
    assert fields["key_usage"] == ["digital_signature", "key_encipherment"]


@pytest.mark.parametrize(
    ("after", "status", "days", "shown"),
    [
        (timedelta(seconds=-1), "not yet valid", 365, "not valid yet"),
        (timedelta(0), "valid", 365, "valid, 365 days left"),
        (YEAR - timedelta(hours=1), "valid", 0, "valid, 0 days left"),
        (YEAR, "valid", 0, "valid, 0 days left"),
        (YEAR + timedelta(days=3), "expired", -3, "expired, 3 days ago"),
    ],
)
def test_validity(after: timedelta, status: str, days: int, shown: str) -> None:
    details = describe_certificate(sample_leaf())
    assert details.status(NOW + after) == status
    assert details.days_left(NOW + after) == days
    assert shown in dict(details.rows(NOW + after))["Status"]


def test_a_certificate_that_never_expires_is_shown() -> None:
    """RFC 5280 (4.1.2.5) has one day for that, the last that there is."""
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    details = describe_certificate(sample_leaf(life=last - NOW))
    assert details.status(NOW) == "valid"
    assert details.status(last.replace(microsecond=999_999)) == "valid"
    assert dict(details.rows(NOW))["Valid until"] == "9999-12-31 23:59:59 UTC"


def test_hostile_names_are_escaped_in_rows() -> None:
    leaf = odd_certificate(
        (x509.SubjectAlternativeName([x509.RFC822Name("a\x1bc\x01@b")]), False)
    )
    details = describe_certificate(leaf)
    assert details.emails == ("a\x1bc\x01@b",)
    assert dict(details.rows(NOW))["E-mail"] == "a\\x1bc\\x01@b"


def test_other_keys_and_usages_are_shown_too() -> None:
    leaf = odd_certificate(
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False),
        public_key=ec.generate_private_key(ec.SECP256R1()).public_key(),
        signer=ec.generate_private_key(ec.SECP256R1()),
    )
    details = describe_certificate(leaf)
    rows = dict(details.rows(NOW))
    assert rows["Key type"] == "EC"
    assert rows["Public key, hex"] == "(not Ed25519)"
    assert rows["Extended usage"] == "1.3.6.1.5.5.7.3.3"
    assert rows["Signature"] == "1.2.840.10045.4.3.2"
    assert details.identity is None
    assert details.as_json(NOW)["key_id"] is None


def test_unreadable_fields_are_told() -> None:
    rubbish = x509.UnrecognizedExtension(x509.KeyUsage.oid, b"\x30")
    with pytest.raises(KeyFileError, match="cannot be read"):
        describe_certificate(odd_certificate((rubbish, False)))


def test_key_files_are_described_for_people_and_programs() -> None:
    protected = describe_key_file((DATA / "client.encrypted.key").read_bytes())
    rows = dict(key_rows(protected))
    assert rows["Kind"] == "private key, protected"
    assert (rows["Memory"], rows["Passes"], rows["Threads"]) == ("256 MiB", "12", "1")
    assert key_json(protected)["kdf"] == {
        "name": "Argon2id",
        "memory_kib": 262144,
        "iterations": 12,
        "threads": 1,
        "key_bytes": 32,
    }
    assert key_json(protected)["key_id"] is None
    plain = describe_key_file((DATA / "client.key").read_bytes())
    wanted = describe_certificate(golden_certificate("client"))
    assert dict(key_rows(plain))["Public key, base58"] == wanted.key_id
    assert key_json(plain)["key_id"] == wanted.key_id
    assert key_json(plain)["kdf"] is None


def test_verdicts_name_each_use() -> None:
    ca = sample_authority()
    assert verify_for_any_use(sample_leaf(), ca, now=NOW) == {
        "client": None,
        "server": None,
    }
    verdicts = verify_for_any_use(sample_leaf(usages=("client",)), ca, now=NOW)
    assert verdicts["client"] is None
    assert "does not allow use as a server" in str(verdicts["server"])
    nameless = verify_for_any_use(odd_certificate(), ca, now=NOW)
    assert "names do not include 'localhost'" in str(nameless["server"])
    with pytest.raises(
        PeerNotTrustedError, match=r"^certificate refused: it expired [^;]*$"
    ):
        verify_for_any_use(sample_leaf(life=YEAR / 2), ca, now=NOW + 0.8 * YEAR)


def test_an_authority_must_have_signed_itself() -> None:
    verify_authority(sample_authority(), now=NOW)
    verify_authority(golden_certificate("ca"), now=NOW)
    with pytest.raises(PeerNotTrustedError, match="expired"):
        verify_authority(sample_authority(), now=NOW + 2 * YEAR)
    with pytest.raises(PeerNotTrustedError):
        verify_authority(sample_leaf(), now=NOW)
