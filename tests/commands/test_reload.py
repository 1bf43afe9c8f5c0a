"""A running ``srv`` whose certificate, key or authority is replaced."""

import asyncio
import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.files.echo import ECHO_CALL_SERVICE
from rpc25519_tools.identity.authority import mint_certificate, random_serial_number
from rpc25519_tools.identity.issue import load_authority
from rpc25519_tools.identity.keyfile import encode_private_key
from rpc25519_tools.identity.renew import Renewal, renew
from rpc25519_tools.identity.store import load_certificate, load_private_key
from rpc25519_tools.rpc.client import Client
from tests.helpers import SrvProcess, issue_certs, program_path, run_program
from tests.identity.samples import TINY_KDF
from tests.transport.peers import s_client


@pytest.fixture
def own_certs(tmp_path: Path) -> Path:
    return issue_certs(tmp_path, "node", "client")


def renewed(certs: Path, *names: str, authority: bool = False) -> None:
    renew(
        Renewal(
            private_dir=certs.parent / "my-keep-private-dir",
            certs_dir=certs,
            names=names,
            authority=authority,
        ),
        None,
        now=datetime.now(UTC),
        random_bytes=os.urandom,
    )


def with_life(certs: Path, name: str, *, begin: timedelta, end: timedelta) -> None:
    """Replace a certificate by one that lives from and until so long from now."""
    ca, ca_key = load_authority(certs.parent / "my-keep-private-dir", None, now=None)
    path, now = certs / f"{name}.crt", datetime.now(UTC)
    key = load_certificate(path).public_key()
    certificate = mint_certificate(
        key,  # type: ignore[arg-type]  # ours are all Ed25519
        ca=ca,
        ca_key=ca_key,
        email=f"{name}@example.org",
        now=now + begin,
        not_after=now + end,
        serial_number=random_serial_number(os.urandom),
    )
    path.write_bytes(certificate.public_bytes(Encoding.PEM))


async def serial_of(server: SrvProcess, certs: Path) -> int:
    """Return the serial number of the certificate that openssl is shown."""
    output = await s_client(
        server.address,
        *("-cert", os.fspath(certs / "client.crt")),
        *("-key", os.fspath(certs / "client.key")),
        *("-CAfile", os.fspath(certs / "ca.crt"), "-verify_return_error"),
    )
    assert "Verify return code: 0 (ok)" in output
    match = re.search("-----BEGIN CERT.*-----END CERT[^\n]*", output, re.DOTALL)
    assert match is not None
    path = certs / "shown.pem"
    path.write_text(match[0])
    return load_certificate(path).serial_number


def client_config(server: SrvProcess, certs: Path) -> Config:
    return Config(
        address=parse_address(server.address),
        certs_dir=os.fspath(certs),
        key_name="client",
    )


async def test_a_transfer_goes_on_while_new_connections_get_the_new_one(
    own_certs: Path, tmp_path: Path
) -> None:
    served = tmp_path / "up"
    served.mkdir()
    old = load_certificate(own_certs / "node.crt")
    with SrvProcess("-readfile", served, certs=own_certs) as server:
        assert await serial_of(server, own_certs) == old.serial_number
        process = await asyncio.create_subprocess_exec(
            program_path("cli"),
            *("-s", server.address, "-certs", own_certs, "-quiet"),
            *("-sendfile", "-", "--to", "long.bin"),
            stdin=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(b"x" * 3_000_000)
        await process.stdin.drain()  # so that the transfer is under way
        async with await Client.connect(client_config(server, own_certs)) as client:
            await client.call(ECHO_CALL_SERVICE, b"before")
            renewed(own_certs, "node")
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("new connections get the changed certificate: node@")
            new = load_certificate(own_certs / "node.crt")
            assert new.serial_number != old.serial_number
            assert await serial_of(server, own_certs) == new.serial_number
            assert f"serial number {new.serial_number:x}" in server.stderr()
            await client.call(ECHO_CALL_SERVICE, b"after")
        process.stdin.write(b"y" * 3_000_000)
        process.stdin.close()
        assert await process.wait() == 0
        found = (served / "long.bin").read_bytes()
        assert found == b"x" * 3_000_000 + b"y" * 3_000_000
        assert server.stop() == 0


async def test_files_are_looked_at_without_a_signal(own_certs: Path) -> None:
    with SrvProcess(certs=own_certs) as server:
        renewed(own_certs, "node", authority=True)
        server.wait_for("new connections get the changed certificate")
        new = load_certificate(own_certs / "node.crt")
        assert await serial_of(server, own_certs) == new.serial_number


async def test_broken_files_leave_the_old_certificate(own_certs: Path) -> None:
    with SrvProcess(certs=own_certs) as server:
        old = load_certificate(own_certs / "node.crt")
        shutil.copy(own_certs / "client.crt", own_certs / "node.crt")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("node.key is not the key of")
        lines = server.stderr_lines()
        assert len(lines) == 1
        assert lines[0].startswith(
            "srv: warning: the changed certificate files are not used, the old ones "
            f"stay in use: {own_certs}/node.key is not the key of {own_certs}/node.crt"
        )
        assert await serial_of(server, own_certs) == old.serial_number
        (own_certs / "node.crt").write_bytes(b"-----BEGIN CERTIFICATE-----\nMII")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("node.crt is not a certificate")
        assert await serial_of(server, own_certs) == old.serial_number
        assert server.process.poll() is None


async def test_an_expired_certificate_is_replaced_while_srv_runs(
    own_certs: Path,
) -> None:
    with_life(own_certs, "node", begin=timedelta(days=-1), end=timedelta(seconds=4))
    with SrvProcess(certs=own_certs) as server:
        assert "our certificate node.crt ends today, on" in server.stderr()
        server.wait_for("our certificate node.crt expired on", timeout_s=15)
        args = ("-s", server.address, "-certs", own_certs)
        refused = run_program("cli", *args)
        assert refused.returncode == 4
        assert "expired" in refused.stderr
        renewed(own_certs, "node")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("new connections get the changed certificate")
        assert run_program("cli", *args).returncode == 0


def test_a_client_of_a_new_authority_is_let_in(own_certs: Path, tmp_path: Path) -> None:
    other = issue_certs(tmp_path / "other", "client")
    both = (own_certs / "ca.crt").read_bytes() + (other / "ca.crt").read_bytes()
    (other / "ca.crt").write_bytes(both)
    with SrvProcess(certs=own_certs) as server:
        args = ("-s", server.address, "-certs", other)
        assert run_program("cli", *args).returncode == 4
        (own_certs / "ca.crt").write_bytes(both)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("new connections get the changed certificate")
        assert run_program("cli", *args).returncode == 0


def protect(certs: Path, name: str, phrase: bytes) -> None:
    """Put a pass phrase on a key, with a cheap derivation."""
    path = certs / f"{name}.key"
    path.write_bytes(
        encode_private_key(
            load_private_key(path, None),
            phrase,
            random_bytes=os.urandom,
            kdf=TINY_KDF,
        )
    )


@pytest.mark.parametrize("given", [True, False], ids=["file", "no-file"])
async def test_protected_keys_that_are_replaced(
    own_certs: Path, tmp_path: Path, given: bool
) -> None:
    new = issue_certs(tmp_path / "new", "node")
    protect(own_certs, "node", b"first")
    protect(new, "node", b"second")
    phrase = tmp_path / "phrase"
    phrase.write_text("first\n")
    args = ("-passphrase-file", phrase) if given else ()
    env = {} if given else {"RPC25519_PASSPHRASE": "first"}
    old = load_certificate(own_certs / "node.crt")
    with SrvProcess(*args, certs=own_certs, env=env) as server:
        renewed(own_certs, "node")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("new connections get the changed certificate")
        current = load_certificate(own_certs / "node.crt")
        assert await serial_of(server, own_certs) == current.serial_number
        assert current.serial_number != old.serial_number
        # Another key, another pass phrase, and both authorities for a while.
        both = (own_certs / "ca.crt").read_bytes() + (new / "ca.crt").read_bytes()
        phrase.write_text("second\n")
        for name in ("node.key", "node.crt"):
            shutil.copy(new / name, own_certs / name)
        (own_certs / "ca.crt").write_bytes(both)
        server.process.send_signal(signal.SIGHUP)
        if given:
            other = load_certificate(new / "node.crt")
            server.wait_for(f"serial number {other.serial_number:x}")
            assert await serial_of(server, own_certs) == other.serial_number
        else:
            server.wait_for("node.key: wrong pass phrase")
            assert await serial_of(server, own_certs) == current.serial_number


@pytest.mark.parametrize("name", ["node", "client"])
def test_who_has_a_certificate_that_ends_soon_is_warned(
    own_certs: Path, name: str
) -> None:
    with_life(own_certs, name, begin=timedelta(days=-1), end=timedelta(days=12.5))
    with SrvProcess("-quiet", certs=own_certs) as server:
        result = run_program("cli", "-quiet", "-s", server.address, "-certs", own_certs)
        assert result.returncode == 0
        warned = {"node": server.stderr(), "client": result.stderr}
    others = warned[({"node", "client"} - {name}).pop()]
    assert re.fullmatch(
        f"(srv|cli): warning: our certificate {name}.crt ends in 12 days, on [-0-9]* "
        f"[:0-9]* UTC: `selfy renew {name}` makes a new one\n",
        warned[name],
    )
    assert others == ""


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A pseudo-terminal: both of its ends."""
    ends = pty.openpty()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def test_a_terminal_that_hangs_up_stops_srv(
    own_certs: Path, terminal: tuple[int, int]
) -> None:
    master, slave = terminal
    process = subprocess.Popen(
        [
            # Also where the tests themselves run under nohup.
            *("env", "--default-signal=HUP", "setsid", "--ctty"),
            *(program_path("srv"), "-s", "127.0.0.1:0"),
        ],
        cwd=own_certs.parent,
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        with process.stdout:
            assert b"listening on" in process.stdout.readline()
            process.send_signal(signal.SIGHUP)  # an administrator's: it goes on
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            os.close(slave)
            os.close(master)
            assert process.wait(10) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
