"""``openssl s_client`` against the real srv, and ``openssl s_server`` against cli.

What they see is the table in docs/security.md.
"""

import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.attacks.target_server import TargetServer
from tests.attacks.tls13 import extensions_of
from tests.commands.hostile import run
from tests.helpers import wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="there is no openssl program"
)

SUITE = "TLS_CHACHA20_POLY1305_SHA256"
OTHER_SUITES = (
    *("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"),
    *("TLS_AES_128_CCM_SHA256", "TLS_AES_128_CCM_8_SHA256"),
)
TIMEOUT_S = 20.0


def s_client(target: TargetServer, certs: Path, *options: str) -> str:
    """Run ``openssl s_client`` as a good client; return all that it says."""
    files = ("-cert", certs / "client.crt", "-key", certs / "client.key")
    words: list[str | Path] = ["openssl", "s_client", "-connect", target.address]
    done = subprocess.run(
        [*words, *files, "-CAfile", certs / "ca.crt", *options],
        input=b"",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.stdout.decode(errors="replace")


def test_s_client_finds_one_version_and_one_suite(
    target: TargetServer, certs: Path
) -> None:
    said = s_client(target, certs)
    assert f"New, TLSv1.3, Cipher is {SUITE}" in said
    assert re.search(r"(Server|Peer) Temp Key: X25519", said), said
    assert "Peer signature type: " in said
    assert re.search("Peer signature type: ed25519", said, re.IGNORECASE)
    assert "Early data was not sent" in said


def test_s_client_is_asked_for_a_certificate(target: TargetServer, certs: Path) -> None:
    said = s_client(target, certs)
    assert "Requested Signature Algorithms: " in said
    assert "No client certificate CA names sent" in said


@pytest.mark.parametrize("suite", OTHER_SUITES)
def test_s_client_with_another_suite(
    target: TargetServer, certs: Path, suite: str
) -> None:
    said = s_client(target, certs, "-ciphersuites", suite)
    assert "New, (NONE), Cipher is (NONE)" in said
    assert "alert handshake failure" in said


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_1", "-tls1"])
def test_s_client_with_an_older_version(
    target: TargetServer, certs: Path, version: str
) -> None:
    said = s_client(target, certs, version, "-cipher", "ALL:@SECLEVEL=0")
    assert "Cipher is (NONE)" in said
    assert "alert protocol version" in said


@pytest.mark.parametrize("group", ["X25519", "P-256", "P-384", "P-521", "X448"])
def test_s_client_with_each_group(
    target: TargetServer, certs: Path, group: str
) -> None:
    said = s_client(target, certs, "-groups", group)
    assert f"New, TLSv1.3, Cipher is {SUITE}" in said


def test_s_client_with_a_group_that_is_not_ours(
    target: TargetServer, certs: Path
) -> None:
    said = s_client(target, certs, "-groups", "ffdhe8192")
    assert "Cipher is (NONE)" in said
    assert "alert handshake failure" in said


# What our client offers.


def hello_of_cli(certs: Path, home: Path) -> bytes:
    """Return the ClientHello of the real cli, without the record's header."""
    found = b""

    def listen() -> None:
        nonlocal found
        plain, _ = listener.accept()
        with plain:
            plain.settimeout(TIMEOUT_S)
            found = plain.recv(65_536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=listen)
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        run("cli", "-s", address, "-certs", certs, cwd=home)
        thread.join(TIMEOUT_S)
    return found[5:]


def test_cli_offers_one_version_one_suite_and_no_session(
    certs: Path, tmp_path: Path
) -> None:
    hello = hello_of_cli(certs, tmp_path)
    at = 39 + hello[38]
    suites_len = int.from_bytes(hello[at : at + 2], "big")
    suites = hello[at + 2 : at + 2 + suites_len]
    # 00ff is no suite but a signal of RFC 5746, which says nothing in TLS 1.3.
    assert suites in (b"\x13\x03", b"\x13\x03\x00\xff")
    # A ServerHello has three bytes where a ClientHello has two lists.
    behind = hello[at + 2 + suites_len :]
    assert behind[:2] == b"\x01\x00"  # no compression
    offered = extensions_of(hello[:38] + b"\0" + bytes(3) + behind[2:])
    assert offered[43] == b"\x02\x03\x04"  # TLS 1.3 alone
    assert offered[0].endswith(b"localhost")
    assert not offered.keys() & {16, 41, 42}  # ALPN, session, early data
    groups = offered[10][2:]
    assert b"\x00\x1d" in {groups[i : i + 2] for i in range(0, len(groups), 2)}


@contextmanager
def s_server(certs: Path, *options: str) -> Iterator[tuple[str, list[str]]]:
    """Run ``openssl s_server`` as a good server; yield address and what it says."""
    files = ("-cert", certs / "node.crt", "-key", certs / "node.key")
    words: list[str | Path] = ["openssl", "s_server", "-accept", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*words, "-naccept", "1", *files, "-CAfile", certs / "ca.crt", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    said: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        said.extend(process.stdout)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        wait_until(lambda: any(one.startswith("ACCEPT ") for one in list(said)))
        accept = next(one for one in said if one.startswith("ACCEPT "))
        yield accept.split()[1], said
        process.wait(TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
        thread.join()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def test_s_server_gets_the_one_suite_and_our_certificate(
    certs: Path, tmp_path: Path
) -> None:
    words = ("-certs", certs, "-wait", "300ms", "-v")
    with s_server(certs, "-Verify", "1") as (address, said):
        outcome = run("cli", "-s", address, *words, cwd=tmp_path)
    text = "".join(said)
    assert f"TLSv1.3 {SUITE}" in outcome.stderr
    assert re.search(f"(CIPHER is |Ciphersuite: ){SUITE}", text), text
    assert f"Shared ciphers:{SUITE}\n" in text
    assert "emailAddress" in text or "BEGIN CERTIFICATE" in text


@pytest.mark.parametrize(
    "options", [("-ciphersuites", "TLS_AES_256_GCM_SHA384"), ("-tls1_2",)]
)
def test_s_server_with_another_suite_or_version(
    certs: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    with s_server(certs, *options) as (address, _):
        line = run("cli", "-s", address, "-certs", os.fspath(certs), cwd=tmp_path)
    assert "TLS handshake failed" in line.error(4)
