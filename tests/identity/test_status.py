"""How certificates stand, and when a running program says so."""

from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.identity.status import (
    EndReminder,
    State,
    certificate_status,
    end_warning,
)
from rpc25519_tools.identity.store import LoadedIdentity

from .samples import (
    NOW,
    YEAR,
    odd_certificate,
    sample_authority,
    sample_key,
    sample_leaf,
)

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
CA = sample_authority(life=10 * YEAR)


@pytest.mark.parametrize(
    ("certificate", "now", "state"),
    [
        (sample_leaf(), NOW, "ok"),
        (sample_leaf(), NOW - SECOND, "not yet valid"),
        (sample_leaf(life=30 * DAY), NOW, "ok"),
        (sample_leaf(life=30 * DAY), NOW + SECOND, "expiring"),
        (sample_leaf(life=DAY), NOW + DAY, "expiring"),
        (sample_leaf(life=DAY), NOW + DAY + 2 * SECOND, "expired"),
        (sample_leaf(ca_seed=5), NOW, "not of our authority"),
        (sample_authority(), NOW, "ok"),
        (sample_authority(life=DAY), NOW, "expiring"),
        (sample_authority(life=DAY), NOW + 2 * DAY, "expired"),
        (sample_authority(seed=5), NOW, "not of our authority"),
        (odd_certificate((x509.UnrecognizedExtension(
            x509.ObjectIdentifier("1.2.3"), b""), True)), NOW, "unusable"),
        (odd_certificate(public_key=ec.generate_private_key(
            ec.SECP256R1()).public_key()), NOW, "unusable"),
    ],
)  # fmt: skip
def test_states(certificate: x509.Certificate, now: datetime, state: State) -> None:
    status = certificate_status(certificate, [CA], now=now)
    assert status.state == state
    assert status.is_well == (state == "ok")
    assert bool(status.reason) == (state != "ok")
    assert "\n" not in status.reason
    assert status.details is not None


def test_who_warns_earlier_warns_earlier() -> None:
    leaf = sample_leaf(life=90 * DAY)
    for days, state in ((89, "ok"), (91, "expiring")):
        found = certificate_status(
            leaf, [CA], now=NOW, warn_before=timedelta(days=days)
        )
        assert found.state == state


def identity(
    life: timedelta = 100 * DAY, ca_life: timedelta = 10 * YEAR
) -> LoadedIdentity:
    return LoadedIdentity(
        name="node",
        certificate=sample_leaf(life=life),
        private_key=sample_key(),
        ca=sample_authority(life=ca_life),
    )


@pytest.mark.parametrize(
    ("who", "after", "warning"),
    [
        (identity(), timedelta(0), None),
        (identity(), 70 * DAY, None),
        (
            identity(),
            70 * DAY + SECOND,
            (
                "our certificate node.crt ends in 29 days, on 2027-03-03 12:00:00 UTC: "
                "`selfy renew node` makes a new one"
            ),
        ),
        (identity(), 99 * DAY, "node.crt ends in 1 day, on"),
        (identity(), 99 * DAY + SECOND, "node.crt ends today, on"),
        (identity(), 100 * DAY + SECOND, "ends"),
        (identity(), 100 * DAY + 2 * SECOND, "node.crt expired on 2027-03-03"),
        (
            identity(ca_life=20 * DAY),
            timedelta(0),
            (
                "our authority's certificate ca.crt ends in 20 days, on 2026-12-13 "
                "12:00:00 UTC: `selfy renew --ca` makes a new one"
            ),
        ),
    ],
)
def test_warnings(who: LoadedIdentity, after: timedelta, warning: str | None) -> None:
    found = end_warning(who, NOW + after)
    if warning is None:
        assert found is None
    else:
        assert found is not None
        assert warning in found


def test_a_reminder_comes_daily_and_at_each_turn() -> None:
    who = identity()
    reminder = EndReminder(who, NOW)
    given = []
    for hours in range(24 * 102):
        now = NOW + timedelta(hours=hours, seconds=2)
        if reminder.due(who, now) is not None:
            given.append(hours / 24)
    # It begins to end soon, ends daily from then on, and has ended: at once again.
    assert given == [*range(70, 102)]


def test_a_reminder_ends_with_the_new_certificate() -> None:
    who = identity(life=DAY)
    reminder = EndReminder(who, NOW)  # the program has warned when it started
    assert reminder.due(who, NOW + SECOND) is None
    assert reminder.due(who, NOW + DAY + 2 * SECOND) is not None
    assert reminder.due(identity(), NOW + DAY + 3 * SECOND) is None
    assert reminder.due(identity(), NOW + 3 * DAY) is None


@given(st.lists(st.integers(0, 130 * 24 * 60), min_size=1, max_size=50))
def test_no_more_than_one_reminder_a_day_and_turn(minutes: list[int]) -> None:
    who = identity()
    reminder, given = EndReminder(who, NOW), 0
    for minute in sorted(minutes):
        now = NOW + timedelta(minutes=minute)
        found = reminder.due(who, now)
        assert found is None or found == end_warning(who, now)
        given += found is not None
    assert given <= 60 + 2


def test_a_certificate_that_cannot_be_read_is_unusable() -> None:
    junk = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"junk")
    status = certificate_status(odd_certificate((junk, False)), [CA], now=NOW)
    assert (status.state, status.details) == ("unusable", None)
    assert "cannot be read" in status.reason
