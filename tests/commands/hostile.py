"""Peers that misbehave, lines that stall, and programs that are watched while they run.

The hostile peers speak through the project's own sans-IO wire code and transports, so
that they are wrong in exactly one point, over plain TCP as well as over TLS.
"""

import asyncio
import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rpc25519_tools.config import Address, parse_address
from rpc25519_tools.files.parts import ARG_PART_SUM
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.transport.base import CHUNK_LEN, TlsSettings, Transport
from rpc25519_tools.transport.endpoint import connect, listen
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.constants import MAGIC
from rpc25519_tools.wire.digest import digest_text
from rpc25519_tools.wire.framing import FrameDecoder, decode_frame, encode_frame
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import CallType, Header, Message
from rpc25519_tools.wire.message_packing import encode_message
from tests.helpers import program_path, wait_until

MIB = 1 << 20
LOOPBACK = Address("127.0.0.1", 0)
#: For everything that a test waits for; reaching it is a failure.
PATIENCE_S = 30.0

# Hostile peers


class GoneError(Exception):
    """The other side has ended the connection."""


class Wire:
    """A connection on which anything can be sent, whether it makes sense or not."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._decoder = FrameDecoder(bytearray(CHUNK_LEN))
        self._received: asyncio.Queue[Message | None] = asyncio.Queue()
        self._writable = asyncio.Event()
        self._writable.set()
        self.gone = asyncio.Event()

    # Called by the transport.

    def get_buffer(self) -> memoryview:
        return self._decoder.get_buffer()

    def buffer_updated(self, count: int) -> None:
        for frame in self._decoder.buffer_updated(count):
            self._received.put_nowait(decode_frame(frame))

    def arriving(self, count: int, held_len: int) -> None:
        pass

    def writable(self) -> None:
        self._writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set()
        self._writable.set()
        self._received.put_nowait(None)

    # Called by tests.

    async def receive(self) -> Message:
        """Return the next message of the other side; raise GoneError at the end."""
        message = await self._received.get()
        if message is None:
            raise GoneError
        return message

    async def receive_until(self, call_type: CallType) -> Message:
        """Drop messages up to the first of that type."""
        while (message := await self.receive()).header.call_type != call_type:
            pass
        return message

    async def send(self, message: Message, codec: Codec = Codec.NONE) -> None:
        await self.send_bytes(*encode_frame(message, codec))

    async def send_unchecked(self, message: Message) -> None:
        """Send a message that our own side would refuse to send."""
        body = b"".join(encode_message(message))
        await self.send_bytes(MAGIC, b"\0", len(body).to_bytes(8, "big"), body)

    async def send_bytes(self, *data: Buffer) -> None:
        if self.gone.is_set():
            raise GoneError
        self.transport.write(data)
        while self.transport.unsent_len > MIB and not self.gone.is_set():
            self._writable.clear()
            await self._writable.wait()

    async def wait_gone(self) -> None:
        await asyncio.wait_for(self.gone.wait(), PATIENCE_S)


Script = Callable[[Wire], Awaitable[None]]


class Background:
    """An event loop in a thread of its own, for peers of blocking tests."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self._start())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.run(self._stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(PATIENCE_S)
            self._loop.close()

    def run(self, step: Awaitable[None]) -> None:
        async def whole() -> None:
            await step

        asyncio.run_coroutine_threadsafe(whole(), self._loop).result(PATIENCE_S)

    async def _start(self) -> None:
        raise NotImplementedError

    async def _stop(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        results = await asyncio.gather(*others, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        await asyncio.sleep(0)  # lets the transports close


class HostileServer(Background):
    """Runs a script on each connection that it gets.

    Args:
        script: talks to one client; GoneError just ends it.
        identity: for TLS; None is plain TCP.

    Attributes:
        address: where it listens, once entered.
        refusals: why clients were not let in.
    """

    address: str

    def __init__(self, script: Script, identity: LoadedIdentity | None) -> None:
        super().__init__()
        self._script = script
        self._tls = TlsSettings(identity=identity) if identity else None
        self._tasks: set[asyncio.Task[None]] = set()
        self._wires: list[Wire] = []
        self.refusals: list[str] = []
        self.faults: list[Exception] = []

    async def _start(self) -> None:
        listener = await listen(
            LOOPBACK, tls=self._tls, accept=self._accept, failed=self._refused
        )
        self._listener = listener
        self.address = listener.address

    async def _stop(self) -> None:
        self._listener.close()
        for wire in self._wires:
            wire.transport.abort()
        await super()._stop()
        if self.faults:
            raise self.faults[0]

    def _refused(self, reason: Exception, _: str) -> None:
        self.refusals.append(str(reason))

    def _accept(self, transport: Transport) -> Wire:
        wire = Wire(transport)
        self._wires.append(wire)
        task = asyncio.get_running_loop().create_task(self._talk(wire))
        self._tasks.add(task)
        return wire

    async def _talk(self, wire: Wire) -> None:
        try:
            await self._script(wire)
            await wire.gone.wait()
        except GoneError:
            pass
        except Exception as exc:  # noqa: BLE001  # raised when the server is left
            self.faults.append(exc)


@contextlib.asynccontextmanager
async def hostile_client(
    address: str, identity: LoadedIdentity | None
) -> AsyncIterator[Wire]:
    """Connect to a real server, to send it anything."""
    wires: list[Wire] = []

    def accept(transport: Transport) -> Wire:
        wires.append(Wire(transport))
        return wires[0]

    tls = TlsSettings(identity=identity) if identity else None
    transport = await connect(
        parse_address(address), tls=tls, accept=accept, timeout_s=PATIENCE_S
    )
    try:
        yield wires[0]
    finally:
        transport.abort()


def request(
    call_type: CallType,
    service: str,
    *,
    args: Mapping[str, str] | None = None,
    payload: Buffer = b"",
    part: int = 0,
    call_id: str = "a-call-of-a-hostile-client",
) -> Message:
    """Make a message as a client sends it."""
    header = Header(
        created_ns=1,
        sender="tcp://127.0.0.1:1",
        recipient="tcp://127.0.0.1:2",
        seqno=2,
        call_type=call_type,
        call_id=call_id,
        serial=1,
        stream_part=part,
        service_name=service,
        args=args or {},
    )
    return Message(header=header, payload=payload)


def answer(
    to: Message,
    call_type: CallType,
    *,
    part: int = 0,
    payload: Buffer = b"",
    args: Mapping[str, str] | None = None,
    error: str = "",
) -> Message:
    """Make a message as a server sends it."""
    header = Header(
        created_ns=1,
        sender=to.header.recipient,
        recipient=to.header.sender,
        seqno=to.header.seqno,
        call_type=call_type,
        call_id=to.header.call_id,
        serial=1,
        stream_part=part,
        service_name=to.header.service_name,
        args=args or {},
    )
    return Message(header=header, payload=payload, error=error)


def summed(payload: bytes, **args: str) -> dict[str, str]:
    """Return the arguments of a part with the right sum of its payload."""
    return {ARG_PART_SUM: digest_text(payload), **args}


# Lines that stall


class Valve(Background):
    """A TCP proxy that lets so many bytes pass, and holds the rest back.

    Args:
        target: where it connects to for each client.
        up: how many bytes pass from the client; None means all of them.
        down: how many pass to it.

    Attributes:
        address: where it listens, once entered.
    """

    address: str

    def __init__(
        self, target: str, *, up: int | None = None, down: int | None = None
    ) -> None:
        super().__init__()
        self._target = parse_address(target)
        self._limits = {"up": up, "down": down}
        self._held = threading.Event()
        self._writers: list[asyncio.StreamWriter] = []

    async def _start(self) -> None:
        self._opened = asyncio.Event()
        listening = socket.socket()
        # Accepted sockets inherit it: the less the kernel takes in, the sooner the
        # sender notices that nothing moves.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        listening.bind(("127.0.0.1", 0))
        self._passing: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(
            self._connected, sock=listening, limit=64 * 1024
        )
        self.address = f"127.0.0.1:{listening.getsockname()[1]}"

    async def _stop(self) -> None:
        self._server.close()
        self._cut()
        await super()._stop()

    def wait_held(self) -> None:
        """Wait until bytes are being held back."""
        assert self._held.wait(PATIENCE_S), "nothing was held back"

    def open(self) -> None:
        """Let everything pass from now on."""
        self._loop.call_soon_threadsafe(self._opened.set)

    def cut(self) -> None:
        """Break all connections."""
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for writer in self._writers:
            # asyncio cannot abort what was closed and has ended since.
            with contextlib.suppress(AttributeError):
                writer.transport.abort()

    def _connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        # Not left to asyncio, which reports a task that ends by being cancelled.
        self._passing.add(self._loop.create_task(self._pass(reader, writer)))

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        far.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(far, (self._target.host, self._target.port))
        except OSError:
            far.close()
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(
            sock=far, limit=64 * 1024
        )
        self._writers += [writer, far_writer]
        await asyncio.gather(
            self._pump(reader, far_writer, self._limits["up"]),
            self._pump(far_reader, writer, self._limits["down"]),
        )

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        limit: int | None,
    ) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := await reader.read(32 * 1024):
                if limit is not None and passed + len(data) > limit:
                    writer.write(data[: limit - passed])
                    data = data[limit - passed :]
                    limit = None
                    self._held.set()
                    await self._opened.wait()
                passed += len(data)
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()


# Programs


def start(
    name: str,
    *args: str | os.PathLike[str],
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    preexec: Callable[[], None] | None = None,
) -> subprocess.Popen[str]:
    """Start an installed program, with pipes for what it prints."""
    return subprocess.Popen(
        [program_path(name), *(os.fspath(arg) for arg in args)],
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **(env or {})},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        preexec_fn=preexec,  # noqa: PLW1509  # what is called takes no lock
    )


@contextlib.contextmanager
def started(
    name: str,
    *args: str | os.PathLike[str],
    cwd: Path,
    preexec: Callable[[], None] | None = None,
    stdin: int = subprocess.DEVNULL,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Like ``start``; whatever happens, the program is gone afterwards."""
    with start(name, *args, cwd=cwd, env=env, preexec=preexec, stdin=stdin) as process:
        try:
            yield process
        finally:
            process.kill()


def ready_address(process: subprocess.Popen[str]) -> str:
    """Wait until a started ``srv`` listens; return where."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
    assert readable, "srv did not say that it listens"
    return process.stdout.readline().removeprefix("srv: listening on ").split(" ")[0]


class Outcome:
    """How a program ended.

    Attributes:
        code: the exit code; negative for a signal.
        stdout: what it printed there.
        lines: what it printed on stderr, warnings aside.
    """

    def __init__(self, name: str, code: int, stdout: str, stderr: str) -> None:
        self.name = name
        self.code = code
        self.stdout = stdout
        self.stderr = stderr
        warning = f"{name}: warning: "
        self.lines = [
            line for line in stderr.splitlines() if not line.startswith(warning)
        ]

    def error(self, code: int) -> str:
        """Check that it failed with that code and one line; return the line."""
        assert self.code == code, (self.code, self.stdout, self.stderr)
        assert "Traceback" not in self.stderr
        assert len(self.lines) == 1, self.stderr
        prefix = f"{self.name}: "
        assert self.lines[0].startswith(prefix), self.stderr
        return self.lines[0].removeprefix(prefix)

    def succeed(self) -> Self:
        """Check that it ended well; return it."""
        assert self.code == 0, (self.code, self.stdout, self.stderr)
        return self


def finish(process: subprocess.Popen[str], name: str = "cli") -> Outcome:
    """Wait for a started program to end."""
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    return Outcome(name, process.returncode, stdout, stderr)


def run(
    name: str,
    *args: str | os.PathLike[str],
    cwd: Path,
    env: Mapping[str, str] | None = None,
    input: bytes | None = None,
    preexec: Callable[[], None] | None = None,
) -> Outcome:
    """Run a program to its end, without a terminal."""
    with subprocess.Popen(
        [program_path(name), *(os.fspath(arg) for arg in args)],
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=preexec,  # noqa: PLW1509  # what is called takes no lock
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(input, timeout=PATIENCE_S)
        finally:
            process.kill()
    stdout = out.decode("utf-8", "surrogateescape")
    stderr = err.decode("utf-8", "surrogateescape")
    return Outcome(name, process.returncode, stdout, stderr)


def without_root_powers() -> None:
    """Make file permissions count for the superuser too; to be called before exec."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            assert libc.prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP


def with_file_limit(size_bytes: int) -> Callable[[], None]:
    """Return what limits the size of files; to be called before exec."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))

    return limit


def partials(directory: Path) -> list[Path]:
    """Return the unfinished files in a directory."""
    return sorted(directory.glob(".rpc25519-part-*"))


def wait_for_partial(directory: Path) -> None:
    """Wait until a transfer has written some of its bytes."""
    wait_until(
        lambda: any(path.stat().st_size for path in partials(directory)),
        timeout_s=PATIENCE_S,
        what="a partial file with something in it",
    )


def kill(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """End a process without giving it any chance."""
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE_S)


def names_in(directory: Path) -> list[str]:
    """Return the names of everything in a directory."""
    return sorted(os.listdir(directory))
