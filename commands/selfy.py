"""``selfy``: makes, shows, verifies and renews certificates and keys."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from rpc25519_tools.errors import KeyFileError, PeerNotTrustedError, Rpc25519Error

from ._authority import (
    authority_path,
    ca_passphrase_option,
    directory_options,
    given_authority_phrase,
    opening_authority,
    saying,
)
from ._errors import one_line, reporting_errors
from ._gostyle import GoStyleGroup
from ._options import version_option
from ._output import Talk, printable
from ._passphrase import (
    VARIABLE,
    is_passphrase_given,
    passphrase_options,
    passphrase_source,
    refusing_empty,
)
from ._renew import renew
from ._status import status

if TYPE_CHECKING:
    from rpc25519_tools.identity.describe import Rows
    from rpc25519_tools.identity.issue import Issued, Order, Passphrases
    from rpc25519_tools.identity.keyfile import KeyFileInfo

_FILE = click.Path(readable=False, path_type=Path)

_EPILOG = """\
Options may be written with one dash or two, and with '=' or a space before the value.
Actions may be combined (-verify stands alone). Nothing existing is overwritten
without --force, and either all files are written or none.

Example: selfy -k node -e node@example.org

\b
selfy renew --help tells how to renew certificates,
selfy status --help how to see which ones have to be.
"""


@click.command(
    cls=GoStyleGroup,
    invoke_without_command=True,
    subcommand_metavar="| {renew|status} ...",
    epilog=_EPILOG,
)
@click.option(
    "-k",
    "--key",
    metavar="NAME",
    help="Make a key NAME.key and its certificate NAME.crt in the -o directory, signed "
    "by the authority in the -p directory, which is made too if there is none.",
)
@click.option(
    "-e",
    "--email",
    metavar="EMAIL",
    help="Whom to contact about this key; written into the certificate and shown to "
    "its peers. [default: NAME@HOST]",
)
@click.option(
    "--san",
    multiple=True,
    metavar="NAME",
    help="Another DNS name, IP address or e-mail for the certificate (repeatable).",
)
@click.option(
    "--days",
    type=int,
    metavar="N",
    help="Life of the certificate (with -ca alone: of the authority). [default: 36600]",
)
@click.option(
    "--ca",
    is_flag=True,
    help="Make a new certificate authority in the -p directory.",
)
@click.option(
    "--gensym",
    metavar="NAME",
    help="Write 32 random bytes, a pre-shared key, to this name in the -p directory.",
)
@click.option(
    "-v",
    "--view",
    type=_FILE,
    metavar="PATH",
    help="Show a certificate, or what a key file is.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="With -v: show it as one JSON object."
)
@click.option(
    "--verify",
    type=_FILE,
    metavar="PATH",
    help="Check a certificate against ca.crt in the -p directory, with all the "
    "authorities in it; exits 0 or 1.",
)
@directory_options
@click.option(
    "--nopass", is_flag=True, help="Write private keys without a pass phrase."
)
@passphrase_options
@ca_passphrase_option
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option("--quiet", is_flag=True, help="Say nothing but warnings and errors.")
@version_option
@click.pass_context
def selfy(
    ctx: click.Context,
    *,
    key: str | None,
    email: str | None,
    san: tuple[str, ...],
    days: int | None,
    ca: bool,
    gensym: str | None,
    view: Path | None,
    as_json: bool,
    verify: Path | None,
    out_dir: Path,
    private_dir: Path,
    nopass: bool,
    passphrase_file: str | None,
    ca_passphrase_file: str | None,
    force: bool,
    quiet: bool,
) -> None:
    """Make, show, verify and renew ed25519 certificates and keys.

    A private key is protected by a pass phrase (Argon2id, 256 MiB, and AES-256-GCM)
    unless -nopass is given. It is asked for on the terminal, or taken from
    --passphrase-file or the environment variable RPC25519_PASSPHRASE.
    """
    if ctx.invoked_subcommand is not None:
        _refuse_options(ctx, ctx.invoked_subcommand)
        return
    talk = Talk(prog="selfy", quiet=quiet)
    makes_keys = ca or key is not None
    makes = makes_keys or gensym is not None
    _check_actions(makes=makes, views=view is not None, verifies=verify is not None)
    _check_needs(
        (email is not None, "-e", key is not None, "-k NAME"),
        (bool(san), "--san", key is not None, "-k NAME"),
        (days is not None, "--days", makes_keys, "-k NAME or -ca"),
        (
            ca_passphrase_file is not None,
            "--ca-passphrase-file",
            makes_keys,
            "-k NAME or -ca",
        ),
        (
            passphrase_file is not None,
            "--passphrase-file",
            makes_keys or view is not None,
            "-k NAME, -ca or -v PATH",
        ),
        (force, "--force", makes, "-k NAME, -ca or -gensym NAME"),
        (as_json, "--json", view is not None, "-v PATH"),
    )
    with reporting_errors("selfy"):
        if verify is not None:
            _verify(verify, private_dir, out_dir, talk)
        if makes:
            from rpc25519_tools.identity.authority import parse_alternative_name
            from rpc25519_tools.identity.issue import Order

            order = Order(
                private_dir=private_dir,
                certs_dir=out_dir,
                name=key,
                email=_default_email(key or "") if email is None else email,
                extra_names=[parse_alternative_name(name) for name in san],
                days=days,
                make_authority=ca,
                symmetric_name=gensym,
                replace=force,
            )
            sources = _Sources(passphrase_file, ca_passphrase_file, talk=talk)
            _make(order, sources.passphrases(order, nopass=nopass), talk)
            if key is not None and email is None:
                talk.say(f"no -e EMAIL was given; the certificate says {order.email}")
        if view is not None:
            _view(view, passphrase_file, talk, as_json=as_json)


selfy.add_command(renew)
selfy.add_command(status)


def _refuse_options(ctx: click.Context, word: str) -> None:
    """Refuse options in front of a word, which has its own."""
    for param in selfy.params:
        source = ctx.get_parameter_source(param.name or "")
        if source is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{param.opts[0]} goes behind {word!r}.")


def _check_actions(*, makes: bool, views: bool, verifies: bool) -> None:
    """Refuse to do nothing, and what cannot be done together."""
    if not (makes or views or verifies):
        raise click.UsageError(
            "Nothing to do: give -k NAME, -ca, -gensym NAME, -v PATH, -verify PATH, "
            "renew or status."
        )
    if verifies and (makes or views):
        raise click.UsageError("-verify stands alone.")


def _check_needs(*rows: tuple[bool, str, bool, str]) -> None:
    """Refuse options that mean nothing without another one.

    Args:
        rows: whether the option is given, its name, whether one that it needs is
            given too, and the names of those.
    """
    for is_given, option, is_met, needed in rows:
        if is_given and not is_met:
            raise click.UsageError(f"{option} needs {needed}.")


def _default_email(key: str) -> str:
    """Return NAME@HOST, with question marks where these are not ASCII."""
    import socket

    return f"{key}@{socket.gethostname()}".encode("ascii", "replace").decode("ascii")


@dataclass(frozen=True, slots=True)
class _Sources:
    """The places that pass phrases come from."""

    passphrase_file: str | None
    ca_passphrase_file: str | None
    talk: Talk

    def passphrases(self, order: "Order", *, nopass: bool) -> "Passphrases":
        """Return a source for each key that `order` may open or make.

        A phrase that is given (file, environment) serves for all keys, unless the
        authority has its own; it is read once, since it may come through a pipe. A
        person is asked for each key.
        """
        from rpc25519_tools.identity.issue import Passphrases

        files = (self.passphrase_file, self.ca_passphrase_file)
        if files == ("-", "-"):
            raise click.UsageError("Only one pass phrase can come on standard input.")
        given: Callable[[], bytes] | None = None
        if is_passphrase_given(self.passphrase_file):
            given = passphrase_source(self.passphrase_file)
        ca_given = given_authority_phrase(self.ca_passphrase_file, given)
        ca_name = f"the authority's key {order.private_dir / 'ca.key'}"
        key_name = f"the key {order.certs_dir / f'{order.name}.key'}"
        existing = opening_authority(order.private_dir, ca_given, self.talk)
        if nopass:
            return Passphrases(
                existing_authority=existing, new_authority=None, new_key=None
            )
        new_authority = self._new(ca_given, ca_name)
        new_key = self._new(given, key_name)
        # Protecting begins when all questions are answered.
        if order.name is None:
            new_authority = saying(new_authority, "protecting the key", self.talk)
        new_key = saying(new_key, "protecting what was made", self.talk)
        return Passphrases(
            existing_authority=existing, new_authority=new_authority, new_key=new_key
        )

    def _new(self, given: Callable[[], bytes] | None, name: str) -> Callable[[], bytes]:
        if given is None:
            return passphrase_source(None, what=name, confirm=True)
        return refusing_empty(given)


def _make(order: "Order", passphrases: "Passphrases", talk: Talk) -> None:
    """Make what was ordered and tell about it."""
    import os
    from datetime import UTC, datetime

    from rpc25519_tools.identity.issue import issue

    issued = issue(order, passphrases, now=datetime.now(UTC), random_bytes=os.urandom)
    for path in issued.paths:
        talk.say(f"wrote {path}")
    _tell_identity(issued, talk)
    for warning in issued.warnings:
        talk.warn(warning)
    if order.name is not None and passphrases.new_key is None:
        talk.say("the private key has no pass phrase: guard the file")


def _tell_identity(issued: "Issued", talk: Talk) -> None:
    from rpc25519_tools.identity.certificate import peer_identity

    if issued.certificate is not None:
        end = issued.certificate.not_valid_after_utc
        identity = peer_identity(issued.certificate)
        talk.say(f"identity {identity}, valid until {end:%Y-%m-%d}")


def _verify(path: Path, private_dir: Path, out_dir: Path, talk: Talk) -> None:
    """Check one certificate; end the program with 1 if it fails.

    Every failure ends in 1, also a file that is missing or no certificate: whoever
    calls this from a script asks one question, "may I use it?".
    """
    from datetime import UTC, datetime

    from rpc25519_tools.identity.certificate import issuer_among
    from rpc25519_tools.identity.describe import (
        describe_certificate,
        verify_authority,
        verify_for_any_use,
    )
    from rpc25519_tools.identity.store import load_authorities, load_certificate

    ca_path = authority_path(private_dir, out_dir)
    now = datetime.now(UTC)
    try:
        authorities = load_authorities(ca_path)
        certificate = load_certificate(path)
        if certificate in authorities:
            verify_authority(certificate, now=now)
            result = f"is the authority itself, self-signed, in {ca_path}"
        else:
            issuer = issuer_among(certificate, authorities)
            verdicts = verify_for_any_use(certificate, issuer, now=now)
            uses = [usage for usage, reason in verdicts.items() if reason is None]
            result = f"was issued by {ca_path}; usable as {' and as '.join(uses)}"
            for usage, reason in verdicts.items():
                if reason is not None:
                    result += f", not as {usage} ({reason})"
        days = describe_certificate(certificate).days_left(now)
    except PeerNotTrustedError as exc:
        _refuse(f"{path}: not valid: {exc} (checked against {ca_path})")
    except Rpc25519Error as exc:
        _refuse(f"{path}: not valid: {exc}")
    if not talk.quiet:
        click.echo(printable(f"{path} is valid: it {result}; {days} days left"))


def _refuse(text: str) -> NoReturn:
    click.echo(f"selfy: {one_line(text)}", err=True)
    raise SystemExit(1)


def _view(
    path: Path, passphrase_file: str | None, talk: Talk, *, as_json: bool
) -> None:
    """Show a certificate or a key file on standard output."""
    from datetime import UTC, datetime

    from rpc25519_tools.identity.certificate import (
        MAX_CERTIFICATE_BYTES,
        parse_certificate,
    )
    from rpc25519_tools.identity.describe import (
        describe_certificate,
        key_json,
        key_rows,
    )
    from rpc25519_tools.identity.store import loose_permissions, read_bounded

    content = read_bounded(path, MAX_CERTIFICATE_BYTES)
    if b"PRIVATE KEY-----" in content:
        try:
            info = _key_info(content, path, passphrase_file, talk)
        except KeyFileError as exc:
            raise type(exc)(f"{path}: {exc}") from exc
        fields, rows = key_json(info), key_rows(info)
        warning = loose_permissions(path)
        if warning is not None:
            talk.warn(warning)
    else:
        try:
            details = describe_certificate(parse_certificate(content))
        except KeyFileError as exc:
            raise KeyFileError(f"{path}: {exc}") from exc
        now = datetime.now(UTC)
        fields, rows = details.as_json(now), details.rows(now)
    if as_json:
        import json

        click.echo(json.dumps({"file": str(path), **fields}))
    else:
        _show(str(path), rows)


def _key_info(
    content: bytes, path: Path, passphrase_file: str | None, talk: Talk
) -> "KeyFileInfo":
    """Describe a key file; open it too if its pass phrase is at hand."""
    from dataclasses import replace

    from rpc25519_tools.identity.keyfile import (
        decode_private_key,
        describe_key_file,
        raw_public_key_of,
    )

    info = describe_key_file(content)
    if not info.protected:
        return info
    if not is_passphrase_given(passphrase_file):
        talk.say(
            f"{path} was not opened; with --passphrase-file or {VARIABLE} its pass "
            "phrase is tried and its identity shown"
        )
        return info
    key = decode_private_key(content, passphrase_source(passphrase_file))
    talk.say(f"the pass phrase opens {path}")
    return replace(info, public_key=raw_public_key_of(key))


def _show(title: str, rows: "Rows") -> None:
    """Write rows as a table on a terminal, as plain lines elsewhere."""
    import sys

    if not sys.stdout.isatty():
        for label, value in rows:
            click.echo(f"{label + ':':<20} {value}")
        return
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        # Text, not str: values come from files and must not be read as markup.
        style = ""
        if label == "Status":
            style = "green" if value.startswith("valid") else "bold red"
        table.add_row(label, Text(value, style=style))
    Console().print(Panel.fit(table, title=Text(printable(title))))
