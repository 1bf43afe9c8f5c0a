"""A progress line for transfers, on standard error and only on a terminal."""

import contextlib
import sys
from collections.abc import Iterator

from rpc25519_tools.files.parts import Progress

from ._output import printable


@contextlib.contextmanager
def progress_line(what: str, *, enabled: bool) -> Iterator[Progress | None]:
    """Show bytes, rate and time left while the body runs.

    Yields what the transfer has to call, or None when nobody watches.
    """
    if not enabled or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(printable(what), total=None)

        def update(done: int, total: int | None) -> None:
            display.update(task, completed=done, total=total)

        yield update
