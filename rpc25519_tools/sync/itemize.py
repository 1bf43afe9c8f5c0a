"""What changes about a file, as a number on the wire and as rsync's letters (sans-IO).

Source: rsync's manual, option ``--itemize-changes``.
"""

import stat
from typing import Final


class Change:
    """What is different, or will be done: bits of a number.

    Plain numbers, since they are combined for every entry.
    """

    NONE: Final = 0
    CONTENT: Final = 1  # its contents are transferred
    LOCAL: Final = 2  # it is made or changed without a transfer
    LINKED: Final = 4  # it becomes a hard link
    NEW: Final = 8
    SUM: Final = 16  # its checksum differs, or where a link leads
    SIZE: Final = 32
    TIME: Final = 64
    PERMS: Final = 128
    OWNER: Final = 256
    GROUP: Final = 512
    TIME_NOW: Final = 1024  # its time will be that of the transfer


#: Whatever makes an entry worth telling of.
DIFFERENCES: Final = (
    Change.NEW
    | Change.SUM
    | Change.SIZE
    | Change.TIME
    | Change.PERMS
    | Change.OWNER
    | Change.GROUP
)

_LETTERS: Final = (
    (Change.SUM, "c"),
    (Change.SIZE, "s"),
    (Change.TIME, "t"),
    (Change.PERMS, "p"),
    (Change.OWNER, "o"),
    (Change.GROUP, "g"),
)


def kind_letter(mode: int) -> str:
    """Return rsync's letter for the kind of a file."""
    if stat.S_ISREG(mode):
        return "f"
    if stat.S_ISDIR(mode):
        return "d"
    if stat.S_ISLNK(mode):
        return "L"
    return "D" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else "S"


def itemized(change: int, mode: int, *, sending: bool) -> str:
    """Return the eleven characters that tell what changes.

    Args:
        change: what.
        mode: ``st_mode`` of the source.
        sending: whether we send; the arrow points the other way then.
    """
    if change & Change.CONTENT:
        first = "<" if sending else ">"
    elif change & Change.LINKED:
        first = "h"
    elif change & Change.LOCAL:
        first = "c"
    else:
        first = "."
    head = first + kind_letter(mode)
    if change & Change.NEW:
        return head + "+" * 9
    letters = "".join(letter if change & flag else "." for flag, letter in _LETTERS)
    if change & Change.TIME_NOW and change & Change.TIME:
        letters = letters.replace("t", "T")
    if first in ".h" and not change & DIFFERENCES:
        return head + " " * 9
    return head + letters + "..."
