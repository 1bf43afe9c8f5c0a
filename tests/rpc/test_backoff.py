"""How long a client waits before it connects again."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.errors import (
    ConfigError,
)
from rpc25519_tools.rpc.reconnect import Backoff


@given(
    first=st.floats(1e-3, 10),
    more=st.floats(0, 1000),
    factor=st.floats(1, 1e12),
    jitter=st.floats(0, 1),
    failures=st.integers(1, 10**9),
)
def test_waits_grow_within_their_bounds(
    first: float, more: float, factor: float, jitter: float, failures: int
) -> None:
    backoff = Backoff(
        first_s=first, longest_s=first + more, factor=factor, jitter=jitter
    )
    with_jitter = backoff.wait_s(failures)
    full = Backoff(first_s=first, longest_s=first + more, factor=factor, jitter=0)
    full_s = full.wait_s(failures)
    assert first <= full_s <= first + more
    assert full_s * (1 - jitter) * (1 - 1e-12) <= with_jitter <= full_s
    assert full.wait_s(1) == first
    assert full.wait_s(failures + 1) >= full_s
    if full_s < first + more:
        assert math.isclose(
            full.wait_s(failures + 1), min(full_s * factor, first + more)
        )


def test_waits_differ_so_that_not_all_clients_come_back_at_once() -> None:
    backoff = Backoff(first_s=1, longest_s=100)
    waits = {backoff.wait_s(3) for _ in range(100)}
    assert len(waits) > 50
    assert max(waits) - min(waits) > 0.5
    assert all(2 <= wait_s <= 4 for wait_s in waits)


@pytest.mark.parametrize(
    "wrong",
    [
        {"first_s": 0},
        {"first_s": -1},
        {"first_s": math.nan},
        {"first_s": 10},
        {"longest_s": 0.01},
        {"longest_s": math.nan},
        {"factor": 0.99},
        {"factor": math.nan},
        {"jitter": -0.1},
        {"jitter": 1.1},
        {"jitter": math.nan},
    ],
)
def test_a_backoff_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    make: Callable[..., Backoff] = Backoff
    with pytest.raises(ConfigError):
        make(**wrong)
