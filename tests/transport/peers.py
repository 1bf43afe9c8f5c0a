"""Both ends of a transport for tests, identities of every kind, and openssl."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from rpc25519_tools.config import parse_address
from rpc25519_tools.identity.authority import mint_authority, mint_certificate
from rpc25519_tools.identity.certificate import USAGES, Usage
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.limits import Limits
from rpc25519_tools.transport.base import Receiver, TlsSettings, Transport
from rpc25519_tools.transport.endpoint import connect, listen
from tests.helpers import until

NOW = datetime.now(UTC)
DAY = timedelta(days=1)

#: The only cipher suite that both sides take.
SUITE = "TLS_CHACHA20_POLY1305_SHA256"
#: From this OpenSSL on there is X25519MLKEM768.
HYBRID_FROM = 0x30500000


class Recorder:
    """A Receiver that keeps all bytes."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.data = bytearray()
        self.lost = False
        self.error: Exception | None = None
        self.writable_calls = 0
        self.arriving_len = 0
        self._memory = bytearray(64 * 1024)

    def use(self, memory: bytearray) -> None:
        """Receive into that memory from now on."""
        self._memory = memory

    def get_buffer(self) -> memoryview:
        return memoryview(self._memory)

    def buffer_updated(self, count: int) -> None:
        self.data += self._memory[:count]

    def arriving(self, count: int, held_len: int) -> None:
        self.arriving_len += count

    def writable(self) -> None:
        self.writable_calls += 1

    def connection_lost(self, error: Exception | None) -> None:
        assert not self.lost
        self.lost = True
        self.error = error


@dataclass
class Listening:
    """A listener and all that came of its connections."""

    address: str = ""
    close: Callable[[], None] = lambda: None
    accepted: list[Recorder] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    def accept(self, transport: Transport) -> Receiver:
        self.accepted.append(Recorder(transport))
        return self.accepted[-1]

    def fail(self, error: Exception, address: str) -> None:
        assert address.startswith("127.0.0.")
        self.failures.append(error)

    @property
    def outcomes(self) -> int:
        return len(self.accepted) + len(self.failures)

    @property
    def failure(self) -> Exception:
        assert not self.accepted
        (failure,) = self.failures
        return failure


@contextlib.asynccontextmanager
async def listening(
    identity: LoadedIdentity | None,
    *,
    verify: bool = True,
    limits: Limits | None = None,
    quic: bool = False,
) -> AsyncIterator[Listening]:
    """Listen on a free port; TLS or QUIC with an identity, plain TCP without."""
    found = Listening()
    listener = await listen(
        parse_address("127.0.0.1:0"),
        tls=TlsSettings(identity=identity, verify=verify) if identity else None,
        accept=found.accept,
        failed=found.fail,
        limits=limits,
        quic=quic,
    )
    found.address, found.close = listener.address, listener.close
    try:
        yield found
    finally:
        listener.close()
        for recorder in found.accepted:
            recorder.transport.abort()


async def accepted(found: Listening) -> Recorder:
    """Return the server's end of the first connection."""
    await until(lambda: found.outcomes, what="the handshake's end")
    assert not found.failures, found.failures
    return found.accepted[0]


@contextlib.asynccontextmanager
async def dialled(
    address: str,
    identity: LoadedIdentity | None,
    *,
    verify: bool = True,
    timeout_s: float = 10.0,
    quic: bool = False,
) -> AsyncIterator[Recorder]:
    """Connect; TLS or QUIC with an identity, plain TCP without."""
    made: list[Recorder] = []

    def accept(transport: Transport) -> Receiver:
        made.append(Recorder(transport))
        return made[0]

    await connect(
        parse_address(address),
        tls=TlsSettings(identity=identity, verify=verify) if identity else None,
        accept=accept,
        timeout_s=timeout_s,
        quic=quic,
    )
    try:
        yield made[0]
    finally:
        made[0].transport.abort()


@dataclass(frozen=True)
class Authority:
    """An authority that mints whatever a test asks for."""

    certificate: x509.Certificate
    key: Ed25519PrivateKey

    @classmethod
    def make(cls, *, begin: datetime = NOW - DAY, end: datetime = NOW + DAY) -> Self:
        key = Ed25519PrivateKey.generate()
        return cls(mint_authority(key, now=begin, not_after=end, serial_number=1), key)

    def identity(
        self,
        name: str = "someone",
        *,
        begin: datetime = NOW - DAY,
        end: datetime = NOW + DAY,
        usages: tuple[Usage, ...] = USAGES,
        trusts: "Authority | None" = None,
    ) -> LoadedIdentity:
        """Mint a pair; its owner trusts this authority, or another one."""
        key = Ed25519PrivateKey.generate()
        certificate = mint_certificate(
            key.public_key(),
            ca=self.certificate,
            ca_key=self.key,
            email=f"{name}@example.org",
            now=begin,
            not_after=end,
            serial_number=2,
            usages=usages,
        )
        ca = (trusts or self).certificate
        return LoadedIdentity(
            name=name, certificate=certificate, private_key=key, ca=ca
        )

    def self_signed(self) -> LoadedIdentity:
        """Return an identity that is its own authority, but trusts this one."""
        other = Authority.make()
        return LoadedIdentity(
            name="self",
            certificate=other.certificate,
            private_key=other.key,
            ca=self.certificate,
        )


def write_pem(identity: LoadedIdentity, directory: Path) -> list[str]:
    """Write an identity for openssl; return the options that name the files."""
    files = {
        "-cert": identity.certificate.public_bytes(Encoding.PEM),
        "-key": identity.private_key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
        "-CAfile": identity.ca.public_bytes(Encoding.PEM),
    }
    options = []
    for option, content in files.items():
        path = directory / f"{identity.name}{option}.pem"
        path.write_bytes(content)
        options += [option, os.fspath(path)]
    return options


async def s_client(address: str, *options: str, stdin: bytes = b"") -> str:
    """Run ``openssl s_client`` to its end; return all that it says."""
    process = await asyncio.create_subprocess_exec(
        "openssl", "s_client", "-connect", address, *options,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = await asyncio.wait_for(process.communicate(stdin), 10)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return output.decode(errors="replace")


class OpensslServer:
    """A running ``openssl s_server``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.address = ""
        self.output = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, *options: str) -> AsyncIterator[Self]:
        process = await asyncio.create_subprocess_exec(
            "openssl", "s_server", "-accept", "127.0.0.1:0", "-naccept", "1", *options,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        server = cls(process)
        try:
            await server._read_address()
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            assert process.stdin is not None
            process.stdin.close()
            await server.read_rest()
            await process.wait()

    async def _read_address(self) -> None:
        assert self._process.stdout is not None
        while not self.address:
            line = (await self._process.stdout.readline()).decode()
            assert line, f"openssl s_server failed: {self.output}"
            self.output += line
            if line.startswith("ACCEPT "):
                self.address = line.split()[1]

    async def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        await self._process.stdin.drain()

    async def read_until(self, text: str) -> None:
        assert self._process.stdout is not None
        while text not in self.output:
            piece = await self._process.stdout.read(65_536)
            assert piece, f"no {text!r} in {self.output}"
            self.output += piece.decode(errors="replace")

    async def read_rest(self) -> None:
        assert self._process.stdout is not None
        rest = await self._process.stdout.read()
        self.output += rest.decode(errors="replace")
