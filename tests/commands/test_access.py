"""srv with an access file: real programs, real certificates."""

import asyncio
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import RemoteCallError
from rpc25519_tools.files.download import download_file
from rpc25519_tools.files.sink import Sink
from rpc25519_tools.identity.certificate import raw_public_key
from rpc25519_tools.identity.store import load_certificate
from rpc25519_tools.rpc.client import Client
from tests.helpers import SrvProcess, issue_certs, run_program

RULES = """\
# who                may    where
deny *               read   /public/hidden
ann@example.org      read   /public
ann@example.org      write  /incoming/ann
bob@example.org      call   customEcho
"""


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pairs ``node``, ``ann`` and ``bob`` of one authority."""
    return issue_certs(tmp_path_factory.mktemp("people"), "node", "ann", "bob")


@pytest.fixture
def served(tmp_path: Path) -> Path:
    served = tmp_path / "served"
    for name in ("public", "public/hidden", "publicity", "incoming/ann"):
        (served / name).mkdir(parents=True)
        (served / name / "file").write_text(name)
    return served


@pytest.fixture
def access(tmp_path: Path) -> Path:
    path = tmp_path / "access"
    write(path, RULES)
    return path


@pytest.fixture
def srv(people: Path, served: Path, access: Path) -> Iterator[SrvProcess]:
    options = ["-serve", str(served), "-readfile", str(served), "-echo"]
    with SrvProcess(*options, "--access", access, certs=people) as process:
        yield process


def write(path: Path, text: str) -> None:
    """Put a file in the place of the old one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o600)
    new.rename(path)


def remove(path: Path) -> None:
    path.unlink()


def set_mode(path: Path, mode: int) -> None:
    path.chmod(mode)


def cli(
    srv: SrvProcess, people: Path, who: str, *args: str, cwd: Path
) -> subprocess.CompletedProcess[str]:
    return run_program(
        "cli", "-s", srv.address, "-certs", people, "-k", who, *args, cwd=cwd
    )


def check_refused(done: subprocess.CompletedProcess[str], what: str) -> None:
    """Check that a client got one line, which says no more than it asked for."""
    assert done.returncode == 1
    assert done.stdout == ""
    lines = [one for one in done.stderr.splitlines() if "warning:" not in one]
    assert lines == [f"cli: not allowed: {what}"]


def test_each_right_and_its_refusal(
    srv: SrvProcess, people: Path, served: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "new").write_text("new content")

    def run(who: str, *args: str) -> subprocess.CompletedProcess[str]:
        return cli(srv, people, who, *args, "-quiet", cwd=home)

    def read(who: str, name: str) -> subprocess.CompletedProcess[str]:
        return run(who, "-download", name, "-o", "-")

    def send(who: str, name: str) -> subprocess.CompletedProcess[str]:
        return run(who, "-sendfile", "new", "--to", name)

    assert read("ann", "public/file").stdout == "public"
    for name in ("publicity/file", "public/hidden/file", "public/hidden/missing"):
        check_refused(read("ann", name), f"read '/{name}'")
    check_refused(read("bob", "public/file"), "read '/public/file'")
    check_refused(read("bob", "public/missing"), "read '/public/missing'")

    assert send("ann", "incoming/ann/new").returncode == 0
    assert (served / "incoming/ann/new").read_text() == "new content"
    for name in ("incoming/new", "public/new", "public/file", "missing/new"):
        check_refused(send("ann", name), f"write '/{name}'")
    assert (served / "public/file").read_text() == "public"
    assert not (served / "public/new").exists()
    check_refused(send("bob", "incoming/ann/new"), "write '/incoming/ann/new'")

    assert run("bob", "-n", "2").returncode == 0
    check_refused(run("ann", "-n", "2"), "call 'customEcho'")
    check_refused(run("ann", "-echofile", "new", "-o", "x"), "call 'echoBistreamFunc'")
    for spelling in ("public/../publicity/file", "./publicity/file", "public//file"):
        done = read("ann", spelling)
        assert (done.returncode, done.stdout) == (1, "")
        assert "refused" in done.stderr

    who = r"127\.0\.0\.1:\d+ ann@example\.org \(9\w{50}\)"
    assert re.search(
        rf"(?m)^srv: warning: {who} not allowed: read '/publicity/file'$", srv.stderr()
    )


def no_sink() -> Sink:
    raise AssertionError("nothing comes that could be stored")


async def test_a_client_cannot_fill_the_log_with_refusals(
    srv: SrvProcess, people: Path, tmp_path: Path
) -> None:
    count, shown = 60, 10
    config = Config(
        address=parse_address(srv.address), key_name="bob", certs_dir=str(people)
    )
    async with await Client.connect(config) as client:
        for number in range(count):
            with pytest.raises(RemoteCallError, match="not allowed: read"):
                await download_file(client, f"public/{number}", no_sink)
    check_refused(
        await asyncio.to_thread(
            cli, srv, people, "ann", "-download", "x", "-quiet", cwd=tmp_path
        ),
        "read '/x'",
    )
    srv.process.terminate()
    assert await asyncio.to_thread(srv.process.wait) == 0
    lines = [line for line in srv.stderr().splitlines() if "not allowed: " in line]
    of_bob = [line for line in lines if "bob@example.org" in line]
    assert len(of_bob) == 2 * (shown + 1)
    last = f"not allowed: read '/public/{count - 1}'"
    for begin, what in (
        ("srv: warning: bob@", last),
        ("20", f"download 'public/{count - 1}' failed: {last}"),
    ):
        told = [line for line in of_bob if line.startswith(begin)][-1]
        assert told.endswith(f") {count - shown} more times: {what}")
    assert len(lines) == len(of_bob) + 2


async def test_changes_count_for_the_next_call_of_an_open_connection(
    srv: SrvProcess, people: Path, access: Path
) -> None:
    config = Config(
        address=parse_address(srv.address), key_name="bob", certs_dir=str(people)
    )
    async with await Client.connect(config) as client:
        await client.call("customEcho")
        write(access, "bob@example.org call other\n")
        with pytest.raises(RemoteCallError, match="not allowed: call 'customEcho'"):
            await client.call("customEcho")
        write(access, f"{RULES}bob@example.org reads /\n")
        with pytest.raises(RemoteCallError, match="not allowed: call 'customEcho'"):
            await client.call("customEcho")
        broken = f"access file {access}: line 6: unknown right 'reads'"
        srv.wait_for(f"srv: warning: {broken}")
        write(access, RULES)
        await client.call("customEcho")
        srv.wait_for(f"srv: warning: access file {access} is in force again")
        remove(access)
        with pytest.raises(RemoteCallError, match="not allowed: call 'customEcho'"):
            await client.call("customEcho")
        write(access, RULES)
        set_mode(access, 0o666)
        with pytest.raises(RemoteCallError, match="not allowed: call 'customEcho'"):
            await client.call("customEcho")
        set_mode(access, 0o600)
        await client.call("customEcho")
    assert srv.stderr().count(broken) == 1


def test_who_proves_nothing_needs_a_rule_for_anyone(
    people: Path, access: Path, tmp_path: Path
) -> None:
    write(access, "* call customEcho\n")
    with SrvProcess("-tcp", "--access", access) as srv:
        assert "only rules for anyone" in srv.stderr()
        done = run_program("cli", "-tcp", "-s", srv.address, "-quiet")
        check_refused(done, "call 'customEcho'")
        write(access, "anyone call customEcho\n")
        done = run_program("cli", "-tcp", "-s", srv.address, "-quiet")
        assert done.returncode == 0
    with SrvProcess("-skip-verify", "--access", access, certs=people) as srv:
        assert cli(srv, people, "ann", "-quiet", cwd=tmp_path).returncode == 0
        write(access, "* call customEcho\nann@example.org call customEcho\n")
        check_refused(
            cli(srv, people, "ann", "-quiet", cwd=tmp_path), "call 'customEcho'"
        )


@pytest.mark.parametrize("below", ["-tcp", "-skip-verify"])
def test_the_handshake_behind_a_pre_shared_key_is_a_proof(
    people: Path, access: Path, tmp_path: Path, below: str
) -> None:
    (psk := tmp_path / "psk").write_bytes(bytes(range(32)))
    psk.chmod(0o600)
    options = (below, "-psk", psk, "--access", access)
    with SrvProcess(*options, certs=people) as srv:
        assert "only rules for anyone" not in srv.stderr()
        for who, code in (("bob", 0), ("ann", 1)):
            run = (below, "-psk", str(psk), "-quiet")
            assert cli(srv, people, who, *run, cwd=tmp_path).returncode == code
            ask = ("--may", people / f"{who}.crt", "call", "customEcho")
            answer = run_program("srv", *options, "-certs", people, *ask)
            assert answer.returncode == code
            assert answer.stdout.startswith("no: no line" if code else "yes: line 5")


@pytest.mark.parametrize(
    ("text", "mode", "code", "problem"),
    [
        ("* reads /\n", 0o600, 2, "line 1: unknown right 'reads'"),
        ("# x\n* read /a*\n", 0o600, 2, "line 2: '/a*': there are no patterns"),
        ("* read /\n", 0o666, 2, "others can write"),
        (None, 0, 6, "no such file or directory"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_srv_does_not_start_with_a_file_of_no_use(
    people: Path,
    access: Path,
    text: str | None,
    mode: int,
    code: int,
    problem: str,
    check: bool,
) -> None:
    access.unlink()
    if text is not None:
        access.write_text(text)
        access.chmod(mode)
    options = ["--check"] if check else ["-s", "127.0.0.1:0"]
    done = run_program("srv", "-certs", people, "--access", access, *options)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("srv: ")
    assert str(access) in line
    assert problem in line


def test_check_looks_at_everything_and_serves_nothing(
    people: Path, served: Path, access: Path, certs: Path, tmp_path: Path
) -> None:
    def check(*args: str | Path, code: int) -> str:
        done = run_program("srv", "--check", *args, timeout=20)
        assert done.returncode == code, done
        assert bool(done.stdout) == (code == 0)
        assert len((done.stdout + done.stderr).splitlines()) == 1
        return done.stdout + done.stderr

    good = ("-certs", people, "-serve", served, "-readfile", served)
    assert check(*good, "--access", access, code=0) == (
        "srv: the settings are fine (TLS 1.3; downloads, pulls, uploads, pushes, echo "
        f"calls; 4 rules in {access})\n"
    )
    assert "no access file" in check("-certs", people, code=0)
    assert "missing" in check("-certs", people, "-serve", tmp_path / "missing", code=6)
    assert "missing" in check("-certs", tmp_path / "missing", code=4)
    assert "nobody" in check("-certs", people, "-k", "nobody", code=4)
    assert "bad address" in check("-certs", people, "-s", "1:2:3:x", code=2)
    # The address may be in use: by the very srv whose next settings these are.
    with SrvProcess(certs=people) as running:
        check(*good, "-s", running.address, code=0)


def key_hex(people: Path, name: str) -> str:
    return raw_public_key(load_certificate(people / f"{name}.crt")).hex()


@pytest.mark.parametrize(
    ("who", "right", "target", "answer"),
    [
        ("ann@example.org", "read", "/public/x", "yes: line 3"),
        ("ann@example.org", "read", "public/x", "yes: line 3"),
        ("ann@example.org", "read", "public/hidden/x", "no: line 2: deny * read"),
        ("ann@example.org", "read", "/publicity", "no: no line allows it"),
        ("ann@example.org", "list", "/public", "no: no line allows it"),
        ("Ann@example.org", "read", "/public", "no: no line allows it"),
        ("{people}/ann.crt", "write", "/incoming/ann/x", "yes: line 4"),
        ("{people}/bob.crt", "write", "/incoming/ann/x", "no: no line allows it"),
        ("{people}/bob.crt", "call", "customEcho", "yes: line 5"),
        ("{certs}/client.crt", "read", "/", "no: certificate refused: "),
        ("key:{ann}", "call", "customEcho", "no: no line allows it"),
        ("*", "read", "/public", "no: no line allows it"),
        ("anyone", "read", "/public", "no: clients need a certificate"),
    ],
)
def test_questions_are_answered(
    people: Path,
    certs: Path,
    access: Path,
    who: str,
    right: str,
    target: str,
    answer: str,
) -> None:
    who = who.format(people=people, certs=certs, ann=key_hex(people, "ann"))
    done = run_program(
        "srv", "-certs", people, "--access", access, "-may", who, right, target
    )
    assert done.stdout.startswith(answer)
    assert done.returncode == (0 if answer.startswith("yes") else 1)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_answers_are_those_of_the_running_server(
    people: Path, access: Path, tmp_path: Path
) -> None:
    key = key_hex(people, "ann")
    write(access, f"deny key:{key} call echoBistreamFunc\n* call *\n")
    with SrvProcess("-echo", "--access", access, certs=people) as srv:
        (tmp_path / "f").write_text("x")
        for name in ("ann", "bob"):
            done = cli(srv, people, name, "-echofile", "f", "-o", "g", cwd=tmp_path)
            answer = run_program(
                "srv",
                *("-certs", people, "--access", access),
                *("--check", "--may", people / f"{name}.crt"),
                *("call", "echoBistreamFunc"),
            )
            assert done.returncode == answer.returncode == (1 if name == "ann" else 0)


@pytest.mark.parametrize(
    ("question", "code", "problem"),
    [
        (("ann@example.org", "reads", "/"), 2, "unknown right 'reads'"),
        (("ann@example.org", "read", "/a/../b"), 2, "'..' component"),
        (("key:123", "read", "/"), 2, "is no key"),
        (("no-such.crt", "read", "/"), 4, "cannot read no-such.crt"),
        (("ann@example.org", "read"), 2, "requires 3 arguments"),
    ],
)
def test_questions_that_make_no_sense(
    people: Path, access: Path, question: tuple[str, ...], code: int, problem: str
) -> None:
    done = run_program("srv", "-certs", people, "--access", access, "--may", *question)
    assert (done.returncode, done.stdout) == (code, "")
    assert problem in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_questions_without_an_access_file(people: Path) -> None:
    ask = ("--may", "ann@example.org", "read", "/")
    done = run_program("srv", "-certs", people, *ask)
    assert (done.returncode, done.stdout[:27]) == (0, "yes: there is no access fil")
    done = run_program("srv", "-certs", people, "--may", "anyone", "read", "/")
    assert done.returncode == 1
    done = run_program("srv", "-tcp", "--may", "anyone", "read", "/")
    assert done.returncode == 0


def test_the_example_of_the_documentation_answers_as_it_says(
    people: Path, access: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "access.md").read_text()
    blocks = re.findall(r"(?m)(?:^    .*\n)+", page)
    block = next(one for one in blocks if "# who" in one)
    write(access, re.sub("(?m)^    ", "", block))
    questions = [
        line.split("--may ")[1].split()
        for line in page.splitlines()
        if line.startswith("    srv --access") and "certs/" not in line
    ]
    answers = re.findall(r"(?m)^    (yes|no): (.*)$", page)
    ann = "ann@example.org"
    for who, right, target in [
        *questions,
        (ann, "read", "/reports/drafts/x"),
        (ann, "read", "/"),
    ]:
        done = run_program(
            *("srv", "-certs", people, "--access", access),
            *("--may", who, right, target),
        )
        if who == ann:
            word, reason = answers.pop(0)
            assert done.stdout == f"{word}: {reason}\n"
        else:  # a key alone has what every certificate has
            assert done.stdout == "yes: line 6: * call customEcho\n"
    assert answers == []
