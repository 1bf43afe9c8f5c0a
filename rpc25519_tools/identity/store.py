"""Loads identities from disk, with every check.

A directory of identities holds ``ca.crt`` and, for each name, ``NAME.crt`` and
``NAME.key``. Loading refuses, with one line that says what to do, whatever would only
fail later and less clearly: a key that is not the certificate's, a certificate of
another authority, one that has expired. `outputs` writes.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rpc25519_tools.errors import (
    KeyFileError,
    KeyNameError,
    PassphraseError,
    PeerNotTrustedError,
)
from rpc25519_tools.identity.certificate import (
    MAX_CERTIFICATE_BYTES,
    check_authority,
    check_dates,
    check_may_issue,
    issuer_among,
    parse_certificate,
    parse_certificates,
    raw_public_key,
)
from rpc25519_tools.identity.keyfile import (
    MAX_KEY_FILE_BYTES,
    decode_private_key,
    describe_key_file,
    raw_public_key_of,
)
from rpc25519_tools.identity.outputs import reason_of
from rpc25519_tools.identity.printable import printable

CA_NAME = "ca"

_MAX_NAME_BYTES = 200  # leaves room for suffixes below the 255 of most file systems


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedIdentity:
    """A checked certificate with its private key, and the authorities we trust.

    Attributes:
        name: the identity's name, such as ``client``.
        certificate: our own certificate.
        private_key: its key.
        ca: the authority that signed it.
        other_authorities: what else stands in ``ca.crt``; trusted just as much.
    """

    name: str
    certificate: x509.Certificate
    private_key: Ed25519PrivateKey
    ca: x509.Certificate
    other_authorities: tuple[x509.Certificate, ...] = ()

    @property
    def authorities(self) -> tuple[x509.Certificate, ...]:
        """All authorities whose certificates we accept."""
        return (self.ca, *self.other_authorities)


def check_name(name: str) -> str:
    """Return `name` if it is a plain file name that stays in its directory.

    Raises:
        KeyNameError: it is empty, too long, begins with ``.`` or ``-``, or contains
            a slash, a backslash or a control character.
    """
    shown = printable(name[:80])
    if not name:
        raise KeyNameError("a name must not be empty")
    if name[0] in ".-":
        raise KeyNameError(f"a name must not begin with {name[0]!r}: '{shown}'")
    if "/" in name or "\\" in name or not name.isprintable():
        raise KeyNameError(
            f"a name is one plain file name, without '/' and control characters: "
            f"'{shown}' (choose the directory with its own option)"
        )
    if len(name.encode("utf-8", "surrogateescape")) > _MAX_NAME_BYTES:
        raise KeyNameError(f"a name has at most {_MAX_NAME_BYTES} bytes: '{shown}'")
    return name


def read_bounded(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        KeyFileError: it is missing, not readable, not a regular file, or too long.
    """
    shown = printable(os.fspath(path))
    try:
        # O_NONBLOCK: a FIFO in the file's place must not hang the program.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise KeyFileError(f"{shown} is not a regular file")
            content = file.read(limit + 1)
    except (OSError, ValueError) as exc:
        raise KeyFileError(f"cannot read {shown}: {reason_of(exc)}") from exc
    if len(content) > limit:
        raise KeyFileError(f"{shown} is too long to be a key or certificate")
    return content


def load_certificate(path: str | os.PathLike[str]) -> x509.Certificate:
    """Read a certificate file.

    Raises:
        KeyFileError: with the path in its text.
    """
    content = read_bounded(path, MAX_CERTIFICATE_BYTES)
    try:
        return parse_certificate(content)
    except KeyFileError as exc:
        raise KeyFileError(f"{printable(os.fspath(path))} is {exc}") from exc


def load_authorities(path: str | os.PathLike[str]) -> tuple[x509.Certificate, ...]:
    """Read the certificates of all authorities that we trust.

    Raises:
        KeyFileError: with the path in its text.
    """
    content = read_bounded(path, MAX_CERTIFICATE_BYTES)
    try:
        return parse_certificates(content)
    except KeyFileError as exc:
        raise KeyFileError(f"{printable(os.fspath(path))} is {exc}") from exc


def load_private_key(
    path: str | os.PathLike[str], passphrase: Callable[[], bytes] | None
) -> Ed25519PrivateKey:
    """Read a private key file, with its pass phrase if it has one.

    Raises:
        PassphraseError: the pass phrase is wrong or missing.
        KeyFileError: anything else; both have the path in their text.
    """
    content = read_bounded(path, MAX_KEY_FILE_BYTES)
    try:
        return decode_private_key(content, passphrase)
    except PassphraseError as exc:
        raise PassphraseError(f"{printable(os.fspath(path))}: {exc}") from exc
    except KeyFileError as exc:
        raise KeyFileError(f"{printable(os.fspath(path))}: {exc}") from exc


def load_identity(
    certs_dir: str | os.PathLike[str],
    name: str,
    passphrase: Callable[[], bytes] | None,
    *,
    now: datetime | None = None,
    known_key: Ed25519PrivateKey | None = None,
) -> LoadedIdentity:
    """Load ``NAME.crt``, ``NAME.key`` and ``ca.crt`` and check that they fit.

    The pass phrase is asked for last, so that nobody types one in vain.

    Args:
        certs_dir: the directory.
        name: the identity's name, such as ``node`` or ``client``.
        passphrase: called at most once, if the key is protected; blocks for some
            seconds while Argon2id runs.
        now: an aware time; None means the clock.
        known_key: a key that is open already. If it is the certificate's and the key
            file is protected, that file is not opened again.

    Raises:
        KeyNameError: the name is not a plain file name.
        PassphraseError: the pass phrase is wrong or missing.
        KeyFileError: anything else; the text says which file and what to do.
    """
    check_name(name)
    directory = Path(certs_dir)
    hint = f"run `selfy -k {name}` to make one"
    _require(directory, "no certificate directory", hint)
    ca_path = directory / f"{CA_NAME}.crt"
    certificate_path = directory / f"{name}.crt"
    key_path = directory / f"{name}.key"
    for path in (ca_path, certificate_path, key_path):
        _require(path, "there is no", hint)
    authorities = load_authorities(ca_path)
    certificate = load_certificate(certificate_path)
    moment = datetime.now(UTC) if now is None else now
    with _naming(ca_path):
        for authority in authorities:
            check_may_issue(authority)
    with _naming(certificate_path):
        raw_public_key(certificate)
        ca = issuer_among(certificate, authorities)
    with _naming(ca_path):
        check_authority(ca, now=moment)
    with _naming(certificate_path):
        check_dates(certificate, now=moment)
    private_key = known_key
    if private_key is None or not _is_protected_key_of(
        private_key, certificate, key_path
    ):
        private_key = load_private_key(key_path, passphrase)
    check_key_matches(certificate, private_key, f"{key_path}", f"{certificate_path}")
    return LoadedIdentity(
        name=name,
        certificate=certificate,
        private_key=private_key,
        ca=ca,
        other_authorities=tuple(one for one in authorities if one != ca),
    )


def _is_protected_key_of(
    key: Ed25519PrivateKey, certificate: x509.Certificate, key_path: Path
) -> bool:
    """Tell whether the file is protected and `key` serves for the certificate."""
    if raw_public_key_of(key) != raw_public_key(certificate):
        return False
    try:
        return describe_key_file(read_bounded(key_path, MAX_KEY_FILE_BYTES)).protected
    except KeyFileError:
        return False  # and loading it says why


def _require(path: Path, missing: str, hint: str) -> None:
    """Check that `path` exists; else say ``missing path: hint``."""
    shown = printable(str(path))
    try:
        os.stat(path)
    except FileNotFoundError as exc:
        raise KeyFileError(f"{missing} {shown}: {hint}") from exc
    except OSError as exc:
        raise KeyFileError(f"cannot read {shown}: {reason_of(exc)}") from exc


def check_key_matches(
    certificate: x509.Certificate,
    private_key: Ed25519PrivateKey,
    key_path: str,
    certificate_path: str,
) -> None:
    """Check that the private key belongs to the certificate.

    Raises:
        KeyFileError: it does not; the text names both files.
    """
    with _naming(certificate_path):
        expected = raw_public_key(certificate)
    if raw_public_key_of(private_key) != expected:
        raise KeyFileError(
            f"{printable(key_path)} is not the key of {printable(certificate_path)}"
        )


def loose_permissions(path: str | os.PathLike[str]) -> str | None:
    """Say in one line what is too open about a key file or directory, or return None.

    A directory is too open if others can write in it (they can replace the keys), a
    file if others can read or write it. A missing path is not too open.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    shown, mode = printable(os.fspath(path)), stat.S_IMODE(found.st_mode)
    if stat.S_ISDIR(found.st_mode):
        # A sticky directory such as /tmp keeps others from replacing our files.
        if mode & 0o022 and not mode & stat.S_ISVTX:
            return f"others can write in {shown} (mode {mode:04o}): chmod go-w {shown}"
        return None
    if mode & 0o077:
        return f"others can use {shown} (mode {mode:04o}): chmod 600 {shown}"
    return None


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn a refusal into a `KeyFileError` that names the file."""
    try:
        yield
    except PeerNotTrustedError as exc:
        raise KeyFileError(f"{printable(os.fspath(path))}: {exc}") from exc
