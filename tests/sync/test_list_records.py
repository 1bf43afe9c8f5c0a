"""Entries of listings survive the wire, and what cannot be is refused."""

import itertools
import stat
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.errors import DecodeError
from rpc25519_tools.sync.list_records import (
    MAX_PART_LEN,
    EntryReader,
    ListEntry,
    encode_entries,
    encoded_len_of,
)

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
TARGETS = st.binary(max_size=4096).filter(lambda target: b"\0" not in target)
OWNERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=32)


def an_entry(**fields: Any) -> ListEntry:
    usual: dict[str, Any] = {
        "name": b"n",
        "mode": stat.S_IFREG | 0o644,
        "size": 1,
        "mtime_ns": 2,
        "uid": 3,
        "gid": 4,
        "owner": "o",
        "group": "g",
        "nlink": 1,
    }
    return ListEntry(**{**usual, **fields})


@st.composite
def entries(draw: st.DrawFn, kinds: tuple[int, ...] = tuple(KINDS)) -> ListEntry:
    kind = draw(st.sampled_from(kinds))
    return ListEntry(
        name=draw(NAMES),
        mode=kind | draw(st.integers(0, 0o7777)),
        size=draw(st.integers(0, 2**63 - 1)),
        mtime_ns=draw(st.integers(-(2**63), 2**63 - 1)),
        uid=draw(st.integers(0, 2**32 - 1)),
        gid=draw(st.integers(0, 2**32 - 1)),
        owner=draw(OWNERS),
        group=draw(OWNERS),
        nlink=draw(st.integers(0, 2**63 - 1)),
        link_target=draw(TARGETS) if kind == stat.S_IFLNK else None,
        problem=draw(OWNERS),
    )


@given(st.lists(entries(), max_size=5))
def test_entries_survive_the_wire(sent: list[ListEntry]) -> None:
    reader = EntryReader(recursive=False)
    payload = encode_entries(sent)
    assert list(reader.read(payload)) == sent
    assert reader.count == len(sent)
    assert len(payload) <= sum(map(encoded_len_of, sent)) + 16
    assert [entry.kind for entry in sent] == [
        KINDS[stat.S_IFMT(entry.mode)] for entry in sent
    ]


def walk(depths: list[int]) -> list[ListEntry]:
    """Make directories that lie in the one before them, where they are deeper."""
    found: list[ListEntry] = []
    path: list[bytes] = []
    for number, depth in enumerate(depths):
        here = min(depth, len(path))
        name = b"d%d" % number
        found.append(an_entry(parents=tuple(path[:here]), name=name, mode=stat.S_IFDIR))
        path = [*path[:here], name]
    return found


@given(
    depths=st.lists(st.integers(0, 6), max_size=30), cuts=st.lists(st.integers(0, 30))
)
def test_paths_are_put_together_across_parts(
    depths: list[int], cuts: list[int]
) -> None:
    sent = walk(depths)
    reader = EntryReader(recursive=True)
    edges = [0, *sorted(cuts), len(sent)]
    got = [
        entry
        for start, end in itertools.pairwise(edges)
        for entry in reader.read(encode_entries(sent[start:end]))
    ]
    assert got == sent
    assert [entry.path for entry in got] == [
        b"/".join([*entry.parents, entry.name]) for entry in sent
    ]


GOLDEN = (
    "919c00c4036c6e6bcda1ff04cf18ebaa974a0458f1cd03e864a3616e6ea57573657273"
    "01c406746172676574a0"
)


def test_the_bytes_are_these() -> None:
    entry = an_entry(
        name=b"lnk",
        mode=stat.S_IFLNK | 0o777,
        size=4,
        mtime_ns=1795716443195857137,
        uid=1000,
        gid=100,
        owner="ann",
        group="users",
        link_target=b"target",
    )
    assert encode_entries([entry]).hex() == GOLDEN
    assert list(EntryReader(recursive=False).read(bytes.fromhex(GOLDEN))) == [entry]


FIELDS: list[Any] = [0, b"n", stat.S_IFREG, 0, 0, 0, 0, "", "", 1, None, ""]


def with_field(number: int, value: Any) -> bytes:
    return msgspec.msgpack.encode([[*FIELDS[:number], value, *FIELDS[number + 1 :]]])


BAD: dict[str, bytes] = {
    "no msgpack": b"\xc1",
    "no array": b"\x01",
    "cut": with_field(0, 0)[:-1],
    "more behind it": with_field(0, 0) + b"\0",
    "announces more than there is": b"\xdd\xff\xff\xff\xff",
    "too few fields": msgspec.msgpack.encode([FIELDS[:-1]]),
    "too long": b"\xdc\xff\xff" + b"\0" * MAX_PART_LEN,
    "depth below zero": with_field(0, -1),
    "depth out of nowhere": with_field(0, 1),
    "endless depth": with_field(0, 1 << 40),
    "empty name": with_field(1, b""),
    "dot": with_field(1, b"."),
    "dots": with_field(1, b".."),
    "path": with_field(1, b"a/b"),
    "absolute": with_field(1, b"/"),
    "NUL": with_field(1, b"a\0b"),
    "long name": with_field(1, b"n" * 256),
    "name as text": with_field(1, "n"),
    "no kind": with_field(2, 0o644),
    "unknown kind": with_field(2, 0o130644),
    "mode too large": with_field(2, 1 << 16),
    "size below zero": with_field(3, -1),
    "size too large": with_field(3, 1 << 63),
    "time too far": with_field(4, 1 << 63),
    "time as float": with_field(4, 1.5),
    "uid too large": with_field(5, 1 << 32),
    "gid below zero": with_field(6, -1),
    "owner not UTF-8": with_field(7, "oo").replace(b"oo", b"o\xff"),
    "long owner": with_field(7, "o" * 257),
    "long group": with_field(8, "g" * 257),
    "nlink below zero": with_field(9, -1),
    "long target": with_field(10, b"t" * 4097),
    "target with NUL": with_field(10, b"\0"),
    "long problem": with_field(11, "p" * 1001),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused(case: str) -> None:
    reader = EntryReader(recursive=True)
    with pytest.raises(DecodeError):
        list(reader.read(BAD[case]))


def test_only_directories_have_something_in_them() -> None:
    reader = EntryReader(recursive=True)
    list(reader.read(encode_entries([an_entry()])))
    with pytest.raises(DecodeError, match="outside of every directory"):
        list(reader.read(encode_entries([an_entry(parents=(b"n",))])))


def test_nothing_deeper_comes_unasked() -> None:
    reader = EntryReader(recursive=False)
    list(reader.read(encode_entries([an_entry(mode=stat.S_IFDIR)])))
    with pytest.raises(DecodeError, match="outside of every directory"):
        list(reader.read(encode_entries([an_entry(parents=(b"n",))])))


def test_endless_paths_are_refused() -> None:
    reader = EntryReader(recursive=True)
    name = b"n" * 255
    sent = [
        an_entry(parents=(name,) * depth, name=name, mode=stat.S_IFDIR)
        for depth in range(20)
    ]
    with pytest.raises(DecodeError, match="over 4096 bytes"):
        list(reader.read(encode_entries(sent)))
    assert reader.count == 17  # 16 names and slashes are exactly 4096 bytes


def test_fields_of_newer_peers_are_ignored() -> None:
    payload = msgspec.msgpack.encode([[*FIELDS, "new", 7]])
    (entry,) = EntryReader(recursive=False).read(payload)
    assert entry.name == b"n"


def test_only_links_have_targets() -> None:
    (entry,) = EntryReader(recursive=False).read(with_field(10, b"target"))
    assert entry.link_target is None


@given(st.binary(max_size=200))
def test_any_bytes_are_entries_or_refused(payload: bytes) -> None:
    reader = EntryReader(recursive=True)
    try:
        found = list(reader.read(payload))
    except DecodeError:
        return
    assert all(b"/" not in entry.name for entry in found)
