"""Identities that must be refused, one for each way to be wrong.

All of them are held against the authority of the tests: ``Minter`` has its key.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from rpc25519_tools.identity.authority import mint_authority, mint_certificate
from rpc25519_tools.identity.certificate import USAGES, Usage
from rpc25519_tools.identity.keyfile import decode_private_key
from rpc25519_tools.identity.store import load_authorities, load_certificate

PrivateKey: TypeAlias = (
    Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
)
NOW = datetime.now(UTC)
DAY = timedelta(days=1)
EMAIL = "client@example.org"


@dataclass(frozen=True, slots=True)
class Stranger:
    """What a peer shows, and the key it signs with.

    Attributes:
        chain: its certificate, and others that it sends along.
        key: what signs its handshake.
    """

    chain: Sequence[x509.Certificate]
    key: PrivateKey

    @property
    def ders(self) -> list[bytes]:
        return [one.public_bytes(Encoding.DER) for one in self.chain]


class Minter:
    """Makes strangers with the authority of a test in reach.

    Args:
        certs: of ``issue_certs``; its authority's key lies beside it.
        usage: what the strangers claim to be good for.
    """

    def __init__(self, certs: Path, usage: Usage) -> None:
        private = certs.parent / "my-keep-private-dir"
        self.ca = load_authorities(certs / "ca.crt")[0]
        self.ca_key = decode_private_key((private / "ca.key").read_bytes(), None)
        name = "client" if usage == "client" else "node"
        self.known = load_certificate(certs / f"{name}.crt")
        self.known_key = decode_private_key((certs / f"{name}.key").read_bytes(), None)
        self.usage: Usage = usage
        self.other: Usage = "server" if usage == "client" else "client"

    def leaf(
        self,
        key: Ed25519PrivateKey,
        *,
        ca: x509.Certificate | None = None,
        ca_key: Ed25519PrivateKey | None = None,
        begin: datetime = NOW - DAY,
        end: datetime = NOW + DAY,
        usages: Sequence[Usage] = USAGES,
    ) -> x509.Certificate:
        return mint_certificate(
            key.public_key(),
            ca=ca or self.ca,
            ca_key=ca_key or self.ca_key,
            email=EMAIL,
            now=begin,
            not_after=end,
            serial_number=77,
            usages=usages,
        )

    def genuine(self) -> Stranger:
        """No stranger: a fresh certificate that is in order, for comparison."""
        key = Ed25519PrivateKey.generate()
        return Stranger([self.leaf(key)], key)

    def of_another_authority(self) -> Stranger:
        key, ca_key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        ca = mint_authority(ca_key, now=NOW - DAY, not_after=NOW + DAY, serial_number=1)
        return Stranger([self.leaf(key, ca=ca, ca_key=ca_key), ca], key)

    def of_an_authority_with_our_name_and_key_id(self) -> Stranger:
        """All that can be copied is: names, serial number and key identifiers."""
        key, ca_key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        twin = copied(self.ca, public_key=ca_key.public_key()).sign(ca_key, None)
        assert twin.subject == self.ca.subject
        assert twin.extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        ) == self.ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        return Stranger([self.leaf(key, ca=twin, ca_key=ca_key), twin], key)

    def expired(self) -> Stranger:
        key = Ed25519PrivateKey.generate()
        return Stranger([self.leaf(key, begin=NOW - 3 * DAY, end=NOW - DAY)], key)

    def not_yet_valid(self) -> Stranger:
        key = Ed25519PrivateKey.generate()
        return Stranger([self.leaf(key, begin=NOW + DAY, end=NOW + 2 * DAY)], key)

    def for_the_other_role(self) -> Stranger:
        key = Ed25519PrivateKey.generate()
        return Stranger([self.leaf(key, usages=(self.other,))], key)

    def with_an_rsa_key(self) -> Stranger:
        rsa_key = rsa.generate_private_key(65537, 2048)
        base = copied(self.known, public_key=rsa_key.public_key())
        return Stranger([base.sign(self.ca_key, None)], rsa_key)

    def with_a_p256_key(self) -> Stranger:
        ec_key = ec.generate_private_key(ec.SECP256R1())
        base = copied(self.known, public_key=ec_key.public_key())
        return Stranger([base.sign(self.ca_key, None)], ec_key)

    def self_signed(self) -> Stranger:
        key = Ed25519PrivateKey.generate()
        base = copied(
            self.known, public_key=key.public_key(), issuer=self.known.subject
        )
        return Stranger([base.sign(key, None)], key)

    def self_signed_with_our_authoritys_name(self) -> Stranger:
        key = Ed25519PrivateKey.generate()
        base = copied(self.known, public_key=key.public_key())
        return Stranger([base.sign(key, None)], key)

    def of_an_intermediate(self) -> Stranger:
        """A certificate two steps below our authority, with the step between."""
        key, middle_key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        name = x509.Name.from_rfc4514_string("CN=intermediate")
        middle = copied(self.ca, public_key=middle_key.public_key(), subject=name).sign(
            self.ca_key, None
        )
        return Stranger([self.leaf(key, ca=middle, ca_key=middle_key), middle], key)

    def issued_by_a_user(self) -> Stranger:
        """A certificate that somebody with a certificate of ours has signed."""
        key = Ed25519PrivateKey.generate()
        leaf = self.leaf(key, ca=self.known, ca_key=self.known_key)
        return Stranger([leaf, self.known], key)

    def with_a_copied_signature(self) -> Stranger:
        """Our certificate with another key in it, under the old signature."""
        key = Ed25519PrivateKey.generate()
        old = self.known.public_bytes(Encoding.DER)
        known_key = self.known_key.public_key()
        assert old.count(known_key.public_bytes_raw()) == 1
        new = old.replace(
            known_key.public_bytes_raw(), key.public_key().public_bytes_raw()
        )
        return Stranger([x509.load_der_x509_certificate(new)], key)

    def with_a_negative_serial_number(self) -> Stranger:
        """A certificate that libraries warn about, signed by nobody."""
        key = Ed25519PrivateKey.generate()
        old = self.leaf(key).public_bytes(Encoding.DER)
        assert old.count(b"\xa0\x03\x02\x01\x02\x02\x01\x4d") == 1
        new = old.replace(b"\x02\x02\x01\x4d", b"\x02\x02\x01\xb3")
        with warnings.catch_warnings(action="ignore"):
            return Stranger([x509.load_der_x509_certificate(new)], key)

    def signed_with_p256(self) -> Stranger:
        """Our authority's name, signed by a key of another kind."""
        key = Ed25519PrivateKey.generate()
        base = copied(self.known, public_key=key.public_key())
        signed = base.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        return Stranger([signed], key)

    def the_authority_itself(self) -> Stranger:
        return Stranger([self.ca], self.ca_key)

    def with_another_name(self) -> Stranger:
        """In order, but not made out to ``localhost`` except in its common name."""
        names = x509.SubjectAlternativeName([x509.DNSName("elsewhere.example")])
        key = Ed25519PrivateKey.generate()
        base = copied(self.known, public_key=key.public_key(), names=names)
        return Stranger([base.sign(self.ca_key, None)], key)


Mint: TypeAlias = Callable[[Minter], Stranger]

#: What is wrong -> how it is made, and what is said of it on the side that refuses.
STRANGERS: dict[str, tuple[Mint, str]] = {
    "another authority": (
        Minter.of_another_authority,
        "its authority is not ours",
    ),
    "right name, wrong key": (
        Minter.of_an_authority_with_our_name_and_key_id,
        "it was not signed by our certificate authority",
    ),
    "expired": (Minter.expired, "it expired on"),
    "not yet valid": (Minter.not_yet_valid, "it is not valid before"),
    "wrong usage": (
        Minter.for_the_other_role,
        "its extended key usage does not allow use as a",
    ),
    "rsa key": (Minter.with_an_rsa_key, "its key is of type RSA, not Ed25519"),
    "p-256 key": (
        Minter.with_a_p256_key,
        "its key is of type EC, not Ed25519",
    ),
    "self-signed": (
        Minter.self_signed,
        "it was not issued by our certificate authority",
    ),
    "self-signed, authority's name": (
        Minter.self_signed_with_our_authoritys_name,
        "it was not signed by our certificate authority",
    ),
    "intermediate": (
        Minter.of_an_intermediate,
        "it was not issued by our certificate authority",
    ),
    "issued by a user": (
        Minter.issued_by_a_user,
        "it was not issued by our certificate authority",
    ),
    "copied signature": (
        Minter.with_a_copied_signature,
        "it was not signed by our certificate authority",
    ),
    "other signature algorithm": (
        Minter.signed_with_p256,
        "it was not issued by our certificate authority",
    ),
    "negative serial number": (
        Minter.with_a_negative_serial_number,
        "it was not signed by our certificate authority",
    ),
    "the authority itself": (
        Minter.the_authority_itself,
        "its key usage does not allow signing a handshake",
    ),
}

#: Only clients ask for a name.
NAMED = {
    "another name": (Minter.with_another_name, "its names do not include 'localhost'"),
}


def copied(
    certificate: x509.Certificate,
    *,
    public_key: Ed25519PublicKey | rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    subject: x509.Name | None = None,
    issuer: x509.Name | None = None,
    names: x509.SubjectAlternativeName | None = None,
) -> x509.CertificateBuilder:
    """Return what makes the same certificate with another key in it."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject or certificate.subject)
        .issuer_name(issuer or certificate.issuer)
        .public_key(public_key)
        .serial_number(certificate.serial_number)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
    )
    for one in certificate.extensions:
        value = one.value
        if isinstance(value, x509.SubjectAlternativeName) and names is not None:
            value = names
        if isinstance(value, x509.ExtendedKeyUsage):
            value = x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
            )
        builder = builder.add_extension(value, critical=one.critical)
    return builder
