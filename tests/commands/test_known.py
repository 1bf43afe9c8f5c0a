"""Lists of known keys as users meet them: srv, cli and ``rpc25519 known``."""

import asyncio
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import ConnectionLostError
from rpc25519_tools.files.echo import ECHO_CALL_SERVICE
from rpc25519_tools.identity.certificate import key_id, peer_identity
from rpc25519_tools.identity.known_peers import HEADER, PREFIX
from rpc25519_tools.identity.store import load_certificate
from rpc25519_tools.rpc.client import Client
from tests.commands.hostile import Outcome, run
from tests.helpers import SrvProcess, issue_certs, until

USAGE, TRUST, FILES = 2, 4, 6
CUT_WITHIN_S = 1.0


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with certificates of two servers and two clients."""
    directory = tmp_path_factory.mktemp("known")
    return issue_certs(directory, "node", "node2", "client", "ann")


@pytest.fixture
def srv(issued: Path, home: Path) -> Iterator[SrvProcess]:
    """A server that goes by the list in the current directory, still empty."""
    (home / "known_client_keys").touch()
    with SrvProcess(certs=issued, cwd=home) as process:
        yield process
        assert "Traceback" not in process.stderr()


def known(home: Path, *args: str | Path) -> Outcome:
    outcome = run("rpc25519", "known", *args, cwd=home)
    outcome.name = "rpc25519 known"
    return outcome


def call(srv: SrvProcess, issued: Path, home: Path, *args: str) -> Outcome:
    return run("cli", "-s", srv.address, "-certs", issued, *args, cwd=home)


def key_of(issued: Path, name: str) -> str:
    return peer_identity(load_certificate(issued / f"{name}.crt")).key_id


def line(issued: Path, name: str, address: str = "127.0.0.1") -> str:
    return f"{address} {PREFIX}{key_of(issued, name)}:{name}@example.org\n"


# Servers and clients.


def test_both_record_at_first_use_in_the_current_directory(
    srv: SrvProcess, issued: Path, home: Path
) -> None:
    (home / "known_server_keys").touch()
    call(srv, issued, home).succeed()
    call(srv, issued, home, "-k", "ann").succeed()
    call(srv, issued, home).succeed()
    clients = (home / "known_client_keys").read_text()
    assert clients == f"{HEADER}\n{line(issued, 'client')}{line(issued, 'ann')}"
    servers = (home / "known_server_keys").read_text()
    assert servers == f"{HEADER}\n{line(issued, 'node')}"


def test_lists_that_are_not_there_are_not_made(issued: Path, home: Path) -> None:
    with SrvProcess(certs=issued, cwd=home) as srv:
        call(srv, issued, home).succeed()
    assert os.listdir(home) == []


def test_a_list_can_be_elsewhere_or_switched_off(issued: Path, home: Path) -> None:
    (home / "list").write_text("")
    (home / "known_client_keys").write_text("broken line")
    (home / "known_server_keys").write_text("broken line")
    with SrvProcess("-known-keys=list", certs=issued, cwd=home) as srv:
        call(srv, issued, home, "-no-known-keys").succeed()
        error = call(srv, issued, home).error(TRUST)
        assert "known_server_keys line 1: the second word does not begin" in error
        call(srv, issued, home, "-skip-verify").succeed()
    assert (home / "list").read_text() == f"{HEADER}\n{line(issued, 'client')}"


@pytest.mark.parametrize("option", ["-tcp", "-skip-verify"])
def test_lists_hold_where_only_the_tunnel_shows_keys(
    option: str, issued: Path, home: Path
) -> None:
    (home / "psk").write_bytes(os.urandom(32))
    (home / "psk").chmod(0o600)
    known(home, "approve", issued / "client.crt").succeed()
    known(home, "lock").succeed()
    args = [option, "-psk", "psk"]
    with SrvProcess(*args, certs=issued, cwd=home) as srv:
        call(srv, issued, home, *args).succeed()
        call(srv, issued, home, *args, "-k", "ann").error(TRUST)
        srv.wait_for("refused: ann@example.org")
        known(home, "deny", "client@example.org").succeed()
        call(srv, issued, home, *args).error(TRUST)
        srv.wait_for("is denied in known_client_keys.denied")


@pytest.mark.parametrize("program", ["srv", "cli"])
@pytest.mark.parametrize("option", ["-tcp", "-skip-verify"])
def test_a_named_list_is_refused_where_nothing_shows_keys(
    option: str, program: str, issued: Path, home: Path
) -> None:
    (home / "list").touch()
    args = ["-certs", str(issued), "-s", "127.0.0.1:0", option, "-known-keys=list"]
    error = run(program, *args, cwd=home).error(USAGE)
    assert f"--known-keys does not work with {option}, which shows no keys" in error


def test_an_operator_locks_approves_and_denies_without_a_restart(
    srv: SrvProcess, issued: Path, home: Path
) -> None:
    call(srv, issued, home).succeed()
    assert known(home, "lock").succeed().stderr == (
        "known_client_keys: locked; new keys are refused\n"
    )
    error = call(srv, issued, home, "-k", "ann").error(TRUST)
    assert "the server refused our certificate" in error
    key = key_of(issued, "ann")
    srv.wait_for(f"refused: ann@example.org ({key}) is not in known_client_keys")
    refusal = next(one for one in srv.stderr_lines() if "refused: ann@" in one)
    command = shlex.split(refusal.partition("to let it in: ")[2])
    assert command[:3] == ["rpc25519", "known", "approve"]
    known(home, *command[2:]).succeed()
    call(srv, issued, home, "-k", "ann").succeed()
    known(home, "deny", "client@example.org").succeed()
    call(srv, issued, home).error(TRUST)
    srv.wait_for("is denied in known_client_keys.denied")
    call(srv, issued, home, "-k", "ann").succeed()


async def test_denying_cuts_an_open_connection_and_the_log_tells(
    srv: SrvProcess, issued: Path, home: Path
) -> None:
    config = Config(
        address=parse_address(srv.address), key_name="ann", certs_dir=str(issued)
    )
    async with await Client.connect(config) as client:
        await client.call(ECHO_CALL_SERVICE, b"hello")
        outcome = await asyncio.to_thread(known, home, "deny", issued / "ann.crt")
        outcome.succeed()
        start = time.monotonic()
        text = "disconnected: ann@example.org"
        await until(lambda: text in srv.stderr(), timeout_s=CUT_WITHIN_S)
        assert time.monotonic() - start < CUT_WITHIN_S
        assert "is denied in known_client_keys.denied" in srv.stderr()
        with pytest.raises(ConnectionLostError):
            await client.call(ECHO_CALL_SERVICE, b"hello")


def test_the_alarm_says_which_command_approves_the_new_key(
    issued: Path, home: Path
) -> None:
    (home / "known_server_keys").touch()
    with SrvProcess(certs=issued, cwd=home) as srv:
        call(srv, issued, home).succeed()
        address = srv.address
    with SrvProcess("-k", "node2", "-s", address, certs=issued, cwd=home) as srv:
        error = call(srv, issued, home).error(TRUST)
        assert error.startswith("THE SERVER'S KEY HAS CHANGED: 127.0.0.1 is now node2@")
        assert f"was node@example.org ({key_of(issued, 'node')})" in error
        command = shlex.split(error.partition("key is right: ")[2])
        assert command[:3] == ["rpc25519", "known", "approve"]
        known(home, *command[2:]).succeed()
        call(srv, issued, home).succeed()
        known(home, "deny", "--server", key_of(issued, "node2")).succeed()
        assert "is denied in" in call(srv, issued, home).error(TRUST)


def test_an_empty_read_only_list_stops_srv(issued: Path, home: Path) -> None:
    path = home / "known_client_keys"
    path.touch(mode=0o444)
    error = run("srv", "-s", "127.0.0.1:0", "-certs", issued, cwd=home).error(TRUST)
    assert error.startswith("known_client_keys is read-only and has no keys")


def make_broken(path: Path) -> None:
    path.write_text("broken line")


def make_empty_and_locked(path: Path) -> None:
    path.touch(mode=0o444)


UNUSABLE = [
    (make_broken, "list line 1: the second word does not begin"),
    (make_empty_and_locked, "list is read-only and has no keys, so that nobody"),
    (os.mkfifo, "list is not a regular file"),
    (lambda path: path.symlink_to("/dev/zero"), "list is not a regular file"),
]


@pytest.mark.parametrize(("make", "text"), UNUSABLE)
@pytest.mark.parametrize(
    "program", ["cli -s 127.0.0.1:1", "srv --check", "srv -s 127.0.0.1:0"]
)
def test_a_list_that_is_of_no_use_is_told_before_anything_is_done(
    issued: Path, home: Path, program: str, make: Callable[[Path], None], text: str
) -> None:
    make(home / "list")
    name, *words = program.split()
    options = ["-certs", str(issued), "-known-keys", "list"]
    assert run(name, *words, *options, cwd=home).error(TRUST).startswith(text)


@pytest.mark.parametrize("program", ["srv", "cli"])
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["-known-keys", "nosuch"], "there is no 'nosuch'; rpc25519 known unlock"),
        (["-known-keys", "dangling"], "there is no 'dangling'; rpc25519 known unlock"),
        (["-known-keys", "x", "-no-known-keys"], "exclude each other"),
        (["-known-keys", "."], "is a directory"),
    ],
)
def test_wrong_options_are_told(
    home: Path, program: str, options: list[str], text: str
) -> None:
    (home / "dangling").symlink_to("nowhere")
    assert text in run(program, *options, cwd=home).error(USAGE)


# The command.

KEYS = {n: key_id(bytes([n] * 32)) for n in range(1, 5)}


@pytest.fixture
def lists(home: Path) -> Path:
    """Two known keys, one of them at two addresses, and a denied one."""
    (home / "known_client_keys").write_text(
        "# comment\n"
        f"10.0.0.1 {PREFIX}{KEYS[1]}:one@x,uno@x\n"
        f"10.0.0.2 {PREFIX}{KEYS[2]}:two@x\n"
        f"10.0.0.3 {PREFIX}{KEYS[1]}:one@x\n"
    )
    (home / "known_client_keys.denied").write_text(f"h {PREFIX}{KEYS[3]}:x\x1b[2Jy\n")
    return home


def test_list_prints_a_line_for_each_key(lists: Path) -> None:
    outcome = known(lists, "list").succeed()
    assert outcome.stdout.splitlines() == [
        f"known  {KEYS[1]} 10.0.0.1 one@x,uno@x",
        f"known  {KEYS[2]} 10.0.0.2 two@x",
        f"known  {KEYS[1]} 10.0.0.3 one@x",
        f"denied {KEYS[3]} h x\\x1b[2Jy",
    ]
    assert outcome.stderr == (
        "known_client_keys: writable; new keys are let in and added\n"
    )


def test_list_prints_json(lists: Path) -> None:
    (lists / "known_client_keys").chmod(0o444)
    found = json.loads(known(lists, "list", "-json").succeed().stdout)
    assert (found["file"], found["state"]) == ("known_client_keys", "locked")
    assert [(one["status"], one["line"]) for one in found["keys"]] == [
        ("known", 2),
        ("known", 3),
        ("known", 4),
        ("denied", 1),
    ]
    assert found["keys"][0] == {
        "status": "known",
        "key": KEYS[1],
        "address": "10.0.0.1",
        "emails": ["one@x", "uno@x"],
        "line": 2,
    }
    found = json.loads(known(lists, "list", "--json", "--server").succeed().stdout)
    assert found == {"file": "known_server_keys", "state": "absent", "keys": []}


@pytest.mark.parametrize(
    "text",
    [KEYS[2], "02" * 32, f"{PREFIX}{KEYS[2]}:whoever", "two@x", "10.0.0.2"],
)
def test_a_key_is_found_by_any_of_its_names(lists: Path, text: str) -> None:
    outcome = known(lists, "deny", text).succeed()
    assert outcome.stderr == f"two@x ({KEYS[2]}) denied in known_client_keys\n"
    assert KEYS[2] not in (lists / "known_client_keys").read_text()
    assert (
        (lists / "known_client_keys.denied")
        .read_text()
        .endswith(f"10.0.0.2 {PREFIX}{KEYS[2]}:two@x\n")
    )
    assert "was denied already" in known(lists, "deny", text).succeed().stderr
    assert known(lists, "approve", text, "--quiet").succeed().stderr == ""
    assert KEYS[2] not in (lists / "known_client_keys.denied").read_text()
    assert "was approved already" in known(lists, "approve", text).succeed().stderr


def test_approving_the_first_key_makes_the_list(home: Path) -> None:
    outcome = known(home, "approve", "--file", "mine", KEYS[1]).succeed()
    assert "mine is new: writable; new keys are let in and added" in outcome.stderr
    assert (home / "mine").read_text() == f"{HEADER}\n* {PREFIX}{KEYS[1]}:\n"
    known(home, "approve", "-file=mine", KEYS[1], "-address", "host").succeed()
    assert (home / "mine").read_text().endswith(f"\nhost {PREFIX}{KEYS[1]}:\n")


def test_unlock_makes_a_list_and_takes_a_lock_back(home: Path) -> None:
    known(home, "unlock", "--server").succeed()
    path = home / "known_server_keys"
    assert path.read_text() == f"{HEADER}\n"
    known(home, "approve", "--server", KEYS[1]).succeed()
    known(home, "lock", "--server").succeed()
    assert path.stat().st_mode & 0o777 == 0o400
    known(home, "unlock", "--server", "--quiet").succeed()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["deny", "nobody@x"], USAGE, "'nobody@x' is no key, no certificate file, and"),
        (["deny", "x@x"], USAGE, "'x@x' stands in the lists with 2 keys; give the key"),
        (["deny", KEYS[1][:-1] + "1"], USAGE, "is no key"),
        (
            ["approve", "ca.crt"],
            USAGE,
            "ca.crt is the certificate of an authority, whose",
        ),
        (["deny", "ca.crt"], USAGE, "ca.crt is the certificate of an authority, whose"),
        (["list", "--file", ""], USAGE, "the path is empty"),
        (["approve", "note"], TRUST, "note is not a certificate"),
        (["list", "--file", "broken"], TRUST, "broken line 1: "),
        (["approve", "--file", "broken", KEYS[1]], TRUST, "broken line 1: "),
        (["lock", "--server"], FILES, "known_server_keys has no keys; locked like"),
        (["unlock", "--file", "no/list"], FILES, "cannot lock no/list: no such file"),
        (["list", "--file", "."], USAGE, "is a directory"),
        (["list", "--client", "--server"], USAGE, "give one of --file, --client and"),
        (["approve"], USAGE, "Missing argument 'PEER'"),
        (["frobnicate"], USAGE, "No such command 'frobnicate'"),
    ],
)
def test_mistakes_end_in_one_line(
    issued: Path, home: Path, words: list[str], code: int, text: str
) -> None:
    (home / "ca.crt").write_bytes((issued / "ca.crt").read_bytes())
    (home / "known_client_keys").write_text(
        "".join(f"h {PREFIX}{KEYS[n]}:x@x\n" for n in (1, 2))
    )
    (home / "broken").write_text("h oops\n")
    (home / "note").write_text("hello\n")
    before = (home / "known_client_keys").read_bytes()
    outcome = known(home, *words)
    assert outcome.code == code, outcome.stderr
    assert "Traceback" not in outcome.stderr
    (only,) = outcome.stderr.splitlines()
    assert only.startswith("rpc25519 known")
    assert text in only
    assert (home / "known_client_keys").read_bytes() == before
