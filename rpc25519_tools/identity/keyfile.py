"""Reads and writes private key files: plain PKCS#8, and under a pass phrase.

The protected form is the reference's own (SECURITY-WIRE 3): a PEM block named
``ENCRYPTED PRIVATE KEY`` whose headers carry the Argon2id parameters, and whose body
is ``nonce (12) | AES-256-GCM ciphertext | tag (16)`` of the PKCS#8 DER. Despite
the name it is not PKCS#8 encryption, and openssl cannot read it.

Every number in the headers comes from a file that may be hostile, and Go's reader
bounds none of them; here each is bounded before anything is computed. Whatever the
bytes are, decoding ends in a key or in `KeyFileError`. No message and no repr ever
contains a key or a pass phrase.

Deriving the key takes seconds and holds no lock (argon2-cffi releases the GIL):
asynchronous callers run it in a thread.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from argon2.exceptions import HashingError
from argon2.low_level import ARGON2_VERSION, Type, hash_secret_raw
from cryptography.exceptions import InternalError, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from rpc25519_tools.errors import KeyFileError, PassphraseError

MAX_KEY_FILE_BYTES = 64 * 1024  # ours have 119 and 382 bytes

PLAIN_LABEL = "PRIVATE KEY"
PROTECTED_LABEL = "ENCRYPTED PRIVATE KEY"

NONCE_LEN = 12
TAG_LEN = 16
SALT_LEN = 16
_ARGON2_VERSION = 0x13
assert ARGON2_VERSION == _ARGON2_VERSION  # what the reference's x/crypto implements

# Bounds for parameters that a file asks for. Memory: 4 GiB, sixteen times what selfy
# writes. Work: memory times passes, 85 times what selfy writes, which is some
# minutes. AES keys have 16, 24 or 32 bytes; Argon2 wants 8 bytes of salt.
MAX_MEMORY_KIB = 4 * 1024 * 1024
MAX_WORK_KIB = 256 * 1024 * 1024
MAX_THREADS = 255  # Go keeps the number in one byte
KEY_LENS = (16, 24, 32)
MIN_SALT_LEN = 8
MAX_SALT_LEN = 64

_BLOCK = re.compile(
    rb"^-----BEGIN (?P<label>[A-Z0-9 ]{1,64})-----[ \t]*\r?\n"
    rb"(?P<inside>.*?)^-----END (?P=label)-----",
    re.DOTALL | re.MULTILINE,
)
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class KdfParameters:
    """What Argon2id costs.

    Attributes:
        memory_kib: memory, in KiB.
        iterations: passes over that memory.
        threads: lanes.
        key_len: bytes of AES key derived.
    """

    memory_kib: int
    iterations: int
    threads: int
    key_len: int

    def __post_init__(self) -> None:
        if self.key_len not in KEY_LENS:
            raise KeyFileError(f"Argon2id key length {self.key_len} is not for AES")
        if not 1 <= self.threads <= MAX_THREADS:
            raise KeyFileError(
                f"Argon2id threads must be 1 to {MAX_THREADS}, not {self.threads}"
            )
        if not 8 * self.threads <= self.memory_kib <= MAX_MEMORY_KIB:
            raise KeyFileError(
                f"Argon2id memory of {self.memory_kib} KiB is outside "
                f"{8 * self.threads} to {MAX_MEMORY_KIB}"
            )
        if not 1 <= self.iterations <= MAX_WORK_KIB // self.memory_kib:
            raise KeyFileError(
                f"Argon2id iterations of {self.iterations} with {self.memory_kib} KiB "
                f"are outside 1 to {MAX_WORK_KIB // self.memory_kib}"
            )


# What the reference writes; about three seconds on one core.
DEFAULT_KDF = KdfParameters(memory_kib=256 * 1024, iterations=12, threads=1, key_len=32)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFileInfo:
    """What a key file tells without its pass phrase.

    Attributes:
        protected: whether a pass phrase is needed.
        kdf: the Argon2id parameters of a protected file, else None.
        cipher: the cipher of a protected file, else None.
        public_key: 32 raw bytes, of an unprotected file only, else None.
    """

    protected: bool
    kdf: KdfParameters | None
    cipher: str | None
    public_key: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _Sealed:
    """A protected key file, taken apart."""

    kdf: KdfParameters
    salt: bytes
    nonce: bytes
    sealed: bytes


def encode_private_key(
    key: Ed25519PrivateKey,
    passphrase: bytes | None,
    *,
    random_bytes: Callable[[int], bytes],
    kdf: KdfParameters | None = None,
) -> bytes:
    """Write a private key as PEM.

    Args:
        key: the key.
        passphrase: None writes it unprotected; `b""` protects it with an empty phrase,
            as the reference can (callers refuse to create such files).
        random_bytes: called for the salt (16 bytes), then for the nonce (12 bytes).
            The nonce must never repeat under one derived key: a fresh salt sees to it.
        kdf: None means `DEFAULT_KDF`, the reference's parameters.
    """
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    if passphrase is None:
        return _armor(PLAIN_LABEL, {}, der)
    cost = DEFAULT_KDF if kdf is None else kdf
    salt, nonce = random_bytes(SALT_LEN), random_bytes(NONCE_LEN)
    assert len(salt) == SALT_LEN
    assert len(nonce) == NONCE_LEN
    derived = _derive(passphrase, salt, cost)
    headers = {
        "AESGCM.Nonce": nonce.hex(),
        "Argon2id.Iterations": str(cost.iterations),
        "Argon2id.KeyLength": str(cost.key_len),
        "Argon2id.Memory": str(cost.memory_kib),
        "Argon2id.Salt": salt.hex(),
        "Argon2id.Threads": str(cost.threads),
        "CipherSuite": '"AES-GCM"',
    }
    body = nonce + AESGCM(derived).encrypt(nonce, der, None)
    return _armor(PROTECTED_LABEL, headers, body)


def decode_private_key(
    pem: bytes | bytearray | memoryview, passphrase: Callable[[], bytes] | None
) -> Ed25519PrivateKey:
    """Read a private key; ask for the pass phrase only if one is needed.

    Args:
        pem: the file's content.
        passphrase: called at most once; None means that there is none to be had.

    Raises:
        PassphraseError: one is needed and there is none, or it is wrong.
        KeyFileError: anything else is wrong with the file.
    """
    label, headers, body = _read_block(pem)
    if label == PLAIN_LABEL:
        return _load_pkcs8(body)
    parts = _read_sealed(headers, body)
    if passphrase is None:
        raise PassphraseError("the key is protected, and no pass phrase was given")
    phrase = passphrase()
    if not isinstance(phrase, bytes | bytearray):
        raise PassphraseError(
            f"a pass phrase must come as bytes, not {type(phrase).__name__}"
        )
    derived = _derive(phrase, parts.salt, parts.kdf)
    try:
        der = AESGCM(derived).decrypt(parts.nonce, parts.sealed, None)
    except InvalidTag as exc:
        # The two cannot be told apart: the tag covers both.
        raise PassphraseError("wrong pass phrase (or a damaged key file)") from exc
    return _load_pkcs8(der)


def describe_key_file(pem: bytes | bytearray | memoryview) -> KeyFileInfo:
    """Tell what a key file is, without a pass phrase.

    Raises:
        KeyFileError: it is not a private key file that `decode_private_key` could read.
    """
    label, headers, body = _read_block(pem)
    if label == PROTECTED_LABEL:
        parts = _read_sealed(headers, body)
        return KeyFileInfo(
            protected=True,
            kdf=parts.kdf,
            cipher=f"AES-{parts.kdf.key_len * 8}-GCM",
            public_key=None,
        )
    public_key = raw_public_key_of(_load_pkcs8(body))
    return KeyFileInfo(protected=False, kdf=None, cipher=None, public_key=public_key)


def raw_public_key_of(key: Ed25519PrivateKey) -> bytes:
    """Return the 32 raw bytes of the public half."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _derive(passphrase: bytes, salt: bytes, kdf: KdfParameters) -> bytes:
    try:
        return hash_secret_raw(
            passphrase,
            salt,
            time_cost=kdf.iterations,
            memory_cost=kdf.memory_kib,
            parallelism=kdf.threads,
            hash_len=kdf.key_len,
            type=Type.ID,
            version=_ARGON2_VERSION,
        )
    except (HashingError, MemoryError) as exc:
        raise KeyFileError(
            f"Argon2id failed; it needs {kdf.memory_kib // 1024} MiB of free memory"
        ) from exc


def _load_pkcs8(der: bytes) -> Ed25519PrivateKey:
    try:
        key = load_der_private_key(der, None)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as exc:
        # InternalError: an Ed25519 key that has not 32 bytes.
        raise KeyFileError("not a readable PKCS#8 private key") from exc
    if not isinstance(key, Ed25519PrivateKey):
        kind = type(key).__name__.removesuffix("PrivateKey").lstrip("_")
        raise KeyFileError(f"the key is of type {kind}, not Ed25519")
    return key


def _read_block(
    pem: bytes | bytearray | memoryview,
) -> tuple[str, Mapping[str, str], bytes]:
    """Find the PEM block; return its label, headers and body."""
    if len(pem) > MAX_KEY_FILE_BYTES:
        raise KeyFileError(f"not a key file: more than {MAX_KEY_FILE_BYTES} bytes")
    found = _BLOCK.search(bytes(pem))
    if found is None:
        raise KeyFileError("not a private key file (no PEM block)")
    label = found["label"].decode("ascii")
    if label not in {PLAIN_LABEL, PROTECTED_LABEL}:
        raise KeyFileError(f"not an Ed25519 private key file (PEM type {label!r})")
    try:
        lines = found["inside"].decode("ascii").splitlines()
    except UnicodeDecodeError as exc:
        raise KeyFileError("not a private key file (not ASCII)") from exc
    headers: dict[str, str] = {}
    body_at = 0
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            break
        if name.strip() in headers:
            raise KeyFileError("a header stands twice in the key file")
        headers[name.strip()] = value.strip()
        body_at += 1
    try:
        body = base64.b64decode(
            "".join("".join(lines[body_at:]).split()), validate=True
        )
    except (binascii.Error, ValueError) as exc:
        raise KeyFileError("the key file's body is not base64") from exc
    return label, headers, body


def _read_sealed(headers: Mapping[str, str], body: bytes) -> _Sealed:
    """Check all seven headers and split the body."""
    if not headers:
        raise KeyFileError(
            "the key is protected in the openssl way; convert it with "
            "`openssl pkey -in OLD -out NEW` (and selfy's own form cannot be opened by "
            "openssl either)"
        )
    if _header(headers, "CipherSuite").strip('"') != "AES-GCM":
        raise KeyFileError("the key file asks for an unknown cipher")
    # The nonce stands twice; the reference's reader uses the one in the body and only
    # wants the other to be hex.
    _hex_header(headers, "AESGCM.Nonce", NONCE_LEN, NONCE_LEN)
    if len(body) <= NONCE_LEN + TAG_LEN:
        raise KeyFileError("the key file's body is too short")
    return _Sealed(
        kdf=KdfParameters(
            memory_kib=_number_header(headers, "Argon2id.Memory"),
            iterations=_number_header(headers, "Argon2id.Iterations"),
            threads=_number_header(headers, "Argon2id.Threads"),
            key_len=_number_header(headers, "Argon2id.KeyLength"),
        ),
        salt=_hex_header(headers, "Argon2id.Salt", MIN_SALT_LEN, MAX_SALT_LEN),
        nonce=body[:NONCE_LEN],
        sealed=body[NONCE_LEN:],
    )


def _header(headers: Mapping[str, str], name: str) -> str:
    try:
        return headers[name]
    except KeyError as exc:
        raise KeyFileError(f"the key file lacks the header {name}") from exc


def _number_header(headers: Mapping[str, str], name: str) -> int:
    text = _header(headers, name)
    if not _NUMBER.fullmatch(text):
        raise KeyFileError(f"the key file's header {name} is not a sensible number")
    return int(text)


def _hex_header(
    headers: Mapping[str, str], name: str, min_len: int, max_len: int
) -> bytes:
    try:
        value = bytes.fromhex(_header(headers, name))
    except ValueError as exc:
        raise KeyFileError(f"the key file's header {name} is not hex") from exc
    if not min_len <= len(value) <= max_len:
        raise KeyFileError(f"the key file's header {name} has {len(value)} bytes")
    return value


def _armor(label: str, headers: Mapping[str, str], body: bytes) -> bytes:
    text = base64.b64encode(body).decode("ascii")
    lines = [f"-----BEGIN {label}-----"]
    lines += [f"{name}: {value}" for name, value in sorted(headers.items())]
    if headers:
        lines.append("")
    lines += [text[at : at + 64] for at in range(0, len(text), 64)]
    lines += [f"-----END {label}-----", ""]
    return "\n".join(lines).encode("ascii")
