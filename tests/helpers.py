"""Helpers for tests: conditions to wait for, certificates, programs as processes."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from rpc25519_tools.identity.issue import Order, Passphrases, issue

Text = str | Callable[[], str]

#: Generous, since tests may share two busy cores; reaching it is a failure.
PATIENCE_S = 10.0
_POLL_S = 0.005
#: No user has this number.
NOBODY = 54_321


def _text_of(what: Text) -> str:
    return what if isinstance(what, str) else what()


async def until(
    condition: Callable[[], object],
    *,
    timeout_s: float = PATIENCE_S,
    what: Text = "a condition",
) -> None:
    """Wait in a coroutine until ``condition()`` is true; fail after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {_text_of(what)}"
        await asyncio.sleep(_POLL_S)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Be somebody who is not root for a while, who may not read everything.

    Who is not root already stays what it is. Modules may be out of reach meanwhile:
    what is used has to be imported before.
    """
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


def wait_until(
    condition: Callable[[], object],
    *,
    timeout_s: float = PATIENCE_S,
    what: Text = "a condition",
) -> None:
    """Wait until ``condition()`` is true; fail after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {_text_of(what)}"
        time.sleep(_POLL_S)


def open_fds(pid: int | str = "self") -> set[int]:
    """Return the open descriptors of a process."""
    return {int(name) for name in os.listdir(f"/proc/{pid}/fd")}


def free_udp_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return so many numbers of UDP ports that nobody uses right now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sock.bind((host, 0))
            ports.append(sock.getsockname()[1])
        return ports


def issue_certs(
    directory: Path, *names: str, now: datetime | None = None, days: int | None = None
) -> Path:
    """Make an authority and, per name, an unprotected pair; return their directory.

    Called again with the same directory it adds pairs of the same authority.

    Args:
        directory: gets ``certs`` (returned) and ``my-keep-private-dir``.
        names: of the pairs.
        now: when their lives begin; None means now.
        days: how long the pairs live; None means for ever.
    """
    certs_dir = directory / "certs"
    for name in names:
        order = Order(
            private_dir=directory / "my-keep-private-dir",
            certs_dir=certs_dir,
            name=name,
            email=f"{name}@example.org",
            days=days,
        )
        unprotected = Passphrases(
            existing_authority=None, new_authority=None, new_key=None
        )
        issue(order, unprotected, now=now or datetime.now(UTC), random_bytes=os.urandom)
    return certs_dir


def program_path(name: str) -> str:
    """Return the installed console script of that name."""
    return os.path.join(sysconfig.get_path("scripts"), name)


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **(env or {})}


def run_program(
    name: str,
    *args: str | os.PathLike[str],
    cwd: str | os.PathLike[str] | None = None,
    input: str | None = None,
    timeout: float = 30.0,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run an installed program to its end; never raises for its exit code.

    Args:
        name: ``srv``, ``cli``, ``selfy``, ``samesame`` or ``rpc25519``.
        args: its arguments.
        cwd: where it runs.
        input: what it finds on stdin; None is an empty stdin.
        timeout: TimeoutExpired is raised after so many seconds.
        env: added to our own environment.
    """
    return subprocess.run(
        [program_path(name), *[os.fspath(arg) for arg in args]],
        cwd=cwd,
        input="" if input is None else input,
        timeout=timeout,
        env=_environment(env),
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
    )


class SrvProcess:
    """A running ``srv``; entering it waits until it listens, leaving it stops it.

    Args:
        args: options of ``srv``; without ``-s`` it listens on a free loopback port.
        certs: the directory for ``-certs``; None leaves that option to ``args``.
        cwd: where it runs.
        env: added to our own environment.
        ready_timeout_s: how long it may take to listen.
        program: what runs instead of ``srv``, with the same arguments.

    Attributes:
        address: where it listens, ``127.0.0.1:PORT``.
        process: the Popen object.
        stdout_path, stderr_path: what it has printed; gone after leaving.
    """

    address: str
    process: subprocess.Popen[bytes]

    def __init__(
        self,
        *args: str | os.PathLike[str],
        certs: Path | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        ready_timeout_s: float = 20.0,
        program: Sequence[str] = (),
    ) -> None:
        self._program = list(program) or [program_path("srv")]
        self._args = [os.fspath(arg) for arg in args]
        if "-s" not in self._args:
            self._args += ["-s", "127.0.0.1:0"]
        if certs is not None:
            self._args += ["-certs", os.fspath(certs)]
        self._cwd = cwd
        self._env = env
        self._ready_timeout_s = ready_timeout_s
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="srv-"))
            self.stdout_path = Path(folder) / "stdout"
            self.stderr_path = Path(folder) / "stderr"
            self.process = subprocess.Popen(
                [*self._program, *self._args],
                cwd=self._cwd,
                env=_environment(self._env),
                stdin=subprocess.DEVNULL,
                stdout=undo.enter_context(self.stdout_path.open("wb")),
                stderr=undo.enter_context(self.stderr_path.open("wb")),
            )
            undo.callback(self._reap)
            wait_until(
                lambda: self._ready_line() or self.process.poll() is not None,
                timeout_s=self._ready_timeout_s,
                what="srv to listen",
            )
            line = self._ready_line()
            assert line, f"srv ended with {self.process.returncode}: {self.stderr()}"
            self.address = line.removeprefix("srv: listening on ").split(" ")[0]
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            print(f"---- srv said:\n{self.stdout()}{self.stderr()}----")  # noqa: T201
        self._undo.close()

    def stop(
        self, signal_number: int = signal.SIGTERM, *, timeout_s: float = 20.0
    ) -> int:
        """Send a signal and wait; return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        return self.process.wait(timeout_s)

    def stdout(self) -> str:
        """Return what it has printed on stdout so far."""
        return self.stdout_path.read_text(errors="surrogateescape")

    def stderr(self) -> str:
        """Return what it has printed on stderr so far."""
        return self.stderr_path.read_text(errors="surrogateescape")

    def stdout_lines(self) -> list[str]:
        """Return the lines printed on stdout so far."""
        return self.stdout().splitlines()

    def stderr_lines(self) -> list[str]:
        """Return the lines printed on stderr so far."""
        return self.stderr().splitlines()

    def wait_for(self, text: str, *, timeout_s: float = PATIENCE_S) -> None:
        """Wait until ``text`` stands in what it has printed."""
        wait_until(
            lambda: text in self.stdout() + self.stderr(),
            timeout_s=timeout_s,
            what=lambda: f"{text!r} in {self.stdout() + self.stderr()!r}",
        )

    def _ready_line(self) -> str:
        for line in self.stdout().splitlines(keepends=True):
            if line.startswith("srv: listening on ") and line.endswith("\n"):
                return line.strip()
        return ""

    def _reap(self) -> None:
        """Make sure that the process is gone, the hard way if need be."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
