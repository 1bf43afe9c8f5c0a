"""Certificates and keys for the tests of this folder and of the commands."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from rpc25519_tools.identity.authority import mint_authority, mint_certificate
from rpc25519_tools.identity.certificate import USAGES, Usage, parse_certificate
from rpc25519_tools.identity.keyfile import KdfParameters, decode_private_key

DATA = Path(__file__).parent.parent / "data" / "identity"

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
YEAR = timedelta(days=365)

# The least that Argon2 allows: some microseconds.
TINY_KDF = KdfParameters(memory_kib=8, iterations=1, threads=1, key_len=32)


def golden_certificate(name: str) -> x509.Certificate:
    return parse_certificate((DATA / f"{name}.crt").read_bytes())


def golden_key(name: str) -> Ed25519PrivateKey:
    return decode_private_key((DATA / f"{name}.key").read_bytes(), None)


def counted_bytes(seed: bytes = b"") -> Callable[[int], bytes]:
    """A random source that repeats itself from run to run."""
    calls = 0

    def random_bytes(count: int) -> bytes:
        nonlocal calls
        calls += 1
        return hashlib.shake_256(seed + bytes([calls])).digest(count)

    return random_bytes


def sample_key(seed: int = 1) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def sample_authority(
    *, seed: int = 100, now: datetime = NOW, life: timedelta = YEAR
) -> x509.Certificate:
    return mint_authority(
        sample_key(seed), now=now, not_after=now + life, serial_number=7
    )


def sample_leaf(
    *,
    seed: int = 1,
    ca: x509.Certificate | None = None,
    ca_seed: int = 100,
    email: str = "ann@example.org",
    now: datetime = NOW,
    life: timedelta = YEAR,
    usages: tuple[Usage, ...] = USAGES,
    extra_names: tuple[x509.GeneralName, ...] = (),
) -> x509.Certificate:
    return mint_certificate(
        sample_key(seed).public_key(),
        ca=sample_authority() if ca is None else ca,
        ca_key=sample_key(ca_seed),
        email=email,
        now=now,
        not_after=now + life,
        serial_number=8,
        usages=usages,
        extra_names=extra_names,
    )


def odd_certificate(
    *extensions: tuple[x509.ExtensionType, bool],
    public_key: Ed25519PublicKey | ec.EllipticCurvePublicKey | None = None,
    issuer: x509.Name | None = None,
    signer: Ed25519PrivateKey | ec.EllipticCurvePrivateKey | None = None,
    now: datetime = NOW,
    life: timedelta = YEAR,
) -> x509.Certificate:
    """A certificate with exactly these (extension, critical) and no others."""
    authority = sample_authority()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(authority.subject if issuer is None else issuer)
        .public_key(sample_key().public_key() if public_key is None else public_key)
        .serial_number(9)
        .not_valid_before(now)
        .not_valid_after(now + life)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    key = sample_key(100) if signer is None else signer
    algorithm = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm)


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
