"""Which connection ends when all together hold too much behind gaps."""

from rpc25519_tools.transport.gaps import Gaps


def test_the_gap_that_has_stood_for_longest_goes() -> None:
    gaps: Gaps[str] = Gaps(100)
    assert gaps.note("old", 30, 7) == []
    assert gaps.note("new", 30, 0) == []
    assert gaps.note("old", 60, 7) == []
    assert gaps.total_len == 90
    assert gaps.note("third", 20, 5) == ["old"]
    assert gaps.total_len == 50
    assert gaps.note("third", 80, 5) == ["new"]
    assert gaps.note("third", 101, 5) == ["third"]
    assert gaps.total_len == 0


def test_who_goes_on_is_not_the_oldest() -> None:
    gaps: Gaps[str] = Gaps(100)
    gaps.note("honest", 40, 0)
    gaps.note("stuck", 40, 0)
    assert gaps.note("honest", 40, 1000) == []
    assert gaps.note("other", 40, 0) == ["stuck"]


def test_a_filled_gap_is_forgotten() -> None:
    gaps: Gaps[str] = Gaps(100)
    gaps.note("one", 90, 0)
    assert gaps.note("one", 0, 0) == []
    assert gaps.note("one", 0, 0) == []
    assert gaps.total_len == 0
    assert gaps.note("two", 100, 0) == []
