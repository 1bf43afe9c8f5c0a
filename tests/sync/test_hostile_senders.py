"""A hostile sender with a valid certificate: nothing outside, nothing unbounded."""

import gc
import os
import stat
from pathlib import Path

import pytest
from blake3 import blake3

from rpc25519_tools.errors import RemoteProtocolError, Rpc25519Error
from rpc25519_tools.rpc.calls import RsyncStep
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.pieces import Pieces
from rpc25519_tools.sync.records import (
    Copies,
    Data,
    End,
    Overview,
    Segment,
    Verdict,
    Zeros,
    decode_deltas,
    decode_overview,
    encode_overview,
    encode_records,
)
from rpc25519_tools.wire.codecs import Codec, decompress
from tests.sync.attackers import (
    DIR,
    END,
    FILE,
    LINK,
    HostileSender,
    Served,
    listing,
    overview,
)

_BIG = 4 << 20


_DRY = SyncOptions(recursive=True, dry_run=True)
_PLAIN = SyncOptions(recursive=True, fsync=False)
_OWNERS = SyncOptions(recursive=True, owner=True, group=True, fsync=False, perms=True)


@pytest.fixture
def served(tmp_path: Path) -> Served:
    """A served directory with a neighbour that nobody may touch."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"ours")
    (tmp_path / "root").mkdir()
    return Served(tmp_path / "root")


def _outside(served: Served) -> dict[str, bytes]:
    return listing(served.path.parent / "outside")


async def _refused(served: Served, *overviews: Overview, match: str) -> None:
    async def script(sender: HostileSender) -> None:
        await sender.entries(*overviews)
        await sender.over()

    with pytest.raises(RemoteProtocolError, match=match):
        await served.attack(script)
    assert _outside(served) == {"file": b"ours"}


@pytest.mark.parametrize(
    "name",
    [
        b"..",
        b"",
        b"../outside/file",
        b"/etc/passwd",
        b"a/b",
        b"n" * 256,
        b".rpc25519-part-area",
        b".RPC25519-Part-AREA",
        b".rpc25519-part-x",
    ],
)
async def test_name_that_is_no_component_is_refused(
    served: Served, name: bytes
) -> None:
    await _refused(served, overview((name, FILE)), match="a name in a list of files")
    assert listing(served.path) == {}


async def test_nul_in_a_name_is_refused(served: Served) -> None:
    await _refused(served, overview((b"a\0b", FILE)), match="columns")


@pytest.mark.parametrize("name", [b"b", b"."])
async def test_dot_is_only_the_root_as_its_first_entry(
    served: Served, name: bytes
) -> None:
    bad = overview((name, DIR), (b".", DIR))
    await _refused(served, bad, match=r"is '\.'|not in order")


async def test_dot_has_to_be_a_directory(served: Served) -> None:
    await _refused(served, overview((b".", FILE)), match="no directory")


@pytest.mark.parametrize("names", [(b"b", b"a"), (b"a", b"a")])
async def test_names_out_of_order_or_twice_are_refused(
    served: Served, names: tuple[bytes, bytes]
) -> None:
    bad = overview(*((name, FILE) for name in names))
    await _refused(served, bad, match="not in order")


async def test_link_and_a_directory_of_the_same_name_are_refused(
    served: Served,
) -> None:
    bad = overview((b"a", LINK), (b"a", DIR), targets=[b"../outside"])
    await _refused(served, bad, overview((b"evil", FILE), directory=1), match="order")


@pytest.mark.parametrize("number", [1, 7, (1 << 63) - 1])
async def test_directory_that_there_is_not_is_refused(
    served: Served, number: int
) -> None:
    bad = overview((b"a", FILE), directory=number)
    await _refused(served, bad, match="directory that there is not")


async def test_directory_that_ended_takes_no_more_entries(served: Served) -> None:
    await _refused(
        served,
        overview((b"a", DIR)),
        overview((b"b", DIR)),
        match="directory that there is not",
    )


async def test_entries_of_two_directories_at_a_time_are_refused(
    served: Served,
) -> None:
    bad = [
        overview((b"a", DIR), (b"b", DIR)),
        overview((b"x", DIR), directory=1, ends=False),
        overview((b"y", DIR), directory=2, ends=False),
    ]
    await _refused(served, *bad, match="two directories at a time")


async def test_entries_after_the_last_ones_are_refused(served: Served) -> None:
    first = overview((b"a", FILE), final=True)
    await _refused(served, first, overview((b"b", FILE)), match="after the last")


async def test_directories_too_deep_are_refused(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpc25519_tools.sync.directories.MAX_DEPTH", 30)

    # In a dry run, where no file system says so.
    async def script(sender: HostileSender) -> None:
        for depth in range(32):
            await sender.entries(overview((b"d", DIR), directory=depth))
        await sender.over()

    options = _DRY
    with pytest.raises(RemoteProtocolError, match="in each other"):
        await served.attack(script, options)


@pytest.mark.parametrize("kind", [0, 0o130000, 0o170000])
async def test_unknown_kind_is_refused(served: Served, kind: int) -> None:
    bad = overview((b"a", kind | 0o644))
    await _refused(served, bad, match="no known kind")


@pytest.mark.parametrize("mode", [LINK, stat.S_IFIFO | 0o644, stat.S_IFBLK | 0o644])
async def test_kind_that_was_not_wanted_is_skipped(served: Served, mode: int) -> None:
    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b"a", mode), devices=[0x700]), END)
        await sender.over()

    served.privileged = True
    sender = await served.attack(script, _PLAIN)
    assert sender.verdicts == [Verdict.SKIPPED]
    assert os.listdir(served.path) == []


async def test_device_and_set_uid_are_for_the_trusted(served: Served) -> None:
    async def script(sender: HostileSender) -> None:
        modes = [(b"disk", stat.S_IFBLK | 0o666), (b"sh", stat.S_IFREG | 0o6755)]
        await sender.entries(overview(*modes, devices=[0x700]), END)
        await sender.judged(2)
        await sender.contents(sender.whole(1, b"evil"))
        await sender.over()

    sender = await served.attack(script)
    assert sender.verdicts == [Verdict.FAILED, Verdict.WANT]
    assert "not made for this sender" in sender.notes[0]
    assert stat.S_IMODE((served.path / "sh").stat().st_mode) == 0o755


async def test_file_beneath_a_link_that_is_there_replaces_the_link(
    served: Served,
) -> None:
    (served.path / "d").symlink_to("../outside")

    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b"d", DIR)))
        await sender.entries(overview((b"file", FILE), directory=1), END)
        await sender.judged(2)
        await sender.contents(sender.whole(1, b"evil"))
        await sender.over()

    await served.attack(script)
    assert _outside(served) == {"file": b"ours"}
    assert (served.path / "d" / "file").read_bytes() == b"evil"
    assert not (served.path / "d").is_symlink()


@pytest.mark.parametrize("swap_at", ["before listing", "before contents"])
async def test_directory_swapped_for_a_link_meanwhile(
    served: Served, swap_at: str
) -> None:
    def swap() -> None:
        os.rename(served.path / "d", served.path / "gone")
        (served.path / "d").symlink_to("../outside")

    async def script(sender: HostileSender) -> None:
        names = [(b"%02d" % number, DIR) for number in range(40)]
        await sender.entries(overview(*names, (b"d", DIR)))
        await sender.judged(41)
        if swap_at == "before listing":
            swap()
        for number in range(1, 41):  # so that nothing of it is open any more
            await sender.entries(overview((b"x", DIR), directory=number))
        await sender.entries(overview((b"file", FILE), directory=41), END)
        verdicts = await sender.judged(82)
        if verdicts[-1] is Verdict.WANT:
            swap()
            await sender.contents(sender.whole(81, b"evil"))
        await sender.over()

    await served.attack(script)
    assert _outside(served) == {"file": b"ours"}


# Contents.


async def _fails(
    served: Served, *records: object, match: str, size: int = _BIG
) -> None:
    """Send contents of file 0 that have to end the sync."""

    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b"f", FILE), (b"g", FILE), size=size))
        await sender.judged(2)
        await sender.contents(*records)  # type: ignore[arg-type]
        await sender.over()

    with pytest.raises(RemoteProtocolError, match=match):
        await served.attack(script)
    assert set(os.listdir(served.path)) <= {".rpc25519-part-area"}


async def test_contents_nobody_wants_are_refused(served: Served) -> None:
    await _fails(served, Data(5, 0, b"x"), match="nobody wants")


@pytest.mark.parametrize(
    ("record", "match"),
    [
        (Copies(0, [(0, 0, 1, 0)]), "a file that we have not"),
        (Copies(0, [(15, 0, 1, 0)]), "a file that we have not"),
        (Data(0, (1 << 63) - 1, b"xx"), "no possible place"),
        (Zeros(0, 1 << 62, 1 << 62), "no possible place"),
        (Zeros(0, (1 << 63) - 1, 1), "no possible place"),
    ],
)
async def test_places_that_there_are_not_are_refused(
    served: Served, record: object, match: str
) -> None:
    await _fails(served, record, match=match)


async def test_overlapping_pieces_are_refused(served: Served) -> None:
    await _fails(served, Data(0, 0, b"xxx"), Data(0, 2, b"y"), match="overlap")


async def test_endless_zeros_are_refused_when_they_come_again(served: Served) -> None:
    most = 1 << 40
    records = [Zeros(0, 0, most), Zeros(0, 0, most)]
    await _fails(served, *records, match="overlap")


async def test_whole_file_after_pieces_is_refused(served: Served) -> None:
    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b"f", FILE)))
        await sender.judged(1)
        await sender.contents(Data(0, 100, b"tail"), sender.whole(0, b"head"))
        await sender.over()

    with pytest.raises(RemoteProtocolError, match="half of one"):
        await served.attack(script)


@pytest.mark.parametrize(
    "where", [("x", 0), (0, "-1"), (0, "9" * 19), (0, "9" * 20), ("0" * 30, 0)]
)
async def test_bare_bytes_for_no_place_are_refused(
    served: Served, where: tuple[object, object]
) -> None:
    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b"f", FILE)))
        await sender.judged(1)
        await sender.piece(*where, b"data")
        await sender.over()

    with pytest.raises(RemoteProtocolError, match=r"place|where it belongs"):
        await served.attack(script)


def test_negative_numbers_are_refused() -> None:
    for record in (
        Copies(-1, []),
        Copies(0, [(0, -1, 1, 0)]),
        Copies(0, [(-1, 0, 1, 0)]),
        Data(0, -5, b""),
        Zeros(0, 0, -1),
    ):
        with pytest.raises(RemoteProtocolError):
            decode_deltas(encode_records([record]))


async def test_end_that_lies_puts_nothing_in_place(served: Served) -> None:
    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b"f", FILE), (b"g", FILE), size=8), END)
        await sender.judged(2)
        for _ in range(2):
            await sender.contents(Data(0, 0, b"12345678"), End(0, 8, bytes(32)))
        # Gaps and lengths that only look right together.
        pieces = Pieces()
        for at in (0, 6):
            pieces.add(at, 4, blake3(b"data", key=sender.key).digest())
        for _ in range(2):
            await sender.contents(
                Data(1, 0, b"data"), Data(1, 6, b"data"), End(1, 8, pieces.root())
            )
        await sender.over()

    sender = await served.attack(script)
    assert sender.again == [0, 1]
    assert set(sender.failed) == {0, 1}
    assert listing(served.path) == {}


async def test_whole_file_with_a_wrong_sum_is_not_put_in_place(served: Served) -> None:
    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b"f", FILE)), END)
        await sender.judged(1)
        lie = sender.whole(0, b"data")
        lie.sum = bytes(32)
        await sender.contents(lie)
        await sender.over()

    sender = await served.attack(script)
    assert "does not match" in sender.failed[0]
    assert listing(served.path) == {}


async def test_end_twice_is_refused(served: Served) -> None:
    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b"f", FILE), (b"g", FILE)))
        await sender.judged(2)
        await sender.contents(sender.whole(0, b"data"))
        await sender.contents(sender.whole(0, b"evil"))
        await sender.over()

    with pytest.raises(RemoteProtocolError, match="nobody wants"):
        await served.attack(script)


async def test_many_files_begun_are_refused(served: Served) -> None:
    async def script(sender: HostileSender) -> None:
        names = [(b"%04d" % number, FILE) for number in range(100)]
        await sender.entries(overview(*names))
        await sender.judged(100)
        for index in range(100):
            await sender.contents(Data(index, 0, b"x"))
        await sender.over()

    with pytest.raises(RemoteProtocolError, match="too many files"):
        await served.attack(script)


async def test_crumbs_without_end_are_refused(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpc25519_tools.sync.writing._MAX_PIECES", 1000)

    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b"f", FILE)))
        await sender.judged(1)
        for at in range(1001):
            await sender.contents(Zeros(0, at, 1))
        await sender.over()

    with pytest.raises(RemoteProtocolError, match="too many pieces"):
        await served.attack(script)


async def test_entries_pile_up_no_further_than_a_limit(served: Served) -> None:
    names = [(b"%06d" % number + b"n" * 249, FILE) for number in range(8000)]

    async def script(sender: HostileSender) -> None:
        await sender.entries(overview(*names[:4000], ends=False, size=0))
        await sender.judged(4000)
        many = encode_overview(overview(*names[4000:], ends=False))
        packed = b"\0" + _plain(many)
        while True:
            await sender.channel.send(RsyncStep.OVERVIEW, packed)

    with pytest.raises(RemoteProtocolError, match="more entries came than may wait"):
        await served.attack(script)


def _plain(message: bytes) -> bytes:
    if message[:1] == b"\0":
        return message[1:]
    return bytes(decompress(Codec.ZSTD_01, memoryview(message)[1:], max_len=1 << 24))


@pytest.mark.parametrize("seconds", [(1 << 62) - 1, 1 - (1 << 62), 1 << 40, -1])
async def test_times_beyond_reason_fail_at_most(served: Served, seconds: int) -> None:
    async def script(sender: HostileSender) -> None:
        entries = [(b"d", DIR), (b"f", FILE), (b"l", LINK)]
        await sender.entries(overview(*entries, seconds=seconds))
        await sender.entries(Overview(segments=[Segment(1, 0, True)]), END)
        await sender.judged(3)
        await sender.contents(sender.whole(1, b"data"))
        await sender.over()

    await served.attack(script)
    assert (served.path / "f").read_bytes() == b"data"


async def test_owners_that_cannot_be_are_left_alone(served: Served) -> None:
    async def script(sender: HostileSender) -> None:
        entry = overview(
            (b"f", FILE),
            uids=[(1 << 32) - 1],
            gids=[12345],
            users={(1 << 32) - 1: "a\0b"},
            groups={12345: "no such group"},
        )
        await sender.entries(entry, END)
        await sender.judged(1)
        await sender.contents(sender.whole(0, b"data"))
        await sender.over()

    served.privileged = True
    await served.attack(script, _OWNERS)
    assert (served.path / "f").stat().st_uid == os.geteuid()


async def test_leaders_that_lie_make_files_of_their_own(served: Served) -> None:
    async def script(sender: HostileSender) -> None:
        leaders = {0: 1, 1: 1, 2: 77, 3: 0}
        names = [(b"a", FILE), (b"b", FILE), (b"c", FILE), (b"d", FILE)]
        await sender.entries(overview(*names, leaders=leaders), END)
        verdicts = await sender.judged(4)
        assert verdicts[:3] == [Verdict.WANT] * 3
        await sender.contents(*(sender.whole(at, b"%d" % at) for at in range(3)))
        await sender.over()

    await served.attack(script)
    found = listing(served.path)
    assert found == {"a": b"0", "b": b"1", "c": b"2", "d": b"0"}


async def test_unpacking_is_bounded() -> None:
    segments = b"\xdd" + (1 << 22).to_bytes(4, "big") + b"\x93\0\0\xc2" * (1 << 20)
    with pytest.raises(RemoteProtocolError, match="length <= 8192"):
        decode_overview(b"\0\x91" + segments)
    with pytest.raises(RemoteProtocolError, match="malformed"):
        decode_deltas(b"\0" + b"\x91" * 1_000_000)


async def test_pull_takes_nothing_that_was_not_asked_for(served: Served) -> None:
    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b".bashrc", FILE)), END)
        await sender.over()

    with pytest.raises(RemoteProtocolError, match="was not asked for"):
        await served.attack(script, asked=frozenset({b"report"}))

    async def root(sender: HostileSender) -> None:
        await sender.entries(overview((b".", DIR)), END)
        await sender.over()

    with pytest.raises(RemoteProtocolError, match="was not asked for"):
        await served.attack(root, asked=frozenset({b"report"}))


async def test_whatever_ends_a_sync_is_one_line(served: Served) -> None:
    async def script(sender: HostileSender) -> None:
        await sender.channel.send(RsyncStep.OVERVIEW, b"\xff\xff")
        await sender.over()

    with pytest.raises(Rpc25519Error) as caught:
        await served.attack(script)
    assert "\n" not in str(caught.value)


async def test_end_while_its_table_is_cut_closes_nothing_else(served: Served) -> None:
    # The sender gives a file up while we still cut what it might be made of.
    (served.path / "f").write_bytes(os.urandom(24 << 20))

    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b"f", FILE), size=24 << 20), END)
        await sender.until(lambda: sender.tables)
        await sender.contents(End(0, 0, b"", "gone"))
        await sender.over()

    before = len(os.listdir("/proc/self/fd"))
    sender = await served.attack(script)
    gc.collect()
    assert sender.failed == {0: "gone"}
    assert len(os.listdir("/proc/self/fd")) <= before
    assert (served.path / "f").stat().st_size == 24 << 20
