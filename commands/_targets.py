"""What the user wants to send, and where a received file shall go."""

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ._streams import require_open

if TYPE_CHECKING:
    from rpc25519_tools.files.landing import Landing
    from rpc25519_tools.files.sink import Sink
    from rpc25519_tools.files.source import SourceFile


async def open_source(path: str) -> "SourceFile":
    """Open a file to be sent; a FIFO without a writer can be waited for, or not.

    Raises:
        LocalFileError: it cannot be read.
    """
    from rpc25519_tools.files.source import open_local_source
    from rpc25519_tools.files.workers import AbandonableThread

    if path == "-":
        require_open(0)
    thread = AbandonableThread()
    try:
        return await thread.run(open_local_source, path)
    finally:
        thread.close()


@contextlib.contextmanager
def noticing_closed_stdout(out: str | None) -> Iterator[None]:
    """Tell the end of standard output's reader (``| head``) from a failing file.

    Raises:
        BrokenPipeError: ``out`` is ``-``, and nobody reads it any more.
    """
    from rpc25519_tools.errors import LocalFileError

    try:
        yield
    except LocalFileError as exc:
        if out == "-" and isinstance(exc.__cause__, BrokenPipeError):
            raise exc.__cause__ from None
        raise


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
        require_open(1)
        return lambda: PlainSink(os.dup(sys.stdout.fileno()), "standard output")
    path = target_path(out, name)
    return lambda: open_local_sink(path, clobber=clobber)


def target_opener(
    out: str | None, name: str, *, clobber: bool
) -> "Callable[[], Sink] | Landing":
    """Return what opens the target of a download, carrying on where that is possible.

    The arguments are those of ``sink_opener``.
    """
    from rpc25519_tools.files.landing import local_landing

    path = target_path(out, name)
    if not is_regular(path):
        return sink_opener(out, name, clobber=clobber)
    return local_landing(path, clobber=clobber)


def target_path(out: str | None, name: str) -> str:
    """Return the path that ``-o`` means; the arguments are those of ``sink_opener``."""
    if out is not None and (os.path.isdir(out) or out.endswith("/")):
        return os.path.join(out, name)
    return name if out is None else out


def is_regular(path: str) -> bool:
    """Tell whether a path is, for now, of a regular file, or of nothing at all.

    Streams cannot be gone back in, so transfers of them are not tried again.
    """
    if path == "-":
        return False
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return True
