"""The access file of ``srv``: its options, and questions about it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ._options import NamedPath
from ._output import Talk, printable

if TYPE_CHECKING:
    from rpc25519_tools.config import Config
    from rpc25519_tools.identity.access import AccessRules, Right, Subject, Verdict
    from rpc25519_tools.identity.access_store import AccessFile

#: What a certificate's file name ends with; tells it from an e-mail.
_CERTIFICATE_SUFFIXES = (".crt", ".pem", ".cer", ".der")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessOptions:
    """What the command line says about who may do what.

    Attributes:
        path: the access file; None for none.
        check: only check the settings.
        question: who, right and target, as they were typed; None for no question.
    """

    path: str | None
    check: bool
    question: tuple[str, str, str] | None

    def open(self, config: "Config", talk: Talk) -> "AccessFile | None":
        """Read the access file; None where everybody may do everything.

        Raises:
            AccessFileError: it is broken, or others could have written it.
            LocalFileError: it cannot be read.
        """
        if self.path is None:
            return None
        from rpc25519_tools.identity.access_store import AccessFile

        access = AccessFile(self.path)
        if not _authenticates(config):
            talk.warn(
                "clients prove nothing: only rules for anyone allow them anything"
            )
        return access


def access_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--access``, ``--check``, ``--may``; the command gets AccessOptions."""

    @functools.wraps(command)
    def with_access(
        *args: Any,
        access_path: str | None,
        check: bool,
        question: tuple[str, str, str] | None,
        **kwargs: Any,
    ) -> None:
        access = AccessOptions(path=access_path, check=check, question=question)
        command(*args, access=access, **kwargs)

    for option in (
        click.option(
            "--may",
            "question",
            nargs=3,
            metavar="WHO RIGHT TARGET",
            help="Only say whether WHO (an e-mail, key:KEY, a certificate file, * or "
            "anyone) may read, write or list a path or call a service; exit code 0 or "
            "1.",
        ),
        click.option(
            "--check",
            is_flag=True,
            help="Only check keys, directories, known keys and the access file.",
        ),
        click.option(
            "--access",
            "access_path",
            metavar="PATH",
            type=NamedPath(readable=False),
            help="Allow only what this file allows (default: everything on offer, to "
            "every certificate of the authority).",
        ),
    ):
        with_access = option(with_access)
    return with_access


def answer_question(
    question: tuple[str, str, str], access: "AccessFile | None", config: "Config"
) -> bool:
    """Print whether somebody may do something, and why; return whether.

    Args:
        question: who, right and target, as they were typed.
        access: the access file, if there is one.
        config: of the server; says what clients have to prove.

    Raises:
        ConfigError: the question makes no sense.
        KeyFileError: the certificate that it names cannot be read.
    """
    from rpc25519_tools.errors import ConfigError, PeerNotTrustedError
    from rpc25519_tools.identity.access import RIGHTS
    from rpc25519_tools.identity.access_text import is_right, parse_target

    who, right, text = question
    if not is_right(right):
        raise ConfigError(f"unknown right {right!r}: there are {', '.join(RIGHTS)}")
    target = parse_target(right, text)
    try:
        subject = _subject(who, config)
    except PeerNotTrustedError as exc:
        allowed, reason = False, str(exc)
    else:
        rules = None if access is None else access.rules
        if access is not None and rules is None:
            allowed, reason = False, "the access file is of no use at the moment"
        else:
            allowed, reason = _answer(subject, right, target, rules, config)
    click.echo(f"{'yes' if allowed else 'no'}: {printable(reason)}")
    return allowed


def _answer(
    subject: "Subject",
    right: "Right",
    target: str,
    rules: "AccessRules | None",
    config: "Config",
) -> tuple[bool, str]:
    if _authenticates(config) and not subject.authenticated:
        return False, "clients need a certificate of the authority in ca.crt"
    if rules is None:
        return True, "there is no access file, and so everything on offer is allowed"
    verdict = rules.explain(subject, right, target)
    return verdict.allowed, _reason(verdict)


def _reason(verdict: "Verdict") -> str:
    from rpc25519_tools.identity.access_text import format_rule

    if verdict.rule is None:
        return "no line allows it"
    return f"line {verdict.rule.line}: {format_rule(verdict.rule)}"


def _authenticates(config: "Config") -> bool:
    """Tell whether clients must prove who they are, in TLS or behind the psk."""
    in_tls = config.uses_tls and config.verify_peer
    return in_tls or config.pre_shared_key_path is not None


def _subject(who: str, config: "Config") -> "Subject":
    """Return who a WHO of the command line is, to this server.

    Raises:
        ConfigError, KeyFileError: nobody, or a file that is no certificate.
        PeerNotTrustedError: somebody who would not be let in.
    """
    from rpc25519_tools.errors import ConfigError
    from rpc25519_tools.identity.access import NOBODY, Subject
    from rpc25519_tools.identity.access_text import parse_key

    is_email = "@" in who and "/" not in who
    if who.startswith("key:"):
        key = parse_key(who.removeprefix("key:"))
        if key is None:
            raise ConfigError(
                f"{who[:100]!r} is no key; selfy -v shows a certificate's"
            )
        subject = Subject(key=key)
    elif who == "anyone":
        subject = NOBODY
    elif who == "*":
        subject = Subject()
    elif is_email and not who.endswith(_CERTIFICATE_SUFFIXES):
        subject = Subject(emails=(who,))
    else:
        subject = _holder(who, config)
    return subject if _authenticates(config) else NOBODY


def _holder(path: str, config: "Config") -> "Subject":
    """Return who holds a certificate that the server would accept."""
    import os
    from datetime import UTC, datetime

    from rpc25519_tools.identity.access import Subject
    from rpc25519_tools.identity.certificate import Usage, verify_peer
    from rpc25519_tools.identity.store import load_authorities, load_certificate

    certificate = load_certificate(path)
    authorities = load_authorities(os.path.join(config.certs_dir, "ca.crt"))
    now = datetime.now(UTC)
    # The handshake behind a pre-shared key wants of both sides what servers have.
    usage: Usage = "client" if config.pre_shared_key_path is None else "server"
    return Subject.of(
        verify_peer(certificate, authorities, usage=usage, now=now, host_name=None)
    )
