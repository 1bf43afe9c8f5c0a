"""Deadlines by themselves, against a simple model with a clock of its own."""

import itertools

from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpc25519_tools.rpc.deadlines import Deadlines
from tests.rpc.timing import FakeLoop

_delays = st.integers(-2, 12)
_steps = st.one_of(
    st.tuples(st.just("add"), _delays),
    st.tuples(st.just("discard"), st.integers(0, 30)),
    st.tuples(st.just("pass"), st.integers(0, 8)),
    st.tuples(st.just("pass late"), st.integers(0, 8)),
)


@settings(deadline=None)
@example(
    steps=[("add", -1), ("add", 0), ("add", -1), ("pass", 0)], again=[], stops=False
)
@given(
    steps=st.lists(_steps, max_size=40),
    again=st.lists(st.none() | _delays, max_size=5),
    stops=st.booleans(),
)
def test_deadlines_pass_exactly_when_they_should(
    steps: list[tuple[str, int]], again: list[int | None], stops: bool
) -> None:
    loop, keys = FakeLoop(), itertools.count()
    waiting: dict[int, float] = {}
    expired: list[int] = []

    def expire(key: int) -> None:
        assert waiting.pop(key) <= loop.now_s, "too early"
        expired.append(key)
        delay_s = again.pop() if again else None
        if delay_s is not None:  # something new begins when something is given up
            add(delay_s)

    def add(delay_s: int) -> None:
        key = next(keys)
        waiting[key] = loop.now_s + delay_s
        deadlines.add(key, waiting[key])

    with loop.patched("deadlines"):
        deadlines: Deadlines[int] = Deadlines(expire)
    for what, number in steps:
        match what:
            case "add":
                add(number)
            case "discard":
                waiting.pop(number, None)
                deadlines.discard(number)
            case _:
                expired.clear()
                # What was too late when it was added has no place in the order.
                before = {key: s for key, s in waiting.items() if s > loop.now_s}
                loop.advance(loop.now_s + number, late=what == "pass late")
                assert all(until_s > loop.now_s for until_s in waiting.values())
                if what == "pass":
                    times = [before[key] for key in expired if key in before]
                    assert times == sorted(times)
        assert len(loop.live_timers()) <= len(waiting) + 1
    if stops:
        deadlines.stop()
        assert not loop.live_timers()
    else:
        loop.advance(loop.now_s + 1000)
        loop.advance(loop.now_s + 1000)
        assert not waiting
        assert not loop.live_timers()


def test_calls_with_one_time_limit_share_one_timer() -> None:
    loop = FakeLoop()
    over: list[int] = []
    with loop.patched("deadlines"):
        deadlines: Deadlines[int] = Deadlines(over.append)
    for key in range(1000):
        loop.advance(loop.now_s + 0.001)
        deadlines.add(key, loop.now_s + 10)
        assert len(loop.live_timers()) == 1
    for key in range(999):
        deadlines.discard(key)
    assert len(loop.live_timers()) == 1
    loop.advance(loop.now_s + 20)
    assert over == [999]
    assert not loop.live_timers()
