"""Keys, certificates and pass phrases that are wrong, or have come to their end."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import PeerNotTrustedError
from rpc25519_tools.files.echo import ECHO_CALL_SERVICE
from rpc25519_tools.identity.keyfile import (
    KdfParameters,
    decode_private_key,
    encode_private_key,
)
from rpc25519_tools.identity.store import (
    LoadedIdentity,
    load_certificate,
    load_private_key,
)
from rpc25519_tools.rpc.client import Client
from tests.commands.hostile import HostileServer, Outcome, Wire, run
from tests.commands.mistakes import FILES, TRUST, USAGE, copied
from tests.helpers import SrvProcess, issue_certs

PHRASE = b"correct horse"
#: As weak as can be, to be fast.
WEAK_KDF = KdfParameters(memory_kib=8, iterations=1, threads=1, key_len=32)


@pytest.fixture(scope="module")
def srv(certs: Path) -> Iterator[SrvProcess]:
    with SrvProcess(certs=certs) as process:
        yield process
        assert process.process.poll() is None
        assert "Traceback" not in process.stderr()


BOTH = pytest.mark.parametrize(
    ("program", "name"), [("cli", "client"), ("srv", "node")]
)


def run_here(program: str, home: Path, *args: str, **kwargs: "bytes | None") -> Outcome:
    """Run with the certificates of the current directory."""
    address = "127.0.0.1:0" if program == "srv" else "127.0.0.1:1"
    return run(program, "-s", address, *args, cwd=home, **kwargs)  # type: ignore[arg-type]  # input


# Keys and certificates


@BOTH
def test_no_certificate_directory(home: Path, program: str, name: str) -> None:
    line = run_here(program, home).error(TRUST)
    assert line == f"no certificate directory certs: run `selfy -k {name}` to make one"


@BOTH
@pytest.mark.parametrize("missing", ["ca.crt", "{}.crt", "{}.key"])
def test_missing_file_of_an_identity(
    certs: Path, home: Path, program: str, name: str, missing: str
) -> None:
    path = copied(certs, home) / missing.format(name)
    path.unlink()
    line = run_here(program, home).error(TRUST)
    assert line.startswith(f"there is no certs/{path.name}: ")


@BOTH
def test_wrong_key_name(certs: Path, home: Path, program: str, name: str) -> None:
    copied(certs, home)
    line = run_here(program, home, "-k", "nobody").error(TRUST)
    assert line.startswith("there is no certs/nobody.crt: ")


@pytest.mark.parametrize("key", ["../client", "a/b", "/etc/passwd", "..", "a\\b"])
def test_key_name_that_leads_elsewhere(certs: Path, home: Path, key: str) -> None:
    copied(certs, home)
    line = run_here("cli", home, f"-k={key}").error(USAGE)
    assert line.startswith("key_name must be the name of a pair, not ")


@pytest.mark.parametrize("name", ["", ".client", "-x", "x" * 300])
def test_key_name_that_is_no_plain_name(certs: Path, home: Path, name: str) -> None:
    copied(certs, home)
    line = run_here("cli", home, f"-k={name}").error(USAGE)
    assert "a name " in line


@BOTH
def test_certificate_that_is_none(
    certs: Path, home: Path, program: str, name: str
) -> None:
    (copied(certs, home) / f"{name}.crt").write_text("no certificate\n")
    assert f"certs/{name}.crt" in run_here(program, home).error(TRUST)


@BOTH
def test_key_that_is_none(certs: Path, home: Path, program: str, name: str) -> None:
    (copied(certs, home) / f"{name}.key").write_text("no key\n")
    assert f"certs/{name}.key" in run_here(program, home).error(TRUST)


@BOTH
def test_key_of_another_certificate(
    certs: Path, home: Path, program: str, name: str
) -> None:
    directory = copied(certs, home)
    other = "client" if name == "node" else "node"
    shutil.copy(certs / f"{other}.key", directory / f"{name}.key")
    line = run_here(program, home).error(TRUST)
    assert line == f"certs/{name}.key is not the key of certs/{name}.crt"


@BOTH
def test_certificate_of_another_authority(
    certs: Path, other_certs: Path, home: Path, program: str, name: str
) -> None:
    shutil.copy(other_certs / "ca.crt", copied(certs, home) / "ca.crt")
    assert f"certs/{name}.crt" in run_here(program, home).error(TRUST)


@pytest.fixture(scope="module")
def expired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates ``node`` and ``client`` that ended, of an authority that did not."""
    now = datetime.now(UTC)
    path = tmp_path_factory.mktemp("expired")
    issue_certs(path, "node", "client", now=now - timedelta(days=9), days=2)
    return path / "certs"


def loaded(directory: Path, name: str) -> LoadedIdentity:
    """Load an identity without the checks that would refuse it."""
    return LoadedIdentity(
        name=name,
        certificate=load_certificate(directory / f"{name}.crt"),
        private_key=load_private_key(directory / f"{name}.key", None),
        ca=load_certificate(directory / "ca.crt"),
    )


@BOTH
def test_own_certificate_has_expired(
    expired: Path, home: Path, program: str, name: str
) -> None:
    line = run_here(program, home, "-certs", str(expired)).error(TRUST)
    assert f"{name}.crt" in line
    assert "expired" in line


@pytest.fixture(scope="module")
def valid(expired: Path) -> Path:
    """The same authority's valid certificates ``new-node`` and ``new-client``."""
    return issue_certs(expired.parent, "new-node", "new-client")


async def silent(wire: Wire) -> None:
    await wire.gone.wait()


def test_certificate_of_the_server_has_expired(
    expired: Path, valid: Path, home: Path
) -> None:
    with HostileServer(silent, loaded(expired, "node")) as server:
        args = ["-s", server.address, "-certs", str(valid), "-k", "new-client"]
        line = run("cli", *args, cwd=home).error(TRUST)
    assert "expired" in line


def test_certificate_of_the_client_has_expired(expired: Path, valid: Path) -> None:
    with SrvProcess("-k", "new-node", certs=valid) as srv:

        async def call(name: str) -> None:
            config = Config(address=parse_address(srv.address))
            identity = loaded(valid, name)
            async with await Client.connect(config, identity) as client:
                await client.call(ECHO_CALL_SERVICE, b"hello")

        with pytest.raises(PeerNotTrustedError, match="refused our certificate"):
            asyncio.run(call("client"))
        srv.wait_for("refused: ")
        assert "expired" in srv.stderr_lines()[-1]
        asyncio.run(call("new-client"))


def test_server_of_another_authority(
    srv: SrvProcess, other_certs: Path, home: Path
) -> None:
    args = ["-s", srv.address, "-certs", str(other_certs)]
    assert "ca.crt" in run("cli", *args, cwd=home).error(TRUST)
    srv.wait_for(" refused: ")


@pytest.mark.parametrize("what", ["call", "upload"])
def test_client_of_another_authority(
    srv: SrvProcess, other_certs: Path, home: Path, what: str
) -> None:
    (home / "f").write_bytes(os.urandom(4 << 20))
    args = ["-s", srv.address, "-certs", str(other_certs), "-skip-verify"]
    if what == "upload":
        args += ["-sendfile", "f"]
    line = run("cli", *args, cwd=home).error(TRUST)
    assert "the server refused our certificate" in line


# Pass phrases


@pytest.fixture(scope="module")
def protected(certs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = copied(certs, tmp_path_factory.mktemp("protected"))
    for name in ("node", "client"):
        path = directory / f"{name}.key"
        key = decode_private_key(path.read_bytes(), None)
        path.write_bytes(
            encode_private_key(key, PHRASE, random_bytes=os.urandom, kdf=WEAK_KDF)
        )
    return directory


@BOTH
@pytest.mark.parametrize("way", ["file", "stdin", "environment"])
def test_wrong_pass_phrase(
    protected: Path, home: Path, program: str, name: str, way: str
) -> None:
    (home / "phrase").write_text("wrong\n")
    address = "127.0.0.1:0" if program == "srv" else "127.0.0.1:1"
    args = ["-s", address, "-certs", str(protected)]
    env = {}
    if way == "environment":
        env = {"RPC25519_PASSPHRASE": "wrong"}
    else:
        args += ["--passphrase-file", "-" if way == "stdin" else "phrase"]
    line = run(program, *args, cwd=home, env=env, input=b"wrong\n").error(TRUST)
    assert f"{name}.key: wrong pass phrase" in line
    assert line.count("wrong") == 1, "the phrase itself must not be shown"


@BOTH
def test_no_way_to_ask_for_a_pass_phrase(
    protected: Path, home: Path, program: str, name: str
) -> None:
    line = run_here(program, home, "-certs", str(protected)).error(TRUST)
    assert "a pass phrase for the private key is needed: give --passphrase-file" in line


def test_pass_phrase_file_that_is_missing(protected: Path, home: Path) -> None:
    args = ["-certs", str(protected), "--passphrase-file", "nosuch"]
    line = run_here("cli", home, *args).error(FILES)
    assert line == "cannot read the pass phrase file nosuch: no such file or directory"
