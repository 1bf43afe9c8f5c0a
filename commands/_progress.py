"""A progress line for transfers, on standard error and only on a terminal."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from rpc25519_tools.files.parts import Progress

from ._output import printable

if TYPE_CHECKING:
    import rich.progress


@contextlib.contextmanager
def progress_line(what: str, *, enabled: bool) -> Iterator[Progress | None]:
    """Show bytes, rate and time left while the body runs.

    Yields what the transfer has to call, or None when nobody watches.
    """
    if not enabled or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*_columns(), console=Console(stderr=True), transient=True) as display:
        task = display.add_task(printable(what), total=None)

        def update(done: int, total: int | None) -> None:
            display.update(task, completed=done, total=total)

        yield update


def _columns() -> "tuple[rich.progress.ProgressColumn, ...]":
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )


class SyncBar(Protocol):
    """Shows how far a sync is."""

    def found(self, files: int, *, final: bool) -> None:
        """Learn how many files there are, and whether that is all."""

    def wanted(self, placed: int, files: int, total_bytes: int) -> None:
        """Learn how many files are in place, of how many wanted, and of what size."""

    def moved(self, count: int) -> None:
        """Learn that so many more bytes are dealt with."""

    def begin_again(self, done_bytes: int) -> None:
        """Learn that after a cut no more than so many bytes are done for sure."""


@contextlib.contextmanager
def sync_bar(what: str, *, enabled: bool) -> Iterator[SyncBar | None]:
    """Show bytes, rate, total, time left and files while the body runs.

    While the source is still looked through, the total is that of what is known so
    far to be wanted, with a plus sign.

    Yields what the sync has to tell, or None when nobody watches.
    """
    if not enabled or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(
        *_columns(),
        console=Console(stderr=True),
        transient=True,
        # What is data must not end up where the bar is.
        redirect_stdout=sys.stdout.isatty(),
    ) as display:
        yield _RichSyncBar(display, what)


class _RichSyncBar:
    def __init__(self, display: "rich.progress.Progress", what: str) -> None:
        self._display = display
        self._what = what
        self._task = display.add_task(what, total=None)
        self._found = (0, False)
        self._wanted = (0, 0)

    def found(self, files: int, *, final: bool) -> None:
        self._found = (files, final)
        self._describe()

    def wanted(self, placed: int, files: int, total_bytes: int) -> None:
        self._wanted = (placed, files)
        self._display.update(self._task, total=total_bytes)
        self._describe()

    def moved(self, count: int) -> None:
        self._display.update(self._task, advance=count)

    def begin_again(self, done_bytes: int) -> None:
        self._display.update(self._task, completed=done_bytes)

    def _describe(self) -> None:
        found, final = self._found
        placed, files = self._wanted
        text = f"{self._what} {placed}/{files} of {found}{'' if final else '+'} files"
        self._display.update(self._task, description=text)
