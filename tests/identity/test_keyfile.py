"""Private key files: the reference's bytes, hostile bytes, and no leaks."""

import base64
import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.errors import KeyFileError, PassphraseError
from rpc25519_tools.identity import keyfile
from rpc25519_tools.identity.keyfile import (
    DEFAULT_KDF,
    MAX_KEY_FILE_BYTES,
    MAX_MEMORY_KIB,
    KdfParameters,
    decode_private_key,
    describe_key_file,
    encode_private_key,
)

from .samples import DATA, TINY_KDF, counted_bytes, golden_key, sample_key

GOLDEN = json.loads((DATA / "encrypted-key.json").read_text())
GOLDEN_FILE = (DATA / "client.encrypted.key").read_bytes()
PHRASE = b"\xff pass \x00 phrase"


def golden_phrase() -> bytes:
    return bytes(GOLDEN["pass_phrase"], "ascii")


def must_not_ask() -> NoReturn:
    raise AssertionError("a pass phrase was asked for")


def refuse() -> NoReturn:
    raise PassphraseError("there is none")


def protected(phrase: bytes = PHRASE) -> bytes:
    return encode_private_key(
        sample_key(), phrase, random_bytes=counted_bytes(), kdf=TINY_KDF
    )


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes_raw()


def test_protecting_reproduces_the_reference_file_with_its_full_cost() -> None:
    """The one test that runs Argon2id with the real parameters: about 3 seconds."""
    salt = bytes.fromhex(GOLDEN["pem_headers"]["Argon2id.Salt"])
    values = iter([salt, bytes.fromhex(GOLDEN["nonce_hex"])])
    made = encode_private_key(
        golden_key("client"), golden_phrase(), random_bytes=lambda _count: next(values)
    )
    assert made == GOLDEN_FILE


def test_reference_file_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    def derive(phrase: bytes, salt: bytes, kdf: KdfParameters) -> bytes:
        assert (phrase, kdf) == (golden_phrase(), DEFAULT_KDF)
        assert salt.hex() == GOLDEN["pem_headers"]["Argon2id.Salt"]
        return bytes.fromhex(GOLDEN["argon2id_key_hex"])

    monkeypatch.setattr(keyfile, "_derive", derive)
    opened = decode_private_key(GOLDEN_FILE, golden_phrase)
    assert raw(opened) == raw(golden_key("client"))


def test_plain_file_equals_the_references() -> None:
    content = (DATA / "client.key").read_bytes()
    key = decode_private_key(content, must_not_ask)
    assert encode_private_key(key, None, random_bytes=bytes) == content


def test_describing_needs_no_pass_phrase() -> None:
    info = describe_key_file(GOLDEN_FILE)
    assert info.protected
    assert info.kdf == DEFAULT_KDF
    assert info.cipher == "AES-256-GCM"
    assert info.public_key is None
    plain = describe_key_file((DATA / "client.key").read_bytes())
    assert not plain.protected
    assert plain.kdf is None
    assert plain.public_key == golden_key("client").public_key().public_bytes_raw()


@pytest.mark.parametrize("phrase", [PHRASE, b"", b"x" * 5000])
def test_protected_key_comes_back(phrase: bytes) -> None:
    content = protected(phrase)
    assert raw(decode_private_key(content, lambda: phrase)) == raw(sample_key())


@pytest.mark.parametrize("phrase", ["correct", None, 5])
def test_a_pass_phrase_that_is_no_bytes_is_told_without_showing_it(
    phrase: Any,
) -> None:
    pem = protected()
    with pytest.raises(PassphraseError, match="must come as bytes, not") as caught:
        decode_private_key(pem, lambda: phrase)
    assert "correct" not in str(caught.value)


def test_wrong_and_missing_pass_phrases_are_told() -> None:
    with pytest.raises(PassphraseError, match="wrong pass phrase"):
        decode_private_key(protected(), lambda: b"another")
    with pytest.raises(PassphraseError, match="no pass phrase was given"):
        decode_private_key(protected(), None)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: b"a comment\n" + text + b"another\n",
        lambda text: text.replace(b'"AES-GCM"', b"AES-GCM"),
        lambda text: text.replace(b": ", b":   "),
    ],
)
def test_harmless_differences_are_accepted(change: Callable[[bytes], bytes]) -> None:
    changed = change(protected())
    assert raw(decode_private_key(changed, lambda: PHRASE)) == raw(sample_key())


@pytest.mark.parametrize("key_len", [16, 24, 32])
def test_all_aes_key_lengths_work(key_len: int) -> None:
    kdf = KdfParameters(memory_kib=16, iterations=1, threads=2, key_len=key_len)
    content = encode_private_key(
        sample_key(), PHRASE, random_bytes=counted_bytes(), kdf=kdf
    )
    assert describe_key_file(content).kdf == kdf
    assert raw(decode_private_key(content, lambda: PHRASE)) == raw(sample_key())


@pytest.mark.parametrize("name", sorted(GOLDEN["pem_headers"]))
def test_every_header_is_required_once(name: str) -> None:
    line = re.compile(rb"^" + re.escape(name.encode()) + rb": .*\n", re.MULTILINE)
    found = line.search(GOLDEN_FILE)
    assert found is not None
    with pytest.raises(KeyFileError, match=f"lacks the header {name}"):
        decode_private_key(line.sub(b"", GOLDEN_FILE), must_not_ask)
    with pytest.raises(KeyFileError, match="twice"):
        decode_private_key(line.sub(found[0] * 2, GOLDEN_FILE), must_not_ask)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("Argon2id.Memory", str(MAX_MEMORY_KIB + 1), "memory"),
        ("Argon2id.Memory", "4", "memory"),
        ("Argon2id.Memory", "99999999999999999999", "sensible number"),
        ("Argon2id.Memory", "-1", "sensible number"),
        ("Argon2id.Memory", "0x10", "sensible number"),
        ("Argon2id.Memory", "\uff11\uff16", "not ASCII"),
        ("Argon2id.Iterations", "0", "iterations"),
        ("Argon2id.Iterations", "4000000000", "iterations"),
        ("Argon2id.Iterations", "1025", "iterations"),
        ("Argon2id.Threads", "0", "threads"),
        ("Argon2id.Threads", "256", "threads"),
        ("Argon2id.KeyLength", "31", "key length"),
        ("Argon2id.KeyLength", "4294967295", "key length"),
        ("Argon2id.Salt", "00", "has 1 bytes"),
        ("Argon2id.Salt", "zz", "not hex"),
        ("Argon2id.Salt", "00" * 65, "has 65 bytes"),
        ("AESGCM.Nonce", "00", "has 1 bytes"),
        ("AESGCM.Nonce", "nonce", "not hex"),
        ("CipherSuite", "ROT13", "unknown cipher"),
    ],
)
def test_hostile_headers_are_refused_before_any_work(
    name: str, value: str, why: str
) -> None:
    old = f"{name}: {GOLDEN['pem_headers'][name]}".encode()
    assert old in GOLDEN_FILE
    changed = GOLDEN_FILE.replace(old, f"{name}: {value}".encode())
    with pytest.raises(KeyFileError, match=why):
        decode_private_key(changed, must_not_ask)
    with pytest.raises(KeyFileError, match=why):
        describe_key_file(changed)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no PEM block"),
        (b"hello", "no PEM block"),
        (bytes(MAX_KEY_FILE_BYTES + 1), "more than"),
        (b"-----BEGIN PRIVATE KEY-----\n", "no PEM block"),
        (b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----", "PKCS#8"),
        (b"-----BEGIN PRIVATE KEY-----\n*\n-----END PRIVATE KEY-----", "base64"),
        (b"-----BEGIN PRIVATE KEY-----\n\xff\n-----END PRIVATE KEY-----", "ASCII"),
        (b"-----BEGIN X-----\nAAAA\n-----END X-----", "PEM type 'X'"),
        (
            b"-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----",
            "RSA",
        ),
        ((DATA / "client.crt").read_bytes(), "CERTIFICATE"),
    ],
)
def test_other_files_are_refused(content: bytes, why: str) -> None:
    with pytest.raises(KeyFileError, match=why):
        decode_private_key(content, must_not_ask)


@pytest.mark.parametrize("seed_len", [0, 31, 33, 64])
def test_an_ed25519_key_of_another_length_is_refused(seed_len: int) -> None:
    inner = b"\x04" + bytes((seed_len,)) + bytes(seed_len)
    outer = bytes.fromhex("020100300506032b6570") + bytes((4, len(inner))) + inner
    der = base64.encodebytes(bytes((0x30, len(outer))) + outer)
    content = b"-----BEGIN PRIVATE KEY-----\n%b-----END PRIVATE KEY-----\n" % der
    with pytest.raises(KeyFileError, match="PKCS#8"):
        decode_private_key(content, must_not_ask)


def test_other_key_kinds_are_named() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    content = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(KeyFileError, match="EC, not Ed25519"):
        decode_private_key(content, must_not_ask)


def test_keys_protected_by_openssl_are_told_apart() -> None:
    content = sample_key().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
    )
    with pytest.raises(KeyFileError, match="openssl pkey"):
        describe_key_file(content)


def test_damage_is_a_pass_phrase_error_and_a_short_body_is_told() -> None:
    content = protected()
    lines = content.split(b"\n")
    body = next(at for at, line in enumerate(lines) if line == b"") + 1
    lines[body] = (b"A" if lines[body][:1] != b"A" else b"B") + lines[body][1:]
    with pytest.raises(PassphraseError):
        decode_private_key(b"\n".join(lines), lambda: PHRASE)
    short = [*lines[:body], b"AAAA", *lines[body + 2 :]]
    with pytest.raises(KeyFileError, match="too short"):
        decode_private_key(b"\n".join(short), lambda: PHRASE)


def test_lack_of_memory_is_a_key_file_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_kwargs: object) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(keyfile, "hash_secret_raw", fail)
    with pytest.raises(KeyFileError, match="free memory"):
        decode_private_key(GOLDEN_FILE, lambda: PHRASE)


def test_nothing_secret_is_shown() -> None:
    for content in (
        protected(),
        encode_private_key(sample_key(), None, random_bytes=bytes),
    ):
        shown = repr(describe_key_file(content))
        assert raw(sample_key()).hex() not in shown
        assert repr(raw(sample_key())) not in shown
    with pytest.raises(PassphraseError) as info:
        decode_private_key(protected(), lambda: b"hunter2")
    assert "hunter2" not in str(info.value)


@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_key_file_error(content: bytes) -> None:
    with pytest.raises(KeyFileError):
        decode_private_key(content, refuse)


@given(
    label=st.sampled_from(["PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "X KEY"]),
    headers=st.dictionaries(
        st.sampled_from([*GOLDEN["pem_headers"], "Other"]),
        st.one_of(
            st.text(max_size=40),
            st.integers().map(str),
            st.sampled_from(list(GOLDEN["pem_headers"].values())),
        ),
    ),
    body=st.one_of(st.binary(max_size=120), st.text(max_size=40).map(str.encode)),
)
def test_any_block_ends_in_a_key_file_error(
    label: str, headers: dict[str, str], body: bytes
) -> None:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    text = "\n".join([f"-----BEGIN {label}-----", *lines, "", ""]).encode(
        "utf-8", "replace"
    )
    with pytest.raises(KeyFileError):
        decode_private_key(text + body + f"\n-----END {label}-----".encode(), refuse)


@given(st.data())
def test_any_damaged_protected_file_ends_in_a_key_or_a_key_file_error(
    data: st.DataObject,
) -> None:
    content = bytearray(protected())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255))
    try:
        info = describe_key_file(content)
        # The damage may have made a costly but allowed number out of a tiny one.
        if info.kdf is not None and info.kdf.memory_kib * info.kdf.iterations > 1000:
            return
        key = decode_private_key(content, lambda: PHRASE)
    except KeyFileError:
        return
    assert raw(key) == raw(sample_key())


@given(seed=st.binary(min_size=32, max_size=32), phrase=st.binary(max_size=64))
def test_keys_survive_the_round_trip(seed: bytes, phrase: bytes) -> None:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    content = encode_private_key(
        key, phrase, random_bytes=counted_bytes(seed), kdf=TINY_KDF
    )
    assert raw(decode_private_key(content, lambda: phrase)) == seed
