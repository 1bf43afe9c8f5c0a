"""What a fuzzer can throw at the access file: bytes in, only our own errors out."""

from typing import Final

from rpc25519_tools.errors import AccessFileError
from rpc25519_tools.identity.access import NOBODY, RIGHTS, Subject
from rpc25519_tools.identity.access_text import format_rule, parse_access_file

SEEDS: Final = (
    b"# who may where\nann@example.org read list /reports\n* call customEcho\n",
    b'deny eve@example.org\ndeny * read /private\n"a b@x" read "/my \\xff\\"\\\\"\n',
    b"key:" + b"07" * 32 + b" read write list /\r\nanyone call *\n",
    b'* call "Type.Method"\n* call *\n\t* write "/\\x23\xc3\xa9"  # end\n',
)


def access_file(data: bytes) -> None:
    """Read an access file, ask it a few things, and write its lines again."""
    try:
        rules = parse_access_file(data)
    except AccessFileError as exc:
        _check_text(str(exc))
        return
    ann = Subject(key="07" * 32, emails=("ann@example.org", "a b@x"))
    for right in RIGHTS:
        target = "customEcho" if right == "call" else "/reports/x"
        for subject in (ann, Subject(), NOBODY):
            verdict = rules.explain(subject, right, target)
            assert verdict.allowed == (
                verdict.rule is not None and not verdict.rule.deny
            )
    lines = "".join(f"{format_rule(rule)}\n" for rule in rules.rules)
    again = parse_access_file(lines.encode())
    assert [format_rule(rule) for rule in again.rules] == lines.splitlines()


def _check_text(text: str) -> None:
    assert text.isprintable()
    assert len(text) < 1000
