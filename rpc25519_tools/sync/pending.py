"""Wanted files on their way: what is known of each, and what becomes of them."""

import contextlib
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from rpc25519_tools.files.area import Partial
from rpc25519_tools.sync.basis import Basis
from rpc25519_tools.sync.directories import DirState
from rpc25519_tools.sync.judge import Entry, Old
from rpc25519_tools.sync.pieces import Pieces
from rpc25519_tools.sync.records import Blocks
from rpc25519_tools.sync.tree import Parts

#: Files from this length on are carried on with after a cut.
PARTIAL_FROM: Final = 1 << 20


@dataclass(slots=True, eq=False)
class Pending:
    """A wanted file that is not in place yet.

    Attributes:
        entry: what it shall be.
        directory: where.
        old: what is there.
        change: what is told of it.
        bases: what its chunks may come from.
        partial: the unfinished file; None before anything is written.
        pieces: what is in it.
        reach: how far its pieces go.
        is_finished: whether nothing more may come: all of it is here, so that it only
            needs its name, or it has failed.
        spoiled: whether a file that it was made of has become shorter meanwhile.
        retried: whether it was wanted a second time.
        waits: whether it waits for another one that may have the same contents.
        told: whether the sender knows that it is wanted.
        rescued: how many bases stay open since other files are to have their names.
        is_chosen: whether its bases are chosen for good.
        is_cut: whether its bases are being cut, beside the thread that stores files.
        is_over: whether they are not needed any more.
        lock: holds while these two change.
        followers: further names of it, with what is there under them.
        candidates: files to make it of, and whether each is only a guess.
        tabled: bytes of tables that went out for it.
        refined: bytes of local files that blocks were summed up of.
        literal, matched: bytes that came, and that were here.
    """

    entry: Entry
    directory: DirState
    old: Old | None
    change: int
    bases: list[Basis] = field(default_factory=list)
    partial: Partial | None = None
    pieces: Pieces = field(default_factory=Pieces)
    reach: int = 0
    is_finished: bool = False
    spoiled: bool = False
    retried: bool = False
    waits: bool = False
    told: bool = False
    rescued: int = 0
    is_chosen: bool = False
    is_cut: bool = False
    is_over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    followers: "list[tuple[DirState, Entry, Old | None]]" = field(default_factory=list)
    candidates: list[tuple[Parts, bool]] = field(default_factory=list)
    tabled: int = 0
    refined: int = 0
    literal: int = 0
    matched: int = 0

    @staticmethod
    def is_regular(old: Old) -> bool:
        """Tell whether what is there is a regular file."""
        return stat.S_ISREG(old.status.st_mode)

    @property
    def path(self) -> Parts:
        """Where it lies in the transfer."""
        return (*self.directory.path, self.entry.name)

    @property
    def in_place(self) -> bool:
        """Whether the unfinished file had contents before."""
        return bool(self.bases) and self.bases[0].in_place

    @contextlib.contextmanager
    def cutting(self) -> Iterator[list[Basis]]:
        """Have bases to cut, whatever becomes of the file meanwhile.

        Then they are closed: there may be thousands of files that wait for the sender.
        """
        with self.lock:
            self.is_cut = True
            bases = self.bases
        try:
            yield bases
        finally:
            with self.lock:
                self.is_cut = False
                for basis in bases:
                    basis.end_cutting()

    def close_bases(self) -> None:
        """Let go of what chunks were taken from."""
        with self.lock:
            self.is_over = True
            for basis in self.bases:
                basis.end_copying()
                if not self.is_cut:
                    basis.end_cutting()
            self.bases = []


class Outcome:
    """What came of some records; the receiver tells the sender.

    Attributes:
        done: entries that are in place.
        failed: entry -> why it is not.
        again: entries that have to come once more, whole.
        notes: what else went wrong: paths, and why.
        blocks: answers for the sender.
        moved: bytes that were dealt with.
    """

    def __init__(self) -> None:
        self.done: list[Pending] = []
        self.failed: dict[int, tuple[Pending, str]] = {}
        self.again: list[Pending] = []
        self.notes: list[tuple[Parts, str]] = []
        self.blocks: list[Blocks] = []
        self.moved = 0
