"""How the size of datagrams follows the path."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.transport.quic_mtu import BASE_LEN, LARGEST_LEN, PathMtu


def settle(mtu: PathMtu, width: int, now: float) -> None:
    """Answer all probes as a path of this width does."""
    while (size := mtu.next_probe(now)) is not None:
        if size <= width:
            mtu.probe_acked(size, now)
        else:
            mtu.probe_lost(size, now)


@pytest.mark.parametrize(
    ("width", "found"),
    [
        (65507, 16384),
        (8972, 8952),
        (1472, 1452),
        (1452, 1452),
        (1400, 1372),
        (1232, 1232),
        (1200, 1200),
    ],
)
def test_the_largest_size_that_arrives_is_found(width: int, found: int) -> None:
    mtu = PathMtu(65527)
    assert mtu.size == BASE_LEN
    settle(mtu, width, 0.0)
    assert mtu.size == found


@given(st.integers(0, 65535), st.integers(1200, 65535))
def test_no_datagram_is_longer_than_the_peer_takes(most: int, width: int) -> None:
    mtu = PathMtu(most)
    now = 0.0
    for _ in range(20):
        size = mtu.next_probe(now)
        if size is None:
            if mtu.next_at is None:
                break
            now = mtu.next_at
            continue
        assert BASE_LEN < size <= most
        (mtu.probe_acked if size <= width else mtu.probe_lost)(size, now)
    assert BASE_LEN <= mtu.size <= max(BASE_LEN, min(most, width))


def test_one_lost_probe_says_nothing() -> None:
    mtu = PathMtu(1452)
    assert mtu.next_probe(0.0) == 1452
    assert mtu.next_probe(0.0) is None
    mtu.probe_lost(1452, 0.1)
    assert mtu.next_probe(0.1) == 1452
    mtu.probe_acked(1452, 0.2)
    assert mtu.size == 1452


def test_a_black_hole_means_the_base_again_until_the_path_is_better() -> None:
    mtu = PathMtu(1452)
    settle(mtu, 1452, 0.0)
    assert [mtu.packet_lost(1452, number, 1.0) for number in range(4)] == [
        False,
        False,
        False,
        True,
    ]
    assert mtu.size == BASE_LEN
    assert mtu.next_probe(1.0) is None
    assert mtu.next_at is not None
    settle(mtu, 1300, mtu.next_at)
    assert mtu.size == 1232
    assert mtu.next_at is not None
    settle(mtu, 1452, mtu.next_at)
    assert mtu.size == 1452


def test_packets_lost_among_others_that_arrive_are_no_black_hole() -> None:
    mtu = PathMtu(LARGEST_LEN)
    settle(mtu, 65507, 0.0)
    for number in range(0, 1000, 2):
        mtu.packet_acked(LARGEST_LEN, number + 1)
        assert not mtu.packet_lost(LARGEST_LEN, number, 1.0)
    assert mtu.size == LARGEST_LEN
    # Short ones arrive in a black hole, too.
    for number in range(1001, 1004):
        assert not mtu.packet_lost(LARGEST_LEN, number, 1.0)
        mtu.packet_acked(100, number)
    assert mtu.packet_lost(LARGEST_LEN, 1004, 1.0)


def test_what_the_system_refuses_is_known_at_once() -> None:
    mtu = PathMtu(65527)
    assert mtu.next_probe(0.0) == 16384
    assert not mtu.refused(16384, 0.0)
    assert mtu.next_probe(0.0) == 8952
    assert not mtu.refused(8952, 0.0)
    assert mtu.next_probe(0.0) == 1452
    mtu.probe_acked(1452, 0.0)
    assert mtu.size == 1452
    assert mtu.refused(1452, 5.0)  # the device has changed
    assert mtu.size == BASE_LEN


def test_a_path_that_fails_again_and_again_is_tried_ever_more_seldom() -> None:
    mtu = PathMtu(1452)
    settle(mtu, 1452, 0.0)
    now, waits = 1.0, []
    for round_ in range(12):
        for number in range(4):
            mtu.packet_lost(1452, 10 * round_ + number, now)
        assert mtu.next_at is not None
        waits.append(mtu.next_at - now)
        now = mtu.next_at
        settle(mtu, 1452, now)
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert max(waits) <= 600.0


def test_after_a_black_hole_all_larger_sizes_are_tried_again_soon() -> None:
    mtu = PathMtu(1452)
    settle(mtu, 1452, 0.0)
    for number in range(4):
        mtu.packet_lost(1452, number, 100.0)
    settle(mtu, 1232, 101.0)
    assert mtu.size == 1232
    assert mtu.next_at == 103.0
    settle(mtu, 1452, 103.0)
    assert mtu.size == 1452
    # A path that was never wider is left alone.
    other = PathMtu(1452)
    settle(other, 1232, 0.0)
    assert (other.size, other.next_at) == (1232, 600.0)
