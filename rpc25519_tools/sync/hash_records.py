"""The documented records of delta sync: what a file consists of, and the five steps.

They have the fields that the Go package documents, under its names and numbers on the
wire, and are encoded by `rpc25519_tools.greenpack`.

Source: rsync.go of the peer, and what its generated code has encoded.
"""

from dataclasses import dataclass

from rpc25519_tools.greenpack import Int64, TimeNs, Uint32, zid


@dataclass(frozen=True, slots=True)
class RsyncChunk:
    """One chunk of a file.

    Attributes:
        chunk_number: its index in the file's list of chunks.
        beg: the offset of its first byte.
        endx: the offset behind its last byte.
        hash: the BLAKE3 sum of its bytes, as text.
        len: how many bytes it has.
    """

    chunk_number: int = zid(0, 0)
    beg: int = zid(1, 0)
    endx: int = zid(2, 0)
    hash: str = zid(3, "")
    len: int = zid(4, 0)


@dataclass(frozen=True, slots=True)
class CdcConfig:
    """How long chunks are, in bytes; Go's ``CDC_Config``.

    Attributes:
        min_size: no chunk is shorter but the last one.
        target_size: from there on cuts are more likely.
        max_size: no chunk is longer.
    """

    min_size: int = zid(0, 0)
    target_size: int = zid(1, 0)
    max_size: int = zid(2, 0)


@dataclass(frozen=True, slots=True)
class RsyncHashes:
    """The chunks of the file ``path`` on ``host``.

    Attributes:
        host: the machine's name, as whoever made this calls it.
        path: the file's path there, or any name for bytes.
        mod_time_ns: the time of the last change, Unix nanoseconds.
        file_size: in bytes.
        file_mode: in Go's form: nine bits of permission, and 1 << 23, 22 and 20 for
            set-user-ID, set-group-ID and sticky.
        file_owner: the owner's name; empty where it has none.
        file_owner_id: the owner's number.
        file_group: the group's name; empty where it has none.
        file_group_id: the group's number.
        file_meta: for extensions.
        hash_name: which sums these are, ``blake3.32B``.
        full_file_hash_sum: the sum of all bytes of the file.
        chunker_name: how it was cut.
        cdc_config: the sizes by which it was cut.
        num_chunks: the length of ``chunks``.
        chunks: in the order of the file.
        rsync0_call_id: identifies the call that this belongs to, as the next two; set
            by who sends it.
        is_from_sender: whether it is the sender's file.
        created_ns: when this was made, Unix nanoseconds.
    """

    host: str = zid(0, "")
    path: str = zid(1, "")
    mod_time_ns: TimeNs = zid(2, None, name="ModTime")
    file_size: Int64 = zid(3, 0)
    file_mode: Uint32 = zid(4, 0)
    file_owner: str = zid(5, "")
    file_owner_id: Uint32 = zid(6, 0, name="FileOwnerID")
    file_group: str = zid(7, "")
    file_group_id: Uint32 = zid(8, 0, name="FileGroupID")
    file_meta: bytes = zid(9, b"")
    hash_name: str = zid(10, "")
    full_file_hash_sum: str = zid(11, "")
    chunker_name: str = zid(12, "")
    cdc_config: CdcConfig | None = zid(13, None, name="CDC_Config")
    num_chunks: int = zid(14, 0)
    chunks: list[RsyncChunk] = zid(15, default_factory=list)
    rsync0_call_id: str = zid(16, "", name="Rsync0CallID")
    is_from_sender: bool = zid(17, False)
    created_ns: TimeNs = zid(18, None, name="Created")

    def diff(self, other: "RsyncHashes") -> "RsyncDiff":
        """Compare with another file: see the function `diff`."""
        return diff(self, other)


@dataclass(frozen=True, slots=True)
class MatchHashPair:
    """Two chunks with the same bytes: ``a`` of the first file, ``b`` of the second."""

    a: RsyncChunk | None = zid(0, None)
    b: RsyncChunk | None = zid(1, None)


@dataclass(frozen=True, slots=True)
class RsyncDiff:
    """How two files differ.

    Attributes:
        host_a: the machine of the first file.
        path_a: the path of the first file.
        hashes_a: the first file.
        host_b: the machine of the second file.
        path_b: the path of the second file.
        hashes_b: the second file.
        both: the chunks of the second file that the first one has, in the second's
            order, each with one of the first.
        only_a: the chunks of the first file that the second has not, in order.
        only_b: the chunks of the second file that the first has not, in order.
    """

    host_a: str = zid(0, "")
    path_a: str = zid(1, "")
    hashes_a: RsyncHashes | None = zid(2, None)
    host_b: str = zid(3, "")
    path_b: str = zid(4, "")
    hashes_b: RsyncHashes | None = zid(5, None)
    both: list[MatchHashPair] = zid(6, default_factory=list)
    only_a: list[RsyncChunk] = zid(7, default_factory=list)
    only_b: list[RsyncChunk] = zid(8, default_factory=list)


# The five documented steps, for one file.


@dataclass(frozen=True, slots=True)
class RsyncStep0ClientRequestsRead:
    """Step 0: a client asks to be sent a file, and tells of its own version.

    Attributes:
        reader_full_hash: the sum of that version, if it is known already.
    """

    reader_host: str = zid(0, "")
    reader_path: str = zid(1, "")
    reader_len_bytes: Int64 = zid(2, 0)
    reader_mod_time_ns: TimeNs = zid(3, None, name="ReaderModTime")
    reader_full_hash: str = zid(4, "")


@dataclass(frozen=True, slots=True)
class RsyncStep1SenderOverview:
    """Step 1: the sender tells of the file that it has.

    Attributes:
        sender_full_hash: its sum, if it is known already.
    """

    sender_host: str = zid(0, "")
    sender_path: str = zid(1, "")
    sender_len_bytes: Int64 = zid(2, 0)
    sender_mod_time_ns: TimeNs = zid(3, None, name="SenderModTime")
    sender_full_hash: str = zid(4, "")


@dataclass(frozen=True, slots=True)
class RsyncStep2AckOverview:
    """Step 2: the reader has the same file, or tells which chunks it has.

    Attributes:
        reader_matches_sender_all_good: nothing more is to be done.
        reader_hashes: None is allowed then.
    """

    reader_matches_sender_all_good: bool = zid(0, False)
    reader_hashes: RsyncHashes | None = zid(1, None)


@dataclass(frozen=True, slots=True)
class RsyncStep3SenderProvidesDeltas:
    """Step 3: the sender tells how its file is made of chunks, and which are new.

    Attributes:
        sender_hashes: the sender's file.
        chunk_diff: how it differs from the reader's.
        delta_hashes_pre_compression: the sums of the new chunks' bytes.
        compression_algo: how the new chunks travel.
        delta_data_streamed_path: under which name their bytes are streamed.
    """

    sender_hashes: RsyncHashes | None = zid(0, None)
    chunk_diff: RsyncDiff | None = zid(1, None)
    delta_hashes_pre_compression: list[str] = zid(2, default_factory=list)
    compression_algo: str = zid(3, "")
    delta_data_streamed_path: str = zid(4, "")


@dataclass(frozen=True, slots=True)
class RsyncStep4ReaderAcksDeltasFin:
    """Step 4: the reader tells of the file as it has it now."""

    reader_host: str = zid(0, "")
    reader_path: str = zid(1, "")
    reader_len_bytes: Int64 = zid(2, 0)
    reader_mod_time_ns: TimeNs = zid(3, None, name="ReaderModTime")
    reader_full_hash: str = zid(4, "")


# Comparing.


def diff(a: RsyncHashes, b: RsyncHashes) -> RsyncDiff:
    """Tell which chunks two files have in common, by their sums.

    **Every** chunk of ``b`` that ``a`` has is in ``both``: one that is there ten times
    in ``b`` makes ten pairs. Go's Diff pairs it once and reports the other nine as
    missing from ``a``, which they are not. Otherwise the results are Go's: of several
    chunks of ``a`` with the same bytes the last one is paired, and none of them is in
    ``only_a``.
    """
    by_hash = {chunk.hash: chunk for chunk in a.chunks}
    wanted = {chunk.hash for chunk in b.chunks}
    return RsyncDiff(
        host_a=a.host,
        path_a=a.path,
        hashes_a=a,
        host_b=b.host,
        path_b=b.path,
        hashes_b=b,
        both=[
            MatchHashPair(by_hash[chunk.hash], chunk)
            for chunk in b.chunks
            if chunk.hash in by_hash
        ],
        only_a=[chunk for chunk in a.chunks if chunk.hash not in wanted],
        only_b=[chunk for chunk in b.chunks if chunk.hash not in by_hash],
    )
