"""The documented records travel as Go's generated code sends them.

tests/data/records/rsync-structs.json holds what MarshalMsg ("marshal") and EncodeMsg
("stream") of rpc25519 v1.6.8 have made of the values below. Streams name each struct,
and refer back to a pointer that they have written before.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.errors import DecodeError
from rpc25519_tools.greenpack import check_type, decode, decode_prefix, encode
from rpc25519_tools.sync.hashes import (
    CdcConfig,
    MatchHashPair,
    RsyncChunk,
    RsyncDiff,
    RsyncHashes,
    RsyncStep0ClientRequestsRead,
    RsyncStep1SenderOverview,
    RsyncStep2AckOverview,
    RsyncStep3SenderProvidesDeltas,
    RsyncStep4ReaderAcksDeltasFin,
    diff,
)

RECORDED: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).parent.parent / "data/records/rsync-structs.json").read_text()
)
TIME_NS = 1_700_000_000_123_456_789

CHUNK_0 = RsyncChunk(
    chunk_number=0, beg=0, endx=70_000, hash="blake3.32B-AA==", len=70_000
)
CHUNK_1 = RsyncChunk(
    chunk_number=1, beg=70_000, endx=70_200, hash="blake3.32B-BB==", len=200
)
CONFIG = CdcConfig(min_size=4096, target_size=61_440, max_size=81_920)


def hashes(path: str, *chunks: RsyncChunk) -> RsyncHashes:
    return RsyncHashes(
        rsync0_call_id="call-1",
        is_from_sender=True,
        created_ns=TIME_NS + 10**9,
        host="box",
        path=path,
        mod_time_ns=TIME_NS,
        file_size=70_200,
        file_mode=0o644 | 1 << 23,
        file_owner="ann",
        file_owner_id=1000,
        file_group="staff",
        file_group_id=70_000,
        file_meta=b"\x00\x01\xff",
        hash_name="blake3.32B",
        full_file_hash_sum="blake3.32B-CC==",
        chunker_name="fastcdc",
        cdc_config=CONFIG,
        num_chunks=len(chunks),
        chunks=list(chunks),
    )


DIFF = RsyncDiff(
    host_a="box",
    path_a="a",
    hashes_a=hashes("a", CHUNK_0, CHUNK_1),
    host_b="bix",
    path_b="b/\udcff",
    hashes_b=hashes("b/\udcff", CHUNK_0),
    both=[MatchHashPair(CHUNK_0, CHUNK_0)],
    only_a=[CHUNK_1],
)
VALUES: dict[str, object] = {
    "chunk": CHUNK_0,
    "pair": MatchHashPair(a=CHUNK_0, b=CHUNK_1),
    "config": CONFIG,
    "hashes": hashes("dir/file", CHUNK_0, CHUNK_1),
    "diff": DIFF,
    "step0": RsyncStep0ClientRequestsRead(
        reader_host="r",
        reader_path="p",
        reader_len_bytes=1 << 40,
        reader_mod_time_ns=TIME_NS,
        reader_full_hash="blake3.32B-DD==",
    ),
    "step1": RsyncStep1SenderOverview(
        sender_host="s",
        sender_path="p",
        sender_len_bytes=200,
        sender_mod_time_ns=TIME_NS,
        sender_full_hash="x",
    ),
    "step2": RsyncStep2AckOverview(
        reader_matches_sender_all_good=True, reader_hashes=hashes("q", CHUNK_1)
    ),
    "step3": RsyncStep3SenderProvidesDeltas(
        sender_hashes=hashes("q", CHUNK_1),
        chunk_diff=DIFF,
        delta_hashes_pre_compression=["one", "two"],
        compression_algo="s2",
        delta_data_streamed_path="/tmp/d",
    ),
    "step4": RsyncStep4ReaderAcksDeltasFin(
        reader_host="r",
        reader_path="p",
        reader_len_bytes=5,
        reader_mod_time_ns=TIME_NS,
        reader_full_hash="y",
    ),
    "chunk_zero": RsyncChunk(),
    "pair_zero": MatchHashPair(),
    "hashes_zero": RsyncHashes(),
    "diff_zero": RsyncDiff(),
    "step0_zero": RsyncStep0ClientRequestsRead(),
    "step1_zero": RsyncStep1SenderOverview(),
    "step2_zero": RsyncStep2AckOverview(),
    "step3_zero": RsyncStep3SenderProvidesDeltas(),
    "step4_zero": RsyncStep4ReaderAcksDeltasFin(),
}
#: In their streams the same chunk comes twice, the second time as a reference.
WITH_REFERENCES = {"diff", "step3"}


def recorded(name: str, form: str) -> bytes:
    return bytes.fromhex(RECORDED[name][form])


def test_every_recorded_value_is_known() -> None:
    assert set(RECORDED) == {*VALUES, "summary_of_abc"}


@pytest.mark.parametrize("name", VALUES)
def test_records_are_encoded_as_go_does(name: str) -> None:
    value = VALUES[name]
    packed = recorded(name, "marshal")
    assert encode(value) == packed
    assert decode(type(value), packed) == value
    assert decode_prefix(type(value), packed + b"more") == (value, len(packed))


@pytest.mark.parametrize("name", sorted(set(VALUES) - WITH_REFERENCES))
def test_streams_of_go_are_read(name: str) -> None:
    value = VALUES[name]
    assert decode(type(value), recorded(name, "stream")) == value


@pytest.mark.parametrize("name", sorted(WITH_REFERENCES))
def test_references_in_streams_are_refused(name: str) -> None:
    with pytest.raises(DecodeError, match="a reference to an earlier one"):
        decode(type(VALUES[name]), recorded(name, "stream"))


@pytest.mark.parametrize("name", ["hashes", "step2", "step4"])
def test_records_that_are_cut_short_are_refused(name: str) -> None:
    packed = recorded(name, "marshal")
    for end in range(len(packed)):
        with pytest.raises(DecodeError):
            decode(type(VALUES[name]), packed[:end])


def test_a_nil_chunk_is_an_empty_one() -> None:
    packed = encode(RsyncHashes(chunks=[CHUNK_0]))
    nil = packed.replace(encode(CHUNK_0), b"\xc0")
    assert nil != packed
    assert decode(RsyncHashes, nil).chunks == [RsyncChunk()]


def test_every_record_can_be_encoded() -> None:
    for value in VALUES.values():
        check_type(type(value))


# Comparing.


def made_of(letters: str) -> RsyncHashes:
    chunks = [
        RsyncChunk(number, number, number + 1, letter, 1)
        for number, letter in enumerate(letters)
    ]
    return RsyncHashes(
        host=f"host of {letters}", path=letters, chunks=chunks, num_chunks=len(chunks)
    )


def test_a_difference_names_what_is_common_and_what_is_not() -> None:
    a, b = made_of("pqrs"), made_of("qxs")
    found = a.diff(b)
    assert found == diff(a, b)
    assert found.both == [
        MatchHashPair(a.chunks[1], b.chunks[0]),
        MatchHashPair(a.chunks[3], b.chunks[2]),
    ]
    assert found.only_a == [a.chunks[0], a.chunks[2]]
    assert found.only_b == [b.chunks[1]]
    assert (found.host_a, found.path_a) == ("host of pqrs", "pqrs")
    assert (found.host_b, found.path_b) == ("host of qxs", "qxs")
    assert found.hashes_a is a
    assert found.hashes_b is b


def test_every_occurrence_in_the_second_file_is_common() -> None:
    a, b = made_of("pqq"), made_of("qqp")
    found = diff(a, b)
    assert found.both == [
        MatchHashPair(a.chunks[2], b.chunks[0]),
        MatchHashPair(a.chunks[2], b.chunks[1]),
        MatchHashPair(a.chunks[0], b.chunks[2]),
    ]
    assert found.only_a == found.only_b == []


@given(st.text("pqrs"), st.text("qrst"))
def test_every_chunk_is_accounted_for(letters_a: str, letters_b: str) -> None:
    found = diff(made_of(letters_a), made_of(letters_b))
    common = [pair.b.hash for pair in found.both if pair.b]
    assert all(pair.a and pair.b and pair.a.hash == pair.b.hash for pair in found.both)
    assert common == [letter for letter in letters_b if letter in letters_a]
    assert [chunk.hash for chunk in found.only_b] == [
        letter for letter in letters_b if letter not in letters_a
    ]
    assert [chunk.hash for chunk in found.only_a] == [
        letter for letter in letters_a if letter not in letters_b
    ]


@given(st.text("pqrs", max_size=20))
def test_records_of_any_length_come_back(letters: str) -> None:
    value = diff(made_of(letters), replace(made_of(letters[1:]), mod_time_ns=-1))
    assert decode(RsyncDiff, encode(value)) == value
