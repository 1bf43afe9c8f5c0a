r"""The cases with rsync that are written by hand, as tables of trees and options.

An entry is a line: ``src/a/b 10 s3 m600 t-5`` is a file of 10 bytes of seed 3, its
mode, and changed 5 seconds before the usual time (``n+1``: one nanosecond after it);
``src/a/`` is a directory; ``src/l -> x`` a link, ``src/h = src/a`` a second name,
``src/p |`` a FIFO. Names that have spaces or odd bytes are spelled as in the files
(``\#040``).
Directories above an entry come by themselves.
"""

from collections.abc import Iterable
from posixpath import dirname

from tests.sync.rsync_cases import MTIME_NS, Case, Entry

_SECOND_NS = 1_000_000_000


def entry(line: str) -> Entry:
    """Parse one line of a tree."""
    path, *words = line.split()
    if words and words[0] in {"->", "="}:
        kind = "link" if words[0] == "->" else "hardlink"
        return _entry(path, kind, words[2:], target=words[1])
    if words and words[0] == "|":
        return _entry(path, "fifo", words[1:])
    if path.endswith("/"):
        return _entry(path.rstrip("/"), "dir", words)
    return _entry(path, "file", words)


def _entry(path: str, kind: str, words: Iterable[str], target: str = "") -> Entry:
    size, seed, mode, mtime_ns = 5 if kind == "file" else 0, 0, "", MTIME_NS
    for word in words:
        if word.startswith("s"):
            seed = int(word[1:])
        elif word.startswith("m"):
            mode = word[1:]
        elif word.startswith("t"):
            mtime_ns += int(word[1:]) * _SECOND_NS
        elif word.startswith("n"):
            mtime_ns += int(word[1:])
        else:
            size = int(word)
    made: Entry = Entry(
        path=path,
        kind=kind,  # type: ignore[arg-type] # one of the kinds, by its callers
        size=size,
        seed=seed,
        mode=mode,
        mtime_ns=mtime_ns,
        target=target,
    )
    return made


def tree(text: str, *, ends: tuple[str, ...] = ("src", "dst")) -> tuple[Entry, ...]:
    """Parse the lines of a tree; add the directories above, and the two ends."""
    made = {end: Entry(path=end, kind="dir") for end in ends}
    for line in text.strip().splitlines():
        this = entry(line.strip())
        missing = []
        above = dirname(this.path)
        while above and above not in made:
            missing.append(Entry(path=above, kind="dir"))
            above = dirname(above)
        made.update((parent.path, parent) for parent in reversed(missing))
        made[this.path] = this
    return tuple(made.values())


def more(entries: Iterable[Entry], text: str) -> tuple[Entry, ...]:
    """Add the lines of another tree, whose directories may be there already."""
    added = {this.path: this for this in tree(text)}
    return tuple({**added, **{this.path: this for this in entries}}.values())


#: A tree of sources, with directories of the same name at several depths.
PROJECT = tree("""
    src/Makefile
    src/README.md 40
    src/build/main.o
    src/build/keep.txt
    src/core
    src/doc/build/index.html
    src/doc/api/core/a.html
    src/doc/api/core/b.txt
    src/doc/manual.txt
    src/empty/
    src/lib/core.c
    src/lib/core.o
    src/lib/deep/er/core.c
    src/lib/deep/er/core.h
    src/lib/deep/main.c
    src/lib/link.c -> core.c
    src/main.c
    src/main.o
    src/tmp/.hidden
    src/tmp/a1
    src/tmp/b2
    src/tmp/C3
""")

#: Names in which every character of patterns stands.
ODD = tree(r"""
    src/a*b
    src/a?b
    src/a[b]
    src/a[b
    src/a\b
    src/a\*b
    src/a-b
    src/a]b
    src/a!b
    src/a^b
    src/#hash
    src/;semi
    src/!
    src/-\#040dash
    src/+\#040plus
    src/two\#040words
    src/\#040lead
    src/trail\#040
    src/tab\#011tab
    src/new\#012line
    src/bell\#007
    src/\#303\#244
    src/\#377\#376
    src/back\\slash
    src/d*r/x
    src/d\r/x
    src/d\#134#141r/x
    src/~
    src/...
    src/.a
""")


def _filters(name: str, *arguments: str, text: str = "") -> Case:
    trees = ODD if name.startswith("odd") else PROJECT
    return Case(
        name=f"filter {name}",
        entries=trees,
        texts={"rules": text} if text else {},
        arguments=arguments,
    )


_FILTERS = [
    _filters("none", "-r"),
    _filters("none archive", "-a"),
    _filters("name", "-r", "--exclude=core"),
    _filters("suffix", "-a", "--exclude=*.o"),
    _filters("anchored", "-r", "--exclude=/core"),
    _filters("anchored directory", "-r", "--exclude=/build/"),
    _filters("directory anywhere", "-r", "--exclude=build/"),
    _filters("directory that is a file too", "-a", "--exclude=core/"),
    _filters("tail", "-r", "--exclude=core/a.html"),
    _filters("tail of three", "-r", "--exclude=api/core/b.txt"),
    _filters("tail is no middle", "-r", "--exclude=lib/deep/er/core"),
    _filters("tail with star", "-r", "--exclude=er/*.c"),
    _filters("tail with star for a directory", "-r", "--exclude=doc/*/core"),
    _filters("star does not pass a slash", "-r", "--exclude=/lib*core.c"),
    _filters("stars pass slashes", "-r", "--exclude=/lib**core.c"),
    _filters("stars need two levels", "-r", "--exclude=/lib/**/core.c"),
    _filters("stars in front", "-r", "--exclude=**/core.c"),
    _filters("stars in front without slash", "-r", "--exclude=**core.c"),
    _filters("stars behind", "-r", "--exclude=lib/**"),
    _filters("stars behind, anchored", "-r", "--exclude=/doc/**"),
    _filters("three stars", "-r", "--exclude=deep/***"),
    _filters("three stars included", "-r", "--include=/lib/***", "--exclude=*"),
    _filters("three stars deep", "-r", "--include=deep/***", "--exclude=/lib/*"),
    _filters("stars in the middle", "-r", "--exclude=d**e"),
    _filters("stars and star", "-r", "--exclude=l**e*/*.c"),
    _filters("stars float", "-r", "--exclude=api/**.txt"),
    _filters("question marks", "-r", "--exclude=??"),
    _filters("question mark is no slash", "-r", "--exclude=lib?core.c"),
    _filters("set", "-r", "--exclude=[ab][0-9]"),
    _filters("set negated", "-r", "--exclude=[!a-z.]*"),
    _filters("set negated by circumflex", "-r", "--exclude=[^a-z.]*"),
    _filters("posix set", "-r", "--exclude=[[:upper:]]*"),
    _filters("posix sets", "-r", "--exclude=[[:lower:]][[:digit:]]"),
    _filters("unknown posix set", "-r", "--exclude=[[:low:]]*"),
    _filters("set not closed", "-r", "--exclude=[a-z*"),
    _filters("slash in a set", "-r", "--exclude=lib[/]core.c"),
    _filters("only .c files", "-a", "--include=*/", "--include=*.c", "--exclude=*"),
    _filters(
        "path down to one file",
        "-r",
        "--include=lib/",
        "--include=lib/deep/",
        "--include=lib/deep/main.c",
        "--exclude=*",
    ),
    _filters("file below what is excluded", "-r", "--include=main.c", "--exclude=lib"),
    _filters("first match wins", "-r", "--exclude=*.c", "--include=main.c"),
    _filters("include first", "-r", "--include=main.c", "--exclude=*.c"),
    _filters("all", "-r", "--exclude=*"),
    _filters("all by stars", "-r", "--exclude=**"),
    _filters("all by three stars", "-a", "--exclude=***"),
    _filters("all at the top", "-r", "--exclude=/*"),
    _filters("all directories", "-a", "--exclude=*/"),
    _filters("contents only", "-r", "--exclude=/*/*"),
    _filters("a lone slash", "-r", "--exclude=/"),
    _filters("two slashes", "-r", "--exclude=core//", "--exclude=lib//core.c"),
    _filters("empty", "-r", "--exclude=", "--exclude=*.o"),
    _filters("prefixes in options", "-r", "--exclude=+ *.c", "--include=- lib/*"),
    _filters("clear", "-r", "--exclude=*", "--exclude=!", "--exclude=*.c"),
    _filters("link", "-a", "--exclude=link.*/", "--exclude=er"),
    _filters("link by name", "-a", "--exclude=link.c"),
    _filters("hidden", "-r", "--exclude=.*"),
    _filters(
        "file of excludes",
        "-r",
        "--exclude-from=rules",
        text="# comment\n; another\n\n*.o\n+ /lib/deep/**\r\n- deep/\r/core\n- /tmp/a1",
    ),
    _filters(
        "file of includes",
        "-r",
        "--include-from=rules",
        "--exclude=*",
        text="*/\n*.txt\n- core.h\n #no comment\n",
    ),
    _filters(
        "file that clears",
        "-r",
        "--exclude=*",
        "--exclude-from=rules",
        text="*.c\n!\n*.h\n!x\n",
    ),
    _filters(
        "two files", "-r", "--include-from=rules", "--exclude-from=rules", text="*.c\n"
    ),
    _filters("odd none", "-r"),
    _filters("odd star", "-r", r"--exclude=a\*b"),
    _filters("odd backslash without wildcards", "-r", r"--exclude=a\b"),
    _filters("odd backslash with wildcards", "-r", r"--exclude=a\b*"),
    _filters("odd backslashes with wildcards", "-r", r"--exclude=a\\b*"),
    _filters("odd two backslashes, no wildcards", "-r", r"--exclude=back\\slash"),
    _filters("odd backslash at the end", "-r", "--exclude=*\\"),
    _filters("odd bracket", "-r", r"--exclude=a\[b"),
    _filters("odd bracket in a set", "-r", "--exclude=a[]]b"),
    _filters("odd set of all", "-r", r"--exclude=a[]*?\\!^-]b"),
    _filters("odd set with a hyphen first", "-r", "--exclude=a[-]b"),
    _filters("odd set as a name", "-r", "--exclude=a[[]b"),
    _filters("odd escaped in a set", "-r", r"--exclude=a[\]\-]b"),
    _filters("odd range to an escaped", "-r", r"--exclude=a[Z-\]]b"),
    _filters("odd hash", "-r", "--exclude=#hash", "--exclude=;semi"),
    _filters(
        "odd hash from a file", "-r", "--exclude-from=rules", text="- #hash\n;semi"
    ),
    _filters("odd exclamation", "-r", "--exclude=- !"),
    _filters("odd prefix", "-r", "--exclude=- - dash", "--exclude=-dash"),
    _filters("odd spaces", "-r", "--exclude= lead", "--exclude=trail "),
    _filters(
        "odd space at an end", "-r", "--exclude-from=rules", text="trail\ntwo words"
    ),
    _filters("odd control", "-r", "--exclude=*[[:cntrl:]]*"),
    _filters("odd print", "-r", "--exclude=[[:print:]]*"),
    _filters("odd bytes", "-r", r"--exclude=\#377*"),
    _filters("odd range of bytes", "-r", r"--exclude=[\#200-\#376]?"),
    _filters("odd not ASCII", "-r", "--exclude=[!a-z]*[![:graph:][:space:]]"),
    _filters(
        "odd names of directories", "-r", r"--exclude=/d\*r/", r"--exclude=d\\r/x*"
    ),
    _filters("odd newline", "-r", r"--exclude=new\#012*"),
    _filters("odd dots", "-r", "--exclude=..*", "--exclude=.?"),
    Case(
        name="filter directory itself",
        entries=PROJECT,
        sources=("src",),
        arguments=(
            "-r",
            "--exclude=src/build",
            "--exclude=/src/doc/**",
            "--exclude=/lib",
        ),
    ),
    Case(
        name="filter directory itself excluded",
        entries=PROJECT,
        sources=("src",),
        arguments=("-a", "--exclude=/src"),
    ),
    Case(
        name="filter several sources",
        entries=PROJECT,
        sources=("src/lib", "src/doc/", "src/main.c"),
        arguments=(
            "-a",
            "--exclude=/core",
            "--exclude=lib/core.*",
            "--exclude=/main.?",
        ),
    ),
    Case(
        name="filter several sources, one excluded",
        entries=PROJECT,
        sources=("src/lib", "src/doc"),
        arguments=("-r", "--include=/doc/***", "--exclude=core.c", "--exclude=doc"),
    ),
]

#: What is there already is older, newer, other, of another mode, or the same.
CHANGED = tree("""
    src/same
    dst/same
    src/older_there s1
    dst/older_there s2 t-100
    src/newer_there s1
    dst/newer_there s2 t+100
    src/other_size 10
    dst/other_size 11
    src/other_content s1
    dst/other_content s2
    src/touched
    dst/touched t+60
    src/nanosecond n+1
    dst/nanosecond
    src/mode m600
    dst/mode m644
    src/executable m755
    dst/executable m644
    src/all 7 m640 t+9
    dst/all 8 m644
    src/new
    src/sub/ m700 t-50
    dst/sub/ m755
    src/sub/same
    dst/sub/same
    src/sub/new t-5
    src/newdir/new
    dst/only_there
    dst/only_dir/deep/file
    src/link -> same
    dst/link -> same
    src/link_elsewhere -> same
    dst/link_elsewhere -> other
    src/link_touched -> same t+5
    dst/link_touched -> same
    dst/only_link -> same
""")


def _changed(*arguments: str) -> Case:
    return Case(
        name=f"changed {' '.join(arguments)}", entries=CHANGED, arguments=arguments
    )


_COMPARE = [
    _changed("-r"),
    _changed("-a"),
    _changed("-r", "--times"),
    _changed("-r", "--perms"),
    _changed("-r", "--links"),
    _changed("-r", "--links", "--times", "--perms"),
    _changed("-r", "--checksum"),
    _changed("-a", "--checksum"),
    _changed("-r", "--size-only"),
    _changed("-a", "--size-only"),
    _changed("-r", "--existing"),
    _changed("-a", "--existing"),
    _changed("-r", "--ignore-existing"),
    _changed("-a", "--ignore-existing"),
    _changed("-a", "--existing", "--ignore-existing"),
    _changed("-r", "--update"),
    _changed("-a", "--update"),
    _changed("-a", "--update", "--checksum"),
    _changed("-a", "--delete"),
    _changed("-a", "--delete", "--existing"),
    _changed("-a", "--delete", "--existing", "--ignore-existing"),
    _changed("-a", "--delete", "--ignore-existing"),
    _changed("-a", "--delete", "--max-delete=2"),
    _changed("-a", "--delete", "--max-delete=0"),
    _changed("-a", "--delete", "--max-delete=5"),
    _changed("-a", "--backup-dir=old"),
    _changed("-a", "--delete", "--backup-dir=old"),
    _changed("-a", "--delete", "--backup-dir=../old"),
    _changed("--times"),
    _changed("-a", "--hard-links"),
]

_THERE_TOO = tree("""
    src/a.c
    src/keep/x.c
    src/keep/y.o
    src/lib/
    dst/a.o
    dst/a.tmp
    dst/keep/old.o
    dst/keep/old.c
    dst/gone/x.o
    dst/gone/x.c
    dst/gone/sub/x.tmp
    dst/plain/a.c
    dst/plain/sub/b.c
    dst/lib/mine/x.o
    dst/lib/mine/x.c
    dst/file.o/inside
""")


def _delete(*arguments: str) -> Case:
    return Case(
        name=f"delete {' '.join(arguments)}", entries=_THERE_TOO, arguments=arguments
    )


_DELETE = [
    _delete("-r", "--delete"),
    _delete("-r", "--delete", "--exclude=*.o"),
    _delete("-r", "--delete-excluded", "--exclude=*.o"),
    _delete("-r", "--delete", "--exclude=*.tmp"),
    _delete("-r", "--delete", "--exclude=gone"),
    _delete("-r", "--delete", "--exclude=/lib/"),
    _delete("-r", "--delete", "--exclude=/lib/mine/***"),
    _delete("-r", "--delete", "--include=*/", "--include=*.c", "--exclude=*"),
    _delete("-r", "--delete", "--exclude=sub/"),
    _delete("-r", "--delete", "--include=old.o", "--exclude=*.o"),
    _delete("-r", "--delete", "--exclude=*"),
    _delete("-r", "--delete-excluded", "--exclude=*"),
    _delete("-r", "--delete-excluded", "--include=/keep/***", "--exclude=*"),
    _delete("-r", "--delete", "--max-delete=4"),
    _delete("-r", "--delete", "--max-delete=4", "--exclude=*.c"),
    Case(
        name="delete with the directory itself",
        entries=more(_THERE_TOO, "dst/src/old\ndst/src/keep/old"),
        sources=("src",),
        arguments=("-r", "--delete"),
    ),
    Case(
        name="delete with two sources",
        entries=tree("src/a/x\nsrc/b/y\nsrc/b/sub/z\ndst/x\ndst/old\ndst/sub/old"),
        sources=("src/a/", "src/b/"),
        arguments=("-r", "--delete"),
    ),
    Case(
        name="delete where the source is empty",
        entries=tree("dst/x\ndst/sub/old\ndst/sub/more/old\ndst/empty/"),
        arguments=("-a", "--delete"),
    ),
]

_TYPES = tree("""
    src/file_over_dir
    dst/file_over_dir/
    src/file_over_full_dir
    dst/file_over_full_dir/inside/deep
    src/dir_over_file/inside
    dst/dir_over_file
    src/dir_over_link/inside
    dst/dir_over_link -> elsewhere
    src/file_over_link
    dst/file_over_link -> same
    src/link_over_file -> x
    dst/link_over_file
    src/link_over_dir -> x
    dst/link_over_dir/
    src/link_over_full_dir -> x
    dst/link_over_full_dir/inside
    dst/elsewhere/kept
    src/same
    dst/same
    src/file_over_fifo
    dst/file_over_fifo |
    src/fifo |
""")

_HARD = tree("""
    src/a
    src/b = src/a
    src/sub/c = src/a
    src/d 9
    src/e = src/d
    src/x 3
    src/y = src/x
    dst/a
    dst/b = dst/a
    dst/d 9
    dst/e 9
    dst/x 3
    dst/z = dst/x
    src/l1 -> a
    src/l2 = src/l1
""")

_LINKS = tree("""
    src/absolute -> /nowhere/at/all
    src/broken -> none
    src/climbing -> ../../..
    src/to_dir -> sub
    src/to_dir_slash -> sub/
    src/itself -> itself
    src/sub/file
    src/sub/up -> ../sub
    dst/to_dir/file
    dst/broken -> other
""")

_FROM = tree("""
    src/a/one
    src/a/two
    src/b/c/three
    src/b/c/four
    src/b/five
    src/d/six
    src/top
    src/#top
    src/link -> top
    dst/a/old
    dst/old
""")


def _from(name: str, text: str, *arguments: str) -> Case:
    return Case(
        name=f"files-from {name}",
        entries=_FROM,
        texts={"names": text},
        arguments=("--files-from=names", *arguments),
    )


def _line_there(this: Entry) -> str:
    end = "/" if this.kind == "dir" else ""
    return f"dst/{this.path.partition('/')[2]}{end}"


_KINDS = [
    Case(name="types", entries=_TYPES, arguments=("-r", "--links")),
    Case(name="types all", entries=_TYPES, arguments=("-r", "--links", "--times")),
    Case(name="types delete", entries=_TYPES, arguments=("-r", "--links", "--delete")),
    Case(name="types without links", entries=_TYPES, arguments=("-r", "--delete")),
    Case(
        name="types existing", entries=_TYPES, arguments=("-r", "--links", "--existing")
    ),
    Case(
        name="types ignored",
        entries=_TYPES,
        arguments=("-r", "--links", "--ignore-existing"),
    ),
    Case(name="types update", entries=_TYPES, arguments=("-r", "--links", "--update")),
    Case(name="types archive", entries=_TYPES, arguments=("-a", "--delete")),
    Case(name="hard links", entries=_HARD, arguments=("-a", "--hard-links")),
    Case(name="hard links, not kept", entries=_HARD, arguments=("-a",)),
    Case(
        name="hard links, delete",
        entries=_HARD,
        arguments=("-a", "--hard-links", "--delete"),
    ),
    Case(
        name="hard links, first excluded",
        entries=_HARD,
        arguments=("-a", "--hard-links", "--exclude=/a", "--exclude=/x"),
    ),
    Case(
        name="hard links to nothing there",
        entries=tuple(e for e in _HARD if not e.path.startswith("dst/")),
        arguments=("-r", "--hard-links"),
    ),
    Case(name="links", entries=_LINKS, arguments=("-r", "--links")),
    Case(name="links archive", entries=_LINKS, arguments=("-a", "--delete")),
    Case(name="links not kept", entries=_LINKS, arguments=("-r", "--times")),
    Case(name="odd names, archive", entries=ODD, arguments=("-a",)),
    Case(
        name="odd names, deleted",
        entries=tree("\n".join(_line_there(e) for e in ODD if "/" in e.path)),
        arguments=("-r", "--delete"),
    ),
]

_SOURCES = [
    Case(
        name="source without slash",
        entries=PROJECT,
        sources=("src",),
        arguments=("-a",),
    ),
    Case(
        name="source without slash, there already",
        entries=more(PROJECT, "dst/src/main.c\ndst/src/old\ndst/other"),
        sources=("src",),
        arguments=("-a", "--delete"),
    ),
    Case(
        name="source with dot", entries=PROJECT, sources=("src/.",), arguments=("-r",)
    ),
    Case(
        name="source a file",
        entries=PROJECT,
        sources=("src/main.c",),
        arguments=("-r",),
    ),
    Case(
        name="source a file, destination a name",
        entries=PROJECT,
        sources=("src/main.c",),
        destination="dst/other.c",
        arguments=("-r",),
    ),
    Case(
        name="source a file over a file",
        entries=more(PROJECT, "dst/other.c 9"),
        sources=("src/main.c",),
        destination="dst/other.c",
        arguments=("--times",),
    ),
    Case(
        name="source a directory without -r",
        entries=PROJECT,
        sources=("src/lib", "src/main.c"),
        arguments=("--times",),
    ),
    Case(
        name="source a link",
        entries=tree("src/dir/x\nsrc/link -> dir"),
        sources=("src/link",),
        arguments=("-a",),
    ),
    Case(
        name="source a link with slash",
        entries=tree("src/dir/x\nsrc/link -> dir"),
        sources=("src/link/",),
        arguments=("-a",),
    ),
    Case(
        name="sources, two of a name",
        entries=tree("src/1/same s1\nsrc/2/same s2\nsrc/1/a/x\nsrc/2/a/y\nsrc/2/a/x 9"),
        sources=("src/1/", "src/2/"),
        arguments=("-a",),
    ),
    Case(
        name="sources, mixed",
        entries=PROJECT,
        sources=("src/lib", "src/doc/", "src/core", "src/tmp"),
        arguments=("-a",),
    ),
    Case(
        name="sources, one missing",
        entries=PROJECT,
        sources=("src/none", "src/lib"),
        arguments=("-r",),
    ),
    Case(
        name="destination missing",
        entries=tree("src/a\nsrc/b/c", ends=("src",)),
        arguments=("-a",),
    ),
    Case(
        name="destination missing, without slash",
        entries=tree("src/a\nsrc/b/c", ends=("src",)),
        sources=("src",),
        destination="dst",
        arguments=("-r",),
    ),
    Case(name="source empty", entries=tree(""), arguments=("-a",)),
    Case(
        name="empty directories",
        entries=tree("src/a/b/c/\nsrc/d/\ndst/d/\ndst/a/"),
        arguments=("-r",),
    ),
    Case(
        name="destination with time and mode",
        entries=tree("src/ m700 t-7\nsrc/a", ends=("dst",)),
        arguments=("-a",),
    ),
    _from("plain", "top\na/one\nb/c/three\n"),
    _from("archive", "top\na/one\nb/c/three\nlink\n", "-a"),
    _from("directory", "a\nb\n"),
    _from("directory, recursive", "a\nb\n", "-r"),
    _from("directory with slash", "a/\nb/c/\n"),
    _from("comments", "# top\n;top\n\n#top\ntop\n"),
    _from("odd spelling", "/top\n./a/one\na/../d/six\nb//five\n../top\n"),
    _from("missing", "none\ntop\na/none\n"),
    _from(
        "excludes", "top\na/one\nb/c/three\nd\n", "-r", "--exclude=three", "--exclude=d"
    ),
    _from("delete", "a\nb\n", "-r", "--delete"),
    _from("twice", "top\ntop\na/one\na\n", "-r"),
]

TABLES = {
    "filters": _FILTERS,
    "compare": _COMPARE,
    "delete": _DELETE,
    "kinds": _KINDS,
    "sources": _SOURCES,
}
