"""``srv --check``: find out what is wrong with the settings, without serving."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ._access import AccessOptions, answer_question
from ._identity import open_identity
from ._known import check_known_keys
from ._output import Talk, printable

if TYPE_CHECKING:
    from rpc25519_tools.config import Config


def check_server(
    config: "Config",
    access: AccessOptions,
    talk: Talk,
    *,
    serve: str | None,
    readfile: str | None,
    keep_back: Sequence[str],
    offer: str,
) -> None:
    """Check the settings of a server, or answer a question about its access file.

    Args:
        config: of the server.
        access: of the access file, with the question.
        talk: takes warnings.
        serve: the directory that is given out; None for none.
        readfile: the directory that is written to; None for none.
        keep_back: what is not served even there.
        offer: what is on offer, in a few words.

    Raises:
        SystemExit: with code 1; the answer is no.
        Rpc25519Error: a setting is wrong.
    """
    policy = access.open(config, talk)
    if access.question is not None:
        if not answer_question(access.question, policy, config):
            raise SystemExit(1)
        return
    for directory, mode in ((serve, os.R_OK), (readfile, os.W_OK)):
        if directory is not None:
            _check_directory(directory, mode, keep_back)
    check_known_keys(config, "client")
    open_identity(config, talk)  # last, since it may ask for a pass phrase
    rules = "no access file"
    if policy is not None and policy.rules is not None:
        rules = f"{len(policy.rules.rules)} rules in {printable(policy.path)}"
    click.echo(f"srv: the settings are fine ({offer}; {rules})")


def _check_directory(directory: str, mode: int, keep_back: Sequence[str]) -> None:
    from rpc25519_tools.errors import LocalFileError
    from rpc25519_tools.files.jail import Root

    Root(directory, keep_back=keep_back).close()
    if not os.access(directory, mode | os.X_OK):
        action = "write in" if mode == os.W_OK else "read"
        raise LocalFileError(f"cannot {action} {printable(directory)}: no permission")
