r"""Rsync's filter rules once more, for tests: as plainly as they can be said, and slow.

Nothing here is shared with the package. A pattern is parted into tokens, and a table
tells which tokens can end at which byte.
"""

import string
from collections.abc import Callable, Sequence

from rpc25519_tools.sync.filters import Rule

_Token = Callable[[int], bool] | int  # which byte it matches; or so many stars
_SLASH = ord("/")
_POSIX = {
    "alnum": string.ascii_letters + string.digits,
    "alpha": string.ascii_letters,
    "blank": " \t",
    "cntrl": "".join(map(chr, [*range(32), 127])),
    "digit": string.digits,
    "graph": string.ascii_letters + string.digits + string.punctuation,
    "lower": string.ascii_lowercase,
    "print": string.ascii_letters + string.digits + string.punctuation + " ",
    "punct": string.punctuation,
    "space": string.whitespace,
    "upper": string.ascii_uppercase,
    "xdigit": string.hexdigits,
}


def decide(rules: Sequence[Rule], path: bytes, *, is_dir: bool) -> bool:
    for rule in rules:
        if matches(rule.pattern, path, is_dir=is_dir):
            return rule.include
    return True


def matches(pattern: bytes, path: bytes, *, is_dir: bool) -> bool:
    if len(pattern) > 1 and pattern.endswith(b"/"):
        if not is_dir:
            return False
        pattern = pattern[:-1]
    if not any(wildcard in pattern for wildcard in b"*?["):
        tokens: list[_Token] | None = [_exactly(byte) for byte in pattern.lstrip(b"/")]
        if pattern.startswith(b"//"):
            return False
    else:
        tokens = _tokens(pattern[1:] if pattern.startswith(b"/") else pattern)
    if tokens is None:
        return False
    end = b"/" if is_dir and pattern.endswith(b"***") else b""
    return any(_fits(tokens, text + end) for text in _texts(pattern, path))


def _texts(pattern: bytes, path: bytes) -> list[bytes]:
    """What of a path a pattern is to match as a whole: one of these."""
    parts = path.split(b"/")
    if pattern.startswith(b"/"):
        return [path]
    if pattern.startswith(b"**"):
        return [b"/" + path]
    if b"**" in pattern:
        return [b"/".join(parts[number:]) for number in range(len(parts))]
    count = pattern.count(b"/") + 1
    return [b"/".join(parts[-count:])] if count <= len(parts) else []


def _exactly(wanted: int) -> Callable[[int], bool]:
    return lambda byte: byte == wanted


def _tokens(pattern: bytes) -> list[_Token] | None:
    tokens: list[_Token] = []
    rest = pattern
    while rest:
        if rest.startswith(b"*"):
            after = rest.lstrip(b"*")
            tokens.append(len(rest) - len(after))
            rest = after
        elif rest.startswith(b"?"):
            tokens.append(lambda byte: byte != _SLASH)
            rest = rest[1:]
        elif rest.startswith(b"["):
            found = _set(rest[1:])
            if found is None:
                return None
            token, rest = found
            tokens.append(token)
        elif rest == b"\\":
            return None
        else:
            rest = rest.removeprefix(b"\\")
            tokens.append(_exactly(rest[0]))
            rest = rest[1:]
    return tokens


def _set(rest: bytes) -> tuple[Callable[[int], bool], bytes] | None:
    negated = rest[:1] in (b"!", b"^")
    rest = rest[negated:]
    allowed = [False] * 256
    last = 0
    start = len(rest)
    while not (rest.startswith(b"]") and len(rest) < start):
        if not rest:
            return None
        posix = rest[2:].partition(b"]")[0]
        if last and rest.startswith(b"-") and len(rest) > 1 and rest[1:2] != b"]":
            rest = rest[1:].removeprefix(b"\\") if rest[1:2] == b"\\" else rest[1:]
            if not rest:
                return None
            for byte in range(last, rest[0] + 1):
                allowed[byte] = True
            last, rest = 0, rest[1:]
        elif rest.startswith(b"[:") and b"]" in rest[2:] and posix.endswith(b":"):
            name = posix[:-1].decode("latin-1")
            if name not in _POSIX:
                return None
            for char in _POSIX[name]:
                allowed[ord(char)] = True
            last, rest = 0, rest[len(posix) + 3 :]
        else:
            if rest.startswith(b"\\"):
                rest = rest[1:]
                if not rest:
                    return None
            allowed[rest[0]] = True
            last, rest = rest[0], rest[1:]
    return (lambda byte: byte != _SLASH and allowed[byte] != negated), rest[1:]


def _fits(tokens: list[_Token], text: bytes) -> bool:
    """Tell whether the tokens match all of the text."""
    reached = {0}  # after which numbers of bytes the tokens up to here can end
    for token in tokens:
        if isinstance(token, int):
            ends = set()
            for start in reached:
                for end in range(start, len(text) + 1):
                    ends.add(end)
                    if token == 1 and text[end : end + 1] == b"/":
                        break
            reached = ends
        else:
            reached = {
                end + 1 for end in reached if end < len(text) and token(text[end])
            }
    return len(text) in reached
