"""A ``Server`` of the library that gets another identity while it runs."""

import logging
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rpc25519_tools.errors import ConfigError, LocalProtocolError
from rpc25519_tools.identity import status
from rpc25519_tools.identity.renew import Renewal, renew
from rpc25519_tools.identity.store import LoadedIdentity, load_identity
from rpc25519_tools.identity.watch import IdentityFiles
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.server import Server
from tests.helpers import issue_certs, until
from tests.rpc.nets import Net
from tests.rpc.offers import services


@pytest.fixture
def net(tmp_path: Path) -> Net:
    return Net("tls", issue_certs(tmp_path, "node", "client"))


def renewed(net: Net) -> LoadedIdentity:
    renewal = Renewal(
        private_dir=net.certs.parent / "my-keep-private-dir",
        certs_dir=net.certs,
        names=["node"],
    )
    renew(renewal, None, now=datetime.now(UTC), random_bytes=os.urandom)
    return load_identity(net.certs, "node", None)


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return what we have logged; asyncio complains of a busy machine."""
    return [one for one in caplog.records if one.name.startswith("rpc25519_tools.")]


async def shown(net: Net, server: Server) -> bytes:
    """Return the certificate that a new connection is shown."""
    async with await net.client(server) as client:
        return certificate_of(client)


def certificate_of(client: Client) -> bytes:
    assert client.transport.peer is not None
    return client.transport.peer.certificate_der


def der(identity: LoadedIdentity) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return identity.certificate.public_bytes(Encoding.DER)


async def test_an_identity_is_swapped_by_hand(net: Net) -> None:
    old = load_identity(net.certs, "node", None)
    async with net.server(services()) as server, await net.client(server) as before:
        assert certificate_of(before) == der(old)
        new = renewed(net)
        assert await shown(net, server) == der(old)  # nobody has asked for it
        server.reload_identity(new)
        assert await shown(net, server) == der(new)
        await before.call("echo", b"still here")


async def test_files_are_watched(
    net: Net, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looks = IdentityFiles.look, 0

    def counted(
        self: IdentityFiles, now: datetime, *, asked: bool = False
    ) -> LoadedIdentity | None:
        nonlocal looks
        looks += 1
        return look(self, now, asked=asked)

    monkeypatch.setattr(IdentityFiles, "look", counted)
    seen: list[LoadedIdentity] = []
    server = Server(
        net.config("127.0.0.1:0", "node", identity_poll_s=0.02),
        services(),
        identity_reloaded=seen.append,
    )
    async with server:
        new = renewed(net)
        await until(lambda: seen)
        assert [der(one) for one in seen] == [der(new)]
        assert await shown(net, server) == der(new)
        with caplog.at_level(logging.WARNING):
            shutil.copy(net.certs / "client.crt", net.certs / "node.crt")
            await until(lambda: ours(caplog))
            enough = looks + 5  # and not a word more
            await until(lambda: looks >= enough)
        (record,) = ours(caplog)
        assert "node.key is not the key of" in record.getMessage()
        assert await shown(net, server) == der(new)
        newer = renewed_again(net)
        await until(lambda: der(seen[-1]) == der(newer))
        assert await shown(net, server) == der(newer)


def renewed_again(net: Net) -> LoadedIdentity:
    shutil.copy(net.certs / "node.crt.old", net.certs / "node.crt")
    return renewed(net)


async def test_a_defect_does_not_end_the_watch(
    net: Net, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, failures = IdentityFiles.look, 0

    def fail_twice(
        self: IdentityFiles, now: datetime, *, asked: bool = False
    ) -> LoadedIdentity | None:
        nonlocal failures
        failures += 1
        if failures <= 2:
            raise RuntimeError("a defect")
        return look(self, now, asked=asked)

    monkeypatch.setattr(IdentityFiles, "look", fail_twice)
    seen: list[LoadedIdentity] = []
    server = Server(
        net.config("127.0.0.1:0", "node", identity_poll_s=0.02),
        services(),
        identity_reloaded=seen.append,
    )
    async with server:
        renewed(net)
        await until(lambda: seen)
    assert [record.levelname for record in ours(caplog)] == ["ERROR", "ERROR"]


async def test_only_a_running_tls_server_has_an_identity(net: Net) -> None:
    identity = load_identity(net.certs, "node", None)
    server = Server(net.config("127.0.0.1:0", "node"), services())
    with pytest.raises(LocalProtocolError, match="does not run"):
        server.reload_identity(identity)
    server.look_for_identity()  # nothing is being watched
    async with server:
        server.reload_identity(identity)
    with pytest.raises(LocalProtocolError, match="does not run"):
        server.reload_identity(identity)
    async with Net("tcp", net.certs).server(services(), identity_poll_s=1) as plain:
        with pytest.raises(ConfigError, match="plain TCP"):
            plain.reload_identity(identity)


async def test_a_server_warns_of_its_certificates_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net("tls", issue_certs(tmp_path, "node", days=10))
    monkeypatch.setattr(status, "WARN_AGAIN", timedelta(seconds=0.2))
    async with net.server(services(), identity_poll_s=0.02):
        await until(lambda: len(ours(caplog)) >= 3)
    texts = {record.getMessage() for record in ours(caplog)}
    (text,) = texts
    assert text.startswith("our certificate node.crt ends in 9 days, on ")
