"""Says how certificates stand: good, ending soon, ended, or not ours at all.

For `selfy status`, which looks at files, and for programs that use one certificate for
months and have to say in time that it ends. Time is an argument.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from cryptography import x509

from rpc25519_tools.errors import KeyFileError, PeerNotTrustedError
from rpc25519_tools.identity.certificate import check_issued_by, issuer_among
from rpc25519_tools.identity.describe import (
    CertificateDetails,
    describe_certificate,
    verify_authority,
    verify_for_any_use,
)
from rpc25519_tools.identity.printable import printable
from rpc25519_tools.identity.reissue import same_authority
from rpc25519_tools.identity.store import LoadedIdentity

State = Literal[
    "ok",
    "expiring",
    "expired",
    "not yet valid",
    "not of our authority",
    "unusable",
]

#: Programs begin to warn when their certificate has so much of its life left: time
#: enough for a new one, and rarely all of a short life.
WARN_BEFORE: Final = timedelta(days=30)
#: How often a running program repeats itself.
WARN_AGAIN: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateStatus:
    """How one certificate stands.

    Attributes:
        state: in one or a few words.
        reason: what is wrong, in one line; empty if nothing is.
        details: its fields; None if it cannot be read.
    """

    state: State
    reason: str
    details: CertificateDetails | None

    @property
    def is_well(self) -> bool:
        """Whether nothing needs to be done about it."""
        return self.state == "ok"


def certificate_status(
    certificate: x509.Certificate,
    authorities: Sequence[x509.Certificate],
    *,
    now: datetime,
    warn_before: timedelta = WARN_BEFORE,
) -> CertificateStatus:
    """Judge a certificate.

    Args:
        certificate: our own, or an authority's.
        authorities: those that we trust. An older edition of one of them, with the same
            name and key, is judged by its own dates.
        now: an aware time.
        warn_before: how long before its end it counts as expiring.
    """
    try:
        details = describe_certificate(certificate)
    except KeyFileError as exc:
        return CertificateStatus(state="unusable", reason=str(exc), details=None)

    def status(state: State, reason: str) -> CertificateStatus:
        return CertificateStatus(state=state, reason=reason, details=details)

    is_authority = any(same_authority(certificate, one) for one in authorities)
    try:
        if is_authority:
            check_issued_by(certificate, certificate)
            issuer = certificate
        else:
            issuer = issuer_among(certificate, authorities)
    except PeerNotTrustedError as exc:
        return status("not of our authority", str(exc))
    by_date = details.status(now)
    if by_date == "expired":
        return status("expired", f"it expired on {_written(details.not_after)}")
    if by_date == "not yet valid":
        begin = _written(details.not_before)
        return status("not yet valid", f"it is not valid before {begin}")
    try:
        if is_authority:
            verify_authority(certificate, now=now)
        else:
            verify_for_any_use(certificate, issuer, now=now)
    except PeerNotTrustedError as exc:
        return status("unusable", str(exc))
    if details.not_after - now < warn_before:
        return status("expiring", f"it ends on {_written(details.not_after)}")
    return status("ok", "")


def unreadable(reason: str) -> CertificateStatus:
    """Return the status of a file that holds no certificate."""
    return CertificateStatus(state="unusable", reason=reason, details=None)


def _written(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def end_warning(identity: LoadedIdentity, now: datetime) -> str | None:
    """Say in one line that our certificate or our authority's ends soon, or has ended.

    Args:
        identity: ours.
        now: an aware time.

    Returns:
        None if there is nothing to warn about.
    """
    name = printable(identity.name)
    ends = (
        (f"our certificate {name}.crt", identity.certificate, name),
        ("our authority's certificate ca.crt", identity.ca, "--ca"),
    )
    for what, certificate, argument in ends:
        end = certificate.not_valid_after_utc
        hint = f"`selfy renew {argument}` makes a new one"
        if now > end + timedelta(seconds=1):
            return f"{what} expired on {_written(end)}: {hint}"
        if end - now < WARN_BEFORE:
            days = (end - now) // timedelta(days=1)
            left = f"in {days} day{'' if days == 1 else 's'}" if days else "today"
            return f"{what} ends {left}, on {_written(end)}: {hint}"
    return None


class EndReminder:
    """Decides when a running program has to warn of the end of its certificate.

    Once a day while it ends soon, and at once when it has ended or begins to end soon.

    Args:
        identity: ours, about which the program has warned when it started.
        now: an aware time.
    """

    def __init__(self, identity: LoadedIdentity, now: datetime) -> None:
        self._warned_at = now
        self._stage = _stage(identity, now)

    def due(self, identity: LoadedIdentity, now: datetime) -> str | None:
        """Return the warning that is due, or None; it counts as given."""
        stage = _stage(identity, now)
        if stage == self._stage and now - self._warned_at < WARN_AGAIN:
            return None
        self._stage, self._warned_at = stage, now
        return end_warning(identity, now)


def _stage(identity: LoadedIdentity, now: datetime) -> tuple[datetime, int]:
    """Return what changes exactly when there is something new to warn of."""
    end = min(identity.certificate.not_valid_after_utc, identity.ca.not_valid_after_utc)
    return end, (now > end + timedelta(seconds=1)) + (end - now < WARN_BEFORE)
