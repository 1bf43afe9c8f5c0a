"""Repeated handshakes of a pre-shared key's tunnel, each before much that never opens.

On plain TCP whoever has seen a client's handshake can send it again.
"""

import asyncio
import os
import selectors
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc25519_tools.files.echo import ECHO_CALL_SERVICE
from rpc25519_tools.identity.store import load_identity
from rpc25519_tools.wire.tunnel import MAX_SEALED_LEN
from tests.attacks.floods import (
    MIB,
    NEVER_LONGER_S,
    Tunnelled,
    client_of,
    good_client,
    memory_of,
    need_descriptors,
)
from tests.helpers import SrvProcess, until
from tests.rpc.memory import MemoryTransport, Plan
from tests.transport.tunnels import HandMade

#: What all connections may hold, and a quarter of it: first messages of the unproven.
BUDGET, UNPROVEN = 256 * MIB, 64 * MIB


@pytest.fixture
def key(tmp_path: Path) -> str:
    path = tmp_path / "psk.bin"
    path.write_bytes(os.urandom(32))
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def srv(certs: Path, key: str) -> Iterator[SrvProcess]:
    options = ["-tcp", "-psk", key, "-echo", "--max-memory", "256MiB"]
    with SrvProcess(*options, certs=certs) as running:
        yield running
        assert running.process.poll() is None
        assert "Traceback" not in running.stderr()


class Flood:
    """Connections in a thread that send a handshake, a claim, and what they can.

    Each handshake is one that the server has not seen, as somebody can send who has a
    certificate and not the pre-shared key.
    """

    def __init__(self, address: str, hellos: list[bytes], each_len: int) -> None:
        host, port = address.split(":")
        self._target = host, int(port)
        self._hellos = hellos
        self._left: dict[socket.socket, int] = {}
        self._selector = selectors.DefaultSelector()
        self._stopped = False
        self.sent_len = 0
        self.is_done = False
        self._thread = threading.Thread(target=self._run, args=(each_len,))

    def __enter__(self) -> "Flood":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped = True
        self._thread.join()
        for sock in self._left:
            sock.close()
        self._selector.close()

    def _run(self, each_len: int) -> None:
        for hello in self._hellos:
            sock = socket.create_connection(self._target)
            sock.sendall(hello + MAX_SEALED_LEN.to_bytes(8, "big"))
            sock.setblocking(False)
            self._left[sock] = each_len
            self._selector.register(sock, selectors.EVENT_WRITE)
        piece = bytes(128 * 1024)
        while not self._stopped:
            self.is_done = not self._selector.get_map()
            for key, _ in self._selector.select(0.05):
                self._push(key.fileobj, piece)

    def _push(self, sock: object, piece: bytes) -> None:
        assert isinstance(sock, socket.socket)
        try:
            sent_len = sock.send(piece[: self._left[sock]])
        except BlockingIOError:
            return
        except OSError:
            sent_len = self._left[sock]
        else:
            self.sent_len += sent_len
        self._left[sock] -= sent_len
        if not self._left[sock]:
            self._selector.unregister(sock)


@pytest.mark.parametrize(
    ("count", "each_len", "most_len"),
    [(40, 60 * MIB, 5 * UNPROVEN), (500, 500_000, 3 * UNPROVEN)],
)
async def test_handshakes_without_the_key_before_much_that_never_opens(
    srv: SrvProcess, certs: Path, key: str, count: int, each_len: int, most_len: int
) -> None:
    """All of it would be 2400 MiB, or 240, and more on its way there."""
    need_descriptors(count)
    identity = load_identity(certs, "client", None)
    below = MemoryTransport(Plan(), "", "")
    hellos = [
        HandMade(below, side="server", identity=identity).hello() for _ in range(count)
    ]
    who = Tunnelled(identity, Path(key), over_tls=False)
    async with good_client(srv.address, who) as good:
        before = memory_of(srv)
        with Flood(srv.address, hellos, each_len) as flood:
            await until(lambda: flood.sent_len > UNPROVEN // 2)
            calls = good.calls
            payload = os.urandom(4 * MIB)
            async with asyncio.timeout(NEVER_LONGER_S):
                newcomer = await client_of(srv.address, who)
                async with newcomer:
                    reply = await newcomer.call(ECHO_CALL_SERVICE, payload)
            assert bytes(reply.payload).startswith(payload)
            await until(lambda: flood.is_done and good.calls > calls + 10)
            # The largest of them have made room.
            await until(lambda: "took too much memory" in srv.stderr())
        growth = memory_of(srv, "VmHWM") - before
    # While one grows its memory is there twice; what was freed is given back late.
    assert growth < most_len
