"""The options of ``srv`` for limits: how they are read, and that they have effect."""

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rpc25519_tools.commands._limits import limits_options

from rpc25519_tools.identity.store import load_identity
from rpc25519_tools.limits import Limits, Startups
from rpc25519_tools.wire.message import CallType
from tests.attacks.floods import serve_one, silent_sockets
from tests.commands.hostile import hostile_client, request
from tests.helpers import SrvProcess, program_path, run_program, until


def limits_of(*args: str) -> Limits | str:
    """Return what a command gets, or the error that its user gets."""
    got: list[Limits] = []

    @click.command()
    @limits_options
    def command(limits: Limits) -> None:
        got.append(limits)

    result = CliRunner().invoke(command, args)
    assert result.exit_code == (0 if got else 2), result.output
    return got[0] if got else result.output.splitlines()[-1]


def test_without_options_limits_are_the_usual_ones() -> None:
    assert limits_of() == Limits()


def test_each_option_sets_its_field() -> None:
    assert limits_of(
        *("--max-connections", "7", "--max-connections-per-address", "6"),
        *("--max-startups", "1:2:3", "--max-failures", "0"),
        *("--handshake-timeout", "1m", "--max-message-size", "2MiB"),
        *("--max-header-size", "8KiB", "--max-calls", "5"),
        *("--max-connection-memory", "3MB", "--max-memory", "1GiB"),
    ) == Limits(
        max_connections=7,
        max_connections_per_address=6,
        max_startups=Startups(1, 2, 3),
        max_failures_per_minute=0,
        handshake_timeout_s=60.0,
        max_message_len=2 << 20,
        max_header_len=8 << 10,
        max_calls=5,
        max_connection_memory_len=3_000_000,
        max_memory_len=1 << 30,
    )


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("--max-calls", "x"), "'--max-calls': bad number 'x'"),
        (("--max-calls", "-1"), "'--max-calls': bad number '-1'"),
        (("--max-calls", "0"), "--max-calls must be from 1 to 1000000"),
        (("--max-memory", "1x"), "'--max-memory': bad size '1x'"),
        (("--max-message-size", "65MiB"), "--max-message-size must be from 4KiB to"),
        (("--max-startups", "9:1:2"), "'--max-startups': bad startups"),
        (("--handshake-timeout", "0"), "--handshake-timeout must be above zero"),
        (("--handshake-timeout", "soon"), "'--handshake-timeout': bad duration"),
    ],
)
def test_mistakes_name_their_option(args: tuple[str, ...], text: str) -> None:
    message = limits_of(*args)
    assert isinstance(message, str)
    assert text in message


def test_a_mistake_of_srv_is_one_line() -> None:
    done = run_program("srv", "-max-memory", "much", "-s", "127.0.0.1:0")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("srv: Invalid value for '--max-memory': bad size 'much'")


def test_fewer_descriptors_are_fewer_connections(certs: Path) -> None:
    command = 'ulimit -n 100; exec "$0" "$@"'
    args = ["-tcp", "-s", "127.0.0.1:0", "-sec", "0.1", "--max-connections"]
    for count, warned in (("90", True), ("70", False), ("4096", False)):
        done = subprocess.run(
            ["sh", "-c", command, program_path("srv"), *args, count],
            capture_output=True,
            text=True,
            check=True,
        )
        assert ("no more than 75 connections" in done.stderr) == warned


@contextlib.contextmanager
def connected(address: str) -> Iterator[socket.socket]:
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        yield sock


def test_failed_handshakes_are_refused_for_a_while(certs: Path) -> None:
    identity = load_identity(certs, "client", None)
    with SrvProcess("--max-failures", "3", certs=certs) as srv:
        for _ in range(3):
            with connected(srv.address) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                while sock.recv(1000):
                    pass
        srv.wait_for("does not speak TLS")
        for _ in range(20):
            with connected(srv.address) as sock, contextlib.suppress(ConnectionError):
                assert sock.recv(1) == b""
        with pytest.raises(Exception, match=r"closed the connection|reset"):
            asyncio.run(serve_one(srv.address, identity))
        # Twenty-one refusals are one line.
        assert srv.stderr().count("too many failed handshakes from its address") == 1


def test_connections_of_one_address_are_limited(certs: Path) -> None:
    identity = load_identity(certs, "client", None)

    async def scenario(address: str) -> None:
        async with (
            hostile_client(address, identity) as first,
            hostile_client(address, identity) as second,
        ):
            with pytest.raises(Exception, match=r"closed the connection|reset"):
                await serve_one(address, identity)
            for wire in (first, second):
                await wire.send(request(CallType.RPC, "customEcho"))
                assert not (await wire.receive()).error
        await until(lambda: srv.stderr().count("disconnected") == 2)
        assert await serve_one(address, identity) < 10

    options = ["--max-connections-per-address", "2", "-v"]
    with SrvProcess(*options, certs=certs) as srv:
        asyncio.run(scenario(srv.address))
        assert "refused: too many connections from its address" in srv.stderr()


def test_silent_ones_make_room_for_others_over_plain_tcp(certs: Path) -> None:
    options = ["-tcp", "--max-startups", "5:100:5", "-v"]
    with SrvProcess(*options, certs=certs) as srv:
        with silent_sockets(srv.address, 20):
            asyncio.run(serve_one(srv.address, None))
        srv.wait_for("too many clients that have not sent anything yet")


@pytest.mark.parametrize(
    ("options", "args", "payload", "text"),
    [
        (
            ["--max-message-size", "64KiB"],
            {},
            bytes(70_000),
            "announces a message of 70",
        ),
        (
            ["--max-header-size", "4KiB"],
            {str(number): "" for number in range(100)},
            b"",
            "the header of a message has ",
        ),
    ],
    ids=["message", "header"],
)
def test_sizes_beyond_the_limit_end_the_connection(
    certs: Path, options: list[str], args: dict[str, str], payload: bytes, text: str
) -> None:
    identity = load_identity(certs, "client", None)

    async def scenario(address: str) -> None:
        async with hostile_client(address, identity) as wire:
            message = request(CallType.RPC, "customEcho", args=args, payload=payload)
            await wire.send(message)
            await wire.wait_gone()
        await serve_one(address, identity)

    with SrvProcess(*options, certs=certs) as srv:
        asyncio.run(scenario(srv.address))
        srv.wait_for(text)
