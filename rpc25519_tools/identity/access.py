"""Decides which identity may do what: rules, and what follows from them (sans-IO).

A rule says who may do what, and where: below a path of the served directory, or with
a service. Without a rule that allows something it is not allowed, and a rule that
denies wins over all that allow, whatever their order.

What allows and what denies are compared differently, so that no spelling gets round
either. A rule that **allows** holds for exactly the text it has: an e-mail, a path, a
name in another case is another one, and stays without rights. A rule that **denies**
holds for everything that could mean the same: case, Unicode forms, invisible
characters, and dots and spaces at the end do not count, since there are file systems
to which they do not matter.

Paths are compared component by component: ``/a`` covers ``/a/b`` and not ``/ab``.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

import msgspec

from rpc25519_tools.identity.certificate import PeerIdentity
from rpc25519_tools.identity.printable import quoted

#: What can be allowed. ``call`` is about services, the others are about paths.
Right = Literal["read", "write", "list", "call"]

RIGHTS: Final[tuple[Right, ...]] = ("read", "write", "list", "call")
PATH_RIGHTS: Final[tuple[Right, ...]] = ("read", "write", "list")

#: What a `Rule` can be about.
WhoKind = Literal["key", "email", "certified", "anyone"]

#: Characters that are ignorable by default (Unicode's DerivedCoreProperties.txt),
#: beside those of category Cf: joiners, fillers, variation selectors. ext4 and F2FS
#: ignore them in directories that ignore case.
_IGNORED: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0"
    "\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
#: What may stand round an address in an e-mail entry that holds more than one.
_BETWEEN_EMAILS: Final = re.compile(r"[\s,;<>]+")


class AccessPolicy(Protocol):
    """Says what peers may do.

    A server asks it at each call, on its event loop; syncs of directories ask it about
    each path, in worker threads.
    """

    def may(self, peer: PeerIdentity | None, right: Right, target: str) -> bool:
        """Tell whether a peer may do something now. Must not block.

        Only True allows; whatever else is returned or raised refuses.

        Args:
            peer: who proved to be there; None for who proved nothing (plain TCP, or a
                server that does not check its clients).
            right: ``read``, ``write``, ``list`` or ``call``.
            target: for ``call`` the service's name, ``Type.Method`` for net/rpc; else
                a path of the served directory, such as ``/reports/may.pdf``: it
                begins with a slash, and its components are neither empty nor ``.``
                nor ``..``. Bytes that are not UTF-8 are lone surrogates in it.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """Whom a rule is about.

    Attributes:
        kind: ``certified`` is any certificate of our authority, ``anyone`` is also
            who proved nothing.
        value: for ``key`` the 64 hex digits of the public key, in lower case; for
            ``email`` the whole entry of a certificate; else empty.
    """

    kind: WhoKind
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One line of an access file.

    Attributes:
        line: its number there, from 1.
        deny: whether it takes away instead of allowing.
        who: whom it is about.
        rights: what it is about; at least one.
        path: components of the path below which the path rights hold, ``()`` for
            everything; None where the rule is about services only.
        service: the name of the service that ``call`` is about, empty for all of
            them; None where the rule is about paths only.
    """

    line: int
    deny: bool
    who: Who
    rights: tuple[Right, ...]
    path: tuple[str, ...] | None
    service: str | None


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks.

    Attributes:
        authenticated: whether a certificate of our authority was shown.
        key: the 64 hex digits of its public key; empty for one that is not known.
        emails: its e-mail entries, as written.
    """

    authenticated: bool = True
    key: str = ""
    emails: tuple[str, ...] = ()

    @classmethod
    def of(cls, peer: PeerIdentity | None) -> "Subject":
        """Return the subject that a connection's peer is."""
        if peer is None:
            return NOBODY
        return cls(key=peer.public_key.hex(), emails=peer.emails)


#: Who proved nothing. Only rules for ``anyone`` allow anything to it.
NOBODY: Final = Subject(authenticated=False)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, and the rule that decided; None where no rule is about it."""

    allowed: bool
    rule: Rule | None


#: What a rule covers: all below a path, a service, or (None) all services.
_Covered: TypeAlias = tuple[str, ...] | str | None

#: Characters of a component of a path (a file system has no more, NAME_MAX), and of a
#: service. Comparing takes time, and whoever asks can choose what takes long.
MAX_NAME_LEN: Final = 255


class _Index:
    """Rules that allow, or those that deny, by whom and what they are about.

    What rules say is folded when they are read, and what is asked about once for each
    question: folding takes long.

    Args:
        rules: those of one kind, in any order.
        deny: whether they deny, and so hold for all that could mean the same.
    """

    def __init__(self, rules: Iterable[Rule], *, deny: bool) -> None:
        self._fold: Callable[[str], str] = fold if deny else str
        self._fold_service = _fold_service if deny else str
        self._names = _denied_as if deny else _allowed_as
        self._rules: dict[tuple[WhoKind, str, Right], dict[_Covered, Rule]] = {}
        #: Components of the longest path of a rule.
        self._deepest = 0
        for rule in sorted(rules, key=lambda rule: rule.line):
            value = rule.who.value
            if rule.who.kind == "email":
                value = self._fold(value)
            path = None if rule.path is None else tuple(map(self._fold, rule.path))
            self._deepest = max(self._deepest, len(path or ()))
            service = rule.service and self._fold_service(rule.service)
            for right in rule.rights:
                if (rule.service if right == "call" else rule.path) is None:
                    continue
                covered = self._rules.setdefault((rule.who.kind, value, right), {})
                covered.setdefault((service or None) if right == "call" else path, rule)

    def first(
        self,
        subject: Subject,
        right: Right,
        path: tuple[str, ...] | None,
        service: str,
    ) -> Rule | None:
        """Return the rule that covers the target and stands first in its file.

        Args:
            subject: who asks.
            right: what for.
            path: the target's components; None where it is a service.
            service: its name.
        """
        if not self._rules:
            return None
        places = self._places(path, service)
        found = [
            covered[place]
            for kind, value in self._names(subject)
            if (covered := self._rules.get((kind, value, right)))
            for place in places
            if place in covered
        ]
        return min(found, key=lambda rule: rule.line, default=None)

    def _places(self, path: tuple[str, ...] | None, service: str) -> list[_Covered]:
        """Return all that a rule about the target can cover."""
        if path is None:
            return [None, self._fold_service(service)]
        head = tuple(map(self._fold, path[: self._deepest]))
        return [head[:count] for count in range(len(head) + 1)]


class AccessRules:
    """A set of rules; an `AccessPolicy`.

    Args:
        rules: in any order; where several of a kind decide, the first one is named.
    """

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self.rules = tuple(rules)
        self._allow = _Index((one for one in rules if not one.deny), deny=False)
        self._deny = _Index((one for one in rules if one.deny), deny=True)

    def may(self, peer: PeerIdentity | None, right: Right, target: str) -> bool:
        """Tell whether a peer may do something; see `AccessPolicy`."""
        return self.decide(Subject.of(peer), right, target)

    def decide(self, subject: Subject, right: Right, target: str) -> bool:
        """Tell whether a subject may do something."""
        return self.explain(subject, right, target).allowed

    def explain(self, subject: Subject, right: Right, target: str) -> Verdict:
        """Tell whether a subject may do something, and which rule decided.

        A target that is no plain path, an empty name, or a name of more than
        MAX_NAME_LEN characters is never allowed.
        """
        path = None if right == "call" else split_path(target)
        if path is None and (right != "call" or not target):
            return Verdict(allowed=False, rule=None)
        names = (target,) if path is None else path
        if any(len(name) > MAX_NAME_LEN for name in names):
            return Verdict(allowed=False, rule=None)
        denied = self._deny.first(subject, right, path, target)
        if denied is not None:
            return Verdict(allowed=False, rule=denied)
        rule = self._allow.first(subject, right, path, target)
        return Verdict(allowed=rule is not None, rule=rule)


def _allowed_as(subject: Subject) -> Iterator[tuple[WhoKind, str]]:
    """Return what a subject is to rules that allow."""
    yield "anyone", ""
    if subject.authenticated:
        yield "certified", ""
        yield "key", subject.key
        for email in subject.emails:
            yield "email", email


def _denied_as(subject: Subject) -> Iterator[tuple[WhoKind, str]]:
    """Return what a subject is to rules that deny.

    What is denied to every certificate is denied to who has none, too. An entry that
    holds several addresses, as selfy's ``-e`` can write it, is each of them.
    """
    yield "anyone", ""
    yield "certified", ""
    if subject.authenticated:
        yield "key", subject.key
        for entry in subject.emails:
            for email in {entry, *_BETWEEN_EMAILS.split(entry)}:
                yield "email", fold(email)


def _fold_service(name: str) -> str:
    # One method has two names: ``Type.sleep_milli`` and ``Type.SleepMilli``. Something
    # stays of each name: nothing would stand for all services.
    return fold(name).replace("_", "") or "_"


def fold(text: str) -> str:
    """Return the form in which texts that could mean the same are equal.

    File systems differ in what they take for one name: upper and lower case (macOS,
    Windows, FAT), the forms of Unicode and invisible characters (HFS+, ext4), dots and
    spaces at the end (FAT). All of that goes. Short names of FAT (``SECRET~1``) are
    beyond this.
    """
    if text.isascii():
        return text.lower().rstrip(". ")
    text = unicodedata.normalize("NFKD", _without_unseen(text)).casefold()
    text = _without_unseen(unicodedata.normalize("NFKD", text))
    # Marks that something unseen stood between have an order of their own.
    return unicodedata.normalize("NFKD", text).rstrip(". ")


def _without_unseen(text: str) -> str:
    """Leave out what is not shown by itself, and what some file systems ignore."""
    unseen = {
        ord(char)
        for char in set(text)
        if unicodedata.category(char) == "Cf" or _IGNORED.match(char)
    }
    return text.translate(dict.fromkeys(unseen)) if unseen else text


def split_path(target: str) -> tuple[str, ...] | None:
    """Return the components of a path such as ``/a/b``; None if it is no plain path.

    ``/`` alone has none.
    """
    if target == "/":
        return ()
    if not target.startswith("/") or "\0" in target:
        return None
    parts = tuple(target[1:].split("/"))
    return None if {"", ".", ".."} & set(parts) else parts


def refusal(right: Right, target: str) -> str:
    """Return the line that a caller gets: what it asked for, and not a word more."""
    return f"not allowed: {right} {quoted(target)}"
