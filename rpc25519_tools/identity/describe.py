"""Describes certificates and key files, for people and for programs.

Everything here is read from files that others may have written: the values of
`CertificateDetails` are raw, and `rows` are escaped and fit for a terminal.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from rpc25519_tools.errors import KeyFileError, PeerNotTrustedError
from rpc25519_tools.identity.certificate import (
    MALFORMED,
    USAGES,
    Usage,
    check_authority,
    check_issued_by,
    key_id,
    raw_public_key,
    verify_peer_certificate,
)
from rpc25519_tools.identity.keyfile import KeyFileInfo
from rpc25519_tools.identity.printable import printable

# What a known-keys file calls an identity (SECURITY-WIRE 4; rpc25519 hostkey.go).
IDENTITY_PREFIX = "pubkey@edwardsRPC-ed25519-b58c-"

Rows = list[tuple[str, str]]

_KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)

_EXTENDED_USAGES = {
    ExtendedKeyUsageOID.CLIENT_AUTH: "TLS client",
    ExtendedKeyUsageOID.SERVER_AUTH: "TLS server",
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE: "any",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateDetails:
    """The fields of a certificate, raw.

    Attributes:
        subject: as RFC 4514 writes it, most specific part first.
        issuer: likewise.
        serial_number: an integer of up to 20 octets.
        not_before: an aware time.
        not_after: an aware time; the last second of the certificate's life.
        is_authority: whether it may issue certificates.
        key_type: such as ``Ed25519``.
        public_key: the 32 raw bytes, or None if the key is not Ed25519.
        emails: from the subject alternative name, like the two below.
        dns_names: host names.
        ip_addresses: in text form.
        key_usage: words such as ``digital_signature``; empty if there is none.
        extended_key_usage: words, or dotted numbers; empty if there is none.
        signature_algorithm: a name or a dotted number.
        sha256: 32 bytes over the whole certificate.
        der_len: its size in bytes.
    """

    subject: str
    issuer: str
    serial_number: int
    not_before: datetime
    not_after: datetime
    is_authority: bool
    key_type: str
    public_key: bytes | None
    emails: tuple[str, ...]
    dns_names: tuple[str, ...]
    ip_addresses: tuple[str, ...]
    key_usage: tuple[str, ...]
    extended_key_usage: tuple[str, ...]
    signature_algorithm: str
    sha256: bytes
    der_len: int

    @property
    def key_id(self) -> str | None:
        """The base58check text of an Ed25519 key."""
        return None if self.public_key is None else key_id(self.public_key)

    @property
    def identity(self) -> str | None:
        """What the reference's known-keys files call the holder."""
        if self.public_key is None:
            return None
        return f"{IDENTITY_PREFIX}{self.key_id}:{','.join(self.emails)}"

    def status(self, now: datetime) -> str:
        """Return ``valid``, ``expired`` or ``not yet valid``."""
        if now < self.not_before:
            return "not yet valid"
        # As check_dates has it; nothing can be added to the last second of 9999, which
        # RFC 5280 (4.1.2.5) has certificates say that never expire.
        expired = now.replace(microsecond=0) > self.not_after
        return "expired" if expired else "valid"

    def days_left(self, now: datetime) -> int:
        """Return whole days until the end; negative once it has passed."""
        return (self.not_after - now) // timedelta(days=1)

    def as_json(self, now: datetime) -> dict[str, object]:
        """Return the fields as JSON has them: hex for bytes, ISO 8601 for times."""
        return {
            "kind": "authority" if self.is_authority else "certificate",
            "subject": self.subject,
            "issuer": self.issuer,
            "serial_number": f"{self.serial_number:x}",
            "not_before": self.not_before.isoformat(),
            "not_after": self.not_after.isoformat(),
            "status": self.status(now),
            "days_left": self.days_left(now),
            "key_type": self.key_type,
            "public_key_hex": self.public_key.hex() if self.public_key else None,
            "key_id": self.key_id,
            "identity": self.identity,
            "emails": list(self.emails),
            "dns_names": list(self.dns_names),
            "ip_addresses": list(self.ip_addresses),
            "key_usage": list(self.key_usage),
            "extended_key_usage": list(self.extended_key_usage),
            "signature_algorithm": self.signature_algorithm,
            "sha256": self.sha256.hex(),
            "der_bytes": self.der_len,
        }

    def rows(self, now: datetime) -> Rows:
        """Return labels and escaped values, for people."""
        days = self.days_left(now)
        left = f"{days} days left" if days >= 0 else f"{-days} days ago"
        if self.status(now) == "not yet valid":
            left = "not valid yet"
        public_key = self.public_key.hex() if self.public_key else "(not Ed25519)"
        rows = [
            ("Kind", "certificate authority" if self.is_authority else "certificate"),
            ("E-mail", ", ".join(self.emails) or "none"),
            ("Names", ", ".join((*self.dns_names, *self.ip_addresses)) or "none"),
            ("Subject", self.subject),
            ("Issuer", self.issuer),
            ("Serial number", f"{self.serial_number:x} (hex)"),
            ("Valid from", f"{self.not_before:%Y-%m-%d %H:%M:%S} UTC"),
            ("Valid until", f"{self.not_after:%Y-%m-%d %H:%M:%S} UTC"),
            ("Status", f"{self.status(now)}, {left}"),
            ("Key usage", ", ".join(self.key_usage).replace("_", " ") or "any"),
            ("Extended usage", ", ".join(self.extended_key_usage) or "any"),
            ("Signature", self.signature_algorithm),
            ("SHA-256", self.sha256.hex()),
            ("Key type", self.key_type),
            ("Public key, hex", public_key),
            ("Public key, base58", self.key_id or "(not Ed25519)"),
        ]
        return [(label, printable(value)) for label, value in rows]


def describe_certificate(certificate: x509.Certificate) -> CertificateDetails:
    """Take a certificate apart, without judging it.

    Raises:
        KeyFileError: one of its fields or extensions does not parse.
    """
    try:
        return _describe(certificate)
    except MALFORMED as exc:
        raise KeyFileError("the certificate has a field that cannot be read") from exc


def _describe(certificate: x509.Certificate) -> CertificateDetails:
    extensions = certificate.extensions
    names = x509.SubjectAlternativeName([])
    constraints = x509.BasicConstraints(ca=False, path_length=None)
    key_usage: tuple[str, ...] = ()
    extended: tuple[str, ...] = ()
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.SubjectAlternativeName):
            names = value
        elif isinstance(value, x509.BasicConstraints):
            constraints = value
        elif isinstance(value, x509.KeyUsage):
            key_usage = tuple(word for word in _KEY_USAGES if getattr(value, word))
        elif isinstance(value, x509.ExtendedKeyUsage):
            extended = tuple(
                _EXTENDED_USAGES.get(oid, oid.dotted_string) for oid in value
            )
    key = certificate.public_key()
    try:
        public_key = raw_public_key(certificate)
    except PeerNotTrustedError:
        public_key = None
    algorithm = certificate.signature_algorithm_oid
    return CertificateDetails(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        serial_number=certificate.serial_number,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        is_authority=constraints.ca,
        key_type=type(key).__name__.removesuffix("PublicKey").lstrip("_"),
        public_key=public_key,
        emails=tuple(names.get_values_for_type(x509.RFC822Name)),
        dns_names=tuple(names.get_values_for_type(x509.DNSName)),
        ip_addresses=tuple(map(str, names.get_values_for_type(x509.IPAddress))),
        key_usage=key_usage,
        extended_key_usage=extended,
        # The library's names live under a private attribute; one name is enough here.
        signature_algorithm="Ed25519"
        if algorithm == x509.SignatureAlgorithmOID.ED25519
        else algorithm.dotted_string,
        sha256=certificate.fingerprint(hashes.SHA256()),
        der_len=len(certificate.public_bytes(Encoding.DER)),
    )


def key_rows(info: KeyFileInfo) -> Rows:
    """Return labels and values about a key file, for people."""
    rows = [("Kind", "private key, " + ("protected" if info.protected else "plain"))]
    if info.kdf is not None:
        rows += [
            ("Cipher", f"{info.cipher}"),
            ("Key derivation", "Argon2id"),
            ("Memory", f"{info.kdf.memory_kib / 1024:g} MiB"),
            ("Passes", f"{info.kdf.iterations}"),
            ("Threads", f"{info.kdf.threads}"),
        ]
    if info.public_key is not None:
        rows += [
            ("Key type", "Ed25519"),
            ("Public key, hex", info.public_key.hex()),
            ("Public key, base58", key_id(info.public_key)),
        ]
    return rows


def key_json(info: KeyFileInfo) -> dict[str, object]:
    """Return what is known about a key file as JSON has it."""
    kdf: dict[str, object] | None = None
    if info.kdf is not None:
        kdf = {
            "name": "Argon2id",
            "memory_kib": info.kdf.memory_kib,
            "iterations": info.kdf.iterations,
            "threads": info.kdf.threads,
            "key_bytes": info.kdf.key_len,
        }
    known = info.public_key is not None
    return {
        "kind": "private key",
        "protected": info.protected,
        "cipher": info.cipher,
        "kdf": kdf,
        "key_type": "Ed25519" if known else None,
        "public_key_hex": info.public_key.hex() if info.public_key else None,
        "key_id": key_id(info.public_key) if info.public_key else None,
    }


def verify_for_any_use(
    certificate: x509.Certificate, ca: x509.Certificate, *, now: datetime
) -> dict[Usage, str | None]:
    """Check a certificate for each use it could have.

    As a server it must also carry the DNS name ``localhost``, which clients of this
    family of programs always ask for, whatever address they dial.

    Returns:
        For each use None, or why it is refused. At least one is None.

    Raises:
        PeerNotTrustedError: it can be used for nothing; the text says why.
    """
    verdicts: dict[Usage, str | None] = {}
    for usage in USAGES:
        host_name = "localhost" if usage == "server" else None
        verdicts[usage] = None
        try:
            verify_peer_certificate(
                certificate, ca, usage=usage, now=now, host_name=host_name
            )
        except PeerNotTrustedError as exc:
            verdicts[usage] = str(exc)
    reasons = [reason for reason in verdicts.values() if reason is not None]
    if len(reasons) == len(verdicts):
        raise PeerNotTrustedError("; ".join(dict.fromkeys(reasons)))
    return verdicts


def verify_authority(ca: x509.Certificate, *, now: datetime) -> None:
    """Check that `ca` is a sound authority: self-signed, an authority, in date.

    Raises:
        PeerNotTrustedError: the text says which check failed.
    """
    check_issued_by(ca, ca)
    check_authority(ca, now=now)
