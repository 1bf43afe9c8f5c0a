"""``selfy -v`` shows certificates and keys, ``selfy -verify`` judges certificates."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from rpc25519_tools.identity.authority import generate_key
from rpc25519_tools.identity.keyfile import encode_private_key
from tests.commands.selfies import (
    finish,
    on_a_terminal,
    run,
)
from tests.identity.samples import (
    DATA,
    NOW,
    TINY_KDF,
    golden_certificate,
    odd_certificate,
    pem,
    sample_authority,
    sample_leaf,
)

pytestmark = pytest.mark.usefixtures("selfy_workplace")

# Certificates that are good on any plausible clock of a test machine.
LONG_AGO = NOW - timedelta(days=3650)
CENTURY = timedelta(days=36500)


@pytest.mark.parametrize("name", ["ca", "client"])
def test_view_shows_the_golden_identity(name: str) -> None:
    shown = run("-v", str(DATA / f"{name}.crt")).stdout
    golden = (DATA / f"selfy-view-{name}.txt").read_text()
    for label in ("hex", "base58"):
        line = next(line for line in shown.splitlines() if f"key, {label}:" in line)
        assert f" {line.split()[-1]} (" in golden
    assert "valid, " in shown
    assert " days left" in shown


def test_view_as_json() -> None:
    fields = json.loads(run("-v", str(DATA / "client.crt"), "--json").stdout)
    assert fields["key_id"] == "9ZWZYQmC262jcpxETnEhHmuUDs4TdSWz5PXmXRYjyJoACSF29qs"
    assert fields["kind"] == "certificate"
    fields = json.loads(run("-v", str(DATA / "client.encrypted.key"), "--json").stdout)
    assert fields["kdf"]["memory_kib"] == 262144
    assert fields["protected"] is True


def test_view_of_a_protected_key_needs_no_phrase_and_tries_one_that_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = encode_private_key(
        generate_key(os.urandom), b"right", random_bytes=os.urandom, kdf=TINY_KDF
    )
    Path("x.key").write_bytes(key)
    Path("x.key").chmod(0o644)
    result = run("-v", "x.key")
    assert "Key derivation:      Argon2id" in result.stdout
    assert "Memory:              0.0078125 MiB" in result.stdout
    assert "Public key" not in result.stdout
    assert "was not opened" in result.stderr
    assert "warning: others can use x.key (mode 0644): chmod 600" in result.stderr
    monkeypatch.setenv("RPC25519_PASSPHRASE", "right")
    assert "Public key, base58:  9" in run("-v", "x.key").stdout
    monkeypatch.setenv("RPC25519_PASSPHRASE", "wrong")
    assert "x.key: wrong pass phrase" in run("-v", "x.key", code=4).stderr


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"hello", "x: not a certificate"),
        (b"", "x: not a certificate"),
        (bytes(10**6), "x is too long"),
        (
            b"-----BEGIN RSA PRIVATE KEY-----\n-----END RSA PRIVATE KEY-----\n",
            "x: not an",
        ),
    ],
)
def test_view_of_other_files_is_refused(content: bytes, why: str) -> None:
    Path("x").write_bytes(content)
    assert f"selfy: {why}" in run("-v", "x", code=4).stderr


def test_view_on_a_terminal_is_a_table() -> None:
    with on_a_terminal("-v", str(DATA / "client.crt")) as child:
        child.setwinsize(40, 120)
        code, shown = finish(child)
    assert code == 0, shown
    assert "client@example.org" in shown
    assert "╭" in shown
    assert "9ZWZYQmC262jcpxETnEhHmuUDs4TdSWz5PXmXRYjyJoACSF29qs" in shown


@pytest.fixture
def vault() -> Path:
    """A directory with an authority that is good today."""
    directory = Path("my-keep-private-dir")
    directory.mkdir(mode=0o700)
    authority = sample_authority(now=LONG_AGO, life=CENTURY)
    (directory / "ca.crt").write_bytes(pem(authority))
    return directory


def today(**changes: object) -> x509.Certificate:
    arguments = {"now": LONG_AGO, "life": CENTURY, **changes}
    return sample_leaf(**arguments)  # type: ignore[arg-type]  # as given by the caller


def odd(*extensions: tuple[x509.ExtensionType, bool], **rest: object) -> bytes:
    return pem(
        odd_certificate(*extensions, now=LONG_AGO, life=CENTURY, **rest)  # type: ignore[arg-type]  # as given
    )


@pytest.mark.parametrize(
    ("content", "result"),
    [
        (pem(today()), "usable as client and as server"),
        (pem(today(usages=("client",))), "usable as client, not as server ("),
        (pem(today(usages=("server",))), "usable as server, not as client ("),
        (odd(), "names do not include 'localhost'"),
        (pem(sample_authority(now=LONG_AGO, life=CENTURY)), "is the authority itself"),
    ],
    ids=["both", "client", "server", "no name", "authority"],
)
def test_good_certificates_verify(vault: Path, content: bytes, result: str) -> None:
    del vault
    Path("x.crt").write_bytes(content)
    shown = run("-verify", "x.crt").stdout
    assert shown.startswith("x.crt is valid: it ")
    assert result in shown
    assert shown.endswith(" days left\n")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (pem(today(ca_seed=101)), "not signed by our certificate authority"),
        (pem(golden_certificate("client")), "not signed by our"),
        (pem(today(life=timedelta(days=1))), "it expired on 2016"),
        (pem(today(now=datetime(2200, 1, 1, tzinfo=UTC))), "not valid before 2200"),
        (
            odd((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False)),
            "does not allow use as a client; certificate refused: its ext",
        ),
        (
            odd(public_key=ec.generate_private_key(ec.SECP256R1()).public_key()),
            "its key is of type EC, not Ed25519",
        ),
        (b"rubbish", "x.crt is not a certificate"),
        (b"", "x.crt is not a certificate"),
        ((DATA / "client.key").read_bytes(), "x.crt is not a certificate"),
        (None, "cannot read x.crt: no such file"),
    ],
    ids=[
        *("signature", "authority", "expired", "early", "usage", "key type"),
        *("rubbish", "empty", "key", "missing"),
    ],
)
def test_bad_certificates_fail_with_the_reason(
    vault: Path, content: bytes | None, why: str
) -> None:
    del vault
    if content is not None:
        Path("x.crt").write_bytes(content)
    result = run("-verify", "x.crt", code=1)
    assert result.stdout == ""
    assert result.stderr.startswith("selfy: x.crt: not valid: ")
    assert why in result.stderr


@pytest.mark.parametrize("seed", [100, 101])
def test_verify_trusts_every_authority_of_the_bundle(vault: Path, seed: int) -> None:
    authorities = [
        sample_authority(seed=each, now=LONG_AGO, life=CENTURY) for each in (100, 101)
    ]
    bundle = vault / "ca.crt"
    bundle.write_bytes(b"".join(map(pem, authorities)))
    Path("x.crt").write_bytes(pem(today(ca_seed=seed)))
    assert f"it was issued by {bundle}; usable" in run("-verify", "x.crt").stdout
    Path("x.crt").write_bytes(pem(authorities[seed - 100]))
    shown = run("-verify", "x.crt").stdout
    assert f"it is the authority itself, self-signed, in {bundle};" in shown
    Path("x.crt").write_bytes(pem(today(ca_seed=102)))
    result = run("-verify", "x.crt", code=1)
    assert "not signed by our certificate authority" in result.stderr
    assert result.stderr.endswith(f" (checked against {bundle})\n")


def test_an_expired_authority_of_the_bundle_vouches_for_nobody(vault: Path) -> None:
    good = (vault / "ca.crt").read_bytes()
    expired = sample_authority(seed=101, now=LONG_AGO, life=timedelta(days=1))
    (vault / "ca.crt").write_bytes(good + pem(expired))
    Path("x.crt").write_bytes(pem(today(ca_seed=101)))
    result = run("-verify", "x.crt", code=1)
    assert "certificate authority refused: it expired on 2016" in result.stderr


def test_verify_without_any_authority_fails() -> None:
    Path("x.crt").write_bytes(pem(today()))
    result = run("-verify", "x.crt", code=1)
    assert "cannot read my-keep-private-dir/ca.crt" in result.stderr


def test_verify_falls_back_to_the_copy_beside_the_keys(vault: Path) -> None:
    Path("certs").mkdir()
    (vault / "ca.crt").rename("certs/ca.crt")
    Path("x.crt").write_bytes(pem(today()))
    assert "issued by certs/ca.crt" in run("-verify", "x.crt").stdout


def test_an_expired_authority_fails_verification(vault: Path) -> None:
    expired = sample_authority(now=LONG_AGO, life=timedelta(days=1))
    (vault / "ca.crt").write_bytes(pem(expired))
    Path("x.crt").write_bytes(pem(today()))
    for path in ("x.crt", "my-keep-private-dir/ca.crt"):
        assert "it expired on 2016" in run("-verify", path, code=1).stderr
