"""A check of a peer's certificate takes place within the handshake."""

import contextlib
from collections.abc import Iterator

import pytest

from rpc25519_tools.config import parse_address
from rpc25519_tools.errors import PeerNotTrustedError
from rpc25519_tools.identity.certificate import PeerIdentity
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.transport.base import Receiver, TlsSettings, Transport
from rpc25519_tools.transport.endpoint import connect, listen
from rpc25519_tools.transport.tls import TlsTransport
from tests.helpers import until
from tests.transport.peers import Recorder


class Judge:
    """A PeerCheck that notes how far the handshake was when it was asked."""

    def __init__(self, *, refuse_when_proven: bool = False) -> None:
        self.asked: list[tuple[str, bool, str]] = []
        self.transports: list[TlsTransport] = []
        self._refuse = refuse_when_proven

    def check(self, peer: PeerIdentity, host: str) -> None:
        self.asked.append(("check", self._is_done(), host))

    def proven(self, peer: PeerIdentity, host: str) -> None:
        self.asked.append(("proven", self._is_done(), host))
        if self._refuse:
            raise PeerNotTrustedError("changed my mind")

    def _is_done(self) -> bool:
        """Whether OpenSSL has seen the peer prove that it has its key."""
        state: bytes = self.transports[-1]._ssl.get_state_string()
        return state == b"SSL negotiation finished successfully"


@contextlib.contextmanager
def noting(judge: Judge, side: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the judge see the transports of one side."""
    original = TlsTransport._opened

    def opened(transport: TlsTransport) -> None:
        if transport._side == side:
            judge.transports.append(transport)
        original(transport)

    with monkeypatch.context() as patch:
        patch.setattr(TlsTransport, "_opened", opened)
        yield


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("refuse", [False, True])
async def test_a_peer_is_judged_in_the_handshake_and_proven_after_it(
    side: str,
    refuse: bool,
    node: LoadedIdentity,
    client: LoadedIdentity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge = Judge(refuse_when_proven=refuse)
    accepted: list[Recorder] = []
    failures: list[Exception] = []

    def accept(transport: Transport) -> Receiver:
        accepted.append(Recorder(transport))
        return accepted[-1]

    def check(of: str) -> Judge | None:
        return judge if of == side else None

    listener = await listen(
        parse_address("127.0.0.1:0"),
        tls=TlsSettings(identity=node, peer_check=check("server")),
        accept=accept,
        failed=lambda error, _: failures.append(error),
    )
    port = listener.address.rpartition(":")[2]
    with noting(judge, side, monkeypatch):
        try:
            await connect(
                parse_address(f"localhost:{port}"),
                tls=TlsSettings(identity=client, peer_check=check("client")),
                accept=accept,
                timeout_s=10.0,
            )
        except PeerNotTrustedError as exc:
            failures.append(exc)
        expected = 1 if refuse else 2
        await until(lambda: len(accepted) + len(failures) >= 2)
    listener.close()
    for one in accepted:
        one.transport.abort()
    host = "localhost" if side == "client" else "127.0.0.1"
    assert judge.asked == [("check", False, host), ("proven", True, host)]
    assert len(accepted) == expected
    assert ("changed my mind" in map(str, failures)) == refuse
