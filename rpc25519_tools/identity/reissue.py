"""Makes new certificates out of old ones: the same holder and key, a new life.

What a renewed certificate says about its holder is copied from the old one, whoever
made that: subject, usages, names and other extensions, in their order. New are the
serial number and the dates. The issuer's name is the authority's own, as encoded there
(SECURITY-WIRE 2.5: Go compares the bytes).

A renewed authority has the subject, the key and the key identifier of the old one, so
that the certificates it has issued stay valid under both. Its extended key usage is
left out: Go's selfy writes "any", for which OpenSSL refuses an authority.

Time and serial numbers are arguments. Nothing here reads or writes files.
"""

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from rpc25519_tools.errors import KeyFileError, PeerNotTrustedError
from rpc25519_tools.identity.authority import (
    alternative_names,
    authority_key_identifier,
    end_of_life,
    whole_seconds,
)
from rpc25519_tools.identity.certificate import (
    MALFORMED,
    check_issued_by,
    check_may_issue,
    raw_public_key,
)


def renewed_end(old: x509.Certificate, *, now: datetime, days: int | None) -> datetime:
    """Return the last second of the renewed certificate's life.

    Args:
        old: lives as long again, if `days` is None.
        now: an aware time: the beginning of the new life.
        days: another length of life.

    Raises:
        ConfigError: `days` is below 1, or X.509 cannot write the date (year 9999).
    """
    if days is not None:
        return end_of_life(now, days)
    life = old.not_valid_after_utc - old.not_valid_before_utc
    try:
        return whole_seconds(now) + max(life, timedelta(days=1))
    except OverflowError:
        return end_of_life(now, (datetime.max.replace(tzinfo=now.tzinfo) - now).days)


def check_renewable(
    old: x509.Certificate, ca: x509.Certificate, *, is_authority: bool = False
) -> None:
    """Check that `old` is a certificate that `ca` may renew; its dates do not matter.

    Args:
        old: the certificate.
        ca: the authority; the same as `old` for itself.
        is_authority: whether `old` has to be an authority, or must not be one.

    Raises:
        PeerNotTrustedError: another authority issued it, its key is not Ed25519, or it
            is an authority where none is wanted, or the other way round.
    """
    check_issued_by(old, ca)
    raw_public_key(old)
    if is_authority:
        check_may_issue(old)
        return
    try:
        constraints = old.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        return
    except MALFORMED as exc:
        raise PeerNotTrustedError("its extensions cannot be read") from exc
    if constraints.value.ca:
        raise PeerNotTrustedError("it is an authority itself")


def same_authority(one: x509.Certificate, other: x509.Certificate) -> bool:
    """Tell whether two authorities accept the same certificates: same name and key."""
    try:
        return one.subject == other.subject and (
            raw_public_key(one) == raw_public_key(other)
        )
    except (PeerNotTrustedError, *MALFORMED):
        return False


def renew_certificate(
    old: x509.Certificate,
    *,
    ca: x509.Certificate,
    ca_key: Ed25519PrivateKey,
    email: str | None = None,
    extra_names: Sequence[x509.GeneralName] | None = None,
    now: datetime,
    not_after: datetime,
    serial_number: int,
) -> x509.Certificate:
    """Make a certificate that follows `old`.

    Args:
        old: checked with `check_renewable`.
        ca: the authority, as loaded.
        ca_key: its key; the caller has checked that it belongs to `ca`.
        email: replaces the first e-mail; None keeps it.
        extra_names: replace all names but the standard ones (`alternative_names`);
            None keeps them.
        now: an aware time; the certificate is valid from its whole second on.
        not_after: the last second of its life; see `renewed_end`.
        serial_number: another one than `old` has.

    Raises:
        ConfigError: the e-mail cannot be written.
        KeyFileError: the old certificate has a field that cannot be read.
    """
    public_key = old.public_key()
    assert isinstance(public_key, Ed25519PublicKey)
    try:
        builder = _following(old, public_key, now, not_after, serial_number)
        builder = builder.issuer_name(ca.subject)
        named = False
        for extension in old.extensions:
            value: x509.ExtensionType = extension.value
            if isinstance(value, x509.AuthorityKeyIdentifier):
                value = authority_key_identifier(ca)
            elif isinstance(value, x509.SubjectAlternativeName):
                value, named = _renewed_names(value, email, extra_names), True
            builder = builder.add_extension(value, critical=extension.critical)
        if not named and (email is not None or extra_names is not None):
            names = alternative_names(email, extra_names or ())
            builder = builder.add_extension(names, critical=False)
        return builder.sign(ca_key, None)
    except MALFORMED as exc:
        raise KeyFileError("the certificate has a field that cannot be copied") from exc


def renew_authority(
    old: x509.Certificate,
    *,
    key: Ed25519PrivateKey,
    now: datetime,
    not_after: datetime,
    serial_number: int,
) -> x509.Certificate:
    """Make an authority's certificate that follows `old`.

    Args:
        old: checked with `check_renewable`.
        key: its key; the caller has checked that it belongs to `old`.
        now: as for `renew_certificate`, like the two below.
        not_after: its last second.
        serial_number: another one than `old` has.

    Raises:
        KeyFileError: the old certificate has a field that cannot be read.
    """
    try:
        builder = _following(old, key.public_key(), now, not_after, serial_number)
        builder = builder.issuer_name(old.subject)
        for extension in old.extensions:
            if not isinstance(extension.value, x509.ExtendedKeyUsage):
                builder = builder.add_extension(
                    extension.value, critical=extension.critical
                )
        return builder.sign(key, None)
    except MALFORMED as exc:
        raise KeyFileError("the authority has a field that cannot be copied") from exc


def _following(
    old: x509.Certificate,
    public_key: Ed25519PublicKey,
    now: datetime,
    not_after: datetime,
    serial_number: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .public_key(public_key)
        .serial_number(serial_number)
        .not_valid_before(whole_seconds(now))
        .not_valid_after(not_after)
    )


def _renewed_names(
    old: x509.SubjectAlternativeName,
    email: str | None,
    extra_names: Sequence[x509.GeneralName] | None,
) -> x509.SubjectAlternativeName:
    """Return the old names with what is to be replaced."""
    if email is None and extra_names is None:
        return old
    first_email = next(
        (name for name in old if isinstance(name, x509.RFC822Name)), None
    )
    if email is None and first_email is not None:
        email = first_email.value
    if extra_names is None:
        extra_names = [
            name for name in old if name != first_email and name not in _STANDARD
        ]
    return alternative_names(email, extra_names)


#: The standard names that are the same for everybody; see `alternative_names`.
_STANDARD = (
    x509.DNSName("localhost"),
    x509.IPAddress(ipaddress.IPv4Address("127.0.0.1")),
)
