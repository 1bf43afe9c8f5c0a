"""Pooled memory is never lent twice."""

import sys

from rpc25519_tools.wire.buffers import POOLED_LEN, BufferPool

LONG = 1 << 20


def test_a_buffer_in_use_is_not_lent_again() -> None:
    pool = BufferPool()
    held = [pool.allocate(LONG) for _ in range(20)]
    assert len({id(buffer) for buffer in held}) == 20


def test_a_view_of_a_buffer_keeps_it_in_use() -> None:
    pool = BufferPool()
    view = memoryview(pool.allocate(LONG))[100:200]
    view[:] = b"v" * 100
    other = pool.allocate(LONG)
    other[:] = bytes(len(other))
    assert bytes(view) == b"v" * 100


def test_a_released_buffer_is_lent_again() -> None:
    pool = BufferPool()
    buffer = pool.allocate(LONG)
    address = id(buffer)
    view = memoryview(buffer)[5:10]
    del buffer
    other = pool.allocate(LONG)
    assert id(other) != address
    del view
    assert id(pool.allocate(LONG)) == address


def test_memory_follows_what_is_announced_only_up_to_a_part() -> None:
    pool = BufferPool()
    assert len(pool.allocate(1000)) == 1000
    assert len(pool.allocate(0)) == 0
    assert len(pool.allocate(64 << 20)) == POOLED_LEN


def test_length_and_number_of_kept_buffers_can_be_chosen() -> None:
    pool = BufferPool(200_000, kept=1)
    first, second = pool.allocate(LONG), pool.allocate(LONG)
    assert len(first) == len(second) == 200_000
    assert sys.getrefcount(first) == sys.getrefcount(second) + 1
