"""Fuzz targets: the messages of a sync, its tables, paths and pieces."""

import functools

from blake3 import blake3

from rpc25519_tools.sync.chunking import chunk_sizes
from rpc25519_tools.sync.filters import FilterRules
from rpc25519_tools.sync.matching import Tables
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.pieces import Pieces
from rpc25519_tools.sync.records import (
    SHORT_SUM_LEN,
    VERSION,
    Acks,
    Blocks,
    Copies,
    Data,
    End,
    Overview,
    Patches,
    Refine,
    Removed,
    Request,
    Segment,
    Table,
    Totals,
    Verdicts,
    Whole,
    Zeros,
    decode_deltas,
    decode_fins,
    decode_hashes,
    decode_overview,
    decode_request,
    encode_overview,
    encode_records,
    encode_request,
    pack_lengths,
    pack_nanos,
    unpack_nanos,
)
from rpc25519_tools.sync.source import selection
from rpc25519_tools.sync.tree import split_path
from tests.fuzz.target import Target

_SUM = blake3(b"contents").digest()
_SIZES = chunk_sizes(1 << 20)
_LENGTHS = pack_lengths([800, 900])


def sync_request(data: bytes) -> None:
    """Read what opens a sync, and make ready what it asks for."""
    request = decode_request(data)
    request.options.check()
    FilterRules(request.options.rules)
    for path in (request.dest, *request.paths[:10]):
        assert all(0 < len(part) < 256 for part in split_path(path))
    if request.only is not None:
        selection(request.only)
    assert decode_request(encode_request(request)) == request


def sync_overview(data: bytes) -> None:
    """Read entries: their names are single components, and all columns fit."""
    overview, names = decode_overview(data)
    assert len(names) == overview.count == len(overview.sizes) <= 8192
    for name in names:
        assert 0 < len(name) < 256
        assert b"/" not in name
        assert b"\0" not in name
        assert name != b".."
        assert not name.lower().startswith(b".rpc25519-part-")
    unpack_nanos(overview.nanos)
    again, same = decode_overview(encode_overview(overview))
    assert (again, same) == (overview, names)


def sync_hashes(data: bytes) -> None:
    """Read verdicts and tables; what a sender keeps of tables is bounded."""
    tables = Tables(_SIZES)
    for record in decode_hashes(data):
        if isinstance(record, Table):
            tables.add(record)


def sync_deltas(data: bytes) -> None:
    """Read contents: no number in them is negative."""
    for record in decode_deltas(data):
        assert record.index >= 0
        if isinstance(record, Copies):
            assert all(number >= 0 for run in record.runs for number in run)
        elif isinstance(record, Refine):
            assert all(number >= 0 for one in record.ranges for number in one)
        elif isinstance(record, Patches):
            assert all(number >= 0 for one in record.patches for number in one)
        elif isinstance(record, Data | Zeros):
            assert record.at >= 0


def sync_fins(data: bytes) -> None:
    """Read acknowledgements."""
    decode_fins(data)


def sync_pieces(data: bytes) -> None:
    """Note pieces anywhere: they are whole only if each byte is there once."""
    pieces = Pieces()
    covered: list[int] = []
    for at in range(0, len(data) - 1, 2):
        offset, length = data[at] % 32, data[at + 1] % 8 + 1
        pieces.add(offset, length, _SUM)
        covered += range(offset, offset + length)
    pieces.root()
    size = max(covered, default=-1) + 1
    starts = [data[at] % 32 for at in range(0, len(data) - 1, 2)]
    is_whole = sorted(covered) == list(range(size)) and len(set(starts)) == len(starts)
    assert pieces.are_whole(size) == is_whole


def _entries() -> Overview:
    return Overview(
        segments=[Segment(0, 2, ends=True), Segment(1, 1, ends=True)],
        names=b"\0".join((b"d", b"l", b"f")),
        modes=[0o40755, 0o120777, 0o100644],
        sizes=[0, 0, 5],
        seconds=[1, 2, 3],
        nanos=pack_nanos([4, 5, 6]),
        targets=[b"f"],
        uids=[0, 0, 0],
        users={0: "root"},
        leaders={2: 0},
        sums=_SUM,
        failed=[(b"x", "no permission")],
        final=True,
    )


SEEDS: dict[str, list[bytes]] = {
    "request": [
        encode_request(Request(VERSION, SyncOptions(recursive=True), (b"a/", b"b"))),
        encode_request(
            Request(VERSION, SyncOptions(backup_dir=b"b"), only=(b"a/../b/c", b"d/"))
        ),
    ],
    "overview": [encode_overview(_entries()), encode_overview(Overview())],
    "hashes": [
        encode_records(
            [
                Verdicts(0, b"\0\1\2\3\4\5", [1, 2, 3, 4, 5, 6], {5: "no"}, _SUM),
                Table(
                    3,
                    0,
                    False,
                    pack_lengths([800, 900]),
                    bytes(2 * SHORT_SUM_LEN),
                    last=False,
                ),
                Table(3, 1, True, pack_lengths([5]), bytes(SHORT_SUM_LEN), last=True),
                Blocks(3, bytes(3 * SHORT_SUM_LEN)),
            ]
        ),
        # More than a few records are tables, and nothing else.
        encode_records(
            [
                Table(0, 0, False, _LENGTHS, bytes(2 * SHORT_SUM_LEN), last=False)
                for _ in range(20)
            ]
        ),
    ],
    "deltas": [
        encode_records(
            [
                Whole(0, b"data", _SUM),
                Copies(1, [(0, 0, 2, 0), (1, 0, 1, 1700)]),
                Refine(1, [(0, 2, 1), (1, 1, 300)]),
                Patches(1, [(0, 1700, 1024, 2724), (1, 70_000, 5, 0)]),
                Data(1, 1705, b"more"),
                Zeros(1, 1709, 1 << 20),
                End(1, 5, _SUM),
                End(2, 0, b"", "gone"),
            ]
        )
    ],
    "fins": [
        encode_records([Acks([0, 1], {2: "no"}), Removed([b"a/b/"], [(b"c", "no")])]),
        encode_records([Acks([], {}, Totals(1, 2, 3, 4), 5)]),
    ],
    "pieces": [bytes([0, 3, 4, 3]), bytes([4, 3, 0, 3])],
}

RUNS = {
    "request": sync_request,
    "overview": sync_overview,
    "hashes": sync_hashes,
    "deltas": sync_deltas,
    "fins": sync_fins,
    "pieces": sync_pieces,
}

TARGETS = [
    Target(
        name=f"sync:{name}",
        run=run,
        seeds=functools.partial(SEEDS.__getitem__, name),
    )
    for name, run in RUNS.items()
]
