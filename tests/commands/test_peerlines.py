"""Lines about peers, so many for each, and then a count."""

import threading

import pytest
from rpc25519_tools.commands import _peerlines
from rpc25519_tools.commands._peerlines import LINES_AT_ONCE, PeerLines, peer_name

from tests.helpers import wait_until


@pytest.mark.parametrize(
    ("address", "identity", "name"),
    [
        ("127.0.0.1:8443", "ann@example.org (9key)", "ann@example.org (9key)"),
        ("127.0.0.1:8443", "", "127.0.0.1"),
        ("[2001:db8::1:2]:8443", "", "2001:db8::/64"),
        ("", "", ""),
    ],
)
def test_what_counts_as_one_peer(address: str, identity: str, name: str) -> None:
    assert peer_name(address, identity) == name


def timers() -> list[threading.Thread]:
    found = [one for one in threading.enumerate() if isinstance(one, threading.Timer)]
    return [one for one in found if not one.finished.is_set()]


def test_what_is_counted_is_told_at_the_end() -> None:
    said: list[str] = []
    lines = PeerLines(said.append)
    for number in range(LINES_AT_ONCE + 5):
        lines.tell("ann", f"ann {number} failed", f"{number} failed")
    lines.tell("bob", "bob failed", "failed")
    lines.flush()
    first = [f"ann {number} failed" for number in range(LINES_AT_ONCE)]
    last = f"ann 5 more times: {LINES_AT_ONCE + 4} failed"
    assert said == [*first, "bob failed", last]
    assert not timers()
    lines.flush()
    assert said[-1] == last


def test_what_is_counted_is_told_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_peerlines, "REPORT_INTERVAL_S", 0.01)
    monkeypatch.setattr("rpc25519_tools.transport.refusal_log.REPORT_INTERVAL_S", 0.01)
    said: list[str] = []
    lines = PeerLines(said.append)
    for _ in range(LINES_AT_ONCE + 3):
        lines.tell("ann", "ann failed", "failed")
    wait_until(lambda: said[-1] != "ann failed", what="the count")
    assert said[LINES_AT_ONCE:] == ["ann 3 more times: failed"]
    wait_until(lambda: not timers(), what="the end of the timer")
    lines.tell("ann", "ann failed", "failed")
    assert said[-1] == "ann failed"
