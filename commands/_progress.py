"""A progress line for transfers, on standard error and only on a terminal."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Protocol

from rpc25519_tools.files.parts import Progress

from ._output import printable

if TYPE_CHECKING:
    import rich.progress

#: How often a sync's progress is shown, in seconds.
_SHOW_EVERY_S: Final = 0.05


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
    far to be wanted, and the number of files has a plus sign.

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
        bar = _RichSyncBar(display, what)
        yield bar
        bar.show()


class _RichSyncBar:
    def __init__(self, display: "rich.progress.Progress", what: str) -> None:
        self._display = display
        self._what = what
        self._task = display.add_task(what, total=None)
        self._found = "0+"
        self._wanted = (0, 0)
        self._total_bytes = 0
        self._done_bytes = 0
        self._shown_s = 0.0

    def found(self, files: int, *, final: bool) -> None:
        self._found = f"{files}{'' if final else '+'}"
        self._show_soon()

    def wanted(self, placed: int, files: int, total_bytes: int) -> None:
        self._wanted = (placed, files)
        self._total_bytes = total_bytes
        self._show_soon()

    def moved(self, count: int) -> None:
        self._done_bytes += count
        self._show_soon()

    def begin_again(self, done_bytes: int) -> None:
        self._done_bytes = done_bytes
        self.show()

    def _show_soon(self) -> None:
        """Show it unless that was done just now: it takes longer than a small file."""
        now_s = time.monotonic()
        if now_s - self._shown_s >= _SHOW_EVERY_S:
            self._shown_s = now_s
            self.show()

    def show(self) -> None:
        """Show it as it is."""
        placed, files = self._wanted
        self._display.update(
            self._task,
            description=f"{self._what} {placed}/{files} of {self._found} files",
            completed=self._done_bytes,
            total=self._total_bytes,
        )
