"""``selfy renew`` and ``selfy status`` as users run them."""

import json
import os
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from rpc25519_tools.commands._authority import CA_VARIABLE
from rpc25519_tools.commands._passphrase import unattended_passphrase
from rpc25519_tools.commands.group import rpc25519
from rpc25519_tools.commands.selfy import selfy

from rpc25519_tools.errors import PassphraseError
from rpc25519_tools.identity import keyfile
from rpc25519_tools.identity.store import load_certificate
from tests.identity.samples import DATA, TINY_KDF


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory with a pair, a cheap key derivation, no pass phrase in the air."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keyfile, "DEFAULT_KDF", TINY_KDF)
    monkeypatch.delenv("RPC25519_PASSPHRASE", raising=False)
    monkeypatch.delenv(CA_VARIABLE, raising=False)
    run("-k", "node", "-e", "node@example.org", "-nopass", "--days", "90")


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(selfy, words)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def serial(name: str = "node") -> int:
    return load_certificate(f"certs/{name}.crt").serial_number


def test_renew_tells_what_it_has_done() -> None:
    before = serial()
    result = run("renew", "node", "-days=60")
    assert result.stdout == ""
    assert "wrote certs/node.crt\n" in result.stderr
    assert "node (9" in result.stderr
    assert serial() != before
    assert load_certificate("certs/node.crt.old").serial_number == before
    fields = json.loads(run("-v", "certs/node.crt", "--json").stdout)
    assert fields["emails"] == ["node@example.org"]
    assert fields["days_left"] == 59
    assert run("renew", "--quiet", "--ca", "node").output == ""
    assert run("-verify", "certs/node.crt").exit_code == 0


def test_renew_within_the_group() -> None:
    before = serial()
    result = CliRunner().invoke(rpc25519, ["selfy", "renew", "node"])
    assert result.exit_code == 0
    assert serial() != before


def test_renew_with_other_names() -> None:
    run("renew", "node", "-e", "new@example.org", "-san", "a.example", "--san=::1")
    fields = json.loads(run("-v", "certs/node.crt", "--json").stdout)
    assert fields["emails"] == ["new@example.org"]
    assert fields["dns_names"] == ["localhost", "a.example"]
    assert fields["ip_addresses"] == ["127.0.0.1", "::1"]


def test_directories_are_taken_from_the_words_own_options(tmp_path: Path) -> None:
    Path("certs").rename("c")
    Path("my-keep-private-dir").rename("p")
    run("renew", "-o", "c", "node", "-p=p")
    assert run("status", "-o", "c", "-p", "p").stdout.count("ok: ") == 3


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["renew"], 2, "selfy renew: Nothing to do: give the NAME of a certificate"),
        (["renew", "a", "b", "-e", "x@y"], 2, "selfy renew: -e needs exactly one NAME"),
        (["renew", "--ca", "-san", "x.y"], 2, "selfy renew: --san needs exactly one"),
        (["renew", "node", "-bogus"], 2, "selfy renew: No such option '-bogus'"),
        (["renew", "node", "-days", "x"], 2, "selfy renew: "),
        (["renew", "node", "-days", "0"], 2, "selfy renew: a certificate must live"),
        (["renew", "nobody"], 4, "selfy renew: there is no certs/nobody.crt: nothing"),
        (["renew", "../node"], 2, "selfy renew: a name must not begin with '.'"),
        (["renew", "ca"], 2, "selfy renew: the authority itself is renewed with --ca"),
        (["renew", "node", "-p", "no"], 4, "selfy renew: cannot read no/ca.crt"),
        (["-o", "c", "renew", "node"], 2, "selfy: -o goes behind 'renew'."),
        (["-k", "x", "status"], 2, "selfy: -k goes behind 'status'."),
        (["renwe", "node"], 2, "selfy: No such command 'renwe'."),
        (["status", "--warn", "soon"], 2, "selfy status: bad duration 'soon'"),
    ],
)
def test_mistakes_are_one_line(words: list[str], code: int, line: str) -> None:
    before = serial()
    result = run(*words, code=code)
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1
    assert serial() == before


@pytest.mark.parametrize(
    ("words", "start", "expected"),
    [
        ([], "re", ["renew"]),
        (["renew"], "", ["node", "other"]),
        (["renew"], "n", ["node"]),
        (["renew", "node", "-o", "nowhere"], "", []),
        (["status"], "--warn", ["--warn"]),
    ],
)
def test_words_and_names_complete(
    words: list[str], start: str, expected: list[str]
) -> None:
    run("-k", "other", "-e", "a@b", "-nopass")
    completer = ShellComplete(selfy, {}, "selfy", "_SELFY_COMPLETE")
    found = completer.get_completions(words, start)
    assert [item.value for item in found] == expected


def test_the_authoritys_pass_phrase_can_be_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RPC25519_PASSPHRASE", "of the key")
    monkeypatch.setenv(CA_VARIABLE, "of the authority")
    run("-ca", "-k", "node", "-e", "a@b", "--force")
    before = serial()
    assert "opening the authority's key" in run("renew", "node").stderr
    assert serial() != before
    monkeypatch.delenv("RPC25519_PASSPHRASE")
    monkeypatch.delenv(CA_VARIABLE)
    Path("phrase").write_text("of the authority\n")
    for option in ("--ca-passphrase-file", "-passphrase-file"):
        run("renew", "node", option, "phrase")
    Path("phrase").write_text("of the key\n")
    result = run("renew", "node", "--ca-passphrase-file", "phrase", code=4)
    assert "ca.key: wrong pass phrase" in result.stderr


def test_status_of_all_that_is_there() -> None:
    run("-k", "client", "-e", "client@example.org", "-nopass", "--days", "2")
    result = run("status", code=1)
    lines = result.stdout.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        "ok: certs/ca.crt: authority",
        "expiring: certs/client.crt: client@example.org",
        "ok: certs/node.crt: node@example.org",
        "ok: my-keep-private-dir/ca.crt: authority",
    ]
    assert ", 1 days left; it ends on " in lines[1]
    assert result.stderr == ""
    assert run("status", "-quiet", code=1).stdout.splitlines() == [lines[1]]
    assert run("status", "--warn", "1d").stdout.count("ok: ") == 4
    assert run("status", "--warn=1d", "--quiet").output == ""
    assert run("status", "certs/node.crt").stdout.splitlines() == [lines[2]]
    run("status", "certs/node.crt", "-warn", "100d", code=1)


def test_status_tells_what_is_wrong() -> None:
    Path("other").mkdir()
    for name in ("client", "second"):
        Path("other", f"{name}.crt").write_bytes((DATA / f"{name}.crt").read_bytes())
    Path("other/broken.crt").write_bytes(b"\x1b[2J no certificate")
    Path("other/node.key").write_bytes(b"not looked at")
    lines = run("status", "other", "missing.crt", code=1).stdout.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["unusable", "other/broken.crt"],
        ["not of our authority", "other/client.crt"],
        ["not of our authority", "other/second.crt"],
        ["unusable", "missing.crt"],
    ]


def test_status_as_json() -> None:
    Path("certs/x.crt").write_bytes(b"broken")
    entries = json.loads(run("status", "--json", code=1).stdout)
    found = [(one["file"], one["status"], one.get("days_left")) for one in entries]
    assert found == [
        ("certs/ca.crt", "ok", 36599),
        ("certs/node.crt", "ok", 89),
        ("certs/x.crt", "unusable", None),
        ("my-keep-private-dir/ca.crt", "ok", 36599),
    ]
    assert entries[1]["identity"].endswith(":node@example.org")
    assert entries[1]["reason"] == ""


def test_status_without_an_authority_or_certificates() -> None:
    Path("empty").mkdir()
    result = run("status", "empty", code=1)
    assert result.stderr == "selfy status: there is no certificate in empty\n"
    result = run("status", "certs/node.crt", "-o", "empty", "-p", "empty", code=1)
    assert "nothing to check it against: cannot read empty/ca.crt" in result.stdout
    # Where there is no authority the copy is what peers check against.
    assert run("status", "-p", "empty").stdout.count("ok: ") == 2


def test_pass_phrases_of_running_programs_are_read_anew_and_never_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "phrase"
    get = unattended_passphrase(os.fspath(path))
    for phrase in (b"first", b"second"):
        path.write_bytes(phrase + b"\n")
        assert get() == phrase
    os.mkfifo(tmp_path / "pipe")
    for given in (None, "-", os.fspath(tmp_path / "pipe"), "missing"):
        with pytest.raises(PassphraseError, match="nobody can be asked"):
            unattended_passphrase(given)()
    monkeypatch.setenv("RPC25519_PASSPHRASE", "third")
    assert unattended_passphrase(None)() == b"third"
