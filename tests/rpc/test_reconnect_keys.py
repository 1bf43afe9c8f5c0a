"""A client that connects again asks for its pass phrase once, and uses renewed keys."""

import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from rpc25519_tools.errors import (
    DeadlineError,
    PassphraseError,
)
from rpc25519_tools.identity.issue import Order, Passphrases, issue
from tests.helpers import issue_certs, until
from tests.identity.samples import TINY_KDF
from tests.rpc.nets import Net
from tests.rpc.returning import (
    Asked,
    Counting,
    persistent,
)


def protected_certs(directory: Path, *names: str, days: int | None = None) -> Path:
    """Make pairs whose keys open with the phrase of Asked, in no time."""
    certs_dir = directory / "certs"
    for name in names:
        order = Order(
            private_dir=directory / "my-keep-private-dir",
            certs_dir=certs_dir,
            name=name,
            email=f"{name}@example.org",
            days=days,
        )
        phrases = Passphrases(
            existing_authority=None, new_authority=None, new_key=Asked()
        )
        issue(
            order,
            phrases,
            now=datetime.now(UTC),
            random_bytes=os.urandom,
            kdf=TINY_KDF,
        )
    return certs_dir


def key_file(directory: Path) -> str:
    path = directory / "psk.bin"
    path.write_bytes(bytes(32))
    return str(path)


@pytest.mark.parametrize("network", ["tls", "tcp"])
async def test_a_pass_phrase_is_asked_for_once(
    tmp_path: Path, network: Literal["tls", "tcp"]
) -> None:
    """Also where the keys are needed for a pre-shared key's tunnel alone."""
    net, asked = Net(network, protected_certs(tmp_path, "node", "client")), Asked()
    key_path = key_file(tmp_path) if network == "tcp" else None
    psk: dict[str, Any] = {"pre_shared_key_path": key_path}
    async with (
        net.server(Counting().registry(), passphrase=Asked(), **psk) as server,
        persistent(net, server.address, passphrase=asked, **psk) as client,
    ):
        for count in range(1, 4):
            assert (await client.call("double", b"a")).payload == b"aa"
            assert client.connections == count
            for transport in server.clients:
                transport.abort()
            await until(lambda: client.is_down)
    assert asked.times == 1


async def test_a_wrong_pass_phrase_may_be_given_again(tmp_path: Path) -> None:
    net = Net("tls", protected_certs(tmp_path, "node", "client"))
    phrases = [b"wrong", b"correct horse"]
    async with (
        net.server(Counting().registry(), passphrase=Asked()) as server,
        persistent(net, server.address, passphrase=lambda: phrases.pop(0)) as client,
    ):
        with pytest.raises(PassphraseError):
            await client.call("double", b"a")
        assert (await client.call("double", b"a")).payload == b"aa"
    assert not phrases


async def test_a_caller_that_gives_up_does_not_lose_the_pass_phrase(
    tmp_path: Path,
) -> None:
    net = Net("tls", protected_certs(tmp_path, "node", "client"))
    asked, typed = Asked(), threading.Event()

    def type_slowly() -> bytes:
        typed.wait(10)
        return asked()

    async with (
        net.server(Counting().registry(), passphrase=Asked()) as server,
        persistent(net, server.address, passphrase=type_slowly) as client,
    ):
        with pytest.raises(DeadlineError):
            await client.call("double", b"a", timeout_s=0.05)
        typed.set()
        assert (await client.call("double", b"a")).payload == b"aa"
    assert asked.times == 1


async def test_a_renewed_certificate_is_used_from_the_next_connection_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certs = issue_certs(tmp_path, "node", "client")
    net = Net("tls", certs)
    async with (
        net.server(Counting().registry()) as server,
        persistent(net, server.address) as client,
    ):

        async def shown() -> bytes:
            assert (await client.call("double", b"a")).payload == b"aa"
            peer = server.clients[0].peer
            assert peer is not None
            for transport in server.clients:
                transport.abort()
            await until(lambda: client.is_down and not server.clients)
            return peer.certificate_der

        first = await shown()
        assert await shown() == first
        (certs / "client.crt").rename(certs / "old.crt")
        for _ in range(2):
            assert await shown() == first
        assert "going on with the old certificate" in caplog.text
        (certs / "client.key").unlink()
        issue_certs(tmp_path, "client")
        assert await shown() != first
