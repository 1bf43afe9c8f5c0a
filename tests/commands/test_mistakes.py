"""What users do wrong: one clear line on stderr, the right exit code, no traceback."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc25519_tools.errors import UnsafePathError
from rpc25519_tools.files.download import default_local_name
from tests.commands.hostile import (
    Outcome,
    names_in,
    ready_address,
    run,
    started,
    without_root_powers,
)
from tests.commands.mistakes import (
    FAILED,
    FILES,
    NETWORK,
    PROTOCOL,
    TRUST,
    USAGE,
    copied,
)
from tests.helpers import SrvProcess


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served")
    (path / "there").write_bytes(b"there")
    (path / "directory").mkdir()
    return path


@pytest.fixture(scope="module")
def srv(certs: Path, served: Path) -> Iterator[SrvProcess]:
    options = ["-serve", str(served), "-readfile", str(served), "-echo", "--no-clobber"]
    with SrvProcess(*options, certs=certs) as process:
        yield process
        assert process.process.poll() is None
        assert "Traceback" not in process.stderr()


@pytest.fixture(scope="module")
def bare(certs: Path) -> Iterator[SrvProcess]:
    """A server that offers nothing."""
    with SrvProcess("--no-echo-service", certs=certs) as process:
        assert "nothing on offer" in process.stdout()
        yield process


@pytest.fixture(scope="module")
def plain(served: Path) -> Iterator[SrvProcess]:
    with SrvProcess("-tcp", "-serve", str(served)) as process:
        yield process


# The command line

CLI_USAGE = [
    ("-download a -sendfile b", "give only one of -download, -sendfile and -echofile"),
    ("-echofile a -sendfile b", "give only one of"),
    ("-o out", "-o goes with -download, -echofile or -pull"),
    ("-sendfile a -o out", "-o goes with -download, -echofile or -pull"),
    ("--to name", "--to goes with -sendfile or -push"),
    ("-download a --to name", "--to goes with -sendfile or -push"),
    ("-sendfile -", "standard input has no name"),
    ("-echofile -", "standard input has no name"),
    ("-sendfile - --to x --passphrase-file -", "cannot be both the file and the pass"),
    ("-download=", "the file name is empty"),
    ("-download a -o=", "'--out': the path is empty"),
    ("-echofile a -o=", "'--out': the path is empty"),
    ("-sendfile a --to=", "the name of --to is empty"),
    ("-n 2 -sendfile a", "-n is for echo calls; one file is moved at a time"),
    ("-n 2 -download a", "-n is for echo calls"),
    ("-n 2 -echofile a", "-n is for echo calls"),
    ("--no-clobber", "--no-clobber goes with -download, -sendfile or -echofile"),
    ("-nosuch", "No such option"),
    ("--nosuch=1", "No such option"),
    ("stray", "unexpected extra argument"),
    ("stray words", "unexpected extra arguments"),
    ("-n 0", "0 is not in the range x>=1"),
    ("-n many", "'many' is not a valid integer"),
    ("-n", "requires an argument"),
    ("-press zip", "unknown compression 'zip'"),
    ("-press zstd:02", "unknown compression 'zstd:02'"),
    ("-wait soon", "bad duration 'soon'"),
    ("-wait -1s", "bad duration '-1s'"),
    ("-wait 10y", "bad duration '10y'"),
    ("-wait 0", "-wait must be above zero"),
    ("-s host:port", "bad address 'host:port'"),
    ("-s host:", "no port after the colon"),
    ("-s a:b:c", "bad address 'a:b:c'"),
    ("-s 127.0.0.1:65536", "the port must be 0 to 65535"),
    ("-s 127.0.0.1:-1", "the port must be 0 to 65535"),
    ("-s [::1", "expected [HOST]:PORT"),
    ("-s tcp://127.0.0.1:1", "bad address"),
    ("-s=", "bad address ''"),
    ("-hostport x:y", "bad address 'x:y'"),
    ("-tcp=maybe", "'maybe' is not a boolean"),
]
EMPTY_PATHS = [
    ("-psk=", "'--psk': the path is empty"),
    ("-certs=", "'--certs': the path is empty"),
    ("-known-keys=", "'--known-keys': the path is empty"),
    ("-passphrase-file=", "'--passphrase-file': the path is empty"),
]
SRV_USAGE = [
    ("-s nohostport", "bad address 'nohostport': expected HOST:PORT"),
    ("-s 127.0.0.1:x", "bad address"),
    ("-press zip", "unknown compression 'zip'"),
    ("-grace soon", "bad duration 'soon'"),
    ("-serve --no-clobber", "--no-clobber goes with -readfile"),
    ("-read 1x", "bad duration '1x'"),
    ("-sec -1", "-1.0 is not in the range x>=0"),
    ("-sec soon", "'soon' is not a valid float"),
    ("-sec nan", "'nan' is not a number of seconds"),
    ("-sec inf", "'inf' is not a number of seconds"),
    ("-access=", "'--access': the path is empty"),
    *EMPTY_PATHS,
    ("-nosuch", "No such option"),
    ("stray", "unexpected extra argument"),
    (f"-serve {__file__}", "is a file"),
]
SAMESAME_USAGE = [
    ("-certs=", "'--certs': the path is empty"),
    ("-sends 0", "0 is not in the range x>=1"),
    ("-c nohostport", "expected HOST:PORT"),
    ("stray", "unexpected extra argument"),
]
GROUP_USAGE = [
    ("nosuch", "No such command 'nosuch'"),
    ("-nosuch", "No such option"),
    ("cli -nosuch", "No such option"),
    ("completion tcsh", "'tcsh' is not one of"),
    ("completion", "Missing argument"),
]


@pytest.mark.parametrize(
    ("program", "words", "text"),
    [
        pytest.param(program, words, text, id=f"{program} {words}")
        for program, table in (
            ("cli", [*CLI_USAGE, *EMPTY_PATHS]),
            ("srv", SRV_USAGE),
            ("samesame", SAMESAME_USAGE),
            ("rpc25519", GROUP_USAGE),
        )
        for words, text in table
    ],
)
def test_wrong_usage(home: Path, program: str, words: str, text: str) -> None:
    outcome = run(program, *words.split(" "), cwd=home)
    assert outcome.code == USAGE, outcome.stderr
    assert len(outcome.lines) == 1, outcome.stderr
    assert outcome.lines[0].startswith(program)
    assert text in outcome.lines[0]
    assert outcome.stdout == ""
    assert names_in(home) == []


def test_control_characters_of_the_command_line_are_escaped(home: Path) -> None:
    for args in (
        ["-s", "a\nb\x1b[31m:1"],
        ["-nosuch\n\x1b[31m"],
        ["-press", "\x1b]0;x\x07\n"],
        ["stray\nwords\x1b"],
        ["-k", "a\n\x1b"],
    ):
        outcome = run("cli", *args, cwd=home)
        assert len(outcome.lines) == 1, outcome.stderr
        assert outcome.lines[0].isprintable()


LONG = "x" * 4000


@pytest.mark.parametrize(
    ("program", "args", "code"),
    [
        ("cli", ["-tcp", "-s", LONG], NETWORK),
        ("cli", ["-press", LONG], USAGE),
        ("cli", [f"-{LONG}"], USAGE),
        ("cli", [LONG], USAGE),
        ("cli", ["-n", LONG], USAGE),
        ("cli", ["-k", f"a/{LONG}"], USAGE),
        ("cli", ["-certs", LONG], TRUST),
        ("srv", ["-access", LONG], FILES),
        ("selfy", ["-verify", LONG], FAILED),
        ("rpc25519", ["known", "approve", LONG], USAGE),
    ],
)
def test_long_words_are_shortened(
    home: Path, program: str, args: list[str], code: int
) -> None:
    outcome = run(program, *args, cwd=home)
    assert outcome.code == code
    assert len(outcome.stderr) < 700
    assert "xxx...xxx" in outcome.stderr


def test_long_names_of_files_are_shortened(
    srv: SrvProcess, certs: Path, home: Path
) -> None:
    with pytest.raises(UnsafePathError) as caught:
        default_local_name(f"{LONG}/")
    assert len(str(caught.value)) < 200
    address = ["-s", srv.address, "-certs", str(certs)]
    line = run("cli", *address, "-download", f"{LONG}/", cwd=home).error(FILES)
    assert line == str(caught.value)


# The network


def test_port_in_use(srv: SrvProcess, certs: Path, home: Path) -> None:
    line = run("srv", "-s", srv.address, "-certs", str(certs), cwd=home).error(NETWORK)
    assert line == f"cannot listen on {srv.address}: the port is in use"


@pytest.mark.parametrize("words", [("srv", "-q", "-s"), ("samesame", "-c")])
def test_udp_port_in_use(words: tuple[str, ...], certs: Path, home: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = run(*words, address, "-certs", str(certs), cwd=home).error(NETWORK)
        assert line == f"cannot listen on {address}: the port is in use"


def test_address_of_another_machine(certs: Path, home: Path) -> None:
    args = ["-s", "192.0.2.1:0", "-certs", str(certs)]
    line = run("srv", *args, cwd=home).error(NETWORK)
    assert line == "cannot listen on 192.0.2.1:0: no such address on this machine"


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.mark.parametrize("option", [[], ["-tcp"]], ids=["tls", "tcp"])
def test_no_server_there(certs: Path, home: Path, option: list[str]) -> None:
    address = f"127.0.0.1:{unused_port()}"
    args = ["-s", address, "-certs", str(certs), *option]
    line = run("cli", *args, cwd=home).error(NETWORK)
    assert line == (
        f"cannot connect to {address}: nobody listens there (connection refused)"
    )


def test_host_that_does_not_exist(certs: Path, home: Path) -> None:
    args = ["-s", "nosuch.invalid:1", "-certs", str(certs)]
    line = run("cli", *args, cwd=home).error(NETWORK)
    assert line == "cannot connect to nosuch.invalid:1: the host name does not resolve"


def test_local_address_of_another_machine(
    srv: SrvProcess, certs: Path, home: Path
) -> None:
    args = ["-s", srv.address, "-certs", str(certs), "-hostport", "192.0.2.1:0"]
    assert run("cli", *args, cwd=home).error(NETWORK)


def test_server_that_never_answers(certs: Path, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        for option, text in (
            ([], f"no answer from {address} within 0.3 s"),
            (
                ["-tcp"],
                (
                    "no reply from 'customEcho' within 0.3 s; "
                    "not one byte came: perhaps it speaks TLS (then drop -tcp), or "
                    "uses -psk"
                ),
            ),
        ):
            args = ["-s", address, "-certs", str(certs), "-wait", "300ms", *option]
            assert run("cli", *args, cwd=home).error(NETWORK) == text


def test_tls_client_of_a_tcp_server(plain: SrvProcess, certs: Path, home: Path) -> None:
    args = ["-s", plain.address, "-certs", str(certs)]
    line = run("cli", *args, cwd=home).error(TRUST)
    assert "does it use plain TCP? then give -tcp" in line
    plain.wait_for("(bad magic)")
    run("cli", "-s", plain.address, "-tcp", cwd=home).succeed()


def cutting_after(listening: socket.socket, server_address: str, count: int) -> None:
    """Pass one connection on, and end it after so many bytes of the server's."""
    host, port = server_address.rsplit(":", 1)
    ours, _ = listening.accept()
    with ours, socket.create_connection((host, int(port))) as theirs:
        theirs.sendall(ours.recv(65_536))
        while count > 0 and (data := theirs.recv(count)):
            ours.sendall(data)
            count -= len(data)


@pytest.mark.parametrize(
    ("count", "code", "has_hint"),
    [(0, TRUST, True), (4, TRUST, True), (5, NETWORK, False), (100, NETWORK, False)],
)
def test_line_that_breaks_during_the_handshake(
    srv: SrvProcess, certs: Path, home: Path, count: int, code: int, has_hint: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        proxy = threading.Thread(
            target=cutting_after, args=(listening, srv.address, count)
        )
        proxy.start()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        outcome = run("cli", "-s", address, "-certs", str(certs), cwd=home)
        proxy.join()
    line = outcome.error(code)
    assert "the server closed the connection during the TLS handshake" in line
    assert ("-tcp" in line) == has_hint


def test_tcp_client_of_a_tls_server(srv: SrvProcess, home: Path) -> None:
    line = run("cli", "-s", srv.address, "-tcp", cwd=home).error(PROTOCOL)
    assert line == "the peer speaks TLS, not plain TCP (drop -tcp)"
    srv.wait_for("the client does not speak TLS")


# What the server does not do, and files


def cli(srv: SrvProcess, certs: Path, home: Path, *args: str) -> Outcome:
    return run("cli", "-s", srv.address, "-certs", str(certs), *args, cwd=home)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["-download", "f"], "does not offer downloads (srv has to be started with -s"),
        (["-sendfile", "f"], "does not offer uploads (srv has to be started with -rea"),
        (["-echofile", "f"], "does not offer file echo (srv has to be started with -e"),
        ([], "does not offer echo calls"),
    ],
    ids=["download", "upload", "echo-file", "echo-call"],
)
def test_service_that_is_not_offered(
    bare: SrvProcess, certs: Path, home: Path, args: list[str], text: str
) -> None:
    (home / "f").write_bytes(b"x")
    assert text in cli(bare, certs, home, *args).error(FAILED)
    assert names_in(home) == ["f"]


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["-download", "nosuch"], FAILED, "no such file: 'nosuch'"),
        (["-download", "no/such"], FAILED, "no such file: 'no/such'"),
        (["-download", "directory"], FAILED, "refused 'directory': it is a directory"),
        (["-sendfile", "nosuch"], FILES, "no such file: 'nosuch'"),
        (["-sendfile", "."], FILES, "cannot read '.': it is a directory"),
        (["-echofile", "nosuch"], FILES, "no such file: 'nosuch'"),
        (
            ["-sendfile", "f", "--to", "no/such"],
            FAILED,
            "cannot write 'no/such': no such file or directory",
        ),
        (
            ["-download", "there", "-o", "no/such"],
            FILES,
            "cannot write 'no/such': no such file or directory",
        ),
        (
            ["-download", "there", "-o", "no/"],
            FILES,
            "cannot write 'no/there': no such file or directory",
        ),
        (
            ["-download", "there", "-o", "f/x"],
            FILES,
            "cannot write 'f/x': a part of the path is not a directory",
        ),
        (
            ["-download", "there", "-o", "f", "--no-clobber"],
            FILES,
            "'f' exists and --no-clobber was given",
        ),
        (
            ["-echofile", "f", "-o", "f", "--no-clobber"],
            FILES,
            "'f' exists and --no-clobber was given",
        ),
        # This server has been started with --no-clobber too.
        (
            ["-sendfile", "f", "--to", "there"],
            FAILED,
            "'there' exists and --no-clobber was given",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_file_that_cannot_be_had(
    srv: SrvProcess,
    certs: Path,
    home: Path,
    served: Path,
    args: list[str],
    code: int,
    expected: str,
) -> None:
    (home / "f").write_bytes(b"x")
    assert cli(srv, certs, home, *args).error(code) == expected
    assert names_in(home) == ["f"]
    assert names_in(served) == ["directory", "there"]
    assert (home / "f").read_bytes() == b"x"
    assert (served / "there").read_bytes() == b"there"


def test_client_asks_the_server_not_to_replace(certs: Path, home: Path) -> None:
    (home / "f").write_bytes(b"new")
    served = home / "served"
    served.mkdir()
    (served / "f").write_bytes(b"old")
    with SrvProcess("-readfile", str(served), certs=certs) as srv:
        line = cli(srv, certs, home, "-sendfile", "f", "--no-clobber").error(FAILED)
        assert line == "'f' exists and --no-clobber was given"
        assert (served / "f").read_bytes() == b"old"
        cli(srv, certs, home, "-sendfile", "f", "--to", "g", "--no-clobber").succeed()
    assert names_in(served) == ["f", "g"]


def test_no_permission(certs: Path, home: Path) -> None:
    served = home / "served"
    served.mkdir()
    (served / "closed").write_bytes(b"x")
    (served / "open").write_bytes(b"x")
    (served / "closed").chmod(0)
    (home / "mine").write_bytes(b"x")
    (home / "mine").chmod(0)
    powers = without_root_powers
    args = ["-s", "127.0.0.1:0", "-serve", str(served), "-readfile", str(served)]
    args += ["-certs", str(certs)]
    with started("srv", *args, cwd=home, preexec=powers) as srv:
        target = ["-s", ready_address(srv), "-certs", str(certs)]

        def line(code: int, *args: str) -> str:
            outcome = run("cli", *target, *args, cwd=home, preexec=powers)
            return outcome.error(code)

        text = line(FAILED, "-download", "closed")
        assert text == "cannot read 'closed': no permission"
        text = line(FILES, "-sendfile", "mine")
        assert text == "cannot read 'mine': no permission"
        home.chmod(0o555)
        text = line(FILES, "-download", "open")
        assert text == "cannot write 'open': no permission"
        home.chmod(0o755)
    assert names_in(home) == ["mine", "served"]


@pytest.mark.parametrize("option", ["-serve", "-readfile"])
def test_served_directory_that_does_not_exist(
    certs: Path, home: Path, option: str
) -> None:
    args = ["-s", "127.0.0.1:0", "-certs", str(certs), option, "nosuch"]
    outcome = run("srv", *args, cwd=home)
    assert outcome.error(FILES).startswith("cannot open directory 'nosuch': no such")
    assert outcome.stdout == ""


def test_key_that_may_not_be_read(certs: Path, home: Path) -> None:
    (copied(certs, home) / "client.key").chmod(0)
    args = ["-s", "127.0.0.1:1"]
    outcome = run("cli", *args, cwd=home, preexec=without_root_powers)
    assert outcome.error(TRUST) == "cannot read certs/client.key: permission denied"
