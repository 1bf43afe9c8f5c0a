"""``selfy status``: how long certificates are good for, for people and for cron."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ._authority import authority_path, directory_options
from ._errors import reporting_errors
from ._gostyle import GoStyleCommand
from ._output import printable

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from rpc25519_tools.identity.status import CertificateStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A certificate and where it stands."""

    path: Path
    status: "CertificateStatus"

    def line(self, now: "datetime") -> str:
        """Return one line for people."""
        details, state = self.status.details, self.status.state
        if details is None:
            return f"{state}: {self.path}: {self.status.reason}"
        days = details.days_left(now)
        left = f"{days} days left" if days >= 0 else f"ended {-days} days ago"
        who = ", ".join(details.emails) or ("authority" if details.is_authority else "")
        identity = details.key_id or f"a key of type {details.key_type}"
        text = f"{state}: {self.path}: {who or 'no e-mail'} ({identity}), {left}"
        return text + (f"; {self.status.reason}" if self.status.reason else "")

    def as_json(self, now: "datetime") -> dict[str, object]:
        """Return one object for programs: the fields of ``selfy -v --json``, and ours.

        ``status`` is ours here, and says more than that of ``-v``.
        """
        details = self.status.details
        return {
            "file": str(self.path),
            **(details.as_json(now) if details is not None else {}),
            "status": self.status.state,
            "reason": self.status.reason,
        }


@click.command(
    "status", cls=GoStyleCommand, short_help="Tell which certificates end soon."
)
@click.argument(
    "paths",
    nargs=-1,
    metavar="[PATH|DIR]...",
    type=click.Path(readable=False, path_type=Path),
)
@click.option(
    "--warn",
    default="30d",
    show_default=True,
    metavar="DURATION",
    help="How long before its end a certificate counts as expiring: 30d, 12h.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of objects.")
@directory_options
@click.option("--quiet", is_flag=True, help="Print only what is not ok.")
def status(
    *,
    paths: tuple[Path, ...],
    warn: str,
    as_json: bool,
    out_dir: Path,
    private_dir: Path,
    quiet: bool,
) -> None:
    """Tell how certificates stand, one line for each.

    Looks at all *.crt files of the directories (by default those of -o, and the
    authority in -p), and judges them by ca.crt in -p, or in -o if there is none. Exits
    with 0 if all are ok, and with 1 if one is expiring, expired, not yet valid, not of
    our authority or unusable, or if there is none.
    """
    with reporting_errors("selfy status"):
        from datetime import UTC, datetime, timedelta

        from rpc25519_tools.config import parse_duration

        warn_before = timedelta(seconds=parse_duration(warn))
        now = datetime.now(UTC)
        authority = authority_path(private_dir, out_dir)
        if not paths:
            paths = (out_dir, authority) if authority.parent != out_dir else (out_dir,)
        entries = list(_entries(paths, authority, now, warn_before))
        shown = [one for one in entries if not (quiet and one.status.is_well)]
        if as_json:
            import json

            click.echo(json.dumps([one.as_json(now) for one in shown], indent=2))
        else:
            for one in shown:
                click.echo(printable(one.line(now)))
        if not entries:
            shown_paths = ", ".join(str(path) for path in paths)
            click.echo(
                printable(f"selfy status: there is no certificate in {shown_paths}"),
                err=True,
            )
    if not entries or not all(one.status.is_well for one in entries):
        raise SystemExit(1)


def _entries(
    paths: tuple[Path, ...],
    authority: Path,
    now: "datetime",
    warn_before: "timedelta",
) -> Iterator[_Entry]:
    from rpc25519_tools.errors import KeyFileError
    from rpc25519_tools.identity.status import certificate_status, unreadable
    from rpc25519_tools.identity.store import load_authorities

    problem = ""
    try:
        authorities = load_authorities(authority)
    except KeyFileError as exc:
        authorities, problem = (), f"{exc}"
    for path in _files(paths):
        try:
            certificates = load_authorities(path)
        except KeyFileError as exc:
            yield _Entry(path=path, status=unreadable(str(exc)))
            continue
        for certificate in certificates:
            if authorities:
                judged = certificate_status(
                    certificate, authorities, now=now, warn_before=warn_before
                )
            else:
                judged = unreadable(f"nothing to check it against: {problem}")
            yield _Entry(path=path, status=judged)


def _files(paths: tuple[Path, ...]) -> Iterator[Path]:
    """Yield files, and of directories the certificates, each file once."""
    seen = set()
    for path in paths:
        found = sorted(path.glob("*.crt")) if path.is_dir() else [path]
        for file in found:
            if file not in seen:
                seen.add(file)
                yield file
