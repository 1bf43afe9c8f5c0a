"""What tests of syncs have in common: a server, a place on it, a line that breaks."""

import contextlib
import gc
import json
import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from rpc25519_tools.commands.cli import cli
from rpc25519_tools.commands.cp import cp

from tests.helpers import SrvProcess, run_program

#: Old enough not to be the time of anything that a test makes.
OLD_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        """The lines on standard output."""
        return self.stdout.splitlines()

    @property
    def summary(self) -> dict[str, Any]:
        """The last line of standard output, which is JSON."""
        value: dict[str, Any] = json.loads(self.lines[-1])
        return value

    def succeed(self) -> "Done":
        """Fail unless it ended well."""
        assert self.code == 0, self.stderr
        return self


@dataclass(frozen=True, slots=True)
class Desk:
    """A place here, and one of the same name on a server.

    Attributes:
        here: an empty directory, in which commands run.
        there: the directory ``name`` beneath what the server gives out and writes to.
        name: of it.
        address: of the server.
        certs: our certificates.
    """

    here: Path
    there: Path
    name: str
    address: str
    certs: Path

    def run(self, program: str, *words: str, input: str | None = None) -> Done:
        """Run a program here."""
        done = run_program(program, *words, cwd=self.here, input=input)
        return Done(done.returncode, done.stdout, done.stderr)

    def quick(self, command: click.Command, *words: str, input: str | None) -> Done:
        """Run a command here in this process, which takes a third of the time."""
        before, handlers = os.getcwd(), logging.getLogger().handlers[:]
        os.chdir(self.here)
        try:
            with pytest.MonkeyPatch.context() as patch:
                # Nothing of the tests' own is to be kept for ever.
                patch.setattr(gc, "freeze", lambda: None)
                done = CliRunner().invoke(
                    command, words, input=input, prog_name=command.name
                )
        finally:
            os.chdir(before)
            logging.getLogger().handlers[:] = handlers
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return Done(done.exit_code, done.stdout, done.stderr)

    def cli(
        self,
        *words: str,
        address: str | None = None,
        input: str | None = None,
        quick: bool = True,
    ) -> Done:
        """Run cli here, in a process of its own if it is not to be ``quick``."""
        where = ("-s", address or self.address, "-certs", os.fspath(self.certs))
        if quick:
            return self.quick(cli, *where, *words, input=input)
        return self.run("cli", *where, *words, input=input)

    def push(self, *words: str, **more: Any) -> Done:
        """Push to the place on the server, with a line for each change."""
        return self.cli("-push", *words, "--to", self.name, "-i", **more)

    def pull(self, *words: str, **more: Any) -> Done:
        """Pull with a line for each change."""
        return self.cli("-pull", *words, "-i", **more)

    def cp(self, *words: str, quick: bool = True) -> Done:
        """Run cp here."""
        words = ("-certs", os.fspath(self.certs), *words)
        if quick:
            return self.quick(cp, *words, input=None)
        return self.run("rpc25519", "cp", *words)

    def remote(self, path: str) -> str:
        """Return a path below the place on the server as cp writes it."""
        return f"{self.address}:{self.name}/{path}".rstrip("/")


def desk_for(srv: SrvProcess, served: Path, certs: Path, here: Path) -> Desk:
    """Make an empty place here and on a server."""
    name = here.name
    (served / name).mkdir()
    return Desk(here, served / name, name, srv.address, certs)


def make_tree(
    top: Path, files: Mapping[str, str | bytes], *, at_s: int = OLD_S
) -> Path:
    """Make files, and a directory for each name with a slash at the end.

    Everything gets the same old time of change.
    """
    top.mkdir(exist_ok=True)
    for name, content in files.items():
        path = top / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(data)
    age(top, at_s)
    return top


def age(top: Path, at_s: int = OLD_S) -> None:
    """Give a tree and all that is in it one time of change."""
    for directory, dirs, files in os.walk(top):
        for name in (*dirs, *files):
            path = os.path.join(directory, name)
            os.utime(path, (at_s, at_s), follow_symlinks=False)
    os.utime(top, (at_s, at_s))


def content_of(top: Path) -> dict[str, bytes | str | None]:
    """Return what a tree has: bytes of files, targets of links, None of directories."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(top.rglob("*")):
        name = os.fspath(path.relative_to(top))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_dir():
            found[name] = None
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


@contextlib.contextmanager
def breaking_line(address: str, *, after: int) -> Iterator[str]:
    """Pass bytes on to a server; cut the first connection after so many of them.

    Yields the address to connect to.
    """
    host, _, port = address.rpartition(":")
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def serve() -> None:
        room: int | None = after
        while True:
            try:
                down, _ = listener.accept()
            except OSError:
                return
            up = socket.create_connection((host, int(port)))
            left = [room]
            for source, target in ((down, up), (up, down)):
                thread = threading.Thread(target=_pass_on, args=(source, target, left))
                thread.start()
                threads.append(thread)
            room = None

    server = threading.Thread(target=serve)
    server.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        server.join()
        for thread in threads:
            thread.join()


def _pass_on(
    source: socket.socket, target: socket.socket, left: list[int | None]
) -> None:
    """Pass bytes on until there are no more; ``left`` is common to both ways."""
    with contextlib.suppress(OSError):
        while data := source.recv(16384):
            if left[0] is not None:
                left[0] -= len(data)
                if left[0] < 0:
                    break
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
