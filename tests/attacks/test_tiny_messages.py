"""A client that is let in and sends tiny messages without end."""

import asyncio

import pytest

from tests.attacks.floods import MIB, SERVED_S, Attacked, good_client, memory_of
from tests.attacks.tiny import BATCH, KINDS, flood


@pytest.mark.parametrize(
    ("attacked", "count"),
    [
        # Over plain TCP the attacker has least to do for each.
        ("tcp", 1_000_000),
        ("tls", 100_000),
        ("tls+psk", 25_000),
        ("tcp+psk", 25_000),
    ],
    indirect=["attacked"],
)
def test_a_good_client_is_served_beside_a_flood_of_tiny_messages(
    attacked: Attacked, count: int
) -> None:
    """All of them are taken, nothing is kept of them, and others wait for none."""
    address, who = attacked.srv.address, attacked.who

    async def scenario() -> None:
        async with good_client(address, who) as good:
            # What the first ones of each kind make the server set up is there by then.
            for kind in KINDS:
                await flood(address, who, kind, BATCH)
            before, calls = memory_of(attacked.srv), good.calls
            taken = 0
            for kind in KINDS:
                taken += await flood(address, who, kind, -(-count // len(KINDS)))
            growth = memory_of(attacked.srv, "VmHWM") - before
        assert taken >= count
        assert good.calls > calls + 10
        assert good.longest_s < SERVED_S
        assert growth < 16 * MIB

    asyncio.run(scenario())
