"""What a listing is on the wire (sans-IO).

A listing is a stream of parts, each a msgpack array of entries, and each entry an array
of the fields of `_Record`, in that order; fields that a newer peer adds behind them are
ignored. Entries come in the order of a walk: a directory, then what is in it, one
deeper. So names are single components, and their paths need not be sent.
"""

import stat
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from rpc25519_tools.errors import DecodeError
from rpc25519_tools.files.jail import MAX_NAME_BYTES, MAX_PATH_BYTES
from rpc25519_tools.wire.greenpack import Buffer

#: The service, and the arguments of its request and its reply.
LIST_SERVICE: Final = "rpc25519.list"
ARG_LIST_PATH: Final = "listPath"
ARG_LIST_RECURSIVE: Final = "listRecursive"
ARG_LIST_COUNT: Final = "listCount"

#: A part is sent when it has so many bytes; one entry more makes it little longer.
PART_TARGET_LEN: Final = 64 << 10
#: A peer's part may have so many.
MAX_PART_LEN: Final = 1 << 20
#: Directories within directories: a path has no more components.
MAX_DEPTH: Final = MAX_PATH_BYTES // 2
#: Bytes of an owner's name (LOGIN_NAME_MAX of Linux), and of a line about a problem.
MAX_OWNER_LEN: Final = 256
MAX_PROBLEM_LEN: Final = 1000

Kind: TypeAlias = Literal[
    "file", "directory", "link", "fifo", "socket", "character device", "block device"
]

_KINDS: Final[dict[int, Kind]] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}

_Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Owner = Annotated[str, msgspec.Meta(max_length=MAX_OWNER_LEN)]


class ListEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A file, directory or anything else that a server lists.

    All of it is what the server says. Names are bytes that may steer a terminal.

    Attributes:
        parents: the directories it is in, below the one that was asked for; empty
            unless the listing is recursive.
        name: its name, one component; not empty, ``.`` or ``..``.
        mode: kind and permissions, as ``st_mode`` of POSIX has them.
        size: length in bytes; for what is no file, whatever the system says.
        mtime_ns: when it was changed last, in nanoseconds since 1970.
        uid, gid: numbers of its owner and group, on the server.
        owner, group: their names there; empty where they have none.
        nlink: how many names it has.
        link_target: where a symbolic link leads to; None for anything else.
        problem: why the server could not list this directory; empty if it could.
    """

    parents: tuple[bytes, ...] = ()
    name: bytes
    mode: int
    size: int
    mtime_ns: int
    uid: int
    gid: int
    owner: str
    group: str
    nlink: int
    link_target: bytes | None = None
    problem: str = ""

    @property
    def kind(self) -> Kind:
        """What it is."""
        return _KINDS[stat.S_IFMT(self.mode)]

    @property
    def path(self) -> bytes:
        """Its path below the directory that was asked for."""
        return b"/".join((*self.parents, self.name))


class _Record(msgspec.Struct, frozen=True, array_like=True):
    depth: Annotated[int, msgspec.Meta(ge=0, lt=MAX_DEPTH)]
    name: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_NAME_BYTES)]
    mode: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    size: _Count
    mtime_ns: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
    uid: _Id
    gid: _Id
    owner: _Owner
    group: _Owner
    nlink: _Count
    link_target: Annotated[bytes, msgspec.Meta(max_length=MAX_PATH_BYTES)] | None
    problem: Annotated[str, msgspec.Meta(max_length=MAX_PROBLEM_LEN)]


def is_known_kind(mode: int) -> bool:
    """Tell whether something of this ``st_mode`` can be listed."""
    return stat.S_IFMT(mode) in _KINDS


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(list[_Record])


def encode_entries(entries: Sequence[ListEntry]) -> bytes:
    """Return the payload of a part.

    Args:
        entries: in the order of a walk; of their parents only the number counts.
    """
    return _encoder.encode(
        [
            _Record(
                depth=len(entry.parents),
                name=entry.name,
                mode=entry.mode,
                size=entry.size,
                mtime_ns=entry.mtime_ns,
                uid=entry.uid,
                gid=entry.gid,
                owner=entry.owner,
                group=entry.group,
                nlink=entry.nlink,
                link_target=entry.link_target,
                problem=entry.problem,
            )
            for entry in entries
        ]
    )


def encoded_len_of(entry: ListEntry) -> int:
    """Return about how many bytes an entry takes in a part, or somewhat more."""
    names = len(entry.name) + len(entry.link_target or b"")
    characters = len(entry.owner) + len(entry.group) + len(entry.problem)
    return 80 + names + 4 * characters


class EntryReader:
    """Reads the parts of one listing, in order.

    Args:
        recursive: whether there may be entries of deeper directories.
    """

    def __init__(self, *, recursive: bool) -> None:
        self._recursive = recursive
        #: The directories that the next entries can be in.
        self._parents: tuple[bytes, ...] = ()
        self._last_directory: bytes | None = None
        #: Entries so far.
        self.count = 0

    def read(self, payload: Buffer) -> Iterator[ListEntry]:
        """Return the entries of a part; nothing for an empty one.

        Raises:
            DecodeError: it is malformed or too long, or says what cannot be.
        """
        if not payload:
            return
        if len(payload) > MAX_PART_LEN:
            raise DecodeError(f"a part of a listing has over {MAX_PART_LEN} bytes")
        try:
            records = _decoder.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise DecodeError(f"a listing is malformed: {exc}") from exc
        for record in records:
            yield self._entry(record)

    def _entry(self, record: _Record) -> ListEntry:
        name = record.name
        if name in {b".", b".."} or b"/" in name or b"\0" in name:
            raise DecodeError("a listing has a name that is none")
        if not is_known_kind(record.mode):
            raise DecodeError("a listing has a file of an unknown kind")
        is_link = stat.S_ISLNK(record.mode)
        if b"\0" in (record.link_target or b""):
            raise DecodeError("a listing has a link to nowhere")
        self._go_to(record.depth)
        self._last_directory = name if stat.S_ISDIR(record.mode) else None
        self.count += 1
        return ListEntry(
            parents=self._parents,
            name=name,
            mode=record.mode,
            size=record.size,
            mtime_ns=record.mtime_ns,
            uid=record.uid,
            gid=record.gid,
            owner=record.owner,
            group=record.group,
            nlink=record.nlink,
            link_target=record.link_target if is_link else None,
            problem=record.problem,
        )

    def _go_to(self, depth: int) -> None:
        """Go to the directory that an entry of this depth is in."""
        here = len(self._parents)
        if depth == here:
            return
        if depth < here:
            self._parents = self._parents[:depth]
            return
        if not self._recursive or depth > here + 1 or self._last_directory is None:
            raise DecodeError("a listing has an entry outside of every directory")
        self._parents = (*self._parents, self._last_directory)
        if sum(map(len, self._parents)) + depth > MAX_PATH_BYTES:
            raise DecodeError(f"a listing has paths of over {MAX_PATH_BYTES} bytes")
