"""The steps that no upload can do without, and nothing else.

One process reads a file, hashes each part and the whole, encrypts and sends; another
receives, decrypts, hashes the same and writes. The libraries are the ones that the
product uses. No frames, no event loop, no threads, and the time of start-up and of
handshakes does not count: what this takes is a lower bound for the product on the same
machine, once with the bare cipher in pieces of a whole part, once with TLS and its
records of 16 KiB.

Run as a program: ``_floor.py cipher|tls SOURCE TARGET CERTS`` prints the seconds.
"""

import contextlib
import multiprocessing
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from OpenSSL import SSL

from rpc25519_tools.identity.store import load_identity
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
