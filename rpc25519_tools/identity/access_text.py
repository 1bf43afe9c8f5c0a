r"""Reads and writes the text of access files (sans-IO).

One rule per line; ``docs/access.md`` has it for people::

    line   = ["deny"] who [right ... target] ["#" comment]
    who    = e-mail | "key:" (base58check | hex) | "*" | "anyone"
    right  = "read" | "write" | "list" | "call"
    target = path | service | "*"

A word with spaces or special characters stands in double quotes, in which ``\\``,
``\"`` and ``\xNN`` (one byte) are escapes. A quoted word is never a keyword or ``*``.

Whoever reads while another program writes may see the beginning of a file only. So
that no beginning ever grants more than the whole, the lines that deny must come first,
and the last line must have its line end.
"""

import re
from dataclasses import dataclass
from typing import Final, TypeGuard

import base58

from rpc25519_tools.errors import AccessFileError
from rpc25519_tools.identity.access import (
    PATH_RIGHTS,
    RIGHTS,
    AccessRules,
    Right,
    Rule,
    Who,
    split_path,
)
from rpc25519_tools.identity.certificate import key_id
from rpc25519_tools.identity.describe import IDENTITY_PREFIX
from rpc25519_tools.identity.printable import quoted

#: Bytes of an access file, and rules in it. A file is read on the event loop when it
#: has changed; so many lines take less than 100 ms, and usual ones a hundredth.
MAX_FILE_LEN: Final = 256 * 1024
MAX_RULES: Final = 4096
_MAX_PATH_LEN: Final = 4096  # PATH_MAX of Linux, as for names from the wire

_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"(?=[ \t]|\Z)')
_PLAIN: Final = re.compile(r'[^ \t"\\]+(?=[ \t]|\Z)')
_BLANK: Final = re.compile(r"[ \t]*")
_PIECE: Final = re.compile(r'\\x([0-9a-fA-F]{2})|\\(["\\])|([^\\]+)')
_HEX_KEY: Final = re.compile(r"[0-9a-fA-F]{64}")
_KEY_ID_LEN: Final = 51
_PATTERN_CHARS: Final = frozenset("*?[")
_KEYWORDS: Final = frozenset({"deny", "anyone", *RIGHTS})


@dataclass(frozen=True, slots=True)
class _Word:
    """A word of a line; a quoted one is only ever itself."""

    text: str
    quoted: bool

    def is_keyword(self, keyword: str) -> bool:
        return not self.quoted and self.text == keyword


class _SyntaxError(Exception):
    """What is wrong with a line."""


def parse_access_file(content: bytes) -> AccessRules:
    """Read the text of an access file.

    Args:
        content: the whole file, UTF-8; an empty one allows nothing.

    Raises:
        AccessFileError: it is too long, or a line is not as it should be; the text
            and the attribute name the first such line.
    """
    if len(content) > MAX_FILE_LEN:
        raise AccessFileError(f"longer than {MAX_FILE_LEN} bytes")
    rules: list[Rule] = []
    *lines, rest = content.split(b"\n")
    if rest:
        number = len(lines) + 1
        raise AccessFileError(
            f"line {number}: it has no line end; the file may not be complete",
            line=number,
        )
    for number, line in enumerate(lines, start=1):
        try:
            rule = _parse_line(line, number)
            if rule is None:
                continue
            if rule.deny and rules and not rules[-1].deny:
                raise _SyntaxError(
                    "lines that deny come first, before those that allow"
                )
            if len(rules) == MAX_RULES:
                raise _SyntaxError(f"more than {MAX_RULES} rules")
        except _SyntaxError as exc:
            raise AccessFileError(f"line {number}: {exc}", line=number) from exc
        rules.append(rule)
    return AccessRules(rules)


def _parse_line(line: bytes, number: int) -> Rule | None:
    try:
        text = line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as exc:
        raise _SyntaxError("not UTF-8 (write other bytes as \\xNN in quotes)") from exc
    words = _words(text)
    if not words:
        return None
    deny = words[0].is_keyword("deny")
    if deny:
        del words[0]
    if not words:
        raise _SyntaxError("deny needs to know whom: an e-mail, key:..., * or anyone")
    who = _parse_who(words.pop(0))
    if deny and not words:
        return Rule(line=number, deny=True, who=who, rights=RIGHTS, path=(), service="")
    rights = _parse_rights(words)
    if len(words) != 1:
        raise _SyntaxError(_wrong_target_count(rights, words))
    path: tuple[str, ...] | None = None
    service: str | None = None
    if "call" in rights:
        service = _parse_service(words[0])
    else:
        path = _parse_path(words[0])
    return Rule(
        line=number, deny=deny, who=who, rights=rights, path=path, service=service
    )


def _words(line: str) -> list[_Word]:
    """Split a line into words, up to its comment."""
    words = []
    position = _end_of_blank(line, 0)
    while position < len(line) and line[position] != "#":
        if match := _QUOTED.match(line, position):
            words.append(_Word(_unescape(match[1]), quoted=True))
        elif match := _PLAIN.match(line, position):
            words.append(_Word(match[0], quoted=False))
            _require_printable(match[0])
        else:
            raise _SyntaxError(
                'a quote or backslash inside a word; write "..." round the whole word, '
                'and in it \\" and \\\\'
            )
        position = _end_of_blank(line, match.end())
    return words


def _end_of_blank(line: str, position: int) -> int:
    match = _BLANK.match(line, position)
    assert match is not None
    return match.end()


def _require_printable(text: str) -> None:
    if not text.isprintable():
        raise _SyntaxError(
            f"an invisible character in {quoted(text)} (write it as \\xNN in quotes)"
        )


def _unescape(text: str) -> str:
    _require_printable(text)
    raw, position = bytearray(), 0
    while position < len(text):
        match = _PIECE.match(text, position)
        if match is None:
            raise _SyntaxError('an unknown escape; there are \\", \\\\ and \\xNN')
        byte, char, plain = match.groups()
        raw += bytes.fromhex(byte) if byte else (char or plain).encode()
        position = match.end()
    return raw.decode("utf-8", "surrogateescape")


def _parse_who(word: _Word) -> Who:
    text = word.text
    if not word.quoted:
        if text == "*":
            return Who(kind="certified")
        if text == "anyone":
            return Who(kind="anyone")
        if text.startswith(IDENTITY_PREFIX):
            raise _SyntaxError(f"write key: and the {_KEY_ID_LEN} characters behind it")
        if text.startswith("key:"):
            key = parse_key(text.removeprefix("key:"))
            if key is None:
                raise _SyntaxError(
                    f"{quoted(text)} is no key: it has {_KEY_ID_LEN} characters of "
                    "base58 or 64 hex digits, as selfy -v shows them"
                )
            return Who(kind="key", value=key)
    if "@" not in text[1:-1]:
        raise _SyntaxError(
            f"{quoted(text)} is nobody: write an e-mail, key:..., * or anyone"
        )
    if not text.isascii():
        raise _SyntaxError(f"{quoted(text)}: e-mails in certificates are ASCII")
    if not word.quoted and "*" in text:
        raise _SyntaxError(
            f"{quoted(text)}: there are no patterns; * alone is everyone"
        )
    return Who(kind="email", value=text)


def parse_key(text: str) -> str | None:
    """Return the 64 hex digits of a public key; None if the text is none.

    Args:
        text: hex in any case, or 51 characters of base58check (SECURITY-WIRE 4).
    """
    if _HEX_KEY.fullmatch(text):
        return text.lower()
    if len(text) != _KEY_ID_LEN or not text.isascii():
        return None
    try:
        raw = base58.b58decode_check(text)
    except ValueError:
        return None
    key = raw[1:]
    return key.hex() if key_id(key) == text else None


def is_right(text: str) -> TypeGuard[Right]:
    """Tell whether a text is the name of a right."""
    return text in RIGHTS


def _parse_rights(words: list[_Word]) -> tuple[Right, ...]:
    """Take the rights off the front of the words."""
    rights: list[Right] = []
    while words and not words[0].quoted and is_right(words[0].text):
        right = words.pop(0).text
        assert is_right(right)
        if right in rights:
            raise _SyntaxError(f"{right} stands there twice")
        rights.append(right)
    if not rights:
        known = ", ".join(RIGHTS)
        if words:
            raise _SyntaxError(
                f"unknown right {quoted(words[0].text)}: there are {known}, with "
                "spaces between them"
            )
        raise _SyntaxError(f"nothing is said about what may be done: {known}")
    if "call" in rights and len(rights) > 1:
        raise _SyntaxError(
            "call needs a line of its own: it is about a service, the others are about "
            "a path"
        )
    return tuple(rights)


def _wrong_target_count(rights: tuple[Right, ...], words: list[_Word]) -> str:
    what = "service" if "call" in rights else "path"
    if words:
        return f'one {what} for each line (a name with spaces stands in "...")'
    example = "call customEcho, or call *" if what == "service" else f"{rights[0]} /"
    return f"the {what} is missing, such as in: {example}"


def _parse_path(word: _Word) -> tuple[str, ...]:
    text = word.text
    if not text.startswith("/"):
        raise _SyntaxError(
            f"{quoted(text)} is no path: it begins with /, the served directory"
        )
    if not word.quoted and _PATTERN_CHARS & set(text):
        raise _SyntaxError(
            f"{quoted(text)}: there are no patterns; a path covers all that is below "
            'it (a name with such a character stands in "...")'
        )
    if len(text.encode("utf-8", "surrogateescape")) > _MAX_PATH_LEN:
        raise _SyntaxError(f"{quoted(text)} has over {_MAX_PATH_LEN} bytes")
    # One slash at the end is how people write directories.
    path = split_path(text if text in ("/", "//") else text.removesuffix("/"))
    if path is None:
        raise _SyntaxError(
            f"{quoted(text)} has an empty, '.' or '..' component, or a NUL byte"
        )
    return path


def _parse_service(word: _Word) -> str:
    text = word.text
    if not word.quoted:
        if text == "*":
            return ""
        if text.startswith("/"):
            raise _SyntaxError(f"call needs a service, and {quoted(text)} is a path")
        if _PATTERN_CHARS & set(text):
            raise _SyntaxError(
                f"{quoted(text)}: there are no patterns; * alone is every service"
            )
    if not text:
        raise _SyntaxError("a service has a name")
    return text


def parse_target(right: Right, text: str) -> str:
    """Return what somebody asks about, in the form that an `AccessPolicy` takes.

    Args:
        right: what it is about.
        text: a service's name, or a path; the slash at its front may be missing.

    Raises:
        AccessFileError: it is no plain path, or no name.
    """
    if right == "call":
        if not text:
            raise AccessFileError("a service has a name")
        return text
    target = "/" + text.removeprefix("/")
    if split_path(target) is None:
        raise AccessFileError(
            f"{quoted(text)} has an empty, '.' or '..' component, or a NUL byte"
        )
    return target


def format_rule(rule: Rule) -> str:
    """Return the line, without its end, that says what a rule says."""
    words = ["deny"] if rule.deny else []
    words.append(_format_who(rule.who))
    if rule.path is None:
        assert rule.service is not None
        words += ["call", _format_service(rule.service)]
    elif rule.service is None:
        words += [right for right in PATH_RIGHTS if right in rule.rights]
        words.append(_format_word("/" + "/".join(rule.path)))
    return " ".join(words)


def _format_who(who: Who) -> str:
    match who.kind:
        case "key":
            return f"key:{key_id(bytes.fromhex(who.value))}"
        case "email":
            return _format_word(who.value)
        case "certified":
            return "*"
        case "anyone":
            return "anyone"


def _format_service(name: str) -> str:
    if not name:
        return "*"
    return _quote(name) if name.startswith("/") else _format_word(name)


def _format_word(text: str) -> str:
    special = _PATTERN_CHARS | set(' "\\')
    if (
        text.isprintable()
        and not special & set(text)
        and text not in _KEYWORDS
        and not text.startswith(("#", "key:", IDENTITY_PREFIX))
        and text
    ):
        return text
    return _quote(text)


def _quote(text: str) -> str:
    return '"' + "".join(map(_escape, text)) + '"'


def _escape(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if char.isprintable():
        return char
    raw = char.encode("utf-8", "surrogateescape")
    return "".join(f"\\x{byte:02x}" for byte in raw)
