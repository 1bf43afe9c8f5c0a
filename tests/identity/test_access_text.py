"""The text of access files: what is read, what is refused, what is written."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import AccessFileError
from rpc25519_tools.identity.access import (
    PATH_RIGHTS,
    RIGHTS,
    Right,
    Rule,
    Subject,
    Who,
)
from rpc25519_tools.identity.access_text import (
    MAX_FILE_LEN,
    MAX_RULES,
    format_rule,
    parse_access_file,
    parse_key,
    parse_target,
)
from rpc25519_tools.identity.certificate import key_id
from tests.fuzz.access_targets import SEEDS, access_file
from tests.identity.random_rules import FILES, QUESTIONS, SUBJECTS, Line

KEY = bytes(range(32))


def parse_one(line: str) -> Rule:
    (rule,) = parse_access_file(f"{line}\n".encode()).rules
    return rule


def error_of(content: bytes | str) -> AccessFileError:
    raw = content.encode() if isinstance(content, str) else content
    with pytest.raises(AccessFileError) as caught:
        parse_access_file(raw)
    return caught.value


def test_a_whole_file() -> None:
    text = (
        "# who  may  where\r\n"
        "\n"
        "  \t\n"
        "deny eve@example.org\t# all of it\r\n"
        "deny * read /private/\n"
        "ann@example.org   read list  /reports   # every month\n"
        f"key:{key_id(KEY)} write /incoming/ci\n"
        '"a b@example.org" read "/my files/\\"x\\"\\\\\\xff"\n'
        '* call "read"\n'
        "anyone call *\n"
    )
    found = parse_access_file(text.encode()).rules
    assert [(rule.line, rule.deny, rule.who) for rule in found] == [
        (4, True, Who(kind="email", value="eve@example.org")),
        (5, True, Who(kind="certified")),
        (6, False, Who(kind="email", value="ann@example.org")),
        (7, False, Who(kind="key", value=KEY.hex())),
        (8, False, Who(kind="email", value="a b@example.org")),
        (9, False, Who(kind="certified")),
        (10, False, Who(kind="anyone")),
    ]
    assert [(rule.rights, rule.path, rule.service) for rule in found] == [
        (RIGHTS, (), ""),
        (("read",), ("private",), None),
        (("read", "list"), ("reports",), None),
        (("write",), ("incoming", "ci"), None),
        (("read",), ("my files", '"x"\\\udcff'), None),
        (("call",), None, "read"),
        (("call",), None, ""),
    ]


@pytest.mark.parametrize("content", [b"", b"\n", b"# nothing\n", b"\r\n \t \n"])
def test_a_file_without_rules_is_fine(content: bytes) -> None:
    assert parse_access_file(content).rules == ()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("ann", "is nobody"),
        ("ann read /", "is nobody"),
        ("@example.org read /", "is nobody"),
        ("Deny ann@x read /", "is nobody"),
        ("ANYONE read /", "is nobody"),
        ('"*" read /', "is nobody"),
        ("\ufeff* read /", "invisible"),
        ("*\u00a0read /", "invisible"),
        ("* read\u200b /", "invisible"),
        ("* read /a\u202eb", "invisible"),
        ("\x0c* read /", "invisible"),
        ("* read /a\r\r", "invisible"),
        ("\u00e4nn@x read /", "ASCII"),
        ("*@example.org read /", "no patterns"),
        (f"key:{KEY.hex()[1:]} read /", "is no key"),
        (f"key:{key_id(KEY)[:-1]}x read /", "is no key"),
        ("key: read /", "is no key"),
        (f"pubkey@edwardsRPC-ed25519-b58c-{key_id(KEY)}:a@x read /", "write key:"),
        ("ann@x", "nothing is said"),
        ("ann@x reads /", "unknown right 'reads'"),
        ("ann@x read,list /", "unknown right 'read,list'"),
        ("ann@x READ /", "unknown right 'READ'"),
        ('ann@x "read" /', "unknown right 'read'"),
        ("ann@x /", "unknown right '/'"),
        ("deny ann@x /", "unknown right '/'"),
        ("deny", "deny needs to know whom"),
        ("deny deny ann@x", "is nobody"),
        ("ann@x read read /", "read stands there twice"),
        ("ann@x read call /", "line of its own"),
        ("ann@x call read", "line of its own"),
        ("ann@x read", "the path is missing"),
        ("ann@x call", "the service is missing"),
        ("ann@x read # /", "the path is missing"),
        ("ann@x read /my files", "one path for each line"),
        ("ann@x call a b", "one service for each line"),
        ("ann@x read reports", "begins with /"),
        ("ann@x read *", "begins with /"),
        ("ann@x read ~/x", "begins with /"),
        ("ann@x read /a/*", "no patterns"),
        ("ann@x read /a?", "no patterns"),
        ("ann@x read /[ab]", "no patterns"),
        ("ann@x read //", "component"),
        ("ann@x read //a", "component"),
        ("ann@x read /a//", "component"),
        ("ann@x read /a//b", "component"),
        ("ann@x read /./a", "component"),
        ("ann@x read /a/..", "component"),
        ('ann@x read "/a/\\x2e\\x2e"', "component"),
        ('ann@x read "/a\\x00"', "NUL"),
        (f"ann@x read /{'a' * 4096}", "over 4096 bytes"),
        ("ann@x call /a", "is a path"),
        ("ann@x call Arith.*", "no patterns"),
        ('ann@x call ""', "has a name"),
        ('ann@x read "/a', "a quote or backslash inside"),
        ('ann@x read /a"b"', "a quote or backslash inside"),
        ('ann@x read "/a"b', "a quote or backslash inside"),
        ("ann@x read /a\\ b", "a quote or backslash inside"),
        ('ann@x read "/a\\n"', "unknown escape"),
        ('ann@x read "/a\\x4"', "unknown escape"),
    ],
)
def test_a_wrong_line_is_named(line: str, problem: str) -> None:
    for before in (0, 3):
        error = error_of("# fine\n" * before + line + "\n")
        assert problem in str(error)
        assert str(error).startswith(f"line {before + 1}: ")
        assert error.line == before + 1
        assert str(error).isprintable()
        assert len(str(error)) < 500


def test_bytes_that_are_not_utf_8_are_refused_also_in_comments() -> None:
    assert error_of(b"* read /\n# caf\xe9\n").line == 2
    assert "UTF-8" in str(error_of(b"* read /caf\xe9\n"))


def test_lines_that_deny_come_first() -> None:
    error = error_of("deny a@x read /\n* read /\ndeny b@x read /\n")
    assert error.line == 3
    assert "come first" in str(error)


def test_the_last_line_needs_its_end() -> None:
    error = error_of("* read /\n* read /reports")
    assert error.line == 2
    assert "may not be complete" in str(error)


def test_files_have_bounds() -> None:
    line = "* read /\n"
    assert len(parse_access_file(line.encode() * MAX_RULES).rules) == MAX_RULES
    error = error_of(line * (MAX_RULES + 1))
    assert error.line == MAX_RULES + 1
    assert parse_access_file(b"#" * (MAX_FILE_LEN - 1) + b"\n").rules == ()
    assert "longer than" in str(error_of(b"#" * MAX_FILE_LEN + b"\n"))


@settings(max_examples=150, deadline=None)
@given(FILES, SUBJECTS, QUESTIONS, st.integers(0, 400))
def test_no_beginning_of_a_file_grants_more_than_the_whole(
    lines: list[Line], subject: Subject, question: tuple[Right, str], cut: int
) -> None:
    content = "".join(f"{line.text()}\n" for line in lines).encode()
    try:
        part = parse_access_file(content[:cut])
    except AccessFileError:
        return
    if part.decide(subject, *question):
        assert parse_access_file(content).decide(subject, *question)


def rules_strategy() -> st.SearchStrategy[Rule]:
    # Names come as bytes, which are UTF-8 or not.
    name = st.binary(min_size=1, max_size=12).map(
        lambda raw: raw.decode("utf-8", "surrogateescape")
    )
    component = name.filter(
        lambda text: "/" not in text and "\0" not in text and text not in (".", "..")
    )
    ascii_text = st.text(st.characters(max_codepoint=126), min_size=1, max_size=8)
    email = st.tuples(ascii_text, ascii_text).map("@".join)
    who = (
        st.sampled_from([Who(kind="certified"), Who(kind="anyone")])
        | email.map(lambda text: Who(kind="email", value=text))
        | st.binary(min_size=32, max_size=32).map(
            lambda key: Who(kind="key", value=key.hex())
        )
    )
    rights = st.sets(st.sampled_from(PATH_RIGHTS), min_size=1).map(
        lambda found: tuple(right for right in PATH_RIGHTS if right in found)
    )
    paths = st.builds(
        lambda deny, who, rights, path: Rule(
            line=1, deny=deny, who=who, rights=rights, path=tuple(path), service=None
        ),
        st.booleans(),
        who,
        rights,
        st.lists(component, max_size=3),
    )
    calls = st.builds(
        lambda deny, who, service: Rule(
            line=1, deny=deny, who=who, rights=("call",), path=None, service=service
        ),
        st.booleans(),
        who,
        name | st.sampled_from(["", "*", "read", "#x", "/x", "Type.Method"]),
    )
    everything = who.map(
        lambda who: Rule(line=1, deny=True, who=who, rights=RIGHTS, path=(), service="")
    )
    return paths | calls | everything


@settings(max_examples=400, deadline=None)
@given(rules_strategy())
def test_what_is_written_is_read_again(rule: Rule) -> None:
    line = format_rule(rule)
    assert line.isprintable()
    assert parse_one(line) == rule
    assert parse_one(f"\t{line} # comment") == rule


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_rules_or_an_error_of_ours(content: bytes) -> None:
    access_file(content)


@pytest.mark.parametrize("seed", range(len(SEEDS)))
def test_seeds_of_the_fuzzer_and_their_beginnings(seed: int) -> None:
    for length in range(len(SEEDS[seed]) + 1):
        access_file(SEEDS[seed][:length])
    assert parse_access_file(SEEDS[seed]).rules


@pytest.mark.parametrize("key", [bytes(32), b"\xff" * 32, KEY])
def test_keys_in_both_forms(key: bytes) -> None:
    assert parse_key(key.hex()) == key.hex()
    assert parse_key(key_id(key)) == key.hex()


@pytest.mark.parametrize(
    "text",
    ["", "9", "0" * 63, "0" * 65, "g" * 64, "1" * 51, "0" * 51, "z" * 51, "é" * 51],
)
def test_what_is_no_key(text: str) -> None:
    assert parse_key(text) is None


def test_each_wrong_character_of_a_key_is_noticed() -> None:
    text = key_id(KEY)
    for position, char in itertools.product(range(len(text)), "2z"):
        changed = text[:position] + char + text[position + 1 :]
        assert parse_key(changed) == (KEY.hex() if changed == text else None)


@pytest.mark.parametrize(
    ("right", "text", "target"),
    [
        ("read", "/a/b", "/a/b"),
        ("read", "a/b", "/a/b"),
        ("list", "/", "/"),
        ("list", "", "/"),
        ("call", "/x", "/x"),
    ],
)
def test_targets_of_questions(right: Right, text: str, target: str) -> None:
    assert parse_target(right, text) == target


@pytest.mark.parametrize(
    ("right", "text"),
    [("read", "/a/../b"), ("read", "a//b"), ("write", "//"), ("call", "")],
)
def test_wrong_targets_of_questions(right: Right, text: str) -> None:
    with pytest.raises(AccessFileError):
        parse_target(right, text)
