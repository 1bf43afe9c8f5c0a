"""Which certificates prove an identity, and which check refuses the others."""

import json
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from hypothesis import assume, given
from hypothesis import strategies as st

from rpc25519_tools.errors import KeyFileError, PeerNotTrustedError
from rpc25519_tools.identity.certificate import (
    MAX_CERTIFICATE_BYTES,
    USAGES,
    PeerIdentity,
    Usage,
    check_dates,
    key_id,
    parse_certificate,
    peer_identity,
    verify_peer,
    verify_peer_certificate,
)
from rpc25519_tools.identity.printable import printable

from .samples import (
    DATA,
    NOW,
    YEAR,
    golden_certificate,
    odd_certificate,
    pem,
    sample_authority,
    sample_key,
    sample_leaf,
)

SECOND = timedelta(seconds=1)
NO_SIGNING = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=True,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
LOCALHOST = (x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)


def verify(
    leaf: x509.Certificate,
    ca: x509.Certificate | None = None,
    *,
    usage: Usage = "client",
    now: datetime = NOW,
    host_name: str | None = None,
) -> PeerIdentity:
    authority = sample_authority() if ca is None else ca
    return verify_peer_certificate(
        leaf, authority, usage=usage, now=now, host_name=host_name
    )


def extended(*oids: ObjectIdentifier) -> tuple[x509.ExtendedKeyUsage, bool]:
    return x509.ExtendedKeyUsage(oids), False


CASES = json.loads((DATA / "base58check.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["base58check"])
def test_key_id_equals_the_golden_text(case: dict[str, str]) -> None:
    assert key_id(bytes.fromhex(case["input_hex"])) == case["base58check"]


@pytest.mark.parametrize("name", ["client", "node", "second"])
@pytest.mark.parametrize("usage", USAGES)
def test_certificates_of_the_go_peer_are_accepted(name: str, usage: Usage) -> None:
    leaf, ca = golden_certificate(name), golden_certificate("ca")
    identity = verify(leaf, ca, usage=usage, host_name="localhost")
    assert identity.certificate_der == leaf.public_bytes(Encoding.DER)
    if name != "second":
        assert identity.emails == (f"{name}@example.org",)
    known = {case["input_hex"]: case["base58check"] for case in CASES}
    assert identity.key_id == known[identity.public_key.hex()]


def test_an_authority_of_the_same_name_is_not_ours() -> None:
    leaf, ca = golden_certificate("other-client"), golden_certificate("ca")
    with pytest.raises(PeerNotTrustedError, match="not signed by our certificate"):
        verify(leaf, ca)
    verify(leaf, golden_certificate("other-ca"))


@pytest.mark.parametrize("usage", USAGES)
def test_our_own_certificates_are_accepted(usage: Usage) -> None:
    identity = verify(sample_leaf(), usage=usage, host_name="localhost")
    assert identity.emails == ("ann@example.org",)
    assert str(identity) == f"ann@example.org ({identity.key_id})"


def test_identity_is_escaped_for_people() -> None:
    identity = PeerIdentity(
        public_key=bytes(32), emails=("a\x1b[2J\u202eb@c",), certificate_der=b""
    )
    assert str(identity).startswith("a\\x1b[2J\\u202eb@c (9Y")
    nobody = PeerIdentity(public_key=bytes(32), emails=(), certificate_der=b"")
    assert nobody.describe().startswith("no e-mail (")


def test_issuer_with_other_string_types_is_refused_as_go_does() -> None:
    ca = sample_authority()
    renamed = x509.Name(  # equal in meaning, but UTF8String where Go writes Printable
        x509.NameAttribute(attribute.oid, str(attribute.value))
        for attribute in ca.subject
    )
    assert renamed == ca.subject
    assert renamed.public_bytes() != ca.subject.public_bytes()
    with pytest.raises(PeerNotTrustedError, match="the issuer's name or"):
        verify(odd_certificate(LOCALHOST, issuer=renamed), ca)


def test_dates_are_checked_to_the_second() -> None:
    leaf, ca = sample_leaf(life=timedelta(days=1)), sample_authority()
    end = NOW + timedelta(days=1)
    for good in (NOW, NOW + SECOND, end, end + SECOND / 2):
        verify(leaf, ca, now=good)
    with pytest.raises(PeerNotTrustedError, match=r"refused: it expired on 2026-11-24"):
        verify(leaf, ca, now=end + SECOND)
    with pytest.raises(PeerNotTrustedError, match=r"authority.*not valid before 2026"):
        verify(leaf, ca, now=NOW - SECOND)
    late = sample_leaf(now=NOW + SECOND)
    with pytest.raises(PeerNotTrustedError, match="certificate refused: it is not val"):
        verify(late, ca, now=NOW)


def test_authority_must_be_in_date_and_an_authority() -> None:
    leaf = sample_leaf(life=3 * YEAR)
    with pytest.raises(PeerNotTrustedError, match="authority refused: it expired"):
        verify(leaf, now=NOW + 2 * YEAR)
    with pytest.raises(PeerNotTrustedError, match="not a certificate authority"):
        verify(sample_leaf(seed=2), sample_leaf())
    no_signing = odd_certificate(
        (x509.BasicConstraints(ca=True, path_length=None), True), (NO_SIGNING, True)
    )
    with pytest.raises(PeerNotTrustedError, match="does not allow issuing"):
        verify(leaf, no_signing)


@pytest.mark.parametrize(
    ("oids", "good_for"),
    [
        ((), {"client", "server"}),
        ((ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,), {"client", "server"}),
        ((ExtendedKeyUsageOID.CLIENT_AUTH,), {"client"}),
        ((ExtendedKeyUsageOID.SERVER_AUTH,), {"server"}),
        ((ExtendedKeyUsageOID.CODE_SIGNING,), set()),
    ],
)
@pytest.mark.parametrize("usage", USAGES)
def test_extended_key_usage(
    oids: tuple[ObjectIdentifier, ...], good_for: set[Usage], usage: Usage
) -> None:
    leaf = odd_certificate(LOCALHOST, *([extended(*oids)] if oids else []))
    if usage in good_for:
        verify(leaf, usage=usage)
    else:
        with pytest.raises(PeerNotTrustedError, match=f"not allow use as a {usage}"):
            verify(leaf, usage=usage)


def test_key_must_be_ed25519() -> None:
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    with pytest.raises(PeerNotTrustedError, match="EC, not Ed25519"):
        verify(odd_certificate(LOCALHOST, public_key=other))


def test_authority_with_another_key_type_cannot_be_checked_into_trust() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    leaf = odd_certificate(LOCALHOST, signer=other)
    with pytest.raises(PeerNotTrustedError, match="refused"):
        verify(leaf)


def test_key_usage_must_allow_signing_the_handshake() -> None:
    with pytest.raises(PeerNotTrustedError, match="does not allow signing"):
        verify(odd_certificate((NO_SIGNING, True)))
    # The authority's own certificate is no identity.
    with pytest.raises(PeerNotTrustedError, match="does not allow signing"):
        verify(sample_authority())


def test_unknown_critical_extension_is_refused() -> None:
    oid = ObjectIdentifier("1.2.3.4")
    unknown = x509.UnrecognizedExtension(oid, b"\x05\x00")
    verify(odd_certificate((unknown, False)))
    with pytest.raises(PeerNotTrustedError, match=r"critical extension 1\.2\.3\.4"):
        verify(odd_certificate((unknown, True)))


def test_unreadable_extension_is_refused_not_raised() -> None:
    rubbish = x509.UnrecognizedExtension(
        x509.SubjectAlternativeName.oid, b"\x30\x03\x81\x01\xff"
    )
    with pytest.raises(PeerNotTrustedError, match="extensions cannot be read"):
        verify(odd_certificate((rubbish, False)))


def test_unreadable_keys_and_dates_are_refused_not_raised() -> None:
    der = sample_leaf(life=100 * YEAR).public_bytes(Encoding.DER)
    # The second Ed25519 object identifier is the key's; 0x73 names no algorithm.
    at = der.index(bytes.fromhex("2b6570"), der.index(bytes.fromhex("2b6570")) + 1)
    odd_key = parse_certificate(der[: at + 2] + b"\x73" + der[at + 3 :])
    with pytest.raises(PeerNotTrustedError, match="public key cannot be read"):
        peer_identity(odd_key)
    year_zero = parse_certificate(der.replace(b"\x18\x0f2126", b"\x18\x0f0000"))
    with pytest.raises(PeerNotTrustedError, match="dates cannot be read"):
        check_dates(year_zero, now=NOW)


def der_sequence(content: bytes) -> bytes:
    """Wrap what is between 256 and 65535 bytes long."""
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content


def test_an_unreadable_issuer_is_refused_not_raised() -> None:
    """Its name has the same attribute twice in one set."""
    issuer = "3016 3114" + 2 * "3008 0603550403 130161"
    ca = sample_authority()
    before, _, after = sample_leaf().tbs_certificate_bytes.partition(
        ca.subject.public_bytes()
    )
    version_on = before[before.index(b"\xa0\x03") :]
    to_be_signed = der_sequence(version_on + bytes.fromhex(issuer) + after)
    signature = bytes.fromhex("300506032b6570 034100") + bytes(64)
    odd = parse_certificate(der_sequence(to_be_signed + signature))
    with pytest.raises(PeerNotTrustedError, match="was not issued by our"):
        verify_peer(odd, (ca,), usage="client", now=NOW, host_name=None)


@pytest.mark.parametrize(
    ("wanted", "good"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("files.example", True),
        ("a.wild.example", True),
        ("a.b.wild.example", False),
        ("127.0.0.1", True),
        ("::1", False),
        ("127.0.0.2", False),
        ("example.org", False),
        ("bad name\n", False),
        ("", False),
    ],
)
def test_host_name(wanted: str, good: bool) -> None:
    leaf = sample_leaf(
        extra_names=(x509.DNSName("files.example"), x509.DNSName("*.wild.example"))
    )
    if good:
        verify(leaf, usage="server", host_name=wanted)
    else:
        with pytest.raises(PeerNotTrustedError, match="names do not include") as info:
            verify(leaf, usage="server", host_name=wanted)
        assert str(info.value).isprintable()


def test_common_name_alone_is_no_host_name() -> None:
    leaf = odd_certificate()
    assert leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    with pytest.raises(PeerNotTrustedError, match="names do not include 'localhost'"):
        verify(leaf, usage="server", host_name="localhost")
    assert verify(leaf).emails == ()


def test_parse_reads_pem_and_der_and_the_first_of_a_bundle() -> None:
    leaf, ca = sample_leaf(), sample_authority()
    assert parse_certificate(pem(leaf)) == leaf
    assert parse_certificate(memoryview(leaf.public_bytes(Encoding.DER))) == leaf
    assert parse_certificate(b"text\n" + pem(leaf) + pem(ca)) == leaf


def test_parse_refuses_every_truncation() -> None:
    der = sample_leaf().public_bytes(Encoding.DER)
    for length in range(len(der)):
        with pytest.raises(KeyFileError):
            parse_certificate(der[:length])
    with pytest.raises(KeyFileError):
        parse_certificate(der + b"\x00")
    with pytest.raises(KeyFileError, match="more than"):
        parse_certificate(bytes(MAX_CERTIFICATE_BYTES + 1))
    with pytest.raises(KeyFileError, match="not a certificate"):
        parse_certificate((DATA / "client.key").read_bytes())


@given(st.data())
def test_any_damage_is_refused(data: st.DataObject) -> None:
    der = bytearray(sample_leaf().public_bytes(Encoding.DER))
    at = data.draw(st.integers(0, len(der) - 1))
    der[at] ^= data.draw(st.integers(1, 255))
    # The number of unused bits in the signature's last byte, which ends in a zero bit
    # here, is the only thing that no signature covers and that changes no meaning.
    unused_bits = len(der) - 64 - 1
    assume(at != unused_bits)
    with pytest.raises((KeyFileError, PeerNotTrustedError)):
        verify(parse_certificate(der), host_name="localhost")


def test_peer_identity_reads_without_judging() -> None:
    leaf = sample_leaf(seed=5)
    assert peer_identity(leaf).public_key == (
        sample_key(5).public_key().public_bytes_raw()
    )


@given(st.text())
def test_printable_text_is_one_safe_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert (shown == text) == text.isprintable()
