"""What has to happen to an entry: every option, and every state of things."""

import itertools
import os
import stat

import pytest

from rpc25519_tools.errors import ConfigError
from rpc25519_tools.sync.itemize import Change
from rpc25519_tools.sync.judge import Action, Entry, Old, attributes, judge, same_time
from rpc25519_tools.sync.options import SyncOptions

NS = 10**9
KINDS = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "link": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
}
ALL = {
    "links": True,
    "specials": True,
    "devices": True,
    "perms": True,
    "times": True,
    "recursive": True,
}
C, A = Change, Action


def options(**changes: object) -> SyncOptions:
    return SyncOptions(**(ALL | changes))  # type: ignore[arg-type]


def entry(kind: str = "file", **changes: object) -> Entry:
    fields: dict[str, object] = {
        "mode": KINDS[kind] | 0o644,
        "size": 5 if kind == "file" else 0,
        "mtime_ns": 100 * NS + 7,
        "target": b"to" if kind == "link" else b"",
        "device": 259 if kind in ("char", "block") else 0,
    }
    return Entry(0, b"name", **(fields | changes))  # type: ignore[arg-type]


def old(
    kind: str = "file",
    *,
    perms: int = 0o644,
    size: int = 5,
    mtime_ns: int = 100 * NS + 7,
    target: bytes = b"to",
    device: int = 259,
    same: bool | None = None,
    uid: int = 0,
    gid: int = 0,
) -> Old:
    numbers = (KINDS[kind] | perms, 1, 1, 1, uid, gid, size, 0, mtime_ns // NS, 0)
    more = {"st_mtime_ns": mtime_ns, "st_rdev": device}
    return Old(os.stat_result(numbers, more), target, same)


@pytest.mark.parametrize("kind", KINDS)
def test_new_things_are_made_or_fetched(kind: str) -> None:
    action, change = judge(entry(kind), None, options())
    if kind == "file":
        assert (action, change) == (A.FETCH, C.CONTENT | C.NEW)
    else:
        assert (action, change) == (A.MAKE, C.LOCAL | C.NEW)
    assert judge(entry(kind), None, options(existing=True)) == (A.SKIP, C.NONE)
    for other in ("ignore_existing", "update", "checksum", "size_only"):
        assert judge(entry(kind), None, options(**{other: True})) == (action, change)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_equal_stays(kind: str) -> None:
    for names in itertools.combinations(
        ["existing", "update", "size_only", "perms", "times"], 2
    ):
        assert judge(entry(kind), old(kind), options(**dict.fromkeys(names, True))) == (
            A.NOTHING,
            C.NONE,
        )


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [pair for pair in itertools.product(KINDS, KINDS) if pair[0] != pair[1]],
)
def test_things_of_another_kind_are_replaced(mine: str, theirs: str) -> None:
    assert judge(entry(mine), old(theirs), options()) == judge(
        entry(mine), None, options()
    )
    assert judge(entry(mine), old(theirs), options(existing=True))[0] in (
        A.MAKE,
        A.FETCH,
    )
    ignoring = options(ignore_existing=True)
    assert judge(entry(mine), old(theirs), ignoring) == (A.SKIP, C.NONE)


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("link", "links"),
        ("fifo", "specials"),
        ("socket", "specials"),
        ("char", "devices"),
        ("block", "devices"),
    ],
)
def test_kinds_that_are_not_wanted_are_skipped(kind: str, option: str) -> None:
    without = options(**{option: False})
    for there in (None, old(kind), old("file")):
        assert judge(entry(kind), there, without) == (A.SKIP, C.NONE)
    only = options(**(dict.fromkeys(ALL, False) | {option: True}))
    assert only.takes(KINDS[kind])
    assert not SyncOptions().takes(KINDS[kind])
    assert SyncOptions().takes(stat.S_IFREG)
    assert SyncOptions().takes(stat.S_IFDIR)


FETCH, ADJUST, NOTHING, SKIP = A.FETCH, A.ADJUST, A.NOTHING, A.SKIP
SAME: dict[str, int] = {}
LONGER = {"size": 6}
OLDER, NEWER = {"mtime_ns": 90 * NS}, {"mtime_ns": 110 * NS}


@pytest.mark.parametrize(
    ("chosen", "there", "action", "change"),
    [
        ("", SAME, NOTHING, 0),
        ("", LONGER, FETCH, C.CONTENT | C.SIZE),
        ("", OLDER, FETCH, C.CONTENT | C.TIME),
        ("", NEWER, FETCH, C.CONTENT | C.TIME),
        ("", OLDER | LONGER, FETCH, C.CONTENT | C.TIME | C.SIZE),
        ("", {"perms": 0o600}, ADJUST, C.PERMS),
        ("", OLDER | {"perms": 0o600}, FETCH, C.CONTENT | C.TIME | C.PERMS),
        ("size_only", SAME, NOTHING, 0),
        ("size_only", OLDER, ADJUST, C.TIME),
        ("size_only", LONGER, FETCH, C.CONTENT | C.SIZE),
        ("ignore_times", SAME, FETCH, C.CONTENT),
        ("ignore_times", OLDER, FETCH, C.CONTENT | C.TIME),
        ("checksum", {"same": True}, NOTHING, 0),
        ("checksum", {"same": False}, FETCH, C.CONTENT | C.SUM),
        ("checksum", {"same": None}, FETCH, C.CONTENT | C.SUM),
        ("checksum", OLDER | {"same": True}, ADJUST, C.TIME),
        ("checksum", LONGER, FETCH, C.CONTENT | C.SUM | C.SIZE),
        ("update", NEWER, SKIP, 0),
        ("update", NEWER | LONGER, SKIP, 0),
        ("update", OLDER, FETCH, C.CONTENT | C.TIME),
        ("update", SAME | LONGER, FETCH, C.CONTENT | C.SIZE),
        ("update", {"mtime_ns": 100 * NS + 9}, FETCH, C.CONTENT | C.TIME),
        ("ignore_existing", LONGER | OLDER, SKIP, 0),
        ("existing", LONGER, FETCH, C.CONTENT | C.SIZE),
    ],
)
def test_files_are_judged_by_the_options(
    chosen: str, there: dict[str, int], action: Action, change: int
) -> None:
    wanted = options(**({chosen: True} if chosen else {}))
    assert judge(entry(), old(**there), wanted) == (action, change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("there", "action", "change"),
    [
        (OLDER, FETCH, C.CONTENT | C.TIME | C.TIME_NOW),
        (LONGER, FETCH, C.CONTENT | C.SIZE | C.TIME | C.TIME_NOW),
        ({"perms": 0o600}, NOTHING, 0),
    ],
)
def test_without_times_and_perms_only_contents_count(
    there: dict[str, int], action: Action, change: int
) -> None:
    wanted = options(times=False, perms=False)
    assert judge(entry(), old(**there), wanted) == (action, change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "there", "action", "change"),
    [
        ("dir", OLDER, ADJUST, C.TIME),
        ("dir", {"perms": 0o700}, ADJUST, C.PERMS),
        ("link", {"target": b"other"}, A.MAKE, C.SUM | C.LOCAL),
        ("link", OLDER, ADJUST, C.TIME),
        ("link", {"perms": 0o700}, NOTHING, 0),
        ("fifo", OLDER, ADJUST, C.TIME),
        ("fifo", {"device": 3}, NOTHING, 0),
        ("char", {"device": 3}, A.MAKE, C.SUM | C.LOCAL),
        ("block", {"device": 3}, A.MAKE, C.SUM | C.LOCAL),
        ("block", {"perms": 0o600}, ADJUST, C.PERMS),
    ],
)
def test_other_kinds_are_judged(
    kind: str, there: dict[str, int], action: Action, change: int
) -> None:
    assert judge(entry(kind), old(kind, **there), options()) == (action, change)  # type: ignore[arg-type]


def test_directories_are_taken_with_ignore_existing() -> None:
    ignoring = options(ignore_existing=True)
    assert judge(entry("dir"), old("dir"), ignoring) == (A.NOTHING, C.NONE)


def test_owners_count_where_they_are_to_be_set() -> None:
    for uid, gid, change in (
        (None, None, C.NONE),
        (0, 0, C.NONE),
        (5, None, C.OWNER),
        (None, 5, C.GROUP),
        (5, 5, C.OWNER | C.GROUP),
    ):
        one = entry(uid=uid, gid=gid)
        assert attributes(one, old().status, options()) == change


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (5, 5, True),
        (5 * NS, 5 * NS + 1, True),
        (5 * NS + 1, 5 * NS, True),
        (5 * NS + 1, 5 * NS + 2, False),
        (5 * NS, 6 * NS, False),
        (5 * NS, 6 * NS - 1, True),
        (5 * NS, 5 * NS - 1, False),
        (-NS, -NS + 5, True),
        (-1, 0, False),
        (-1, 1, False),
    ],
)
def test_times_are_compared_as_far_as_both_are_kept(
    one: int, two: int, same: bool
) -> None:
    assert same_time(one, two) is same
    assert same_time(two, one) is same


# Options that contradict each other.


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"delete": True}, "--delete needs -r"),
        ({"recursive": True, "delete_excluded": True}, "--delete-excluded goes with"),
        ({"recursive": True, "max_delete": 5}, "--max-delete goes with"),
        ({"recursive": True, "max_delete": 0}, "--max-delete goes with"),
        ({"size_only": True, "checksum": True}, "only one of --size-only"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    changes: dict[str, object], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        SyncOptions(**changes).check()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        ALL,
        {"recursive": True, "delete": True, "delete_excluded": True, "max_delete": 0},
        {"size_only": True},
        {"checksum": True, "ignore_times": True},
        {"existing": True, "ignore_existing": True},
    ],
)
def test_options_that_go_together_pass(changes: dict[str, object]) -> None:
    SyncOptions(**changes).check()  # type: ignore[arg-type]
