"""The programs as users run them: spellings, streams, summaries, exit codes."""

import json
import os
import re
import signal
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from rpc25519_tools.commands._errors import EXIT_CODES

from rpc25519_tools.identity.keyfile import (
    KdfParameters,
    decode_private_key,
    encode_private_key,
)
from rpc25519_tools.wire.codecs import codec_names
from tests.commands.hostile import (
    MIB,
    PATIENCE_S,
    HostileServer,
    Outcome,
    Wire,
    finish,
    names_in,
    ready_address,
    run,
    started,
)
from tests.helpers import SrvProcess, wait_until

CONTENT = os.urandom(2 * MIB) + b"text " * 100_000
PHRASE = b"correct horse"
WEAK_KDF = KdfParameters(memory_kib=8, iterations=1, threads=1, key_len=32)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served")
    (path / "sub").mkdir()
    (path / "sub" / "below").write_bytes(CONTENT)
    return path


@pytest.fixture
def served(shared: Path) -> Iterator[Path]:
    """The served directory; what a test adds is taken away again."""
    yield shared
    for path in shared.iterdir():
        if path.is_file():
            path.unlink()


@pytest.fixture(scope="module")
def srv(certs: Path, shared: Path) -> Iterator[SrvProcess]:
    options = ["-serve", str(shared), "-readfile", str(shared), "-echo", "-v"]
    with SrvProcess(*options, certs=certs) as process:
        yield process


@pytest.fixture
def cli(srv: SrvProcess, certs: Path, home: Path) -> Callable[..., Outcome]:
    def run_cli(*args: str, input: bytes | None = None) -> Outcome:
        options = ["-s", srv.address, "-certs", str(certs)]
        return run("cli", *options, *args, cwd=home, input=input)

    return run_cli


Cli = Callable[..., Outcome]

# Exit codes


def ends_well(cli: Cli, _home: Path) -> Outcome:
    return cli().succeed()


def fails(cli: Cli, _home: Path) -> Outcome:
    return cli("-download", "nosuch")


def is_used_wrongly(cli: Cli, _home: Path) -> Outcome:
    return cli("-nosuch")


def finds_no_server(_cli: Cli, home: Path) -> Outcome:
    return run("cli", "-tcp", "-s", "127.0.0.1:1", cwd=home)


def finds_no_keys(_cli: Cli, home: Path) -> Outcome:
    return run("cli", "-certs", "nosuch", cwd=home)


def meets_a_stranger(_cli: Cli, home: Path) -> Outcome:
    async def talk(wire: Wire) -> None:
        await wire.send_bytes(b"220 mail.example.org ESMTP\r\n")

    with HostileServer(talk, None) as server:
        return run("cli", "-tcp", "-s", server.address, cwd=home)


def finds_no_file(cli: Cli, _home: Path) -> Outcome:
    return cli("-sendfile", "nosuch")


def is_interrupted(_cli: Cli, home: Path) -> Outcome:
    connected: list[Wire] = []

    async def silent(wire: Wire) -> None:
        connected.append(wire)

    with (
        HostileServer(silent, None) as server,
        started("cli", "-tcp", "-s", server.address, cwd=home) as process,
    ):
        wait_until(lambda: connected, timeout_s=PATIENCE_S)
        process.send_signal(signal.SIGINT)
        return finish(process)


def meets_a_defect(_cli: Cli, home: Path) -> Outcome:
    (home / "sitecustomize.py").write_text(
        "from rpc25519_tools import config\n"
        "def defect(*args, **kwargs): raise RuntimeError('a\\nb')\n"
        "config.parse_address = defect\n"
    )
    return run("cli", cwd=home, env={"PYTHONPATH": str(home)})


@pytest.mark.parametrize(
    ("code", "deed"),
    [
        pytest.param(code, deed, id=f"{code}-{deed.__name__}")
        for code, deed in (
            (0, ends_well),
            (1, fails),
            (2, is_used_wrongly),
            (3, finds_no_server),
            (4, finds_no_keys),
            (5, meets_a_stranger),
            (6, finds_no_file),
            (130, is_interrupted),
            (70, meets_a_defect),
        )
    ],
)
def test_exit_code(
    cli: Cli, home: Path, code: int, deed: Callable[..., Outcome]
) -> None:
    outcome = deed(cli, home)
    assert outcome.code == code, outcome.stderr
    if code:
        assert len(outcome.lines) == 1
        assert outcome.lines[0].startswith("cli: ")


def test_exit_code_when_the_reader_of_stdout_goes_away(
    srv: SrvProcess, certs: Path, home: Path
) -> None:
    command = (
        f"cli -s {srv.address} -certs {certs} -download sub/below -o - | head -c 1"
    )
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=home,
        env={**os.environ, "PATH": programs_path()},
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (result.returncode, result.stderr) == (141, b"")
    assert result.stdout == CONTENT[:1]


def programs_path() -> str:
    return f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"


def test_every_exit_code_of_the_table_is_tested() -> None:
    tested = {0, 1, 2, 3, 4, 5, 6, 70, 130, 141}
    tested |= {7, 8}  # of syncs; see test_sync_ends.py
    assert {row.code for row in EXIT_CODES} == tested


# Spellings


@pytest.mark.parametrize(
    ("words", "offer"),
    [
        (["-serve"], "TLS 1.3; downloads, pulls, echo calls"),
        (["--serve", "."], "TLS 1.3; downloads, pulls, echo calls"),
        (
            ["-serve=.", "-readfile"],
            "TLS 1.3; downloads, pulls, uploads, pushes, echo calls",
        ),
        (["--serve=true", "-readfile=false"], "TLS 1.3; downloads, pulls, echo calls"),
        (["-serve=false", "-tcp=false", "--echo"], "TLS 1.3; file echo, echo calls"),
        (["-tcp", "--no-echo-service"], "plain TCP; nothing on offer"),
        (["-echo=true", "-tcp=true"], "plain TCP; file echo, echo calls"),
    ],
    ids=" ".join,
)
def test_spellings_of_srv(
    certs: Path, home: Path, words: list[str], offer: str
) -> None:
    (home / "f").write_bytes(CONTENT)
    args = ["-s", "127.0.0.1:0", *words]
    with SrvProcess(*args, certs=certs, cwd=home) as srv:
        assert srv.stdout() == f"srv: listening on {srv.address} ({offer})\n"
        assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d+", srv.address)
        assert srv.stop(signal.SIGINT) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["-s={address}", "-certs={certs}", "-download=sub/below"],
        ["--s={address}", "--certs={certs}", "--download=sub/below"],
        ["--s", "{address}", "--certs", "{certs}", "--download", "sub/below"],
        [
            "-download",
            "sub/below",
            "-tcp=false",
            "-s",
            "{address}",
            "-certs",
            "{certs}",
        ],
    ],
    ids=" ".join,
)
def test_spellings_of_cli(
    srv: SrvProcess, certs: Path, home: Path, words: list[str]
) -> None:
    filled = [word.format(address=srv.address, certs=certs) for word in words]
    run("cli", *filled, cwd=home).succeed()
    assert (home / "below").read_bytes() == CONTENT


def test_group_runs_its_tools(srv: SrvProcess, certs: Path, home: Path) -> None:
    args = ["-s", srv.address, "-certs", str(certs), "-download", "sub/below", "-quiet"]
    outcome = run("rpc25519", "cli", *args, cwd=home).succeed()
    assert (outcome.stdout, outcome.stderr) == ("", "")
    assert (home / "below").read_bytes() == CONTENT


# Names, streams and summaries


def test_files_keep_their_own_names(cli: Cli, home: Path, served: Path) -> None:
    (home / "dir").mkdir()
    (home / "dir" / "up").write_bytes(CONTENT)
    cli("-sendfile", "dir/up").succeed()
    assert (served / "up").read_bytes() == CONTENT
    cli("-sendfile", "dir/up", "--to", "other").succeed()
    assert (served / "other").read_bytes() == CONTENT
    cli("-download", "sub/below").succeed()
    cli("-download", "sub/below", "-o", "dir").succeed()
    cli("-download", "sub/below", "-o", "dir/given").succeed()
    cli("-echofile", "dir/up").succeed()
    assert names_in(home) == ["below", "dir", "up.echoed"]
    assert names_in(home / "dir") == ["below", "given", "up"]
    for name in ("below", "up.echoed", "dir/below", "dir/given"):
        assert (home / name).read_bytes() == CONTENT


def test_upload_from_a_stream(cli: Cli, served: Path) -> None:
    cli("-sendfile", "-", "--to", "f", input=CONTENT).succeed()
    assert (served / "f").read_bytes() == CONTENT
    cli("-sendfile", "-", "--to", "f", input=b"").succeed()
    assert (served / "f").read_bytes() == b""


def test_download_and_echo_to_a_stream(
    srv: SrvProcess, certs: Path, home: Path
) -> None:
    for args, given in (
        (["-download", "sub/below", "-o", "-"], b""),
        (["-echofile", "-", "-o", "-"], CONTENT),
    ):
        result = subprocess.run(
            ["cli", "-s", srv.address, "-certs", str(certs), *args],
            cwd=home,
            env={**os.environ, "PATH": programs_path()},
            input=given,
            capture_output=True,
            timeout=PATIENCE_S,
            check=True,
        )
        assert result.stdout == CONTENT
        assert result.stderr.count(b"\n") == 1
    assert names_in(home) == []


@pytest.mark.parametrize("codec", codec_names())
def test_file_there_and_back_with_every_codec(cli: Cli, home: Path, codec: str) -> None:
    content = CONTENT[: MIB + 1] + CONTENT[-1000:]
    (home / "f").write_bytes(content)
    outcome = cli("-echofile", "f", "-press", codec).succeed()
    assert (home / "f.echoed").read_bytes() == content
    assert f", codec {codec}, " in outcome.stderr


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1])
def test_sizes(cli: Cli, home: Path, served: Path, size: int) -> None:
    (home / "f").write_bytes(CONTENT[:size])
    cli("-sendfile", "f").succeed()
    cli("-download", "f", "-o", "g").succeed()
    assert (served / "f").read_bytes() == CONTENT[:size]
    assert (home / "g").read_bytes() == CONTENT[:size]


SUMMARY = re.compile(
    r"(\w+) (\S+): (\d+) bytes \((\d[\d.]* \w+)\) in (\d+\.\d{3}) s, "
    r"(\d+\.\d) MB/s, codec (\S+), blake3 ([0-9a-f]{64})"
)


def test_summary_line(cli: Cli, home: Path, served: Path) -> None:
    (home / "up").write_bytes(CONTENT)
    for args, verb, name, codec in (
        (["-sendfile", "up"], "uploaded", "up", "s2"),
        (["-download", "up", "-big"], "downloaded", "up", "none"),
        (["-echofile", "up", "-press", "lz4"], "echoed", "up", "lz4"),
    ):
        outcome = cli(*args).succeed()
        assert outcome.stdout == ""
        assert len(outcome.lines) == 1
        match = SUMMARY.fullmatch(outcome.lines[0])
        assert match is not None, outcome.stderr
        assert match[1] == verb
        assert match[2] == name
        assert int(match[3]) == len(CONTENT)
        assert match[4] == "2.5 MiB"
        assert match[7] == codec
        assert match[8] == blake3(CONTENT).hexdigest()
        assert cli(*args, "-quiet").succeed().stderr == ""


def test_json_summary(cli: Cli, home: Path, served: Path) -> None:
    (home / "up").write_bytes(CONTENT)
    for args, verb in (
        (["-sendfile", "up"], "uploaded"),
        (["-download", "up"], "downloaded"),
        (["-echofile", "up"], "echoed"),
    ):
        outcome = cli(*args, "--json").succeed()
        assert outcome.stderr == ""
        summary = json.loads(outcome.stdout)
        assert summary.pop("seconds") > 0
        assert summary.pop("mb_per_s") > 0
        assert summary == {
            "operation": verb,
            "name": "up",
            "size_bytes": len(CONTENT),
            "codec": "s2",
            "blake3": blake3(CONTENT).hexdigest(),
            "verified_by_peer": True,
            "carried_bytes": 0,
        }


def test_json_summary_stays_out_of_the_data(cli: Cli, home: Path, served: Path) -> None:
    (served / "text").write_bytes(b"some text\n")
    outcome = cli("-download", "text", "-o", "-", "--json").succeed()
    assert outcome.stdout == "some text\n"
    assert json.loads(outcome.stderr)["blake3"] == blake3(b"some text\n").hexdigest()


def test_echo_calls(cli: Cli) -> None:
    outcome = cli("-n", "3").succeed()
    assert outcome.stdout.count("client says hello") == 3
    assert outcome.stdout.count("with time customEcho sees this: '") == 3
    assert re.fullmatch(
        r"3 echo calls: min [\d.]+ us, p50 [\d.]+ us, p90 [\d.]+ us, "
        r"p99 [\d.]+ us, p999 [\d.]+ us, max [\d.]+ us",
        outcome.stdout.splitlines()[-1],
    )
    summary = json.loads(cli("-n", "3", "--json").succeed().stdout)
    assert summary.pop("operation") == "echo"
    assert summary.pop("calls") == 3
    assert list(summary) == [
        "min_us",
        "p50_us",
        "p90_us",
        "p99_us",
        "p999_us",
        "max_us",
    ]
    quiet = cli("-quiet").succeed()
    assert quiet.stdout.startswith("1 echo call: min ")
    assert (quiet.stdout.count("\n"), quiet.stderr) == (1, "")


def test_verbose_tells_of_the_connection(cli: Cli, srv: SrvProcess) -> None:
    lines = cli("-v").succeed().lines
    assert re.fullmatch(
        r"connected from 127\.0\.0\.1:\d+ to 127\.0\.0\.1:\d+, "
        r"node@example\.org \(\w+\), TLSv1\.3 TLS_CHACHA20_POLY1305_SHA256 \S+",
        lines[0],
    )
    srv.wait_for(" echo call ")
    assert "client@example.org" in srv.stderr()


def test_server_logs_each_transfer_with_who_and_how_much(
    cli: Cli, srv: SrvProcess
) -> None:
    cli("-download", "sub/below").succeed()
    line = re.compile(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ 127\.0\.0\.1:\d+ client@example\.org "
        rf"\(\w+\) download 'sub/below' {len(CONTENT)} bytes \d+\.\d{{3}} s "
        r"\d+\.\d MB/s ok"
    )
    # Among those of other tests, which may have ended in another way.
    wait_until(lambda: any(map(line.fullmatch, srv.stderr_lines())))


def test_replaced_file_keeps_its_mode(cli: Cli, home: Path, served: Path) -> None:
    (home / "f").write_bytes(CONTENT)
    for path in (served / "f", home / "below"):
        path.write_bytes(b"old")
        path.chmod(0o640)
    cli("-sendfile", "f").succeed()
    cli("-download", "sub/below").succeed()
    for path in (served / "f", home / "below"):
        assert path.read_bytes() == CONTENT
        assert path.stat().st_mode & 0o7777 == 0o640


def with_umask() -> None:
    os.umask(0o027)


def test_new_file_gets_the_mode_of_the_umask(
    srv: SrvProcess, certs: Path, home: Path
) -> None:
    args = ["-s", srv.address, "-certs", str(certs), "-download", "sub/below"]
    run("cli", *args, cwd=home, preexec=with_umask).succeed()
    assert (home / "below").stat().st_mode & 0o7777 == 0o640


# Protected keys


@pytest.fixture(scope="module")
def protected(certs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("protected")
    for path in certs.iterdir():
        content = path.read_bytes()
        if path.suffix == ".key":
            key = decode_private_key(content, None)
            content = encode_private_key(
                key, PHRASE, random_bytes=os.urandom, kdf=WEAK_KDF
            )
        (directory / path.name).write_bytes(content)
        (directory / path.name).chmod(0o600)
    return directory


@pytest.mark.parametrize("way", ["file", "stdin", "environment"])
def test_protected_keys_of_both_sides(protected: Path, home: Path, way: str) -> None:
    (home / "phrase").write_bytes(PHRASE + b"\n")
    (home / "f").write_bytes(CONTENT)
    options = {
        "file": ["--passphrase-file", "phrase"],
        "stdin": ["--passphrase-file", "-"],
        "environment": [],
    }[way]
    env = {"RPC25519_PASSPHRASE": PHRASE.decode()} if way == "environment" else {}
    options += ["-certs", str(protected)]
    with (
        (home / "phrase").open("rb") as phrase,
        started(
            "srv",
            *("-s", "127.0.0.1:0", "-serve", *options),
            cwd=home,
            env=env,
            stdin=phrase.fileno(),
        ) as srv,
    ):
        args = ["-s", ready_address(srv), "-download", "f", "-o", "g", *options]
        outcome = run("cli", *args, cwd=home, env=env, input=PHRASE).succeed()
    assert len(outcome.lines) == 1
    assert (home / "g").read_bytes() == CONTENT
