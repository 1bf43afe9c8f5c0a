"""The recorded vectors of the pre-shared-key tunnel, and a handshake to vary."""

import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rpc25519_tools.wire.handshake import Handshake

DATA = Path(__file__).parent.parent / "data"
EXCHANGES = ("none", "s2", "zstd03")


def vectors(name: str) -> Any:
    return json.loads((DATA / "psk" / f"{name}.json").read_text())


def exchange(codec: str) -> Any:
    return vectors(f"psk-tcp-echo-{codec}")


def x25519(private_hex: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(private_hex))


def sample_handshake(*, cert_len: int = 500, confirmation: bytes = b"") -> Handshake:
    return Handshake(
        ephemeral=bytes(range(1, 33)),
        signature=bytes(range(64)),
        certificate_der=b"c" * cert_len,
        sent_at_ns=1_700_000_000_123_456_789,
        confirmation=confirmation,
    )
