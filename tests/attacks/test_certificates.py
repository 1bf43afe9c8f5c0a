"""Peers with every kind of wrong certificate, against the real programs.

Not a byte of a service is processed: a refused client that sends its request without
waiting for the verdict gets no answer and leaves no file and no ``connected`` line; a
refused server gets no byte of the client's request.
"""

import contextlib
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from OpenSSL import SSL

from rpc25519_tools.config import parse_address
from tests.attacks.strangers import NAMED, STRANGERS, Minter, Stranger
from tests.attacks.target_server import ECHO, UPLOAD, TargetServer, echoed
from tests.attacks.tls13 import DATA, Handmade
from tests.commands.hostile import run

TRUST = 4
TIMEOUT_S = 10.0


def context_of(method: int, stranger: Stranger | None) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    if stranger is not None:
        context.use_certificate(stranger.chain[0])
        context.use_privatekey(stranger.key)
        for more in stranger.chain[1:]:
            context.add_extra_chain_cert(more)
    return context


# Clients that srv refuses.


def knock(address: str, stranger: Stranger | None) -> tuple[str, bytes, str]:
    """Connect and ask for something at once.

    Returns:
        Our own address, what was answered, and how it ended.
    """
    where = parse_address(address)
    with socket.create_connection((where.host, where.port), TIMEOUT_S) as plain:
        plain.settimeout(None)  # what pyOpenSSL can wait on
        host, port = plain.getsockname()
        connection = SSL.Connection(context_of(SSL.TLS_CLIENT_METHOD, stranger), plain)
        connection.set_connect_state()
        received, end = b"", "closed"
        try:
            connection.do_handshake()
            connection.sendall(ECHO + UPLOAD)
            while True:
                received += connection.recv(65_536)
        except (SSL.SysCallError, SSL.ZeroReturnError):
            pass
        except SSL.Error as exc:
            end = str(exc.args[0][0][2]) if exc.args[0] else end
    return f"{host}:{port}", received, end


@pytest.mark.parametrize("kind", STRANGERS)
def test_srv_refuses_a_client(kind: str, target: TargetServer, minter: Minter) -> None:
    mint, reason = STRANGERS[kind]
    local, received, end = knock(target.address, mint(minter))
    assert received == b""
    assert "alert" in end or end == "closed"
    assert reason in target.refusal(local)


def test_srv_answers_the_same_client_with_a_good_certificate(
    target: TargetServer, minter: Minter
) -> None:
    """What the others send is answered, where the certificate is right."""
    good = minter.genuine()
    assert isinstance(good.key, Ed25519PrivateKey)
    with Handmade(target.address) as client:
        client.shake_hands(good.ders, good.key)
        assert b"hello" in echoed(client)
        assert "connected" in " ".join(target.lines_about(client.local))


def test_srv_refuses_a_client_without_a_certificate(target: TargetServer) -> None:
    local, received, _ = knock(target.address, None)
    assert received == b""
    assert target.refusal(local) == "the client sent no certificate"


def test_srv_refuses_a_stolen_certificate(target: TargetServer, minter: Minter) -> None:
    """A known client's certificate, and a key that is not its own."""
    stolen = Stranger([minter.known], Ed25519PrivateKey.generate())
    with Handmade(target.address) as client:
        client.shake_hands(stolen.ders, stolen.key)  # type: ignore[arg-type]  # it is
        client.send(DATA, ECHO + UPLOAD)
        assert client.fate() == 51  # decrypt_error
        assert "bad signature" in target.refusal(client.local)


def test_srv_takes_nothing_from_a_client_that_has_not_finished(
    target: TargetServer, minter: Minter
) -> None:
    """Its certificate is good, but data comes where its Finished has to be."""
    with Handmade(target.address) as client:
        client.agree(client.say_hello())
        client.take_flight()
        client.send(DATA, ECHO + UPLOAD)
        assert client.fate() in (10, 20)  # unexpected_message, bad_record_mac
        assert "TLS handshake failed" in target.refusal(client.local)


# Servers that cli refuses.


class FalseServer:
    """Accepts one client after the other with a certificate of its own.

    Attributes:
        received: what clients sent after the handshake.
    """

    def __init__(self, stranger: Stranger) -> None:
        self._context = context_of(SSL.TLS_SERVER_METHOD, stranger)
        self._context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.received = b""
        self.handshakes = 0
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.join(TIMEOUT_S)
        self._socket.close()

    def _serve(self) -> None:
        plain, _ = self._socket.accept()
        with plain, contextlib.suppress(SSL.Error):
            connection = SSL.Connection(self._context, plain)
            connection.set_accept_state()
            connection.do_handshake()
            self.handshakes += 1
            while True:
                self.received += connection.recv(65_536)


@pytest.fixture(scope="module")
def server_minter(certs: Path) -> Minter:
    return Minter(certs, "server")


@pytest.mark.parametrize("kind", [*STRANGERS, *NAMED])
def test_cli_refuses_a_server(
    kind: str, server_minter: Minter, certs: Path, tmp_path: Path
) -> None:
    mint, reason = {**STRANGERS, **NAMED}[kind]
    (tmp_path / "secret").write_bytes(b"not for strangers")
    with FalseServer(mint(server_minter)) as server:
        words = ("-s", server.address, "-certs", certs, "-sendfile", "secret")
        line = run("cli", *words, cwd=tmp_path).error(TRUST)
    assert reason in line
    assert server.received == b""
    assert server.handshakes == 0


def test_cli_talks_to_the_same_server_with_a_good_certificate(
    server_minter: Minter, certs: Path, tmp_path: Path
) -> None:
    with FalseServer(server_minter.genuine()) as server:
        words = ("-s", server.address, "-certs", certs, "-wait", "200ms")
        run("cli", *words, cwd=tmp_path)
    assert server.handshakes == 1
    assert server.received.startswith(ECHO[:7])
