"""Where the user wants a received file: ``-o``, or the file's own name."""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rpc25519_tools.files.sink import Sink


def sink_opener(out: str | None, name: str, *, clobber: bool) -> "Callable[[], Sink]":
    """Return a function that opens the target of a download or echo.

    Args:
        out: the value of ``-o``: None, a file, an existing directory, or ``-``.
        name: the file's own name, for None and for directories.
        clobber: whether an existing file may be replaced.
    """
    from rpc25519_tools.files.atomic import open_local_sink
    from rpc25519_tools.files.sink import PlainSink

    if out == "-":
        return lambda: PlainSink(os.dup(sys.stdout.fileno()), "standard output")
    path = name if out is None else out
    if out is not None and (os.path.isdir(out) or out.endswith("/")):
        path = os.path.join(out, name)
    return lambda: open_local_sink(path, clobber=clobber)
