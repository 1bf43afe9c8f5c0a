"""Random access rules, those who ask, and what they ask for, with a simple model."""

from dataclasses import dataclass

from hypothesis import strategies as st

from rpc25519_tools.identity.access import NOBODY, RIGHTS, Right, Subject

KEY = bytes(range(32))
OTHER_KEY = bytes(32)


@dataclass(frozen=True)
class Line:
    """The obvious model of a rule: strings, compared as they are."""

    deny: bool
    who: str
    rights: tuple[Right, ...]
    target: str

    def text(self) -> str:
        words = ["deny"] * self.deny + [self.who, *self.rights, self.target]
        return " ".join(words)

    def is_about(self, subject: Subject, right: Right, target: str) -> bool:
        return self._is_about_who(subject) and right in self.rights and self._at(target)

    def _is_about_who(self, subject: Subject) -> bool:
        if self.who == "anyone" or (self.who == "*" and self.deny):
            return True
        if self.who == "*":
            return subject.authenticated
        if self.who.startswith("key:"):
            return self.who == f"key:{subject.key}"
        if self.deny:
            return self.who.lower() in [email.lower() for email in subject.emails]
        return self.who in subject.emails

    def _at(self, target: str) -> bool:
        mine = self.target
        if self.deny:
            mine, target = mine.lower(), target.lower()
        if "call" in self.rights:
            return mine in ("*", target)
        return f"{target}/".startswith("/" if mine == "/" else f"{mine}/")


NAMES = st.sampled_from(["a", "ab", "b", "A", "aB"])
PATHS = st.lists(NAMES, max_size=4).map(lambda parts: "/" + "/".join(parts))
SERVICES = st.sampled_from(["echo", "Echo", "T.M", "T.m", "T"])
EMAILS = st.sampled_from(["a@x", "A@x", "b@x"])
KEYS = st.sampled_from([KEY.hex(), OTHER_KEY.hex()])
WHO = st.one_of(st.sampled_from(["*", "anyone"]), EMAILS, KEYS.map("key:{}".format))
PATH_LINES = st.builds(
    Line,
    st.booleans(),
    WHO,
    st.lists(st.sampled_from(RIGHTS[:3]), min_size=1, unique=True).map(tuple),
    PATHS,
)
CALL_LINES = st.builds(
    Line, st.booleans(), WHO, st.just(("call",)), SERVICES | st.just("*")
)
FILES = st.lists(PATH_LINES | CALL_LINES, max_size=8).map(
    lambda lines: sorted(lines, key=lambda line: not line.deny)
)
SUBJECTS = st.just(NOBODY) | st.builds(
    lambda key, emails: Subject(key=key, emails=tuple(emails)),
    KEYS,
    st.lists(EMAILS, max_size=2, unique=True),
)
QUESTIONS = st.tuples(st.sampled_from(RIGHTS[:3]), PATHS) | st.tuples(
    st.just("call"), SERVICES
)
