"""Renews certificates on disk: the same key, a new certificate by our authority.

As in `issue`, everything that can be refused is refused before a pass phrase is asked
for, and then all files are written, or none. Only the authority's key is opened: the
public key to be certified stands in the old certificate. What is replaced stays beside
it as ``NAME.crt.old``.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from rpc25519_tools.errors import ConfigError, KeyFileError, PeerNotTrustedError
from rpc25519_tools.identity.authority import (
    check_email,
    is_notably_shorter,
    random_serial_number,
    tunnel_warning,
)
from rpc25519_tools.identity.certificate import MAX_CERTIFICATE_BYTES, raw_public_key
from rpc25519_tools.identity.issue import Passphrase, load_authority
from rpc25519_tools.identity.keyfile import MAX_KEY_FILE_BYTES, describe_key_file
from rpc25519_tools.identity.outputs import Output, check_outputs, write_outputs
from rpc25519_tools.identity.printable import printable
from rpc25519_tools.identity.reissue import (
    check_renewable,
    renew_authority,
    renew_certificate,
    renewed_end,
    same_authority,
)
from rpc25519_tools.identity.store import (
    CA_NAME,
    check_name,
    load_authorities,
    load_certificate,
    loose_permissions,
    read_bounded,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What is to be renewed.

    Attributes:
        private_dir: where the authority is.
        certs_dir: where the certificates are, and the copy of ``ca.crt``.
        names: renew these certificates.
        authority: renew the authority's own certificate.
        email: the new e-mail; None keeps the old one. For one name only.
        extra_names: the new other names; None keeps the old ones. For one name only.
        days: life of the certificates, or of the authority if there are no names. None
            means as long as the old ones lived.
    """

    private_dir: Path
    certs_dir: Path
    names: Sequence[str] = ()
    authority: bool = False
    email: str | None = None
    extra_names: Sequence[x509.GeneralName] | None = None
    days: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """What was made.

    Attributes:
        paths: the files written, in order.
        certificates: the new certificates by name; the authority's is ``ca``.
        warnings: what the user should know, one line each.
    """

    paths: tuple[Path, ...]
    certificates: dict[str, x509.Certificate]
    warnings: tuple[str, ...]


def renew(
    renewal: Renewal,
    passphrase: Passphrase | None,
    *,
    now: datetime,
    random_bytes: Callable[[int], bytes],
) -> Renewed:
    """Renew what `renewal` asks for. Blocks: for a pass phrase, and for Argon2id.

    Args:
        renewal: what to renew.
        passphrase: opens the authority's key; None if there is no way to ask.
        now: an aware time: the beginning of the new certificates' lives.
        random_bytes: a cryptographic source, such as `os.urandom`.

    Raises:
        KeyNameError: a name is not a plain file name.
        LocalFileError: a file cannot be written.
        KeyFileError: there is no such certificate, it is another authority's, its key
            or the authority is unusable, or a pass phrase is wrong.
        ConfigError: e-mail or life are out of range, or stand for several names.
        In each case nothing was written.
    """
    return _Renewer(renewal, now, random_bytes).run(passphrase)


class _Renewer:
    """Carries one renewal through its steps."""

    def __init__(
        self, renewal: Renewal, now: datetime, random_bytes: Callable[[int], bytes]
    ) -> None:
        self._renewal = renewal
        self._now = now
        self._random_bytes = random_bytes
        self._warnings: list[str] = []
        self._ca_path = renewal.private_dir / f"{CA_NAME}.crt"
        self._copy_path = renewal.certs_dir / f"{CA_NAME}.crt"

    def run(self, passphrase: Passphrase | None) -> Renewed:
        renewal = self._renewal
        ca = load_certificate(self._ca_path)
        old = self._refuse_early(ca)
        # An authority that has expired can be renewed, but must not sign others.
        ca, key = load_authority(
            renewal.private_dir,
            passphrase,
            now=None if renewal.authority else self._now,
        )
        made: dict[str, x509.Certificate] = {}
        outputs: list[Output] = []
        if renewal.authority:
            made[CA_NAME] = ca = self._renew_authority(ca, key)
            outputs += self._bundle(self._ca_path, ca, keep_old=True)
        for name, certificate in old.items():
            made[name] = self._renew(name, certificate, ca, key)
            path = self._path(name)
            outputs += _replacement(path, _pem(made[name]), keep_old=True)
        outputs += self._copy(ca)
        self._warn_if_loose(renewal.private_dir, renewal.private_dir / "ca.key")
        write_outputs(outputs)
        return Renewed(
            paths=tuple(output.path for output in outputs),
            certificates=made,
            warnings=tuple(self._warnings),
        )

    def _refuse_early(self, ca: x509.Certificate) -> dict[str, x509.Certificate]:
        """Refuse all that can be refused without the key; load the certificates."""
        renewal = self._renewal
        if not renewal.names and not renewal.authority:
            raise ConfigError("nothing to renew")
        if len(renewal.names) != 1 and not (
            renewal.email is None and renewal.extra_names is None
        ):
            raise ConfigError("an e-mail or other names are for one certificate only")
        if renewal.email is not None:
            check_email(renewal.email)
        planned: list[Path] = []
        if renewal.authority:
            with _naming(self._ca_path):
                check_renewable(ca, ca, is_authority=True)
            self._end(ca, is_authority=True)
            planned.append(self._ca_path)
        old: dict[str, x509.Certificate] = {}
        for name in renewal.names:
            if check_name(name) == CA_NAME:
                raise ConfigError("the authority itself is renewed with --ca")
            old[name] = self._load(name, ca)
            self._end(old[name])
            planned.append(self._path(name))
        check_outputs(
            [
                output
                for path in planned
                for output in _replacement(path, b"", keep_old=True)
            ]
        )
        return old

    def _load(self, name: str, ca: x509.Certificate) -> x509.Certificate:
        """Load an old certificate and check that it, and a plain key, are right."""
        path = self._path(name)
        if not os.path.lexists(path):
            raise KeyFileError(
                f"there is no {printable(str(path))}: nothing to renew; "
                f"`selfy -k {printable(name)}` makes a new key and certificate"
            )
        certificate = load_certificate(path)
        with _naming(path):
            check_renewable(certificate, ca)
        # The key may be on another machine; a protected one is not opened for this.
        key_path = self._renewal.certs_dir / f"{name}.key"
        if os.path.lexists(key_path):
            content = read_bounded(key_path, MAX_KEY_FILE_BYTES)
            try:
                public_key = describe_key_file(content).public_key
            except KeyFileError as exc:
                raise KeyFileError(f"{printable(str(key_path))}: {exc}") from exc
            if public_key not in {None, raw_public_key(certificate)}:
                raise KeyFileError(
                    f"{printable(str(key_path))} is not the key of "
                    f"{printable(str(path))}"
                )
        return certificate

    def _end(self, old: x509.Certificate, *, is_authority: bool = False) -> datetime:
        for_this = not (is_authority and self._renewal.names)
        days = self._renewal.days if for_this else None
        return renewed_end(old, now=self._now, days=days)

    def _renew_authority(
        self, old: x509.Certificate, key: Ed25519PrivateKey
    ) -> x509.Certificate:
        with _naming(self._ca_path):
            return renew_authority(
                old,
                key=key,
                now=self._now,
                not_after=self._end(old, is_authority=True),
                serial_number=random_serial_number(self._random_bytes),
            )

    def _renew(
        self,
        name: str,
        old: x509.Certificate,
        ca: x509.Certificate,
        key: Ed25519PrivateKey,
    ) -> x509.Certificate:
        wanted = self._end(old)
        end = min(wanted, ca.not_valid_after_utc)
        told = self._renewal.days is not None or end <= old.not_valid_after_utc
        if told and is_notably_shorter(end, wanted):
            self._warnings.append(
                f"{printable(name)} ends with its authority on {end:%Y-%m-%d}; "
                "--ca renews that"
            )
        path = self._path(name)
        with _naming(path):
            certificate = renew_certificate(
                old,
                ca=ca,
                ca_key=key,
                email=self._renewal.email,
                extra_names=self._renewal.extra_names,
                now=self._now,
                not_after=end,
                serial_number=random_serial_number(self._random_bytes),
            )
        warning = tunnel_warning(certificate)
        if warning is not None:
            self._warnings.append(f"{printable(name)}: {warning}")
        return certificate

    def _copy(self, ca: x509.Certificate) -> list[Output]:
        """Plan to bring the copy of ``ca.crt`` beside the certificates up to date."""
        if not os.path.lexists(self._copy_path):
            return []
        if os.path.realpath(self._copy_path) == os.path.realpath(self._ca_path):
            return []
        copies = load_authorities(self._copy_path)
        if not any(same_authority(one, ca) for one in copies):
            self._warnings.append(
                f"{printable(str(self._copy_path))} is another authority's and was "
                "left alone"
            )
            return []
        return self._bundle(self._copy_path, ca, keep_old=False)

    def _bundle(
        self, path: Path, ca: x509.Certificate, *, keep_old: bool
    ) -> list[Output]:
        """Plan to replace earlier editions of `ca` in a file, and nothing else."""
        old = load_authorities(path)
        new = tuple(
            dict.fromkeys(ca if same_authority(one, ca) else one for one in old)
        )
        if new == old:
            return []
        return _replacement(path, b"".join(map(_pem, new)), keep_old=keep_old)

    def _path(self, name: str) -> Path:
        return self._renewal.certs_dir / f"{name}.crt"

    def _warn_if_loose(self, *paths: Path) -> None:
        for path in paths:
            warning = loose_permissions(path)
            if warning is not None:
                self._warnings.append(warning)


def _replacement(path: Path, content: bytes, *, keep_old: bool) -> list[Output]:
    """Plan to replace a file; what it holds now goes into a second one first."""
    new = Output(path=path, content=content, replace=True, like=path.stat())
    if not keep_old:
        return [new]
    old = Output(
        path=path.with_name(f"{path.name}.old"),
        content=read_bounded(path, MAX_CERTIFICATE_BYTES),
        replace=True,
    )
    return [old, new]


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of what is wrong with it."""
    try:
        yield
    except (KeyFileError, PeerNotTrustedError) as exc:
        raise KeyFileError(f"{printable(str(path))}: {exc}") from exc
