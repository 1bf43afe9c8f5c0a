"""Run a regular expression as ``re`` does, and count the bytes it looks at.

A backtracking matcher for what the package's expressions use. Time depends on the
machine; the number of steps does not, so that a test can bound it.
"""

import importlib
from collections.abc import Callable
from typing import Any

# Untyped and private; a Python without it fails the tests and nothing else.
_parser: Any = importlib.import_module("re._parser")

_Rest = Callable[[int], bool]
_SINGLE = {"LITERAL", "NOT_LITERAL", "IN"}


class Steps:
    """Matches one expression at the beginning of one text.

    Attributes:
        count: the bytes looked at so far; more than ``limit`` fails the test.
    """

    def __init__(self, source: bytes, text: bytes, *, limit: int) -> None:
        self.count = 0
        self._limit = limit
        self._text = text
        self._nodes = list(_parser.parse(source))

    def match(self) -> bool:
        return self._run(self._nodes, 0, 0, lambda _: True)

    def _run(self, nodes: list[Any], number: int, at: int, rest: _Rest) -> bool:
        while number < len(nodes):
            op, value = nodes[number]
            name = str(op)
            number += 1
            if name in _SINGLE:
                if not self._fits(op, value, at):
                    return False
                at += 1
            elif name == "AT":
                assert str(value) == "AT_END_STRING"
                if at != len(self._text):
                    return False
            elif name in {"ATOMIC_GROUP", "POSSESSIVE_REPEAT"}:
                ended = self._atomic(name, value, at)
                if ended is None:
                    return False
                at = ended
            else:
                following = number

                def go_on(end: int, following: int = following) -> bool:
                    return self._run(nodes, following, end, rest)

                return self._fork(name, value, at, go_on)
        return rest(at)

    def _fits(self, op: Any, value: Any, at: int) -> bool:
        self.count += 1
        assert self.count <= self._limit, "too many steps"
        if at >= len(self._text):
            return False
        byte = self._text[at]
        match str(op):
            case "LITERAL":
                return bool(byte == value)
            case "NOT_LITERAL":
                return bool(byte != value)
            case _:
                return self._in_set(value, byte)

    def _in_set(self, items: list[Any], byte: int) -> bool:
        negated = str(items[0][0]) == "NEGATE"
        found = any(
            value[0] <= byte <= value[1] if str(op) == "RANGE" else byte == value
            for op, value in items[negated:]
        )
        return found != negated

    def _atomic(self, name: str, value: Any, at: int) -> int | None:
        if name == "POSSESSIVE_REPEAT":
            least, most, body = value
            assert (least, most) == (0, _parser.MAXREPEAT)
            op, value = self._only(body)
            while self._fits(op, value, at):
                at += 1
            return at
        ends = []

        def note(end: int) -> bool:
            ends.append(end)
            return True

        return ends[0] if self._run(list(value), 0, at, note) else None

    def _fork(self, name: str, value: Any, at: int, go_on: _Rest) -> bool:
        if name == "SUBPATTERN":
            assert value[0] is None, "a group that captures"
            return self._run(list(value[3]), 0, at, go_on)
        if name == "BRANCH":
            return any(self._run(list(way), 0, at, go_on) for way in value[1])
        assert name == "MIN_REPEAT", name
        least, most, body = value
        assert (least, most) == (0, _parser.MAXREPEAT)
        nodes = list(body)
        while not go_on(at):
            ended = self._atomic("ATOMIC_GROUP", nodes, at)
            if ended is None:
                return False
            assert ended > at
            at = ended
        return True

    def _only(self, body: Any) -> tuple[Any, Any]:
        ((op, value),) = list(body)
        assert str(op) in _SINGLE
        return op, value
