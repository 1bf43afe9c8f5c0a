"""Mints the certificate authority and the certificates that it signs.

Fields and their order are those of the reference's ``selfy`` (SECURITY-WIRE 2.2
and 2.3), so that Go peers and their operators meet what they know. What differs,
and why:

- The authority carries no extended key usage. The reference writes "any", and
  OpenSSL (and so the standard ``ssl`` module, curl, nginx) refuses such an authority
  with error 26, "unsuitable certificate purpose". Without the extension every use is
  allowed, for Go as well.
- Serial numbers are random. The reference numbers every authority 1 and every
  certificate 2, which browsers and revocation lists treat as forgeries of each other.

Leaves have no basic constraints and no subject key identifier, like the reference's:
``openssl verify -x509_strict`` does not ask for them, and each byte counts, because
the reference's pre-shared-key tunnel cannot carry certificates above
`MAX_TUNNEL_CERTIFICATE_BYTES`.

Time and randomness are arguments. Nothing here reads or writes files.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from rpc25519_tools.errors import ConfigError
from rpc25519_tools.identity.certificate import USAGES, Usage
from rpc25519_tools.wire.handshake import MAX_CERTIFICATE_LEN

DEFAULT_DAYS = 36600  # as the reference: a little over a hundred years

# The sender of the reference's tunnel handshake panics above 914 bytes, of which 273
# are not the certificate (SECURITY-WIRE 7.2, vector handshake-encodings.json).
MAX_TUNNEL_CERTIFICATE_BYTES = MAX_CERTIFICATE_LEN

# 79 random bits: more than the 64 that the CA/Browser Forum's baseline requirements
# ask for, and 10 bytes less than the 20 octets that RFC 5280 allows; see above why
# bytes are dear.
SERIAL_OCTETS = 10

_DNS_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)", re.ASCII)

_USAGE_OID = {
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
}


def generate_key(random_bytes: Callable[[int], bytes]) -> Ed25519PrivateKey:
    """Make a private key of 32 fresh random bytes."""
    return Ed25519PrivateKey.from_private_bytes(random_bytes(32))


def random_serial_number(random_bytes: Callable[[int], bytes]) -> int:
    """Return a positive serial number of `SERIAL_OCTETS` octets."""
    number = int.from_bytes(random_bytes(SERIAL_OCTETS), "big")
    top_bit = 1 << (SERIAL_OCTETS * 8 - 1)  # the sign bit in DER: must be clear
    return (number & (top_bit - 1)) or 1


def check_email(text: str) -> str:
    """Return `text` if it can stand in a certificate as the e-mail entry.

    The reference takes any ASCII text, with spaces and commas too, as one entry.
    Control characters would let a certificate write lines of its own choosing into
    logs and known-keys files, so they are refused.

    Raises:
        ConfigError: empty, not ASCII, or with control characters.
    """
    if not text.strip():
        raise ConfigError("the e-mail must not be empty")
    if not text.isascii():
        raise ConfigError("the e-mail must be ASCII")
    if not text.isprintable():
        raise ConfigError("the e-mail must not contain control characters")
    return text


def parse_alternative_name(text: str) -> x509.GeneralName:
    """Read one more name for a certificate.

    ``host.example`` and ``*.example`` are DNS names, ``10.0.0.7`` and ``::1`` are IP
    addresses, ``a@b`` is an e-mail. A prefix ``DNS:``, ``IP:`` or ``email:`` (any case)
    settles what is meant.

    Raises:
        ConfigError: the text is none of these.
    """
    prefix, colon, rest = text.partition(":")
    kind = prefix.lower() if colon else ""
    if kind not in {"dns", "ip", "email"}:
        kind, rest = "", text
    if kind in {"", "ip"}:
        try:
            return x509.IPAddress(ipaddress.ip_address(rest))
        except ValueError as exc:
            if kind:
                raise ConfigError(f"not an IP address: {rest!r}") from exc
    if kind == "email" or (not kind and "@" in rest):
        return x509.RFC822Name(check_email(rest))
    labels = rest.removeprefix("*.").split(".")
    if len(rest) > 253 or not all(_DNS_LABEL.fullmatch(label) for label in labels):
        raise ConfigError(
            f"not a DNS name, IP address or e-mail: {rest!r} (write names outside "
            "ASCII in their xn-- form)"
        )
    return x509.DNSName(rest)


def end_of_life(now: datetime, days: int) -> datetime:
    """Return the last second of a certificate that lives `days` days from `now`.

    Raises:
        ConfigError: `days` is below 1, or X.509 cannot write the date (year 9999).
    """
    if days < 1:
        raise ConfigError(f"a certificate must live at least one day, not {days}")
    try:
        return whole_seconds(now) + timedelta(days=days)
    except OverflowError as exc:
        raise ConfigError(f"a life of {days} days ends after the year 9999") from exc


def is_notably_shorter(end: datetime, wanted: datetime) -> bool:
    """Tell whether a life ends so much before the wanted time that people should know.

    Seconds do not count: an authority with the standard life, made just before its
    certificates, ends just before them.
    """
    return wanted - end >= timedelta(days=1)


def mint_authority(
    key: Ed25519PrivateKey,
    *,
    now: datetime,
    not_after: datetime,
    serial_number: int,
) -> x509.Certificate:
    """Make a self-signed authority certificate.

    Args:
        key: the authority's key.
        now: an aware time; the certificate is valid from its whole second on.
        not_after: the last second of its life; see `end_of_life`.
        serial_number: positive, at most 20 octets; see `random_serial_number`.
    """
    public_key = key.public_key()
    name = _name("State", "City", "Organization", "Org Unit")
    return (
        _builder(public_key, now, not_after, serial_number)
        .subject_name(name)
        .issuer_name(name)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False
        )
        .sign(key, None)
    )


def mint_certificate(
    public_key: Ed25519PublicKey,
    *,
    ca: x509.Certificate,
    ca_key: Ed25519PrivateKey,
    email: str,
    extra_names: Sequence[x509.GeneralName] = (),
    now: datetime,
    not_after: datetime,
    serial_number: int,
    usages: Sequence[Usage] = USAGES,
) -> x509.Certificate:
    """Make a certificate for `public_key`, signed by the authority.

    Args:
        public_key: the holder's key.
        ca: the authority as loaded. Its subject object becomes the issuer name: Go
            compares both as raw bytes, and a rebuilt name may have other string types.
        ca_key: the authority's key; the caller has checked that it belongs to `ca`.
        email: who the holder is; one entry, see `check_email`.
        extra_names: added after the standard ones (DNS ``localhost``, the e-mail, IP
            127.0.0.1); those already present are left out.
        now: as for `mint_authority`.
        not_after: as for `mint_authority`.
        serial_number: as for `mint_authority`.
        usages: what the holder may be; the reference always allows both.

    Raises:
        ConfigError: the e-mail cannot be written.
    """
    return (
        _builder(public_key, now, not_after, serial_number)
        .subject_name(_name("New York", "New York", "MyOrg", "MyOrgUnit"))
        .issuer_name(ca.subject)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([_USAGE_OID[usage] for usage in usages]),
            critical=False,
        )
        .add_extension(authority_key_identifier(ca), critical=False)
        .add_extension(alternative_names(email, extra_names), critical=False)
        .sign(ca_key, None)
    )


def alternative_names(
    email: str | None, extra_names: Sequence[x509.GeneralName] = ()
) -> x509.SubjectAlternativeName:
    """Return the names of a certificate: the standard ones, then others, each once.

    The standard ones are DNS ``localhost``, the e-mail if there is one, IP 127.0.0.1.

    Raises:
        ConfigError: the e-mail cannot be written; see `check_email`.
    """
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    if email is not None:
        names.append(x509.RFC822Name(check_email(email)))
    names.append(x509.IPAddress(ipaddress.IPv4Address("127.0.0.1")))
    for name in extra_names:
        if name not in names:
            names.append(name)
    return x509.SubjectAlternativeName(names)


def tunnel_warning(certificate: x509.Certificate) -> str | None:
    """Say in one line that a certificate is too large for Go's tunnel, or None."""
    der_len = len(certificate.public_bytes(Encoding.DER))
    if der_len <= MAX_TUNNEL_CERTIFICATE_BYTES:
        return None
    return (
        f"the certificate has {der_len} bytes: Go peers die of more than "
        f"{MAX_TUNNEL_CERTIFICATE_BYTES} with a pre-shared key; a shorter e-mail or "
        "fewer names would help"
    )


def authority_key_identifier(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Return what a certificate of `ca` says about its issuer's key."""
    try:
        known = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        public_key = ca.public_key()
        assert isinstance(public_key, Ed25519PublicKey)
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known.value)


def _builder(
    public_key: Ed25519PublicKey,
    now: datetime,
    not_after: datetime,
    serial_number: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .public_key(public_key)
        .serial_number(serial_number)
        .not_valid_before(whole_seconds(now))
        .not_valid_after(not_after)
    )


def whole_seconds(time: datetime) -> datetime:
    """Return a time as a certificate can write it."""
    return time.replace(microsecond=0)


def _name(state: str, city: str, organization: str, unit: str) -> x509.Name:
    """Build a subject as the reference's: the same for everybody but for the place.

    PrintableString is what Go writes; the library's own choice is UTF8String for most
    attributes. Both are legal, but with the former our certificates equal the
    reference's byte for byte, which the golden tests use.
    """
    fields = (
        (NameOID.COUNTRY_NAME, "US"),
        (NameOID.STATE_OR_PROVINCE_NAME, state),
        (NameOID.LOCALITY_NAME, city),
        (NameOID.ORGANIZATION_NAME, organization),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
        (NameOID.COMMON_NAME, "localhost"),
    )
    return x509.Name(
        x509.NameAttribute(oid, text, _type=_ASN1Type.PrintableString)
        for oid, text in fields
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=not authority,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
