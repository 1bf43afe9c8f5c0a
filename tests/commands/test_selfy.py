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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pexpect
import pytest
from rpc25519_tools.commands import _passphrase
from rpc25519_tools.commands._authority import CA_VARIABLE
from rpc25519_tools.commands._passphrase import passphrase_source

from rpc25519_tools.errors import LocalFileError, PassphraseError
from rpc25519_tools.identity.store import load_identity
from tests.commands.selfies import (
    ALL_FILES,
    PROGRAM,
    answer,
    finish,
    on_a_terminal,
    program,
    run,
    tree,
)

pytestmark = pytest.mark.usefixtures("selfy_workplace")


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
