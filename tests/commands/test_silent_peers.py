"""Peers that say nothing, or leave while they are being answered."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.framing import encode_frame
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.helpers import SrvProcess, run_program, wait_until


@pytest.fixture
def silent_address() -> Iterator[str]:
    """A listener whose connections are accepted by the kernel and never answered."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield "{}:{}".format(*listener.getsockname())


@pytest.mark.parametrize("operation", [(), ("-download", "x"), ("-echofile", "x")])
def test_plain_client_of_a_silent_server_is_told_about_tls(
    operation: tuple[str, ...], silent_address: str, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"x")
    arguments = ("-tcp", "-quiet", "-s", silent_address, "-wait", "300ms")
    done = run_program("cli", *arguments, *operation, cwd=tmp_path)
    assert done.returncode == 3
    (line,) = [line for line in done.stderr.splitlines() if "warning" not in line]
    assert "not one byte came: perhaps it speaks TLS (then drop -tcp)" in line


@pytest.mark.parametrize("name", [".", "..", "../x", "/x", "a//b"])
def test_upload_names_that_leave_the_directory_are_refused_before_connecting(
    name: str, silent_address: str, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"x")
    done = run_program(
        *("cli", "-s", silent_address, "-sendfile", "x", "--to", name), cwd=tmp_path
    )
    assert done.returncode == 6
    assert done.stderr.startswith("cli: refused ")
    assert len(done.stderr.splitlines()) == 1


def test_a_client_that_leaves_among_its_answers_costs_no_line(tmp_path: Path) -> None:
    frames = b"".join(
        bytes(part)
        for number in range(2000)
        for part in encode_frame(
            Message(
                header=Header(
                    call_type=CallType.RPC,
                    call_id="the same every time",
                    seqno=number + 2,
                    service_name="customEcho",
                ),
                payload=b"hello",
            ),
            Codec.NONE,
        )
    )
    with SrvProcess("-tcp", "-v") as server:
        host, port = server.address.split(":")
        for _ in range(3):
            with socket.create_connection((host, int(port))) as sock:
                sock.sendall(frames)
                sock.recv(1)
                # A reset, since answers are unread.
        wait_until(lambda: server.stderr().count("disconnected") == 3)
        done = run_program("cli", "-tcp", "-quiet", "-s", server.address)
        assert done.returncode == 0
        log = server.stderr()
    assert log.count("warning") == 1, "the one about plain TCP"
