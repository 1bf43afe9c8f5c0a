"""Fuzz targets: the parts of listings."""

import stat

from rpc25519_tools.errors import DecodeError
from rpc25519_tools.sync.list_records import EntryReader, ListEntry, encode_entries
from tests.fuzz.mutators import BYTES
from tests.fuzz.target import Target


def _entry(name: bytes, mode: int, *parents: bytes) -> ListEntry:
    return ListEntry(
        parents=parents,
        name=name,
        mode=mode,
        size=1 << 40,
        mtime_ns=-1,
        uid=1000,
        gid=65534,
        owner="ann",
        group="",
        nlink=2,
        link_target=b"../x" if stat.S_ISLNK(mode) else None,
        problem="",
    )


def read_listing(data: bytes) -> None:
    """Read a part twice: what comes behind it depends on what came before."""
    reader = EntryReader(recursive=True)
    for _ in range(2):
        for entry in reader.read(data):
            assert entry.kind
            for name in (*entry.parents, entry.name):
                assert name not in {b"", b".", b".."}
                assert b"/" not in name
                assert b"\0" not in name
            assert len(entry.path) < 5000


TARGETS = [
    Target(
        name="listing",
        run=read_listing,
        seeds=lambda: [
            encode_entries([]),
            encode_entries([_entry(b"f", stat.S_IFREG | 0o644)]),
            encode_entries(
                [
                    _entry(b"d", stat.S_IFDIR | 0o755),
                    _entry(b"e", stat.S_IFDIR | 0o755, b"d"),
                    _entry(b"l\xff", stat.S_IFLNK | 0o777, b"d", b"e"),
                    _entry(b"z", stat.S_IFIFO),
                ]
            ),
        ],
        mutators=BYTES,
        allowed=(DecodeError,),
    )
]
