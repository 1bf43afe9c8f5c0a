"""What is left of uploads that were cut, and how client and server agree on it.

Before a client of ours has sent much of a file, it asks the service
``rpc25519.upload.kept`` what the server has of it:

1. The client names the file; the service answers how many bytes it has.
2. The client sends the sum of as many bytes of its own file; the service answers
   whether that is the sum of what it has. Only the whole of that is compared, so that
   nobody can find out bit by bit what somebody else has uploaded.
3. The client uploads what is behind, and says so on part 0.

A Go server does not have the service, and the client sends everything.

A client that comes back may be quicker than the news that its connection has broken.
It names its transfer by a random id, by which the service finds the upload that still
waits for the old connection, and ends it.
"""

import asyncio
import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rpc25519_tools.errors import IncompleteTransferError
from rpc25519_tools.files.descriptors import (
    PER_AREA,
    PER_UPLOAD,
    OpenFiles,
    open_files,
)
from rpc25519_tools.files.jail import Root, access_target
from rpc25519_tools.files.landing import (
    CARRY_MIN_LEN,
    Landing,
    Prefix,
    read_prefix,
    remote_landing,
)
from rpc25519_tools.files.parts import (
    ARG_KEPT_LEN,
    ARG_KEPT_SUM,
    ARG_UPLOAD_NAME,
    parse_size,
)
from rpc25519_tools.files.workers import in_worker
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply

#: The name of the service.
KEPT_UPLOADS_SERVICE: Final = "rpc25519.upload.kept"

#: On an upload's part 0 and on the questions: names the transfer among all attempts.
ARG_TRANSFER_ID: Final = "transferId"
#: On an upload's part 0: the length of the whole file.
ARG_UPLOAD_LEN: Final = "fileBytes"
#: On the second answer: whether the sum fits.
ARG_FITS: Final = "fits"
#: On the error reply to an upload: its beginning is no longer there.
ARG_START_OVER: Final = "startOver"

_ID_LEN: Final = 16
_MAX_ID_LEN: Final = 64
#: How many sums are remembered between a question and the upload itself.
_MAX_COMPARED: Final = 64
#: How long the end of an upload on an old connection is waited for, in seconds.
_END_LIMIT_S: Final = 5.0
_SUPERSEDED: Final = "its client has come back on another connection"


def new_transfer_id() -> str:
    """Return a random name for one transfer; nobody can guess it."""
    return secrets.token_hex(_ID_LEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """An upload that is under way.

    Attributes:
        context: its call.
        task: its handler.
        over: set when that has let go of all files.
    """

    context: CallContext
    task: "asyncio.Task[object]"
    over: asyncio.Event


class KeptUploads:
    """What is left of cut uploads beneath one directory; the service that tells of it.

    Args:
        root: the directory.
        clobber: whether an upload may replace a file.
        files: counts what is open; None: the count of the whole process.
    """

    #: Rights are looked up here, by the file's name, and not by the service's.
    checks_access: Final = True

    def __init__(
        self, root: Root, *, clobber: bool, files: OpenFiles | None = None
    ) -> None:
        self._root = root
        self._clobber = clobber
        self._files = files
        self._running: dict[tuple[str, str], _Running] = {}
        self._compared: dict[tuple[int, ...], Prefix] = {}
        self._looking = asyncio.Lock()

    def landing(self, name: str, *, clobber: bool) -> Landing:
        """Return where an upload of that name is received."""
        return remote_landing(self._root, name, clobber=clobber and self._clobber)

    async def __call__(self, context: CallContext) -> Reply:
        """Answer a client that is about to upload; the rights are those of uploads."""
        args = context.header.args
        name = args.get(ARG_UPLOAD_NAME, "")
        context.require("write", access_target(name))
        await self._end_older(context, name)
        files = self._files or open_files()
        with files.reserve(context.remote_address, PER_UPLOAD + PER_AREA):
            async with self.landing(name, clobber=True) as landing:
                if ARG_KEPT_SUM not in args:
                    kept_bytes = await self.look(landing)
                    return Reply(args={ARG_KEPT_LEN: str(kept_bytes)})
                kept_bytes = await self._lock(landing)
                begun = await self._compare(landing, context, kept_bytes)
                status = landing.kept_status()
        if begun is not None and status is not None:
            while len(self._compared) >= _MAX_COMPARED:
                del self._compared[next(iter(self._compared))]
            self._compared[_identity(status)] = begun
        return Reply(args={ARG_FITS: "0" if begun is None else "1"})

    async def look(self, landing: Landing) -> int:
        """Return how much there is to carry on with, and leave it unlocked.

        One at a time: a question and its client's part 0 come together, and neither
        may think that what the other looks at belongs to another transfer.
        """
        async with self._looking:
            kept_bytes = await in_worker(landing.look)
        return kept_bytes if kept_bytes >= CARRY_MIN_LEN else 0

    async def take(self, landing: Landing, context: CallContext) -> Prefix | None:
        """Lock what is there, if it is what the client's upload goes on behind.

        Raises:
            IncompleteTransferError: the client announces no length.
            LocalFileError: reading failed.
        """
        kept_bytes = await self._lock(landing)
        status = landing.kept_status()
        if status is not None:
            begun = self._compared.pop(_identity(status), None)
            if begun is not None and _claims(context, begun):
                return begun
        return await self._compare(landing, context, kept_bytes)

    async def _lock(self, landing: Landing) -> int:
        async with self._looking:
            return await in_worker(landing.take_kept)

    async def _compare(
        self, landing: Landing, context: CallContext, kept_bytes: int
    ) -> Prefix | None:
        claimed = parse_size(context.header.args, ARG_KEPT_LEN)
        if claimed != kept_bytes or kept_bytes < CARRY_MIN_LEN:
            return None
        try:
            begun = await read_prefix(landing.read_kept_into, kept_bytes)
        except IncompleteTransferError:
            return None
        return begun if _claims(context, begun) else None

    @contextlib.contextmanager
    def running(self, context: CallContext, name: str) -> Iterator[None]:
        """Let a later attempt of the same transfer end this upload meanwhile."""
        key = _transfer(context, name)
        task = asyncio.current_task()
        if key is None or task is None:
            yield
            return
        mine = _Running(context=context, task=task, over=asyncio.Event())
        self._running[key] = mine
        try:
            yield
        finally:
            mine.over.set()
            if self._running.get(key) is mine:
                del self._running[key]

    async def _end_older(self, context: CallContext, name: str) -> None:
        """End the upload of an earlier attempt, unless it is on this connection."""
        key = _transfer(context, name)
        older = None if key is None else self._running.get(key)
        if older is None or older.context.client is context.client:
            return
        older.task.cancel(_SUPERSEDED)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_LIMIT_S):
                await older.over.wait()


def _transfer(context: CallContext, name: str) -> tuple[str, str] | None:
    given = context.header.args.get(ARG_TRANSFER_ID, "")
    return (given, name) if _ID_LEN <= len(given) <= _MAX_ID_LEN else None


def _claims(context: CallContext, begun: Prefix) -> bool:
    args = context.header.args
    return (
        args.get(ARG_KEPT_LEN) == str(begun.size_bytes)
        and args.get(ARG_KEPT_SUM) == begun.sum
    )


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes whenever the file is written to, by us or by others."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
