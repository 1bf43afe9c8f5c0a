"""Makes untrusted text safe to show on a terminal or in a log line.

Names, e-mails and error texts come from peers and from files. A control character
in them can move the cursor, and a bidirectional mark can show a name backwards, so
everything that is not plainly printable is shown as a Python escape.
"""

#: Characters of a text that are shown; a hostile one may have thousands.
SHOWN_CHARS = 80


def printable(text: str) -> str:
    r"""Replace every character that could steer a terminal by its escape.

    Control, format (bidirectional, zero width), private and unassigned characters,
    lone surrogates and all white space but the space become ``\n``, ``\x1b``,
    ``\u202e``. The result is one line; printable text comes back unchanged.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def quoted(text: str) -> str:
    """Quote a text for one line: escaped, and shortened in the middle."""
    if len(text) > SHOWN_CHARS:
        text = f"{text[: SHOWN_CHARS // 2]}...{text[-SHOWN_CHARS // 4 :]}"
    return repr(text)
