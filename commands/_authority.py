"""Where the authority is and how its key is opened: for all that selfy does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ._output import Talk
from ._passphrase import is_passphrase_given, passphrase_source

_F = TypeVar("_F", bound=Callable[..., Any])

CA_VARIABLE = "RPC25519_CA_PASSPHRASE"

# Without click's own check for readable paths: it also looks at defaults that are not
# used, and calls a permission problem a usage error.
_DIRECTORY = click.Path(file_okay=False, readable=False, path_type=Path)


def directory_options(command: _F) -> _F:
    """Add ``-o`` and ``-p``, as the arguments ``out_dir`` and ``private_dir``."""
    for option in (
        click.option(
            "-p",
            "--private-dir",
            type=_DIRECTORY,
            default=Path("my-keep-private-dir"),
            show_default=True,
            metavar="DIR",
            help="Where the authority and pre-shared keys are. Keep it to yourself.",
        ),
        click.option(
            "-o",
            "--out-dir",
            type=_DIRECTORY,
            default=Path("certs"),
            show_default=True,
            metavar="DIR",
            help="Where keys and certificates go.",
        ),
    ):
        command = option(command)
    return command


def ca_passphrase_option(command: _F) -> _F:
    """Add ``--ca-passphrase-file``, as the argument ``ca_passphrase_file``."""
    return click.option(
        "--ca-passphrase-file",
        type=click.Path(readable=False, allow_dash=True),
        metavar="PATH",
        help="Read the pass phrase of the authority's key from this file, if it is "
        f"another one; or set {CA_VARIABLE}.",
    )(command)


def given_authority_phrase(
    ca_passphrase_file: str | None, given: Callable[[], bytes] | None
) -> Callable[[], bytes] | None:
    """Return a source for the authority's pass phrase, if nobody has to be asked.

    Args:
        ca_passphrase_file: the value of ``--ca-passphrase-file``.
        given: what serves for all keys if the authority has none of its own.
    """
    if is_passphrase_given(ca_passphrase_file, CA_VARIABLE):
        return passphrase_source(ca_passphrase_file, variable=CA_VARIABLE)
    return given


def opening_authority(
    private_dir: Path, given: Callable[[], bytes] | None, talk: Talk
) -> Callable[[], bytes]:
    """Return a source that opens an existing authority's key, and says that it does."""
    what = f"the authority's key {private_dir / 'ca.key'}"
    source = given or passphrase_source(None, what=what)
    return saying(source, "opening the authority's key", talk)


def saying(source: Callable[[], bytes], text: str, talk: Talk) -> Callable[[], bytes]:
    """Return a source that says ``text`` when it has the pass phrase."""

    def get() -> bytes:
        phrase = source()
        talk.say(f"{text} (Argon2id, some seconds) ...")
        return phrase

    return get


def authority_path(private_dir: Path, out_dir: Path) -> Path:
    """Return the file of the authorities to check against."""
    path, copy = private_dir / "ca.crt", out_dir / "ca.crt"
    # Machines that hold keys only have nothing but the copy.
    return copy if not path.exists() and copy.exists() else path
