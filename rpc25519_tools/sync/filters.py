"""Decide which paths of a tree take part, by rsync's include and exclude rules.

The rules are those of ``--include``, ``--exclude``, ``--include-from`` and
``--exclude-from`` (rsync 3.5.0: its manual, "FILTER RULES"); of the prefixes that its
``--filter`` knows only ``+`` and ``-``. The first rule that matches a path decides, and
what no rule matches is included. A pattern that ends in a slash is for directories.
What a pattern with wildcards matches is told in :mod:`rpc25519_tools.sync.globs`; one
without is compared byte by byte: with the whole path if a slash leads, otherwise with
so many last components as the pattern has.

A rule is asked about each path by itself: that everything below an excluded directory
is excluded too is the doing of the walk, which does not go into it.

Rules come from files and from peers, so their number and length are bounded, and what
one decision costs is, too.
"""

import enum
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Final, Literal

import msgspec

from rpc25519_tools.errors import ConfigError
from rpc25519_tools.identity.printable import quoted
from rpc25519_tools.sync.globs import has_wildcards, translate

MAX_RULES: Final = 10_000
#: rsync's own limit (its MAXPATHLEN less one); it skips a longer one, we refuse it.
MAX_PATTERN_LEN: Final = 4095
MAX_PATTERNS_LEN: Final = 1 << 20  # of all rules together
#: Of all patterns with wildcards together, but for those like ``*.o``: a decision may
#: look at all of them for each byte of the path, while the others cost a look into a
#: table. The worst that is known takes 0.1 s, in which no other thread runs.
MAX_WILDCARDS_LEN: Final = 8 << 10
MAX_FILE_LEN: Final = 4 << 20  # comments included

_LONG_SOURCE_LEN: Final = 16 << 10
_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
#: A star and then only bytes that mean themselves.
_NAME_END: Final = re.compile(rb"\*[^][*?/\\]*")
_SLASH: Final = b"/"


class Rule(msgspec.Struct, frozen=True):
    """One rule, as it may travel on the wire; :class:`FilterRules` checks it.

    Attributes:
        include: what to do with a path that matches.
        pattern: not empty, without NUL, of at most ``MAX_PATTERN_LEN`` bytes.
    """

    include: bool
    pattern: bytes


class Clear(enum.Enum):
    """What a ``!`` among the rules means: forget all that stand before it."""

    CLEAR = "!"


Parsed = Rule | Literal[Clear.CLEAR]
_Seek = Callable[[bytes], re.Match[bytes] | None]


def rule_from_option(text: bytes, *, include: bool) -> Parsed | None:
    """Parse the value of one ``--include`` (``include`` is True) or ``--exclude``.

    A prefix ``"+ "`` or ``"- "`` overrides ``include``. White space is never removed.

    Returns:
        None if the text is empty, which means nothing.

    Raises:
        ConfigError: nothing follows the prefix, or the pattern is no valid one.
    """
    if not text:
        return None
    if text == b"!":
        return Clear.CLEAR
    if text.startswith((b"+ ", b"- ")):
        include = text.startswith(b"+")
        text = text[2:]
    _check_pattern(text)
    return Rule(include, text)


def rules_from_file(data: bytes, *, include: bool) -> list[Parsed]:
    """Parse the content of a file for ``--include-from`` or ``--exclude-from``.

    A line (up to LF, CR or both) is what an option's value is. Empty lines and those
    that begin with ``#`` or ``;`` are skipped.

    Raises:
        ConfigError: the file is too long, or a line is no valid rule; the text tells
            the line's number, and the caller has to put the file's name before it.
    """
    if len(data) > MAX_FILE_LEN:
        raise ConfigError(f"rules of more than {MAX_FILE_LEN} bytes")
    parsed: list[Parsed] = []
    for number, line in enumerate(_LINE_END.split(data), 1):
        if line.startswith((b"#", b";")):
            continue
        try:
            rule = rule_from_option(line, include=include)
        except ConfigError as exc:
            raise ConfigError(f"line {number}: {exc}") from exc
        if rule is not None:
            parsed.append(rule)
            if len(parsed) > MAX_RULES:
                raise ConfigError(f"line {number}: more than {MAX_RULES} rules")
    return parsed


def parse_rules(parsed: Iterable[Parsed | None]) -> tuple[Rule, ...]:
    """Put together what options and files gave, in the order of the command line.

    Returns:
        the rules in effect: those behind the last :attr:`Clear.CLEAR`. Their number is
        not checked yet.
    """
    rules: list[Rule] = []
    for item in parsed:
        if item is Clear.CLEAR:
            rules.clear()
        elif item is not None:
            rules.append(item)
    return tuple(rules)


class FilterRules:
    """A list of rules that has been checked and made ready to be asked.

    Raises:
        ConfigError: there are too many rules, or one is not valid.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        _check_rules(rules)
        self._for_files = self._for_dirs = _runs_of(rules, is_dir=False)
        if any(rule.pattern.endswith((_SLASH, b"***")) for rule in rules):
            self._for_dirs = _runs_of(rules, is_dir=True)

    def decide(self, path: bytes, *, is_dir: bool) -> bool:
        """Tell whether a path is included.

        Args:
            path: relative to the root of the transfer, without a slash at either end.
                The root itself is not to be asked about; nothing excludes it.
            is_dir: whether it is a directory; a link to one is none.
        """
        runs = self._for_dirs if is_dir else self._for_files
        if not runs:
            return True
        rooted = _SLASH + path
        name = rooted[rooted.rindex(_SLASH) + 1 :]
        for run in runs:
            if run.matches(rooted, name):
                return run.include
        return True


def _check_rules(rules: Sequence[Rule]) -> None:
    if len(rules) > MAX_RULES:
        raise ConfigError(f"{len(rules)} filter rules; at most {MAX_RULES} are allowed")
    total_len = wildcards_len = 0
    for rule in rules:
        _check_pattern(rule.pattern)
        total_len += len(rule.pattern)
        if has_wildcards(rule.pattern) and not _NAME_END.fullmatch(rule.pattern):
            wildcards_len += len(rule.pattern)
    if total_len > MAX_PATTERNS_LEN:
        raise ConfigError(f"filter rules of more than {MAX_PATTERNS_LEN} bytes")
    if wildcards_len > MAX_WILDCARDS_LEN:
        raise ConfigError(
            f"filter rules with wildcards of more than {MAX_WILDCARDS_LEN} bytes"
        )


def _check_pattern(pattern: bytes) -> None:
    if not pattern:
        raise ConfigError("a filter rule without a pattern")
    if len(pattern) > MAX_PATTERN_LEN:
        raise ConfigError(
            f"a filter rule of {len(pattern)} bytes; at most {MAX_PATTERN_LEN}"
        )
    if b"\0" in pattern:
        shown = quoted(pattern.decode("utf-8", "surrogateescape"))
        raise ConfigError(f"a filter rule with a NUL byte: {shown}")


class _Run:
    """Neighbouring rules of one kind, hence in any order: all include or all exclude.

    Patterns without wildcards are looked up in sets, those like ``*.o`` are compared
    with a name's end, and the others joined to one expression for names and one for
    paths.
    """

    __slots__ = (
        "_depth",
        "_ends",
        "_names",
        "_paths",
        "_seek_name",
        "_seek_path",
        "include",
    )

    def __init__(
        self, patterns: Iterable[bytes], *, include: bool, is_dir: bool
    ) -> None:
        self.include = include
        self._names: set[bytes] = set()
        self._paths: set[bytes] = set()  # they begin with a slash, if they are whole
        self._depth = 0  # the most slashes within a part of a path to look up
        ends: list[bytes] = []
        sources: dict[bool, list[bytes]] = {True: [], False: []}
        for pattern in patterns:
            if _NAME_END.fullmatch(pattern):
                ends.append(pattern[1:])
            elif has_wildcards(pattern):
                matcher = translate(pattern, is_dir=is_dir)
                if matcher is not None:
                    sources[matcher.name_only].append(matcher.source)
            elif _SLASH in pattern:
                self._paths.add(pattern)
                if not pattern.startswith(_SLASH):
                    self._depth = max(self._depth, pattern.count(_SLASH))
            else:
                self._names.add(pattern)
        self._ends = tuple(ends)
        self._seek_name = _joined(sources[True])
        self._seek_path = _joined(sources[False])

    def matches(self, rooted: bytes, name: bytes) -> bool:
        """Tell whether one of the rules matches.

        Args:
            rooted: the path, with a slash in front.
            name: its last component.
        """
        return bool(
            name in self._names
            or name.endswith(self._ends)
            or (self._paths and self._has_path(rooted))
            or (self._seek_name and self._seek_name(name))
            or (self._seek_path and self._seek_path(rooted))
        )

    def _has_path(self, rooted: bytes) -> bool:
        if rooted in self._paths:
            return True
        at = rooted.rindex(_SLASH)
        for _ in range(self._depth):
            at = rooted.rfind(_SLASH, 0, at)
            if at < 0:
                return False
            if rooted[at + 1 :] in self._paths:
                return True
        return False


def _joined(sources: list[bytes]) -> _Seek | None:
    if not sources:
        return None
    source = b"|".join(sources)
    seek = re.compile(source).match
    if len(source) > _LONG_SOURCE_LEN:
        re.purge()  # it would keep hundreds of such, of many peers
    return seek


def _runs_of(rules: Sequence[Rule], *, is_dir: bool) -> list[_Run]:
    """Group the rules that apply to directories, or to anything else."""
    runs = []
    for include, group in groupby(rules, key=lambda rule: rule.include):
        patterns = []
        for rule in group:
            pattern = rule.pattern
            if len(pattern) > 1 and pattern.endswith(_SLASH):
                if not is_dir:
                    continue
                pattern = pattern[:-1]
            patterns.append(pattern)
        runs.append(_Run(patterns, include=include, is_dir=is_dir))
    while runs and runs[-1].include:
        runs.pop()  # what nothing matches is included anyway
    return runs
