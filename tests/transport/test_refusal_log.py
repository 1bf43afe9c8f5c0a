"""Many refusals are few lines, whoever they come from."""

from rpc25519_tools.transport.refusal_log import (
    _MOST_LINES,
    _MOST_REPEATS,
    OTHERS,
    REPORT_INTERVAL_S,
    RefusalLog,
)


def test_a_flood_of_refusals_becomes_a_line_now_and_then() -> None:
    log = RefusalLog()
    assert log.note("a", "too many", 0.0)
    assert not any(log.note("a", "too many", 1.0) for _ in range(500))
    assert log.note("b", "too many", 2.0)
    assert log.due(REPORT_INTERVAL_S - 1) == []
    assert log.due(REPORT_INTERVAL_S) == [("a", "500 more times: too many")]
    assert log.due(REPORT_INTERVAL_S + 2) == []  # b had nothing more
    assert not log.note("a", "too many", REPORT_INTERVAL_S + 3)
    assert log.due(2 * REPORT_INTERVAL_S) == [("a", "1 more times: too many")]
    assert log.due(3 * REPORT_INTERVAL_S) == []
    assert log.is_empty
    assert log.note("a", "too many", 3 * REPORT_INTERVAL_S)


def test_several_refusals_can_be_told_at_once() -> None:
    log = RefusalLog(at_once=3)
    assert [log.note("a", "reason", 0.0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert log.note("b", "other", 1.0)
    assert log.due(REPORT_INTERVAL_S) == [("a", "2 more times: reason")]
    assert not log.note("a", "again", REPORT_INTERVAL_S)
    assert log.due(2 * REPORT_INTERVAL_S) == [("a", "1 more times: again")]
    assert log.due(3 * REPORT_INTERVAL_S) == []
    assert log.note("a", "reason", 3 * REPORT_INTERVAL_S)


def test_addresses_beyond_those_that_have_lines_share_one() -> None:
    log = RefusalLog()
    for number in range(_MOST_LINES):
        assert log.note(str(number), "reason", 0.0)
    for number in range(1000, 1020):
        assert not log.note(str(number), "reason", 1.0)
    assert log.due(REPORT_INTERVAL_S + 1) == [(OTHERS, "20 more times: reason")]


def test_all_addresses_together_have_so_many_lines() -> None:
    log = RefusalLog(at_once=10)
    lines = []
    for second in range(60):
        # Each address comes sixty times, as often as it may fail in a minute.
        told = [
            log.note(f"{second}.{number % 100}", "reason", float(second))
            for number in range(6000)
        ]
        summary = log.due(float(second))
        assert len(log._told) <= _MOST_LINES + 1
        assert [site for site, _ in summary].count(OTHERS) <= 1
        lines += [second] * (sum(told) + len(summary))
    for begin in range(60 - int(REPORT_INTERVAL_S)):
        last = begin + REPORT_INTERVAL_S
        some = [second for second in lines if begin <= second < last]
        # As many at once, and a count for each of them later.
        assert 0 < len(some) <= 2 * _MOST_LINES + 1


def test_one_that_fails_again_and_again_does_not_hide_the_others() -> None:
    log = RefusalLog(at_once=1000)
    assert sum(log.note("one", "reason", 1.0) for _ in range(1000)) == _MOST_REPEATS
    assert log.note("another", "reason", 1.0)
