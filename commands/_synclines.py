"""What a sync prints: lines of changes, figures at the end, and what failed."""

import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click

from rpc25519_tools.sync.itemize import Change, itemized, kind_letter
from rpc25519_tools.sync.observer import Silence, Subject
from rpc25519_tools.sync.records import Totals, Verdict

from ._output import Talk, human_bytes, path_text, printable, text_fields

if TYPE_CHECKING:
    from rpc25519_tools.sync.tree import Parts

    from ._progress import SyncBar

#: Failures, warnings and things left out that have a line each; the rest is counted.
MAX_LINES: Final = 100
#: Paths that are remembered so that none counts twice, when it is tried again.
_MAX_REMEMBERED: Final = 100_000
#: Lines that are printed together.
_AT_ONCE: Final = 256


def full_path(subject: Subject) -> bytes:
    """Return a path as rsync prints it: a directory's ends in a slash."""
    path = b"/".join(subject.path)
    if stat.S_ISDIR(subject.mode):
        return path + b"/" if path else b"./"
    return path


def change_line(subject: Subject, change: int, *, sending: bool) -> str:
    """Return rsync's line for a change."""
    line = f"{itemized(change, subject.mode, sending=sending)} "
    line += path_text(full_path(subject))
    if change & Change.LINKED:
        return line + (f" => {path_text(subject.target)}" if subject.target else "")
    if subject.target:
        line += f" -> {path_text(subject.target)}"
    return line


def change_object(subject: Subject, change: int, *, sending: bool) -> dict[str, Any]:
    """Return the same for JSON."""
    fields: dict[str, Any] = {
        "change": itemized(change, subject.mode, sending=sending),
        **text_fields("path", full_path(subject)),
        "size_bytes": subject.size,
    }
    if subject.target:
        name = "link_of" if change & Change.LINKED else "target"
        fields.update(text_fields(name, subject.target))
    return fields


@dataclass(slots=True)
class Listed:
    """Paths with a note each: the first ones in full, of the rest how many.

    A path that comes again, as after a cut, counts once.
    """

    count: int = 0
    first: list[tuple[bytes, str]] = field(default_factory=list)
    _seen: set[bytes] = field(default_factory=set)

    def add(self, path: bytes, note: str) -> bool:
        """Note one; tell whether it is among the first."""
        if path in self._seen:
            return False
        if len(self._seen) < _MAX_REMEMBERED:
            self._seen.add(path)
        self.count += 1
        if len(self.first) >= MAX_LINES:
            return False
        self.first.append((path, note))
        return True

    @property
    def rest(self) -> int:
        """How many there are beside the first ones."""
        return self.count - len(self.first)

    def lines(self) -> Iterable[str]:
        """Yield a line for each of the first, and one for the rest."""
        for path, note in self.first:
            yield _note_line(path, note)
        if self.rest:
            yield f"... and {self.rest} more"

    def objects(self) -> list[dict[str, str]]:
        """Return the first ones for JSON."""
        return [
            {**text_fields("path", path), "reason": printable(note)}
            for path, note in self.first
        ]


def _note_line(path: bytes, note: str) -> str:
    """Put a path before what is said about it, where it does not name it itself."""
    shown = path_text(path)
    note = printable(note)
    if not shown or f"'{shown}'" in note or f'"{shown}"' in note:
        return note
    return f"{shown}: {note}"


class SyncLines(Silence):
    """Prints what happens, and counts it.

    Args:
        sending: whether we send.
        itemize: print every change.
        as_json: as JSON objects, one a line.
        bar: shows how far it is; None: nobody looks.
        talk: takes warnings.
    """

    def __init__(
        self,
        *,
        sending: bool,
        itemize: bool,
        as_json: bool,
        bar: "SyncBar | None",
        talk: Talk,
    ) -> None:
        self._sending = sending
        self._itemize = itemize
        self._as_json = as_json
        self._bar = bar
        self._talk = talk
        self._waiting: list[str] = []
        self._open: dict[Parts, int] = {}
        self._warned = Listed()
        #: What could not be transferred.
        self.failures = Listed()
        #: What was left out since its kind is not wanted.
        self.left_out = Listed()
        #: Regular files of the source, and their bytes.
        self.files = 0
        self.total_bytes = 0
        #: New things by kind: f, d, L, D, S.
        self.created: Counter[str] = Counter()
        #: Files whose contents were wanted, and their bytes.
        self.wanted = 0
        self.wanted_bytes = 0
        #: Files that are in place, and their bytes.
        self.transferred = 0
        self.transferred_bytes = 0
        #: Things whose attributes alone were changed.
        self.adjusted = 0

    def walked(self, files: int, total_bytes: int, *, final: bool) -> None:
        """Learn what there is."""
        # After a cut some of it is found again: it need not look as if it had shrunk.
        self.files = files if final else max(self.files, files)
        self.total_bytes = total_bytes if final else max(self.total_bytes, total_bytes)
        if self._bar is not None:
            self._bar.found(self.files, final=final)

    def judged(
        self, subject: Subject, verdict: Verdict, change: int, note: str
    ) -> None:
        """Count and print a change."""
        if verdict in (Verdict.EQUAL, Verdict.SKIPPED, Verdict.FAILED):
            return
        if subject.path in self._open:
            return  # it was told before a cut
        if change & Change.NEW:
            self.created[kind_letter(subject.mode)] += 1
        elif not change & Change.CONTENT:
            self.adjusted += 1
        if verdict is not Verdict.DONE:
            self._open[subject.path] = subject.size
        if change & Change.CONTENT:
            self.wanted += 1
            self.wanted_bytes += subject.size
            self._show()
        if self._itemize:
            self._print_change(subject, change)

    def _print_change(self, subject: Subject, change: int) -> None:
        if self._as_json:
            import json

            self._print(
                json.dumps(change_object(subject, change, sending=self._sending))
            )
        else:
            self._print(change_line(subject, change, sending=self._sending))

    def moved(self, count: int) -> None:
        """Count bytes."""
        if self._bar is not None:
            self._bar.moved(count)
        self.flush()

    def placed(self, path: "Parts") -> None:
        """Count a file that is in place."""
        size = self._open.pop(path, None)
        if size is not None:
            self.transferred += 1
            self.transferred_bytes += size
            self._show()

    def failed(self, path: "Parts", note: str) -> None:
        """Note what failed."""
        self._open.pop(path, None)
        self.failures.add(b"/".join(path), note)

    def warned(self, path: "Parts", note: str) -> None:
        """Print a warning."""
        joined = b"/".join(path)
        if self._warned.add(joined, note):
            self._talk.warn(_note_line(joined, note))

    def warn_of_rest(self) -> None:
        """Tell how many warnings there were that nobody has seen."""
        if self._warned.rest:
            self._talk.warn(f"... and {self._warned.rest} more")

    def skipped(self, path: "Parts") -> None:
        """Note what is left out."""
        self.left_out.add(b"/".join(path), "")

    def removed(self, paths: Sequence[bytes]) -> None:
        """Print what was removed."""
        if not self._itemize:
            return
        for path in paths:
            if self._as_json:
                import json

                fields = {"change": "*deleting", **text_fields("path", path)}
                self._print(json.dumps(fields))
            else:
                self._print(f"*deleting   {path_text(path)}")

    def all_done(self) -> None:
        """Learn that the sync has succeeded: what has not failed is in place.

        Of files that were put there just before a cut nothing else may have told.
        """
        for size in self._open.values():
            self.transferred += 1
            self.transferred_bytes += size
        self._open.clear()

    def cut(self) -> None:
        """Learn that the connection broke, and that another attempt follows."""
        if self._bar is not None:
            self._bar.begin_again(self.transferred_bytes)

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.wanted(self.transferred, self.wanted, self.wanted_bytes)

    def _print(self, line: str) -> None:
        self._waiting.append(line)
        if len(self._waiting) >= _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Print what waits to be printed.

        Raises:
            OSError: standard output takes no more.
        """
        if self._waiting:
            lines, self._waiting = self._waiting, []
            click.echo("\n".join(lines))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a sync came to.

    Attributes:
        operation: push or pull.
        dry_run: whether nothing was really done.
        lines: has counted.
        totals: what the receiver reports, of all attempts together.
        seconds: from the first step to the end.
        sent_bytes, received_bytes: over the network, all attempts together.
        attempts: connections that it took.
    """

    operation: str
    dry_run: bool
    lines: SyncLines
    totals: Totals
    seconds: float
    sent_bytes: int
    received_bytes: int
    attempts: int

    @property
    def speedup(self) -> float:
        """How many times more there is than went over the network."""
        return self.lines.total_bytes / max(self.sent_bytes + self.received_bytes, 1)

    @property
    def literal_bytes(self) -> int:
        """How much of what was transferred went over the network.

        Also of files that were put in place just before a cut, of which nobody told.
        """
        literal = self.totals.literal_bytes
        if self.attempts == 1:
            return literal
        rest = self.lines.transferred_bytes - self.totals.matched_bytes
        return max(literal, rest)

    def summary(self, names: str) -> str:
        """Return the one line at the end."""
        lines = self.lines
        what = {"push": "pushed", "pull": "pulled"}[self.operation]
        count, size = lines.transferred, lines.transferred_bytes
        if self.dry_run:
            what = f"dry run, nothing is changed: would have {what}"
            count, size = lines.wanted, lines.wanted_bytes
        wire = self.sent_bytes + self.received_bytes
        files = f"{count} of {_counted(lines.files, 'file')}"
        sizes = f"{human_bytes(size)} of {human_bytes(lines.total_bytes)}"
        parts = [f"{what} {names}: {files} ({sizes})"]
        if self.totals.deleted:
            parts.append(f"{self.totals.deleted} deleted")
        parts.append(f"in {self.seconds:.3f} s, {human_bytes(wire)} on the wire")
        return ", ".join(parts)

    def block(self) -> list[str]:
        """Return the lines of ``--stats``."""
        lines, totals = self.lines, self.totals
        created = lines.created
        kinds = (("f", "file"), ("d", "directory"), ("L", "link"))
        news = [_counted(created[key], word) for key, word in kinds if created[key]]
        if special := created["D"] + created["S"]:
            news.append(f"{special} special")
        transferred = lines.wanted if self.dry_run else lines.transferred
        size = lines.wanted_bytes if self.dry_run else lines.transferred_bytes
        return [
            f"Files: {lines.files}",
            f"Created: {created.total()}" + (f" ({', '.join(news)})" if news else ""),
            f"Deleted: {totals.deleted}",
            f"Transferred: {transferred}",
            f"Changed in attributes alone: {lines.adjusted}",
            f"Total size: {lines.total_bytes} bytes",
            f"Transferred size: {size} bytes",
            f"Literal data: {self.literal_bytes} bytes",
            f"Matched data: {totals.matched_bytes} bytes",
            f"Sent: {self.sent_bytes} bytes",
            f"Received: {self.received_bytes} bytes",
            f"Speedup: {self.speedup:.2f}",
        ]

    def as_object(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        lines, totals = self.lines, self.totals
        created = lines.created
        return {
            "operation": self.operation,
            "dry_run": self.dry_run,
            "files": lines.files,
            "total_bytes": lines.total_bytes,
            "created": created.total(),
            "created_files": created["f"],
            "created_directories": created["d"],
            "created_links": created["L"],
            "created_specials": created["D"] + created["S"],
            "wanted": lines.wanted,
            "wanted_bytes": lines.wanted_bytes,
            "transferred": lines.transferred,
            "transferred_bytes": lines.transferred_bytes,
            "adjusted": lines.adjusted,
            "deleted": totals.deleted,
            "undeleted": totals.undeleted,
            "literal_bytes": self.literal_bytes,
            "matched_bytes": totals.matched_bytes,
            "sent_bytes": self.sent_bytes,
            "received_bytes": self.received_bytes,
            "speedup": round(self.speedup, 3),
            "seconds": round(self.seconds, 6),
            "attempts": self.attempts,
            "left_out": lines.left_out.count,
            "failed": lines.failures.count,
            "failures": lines.failures.objects(),
        }


def _counted(count: int, word: str) -> str:
    if count == 1:
        return f"1 {word}"
    plural = "directories" if word == "directory" else f"{word}s"
    return f"{count} {plural}"
