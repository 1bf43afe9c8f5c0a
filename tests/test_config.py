"""Settings and the texts in which users type them."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.config import (
    Address,
    Config,
    parse_address,
    parse_duration,
)
from rpc25519_tools.errors import ConfigError

HERE = Address("127.0.0.1", 8443)

ADDRESSES = {
    "127.0.0.1:8443": Address("127.0.0.1", 8443),
    "localhost:1": Address("localhost", 1),
    "example.org": Address("example.org", 8443),
    "127.0.0.1": Address("127.0.0.1", 8443),
    ":8443": Address("", 8443),
    "0.0.0.0:0": Address("0.0.0.0", 0),
    "h:65535": Address("h", 65535),
    "[::1]:9": Address("::1", 9),
    "[::1]": Address("::1", 8443),
    "::1": Address("::1", 8443),
    "fe80::1%eth0": Address("fe80::1%eth0", 8443),
    "[fe80::1%eth0]:5": Address("fe80::1%eth0", 5),
    "::": Address("::", 8443),
    "h:00080": Address("h", 80),
}
NO_ADDRESSES = [
    "",
    ":",
    "host:",
    "host:x",
    "host:65536",
    "host:-1",
    "host:+1",
    "host: 1",
    "host:1:2",
    "host:٣",
    "host:" + "1" * 5000,
    "ho st:1",
    "host\n:1",
    "user@host:1",
    "http://host:1",
    "[::1",
    "[::1]9",
    "[host]:1",
    "[]:1",
    "[::1]:",
    "\x1b[31mhost:1",
    ":::",
    "1:2:3",
]


@pytest.mark.parametrize("text", ADDRESSES)
def test_addresses_are_read(text: str) -> None:
    assert parse_address(text) == ADDRESSES[text]


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_what_is_no_address_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert str(caught.value).startswith("bad address ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["host", "::1", "[::1]", ""])
def test_a_port_can_be_required(text: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        parse_address(text, default_port=None)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = parse_address(text)
    except ConfigError:
        return
    assert 0 <= address.port < 1 << 16
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["[::1]:9", "127.0.0.1:8443", ":1"])
def test_an_address_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_address(text)) == text


DURATIONS = {
    "10s": 10,
    "1m30s": 90,
    "500ms": 0.5,
    "1h": 3600,
    "1.5h": 5400,
    ".5s": 0.5,
    "2.s": 2,
    "7": 7,
    "0": 0,
    "0.25": 0.25,
    "100us": 1e-4,
    "100µs": 1e-4,
    "5ns": 5e-9,
    "1h1m1s1ms": 3661.001,
    "30d": 30 * 86400,
    "1d12h": 129600,
}


@pytest.mark.parametrize("text", DURATIONS)
def test_durations_are_read(text: str) -> None:
    assert math.isclose(parse_duration(text), DURATIONS[text])


@pytest.mark.parametrize(
    "text",
    ["", "s", "-1s", "+1s", "10 s", "10x", "1s2", "1e3", "inf", "nan", ".", "1..2s"],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write 10s, 1m30s or 500ms"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["1000000h", "9" * 400, "9" * 400 + "s"])
def test_absurdly_long_durations_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="too long"):
        parse_duration(text)


@given(st.text(alphabet="0123456789.dhmsunµ -", max_size=20))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ConfigError:
        return
    assert 0 <= seconds < math.inf


def test_defaults_are_safe() -> None:
    config = Config(address=HERE)
    assert config.network == "tls"
    assert config.verify_peer
    assert config.idle_timeout_s == 0


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="unknown network 'udp': use tls, tcp or quic"
    ):
        Config(address=HERE, network="udp")  # type: ignore[arg-type]  # on purpose


LIMITS = [
    "connect_timeout_s",
    "call_timeout_s",
    "stall_timeout_s",
    "reply_timeout_s",
]


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_limits_must_be_above_zero_and_finite(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        Config(address=HERE, **{name: value})  # type: ignore[arg-type]  # a float


@pytest.mark.parametrize("value", [-1, -0.1, math.inf, math.nan])
def test_an_idle_limit_cannot_be_negative_or_endless(value: float) -> None:
    with pytest.raises(ConfigError, match="idle_timeout_s"):
        Config(address=HERE, idle_timeout_s=value)


@pytest.mark.parametrize("value", [0, 0.001, 3600])
def test_an_idle_limit_may_be_zero_for_none(value: float) -> None:
    assert Config(address=HERE, idle_timeout_s=value).idle_timeout_s == value


def test_a_config_does_not_change() -> None:
    config = Config(address=HERE)
    with pytest.raises(AttributeError):
        config.network = "tcp"  # type: ignore[misc]  # on purpose


# Values of wrong types.


@pytest.mark.parametrize("text", [5, None, b"127.0.0.1:1"])
def test_an_address_is_read_from_text_only(text: Any) -> None:
    with pytest.raises(ConfigError, match="expected a text"):
        parse_address(text)


@pytest.mark.parametrize(
    ("host", "port"),
    [("h", 99_999), ("h", -1), ("h", "80"), ("h", None), ("h", 1.0), (None, 1)],
)
def test_an_address_has_a_host_and_a_port(host: Any, port: Any) -> None:
    with pytest.raises(ConfigError, match="of an address must be"):
        Address(host, port)


NO_TIMES: tuple[object, ...] = ("5", None, b"5", [1])
WRONG_VALUES: dict[str, tuple[object, ...]] = {
    "address": ("127.0.0.1:80", None, ("h", 1)),
    "network": (None, 5, b"tcp", "udp"),
    "key_name": (None, 5, "../x", "a/b", "..", ".", "a\\b", "a\0"),
    "certs_dir": (None, 5, b"certs"),
    "passphrase": (b"secret", "secret", 5),
    "verify_peer": (None, 0, "no"),
    "known_keys_path": (5, ""),
    "pre_shared_key_path": (5,),
    "compression": (None, 5, "gzip"),
    "http_connect": (None, 1),
    "local_address": ("1.2.3.4", 5),
    "no_share_port_quic": (None, 1),
    "limits": (None, {}),
    "reload_passphrase": (b"secret",),
    **{
        field.name: (*NO_TIMES, math.inf, math.nan, -1.0)
        for field in dataclasses.fields(Config)
        if field.name.endswith("_s")
    },
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in WRONG_VALUES.items() for value in values],
    ids=lambda one: one if isinstance(one, str) and one.isidentifier() else repr(one),
)
def test_a_value_of_a_wrong_type_is_refused_by_name(name: str, value: object) -> None:
    settings: dict[str, Any] = {"address": Address("h", 1), name: value}
    with pytest.raises(ConfigError) as caught:
        Config(**settings)
    assert name.partition("_")[0] in str(caught.value)
    assert "secret" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_every_field_is_checked() -> None:
    assert set(WRONG_VALUES) == {field.name for field in dataclasses.fields(Config)}


def test_a_directory_may_be_a_path() -> None:
    Config(address=Address("h", 1), certs_dir=Path("certs"))  # type: ignore[arg-type]  # works all the same
