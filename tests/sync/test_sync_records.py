"""Whatever a message of a sync is: a record, or one error of ours."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.errors import RemoteProtocolError, Rpc25519Error
from rpc25519_tools.sync.chunking import chunk_sizes
from rpc25519_tools.sync.matching import Tables
from rpc25519_tools.sync.pieces import Pieces
from rpc25519_tools.sync.records import (
    MAX_BATCH,
    MAX_RECORD_LEN,
    SHORT_SUM_LEN,
    Table,
    decode_deltas,
    decode_fins,
    decode_hashes,
    decode_overview,
    decode_request,
    pack_lengths,
)
from rpc25519_tools.wire.codecs import Codec, compress
from tests.fuzz import sync_targets

_DECODERS = (
    decode_deltas,
    decode_fins,
    decode_hashes,
    decode_overview,
    decode_request,
)


@given(st.binary(max_size=300), st.sampled_from(_DECODERS))
def test_any_bytes_are_a_record_or_refused(data: bytes, decoder: object) -> None:
    for form in (data, b"\0" + data, b"\1" + data):
        try:
            decoder(form)  # type: ignore[operator]
        except RemoteProtocolError as exc:
            assert "\n" not in str(exc)  # noqa: PT017  # most of them are refused


@given(st.data())
def test_changed_messages_are_a_record_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(sync_targets.SEEDS)))
    message = bytearray(data.draw(st.sampled_from(sync_targets.SEEDS[name])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(message) - 1))
        message[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(message)))
    for form in (bytes(message), bytes(message[:cut])):
        with contextlib.suppress(Rpc25519Error):
            sync_targets.RUNS[name](form)


@pytest.mark.parametrize("decoder", _DECODERS)
def test_bombs_are_refused(decoder: object) -> None:
    bomb = b"\1" + bytes(compress(Codec.ZSTD_01, bytes(MAX_RECORD_LEN + 1)))
    assert len(bomb) < 4096
    for message in (bomb, b"\0" + bytes(MAX_RECORD_LEN + 1), b"\0" + b"\x91" * 5000):
        with pytest.raises(RemoteProtocolError):
            decoder(message)  # type: ignore[operator]


def test_more_members_than_a_batch_are_refused_unmade() -> None:
    many = b"\xdd" + (MAX_BATCH + 1).to_bytes(4, "big")  # and nothing behind that
    for place in range(2, 9):
        columns = [b"\x90", b"\xc4\0", *[b"\x90"] * 3, b"\xc4\0", *[b"\x90"] * 3]
        if columns[place] == b"\xc4\0":
            continue
        columns[place] = many
        with pytest.raises(RemoteProtocolError, match=f"length <= {MAX_BATCH}"):
            decode_overview(b"\0\x99" + b"".join(columns))


@given(st.lists(st.integers(1, 5000), max_size=20), st.booleans())
def test_tables_keep_to_the_sizes(lengths: list[int], cut_in_two: bool) -> None:
    sizes = chunk_sizes(1 << 20)
    half = len(lengths) // 2 if cut_in_two else 0
    tables = Tables(sizes)
    fits = all(length <= sizes.max_len for length in lengths)
    fits &= all(length >= sizes.min_len for length in lengths[:-1])
    try:
        for some in (lengths[:half], lengths[half:]):
            sums = bytes(SHORT_SUM_LEN * len(some))
            packed = pack_lengths(some)
            tables.add(
                Table(0, 0, in_place=False, lengths=packed, sums=sums, last=False)
            )
    except RemoteProtocolError:
        assert not fits
    else:
        assert fits


@given(st.permutations(range(6)), st.integers(0, 5), st.integers(-2, 2))
def test_pieces_are_whole_only_without_gaps_and_overlaps(
    order: list[int], which: int, shift: int
) -> None:
    pieces = Pieces()
    for number in order:
        moved = shift if number == which else 0
        offset = max(0, number * 10 + moved)
        pieces.add(offset, 10, bytes([number]) * 32)
    is_moved = shift > 0 or (shift < 0 and which > 0)
    assert pieces.are_whole(60) is not is_moved
    assert not pieces.are_whole(59)
