r"""Small trees, options, and what rsync's dry run said of them: data/rsync/*.json.

The files are made by ``record_rsync.py`` beside this module. A case is used so::

    for case in load_cases():
        sources, destination = build(case, folder)
        ... our own dry run with case.options ...
        assert changes == case.changes

Text in the files is rsync's spelling of bytes: ``\#`` and three octal digits for a byte
that is not printable ASCII. :func:`plain` and :func:`spelled` convert.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, assert_never

import msgspec

from rpc25519_tools.sync.filters import (
    Parsed,
    Rule,
    parse_rules,
    rule_from_option,
    rules_from_file,
)

DATA = Path(__file__).parent.parent / "data" / "rsync"

#: When an entry was changed that says nothing else.
MTIME_NS = 1_700_000_000_000_000_000
FILE_MODE = "644"
DIR_MODE = "755"

_ESCAPE = re.compile(rb"\\#([0-7]{3})")
_TO_ESCAPE = re.compile(rb"[^ -~]|\\(?=#[0-7]{3})")
#: An itemized change: rsync's manual, "--itemize-changes".
_CHANGE = re.compile(r"([<>ch.][fdLDS].{9}|\*deleting  ) (.*)")


def plain(text: str) -> bytes:
    """Return the bytes that a text in a case means."""
    return _ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), text.encode("ascii"))


def spelled(name: bytes) -> str:
    """Write bytes as ``plain`` reads them."""
    escaped = _TO_ESCAPE.sub(lambda found: b"\\#%03o" % found[0][0], name)
    return escaped.decode("ascii")


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file, directory or link of a case's trees.

    Attributes:
        path: from the case's folder: ``src/a`` or ``dst/a``.
        size: bytes of a file; ``seed`` chooses them.
        mode: octal digits; empty for ``FILE_MODE`` or ``DIR_MODE``.
        target: what a link holds, or the path of an earlier file, which a hardlink
            is another name of.
    """

    path: str
    kind: Literal["file", "dir", "link", "hardlink", "fifo"] = "file"
    size: int = 0
    seed: int = 0
    mode: str = ""
    mtime_ns: int = MTIME_NS
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An itemized line: ``>f+++++++++ a/b``.

    Attributes:
        code: eleven characters; of a deletion ``*deleting  ``.
        path: of a directory with a slash at the end.
        target: of a link, or of one more name of a file that is sent; else empty.
    """

    code: str
    path: bytes
    target: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncCaseOptions:
    """What the options of a case mean.

    Attributes:
        archive: ``-a``, which sets ``recursive``, ``links``, ``perms`` and ``times``.
        rules: of all filter options, those of files included.
        files_from: the content of the file.
        backup_dir: relative to the destination.
    """

    archive: bool = False
    recursive: bool = False
    links: bool = False
    perms: bool = False
    times: bool = False
    hard_links: bool = False
    checksum: bool = False
    size_only: bool = False
    existing: bool = False
    ignore_existing: bool = False
    update: bool = False
    delete: bool = False
    delete_excluded: bool = False
    max_delete: int | None = None
    rules: tuple[Rule, ...] = ()
    files_from: bytes | None = None
    backup_dir: bytes | None = None


_FLAGS = {
    "-r": ("recursive",),
    "-a": ("archive", "recursive", "links", "perms", "times"),
    "--links": ("links",),
    "--perms": ("perms",),
    "--times": ("times",),
    "--hard-links": ("hard_links",),
    "--checksum": ("checksum",),
    "--size-only": ("size_only",),
    "--existing": ("existing",),
    "--ignore-existing": ("ignore_existing",),
    "--update": ("update",),
    "--delete": ("delete",),
    "--delete-excluded": ("delete", "delete_excluded"),
}
_OF_FILTERS = ("--include", "--exclude", "--include-from", "--exclude-from")


class Case(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One dry run of rsync.

    Attributes:
        name: unique among all cases.
        entries: both trees, parents before what they hold.
        texts: the contents of files that options name, by their names.
        sources: arguments, from the case's folder; those with a slash at the end mean
            the content of a directory.
        arguments: options; values are behind an equals sign.
        lines: what rsync printed, in its order, in which deletions may come sooner or
            later: compare what is sorted.
        errors: what it printed to stderr, in its order.
    """

    name: str
    entries: tuple[Entry, ...]
    texts: dict[str, str] = {}
    sources: tuple[str, ...] = ("src/",)
    destination: str = "dst/"
    arguments: tuple[str, ...]
    lines: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    exit_code: int = 0

    @property
    def options(self) -> SyncCaseOptions:
        """The options, parsed."""
        options = SyncCaseOptions()
        parsed: list[Parsed | None] = []
        for argument in self.arguments:
            if argument in _FLAGS:
                flags: dict[str, Any] = dict.fromkeys(_FLAGS[argument], True)
                options = replace(options, **flags)
                continue
            name, _, value = argument.partition("=")
            if name in _OF_FILTERS:
                parsed += self._rules(name, value)
            elif name == "--max-delete":
                options = replace(options, max_delete=int(value))
            elif name == "--files-from":
                options = replace(options, files_from=plain(self.texts[value]))
            elif name == "--backup-dir":
                options = replace(options, backup_dir=plain(value))
            else:
                raise AssertionError(f"unknown option {argument}")
        return replace(options, rules=parse_rules(parsed))

    def _rules(self, name: str, value: str) -> list[Parsed | None]:
        include = name.startswith("--include")
        if name.endswith("-from"):
            return [*rules_from_file(plain(self.texts[value]), include=include)]
        return [rule_from_option(plain(value), include=include)]

    @property
    def changes(self) -> tuple[Change, ...]:
        """The itemized lines, in rsync's order."""
        return tuple(
            change for line in self.lines if (change := parse_change(line)) is not None
        )

    @property
    def notices(self) -> tuple[str, ...]:
        """The other lines of stdout, as ``skipping non-regular file "link"``."""
        return tuple(line for line in self.lines if parse_change(line) is None)

    @property
    def filters_only(self) -> bool:
        """Whether all but filters is plain: ``-r`` or ``-a``, to where nothing is."""
        names = {argument.partition("=")[0] for argument in self.arguments}
        nothing_there = all(
            entry.path == "dst" or not entry.path.startswith("dst/")
            for entry in self.entries
        )
        return nothing_there and names <= {"-r", "-a", *_OF_FILTERS}


def parse_change(line: str) -> Change | None:
    """Parse an itemized line; None if it is another one."""
    found = _CHANGE.fullmatch(line)
    if found is None:
        return None
    code, rest = found[1], found[2]
    target = ""
    if code[0] == "h":
        rest, _, target = rest.partition(" => ")
    elif code[1] == "L":
        rest, _, target = rest.partition(" -> ")
    return Change(code=code, path=plain(rest), target=plain(target))


def load_cases() -> list[Case]:
    """Read all cases, in the order of the files' names."""
    return [
        case
        for path in sorted(DATA.glob("*.json"))
        for case in msgspec.json.decode(path.read_bytes(), type=list[Case])
    ]


def content_of(entry: Entry) -> bytes:
    """Return what a file of a case holds; the same seed and size give the same."""
    return hashlib.shake_128(b"%d" % entry.seed).digest(entry.size)


def build(case: Case, folder: Path) -> tuple[list[str], str]:
    """Make the trees and the files that options name, below an empty folder.

    Returns:
        the sources and the destination, as absolute paths, with the slashes at the
        end that the case has.
    """
    for name, text in case.texts.items():
        (folder / name).write_bytes(plain(text))
    root = os.fsencode(folder)
    made: list[tuple[bytes, Entry]] = []
    for entry in case.entries:
        path = os.path.join(root, plain(entry.path))
        _make(entry, path, root)
        made.append((path, entry))
    for path, entry in reversed(made):  # what a directory holds before itself
        if entry.kind not in {"link", "hardlink"}:
            default = DIR_MODE if entry.kind == "dir" else FILE_MODE
            os.chmod(path, int(entry.mode or default, 8))
        if entry.kind != "hardlink":
            times = (entry.mtime_ns, entry.mtime_ns)
            os.utime(path, ns=times, follow_symlinks=False)
    return (
        [_absolute(folder, source) for source in case.sources],
        _absolute(folder, case.destination),
    )


def _absolute(folder: Path, argument: str) -> str:
    return os.path.join(folder, os.fsdecode(plain(argument)))


def _make(entry: Entry, path: bytes, root: bytes) -> None:
    match entry.kind:
        case "dir":
            os.mkdir(path)
        case "file":
            with open(path, "xb") as file:
                file.write(content_of(entry))
        case "link":
            os.symlink(plain(entry.target), path)
        case "hardlink":
            os.link(os.path.join(root, plain(entry.target)), path)
        case "fifo":
            os.mkfifo(path)
        case _:
            assert_never(entry.kind)


def rsync_command(case: Case) -> list[bytes]:
    """Return the command line of a case, to be run in its folder."""
    arguments: Sequence[str] = (*case.arguments, *case.sources, case.destination)
    return [b"rsync", b"-n", b"--itemize-changes", *map(plain, arguments)]
