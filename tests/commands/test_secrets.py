"""No secret shows, whatever is switched on and however a command ends.

Every command runs with all that helps debugging: -v, RPC25519_DEBUG, asyncio's debug
mode, Python's development mode, and the loggers at DEBUG. Then everything that it has
left behind is searched: standard output and error, terminal, log, tracebacks, command
lines, environments, and files other than those that are to hold the secret.
"""

import base64
import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pexpect
import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import Rpc25519Error
from rpc25519_tools.identity.authority import generate_key
from rpc25519_tools.identity.issue import Order, Passphrases
from rpc25519_tools.identity.keyfile import (
    decode_private_key,
    describe_key_file,
    encode_private_key,
)
from rpc25519_tools.identity.store import load_identity
from rpc25519_tools.transport.base import TlsSettings
from tests.helpers import issue_certs, wait_until
from tests.identity.samples import TINY_KDF

PHRASE = "correct-horse-battery"
WRONG = "another-horse-altogether"
CA_PHRASE = "staple-of-the-authority"
TIMEOUT_S = 30.0

#: Runs a command with a cheap key derivation, and with its loggers wide open.
PROGRAM = """
import logging, sys
from rpc25519_tools.identity import keyfile
keyfile.DEFAULT_KDF = keyfile.KdfParameters(
    memory_kib=8, iterations=1, threads=1, key_len=32
)
handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("LOG %(name)s %(message)s"))
for name in ("rpc25519_tools", "asyncio"):
    logging.getLogger(name).addHandler(handler)
    logging.getLogger(name).setLevel(logging.DEBUG)
from rpc25519_tools.commands.group import rpc25519
rpc25519(prog_name="rpc25519")
"""
DEBUGGING = {
    "RPC25519_DEBUG": "1",
    "PYTHONASYNCIODEBUG": "1",
    "PYTHONDEVMODE": "1",
    "NO_COLOR": "1",
    "COLUMNS": "300",
}


def forms(secret: bytes) -> set[bytes]:
    """Return how a secret could be written: raw, hex, base64 at any alignment, repr."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    found.add(repr(secret)[2:-1].encode())
    found.add(secret.hex(" ").encode())
    found.add(secret.hex(":").encode())
    for shift in range(3):
        # Without the characters that depend on what stands around it.
        text = base64.b64encode(bytes(shift) + secret)[(4 * shift + 2) // 3 + 1 : -4]
        found |= {text, text.replace(b"+", b"-").replace(b"/", b"_")}
    return found


class Vault:
    """All secrets of a test, and what must not hold them."""

    def __init__(self) -> None:
        self._needles: dict[bytes, str] = {}
        for name, phrase in (("phrase", PHRASE), ("wrong", WRONG), ("ca", CA_PHRASE)):
            self.add(phrase.encode(), f"the pass phrase {name}")

    def add(self, secret: bytes, name: str) -> None:
        assert len(secret) > 12
        self._needles |= dict.fromkeys(forms(secret), name)

    def add_key(self, pem: bytes, phrase: str | None = None) -> None:
        """Add a key in all its forms; the lines of a plain file are among them."""
        key = decode_private_key(pem, (phrase or "").encode)
        self.add(key.private_bytes_raw(), "a private key")
        plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for line in plain.splitlines()[1:-1]:
            self._needles[line] = "a line of a private key file"

    def check(self, data: bytes, where: str) -> None:
        for needle, name in self._needles.items():
            assert needle not in data, f"{name} stands in {where}"

    def check_files(self, top: Path, holders: Iterable[Path] = ()) -> None:
        """Search all files beneath a directory, but for those that hold secrets."""
        allowed = set(holders)
        for path in top.rglob("*"):
            self.check(os.fsencode(path.name), f"the name {path.name}")
            if path.is_file() and path not in allowed:
                self.check(path.read_bytes(), str(path))


@pytest.fixture(scope="module")
def vault() -> Vault:
    """The secrets of all tests here; none may show in any of them."""
    return Vault()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return new_home(tmp_path)


def new_home(tmp_path: Path) -> Path:
    """Make the place where commands run, with pass phrases in files beside it."""
    directory = tmp_path / "home"
    (directory / "tmp").mkdir(parents=True)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name, text in (("phrase", PHRASE), ("wrong", WRONG), ("ca", CA_PHRASE)):
        (secrets / name).write_text(f"{text}\n")
    return directory


def phrase_file(home: Path, name: str) -> str:
    return str(home.parent / "secrets" / name)


def environment(home: Path, env: Mapping[str, str] | None) -> dict[str, str]:
    kept = {"PATH", "HOME", "LANG", "PYTHONPATH", "COVERAGE_PROCESS_START"}
    inherited = {name: os.environ[name] for name in kept & set(os.environ)}
    return {**inherited, **DEBUGGING, "TMPDIR": str(home / "tmp"), **(env or {})}


def run(
    vault: Vault,
    home: Path,
    *words: str,
    code: int,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
) -> str:
    """Run a command to its end, search what it says, and return that."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=home,
        env=environment(home, env),
        input=stdin.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_S,
        start_new_session=True,  # no terminal to ask on
        check=False,
    )
    assert done.returncode == code, done.stdout.decode()
    if code not in (0, 2):
        assert b"Traceback" in done.stdout, "the switches do not work"
    vault.check(done.stdout, f"what {words} says")
    return done.stdout.decode()


# selfy


@pytest.fixture(scope="module")
def made(vault: Vault, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with protected keys in it."""
    home = new_home(tmp_path_factory.mktemp("secrets"))
    phrases = {"RPC25519_PASSPHRASE": PHRASE, "RPC25519_CA_PASSPHRASE": CA_PHRASE}
    words = ("selfy", "-e", "a@b", "-k")
    said = run(vault, home, *words, "node", code=0, env=phrases)
    files = ("--passphrase-file", "-", "--ca-passphrase-file", phrase_file(home, "ca"))
    said += run(vault, home, *words, "client", *files, code=0, stdin=f"{PHRASE}\n")
    vault.add_key((home / "my-keep-private-dir/ca.key").read_bytes(), CA_PHRASE)
    for name in ("node", "client"):
        vault.add_key((home / "certs" / f"{name}.key").read_bytes(), PHRASE)
    vault.check(said.encode(), "what selfy has said")
    vault.check_files(home)
    return home


@pytest.fixture
def keys(made: Path, home: Path) -> Path:
    """The directory ``certs`` of this test, with the authority beside it."""
    for name in ("certs", "my-keep-private-dir"):
        shutil.copytree(made / name, home / name)
    return home / "certs"


def test_selfy_makes_keys(vault: Vault, home: Path, keys: Path) -> None:
    said = run(vault, home, "selfy", "-k", "bare", "-e", "a@b", "-nopass", code=0,
               env={"RPC25519_CA_PASSPHRASE": CA_PHRASE})  # fmt: skip
    said += run(vault, home, "selfy", "-gensym", "shared", code=0)
    vault.add_key((keys / "bare.key").read_bytes())
    shared = home / "my-keep-private-dir" / "shared"
    vault.add(shared.read_bytes(), "a pre-shared key")
    for words in (["-v", "certs/bare.key"], ["-v", "certs/bare.key", "--json"]):
        said += run(vault, home, "selfy", *words, code=0)
    said += run(vault, home, "selfy", "-v", "my-keep-private-dir/shared", code=4)
    vault.check(said.encode(), "what selfy has said")
    vault.check_files(home, [keys / "bare.key", shared])


def test_selfy_fails(vault: Vault, home: Path, keys: Path) -> None:
    wrong = {"RPC25519_PASSPHRASE": WRONG, "RPC25519_CA_PASSPHRASE": WRONG}
    both = {"RPC25519_PASSPHRASE": PHRASE, "RPC25519_CA_PASSPHRASE": CA_PHRASE}
    make = ("selfy", "-k", "third", "-e", "a@b")
    run(vault, home, *make, code=4, env=wrong)
    run(vault, home, "selfy", "-v", "certs/node.key", code=4, env=wrong)
    run(vault, home, *make, "--passphrase-file", "nosuch", code=6, env=both)
    run(vault, home, "selfy", "-k", "node", "-e", "a@b", code=6, env=both)
    run(vault, home, *make, code=4)  # nobody can be asked
    (home / "file").write_text("in the way")
    run(vault, home, *make, "-o", "file/certs", code=6, env=both)
    vault.check_files(home)


def damaged(pem: bytes) -> dict[str, bytes]:
    """Return the file of a plain key, damaged in ways that keep the secret in it."""
    head, body, tail = pem.splitlines(keepends=True)[:3]
    return {
        "no base64": head + body[:-2] + b"!\n" + tail,
        "not ascii": head + body + b"\xff\n" + tail,
        "cut": head + body[:40] + b"\n" + tail,
        "a header": head + b"Name: x\nName: y\n\n" + body + tail,
        "other label": pem.replace(b"PRIVATE", b"RSA PRIVATE"),
        "called protected": pem.replace(b"PRIVATE", b"ENCRYPTED PRIVATE"),
        "no end": head + body,
        "more inside": head + body + b"AAAA\n" + tail,
    }


def test_bad_key_files(vault: Vault, home: Path, keys: Path) -> None:
    """Among them such whose whole secret could come with the error."""
    key = decode_private_key((keys / "client.key").read_bytes(), PHRASE.encode)
    pem = encode_private_key(key, None, random_bytes=os.urandom)
    vault.add(pem.splitlines()[1][:40], "the front of a private key")
    bad = home / "certs" / "bad.key"
    (home / "certs" / "bad.crt").write_bytes((keys / "client.crt").read_bytes())
    failures = []
    for content in damaged(pem).values():
        with pytest.raises(Rpc25519Error) as caught:
            decode_private_key(content, None)
        failures.append("".join(traceback.format_exception(caught.value)))
        with pytest.raises(Rpc25519Error) as caught:
            describe_key_file(content)
        failures.append("".join(traceback.format_exception(caught.value)))
    vault.check("".join(failures).encode(), "a traceback")
    for kind in ("no base64", "called protected"):
        bad.write_bytes(damaged(pem)[kind])
        run(vault, home, "selfy", "-v", "certs/bad.key", code=4)
        run(vault, home, "cli", "-k", "bad", code=4)


# The programs that use keys


@contextlib.contextmanager
def serving(vault: Vault, home: Path, *words: str) -> Iterator[str]:
    """Run srv; yield its address, and search all that it has said."""
    log = home / "srv-log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "srv", "-s", "127.0.0.1:0", "-v", *words],
            cwd=home,
            env=environment(home, None),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        marker = "srv: listening on "
        wait_until(
            lambda: marker in log.read_text() or process.poll() is not None,
            timeout_s=TIMEOUT_S,
        )
        assert marker in log.read_text(), log.read_text()
        yield log.read_text().partition(marker)[2].split()[0]
        check_process(vault, process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0
    finally:
        process.kill()
        process.wait()
    assert "LOG asyncio" in log.read_text(), "the switches do not work"
    vault.check(log.read_bytes(), "what srv says")


def check_process(vault: Vault, pid: int) -> None:
    """Search what others can see of a process; it has no children."""
    if not sys.platform.startswith("linux"):
        return
    proc = Path(f"/proc/{pid}")
    vault.check((proc / "cmdline").read_bytes(), "the command line")
    vault.check((proc / "environ").read_bytes(), "the environment")
    for task in (proc / "task").iterdir():
        assert (task / "children").read_bytes() == b""
        vault.check((task / "comm").read_bytes(), "the name of a thread")


def test_srv_and_cli_with_protected_keys(vault: Vault, home: Path, keys: Path) -> None:
    (home / "served").mkdir()
    (home / "some.txt").write_text("some text")
    ours = ("--passphrase-file", phrase_file(home, "phrase"))
    with serving(
        vault, home, "-serve", "served", "-readfile", "served", "-echo", *ours
    ) as address:
        cli = ("cli", "-s", address, "-v")
        run(vault, home, *cli, "-n", "2", *ours, code=0)
        run(vault, home, *cli, "-sendfile", "some.txt", *ours, code=0)
        env = {"RPC25519_PASSPHRASE": PHRASE}
        run(vault, home, *cli, "-download", "nosuch", code=1, env=env)
        run(vault, home, *cli, "--passphrase-file", "-", code=4, stdin=f"{WRONG}\n")
        run(vault, home, *cli, "-tcp", code=5)
    vault.check_files(home)


@pytest.mark.parametrize("network", [(), ("-tcp",)], ids=["tls", "tcp"])
def test_pre_shared_keys(
    vault: Vault, home: Path, keys: Path, network: tuple[str, ...]
) -> None:
    (home / "some.txt").write_text("some text")
    (home / "served").mkdir()
    files = [home / "right-psk", home / "wrong-psk", home / "short-psk"]
    for path, length in zip(files, (32, 32, 31), strict=True):
        path.write_bytes(os.urandom(length))
        path.chmod(0o600)
        vault.add(path.read_bytes(), f"the key in {path.name}")
    right, wrong, short = files
    ours = (*network, "--passphrase-file", phrase_file(home, "phrase"))
    with serving(vault, home, "-readfile", "served", "-psk", str(right), *ours) as here:
        cli = ("cli", "-s", here, "-v", *ours)
        run(vault, home, *cli, "-psk", str(right), code=0)
        run(vault, home, *cli, "-psk", str(right), "-sendfile", "some.txt", code=0)
        run(vault, home, *cli, "-psk", str(wrong), code=4)
        run(vault, home, *cli, "-psk", str(short), code=4)
        run(vault, home, *cli, "-psk", "nosuch", code=4)
    vault.check_files(home, files)


def test_srv_and_samesame_fail(vault: Vault, home: Path, keys: Path) -> None:
    wrong = ("--passphrase-file", phrase_file(home, "wrong"))
    right = ("--passphrase-file", phrase_file(home, "phrase"))
    run(vault, home, "srv", "-s", "127.0.0.1:0", *wrong, code=4)
    run(vault, home, "srv", "-s", "192.0.2.1:0", *right, code=3)
    run(vault, home, "samesame", *wrong, code=4)
    # The key of another certificate: it is opened first, and then refused.
    (keys / "node.key").write_bytes((keys / "client.key").read_bytes())
    run(vault, home, "srv", "-s", "127.0.0.1:0", *right, code=4)
    vault.check_files(home)


# At a terminal


@contextlib.contextmanager
def typing(
    vault: Vault, home: Path, *words: str, code: int
) -> "Iterator[pexpect.spawn[str]]":
    """Run a command on a terminal; search what was shown there, and the process."""
    child = pexpect.spawn(
        sys.executable,
        ["-c", PROGRAM, *words],
        cwd=str(home),
        env=environment(home, None),
        timeout=TIMEOUT_S,
        encoding="utf-8",
    )
    shown = child.logfile_read = io.StringIO()
    try:
        yield child
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == code, shown.getvalue()
        vault.check(shown.getvalue().encode(), f"the terminal of {words}")
    finally:
        child.close(force=True)
    vault.check_files(home)


def answer(child: "pexpect.spawn[str]", vault: Vault, phrase: str) -> None:
    child.expect_exact("key")
    child.waitnoecho(5)
    assert child.pid is not None
    check_process(vault, child.pid)
    child.sendline(phrase)


MAKE = ("selfy", "-k", "fourth", "-e", "a@b", "-p", "private", "-o", "new-certs")


def test_two_answers_that_differ(vault: Vault, home: Path) -> None:
    with typing(vault, home, *MAKE, code=4) as child:
        answer(child, vault, PHRASE)
        child.expect_exact("The same again: ")
        child.waitnoecho(5)
        child.sendline(WRONG)
    assert not (home / "private").exists()


@pytest.mark.parametrize(
    ("key", "code"), [("\x03", 130), ("\x04", 4)], ids=["Ctrl-C", "Ctrl-D"]
)
def test_interrupted_at_the_second_question(
    vault: Vault, home: Path, key: str, code: int
) -> None:
    with typing(vault, home, *MAKE, code=code) as child:
        answer(child, vault, PHRASE)
        child.expect_exact("The same again: ")
        child.waitnoecho(5)
        child.send(key)
    assert not (home / "private").exists()


def test_interrupted_with_half_a_phrase_typed(
    vault: Vault, home: Path, keys: Path
) -> None:
    with typing(vault, home, "cli", "-s", "127.0.0.1:1", code=130) as child:
        child.expect_exact("Pass phrase for")
        child.waitnoecho(5)
        child.send(PHRASE)
        child.send("\x03")


def test_a_wrong_phrase_typed(vault: Vault, home: Path, keys: Path) -> None:
    with typing(vault, home, "cli", "-s", "127.0.0.1:1", code=4) as child:
        child.expect_exact("Pass phrase for")
        child.waitnoecho(5)
        child.sendline(WRONG)


# As a library


def test_objects_do_not_show_what_they_hold(vault: Vault, tmp_path: Path) -> None:
    key = generate_key(os.urandom)
    pem = encode_private_key(
        key, PHRASE.encode(), random_bytes=os.urandom, kdf=TINY_KDF
    )
    vault.add_key(pem, PHRASE)
    source = PHRASE.encode
    config = Config(
        address=parse_address("127.0.0.1:1"), passphrase=source, certs_dir="nosuch"
    )
    certs = issue_certs(tmp_path, "node")
    identity = load_identity(certs, "node", None)
    vault.add_key((certs / "node.key").read_bytes())
    order = Order(private_dir=tmp_path, certs_dir=tmp_path, name="x", email="a@b")
    for value in (
        *(key, config, identity, TlsSettings(identity=identity), order),
        *(describe_key_file(pem), TINY_KDF),
        Passphrases(existing_authority=source, new_authority=source, new_key=source),
    ):
        vault.check(f"{value!r} {value!s}".encode(), type(value).__name__)
    for phrase in (None, WRONG.encode):
        with pytest.raises(Rpc25519Error) as caught:
            decode_private_key(pem, phrase)
        told = "".join(traceback.format_exception(caught.value))
        vault.check(f"{told}{caught.value!r}".encode(), "an error")


def test_the_search_finds_secrets(vault: Vault, tmp_path: Path) -> None:
    """In each of the forms that they can be written in."""
    secret = os.urandom(32)
    vault.add(secret, "a secret")
    hidden = [
        *(secret, secret.hex().encode(), repr(secret).encode(), PHRASE.encode()),
        *(base64.b64encode(b"x" * shift + secret + b"yz") for shift in range(4)),
        base64.urlsafe_b64encode(b"a" + secret),
    ]
    for data in hidden:
        with pytest.raises(AssertionError):
            vault.check(b"before " + data + b" after", "somewhere")
    vault.check(b"nothing of it", "somewhere")
    (tmp_path / "file").write_bytes(hidden[0])
    with pytest.raises(AssertionError):
        vault.check_files(tmp_path)
