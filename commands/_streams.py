"""Standard streams that whoever started the program has closed (``>&-``).

Their descriptors would go to the next file or socket that is opened, and what is meant
for the user with them. So the null device takes their places first.
"""

import os
import sys

_NAMES = ("stdin", "stdout", "stderr")
_closed: set[int] = set()


def fill_closed_streams() -> None:
    """Put the null device where a standard stream is closed; call this first."""
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:
            _closed.add(number)
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def require_open(number: int) -> None:
    """Make sure that data can go through standard input (0) or output (1).

    Raises:
        LocalFileError: it was closed when the program began.
    """
    from rpc25519_tools.errors import LocalFileError

    if number in _closed:
        what = "read 'standard input'" if number == 0 else "write 'standard output'"
        raise LocalFileError(f"cannot {what}: it is closed")
