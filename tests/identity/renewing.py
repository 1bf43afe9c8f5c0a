"""Certificates that are renewed, for tests of that and of who notices."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from rpc25519_tools.identity.issue import Order, Passphrases, issue
from rpc25519_tools.identity.renew import Renewal, Renewed, renew
from tests.identity.samples import NOW, TINY_KDF, counted_bytes

LATER = NOW + timedelta(days=100)
CA_PHRASE = b"of the authority"
KEY_PHRASE = b"of the key"


def made(
    tmp_path: Path,
    *names: str,
    protected: bool = False,
    seed: bytes = b"",
    days: int = 200,
    ca_days: int = 36600,
) -> Renewal:
    """Make an authority and pairs; return the renewal of all pairs."""
    count = 0

    def run(order: Order) -> None:
        nonlocal count
        count += 1
        phrases = Passphrases(
            existing_authority=lambda: CA_PHRASE,
            new_authority=(lambda: CA_PHRASE) if protected else None,
            new_key=(lambda: KEY_PHRASE) if protected else None,
        )
        source = counted_bytes(seed + bytes([count]))
        issue(order, phrases, now=NOW, random_bytes=source, kdf=TINY_KDF)

    order = Order(private_dir=tmp_path / "private", certs_dir=tmp_path / "certs")
    run(replace(order, make_authority=True, days=ca_days))
    for name in names:
        run(replace(order, name=name, email=f"{name}@example.org", days=days))
    return Renewal(
        private_dir=order.private_dir, certs_dir=order.certs_dir, names=names
    )


def must_not_ask() -> bytes:
    raise AssertionError("a pass phrase was asked for")


def run(
    renewal: Renewal,
    phrase: Callable[[], bytes] = must_not_ask,
    *,
    now: datetime = LATER,
) -> Renewed:
    return renew(renewal, phrase, now=now, random_bytes=counted_bytes(b"renew"))
