"""Limits and the texts in which users type them."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.errors import ConfigError
from rpc25519_tools.limits import (
    LONGEST_HEADER_LEN,
    LONGEST_MESSAGE_LEN,
    Limits,
    Startups,
    format_size,
    parse_size,
)
from rpc25519_tools.rpc.server_core import MAX_OPEN_CALLS
from rpc25519_tools.wire.constants import MAX_BODY_LEN
from rpc25519_tools.wire.message import MAX_HEADER_LEN
from rpc25519_tools.wire.tunnel import MAX_SEALED_LEN, OVERHEAD_LEN

SIZES = {
    "0": 0,
    "65536": 65536,
    "10B": 10,
    "64KiB": 64 << 10,
    "64kib": 64 << 10,
    "64k": 64 << 10,
    "64 KiB": 64 << 10,
    "10kB": 10_000,
    "512M": 512 << 20,
    "10MB": 10_000_000,
    "1.5GiB": 3 << 29,
    "1G": 1 << 30,
    "2GB": 2_000_000_000,
}
NO_SIZES = ["", "x", "1x", "-1", "+1", "1e3", "1_000", "MiB", "1.", ".5", "1TiBs", "٣"]


@pytest.mark.parametrize("text", SIZES)
def test_sizes_are_read(text: str) -> None:
    assert parse_size(text) == SIZES[text]


@pytest.mark.parametrize("text", [*NO_SIZES, "1" * 5000])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="bad size"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=1 << 45))
def test_sizes_are_written_as_they_are_read(size_len: int) -> None:
    assert parse_size(format_size(size_len)) == size_len


@given(st.text(max_size=12))
def test_no_text_makes_parsing_fail_otherwise(text: str) -> None:
    for parse in (parse_size, Startups.parse):
        with contextlib.suppress(ConfigError):
            parse(text)


def test_startups_are_read_as_sshd_reads_them() -> None:
    assert Startups.parse("10:30:100") == Startups(10, 30, 100)
    assert Startups.parse("10") == Startups(10, 100, 10)
    assert str(Startups.parse("10:30:100")) == "10:30:100"


@pytest.mark.parametrize(
    "text",
    ["", "0", "1:2", "0:30:100", "100:30:10", "1:0:2", "1:101:2", "1:2:3:4", "a:b:c"],
)
def test_bad_startups_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="bad startups"):
        Startups.parse(text)


def test_the_usual_limits_are_those_of_the_wire_and_of_the_core() -> None:
    limits = Limits()
    assert limits.max_message_len == LONGEST_MESSAGE_LEN > MAX_BODY_LEN
    assert limits.max_header_len == LONGEST_HEADER_LEN == MAX_HEADER_LEN
    assert limits.max_calls == MAX_OPEN_CALLS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_connections", 0),
        ("max_connections_per_address", 0),
        ("max_failures_per_minute", -1),
        ("handshake_timeout_s", 0),
        ("handshake_timeout_s", float("inf")),
        ("handshake_timeout_s", float("nan")),
        ("max_message_len", LONGEST_MESSAGE_LEN + 1),
        ("max_message_len", 100),
        ("max_header_len", LONGEST_HEADER_LEN + 1),
        ("max_header_len", 100),
        ("max_calls", 0),
        ("max_connection_memory_len", 0),
        ("max_memory_len", 1 << 20),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be "):
        Limits(**{name: value})


def test_the_unproven_may_hold_a_quarter_but_always_the_longest_message() -> None:
    assert Limits().unproven_memory_len == 128 << 20
    assert Limits(max_memory_len=16 << 20).unproven_memory_len > MAX_SEALED_LEN
    small = Limits(max_memory_len=16 << 20, max_message_len=2 << 20)
    assert small.unproven_memory_len == 4 << 20
    tight = Limits(max_memory_len=16 << 20, max_message_len=8 << 20)
    assert tight.unproven_memory_len >= (8 << 20) + OVERHEAD_LEN
