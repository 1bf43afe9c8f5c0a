"""``selfy`` as users run it, and where pass phrases come from."""

import contextlib
import io
import json
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import termios
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pexpect
import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from rpc25519_tools.commands import _passphrase
from rpc25519_tools.commands._authority import CA_VARIABLE
from rpc25519_tools.commands._passphrase import passphrase_source
from rpc25519_tools.commands.selfy import selfy

from rpc25519_tools.errors import LocalFileError, PassphraseError
from rpc25519_tools.identity import keyfile
from rpc25519_tools.identity.authority import generate_key
from rpc25519_tools.identity.keyfile import encode_private_key
from rpc25519_tools.identity.store import load_identity
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

# Certificates that are good on any plausible clock of a test machine.
LONG_AGO = NOW - timedelta(days=3650)
CENTURY = timedelta(days=36500)

# selfy as a program of its own, with a cheap key derivation.
PROGRAM = """
import sys
from rpc25519_tools.identity import keyfile
keyfile.DEFAULT_KDF = keyfile.KdfParameters(
    memory_kib=8, iterations=1, threads=1, key_len=32
)
from rpc25519_tools.commands.selfy import selfy
selfy(prog_name="selfy")
"""


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty directory, a cheap key derivation, no pass phrase in the air."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keyfile, "DEFAULT_KDF", TINY_KDF)
    monkeypatch.delenv("RPC25519_PASSPHRASE", raising=False)
    monkeypatch.delenv(CA_VARIABLE, raising=False)


def run(*words: str, code: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(selfy, words, input=stdin)
    assert result.exit_code == code, result.output
    if code:
        assert "selfy: " in result.stderr
    assert "Traceback" not in result.output
    return result


def tree(directory: str = ".") -> list[str]:
    return sorted(str(path) for path in Path(directory).rglob("*") if path.is_file())


ALL_FILES = [
    *("certs/ca.crt", "certs/node.crt", "certs/node.key"),
    *("my-keep-private-dir/ca.crt", "my-keep-private-dir/ca.key"),
]


def test_the_documented_command_makes_everything() -> None:
    result = run("-k", "node", "-e", "node@example.org", "-nopass")
    assert tree() == ALL_FILES
    assert result.stdout == ""
    assert "identity node@example.org (9" in result.stderr
    assert "guard the file" in result.stderr
    for path in map(Path, ALL_FILES):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    identity = load_identity("certs", "node", None)
    assert identity.certificate.serial_number.bit_length() > 20
    assert run("-verify", "certs/node.crt").exit_code == 0


def test_quiet_says_nothing() -> None:
    result = run("-k=node", "-e=a@b", "-nopass", "-quiet")
    assert result.output == ""
    assert run("-verify=certs/node.crt", "--quiet").output == ""


def test_missing_email_is_filled_in_and_told() -> None:
    result = run("-k", "node", "-nopass")
    filled = f"node@{os.uname().nodename}"
    assert f"no -e EMAIL was given; the certificate says {filled}" in result.stderr
    fields = json.loads(run("-v", "certs/node.crt", "--json").stdout)
    assert fields["emails"] == [filled]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 2),
        (("stray",), 2),
        (("-k", "node", "stray"), 2),
        (("-quiet",), 2),
        (("-nonsense",), 2),
        (("-e", "a@b", "-ca"), 2),
        (("--san", "x", "-ca"), 2),
        (("--days", "3", "-gensym", "x"), 2),
        (("--json", "-ca"), 2),
        (("-v", "x", "--force"), 2),
        (("-verify", "x", "--force"), 2),
        (("-gensym", "x", "--ca-passphrase-file", "x"), 2),
        (("-gensym", "x", "--passphrase-file", "x"), 2),
        (("-verify", "x", "--passphrase-file", "x"), 2),
        (("-verify", "x", "-ca"), 2),
        (("-k", "node", "--days", "0"), 2),
        (("-k", "node", "--days", "ten"), 2),
        (("-k", "node", "-e", ""), 2),
        (("-k", "node", "-e", "jörg@example.org"), 2),
        (("-k", "node", "-e", "a\nb@c"), 2),
        (("-k", "node", "-e", "a@b", "--san", "a b"), 2),
        (("-k", "n", "--passphrase-file", "-", "--ca-passphrase-file", "-"), 2),
        (("-k", "../x"), 2),
        (("-k", "a/b"), 2),
        (("-k", ".."), 2),
        (("-k", ""), 2),
        (("-k", ".hidden"), 2),
        (("-k", "-quiet"), 2),
        (("-k", "a\x00b"), 2),
        (("-k", "ca"), 2),
        (("-gensym", "../x"), 2),
        (("-gensym", "ca.key"), 2),
        (("-v", "missing"), 4),
        (("-k", "node", "--passphrase-file", "missing"), 6),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    words: tuple[str, ...], code: int
) -> None:
    result = run(*words, code=code)
    assert result.stderr.startswith("selfy: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert tree() == []


def test_existing_keys_stay_without_force() -> None:
    run("-k", "node", "-e", "a@b", "-nopass")
    before = {path: Path(path).read_bytes() for path in tree()}
    result = run("-k", "node", "-e", "a@b", "-nopass", code=6)
    assert "certs/node.key exists; nothing was changed (--force" in result.stderr
    run("-ca", "-nopass", code=6)
    run("-k", "other", "-gensym", "ca.crt", "-nopass", code=2)
    assert {path: Path(path).read_bytes() for path in tree()} == before
    run("-k", "node", "-e", "a@b", "-nopass", "--force")
    changed = [path for path in before if Path(path).read_bytes() != before[path]]
    assert changed == ["certs/node.crt", "certs/node.key"]


def test_actions_combine_in_one_go() -> None:
    result = run(
        *("-ca", "-k", "node", "-e", "a@b", "-gensym", "psk.bin", "-nopass"),
        *("-v", "certs/node.crt", "-o=certs", "-p", "my-keep-private-dir"),
    )
    assert tree() == sorted([*ALL_FILES, "my-keep-private-dir/psk.bin"])
    assert len(Path("my-keep-private-dir/psk.bin").read_bytes()) == 32
    assert "E-mail:              a@b" in result.stdout


def test_other_directories_are_used() -> None:
    run("-ca", "-p", "vault", "-nopass", "--days", "10")
    run("-k", "node", "-p", "vault", "-o", "out/deep", "-nopass", "--days", "3")
    assert "vault/ca.key" in tree()
    assert "out/deep/node.key" in tree()
    assert run("-verify", "out/deep/node.crt", "-p", "vault").stdout.endswith(
        "2 days left\n"
    )


def test_more_names_are_written() -> None:
    run("-k=n", "-e=a@b", "-nopass", "--san=files.example", "-san", "10.0.0.7")
    fields = json.loads(run("-v", "certs/n.crt", "--json").stdout)
    assert fields["dns_names"] == ["localhost", "files.example"]
    assert fields["ip_addresses"] == ["127.0.0.1", "10.0.0.7"]


def test_long_emails_are_warned_about_even_when_quiet() -> None:
    result = run("-k", "n", "-e", "e" * 130, "-nopass", "-quiet")
    assert result.stderr.startswith("selfy: warning: the certificate has ")
    assert result.stderr.count("\n") == 1


# Pass phrases.


def test_one_given_phrase_serves_for_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPC25519_PASSPHRASE", "from the air")
    run("-k", "node", "-e", "a@b")
    run("-k", "client", "-e", "a@b")
    for name in ("node", "client"):
        assert load_identity("certs", name, lambda: b"from the air").name == name
    monkeypatch.setenv("RPC25519_PASSPHRASE", "wrong")
    result = run("-k", "third", "-e", "a@b", code=4)
    assert "my-keep-private-dir/ca.key: wrong pass phrase" in result.stderr
    assert "certs/third.key" not in tree()


def test_phrase_from_a_file_or_standard_input() -> None:
    Path("phrase").write_bytes(b"from a file\n\n")
    run("-k", "node", "-e", "a@b", "--passphrase-file", "phrase")
    load_identity("certs", "node", lambda: b"from a file\n")
    # One phrase for two keys, though standard input can be read but once.
    run("-k=x", "-e=a@b", "-p=q", "-o=c", "-passphrase-file=-", stdin="from a pipe\n")
    load_identity("c", "x", lambda: b"from a pipe")
    run("-k=y", "-e=a@b", "-p=q", "-o=c", "-passphrase-file=-", stdin="from a pipe")


def test_the_authority_can_have_its_own_phrase(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("one").write_bytes(b"one\r\n")
    Path("two").write_bytes(b"two")
    both = ("--ca-passphrase-file", "one", "--passphrase-file", "two")
    run("-k", "node", "-e", "a@b", *both)
    load_identity("certs", "node", lambda: b"two")
    run("-k", "x", "-e", "a@b", "--passphrase-file", "two", code=4)
    monkeypatch.setenv(CA_VARIABLE, "one")
    run("-k", "x", "-e", "a@b", "--passphrase-file", "two")
    run("-k", "y", "-e", "a@b", "-nopass")
    load_identity("certs", "y", None)


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_new_phrase_is_refused(content: str) -> None:
    result = run("-k=n", "-e=a@b", "-passphrase-file=-", stdin=content, code=4)
    assert "-nopass writes the key without one" in result.stderr
    assert tree() == []


def test_sources_are_lazy_and_read_once(tmp_path: Path) -> None:
    path = tmp_path / "phrase"
    source = passphrase_source(str(path))
    path.write_bytes(b"first\n")
    assert source() == b"first"
    path.write_bytes(b"second\n")
    assert source() == b"first"


def test_unreadable_phrase_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(LocalFileError, match="is a directory"):
        passphrase_source(str(tmp_path))()
    (tmp_path / "film").write_bytes(bytes(70_000))
    with pytest.raises(LocalFileError, match="too long"):
        passphrase_source(str(tmp_path / "film"))()


def program(*words: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, *words]


def test_without_a_terminal_the_three_ways_are_named() -> None:
    done = subprocess.run(
        program("-k", "node", "-e", "a@b"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,  # away from the terminal that runs the tests
        check=False,
    )
    assert done.returncode == 4
    assert done.stderr == (
        "selfy: a pass phrase for the authority's key my-keep-private-dir/ca.key is "
        "needed: give --passphrase-file PATH, set RPC25519_PASSPHRASE, or run it on a "
        "terminal to be asked\n"
    )
    assert tree() == []


@contextlib.contextmanager
def on_a_terminal(*words: str) -> Iterator["pexpect.spawn[str]"]:
    with warnings.catch_warnings():
        # forkpty warns if another test left a thread behind.
        warnings.simplefilter("ignore", DeprecationWarning)
        command, *arguments = program(*words)
        child = pexpect.spawn(command, arguments, timeout=10, encoding="utf-8")
    child.logfile_read = io.StringIO()
    try:
        yield child
    finally:
        child.close(force=True)


def finish(child: "pexpect.spawn[str]") -> tuple[int | None, str]:
    """Wait for the end; return the exit code and all that was shown."""
    child.expect(pexpect.EOF)
    child.close()
    assert isinstance(child.logfile_read, io.StringIO)
    return child.exitstatus, child.logfile_read.getvalue()


def answer(child: "pexpect.spawn[str]", prompt: str, phrase: str) -> None:
    child.expect_exact(prompt)
    child.waitnoecho(5)
    child.sendline(phrase)


NEW_CA = "New pass phrase for the authority's key my-keep-private-dir/ca.key: "
NEW_KEY = "New pass phrase for the key certs/node.key: "
AGAIN = "The same again: "


def test_a_terminal_asks_twice_for_each_new_key_without_echo() -> None:
    with on_a_terminal("-k", "node", "-e", "a@b") as child:
        for prompt, phrase in ((NEW_CA, "sesame"), (NEW_KEY, "barleycorn")):
            answer(child, prompt, phrase)
            answer(child, AGAIN, phrase)
        code, shown = finish(child)
    assert code == 0, shown
    assert "sesame" not in shown
    assert "barleycorn" not in shown
    assert tree() == ALL_FILES
    load_identity("certs", "node", lambda: b"barleycorn")
    with on_a_terminal("-k", "client", "-e", "a@b") as child:
        answer(child, "Pass phrase for the authority's key my-keep", "wrong")
        code, shown = finish(child)
    assert code == 4
    assert shown.count("selfy: my-keep-private-dir/ca.key: wrong pass phrase") == 1
    assert tree() == ALL_FILES


def interrupt(child: "pexpect.spawn[str]") -> None:
    """Press Ctrl-C, as people do, until it helps.

    A signal that comes in the instant before a read begins does not end that read.
    """
    for _ in range(5):
        child.sendintr()
        if child.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=2) == 0:
            return


@pytest.mark.parametrize(
    ("again", "code", "why"),
    [
        (lambda child: child.sendline("other"), 4, "the two pass phrases differ"),
        (lambda child: child.sendeof(), 4, "no pass phrase was typed"),
        (interrupt, 130, "interrupted"),
    ],
)
def test_second_thoughts_on_a_terminal_write_nothing(
    again: Callable[["pexpect.spawn[str]"], object], code: int, why: str
) -> None:
    with on_a_terminal("-ca") as child:
        answer(child, NEW_CA, "sesame")
        child.expect_exact(AGAIN)
        child.waitnoecho(5)
        again(child)
        found, shown = finish(child)
    assert found == code, shown
    assert f"selfy: {why}" in shown
    assert tree() == []


def read_until(terminal: int, text: bytes) -> None:
    shown = b""
    while text not in shown:
        assert select.select([terminal], [], [], 10)[0], shown
        shown += os.read(terminal, 4096)


def echoes(terminal: int) -> bool:
    return bool(termios.tcgetattr(terminal)[3] & termios.ECHO)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_the_prompt_brings_the_echo_back(number: signal.Signals) -> None:
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            program("-ca"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,  # away from the terminal that runs the tests
        ) as child:
            try:
                assert echoes(theirs)
                read_until(ours, NEW_CA.encode())
                assert not echoes(theirs)
                for _ in range(5):  # see `interrupt`
                    child.send_signal(number)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(2)
                        break
            finally:
                child.kill()
        assert child.returncode == 128 + number
        assert echoes(theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert tree() == []


def test_signals_are_as_before_when_the_prompt_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = pty.openpty()
    seen: list[object] = []

    def answer_at_once(descriptor: int) -> bytes:
        assert descriptor == theirs
        seen.extend(signal.getsignal(each) for each in numbers)
        return b"sesame\n"

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        usual = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(_passphrase, "_read_line", answer_at_once)
        assert _passphrase._prompt(theirs, "? ") == b"sesame"
        assert seen[0] != usual
        assert seen[1] == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == usual
        # From another thread handlers cannot be set; asking works all the same.
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(_passphrase._prompt, theirs, "? ")
            assert asked.result(10) == b"sesame"
        assert seen[2] == usual
    finally:
        signal.signal(signal.SIGHUP, before)
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("late", [False, True])
def test_a_second_signal_does_not_stop_the_cleaning_up(
    monkeypatch: pytest.MonkeyPatch, *, late: bool
) -> None:
    ours, theirs = pty.openpty()
    genuine = termios.tcsetattr

    def signalled(descriptor: int) -> bytes:
        if not late:
            signal.raise_signal(signal.SIGTERM)
        return b"sesame\n"

    def restore(descriptor: int, when: int, attributes: list[Any]) -> None:
        if when == termios.TCSADRAIN:
            signal.raise_signal(signal.SIGHUP)
        genuine(descriptor, when, attributes)

    monkeypatch.setattr(_passphrase, "_read_line", signalled)
    monkeypatch.setattr(termios, "tcsetattr", restore)
    try:
        with pytest.raises(SystemExit) as caught:
            _passphrase._prompt(theirs, "? ")
        assert caught.value.code == 128 + (signal.SIGHUP if late else signal.SIGTERM)
        assert echoes(theirs)
    finally:
        os.close(ours)
        os.close(theirs)


def test_an_empty_answer_on_a_terminal_is_refused() -> None:
    with on_a_terminal("-ca") as child:
        answer(child, NEW_CA, "")
        code, shown = finish(child)
    assert code == 4
    assert "-nopass" in shown


def test_a_kill_while_keys_are_protected_leaves_nothing() -> None:
    slow = PROGRAM.replace(
        "memory_kib=8, iterations=1", "memory_kib=65536, iterations=4000"
    )
    with subprocess.Popen(
        [sys.executable, "-c", slow, "-k", "node", "-e", "a@b"],
        env={**os.environ, "RPC25519_PASSPHRASE": "x"},
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stderr is not None
        assert b"protecting" in child.stderr.readline()
        assert child.poll() is None
        child.send_signal(signal.SIGKILL)
    assert tree() == []
    assert not list(Path().iterdir())


# Showing.


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


# Verifying.


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


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from rpc25519_tools.commands.selfy import selfy\n"
        "try: selfy(['--help'], prog_name='selfy')\n"
        "except SystemExit as exc: assert exc.code == 0\n"
        "heavy = {'cryptography', 'rich', 'argon2', 'asyncio', 'OpenSSL', 'base58'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    assert run("--version").stdout.startswith("selfy of rpc25519-tools ")


def test_a_source_that_cannot_ask_is_a_pass_phrase_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_terminal(*_args: object) -> int:
        raise OSError(6, "No such device or address")

    monkeypatch.setattr(os, "open", no_terminal)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(PassphraseError, match="a pass phrase for the key x is needed"):
        passphrase_source(None, what="the key x")()


def test_directories_of_others_are_told_and_only_when_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run("-k", "node", "-e", "a@b", "-nopass")
    monkeypatch.setattr(os, "access", lambda *_args: False)
    assert "valid, " in run("-v", "certs/node.crt").stdout
    result = run("-k", "other", "-e", "a@b", "-nopass", code=6)
    assert "cannot write in certs: permission denied" in result.stderr
