"""Which rules let whom do what."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpc25519_tools.identity import access
from rpc25519_tools.identity.access import (
    NOBODY,
    RIGHTS,
    AccessRules,
    Right,
    Subject,
    fold,
    refusal,
    split_path,
)
from rpc25519_tools.identity.access_text import parse_access_file
from rpc25519_tools.identity.certificate import PeerIdentity, key_id
from tests.identity.random_rules import FILES, KEY, OTHER_KEY, QUESTIONS, SUBJECTS, Line

ANN = Subject(key=KEY.hex(), emails=("ann@example.org",))
BOB = Subject(key=OTHER_KEY.hex(), emails=("bob@example.org", "b@example.net"))


def rules(*lines: str) -> AccessRules:
    return parse_access_file("".join(f"{line}\n" for line in lines).encode())


def deciding_line(
    found: AccessRules, subject: Subject, right: Right, target: str
) -> int | None:
    rule = found.explain(subject, right, target).rule
    return None if rule is None else rule.line


@pytest.mark.parametrize("right", RIGHTS)
def test_without_rules_nothing_is_allowed(right: Right) -> None:
    target = "customEcho" if right == "call" else "/"
    for subject in (ANN, NOBODY):
        verdict = AccessRules().explain(subject, right, target)
        assert (verdict.allowed, verdict.rule) == (False, None)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/a", True),
        ("/a/b", True),
        ("/a/b/c", True),
        ("/ab", False),
        ("/", False),
        ("/A", False),
        ("/b/a", False),
        # What is no plain path is never allowed, wherever it comes from.
        ("a", False),
        ("", False),
        ("/a/", False),
        ("//a", False),
        ("/a//b", False),
        ("/a/./b", False),
        ("/a/../a/b", False),
        ("/a/b\0", False),
    ],
)
def test_a_path_covers_what_is_below_it(path: str, allowed: bool) -> None:
    found = rules("ann@example.org read /a")
    assert found.decide(ANN, "read", path) is allowed
    assert not found.decide(ANN, "write", path)
    assert not found.decide(BOB, "read", path)


def test_the_root_covers_every_plain_path_and_no_other() -> None:
    found = rules("* read /")
    assert found.decide(ANN, "read", "/")
    assert found.decide(ANN, "read", "/x/y")
    assert not found.decide(ANN, "read", "/x/../y")
    assert not found.decide(ANN, "read", "x")


@pytest.mark.parametrize(
    ("who", "ann", "bob", "nobody"),
    [
        ("ann@example.org", True, False, False),
        ("Ann@example.org", False, False, False),
        ("b@example.net", False, True, False),
        (f"key:{KEY.hex()}", True, False, False),
        (f"key:{KEY.hex().upper()}", True, False, False),
        (f"key:{key_id(KEY)}", True, False, False),
        ("*", True, True, False),
        ("anyone", True, True, True),
    ],
)
def test_who_is_meant(who: str, ann: bool, bob: bool, nobody: bool) -> None:
    found = rules(f"{who} call customEcho")
    decided = [
        found.decide(subject, "call", "customEcho") for subject in (ANN, BOB, NOBODY)
    ]
    assert decided == [ann, bob, nobody]


@pytest.mark.parametrize(
    ("who", "ann", "bob", "nobody"),
    [
        ("ann@example.org", True, False, False),
        ("ANN@Example.org", True, False, False),
        (f"key:{KEY.hex()}", True, False, False),
        # Who proved nothing must not get what is denied to everybody with a proof.
        ("*", True, True, True),
        ("anyone", True, True, True),
    ],
)
def test_who_is_denied(who: str, ann: bool, bob: bool, nobody: bool) -> None:
    found = rules(f"deny {who} read /a", "anyone read /")
    decided = [found.decide(subject, "read", "/a/b") for subject in (ANN, BOB, NOBODY)]
    assert decided == [not ann, not bob, not nobody]
    assert found.decide(ANN, "read", "/b")


def test_deny_without_more_denies_everything() -> None:
    found = rules("deny ann@example.org", "* read write list /", "* call *")
    for right in RIGHTS:
        target = "x" if right == "call" else "/x"
        assert not found.decide(ANN, right, target)
        assert deciding_line(found, ANN, right, target) == 1
        assert found.decide(BOB, right, target)


def test_one_entry_with_several_addresses_is_each_of_them_when_denied() -> None:
    both = Subject(emails=("Ann <ann@example.org>, bob@example.org",))
    assert not rules("deny ann@example.org", "* read /").decide(both, "read", "/x")
    assert not rules("deny bob@example.org", "* read /").decide(both, "read", "/x")
    assert rules("deny eve@example.org", "* read /").decide(both, "read", "/x")
    # But it is allowed nothing by a part of it.
    assert not rules("bob@example.org read /").decide(both, "read", "/x")
    whole = '"Ann <ann@example.org>, bob@example.org" read /'
    assert rules(whole).decide(both, "read", "/x")


@pytest.mark.parametrize(
    "spelling",
    [
        "/secret",
        "/SECRET",
        "/Secret/x",
        "/secret.",
        "/secret ",
        "/se\u200dcret",
        "/\uff53ecret",
        "/\u017fecret",
    ],
)
def test_no_spelling_of_a_path_gets_round_a_deny(spelling: str) -> None:
    found = rules("deny * read /Secret", "* read /")
    assert not found.decide(ANN, "read", spelling)
    assert found.decide(ANN, "read", "/secrets")


def test_both_forms_of_an_accent_are_denied() -> None:
    found = rules("deny * read /café", "* read /")
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        path = unicodedata.normalize(form, "/CAFÉ/menu")
        assert not found.decide(ANN, "read", path)
    assert found.decide(ANN, "read", "/cafe")


def test_both_names_of_a_method_are_denied() -> None:
    found = rules("deny * call Arith.SleepMilli", "* call *")
    for name in ("Arith.SleepMilli", "Arith.sleep_milli", "arith.sleepmilli"):
        assert not found.decide(ANN, "call", name)
    assert found.decide(ANN, "call", "Arith.Sleep")


def test_services_are_allowed_by_exactly_their_name() -> None:
    found = rules("* call Arith.Multiply")
    assert found.decide(ANN, "call", "Arith.Multiply")
    for name in ("Arith.multiply", "Arith", "Arith.", "Arith.MultiplyX", "", "*"):
        assert not found.decide(ANN, "call", name)
    assert rules("* call *").decide(ANN, "call", "anything at all")
    assert not rules("* call *").decide(ANN, "call", "")
    assert not rules("* call *").decide(ANN, "read", "/")


def test_the_first_line_that_decides_is_named() -> None:
    found = rules(
        "deny bob@example.org write /a",  # 1
        "deny * write /a/b",  # 2
        "# a comment",  # 3
        "* write /a",  # 4
        "ann@example.org write /",  # 5
    )
    assert deciding_line(found, ANN, "write", "/a/x") == 4
    assert deciding_line(found, ANN, "write", "/x") == 5
    assert deciding_line(found, ANN, "write", "/a/b") == 2
    assert deciding_line(found, BOB, "write", "/a/b") == 1
    assert deciding_line(found, BOB, "write", "/x") is None


def test_a_peer_is_asked_about_by_its_certificate() -> None:
    found = rules("deny b@example.net read /x", f"key:{KEY.hex()} read /")
    emails = ("ann@example.org", "b@example.net")
    peer = PeerIdentity(public_key=KEY, emails=emails, certificate_der=b"")
    assert found.may(peer, "read", "/y")
    assert not found.may(peer, "read", "/x")
    assert not found.may(None, "read", "/y")


@pytest.mark.parametrize("email", ["*", "anyone", f"key:{KEY.hex()}", "", "deny"])
def test_an_entry_of_a_certificate_is_never_a_keyword(email: str) -> None:
    sly = Subject(key=OTHER_KEY.hex(), emails=(email,))
    found = rules(f"key:{KEY.hex()} read /", "ann@example.org read /")
    assert not found.decide(sly, "read", "/x")


def test_a_refusal_repeats_the_question_only_and_in_one_line() -> None:
    assert refusal("read", "/a b") == "not allowed: read '/a b'"
    text = refusal("call", "x\n\x1b[2J" * 1000)
    assert len(text) < 400
    assert text.isprintable()


@settings(max_examples=400, deadline=None)
@given(FILES, SUBJECTS, QUESTIONS)
def test_decisions_are_those_of_the_obvious_model(
    lines: list[Line], subject: Subject, question: tuple[Right, str]
) -> None:
    found = rules(*[line.text() for line in lines])
    about = [
        number
        for number, line in enumerate(lines, start=1)
        if line.is_about(subject, *question)
    ]
    denied = [number for number in about if lines[number - 1].deny]
    assert found.decide(subject, *question) == bool(about and not denied)
    first = min(denied or about, default=None)
    assert deciding_line(found, subject, *question) == first


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=20))
def test_split_path_gives_back_what_it_took(text: str) -> None:
    path = split_path(text)
    if path is not None:
        assert "/" + "/".join(path) == text
        assert all(part not in ("", ".", "..") for part in path)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=12))
def test_folding_forgets_case_and_forms(text: str) -> None:
    folded = fold(text)
    assert fold(folded) == folded
    for other in (
        text.swapcase(),
        unicodedata.normalize("NFD", text),
        unicodedata.normalize("NFC", text),
    ):
        if other.casefold() == text.casefold() or other.isascii():
            assert fold(other) == folded


@pytest.mark.parametrize(
    "unseen", "\u200b\u00ad\u034f\u3164\ufe0f\U000e0100", ids=ascii
)
def test_what_is_not_seen_does_not_count_where_something_is_denied(unseen: str) -> None:
    found = rules("deny * read /Secret", "* read /")
    asked = f"/sec{unseen}ret/plan"
    assert not found.decide(Subject(), "read", asked)


def test_folding_orders_what_something_unseen_stood_between() -> None:
    assert fold("a\u0301\u200b\u0316") == fold("a\u0316\u0301") == "a\u0316\u0301"


@pytest.mark.parametrize("name", ["ﷺ" * 84, "é" * 127], ids=["long", "two bytes"])
def test_deciding_folds_what_is_asked_once_however_many_rules_deny(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    lines = [f"deny * read /{number}/{name}" for number in range(300)]
    lines += [f"deny ann@example.org call {name}{number}" for number in range(300)]
    parsed = [rule for line in lines for rule in rules(line).rules]
    found = AccessRules([*parsed, *rules("* read /", "* call *").rules])
    folded: list[str] = []

    def counted(text: str) -> str:
        folded.append(text)
        return fold(text)

    monkeypatch.setattr(access, "fold", counted)
    monkeypatch.setattr(found._deny, "_fold", counted)
    assert not found.decide(BOB, "read", f"/299/{name}/x")
    assert found.decide(BOB, "read", f"/300/{name}/x")
    assert not found.decide(ANN, "call", f"{name}299")
    asked = [text for text in folded if "@" not in text]
    assert sorted(asked) == sorted(["299", name, "300", name, f"{name}299"])


def test_what_is_too_long_to_be_anything_is_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = rules("deny bob@example.org read /x", "* read /", "* call *")
    longest = "ﷺ" * access.MAX_NAME_LEN
    assert found.decide(ANN, "call", longest)
    assert found.decide(ANN, "read", f"/a/{longest}/{longest}")
    monkeypatch.delattr(access, "fold")
    monkeypatch.delattr(found._deny, "_fold")
    assert not found.decide(ANN, "call", longest + "x")
    assert not found.decide(ANN, "read", f"/a/{longest}x/b")


@pytest.mark.parametrize(
    ("spelled", "name"), [("_", "_"), ("__", "__"), (".", "."), (r"\xc2\xad", "\xad")]
)
def test_denying_a_service_of_which_no_letter_counts_does_not_deny_all(
    spelled: str, name: str
) -> None:
    found = rules(f'deny * call "{spelled}"', "* call *")
    assert not found.decide(ANN, "call", name)
    assert found.decide(ANN, "call", "customEcho")
