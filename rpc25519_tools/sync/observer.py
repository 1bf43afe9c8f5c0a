"""What a sync tells of as it goes on, whichever side we are on."""

import stat
from dataclasses import dataclass
from typing import Final, Protocol

from rpc25519_tools.sync.records import Verdict
from rpc25519_tools.sync.tree import Parts

#: What both sides say where the source is not wholly known.
NOTHING_DELETED: Final = (
    "something of the source could not be read, so nothing is deleted"
)


@dataclass(frozen=True, slots=True)
class Subject:
    """What an entry is, for those who tell people of it.

    Attributes:
        path: where it lies in the transfer; empty for the root itself.
        mode: ``st_mode``.
        size: length in bytes of a regular file, else 0.
        target: where a symbolic link leads; of a further name of a file its first
            one; empty for others.
    """

    path: Parts
    mode: int
    size: int
    target: bytes = b""

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


class SyncObserver(Protocol):
    """Learns what happens; called on the event loop, and must be quick."""

    def walked(self, files: int, total_bytes: int, *, final: bool) -> None:
        """Learn how many regular files there are so far, and their bytes."""

    def judged(
        self, subject: Subject, verdict: Verdict, change: int, note: str
    ) -> None:
        """Learn what becomes of an entry; of those where nothing is to do, nothing."""

    def moved(self, count: int) -> None:
        """Learn that so many more bytes of wanted files are dealt with."""

    def placed(self, path: Parts) -> None:
        """Learn that a wanted file is in place."""

    def failed(self, path: Parts, note: str) -> None:
        """Learn that something could not be read, or not be stored."""

    def warned(self, path: Parts, note: str) -> None:
        """Learn of something that is worth a look."""

    def skipped(self, path: Parts) -> None:
        """Learn that something is left out since its kind is not wanted."""

    def removed(self, paths: list[bytes]) -> None:
        """Learn what was removed; directories have a slash at the end."""


class Silence:
    """An observer that nobody listens to."""

    def walked(self, files: int, total_bytes: int, *, final: bool) -> None:
        """Do nothing."""

    def judged(
        self, subject: Subject, verdict: Verdict, change: int, note: str
    ) -> None:
        """Do nothing."""

    def moved(self, count: int) -> None:
        """Do nothing."""

    def placed(self, path: Parts) -> None:
        """Do nothing."""

    def failed(self, path: Parts, note: str) -> None:
        """Do nothing."""

    def warned(self, path: Parts, note: str) -> None:
        """Do nothing."""

    def skipped(self, path: Parts) -> None:
        """Do nothing."""

    def removed(self, paths: list[bytes]) -> None:
        """Do nothing."""
