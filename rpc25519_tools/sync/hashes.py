"""Summaries of files, chunk by chunk, and how two of them differ: the public names.

Sums are texts, as in file transfers: ``blake3.32B-`` and 44 characters.

Summaries can be compared where both were cut alike. The chunk sizes follow from the
size of the file, so for two versions of a file summarize the second one ``like`` the
first. A summary that a Go peer has made can be read and compared, but its chunker cuts
elsewhere, so only chunks that happen to be the same will be found.
"""

import os
import stat
from dataclasses import replace
from itertools import accumulate
from typing import Final

from rpc25519_tools.errors import ConfigError, LocalFileError
from rpc25519_tools.files.jail import describe_kind, display_name, file_error
from rpc25519_tools.files.source import SourceFile
from rpc25519_tools.sync.chunking import (
    BLOCK_LEN,
    CHUNKER_NAME,
    ChunkDigest,
    Chunker,
    ChunkSizes,
    chunk_sizes,
    cut_bytes,
)
from rpc25519_tools.sync.hash_records import (
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
from rpc25519_tools.sync.owners import group_name, user_name
from rpc25519_tools.wire.digest import RunningDigest, digest_text, format_digest
from rpc25519_tools.wire.greenpack import Buffer

__all__ = [
    "HASH_NAME",
    "CdcConfig",
    "MatchHashPair",
    "RsyncChunk",
    "RsyncDiff",
    "RsyncHashes",
    "RsyncStep0ClientRequestsRead",
    "RsyncStep1SenderOverview",
    "RsyncStep2AckOverview",
    "RsyncStep3SenderProvidesDeltas",
    "RsyncStep4ReaderAcksDeltasFin",
    "diff",
    "summarize_bytes",
    "summarize_file",
]

#: How the peer calls the sums.
HASH_NAME: Final = "blake3.32B"

#: O_NONBLOCK: the open of a FIFO would wait for its writer before it can be refused.
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK
#: Go's own bits for what is not among the nine of permission.
_GO_MODE_BITS: Final = (
    (stat.S_ISUID, 1 << 23),
    (stat.S_ISGID, 1 << 22),
    (stat.S_ISVTX, 1 << 20),
)


def summarize_bytes(
    host: str,
    path: str,
    data: Buffer,
    mod_time_ns: int | None = None,
    *,
    like: RsyncHashes | None = None,
) -> RsyncHashes:
    """Cut what is in memory, and hash its chunks.

    Args:
        host: what to call the machine.
        path: what to call the bytes.
        data: the bytes.
        mod_time_ns: the time of their last change, Unix nanoseconds; None is unset.
        like: a summary to compare with: cut by its sizes, not by those that follow
            from the length of ``data``.

    Raises:
        ConfigError: ``like`` has been cut by sizes that cannot be used here, or by
            another chunker.
    """
    view = memoryview(data).cast("B")
    sizes = _sizes(len(view), like)
    chunks = cut_bytes(view, sizes)
    summary = _summary(
        [len(chunk) for chunk in chunks],
        ChunkDigest().of(chunks),
        digest_text(view),
        sizes,
    )
    return replace(summary, host=host, path=path, mod_time_ns=mod_time_ns)


def summarize_file(
    host: str,
    path: str | os.PathLike[str],
    *,
    like: RsyncHashes | None = None,
) -> RsyncHashes:
    """Cut a file, and hash its chunks; links are followed.

    The file is read block by block, however long it is. What is returned takes about
    350 bytes of memory for each chunk. This blocks; call it from a worker thread.

    Args:
        host: what to call the machine.
        path: the file.
        like: see `summarize_bytes`.

    Raises:
        LocalFileError: the file is missing, cannot be read or is not a regular file.
        FileChangedError: it was changed meanwhile.
        ConfigError: see `summarize_bytes`.
    """
    name = os.fspath(path)
    fd, status = _open(name)
    with SourceFile(fd, name) as source:
        if source.size_bytes is None:  # of /proc and the like
            raise LocalFileError(f"cannot read {display_name(name)}: it has no size")
        sizes = _sizes(source.size_bytes, like)
        lengths, digests, full_hash = _digests(source, source.size_bytes, sizes)
        source.check_unchanged()
    return replace(
        _summary(lengths, digests, full_hash, sizes),
        host=host,
        path=name,
        mod_time_ns=source.modified_ns,
        file_mode=_go_mode(status.st_mode),
        file_owner=user_name(status.st_uid),
        file_owner_id=status.st_uid,
        file_group=group_name(status.st_gid),
        file_group_id=status.st_gid,
    )


def _digests(
    source: SourceFile, file_len: int, sizes: ChunkSizes
) -> tuple[list[int], list[bytes], str]:
    """Read a file to its end; return its table, and the sum of all of it."""
    chunker = Chunker(sizes, min(BLOCK_LEN, file_len))
    digest = ChunkDigest()
    whole = RunningDigest()
    lengths: list[int] = []
    digests: list[bytes] = []

    def take(chunks: list[memoryview]) -> None:
        lengths.extend(len(chunk) for chunk in chunks)
        digests.extend(digest.of(chunks))

    while True:
        room = chunker.room()
        got = source.read_into(room)
        if not got:
            break
        whole.update(room[:got])
        take(chunker.advance(got))
    take(chunker.finish())
    return lengths, digests, whole.text()


def _summary(
    lengths: list[int], digests: list[bytes], full_hash: str, sizes: ChunkSizes
) -> RsyncHashes:
    ends = list(accumulate(lengths))
    chunks = [
        RsyncChunk(number, end - length, end, format_digest(digest), length)
        for number, (end, length, digest) in enumerate(
            zip(ends, lengths, digests, strict=True)
        )
    ]
    return RsyncHashes(
        file_size=ends[-1] if ends else 0,
        hash_name=HASH_NAME,
        full_file_hash_sum=full_hash,
        chunker_name=CHUNKER_NAME,
        cdc_config=CdcConfig(sizes.min_len, sizes.avg_len, sizes.max_len),
        num_chunks=len(chunks),
        chunks=chunks,
    )


def _sizes(file_len: int, like: RsyncHashes | None) -> ChunkSizes:
    if like is None:
        return chunk_sizes(file_len)
    config = like.cdc_config
    shown = display_name(like.path)
    if like.chunker_name != CHUNKER_NAME or config is None:
        raise ConfigError(
            f"cannot cut as {shown} was: by {display_name(like.chunker_name)}"
        )
    sizes = ChunkSizes(config.min_size, config.target_size, config.max_size)
    try:
        sizes.cutter()
    except ValueError as exc:
        raise ConfigError(
            f"cannot cut as {shown} was: its chunk sizes are out of range"
        ) from exc
    return sizes


def _open(name: str) -> tuple[int, os.stat_result]:
    """Open a regular file; no other kind may keep the caller waiting."""
    try:
        fd = os.open(name, _OPEN_FLAGS)
    except OSError as exc:
        raise file_error(exc, "read", name) from exc
    except ValueError as exc:  # a NUL, or a character that has no bytes
        raise LocalFileError(
            f"cannot read {display_name(name)}: not a possible name"
        ) from exc
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            kind = describe_kind(status.st_mode)
            raise LocalFileError(f"cannot read {display_name(name)}: it is {kind}")
    except BaseException:
        os.close(fd)
        raise
    return fd, status


def _go_mode(mode: int) -> int:
    """Return the mode of a regular file as Go's FileMode has it."""
    return (mode & 0o777) | sum(bit for ours, bit in _GO_MODE_BITS if mode & ours)
