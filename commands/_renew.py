"""``selfy renew``: a new certificate for the key that is there."""

from pathlib import Path

import click

from ._authority import (
    ca_passphrase_option,
    directory_options,
    given_authority_phrase,
    opening_authority,
)
from ._errors import reporting_errors
from ._gostyle import GoStyleCommand
from ._output import Talk
from ._passphrase import (
    is_passphrase_given,
    passphrase_options,
    passphrase_source,
)


def _complete_name(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[str]:
    directory = ctx.params.get("out_dir") or Path("certs")
    try:
        names = sorted(path.stem for path in directory.glob("*.crt"))
    except OSError:
        return []
    return [name for name in names if name.startswith(incomplete) and name != "ca"]


@click.command(
    "renew", cls=GoStyleCommand, short_help="Renew certificates, with the same keys."
)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=_complete_name)
@click.option("--ca", is_flag=True, help="Renew the authority's own certificate (too).")
@click.option(
    "-e",
    "--email",
    metavar="EMAIL",
    help="Another e-mail. [default: as in the old certificate]",
)
@click.option(
    "--san",
    multiple=True,
    metavar="NAME",
    help="Another DNS name, IP address or e-mail (repeatable); these replace those "
    "that were added to the old certificate. [default: as there]",
)
@click.option(
    "--days",
    type=int,
    metavar="N",
    help="Life of the new certificate (with --ca alone: of the authority). [default: "
    "as long as the old one's]",
)
@directory_options
@passphrase_options
@ca_passphrase_option
@click.option("--quiet", is_flag=True, help="Say nothing but warnings and errors.")
def renew(
    *,
    names: tuple[str, ...],
    ca: bool,
    email: str | None,
    san: tuple[str, ...],
    days: int | None,
    out_dir: Path,
    private_dir: Path,
    passphrase_file: str | None,
    ca_passphrase_file: str | None,
    quiet: bool,
) -> None:
    """Make new certificates for the keys NAME.key, signed by the authority.

    Keys stay as they are, and no pass phrase is needed but that of the authority's
    key. The old certificate is kept as NAME.crt.old. A running srv uses the new one
    for new connections by itself, and no peer has to be told.

    With --ca the authority's own certificate is renewed, with the same key: all that it
    has issued stays valid. Copy ca.crt to the other machines before the old one ends.
    """
    talk = Talk(prog="selfy renew", quiet=quiet)
    if not names and not ca:
        raise click.UsageError(
            "Nothing to do: give the NAME of a certificate, or --ca."
        )
    for option, given in {"-e": email is not None, "--san": bool(san)}.items():
        if given and len(names) != 1:
            raise click.UsageError(f"{option} needs exactly one NAME.")
    with reporting_errors("selfy renew"):
        import os
        from datetime import UTC, datetime

        from rpc25519_tools.identity import renew as renewing
        from rpc25519_tools.identity.authority import parse_alternative_name
        from rpc25519_tools.identity.certificate import key_id, raw_public_key

        phrase = None
        if is_passphrase_given(passphrase_file):
            phrase = passphrase_source(passphrase_file)
        phrase = given_authority_phrase(ca_passphrase_file, phrase)
        renewed = renewing.renew(
            renewing.Renewal(
                private_dir=private_dir,
                certs_dir=out_dir,
                names=names,
                authority=ca,
                email=email,
                extra_names=[parse_alternative_name(text) for text in san] or None,
                days=days,
            ),
            opening_authority(private_dir, phrase, talk),
            now=datetime.now(UTC),
            random_bytes=os.urandom,
        )
        for path in renewed.paths:
            talk.say(f"wrote {path}")
        for name, certificate in renewed.certificates.items():
            end = certificate.not_valid_after_utc
            identity = key_id(raw_public_key(certificate))
            talk.say(f"{name} ({identity}) is valid until {end:%Y-%m-%d}")
        for warning in renewed.warnings:
            talk.warn(warning)
