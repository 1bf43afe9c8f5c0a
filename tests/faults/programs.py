"""Programs that take and give files, for tests of what goes wrong."""

import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.files.area import AREA_NAME
from rpc25519_tools.files.echo import ECHO_CALL_SERVICE
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.rpc.client import Client
from tests.commands.hostile import (
    MIB,
    Outcome,
    names_in,
    run,
    start,
    started,
)
from tests.helpers import SrvProcess, wait_until

#: Where what has come is kept after the network has failed.
AREA = AREA_NAME.decode()
OLD = b"what was there before"
#: Larger than what the kernel keeps for a stalled line, so that senders have to wait.
BIG = os.urandom(12 * MIB)
#: How much a valve lets through: one whole part, and some of the next.
SOME = 3 * MIB // 2


def srv_of(certs: Path, served: Path, *options: str) -> SrvProcess:
    return SrvProcess("-serve", served, "-readfile", served, *options, certs=certs)


class Cli:
    """``cli`` with its connection options.

    It gives up at the first failure, so that each failure can be looked at.
    """

    def __init__(
        self, certs: Path, home: Path, *, retry_for: str = "0", quiet: bool = True
    ) -> None:
        self._certs = certs
        self._home = home
        self._more = ["-retry-for", retry_for, *(["-quiet"] if quiet else [])]

    def options(self, address: str) -> list[str]:
        return ["-s", address, "-certs", str(self._certs), *self._more]

    def __call__(self, address: str, *args: str) -> Outcome:
        return run("cli", *self.options(address), *args, cwd=self._home)

    def begin(self, address: str, *args: str) -> "subprocess.Popen[str]":
        """Start it; ``finish`` waits for its end."""
        return start("cli", *self.options(address), *args, cwd=self._home)

    def start(
        self, address: str, *args: str, preexec: Callable[[], None] | None = None
    ) -> "contextlib.AbstractContextManager[subprocess.Popen[str]]":
        return started(
            "cli", *self.options(address), *args, cwd=self._home, preexec=preexec
        )


def wait_for_names(directory: Path, *names: str) -> None:
    wait_until(
        lambda: names_in(directory) == sorted(names),
        what=lambda: f"{names} in {names_in(directory)}",
    )


async def call_once(address: str, identity: LoadedIdentity | None) -> None:
    """Show that the server goes on serving."""
    async with await connected(address, identity) as client:
        reply = await client.call(ECHO_CALL_SERVICE, b"still there?")
        assert bytes(reply.payload).startswith(b"still there?")


async def connected(address: str, identity: LoadedIdentity | None) -> Client:
    config = Config(
        address=parse_address(address),
        network="tls" if identity else "tcp",
        connect_timeout_s=30,
        call_timeout_s=30,
    )
    return await Client.connect(config, identity)
