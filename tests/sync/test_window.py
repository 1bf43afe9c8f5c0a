"""How much contents may be on their way: little on short lines, enough on long ones."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.sync.window import FIRST_LEN, LAST_LEN, MOST_MESSAGES, StoreWindow

KIB = 1024
MESSAGE_LEN = 128 * KIB


def pump(delay_s: float, rate: float, seconds: float) -> tuple[StoreWindow, float]:
    """Send as fast as may be to a receiver behind a line; return what it got a second.

    Args:
        delay_s: one way.
        rate: bytes a second that the line, or the receiver, takes.
        seconds: how long.
    """
    window = StoreWindow()
    now_s = free_s = 0.0
    on_way: deque[tuple[float, int]] = deque()  # when it is told, and the total then
    total = stored = 0
    while now_s < seconds:
        while window.has_room:
            total += MESSAGE_LEN
            window.note_sent(MESSAGE_LEN, now_s)
            free_s = max(free_s, now_s + delay_s) + MESSAGE_LEN / rate
            on_way.append((free_s + delay_s, total))
        now_s, stored = on_way.popleft()
        window.note_stored(stored, now_s)
    return window, stored / now_s


@pytest.mark.parametrize("delay_ms", [1, 5, 50, 150])
@pytest.mark.parametrize("rate", [1e6, 12e6, 60e6])
def test_a_long_line_is_never_empty(delay_ms: int, rate: float) -> None:
    window, reached = pump(delay_ms / 1000, rate, 30)
    assert reached >= 0.9 * rate
    on_line = 2 * delay_ms / 1000 * rate
    assert window.length <= max(FIRST_LEN, 2 * on_line + 4 * MESSAGE_LEN)


def test_a_short_line_holds_little_however_fast_it_is() -> None:
    for rate in (1e6, 50e6, 500e6):
        assert pump(50e-6, rate, 5)[0].length == FIRST_LEN


def test_the_window_has_a_limit() -> None:
    assert pump(10, 1e9, 600)[0].length == LAST_LEN


def test_two_messages_may_always_go() -> None:
    window = StoreWindow()
    rooms = []
    window.note_sent(100 * FIRST_LEN, 0)
    rooms.append(window.has_room)
    window.note_sent(1, 0)
    rooms.append(window.has_room)
    window.note_stored(100 * FIRST_LEN - 1, 1)
    rooms.append(window.has_room)
    window.note_stored(100 * FIRST_LEN, 1)
    rooms.append(window.has_room)
    assert rooms == [True, False, False, True]


def test_many_short_messages_have_a_limit_of_their_own() -> None:
    window = StoreWindow()
    count = 0
    while window.has_room:
        count += 1
        window.note_sent(2, 0)
    assert count == MOST_MESSAGES
    window.note_stored(64 * KIB, 1)  # what a receiver tells of at the latest
    assert window.has_room


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2 * FIRST_LEN), st.integers(0, 1 << 40), st.floats(0, 9)
        )
    )
)
def test_whatever_a_receiver_claims_the_window_keeps_its_limits(
    steps: list[tuple[int, int, float]],
) -> None:
    window = StoreWindow()
    now_s = 0.0
    sent = 0
    for count, claimed, later_s in steps:
        now_s += later_s
        if window.has_room:
            sent += count
            window.note_sent(count, now_s)
        window.note_stored(claimed, now_s)
        assert FIRST_LEN <= window.length <= LAST_LEN
    window.note_stored(sent, now_s)
    assert window.has_room
