"""Reads certificates and decides whether one proves a peer's identity.

The whole trust model is two certificates deep: one authority, and leaves that it
signed directly. TLS libraries cannot be left to judge it alone: OpenSSL refuses the
reference's authority (its extended key usage is "any" only), aioquic does not check
usages, and the pre-shared-key tunnel has no TLS library at all. So every transport
asks `verify_peer_certificate`, and all of them refuse the same things for the same
reasons. The checks are those of Go's crypto/x509 as far as they concern such a
chain, plus the key type that rpc25519 demands (v1.6.8, hostkey.go).

Certificates arrive from strangers: whatever a certificate contains, the functions
here either return or raise `PeerNotTrustedError` (`KeyFileError` where it is not
a certificate at all), nothing else.
"""

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Literal, TypeVar

import base58
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from rpc25519_tools.errors import KeyFileError, PeerNotTrustedError
from rpc25519_tools.identity.printable import printable

_ExtensionT = TypeVar("_ExtensionT", bound=x509.ExtensionType)

Usage = Literal["client", "server"]

USAGES: tuple[Usage, ...] = ("client", "server")

# A selfy certificate has about 530 bytes; ten times the largest that anyone has seen
# still leaves room, and a bound keeps a wrong path from reading a film into memory.
MAX_CERTIFICATE_BYTES = 256 * 1024
MAX_AUTHORITIES = 100

_KEY_ID_VERSION = b"\xff"  # version byte 255; SECURITY-WIRE 4, vector base58check.json

_USAGE_OID = {
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
}

# What we understand of an extension marked critical. Go and RFC 5280 section 4.2
# both refuse a certificate with a critical extension that the reader does not handle.
_UNDERSTOOD = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
}

# What `cryptography` raises, lazily, for fields and extensions that do not parse; it
# warns about some oddities, and programs may have made warnings errors.
MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    x509.InvalidVersion,
    Warning,
)


@lru_cache(maxsize=4096)  # slow, and asked for each connection again and again
def key_id(public_key: bytes) -> str:
    """Return the base58check text of a raw public key.

    Args:
        public_key: the 32 raw Ed25519 bytes; the text then has 51 characters.

    Source: rpc25519 v1.6.8 hostkey.go; vector ``base58check.json``.
    """
    return base58.b58encode_check(_KEY_ID_VERSION + public_key).decode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerIdentity:
    """Who a verified certificate says its holder is.

    Attributes:
        public_key: the 32 raw bytes of the Ed25519 key; this is the identity.
        emails: the e-mail entries of the subject alternative name, in order, as
            written: **unescaped**; use `describe` for anything shown to people.
        certificate_der: the whole certificate.
    """

    public_key: bytes
    emails: tuple[str, ...]
    certificate_der: bytes

    @property
    def key_id(self) -> str:
        """The public key as 51 characters of base58check."""
        return key_id(self.public_key)

    def describe(self) -> str:
        """Return ``e-mails (key id)``, escaped, for people and logs."""
        names = ", ".join(printable(email) for email in self.emails)
        return f"{names or 'no e-mail'} ({self.key_id})"

    def __str__(self) -> str:
        return self.describe()


def parse_certificate(pem_or_der: bytes | bytearray | memoryview) -> x509.Certificate:
    """Read one X.509 certificate; of a PEM bundle, the first.

    Raises:
        KeyFileError: the bytes are not a certificate, or absurdly many.
    """
    data = bytes(pem_or_der)
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise KeyFileError(
            f"not a certificate: more than {MAX_CERTIFICATE_BYTES} bytes"
        )
    try:
        if b"-----BEGIN " in data:
            return x509.load_pem_x509_certificate(data)
        return x509.load_der_x509_certificate(data)
    except MALFORMED as exc:
        raise KeyFileError("not a certificate (neither PEM nor DER)") from exc


def parse_certificates(pem_or_der: bytes) -> tuple[x509.Certificate, ...]:
    """Read all certificates of a PEM bundle, or a single one in DER; at least one.

    Raises:
        KeyFileError: the bytes are anything else, or hold too many certificates.
    """
    first = parse_certificate(pem_or_der)
    if b"-----BEGIN " not in pem_or_der:
        return (first,)
    try:
        found = tuple(x509.load_pem_x509_certificates(pem_or_der))
    except MALFORMED as exc:
        raise KeyFileError("not a list of certificates in PEM") from exc
    if len(found) > MAX_AUTHORITIES:
        raise KeyFileError(f"not usable: more than {MAX_AUTHORITIES} certificates")
    return found


def issuer_among(
    leaf: x509.Certificate, authorities: Sequence[x509.Certificate]
) -> x509.Certificate:
    """Return the authority that signed ``leaf``.

    Raises:
        PeerNotTrustedError: none of them did; the text is about the first one whose
            name is right, or else about the first one.
    """
    errors = []
    for authority in authorities:
        try:
            check_issued_by(leaf, authority)
        except PeerNotTrustedError as exc:
            errors.append((not _names_issuer(leaf, authority), exc))
        else:
            return authority
    _, error = min(errors, key=lambda error: error[0])
    raise PeerNotTrustedError(f"{error}; ours is in ca.crt") from error


def _names_issuer(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        return leaf.issuer == authority.subject
    except MALFORMED:  # a name that cannot be read is nobody's
        return False


def verify_peer(
    leaf: x509.Certificate,
    authorities: Sequence[x509.Certificate],
    *,
    usage: Usage,
    now: datetime,
    host_name: str | None,
) -> PeerIdentity:
    """Check `leaf` against whichever of our authorities signed it.

    Raises:
        PeerNotTrustedError: as `verify_peer_certificate`, or nobody of ours signed it.
    """
    try:
        issuer = issuer_among(leaf, authorities)
    except PeerNotTrustedError as exc:
        raise PeerNotTrustedError(f"certificate refused: {exc}") from exc
    return verify_peer_certificate(
        leaf, issuer, usage=usage, now=now, host_name=host_name
    )


def raw_public_key(certificate: x509.Certificate) -> bytes:
    """Return the 32 raw key bytes.

    Raises:
        PeerNotTrustedError: the key is of another kind than Ed25519.
    """
    try:
        key = certificate.public_key()
    except MALFORMED as exc:
        raise PeerNotTrustedError("its public key cannot be read") from exc
    if not isinstance(key, Ed25519PublicKey):
        kind = type(key).__name__.removesuffix("PublicKey").lstrip("_")
        raise PeerNotTrustedError(f"its key is of type {kind}, not Ed25519")
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def peer_identity(certificate: x509.Certificate) -> PeerIdentity:
    """Read the identity out of a certificate, **without verifying anything**.

    Raises:
        PeerNotTrustedError: the key is not Ed25519, or the names do not parse.
    """
    names = _alternative_names(certificate)
    emails = names.get_values_for_type(x509.RFC822Name) if names is not None else []
    return PeerIdentity(
        public_key=raw_public_key(certificate),
        emails=tuple(emails),
        certificate_der=certificate.public_bytes(Encoding.DER),
    )


def verify_peer_certificate(
    leaf: x509.Certificate,
    ca: x509.Certificate,
    *,
    usage: Usage,
    now: datetime,
    host_name: str | None,
) -> PeerIdentity:
    """Check that `leaf` was issued by `ca`, is good now and for this use.

    Args:
        leaf: the certificate that the peer proved possession of.
        ca: the one authority we trust (``ca.crt``).
        usage: the use the peer makes of it: ``"server"`` when we are the client
            (and, on both sides, inside the pre-shared-key tunnel: SECURITY-WIRE 7.2).
        now: an aware time.
        host_name: the DNS name (or IP address) that must stand in the subject
            alternative name; None skips that check, as servers do.

    Raises:
        PeerNotTrustedError: one line that says which check failed.
    """
    try:
        check_authority(ca, now=now)
    except PeerNotTrustedError as exc:
        raise PeerNotTrustedError(f"certificate authority refused: {exc}") from exc
    try:
        check_issued_by(leaf, ca)
        check_dates(leaf, now=now)
        check_critical_extensions(leaf)
        check_usage(leaf, usage)
        check_usage(ca, usage)
        check_signing_allowed(leaf)
        identity = peer_identity(leaf)
        if host_name is not None:
            check_host_name(leaf, host_name)
    except PeerNotTrustedError as exc:
        raise PeerNotTrustedError(f"certificate refused: {exc}") from exc
    return identity


def check_authority(ca: x509.Certificate, *, now: datetime) -> None:
    """Check that `ca` may issue certificates, and may do so now."""
    check_may_issue(ca)
    check_dates(ca, now=now)


def is_authority(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate says that it is one of an authority.

    Raises:
        PeerNotTrustedError: its extensions cannot be read.
    """
    constraints = _extension(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def check_may_issue(ca: x509.Certificate) -> None:
    """Check that `ca` is made to issue certificates."""
    if not is_authority(ca):
        raise PeerNotTrustedError("it is not a certificate authority")
    key_usage = _extension(ca, x509.KeyUsage)
    if key_usage is not None and not key_usage.key_cert_sign:
        raise PeerNotTrustedError("its key usage does not allow issuing certificates")
    check_critical_extensions(ca)


def check_issued_by(leaf: x509.Certificate, ca: x509.Certificate) -> None:
    """Check issuer name and signature.

    The library compares the names as they are encoded, as Go does: a name that only
    means the same, with other string types, would be refused by a Go peer. Names are
    not looked at in any other way before the signature is found good: what a stranger
    put into them is not worth reading.
    """
    try:
        leaf.verify_directly_issued_by(ca)
    except InvalidSignature as exc:
        raise PeerNotTrustedError(
            "it was not signed by our certificate authority (the issuer's name is "
            "right, the signature is not)"
        ) from exc
    except MALFORMED as exc:
        raise PeerNotTrustedError(
            "it was not issued by our certificate authority (the issuer's name or the "
            "signature algorithm differs)"
        ) from exc


def check_dates(certificate: x509.Certificate, *, now: datetime) -> None:
    """Check that `now` lies within the certificate's life, both ends included."""
    try:
        begin = certificate.not_valid_before_utc
        end = certificate.not_valid_after_utc
    except MALFORMED as exc:
        raise PeerNotTrustedError("its dates cannot be read") from exc
    if now < begin:
        raise PeerNotTrustedError(
            f"it is not valid before {begin:%Y-%m-%d %H:%M:%S} UTC"
        )
    # Dates have whole seconds; the last second belongs to the life.
    if now.replace(microsecond=0) > end:
        raise PeerNotTrustedError(f"it expired on {end:%Y-%m-%d %H:%M:%S} UTC")


def check_usage(certificate: x509.Certificate, usage: Usage) -> None:
    """Check the extended key usage: absent, "any", or the one that is asked for."""
    allowed = _extension(certificate, x509.ExtendedKeyUsage)
    if allowed is None:
        return
    oids = set(allowed)
    if not oids & {_USAGE_OID[usage], ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}:
        raise PeerNotTrustedError(
            f"its extended key usage does not allow use as a {usage}"
        )


def check_signing_allowed(certificate: x509.Certificate) -> None:
    """Check the key usage: absent, or with digital signature (RFC 8446, 4.4.2.2)."""
    key_usage = _extension(certificate, x509.KeyUsage)
    if key_usage is not None and not key_usage.digital_signature:
        raise PeerNotTrustedError("its key usage does not allow signing a handshake")


def check_critical_extensions(certificate: x509.Certificate) -> None:
    """Refuse critical extensions that nothing here would honour."""
    for extension in _extensions(certificate):
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise PeerNotTrustedError(
                f"it has an unknown critical extension {extension.oid.dotted_string}"
            )


def check_host_name(certificate: x509.Certificate, host_name: str) -> None:
    """Check that the subject alternative name holds this DNS name or IP address."""
    # Only clients come here; service-identity doubles the import time of the rest.
    from service_identity import (  # noqa: PLC0415  (see above)
        CertificateError,
        VerificationError,
    )
    from service_identity.cryptography import (  # noqa: PLC0415  (see above)
        verify_certificate_hostname,
        verify_certificate_ip_address,
    )

    check: Callable[[x509.Certificate, str], None]
    try:
        ipaddress.ip_address(host_name)
        check = verify_certificate_ip_address
    except ValueError:
        check = verify_certificate_hostname
    try:
        check(certificate, host_name)
    except (VerificationError, CertificateError, *MALFORMED) as exc:
        raise PeerNotTrustedError(
            f"its names do not include '{printable(host_name)}'"
        ) from exc


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    try:
        return certificate.extensions
    except MALFORMED as exc:
        raise PeerNotTrustedError("its extensions cannot be read") from exc


def _extension(
    certificate: x509.Certificate, kind: type[_ExtensionT]
) -> _ExtensionT | None:
    try:
        return _extensions(certificate).get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _alternative_names(
    certificate: x509.Certificate,
) -> x509.SubjectAlternativeName | None:
    return _extension(certificate, x509.SubjectAlternativeName)
