"""Makes identities on disk: an authority, keys with certificates, symmetric keys.

One call does everything that was asked for, in an order that leaves nothing half
done: first everything that can be refused (names, existing files, a directory that
cannot be written, a wrong pass phrase, an expired authority) is checked, then keys
are made and protected in memory, which takes seconds, and only then are all files
written, all or none (`outputs.write_outputs`).
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from rpc25519_tools.errors import KeyFileError, KeyNameError, PeerNotTrustedError
from rpc25519_tools.identity.authority import (
    DEFAULT_DAYS,
    check_email,
    end_of_life,
    generate_key,
    is_notably_shorter,
    mint_authority,
    mint_certificate,
    random_serial_number,
    tunnel_warning,
)
from rpc25519_tools.identity.certificate import check_dates, check_may_issue
from rpc25519_tools.identity.keyfile import KdfParameters, encode_private_key
from rpc25519_tools.identity.outputs import Output, check_outputs, write_outputs
from rpc25519_tools.identity.printable import printable
from rpc25519_tools.identity.store import (
    CA_NAME,
    check_key_matches,
    check_name,
    load_certificate,
    load_private_key,
    loose_permissions,
)

SYMMETRIC_KEY_LEN = 32

Passphrase = Callable[[], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be made.

    Attributes:
        private_dir: where the authority and symmetric keys live.
        certs_dir: where keys and certificates go.
        name: make a key and certificate of this name; None makes none.
        email: who will hold it; needed with `name`.
        extra_names: more names for that certificate.
        days: life of the certificate, or of the authority if `name` is None. None
            means `DEFAULT_DAYS`.
        make_authority: make a new authority, even if there is one.
        symmetric_name: write 32 random bytes under this name; None writes none.
        replace: existing files may be replaced.
    """

    private_dir: Path
    certs_dir: Path
    name: str | None = None
    email: str = ""
    extra_names: Sequence[x509.GeneralName] = ()
    days: int | None = None
    make_authority: bool = False
    symmetric_name: str | None = None
    replace: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Passphrases:
    """Where the pass phrases come from; each is called at most once, if needed.

    Attributes:
        existing_authority: opens the authority's key; None if there is no way to ask.
        new_authority: protects a new authority's key; None leaves it unprotected.
        new_key: protects a new key; None leaves it unprotected.
    """

    existing_authority: Passphrase | None
    new_authority: Passphrase | None
    new_key: Passphrase | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """What was made.

    Attributes:
        paths: the files written, in order.
        authority: the new authority, if one was made.
        certificate: the new certificate, if one was made.
        warnings: what the user should know, one line each.
    """

    paths: tuple[Path, ...]
    authority: x509.Certificate | None
    certificate: x509.Certificate | None
    warnings: tuple[str, ...]


def issue(
    order: Order,
    passphrases: Passphrases,
    *,
    now: datetime,
    random_bytes: Callable[[int], bytes],
    kdf: KdfParameters | None = None,
) -> Issued:
    """Make what `order` asks for. Blocks: for pass phrases, and seconds for Argon2id.

    Args:
        order: what to make.
        passphrases: where pass phrases come from.
        now: an aware time: the beginning of the certificates' lives.
        random_bytes: a cryptographic source, such as `os.urandom`.
        kdf: the cost of protecting keys; None means the reference's.

    Raises:
        KeyNameError: a name is not a plain file name.
        LocalFileError: a file exists and may not be replaced, or cannot be written.
        KeyFileError: the existing authority is unusable, or a pass phrase is wrong.
        ConfigError: e-mail or life are out of range.
        In each case nothing was written.
    """
    return _Issuer(order, passphrases, now, random_bytes, kdf).run()


def load_authority(
    private_dir: Path, passphrase: Passphrase | None, *, now: datetime | None
) -> tuple[x509.Certificate, Ed25519PrivateKey]:
    """Load the authority's certificate, then open its key.

    Args:
        private_dir: where ``ca.crt`` and ``ca.key`` are.
        passphrase: called at most once, if the key is protected.
        now: an aware time; None takes an authority that has expired too.

    Raises:
        PassphraseError: the pass phrase is wrong or missing.
        KeyFileError: a file is unusable; the text says which one and why.
    """
    path, key_path = private_dir / f"{CA_NAME}.crt", private_dir / f"{CA_NAME}.key"
    certificate = load_certificate(path)
    try:
        check_may_issue(certificate)
        if now is not None:
            check_dates(certificate, now=now)
    except PeerNotTrustedError as exc:
        raise KeyFileError(f"{printable(str(path))}: {exc}") from exc
    key = load_private_key(key_path, passphrase)
    check_key_matches(certificate, key, str(key_path), str(path))
    return certificate, key


@dataclass(frozen=True, slots=True, kw_only=True)
class _Authority:
    """The authority at work: loaded, or new and not written yet."""

    certificate: x509.Certificate
    key: Ed25519PrivateKey
    is_new: bool
    passphrase: bytes | None  # of a new one


class _Issuer:
    """Carries one order through its steps; see the module's text for their order."""

    def __init__(
        self,
        order: Order,
        passphrases: Passphrases,
        now: datetime,
        random_bytes: Callable[[int], bytes],
        kdf: KdfParameters | None,
    ) -> None:
        self._order = order
        self._passphrases = passphrases
        self._now = now
        self._random_bytes = random_bytes
        self._kdf = kdf
        self._warnings: list[str] = []
        self._ca_key_path = order.private_dir / f"{CA_NAME}.key"
        self._ca_path = order.private_dir / f"{CA_NAME}.crt"
        self._ca_copy_path = order.certs_dir / f"{CA_NAME}.crt"
        self._makes_authority = order.make_authority or (
            order.name is not None and not os.path.lexists(self._ca_path)
        )

    def run(self) -> Issued:
        order = self._order
        self._refuse_early()
        authority = self._authority()
        certificate: x509.Certificate | None = None
        leaf_outputs: list[Output] = []
        if order.name is not None:
            assert authority is not None
            certificate, leaf_outputs = self._make_leaf(order.name, authority)
        outputs = self._authority_outputs(authority) + leaf_outputs
        if order.symmetric_name is not None:
            path = order.private_dir / order.symmetric_name
            outputs.append(self._output(path, self._random_bytes(SYMMETRIC_KEY_LEN)))
        self._warn_about_directories()
        write_outputs(outputs)
        made = authority is not None and authority.is_new
        return Issued(
            paths=tuple(output.path for output in outputs),
            authority=authority.certificate if authority and made else None,
            certificate=certificate,
            warnings=tuple(self._warnings),
        )

    def _refuse_early(self) -> None:
        """Refuse all that can be refused before a pass phrase is asked for."""
        order = self._order
        planned: list[Output] = []
        if self._makes_authority:
            end_of_life(self._now, self._authority_days())
            if not order.make_authority and os.path.lexists(self._ca_key_path):
                raise KeyFileError(
                    f"{printable(str(self._ca_key_path))} is there, but not its "
                    "ca.crt: restore that, or make a new authority with -ca --force"
                )
            planned += self._authority_files(b"", b"")
        if order.name is not None:
            if check_name(order.name) == CA_NAME:
                raise KeyNameError(f"the name {CA_NAME!r} is the authority's own")
            check_email(order.email)
            end_of_life(self._now, self._leaf_days())
            planned += self._leaf_files(order.name, b"", b"")
        if order.symmetric_name is not None:
            check_name(order.symmetric_name)
            path = order.private_dir / order.symmetric_name
            if path in {self._ca_key_path, self._ca_path}:
                raise KeyNameError(f"{path.name} is the authority's own file")
            planned.append(self._output(path, b""))
        check_outputs(planned)

    def _authority(self) -> _Authority | None:
        """Make or load the authority, if one is needed."""
        if self._makes_authority:
            key = generate_key(self._random_bytes)
            certificate = mint_authority(
                key,
                now=self._now,
                not_after=end_of_life(self._now, self._authority_days()),
                serial_number=random_serial_number(self._random_bytes),
            )
            ask = self._passphrases.new_authority
            return _Authority(
                certificate=certificate,
                key=key,
                is_new=True,
                passphrase=None if ask is None else ask(),
            )
        if self._order.name is None:
            return None
        return self._load_authority()

    def _load_authority(self) -> _Authority:
        certificate, key = load_authority(
            self._order.private_dir,
            self._passphrases.existing_authority,
            now=self._now,
        )
        self._warn_if_loose(self._ca_key_path)
        return _Authority(
            certificate=certificate, key=key, is_new=False, passphrase=None
        )

    def _make_leaf(
        self, name: str, authority: _Authority
    ) -> tuple[x509.Certificate, list[Output]]:
        """Make key and certificate, and the authority's copy beside them."""
        order = self._order
        copy = self._ca_copy(authority.certificate)
        ask = self._passphrases.new_key
        passphrase = None if ask is None else ask()
        key = generate_key(self._random_bytes)
        certificate = mint_certificate(
            key.public_key(),
            ca=authority.certificate,
            ca_key=authority.key,
            email=order.email,
            extra_names=order.extra_names,
            now=self._now,
            not_after=self._leaf_end(authority.certificate),
            serial_number=random_serial_number(self._random_bytes),
        )
        warning = tunnel_warning(certificate)
        if warning is not None:
            self._warnings.append(warning)
        files = self._leaf_files(name, self._encode(key, passphrase), _pem(certificate))
        return certificate, files + copy

    def _leaf_end(self, ca: x509.Certificate) -> datetime:
        """Return the end of the leaf's life, which is never after its authority's."""
        wanted = end_of_life(self._now, self._leaf_days())
        end = min(wanted, ca.not_valid_after_utc)
        if self._order.days is not None and is_notably_shorter(end, wanted):
            self._warnings.append(
                f"the certificate ends with its authority on {end:%Y-%m-%d}"
                f", before its {self._order.days} days are over"
            )
        return end

    def _ca_copy(self, ca: x509.Certificate) -> list[Output]:
        """Plan the copy of ``ca.crt`` beside the key, unless it is there."""
        same_directory = os.path.realpath(self._ca_path) == os.path.realpath(
            self._ca_copy_path
        )
        if same_directory:
            return []
        copy = self._output(self._ca_copy_path, _pem(ca))
        if os.path.lexists(self._ca_copy_path):
            if load_certificate(self._ca_copy_path) == ca:
                return []
            if not self._order.replace:
                raise KeyFileError(
                    f"{printable(str(self._ca_copy_path))} is another authority than "
                    f"{printable(str(self._ca_path))}; nothing was changed (--force "
                    "replaces it, and keys of the other authority stop working there)"
                )
        check_outputs([copy])
        return [copy]

    def _authority_outputs(self, authority: _Authority | None) -> list[Output]:
        if authority is None or not authority.is_new:
            return []
        if self._order.name is None and os.path.lexists(self._ca_copy_path):
            self._warnings.append(
                f"{printable(str(self._ca_copy_path))} and the certificates beside it "
                "are another authority's; make them anew with -k NAME --force"
            )
        return self._authority_files(
            self._encode(authority.key, authority.passphrase),
            _pem(authority.certificate),
        )

    def _authority_files(self, key_file: bytes, certificate: bytes) -> list[Output]:
        return [
            self._output(self._ca_key_path, key_file),
            self._output(self._ca_path, certificate),
        ]

    def _leaf_files(
        self, name: str, key_file: bytes, certificate: bytes
    ) -> list[Output]:
        directory = self._order.certs_dir
        return [
            self._output(directory / f"{name}.key", key_file),
            self._output(directory / f"{name}.crt", certificate),
        ]

    def _output(self, path: Path, content: bytes) -> Output:
        return Output(path=path, content=content, replace=self._order.replace)

    def _encode(self, key: Ed25519PrivateKey, passphrase: bytes | None) -> bytes:
        return encode_private_key(
            key, passphrase, random_bytes=self._random_bytes, kdf=self._kdf
        )

    def _leaf_days(self) -> int:
        return DEFAULT_DAYS if self._order.days is None else self._order.days

    def _authority_days(self) -> int:
        # An authority made in passing outlives a short-lived certificate: else the
        # certificate could not be renewed without telling every peer.
        return DEFAULT_DAYS if self._order.name is not None else self._leaf_days()

    def _warn_about_directories(self) -> None:
        self._warn_if_loose(self._order.private_dir)
        if self._order.name is not None:
            self._warn_if_loose(self._order.certs_dir)

    def _warn_if_loose(self, path: Path) -> None:
        warning = loose_permissions(path)
        if warning is not None:
            self._warnings.append(warning)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
