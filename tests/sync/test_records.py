"""The messages of a sync: their bytes are fixed, and what makes no sense is refused."""

import stat
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import RemoteProtocolError
from rpc25519_tools.sync import records
from rpc25519_tools.sync.filters import Rule
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.records import (
    VERSION,
    Acks,
    Blocks,
    Copies,
    Data,
    Deltas,
    End,
    Fins,
    Hashes,
    Overview,
    Patches,
    Refine,
    Removed,
    Request,
    Segment,
    Table,
    Totals,
    Verdict,
    Verdicts,
    Whole,
    Zeros,
    decode_deltas,
    decode_fins,
    decode_hashes,
    decode_overview,
    decode_request,
    encode_overview,
    encode_plain,
    encode_records,
    encode_request,
    pack_lengths,
    pack_nanos,
    told,
    unpack_nanos,
    unpack_table,
)

FILE, DIR, LINK, DEVICE = (
    stat.S_IFREG | 0o644,
    stat.S_IFDIR | 0o755,
    stat.S_IFLNK | 0o777,
    stat.S_IFCHR | 0o600,
)
SUM = bytes(range(32))


def overview(**changes: Any) -> Overview:
    """Return a list of a directory, a file, a link and a device."""
    fields: dict[str, Any] = {
        "segments": [Segment(0, 4, ends=True)],
        "names": b"d\0f\0l\0n",
        "modes": [DIR, FILE, LINK, DEVICE],
        "sizes": [0, 5, 0, 0],
        "seconds": [1, -2, 3, 4],
        "nanos": pack_nanos([0, 999_999_999, 5, 6]),
        "targets": [b"f"],
        "uids": [0, 1, 2, 3],
        "gids": [3, 2, 1, 0],
        "users": {0: "root"},
        "groups": {3: "sys"},
        "leaders": {3: 1},
        "sums": SUM,
        "devices": [259],
        "failed": [(b"x", "why")],
        "skipped": [b"y"],
        "final": True,
    }
    return Overview(**fields | changes)


# Bytes that must never change unless VERSION goes up.

GOLDEN: list[tuple[Callable[[], bytes], str]] = [
    (
        lambda: encode_request(
            Request(
                VERSION,
                SyncOptions(
                    recursive=True,
                    max_delete=3,
                    backup_dir=b"old",
                    rules=(Rule(include=False, pattern=b"*.o"),),
                    fsync=False,
                ),
                (b"a/",),
                b"to",
                True,
                b"x/y",
                (b"c",),
                b"run",
            )
        ),
        (
            "009801de0005a9726563757273697665c3aa6d61785f64656c65746503aa6261636b7570"
            "5f646972c4036f6c64a572756c65739182a7696e636c756465c2a77061747465726ec403"
            "2a2e6fa56673796e63c291c402612fc402746fc3c403782f7991c40163c403"
            "72756e"
        ),
    ),
    (
        lambda: encode_overview(overview()),
        (
            "00dc001191940004c3c3c407640066006c006e94cd41edcd81a4cda1ffcd218094000500"
            "009401fe0304c41000000000ffc99a3b050000000600000091c401669400010203940302"
            "01008100a4726f6f748103a3737973810301c420000102030405060708090a0b0c0d0e0f"
            "101112131415161718191a1b1c1d1e1f91cd01039192c40178a3776879c391c40179"
        ),
    ),
    (
        lambda: encode_overview(Overview()),
        "00dc001190c400909090c400909090808080c4009090c290",
    ),
    (
        lambda: encode_records(
            [Verdicts(7, bytes(Verdict), [0, 1, 2, 3, 4, 5], {9: "no"}, SUM)]
        ),
        (
            "009196a17607c406000102030405960001020304058109a26e6fc4200001020304050607"
            "08090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
        ),
    ),
    (
        lambda: encode_records(
            [Table(1, 0, True, pack_lengths([1, 258]), b"sixsixsixsix", False)]
        ),
        "009197a1740100c3c4080102000100000000c40c736978736978736978736978c2",
    ),
    (
        lambda: encode_records([Removed([b"a", b"b/"], [(b"c", "why")])]),
        "009193a17292c40161c402622f9192c40163a3776879",
    ),
    (
        lambda: encode_plain([Whole(3, b"data", SUM)]),
        (
            "009194a17703c40464617461c420000102030405060708090a0b0c0d0e0f101112131415"
            "161718191a1b1c1d1e1f"
        ),
    ),
    (
        lambda: encode_records([Copies(4, [(0, 1, 2, 3), (15, 9, 1, 1 << 40)])]),
        "009193a16304929400010203940f0901cf0000010000000000",
    ),
    (
        lambda: encode_records([Data(5, 77, b"bytes"), Zeros(5, 82, 1 << 33)]),
        "009294a164054dc405627974657394a17a0552cf0000000200000000",
    ),
    (
        lambda: encode_records([Refine(4, [(0, 1, 2), (15, 300, 1)])]),
        "009193a166049293000102930fcd012c01",
    ),
    (
        lambda: encode_records([Blocks(4, b"sixsixsixsix")]),
        "009193a16204c40c736978736978736978736978",
    ),
    (
        lambda: encode_records([Patches(4, [(0, 1024, 99, 2048), (1, 1 << 33, 1, 0)])]),
        "009193a17004929400cd040063cd08009401cf00000002000000000100",
    ),
    (
        lambda: encode_records([End(6, 99, SUM), End(7, 0, b"", "gone")]),
        (
            "009295a1650663c420000102030405060708090a0b0c0d0e0f101112131415161718191a"
            "1b1c1d1e1fa095a1650700c400a4676f6e65"
        ),
    ),
    (
        lambda: encode_records([Acks([1, 2], {3: "full"}, Totals(1, 2, 3, 4), 5)]),
        "009195a1619201028103a466756c6c940102030405",
    ),
]


@pytest.mark.parametrize(("encode", "expected"), GOLDEN)
def test_bytes_of_messages_are_fixed(
    encode: Callable[[], bytes], expected: str
) -> None:
    assert VERSION == 1, "another version: take down its bytes here"
    assert encode().hex() == expected


def test_verdicts_have_fixed_numbers() -> None:
    assert [verdict.name for verdict in Verdict] == [
        "EQUAL",
        "DONE",
        "WANT",
        "WANT_DELTA",
        "SKIPPED",
        "FAILED",
    ]
    assert list(Verdict) == list(range(6))


# There and back.

indexes = st.integers(0, (1 << 63) - 1)
texts = st.text(st.characters(codec="utf-8"), max_size=50)
paths = st.binary(max_size=60)
sums = st.binary(min_size=32, max_size=32)
tables = st.builds(
    lambda index, basis, in_place, lengths, last: Table(
        index, basis, in_place, pack_lengths(lengths), b"s" * 6 * len(lengths), last
    ),
    indexes,
    st.integers(0, 15),
    st.booleans(),
    st.lists(st.integers(1, (1 << 32) - 1), max_size=200),
    st.booleans(),
)
verdicts = st.builds(
    Verdicts,
    indexes,
    st.binary(max_size=300),
    st.lists(st.integers(0, 2047), max_size=300),
    st.dictionaries(indexes, texts, max_size=3),
    st.sampled_from([b"", SUM]),
)
deltas = st.one_of(
    st.builds(Whole, indexes, st.binary(max_size=300), sums),
    st.builds(
        Copies,
        indexes,
        st.lists(st.tuples(st.integers(0, 15), indexes, indexes, indexes), max_size=50),
    ),
    st.builds(Data, indexes, indexes, st.binary(max_size=300)),
    st.builds(Zeros, indexes, indexes, indexes),
    st.builds(
        Refine,
        indexes,
        st.lists(st.tuples(indexes, indexes, indexes), min_size=1, max_size=50),
    ),
    st.builds(
        Patches,
        indexes,
        st.lists(st.tuples(indexes, indexes, indexes, indexes), max_size=50),
    ),
    st.builds(End, indexes, indexes, st.sampled_from([b"", SUM]), texts),
)
blocks = st.builds(Blocks, indexes, st.binary(max_size=300))
totals = st.builds(Totals, indexes, indexes, indexes, indexes)
fins = st.one_of(
    st.builds(
        Acks,
        st.lists(indexes, max_size=50),
        st.dictionaries(indexes, texts, max_size=3),
        st.none() | totals,
    ),
    st.builds(
        Removed,
        st.lists(paths, max_size=20),
        st.lists(st.tuples(paths, texts), max_size=3),
    ),
)
requests = st.builds(
    Request,
    st.just(VERSION),
    st.builds(
        SyncOptions,
        recursive=st.booleans(),
        delete=st.booleans(),
        max_delete=st.none() | indexes,
        backup_dir=st.none() | paths,
        rules=st.lists(st.builds(Rule, st.booleans(), paths), max_size=5).map(tuple),
        bandwidth=indexes,
    ),
    st.lists(paths, max_size=5).map(tuple),
    paths,
    st.booleans(),
    st.none() | paths,
    st.none() | st.lists(paths, max_size=5).map(tuple),
)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(verdicts | tables | blocks, max_size=4) | st.lists(tables, max_size=20),
    st.lists(deltas),
    st.lists(fins, max_size=15),
)
def test_records_come_back(
    one: list[Hashes], two: list[Deltas], three: list[Fins]
) -> None:
    assert decode_hashes(encode_records(one)) == one
    assert decode_deltas(encode_records(two)) == two
    assert decode_deltas(encode_plain(two)) == two
    assert decode_fins(encode_records(three)) == three


@settings(deadline=None, max_examples=50)
@given(requests)
def test_request_comes_back(request: Request) -> None:
    assert decode_request(encode_request(request)) == request


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.integers(0, (1 << 63) - 1),
            st.integers(-(1 << 61), 1 << 61),
            st.integers(0, 999_999_999),
        ),
        max_size=100,
    )
)
def test_overview_comes_back(files: list[tuple[int, int, int]]) -> None:
    names = [b"%05d" % number for number in range(len(files))]
    one = Overview(
        segments=[Segment(3, len(files), ends=False)],
        names=b"\0".join(names),
        modes=[FILE] * len(files),
        sizes=[size for size, _, _ in files],
        seconds=[seconds for _, seconds, _ in files],
        nanos=pack_nanos([nanos for _, _, nanos in files]),
        sums=SUM * len(files),
    )
    back, back_names = decode_overview(encode_overview(one))
    assert (back, back_names) == (one, names)
    assert list(unpack_nanos(back.nanos)) == [nanos for _, _, nanos in files]


@given(st.lists(st.integers(1, (1 << 32) - 1), max_size=50))
def test_lengths_come_back(lengths: list[int]) -> None:
    sums_ = b"s" * records.SHORT_SUM_LEN * len(lengths)
    table = Table(0, 0, False, pack_lengths(lengths), sums_, False)
    assert list(unpack_table(table)) == lengths


# What is malformed.

DECODERS: list[tuple[Callable[[bytes], object], bytes]] = [
    (decode_request, encode_request(Request(VERSION, SyncOptions()))),
    (decode_overview, encode_overview(overview())),
    (decode_hashes, encode_records([Verdicts(0, bytes(300), [], {}, SUM)])),
    (decode_hashes, encode_records([Table(0, 0, False, b"", b"", True)])),
    (decode_deltas, encode_records([Whole(0, b"x", SUM), Data(0, 1, b"")])),
    (decode_fins, encode_records([Acks([1], {}, Totals())])),
]


@pytest.mark.parametrize(("decode", "data"), DECODERS)
def test_messages_that_are_cut_or_too_long_are_refused(
    decode: Callable[[bytes], object], data: bytes
) -> None:
    decode(data)
    for end in range(len(data)):
        with pytest.raises(RemoteProtocolError):
            decode(data[:end])
    with pytest.raises(RemoteProtocolError):
        decode(data + b"\0")
    for mark in (2, 255):
        with pytest.raises(RemoteProtocolError, match="no known form"):
            decode(bytes([mark]) + data[1:])


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from([decode for decode, _ in DECODERS]),
    st.sampled_from([b"\0", b"\1", b""]),
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.integers(-5, 1 << 63) | st.binary(max_size=40) | texts,
        lambda below: st.lists(below, max_size=17),
    ).map(msgspec.msgpack.encode),
)
def test_anything_else_is_refused(
    decode: Callable[[bytes], object], mark: bytes, data: bytes
) -> None:
    try:
        decode(mark + data)
    except RemoteProtocolError:
        pass
    else:
        # Lists of no records, and an overview of nothing, are fine.
        assert mark == b"\0"
        assert not any(msgspec.msgpack.decode(data))


def test_message_that_unpacks_to_too_much_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encode_records([Whole(0, bytes(100_000), SUM)])
    assert len(data) < 1000
    monkeypatch.setattr(records, "MAX_RECORD_LEN", 50_000)
    with pytest.raises(RemoteProtocolError):
        decode_deltas(data)


@pytest.mark.parametrize("version", [0, 2, 99])
def test_other_versions_are_refused_by_name(version: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"version {version} of sync, we 1"):
        decode_request(encode_request(Request(version, SyncOptions())))


@pytest.mark.parametrize(
    "changes",
    [
        {"names": b"d\0f\0l"},
        {"names": b"d\0f\0l\0n\0more"},
        {"sizes": [0, 5, 0]},
        {"seconds": [1, 2, 3]},
        {"nanos": bytes(15)},
        {"nanos": bytes(20)},
        {"segments": [Segment(0, 3, ends=True)]},
        {"segments": [Segment(0, 4, ends=True), Segment(0, 1, ends=True)]},
        {"segments": []},
        {"uids": [1]},
        {"gids": [1, 2, 3, 4, 5]},
        {"sums": SUM * 2},
        {"sums": SUM[1:]},
        {"targets": []},
        {"targets": [b"f", b"g"]},
        {"leaders": {4: 0}},
        {"leaders": {-1: 0}},
    ],
)
def test_columns_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="do not fit together"):
        decode_overview(encode_overview(overview(**changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"modes": [DIR, FILE, LINK, 1 << 16]},
        {"modes": [DIR, FILE, LINK, -1]},
        {"sizes": [0, -5, 0, 0]},
        {"sizes": [0, 1 << 63, 0, 0]},
        {"seconds": [1, 2, 3, 1 << 62]},
        {"seconds": [1, 2, 3, -(1 << 62)]},
        {"uids": [0, 0, 0, 1 << 32]},
        {"gids": [0, 0, 0, -1]},
        {"users": {1: "x" * 1001}},
        {"targets": [b"x" * 4097]},
        {"failed": [(b"x" * 4097, "why")]},
        {"failed": [(b"x", "w" * 1001)]},
        {"leaders": {0: -1}},
        {"final": 1},
        {"names": "text"},
        {"segments": [Segment(-1, 4, ends=True)]},
        {"segments": [Segment(0, -4, ends=True)]},
        {"segments": [Segment(0, 8193, ends=True)]},
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="malformed"):
        decode_overview(encode_overview(overview(**changes)))


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (b"a\0b/c\0d\0e", "single component"),
        (b"/\0f\0l\0n", "single component"),
        (b"..\0f\0l\0n", "single component"),
        (b"a\0f\0\0n", "single component"),
        (b"a" * 256 + b"\0f\0l\0n", "single component"),
        (b"d\0.\0l\0n", "'.'"),
        (b"d\0f\0l\0.", "'.'"),
        (b".\0.\0l\0n", "'.'"),
        (b".rpc25519-part-x\0f\0l\0n", "reserved"),
        (b"d\0f\0l\0.RPC25519-Part-area", "reserved"),
    ],
)
def test_names_that_cannot_be_are_refused(names: bytes, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        decode_overview(encode_overview(overview(names=names)))


def test_root_is_a_directory_and_comes_first_in_directory_0() -> None:
    root = overview(names=b".\0f\0l\0n")
    assert decode_overview(encode_overview(root))[1][0] == b"."
    for changes in (
        {"segments": [Segment(1, 4, ends=True)]},
        {"segments": [Segment(1, 0, ends=True), Segment(2, 4, ends=True)]},
        {"modes": [FILE, FILE, LINK, DEVICE], "sums": SUM * 2},
    ):
        with pytest.raises(RemoteProtocolError):
            decode_overview(encode_overview(overview(names=b".\0f\0l\0n", **changes)))


@pytest.mark.parametrize("target", [b"", b"a\0b"])
def test_links_lead_to_possible_names(target: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="no possible name"):
        decode_overview(encode_overview(overview(targets=[target])))


def test_batch_that_is_too_long_is_refused() -> None:
    count = records.MAX_BATCH + 1
    names = b"\0".join(b"%05d" % number for number in range(count))
    one = Overview(
        segments=[Segment(0, count - 1, ends=False), Segment(0, 1, ends=True)],
        names=names,
        modes=[DIR] * count,
        sizes=[0] * count,
        seconds=[0] * count,
        nanos=bytes(4 * count),
    )
    with pytest.raises(RemoteProtocolError, match=r"do not fit together|length <="):
        decode_overview(encode_overview(one))


def test_nanoseconds_are_less_than_a_second() -> None:
    assert list(unpack_nanos(pack_nanos([0, 999_999_999]))) == [0, 999_999_999]
    with pytest.raises(RemoteProtocolError, match="nanoseconds"):
        unpack_nanos(pack_nanos([1_000_000_000]))


@pytest.mark.parametrize("length", [0, 1, 4096, 4097, 30_000])
def test_paths_are_told_as_far_as_they_fit(length: int) -> None:
    path = bytes(i % 251 + 1 for i in range(length))
    shown = told(path)
    assert len(shown) == min(length, 4096)
    assert (shown == path) is (length <= 4096)
    assert path.endswith(shown.removeprefix(b"..."))
    assert decode_fins(encode_records([Removed([shown])])) == [Removed([shown])]
