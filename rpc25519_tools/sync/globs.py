r"""Translate rsync's wildcard patterns into regular expressions that cannot run away.

What a pattern means (rsync 3.5.0: its manual, "PATTERN MATCHING RULES", and for what
that leaves open the behaviour of its matcher):

- ``*`` is any run of bytes without a slash, ``**`` (or more stars) any run at all,
  ``?`` one byte but a slash, ``[...]`` one of a set, never a slash.
- A backslash takes the next byte as it is; at the very end it matches nothing.
- In a set: ``!`` or ``^`` in front negates; ``]`` first is a member; ``a-z`` is a
  range; ``[:alpha:]`` and the like are the POSIX classes, of ASCII. A set that is not
  closed and an unknown class match nothing at all.
- Neither a slash nor ``**`` in it: the last component of the path is matched. ``/``
  in front: the whole path. ``**`` in front: the whole path, with a slash put before
  it. Another ``**``: the rest of the path from any component on. Otherwise as many last
  components as the pattern has.
- ``***`` at the end: a directory's path is matched with a slash put behind it.

Python's matcher backtracks, and the obvious translation takes exponential time for
patterns that a hostile peer thinks of. Here every wildcard is settled once:

- After a ``*`` the first place where the bytes up to the next star fit is the best:
  whatever fits behind a later place fits behind the first. An atomic group says so.
- After a ``**`` that is not so, since a later ``*`` may not pass a slash. But it is so
  within each component, hence the components are tried one after the other. Once all
  up to the next ``**`` fits, nothing later is better.

So each ``*`` looks at each component once for each ``**``, and one match costs at most
about the product of the lengths of pattern and path.
"""

import re
import string
from dataclasses import dataclass
from typing import Final

_STAR: Final = b"*"
_STARS: Final = b"**"
_SLASH: Final = b"/"
_NO_SLASH: Final = b"[^/]"
_END: Final = rb"\Z"
_UP_TO: Final = b"[^/]*?"
_REST_OF_NAME: Final = rb"[^/]*+\Z"
#: From here to the start of a component of the path, the nearest one first.
_FROM_HERE: Final = b"(?:[^/]*+/)*?"
#: The same in a path that begins with a slash, from its beginning.
_FROM_ANY_COMPONENT: Final = b"(?:/[^/]*+)*?/"
_SLASH_OR_END: Final = rb"(?:/|\Z)"


def _members(text: str) -> frozenset[int]:
    return frozenset(text.encode("ascii"))


#: POSIX's classes in the C locale.
_CLASSES: Final = {
    b"alnum": _members(string.ascii_letters + string.digits),
    b"alpha": _members(string.ascii_letters),
    b"blank": _members(" \t"),
    b"cntrl": frozenset([*range(32), 127]),
    b"digit": _members(string.digits),
    b"graph": frozenset(range(33, 127)),
    b"lower": _members(string.ascii_lowercase),
    b"print": frozenset(range(32, 127)),
    b"punct": _members(string.punctuation),
    b"space": _members(" \t\n\v\f\r"),
    b"upper": _members(string.ascii_uppercase),
    b"xdigit": _members(string.hexdigits),
}


@dataclass(frozen=True, slots=True)
class Matcher:
    """A pattern as the source of a regular expression, to be used with ``match``.

    Attributes:
        source: it needs no flags, and holds no group that captures.
        name_only: it is for the last component of a path; otherwise for the whole path
            with a slash in front.
    """

    source: bytes
    name_only: bool


def has_wildcards(pattern: bytes) -> bool:
    """Tell whether a pattern is one to translate; others mean their own bytes."""
    return b"*" in pattern or b"?" in pattern or b"[" in pattern


def translate(pattern: bytes, *, is_dir: bool) -> Matcher | None:
    """Translate a pattern that has wildcards.

    Args:
        pattern: without the trailing slash of patterns for directories only.
        is_dir: whether the paths to be matched are those of directories.

    Returns:
        None if the pattern cannot match anything.
    """
    deep = _STARS in pattern
    name_only = not deep and _SLASH not in pattern
    rooted = pattern.startswith(_SLASH)
    atoms = _atoms(pattern[rooted:])
    if atoms is None:
        return None
    if rooted:
        start = _SLASH
    elif name_only or pattern.startswith(_STARS):
        start = b""
    elif deep or pattern.count(_SLASH) == atoms.count(_SLASH):
        start = _FROM_ANY_COMPONENT
    else:
        # A slash in a set counts as one more component, and matches nothing.
        return None
    if is_dir and pattern.endswith(b"***") and atoms[-2:-1] == [_SLASH]:
        atoms[-2] = _SLASH_OR_END
    return Matcher(_join(start, atoms), name_only)


def _atoms(glob: bytes) -> list[bytes] | None:
    """Part a pattern into the expressions of single bytes, and stars."""
    atoms = []
    at = 0
    while at < len(glob):
        char = glob[at : at + 1]
        at += 1
        if char == b"*":
            after = at
            while glob[after : after + 1] == b"*":
                after += 1
            atoms.append(_STAR if after == at else _STARS)
            at = after
        elif char == b"?":
            atoms.append(_NO_SLASH)
        elif char == b"[":
            found = _read_set(glob, at)
            if found is None:
                return None
            members, at = found
            if not members:
                return None
            atoms.append(_set_source(members))
        else:
            if char == b"\\":
                if at == len(glob):
                    return None
                char = glob[at : at + 1]
                at += 1
            atoms.append(re.escape(char))
    return atoms


def _read_set(glob: bytes, at: int) -> tuple[set[int], int] | None:
    """Read a set, from behind its ``[``; return it, and where its ``]`` ends.

    Returns:
        None if it is not closed, or names a class that there is not.
    """
    negated = glob[at : at + 1] in (b"!", b"^")
    at += negated
    first = at
    members: set[int] = set()
    low: int | None = None  # what a range could begin with
    while glob[at : at + 1] != b"]" or at == first:
        after_class = _class_end(glob, at)
        in_range = low is not None and _is_range(glob, at)
        if after_class and not in_range:
            named = _CLASSES.get(glob[at + 2 : after_class - 2])
            if named is None:
                return None
            members |= named
            low = None
            at = after_class
            continue
        at += in_range
        at += glob[at : at + 1] == b"\\"
        if at >= len(glob):
            return None
        char = glob[at]
        at += 1
        members.update(range(low if in_range and low is not None else char, char + 1))
        low = None if in_range else char
    if negated:
        members = set(range(256)) - members
    return members - {ord("/")}, at + 1


def _is_range(glob: bytes, at: int) -> bool:
    return glob[at : at + 1] == b"-" and glob[at + 1 : at + 2] not in (b"", b"]")


def _class_end(glob: bytes, at: int) -> int:
    """Return where the ``[:name:]`` that begins here ends; 0 if none begins here."""
    if not glob.startswith(b"[:", at):
        return 0
    end = glob.find(b"]", at + 2)
    return end + 1 if end > at + 2 and glob[end - 1] == ord(":") else 0


def _set_source(members: set[int]) -> bytes:
    """Write a set of bytes, which is not empty, in the syntax of ``re``."""
    ordered = sorted(members)
    source = []
    start = ordered[0]
    for this, following in zip(ordered, [*ordered[1:], 512], strict=True):
        if following == this + 1:
            continue
        source.append(b"\\x%02x" % start)
        if this != start:
            source.append(b"-\\x%02x" % this)
        start = following
    return b"[%s]" % b"".join(source)


def _join(start: bytes, atoms: list[bytes]) -> bytes:
    """Join the atoms so that each wildcard is settled once (see the module's text)."""
    groups: list[list[bytes]] = [[b""]]
    for atom in atoms:
        if atom is _STARS:
            groups.append([b""])
        elif atom is _STAR:
            groups[-1].append(b"")
        else:
            groups[-1][-1] += atom
    source = b""
    for number, group in enumerate(groups):
        is_last = number == len(groups) - 1
        if is_last and number and group == [b""]:
            break  # after a ** at the end of the pattern anything may come
        opening = _FROM_HERE if number else start
        body = opening + _join_group(group, after_stars=number > 0, is_last=is_last)
        source += b"(?>%s)" % body if body and not is_last else body
    return source


def _join_group(group: list[bytes], *, after_stars: bool, is_last: bool) -> bytes:
    """Join what stands between two ``**``, parted at each ``*``."""
    source = b""
    for number, part in enumerate(group):
        after_star = after_stars or number > 0
        if is_last and number == len(group) - 1:
            if not after_star:
                source += part + _END
            else:
                source += _UP_TO + part + _END if part else _REST_OF_NAME
        elif after_star:
            source += b"(?>%s%s)" % (_UP_TO, part)
        else:
            source += part
    return source
