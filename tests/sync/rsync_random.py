"""Cases with rsync that seeds make: a tree, another that was once the same, options."""

import random
from dataclasses import dataclass, field
from posixpath import dirname

from msgspec import structs

from tests.sync.rsync_cases import MTIME_NS, Case, Entry

COUNT = 70

_MOST_ENTRIES = 16
_SECOND_NS = 1_000_000_000
_NAMES = ["a", "b", "core", "x.c", "x.o", "y.c", "lib", "doc", "z.txt", "A1", ".dot"]
_PATTERNS = [
    "*.c", "*.o", "/a", "a/", "core", "lib/*", "lib/**", "**/x.c", "/*/x.*", "doc/***",
    "/b/**/a", "?", "[ab]", "[!a-c]*", "a/b", "*/", "/lib/", "*o*", "x.[co]", "a*/**c",
    ".*", "b**", "**a**", "/a/*/", "c*e", "[[:upper:]]?",
]  # fmt: skip
_OPTIONS = [
    "--times", "--perms", "--checksum", "--size-only", "--existing", "--update",
    "--ignore-existing", "--hard-links",
]  # fmt: skip


def random_cases() -> list[Case]:
    """Make the cases, always the same."""
    return [_case(seed) for seed in range(COUNT)]


def _case(seed: int) -> Case:
    source = random.Random(seed)
    trees = _Trees(source)
    for _ in range(source.randint(3, _MOST_ENTRIES)):
        trees.grow("src")
    if seed % 4:
        trees.copy()
        for _ in range(source.randint(0, 5)):
            trees.grow("dst")
    sources = source.choice([("src/",), ("src/",), ("src/",), ("src",)])
    if sources == ("src",):
        trees.lower_destination()
    return Case(
        name=f"random {seed}",
        entries=tuple(trees.entries.values()),
        sources=sources,
        arguments=_arguments(source, plain=seed % 4 == 0),
    )


def _arguments(source: random.Random, *, plain: bool) -> tuple[str, ...]:
    arguments = [source.choice(["-a", "-r"])]
    for _ in range(source.randint(1, 4) if plain else source.choice([0, 0, 1, 2, 3])):
        kind = source.choice(["--exclude", "--exclude", "--include"])
        arguments.append(f"{kind}={source.choice(_PATTERNS)}")
    if plain:
        return tuple(arguments)
    if arguments[0] == "-r" and source.random() < 0.5:
        arguments.append("--links")
    arguments += source.sample(_OPTIONS, source.choice([0, 1, 1, 2]))
    if source.random() < 0.6:
        arguments.append(source.choice(["--delete", "--delete", "--delete-excluded"]))
        if source.random() < 0.3:
            arguments.append(f"--max-delete={source.randint(0, 4)}")
    return tuple(arguments)


@dataclass
class _Trees:
    source: random.Random
    entries: dict[str, Entry] = field(
        default_factory=lambda: {
            end: Entry(path=end, kind="dir") for end in ("src", "dst")
        }
    )

    def grow(self, end: str) -> None:
        """Add one entry to a directory of one of the trees."""
        dirs = [
            path
            for path, entry in self.entries.items()
            if entry.kind == "dir" and path.partition("/")[0] == end
        ]
        path = f"{self.source.choice(dirs)}/{self.source.choice(_NAMES)}"
        if path in self.entries:
            return
        kind = self.source.choice(
            ["dir", "dir", "file", "file", "file", "file", "link"]
        )
        if kind == "dir":
            self.entries[path] = Entry(path=path, kind="dir", mtime_ns=self._time())
        elif kind == "link":
            target = self.source.choice(_NAMES)
            self.entries[path] = Entry(
                path=path, kind="link", target=target, mtime_ns=self._time()
            )
        else:
            self.entries[path] = Entry(
                path=path,
                size=self.source.randint(0, 9),
                seed=self.source.randint(0, 2),
                mode=self.source.choice(["", "", "600", "755"]),
                mtime_ns=self._time(),
            )

    def copy(self) -> None:
        """Let the destination be what the source once was."""
        for path, entry in list(self.entries.items()):
            there = f"dst{path.removeprefix('src')}"
            above = self.entries.get(dirname(there))
            if path in {"src", "dst"} or above is None or above.kind != "dir":
                continue
            changed = self._changed(structs.replace(entry, path=there))
            if changed is not None:
                self.entries[there] = changed

    def _changed(self, entry: Entry) -> Entry | None:
        match self.source.randint(0, 9):
            case 0 | 1:
                return None
            case 2:
                return structs.replace(entry, mtime_ns=self._time())
            case 3 if entry.kind == "file":
                return structs.replace(entry, mode="640")
            case 4 if entry.kind == "file":
                return structs.replace(entry, seed=entry.seed + 1)
            case 5 if entry.kind == "file":
                return structs.replace(entry, size=entry.size + 1)
            case 5 if entry.kind == "link":
                return structs.replace(entry, target="other")
            case 6:
                return Entry(path=entry.path, kind="dir")
            case 7:
                return Entry(path=entry.path, size=4)
            case _:
                return entry

    def _time(self) -> int:
        return MTIME_NS + self.source.choice([0, 0, -100, 100]) * _SECOND_NS

    def lower_destination(self) -> None:
        """Put what is in the destination into a directory as the source is called."""
        entries: dict[str, Entry] = {}
        for old_path, entry in self.entries.items():
            path = old_path
            if path.startswith("dst/"):
                path = f"dst/src/{path.removeprefix('dst/')}"
                entries.setdefault("dst/src", Entry(path="dst/src", kind="dir"))
            entries[path] = structs.replace(entry, path=path)
        self.entries = entries
