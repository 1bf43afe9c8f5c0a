"""Fuzz targets: certificates, as strangers send them and as files, and key files."""

import base64
import contextlib
from collections.abc import Callable
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from rpc25519_tools.errors import KeyFileError, PeerNotTrustedError, SecurityError
from rpc25519_tools.identity.certificate import (
    USAGES,
    check_host_name,
    parse_certificate,
    parse_certificates,
    peer_identity,
    verify_peer,
)
from rpc25519_tools.identity.describe import (
    describe_certificate,
    key_json,
    key_rows,
    verify_for_any_use,
)
from rpc25519_tools.identity.keyfile import (
    KdfParameters,
    KeyFileInfo,
    decode_private_key,
    describe_key_file,
    encode_private_key,
)
from tests.fuzz.grammars import DER, STRICT_DER
from tests.fuzz.mutators import TEXT
from tests.fuzz.target import Target
from tests.identity.samples import (
    DATA,
    NOW,
    TINY_KDF,
    counted_bytes,
    golden_certificate,
    sample_authority,
    sample_key,
    sample_leaf,
)

#: What deriving a key may cost here, in KiB of memory and passes together.
_WORK_KIB = 256
_NAMES = ("ca", "client", "node", "second", "other-ca", "other-client")
_PHRASE = b"a pass phrase"

_CA = sample_authority(life=timedelta(days=3650))
_CA_KEY = sample_key(100)


def look_at(certificate: x509.Certificate) -> None:
    """Do everything that programs do with a stranger's certificate.

    Raises:
        SecurityError: it is trusted by nobody, which is what nearly all end in.
    """
    with contextlib.suppress(KeyFileError):
        details = describe_certificate(certificate)
        assert all(value.isprintable() for _, value in details.rows(NOW))
        details.as_json(NOW)
    with contextlib.suppress(PeerNotTrustedError):
        # Its text goes to logs.
        assert peer_identity(certificate).describe().isprintable()
    with contextlib.suppress(PeerNotTrustedError):
        check_host_name(certificate, "localhost")
    with contextlib.suppress(PeerNotTrustedError):
        verify_for_any_use(certificate, certificate, now=NOW)
    refusals: list[PeerNotTrustedError] = []
    for usage in USAGES:
        host_name = "localhost" if usage == "server" else None
        try:
            peer = verify_peer(
                certificate, (_CA,), usage=usage, now=NOW, host_name=host_name
            )
        except PeerNotTrustedError as exc:
            refusals.append(exc)
        else:
            assert len(peer.public_key) == 32
    assert all(str(refusal).isprintable() for refusal in refusals)
    if len(refusals) == len(USAGES):
        raise refusals[0]


def run_certificate(data: bytes) -> None:
    look_at(parse_certificate(data))


def run_signed(data: bytes) -> None:
    """Sign anything as our authority would: what is inside must be judged itself."""
    algorithm = bytes.fromhex("300506032b6570")
    signature = b"\x03\x41\x00" + _CA_KEY.sign(data)
    content = data + algorithm + signature
    head = b"\x30\x82" + len(content).to_bytes(2, "big")
    look_at(parse_certificate(head + content))


def run_bundle(data: bytes) -> None:
    for certificate in parse_certificates(data):
        with contextlib.suppress(SecurityError):
            look_at(certificate)


def run_key_file(data: bytes) -> None:
    """Read a key file, as long as it asks for little work; the limits are ours all."""
    info = describe_key_file(data)
    key_rows(info)
    key_json(info)
    if _cost_kib(info) <= _WORK_KIB:
        decode_private_key(data, lambda: _PHRASE)


def _cost_kib(info: KeyFileInfo) -> int:
    return info.kdf.memory_kib * info.kdf.iterations if info.kdf else 0


def run_pkcs8(data: bytes) -> None:
    """Read DER as the inside of a plain key file."""
    text = base64.encodebytes(data)
    run_key_file(
        b"-----BEGIN PRIVATE KEY-----\n" + text + b"-----END PRIVATE KEY-----\n"
    )


# Seeds


def _certificates() -> list[bytes]:
    golden = [golden_certificate(name) for name in _NAMES]
    ours = [_CA, *(sample_leaf(ca=_CA, usages=(usage,)) for usage in USAGES)]
    return [
        one.public_bytes(Encoding.DER) for one in (*golden, *ours, sample_leaf(ca=_CA))
    ]


def _to_be_signed() -> list[bytes]:
    names = (x509.DNSName("host.example"), x509.RFC822Name("b@c"))
    leaves = (sample_leaf(ca=_CA), sample_leaf(ca=_CA, extra_names=names))
    return [leaf.tbs_certificate_bytes for leaf in leaves]


def _bundles() -> list[bytes]:
    files = [(DATA / f"{name}.crt").read_bytes() for name in _NAMES]
    return [*files, files[0] + files[4], b"# a comment\n" + files[0]]


def _key_files() -> list[bytes]:
    kdfs = (TINY_KDF, KdfParameters(memory_kib=16, iterations=2, threads=2, key_len=16))
    made = [
        encode_private_key(sample_key(), _PHRASE, random_bytes=counted_bytes(), kdf=kdf)
        for kdf in kdfs
    ]
    names = ("client.key", "client.encrypted.key")
    return [*made, *made, *((DATA / name).read_bytes() for name in names)]


def _pkcs8() -> list[bytes]:
    lines = (DATA / "client.key").read_bytes().splitlines()
    return [base64.b64decode(b"".join(lines[1:-1]))]


def _target(
    name: str,
    run: Callable[[bytes], None],
    seeds: Callable[[], list[bytes]],
    **more: object,
) -> Target:
    settings = {"allowed": (PeerNotTrustedError, KeyFileError), **more}
    return Target(name=name, run=run, seeds=seeds, **settings)  # type: ignore[arg-type]


TARGETS = (
    _target("certificate", run_certificate, _certificates, mutators=DER),
    _target(
        "signed-certificate",
        run_signed,
        _to_be_signed,
        mutators=STRICT_DER,
        max_len=60_000,
    ),
    _target("bundle", run_bundle, _bundles, mutators=TEXT),
    _target("key-file", run_key_file, _key_files, mutators=TEXT),
    _target("pkcs8", run_pkcs8, _pkcs8, mutators=DER),
)
