"""What is minted, byte for byte and in the eyes of other TLS stacks."""

import ipaddress
import shutil
import ssl
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from rpc25519_tools.errors import ConfigError
from rpc25519_tools.identity.authority import (
    DEFAULT_DAYS,
    MAX_TUNNEL_CERTIFICATE_BYTES,
    SERIAL_OCTETS,
    check_email,
    end_of_life,
    mint_authority,
    mint_certificate,
    parse_alternative_name,
    random_serial_number,
)
from rpc25519_tools.identity.keyfile import encode_private_key

from .samples import (
    NOW,
    counted_bytes,
    golden_certificate,
    golden_key,
    pem,
    sample_authority,
    sample_key,
    sample_leaf,
)

OPENSSL = shutil.which("openssl")


@pytest.mark.parametrize("name", ["client", "node"])
def test_leaf_equals_the_go_peers_byte_for_byte(name: str) -> None:
    golden = golden_certificate(name)
    begin = golden.not_valid_before_utc
    minted = mint_certificate(
        golden_key(name).public_key(),
        ca=golden_certificate("ca"),
        ca_key=golden_key("ca"),
        email=f"{name}@example.org",
        now=begin + timedelta(microseconds=999_999),
        not_after=end_of_life(begin, DEFAULT_DAYS),
        serial_number=2,
    )
    assert pem(minted) == pem(golden)


def test_authority_equals_the_go_peers_but_for_its_extended_key_usage() -> None:
    golden = golden_certificate("ca")
    begin = golden.not_valid_before_utc
    minted = mint_authority(
        golden_key("ca"),
        now=begin,
        not_after=end_of_life(begin, DEFAULT_DAYS),
        serial_number=1,
    )
    assert minted.subject.public_bytes() == golden.subject.public_bytes()
    assert minted.issuer.public_bytes() == golden.issuer.public_bytes()
    assert minted.not_valid_before_utc == golden.not_valid_before_utc
    assert minted.not_valid_after_utc == golden.not_valid_after_utc
    theirs = [
        extension
        for extension in golden.extensions
        if extension.oid != ExtensionOID.EXTENDED_KEY_USAGE
    ]
    assert list(minted.extensions) == theirs
    assert len(list(golden.extensions)) == len(theirs) + 1


def test_serial_numbers_are_positive_and_fit() -> None:
    for seed in range(50):
        serial = random_serial_number(counted_bytes(bytes([seed])))
        assert 0 < serial < 1 << (8 * SERIAL_OCTETS - 1)
    assert random_serial_number(bytes) == 1
    biggest = random_serial_number(lambda count: b"\xff" * count)
    assert biggest.bit_length() == 8 * SERIAL_OCTETS - 1


def test_a_common_email_leaves_room_in_the_reference_tunnel() -> None:
    serial = (1 << (8 * SERIAL_OCTETS - 1)) - 1

    def der_len(email: str) -> int:
        certificate = mint_certificate(
            sample_key().public_key(),
            ca=sample_authority(),
            ca_key=sample_key(100),
            email=email,
            now=NOW,
            not_after=end_of_life(NOW, DEFAULT_DAYS),
            serial_number=serial,
        )
        return len(certificate.public_bytes(Encoding.DER))

    assert der_len("e" * 119) <= MAX_TUNNEL_CERTIFICATE_BYTES
    assert der_len("e" * 130) > MAX_TUNNEL_CERTIFICATE_BYTES


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("files.example", x509.DNSName("files.example")),
        ("*.example.org", x509.DNSName("*.example.org")),
        ("DNS:10", x509.DNSName("10")),
        ("10.0.0.7", x509.IPAddress(ipaddress.ip_address("10.0.0.7"))),
        ("::1", x509.IPAddress(ipaddress.ip_address("::1"))),
        ("ip:fe80::2", x509.IPAddress(ipaddress.ip_address("fe80::2"))),
        ("bob@example.org", x509.RFC822Name("bob@example.org")),
        ("email:ops team", x509.RFC822Name("ops team")),
    ],
)
def test_alternative_names(text: str, name: x509.GeneralName) -> None:
    assert parse_alternative_name(text) == name


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "a..b", "-a", "a b", "ä.example", "a.*", "ip:x", "dns:a/b"),
        *("x" * 254, "email:", "a\n@b", "é@b", "host:443"),
    ],
)
def test_bad_alternative_names_are_refused(text: str) -> None:
    with pytest.raises(ConfigError) as info:
        parse_alternative_name(text)
    assert str(info.value).isprintable()


@pytest.mark.parametrize(
    "email", ["", " ", "jörg@example.org", "a\nb@c", "a\x00", "\t"]
)
def test_bad_emails_are_refused(email: str) -> None:
    with pytest.raises(ConfigError, match="e-mail"):
        check_email(email)


def test_lives_out_of_range_are_refused() -> None:
    assert end_of_life(NOW, 1) == NOW + timedelta(days=1)
    for days in (0, -1, 3_000_000, 10**12):
        with pytest.raises(ConfigError, match="day"):
            end_of_life(NOW, days)


def test_extra_names_follow_the_standard_ones_once() -> None:
    leaf = sample_leaf(
        extra_names=(x509.DNSName("localhost"), x509.DNSName("b"), x509.DNSName("b"))
    )
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [
        x509.DNSName("localhost"),
        x509.RFC822Name("ann@example.org"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.DNSName("b"),
    ]


def test_authority_without_key_identifier_can_issue() -> None:
    bare = (
        x509.CertificateBuilder()
        .subject_name(sample_authority().subject)
        .issuer_name(sample_authority().subject)
        .public_key(sample_key(100).public_key())
        .serial_number(3)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=9))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(sample_key(100), None)
    )
    wanted = sample_leaf().extensions.get_extension_for_class(
        x509.AuthorityKeyIdentifier
    )
    made = sample_leaf(ca=bare).extensions
    assert made.get_extension_for_class(x509.AuthorityKeyIdentifier) == wanted


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A directory with an authority, a leaf and its key, valid on today's clock."""
    begin = NOW - timedelta(days=3650)  # any plausible clock of a test machine
    ca = sample_authority(now=begin, life=timedelta(days=36500))
    leaf = sample_leaf(ca=ca, now=begin, life=timedelta(days=36000))
    (tmp_path / "ca.crt").write_bytes(pem(ca))
    (tmp_path / "leaf.crt").write_bytes(pem(leaf))
    key_file = encode_private_key(sample_key(), None, random_bytes=bytes)
    (tmp_path / "leaf.key").write_bytes(key_file)
    return tmp_path


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
@pytest.mark.parametrize("strict", [(), ("-x509_strict",)])
def test_openssl_accepts_the_chain(
    chain: Path, purpose: str, strict: tuple[str, ...]
) -> None:
    command = [str(OPENSSL), "verify", *strict, "-purpose", purpose]
    done = subprocess.run(
        [*command, "-CAfile", "ca.crt", "leaf.crt"],
        cwd=chain,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "leaf.crt: OK\n"), done.stderr


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
def test_openssl_reads_certificate_and_key(chain: Path) -> None:
    def run(*words: str) -> str:
        return subprocess.run(
            [str(OPENSSL), *words],
            cwd=chain,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    text = run("x509", "-in", "leaf.crt", "-noout", "-text")
    assert "DNS:localhost, email:ann@example.org, IP Address:127.0.0.1" in text
    assert "TLS Web Client Authentication, TLS Web Server Authentication" in text
    assert "CA:TRUE" in run("x509", "-in", "ca.crt", "-noout", "-text")
    public = run("pkey", "-in", "leaf.key", "-pubout")
    assert public == run("x509", "-in", "leaf.crt", "-noout", "-pubkey")


def test_stdlib_ssl_accepts_both_roles(chain: Path) -> None:
    def context(protocol: int) -> ssl.SSLContext:
        made = ssl.SSLContext(protocol)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        made.load_cert_chain(chain / "leaf.crt", chain / "leaf.key")
        made.load_verify_locations(chain / "ca.crt")
        made.verify_mode = ssl.CERT_REQUIRED
        made.verify_flags |= ssl.VERIFY_X509_STRICT  # the default since Python 3.13
        return made

    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(
        to_client, to_server, server_hostname="localhost"
    )
    server = context(ssl.PROTOCOL_TLS_SERVER).wrap_bio(
        to_server, to_client, server_side=True
    )
    finished: set[ssl.SSLObject] = set()
    for _ in range(10):
        for side in (client, server):
            try:
                side.do_handshake()
                finished.add(side)
            except ssl.SSLWantReadError:
                pass
    assert finished == {client, server}
    client.write(b"ping")
    assert server.read() == b"ping"
    wanted = sample_key().public_key().public_bytes_raw()
    for side in (client, server):
        der = side.getpeercert(binary_form=True)
        assert der is not None
        assert wanted in der
