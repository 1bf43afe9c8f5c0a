"""Include and exclude rules: by the documentation, and by another matcher."""

import re

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import ConfigError
from rpc25519_tools.sync import filters
from rpc25519_tools.sync.filters import (
    Clear,
    FilterRules,
    Parsed,
    Rule,
    parse_rules,
    rule_from_option,
    rules_from_file,
)
from rpc25519_tools.sync.globs import translate
from tests.sync import simple_filter
from tests.sync.regex_steps import Steps


def excludes(pattern: bytes, path: bytes, *, is_dir: bool = False) -> bool:
    rules = FilterRules([Rule(False, pattern)])
    return not rules.decide(path, is_dir=is_dir)


#: Pattern, paths that it matches, paths that it does not; a slash at the end of a path
#: says that it is a directory.
TABLE: list[tuple[bytes, list[bytes], list[bytes]]] = [
    # The examples of the manual.
    (b"*.o", [b"a.o", b"x/y.o", b".o", b"dir.o/"], [b"a.oo", b"a.o/b", b"o"]),
    (b"/foo", [b"foo", b"foo/"], [b"a/foo", b"foo/foo", b"food"]),
    (b"foo/", [b"foo/", b"a/foo/"], [b"foo", b"a/foo", b"foo/a"]),
    (b"foo/bar", [b"foo/bar", b"a/foo/bar/"], [b"bar", b"foo", b"afoo/bar"]),
    (b"foo/*/bar", [b"foo/a/bar", b"x/foo/a/bar"], [b"foo/bar", b"foo/a/b/bar"]),
    (b"/foo/**/bar", [b"foo/a/bar", b"foo/a/b/bar"], [b"foo/bar", b"x/foo/a/bar"]),
    (b"/foo/**", [b"foo/a", b"foo/a/b/"], [b"foo/", b"x/foo/a"]),
    (b"/foo/bar/**", [b"foo/bar/a"], [b"foo/bar/", b"foo/a"]),
    (b"dir/***", [b"dir/", b"dir/a", b"x/dir/", b"dir/a/b"], [b"dir", b"adir/a"]),
    (b"dir/**", [b"dir/a", b"x/dir/a/b"], [b"dir/", b"dir"]),
    (b"*/", [b"a/", b"a/b/"], [b"a", b"a/b"]),
    (b"foo\\bar", [b"foo\\bar"], [b"foobar"]),
    (b"foo\\bar*", [b"foobar", b"foobarx"], [b"foo\\bar"]),
    (b"foo\\\\bar*", [b"foo\\bar", b"foo\\bars"], [b"foobar"]),
    # Stars and slashes.
    (b"**/foo", [b"foo", b"a/foo", b"a/b/foo/"], [b"a/xfoo", b"foo/a"]),
    (b"/**/foo", [b"a/foo"], [b"foo"]),
    (b"**foo", [b"foo", b"xfoo", b"a/xfoo"], [b"foo/a"]),
    (b"foo**", [b"foo", b"food/a/b", b"a/foo/b"], [b"afoo", b"a/bfoo"]),
    (b"a**b", [b"ab", b"a/b", b"x/ac/d/b"], [b"xab", b"a/bc"]),
    (b"a*b", [b"ab", b"x/acb"], [b"a/b"]),
    (b"a/*b", [b"a/b", b"x/a/cb"], [b"a/c/b", b"xa/b"]),
    (b"**a*b", [b"a/ab", b"ab/a/xaxb"], [b"a/b", b"ab/c"]),
    (b"**a/*b**c", [b"a/c/a/bc", b"xa/b/d/c"], [b"a/c/b/c"]),
    (b"*a*b*c", [b"abc", b"x/xaxbxc", b"aabbcc"], [b"acb", b"ab/c"]),
    (b"x**a*b/c", [b"xab/c", b"x/y/a/ab/c"], [b"xa/b/c", b"yx/ab/c"]),
    (b"?", [b"a", b"x/a", b"\xff"], [b"ab"]),
    (b"a?b", [b"acb", b"a\nb"], [b"a/b", b"ab"]),
    (b"/", [], [b"a", b"a/"]),
    (b"a//b", [], [b"a/b"]),
    (b"a//", [], [b"a/", b"a"]),
    (b"***", [b"a", b"a/b", b"a/"], []),
    (b"/***", [b"a", b"a/b", b"a/"], []),
    (b"**/", [b"a/", b"a/b/"], [b"a"]),
    (b"*/***", [b"a/", b"a/b"], [b"a"]),
    (b"a**/***", [b"a/", b"ab/c", b"x/a/"], [b"a", b"xa/"]),
    (b"a/***/", [b"a/", b"a/b/"], [b"a/b"]),
    # A star that is escaped still makes two stars out of one.
    (b"a\\**", [b"a*", b"a*b", b"x/a*b"], [b"a*/b", b"ab"]),
    (b"\\*", [b"*", b"x/*"], [b"a"]),
    (b"a\\/b*", [b"a/b", b"x/a/bc"], [b"a"]),
    (b"*\\", [], [b"a", b"\\", b"a\\"]),
    # Sets.
    (b"[abc]", [b"a", b"x/c"], [b"d", b"ab"]),
    (b"[a-c]x", [b"ax", b"cx"], [b"dx", b"-x"]),
    (b"[!a-c]", [b"d", b"!", b"\n"], [b"a"]),
    (b"[^a-c]", [b"d", b"^"], [b"a"]),
    (b"[]a]", [b"]", b"a"], [b"[", b"]a"]),
    (b"[!]a]", [b"b"], [b"]", b"a"]),
    (b"[]-a]", [b"]", b"^", b"a"], [b"-", b"b"]),
    (b"[-a]", [b"-", b"a"], [b"b"]),
    (b"[a-]", [b"-", b"a"], [b"b"]),
    (b"[--0]", [b"-", b".", b"0"], [b"1"]),
    (b"[a-c-e]", [b"b", b"-", b"e"], [b"d"]),
    (b"[c-a]", [b"c"], [b"a", b"b", b"-"]),
    (b"[\\]]", [b"]"], [b"\\"]),
    (b"[\\\\-^]", [b"\\", b"]", b"^"], [b"-"]),
    (b"[Z-\\]]", [b"Z", b"[", b"\\", b"]"], [b"-", b"Y"]),
    (b"[[:alpha:]-9]", [b"x", b"-", b"9"], [b"8"]),
    (b"[[:alpha:][:digit:]]", [b"a", b"Z", b"5"], [b"_", b"\xe4"]),
    (b"[![:space:]]", [b"a"], [b" ", b"\t", b"\v"]),
    (b"[[:]", [b"[", b":"], [b"]", b"[:"]),
    (b"[[:a]", [b"[", b":", b"a"], [b"b"]),
    (b"[[::]]", [], [b":", b":]"]),
    (b"[[:foo:]]", [], [b"f", b":]"]),
    (b"x[a", [], [b"xa", b"x[a"]),
    (b"x[!", [], [b"x!"]),
    (b"x[a\\", [], [b"xa"]),
    (b"x[a-\\", [], [b"xa"]),
    (b"a[/]b", [], [b"a/b", b"ab"]),
    (b"/a[!x]b", [b"ayb"], [b"a/b"]),
    (b"/[!b/]", [b"a"], [b"b", b"a/b"]),
    (b"[/a]b/c", [], [b"ab/c", b"x/ab/c"]),
    (b"\xc3*", [b"\xc3\xa4"], [b"\xe4"]),
    # Plain names.
    (b"a", [b"a", b"x/a", b"a/"], [b"b", b"a/b"]),
    (b" a ", [b" a "], [b"a"]),
    (b"a]b", [b"a]b"], [b"ab"]),
    (b"b/c/d", [b"b/c/d", b"a/b/c/d"], [b"c/d", b"d", b"xb/c/d"]),
]


@pytest.mark.parametrize(("pattern", "yes", "no"), TABLE)
def test_pattern_matches_what_the_manual_says(
    pattern: bytes, yes: list[bytes], no: list[bytes]
) -> None:
    for path in yes:
        assert excludes(pattern, path.rstrip(b"/"), is_dir=path.endswith(b"/")), path
    for path in no:
        assert not excludes(pattern, path.rstrip(b"/"), is_dir=path.endswith(b"/")), (
            path
        )


CLASSES = {
    "alnum": "[a-zA-Z0-9]",
    "alpha": "[a-zA-Z]",
    "blank": "[ \t]",
    "cntrl": "[\x01-\x1f\x7f]",
    "digit": "[0-9]",
    "graph": "[!-~]",
    "lower": "[a-z]",
    "print": "[ -~]",
    "punct": "[!-/:-@\\[-`{-~]",
    "space": "[\t-\r ]",
    "upper": "[A-Z]",
    "xdigit": "[0-9a-fA-F]",
}


@pytest.mark.parametrize("name", CLASSES)
def test_posix_class_is_that_of_ascii(name: str) -> None:
    rules = FilterRules([Rule(False, b"[[:%s:]]" % name.encode())])
    expected = re.compile(CLASSES[name].encode())
    for byte in range(1, 256):
        path = bytes([byte])
        wanted = path != b"/" and expected.fullmatch(path) is not None
        assert rules.decide(path, is_dir=False) is not wanted, path


def test_first_rule_that_matches_decides() -> None:
    rules = FilterRules(
        [
            Rule(True, b"keep.o"),
            Rule(False, b"*.o"),
            Rule(True, b"*.o"),
            Rule(True, b"*/"),
            Rule(False, b"*"),
        ]
    )
    assert rules.decide(b"a/keep.o", is_dir=False)
    assert not rules.decide(b"a/b.o", is_dir=False)
    assert rules.decide(b"a", is_dir=True)
    assert not rules.decide(b"a", is_dir=False)


def test_without_rules_everything_is_included() -> None:
    rules = FilterRules([])
    assert rules.decide(b"a", is_dir=True)
    assert rules.decide(b"a/b", is_dir=False)


#: Paths with bytes that mean something in patterns, too.
paths = st.lists(
    st.lists(st.sampled_from(list(b"aabbcX.*?[]\\-!^\n\xff")), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
).map(lambda parts: b"/".join(map(bytes, parts)))

_TOKENS = [
    b"a", b"a", b"b", b"c", b"/", b"/", b"*", b"*", b"**", b"***", b"?", b"[ab]", b"]",
    b"[!a]", b"[", b"\\", b"-", b"[^b/]", b"[[:alpha:]]", b"[[:", b":]", b"[a-", b"!",
    b"[]-a]", b"\\*", b"\\/", b".", b"[b-\\c]", b"[[:upper:]", b"\xff",
]  # fmt: skip
patterns = st.lists(st.sampled_from(_TOKENS), min_size=1, max_size=8).map(b"".join)
rule_lists = st.lists(st.builds(Rule, st.booleans(), patterns), max_size=5)


@settings(max_examples=400)
@given(patterns, st.lists(paths, min_size=8, max_size=8), st.booleans())
@example(b"a[/]*", [b"a/", b"a"], True)
def test_a_pattern_matches_what_a_simple_matcher_says(
    pattern: bytes, some: list[bytes], is_dir: bool
) -> None:
    rules = FilterRules([Rule(False, pattern)])
    for path in some:
        expected = simple_filter.matches(pattern, path, is_dir=is_dir)
        assert rules.decide(path, is_dir=is_dir) is not expected, path


@settings(max_examples=300)
@given(rule_lists, st.lists(paths, min_size=8, max_size=8), st.booleans())
def test_rules_decide_what_a_simple_matcher_says(
    rules: list[Rule], some: list[bytes], is_dir: bool
) -> None:
    made = FilterRules(rules)
    for path in some:
        expected = simple_filter.decide(rules, path, is_dir=is_dir)
        assert made.decide(path, is_dir=is_dir) is expected, path


def test_simple_matcher_matches_something() -> None:
    # Else the properties above would be empty.
    for pattern, yes, no in TABLE:
        for path, wanted in [(p, True) for p in yes] + [(p, False) for p in no]:
            is_dir = path.endswith(b"/")
            got = simple_filter.matches(pattern, path.rstrip(b"/"), is_dir=is_dir)
            assert got is wanted, (pattern, path)


# How much work one match is. The bound is the product of the lengths, in bytes looked
# at; a matcher that backtracks takes a power of them for most of these.

HOSTILE_PATTERNS = [
    b"*a" * 30 + b"b",
    b"a*" * 30 + b"b",
    b"**a" * 20 + b"b",
    b"**a*" * 15 + b"b",
    b"**/a*" * 12 + b"b",
    b"**" + b"*a*" * 20 + b"b",
    b"**a/*" * 12 + b"/b",
    b"a/*" * 20 + b"b**c",
    b"**" + b"a/*" * 20 + b"b",
    b"*?" * 30 + b"b",
    b"**?" * 20 + b"b",
    b"[ab]*" * 20 + b"c",
    b"**[!b]*[!c]" * 10 + b"b",
    b"a" * 60 + b"*b",
    b"**" + b"a" * 60 + b"b",
    b"/**/" + b"a*/" * 15 + b"b",
    b"a**" + b"*/a" * 15 + b"/***",
    b"x" + b"a**" * 15 + b"/b",
]
HOSTILE_PATHS = [
    b"a" * 200,
    b"a/" * 99 + b"a",
    (b"a" * 19 + b"/") * 9 + b"a" * 20,
    b"ab" * 100,
    b"ab/" * 66 + b"a",
    b"a" * 100 + b"b" * 100,
]


def check_steps(pattern: bytes, path: bytes, *, is_dir: bool) -> None:
    """Match by the counting matcher; check the number of its steps, and its result."""
    matcher = translate(pattern.rstrip(b"/"), is_dir=is_dir)
    if matcher is not None:
        text = path.rpartition(b"/")[2] if matcher.name_only else b"/" + path
        limit = 2 * (len(text) + 2) * (len(pattern) + 2)
        found = Steps(matcher.source, text, limit=limit).match()
        assert found is excludes(pattern.rstrip(b"/"), path, is_dir=is_dir)


@pytest.mark.parametrize("pattern", HOSTILE_PATTERNS)
def test_hostile_pattern_is_matched_in_bounded_steps(pattern: bytes) -> None:
    for path in HOSTILE_PATHS:
        check_steps(pattern, path, is_dir=False)


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from(
            [b"*", b"**", b"a", b"b", b"/", b"?", b"[ab]", b"a/*", b"**a*"]
        ),
        min_size=1,
        max_size=20,
    ).map(b"".join),
    st.lists(st.sampled_from([b"a", b"b", b"a/", b"ab/", b"aa"]), min_size=1).map(
        b"".join
    ),
    st.booleans(),
)
def test_any_pattern_is_matched_in_bounded_steps(
    pattern: bytes, path: bytes, is_dir: bool
) -> None:
    path = path.rstrip(b"/")
    if any(wildcard in pattern for wildcard in b"*?["):
        check_steps(pattern, path, is_dir=is_dir)


def test_counting_matcher_counts_what_explodes() -> None:
    counts = []
    for length in (20, 40, 80):
        steps = Steps(rb"[^/]*?a[^/]*?a[^/]*?b\Z", b"a" * length, limit=1_000_000)
        assert not steps.match()
        counts.append(steps.count)
    assert counts[1] > 6 * counts[0]
    assert counts[2] > 6 * counts[1]


# Parsing.

OPTIONS: list[tuple[bytes, Parsed | None, Parsed | None]] = [
    (b"a", Rule(False, b"a"), Rule(True, b"a")),
    (b"+ a", Rule(True, b"a"), Rule(True, b"a")),
    (b"- a", Rule(False, b"a"), Rule(False, b"a")),
    (b"-  a ", Rule(False, b" a "), Rule(False, b" a ")),
    (b"-a", Rule(False, b"-a"), Rule(True, b"-a")),
    (b"+", Rule(False, b"+"), Rule(True, b"+")),
    (b"-_a", Rule(False, b"-_a"), Rule(True, b"-_a")),
    (b"- ! ", Rule(False, b"! "), Rule(False, b"! ")),
    (b"- !", Rule(False, b"!"), Rule(False, b"!")),
    (b"!a", Rule(False, b"!a"), Rule(True, b"!a")),
    (b"#a", Rule(False, b"#a"), Rule(True, b"#a")),
    (b"!", Clear.CLEAR, Clear.CLEAR),
    (b"", None, None),
]


@pytest.mark.parametrize(("text", "excluded", "included"), OPTIONS)
def test_option_is_parsed_as_rsync_does(
    text: bytes, excluded: Parsed | None, included: Parsed | None
) -> None:
    assert rule_from_option(text, include=False) == excluded
    assert rule_from_option(text, include=True) == included


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"- ", "a filter rule without a pattern"),
        (b"+ ", "a filter rule without a pattern"),
        (b"a\0b", r"a filter rule with a NUL byte: 'a\x00b'"),
        (b"a" * 4096, "a filter rule of 4096 bytes; at most 4095"),
    ],
)
def test_bad_option_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        rule_from_option(text, include=False)


def test_file_is_parsed_as_rsync_does() -> None:
    data = b"# c\n;c\n\n\r\n*.o\r\n+ /a/\rb\n #b\n!\n- c \n+ #d\n!e"
    assert rules_from_file(data, include=False) == [
        Rule(False, b"*.o"),
        Rule(True, b"/a/"),
        Rule(False, b"b"),
        Rule(False, b" #b"),
        Clear.CLEAR,
        Rule(False, b"c "),
        Rule(True, b"#d"),
        Rule(False, b"!e"),
    ]
    assert rules_from_file(b"a\n- b", include=True) == [
        Rule(True, b"a"),
        Rule(False, b"b"),
    ]
    assert rules_from_file(b"", include=True) == []


def test_bad_line_is_told_by_its_number() -> None:
    with pytest.raises(ConfigError, match=r"^line 4: a filter rule without a pattern$"):
        rules_from_file(b"a\n\r\n# c\n- \nb", include=False)


def test_rules_behind_the_last_clear_are_in_effect() -> None:
    a, b = Rule(False, b"a"), Rule(True, b"b")
    assert parse_rules([]) == ()
    assert parse_rules([a, None, b]) == (a, b)
    assert parse_rules([a, Clear.CLEAR, b, a]) == (b, a)
    assert parse_rules([a, Clear.CLEAR]) == ()


# Limits.


def test_file_of_more_than_the_limit_is_refused() -> None:
    longest = b"#" * filters.MAX_FILE_LEN
    assert rules_from_file(longest, include=False) == []
    with pytest.raises(ConfigError, match="more than 4194304 bytes"):
        rules_from_file(longest + b"#", include=False)


def test_file_of_too_many_rules_is_refused() -> None:
    most = b"a\n" * filters.MAX_RULES
    assert len(rules_from_file(most, include=False)) == filters.MAX_RULES
    with pytest.raises(ConfigError, match=r"^line 10001: more than 10000 rules$"):
        rules_from_file(most + b"a", include=False)


LONGEST = filters.MAX_PATTERN_LEN


@pytest.mark.parametrize(
    ("allowed", "one_more", "message"),
    [
        ([b"a"] * filters.MAX_RULES, b"a", "10001 filter rules; at most 10000"),
        (
            [b"%d" % number + b"a" * 1023 for number in range(1000)],
            b"a" * LONGEST,
            "more than 1048576 bytes",
        ),
        ([b"a" * 4092 + b"*xx"] * 2, b"12345678*", "wildcards of more than 8192"),
        ([b"a" * LONGEST], b"a" * LONGEST + b"a", "of 4096 bytes; at most 4095"),
        ([b"a"], b"", "without a pattern"),
        ([b"a"], b"\0", "NUL"),
    ],
)
def test_rules_beyond_a_limit_are_refused(
    allowed: list[bytes], one_more: bytes, message: str
) -> None:
    if "1048576" in message:
        # Fill up to the limit exactly.
        left = filters.MAX_PATTERNS_LEN - sum(map(len, allowed))
        allowed = [*allowed, *[b"a" * LONGEST] * (left // LONGEST)]
        allowed.append(b"a" * (left % LONGEST))
    FilterRules([Rule(False, pattern) for pattern in allowed])
    with pytest.raises(ConfigError, match=message):
        FilterRules([Rule(False, pattern) for pattern in [*allowed, one_more]])


def test_large_expressions_do_not_stay_in_the_cache_of_re() -> None:
    re.compile("a pattern that this test knows to be cached")
    FilterRules([Rule(False, b"%d" % number + b"*a" * 2000) for number in range(2)])
    longest = max(
        (len(key[1]) for key in getattr(re, "_cache", {})), default=0
    )  # its name is private: without it, the test says nothing
    assert longest <= 16 << 10


def test_rule_can_travel() -> None:
    rule = Rule(True, b"\xff*")
    data = msgspec.msgpack.encode(rule)
    assert msgspec.msgpack.decode(data, type=Rule) == rule
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"include": 1}), type=Rule)
