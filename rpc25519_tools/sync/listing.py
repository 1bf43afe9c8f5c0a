"""Listing directories: the client's side and the service.

The service walks beneath the root by way of ``files/jail.py``, in worker threads, and
sends entries as it finds them. Whatever the number of entries, both sides hold some
hundreds of them for each level of directories; names that wait are in a temporary file
where they are many (``files/sorted_names.py``).

Who may list a directory is told the names in it, but not of entries that it may not
list themselves.
"""

import asyncio
import contextlib
import stat
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Final, TypeVar

from rpc25519_tools.errors import (
    IncompleteTransferError,
    LocalFileError,
    UnsafePathError,
)
from rpc25519_tools.files.descriptors import PER_LISTING, OpenFiles, open_files
from rpc25519_tools.files.directory import Directory, Found, find
from rpc25519_tools.files.download import next_parts
from rpc25519_tools.files.jail import (
    MAX_PATH_BYTES,
    Root,
    describe_kind,
    display_name,
    split_listed_name,
    target_of,
)
from rpc25519_tools.files.parts import naming_service, parse_size, within
from rpc25519_tools.files.record import TransferLog, TransferRecord
from rpc25519_tools.files.sorted_names import NameSpool
from rpc25519_tools.files.workers import finished, in_worker, open_in_worker
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.streams import OutgoingStream
from rpc25519_tools.sync.list_records import (
    ARG_LIST_COUNT,
    ARG_LIST_PATH,
    ARG_LIST_RECURSIVE,
    LIST_SERVICE,
    MAX_PROBLEM_LEN,
    PART_TARGET_LEN,
    EntryReader,
    ListEntry,
    encode_entries,
    encoded_len_of,
    is_known_kind,
)
from rpc25519_tools.sync.owners import group_name, user_name

_SILENT = "the server sent nothing"
_TRUE = "true"

#: Entries that are looked at in one go, and in directories that are deep in others.
_BATCH: Final = 256
_DEEP_BATCH: Final = 32
_DEEP: Final = 16
#: Names of owners and groups that are remembered.
_MOST_OWNERS: Final = 4096
_INT64_END: Final = 1 << 63
#: A client gives up when nothing comes for 30 s (Config.stall_timeout_s). A directory
#: of millions, or a slow disk, can take longer.
_SIGN_OF_LIFE_S: Final = 5.0

T = TypeVar("T")


async def list_remote(
    client: Client, path: str = "", *, recursive: bool = False
) -> AsyncGenerator[ListEntry, None]:
    """List a directory, or one file, of the server's served directory.

    The entries come in the order of the bytes of their names; with ``recursive`` each
    directory is followed by what is in it. They come while the server still looks, so
    an error can be raised after some of them. Who does not want all of them closes the
    iterator (``contextlib.aclosing``), which ends the call.

    Args:
        client: an open connection.
        path: relative to the served directory; empty, ``.`` or ``/`` for that itself.
            With a slash at the end it has to be a directory.
        recursive: also list the directories in it. Those that the server cannot list
            have a ``problem``.

    Raises:
        NoSuchServiceError: the server offers no listings.
        RemoteCallError: there is no such file or directory, or it is not allowed.
        DecodeError, IncompleteTransferError: what came is no listing, or not all.
        ConnectionLostError, DeadlineError, SecurityError: the connection failed.
    """
    args = {ARG_LIST_PATH: path}
    if recursive:
        args[ARG_LIST_RECURSIVE] = _TRUE
    reader = EntryReader(recursive=recursive)
    opening = client.stream(CallKind.DOWNLOAD, LIST_SERVICE, args=args)
    async with await opening as stream:
        with naming_service("listings", "-serve"):
            parts = await next_parts(client, stream, client.call_timeout_s)
        while parts:
            for part in parts:
                for entry in reader.read(part.payload):
                    yield entry
            parts = await next_parts(client, stream)
        reply = await within(client.stall_timeout_s, _SILENT, stream.reply())
        count = parse_size(reply.header.args, ARG_LIST_COUNT)
        if count != reader.count:
            raise IncompleteTransferError(
                f"the server sent {reader.count} entries of a listing of {count}"
            )


class ListService:
    """Lists what is beneath one directory.

    Args:
        root: the directory.
        log: learns how each listing ended.
        files: counts what is open; None: the count of the whole process.
    """

    #: Rights are looked up here, by the directory's name, and not by the service's.
    checks_access: Final = True

    def __init__(
        self, root: Root, *, log: TransferLog, files: OpenFiles | None = None
    ) -> None:
        self._root = root
        self._log = log
        self._files = files

    async def __call__(self, context: CallContext, out: OutgoingStream) -> Reply:
        """Send one listing; the reply tells how many entries were sent."""
        with (
            TransferRecord("list", context, self._log) as record,
            contextlib.ExitStack() as reserved,
        ):
            path = context.header.args.get(ARG_LIST_PATH, "")
            record.name = path
            parts = split_listed_name(path)
            context.require("list", target_of(parts))
            files = self._files or open_files()
            reserved.enter_context(files.reserve(context.remote_address, PER_LISTING))
            recursive = context.header.args.get(ARG_LIST_RECURSIVE) == _TRUE
            sender = _Sender(out, record)
            spool = NameSpool()
            try:
                await sender.begin()
                walk = _Walk(self._root, context, sender, spool, recursive=recursive)
                await walk.run(path, parts)
                await sender.end()
            finally:
                out.turn.give_up()
                await in_worker(spool.close)
            return Reply(args={ARG_LIST_COUNT: str(sender.count)})


class _Sender:
    """Makes parts of entries; holds one part at a time, in the connection's turns."""

    def __init__(self, out: OutgoingStream, record: TransferRecord) -> None:
        self._out = out
        self._record = record
        self._entries: list[ListEntry] = []
        self._len = 0
        self._sent_s = time.monotonic()
        self.count = 0

    async def begin(self) -> None:
        """Tell the client that it will get something, however long that takes."""
        await self._out.send(b"")
        await self._out.turn.next()

    async def add(self, entry: ListEntry) -> None:
        """Add an entry; send what there is when it is enough for a part."""
        self._entries.append(entry)
        self._len += encoded_len_of(entry)
        if self._len >= PART_TARGET_LEN:
            await self._send()
            await self._out.turn.next()

    async def wait_for(self, step: Coroutine[Any, Any, T]) -> T:
        """Wait for something; send signs of life meanwhile.

        Raises:
            Exception: whatever the step raises.
            ConnectionLostError: the connection is over.
        """
        task = asyncio.ensure_future(step)
        try:
            while not task.done():
                silent_s = time.monotonic() - self._sent_s
                await asyncio.wait([task], timeout=_SIGN_OF_LIFE_S - silent_s)
                await self.look_alive()
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await finished(task)

    async def look_alive(self) -> None:
        """Send what there is, be it nothing, if nothing was sent for long."""
        if time.monotonic() - self._sent_s >= _SIGN_OF_LIFE_S:
            await self._send()
            await self._out.turn.next()

    async def end(self) -> None:
        """Send the rest."""
        await self._send(last=True)

    async def _send(self, *, last: bool = False) -> None:
        payload = encode_entries(self._entries) if self._entries else b""
        self.count += len(self._entries)
        self._entries = []
        self._len = 0
        self._record.size_bytes += len(payload)
        self._out.turn.hold(len(payload))
        await self._out.send(payload, last=last)
        self._sent_s = time.monotonic()


class _Level:
    """A directory that is being walked, and the entries that are next."""

    def __init__(self, directory: Directory, batch: list[Found]) -> None:
        self.directory = directory
        self.pending = deque(batch)


class _Walk:
    """One walk through a directory, or through all that is beneath it."""

    def __init__(
        self,
        root: Root,
        context: CallContext,
        sender: _Sender,
        spool: NameSpool,
        *,
        recursive: bool,
    ) -> None:
        self._root = root
        self._context = context
        self._sender = sender
        self._spool = spool
        self._recursive = recursive
        self._levels: list[_Level] = []
        self._user_names = _Names(user_name)
        self._group_names = _Names(group_name)

    async def run(self, path: str, parts: tuple[bytes, ...]) -> None:
        """Send what a name means.

        Args:
            path: the name, as it was asked for.
            parts: its components.

        Raises:
            LocalFileError: it cannot be listed; the text is for the peer.
            ConnectionLostError: the connection is over.
        """
        if parts:
            found = await self._sender.wait_for(
                in_worker(find, self._root, parts, path)
            )
            mode = found.status.st_mode
            if not stat.S_ISDIR(mode):
                if path.endswith("/"):
                    kind = "a file" if stat.S_ISREG(mode) else describe_kind(mode)
                    raise UnsafePathError(
                        f"cannot list {display_name(path)}: it is {kind}, not a "
                        "directory"
                    )
                await self._sender.add(self._entry_of(found, ()))
                return
        self._levels.append(await self._open(parts, path or "/"))
        while self._levels:
            level = self._levels[-1]
            if not level.pending:
                look = in_worker(self._look, level.directory, self._batch_len)
                level.pending.extend(await self._sender.wait_for(look))
            if level.pending:
                await self._take(level.directory.parts, level.pending.popleft())
            else:
                self._levels.pop().directory.close()

    @property
    def _batch_len(self) -> int:
        return _BATCH if len(self._levels) < _DEEP else _DEEP_BATCH

    def _look(self, directory: Directory, limit: int) -> list[Found]:
        """Look at the next entries, and look up their owners; both can block."""
        batch = directory.next_batch(limit)
        for found in batch:
            self._user_names.get(found.status.st_uid)
            self._group_names.get(found.status.st_gid)
        return batch

    async def _open(self, parts: tuple[bytes, ...], shown: str) -> _Level:
        """Open a directory, and look at the first entries."""
        limit = self._batch_len

        def step() -> _Level:
            directory = Directory(self._root, parts, shown, self._spool)
            try:
                return _Level(directory, self._look(directory, limit))
            except BaseException:
                directory.close()
                raise

        opening = open_in_worker(step, lambda level: level.directory.close())
        return await self._sender.wait_for(opening)

    async def _take(self, parents: tuple[bytes, ...], found: Found) -> None:
        """Send one entry, and go into it where that is wanted."""
        parts = (*parents, found.name)
        if not is_known_kind(found.status.st_mode):
            return
        context = self._context
        if context.access is not None and not context.may("list", target_of(parts)):
            return
        problem, level = "", None
        if self._recursive and stat.S_ISDIR(found.status.st_mode):
            try:
                level = await self._enter(parts)
            except LocalFileError as exc:
                problem = str(exc)[:MAX_PROBLEM_LEN]
        above = self._levels[0].directory.parts
        await self._sender.add(self._entry_of(found, parents[len(above) :], problem))
        if level is not None:
            self._levels.append(level)

    async def _enter(self, parts: tuple[bytes, ...]) -> _Level:
        shown = b"/".join(parts).decode("utf-8", "surrogateescape")
        if sum(map(len, parts)) + len(parts) > MAX_PATH_BYTES:
            raise LocalFileError(f"cannot list {display_name(shown)}: path too long")
        return await self._open(parts, shown)

    def _entry_of(
        self, found: Found, parents: tuple[bytes, ...], problem: str = ""
    ) -> ListEntry:
        status = found.status
        # A time can be further away than the wire can say, on tmpfs.
        mtime_ns = max(-_INT64_END, min(status.st_mtime_ns, _INT64_END - 1))
        return ListEntry(
            parents=parents,
            name=found.name,
            mode=status.st_mode,
            size=status.st_size,
            mtime_ns=mtime_ns,
            uid=status.st_uid,
            gid=status.st_gid,
            owner=self._user_names.get(status.st_uid),
            group=self._group_names.get(status.st_gid),
            nlink=status.st_nlink,
            link_target=found.link_target,
            problem=problem,
        )


class _Names:
    """Names of users, or of groups, for as long as one listing takes."""

    def __init__(self, look_up: Callable[[int], str]) -> None:
        self._look_up = look_up
        self._known: dict[int, str] = {}

    def get(self, number: int) -> str:
        """Return a name; empty for none."""
        name = self._known.get(number)
        if name is None:
            if len(self._known) >= _MOST_OWNERS:
                self._known.clear()
            name = self._known[number] = self._look_up(number)
        return name
