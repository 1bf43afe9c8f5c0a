"""Going on with a transfer after the network has failed: ``--retry-for``."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ._errors import error_line
from ._output import Talk

if TYPE_CHECKING:
    from rpc25519_tools.files.carry_on import Progressed
    from rpc25519_tools.files.parts import Progress, TransferSummary

_F = TypeVar("_F", bound=Callable[..., Any])


def retry_option(command: _F) -> _F:
    """Add ``--retry-for``; its text arrives as ``retry_for``."""
    return click.option(
        "--retry-for",
        default="2m",
        show_default=True,
        metavar="DURATION",
        help="When the network fails while a file is moved, connect again and go on "
        "where it stopped, until for so long no attempt has moved anything (0: give up "
        "at once).",
    )(command)


def say_retry(talk: Talk, exc: Exception, wait_s: float) -> None:
    """Say what failed, and when the next attempt is about to come."""
    talk.say(f"{talk.prog}: {error_line(exc)}; trying again in {wait_s:.1f} s")


@dataclass(slots=True, kw_only=True)
class Attempts:
    """What the attempts of one command have in common.

    Attributes:
        talk: says that there is another one.
        count: how many have failed.
        transfer_id: tells a server that they are one.
    """

    talk: Talk
    count: int = 0
    transfer_id: str = field(default_factory=lambda: secrets.token_hex(16))
    _furthest: int = field(default=0, init=False)
    _start_s: float = field(default_factory=time.monotonic, init=False)

    def failed(self, exc: Exception, wait_s: float) -> None:
        """Say that the next attempt is about to come."""
        self.count += 1
        say_retry(self.talk, exc, wait_s)

    def whole(self, summary: "TransferSummary") -> "TransferSummary":
        """Return a summary of all attempts from that of the last."""
        if not self.count:
            return summary
        return replace(summary, seconds=time.monotonic() - self._start_s)

    def watch(self, progressed: "Progressed", shown: "Progress | None") -> "Progress":
        """Return what a transfer calls: only bytes beyond all earlier ones count."""

        def update(done: int, total: int | None) -> None:
            if done > self._furthest:
                self._furthest = done
                progressed()
            if shown is not None:
                shown(done, total)

        return update
