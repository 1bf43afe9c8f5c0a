"""Attack running servers: garbage before the handshake, strange messages after it.

A session connects, sends some well-formed but strange messages, then perhaps bytes that
are no message, and closes; it has been dealt with when the server closes too. Beside
it a well-behaved client makes calls and moves files through the same servers, without
a pause; nothing that the attacker does may make it fail.
"""

import asyncio
import contextlib
import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from OpenSSL import SSL

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import LocalProtocolError
from rpc25519_tools.files.atomic import open_local_sink
from rpc25519_tools.files.download import download_file
from rpc25519_tools.files.echo import ECHO_CALL_SERVICE
from rpc25519_tools.files.parts import (
    ARG_CLIENT_TOTAL_SUM,
    ARG_DOWNLOAD_LEN,
    ARG_DOWNLOAD_NAME,
    ARG_DOWNLOAD_REQUEST,
    ARG_NO_CLOBBER,
    ARG_PART_SUM,
    ARG_UPLOAD_NAME,
    DOWNLOAD_SERVICE,
    ECHO_FILE_SERVICE,
    UPLOAD_SERVICE,
)
from rpc25519_tools.files.source import open_local_source
from rpc25519_tools.files.upload import upload_file
from rpc25519_tools.identity.store import LoadedIdentity, load_identity
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.tunnels import load_tunnel
from rpc25519_tools.transport.base import Receiver, TlsSettings, Transport
from rpc25519_tools.transport.endpoint import connect
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.framing import encode_frame
from rpc25519_tools.wire.handshake import encode_handshake
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.fuzz.grammars import FRAMES
from tests.fuzz.mutators import BYTES, ODD_NUMBERS, mutate
from tests.fuzz.quic_seeds import quic_seeds
from tests.fuzz.runner import peak_bytes, reset_peak
from tests.fuzz.wire_targets import _streams
from tests.helpers import SrvProcess, issue_certs
from tests.wire.psk_vectors import sample_handshake

#: What a server may grow by under attack.
MEMORY_BYTES = 64 << 20
#: A server that has not closed a finished session by then is stuck.
PATIENCE_S = 20.0
#: Sessions at the same time.
AT_ONCE = 8
#: Messages of one session.
MESSAGES = 40
FILE_LEN = 200_000
_GOOD_NAME = "of-the-good-client"
PSK_NAME = "psk.bin"


class Discard:
    """A Receiver that wants nothing but to know when it is over."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self._memory = bytearray(64 * 1024)

    def get_buffer(self) -> memoryview:
        return memoryview(self._memory)

    def buffer_updated(self, count: int) -> None:
        pass

    def arriving(self, count: int, held_len: int) -> None:
        pass

    def writable(self) -> None:
        pass

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set()


#: Opens a connection for frames, authenticated where the way has that. It gets the
#: server's address, a client's identity, and the directory that ``prepare`` had.
Dial = Callable[
    [str, LoadedIdentity, Path], "contextlib.AbstractAsyncContextManager[Open]"
]


@dataclass(frozen=True, slots=True)
class Open:
    """A connection that takes any bytes."""

    transport: Transport
    receiver: Discard


def dialler(*, tls: bool, psk: bool = False, quic: bool = False) -> Dial:
    """Return what connects over TLS, QUIC or TCP, perhaps with a tunnel inside."""

    @contextlib.asynccontextmanager
    async def dial(
        address: str, identity: LoadedIdentity, folder: Path
    ) -> AsyncIterator[Open]:
        receiver = Discard()

        def accept(transport: Transport) -> Receiver:
            return receiver

        transport = await connect(
            parse_address(address),
            tls=TlsSettings(identity=identity) if tls else None,
            accept=accept,
            timeout_s=PATIENCE_S,
            quic=quic,
            tunnel=await load_tunnel(str(folder / PSK_NAME), identity) if psk else None,
        )
        try:
            yield Open(transport, receiver)
        finally:
            transport.abort()

    return dial


def make_psk(folder: Path) -> dict[str, object]:
    """Make a pre-shared key for both sides."""
    path = folder / PSK_NAME
    path.touch(mode=0o600)
    path.write_bytes(os.urandom(32))
    return {"pre_shared_key_path": str(path)}


def nothing_to_prepare(folder: Path) -> dict[str, object]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to reach a server: how it is started, and how to connect to it.

    Attributes:
        name: what users call it.
        options: of ``srv``, which runs in the directory that ``prepare`` gets.
        network: as in Config, for the well-behaved client.
        dial: connects the attacker.
        garbage: what is sent before any handshake is mutated from these.
        prepare: makes files in a directory; returns settings for the Config of the
            well-behaved client.
    """

    name: str
    options: tuple[str, ...] = ()
    network: str
    dial: Dial
    garbage: Callable[[], list[bytes]]
    prepare: Callable[[Path], dict[str, object]] = nothing_to_prepare


def client_hello() -> list[bytes]:
    """Return what a TLS client sends first, and what other protocols do."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    with contextlib.suppress(SSL.WantReadError):
        connection.do_handshake()
    hello = connection.bio_read(65_536)
    others = (b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", bytes(300), b"\x80\x2e\x01")
    return [hello, hello, hello, *others]


def first_datagrams() -> list[bytes]:
    """Return what a QUIC client sends first, and what else may come."""
    return [*quic_seeds(), bytes(1200), b"\xc0" + bytes(20), client_hello()[0]]


def sample_hello() -> bytes:
    """Return the first message of a tunnel's client, by a stranger."""
    return encode_handshake(sample_handshake())


WAYS: dict[str, Way] = {
    way.name: way
    for way in (
        Way(name="tls", network="tls", dial=dialler(tls=True), garbage=client_hello),
        Way(
            name="tcp",
            options=("-tcp",),
            network="tcp",
            dial=dialler(tls=False),
            garbage=lambda: [*_streams()],
        ),
        Way(
            name="quic",
            options=("-q",),
            network="quic",
            dial=dialler(tls=True, quic=True),
            garbage=first_datagrams,
        ),
        Way(
            name="tls+psk",
            options=("-psk", PSK_NAME),
            network="tls",
            dial=dialler(tls=True, psk=True),
            garbage=client_hello,
            prepare=make_psk,
        ),
        Way(
            name="tcp+psk",
            options=("-tcp", "-psk", PSK_NAME),
            network="tcp",
            dial=dialler(tls=False, psk=True),
            garbage=lambda: [sample_hello(), *_streams()],
            prepare=make_psk,
        ),
    )
}

#: For srv in all ways; the place for limits that an attack from one address would meet.
OPTIONS: tuple[str, ...] = ("--max-failures", "0")


@dataclass(slots=True)
class LiveReport:
    """What came of attacking one server.

    Attributes:
        inputs: messages, mutated byte strings and garbage together.
        sessions: connections of the attacker.
        stuck: sessions that the server did not close.
        good_calls, good_files: what the well-behaved client did meanwhile.
        failures: why it failed.
        grown_bytes: how much the server's memory grew at its peak.
    """

    way: str
    inputs: int = 0
    sessions: int = 0
    stuck: int = 0
    seconds: float = 0.0
    good_calls: int = 0
    good_files: int = 0
    grown_bytes: int = 0
    alive: bool = False
    tracebacks: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        fine = self.alive and not self.failures and not self.stuck
        worked = self.good_calls > 0 and self.good_files > 0
        return fine and worked and not self.tracebacks and self.small

    @property
    def small(self) -> bool:
        """Whether the server has stayed within its memory."""
        return self.grown_bytes < MEMORY_BYTES

    def __str__(self) -> str:
        return (
            f"{self.way}: {self.inputs} inputs in {self.sessions} sessions, "
            f"{self.inputs / max(self.seconds, 1e-9):.0f}/s; the server grew by "
            f"{self.grown_bytes / (1 << 20):.1f} MB, {self.stuck} sessions stuck, "
            f"{self.tracebacks} tracebacks; a good client beside it made "
            f"{self.good_calls} calls and {self.good_files} transfers, "
            f"{len(self.failures)} failed"
        )


# Strange messages

_SERVICES = (
    *(ECHO_CALL_SERVICE, UPLOAD_SERVICE, DOWNLOAD_SERVICE, ECHO_FILE_SERVICE),
    *("", "no-such-service", "x" * 5000, "\udcff", "Arith.Multiply"),
)
_NAMES = (
    "a",
    "good",
    "../a",
    "/etc/passwd",
    "",
    ".",
    "a/b",
    "x" * 5000,
    "\0",
    "\udcff",
)
_ARGS = (
    *(ARG_PART_SUM, ARG_UPLOAD_NAME, ARG_CLIENT_TOTAL_SUM, ARG_NO_CLOBBER),
    *(ARG_DOWNLOAD_REQUEST, ARG_DOWNLOAD_LEN, ARG_DOWNLOAD_NAME),
)
_CALL_IDS = ("", "one", "two", "three", "x" * 3000)
_NUMBERS = (0, 0, 1, 1, 2, 3, -1, 1 << 40, (1 << 63) - 1, -(1 << 63))
_TIMES = (None, None, 0, 1, -1, 1 << 60, 1 << 62, (1 << 63) - 1)


def strange_message(rng: random.Random) -> bytes:
    """Make a frame that is in order and whose message need not be."""
    args = {}
    for _ in range(rng.choice((0, 0, 1, 2, 4))):
        key = rng.choice((*_ARGS, rng.choice(_NAMES)))
        args[key] = rng.choice((*_NAMES, *map(str, rng.sample(ODD_NUMBERS, 3))))
    header = Header(
        created_ns=rng.choice(_TIMES),
        sender=rng.choice(_NAMES),
        recipient=rng.choice(_NAMES),
        subject=rng.choice(_NAMES),
        seqno=abs(rng.choice(_NUMBERS)),
        call_type=rng.choice((*CallType, *CallType, *_NUMBERS)),
        call_id=rng.choice(_CALL_IDS),
        serial=rng.choice(_NUMBERS),
        deadline_ns=rng.choice((*_TIMES, time.time_ns() + 10**8)),
        stream_part=rng.choice(_NUMBERS),
        service_name=rng.choice(_SERVICES),
        args=args,
        no_system_compression=rng.random() < 0.1,
    )
    payload = rng.choice(
        (b"", b"hello", bytes(20_000), rng.randbytes(rng.randrange(99)))
    )
    message = Message(header=header, payload=payload, error=rng.choice(("", "", "no")))
    codec = Codec(rng.choice((0, 0, 1, 2, 3, 4, 5, 6, 7)))
    try:
        return b"".join(encode_frame(message, codec))
    except LocalProtocolError as exc:
        raise AssertionError("these are all short") from exc


# Attacks


class Attack:
    """Everything that is done to one server."""

    def __init__(
        self,
        way: Way,
        address: str,
        certs: Path,
        settings: dict[str, object],
        *,
        runs: int,
        seed: int,
    ) -> None:
        self._way = way
        self._settings = settings
        self._address = address
        self._certs = certs
        self._identity = load_identity(certs, "client", None)
        self._rng = random.Random(f"{seed} {way.name}")
        self._runs = runs
        self._streams = _streams()
        self._garbage = way.garbage()
        self.report = LiveReport(way.name)

    async def run(self) -> None:
        """Attack until enough was sent; the good client works all the time."""
        began = time.perf_counter()
        over = asyncio.Event()
        with tempfile.TemporaryDirectory(prefix="fuzz-good-") as folder:
            good = asyncio.create_task(self._good_client(Path(folder), over))
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(AT_ONCE):
                        group.create_task(self._attacker())
            finally:
                over.set()
                await good
        self.report.seconds = time.perf_counter() - began

    async def _attacker(self) -> None:
        while self.report.inputs < self._runs:
            self.report.sessions += 1
            if self._rng.random() < 0.2:
                await self._send_garbage()
            else:
                await self._session()

    async def _session(self) -> None:
        rng = self._rng
        async with self._way.dial(
            self._address, self._identity, self._certs.parent
        ) as opened:
            for _ in range(rng.randrange(MESSAGES)):
                opened.transport.write([strange_message(rng)])
                self.report.inputs += 1
            if rng.random() < 0.8:
                data = rng.choice(self._streams)
                data = mutate(rng, data, self._streams, FRAMES, 50_000)
                opened.transport.write([data])
                self.report.inputs += 1
            if rng.random() < 0.1:
                return  # leave without a word
            opened.transport.close()
            await self._closed(opened.receiver.gone.wait())

    async def _send_garbage(self) -> None:
        data = mutate(
            self._rng, self._rng.choice(self._garbage), self._garbage, BYTES, 9000
        )
        self.report.inputs += 1
        host, port = self._address.rsplit(":", 1)
        if self._way.network == "quic":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(data, (host, int(port)))
            await asyncio.sleep(0)
            return
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                writer.write_eof()
                await self._closed(reader.read())
        finally:
            writer.transport.abort()

    async def _closed(self, end: "asyncio.Future[object] | object") -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await end  # type: ignore[misc]  # anything that can be awaited
        except TimeoutError:
            self.report.stuck += 1

    # The well-behaved client.

    async def _good_client(self, folder: Path, over: asyncio.Event) -> None:
        config = Config(
            address=parse_address(self._address),
            network=self._way.network,  # type: ignore[arg-type]  # one of its values
            certs_dir=str(self._certs),
            **self._settings,  # type: ignore[arg-type]  # whatever the way needs
        )
        first = True
        while first or not over.is_set():
            first = False
            try:
                async with await Client.connect(config, self._identity) as client:
                    for _ in range(20):
                        await self._good_round(client, folder)
                        if over.is_set():
                            break
            except Exception as exc:  # noqa: BLE001  # any failure is one too many
                self.report.failures.append(f"{type(exc).__name__}: {exc}")

    async def _good_round(self, client: Client, folder: Path) -> None:
        payload = os.urandom(1000)
        reply = await client.call(ECHO_CALL_SERVICE, payload)
        assert payload in bytes(reply.payload), "another reply than asked for"
        self.report.good_calls += 1
        content = os.urandom(FILE_LEN)
        sent, received = folder / "sent", folder / "received"
        await asyncio.to_thread(sent.write_bytes, content)
        with open_local_source(str(sent)) as source:
            await upload_file(client, source, _GOOD_NAME)
        await download_file(
            client, _GOOD_NAME, lambda: open_local_sink(str(received), clobber=True)
        )
        assert await asyncio.to_thread(received.read_bytes) == content
        self.report.good_files += 2


def attack(way: Way, *, runs: int, seed: int) -> LiveReport:
    """Start a server of its own and attack it."""
    with tempfile.TemporaryDirectory(prefix="fuzz-live-") as name:
        folder = Path(name)
        served = folder / "served"
        served.mkdir()
        (served / "a").write_bytes(b"a file")
        certs = issue_certs(folder, "node", "client")
        options: tuple[str, ...] = ("-serve", "served", "-readfile", "served", "-echo")
        settings = way.prepare(folder)
        options += (*OPTIONS, *way.options)
        with SrvProcess(*options, certs=certs, cwd=folder) as srv:
            where = (way, srv.address, certs, settings)
            warm_up = Attack(*where, runs=200, seed=seed + 1)
            asyncio.run(warm_up.run())
            before = reset_peak(srv.process.pid)
            attacking = Attack(*where, runs=runs, seed=seed)
            asyncio.run(attacking.run())
            report = attacking.report
            report.failures += warm_up.report.failures
            report.grown_bytes = max(peak_bytes(srv.process.pid) - before, 0)
            report.alive = srv.process.poll() is None
            said = srv.stderr()
            report.tracebacks = said.count("Traceback") + said.count("handler of")
            if report.tracebacks:
                kept = Path(tempfile.gettempdir()) / f"fuzz-live-{way.name}-log"
                shutil.copyfile(srv.stderr_path, kept)
                report.failures.append(f"srv's log is in {kept}")
            report.alive = report.alive and srv.stop() == 0
    return report


def run_live(
    *, runs: int, seed: int, ways: list[str] | None, say: Callable[[str], None]
) -> int:
    """Attack a server in each way with ``runs`` inputs in all; return the exit code."""
    chosen = [WAYS[name] for name in ways or WAYS]
    code = 0
    for way in chosen:
        report = attack(way, runs=runs // len(chosen), seed=seed)
        say(str(report))
        for failure in report.failures[:20]:
            say(f"    FINDING: {failure}")
        if not report.ok:
            code = 1
    return code
