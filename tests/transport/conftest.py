"""Identities for the tests of transports."""

import pytest

from rpc25519_tools.identity.store import LoadedIdentity
from tests.transport.peers import Authority


@pytest.fixture(scope="session")
def authority() -> Authority:
    """The authority that both ends trust."""
    return Authority.make()


@pytest.fixture(scope="session")
def node(authority: Authority) -> LoadedIdentity:
    """The server's identity."""
    return authority.identity("node")


@pytest.fixture(scope="session")
def client(authority: Authority) -> LoadedIdentity:
    """The client's identity."""
    return authority.identity("client")
