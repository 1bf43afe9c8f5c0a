"""The messages of the five steps: what they hold, encoded and decoded (sans-IO).

Entries travel in columns, packed with zstd: 10,000 of them take about 75 KB. Names are
single components; where they belong is told by the number of their directory. The
transfer's root has number 0, and every further directory gets the next number when its
entry passes, on both sides alike, so that no path is ever sent, and none can lie.

What a peer sends is checked here as far as it can be without looking at files: lengths,
numbers, and names, which can be neither ``..`` nor have a slash in them.

Raises of every decoder: RemoteProtocolError.
"""

import stat
import sys
from array import array
from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec

from rpc25519_tools.errors import RemoteProtocolError
from rpc25519_tools.files.jail import MAX_NAME_BYTES, PARTIAL_PREFIX, is_partial_name
from rpc25519_tools.sync.options import MAX_PATH_LEN, MAX_PATHS, SyncOptions
from rpc25519_tools.wire.codecs import Codec, compress, decompress
from rpc25519_tools.wire.greenpack import Buffer

#: What both sides speak; goes up when a byte changes its meaning.
VERSION: Final = 1
#: The service of both kinds of calls, and the call that tells whether there is one.
SYNC_SERVICE: Final = "rpc25519.sync"
OFFER_SERVICE: Final = "rpc25519.sync.offer"

#: Arguments of the second: which way a path would go, and in the answer what it is.
ARG_DIRECTION: Final = "direction"
ARG_KIND: Final = "kind"
KIND_DIRECTORY: Final = "directory"

#: Argument of a pull's first part: the source is one thing that is no directory.
ARG_SINGLE: Final = "single"

#: Entries in one message.
MAX_BATCH: Final = 8192
#: Bytes that one message unpacks to.
MAX_RECORD_LEN: Final = 16 << 20
#: Records, or members of one, in one message: what costs some bytes of it costs more
#: in memory, so their number is checked before any of them is made.
MAX_RECORDS: Final = 1 << 16
#: The same of step 2 where all are tables: a receiver of ours sends those of 256 small
#: files together, for some local files each, of 1024 chunks each but the last one.
_MAX_TABLES: Final = 4096
#: The same where they are not, and of step 4: it sends one, and each may have 8192
#: verdicts, notes or paths. Messages with no more begin with a byte below 0xa0.
_MAX_FEW: Final = 15
_AFTER_FEW: Final = 0xA0
#: Ranges in one Refine.
MAX_RANGES: Final = 4096
#: Messages from this length on are packed.
_PACK_FROM: Final = 256
#: Messages up to this length that are not packed are decoded in next to no time.
_QUICK_LEN: Final = 4096
#: Bytes of a chunk's sum that travel. The sums are keyed by the receiver for each sync,
#: so nobody can make contents ahead whose sums are alike; and a file is only right when
#: the full sums of all its chunks are.
SHORT_SUM_LEN: Final = 6
#: Bytes of the key of the sums, and of a full one.
KEY_LEN: Final = 32
SUM_LEN: Final = 32
#: Characters of an error that are believed.
MAX_NOTE_LEN: Final = 1000

#: Arguments of a DELTAS part that is nothing but bytes of a file: its entry's index,
#: and where the bytes belong.
ARG_INDEX: Final = "i"
ARG_AT: Final = "at"

_T = TypeVar("_T")
_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Index = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_Mode = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
_Seconds = Annotated[int, msgspec.Meta(gt=-(1 << 62), lt=1 << 62)]
_Text = Annotated[str, msgspec.Meta(max_length=MAX_NOTE_LEN)]
_Path = Annotated[bytes, msgspec.Meta(max_length=MAX_PATH_LEN)]

_MostBatch = msgspec.Meta(max_length=MAX_BATCH)
_Most = msgspec.Meta(max_length=MAX_RECORDS)
_Few = msgspec.Meta(max_length=_MAX_FEW)
_Modes = Annotated[list[_Mode], _MostBatch]
_Sizes = Annotated[list[_Size], _MostBatch]
_Ids = Annotated[list[_Id], _MostBatch]
_Names = Annotated[dict[_Id, _Text], _MostBatch]
_Notes = Annotated[dict[_Index, _Text], _MostBatch]
_PathNotes = Annotated[list[tuple[_Path, _Text]], _MostBatch]

#: Kinds of files that an entry may be of, as the bits of ``st_mode`` above 12.
_KINDS: Final = frozenset(
    kind >> 12
    for kind in (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
        stat.S_IFCHR,
        stat.S_IFBLK,
    )
)

#: The name of the entry that stands for the transfer's root itself.
ROOT_NAME: Final = b"."


class Request(msgspec.Struct, frozen=True, array_like=True):
    """What opens a sync.

    Attributes:
        version: see VERSION.
        options: what to do.
        paths: of a pull: what to send, relative to the served directory. A slash at
            the end means what is in the directory, without it the directory itself.
        dest: of a push: the destination, relative to the served directory.
        single: of a push: the only source is one thing that is no directory, so that
            ``dest`` may be its new name.
        start_at: where an earlier attempt stopped: a path of the transfer; what comes
            before it is in place.
        only: of a pull: nothing but these paths, relative to the one of ``paths``.
        run: of a push: random bytes that all its attempts share; a later one makes an
            earlier one end.
    """

    version: int
    options: SyncOptions
    paths: Annotated[tuple[_Path, ...], msgspec.Meta(max_length=MAX_PATHS)] = ()
    dest: _Path = b""
    single: bool = False
    start_at: _Path | None = None
    only: Annotated[tuple[_Path, ...], msgspec.Meta(max_length=1 << 20)] | None = None
    run: Annotated[bytes, msgspec.Meta(max_length=KEY_LEN)] = b""


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """So many entries of one directory, sorted by name.

    Attributes:
        directory: its number.
        count: how many entries.
        ends: whether these are its last ones.
        whole: whether nothing is missing that could be read; with ``ends`` only.
    """

    directory: _Index
    count: Annotated[int, msgspec.Meta(ge=0, le=MAX_BATCH)]
    ends: bool
    whole: bool = True


class Overview(msgspec.Struct, array_like=True):
    """Some entries, in columns of the same order.

    Attributes:
        segments: where they belong.
        names: joined by NUL bytes.
        modes: ``st_mode`` of each.
        sizes: length in bytes; of anything but regular files 0.
        seconds: time of change, whole seconds since 1970.
        nanos: nanoseconds of it, four bytes each, little-endian.
        targets: of the symbolic links among them, in order.
        uids, gids: one each for all of them, or empty.
        users, groups: names of numbers that come up for the first time.
        leaders: position -> index of the entry that it is a hard link of.
        sums: unkeyed BLAKE3 of the regular files, in order, or empty.
        devices: numbers of the device files, in order.
        failed: what could not be read: paths for people, and why.
        final: whether no more entries come.
        skipped: what is left out since it is not wanted: the first paths of all.
    """

    segments: Annotated[list[Segment], _MostBatch] = []
    names: bytes = b""
    modes: _Modes = []
    sizes: _Sizes = []
    seconds: Annotated[list[_Seconds], _MostBatch] = []
    nanos: bytes = b""
    targets: Annotated[list[_Path], _MostBatch] = []
    uids: _Ids = []
    gids: _Ids = []
    users: _Names = {}
    groups: _Names = {}
    leaders: Annotated[dict[int, _Index], _MostBatch] = {}
    sums: bytes = b""
    devices: _Sizes = []
    failed: _PathNotes = []
    final: bool = False
    skipped: Annotated[list[_Path], _MostBatch] = []

    @property
    def count(self) -> int:
        """How many entries there are."""
        return len(self.modes)


class Verdict(IntEnum):
    """What the receiver makes of an entry."""

    EQUAL = 0  # nothing to do
    DONE = 1  # made or changed without any content
    WANT = 2  # send it whole
    WANT_DELTA = 3  # tables of what is there follow
    SKIPPED = 4  # the options say so
    FAILED = 5  # a note says why


class Verdicts(msgspec.Struct, tag="v", array_like=True):
    """What becomes of some entries; step 2.

    Attributes:
        base: index of the first one.
        verdicts: a Verdict each.
        changes: as ``itemize.py`` has them, one each; empty where all are 0 or nobody
            has asked.
        notes: index -> why it failed or was skipped.
        key: of the sums of chunks; in the first one only.
    """

    base: _Index
    verdicts: Annotated[bytes, msgspec.Meta(max_length=MAX_BATCH)]
    changes: Annotated[list[int], _MostBatch] = []
    notes: _Notes = {}
    key: Annotated[bytes, msgspec.Meta(max_length=KEY_LEN)] = b""


class Table(msgspec.Struct, tag="t", array_like=True):
    """Some chunks of a file that the receiver has; step 2.

    Attributes:
        index: of the entry that it may serve for.
        basis: number of the file among those for this entry.
        in_place: whether the file is the unfinished one itself: its chunks count only
            where they are.
        lengths: see ``pack_lengths``.
        sums: the first six bytes of the keyed BLAKE3 of each.
        last: whether it is the last one for the entry.
    """

    index: _Index
    basis: Annotated[int, msgspec.Meta(ge=0, lt=16)]
    in_place: bool
    lengths: bytes
    sums: bytes
    last: bool


class Blocks(msgspec.Struct, tag="b", array_like=True):
    """The answer to a Refine: sums of blocks, of all ranges in their order; step 2.

    Attributes:
        index: of the entry.
        sums: the first six bytes of the keyed BLAKE3 of each.
    """

    index: _Index
    sums: bytes


class Removed(msgspec.Struct, tag="r", array_like=True):
    """What was removed, or would be: paths below the transfer's root; step 4.

    Directories have a slash at the end.
    """

    paths: Annotated[list[_Path], _MostBatch]
    notes: _PathNotes = []


class Whole(msgspec.Struct, tag="w", array_like=True):
    """A small file; step 3."""

    index: _Index
    data: bytes
    sum: Annotated[bytes, msgspec.Meta(min_length=SUM_LEN, max_length=SUM_LEN)]


class Copies(msgspec.Struct, tag="c", array_like=True):
    """Runs of chunks that the receiver has: basis, first chunk, count, where to."""

    index: _Index
    runs: Annotated[list[tuple[_Index, _Index, _Index, _Size]], _Most]


class Data(msgspec.Struct, tag="d", array_like=True):
    """A few bytes of a file, and where they belong."""

    index: _Index
    at: _Size
    data: bytes


class Zeros(msgspec.Struct, tag="z", array_like=True):
    """A hole of a file."""

    index: _Index
    at: _Size
    length: _Size


class Refine(msgspec.Struct, tag="f", array_like=True):
    """A question for the blocks of some chunks, before what is missing is sent.

    It comes once for a file at most.

    Attributes:
        index: of the entry.
        ranges: basis, first chunk and count, each.
    """

    index: _Index
    ranges: Annotated[
        list[tuple[_Index, _Index, _Index]],
        msgspec.Meta(min_length=1, max_length=MAX_RANGES),
    ]


class Patches(msgspec.Struct, tag="p", array_like=True):
    """Stretches that the receiver has: basis, offset there, length, where to."""

    index: _Index
    patches: Annotated[list[tuple[_Index, _Size, _Size, _Size]], _Most]


class End(msgspec.Struct, tag="e", array_like=True):
    """All of a file has been sent, or it cannot be.

    Attributes:
        index: of its entry.
        size: its length, which may be more than announced if it has grown.
        root: BLAKE3 of the sums of its pieces, in the order of the file.
        failure: why it was given up; empty if it was not.
    """

    index: _Index
    size: _Size
    root: Annotated[bytes, msgspec.Meta(max_length=SUM_LEN)]
    failure: _Text = ""


class Totals(msgspec.Struct, frozen=True, array_like=True):
    """What the receiver did, in numbers; at the very end.

    Attributes:
        deleted: how many things were removed.
        matched_bytes: what it had itself, of the files that were wanted.
        literal_bytes: what came over the wire for them.
        undeleted: how many were left because of ``max_delete``.
    """

    deleted: _Size = 0
    matched_bytes: _Size = 0
    literal_bytes: _Size = 0
    undeleted: _Size = 0


class Acks(msgspec.Struct, tag="a", array_like=True):
    """Which wanted files are in place, and what is stored; step 4.

    ``stored`` counts the bytes of all messages of step 3 that have been dealt with: a
    receiver that is killed needs no more of them.
    """

    done: Annotated[list[_Index], _MostBatch]
    failed: _Notes = {}
    totals: Totals | None = None
    stored: _Size = 0


Hashes: TypeAlias = Verdicts | Table | Blocks
Deltas: TypeAlias = Whole | Copies | Data | Zeros | Refine | Patches | End
Fins: TypeAlias = Acks | Removed

_encoder = msgspec.msgpack.Encoder()
_request = msgspec.msgpack.Decoder(Request)
_overview = msgspec.msgpack.Decoder(Overview)
_few_hashes = msgspec.msgpack.Decoder(Annotated[list[Hashes], _Few])
_tables = msgspec.msgpack.Decoder(
    Annotated[list[Table], msgspec.Meta(max_length=_MAX_TABLES)]
)
_deltas = msgspec.msgpack.Decoder(Annotated[list[Deltas], _Most])
_fins = msgspec.msgpack.Decoder(Annotated[list[Fins], _Few])


def _pack(record: object) -> bytes:
    plain = _encoder.encode(record)
    if len(plain) < _PACK_FROM:
        return b"\0" + plain
    return b"\1" + bytes(compress(Codec.ZSTD_01, plain))


def _unpack(data: Buffer, decoder: "msgspec.msgpack.Decoder[_T]") -> _T:
    return _decode(_plain(data), decoder)


def _plain(data: Buffer) -> memoryview:
    view = memoryview(data)
    mark, body = bytes(view[:1]), view[1:]
    if mark == b"\1":
        body = memoryview(decompress(Codec.ZSTD_01, body, max_len=MAX_RECORD_LEN))
    elif mark != b"\0":
        raise RemoteProtocolError("a sync message has no known form")
    elif len(body) > MAX_RECORD_LEN:
        raise RemoteProtocolError(f"a sync message has over {MAX_RECORD_LEN} bytes")
    return body


def _decode(body: memoryview, decoder: "msgspec.msgpack.Decoder[_T]") -> _T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise RemoteProtocolError(f"a sync message is malformed: {exc}") from exc


def encode_request(request: Request) -> bytes:
    """Return a Request as it opens a call."""
    return _pack(request)


def decode_request(data: Buffer) -> Request:
    """Return the Request that opens a call."""
    request = _unpack(data, _request)
    if request.version != VERSION:
        raise RemoteProtocolError(
            f"the other side speaks version {request.version} of sync, we {VERSION}"
        )
    return request


def told(path: bytes) -> bytes:
    """Return a path as a message for people has it: of a very long one the end."""
    return path if len(path) <= MAX_PATH_LEN else b"..." + path[3 - MAX_PATH_LEN :]


def encode_overview(overview: Overview) -> bytes:
    """Return entries as they travel."""
    return _pack(overview)


def decode_overview(data: Buffer) -> tuple[Overview, list[bytes]]:
    """Return entries, checked, and their names taken apart."""
    overview = _unpack(data, _overview)
    count = overview.count
    names = overview.names.split(b"\0") if count else []
    regular = sum(map(stat.S_ISREG, overview.modes)) if overview.sums else 0
    fits = (
        count <= MAX_BATCH
        and len(names) == count
        and len(overview.sizes) == count
        and len(overview.seconds) == count
        and len(overview.nanos) == 4 * count
        and sum(segment.count for segment in overview.segments) == count
        and len(overview.uids) in (0, count)
        and len(overview.gids) in (0, count)
        and len(overview.sums) == regular * SUM_LEN
        and len(overview.targets) == sum(map(stat.S_ISLNK, overview.modes))
        and all(0 <= at < count for at in overview.leaders)
    )
    if not fits:
        raise RemoteProtocolError("the columns of a list of files do not fit together")
    _check_names(overview, names)
    if not _KINDS.issuperset(mode >> 12 for mode in overview.modes):
        raise RemoteProtocolError("an entry of a list of files is of no known kind")
    if any(not target or b"\0" in target for target in overview.targets):
        raise RemoteProtocolError("a symbolic link leads to no possible name")
    return overview, names


def _check_names(overview: Overview, names: Sequence[bytes]) -> None:
    bad = b"/" in overview.names or not {b"", b".."}.isdisjoint(names)
    if bad or max(map(len, names), default=0) > MAX_NAME_BYTES:
        raise RemoteProtocolError("a name in a list of files is no single component")
    if PARTIAL_PREFIX in overview.names.lower() and any(map(is_partial_name, names)):
        raise RemoteProtocolError(
            "a name in a list of files is reserved for unfinished files"
        )
    position = 0
    for segment in overview.segments:
        mine = names[position : position + segment.count]
        first = position
        position += segment.count
        if ROOT_NAME not in mine:
            continue
        is_root = mine[0] == ROOT_NAME and segment.directory == 0
        if not is_root or mine.count(ROOT_NAME) > 1:
            raise RemoteProtocolError("a name in a list of files is '.'")
        if not stat.S_ISDIR(overview.modes[first]):
            raise RemoteProtocolError("the root of a list of files is no directory")


def pack_nanos(nanos: Sequence[int]) -> bytes:
    """Return the column of nanoseconds."""
    return _pack_words(nanos)


def unpack_nanos(column: bytes) -> "array[int]":
    """Return the column of nanoseconds taken apart; each below 10**9."""
    nanos = _unpack_words(column)
    if nanos and max(nanos) >= 10**9:
        raise RemoteProtocolError("a file's time has more than 999999999 nanoseconds")
    return nanos


def pack_lengths(lengths: Sequence[int]) -> bytes:
    """Return lengths of chunks as a Table has them.

    Four bytes each, least significant first, but all first bytes together, then all
    second ones and so on: the last ones are mostly the same, and pack well.
    """
    column = _pack_words(lengths)
    return b"".join(column[at::4] for at in range(4))


def unpack_table(table: Table) -> "array[int]":
    """Return the lengths of a Table's chunks, checked."""
    count, rest = divmod(len(table.lengths), 4)
    if rest or len(table.sums) != count * SHORT_SUM_LEN:
        raise RemoteProtocolError("a table of chunks does not fit together")
    column = bytearray(len(table.lengths))
    for at in range(4):
        column[at::4] = table.lengths[at * count : (at + 1) * count]
    lengths = _unpack_words(bytes(column))
    if lengths and min(lengths) == 0:
        raise RemoteProtocolError("a table has a chunk without bytes")
    return lengths


def _pack_words(words: Sequence[int]) -> bytes:
    column = array("I", words)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def _unpack_words(column: bytes) -> "array[int]":
    words = array("I", column)
    if sys.byteorder == "big":
        words.byteswap()
    return words


def encode_records(records: Sequence[Hashes | Deltas | Fins]) -> bytes:
    """Return records of steps 2, 3 or 4 as one message."""
    return _pack(records)


def encode_plain(records: Sequence[Deltas]) -> bytes:
    """Return records of step 3 without packing: they are mostly files' contents."""
    return b"\0" + _encoder.encode(records)


def is_quick(data: Buffer) -> bool:
    """Tell whether a message may be decoded on an event loop: short, and not packed."""
    return len(data) <= _QUICK_LEN and bytes(data[:1]) != b"\1"


def decode_hashes(data: Buffer) -> Sequence[Hashes]:
    """Return the records of a message of step 2: a few of any kind, or many tables."""
    body = _plain(data)
    if not body or body[0] < _AFTER_FEW:
        return _decode(body, _few_hashes)
    return _decode(body, _tables)


def decode_deltas(data: Buffer) -> list[Deltas]:
    """Return the records of a message of step 3."""
    return _unpack(data, _deltas)


def decode_fins(data: Buffer) -> list[Fins]:
    """Return the records of a message of step 4."""
    return _unpack(data, _fins)
