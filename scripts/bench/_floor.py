"""The steps that no upload can do without, and nothing else.

One process reads a file, hashes each part and the whole, encrypts and sends; another
receives, decrypts, hashes the same and writes. The libraries are the ones that the
product uses. No frames, no threads, and the time of start-up and of handshakes does not
count: what this takes is a lower bound for the product on the same machine, once with
the bare cipher in pieces of a whole part, once with TLS and its records of 16 KiB, and
once with TLS on the event loop, by the product's own transports.

Run as a program: ``_floor.py cipher|tls|loop SOURCE TARGET CERTS`` prints the seconds.
"""

import asyncio
import contextlib
import itertools
import multiprocessing
import socket
import sys
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from OpenSSL import SSL

from rpc25519_tools.config import parse_address
from rpc25519_tools.identity.store import load_identity
from rpc25519_tools.transport.base import WRITE_HIGH_WATER_LEN, TlsSettings, Transport
from rpc25519_tools.transport.endpoint import connect, listen
from rpc25519_tools.transport.tls import Side, tls_context
from rpc25519_tools.transport.tls_records import records_of

_PART_LEN = 1 << 20
_TAG_LEN = 16
#: A fixed key and nonce protect nothing; only their speed matters here.
_KEY, _NONCE = bytes(32), bytes(12)

#: Sends a part; receives one, False at the end.
_Send = Callable[[bytearray], None]
_Receive = Callable[[bytearray], bool]


def floor_seconds(way: str, source: Path, target: Path, certs: Path) -> float:
    """Return the seconds to carry ``source``, whole parts, into ``target``."""
    if way == "loop":
        return _loop_seconds(source, target, certs)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = context.Process(
            target=_send, args=(way, source, certs, listener.getsockname(), ready)
        )
        sender.start()
        connection, _ = listener.accept()
        with connection, target.open("wb", 0) as file:
            receive = _receiver(way, connection, certs)
            start = time.perf_counter()
            ready.set()
            part, total = bytearray(_PART_LEN), blake3()
            while receive(part):
                total.update(part)
                blake3(part).digest()
                file.write(part)
            seconds = time.perf_counter() - start
        sender.join()
    if sender.exitcode:
        raise SystemExit("the floor's sender failed")
    return seconds


def _loop_seconds(source: Path, target: Path, certs: Path) -> float:
    context = multiprocessing.get_context("fork")
    addresses: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    sender = context.Process(target=_send_on_loop, args=(source, certs, addresses))
    sender.start()
    with target.open("wb", 0) as file:
        seconds = asyncio.run(_receive_on_loop(file, certs, addresses))
    sender.join()
    if sender.exitcode:
        raise SystemExit("the floor's sender failed")
    return seconds


class _Bare:
    """A receiver that hashes and writes whole parts, and does nothing else."""

    def __init__(self, take: Callable[[bytearray], object]) -> None:
        self._take = take
        self._part = bytearray(_PART_LEN)
        self._filled = 0
        self.total = blake3()
        self.started = 0.0
        self.ended = asyncio.get_running_loop().create_future()
        self.has_room = asyncio.Event()

    def opened(self, _: Transport) -> "_Bare":
        self.started = time.perf_counter()
        return self

    def get_buffer(self) -> memoryview:
        return memoryview(self._part)[self._filled :]

    def buffer_updated(self, count: int) -> None:
        self._filled += count
        if self._filled == _PART_LEN:
            self._filled = 0
            self.total.update(self._part)
            blake3(self._part).digest()
            self._take(self._part)

    def arriving(self, count: int, held_len: int) -> None:
        """No transport here holds anything back."""

    def writable(self) -> None:
        self.has_room.set()

    def connection_lost(self, _: Exception | None) -> None:
        self.ended.set_result(time.perf_counter() - self.started)


async def _receive_on_loop(
    file: FileIO, certs: Path, addresses: "multiprocessing.SimpleQueue[str]"
) -> float:
    receiver = _Bare(file.write)
    listener = await listen(
        parse_address("127.0.0.1:0"),
        tls=TlsSettings(identity=load_identity(certs, "node", None)),
        accept=receiver.opened,
        failed=lambda error, _: receiver.ended.set_exception(error),
    )
    addresses.put(listener.address)
    seconds: float = await receiver.ended
    listener.close()
    return seconds


def _send_on_loop(
    source: Path, certs: Path, addresses: "multiprocessing.SimpleQueue[str]"
) -> None:
    async def send() -> None:
        receiver = _Bare(bytearray)
        transport = await connect(
            parse_address(addresses.get()),
            tls=TlsSettings(identity=load_identity(certs, "client", None)),
            accept=receiver.opened,
            timeout_s=20,
        )
        parts = [bytearray(_PART_LEN) for _ in range(4)]  # one is filled, others leave
        with source.open("rb", 0) as file:
            for part in itertools.cycle(parts):
                if file.readinto(part) != _PART_LEN:
                    break
                receiver.total.update(part)
                blake3(part).digest()
                transport.write([part])
                while transport.unsent_len > WRITE_HIGH_WATER_LEN:
                    receiver.has_room.clear()
                    await receiver.has_room.wait()
        transport.close()
        await receiver.ended

    asyncio.run(send())


def _send(
    way: str,
    source: Path,
    certs: Path,
    address: tuple[str, int],
    ready: "multiprocessing.synchronize.Event",
) -> None:
    with socket.create_connection(address) as connection, source.open("rb", 0) as file:
        send = _sender(way, connection, certs)
        ready.wait()
        part, total = bytearray(_PART_LEN), blake3()
        while file.readinto(part) == _PART_LEN:
            total.update(part)
            blake3(part).digest()
            send(part)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(_PART_LEN):
            pass  # a server's session tickets: left unread, they would break it all


def _sender(way: str, connection: socket.socket, certs: Path) -> _Send:
    encrypted = bytearray(_PART_LEN + _PART_LEN // 16)
    view = memoryview(encrypted)
    if way == "cipher":
        cipher = ChaCha20Poly1305(_KEY)

        def send(part: bytearray) -> None:
            count = cipher.encrypt_into(_NONCE, part, None, view[: len(part) + 16])
            connection.sendall(view[:count])

        return send
    ssl = _handshake(connection, certs, "client")
    records = records_of(ssl)

    def send_records(part: bytearray) -> None:
        ssl.sendall(part)
        connection.sendall(view[: records.take_encrypted(view)])

    return send_records


def _receiver(way: str, connection: socket.socket, certs: Path) -> _Receive:
    encrypted = bytearray(_PART_LEN + _TAG_LEN)
    view = memoryview(encrypted)
    if way == "cipher":
        cipher = ChaCha20Poly1305(_KEY)

        def receive(part: bytearray) -> bool:
            filled = 0
            while filled < len(view):
                count = connection.recv_into(view[filled:])
                if not count:
                    return False
                filled += count
            cipher.decrypt_into(_NONCE, encrypted, None, part)
            return True

        return receive
    ssl = _handshake(connection, certs, "server")
    records = records_of(ssl)

    def receive_records(part: bytearray) -> bool:
        filled, _ = records.read_into(memoryview(part))
        while filled < len(part):
            count = connection.recv_into(view)
            if not count:
                return False
            ssl.bio_write(view[:count])
            filled += records.read_into(memoryview(part)[filled:])[0]
        return True

    return receive_records


def _handshake(connection: socket.socket, certs: Path, side: Side) -> SSL.Connection:
    identity = load_identity(certs, "client" if side == "client" else "node", None)
    context = tls_context(identity, side=side, verify=False)
    context.clear_mode(1)  # SSL_MODE_ENABLE_PARTIAL_WRITE, as the product does
    ssl = SSL.Connection(context, None)
    ssl.set_connect_state() if side == "client" else ssl.set_accept_state()
    while True:
        done = False
        with contextlib.suppress(SSL.WantReadError):
            ssl.do_handshake()
            done = True
        with contextlib.suppress(SSL.WantReadError):
            connection.sendall(ssl.bio_read(1 << 20))
        if done:
            return ssl
        ssl.bio_write(connection.recv(1 << 20))


if __name__ == "__main__":
    print(floor_seconds(sys.argv[1], *map(Path, sys.argv[2:])))
