"""Fixtures for tests of the programs."""

from pathlib import Path

import pytest
from rpc25519_tools.commands._authority import CA_VARIABLE

from rpc25519_tools.identity import keyfile
from tests.identity.samples import TINY_KDF


@pytest.fixture
def selfy_workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty directory, a cheap key derivation, no pass phrase in the air."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keyfile, "DEFAULT_KDF", TINY_KDF)
    monkeypatch.delenv("RPC25519_PASSPHRASE", raising=False)
    monkeypatch.delenv(CA_VARIABLE, raising=False)
