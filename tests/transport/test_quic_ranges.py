"""Ranges that are found fast are those of aioquic."""

import time

from aioquic.quic.rangeset import RangeSet
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.transport.quic_ranges import SortedRanges

pieces = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=40)


@given(pieces, st.integers(0, 5))
def test_they_are_those_of_aioquic(added: list[tuple[int, int]], taken: int) -> None:
    ours, theirs = SortedRanges(), RangeSet()
    for start, length in added:
        for ranges in (ours, theirs):
            ranges.add(start, start + length)
        assert [ours[index] for index in range(len(ours))] == list(theirs)
    for _ in range(min(taken, len(theirs))):
        assert ours.shift() == theirs.shift()
    assert len(ours) == len(theirs)


def test_one_number_is_a_range() -> None:
    ours = SortedRanges()
    ours.add(7)
    assert ours[0] == range(7, 8)


def test_many_of_them_cost_little() -> None:
    ours = SortedRanges()
    began = time.process_time()
    for start in range(0, 80_000, 2):
        ours.add(start, start + 1)
    assert len(ours) == 40_000
    assert time.process_time() - began < 2  # aioquic's take half a minute
