"""Clients refuse a server whose certificate does not have the name they ask for."""

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from rpc25519_tools.errors import PeerNotTrustedError
from rpc25519_tools.identity.store import LoadedIdentity
from tests.helpers import until
from tests.transport.peers import NOW, Authority, dialled, listening


def server_named(authority: Authority, *names: str) -> LoadedIdentity:
    """Mint a server that is in order but for its DNS names."""
    key = Ed25519PrivateKey.generate()
    hour = timedelta(hours=1)
    certificate = (
        x509.CertificateBuilder()
        # The common name counts for nothing.
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(3)
        .not_valid_before(NOW - hour)
        .not_valid_after(NOW + hour)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name) for name in names]),
            critical=False,
        )
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .sign(authority.key, None)
    )
    return LoadedIdentity(
        name="named",
        certificate=certificate,
        private_key=key,
        ca=authority.certificate,
    )


async def test_a_server_with_another_name_is_refused(
    authority: Authority, client: LoadedIdentity
) -> None:
    async with listening(server_named(authority, "elsewhere")) as found:
        with pytest.raises(PeerNotTrustedError) as caught:
            async with dialled(found.address, client):
                pass
        await until(lambda: found.outcomes, what="the server to hear of it")
    assert str(caught.value) == (
        "certificate refused: its names do not include 'localhost'"
    )


async def test_a_server_with_another_name_is_accepted_unverified(
    authority: Authority, client: LoadedIdentity
) -> None:
    # Neither side verifies, as with -skip-verify on both.
    async with (
        listening(server_named(authority, "elsewhere"), verify=False) as found,
        dialled(found.address, client, verify=False) as ours,
    ):
        ours.transport.write([b"hello"])
        await until(lambda: found.accepted and found.accepted[0].data == b"hello")
        assert ours.transport.peer is None


async def test_a_server_with_the_name_among_others_is_accepted(
    authority: Authority, client: LoadedIdentity
) -> None:
    async with (
        listening(server_named(authority, "elsewhere", "localhost")) as found,
        dialled(found.address, client) as ours,
    ):
        await until(lambda: found.accepted)
        assert ours.transport.peer is not None
